//! What changed outside: the difference between one listing and the next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::broadcast;

use super::{Shared, Sight};
use crate::{
    engine::{EngineEvent, Error, Health, Instance, InstanceState, Life},
    session::SessionId,
};

/// Events that a slow subscriber may be behind; then it is told to list everything.
const EVENTS_MAX: usize = 1024;

/// What was last seen of the outside, and who wants to know when it changes.
#[derive(Debug, Default)]
pub(super) struct Outside {
    seen: Mutex<Seen>,
    told: OnceLock<broadcast::Sender<EngineEvent>>,
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

/// The poll begins with its first subscriber.
pub(super) fn stream(shared: &Arc<Shared>) -> BoxStream<'static, EngineEvent> {
    let mut told = None;
    let sender = shared.outside.told.get_or_init(|| {
        let (sender, receiver) = broadcast::channel(EVENTS_MAX);
        told = Some(receiver);
        let polling = poll(Arc::clone(shared), sender.clone());
        shared.tasks.spawn(shared.closing.clone().run_until_cancelled_owned(polling));
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

async fn poll(shared: Arc<Shared>, told: broadcast::Sender<EngineEvent>) {
    let tell = |event| drop(told.send(event)); // no subscriber is no loss
    let mut failed = None;
    loop {
        tokio::time::sleep(shared.config.poll).await;
        shared.outside.begin_listing();
        match shared.list().await {
            Ok(listed) => {
                let changed = shared.outside.changes(listed);
                if failed.take().is_some() {
                    tracing::info!("the command engine lists again");
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
        tracing::warn!(%error, "the command engine cannot list: deaths go unnoticed");
    }
    *failed = Some(error);
}
