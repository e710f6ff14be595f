//! Links' tokens, for the fuzzer (`fuzz/`), which cannot see into a room.

use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::{
    Request,
    carried::Carried,
    keys::Keys,
    token::{self, Claims, Kind},
};

fn keys() -> Keys {
    Keys::of("k", [("k", &b"a key that is in the sources, for the fuzzer alone"[..])])
}

/// Opens a token; the first byte says of which kind.
///
/// # Panics
///
/// Where it opens and is not, letter by letter, what was sealed; or where the other kind opens.
pub fn token(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (kind, other) = match kind % 2 {
        0 => (Kind::Link, Kind::Cookie),
        _ => (Kind::Cookie, Kind::Link),
    };
    let keys = keys();
    if let Ok((key, claims)) = token::open(&keys, kind, text) {
        assert_eq!(token::seal(&keys, key, kind, &claims).as_deref(), Some(text));
        assert!(token::open(&keys, other, text).is_err(), "it is of two kinds");
    }
    // What it would say if we had made it.
    if let Ok(claims) = serde_json::from_str::<Claims>(text)
        && let Some(sealed) = token::seal(&keys, "k", kind, &claims)
        && sealed.len() <= token::TOKEN_MAX
    {
        assert_eq!(token::open(&keys, kind, &sealed), Ok(("k", claims)));
    }
}

/// Takes our tokens out of a request: the first line is its target, the first byte of each other
/// one says of which header it is.
///
/// # Panics
///
/// Where a token would reach the instance.
pub fn carried(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(Ok(uri)) = lines.next().map(Uri::try_from) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(8) {
        let Some((kind, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        match kind % 3 {
            0 => headers.append(header::COOKIE, value),
            1 => headers.append(header::SEC_WEBSOCKET_PROTOCOL, value),
            _ => headers.append(header::AUTHORIZATION, value),
        };
    }
    let request = of(&uri, &headers);
    let carried = Carried::of(&request);
    let without = carried.without(&request);
    if let Some(location) = carried.location(&request) {
        assert!(location.starts_with('/') && !location.starts_with("//"), "{location}");
    }
    let uri = without.uri.as_ref().unwrap_or(&uri);
    let mut left = headers.clone();
    for (name, value) in
        [(header::COOKIE, without.cookie), (header::SEC_WEBSOCKET_PROTOCOL, without.protocols)]
    {
        if let Some(value) = value {
            left.insert(name, value);
        }
    }
    if without.authorization {
        left.remove(header::AUTHORIZATION);
    }
    let request = of(uri, &left);
    let tokens: Vec<_> = Carried::of(&request).tokens(true).collect();
    assert!(tokens.is_empty(), "{tokens:?}");
}

fn of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Request<'a> {
    Request {
        method: &Method::GET,
        uri,
        headers,
        host: "a.test",
        named: "a.test",
        is_secure: true,
        is_upgrade: false,
        address: None,
        certificate: None,
    }
}
