//! A line in the log for each request, at the level debug: what it was, what became of it, and ids by which it is found
//! again. Never what it held: users are told by a hash that nobody else can make, addresses by their network.

use std::{net::IpAddr, sync::OnceLock, time::Duration};

use actix_web::{HttpMessage, HttpRequest};
use likewise_schema::{RequestId, UserId, hex};
use ring::hmac;

use crate::{address::Proxies, authority::Sender, now};

const DAY_MILLIS: i64 = 86_400_000;

/// By what a request is found again.
#[derive(Clone, Debug, Default)]
struct Ids {
    trace: Option<String>,
    request: Option<RequestId>,
}

/// Notes a command's ids for the log.
pub fn note_ids(request: &HttpRequest, trace_parent: &str, id: RequestId) {
    if is_on() {
        let trace = trace_parent.split('-').nth(1).map(str::to_owned);
        request.extensions_mut().insert(Ids { trace, request: Some(id) });
    }
}

fn is_on() -> bool {
    tracing::enabled!(target: "likewise_http::access", tracing::Level::DEBUG)
}

/// Writes the line of a request.
pub(crate) fn log(request: &HttpRequest, method: &str, route: Option<&str>, status: u16, took: Duration) {
    if !is_on() {
        return;
    }
    let extensions = request.extensions();
    let Ids { trace, request: id } = extensions.get::<Ids>().cloned().unwrap_or_default();
    let (user, key) = match extensions.get::<Sender>() {
        Some(Sender::Holder(user)) => (user.and_then(pseudonym), None),
        Some(Sender::Service(key)) => (None, Some(key.id.as_str())),
        _ => (None, None),
    };
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(
        target: "likewise_http::access",
        method,
        route = route.unwrap_or("none"),
        status,
        micros,
        trace,
        request = id.map(tracing::field::display),
        user,
        key,
        network = request.app_data::<Proxies>().and_then(|proxies| proxies.client(request)).map(network),
        "request"
    );
}

/// A user as logs tell them: the same for a day and one process, and no number. None where the system has no randomness.
fn pseudonym(user: UserId) -> Option<String> {
    static KEY: OnceLock<Option<hmac::Key>> = OnceLock::new();
    let key = KEY.get_or_init(|| hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()).ok());
    let day = now().millis() / DAY_MILLIS;
    let tag = hmac::sign(key.as_ref()?, format!("{day}/{user}").as_bytes());
    Some(hex(&tag.as_ref()[..8]))
}

/// The first three parts of an IPv4 address, the first three groups of an IPv6 address.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_addresses_are_told_without_being_told() {
        let user = |id: i64| UserId::new(id).unwrap();
        assert_eq!(pseudonym(user(7)), pseudonym(user(7)));
        assert_ne!(pseudonym(user(7)), pseudonym(user(8)));
        assert_eq!(network("203.0.113.9".parse().unwrap()), "203.0.113.0/24");
        assert_eq!(network("::ffff:203.0.113.9".parse().unwrap()), "203.0.113.0/24");
        assert_eq!(network("2001:db8:1:2::3".parse().unwrap()), "2001:db8:1::/48");
    }
}
