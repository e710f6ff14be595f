//! Who puts to sleep, and who orders certificates: the process that has the state folder's lock,
//! unless it hands over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Context as _;

use super::lock::StateLock;
use crate::{acme::Acme, fleet::Fleet};

/// While another process drains, its requests hold leases that this one cannot see, and the other
/// way round: neither puts anything to sleep.
pub(super) struct Custody {
    fleet: Arc<Fleet>,
    acme: Option<Arc<Acme>>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Once it is ours it stays ours until the process ends.
    lock: Option<StateLock>,
    hands_over: bool,
}

impl Custody {
    /// Has none yet.
    pub(super) fn new(fleet: Arc<Fleet>, acme: Option<Arc<Acme>>) -> Arc<Self> {
        let custody = Self { fleet, acme, held: Mutex::default() };
        custody.change(|_| {});
        Arc::new(custody)
    }

    /// The state folder is ours.
    pub(super) fn take(&self, lock: StateLock) {
        self.change(|held| held.lock = Some(lock));
    }

    /// Takes it as soon as the process before has ended.
    pub(super) fn take_when_alone(self: Arc<Self>, mut lock: StateLock) -> anyhow::Result<()> {
        let wait = move || match lock.wait() {
            Ok(()) => {
                tracing::info!("the process before has ended: idle sessions sleep from now on");
                self.take(lock);
            }
            Err(error) => tracing::error!(
                %error, "cannot lock the state folder: nothing will sleep, and nothing is ordered"
            ),
        };
        let thread = thread::Builder::new().name("state-lock".into());
        thread.spawn(wait).map(drop).context("cannot make a thread")
    }

    /// Whether this process hands over. It has custody again when that fails.
    pub(super) fn hand_over(&self, hands_over: bool) {
        self.change(|held| held.hands_over = hands_over);
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut held);
        let has_custody = held.lock.is_some() && !held.hands_over;
        self.fleet.set_may_sleep(has_custody);
        self.acme.iter().for_each(|acme| acme.set_may_order(has_custody));
    }
}
