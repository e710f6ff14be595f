//! Every answer of our own: what happened → status, header, sentence. Nothing internal is said.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};
use pingora::{Result, http::ResponseHeader, proxy::Session as Downstream};
use serde_json::json;
use tokio::time::timeout;

use super::{framing, headers, target::Target};
use crate::{
    access::{Flaw, Refusal as Closed},
    fleet::{HoldEnd, Phase, Refusal},
    metrics::METRICS,
    route::StaticAnswer,
    session::Failure,
};

/// How long a body that nobody wants is taken in all, and how long each read of it may take.
const LINGER_MAX: Duration = Duration::from_secs(30);
const LINGER_READ_MAX: Duration = Duration::from_secs(5);

/// When to ask again where no instance more may run: one of them must end first.
const RUNNING_RETRY: Duration = Duration::from_secs(10);
/// When a monitor or a crawler is told to ask again.
const IGNORED_RETRY: Duration = Duration::from_secs(60);

/// How a request ended without, or before, an answer of the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// No route has this host.
    NoSuchHost,
    /// An ACME server asks for a file that nobody shows.
    NoSuchChallenge,
    /// The request names no host, more than one, or none that can be.
    BadHost,
    /// The connection was opened for a host of another route.
    Misdirected,
    /// It is to be asked again over HTTPS, at this port.
    ToHttps(u16),
    /// The request cannot be understood.
    BadRequest,
    /// The request could be understood in more than one way, or is beyond a limit.
    Unframed(framing::Refusal),
    /// The request's body came too slowly.
    BodyTimedOut,
    /// The route ignores such requests, and the session is not awake.
    Ignored(u16),
    /// It may not enter.
    Access(Closed),
    /// What it came in by has ended.
    AccessEnded,
    /// Its link has become a cookie: it is to ask again.
    Exchanged,
    /// A browser asked what a page of another origin may send.
    Preflight,
    /// The service that decides sends it elsewhere, with this status.
    Elsewhere(u16),
    /// The session was not leased.
    Refused(Refusal),
    /// The wake failed.
    WakeFailed(Failure, Phase),
    /// `wake.timeout` is over, and the wake goes on.
    StillWaking(Phase),
    /// The instance runs, but takes no connection.
    NotListening,
    /// The instance ended, or spoke nonsense, under the request.
    Broken,
    /// The instance was silent for `timeouts.answer`.
    Silent,
    /// A fault of ours.
    Internal,
    /// Nobody is there to answer.
    ClientLeft,
}

impl Answer {
    pub(super) fn of_hold(end: HoldEnd) -> Self {
        match end {
            HoldEnd::Failed(failure, phase) => Self::WakeFailed(failure, phase),
            HoldEnd::TimedOut(phase) => Self::StillWaking(phase),
            HoldEnd::Refused(refusal) => Self::Refused(refusal),
        }
    }

