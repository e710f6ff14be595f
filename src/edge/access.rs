//! Access, before anything could wake: the request's head is judged, what is ours is taken out of
//! it, and the instance is told who has entered. Who may enter is the room `access`.

use std::{os::fd::RawFd, sync::Arc};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::{
    Result,
    http::{RequestHeader, ResponseHeader},
    proxy::Session as Downstream,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{client, respond::Answer, socket, target::Target};
use crate::{
    access::{self, Carried, Decision, Door, Entry, Grant, Passed, Refusal, Request, Without},
    route::access::Access,
};

/// All names that begin like this are ours: no client may speak for us.
const OURS: &str = "x-dormouse-";

/// Who came in, as far as the rest of the request's way is concerned.
#[derive(Debug, Default)]
pub(super) struct Entered {
    /// `None` where everybody may.
    entry: Option<Box<Entry>>,
    /// What the 101 must select where the instance selects no protocol.
    selects: Option<HeaderValue>,
    /// Ends the connection to the instance when the access ends; stopped when the request does.
    cut: Option<AbortOnDropHandle<()>>,
}

/// What the client is told instead of its session's answer.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) answer: Answer,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl From<Answer> for Closed {
    fn from(answer: Answer) -> Self {
        Self { answer, headers: Vec::new() }
    }
}

/// Judges the request. What is ours in it is gone afterwards.
pub(super) async fn enter(
    door: &Arc<Door>,
    downstream: &mut Downstream,
    target: &Target,
    is_upgrade: bool,
) -> std::result::Result<Entered, Closed> {
    let (decision, without) = decide(door, downstream, target, is_upgrade).await;
    match decision {
        Decision::Open => Ok(Entered::default()),
        Decision::Allow(entry) => {
            let request = downstream.req_header_mut();
            if entry.hides_password {
                request.remove_header(&header::AUTHORIZATION);
            }
            let selects = strip(request, without).map_err(|_| Answer::Internal)?;
            Ok(Entered { entry: Some(entry), selects, cut: None })
        }
        Decision::Exchange { cookie, location } => {
            let no_referrer = HeaderValue::from_static("no-referrer");
            let mut headers =
                vec![(header::LOCATION, location), (header::REFERRER_POLICY, no_referrer)];
            headers.extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
            Err(Closed { answer: Answer::Exchanged, headers })
        }
        Decision::Pass(Passed { status, headers }) => {
            let answer = match status {
                StatusCode::UNAUTHORIZED => {
                    Answer::Access(Refusal::Unknown { basic: false, bearer: false })
                }
                StatusCode::FORBIDDEN => Answer::Access(Refusal::NotAllowed),
                redirect => Answer::Elsewhere(redirect.as_u16()),
            };
            Err(Closed { answer, headers })
        }
        Decision::Preflight(headers) => Err(Closed { answer: Answer::Preflight, headers }),
        Decision::Refuse(refusal) => {
            let mut headers = challenges(refusal, &target.host);
            let asked = &downstream.req_header().headers;
            headers.extend(access::may_read(&target.route.recipe.access, asked));
            Err(Closed { answer: Answer::Access(refusal), headers })
        }
    }
}

async fn decide(
    door: &Arc<Door>,
    downstream: &Downstream,
    target: &Target,
    is_upgrade: bool,
) -> (Decision, Without) {
    let head = downstream.req_header();
    let request = Request {
        method: &head.method,
        uri: &head.uri,
        headers: &head.headers,
        host: &target.host,
        named: target.named(),
        is_secure: client::is_https(downstream),
        is_upgrade: is_upgrade || head.method == Method::CONNECT,
        address: client::address(downstream),
        certificate: client::certificate(downstream),
    };
    if target.route.recipe.access.is_open() {
        let decision = door.decide(&target.route, &request, &Carried::default()).await;
        return (decision, Without::default());
    }
    let carried = Carried::of(&request);
    let decision = door.decide(&target.route, &request, &carried).await;
    (decision, carried.without(&request))
}

/// Takes out what is ours; what the 101 must select then.
fn strip(request: &mut RequestHeader, without: Without) -> Result<Option<HeaderValue>> {
    let Without { uri, cookie, protocols, authorization, selects } = without;
    if let Some(uri) = uri {
        request.set_uri(uri);
    }
    if authorization {
        request.remove_header(&header::AUTHORIZATION);
    }
    let changed = [
        (header::COOKIE, "Cookie", cookie),
        (header::SEC_WEBSOCKET_PROTOCOL, "Sec-WebSocket-Protocol", protocols),
    ];
    for (name, spelled, left) in changed {
        let Some(left) = left else { continue };
        request.remove_header(&name);
        if !left.is_empty() {
            request.insert_header(spelled, left)?;
        }
    }
    Ok(selects)
}

