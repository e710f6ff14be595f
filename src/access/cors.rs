//! What a browser asks before a page of another origin may send more than a form could: a CORS
//! preflight. It carries no credentials by the standard, so no policy could let it in; what it is
//! told is in the route file, and the same for everybody.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{Decision, Refusal, Request, origin};
use crate::route::access::{Access, Cors};

/// What a preflight is told, where the route answers them; `None` for any other request.
pub(super) fn answer(access: &Access, request: &Request<'_>) -> Option<Decision> {
    let cors = access.cors.as_ref()?;
    if !is_preflight(request) {
        return None;
    }
    Some(match page(access, request.headers) {
        Some(page) => Decision::Preflight(may_use(cors, page)),
        None => Decision::Refuse(Refusal::Origin),
    })
}

/// What lets a page of `access.origin` read an answer of the edge itself.
pub fn may_read(access: &Access, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let page = access.cors.as_ref().zip(page(access, headers));
    page.map(|(cors, page)| may_ask(cors, page)).unwrap_or_default()
}

fn is_preflight(request: &Request<'_>) -> bool {
    *request.method == Method::OPTIONS
        && request.headers.contains_key(header::ORIGIN)
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The one origin that is named, if it is one of the route's.
fn page<'a>(access: &Access, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
    let mut named = headers.get_all(header::ORIGIN).iter();
    let page = named.next().filter(|_| named.next().is_none())?;
    origin::is_other_page(&access.origin, page.to_str().ok()?).then_some(page)
}

fn may_ask(cors: &Cors, page: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, page.clone()),
        (header::VARY, HeaderValue::from_static("Origin")),
    ];
    if cors.credentials {
        let yes = HeaderValue::from_static("true");
        headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes));
    }
    headers
}

fn may_use(cors: &Cors, page: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = may_ask(cors, page);
    for (name, words) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, &cors.methods),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers),
    ] {
        if !words.is_empty() {
            headers.extend(HeaderValue::from_str(words).ok().map(|words| (name, words)));
        }
    }
    headers.push((header::ACCESS_CONTROL_MAX_AGE, cors.max_age.as_secs().into()));
    headers
}
