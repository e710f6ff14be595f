//! How slow a client may be: to send the body of a request, and to take what there is for it.
//!
//! Neither clock runs while the client waits for the edge: a body is paced only while the edge reads
//! and there is nothing to read, a write only while there is something to write and it is not taken.

use std::{
    io,
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::socket;
use crate::{
    config::{Limits, Timeouts},
    metrics::METRICS,
};

/// One turn of waiting counts for this much at most: who is not asked in between (the edge does not
/// read while the instance takes nothing) has not kept anybody waiting.
const TURN: Duration = Duration::from_secs(1);

/// The fewest bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Of waiting.
    pub(super) grace: Duration,
    /// Bytes a second.
    pub(super) rate: u64,
}

impl Rate {
    /// Of a request's body.
    pub(super) fn of_bodies(limits: &Limits, timeouts: &Timeouts) -> Self {
        Self { grace: timeouts.client_body_grace, rate: limits.body_rate }
    }

    /// Of what is there for a client.
    pub(super) fn of_answers(limits: &Limits, timeouts: &Timeouts) -> Self {
        Self { grace: timeouts.client_write, rate: limits.answer_rate }
    }
}

/// One client's pace, in sending or in taking. It begins with the grace; waiting takes from it,
/// bytes give.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    left: Duration,
    /// Since when the client has been waited for.
    since: Option<Instant>,
    /// Made only for a client that is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, left: rate.grace, since: None, alarm: None }
    }

    /// Another body begins.
    pub(super) fn restart(&mut self) {
        (self.left, self.since, self.alarm) = (self.rate.grace, None, None);
    }

    /// Bytes have moved.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.count();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let rate = u32::try_from(self.rate.rate).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / rate.max(1);
        self.left = self.rate.grace.min(self.left + earned);
    }

    /// Nothing moves. Whether that is too slow; registers to be asked again.
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
    last: Option<Instant>,
    took: Duration,
    bytes: u64,
}

impl AveragePace {
    /// Whether it is too slow, now that these have come.
    pub(super) fn is_too_slow(&mut self, bytes: usize, rate: Rate) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let now = Instant::now();
        let gap = self.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        // A longer one may be the edge's own absence.
        self.took += gap.min(rate.grace);
        let counts = self.took.saturating_sub(rate.grace).as_secs_f64();
        (self.bytes as f64) < counts * rate.rate as f64
    }
}

/// A client's stream that ends when the client takes too slowly what there is for it. Who is sent
/// little, as by events that come now and then, keeps nobody waiting.
#[derive(Debug)]
pub(super) struct Paced<S> {
    pub(super) stream: S,
    pace: Pace,
    /// The stream's; negative where it has none.
    socket: RawFd,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, socket: RawFd, rate: Rate) -> Self {
        Self { stream, pace: Pace::new(rate), socket }
    }

    /// What became of a write, or an error where the client is too slow. Registers to be asked
    /// again.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write {
            Poll::Ready(Ok(bytes)) => self.pace.moved(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending if self.pace.waits(cx) => return Poll::Ready(Err(self.cut())),
            Poll::Pending => {}
        }
        write
    }

    /// What became of a flush: there may be nothing to flush, which says nothing.
    fn flushed(
        &mut self,
        cx: &mut Context<'_>,
        flush: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if flush.is_pending() && self.pace.waits(cx) {
            return Poll::Ready(Err(self.cut()));
        }
        flush
    }

    fn cut(&self) -> io::Error {
        METRICS.refused.with_label_values(&["client_too_slow"]).inc();
        // A socket that is gone keeps nothing.
        let _ = socket::forget_rest(self.socket);
        io::ErrorKind::TimedOut.into()
    }
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
        self.wrote(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.flushed(cx, shutdown)
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

    const RATE: Rate = Rate { grace: Duration::from_secs(20), rate: 100 };

    /// How long a client is waited for that sends so many bytes whenever so much time is over.
    async fn until_too_slow(bytes: usize, every: Duration, most: Duration) -> Option<Duration> {
        let (mut pace, began) = (Pace::new(RATE), Instant::now());
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
            pace.moved(bytes);
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
        let mut pace = Pace::new(RATE);
        for _ in 0..5 {
            assert!(!poll_fn(|cx| Poll::Ready(pace.waits(cx))).await);
            advance(RATE.grace * 10).await;
        }
        pace.moved(1);
        advance(RATE.grace * 10).await;
        assert!(!poll_fn(|cx| Poll::Ready(pace.waits(cx))).await);
    }

    #[tokio::test(start_paused = true)]
    async fn on_average_what_was_sent_ahead_counts() {
        let mut pace = AveragePace::default();
        assert!(!pace.is_too_slow(3_000, RATE));
        for _ in 0..49 {
            advance(Duration::from_secs(1)).await;
            assert!(!pace.is_too_slow(0, RATE));
        }
        advance(Duration::from_secs(2)).await;
        assert!(pace.is_too_slow(1, RATE));
    }

    #[tokio::test(start_paused = true)]
    async fn on_average_an_absence_of_the_edge_counts_as_its_grace() {
        let mut pace = AveragePace::default();
        assert!(!pace.is_too_slow(100, RATE));
        advance(RATE.grace * 100).await;
        for _ in 0..100 {
            assert!(!pace.is_too_slow(100, RATE));
            advance(Duration::from_secs(1)).await;
        }
    }

    const NO_SOCKET: RawFd = -1;

    /// How long a client is served that takes so many bytes whenever so much time is over, and what
    /// the write came to.
    async fn served(bytes: usize, every: Duration, all: usize) -> (Duration, io::Result<()>) {
        let (near, mut far) = duplex(1);
        let mut paced = Paced::new(near, NO_SOCKET, RATE);
        let (began, answer) = (Instant::now(), vec![0; all]);
        let take = async {
            let mut some = vec![0; bytes];
            loop {
                sleep(every).await;
                far.read_exact(&mut some).await.expect("there is more");
            }
        };
        tokio::select! {
            wrote = paced.write_all(&answer) => (began.elapsed(), wrote),
            () = take => unreachable!("it takes for ever"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_after_the_grace_and_who_takes_too_little_later() {
        let second = Duration::from_secs(1);
        let (took, wrote) = served(1, second * 86_400, 10).await;
        assert_eq!(wrote.expect_err("it waits for ever").kind(), io::ErrorKind::TimedOut);
        let grace = RATE.grace.as_secs_f64();
        assert!((grace - 0.5..grace + 1.0).contains(&took.as_secs_f64()), "{took:?}");
        let (took, wrote) = served(50, second, 1_000_000).await;
        assert_eq!(wrote.expect_err("it waits for ever").kind(), io::ErrorKind::TimedOut);
        assert!((grace..grace * 2.5).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_enough_is_never_cut_though_it_takes_it_now_and_then() {
        let second = Duration::from_secs(1);
        for (bytes, every) in [(100, second), (1_500, second * 15)] {
            let (_, wrote) = served(bytes, every, 100_000).await;
            wrote.expect("it takes enough");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_sent_little_is_waited_for_by_nobody() {
        let (near, mut far) = duplex(64);
        let mut paced = Paced::new(near, NO_SOCKET, RATE);
        for _ in 0..10 {
            advance(RATE.grace * 10).await;
            paced.write_all(b"event").await.expect("there is room");
            far.read_exact(&mut [0; 5]).await.expect("an event");
        }
    }
}
