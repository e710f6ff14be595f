//! The edge's parsers, for the fuzzer (`fuzz/`), which cannot see into a room.

use std::net::{IpAddr, Ipv4Addr};

use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, header};

use super::{forwarded, proxy_protocol};

/// Reads a PROXY protocol header, and not a byte more than there is of it.
///
/// # Panics
///
/// Where the reader waits although all bytes are there.
pub fn proxy_header(data: &[u8]) {
    let mut rest = data;
    let read = proxy_protocol::read(&mut rest).now_or_never().expect("bytes in memory are there");
    if read.is_ok() {
        let header = &data[..data.len() - rest.len()];
        let again = proxy_protocol::read(&mut &*header).now_or_never();
        assert!(again.is_some_and(|again| again.is_ok()), "what follows it does not matter");
    }
}

/// Finds the client in a line of each of the headers that say it.
///
/// # Panics
///
/// Where one is believed that no trusted proxy has named.
pub fn forwarded(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let Some((kind, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        match kind % 3 {
            0 => headers.append(forwarded::X_FORWARDED_FOR, value),
            1 => headers.append(forwarded::X_FORWARDED_PROTO, value),
            _ => headers.append(header::FORWARDED, value),
        };
    }
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let _ = forwarded::proto(&headers);
    assert_eq!(forwarded::client(&headers, peer, |_| false), nearest(&headers).unwrap_or(peer));
    let trusts = |address: IpAddr| address.is_loopback();
    let client = forwarded::client(&headers, peer, trusts);
    let named = forwarded::hops(&headers).flatten().any(|hop| hop == client);
    assert!(client == peer || named, "{client} was named by nobody");
}

fn nearest(headers: &HeaderMap) -> Option<IpAddr> {
    forwarded::hops(headers).next_back().flatten()
}