    /// 0 when there is nobody to answer.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::ClientLeft => 0,
            Self::Exchanged => 303,
            Self::Preflight => 204,
            Self::Elsewhere(status) => status,
            Self::Access(Closed::Unknown { .. }) => 401,
            Self::Access(Closed::Link(_) | Closed::NotAllowed | Closed::Origin) => 403,
            Self::AccessEnded => 403,
            Self::Access(Closed::Undecided) => 503,
            Self::ToHttps(_) => 308,
            Self::Misdirected => 421,
            Self::BadHost | Self::BadRequest => 400,
            Self::Unframed(refusal) => refusal.status(),
            Self::NoSuchHost | Self::NoSuchChallenge | Self::Refused(Refusal::Retired) => 404,
            Self::WakeFailed(Failure::Retired, _) => 404,
            Self::BodyTimedOut => 408,
            Self::Refused(Refusal::ClientRate(_) | Refusal::RouteRate(_)) => 429,
            Self::Ignored(status) => status,
            Self::Internal => 500,
            Self::NotListening | Self::Broken => 502,
            Self::WakeFailed(Failure::EngineRefused | Failure::Died, _) => 502,
            Self::Refused(
                Refusal::SessionFull
                | Refusal::RouteFull
                | Refusal::HeldFull
                | Refusal::RouteRunning
                | Refusal::RouteInstances
                | Refusal::EngineRunning
                | Refusal::Asleep
                | Refusal::SessionsFull
                | Refusal::CoolingDown(_)
                | Refusal::StopFailing(_)
                | Refusal::Busy,
            ) => 503,
            Self::WakeFailed(
                Failure::EngineBusy | Failure::PutToSleep | Failure::StopFailing,
                _,
            ) => 503,
            Self::WakeFailed(Failure::Timeout, _) | Self::StillWaking(_) | Self::Silent => 504,
        }
    }

    /// Whether a person must look: a fault of the instance or of ours, not of the request.
    pub(super) fn is_fault(self) -> bool {
        matches!(self, Self::Broken | Self::Silent | Self::NotListening | Self::Internal)
    }

    /// The label of the metric.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoSuchHost => "no_such_host",
            Self::NoSuchChallenge => "no_such_challenge",
            Self::BadHost | Self::BadRequest => "bad_request",
            Self::Misdirected => "misdirected",
            Self::ToHttps(_) => "to_https",
            Self::Unframed(refusal) => refusal.reason(),
            Self::BodyTimedOut => "body_timeout",
            Self::Access(Closed::Unknown { .. }) => "unauthorized",
            Self::Access(Closed::Link(Flaw::Missing)) => "link_missing",
            Self::Access(Closed::Link(Flaw::Wrong)) => "link_wrong",
            Self::Access(Closed::Link(Flaw::Expired)) => "link_expired",
            Self::Access(Closed::Link(Flaw::Revoked)) => "link_revoked",
            Self::Access(Closed::Link(Flaw::Elsewhere)) => "link_elsewhere",
            Self::Access(Closed::NotAllowed) => "not_allowed",
            Self::Access(Closed::Origin) => "foreign_origin",
            Self::Access(Closed::Undecided) => "access_undecided",
            Self::AccessEnded => "access_ended",
            Self::Exchanged => "link_exchanged",
            Self::Preflight => "preflight",
            Self::Elsewhere(_) => "elsewhere",
            Self::Refused(Refusal::SessionFull) => "session_full",
            Self::Refused(Refusal::RouteFull) => "route_full",
            Self::Refused(Refusal::HeldFull) => "held_full",
            Self::Refused(Refusal::ClientRate(_)) => "client_rate",
            Self::Refused(Refusal::RouteRate(_)) => "route_rate",
            Self::Refused(Refusal::RouteRunning) => "route_running",
            Self::Refused(Refusal::RouteInstances) => "route_instances",
            Self::Refused(Refusal::EngineRunning) => "engine_running",
            Self::Ignored(_) | Self::Refused(Refusal::Asleep) => "ignored",
            Self::Refused(Refusal::SessionsFull) => "sessions_full",
            Self::Refused(Refusal::CoolingDown(_)) => "cooling_down",
            Self::Refused(Refusal::StopFailing(_)) => "stop_failing",
            Self::Refused(Refusal::Retired) | Self::WakeFailed(Failure::Retired, _) => "retired",
            Self::Refused(Refusal::Busy) => "busy",
            Self::WakeFailed(Failure::Timeout, _) | Self::StillWaking(_) => "wake_timeout",
            Self::WakeFailed(_, _) => "wake_failed",
            Self::NotListening => "not_listening",
            Self::Broken => "broken",
            Self::Silent => "silent",
            Self::Internal => "internal",
            Self::ClientLeft => "client_left",
        }
    }

    fn retry_after(self) -> Option<Duration> {
        let one = Duration::from_secs(1);
        match self {
            Self::Refused(
                Refusal::CoolingDown(after)
                | Refusal::StopFailing(after)
                | Refusal::ClientRate(after)
                | Refusal::RouteRate(after),
            ) => Some(after.max(one)),
            Self::Refused(
                Refusal::RouteRunning | Refusal::RouteInstances | Refusal::EngineRunning,
            ) => Some(RUNNING_RETRY),
            Self::Ignored(503) => Some(IGNORED_RETRY),
            Self::Refused(_) | Self::WakeFailed(..) | Self::StillWaking(_) | Self::Access(_) => {
                matches!(self.status(), 503 | 504).then_some(one)
            }
            _ => None,
        }
    }

    /// What happened, and what to do.
    fn sentences(self) -> (&'static str, String) {
        let (title, detail) = match self {
            Self::NoSuchHost => {
                ("No such host", "No session has this address. Check the spelling.")
            }
            Self::NoSuchChallenge => {
                ("No such challenge", "The edge has no order with this token under way.")
            }
            Self::BadHost => ("Bad host", "The request must name exactly one valid host."),
            Self::BadRequest => ("Bad request", "The request cannot be understood."),
            Self::Access(closed) => closed_sentences(closed),
            Self::AccessEnded => ("Access has ended", "Ask for a new link, or log in again."),
            Self::Preflight => ("Ask away", ""),
            Self::Exchanged => ("Welcome", "Go on without the link's token."),
            Self::Elsewhere(_) => ("Log in first", "This session's log-in is elsewhere."),
            Self::Misdirected => {
                ("Misdirected request", "This connection is another host's. Open one of its own.")
            }
            Self::ToHttps(_) => ("Use HTTPS", "This host is served over HTTPS."),
            Self::Unframed(refusal) => ("Bad request", refusal.says()),
            Self::BodyTimedOut => ("Request too slow", "The request's body came too slowly."),
            Self::Refused(
                Refusal::SessionFull
                | Refusal::RouteFull
                | Refusal::HeldFull
                | Refusal::SessionsFull,
            ) => ("Too many requests are waiting", "Try again in a moment."),
            Self::Refused(Refusal::ClientRate(_)) => (
                "Too many sessions started",
                "Too many sessions were started from your address. Wait a little, and try again.",
            ),
            Self::Refused(Refusal::RouteRate(_)) => (
                "Too many sessions started",
                "Too many sessions were started of late. Wait a little, and try again.",
            ),
            Self::Refused(Refusal::RouteRunning | Refusal::EngineRunning) => (
                "No room for the session",
                "As many sessions run as may at once. Try again when one has ended.",
            ),
            Self::Refused(Refusal::RouteInstances) => (
                "No room for a new session",
                "As many sessions exist as may. Try again when one has been removed.",
            ),
            Self::Ignored(_) | Self::Refused(Refusal::Asleep) => {
                ("The session is asleep", "Requests such as this one do not wake it.")
            }
            Self::Refused(Refusal::CoolingDown(_)) => {
                ("The session could not be started", "It failed a moment ago. Try again shortly.")
            }
            Self::Refused(Refusal::StopFailing(_)) => {
                ("The session cannot be restarted yet", "Its last run has not ended. Try again.")
            }
            Self::Refused(Refusal::Busy) => ("The session is changing", "Try again in a moment."),
            Self::Refused(Refusal::Retired) | Self::WakeFailed(Failure::Retired, _) => {
                ("No such host", "This session has been removed.")
            }
            Self::WakeFailed(Failure::Timeout, phase) => {
                let phase = phase.as_str();
                let detail =
                    format!("It was {phase} when its time was over. Try again: that begins anew.");
                return ("The session did not start in time", detail);
            }
            Self::StillWaking(phase) => {
                let detail = format!("It is {}. Try again in a moment.", phase.as_str());
                return ("The session is not ready yet", detail);
            }
            Self::WakeFailed(Failure::EngineBusy | Failure::PutToSleep, _) => {
                ("The session could not be started", "This may pass. Try again in a moment.")
            }
            Self::WakeFailed(Failure::StopFailing, _) => {
                ("The session cannot be restarted yet", "Its last run has not ended. Try again.")
            }
            Self::WakeFailed(Failure::EngineRefused | Failure::Died, _) => (
                "The session could not be started",
                "Ask the operator, and give the request id below.",
            ),
            Self::NotListening => ("The session does not answer", "Try again in a moment."),
            Self::Broken => ("The session ended", "It ended while it answered. Try again."),
            Self::Silent => ("The session is silent", "It took the request and did not answer."),
            Self::Internal => {
                ("Internal error", "Ask the operator, and give the request id below.")
            }
            Self::ClientLeft => ("Client left", ""),
        };
        (title, detail.to_owned())
    }
}

