//! What happens to containers, as told by the daemon: which session to look at again.
//!
//! Ends never, whatever the daemon does: it reconnects with patience and says that events may have
//! been missed. An event says *look*, never *what*.

use std::{
    collections::HashMap,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{errors::Error as ApiError, models::EventMessage};
use futures::{
    StreamExt,
    future::{Either, select},
    stream::{self, BoxStream, Peekable},
};
use tokio::time::{sleep, timeout};

use super::{client::Client, found::Found, template};
use crate::{
    engine::{EngineEvent, Error},
    session::{SessionId, Spec},
};

/// Without a filter, health checks alone would flood the stream.
const ACTIONS: [&str; 9] = [
    "start",
    "restart",
    "die",
    "stop",
    "pause",
    "unpause",
    "destroy",
    "remove", // Podman's word for destroy
    "health_status",
];
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that is silent for so long may be dead without having ended: a new one is opened.
const SILENCE: Duration = Duration::from_secs(300);
/// A daemon, or what stands before it, refuses sooner than that.
const REFUSAL: Duration = Duration::from_secs(1);

/// The containers that routes name: they carry no label of ours, so events do not say whose they
/// are. Holds an entry for a session only once its container was found.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<HashMap<String, Vec<SessionId>>>);

impl Watched {
    pub(super) fn add(&self, session: &SessionId, found: &Found, spec: &Spec) {
        let label = spec.docker.label.iter().map(|label| format!("label {label}"));
        let name = format!("name {}", found.name);
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in label.chain([name]) {
            let sessions = watched.entry(key).or_default();
            if !sessions.contains(session) {
                sessions.push(session.clone());
            }
        }
    }

    fn sessions(&self, attributes: &HashMap<String, String>) -> Vec<SessionId> {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.is_empty() {
            return Vec::new();
        }
        let keys = attributes.iter().map(|(key, value)| match key.as_str() {
            "name" => format!("name {}", value.trim_start_matches('/')),
            _ => format!("label {key}={value}"),
        });
        let mut sessions: Vec<_> =
            keys.filter_map(|key| watched.get(&key)).flatten().cloned().collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }
}

/// All events of one daemon, over one connection at a time.
pub(super) fn stream(
    client: Arc<Client>,
    owner: String,
    watched: Arc<Watched>,
) -> BoxStream<'static, EngineEvent> {
    let state = State::Closed;
    let feed = Feed {
        client,
        owner,
        watched,
        reached: false,
        is_deaf: false,
        backoff: BACKOFF_MIN,
        state,
    };
    stream::unfold(feed, |mut feed| async move { Some((feed.next().await, feed)) })
        .map(stream::iter)
        .flatten()
        .boxed()
}

/// A call of the daemon has ended; after a refusal, which may be slower than that, a while.
async fn settled(client: &Client, is_deaf: bool) -> Result<(), Error> {
    if is_deaf {
        sleep(REFUSAL).await;
        return Ok(());
    }
    client.now().await.map(drop)
}

struct Feed {
    client: Arc<Client>,
    owner: String,
    watched: Arc<Watched>,
    /// Whether the daemon was ever there: until then no session may want it.
    reached: bool,
    /// Whether the daemon refuses to tell.
    is_deaf: bool,
    backoff: Duration,
    state: State,
}

enum State {
    Closed,
    Open(Peekable<BoxStream<'static, Result<EventMessage, ApiError>>>),
}

impl Feed {
    async fn next(&mut self) -> Vec<EngineEvent> {
        let State::Open(events) = &mut self.state else { return self.open().await };
        match timeout(SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => {
                self.backoff = BACKOFF_MIN;
                self.changed(event).into_iter().map(EngineEvent::Changed).collect()
            }
            Ok(Some(Err(error))) => {
                let error = self.client.stream_error(error);
                self.failed(error).await
            }
            Ok(None) => self.lost("the connection ended").await,
            Err(_) => {
                self.backoff = BACKOFF_MIN;
                self.state = State::Closed;
                Vec::new()
            }
        }
    }

    /// Everything from before `since` is told by the list that `Resync` asks for, everything after
    /// by the daemon, which keeps its latest events: nothing is lost in between.
    async fn open(&mut self) -> Vec<EngineEvent> {
        let opened = async {
            let since = self.client.now().await?;
            let mut events = self.client.events(&since, &ACTIONS).await?.peekable();
            // The request is sent when the stream is first asked, and nothing tells when it was
            // taken: by the time that another call has its answer, it was. Later would be too late:
            // a daemon that restarted meanwhile has forgotten what it did before.
            let asked = pin!(async {
                let first = Pin::new(&mut events).peek().await;
                first.is_some_and(Result::is_err)
            });
            let is_refused = match select(asked, pin!(settled(&self.client, self.is_deaf))).await {
                Either::Left((is_refused, _)) => is_refused,
                Either::Right((settled, _)) => settled.map(|()| false)?,
            };
            let first = if is_refused { events.next().await } else { None };
            match first {
                Some(Err(error)) => Err(self.client.stream_error(error)),
                _ => Ok(events),
            }
        };
        match opened.await {
            Ok(events) => {
                (self.reached, self.is_deaf) = (true, false);
                self.state = State::Open(events);
                vec![EngineEvent::Resync]
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn failed(&mut self, error: Error) -> Vec<EngineEvent> {
        match error {
            Error::Unreachable(_) | Error::Timeout { .. } => self.lost(&error.to_string()).await,
            error => self.refused(error).await,
        }
    }

    async fn lost(&mut self, error: &str) -> Vec<EngineEvent> {
        let endpoint = self.client.endpoint();
        // Once for an outage; what follows says the same.
        match (self.backoff == BACKOFF_MIN, self.reached) {
            (true, true) => tracing::warn!(%endpoint, error, "docker events lost"),
            (true, false) => tracing::info!(%endpoint, error, "no docker events yet"),
            (false, _) => {}
        }
        self.state = State::Closed;
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Vec::new()
    }

    /// It answers, and will not tell: what happens is found by looking.
    async fn refused(&mut self, error: Error) -> Vec<EngineEvent> {
        if self.is_deaf {
            sleep(self.backoff).await;
        } else {
            let endpoint = self.client.endpoint();
            tracing::warn!(%endpoint, %error, "docker events are refused: looking again and again");
        }
        self.is_deaf = true;
        self.state = State::Closed;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        vec![EngineEvent::Deaf(error.to_string())]
    }

    fn changed(&self, event: EventMessage) -> Vec<SessionId> {
        let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
        let ours = attributes.get(template::OWNER) == Some(&self.owner);
        let session = attributes.get(template::SESSION).filter(|_| ours);
        let ours = session.map(|host| SessionId::new(host.as_str()));
        let mut sessions = self.watched.sessions(&attributes);
        sessions.extend(ours);
        sessions
    }
}
