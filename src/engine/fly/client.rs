//! One request to the Machines API: limited in rate, time and size, and never with its token in an
//! error.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Hyper, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Config;
use crate::engine::{Error, without};

/// The most that an answer may be long: a list of some thousand machines.
const ANSWER_MAX: usize = 16 << 20;
/// The most of an answer that an error repeats, in characters.
const TEXT_MAX: usize = 300;
const IDLE_MAX: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// A `wait` may take a minute; anything silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(65);

pub(super) struct Client {
    http: Hyper<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    token: HeaderValue,
    interval: Duration,
    /// When the next request of a machine and action may go. Holds those of the last interval.
    turns: Mutex<HashMap<String, Arc<Turn>>>,
}

/// When the next may go; held by who is it.
type Turn = tokio::sync::Mutex<Instant>;

/// Why there is no good answer; without a status, there was none at all.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: Option<u16>,
    /// What Fly calls it, where it does: `insufficient_capacity`, `name_taken`.
    word: String,
    text: String,
}

impl Refused {
    fn unreachable(text: impl Into<String>) -> Self {
        Self { status: None, word: String::new(), text: text.into() }
    }

    /// `{"error": …, "status": …}`, or the beginning of whatever it is.
    fn answered(status: u16, answer: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(answer).unwrap_or_default();
        let text = match value["error"].as_str() {
            Some(text) => text.to_owned(),
            None => String::from_utf8_lossy(answer).into_owned(),
        };
        let word = value["status"].as_str().unwrap_or_default().to_owned();
        Self { status: Some(status), word, text }
    }

    /// Leased by another, of another version, in a state that passes, or without room for now.
    pub(super) fn is_in_the_way(&self) -> bool {
        matches!(self.status, Some(408 | 409 | 412 | 423))
            || self.word == "insufficient_capacity"
            || self.says(&["lease", "leased", "leases", "replacing", "replaced"])
            || (self.says(&["insufficient"])
                && self.says(&["memory", "cpu", "cpus", "resources", "capacity"]))
    }

    pub(super) fn is_name_taken(&self) -> bool {
        self.word == "name_taken" || (self.says(&["name"]) && self.says(&["already"]))
    }

    /// Whether it is a refusal with one of these words.
    fn says(&self, words: &[&str]) -> bool {
        let text = self.text.to_lowercase();
        let mut said = text.split(|c: char| !c.is_alphanumeric());
        matches!(self.status, Some(400 | 422)) && said.any(|word| words.contains(&word))
    }

    /// What an error repeats of it.
    pub(super) fn told(&self) -> String {
        let plain = self.text.chars().map(|c| if c.is_control() { ' ' } else { c });
        plain.take(TEXT_MAX).collect()
    }

    /// Without any of these values, before one is cut in two and no longer known.
    pub(super) fn without(self, secrets: &[String]) -> Self {
        Self { text: without(self.text, secrets), ..self }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let text = refused.told();
        match refused.status {
            None => Error::Unreachable(text),
            Some(401 | 403) => {
                Error::Invalid(format!("Fly does not take the token for this app: {text}"))
            }
            Some(404) => Error::Missing(format!("Fly: {text}")),
            Some(408 | 409 | 412 | 423) => Error::Conflict(format!("Fly: {text}")),
            Some(400 | 422) => Error::Invalid(format!("Fly: {text}")),
            Some(status @ (429 | 500..)) => {
                Error::Unreachable(format!("answered {status}: {text}"))
            }
            Some(status) => Error::Failed(format!("Fly answered {status}: {text}")),
        }
    }
}

impl Client {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let mut token =
            HeaderValue::from_str(&format!("Bearer {}", config.token.trim())).map_err(|_| {
                Error::Invalid("the token of Fly has a character that cannot be".into())
            })?;
        token.set_sensitive(true);
        let base = format!("{}/apps/{}", config.endpoint.trim_end_matches('/'), config.app);
        base.parse::<http::Uri>()
            .map_err(|e| Error::Invalid(format!("the endpoint `{}`: {e}", config.endpoint)))?;
        let turns = Mutex::default();
        Ok(Self { http: https(), base, token, interval: config.interval, turns })
    }

    /// `id` may be empty for the app's machines, `action` for the machine itself.
    pub(super) async fn call(
        &self,
        method: Method,
        id: &str,
        action: &str,
        query: &str,
        body: Option<Value>,
        nonce: Option<&str>,
    ) -> Result<Value, Refused> {
        let parts = ["machines", id, action].into_iter().filter(|part| !part.is_empty());
        self.patiently(&method, &parts.collect::<Vec<_>>().join("/"), query, body, nonce).await
    }

    /// The app's volumes.
    pub(super) async fn volumes(
        &self,
        method: Method,
        body: Option<Value>,
    ) -> Result<Value, Refused> {
        self.patiently(&method, "volumes", "", body, None).await
    }

    /// One request in its turn, and again where it came too soon.
    async fn patiently(
        &self,
        method: &Method,
        of: &str,
        query: &str,
        body: Option<Value>,
        nonce: Option<&str>,
    ) -> Result<Value, Refused> {
        let path = format!("{}/{of}", self.base);
        loop {
            self.turn(&format!("{method} {of}")).await;
            let answered = timeout(SILENCE, self.ask(method, &path, query, body.as_ref(), nonce));
            let answered = answered.await;
            match answered.unwrap_or_else(|_| Err(Refused::unreachable("no answer"))) {
                // Nothing was done: the same again is safe, and the caller's limit ends it.
                Err(refused) if refused.status == Some(429) => sleep(self.interval).await,
                answered => return answered,
            }
        }
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: Option<&Value>,
        nonce: Option<&str>,
    ) -> Result<Value, Refused> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let mut request = Request::builder().method(method).uri(format!("{path}{query}"));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(nonce) = nonce {
            request = request.header("fly-machine-lease-nonce", nonce);
        }
        let request = request.header(header::AUTHORIZATION, self.token.clone());
        let request = request
            .body(Full::new(body))
            .map_err(|e| Refused::unreachable(format!("not asked: {e}")))?;
        let answer = self.http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Refused::unreachable(format!("{error}{}", cause.unwrap_or_default()))
        })?;
        let status = answer.status();
        let read = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let read =
            read.map_err(|_| Refused::unreachable("its answer was cut off, or is too long"))?;
        let read = read.to_bytes();
        if !status.is_success() {
            return Err(Refused::answered(status.as_u16(), &read));
        }
        if read.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&read)
            .map_err(|e| Refused::unreachable(format!("half an answer, or none of JSON: {e}")))
    }

    /// Waits until this action may be asked of this machine again: one after the other, and who
    /// gives up takes no turn.
    async fn turn(&self, of: &str) {
        let turn = {
            let now = Instant::now();
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for it, and its time has come.
            let is_over = |turn: &Arc<Turn>| {
                Arc::strong_count(turn) == 1 && turn.try_lock().is_ok_and(|next| *next <= now)
            };
            turns.retain(|_, turn| !is_over(turn));
            let turn = turns.entry(of.to_owned()).or_insert_with(|| Arc::new(Turn::new(now)));
            Arc::clone(turn)
        };
        let mut next = turn.lock().await;
        sleep_until(*next).await;
        *next = Instant::now() + self.interval;
    }
}

fn https() -> Hyper<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut roots = rustls::RootCertStore::empty();
    // Without any, every call fails, and its failure says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
    Hyper::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_MAX)
        .build(https.wrap_connector(tcp))
}