fn closed_sentences(closed: Closed) -> (&'static str, &'static str) {
    match closed {
        Closed::Unknown { .. } => {
            ("Who are you?", "This session is for those who are known to it.")
        }
        Closed::Link(Flaw::Missing) => {
            ("A link is needed", "This session opens with a link. Ask whoever runs it for one.")
        }
        Closed::Link(Flaw::Wrong) => {
            ("The link is damaged", "Copy it as a whole, or ask for a new one.")
        }
        Closed::Link(Flaw::Expired) => ("The link has expired", "Ask for a new one."),
        Closed::Link(Flaw::Revoked) => ("The link was taken back", "Ask for a new one."),
        Closed::Link(Flaw::Elsewhere) => {
            ("The link is not for you here", "It is for another session, or another network.")
        }
        Closed::NotAllowed => ("Not allowed", "You may not enter this session."),
        Closed::Origin => ("Not from this page", "A page of another site asked for this."),
        Closed::Undecided => {
            ("Nobody can be let in just now", "What decides that does not answer. Try again.")
        }
    }
}

/// Sends the answer. The connection is kept only where the request had no body left to read.
pub(super) async fn send(
    downstream: &mut Downstream,
    answer: Answer,
    id: &str,
    target: Option<&Target>,
) -> Result<()> {
    send_with(downstream, answer, id, target, Vec::new()).await
}

