//! Signals: HUP reloads, TERM and INT drain, QUIT hands the listening sockets to a new process; so do
//! TERM and INT, where one waits.

use std::{process, sync::Arc};

use async_trait::async_trait;
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast,
};
use tokio_util::task::TaskTracker;

use super::handover::Handover;
use crate::{edge::Connections, fleet::Fleet, record::AccessLog};

/// Says how the server ends.
pub(super) struct Signals {
    pub(super) fleet: Arc<Fleet>,
    pub(super) connections: Arc<Connections>,
    pub(super) handover: Arc<Handover>,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) phases: broadcast::Receiver<ExecutionPhase>,
    pub(super) tasks: TaskTracker,
}

/// The signals that end this process.
struct Ends {
    term: Option<Signal>,
    int: Option<Signal>,
}

impl Ends {
    fn listen() -> Self {
        Self { term: listen(SignalKind::terminate()), int: listen(SignalKind::interrupt()) }
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            () = next(&mut self.term) => "SIGTERM",
            () = next(&mut self.int) => "SIGINT",
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut ends, mut quit) = (Ends::listen(), listen(SignalKind::quit()));
        let mut code = 0;
        let name = loop {
            let (name, ends_anyway) = tokio::select! {
                name = ends.next() => (name, true),
                () = next(&mut quit) => ("SIGQUIT", false),
                () = self.handover.refused() => {
                    code = 1;
                    break "the process before goes on";
                }
            };
            match self.hand_over(&mut ends, ends_anyway).await {
                Some(true) => break name,
                Some(false) => {}
                None if ends_anyway => break name,
                None => tracing::warn!(
                    "SIGQUIT, but no new process waits: start `dormouse run --upgrade` first"
                ),
            }
        };
        self.handover.leave();
        tracing::info!("{name}: draining; instances stay up; SIGTERM or SIGINT now ends at once");
        self.drain(code);
        // Also after a hand-over: the new process has the sockets by a way of our own, and serves.
        ShutdownSignal::GracefulTerminate
    }
}

impl Signals {
    /// As [`Handover::hand_over`]; whether this process ends. A signal to end is heard when that is
    /// over; a second one ends it at once.
    async fn hand_over(&self, ends: &mut Ends, mut ends_anyway: bool) -> Option<bool> {
        let mut handed = std::pin::pin!(self.handover.hand_over());
        loop {
            tokio::select! {
                biased;
                handed = &mut handed => return handed.map(|handed| handed || ends_anyway),
                name = ends.next() => {
                    if ends_anyway {
                        tracing::warn!("not handed over: {name} again");
                        end(self.access_log.as_deref(), &self.fleet, 0);
                    }
                    ends_anyway = true;
                }
            }
        }
    }

    /// Ends the process once no connection is left, or at the next signal to.
    fn drain(&self, code: i32) {
        let drained = drained(self.phases.resubscribe(), Arc::clone(&self.connections));
        // What was signalled before was the reason to drain.
        let mut ends = Ends::listen();
        let (access_log, fleet) = (self.access_log.clone(), Arc::clone(&self.fleet));
        self.tasks.spawn(async move {
            tokio::select! {
                () = drained => tracing::info!("drained"),
                name = ends.next() => tracing::warn!("not drained: {name} again"),
            }
            end(access_log.as_deref(), &fleet, code);
        });
    }
}

/// Pingora would sleep on until `shutdown.drain` is over.
fn end(access_log: Option<&AccessLog>, fleet: &Fleet, code: i32) -> ! {
    if let Some(log) = access_log {
        log.flush();
    }
    fleet.keep_learned_now();
    process::exit(code)
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
