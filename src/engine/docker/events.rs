//! What happens to containers, as told by the daemon: which session to look at again.
//!
//! Ends never, whatever the daemon does: it reconnects with patience and says that events may have
//! been missed. An event says *look*, never *what*.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{errors::Error as ApiError, models::EventMessage};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{sleep, timeout};

use super::{client::Client, found::Found, template};
use crate::{
    engine::EngineEvent,
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
    let feed = Feed { client, owner, watched, backoff: BACKOFF_MIN, state: State::Closed };
    stream::unfold(feed, |mut feed| async move { Some((feed.next().await, feed)) })
        .map(stream::iter)
        .flatten()
        .boxed()
}

struct Feed {
    client: Arc<Client>,
    owner: String,
    watched: Arc<Watched>,
    backoff: Duration,
    state: State,
}

enum State {
    Closed,
    Open(BoxStream<'static, Result<EventMessage, ApiError>>),
}

impl Feed {
    async fn next(&mut self) -> Vec<EngineEvent> {
        let State::Open(events) = &mut self.state else { return self.open().await };
        match timeout(SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => {
                self.backoff = BACKOFF_MIN;
                self.changed(event).into_iter().map(EngineEvent::Changed).collect()
            }
            // Docker reports what it cannot tell as an error and goes on; so does a new connection.
            Ok(Some(Err(_)) | None) => {
                self.state = State::Closed;
                self.rest().await;
                Vec::new()
            }
            Err(_) => {
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
            self.client.events(&since, &ACTIONS).await
        };
        match opened.await {
            Ok(events) => {
                self.state = State::Open(events);
                vec![EngineEvent::Resync]
            }
            Err(_) => {
                self.rest().await;
                Vec::new()
            }
        }
    }

    async fn rest(&mut self) {
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
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
