//! Those who were held for one wake reach the instance by turns.
//!
//! A thousand connects at once overflow an instance's accept queue, and who falls out of it comes
//! again after a second; and each is a connection that the next request could have used. So a few
//! go first, and the next as those end. Where they end slowly, more go in with time: answers that
//! never end must not keep the others out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::sleep};

/// Requests that go first: fewer than the accept queue of nearly every server (asyncio's holds 100,
/// that of Rust's standard library 128).
const FIRST: usize = 64;
/// How often it is looked whether more must go in.
const PATIENCE: Duration = Duration::from_millis(50);

/// The places beyond the gate of one life.
#[derive(Clone, Debug)]
pub(super) struct Turnstile(Arc<Places>);

#[derive(Debug)]
struct Places {
    free: Semaphore,
    ended: AtomicUsize,
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Places>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        self.0.free.add_permits(1);
    }
}

impl Turnstile {
    pub(super) fn new() -> Self {
        let (free, ended) = (Semaphore::new(FIRST), AtomicUsize::new(0));
        Self(Arc::new(Places { free, ended }))
    }

    /// Waits for a place, first come, first served.
    pub(super) async fn enter(self) -> Turn {
        self.0.free.acquire().await.expect("the semaphore is never closed").forget();
        Turn(self.0)
    }

    /// A place, where nobody waits for one.
    pub(super) fn try_enter(&self) -> Option<Turn> {
        self.0.free.try_acquire().ok()?.forget();
        Some(Turn(Arc::clone(&self.0)))
    }

    /// Opens up with time; returns when nobody waits any more.
    pub(super) async fn open_up(self) {
        let (mut open, mut before) = (FIRST, 0);
        loop {
            sleep(PATIENCE).await;
            if 0 < self.0.free.available_permits() {
                return;
            }
            let ended = self.0.ended.load(Ordering::Relaxed);
            if ended - before < open / 2 {
                self.0.free.add_permits(open);
                open *= 2;
            }
            before = ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_go_first_and_the_next_when_those_end() {
        let turnstile = Turnstile::new();
        let mut inside: Vec<_> =
            (0..FIRST).map(|_| turnstile.try_enter().expect("a place")).collect();
        assert!(turnstile.try_enter().is_none(), "all places are taken");
        inside.pop();
        assert!(turnstile.try_enter().is_some(), "one has ended");
    }

    /// How long it takes until all are in, when each stays for `stay`.
    async fn all_in(wait: usize, stay: Duration) -> Duration {
        let turnstile = Turnstile::new();
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(turnstile.clone().open_up());
        let began = Instant::now();
        for _ in 0..wait {
            let turn = turnstile.clone().enter().await;
            tasks.spawn(async move {
                sleep(stay).await;
                drop(turn);
            });
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_never_end_keep_nobody_out_for_long() {
        let took = all_in(10_000, Duration::from_secs(3600)).await;
        assert!(took < Duration::from_millis(500), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_answers_end_quickly_no_more_than_the_first_are_in() {
        let took = all_in(FIRST * 10, Duration::from_millis(10)).await;
        assert_eq!(took, Duration::from_millis(90));
    }

    #[tokio::test(start_paused = true)]
    async fn where_answers_end_slowly_more_go_in() {
        let took = all_in(1000, Duration::from_secs(1)).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}
