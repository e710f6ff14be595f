//! One request to a machine's API, over its unix socket: limited in time and size.
//!
//! Paths, bodies and answers are those of the official `firecracker.yaml`: 2xx without a body that
//! matters, or `{"fault_message": …}`.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};

use crate::engine::Error;

/// The most that an answer may be long.
const ANSWER_MAX: usize = 1 << 20;
/// The most of an answer that an error repeats, in characters.
const TEXT_MAX: usize = 300;
/// What takes longer hangs, where no other limit is given.
const QUICK_MAX: Duration = Duration::from_secs(10);

/// A machine's API.
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether it answers, and as a machine.
    pub(super) async fn answers(&self) -> Result<(), Error> {
        let said = self.call(Method::GET, "/", None, QUICK_MAX).await?;
        match said.get("state") {
            Some(_) => Ok(()),
            None => Err(Error::Failed("the machine's API says no state".to_owned())),
        }
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<(), Error> {
        self.call(Method::PUT, path, Some(body), QUICK_MAX).await.map(drop)
    }

    /// Boots what was put together.
    pub(super) async fn boot(&self) -> Result<(), Error> {
        self.put("/actions", &json!({ "action_type": "InstanceStart" })).await
    }

    /// Asks the guest to end: the keys that init takes for a restart, which ends a machine.
    pub(super) async fn press_keys(&self) -> Result<(), Error> {
        self.put("/actions", &json!({ "action_type": "SendCtrlAltDel" })).await
    }

    pub(super) async fn pause(&self) -> Result<(), Error> {
        self.set_state("Paused").await
    }

    pub(super) async fn resume(&self) -> Result<(), Error> {
        self.set_state("Resumed").await
    }

    async fn set_state(&self, state: &str) -> Result<(), Error> {
        let body = json!({ "state": state });
        self.call(Method::PATCH, "/vm", Some(&body), QUICK_MAX).await.map(drop)
    }

    /// What takes as long as a machine's memory takes to be written or read.
    pub(super) async fn put_slowly(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<(), Error> {
        self.call(Method::PUT, path, Some(body), limit).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, Error> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::Failed(format!("the machine's API, {method} {path}: {error}"))
        };
        let asked = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|e| broken(&e))?;
            let handshake = http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|e| broken(&e))?;
            let text = body.map(Value::to_string).unwrap_or_default();
            let request = Request::builder()
                .method(&method)
                .uri(path)
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(text)))
                .map_err(|e| broken(&e))?;
            let answer = async {
                let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
                Ok::<_, Error>((status, body.map_err(|e| broken(&e))?.to_bytes()))
            };
            // The connection is driven here and ends with the call.
            tokio::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                _ = connection => answer.await,
            }
        };
        let asked = timeout(limit, asked).await;
        let (status, body) =
            asked.map_err(|_| Error::Timeout { call: "the machine's API", after: limit })??;
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(said);
        }
        let why = said.get("fault_message").and_then(Value::as_str).unwrap_or("no word why");
        let why: String = why.chars().take(TEXT_MAX).collect();
        Err(Error::Failed(format!("the machine refused {method} {path}: {why}")))
    }
}
