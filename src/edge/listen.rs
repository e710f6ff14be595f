//! What a connection must keep to before a request exists: a place among `limits.connections`, the
//! way in that its address has (`arrive`), and whatever its inlet wants of heads, where Pingora has
//! a deadline for each read only.

use std::{
    fmt, io,
    os::fd::RawFd,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
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
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::sleep,
};

use super::{
    Connections, Edge,
    arrive::{Arrival, Entrances},
    client::Peer,
    connections::Place,
    early::Early,
    http2::{self, Rules},
    inlet::{self, Heads, Inlet, Speaks, Terms},
    pace::Paced,
    socket,
    target::Target,
    tunnel::{Client, Takeover},
};
use crate::config::{Http2, Limits, Timeouts};

/// How long idle connections may bring one more request after the listeners are closed.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Accepts for the edge: every new connection passes here first.
pub struct Listener {
    proxy: Arc<HttpProxy<Edge>>,
    connections: Arc<Connections>,
    entrances: Entrances,
    terms: Terms,
    rules: Rules,
}

impl Listener {
    /// For clients that keep to these.
    pub fn new(
        proxy: HttpProxy<Edge>,
        connections: Arc<Connections>,
        limits: &Limits,
        timeouts: &Timeouts,
        http2: &Http2,
    ) -> Self {
        Self {
            proxy: Arc::new(proxy),
            connections,
            entrances: Entrances::default(),
            terms: Terms::new(limits, timeouts),
            rules: Rules::new(http2, timeouts),
        }
    }

    /// What is done at which address; without it, all are plain.
    #[must_use]
    pub fn with_entrances(mut self, entrances: Entrances) -> Self {
        self.entrances = entrances;
        self
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
        let mut place = self.connections.enter()?;
        let arrival = self.entrances.arrive(stream, &mut place).await?;
        let mut client = Box::new(Guarded::new(arrival, place, &self.terms));
        let connection = Arc::clone(&client.connection);
        match client.speaks().await.ok()? {
            Speaks::Http1 => drop(self.proxy.process_new(client, shutdown).await),
            Speaks::Http2 => {
                http2::serve(&self.proxy, client, &connection, &self.rules, shutdown).await;
            }
            Speaks::Neither => client.refuse_preface().await,
        }
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

/// Bytes that have moved, so that nobody who moves some is taken for one that is gone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    /// How many were read from the client, and how many its socket has taken.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// What became of a write.
    fn wrote(&self, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = write {
            self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        write
    }
}

/// What the hooks know of the connection that a request came by.
#[derive(Debug)]
pub(super) struct Connection {
    /// The client's socket. Open as long as the request is.
    pub(super) socket: RawFd,
    /// Who it comes from.
    pub(super) peer: Peer,
    /// The canonical name that its TLS handshake asked for.
    pub(super) server_name: Option<Box<str>>,
    /// The certificate that the client has shown, checked by `client_ca`.
    pub(super) certificate: Option<CertificateDer<'static>>,
    /// A lease that was taken at the handshake, for the first request.
    early: Mutex<Option<Early>>,
    /// Whether a request is under way, head and all: no deadline runs then.
    in_request: AtomicBool,
    /// Whom its last request was for.
    pub(super) target: ArcSwapOption<Target>,
    /// Who takes the socket over from Pingora, once its upgrade was granted.
    pub(super) takeover: OnceLock<Arc<Takeover>>,
    /// Whether it is HTTP/2, and so carries any number of requests at once.
    http2: AtomicBool,
    /// What its inlet has let through.
    pub(super) heads: Arc<Heads>,
    pub(super) traffic: Traffic,
    /// Whether the client is waited for to take something.
    is_writing: AtomicBool,
}

impl Connection {
    /// The connection that a request came by.
    pub(super) fn of(digest: Option<&Digest>) -> Option<&Arc<Self>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// Whether it is HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Whether the client is waited for to take something. HTTP/2 hides it.
    pub(super) fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Relaxed)
    }

    /// The head is complete.
    pub(super) fn request_began(&self) {
        self.is_writing.store(false, Ordering::Relaxed);
        self.in_request.store(true, Ordering::Relaxed);
    }

