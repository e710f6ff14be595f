//! How slow a client may be: to send the body of a request, and to take what there is for it.
//!
//! Neither clock runs while the client waits for the edge: a body is paced only while the edge reads
//! and there is nothing to read, a write only while there is something to write and it is not taken.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    config::{Limits, Timeouts},
    metrics::METRICS,
};

/// One turn of waiting counts for this much at most: who is not asked in between (the edge does not
/// read while the instance takes nothing) has not kept anybody waiting.
const TURN: Duration = Duration::from_secs(1);

/// The fewest bytes a second of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyRate {
    /// Of waiting.
    pub(super) grace: Duration,
    /// Bytes a second.
    pub(super) rate: u64,
}

impl BodyRate {
    pub(super) fn new(limits: &Limits, timeouts: &Timeouts) -> Self {
        Self { grace: timeouts.client_body_grace, rate: limits.body_rate }
    }
}

/// One body's pace. It begins with the grace; waiting takes from it, bytes give.
#[derive(Debug)]
pub(super) struct BodyPace {
    rate: BodyRate,
    left: Duration,
    /// Since when the client has been waited for.
    since: Option<Instant>,
    /// Made only for a client that is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl BodyPace {
    pub(super) fn new(rate: BodyRate) -> Self {
        Self { rate, left: rate.grace, since: None, alarm: None }
    }

    /// Another body begins.
    pub(super) fn restart(&mut self) {
        (self.left, self.since, self.alarm) = (self.rate.grace, None, None);
    }

    /// Bytes have come.
    pub(super) fn came(&mut self, bytes: usize) {
        self.count();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = u32::try_from(self.rate.rate).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / rate.max(1);
        self.left = self.rate.grace.min(self.left + earned);
    }

    /// Nothing has come. Whether that is too slow; registers to be asked again.
    pub(super) fn waits(&mut self, cx: &mut Context<'_>) -> bool {
        self.count();
        if self.left.is_zero() {
            return true;
        }
        let now = Instant::now();
        self.since = Some(now);
        let next = now + self.turn().min(self.left);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(next)));
        while alarm.as_mut().poll(cx).is_ready() {
            alarm.as_mut().reset(next);
        }
        false
    }

    fn turn(&self) -> Duration {
        TURN.min(self.rate.grace / 4).max(Duration::from_millis(1))
    }

    fn count(&mut self) {
        if let Some(since) = self.since.take() {
            // Twice: a busy machine asks late.
            self.left = self.left.saturating_sub(since.elapsed().min(self.turn() * 2));
        }
    }
}

/// The same for the body of an HTTP/2 request, of which only what came is seen: on average since its
/// first bytes, so that what was sent ahead stands for the time in which the instance took nothing.
#[derive(Debug, Default)]
pub(super) struct AveragePace {
    since: Option<Instant>,
    bytes: u64,
}

impl AveragePace {
    /// Whether it is too slow, now that these have come.
    pub(super) fn is_too_slow(&mut self, bytes: usize, rate: BodyRate) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let took = self.since.get_or_insert_with(Instant::now).elapsed();
        let counts = took.saturating_sub(rate.grace).as_secs_f64();
        (self.bytes as f64) < counts * rate.rate as f64
    }
}

/// How long a client may take nothing of what there is for it.
#[derive(Debug)]
pub(super) struct WriteDeadline {
    limit: Duration,
    /// Since when it has taken nothing.
    since: Option<Instant>,
    /// Made only for a client that is waited for. It may be early, and is set anew then.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl WriteDeadline {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: None, alarm: None }
    }

    /// What became of a write; an error where it has waited for too long. Registers to be asked
    /// again.
    pub(super) fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.since = None;
            return write;
        }
        let until = *self.since.get_or_insert_with(Instant::now) + self.limit;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        while alarm.as_mut().poll(cx).is_ready() {
            if until <= Instant::now() {
                METRICS.refused.with_label_values(&["client_too_slow"]).inc();
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            alarm.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// What became of a flush: there may be nothing to flush, which says nothing.
    pub(super) fn flushed(
        &mut self,
        cx: &mut Context<'_>,
        flush: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if flush.is_ready() { flush } else { self.wrote(cx, flush) }
    }
}

/// A stream whose writes have a deadline.
#[derive(Debug)]
pub(super) struct Paced<S> {
    pub(super) stream: S,
    pub(super) deadline: WriteDeadline,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.deadline.wrote(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.deadline.wrote(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        self.deadline.flushed(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.deadline.flushed(cx, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::{advance, sleep},
    };

    use super::*;

    const RATE: BodyRate = BodyRate { grace: Duration::from_secs(20), rate: 100 };

    /// How long a client is waited for that sends so many bytes whenever so much time is over.
    async fn until_too_slow(bytes: usize, every: Duration, most: Duration) -> Option<Duration> {
        let (mut pace, began) = (BodyPace::new(RATE), Instant::now());
        while began.elapsed() < most {
            let next = Instant::now() + every;
            let waits = poll_fn(|cx| {
                if next <= Instant::now() {
                    return Poll::Ready(false);
                }
                if pace.waits(cx) { Poll::Ready(true) } else { Poll::Pending }
            });
            // Its own timer wakes it; this one is the client's bytes.
            let slow = tokio::select! { biased; slow = waits => slow, () = sleep(every) => false };
            if slow {
                return Some(began.elapsed());
            }
            pace.came(bytes);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_below_the_rate_ends_after_the_grace_and_one_above_it_never() {
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let grace = RATE.grace.as_secs_f64();
        let took = until_too_slow(1, day, day).await.expect("it never ends").as_secs_f64();
        assert!((grace - 0.5..grace + 1.0).contains(&took), "{took}");
        let took = until_too_slow(50, second, day).await.expect("it never ends").as_secs_f64();
        assert!((grace..grace * 2.5).contains(&took), "{took}");
        assert_eq!(until_too_slow(100, second, day / 10).await, None);
        assert_eq!(until_too_slow(1500, second * 15, day / 10).await, None);
        assert!(until_too_slow(2500, second * 25, day).await.is_some(), "a gap beyond the grace");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_read_is_not_waited_for() {
        let mut pace = BodyPace::new(RATE);
        for _ in 0..5 {
            assert!(!poll_fn(|cx| Poll::Ready(pace.waits(cx))).await);
            advance(RATE.grace * 10).await;
        }
        pace.came(1);
        advance(RATE.grace * 10).await;
        assert!(!poll_fn(|cx| Poll::Ready(pace.waits(cx))).await);
    }

    #[tokio::test(start_paused = true)]
    async fn on_average_what_was_sent_ahead_counts() {
        let mut pace = AveragePace::default();
        assert!(!pace.is_too_slow(3_000, RATE));
        advance(RATE.grace + Duration::from_secs(29)).await;
        assert!(!pace.is_too_slow(1, RATE));
        advance(Duration::from_secs(2)).await;
        assert!(pace.is_too_slow(1, RATE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_ends_when_nothing_was_taken_for_the_limit_and_not_while_something_is() {
        let limit = Duration::from_secs(10);
        let (near, mut far) = duplex(4);
        let mut paced = Paced { stream: near, deadline: WriteDeadline::new(limit) };
        let began = Instant::now();
        let write = paced.write_all(&[0; 64]);
        let take = async {
            let mut byte = [0; 4];
            for _ in 0..10 {
                sleep(limit * 9 / 10).await;
                far.read_exact(&mut byte).await.expect("there is more");
            }
            far
        };
        let (wrote, _far) = tokio::join!(write, take);
        assert_eq!(wrote.expect_err("it waits for ever").kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), limit * 9 + limit);
    }
}
