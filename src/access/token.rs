//! The tokens of links: `dm1l.KEY.CLAIMS.MAC`, and `dm1c.…` for the cookie that a link becomes.
//!
//! HMAC-SHA-256 over everything before the last dot; nothing is read before that was compared, in
//! constant time. Knows nothing of requests.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::keys::Keys;

/// Longer ones are not ours: they are not looked at.
pub(super) const TOKEN_MAX: usize = 2048;

/// What a token is for. One kind never counts as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In a URL, a header or a protocol's name.
    Link,
    /// In our cookie.
    Cookie,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The link's own id.
    #[serde(rename = "i")]
    pub(super) id: String,
    /// The session's host.
    #[serde(rename = "h")]
    pub(super) host: String,
    /// The first second, since 1970, in which it does not count any more.
    #[serde(rename = "e")]
    pub(super) expires: u64,
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    /// The only client address that may use it.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// There is none.
    Missing,
    /// It was not made with a key of ours, or was changed.
    Wrong,
    /// Its time is over.
    Expired,
    /// It was taken back, or its key was.
    Revoked,
    /// It is for another session, or for another client.
    Elsewhere,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Link => "dm1l",
            Self::Cookie => "dm1c",
        }
    }
}

/// Makes a token with the key of this id.
pub(super) fn seal(keys: &Keys, key: &str, kind: Kind, claims: &Claims) -> Option<String> {
    let claims = serde_json::to_vec(claims).ok()?;
    let text = format!("{}.{key}.{}", kind.prefix(), URL_SAFE_NO_PAD.encode(claims));
    let mac = ring::hmac::sign(keys.get(key)?, text.as_bytes());
    Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac)))
}

/// The id of a token's key and what the token says, if we made it. Looks at no clock.
pub(super) fn open<'t>(keys: &Keys, kind: Kind, token: &'t str) -> Result<(&'t str, Claims), Flaw> {
    if TOKEN_MAX < token.len() {
        return Err(Flaw::Wrong);
    }
    let (text, mac) = token.rsplit_once('.').ok_or(Flaw::Wrong)?;
    let rest = text.strip_prefix(kind.prefix()).and_then(|rest| rest.strip_prefix('.'));
    let (key, claims) = rest.and_then(|rest| rest.split_once('.')).ok_or(Flaw::Wrong)?;
    let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| Flaw::Wrong)?;
    let secret = keys.get(key).ok_or(Flaw::Wrong)?;
    ring::hmac::verify(secret, text.as_bytes(), &mac).map_err(|_| Flaw::Wrong)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| Flaw::Wrong)?;
    let claims = serde_json::from_slice(&claims).map_err(|_| Flaw::Wrong)?;
    Ok((key, claims))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims {
            id: "a1".into(),
            host: "alice.test".into(),
            expires: 1_000,
            user: Some("Älice".into()),
            address: Some(IpAddr::from([192, 0, 2, 7])),
        }
    }

    fn keys() -> Keys {
        Keys::of("new", [("old", &b"o"[..]), ("new", &b"n"[..])])
    }

    #[test]
    fn what_was_sealed_is_what_is_opened() {
        for key in ["old", "new"] {
            for kind in [Kind::Link, Kind::Cookie] {
                let token = seal(&keys(), key, kind, &claims()).expect("sealed");
                assert_eq!(open(&keys(), kind, &token), Ok((key, claims())));
            }
        }
        assert_eq!(seal(&keys(), "gone", Kind::Link, &claims()), None);
    }

    #[test]
    fn a_link_is_no_cookie_and_a_cookie_no_link() {
        let link = seal(&keys(), "new", Kind::Link, &claims()).expect("sealed");
        assert_eq!(open(&keys(), Kind::Cookie, &link), Err(Flaw::Wrong));
        let disguised = link.replacen("dm1l", "dm1c", 1);
        assert_eq!(open(&keys(), Kind::Cookie, &disguised), Err(Flaw::Wrong));
    }

    #[test]
    fn a_key_that_is_gone_or_another_of_the_same_name_opens_nothing() {
        let token = seal(&keys(), "new", Kind::Link, &claims()).expect("sealed");
        let gone = Keys::of("old", [("old", &b"o"[..])]);
        assert_eq!(open(&gone, Kind::Link, &token), Err(Flaw::Wrong));
        let other = Keys::of("new", [("new", &b"x"[..])]);
        assert_eq!(open(&other, Kind::Link, &token), Err(Flaw::Wrong));
    }

    #[test]
    fn any_flipped_bit_refuses() {
        let token = seal(&keys(), "new", Kind::Link, &claims()).expect("sealed");
        for index in 0..token.len() {
            for bit in 0..8 {
                let mut bytes = token.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                // What is no text any more cannot stand in a header or a URL either.
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                assert_eq!(open(&keys(), Kind::Link, &changed), Err(Flaw::Wrong), "{changed}");
            }
        }
    }

    #[test]
    fn what_is_cut_or_longer_refuses() {
        let token = seal(&keys(), "new", Kind::Link, &claims()).expect("sealed");
        for end in 0..token.len() {
            assert_eq!(open(&keys(), Kind::Link, &token[..end]), Err(Flaw::Wrong));
        }
        for more in ["A", "=", ".", ".A", "\n"] {
            assert_eq!(open(&keys(), Kind::Link, &format!("{token}{more}")), Err(Flaw::Wrong));
        }
    }

    proptest! {
        #[test]
        fn no_text_opens_or_panics(text in "(dm1[lc]\\.)?(new\\.)?\\PC*") {
            prop_assert_eq!(open(&keys(), Kind::Link, &text), Err(Flaw::Wrong));
        }
    }
}
