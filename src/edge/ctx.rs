//! One request's state, and what becomes of it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pingora::{Error, ErrorSource, ErrorType, proxy::Session as Downstream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    TOO_LATE,
    access::Entered,
    client,
    early::Early,
    framing::Refusal,
    headers::RequestId,
    listen::Connection,
    pace::AveragePace,
    peer::Manner,
    respond::Answer,
    silence::Silence,
    target::Target,
    tunnel::{Ending, Takeover},
};
use crate::{
    fleet::{Held, Lease},
    record::Access,
    session::{Behind, Generation},
};

/// One request's state, from its head to its last byte.
pub struct Ctx {
    pub(super) began: Instant,
    pub(super) id: RequestId,
    pub(super) target: Option<Arc<Target>>,
    pub(super) entered: Entered,
    pub(super) manner: Manner,
    pub(super) takeover: Option<Arc<Takeover>>,
    pub(super) lease: Option<Lease>,
    /// Of the last lease, which may be over, or the tunnel's by now.
    pub(super) generation: Option<Generation>,
    pub(super) held: Option<Held>,
    /// What was leased at the handshake.
    pub(super) early: Option<Early>,
    pub(super) answer: Option<Answer>,
    pub(super) connects: u32,
    pub(super) connect_began: Option<Instant>,
    pub(super) connect_took: Duration,
    pub(super) connect_failed: Option<Instant>,
    pub(super) connection: Option<Arc<Connection>>,
    /// As long as the instance must not be silent for as long as it likes.
    pub(super) silence: Option<Silence>,
    /// Of an HTTP/2 request's body, as long as it may not come as slowly as it likes.
    pub(super) body: Option<AveragePace>,
}

impl Ctx {
    /// Of a request that has not come yet.
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            id: RequestId::none(),
            target: None,
            entered: Entered::default(),
            manner: Manner::default(),
            takeover: None,
            lease: None,
            generation: None,
            held: None,
            early: None,
            answer: None,
            connects: 0,
            connect_began: None,
            connect_took: Duration::ZERO,
            connect_failed: None,
            connection: None,
            silence: None,
            body: None,
        }
    }

    /// Whether the rest of the request's body may come as slowly as it likes.
    pub(super) fn set_patient(&mut self, is_patient: bool) {
        if let Some(connection) = &self.connection {
            connection.heads.set_patient(is_patient);
        }
        self.body = (!is_patient).then(AveragePace::default);
    }

    /// The proxy that the leased instance is behind, if it is.
    pub(super) fn behind(&self) -> Option<&Behind> {
        self.lease.as_ref()?.endpoint()?.address.behind()
    }

    /// What the access log says of the request, which has ended.
    pub(super) fn access<'a>(&'a self, downstream: &'a Downstream, status: u16) -> Access<'a> {
        let request = downstream.req_header();
        let agent = request.headers.get(http::header::USER_AGENT);
        let millis = |took: Duration| took.as_secs_f64() * 1000.0;
        Access {
            at: unix_ms(),
            id: self.id.as_str(),
            client: client::address(downstream),
            method: request.method.as_str(),
            host: self.target.as_ref().map_or("", |target| &*target.host),
            path: request.uri.path(),
            route: self.target.as_ref().map_or("", |target| &*target.route.name),
            generation: self.generation.map(|generation| generation.0),
            status,
            user: self.entered.user().unwrap_or_default(),
            reason: self.answer.map(Answer::reason),
            bytes: downstream.body_bytes_sent(),
            took_ms: millis(self.began.elapsed()),
            held_ms: self.held.map(|held| millis(held.hold)),
            agent: agent.and_then(|agent| agent.to_str().ok()).unwrap_or_default(),
        }
    }

    /// After the 101 the stream is a tunnel's, unless Pingora speaks TLS to the instance.
    pub(super) fn take_over(&mut self, tunnels: &TaskTracker, is_websocket: bool) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.manner.is_upgrade()) {
            connection.heads.upgrade();
        }
        let speaks_tls = self.target.as_ref().is_some_and(|target| target.route.speaks_tls());
        if self.behind().map_or(speaks_tls, |behind| behind.tls) {
            return;
        }
        let (Some(connection), Some(takeover)) = (&self.connection, self.takeover.take()) else {
            return;
        };
        if let Some(lease) = self.lease.take() {
            let grant = self.entered.grant().cloned();
            let ending = grant.map(|grant| Ending::new(grant, is_websocket));
            // A WebSocket ends by its Close; other protocols may end one direction and go on.
            tunnels.spawn(takeover.begin(lease, ending, !is_websocket));
            // A connection is upgraded once.
            let _ = connection.takeover.set(takeover);
        }
    }

    /// What Pingora's error means for the client.
    pub(super) fn answer_to(&self, error: &Error) -> Answer {
        let heads = self.connection.as_ref().map(|connection| &connection.heads);
        match (error.esource(), error.etype()) {
            _ if self.silence.as_ref().is_some_and(Silence::is_over) => Answer::Silent,
            (ErrorSource::Downstream, _) if heads.is_some_and(|heads| heads.is_body_bad()) => {
                Answer::Unframed(Refusal::Chunk)
            }
            (ErrorSource::Downstream, _) if heads.is_some_and(|heads| heads.is_body_slow()) => {
                Answer::BodyTimedOut
            }
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => Answer::BodyTimedOut,
            (
                ErrorSource::Downstream,
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::WriteTimedout
                | ErrorType::ConnectionClosed
                | ErrorType::H2Error,
            ) => Answer::ClientLeft,
            (ErrorSource::Downstream, _) => Answer::BadRequest,
            (ErrorSource::Upstream, ErrorType::ReadTimedout) => Answer::Silent,
            (ErrorSource::Upstream, _) if self.connect_failed.is_some() => Answer::NotListening,
            (ErrorSource::Upstream, _) => Answer::Broken,
            (_, kind) if *kind == TOO_LATE => Answer::Broken,
            (ErrorSource::Internal | ErrorSource::Unset, _) => Answer::Internal,
        }
    }
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ctx({})", self.id.as_str())
    }
}

impl Drop for Ctx {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.request_ended();
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
