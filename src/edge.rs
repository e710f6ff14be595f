//! The edge: Pingora's hooks, each a few lines. A request's path is `request_filter` (route, local
//! answers) → `upstream_peer` (admission, lease, hold) → `upstream_request_filter` → the instance → `response_filter`;
//! dropping `Ctx` gives the lease back, for a WebSocket when the socket closes.
//!
//! It must not know engines.

mod access;
mod admit;
mod answer_log;
mod arrive;
mod client;
mod connections;
mod ctx;
mod dial;
mod early;
mod forwarded;
mod frames;
mod framing;
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod hold;
mod http2;
mod inlet;
mod listen;
mod local;
mod pace;
mod patience;
mod peer;
mod proxy_protocol;
mod respond;
mod settle;
mod silence;
mod socket;
mod target;
mod tls;
mod tunnel;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use pingora::{
    Error, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    protocols::Digest,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session as Downstream},
    upstreams::peer::HttpPeer,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use admit::Admission;
pub use arrive::Entrances;
pub use connections::Connections;
pub use early::Unseen;
pub use listen::Listener;
pub use tls::TlsError;

use crate::{
    access::Door,
    acme::Acme,
    config::{Limits, Timeouts},
    fleet::{Fleet, Verdict},
    metrics::METRICS,
    record::AccessLog,
    route::RouteTable,
};
use answer_log::{AnswerLog, Line};
use ctx::Ctx;
use framing::HeadLimits;
use headers::RequestId;
use listen::Connection;
use pace::Rate;
use peer::Manner;
use respond::Answer;
use silence::Silence;
use target::Target;

/// How often one request may try to connect.
const CONNECTS_MAX: u32 = 3;
/// A connection came about, but too late for the life that it was meant for.
const TOO_LATE: ErrorType = ErrorType::Custom("its life was over before it was connected");

/// The proxy.
#[derive(Debug)]
pub struct Edge {
    table: Arc<ArcSwap<RouteTable>>,
    fleet: Arc<Fleet>,
    door: Arc<Door>,
    timeouts: Timeouts,
    admission: Arc<Admission>,
    limits: HeadLimits,
    body_rate: Rate,
    redirect_port: u16,
    tunnels: TaskTracker,
    access_log: Option<Arc<AccessLog>>,
    answer_log: AnswerLog,
    acme: Option<Arc<Acme>>,
}

impl Edge {
    /// Serves the sessions of `table` from `fleet` to whomever `door` lets in.
    pub fn new(
        table: Arc<ArcSwap<RouteTable>>,
        fleet: Arc<Fleet>,
        door: Arc<Door>,
        timeouts: Timeouts,
        limits: &Limits,
    ) -> Self {
        let body_rate = Rate::of_bodies(limits, &timeouts);
        Self {
            table,
            fleet,
            door,
            timeouts,
            admission: Arc::new(Admission::new(limits)),
            limits: HeadLimits::new(limits),
            body_rate,
            redirect_port: 443,
            tunnels: TaskTracker::new(),
            access_log: None,
            answer_log: AnswerLog::default(),
            acme: None,
        }
    }

    /// Answers http-01 challenges, and lets requests cause orders where that is on.
    #[must_use]
    pub fn with_acme(mut self, acme: Option<Arc<Acme>>) -> Self {
        self.acme = acme;
        self
    }

    /// Wakes are counted with those that others begin.
    #[must_use]
    pub fn with_admission(mut self, admission: Arc<Admission>) -> Self {
        self.admission = admission;
        self
    }

    /// Redirects to HTTPS name this port instead of 443.
    #[must_use]
    pub fn with_redirect_port(mut self, port: u16) -> Self {
        self.redirect_port = port;
        self
    }

    /// Each request is written to `log`.
    #[must_use]
    pub fn with_access_log(mut self, log: Option<Arc<AccessLog>>) -> Self {
        self.access_log = log;
        self
    }

