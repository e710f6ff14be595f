//! The edge's parsers, for the fuzzer (`fuzz/`), which cannot see into a room.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, header};

use super::{
    forwarded,
    framing::{Framing, HeadLimits, Refusal},
    proxy_protocol,
};
use crate::config::Limits;

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

/// Frames a connection's bytes. The first byte says how they are cut into reads.
///
/// # Panics
///
/// Where the cuts make a difference, or where a head goes on whose length is said twice.
pub fn framing(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else { return };
    let limits = Arc::new(HeadLimits::new(&Limits::default()));
    let mut whole = Framing::new(Arc::clone(&limits));
    let (passed, result) = whole.advance(bytes);
    let mut cut = Framing::new(limits);
    let (cut_passed, cut_result) = in_pieces(&mut cut, bytes, *seed);
    assert_eq!((result, whole.heads()), (cut_result, cut.heads()));
    if result == Err(Refusal::Chunk) {
        // What came in an earlier read than the malformed byte is on its way already.
        assert!(passed <= cut_passed && cut_passed < bytes.len());
    } else {
        assert_eq!(passed, cut_passed);
    }
    if 0 < whole.heads() {
        is_framed_once(&bytes[..passed]);
    }
}

/// What goes on, when the bytes come by and by.
fn in_pieces(framing: &mut Framing, bytes: &[u8], seed: u8) -> (usize, Result<(), Refusal>) {
    let (mut at, mut came, mut size) = (0, 0, usize::from(seed));
    while came < bytes.len() {
        size = (size * 7 + 3) % 61;
        came = (came + size + 1).min(bytes.len());
        let (passed, result) = framing.advance(&bytes[at..came]);
        at += passed;
        if result.is_err() {
            return (at, result);
        }
    }
    (at, Ok(()))
}

fn is_framed_once(passed: &[u8]) {
    let head = String::from_utf8_lossy(passed).to_ascii_lowercase();
    // One empty line may come before the first head.
    let head = head.strip_prefix("\r\n").unwrap_or(&head);
    let head = head.split("\r\n\r\n").next().unwrap_or_default();
    let count = |name: &str| head.split("\r\n").filter(|line| line.starts_with(name)).count();
    let (lengths, codings) = (count("content-length:"), count("transfer-encoding:"));
    assert!(lengths <= 1 && (lengths == 0 || codings == 0), "{head}");
    assert_eq!(count("host:"), usize::from(!head.contains("http/1.0") || 0 < count("host:")));
}
