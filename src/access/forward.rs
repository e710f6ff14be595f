//! `forward`: another service decides, as with nginx's `auth_request` and Traefik's ForwardAuth.
//! Whatever is not a clear yes of its refuses.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use ring::hmac;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Carried, Met, Outcome, Passed, Refusal, Request, carried,
    fetch::{Fetch, FetchError},
    remembered::Remembered,
};
use crate::route::{
    Route,
    access::{Forward, Spelled},
};

/// Answers that count for a while.
const ANSWERS_MAX: usize = 10_000;
/// What of its no the client gets to see.
const PASSED: [HeaderName; 3] = [header::WWW_AUTHENTICATE, header::LOCATION, header::SET_COOKIE];

/// What is kept of one service.
#[derive(Debug)]
pub(super) struct Service {
    places: Semaphore,
    yes: Remembered<Yes>,
    /// Of this process alone: nobody can make or look up what is remembered.
    digest: hmac::Key,
    /// So that an outage is told once, and its end.
    fails: AtomicBool,
}

#[derive(Clone, Debug)]
struct Yes {
    user: Option<String>,
    headers: Vec<(Spelled, HeaderValue)>,
}

impl Service {
    pub(super) fn new(forward: &Forward) -> Self {
        let random = ring::rand::SystemRandom::new();
        let digest = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        // Without random numbers no answer is remembered.
        let cache = if digest.is_ok() { forward.cache } else { Duration::ZERO };
        let digest = digest.unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[]));
        Self {
            places: Semaphore::new(usize::try_from(forward.at_once).unwrap_or(1)),
            yes: Remembered::new(ANSWERS_MAX, cache),
            digest,
            fails: AtomicBool::new(false),
        }
    }

    fn has_failed(&self, url: &str, error: &FetchError) {
        if !self.fails.swap(true, Ordering::Relaxed) {
            tracing::warn!(url, %error, "the service that decides does not: everybody is refused");
        }
    }

    fn has_answered(&self, url: &str) {
        if self.fails.swap(false, Ordering::Relaxed) {
            tracing::info!(url, "the service that decides is back");
        }
    }
}

pub(super) async fn ask(
    forward: &Forward,
    service: &Service,
    fetch: &Fetch,
    route: &Route,
    request: &Request<'_>,
) -> Outcome {
    let undecided = Outcome::Not(Refusal::Undecided);
    let url = route.render(request.host, &forward.url);
    let Some(shown) = shown(forward, request) else { return undecided };
    let question = question(&service.digest, &url, &shown);
    if let Some(yes) = service.yes.get(&question) {
        return yes.into();
    }
    let Ok(uri) = url.parse::<Uri>() else { return undecided };
    let asked = async {
        let _place = service.places.acquire().await.ok();
        fetch.get(uri, shown, forward.timeout).await
    };
    let answer = match timeout(forward.timeout, asked).await.unwrap_or(Err(FetchError::TimedOut)) {
        Ok(answer) => answer,
        Err(error) => {
            service.has_failed(&url, &error);
            return undecided;
        }
    };
    let (status, headers) = (answer.status(), answer.headers());
    let is_redirect = matches!(status.as_u16(), 301..=303 | 307 | 308);
    if status.is_success() {
        service.has_answered(&url);
        if !is_expected(forward, route, request.host, headers) {
            return Outcome::Not(Refusal::NotAllowed);
        }
        let yes = Yes::of(forward, headers);
        service.yes.put(question, yes.clone());
        yes.into()
    } else if is_redirect || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        service.has_answered(&url);
        let all = PASSED.iter().flat_map(|name| {
            headers.get_all(name).iter().map(|value| (name.clone(), value.clone()))
        });
        Outcome::Passed(Passed { status, headers: all.collect() })
    } else {
        service.has_failed(&url, &FetchError::Status(status));
        undecided
    }
}

/// Whether its yes is about this session. What it says more than once must fit each time, and a
/// list of names is no name.
fn is_expected(forward: &Forward, route: &Route, host: &str, headers: &HeaderMap) -> bool {
    forward.expect.iter().all(|(name, value)| {
        let expected = route.render(host, value);
        let mut said = headers.get_all(name).iter().peekable();
        said.peek().is_some() && said.all(|said| said.as_bytes() == expected.as_bytes())
    })
}

impl Yes {
    fn of(forward: &Forward, headers: &HeaderMap) -> Self {
        let named = forward.headers.iter().flat_map(|spelled| {
            headers.get_all(&spelled.name).iter().map(|value| (spelled.clone(), value.clone()))
        });
        let user = forward.user.as_ref().and_then(|name| headers.get(name));
        let user = user.and_then(|user| user.to_str().ok()).map(str::to_owned);
        Self { user, headers: named.collect() }
    }
}

impl From<Yes> for Outcome {
    fn from(Yes { user, headers }: Yes) -> Self {
        Self::Met(Met { user, headers, ..Met::default() })
    }
}

/// What the service is told: the request, without anything that is ours.
fn shown(forward: &Forward, request: &Request<'_>) -> Option<HeaderMap> {
    let without = Carried::of(request).without(request);
    let uri = without.uri.as_ref().unwrap_or(request.uri);
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let proto = if request.is_secure { "https" } else { "http" };
    let mut shown = HeaderMap::new();
    for name in &forward.shows {
        for value in request.headers.get_all(name) {
            shown.append(name, value.clone());
        }
    }
    if let Some(cookie) = without.cookie {
        shown.remove(header::COOKIE);
        if !cookie.is_empty() {
            shown.insert(header::COOKIE, cookie);
        }
    }
    if carried::is_bearer_ours(request.headers) {
        shown.remove(header::AUTHORIZATION);
    }
    let value = |text: &str| HeaderValue::from_str(text).ok();
    shown.insert("x-forwarded-method", value(request.method.as_str())?);
    shown.insert("x-forwarded-proto", value(proto)?);
    shown.insert("x-forwarded-host", value(request.named)?);
    shown.insert("x-forwarded-uri", value(target)?);
    if let Some(address) = request.address {
        shown.insert("x-forwarded-for", value(&address.to_string())?);
    }
    Some(shown)
}

/// All that was sent, so that an answer counts for nothing else.
fn question(digest: &hmac::Key, url: &str, shown: &HeaderMap) -> [u8; 32] {
    let mut context = hmac::Context::with_key(digest);
    let mut say = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    };
    say(url.as_bytes());
    // In the order in which they were put in, which is the same for the same request.
    for (name, value) in shown {
        say(name.as_str().as_bytes());
        say(value.as_bytes());
    }
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