    /// What is done before anybody wakes, in this order: the redirect to HTTPS, what the route
    /// answers by itself, access. Whether the request was answered.
    async fn before_wake(
        &self,
        downstream: &mut Downstream,
        ctx: &mut Ctx,
    ) -> Result<bool, access::Closed> {
        if let Some(answer) = ctx.answer {
            return Err(answer.into());
        }
        let target = Arc::clone(ctx.target.insert(Target::of(downstream, &self.table)?));
        if let Some(acme) = &self.acme {
            acme.want(&target.host);
        }
        if target.route.recipe.client_tls.redirect && !client::is_https(downstream) {
            return Err(Answer::ToHttps(self.redirect_port).into());
        }
        let answered = local::answer(downstream, &target, ctx.id.as_str()).await;
        if answered.map_err(|_| Answer::ClientLeft)? {
            return Ok(true);
        }
        let is_upgrade = ctx.manner.is_upgrade();
        ctx.entered = access::enter(&self.door, downstream, &target, is_upgrade).await?;
        Ok(false)
    }

    /// What the request is refused for before it is looked at.
    async fn framed(&self, downstream: &mut Downstream, ctx: &Ctx) -> Result<(), Answer> {
        let Some(connection) = &ctx.connection else { return Ok(()) };
        if connection.is_http2() {
            self.framed_by_http2(downstream).await?;
        } else {
            connection.heads.next().map_err(Answer::Unframed)?;
        }
        if connection.is_http2() || connection.heads.has_underscores() {
            let all = self.limits.drops_underscores();
            headers::drop_underscored(downstream.req_header_mut(), all);
        }
        Ok(())
    }

    async fn framed_by_http2(&self, downstream: &mut Downstream) -> Result<(), Answer> {
        let request = downstream.req_header_mut();
        http2::request::join_cookies(request).map_err(|_| Answer::BadRequest)?;
        self.limits.check_http2(request).map_err(Answer::Unframed)?;
        http2::request::refuse_body(downstream, &self.limits, self.timeouts.client_body).await
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
        let early = ctx.early.take().and_then(|early| early.for_host(&target.host));
        let lease = match ctx.lease.take().or(early) {
            Some(lease) => lease,
            None => {
                let asker = admit::asker(downstream, &target.route);
                let origin = admit::origin(downstream);
                let Target { host, route, .. } = &*target;
                self.admission.lease(&self.fleet, host, route, asker, origin)?
            }
        };
        // In `ctx` while it waits, so that whatever ends the request gives it back.
        let lease = ctx.lease.insert(lease);
        ctx.generation = Some(lease.generation());
        let endpoint = hold::ready(downstream, lease).await?;
        ctx.generation = Some(endpoint.generation);
        ctx.held = lease.held();
        ctx.connect_began = Some(Instant::now());
        ctx.connects += 1;
        ctx.takeover = ctx.manner.is_upgrade().then(Arc::default);
        let Target { host, route, .. } = &*target;
        let (tls, takeover) = (route.tls(host), ctx.takeover.clone());
        let peer = peer::build(&endpoint, lease, route, tls, ctx.manner, takeover, &self.timeouts);
        let mut peer = peer.map_err(|_| Answer::Internal)?;
        if let Some(grant) = ctx.entered.grant() {
            peer::set_apart(&mut peer, grant.number());
        }
        Ok(peer)
    }

    /// From here on both sides may stream as slowly as they like. The instance may be silent within
    /// a stream alone.
    fn answer_began(
        &self,
        downstream: &mut Downstream,
        answer: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) {
        let has_body = headers::has_body(downstream.req_header(), answer);
        if has_body {
            ctx.set_patient(true);
        }
        if settle::is_stream(answer) {
            ctx.silence = None;
            // As in `early_request_filter`: who leaves must be seen.
            downstream.set_pipelining_enabled(false);
        } else if let Some(silence) = &ctx.silence {
            silence.answer_began();
        }
        if downstream.req_header().version == Version::HTTP_10 {
            // It knows no chunks: only the end of the connection ends such an answer.
            answer.remove_header(&header::TRANSFER_ENCODING);
            if has_body && !answer.headers.contains_key(header::CONTENT_LENGTH) {
                downstream.set_keepalive(None);
            }
        }
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

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new()
    }

    /// We neither cache nor compress; without modules Pingora walks a shorter path.
    fn init_downstream_modules(&self, _: &mut pingora::modules::http::HttpModules) {}

