//! Asking others over HTTP(S): key sets, and services that decide. Follows no redirect, keeps few
//! connections, and reads no more than it is told to.

use std::{fmt, sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

/// Connections that are kept for the next question, per service.
const IDLE_MAX: usize = 32;
const IDLE_FOR: Duration = Duration::from_secs(30);

type Https = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// The client, made when it is first needed: it reads the system's certificates.
pub(super) struct Fetch(OnceLock<Https>);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("not asked: {0}")]
    Request(#[from] http::Error),
    #[error("not reached: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    TimedOut,
    #[error("answered {0}")]
    Status(http::StatusCode),
    #[error("its answer was cut off, or is too long")]
    Body,
}

impl Fetch {
    pub(super) fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The head of the answer to a GET, whatever it says.
    pub(super) async fn get(
        &self,
        uri: Uri,
        headers: HeaderMap,
        within: Duration,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut request = Request::get(uri).body(Empty::new())?;
        *request.headers_mut() = headers;
        match timeout(within, self.0.get_or_init(client).request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(FetchError::Unreachable(in_full(&error))),
            Err(_) => Err(FetchError::TimedOut),
        }
    }

    /// A whole document of at most `max` bytes.
    pub(super) async fn document(
        &self,
        uri: Uri,
        max: usize,
        within: Duration,
    ) -> Result<Bytes, FetchError> {
        let reads = async {
            let answer = self.get(uri, HeaderMap::new(), within).await?;
            if !answer.status().is_success() {
                return Err(FetchError::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), max).collect().await;
            body.map(|body| body.to_bytes()).map_err(|_| FetchError::Body)
        };
        timeout(within, reads).await.unwrap_or(Err(FetchError::TimedOut))
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetch")
    }
}

fn client() -> Https {
    let mut roots = rustls::RootCertStore::empty();
    // Without any, whatever is asked over HTTPS fails, and its failure says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(https)
}

/// With its causes: the outermost only says that it failed.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    text
}
