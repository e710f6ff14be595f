//! What proxies have noted of a request's way: `X-Forwarded-For`, or `Forwarded` (RFC 7239) where
//! there is none. Pure, and asked only of requests that come from a trusted proxy.
//!
//! `X-Forwarded-For` goes before `Forwarded`: proxies that write the first pass the second on as
//! the client sent it.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, HeaderValue, header};

pub(super) const X_FORWARDED_FOR: &str = "x-forwarded-for";
pub(super) const X_FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Hops that are looked at, the nearest first. Nobody stands behind more proxies of their own.
const HOPS_MAX: usize = 32;

/// The client: going back from `peer`, the first hop that is not trusted. A hop that is no address
/// ends the way at the one that noted it.
pub(super) fn client(headers: &HeaderMap, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for hop in hops(headers).rev().take(HOPS_MAX) {
        let Some(hop) = hop else { break };
        client = hop;
        if !trusts(hop) {
            break;
        }
    }
    client
}

/// The hops, the nearest last; `None` for one that is no address.
pub(super) fn hops(headers: &HeaderMap) -> impl DoubleEndedIterator<Item = Option<IpAddr>> + use<> {
    let mut hops = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        hops.extend(text(line).split(',').map(|hop| address(hop.trim())));
    }
    if !headers.contains_key(X_FORWARDED_FOR) {
        for line in headers.get_all(header::FORWARDED) {
            let line = text(line);
            hops.extend(
                elements(&line).map(|element| {
                    parameter(element, "for").and_then(|node| address(unquoted(node)))
                }),
            );
        }
    }
    hops.into_iter()
}

/// The protocol that the nearest proxy says it was asked in; `None` where it says none that we know.
pub(super) fn proto(headers: &HeaderMap) -> Option<&'static str> {
    let last = headers.get_all(X_FORWARDED_PROTO).iter().next_back();
    let said = match last {
        Some(line) => text(line).rsplit(',').next().map(|proto| proto.trim().to_owned()),
        None => {
            let line = text(headers.get_all(header::FORWARDED).iter().next_back()?);
            let proto = elements(&line).last().and_then(|element| parameter(element, "proto"));
            proto.map(|proto| unquoted(proto).to_owned())
        }
    };
    match said?.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some("https"),
        "http" | "ws" => Some("http"),
        _ => None,
    }
}

fn text(line: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(line.as_bytes())
}

/// `192.0.2.7`, `192.0.2.7:1234`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:1234`.
fn address(hop: &str) -> Option<IpAddr> {
    let address = match hop.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match hop.split_once(':') {
            Some((v4, port)) if !port.contains(':') => v4,
            _ => hop,
        },
    };
    address.parse().map(|address: IpAddr| address.to_canonical()).ok()
}

/// The elements of a `Forwarded`: a comma within quotes separates none.
fn elements(line: &str) -> impl Iterator<Item = &str> {
    let mut in_quotes = false;
    line.split(move |char| {
        in_quotes ^= char == '"';
        char == ',' && !in_quotes
    })
}

/// The value of `for=` or its like, as it is written.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
    Some(value.trim())
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        headers
    }

    /// With 10.0.0.0/8 and ::1 trusted.
    fn found(lines: &[(&'static str, &str)]) -> String {
        let trusts = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets()[0] == 10,
            IpAddr::V6(v6) => v6.is_loopback(),
        };
        client(&headers(lines), "10.0.0.1".parse().expect("an address"), trusts).to_string()
    }

    #[test]
    fn the_client_is_the_rightmost_hop_that_is_not_trusted() {
        let cases = [
            ("192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
            ("6.6.6.6, 192.0.2.1, 10.0.0.7,10.0.0.8", "192.0.2.1"),
            ("192.0.2.1:5000", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:80, ::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("6.6.6.6, nonsense", "10.0.0.1"),
            ("6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("", "10.0.0.1"),
        ];
        for (line, client) in cases {
            assert_eq!(found(&[("x-forwarded-for", line)]), client, "{line}");
        }
        let two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.1, 10.0.0.2")];
        assert_eq!(found(&two), "192.0.2.1");
        assert_eq!(found(&[]), "10.0.0.1");
    }

    #[test]
    fn forwarded_counts_only_without_x_forwarded_for() {
        let cases = [
            ("for=192.0.2.1", "192.0.2.1"),
            ("for=6.6.6.6, For=\"[2001:db8::1]:80\";proto=https, for=10.0.0.2", "2001:db8::1"),
            ("by=\"a,for=6.6.6.6\";for=192.0.2.1", "192.0.2.1"),
            ("for=6.6.6.6, for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ];
        for (line, client) in cases {
            assert_eq!(found(&[("forwarded", line)]), client, "{line}");
        }
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(found(&both), "192.0.2.1");
    }

    #[test]
    fn the_protocol_is_the_nearest_proxys() {
        let said = |name, line| proto(&headers(&[(name, line)]));
        assert_eq!(said("x-forwarded-proto", "HTTPS"), Some("https"));
        assert_eq!(said("x-forwarded-proto", "https, http"), Some("http"));
        assert_eq!(said("x-forwarded-proto", "wss"), Some("https"));
        assert_eq!(said("x-forwarded-proto", "gopher"), None);
        assert_eq!(said("forwarded", "for=a;proto=http, for=b;proto=\"https\""), Some("https"));
        assert_eq!(proto(&HeaderMap::new()), None);
    }

    #[test]
    fn only_the_nearest_hops_are_looked_at() {
        let line = vec!["10.0.0.2"; HOPS_MAX + 10].join(", ");
        assert_eq!(found(&[("x-forwarded-for", &format!("6.6.6.6, {line}"))]), "10.0.0.2");
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(line in "[ -~\u{80}-\u{ff}]{0,80}") {
            for name in ["x-forwarded-for", "forwarded", "x-forwarded-proto"] {
                let headers = headers(&[(name, &line)]);
                let _ = client(&headers, [10, 0, 0, 1].into(), |_| true);
                let _ = proto(&headers);
            }
        }
    }
}
