//! The edge: Pingora's hooks, each a few lines. A request's path is `request_filter` (route, local
//! answers) → `upstream_peer` (admission, lease, hold) → `upstream_request_filter` → the instance → `response_filter`;
//! dropping [`Ctx`] gives the lease back, for a WebSocket when the socket closes.
//!
//! It must not know engines.

mod admit;
mod client;
mod connections;
mod dial;
mod headers;
mod hold;
mod listen;
mod local;
mod peer;
mod respond;
mod target;
mod tunnel;

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use pingora::{
    Error, ErrorSource, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    protocols::Digest,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session as Downstream},
    upstreams::peer::HttpPeer,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use connections::Connections;
pub use listen::Listener;

use crate::{
    config::{Limits, Timeouts},
    fleet::{Fleet, Lease, Verdict},
    metrics::METRICS,
    route::RouteTable,
};
use admit::Admission;
use headers::RequestId;
use listen::Connection;
use peer::Manner;
use respond::Answer;
use target::Target;
use tunnel::Takeover;

/// How often one request may try to connect.
const CONNECTS_MAX: u32 = 3;
/// A connection came about, but too late for the life that it was meant for.
const TOO_LATE: ErrorType = ErrorType::Custom("its life was over before it was connected");

/// The proxy.
#[derive(Debug)]
pub struct Edge {
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    timeouts: Timeouts,
    admission: Admission,
    tunnels: TaskTracker,
}

impl Edge {
    /// Serves the sessions of `table` from `fleet`.
    pub fn new(
        table: Arc<ArcSwap<RouteTable>>,
        fleet: Arc<Fleet>,
        timeouts: Timeouts,
        limits: &Limits,
    ) -> Self {
        let admission = Admission::new(limits);
        Self { table, fleet, timeouts, admission, tunnels: TaskTracker::new() }
    }

    /// The instance to send the request to: leased, held for, and not known to be dead.
    async fn peer(
        &self,
        downstream: &mut Downstream,
        ctx: &mut Ctx,
    ) -> Result<Box<HttpPeer>, Answer> {
        let target = ctx.target.clone().ok_or(Answer::Internal)?;
        if let Some(failed) = ctx.connect_failed.take() {
            self.after_failed_connect(ctx, failed).await?;
        }
        let lease = match ctx.lease.take() {
            Some(lease) => lease,
            None => {
                let asker = admit::asker(downstream, &target.route);
                let origin = admit::origin(downstream);
                self.admission.lease(&self.fleet, &target, asker, origin)?
            }
        };
        // In `ctx` while it waits, so that whatever ends the request gives it back.
        let lease = ctx.lease.insert(lease);
        let endpoint = hold::ready(downstream, lease).await?;
        ctx.connect_began = Some(Instant::now());
        ctx.connects += 1;
        ctx.takeover = ctx.manner.is_upgrade().then(Arc::default);
        let Target { host, route, .. } = &*target;
        let (tls, takeover) = (route.tls(host), ctx.takeover.clone());
        peer::build(&endpoint, lease, route, tls, ctx.manner, takeover, &self.timeouts)
            .map_err(|_| Answer::Internal)
    }

    /// A refused connection is a reason to ask the engine, not to give the instance up.
    async fn after_failed_connect(&self, ctx: &mut Ctx, failed: Instant) -> Result<(), Answer> {
        let Some(lease) = &ctx.lease else { return Ok(()) };
        match self.fleet.suspect(lease, failed.into_std()).await {
            Verdict::Gone => ctx.lease = None,
            Verdict::Runs => {
                let until = failed + self.timeouts.connect;
                let endpoint = lease.endpoint().cloned().ok_or(Answer::Internal)?;
                // What was dying while the engine looked ends while we wait for it to listen.
                let listens = peer::listens(&endpoint, until, || lease.is_over()).await;
                if lease.is_over() {
                    ctx.lease = None;
                } else if !listens {
                    return Err(Answer::NotListening);
                }
            }
        }
        Ok(())
    }
}

