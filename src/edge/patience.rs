//! How long somebody is waited for, where only time counts in which the edge ran.
//!
//! An edge that was stopped (SIGSTOP, a suspended host, a starved machine) comes back to timers that
//! are all over, though nobody had a chance to be in time. So a limit is counted by turns, and a turn
//! that took far too long counts as two.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// An absence uses up at most a quarter of a limit.
const TURNS: u32 = 8;

/// What is left of a limit.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    turn: Duration,
    since: Instant,
    /// Made only when it is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Runs from now on.
    pub(super) fn new(limit: Duration) -> Self {
        let turn = (limit / TURNS).max(Duration::from_millis(1));
        Self { left: limit, turn, since: Instant::now(), alarm: None }
    }

    /// Ready once it is over; registers to be asked again.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !ready!(self.poll_turn(cx)) {}
        Poll::Ready(())
    }

    /// Waits for one turn; whether it is over.
    pub(super) async fn turn(&mut self) -> bool {
        std::future::poll_fn(|cx| self.poll_turn(cx)).await
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let next = self.since + self.turn.min(self.left);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(next)));
        ready!(alarm.as_mut().poll(cx));
        self.left = self.left.saturating_sub(self.since.elapsed().min(self.turn * 2));
        self.since = Instant::now();
        alarm.as_mut().reset(self.since + self.turn.min(self.left));
        Poll::Ready(self.left.is_zero())
    }

    /// What `work` comes to, unless this is over before. What is there already always counts.
    pub(super) async fn bound<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_over(cx).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::{advance, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_the_limit_is() {
        let began = Instant::now();
        assert_eq!(Patience::new(LIMIT).bound(pending::<()>()).await, None);
        assert_eq!(began.elapsed().as_secs(), LIMIT.as_secs());
        assert_eq!(Patience::new(Duration::ZERO).bound(ready(1)).await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_of_any_length_is_not_the_others_fault() {
        let mut patience = Patience::new(LIMIT);
        let soon = Duration::from_millis(1);
        assert_eq!(patience.bound(sleep(soon)).await, Some(()));
        for _ in 0..2 {
            // Nothing of ours runs meanwhile.
            advance(LIMIT * 7).await;
            assert_eq!(patience.bound(sleep(soon)).await, Some(()));
        }
        let began = Instant::now();
        assert_eq!(patience.bound(pending::<()>()).await, None);
        assert!((LIMIT / 3..LIMIT).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