/// Sends the answer with more headers.
pub(super) async fn send_with(
    downstream: &mut Downstream,
    answer: Answer,
    id: &str,
    target: Option<&Target>,
    more: Vec<(HeaderName, HeaderValue)>,
) -> Result<()> {
    let status = answer.status();
    if status == 0 {
        downstream.set_keepalive(None);
        return Ok(());
    }
    let page = wants_page(downstream);
    let head_only = downstream.req_header().method == Method::HEAD;
    // Behind a request that could not be framed nothing is read.
    let ends = matches!(answer, Answer::Unframed(_));
    if ends || !downstream.as_downstream_mut().is_body_empty() {
        downstream.set_keepalive(None);
    }
    let (body, kind) = if status == 204 {
        return send_empty(downstream, status, id, more).await;
    } else if page {
        (html(answer, id), "text/html; charset=utf-8")
    } else {
        (problem(answer, id), "application/problem+json")
    };
    let mut header = ResponseHeader::build(status, Some(6))?;
    header.insert_header(header::CONTENT_TYPE, kind)?;
    header.insert_header(header::CONTENT_LENGTH, body.len())?;
    header.insert_header(header::CACHE_CONTROL, "no-store")?;
    header.insert_header("x-request-id", id)?;
    if let (Answer::ToHttps(port), Some(target)) = (answer, target) {
        header.insert_header(header::LOCATION, https_url(downstream, &target.host, port))?;
    }
    if let Some(target) = target {
        headers::hsts(&mut header, downstream, target)?;
    }
    if let Some(after) = answer.retry_after() {
        header.insert_header(header::RETRY_AFTER, after.as_secs_f64().ceil().to_string())?;
    }
    for (name, value) in more {
        header.append_header(name, value)?;
    }
    downstream.write_response_header(Box::new(header), head_only).await?;
    if !head_only {
        downstream.write_response_body(Some(Bytes::from(body)), true).await?;
        linger(downstream).await;
    }
    Ok(())
}

async fn send_empty(
    downstream: &mut Downstream,
    status: u16,
    id: &str,
    more: Vec<(HeaderName, HeaderValue)>,
) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(2 + more.len()))?;
    header.insert_header(header::CACHE_CONTROL, "no-store")?;
    header.insert_header("x-request-id", id)?;
    for (name, value) in more {
        header.append_header(name, value)?;
    }
    downstream.write_response_header(Box::new(header), true).await?;
    linger(downstream).await;
    Ok(())
}

