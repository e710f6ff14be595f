//! The TLS handshake with a client: which certificate the name in its ClientHello gets, and the
//! stream that comes of it.
//!
//! Ours and not Pingora's, because a PROXY header stands before it, because it is over within
//! `timeouts.handshake`, and because a wake may begin in the middle of it.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType, raw_connect::ProxyDigest, tls::SslDigest,
};
use rustls::{
    ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{
        Acceptor, ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
    },
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};

use crate::{
    acme::Acme,
    certs::{Certs, Offer},
    config::{ClientAuth, Tls, TlsVersion},
    route::canonical_host,
};

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// RFC 8737.
const ACME: &[u8] = b"acme-tls/1";
/// The fatal alert `unrecognized_name`, as a record.
const UNKNOWN_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Why clients cannot be met with TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities cannot be used.
    #[error("{}: {wrong} (client_ca)", file.display())]
    ClientCa {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
    /// Something that the operator cannot change.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// How a handshake ended without a client to serve.
#[derive(Debug)]
pub(super) enum End {
    /// There is no certificate for the name.
    UnknownName,
    /// It was an answer to an ACME challenge.
    Challenge,
    /// The client left, spoke nonsense, or would not be spoken to.
    Failed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// The handshakes of one address.
pub(super) struct Handshakes {
    certs: Arc<Certs>,
    /// Without a certificate: each handshake gets its own.
    config: ServerConfig,
}

/// What the handshake has told of the client.
#[derive(Debug)]
pub(super) struct Told {
    /// The canonical name that it asked for; `None` where it named none.
    pub(super) server_name: Option<Box<str>>,
    /// The certificate that it has shown, checked against `client_ca`.
    pub(super) certificate: Option<CertificateDer<'static>>,
    pub(super) http2: bool,
}

impl Handshakes {
    pub(super) fn new(
        certs: Arc<Certs>,
        tls: &Tls,
        client_auth: Option<&ClientAuth>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match tls.min_version {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let wrong = |wrong: String| TlsError::ClientCa { file: auth.ca.clone(), wrong };
                let roots = Arc::new(authorities(auth).map_err(wrong)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier =
                    if auth.required { verifier } else { verifier.allow_unauthenticated() };
                let built = verifier.build();
                let wrong = |error: VerifierBuilderError| wrong(error.to_string());
                builder.with_client_cert_verifier(built.map_err(wrong)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(NoCertificate));
        // Of this address alone: a ticket of one that asks for no client certificate must not open
        // one that does.
        config.ticketer = ring::Ticketer::new()?;
        // Ours is the better judge of what is strong; an old client may list the weakest first.
        config.ignore_client_order = true;
        config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
        Ok(Self { certs, config })
    }

    /// Shakes hands with a client. `hello` is told the canonical name as soon as it is known to
    /// have a certificate; `local` stands in for a name where the client says none. Where there is
    /// no certificate yet, `acme` may get one.
    pub(super) async fn shake<T>(
        &self,
        stream: Stream,
        local: Option<IpAddr>,
        acme: Option<&Acme>,
        hello: impl FnOnce(&str) -> T,
    ) -> Result<(Stream, Told, Option<T>), End> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let named = start.client_hello().server_name().map(str::to_owned);
        let server_name = named.as_deref().and_then(canonical_host);
        if is_challenge(&start.client_hello()) {
            return Err(self.answer_challenge(start, server_name.as_deref()).await);
        }
        let offer = match (&server_name, local) {
            (Some(name), _) => self.certs.resolve(name),
            (None, Some(address)) if named.is_none() => self.certs.resolve(&address.to_string()),
            (None, _) => None,
        };
        let offer = match (offer, &server_name, acme) {
            (None, Some(name), Some(acme)) if acme.obtain(name).await => self.certs.resolve(name),
            (offer, ..) => offer,
        };
        let Some(offer) = offer else { return Err(refuse(start).await) };
        let told = server_name.as_deref().map(hello);
        let stream = start.into_stream(Arc::new(self.config(offer))).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).cloned();
        let http2 = session.alpn_protocol() == Some(H2);
        let server_name = server_name.map(|name| name.as_ref().into());
        let digest = Arc::new(digest(session));
        let stream: Stream = Box::new(TlsClient { stream: Box::new(stream), digest, http2 });
        Ok((stream, Told { server_name, certificate, http2 }, told))
    }

    fn config(&self, offer: Offer) -> ServerConfig {
        let mut config = self.config.clone();
        config.cert_resolver = Arc::new(Offered(offer));
        config
    }

    /// RFC 8737: the handshake itself is the answer; nothing is said after it.
    async fn answer_challenge(&self, start: StartHandshake<Stream>, name: Option<&str>) -> End {
        let Some(key) = name.and_then(|name| self.certs.challenge(name)) else {
            return refuse(start).await;
        };
        let mut config = self.config(key.into());
        config.alpn_protocols = vec![ACME.to_vec()];
        match start.into_stream(Arc::new(config)).await {
            Ok(mut stream) => {
                // Whether it hears the goodbye is nothing to us.
                let _ = stream.shutdown().await;
                End::Challenge
            }
            Err(error) => End::Failed(error),
        }
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshakes").finish_non_exhaustive()
    }
}

/// Whether the one protocol that it speaks is the challenge's.
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello
        .alpn()
        .is_some_and(|mut protocols| protocols.next() == Some(ACME) && protocols.next().is_none())
}

/// Says why, as RFC 6066 has it; rustls would say `access_denied`.
async fn refuse(mut start: StartHandshake<Stream>) -> End {
    let told = async {
        start.io.write_all(&UNKNOWN_NAME).await?;
        AsyncWriteExt::shutdown(&mut start.io).await
    };
    // It is refused, whether it hears of it or not.
    let _ = told.await;
    End::UnknownName
}

fn authorities(auth: &ClientAuth) -> Result<RootCertStore, String> {
    let pem = fs::read(&auth.ca).map_err(|error| format!("cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("not an authority: {error}"))?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    Ok(roots)
}

fn digest(session: &ServerConnection) -> SslDigest {
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    };
    SslDigest::new(cipher.unwrap_or_default(), version, None, None, Vec::new())
}

/// The certificates of the name in the ClientHello. Chosen among here, where rustls has taken out
/// the signatures that do not go with the client's cipher suites.
#[derive(Debug)]
struct Offered(Offer);

impl ResolvesServerCert for Offered {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.choose(hello.signature_schemes())
    }
}

/// Before there is a ClientHello.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// A client behind TLS. Boxed: rustls keeps more than a kilobyte, and the stream is moved around.
struct TlsClient {
    stream: Box<TlsStream<Stream>>,
    digest: Arc<SslDigest>,
    http2: bool,
}

impl TlsClient {
    fn socket(&self) -> &Stream {
        self.stream.get_ref().0
    }
}

impl AsyncRead for TlsClient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsClient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for TlsClient {
    async fn shutdown(&mut self) {
        // A client that is gone hears no goodbye.
        let _ = AsyncWriteExt::shutdown(&mut self.stream).await;
    }
}

impl UniqueID for TlsClient {
    fn id(&self) -> UniqueIDType {
        self.socket().id()
    }
}

impl Ssl for TlsClient {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.digest))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.http2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for TlsClient {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.socket().get_timing_digest()
    }
}

impl GetProxyDigest for TlsClient {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for TlsClient {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket().get_socket_digest()
    }
}

impl Peek for TlsClient {}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(f)
    }
}
