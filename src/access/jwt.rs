//! `jwt`: tokens of somebody else's, checked against a key set (JWKS) that is read again by itself.
//!
//! The route says which algorithm counts; what a token says of itself chooses among the keys, and
//! nothing else.

mod signature;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use serde::Deserialize as _;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Met, Outcome, Refusal, Request, carried, fetch::Fetch};
use crate::route::{
    Route, RouteError,
    access::{self, Jwt, KeySetAt},
};

/// Longer ones are not looked at.
const TOKEN_MAX: usize = 16 * 1024;
/// More cookies of the name are not looked at: each may cost the check of a signature. A page of a
/// session beside this one may have set some of them for the whole domain.
const COOKIES_MAX: usize = 16;
/// A key set is no larger, and has no more keys.
const SET_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 64;
/// A key that the set does not have is no reason to read it more often than this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long a key set may take to come.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// A set that could not be read again for so long does not count any more.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

type Claims = Map<String, Value>;

/// A key set as it was last read.
#[derive(Debug)]
pub(super) struct KeySet {
    source: access::KeySet,
    read: ArcSwapOption<(JwkSet, Instant)>,
    /// One reading at a time; who waits for it sees what it brought.
    reading: tokio::sync::Mutex<()>,
    tried: Mutex<Option<Instant>>,
}

impl KeySet {
    pub(super) fn new(source: &access::KeySet) -> Self {
        signature::install();
        Self {
            source: source.clone(),
            read: ArcSwapOption::empty(),
            reading: tokio::sync::Mutex::default(),
            tried: Mutex::default(),
        }
    }

    /// Reads it again where it is time to.
    pub(super) async fn refresh_if_due(&self, fetch: &Fetch) {
        let every = self.source.refresh;
        self.read_if_older(fetch, every).await;
    }

    /// The keys that a token with this id may have been signed with. `None`: there is no set.
    async fn keys(&self, id: Option<&str>, jwt: &Jwt, fetch: &Fetch) -> Option<Vec<DecodingKey>> {
        let known = self.known(id, jwt);
        if known.as_ref().is_some_and(|keys| !keys.is_empty()) {
            return known;
        }
        self.read_if_older(fetch, AGAIN_AFTER).await;
        self.known(id, jwt)
    }

    fn known(&self, id: Option<&str>, jwt: &Jwt) -> Option<Vec<DecodingKey>> {
        let read = self.read.load();
        let (set, at) = &**read.as_ref()?;
        if STALE_AFTER < at.elapsed() {
            return None;
        }
        let fits = |key: &&Jwk| {
            let common = &key.common;
            id.is_none_or(|id| common.key_id.as_deref() == Some(id))
                && common.key_algorithm.is_none_or(|own| own.to_string() == jwt.algorithm)
                && !matches!(common.public_key_use, Some(PublicKeyUse::Encryption))
        };
        let keys = set.keys.iter().filter(fits).filter_map(|key| DecodingKey::from_jwk(key).ok());
        Some(keys.collect())
    }