/// One request's state, from its head to its last byte.
pub struct Ctx {
    id: RequestId,
    target: Option<Arc<Target>>,
    manner: Manner,
    takeover: Option<Arc<Takeover>>,
    lease: Option<Lease>,
    answer: Option<Answer>,
    connects: u32,
    connect_began: Option<Instant>,
    connect_took: Duration,
    connect_failed: Option<Instant>,
    connection: Option<Arc<Connection>>,
}

impl Ctx {
    /// After the 101 the stream is a tunnel's, unless Pingora speaks TLS to the instance.
    fn take_over(&mut self, tunnels: &TaskTracker) {
        let tls = self.target.as_ref().is_some_and(|target| target.route.speaks_tls());
        if tls {
            return;
        }
        let (Some(connection), Some(takeover)) = (&self.connection, self.takeover.take()) else {
            return;
        };
        if let Some(lease) = self.lease.take() {
            tunnels.spawn(takeover.begin(lease));
            // A connection is upgraded once.
            let _ = connection.takeover.set(takeover);
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

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx {
            id: RequestId::none(),
            target: None,
            manner: Manner::default(),
            takeover: None,
            lease: None,
            answer: None,
            connects: 0,
            connect_began: None,
            connect_took: Duration::ZERO,
            connect_failed: None,
            connection: None,
        }
    }

    /// We neither cache nor compress; without modules Pingora walks a shorter path.
    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn early_request_filter(&self, downstream: &mut Downstream, ctx: &mut Ctx) -> Result<()> {
        if let Some(connection) = Connection::of(downstream.digest()) {
            connection.request_began();
            ctx.connection = Some(Arc::clone(connection));
        }
        downstream.set_read_timeout(Some(self.timeouts.client_body));
        headers::drop_stray_upgrade(downstream.req_header_mut());
        // Bytes of a next request that come during a hold are kept for it. Pingora, once it keeps
        // some, sees no client leave any more, so only where `timeouts.answer` ends the wait.
        // Test: a_client_that_sends_on_and_leaves_before_the_101_gives_its_lease_back.
        ctx.manner = Manner::of(downstream.req_header());
        downstream.set_pipelining_enabled(!ctx.manner.is_patient());
        if downstream.get_keepalive().is_some() {
            downstream.set_keepalive(Some(self.timeouts.client_idle.as_secs().max(1)));
        }
        ctx.id = RequestId::of(&downstream.req_header().headers);
        Ok(())
    }

    async fn request_filter(&self, downstream: &mut Downstream, ctx: &mut Ctx) -> Result<bool> {
        match Target::of(downstream, &self.table) {
            Ok(target) => {
                let target = ctx.target.insert(target);
                local::answer(downstream, target, ctx.id.as_str()).await
            }
            Err(answer) => {
                ctx.answer = Some(answer);
                METRICS.refused.with_label_values(&[answer.reason()]).inc();
                respond::send(downstream, answer, ctx.id.as_str()).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        downstream: &mut Downstream,
        ctx: &mut Ctx,
    ) -> Result<Box<HttpPeer>> {
        self.peer(downstream, ctx).await.map_err(|answer| {
            ctx.answer = Some(answer);
            Error::new_str("answered by the edge")
        })
    }

    /// Nothing was sent yet. A connect waits for as long as nothing answers it, and then reaches
    /// whoever has the address: once its life is over, that may be another session's instance.
    /// Test: a_connect_that_outlives_its_instance_brings_nothing_to_the_next_at_its_address.
    async fn connected_to_upstream(
        &self,
        _: &mut Downstream,
        reused: bool,
        _: &HttpPeer,
        _: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if reused {
            return Ok(());
        }
        if ctx.lease.take_if(|lease| lease.is_over()).is_some() {
            return Error::e_explain(TOO_LATE, "leased anew");
        }
        ctx.connect_took = ctx.connect_began.map_or(Duration::ZERO, |began| began.elapsed());
        Ok(())
    }

    /// Nothing was sent yet, so the request may go to another life, or try this one again.
    fn fail_to_connect(
        &self,
        _: &mut Downstream,
        _: &HttpPeer,
        ctx: &mut Ctx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        ctx.connect_failed = Some(Instant::now());
        error.set_retry(ctx.connects < CONNECTS_MAX && !is_tls(error.etype()));
        error
    }

    /// Never replayed once a byte of it may have reached an instance.
    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        _: &mut Downstream,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        _: bool,
    ) -> Box<Error> {
        error.set_retry(*error.etype() == TOO_LATE && ctx.connects < CONNECTS_MAX);
        error
    }

    async fn upstream_request_filter(
        &self,
        downstream: &mut Downstream,
        upstream: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let Some(target) = &ctx.target else { return Ok(()) };
        target.forwarding.say(upstream)?;
        ctx.id.ask(upstream)?;
        headers::keep_trailers(downstream.req_header(), upstream)?;
        for (name, value) in target.route.set_headers(&target.host) {
            upstream.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        downstream: &mut Downstream,
        answer: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if answer.status.is_informational() && answer.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        // From here on both sides may stream as slowly as they like.
        if headers::has_body(downstream.req_header(), answer) {
            downstream.set_read_timeout(None);
        }
        ctx.id.answer(answer)?;
        if let Some(held) = ctx.lease.as_ref().and_then(Lease::held) {
            headers::server_timing(answer, held, ctx.connect_took)?;
        }
        if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            ctx.take_over(&self.tunnels);
        }
        Ok(())
    }

    /// Once the answer is complete, what is left of the request must come as it must before.
    fn response_body_filter(
        &self,
        downstream: &mut Downstream,
        _: &mut Option<Bytes>,
        end: bool,
        _: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if end {
            downstream.set_read_timeout(Some(self.timeouts.client_body));
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        downstream: &mut Downstream,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let answer = ctx.answer.unwrap_or_else(|| answer_to(error, ctx));
        ctx.answer = Some(answer);
        METRICS.refused.with_label_values(&[answer.reason()]).inc();
        let session = ctx.target.as_ref().map_or("", |target| &*target.host);
        let id = ctx.id.as_str();
        match answer {
            Answer::Broken | Answer::Silent | Answer::NotListening | Answer::Internal => {
                tracing::warn!(session, id, %error, "{}", answer.reason());
            }
            _ => tracing::debug!(session, id, %error, "{}", answer.reason()),
        }
        let began = downstream.response_written().is_some();
        // Pingora closes the connection after this, so the client must be told.
        downstream.set_keepalive(None);
        // It has its answer or gets it now: however slowly it takes it, nobody is kept awake for it.
        ctx.lease = None;
        if !began && respond::send(downstream, answer, id).await.is_err() {
            ctx.answer = Some(Answer::ClientLeft);
        }
        FailToProxy { error_code: answer.status(), can_reuse_downstream: false }
    }

    async fn logging(&self, downstream: &mut Downstream, _: Option<&Error>, ctx: &mut Ctx) {
        let status = downstream.response_written().map_or(0, |answer| answer.status.as_u16());
        METRICS.count_request(status);
        let host = ctx.target.as_ref().map_or("", |target| &*target.host);
        tracing::debug!(id = ctx.id.as_str(), session = host, status, "request");
    }

    /// We log what became of a request ourselves, in `fail_to_proxy`.
    fn suppress_error_log(&self, _: &Downstream, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Downstream,
        _: &Ctx,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

fn is_tls(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::TLSWantX509Lookup
    )
}

/// What Pingora's error means for the client.
fn answer_to(error: &Error, ctx: &Ctx) -> Answer {
    match (error.esource(), error.etype()) {
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
        (ErrorSource::Upstream, _) if ctx.connect_failed.is_some() => Answer::NotListening,
        (ErrorSource::Upstream, _) => Answer::Broken,
        (_, kind) if *kind == TOO_LATE => Answer::Broken,
        (ErrorSource::Internal | ErrorSource::Unset, _) => Answer::Internal,
    }
}