    /// What was leased at the handshake: the first request's, whatever that asks for.
    pub(super) fn take_early(&self) -> Option<Early> {
        self.server_name.as_ref()?;
        self.early.lock().unwrap_or_else(PoisonError::into_inner).take()
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
    inlet: Inlet,
}

impl Guarded {
    fn new(arrival: Arrival, place: Place, terms: &Terms) -> Self {
        let Arrival { stream, peer, told, early } = arrival;
        let (server_name, certificate, http2) = told
            .map_or((None, None, false), |told| (told.server_name, told.certificate, told.http2));
        let heads = Arc::<Heads>::default();
        let inlet = Inlet::new(terms, Arc::clone(&heads), http2);
        let connection = Arc::new(Connection {
            socket: stream.id(),
            peer,
            server_name,
            certificate,
            early: Mutex::new(early),
            in_request: AtomicBool::new(false),
            http2: AtomicBool::new(http2),
            target: ArcSwapOption::empty(),
            takeover: OnceLock::new(),
            heads,
            traffic: Traffic::default(),
            is_writing: AtomicBool::new(false),
        });
        // Pingora carries this digest to every request: it is how the hooks find the connection.
        let answer = ResponseHeader::build(200, Some(0)).expect("200 is a status");
        let user_data: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(&connection));
        let digest = Arc::new(ProxyDigest::new(Box::new(answer), Some(user_data)));
        // Without it a slow client costs more, and one that is gone is noticed late.
        let _ = socket::settle(connection.socket, terms.gone);
        let stream = Paced::new(stream, connection.socket, terms.answer);
        Self { client: Some(Client { stream, place }), connection, digest, inlet }
    }

    /// What the client speaks: agreed on with TLS, or seen by its first bytes.
    async fn speaks(&mut self) -> io::Result<Speaks> {
        if self.get_ssl_digest().is_some() {
            let is_http2 = self.connection.is_http2();
            return Ok(if is_http2 { Speaks::Http2 } else { Speaks::Http1 });
        }
        let client = self.client.as_mut().expect("only the drop takes it");
        let speaks = self.inlet.peek(&mut client.stream.stream).await?;
        self.connection.http2.store(speaks == Speaks::Http2, Ordering::Relaxed);
        Ok(speaks)
    }

    /// Says in HTTP/2 that this was none.
    async fn refuse_preface(&mut self) {
        let stream = self.stream();
        // Heard or not, it is over.
        if stream.write_all(http2::BAD_PREFACE).await.is_ok() {
            let _ = AsyncWriteExt::shutdown(stream).await;
            inlet::linger(stream).await;
        }
    }

    fn paced(&mut self) -> &mut Paced<Stream> {
        &mut self.client.as_mut().expect("only the drop takes it").stream
    }

    /// Whether the client is waited for, after a write that came to this.
    fn note_wait<T>(&self, write: Poll<T>) -> Poll<T> {
        self.connection.is_writing.store(write.is_pending(), Ordering::Relaxed);
        write
    }

    fn stream(&mut self) -> &mut Stream {
        &mut self.paced().stream
    }

    fn stream_ref(&self) -> &Stream {
        &self.client.as_ref().expect("only the drop takes it").stream.stream
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.inlet.give(buf) {
            return Poll::Ready(Ok(()));
        }
        if let Some(takeover) = this.connection.takeover.get() {
            takeover.client_is_quiet();
            return Poll::Pending;
        }
        let in_request = this.connection.in_request.load(Ordering::Relaxed);
        let client = this.client.as_mut().expect("only the drop takes it");
        let before = buf.filled().len();
        let read = this.inlet.poll_read(cx, &mut client.stream.stream, in_request, buf);
        let came = buf.filled().len() - before;
        this.connection.traffic.read.fetch_add(came as u64, Ordering::Relaxed);
        read
    }
}

impl Peek for Guarded {}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(self.paced()).poll_write(cx, buf);
        let write = self.connection.traffic.wrote(write);
        self.note_wait(write)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(self.paced()).poll_flush(cx);
        self.note_wait(flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.takeover.get().is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(self.paced()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(self.paced()).poll_write_vectored(cx, bufs);
        let write = self.connection.traffic.wrote(write);
        self.note_wait(write)
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
            if self.inlet.lingers() {
                inlet::linger(self.stream()).await;
            }
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
