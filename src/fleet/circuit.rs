//! Whether an engine answers. One that does not is left alone: its wakes fail at once instead of
//! each after a time limit, until it has listed its instances again.
//!
//! A call that fails is a reason to ask, never proof: one instance that hangs is not a dead engine.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    engine::{self, Engine},
    metrics::METRICS,
};

/// An engine that takes longer to list its instances does not answer.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// Between two questions; doubled each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// One engine's.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    open: Mutex<Option<Open>>,
    /// There is a reason to ask, now.
    doubt: Notify,
    /// A wake has asked for this engine: what is configured and never used is nobody's trouble.
    is_wanted: AtomicBool,
    /// Nothing is asked of it before a route is on it.
    is_left: AtomicBool,
    joined: Notify,
    /// Why it tells nothing of what happens outside, if it does not.
    deaf: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    error: String,
}

impl Circuit {
    /// An error where the engine is known not to answer.
    pub(super) fn admit(&self) -> Result<(), engine::Error> {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.trouble().map_or(Ok(()), |trouble| Err(engine::Error::Unreachable(trouble)))
    }

    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }

    pub(super) fn join(&self) {
        if self.is_left.swap(false, Ordering::AcqRel) {
            self.joined.notify_one();
        }
    }

    pub(super) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// Returns once a route is on this engine.
    pub(super) async fn until_joined(&self) {
        while self.is_left() {
            self.joined.notified().await;
        }
    }

    /// Why the engine is not called, if it is not and somebody wants it.
    pub(super) fn trouble(&self) -> Option<String> {
        let open = self.lock();
        let Open { since, error } =
            open.as_ref().filter(|_| self.is_wanted.load(Ordering::Relaxed))?;
        Some(format!("no answer for {} s: {error}", since.elapsed().as_secs()))
    }

    /// Whether events come; why not.
    pub(super) fn hears(&self, deaf: Option<String>) {
        *self.deaf.lock().unwrap_or_else(PoisonError::into_inner) = deaf;
    }

    /// Why no events come, if none do.
    pub(super) fn deaf(&self) -> Option<String> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of a call.
    pub(super) fn note<T>(&self, result: &Result<T, engine::Error>) {
        if result.as_ref().is_err_and(is_silent) {
            self.doubt();
        }
    }

    /// Something says that the engine's state may have changed.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Asks the engine whenever there is a doubt, and while it does not answer.
    pub(super) async fn watch(&self, name: &str, engine: &dyn Engine) {
        METRICS.engine_up.with_label_values(&[name]).set(1);
        loop {
            self.doubt.notified().await;
            let mut pause = PAUSE_MIN;
            while let Some(error) = silence(engine).await {
                self.open(name, error);
                tokio::select! {
                    () = sleep(pause) => {}
                    () = self.doubt.notified() => {}
                }
                pause = PAUSE_MAX.min(pause * 2);
            }
            self.close(name);
        }
    }

    fn open(&self, name: &str, error: String) {
        let mut open = self.lock();
        match &mut *open {
            Some(open) => open.error = error,
            None => {
                // Whoever wants it is told by the wake that fails.
                tracing::info!(engine = name, error, "does not answer: it is left alone");
                METRICS.engine_up.with_label_values(&[name]).set(0);
                *open = Some(Open { since: Instant::now(), error });
            }
        }
    }

    fn close(&self, name: &str) {
        METRICS.engine_up.with_label_values(&[name]).set(1);
        if let Some(Open { since, .. }) = self.lock().take() {
            let after = since.elapsed();
            tracing::info!(engine = name, ?after, "answers again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the engine does not answer; `None` where it does, be it with an error.
async fn silence(engine: &dyn Engine) -> Option<String> {
    match timeout(PROBE_MAX, engine.list()).await {
        Err(_) => Some(format!("no list of instances within {PROBE_MAX:?}")),
        Ok(Err(error)) if is_silent(&error) => Some(error.to_string()),
        Ok(_) => None,
    }
}

fn is_silent(error: &engine::Error) -> bool {
    matches!(error, engine::Error::Unreachable(_) | engine::Error::Timeout { .. })
}
