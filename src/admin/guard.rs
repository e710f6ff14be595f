//! Who may speak to the admin API. A browser must not be talked into it: neither by a page of
//! another site (`Origin`, `Sec-Fetch-Site`) nor by a name that was made to resolve to us (`Host`).
//! Beyond loopback, a token is needed besides.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    body::{Body, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{problem::Problem, token::Token};

/// No request of this API has a body worth the name.
const BODY_MAX: u64 = 64 * 1024;
/// What a load balancer or a supervisor asks; says nothing of any session.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What every request is checked against.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Where the API listens; `None` for a unix socket.
    listen: Option<IpAddr>,
    token: Option<Arc<Token>>,
}

/// The API would listen where anybody can reach it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the admin API would listen on {0} for everybody: set admin.token_file to a file with a \
     secret of at least 16 characters, or let listen.admin be 127.0.0.1:PORT or unix:/PATH"
)]
pub struct Unguarded(SocketAddr);

impl Guard {
    /// For a TCP listener. Beyond loopback there must be a token.
    pub fn tcp(listen: SocketAddr, token: Option<Token>) -> Result<Self, Unguarded> {
        if !listen.ip().is_loopback() && token.is_none() {
            return Err(Unguarded(listen));
        }
        Ok(Self { listen: Some(listen.ip()), token: token.map(Arc::new) })
    }

    /// For a unix socket, whose file says who may connect.
    pub fn unix(token: Option<Token>) -> Self {
        Self { listen: None, token: token.map(Arc::new) }
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        let host = self.check_host(request)?;
        check_origin(headers, host.as_ref())?;
        if BODY_MAX < request.body().size_hint().lower() {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let detail = "no request of this API needs a body";
            return Err(Problem::new(status, "too_large", "Too large", detail));
        }
        match &self.token {
            Some(token) if !OPEN_PATHS.contains(&request.uri().path()) => {
                check_token(token, headers)
            }
            _ => Ok(()),
        }
    }

    /// The one host that the request names.
    fn check_host(&self, request: &Request) -> Result<Option<Authority>, Problem> {
        let mut named = request.headers().get_all(header::HOST).iter();
        let host = match (named.next(), named.next()) {
            (Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
            (None, _) if self.listen.is_none() => None,
            _ => return Err(forbidden("the request must have exactly one Host")),
        };
        if let Some(listen) = self.listen {
            let both = [host.as_ref(), request.uri().authority()];
            let is_ours = |host: &Authority| is_ours(host.host(), listen);
            if host.is_none() || !both.into_iter().flatten().all(is_ours) {
                let detail = "the Host must be localhost or an address that this API has";
                return Err(forbidden(detail));
            }
        }
        Ok(host)
    }
}

/// Passes on what the guard lets through, and keeps every answer out of caches.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.map(Body::new)
}

/// Whether `host` is a name of loopback, or of the address that the API listens on. Only a name
/// can be made to resolve to us: where we listen on every address, any literal one may be ours.
fn is_ours(host: &str, listen: IpAddr) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    literal
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback() || address == listen || listen.is_unspecified())
}

fn check_origin(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Problem> {
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.is_some_and(|rest| host.is_some_and(|host| rest.eq_ignore_ascii_case(host.as_str())))
    };
    if !headers.get_all(header::ORIGIN).iter().all(is_own) {
        return Err(forbidden("the Origin is another site"));
    }
    let is_same = |site: &HeaderValue| site == "same-origin" || site == "none";
    if !headers.get_all(SEC_FETCH_SITE).iter().all(is_same) {
        return Err(forbidden("a page of another site asks"));
    }
    Ok(())
}

fn check_token(token: &Token, headers: &HeaderMap) -> Result<(), Problem> {
    let unauthorized =
        |detail| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized", detail);
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.ok_or_else(|| unauthorized("the admin API asks for its token"))?;
    let scheme_and_rest = given.split_at_checked(b"Bearer ".len());
    match scheme_and_rest {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"Bearer ") && token.is(rest) => Ok(()),
        _ => Err(unauthorized("that is not the admin API's token")),
    }
}

fn forbidden(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", detail)
}
