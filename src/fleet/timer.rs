//! When each session's next deadline is: at most one entry a session, fired by one task.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, Weak},
    time::Instant,
};

use tokio::sync::Notify;

use super::cell::Cell;

type Entries = BTreeMap<(Instant, u64), Weak<Cell>>;

/// The queue. Bounded by the number of sessions.
#[derive(Debug, Default)]
pub(super) struct Timers {
    entries: Mutex<Entries>,
    sooner: Notify,
}

impl Timers {
    /// Replaces the session's entry at `old` by one at `at`.
    pub(super) fn arm(&self, id: u64, old: Option<Instant>, at: Instant, cell: Weak<Cell>) {
        let mut entries = self.lock();
        if let Some(old) = old {
            entries.remove(&(old, id));
        }
        let first = entries.first_key_value().is_none_or(|((first, _), _)| at < *first);
        entries.insert((at, id), cell);
        drop(entries);
        if first {
            self.sooner.notify_one();
        }
    }

    /// Waits for the next session whose time has come.
    pub(super) async fn next(&self) -> (Instant, Weak<Cell>) {
        loop {
            let first = self.lock().first_key_value().map(|((at, _), _)| *at);
            match first {
                None => self.sooner.notified().await,
                Some(at) if tokio::time::Instant::now().into_std() < at => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.sooner.notified() => {}
                    }
                }
                Some(_) => {
                    if let Some(((at, _), cell)) = self.lock().pop_first() {
                        return (at, cell);
                    }
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