    async fn early_request_filter(&self, downstream: &mut Downstream, ctx: &mut Ctx) -> Result<()> {
        ctx.began = Instant::now();
        if let Some(connection) = Connection::of(downstream.digest()) {
            connection.request_began();
            ctx.early = connection.take_early();
            ctx.connection = Some(Arc::clone(connection));
        }
        ctx.answer = self.framed(downstream, ctx).await.err();
        headers::drop_stray_upgrade(downstream.req_header_mut());
        // Bytes of a next request that come during a hold are kept for it. Pingora, once it keeps
        // some, sees no client leave any more, so only where `timeouts.answer` ends the wait.
        // Test: a_client_that_sends_on_and_leaves_before_the_101_gives_its_lease_back.
        ctx.manner = Manner::of(downstream.req_header());
        downstream.set_pipelining_enabled(!ctx.manner.may_wait());
        ctx.set_patient(ctx.manner.is_stream());
        if downstream.req_header().version == Version::HTTP_10 {
            // RFC 9110, 15.2: it knows of none.
            downstream.set_ignore_info_resp(true);
        }
        if downstream.is_http2() {
            // Of what goes by HTTP/1, and of the connection, the inlet's stream knows more.
            downstream.set_write_timeout(Some(self.timeouts.client_write));
        }
        if ctx.manner.is_upgrade() {
            // Whoever answers it: what the client may have sent behind it is no request.
            downstream.set_keepalive(None);
        } else if downstream.get_keepalive().is_some() {
            downstream.set_keepalive(Some(self.timeouts.client_idle.as_secs().max(1)));
        }
        ctx.id = RequestId::of(&downstream.req_header().headers);
        Ok(())
    }

    async fn request_filter(&self, downstream: &mut Downstream, ctx: &mut Ctx) -> Result<bool> {
        let path = downstream.req_header().uri.path();
        // Before there is a route: the ACME server's question wakes nobody.
        let acme = self.acme.as_ref().filter(|_| ctx.answer.is_none());
        if let Some(file) = acme.and_then(|acme| acme.file(path)) {
            respond::challenge(downstream, file, ctx.id.as_str()).await?;
            return Ok(true);
        }
        match self.before_wake(downstream, ctx).await {
            Ok(answered) => Ok(answered),
            Err(access::Closed { answer, headers }) => {
                ctx.answer = Some(answer);
                match answer {
                    Answer::ToHttps(_) => METRICS.redirected.inc(),
                    Answer::Preflight => {
                        METRICS.local_answers.with_label_values(&["preflight"]).inc();
                    }
                    Answer::Exchanged => {}
                    _ => METRICS.refused.with_label_values(&[answer.reason()]).inc(),
                }
                let (id, target) = (ctx.id.as_str(), ctx.target.as_deref());
                respond::send_with(downstream, answer, id, target, headers).await?;
                Ok(true)
            }
        }
    }

