//! The requests that are open on one connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

/// How many there are, and what their bodies need of the connection's window.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    needs: AtomicU64,
    none_left: Notify,
}

/// One that is open until this is dropped.
#[derive(Debug)]
pub(super) struct Open {
    streams: Arc<Streams>,
    need: u64,
}

impl Streams {
    pub(super) fn enter(self: &Arc<Self>, need: u64) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.needs.fetch_add(need, Ordering::AcqRel);
        Open { streams: Arc::clone(self), need }
    }

    pub(super) fn needs(&self) -> u64 {
        self.needs.load(Ordering::Acquire)
    }

    pub(super) fn is_none(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Returns once none has been open for so long.
    pub(super) async fn idle(&self, within: Duration) {
        while !self.is_none() {
            // Only this waits, and a notice that came before is kept for it.
            self.none_left.notified().await;
        }
        sleep(within).await;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.needs.fetch_sub(self.need, Ordering::AcqRel);
        if self.streams.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.streams.none_left.notify_one();
        }
    }
}