/// Sends an answer that a route gives by itself. The connection is kept where the request had no
/// body left to read.
pub(super) async fn send_static(
    downstream: &mut Downstream,
    answer: &StaticAnswer,
    target: &Target,
    id: &str,
) -> Result<()> {
    let method = &downstream.req_header().method;
    let (asks, head_only) = (method == Method::GET, method == Method::HEAD);
    let allowed = asks || head_only;
    let is_upgrade = downstream.req_header().headers.contains_key(header::UPGRADE);
    if is_upgrade || !downstream.as_downstream_mut().is_body_empty() {
        downstream.set_keepalive(None);
    }
    let (status, body) = match allowed {
        true => (answer.status, answer.body.clone()),
        false => (405, Bytes::new()),
    };
    if status == 204 {
        return send_empty(downstream, status, id, Vec::new()).await;
    }
    let mut header = ResponseHeader::build(status, Some(4))?;
    if allowed {
        header.insert_header(header::CONTENT_TYPE, answer.content_type.clone())?;
    } else {
        header.insert_header(header::ALLOW, "GET, HEAD")?;
    }
    header.insert_header(header::CONTENT_LENGTH, body.len())?;
    header.insert_header("x-request-id", id)?;
    headers::hsts(&mut header, downstream, target)?;
    downstream.write_response_header(Box::new(header), head_only).await?;
    if !head_only {
        downstream.write_response_body(Some(body), true).await?;
        linger(downstream).await;
    }
    Ok(())
}

/// Sends what an ACME server finds for its token.
pub(super) async fn challenge(
    downstream: &mut Downstream,
    file: Option<String>,
    id: &str,
) -> Result<()> {
    let Some(file) = file else {
        METRICS.refused.with_label_values(&[Answer::NoSuchChallenge.reason()]).inc();
        return send(downstream, Answer::NoSuchChallenge, id, None).await;
    };
    let head_only = downstream.req_header().method == Method::HEAD;
    if !downstream.as_downstream_mut().is_body_empty() {
        downstream.set_keepalive(None);
    }
    let mut header = ResponseHeader::build(StatusCode::OK, Some(3))?;
    header.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
    header.insert_header(header::CONTENT_LENGTH, file.len())?;
    header.insert_header(header::CACHE_CONTROL, "no-store")?;
    downstream.write_response_header(Box::new(header), head_only).await?;
    if !head_only {
        downstream.write_response_body(Some(Bytes::from(file)), true).await?;
        linger(downstream).await;
    }
    Ok(())
}

/// The same path on the same host, over HTTPS.
fn https_url(downstream: &Downstream, host: &str, port: u16) -> String {
    let path = downstream.req_header().uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // `OPTIONS *` has no path.
    let path = if path.starts_with('/') { path } else { "/" };
    match port {
        443 => format!("https://{host}{path}"),
        port => format!("https://{host}:{port}{path}"),
    }
}

/// Closing a connection with bytes unread resets it, and a client that still sends its body would
/// lose the answer: the rest is taken and thrown away. HTTP/2 ends the stream alone.
async fn linger(downstream: &mut Downstream) {
    if downstream.is_http2() || downstream.as_downstream_mut().is_body_done() {
        return;
    }
    downstream.set_read_timeout(Some(LINGER_READ_MAX));
    let rest = async { while let Ok(Some(_)) = downstream.read_request_body().await {} };
    // Either way it is closed now.
    let _ = timeout(LINGER_MAX, rest).await;
}

/// Whether a person navigates: told by intent, never by user agent.
fn wants_page(downstream: &Downstream) -> bool {
    let request = downstream.req_header();
    let mode = request.headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    let accept = request.headers.get(header::ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
    let prefers_html = accept.starts_with(b"text/html");
    request.method == Method::GET && mode.map_or(prefers_html, |mode| mode == b"navigate")
}

/// RFC 9457.
fn problem(answer: Answer, id: &str) -> String {
    let (title, detail) = answer.sentences();
    let status = answer.status();
    let kind = format!("urn:dormouse:{}", answer.reason());
    json!({ "type": kind, "title": title, "status": status, "detail": detail, "request_id": id })
        .to_string()
}

fn html(answer: Answer, id: &str) -> String {
    let (title, detail) = answer.sentences();
    let status = answer.status();
    let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>{title}</title>\
         <style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;\
         max-width:34rem;margin:20vh auto;padding:0 1rem}}small{{opacity:.7}}</style>\
         <h1>{title}</h1><p>{detail}<p><small>{status} {reason} · request {id}</small></html>"
    )
}
