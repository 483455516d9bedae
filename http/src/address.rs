//! The address that a request came from, as far as it can be believed.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::HttpRequest;
use ipnet::IpNet;

/// Proxies whose word on where a request came from counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(pub Vec<IpNet>);

/// Most addresses of a forwarding header that are looked at.
const HOPS_MAX: usize = 16;

impl Proxies {
    fn have(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address, or its IPv6 network of 64 bits: the last address of `X-Forwarded-For` that is no proxy of
    /// ours if one of them sent the request, else the peer's.
    pub fn client(&self, request: &HttpRequest) -> Option<IpAddr> {
        let peer = plain(request.peer_addr()?.ip());
        let mut client = peer;
        if self.have(peer) {
            let values: Vec<&str> =
                request.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok()).collect();
            let hops = values.iter().flat_map(|value| value.split(',')).map(str::trim).collect::<Vec<_>>();
            for hop in hops.iter().rev().take(HOPS_MAX) {
                let Ok(address) = hop.parse() else { break };
                client = plain(address);
                if !self.have(client) {
                    break;
                }
            }
        }
        Some(network(client))
    }
}

/// IPv4 as such, also where it came through an IPv6 socket.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// One customer has a whole IPv6 network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn client(proxies: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = Proxies(proxies.iter().map(|network| network.parse().unwrap()).collect());
        let request = TestRequest::default().peer_addr(peer.parse().unwrap());
        let request =
            forwarded.iter().fold(request, |request, value| request.append_header(("X-Forwarded-For", *value)));
        proxies.client(&request.to_http_request()).unwrap().to_string()
    }

    #[test]
    fn a_forwarding_header_counts_only_behind_our_proxies() {
        let ours = ["10.0.0.0/8", "192.0.2.1/32"];
        let table: [(&[&str], &str, &[&str], &str); 11] = [
            (&[], "198.51.100.7:1", &["203.0.113.9"], "198.51.100.7"),
            (&ours, "198.51.100.7:1", &["203.0.113.9"], "198.51.100.7"),
            (&ours, "10.1.2.3:1", &[], "10.1.2.3"),
            (&ours, "10.1.2.3:1", &["203.0.113.9"], "203.0.113.9"),
            (&ours, "10.1.2.3:1", &["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
            (&ours, "10.1.2.3:1", &["6.6.6.6, 203.0.113.9, 10.9.9.9, 192.0.2.1"], "203.0.113.9"),
            (&ours, "10.1.2.3:1", &["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
            (&ours, "10.1.2.3:1", &["203.0.113.9, nonsense"], "10.1.2.3"),
            (&ours, "10.1.2.3:1", &["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
            (&[], "[::ffff:198.51.100.7]:1", &[], "198.51.100.7"),
            (&[], "[2001:db8::1]:1", &[], "2001:db8::"),
        ];
        for (proxies, peer, forwarded, expected) in table {
            assert_eq!(client(proxies, peer, forwarded), expected, "{peer} {forwarded:?}");
        }
    }
}
