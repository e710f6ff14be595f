//! `link`: signed links. Whoever has one may enter its session, until it expires or is taken back.

use std::net::IpAddr;

use http::HeaderValue;
use serde::Serialize;

use super::{
    Carried, Door, Met, Outcome, Refusal, Request, RevokeError, Revoked, carried,
    keys::Keys,
    token::{self, Claims, Flaw, Kind},
    unix_now,
};
use crate::route::access::Access;

/// Names longer than this are no names.
const USER_MAX: usize = 256;
/// Two links with the same id do not happen: 10 random bytes.
const ID_BYTES: usize = 10;

/// What a new link is to be.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The session's host, canonical.
    pub host: String,
    /// How long it counts, in seconds.
    pub expires_in: u64,
    /// Who the instance is told it is.
    pub user: Option<String>,
    /// The only client address that may use it.
    pub address: Option<IpAddr>,
    /// The id of the key to sign it with; the current one if not said.
    pub key: Option<String>,
}

/// A link that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Its id, for taking it back.
    pub id: String,
    /// The id of its key.
    pub key: String,
    /// The first second, since 1970, in which it does not count any more.
    pub expires: u64,
    /// Who has it may enter: never to be logged.
    pub token: String,
}

/// Why no link was made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No key has this id.
    #[error("no key is called `{0}`: see [links] in dormouse.toml")]
    NoKey(String),
    /// Its links do not count.
    #[error("the key `{0}` was revoked: configure another")]
    RevokedKey(String),
    /// `links.expires_max`.
    #[error("a link counts for at least a second, and at most for links.expires_max ({0} s)")]
    Expiry(u64),
    /// It would not fit.
    #[error("a user's name has 1 to {USER_MAX} bytes, and no control characters")]
    User,
    /// No random numbers.
    #[error("the system has no random numbers")]
    Random,
}

impl Door {
    /// Makes a link. Nothing is kept of it.
    pub fn link(&self, new: NewLink) -> Result<Link, LinkError> {
        let NewLink { host, expires_in, user, address, key } = new;
        let key = key.unwrap_or_else(|| self.keys.current().to_owned());
        if self.keys.get(&key).is_none() {
            return Err(LinkError::NoKey(key));
        }
        if self.revoked.has_key(&key) {
            return Err(LinkError::RevokedKey(key));
        }
        let max = self.expires_max.as_secs();
        if expires_in == 0 || max < expires_in {
            return Err(LinkError::Expiry(max));
        }
        let is_name = |name: &String| {
            (1..=USER_MAX).contains(&name.len()) && !name.contains(|c: char| c.is_control())
        };
        if !user.as_ref().is_none_or(is_name) {
            return Err(LinkError::User);
        }
        let id = fresh_id().ok_or(LinkError::Random)?;
        let expires = unix_now().saturating_add(expires_in);
        let claims = Claims { id, host, expires, user, address };
        let token = token::seal(&self.keys, &key, Kind::Link, &claims);
        let token = token.ok_or_else(|| LinkError::NoKey(key.clone()))?;
        Ok(Link { id: claims.id, key, expires, token })
    }

    /// Takes the link of this id back, and the cookie that it became.
    pub fn revoke_link(&self, id: &str) -> Result<(), RevokeError> {
        // When it expires is written in the link alone: no link lives longer than this.
        self.revoked.link(id, unix_now().saturating_add(self.expires_max.as_secs()))
    }

    /// Takes back all links of this key.
    pub fn revoke_key(&self, id: &str) -> Result<(), RevokeError> {
        self.revoked.key(id)
    }

    /// Whether a key has this id.
    pub fn has_key(&self, id: &str) -> bool {
        self.keys.get(id).is_some()
    }
}

/// Whether any token that the request carries counts.
pub(super) fn ask(
    keys: &Keys,
    revoked: &Revoked,
    access: &Access,
    request: &Request<'_>,
    carried: &Carried<'_>,
) -> Outcome {
    let mut flaw = Flaw::Missing;
    for (kind, token) in carried.tokens(takes_insecure(access, request)) {
        match read(keys, revoked, request, kind, token) {
            Ok((key, claims)) => {
                let Claims { id, expires, user, .. } = claims;
                let link = Some((id, key.to_owned()));
                return Outcome::Met(Met { user, expires: Some(expires), link, ..Met::default() });
            }
            // What the first one lacks is what the client wants to know.
            Err(other) if flaw == Flaw::Missing => flaw = other,
            Err(_) => {}
        }
    }
    Outcome::Not(Refusal::Link(flaw))
}

/// The cookie that the link in the URL becomes, if that counts.
pub(super) fn exchange(
    keys: &Keys,
    revoked: &Revoked,
    access: &Access,
    request: &Request<'_>,
    carried: &Carried<'_>,
) -> Option<HeaderValue> {
    let (key, claims) = read(keys, revoked, request, Kind::Link, carried.query()?).ok()?;
    let left = claims.expires.saturating_sub(unix_now());
    let token = token::seal(keys, key, Kind::Cookie, &claims)?;
    let (name, secure) = match takes_insecure(access, request) {
        true => (carried::INSECURE_COOKIE, ""),
        false => (carried::COOKIE, " Secure;"),
    };
    let cookie = format!("{name}={token}; Max-Age={left}; Path=/; HttpOnly;{secure} SameSite=Lax");
    let mut cookie = HeaderValue::try_from(cookie).ok()?;
    cookie.set_sensitive(true);
    Some(cookie)
}

/// A cookie that any page of the domain could set counts only where there is no better one.
fn takes_insecure(access: &Access, request: &Request<'_>) -> bool {
    access.insecure_cookie && !request.is_secure
}

fn read<'t>(
    keys: &Keys,
    revoked: &Revoked,
    request: &Request<'_>,
    kind: Kind,
    token: &'t str,
) -> Result<(&'t str, Claims), Flaw> {
    let (key, claims) = token::open(keys, kind, token)?;
    let is_from = |bound: IpAddr| {
        request.address.is_some_and(|address| address.to_canonical() == bound.to_canonical())
    };
    if claims.host != request.host || !claims.address.is_none_or(is_from) {
        return Err(Flaw::Elsewhere);
    }
    if claims.expires <= unix_now() {
        return Err(Flaw::Expired);
    }
    if revoked.has(&claims.id, key) {
        return Err(Flaw::Revoked);
    }
    Ok((key, claims))
}

fn fresh_id() -> Option<String> {
    let mut bytes = [0; ID_BYTES];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