fn challenges(refusal: Refusal, host: &str) -> Vec<(HeaderName, HeaderValue)> {
    let Refusal::Unknown { basic, bearer } = refusal else { return Vec::new() };
    let basic = basic.then(|| format!("Basic realm=\"{host}\", charset=\"UTF-8\""));
    let bearer = bearer.then(|| format!("Bearer realm=\"{host}\""));
    let all = [basic, bearer].into_iter().flatten();
    all.filter_map(|one| Some((header::WWW_AUTHENTICATE, HeaderValue::try_from(one).ok()?)))
        .collect()
}

impl Entered {
    /// Tells the instance who it is. What the client claims of it is dropped, on open routes too.
    pub(super) fn tell(&self, access: &Access, upstream: &mut RequestHeader) -> Result<()> {
        let forged = upstream.headers.keys().filter(|name| is_forged(access, name)).cloned();
        for forged in forged.collect::<Vec<_>>() {
            upstream.remove_header(&forged);
        }
        let Some(entry) = &self.entry else { return Ok(()) };
        let Entry { user, access: by, headers, .. } = &**entry;
        for (spelled, value) in headers {
            upstream.append_header(spelled.spelled.clone(), value.clone())?;
        }
        if let Some(user) = user {
            upstream.insert_header(access.user_header.spelled.clone(), user.clone())?;
        }
        if let Some(by) = by {
            upstream.insert_header(access.access_header.spelled.clone(), by.clone())?;
        }
        Ok(())
    }

    /// A browser closes a socket whose offer was not taken, and its offer was a token alone.
    pub(super) fn select(&self, answer: &mut ResponseHeader) -> Result<()> {
        match &self.selects {
            Some(token) if !answer.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) => {
                answer.insert_header("Sec-WebSocket-Protocol", token.clone())
            }
            _ => Ok(()),
        }
    }

    /// Who has entered, where that is known.
    pub(super) fn user(&self) -> Option<&str> {
        self.entry.as_ref()?.user.as_ref()?.to_str().ok()
    }

    /// What ends, where what is open ends with it.
    pub(super) fn grant(&self) -> Option<&Arc<Grant>> {
        self.entry.as_ref()?.grant.as_ref()
    }

    /// Whether what it came in by has ended meanwhile.
    pub(super) fn is_over(&self) -> bool {
        self.grant().is_some_and(|grant| grant.is_over())
    }

    /// From now on the connection to the instance ends when the access does, and with it whatever
    /// streams over it. Test: a_stream_ends_when_its_link_is_revoked.
    pub(super) fn cut_when_over(&mut self, socket: RawFd, tasks: &TaskTracker) {
        let Some(grant) = self.grant().cloned() else { return };
        let Ok(socket) = socket::duplicate(socket) else { return };
        let cut = tasks.spawn(async move {
            grant.over().await;
            // Gone already is what was wanted.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        });
        self.cut = Some(AbortOnDropHandle::new(cut));
    }
}

/// Whether an instance could take it for a header of ours: many read `_` and others as `-`.
fn is_forged(access: &Access, name: &HeaderName) -> bool {
    let name = name.as_str();
    let is_ours = name.len() > OURS.len() && is_like(&name[..OURS.len()], OURS);
    is_ours || access.told_in().any(|ours| is_like(name, ours.as_str()))
}

fn is_like(name: &str, ours: &str) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    name.len() == ours.len() && name.bytes().map(fold).eq(ours.bytes().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_could_be_taken_for_ours_is_forged() {
        let access = Access::open();
        for forged in [
            "x-dormouse-user",
            "x_dormouse_user",
            "x-dormouse_access",
            "x.dormouse.user",
            "x-dormouse-anything",
        ] {
            assert!(is_forged(&access, &HeaderName::from_static(forged)), "{forged}");
        }
        for other in ["x-dormouse", "x-dormice-user", "x-user", "dormouse-user", "user-agent"] {
            assert!(!is_forged(&access, &HeaderName::from_static(other)), "{other}");
        }
    }
}
