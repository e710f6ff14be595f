//! How long an instance may be silent: `timeouts.answer`.
//!
//! Pingora has one timeout for all reads from an instance, and it must be known before the answer is.
//! Whether an answer is a stream, which may be silent for as long as it likes, says the answer. So
//! the edge watches by itself, and ends the connection to the instance. It cannot where that is
//! HTTP/2, which carries other requests, too: there Pingora's timeout is used.

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{listen::Connection, patience::Patience, socket};
use crate::config::Timeouts;

/// Watches one request's instance; dropping it ends the watch.
#[derive(Debug)]
pub(super) struct Silence {
    heard: Arc<Heard>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Heard {
    /// Counts what came.
    news: AtomicU32,
    has_begun: AtomicBool,
    may_be_silent: AtomicBool,
    is_over: AtomicBool,
}

impl Silence {
    /// Of the instance behind `instance`, which may be silent as long as it has not answered if
    /// `may_wait`.
    pub(super) fn watch(
        instance: RawFd,
        client: Arc<Connection>,
        may_wait: bool,
        timeouts: &Timeouts,
        tasks: &TaskTracker,
    ) -> Option<Self> {
        // Without a descriptor of our own the number could be another connection's by then.
        let socket = socket::duplicate(instance).ok()?;
        let heard = Arc::new(Heard {
            news: AtomicU32::new(0),
            has_begun: AtomicBool::new(false),
            may_be_silent: AtomicBool::new(may_wait),
            is_over: AtomicBool::new(false),
        });
        let (answer, write) = (timeouts.answer, timeouts.client_write);
        let heard_of = Arc::clone(&heard);
        let watch = tasks.spawn(async move {
            heard_of.until_silent(&client, answer, write).await;
            heard_of.is_over.store(true, Ordering::Release);
            // Gone already is what was wanted.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        });
        Some(Self { heard, _watch: AbortOnDropHandle::new(watch) })
    }

    /// Something came from the instance, or went on to it.
    pub(super) fn is_broken(&self) {
        self.heard.news.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer has begun, and is no stream.
    pub(super) fn answer_began(&self) {
        self.heard.has_begun.store(true, Ordering::Relaxed);
        self.heard.may_be_silent.store(false, Ordering::Relaxed);
        self.is_broken();
    }

    /// Whether it lasted too long.
    pub(super) fn is_over(&self) -> bool {
        self.heard.is_over.load(Ordering::Acquire)
    }
}

impl Heard {
    async fn until_silent(&self, client: &Connection, answer: Duration, write: Duration) {
        loop {
            let before = self.news.load(Ordering::Relaxed);
            // By HTTP/2 a client that takes nothing is not seen: it is cut after `client_write`.
            let hidden = client.is_http2() && self.has_begun.load(Ordering::Relaxed);
            let limit = if hidden { answer.saturating_add(write) } else { answer };
            let mut patience = Patience::new(limit);
            loop {
                let over = patience.turn().await;
                let waits = self.may_be_silent.load(Ordering::Relaxed) || client.is_writing();
                if waits || self.news.load(Ordering::Relaxed) != before {
                    break;
                }
                if over {
                    return;
                }
            }
        }
    }
}
