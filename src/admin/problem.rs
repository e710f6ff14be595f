//! Every refusal of the admin API: what is wrong → status, sentence, and a word for programs.
//!
//! Unlike the edge's answers, these may say what the engine said: who asks is the operator.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};

use crate::{
    fleet::{HoldEnd, Refusal},
    session::Failure,
};

/// An answer that is no success (RFC 9457).
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    reason: &'static str,
    title: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        reason: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        let more = Map::new();
        Self { status, reason, title, detail: detail.into(), retry_after: None, more }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "Bad request", detail)
    }

    pub(super) fn no_session(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_such_session", "No such session", detail)
    }

    pub(super) fn no_route(host: &str) -> Self {
        let detail = format!("no route has the host `{host}`");
        Self::new(StatusCode::NOT_FOUND, "no_such_route", "No such route", detail)
    }

    /// Nothing may be woken or put to sleep before it is known what runs, or while the edge ends.
    pub(super) fn not_ready() -> Self {
        let detail = "the edge is starting or ending: it takes no requests now";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "Not ready", detail)
            .retry_after(Duration::from_secs(1))
    }

    /// No lease was given.
    pub(super) fn refused(refusal: Refusal, last_error: Option<String>) -> Self {
        let soon = Duration::from_secs(1);
        let (reason, detail, after) = match refusal {
            Refusal::SessionFull => {
                ("session_full", "wake.held_max requests wait for this session already", soon)
            }
            Refusal::RouteFull => {
                ("route_full", "the route's limits.held requests are held already", soon)
            }
            Refusal::ClientRate(after) | Refusal::RouteRate(after) => {
                ("wake_rate", "as many wakes were begun as may be", after)
            }
            Refusal::RouteRunning => {
                ("route_running", "the route's limits.running instances run already", soon)
            }
            Refusal::RouteInstances => {
                ("route_instances", "the route's instance.max instances exist already", soon)
            }
            Refusal::EngineRunning => {
                ("engine_running", "as many instances of its engine run as may", soon)
            }
            Refusal::Asleep => ("asleep", "it is not awake", soon),
            Refusal::HeldFull => ("held_full", "limits.held requests are held already", soon),
            Refusal::SessionsFull => {
                ("sessions_full", "limits.sessions sessions are in use already", soon)
            }
            Refusal::CoolingDown(after) => ("cooling_down", "its last wake failed", after),
            Refusal::StopFailing(after) => {
                ("stop_failing", "its last instance cannot be put to sleep", after)
            }
            Refusal::Busy => ("busy", "it changes too often to be leased just now", soon),
            Refusal::Retired => {
                let detail = "its route has been removed";
                return Self::new(StatusCode::NOT_FOUND, "retired", "No such route", detail);
            }
        };
        let detail = match (refusal, last_error) {
            (Refusal::CoolingDown(_) | Refusal::StopFailing(_), Some(error)) => {
                format!("{detail}: {error}")
            }
            _ => detail.to_owned(),
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, "Refused", detail).retry_after(after)
    }

    /// A wake was asked for and did not come to its end.
    pub(super) fn of_hold(end: HoldEnd, last_error: Option<String>) -> Self {
        let (failure, phase) = match end {
            HoldEnd::Refused(refusal) => return Self::refused(refusal, last_error),
            HoldEnd::TimedOut(phase) => {
                let phase = phase.as_str();
                let detail = format!("not ready within wake.timeout: it is {phase}, and goes on");
                return Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "wake_timeout",
                    "Not ready yet",
                    detail,
                );
            }
            HoldEnd::Failed(failure, phase) => (failure, phase),
        };
        let said = last_error.unwrap_or_else(|| "the engine did not say why".to_owned());
        let (status, reason, detail) = match failure {
            Failure::Timeout => {
                let detail = format!("not ready in time: it was {}", phase.as_str());
                (StatusCode::GATEWAY_TIMEOUT, "wake_timeout", detail)
            }
            Failure::EngineBusy => (StatusCode::SERVICE_UNAVAILABLE, "wake_failed", said),
            Failure::EngineRefused => (StatusCode::BAD_GATEWAY, "wake_failed", said),
            Failure::Died => {
                let detail = "the instance ended before it was ready: see its log".to_owned();
                (StatusCode::BAD_GATEWAY, "wake_failed", detail)
            }
            Failure::Retired => {
                let detail = "its route was removed meanwhile".to_owned();
                (StatusCode::NOT_FOUND, "retired", detail)
            }
            Failure::PutToSleep => {
                let detail = "an operator put it to sleep meanwhile".to_owned();
                (StatusCode::CONFLICT, "put_to_sleep", detail)
            }
            Failure::StopFailing => {
                let detail = format!("its last instance cannot be put to sleep: {said}");
                (StatusCode::SERVICE_UNAVAILABLE, "stop_failing", detail)
            }
        };
        let problem = Self::new(status, reason, "The wake failed", detail);
        match failure {
            Failure::EngineBusy | Failure::StopFailing | Failure::Timeout => {
                problem.retry_after(Duration::from_secs(1))
            }
            Failure::EngineRefused | Failure::Died | Failure::Retired | Failure::PutToSleep => {
                problem
            }
        }
    }

    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after.max(Duration::from_secs(1)));
        self
    }

    /// One more member, for programs.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = self.more;
        body.insert("type".into(), format!("urn:dormouse:{}", self.reason).into());
        body.insert("title".into(), self.title.into());
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("detail".into(), self.detail.into());
        let mut response = (self.status, Json(Value::Object(body))).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"dormouse\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(after) = self.retry_after {
            // Rounded up: whoever waits that long must not come too early.
            let seconds = after.as_millis().div_ceil(1000);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
