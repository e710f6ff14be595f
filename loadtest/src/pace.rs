//! When requests are due. The clock does not wait for answers: a request that is sent late because
//! the server was slow is late, and its latency counts from when it was due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The most arrivals of one round: 16 bytes each.
const ARRIVALS_MAX: f64 = 20_000_000.0;
/// A pause of the pacer; stopping takes no longer.
const NAP_MAX: Duration = Duration::from_millis(50);

/// When each of `rate` a second is due within `time`: evenly, or at random (`poisson`).
pub fn schedule(
    rate: f64,
    time: Duration,
    poisson: bool,
    seed: u64,
) -> anyhow::Result<Vec<Duration>> {
    let seconds = time.as_secs_f64();
    ensure!(0.0 < rate && rate.is_finite(), "a rate is more than 0");
    ensure!(rate * seconds <= ARRIVALS_MAX, "more than {ARRIVALS_MAX} arrivals a round");
    if !poisson {
        let count = (rate * seconds).floor() as u64;
        return Ok((0..count).map(|n| Duration::from_secs_f64(n as f64 / rate)).collect());
    }
    let mut random = StdRng::seed_from_u64(seed);
    let (mut due, mut at) = (Vec::new(), 0.0);
    loop {
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        if seconds <= at || ARRIVALS_MAX <= due.len() as f64 {
            return Ok(due);
        }
        due.push(Duration::from_secs_f64(at));
    }
}

/// Hands out what is due, to as many clients as want it.
#[derive(Debug)]
pub struct Pace {
    due: Vec<Duration>,
    began: Instant,
    next: AtomicUsize,
    ready: Semaphore,
    stop: CancellationToken,
}

impl Pace {
    /// Begins now, on a thread of its own: a runtime's timers are a millisecond coarse.
    pub fn begin(due: Vec<Duration>, stop: CancellationToken) -> Arc<Self> {
        let (next, ready) = (AtomicUsize::new(0), Semaphore::new(0));
        let pace = Arc::new(Self { due, began: Instant::now(), next, ready, stop });
        let shared = Arc::clone(&pace);
        thread::spawn(move || shared.release());
        pace
    }

    fn release(&self) {
        // Without it the kernel may add 50 µs to each pause.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        for due in &self.due {
            loop {
                let early = (self.began + *due).saturating_duration_since(Instant::now());
                if early.is_zero() || self.stop.is_cancelled() {
                    break;
                }
                thread::sleep(early.min(NAP_MAX));
            }
            if self.stop.is_cancelled() {
                break;
            }
            self.ready.add_permits(1);
        }
        // Nothing more comes: everybody who waits is let through, and finds nothing.
        self.ready.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// When the next one is due, once it is; `None` when there are no more.
    pub async fn next(&self) -> Option<Instant> {
        self.ready.acquire().await.ok()?.forget();
        if self.stop.is_cancelled() {
            return None;
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.due.get(n).map(|due| self.began + *due)
    }
}
