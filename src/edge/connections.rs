//! The connections that are open: a bound on them, and a drain that ends with the last one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::metrics::METRICS;

/// Counts clients' connections, each with whatever requests, streams and sockets it carries.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    open: AtomicUsize,
    none_left: Notify,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Place(Arc<Connections>);

impl Connections {
    /// At most `max` at once.
    pub fn new(max: usize) -> Self {
        Self { max, open: AtomicUsize::new(0), none_left: Notify::new() }
    }

    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let room = |open: usize| (open < self.max).then_some(open + 1);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_err() {
            METRICS.connections_refused.inc();
            return None;
        }
        METRICS.connections.inc();
        Some(Place(Arc::clone(self)))
    }

    /// Returns once no connection is open.
    pub async fn none(&self) {
        loop {
            let mut notified = std::pin::pin!(self.none_left.notified());
            // Armed before the look, or a connection that ends in between would be missed.
            notified.as_mut().enable();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.connections.dec();
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
