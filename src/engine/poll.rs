//! What changed outside, for engines whose backend tells of nothing: the difference between one
//! listing and the next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{EngineEvent, Error, Health, Instance, InstanceState, Life};
use crate::session::SessionId;

/// What tells one listing from the next.
type Sight = (InstanceState, Option<Life>);

/// Events that a slow subscriber may be behind; then it is told to list everything.
const EVENTS_MAX: usize = 1024;

/// What was last seen of the outside, and who wants to know when it changes.
#[derive(Debug, Default)]
pub(super) struct Outside {
    seen: Mutex<Seen>,
    told: OnceLock<broadcast::Sender<EngineEvent>>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Seen {
    listed: HashMap<SessionId, Sight>,
    /// Not compared with a listing that began before them.
    started: HashMap<SessionId, Sight>,
}

impl Outside {
    /// So that a death before the next listing is seen as well.
    pub(super) fn started(&self, session: &SessionId, life: &Life) {
        let sight = (InstanceState::Running(Health::Unchecked), Some(life.clone()));
        self.lock().started.insert(session.clone(), sight);
    }

    fn begin_listing(&self) {
        let mut seen = self.lock();
        let started = std::mem::take(&mut seen.started);
        seen.listed.extend(started);
    }

    fn changes(&self, listed: Vec<Instance>) -> Vec<SessionId> {
        let now =
            listed.into_iter().map(|instance| (instance.session, (instance.state, instance.life)));
        let now: HashMap<_, _> = now.collect();
        let before = std::mem::replace(&mut self.lock().listed, now.clone());
        let gone = before.keys().filter(|session| !now.contains_key(*session));
        let other = now.iter().filter(|(session, sight)| before.get(*session) != Some(*sight));
        gone.chain(other.map(|(session, _)| session)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The poll begins with its first subscriber and ends with `closing`.
pub(super) fn stream(
    outside: &Arc<Outside>,
    closing: &CancellationToken,
    every: Duration,
    list: impl Fn() -> BoxFuture<'static, Result<Vec<Instance>, Error>> + Send + Sync + 'static,
) -> BoxStream<'static, EngineEvent> {
    let mut told = None;
    let sender = outside.told.get_or_init(|| {
        let (sender, receiver) = broadcast::channel(EVENTS_MAX);
        told = Some(receiver);
        let polling = poll(Arc::clone(outside), sender.clone(), every, list);
        outside.tasks.spawn(closing.clone().run_until_cancelled_owned(polling));
        sender
    });
    let told = told.unwrap_or_else(|| sender.subscribe());
    futures::stream::unfold(told, |mut told| async {
        match told.recv().await {
            Ok(event) => Some((event, told)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some((EngineEvent::Resync, told)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    })
    .boxed()
}

async fn poll(
    outside: Arc<Outside>,
    told: broadcast::Sender<EngineEvent>,
    every: Duration,
    list: impl Fn() -> BoxFuture<'static, Result<Vec<Instance>, Error>>,
) {
    let tell = |event| drop(told.send(event)); // no subscriber is no loss
    let mut failed = None;
    loop {
        tokio::time::sleep(every).await;
        outside.begin_listing();
        match list().await {
            Ok(listed) => {
                let changed = outside.changes(listed);
                if failed.take().is_some() {
                    tracing::info!("the engine lists again");
                    tell(EngineEvent::Resync);
                }
                changed.into_iter().for_each(|session| tell(EngineEvent::Changed(session)));
            }
            Err(error) => log_once(&mut failed, error),
        }
    }
}

/// Once for an outage, and again when it becomes another one.
fn log_once(failed: &mut Option<Error>, error: Error) {
    if failed.as_ref() != Some(&error) {
        tracing::warn!(%error, "an engine cannot list: deaths go unnoticed");
    }
    *failed = Some(error);
}
