//! Dormouse's admin API, as far as a measurement needs it: put a session to sleep, see what it does.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hyper::{Method, StatusCode, header::HeaderValue};
use serde_json::Value;
use tokio::net::UnixStream;

use crate::{
    cli::Unmeasured,
    client::{Connection, Dialled, Fault},
    target::{Place, Reach, Target},
};

/// For one call.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Between two looks at a session that is falling asleep.
const LOOK: Duration = Duration::from_millis(2);

/// Where the admin API of one server is.
#[derive(Clone, Debug)]
pub struct Admin {
    at: At,
    token: Option<HeaderValue>,
}

#[derive(Clone, Debug)]
enum At {
    Tcp(Target),
    Unix(PathBuf),
}

impl Admin {
    /// `http://127.0.0.1:9900` or `unix:/path`. A token is read from its file, and never shown.
    pub fn new(url: &str, token: Option<&std::path::Path>, owned: bool) -> anyhow::Result<Self> {
        let at = match url.strip_prefix("unix:") {
            Some(path) => At::Unix(path.into()),
            None => {
                let reach = Reach { i_own_this_target: owned, ..Reach::default() };
                At::Tcp(Target::new(url.trim_end_matches('/'), &reach, "admin")?)
            }
        };
        let token = token.map(|file| {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))
                .ok()
                .with_context(|| format!("{} holds no token", file.display()))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(Self { at, token: token.transpose()? })
    }

    /// Whether it may be asked, and answers.
    pub async fn check(&self) -> anyhow::Result<()> {
        if let At::Tcp(target) = &self.at {
            target.check().await?;
        }
        let call = self.call(Method::GET, "/v1/sessions?limit=1").await;
        let (status, _) = call.map_err(|fault| Unmeasured(format!("no admin API: {fault}")))?;
        ensure!(status.is_success(), "the admin API answers {status}: --admin-token-file?");
        Ok(())
    }

    async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, Value), Fault> {
        let (mut connection, place) = match &self.at {
            At::Tcp(target) => {
                let place = target.place(0).map_err(|e| Fault::Resolve(e.to_string()))?;
                (Connection::open(target, &place, CALL_MAX).await?, place)
            }
            At::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|_| Fault::Connect)?;
                let dialled = Dialled::default();
                let connection = Connection::over(Box::new(stream), false, "http", dialled).await?;
                let local = "localhost".to_owned();
                let dial = (local.clone(), 0);
                let place = Place { authority: local.clone(), host: local, path: "/".into(), dial };
                (connection, place)
            }
        };
        connection.authorization.clone_from(&self.token);
        let place = Place { path: path.to_owned(), ..place };
        let (status, answer) = connection.ask(method, &place, CALL_MAX).await?;
        Ok((status, serde_json::from_slice(&answer.body).unwrap_or_default()))
    }

    /// The session as the edge sees it; `None` when nobody has asked for it yet.
    pub async fn session(&self, host: &str) -> Result<Option<Value>, Fault> {
        let (status, session) = self.call(Method::GET, &format!("/v1/sessions/{host}")).await?;
        match status {
            StatusCode::NOT_FOUND if session["type"] == "urn:dormouse:no_such_session" => Ok(None),
            status if status.is_success() => Ok(Some(session)),
            status => Err(Fault::NotReset(format!("admin API: {status}"))),
        }
    }

    /// One order to sleep; whether it was taken.
    pub async fn order_sleep(&self, host: &str, depth: &str) -> Result<bool, Fault> {
        let path = format!("/v1/sessions/{host}/sleep?to={depth}");
        let (status, problem) = self.call(Method::POST, &path).await?;
        match status {
            status if status.is_success() => Ok(true),
            // In use, or nobody has asked for it yet.
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
            status => {
                let detail = problem["detail"].as_str().unwrap_or_default();
                Err(Fault::NotReset(format!("admin API: {status} {detail}")))
            }
        }
    }

    /// Puts a session to sleep and waits until it is, as deep as that.
    pub async fn sleep(&self, host: &str, depth: &str, limit: Duration) -> Result<(), Fault> {
        let end = Instant::now() + limit;
        let mut ordered = false;
        loop {
            match self.session(host).await? {
                None => return Ok(()),
                Some(session) if session["state"] == "asleep" && session["depth"] == depth => {
                    return Ok(());
                }
                // Asleep at another depth: the way there leads through being awake.
                Some(session) if session["state"] == "asleep" => {
                    self.call(Method::POST, &format!("/v1/sessions/{host}/wake")).await?;
                    ordered = false;
                }
                Some(session) => ordered &= session["state"] == "stopping",
            }
            if !ordered {
                ordered = self.order_sleep(host, depth).await?;
            }
            if end < Instant::now() {
                return Err(Fault::NotReset(format!("not {depth} in {limit:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