    /// The inlet paces what comes by HTTP/1, and sees nothing of the streams of HTTP/2.
    async fn request_body_filter(
        &self,
        downstream: &mut Downstream,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        http2::request::drop_empty_end(body, end);
        if let Some(silence) = &ctx.silence {
            silence.is_broken();
        }
        let Some(pace) = ctx.body.as_mut().filter(|_| !end && downstream.is_http2()) else {
            return Ok(());
        };
        if pace.is_too_slow(body.as_ref().map_or(0, Bytes::len), self.body_rate) {
            ctx.answer = Some(Answer::BodyTimedOut);
            return Err(Error::new_str("a body below limits.body_rate"));
        }
        Ok(())
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
        peer: &HttpPeer,
        socket: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        // One that we dialled ourselves, for an upgrade, has no number. Where Pingora carries the
        // upgraded stream (the instance speaks TLS), the client's own socket ends it.
        let own = ctx.connection.as_ref().filter(|_| socket < 0 && ctx.manner.is_upgrade());
        let socket = own.map_or(socket, |connection| connection.socket);
        ctx.entered.cut_when_over(socket, &self.tunnels);
        ctx.silence = None;
        if let Some(connection) =
            ctx.connection.clone().filter(|_| peer::is_watched(peer, ctx.manner))
        {
            let (tasks, may_wait) = (&self.tunnels, ctx.manner.may_wait());
            ctx.silence = Silence::watch(socket, connection, may_wait, &self.timeouts, tasks);
        }
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
        target.forwarding.say(downstream, upstream)?;
        ctx.entered.tell(&target.route.recipe.access, upstream)?;
        ctx.id.ask(upstream)?;
        headers::keep_trailers(downstream.req_header(), upstream)?;
        upstream.remove_header(&header::PROXY_AUTHORIZATION);
        if ctx.manner.is_upgrade() {
            headers::ask_upgrade(downstream.req_header(), upstream)?;
        }
        if let Some(codings) = framing::inner_codings(&downstream.req_header().headers) {
            upstream.insert_header(header::TRANSFER_ENCODING, codings)?;
        }
        for (name, value) in target.route.set_headers(&target.host) {
            upstream.insert_header(name, value)?;
        }
        if let Some(behind) = ctx.behind() {
            headers::through(behind, upstream)?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        downstream: &mut Downstream,
        answer: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        settle::settle(answer, ctx.manner.is_upgrade())?;
        let is_last =
            !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS;
        // An answer before the request's end closes the connection; a 100 is none, and asks for it.
        downstream.set_close_on_response_before_downstream_finish(is_last);
        if !is_last {
            if let Some(silence) = &ctx.silence {
                silence.is_broken();
            }
            return Ok(());
        }
        self.answer_began(downstream, answer, ctx);
        ctx.id.answer(answer)?;
        if let Some(target) = &ctx.target {
            headers::hsts(answer, downstream, target)?;
        }
        if let Some(held) = ctx.held {
            headers::server_timing(answer, held, ctx.connect_took)?;
        }
        if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            ctx.entered.select(answer)?;
            ctx.take_over(&self.tunnels, headers::is_websocket(downstream.req_header()));
        }
        Ok(())
    }

    /// Once the answer is complete, what is left of the request must come as it must before.
    fn response_body_filter(
        &self,
        _: &mut Downstream,
        _: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if let Some(silence) = &ctx.silence {
            if end && silence.is_over() {
                // Where only the end of the connection ends the answer, it would look whole.
                return Err(Error::explain(ErrorType::ReadTimedout, "silent").into_up());
            }
            silence.is_broken();
        }
        if end {
            ctx.set_patient(false);
        }
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        downstream: &mut Downstream,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let ended = || ctx.entered.is_over().then_some(Answer::AccessEnded);
        let answer = ctx.answer.or_else(ended).unwrap_or_else(|| ctx.answer_to(error));
        ctx.answer = Some(answer);
        METRICS.refused.with_label_values(&[answer.reason()]).inc();
        let id = ctx.id.as_str();
        let began = downstream.response_written().is_some();
        // Pingora closes the connection after this, so the client must be told.
        downstream.set_keepalive(None);
        // It has its answer or gets it now: however slowly it takes it, nobody is kept awake for it.
        ctx.lease = None;
        let sent = respond::send(downstream, answer, id, ctx.target.as_deref());
        if !began && sent.await.is_err() {
            ctx.answer = Some(Answer::ClientLeft);
        }
        FailToProxy { error_code: answer.status(), can_reuse_downstream: false }
    }

    async fn logging(&self, downstream: &mut Downstream, error: Option<&Error>, ctx: &mut Ctx) {
        let status = downstream.response_written().map_or(0, |answer| answer.status.as_u16());
        METRICS.count_request(status);
        let session = ctx.target.as_ref().map_or("", |target| &*target.host);
        let id = ctx.id.as_str();
        // Within the macro, so that nobody looks for the client where nothing is logged.
        tracing::debug!(id, session, client = ?client::address(downstream), status, "request");
        if let Some(answer) = ctx.answer {
            let generation = ctx.generation.map(|generation| generation.0);
            let client = client::address(downstream);
            let line = Line { answer, id, client, session, generation, error };
            self.answer_log.write(&line, Instant::now().into_std());
        }
        if let Some(log) = &self.access_log {
            log.write(&ctx.access(downstream, status));
        }
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
