//! TLS for the readiness probe. It asks whether the instance answers and trusts nothing it hears, so
//! it takes any certificate, except where it sends headers of the route, which may be secret. The
//! edge checks certificates where it forwards.

use std::{
    io,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    WantsVerifier,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Which certificates count.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust {
    /// All: nothing secret is sent.
    Anyone,
    /// Those that are valid for the name, by the authorities of the system.
    System,
}

static ANYONE: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let any = Arc::new(AnyCertificate(Arc::new(ring::default_provider())));
    let config = builder().dangerous().with_custom_certificate_verifier(any);
    Arc::new(config.with_no_client_auth())
});

static SYSTEM: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(builder().with_root_certificates(roots).with_no_client_auth())
});

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports rustls's default versions")
}

/// A handshake that asks for `sni`.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    sni: &str,
    trust: Trust,
) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
    let config = match trust {
        Trust::Anyone => &ANYONE,
        Trust::System => &SYSTEM,
    };
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
