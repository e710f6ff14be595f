//! The PROXY protocol, versions 1 and 2: who a trusted proxy says that it speaks for.
//!
//! Reads the header and not a byte more, because a ClientHello or a request follows it.

use std::{io, net::IpAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// `PROXY UNKNOWN\r\n`, the shortest of version 1. No shorter than the start of version 2.
const V1_MIN: usize = 15;
/// The longest of version 1.
const V1_MAX: usize = 107;
/// Signature, command, family and length of version 2.
const V2_START: usize = v2::PROTOCOL_PREFIX.len() + 4;
/// Addresses and what else proxies add; those that sign or put certificates in stay below.
const V2_MAX: usize = 4 * 1024;

/// Reads a header. `None` where the proxy speaks for itself, or does not know for whom.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; V1_MIN];
    stream.read_exact(&mut header).await?;
    if header.starts_with(b"PROXY ") {
        return read_v1(stream, header).await;
    }
    if !v2::PROTOCOL_PREFIX.starts_with(&header[..v2::PROTOCOL_PREFIX.len()]) {
        return Err(broken("no PROXY protocol header"));
    }
    header.push(stream.read_u8().await?);
    let length = usize::from(u16::from_be_bytes([header[V2_START - 2], header[V2_START - 1]]));
    if V2_MAX < length {
        return Err(broken("the PROXY protocol header is too long"));
    }
    header.resize(V2_START + length, 0);
    stream.read_exact(&mut header[V2_START..]).await?;
    of_v2(&header)
}

/// Byte by byte: how long it is, only its end says.
async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: Vec<u8>,
) -> io::Result<Option<IpAddr>> {
    while !header.ends_with(b"\r\n") {
        if V1_MAX <= header.len() {
            return Err(broken("the PROXY protocol header is too long"));
        }
        header.push(stream.read_u8().await?);
    }
    let parsed = v1::Header::try_from(&*header).map_err(broken)?;
    Ok(match parsed.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    })
}

fn of_v2(header: &[u8]) -> io::Result<Option<IpAddr>> {
    let parsed = v2::Header::try_from(header).map_err(broken)?;
    if parsed.command == v2::Command::Local {
        return Ok(None);
    }
    Ok(match parsed.addresses {
        v2::Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::IPv6(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    })
}

fn broken(wrong: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is read of `bytes`, and what is left.
    fn read_all(bytes: &[u8]) -> (io::Result<Option<IpAddr>>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut rest = bytes;
            let read = read(&mut rest).await;
            (read, rest.to_vec())
        })
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn both_versions_say_who_the_client_is_and_no_byte_more_is_read() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 4, 210, 1, 187];
        let mut v6 = [0; 36];
        v6[15] = 9;
        let mut tlv = v4.to_vec();
        tlv.extend([4, 0, 3, 1, 2, 3]);
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 443\r\n".to_vec(), Some("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 1234 443\r\n".to_vec(), Some("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(1, 0x11, &v4), Some("192.0.2.7")),
            (v2(1, 0x21, &v6), Some("::9")),
            (v2(1, 0x11, &tlv), Some("192.0.2.7")),
            (v2(0, 0x11, &v4), None),
            (v2(1, 0x00, &[]), None),
        ];
        for (header, client) in cases {
            let mut bytes = header.clone();
            bytes.extend(b"GET / HTTP/1.1\r\n");
            let (read, rest) = read_all(&bytes);
            let client = client.map(|client| client.parse::<IpAddr>().expect("an address"));
            assert_eq!(read.expect("a header"), client, "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        let huge = v2(1, 0x11, &[0; V2_MAX + 1]);
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 1.2.3 10.0.0.1 1 2\r\n",
            b"PROXY TCP9 192.0.2.7 10.0.0.1 1234 443\r\n",
            b"PROXY TCP4 192.0.2.7",
            b"\r\n\r\n\0\r\nQUIT\nxxxxxx",
            &v2(1, 0x11, &[1, 2]),
            &long,
            &huge,
            b"",
        ] {
            assert!(read_all(bytes).0.is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&bytes);
            let _ = read_all(&[b"PROXY TCP4 ", &*bytes].concat());
            let _ = read_all(&[b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &*bytes].concat());
        }
    }
}