    async fn read_if_older(&self, fetch: &Fetch, than: Duration) {
        let is_due = || {
            let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
            tried.is_none_or(|tried| than <= tried.elapsed())
        };
        if !is_due() {
            return;
        }
        let _one = self.reading.lock().await;
        if !is_due() {
            return;
        }
        let read = match &self.source.at {
            KeySetAt::File(file) => read(file).map_err(|error| error.to_string()),
            KeySetAt::Url(url) => match url.parse() {
                Ok(uri) => match fetch.document(uri, SET_MAX, FETCH_MAX).await {
                    Ok(bytes) => parse(&bytes).map_err(|wrong| format!("{url}: {wrong}")),
                    Err(error) => Err(format!("{url}: {error}")),
                },
                Err(error) => Err(format!("{url}: {error}")),
            },
        };
        match read {
            Ok(set) => self.read.store(Some(Arc::new((set, Instant::now())))),
            Err(error) => tracing::warn!(%error, "a key set cannot be read: the one before counts"),
        }
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

pub(super) async fn ask(
    jwt: &Jwt,
    keys: &KeySet,
    fetch: &Fetch,
    route: &Route,
    request: &Request<'_>,
) -> Outcome {
    let unknown = Refusal::Unknown { basic: false, bearer: true };
    let bearer = request.headers.get(http::header::AUTHORIZATION).and_then(carried::bearer);
    let bearer = bearer.filter(|token| !token.starts_with("dm1"));
    let name = jwt.cookie.as_deref().into_iter();
    let cookies = name.flat_map(|name| carried::cookies(request.headers, name));
    let mut refusal = unknown;
    for token in bearer.into_iter().chain(cookies.take(COOKIES_MAX)) {
        let claims = match claims(token, jwt, keys, fetch).await {
            Ok(Some(claims)) => claims,
            Ok(None) => continue,
            Err(refused) => {
                refusal = refused;
                continue;
            }
        };
        let says = |(name, expected): (&String, &String)| {
            claims
                .get(name)
                .is_some_and(|claim| is_said(claim, &route.render(request.host, expected)))
        };
        if !jwt.claims.iter().all(says) {
            refusal = Refusal::NotAllowed;
            continue;
        }
        let user = claims.get(&jwt.user).and_then(plain);
        let expires = claims.get("exp").and_then(seconds);
        let expires = expires.map(|expires| expires.saturating_add(jwt.leeway.as_secs()));
        return Outcome::Met(Met { user, expires, ..Met::default() });
    }
    Outcome::Not(refusal)
}

/// What the token says, if one of the keys has signed it and it counts now.
async fn claims(
    token: &str,
    jwt: &Jwt,
    keys: &KeySet,
    fetch: &Fetch,
) -> Result<Option<Claims>, Refusal> {
    let Ok(algorithm) = jwt.algorithm.parse::<Algorithm>() else { return Ok(None) };
    if TOKEN_MAX < token.len() {
        return Ok(None);
    }
    // Before a key is looked for: nonsense is no reason to read the key set again.
    let Ok(header) = decode_header(token) else { return Ok(None) };
    if header.alg != algorithm {
        return Ok(None);
    }
    let keys = keys.keys(header.kid.as_deref(), jwt, fetch).await.ok_or(Refusal::Undecided)?;
    let mut validation = Validation::new(algorithm);
    validation.leeway = jwt.leeway.as_secs();
    validation.validate_nbf = true;
    let mut required = vec!["exp"];
    if let Some(issuer) = &jwt.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if !jwt.audience.is_empty() {
        validation.set_audience(&jwt.audience);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    let decoded = keys.iter().find_map(|key| decode::<Claims>(token, key, &validation).ok());
    Ok(decoded.map(|decoded| decoded.claims))
}

/// A list says each of its elements.
fn is_said(claim: &Value, expected: &str) -> bool {
    match claim {
        Value::Array(all) => all.iter().any(|one| plain(one).as_deref() == Some(expected)),
        one => plain(one).as_deref() == Some(expected),
    }
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(one) => Some(one.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn seconds(value: &Value) -> Option<u64> {
    // Checked above: it is a time, and a fraction of a second makes no difference.
    value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64))
}

/// The key set in a file.
pub(super) fn read(file: &Path) -> Result<JwkSet, RouteError> {
    let wrong = |wrong: String| RouteError::of_file(file, wrong);
    let size = fs::metadata(file).map_err(|error| wrong(format!("cannot be read: {error}")))?.len();
    if SET_MAX as u64 <= size {
        return Err(wrong("larger than 256 KiB: that is no key set".into()));
    }
    let bytes = fs::read(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    parse(&bytes).map_err(wrong)
}

/// Keys of kinds that we do not know are passed over, as RFC 7517 has it.
fn parse(bytes: &[u8]) -> Result<JwkSet, String> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("no JSON: {error}"))?;
    let keys = value.get("keys").and_then(Value::as_array).ok_or("no key set: it has no `keys`")?;
    if KEYS_MAX < keys.len() {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    let keys = keys.iter().filter_map(|key| Jwk::deserialize(key).ok());
    let keys: Vec<_> = keys.filter(|key| DecodingKey::from_jwk(key).is_ok()).collect();
    if keys.is_empty() {
        return Err("no key in it can be used".into());
    }
    Ok(JwkSet { keys })
}

#[cfg(test)]
mod tests;
