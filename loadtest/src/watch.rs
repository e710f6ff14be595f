//! What a server costs its machine: memory, descriptors, threads and CPU of its processes, as the
//! kernel counts them. Only the processes named: a proxy's instances are not its own.

use std::time::{Duration, Instant};

use procfs::process::Process;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// What was seen at one moment, of all the processes together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seen {
    /// Seconds since the run began.
    pub at_s: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Open descriptors.
    pub fds: u64,
    /// Threads.
    pub threads: u64,
    /// CPU seconds used so far.
    pub cpu_s: f64,
}

/// What `pids` use now; `None` when one of them cannot be looked at.
pub fn look(pids: &[i32]) -> Option<Seen> {
    let mut all = Seen::default();
    for &pid in pids {
        let process = Process::new(pid).ok()?;
        let stat = process.stat().ok()?;
        all.rss_bytes += stat.rss * procfs::page_size();
        all.fds += process.fd_count().ok()? as u64;
        all.threads += stat.num_threads.cast_unsigned();
        all.cpu_s += (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    }
    (!pids.is_empty()).then_some(all)
}

/// The cores used between two looks, `seconds` apart.
pub fn cores(before: Seen, after: Seen, seconds: f64) -> f64 {
    (after.cpu_s - before.cpu_s) / seconds
}

/// CPU seconds of this very process.
pub fn own_cpu() -> f64 {
    i32::try_from(std::process::id()).ok().and_then(|pid| look(&[pid])).map_or(0.0, |s| s.cpu_s)
}

/// Looks at regular times until it is asked for what it saw.
#[derive(Debug)]
pub struct Watch {
    end: CancellationToken,
    seen: AbortOnDropHandle<Vec<Seen>>,
}

impl Watch {
    /// Begins now; the run began at `since`.
    pub fn begin(pids: Vec<i32>, every: Duration, since: Instant) -> Self {
        let end = CancellationToken::new();
        let until = end.clone();
        let task = async move {
            let mut seen = Vec::new();
            let mut tick = tokio::time::interval(every);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = until.cancelled() => {}
                }
                if let Some(now) = look(&pids) {
                    seen.push(Seen { at_s: since.elapsed().as_secs_f64(), ..now });
                }
                if until.is_cancelled() {
                    return seen;
                }
            }
        };
        Self { end, seen: AbortOnDropHandle::new(start(task)) }
    }

    /// Ends; what was seen, the last look being now.
    pub async fn end(self) -> Vec<Seen> {
        self.end.cancel();
        self.seen.await.unwrap_or_default()
    }
}

#[expect(clippy::disallowed_methods, reason = "its handle aborts it when dropped")]
fn start<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}
