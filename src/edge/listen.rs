//! What a connection must keep to before a request exists: a place among `limits.connections`, and
//! a deadline for the whole request head, where Pingora has one for each read only.

use std::{
    fmt, io,
    os::fd::RawFd,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::{
    apps::{HttpServerApp, ServerApp},
    http::ResponseHeader,
    protocols::{
        ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown,
        SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest,
        tls::SslDigest,
    },
    proxy::HttpProxy,
    server::ShutdownWatch,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};

use super::{
    Connections, Edge, client,
    target::Target,
    tunnel::{Client, Takeover},
};

use crate::fleet::Origin;

/// How long idle connections may bring one more request after the listeners are closed.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Accepts for the edge: every new connection passes here first.
pub struct Listener {
    proxy: Arc<HttpProxy<Edge>>,
    connections: Arc<Connections>,
    head: Duration,
}

impl Listener {
    /// Each request head within `head`.
    pub fn new(proxy: HttpProxy<Edge>, connections: Arc<Connections>, head: Duration) -> Self {
        Self { proxy: Arc::new(proxy), connections, head }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

#[async_trait]
impl ServerApp for Listener {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let place = self.connections.enter(client::of_stream(&stream).map(Origin::from))?;
        let guarded = Box::new(Guarded::new(Client { stream, place }, self.head));
        self.proxy.process_new(guarded, shutdown).await;
        None
    }

    /// The listeners are closed. Answers say so from now on, but a client that had its last one just
    /// before, or connected just before, is about to ask: cut at once, its request would be lost.
    /// Test: sigquit_hands_over_under_load_and_no_request_fails.
    async fn cleanup(&self) {
        sleep(LAST_REQUESTS).await;
        self.proxy.http_cleanup().await;
    }
}

/// What the hooks know of the connection that a request came by.
#[derive(Debug)]
pub(super) struct Connection {
    /// The client's socket. Open as long as the request is.
    pub(super) socket: RawFd,
    /// Whether a request is under way, head and all: no deadline runs then.
    in_request: AtomicBool,
    /// Whom its last request was for.
    pub(super) target: ArcSwapOption<Target>,
    /// Who takes the socket over from Pingora, once its upgrade was granted.
    pub(super) takeover: OnceLock<Arc<Takeover>>,
    /// Whether it is HTTP/2, and so carries any number of requests at once.
    http2: AtomicBool,
}

impl Connection {
    /// The connection that a request came by.
    pub(super) fn of(digest: Option<&Digest>) -> Option<&Arc<Self>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// The head is complete.
    pub(super) fn request_began(&self) {
        self.in_request.store(true, Ordering::Relaxed);
    }

    /// The next head may come. On HTTP/2 others are under way, and frames come that are no head:
    /// after its first request only `timeouts.client_idle` ends such a connection.
    /// Test: a_stream_outlives_others_of_its_connection_and_the_time_for_a_head.
    pub(super) fn request_ended(&self) {
        if !self.http2.load(Ordering::Relaxed) {
            self.in_request.store(false, Ordering::Relaxed);
        }
    }
}

/// A client's connection that ends when a request head takes too long, and that does not end with
/// Pingora's interest in it once it was upgraded.
struct Guarded {
    /// Taken by the drop alone.
    client: Option<Client>,
    connection: Arc<Connection>,
    digest: Arc<ProxyDigest>,
    head: Duration,
    /// When the head that is being read must be complete; runs from its first byte.
    until: Option<Instant>,
    /// Made only when a head does not come in one piece.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Read while looking for an HTTP/2 preface.
    peeked: BytesMut,
}

impl Guarded {
    fn new(client: Client, head: Duration) -> Self {
        let (in_request, http2) = (AtomicBool::new(false), AtomicBool::new(false));
        let connection = Arc::new(Connection {
            socket: client.stream.id(),
            in_request,
            http2,
            target: ArcSwapOption::empty(),
            takeover: OnceLock::new(),
        });
        // Pingora carries this digest to every request: it is how the hooks find the connection.
        let answer = ResponseHeader::build(200, Some(0)).expect("200 is a status");
        let user_data: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(&connection));
        let digest = Arc::new(ProxyDigest::new(Box::new(answer), Some(user_data)));
        let peeked = BytesMut::new();
        Self { client: Some(client), connection, digest, head, until: None, alarm: None, peeked }
    }

    fn stream(&mut self) -> &mut Stream {
        &mut self.client.as_mut().expect("only the drop takes it").stream
    }

    fn stream_ref(&self) -> &Stream {
        &self.client.as_ref().expect("only the drop takes it").stream
    }

    /// Whether the head's time is over. Registers to be woken when it will be.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(until) = self.until else { return false };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        alarm.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(takeover) = self.connection.takeover.get() {
            takeover.client_is_quiet();
            return Poll::Pending;
        }
        let in_request = self.connection.in_request.load(Ordering::Relaxed);
        if in_request {
            (self.until, self.alarm) = (None, None);
        } else if self.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if self.peeked.has_remaining() {
            let n = buf.remaining().min(self.peeked.len());
            buf.put_slice(&self.peeked.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(self.stream()).poll_read(cx, buf);
        if !in_request && self.until.is_none() && before < buf.filled().len() {
            self.until = Some(Instant::now() + self.head);
        }
        read
    }
}

#[async_trait]
impl Peek for Guarded {
    /// Reads until `buf` is full, or until it cannot become an HTTP/2 preface any more: a client
    /// of HTTP/1.0 may send less than a preface and wait.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let until = Instant::now() + self.head;
        let stream = &mut self.client.as_mut().expect("only the drop takes it").stream;
        while self.peeked.len() < buf.len() && PREFACE.starts_with(&self.peeked) {
            let read = stream.read_buf(&mut self.peeked);
            match timeout_at(until, read).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            };
        }
        self.until = Some(until);
        self.connection.http2.store(self.peeked.starts_with(PREFACE), Ordering::Relaxed);
        let n = buf.len().min(self.peeked.len());
        buf[..n].copy_from_slice(&self.peeked[..n]);
        Ok(true)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.takeover.get().is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(self.stream()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream_ref().is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        if self.connection.takeover.get().is_none() {
            Shutdown::shutdown(&mut **self.stream()).await;
        }
    }
}

impl UniqueID for Guarded {
    fn id(&self) -> UniqueIDType {
        self.stream_ref().id()
    }
}

impl Ssl for Guarded {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream_ref().get_timing_digest()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream_ref().get_socket_digest()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream_ref().fmt(f)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let (Some(takeover), Some(client)) = (self.connection.takeover.get(), self.client.take())
        {
            takeover.lay_down_client(client);
        }
    }
}
