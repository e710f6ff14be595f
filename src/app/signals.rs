//! Signals: HUP reloads, TERM and INT drain, QUIT hands the listening sockets to a new process.

use std::{path::PathBuf, process, sync::Arc};

use async_trait::async_trait;
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast,
};
use tokio_util::task::TaskTracker;

use crate::{acme::Acme, edge::Connections, fleet::Fleet, record::AccessLog};

/// Says how the server ends.
pub(super) struct Signals {
    pub(super) fleet: Arc<Fleet>,
    pub(super) connections: Arc<Connections>,
    pub(super) acme: Option<Arc<Acme>>,
    /// Where a new process waits for the listening sockets; there while one does.
    pub(super) handover: PathBuf,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) phases: broadcast::Receiver<ExecutionPhase>,
    pub(super) tasks: TaskTracker,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut term = listen(SignalKind::terminate());
        let mut int = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        let (name, shutdown) = loop {
            tokio::select! {
                () = next(&mut term) => break ("SIGTERM", ShutdownSignal::GracefulTerminate),
                () = next(&mut int) => break ("SIGINT", ShutdownSignal::GracefulTerminate),
                () = next(&mut quit) => {
                    if self.handover.exists() {
                        break ("SIGQUIT", ShutdownSignal::GracefulUpgrade);
                    }
                    tracing::warn!(
                        "SIGQUIT, but no new process waits: start `dormouse run --upgrade` first"
                    );
                }
            }
        };
        if matches!(shutdown, ShutdownSignal::GracefulUpgrade) {
            // The new process shares the instances: they are its to put to sleep.
            self.fleet.set_may_sleep(false);
            // And the ACME server's questions come to it.
            self.acme.iter().for_each(|acme| acme.set_may_order(false));
        }
        tracing::info!("{name}: draining; instances stay up; SIGTERM or SIGINT now ends at once");
        let drained = drained(self.phases.resubscribe(), Arc::clone(&self.connections));
        let (access_log, fleet) = (self.access_log.clone(), Arc::clone(&self.fleet));
        self.tasks.spawn(async move {
            tokio::select! {
                () = drained => tracing::info!("drained"),
                () = next(&mut term) => tracing::warn!("not drained: SIGTERM again"),
                () = next(&mut int) => tracing::warn!("not drained: SIGINT again"),
            }
            if let Some(log) = access_log {
                log.flush();
            }
            fleet.keep_learned_now();
            // Pingora would sleep on until `shutdown.drain` is over.
            process::exit(0);
        });
        shutdown
    }
}

/// Returns when the listeners are closed and no connection is left.
async fn drained(mut phases: broadcast::Receiver<ExecutionPhase>, connections: Arc<Connections>) {
    while !matches!(phases.recv().await, Ok(ExecutionPhase::ShutdownGracePeriod) | Err(_)) {}
    connections.none().await;
}

/// Listens to a signal; without it, when the system refuses, the process still ends by others.
pub(super) fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind)
        .inspect_err(|error| tracing::error!(?kind, %error, "cannot listen to a signal"))
        .ok()
}

/// The next such signal.
pub(super) async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
