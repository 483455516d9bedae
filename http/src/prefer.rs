//! `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use actix_web::{HttpRequest, http::header::HeaderName};

/// Longest wait that is granted.
const WAIT_MAX_SECONDS: u64 = 5;

/// The wait that the client prefers, at most 5 s. A malformed preference counts as none; of several the first counts.
pub fn wait_preference(request: &HttpRequest) -> Option<Duration> {
    let headers = request.headers().get_all(HeaderName::from_static("prefer"));
    let preferences = headers.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut waits = preferences.filter_map(|preference| {
        let (name, rest) = preference.split_once('=')?;
        let value = rest.split(';').next()?.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        name.trim().eq_ignore_ascii_case("wait").then_some(value.to_owned())
    });
    let digits = waits.next().filter(|v| !v.is_empty() && v.len() < 10 && v.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().map(|seconds: u64| Duration::from_secs(seconds.min(WAIT_MAX_SECONDS)))
}
