//! How the ACME server is spoken to: HTTP/1.1 over TLS, every answer within a time and a size, and
//! what the server says of when to come back is remembered.

use std::{
    fmt,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

/// For one answer, from the connect to its last byte.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The longest chain is a few thousand bytes.
const BODY_MAX: usize = 1 << 20;
/// A server that asks for more than this is asked once more after it.
const CALM_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A client of one ACME server. A clone is the same client.
#[derive(Clone)]
pub(super) struct Wire {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    calm: Arc<Mutex<Option<SystemTime>>>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum NoTrust {
    /// The operator's file.
    #[error("acme.ca_file {0} has no certificate that can be used")]
    File(String),
    /// The system's.
    #[error(
        "the system trusts no authority (package ca-certificates), and there is no acme.ca_file"
    )]
    Nobody,
    /// rustls.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl Wire {
    /// Trusts whom the system trusts, and who is in `ca_file`.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, NoTrust> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            let broken = || NoTrust::File(path.display().to_string());
            let certificates = CertificateDer::pem_file_iter(path).map_err(|_| broken())?;
            let certificates: Vec<_> = certificates.filter_map(Result::ok).collect();
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(broken());
            }
        }
        if roots.is_empty() {
            return Err(NoTrust::Nobody);
        }
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, calm: Arc::default() })
    }

    /// When the server wants to be asked again, if it said so with its last refusal.
    pub(super) fn calm_until(&self) -> Option<SystemTime> {
        *self.calm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let other = |error| Error::Other(error);
        let answer = self.client.request(request).await.map_err(|error| other(error.into()))?;
        let (head, body) = answer.into_parts();
        self.note(head.status, &head.headers);
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(other)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)).into())
    }

    fn note(&self, status: StatusCode, headers: &HeaderMap) {
        let refuses =
            matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let after = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok());
        // The date form is rare, and our own wait will do.
        let after = after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        if refuses {
            *calm = after.map(|after| SystemTime::now() + after.min(CALM_MAX));
        } else if status.is_success() {
            *calm = None;
        }
    }
}

impl HttpClient for Wire {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let wire = self.clone();
        Box::pin(async move {
            let answer = timeout(ANSWER_MAX, wire.send(request)).await;
            answer.unwrap_or_else(|_| Err(Error::Other("the ACME server does not answer".into())))
        })
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_wish_to_be_left_alone_is_kept_until_it_is_content() {
        let ca = tempfile::NamedTempFile::new().expect("a file");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["ca.test".to_owned()]).expect("a name");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        std::fs::write(ca.path(), pem).expect("written");
        let wire = Wire::new(Some(ca.path())).expect("a client");
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, http::HeaderValue::from_static("3600"));
        wire.note(StatusCode::CREATED, &headers);
        assert_eq!(wire.calm_until(), None);
        wire.note(StatusCode::TOO_MANY_REQUESTS, &headers);
        assert!(SystemTime::now() < wire.calm_until().expect("it is kept"));
        wire.note(StatusCode::FORBIDDEN, &HeaderMap::new());
        assert!(wire.calm_until().is_some());
        wire.note(StatusCode::OK, &HeaderMap::new());
        assert_eq!(wire.calm_until(), None);
    }

    #[test]
    fn an_authority_that_is_none_is_said() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(matches!(Wire::new(Some(file.path())), Err(NoTrust::File(_))));
    }
}
