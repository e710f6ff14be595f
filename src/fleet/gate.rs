//! Where held requests wait: one value a session, moved under the session's lock.

use std::time::Duration;

use tokio::sync::watch;

use super::{Phase, turnstile::Turnstile};
use crate::session::{Endpoint, Failure, Generation};

/// How long the parts of one wake took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakeTimes {
    /// Waiting for a place among the engine's starts.
    pub queued: Duration,
    /// The engine's own call.
    pub engine: Duration,
    /// From the engine's word until the instance answered its probe.
    pub ready: Duration,
}

/// What is known of the newest generation.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Nothing yet.
    Shut,
    /// It is ready, for those who were held by turns.
    Open(Endpoint, WakeTimes, Turnstile),
    /// It will not come; what the session was busy with when that was known.
    Failed(Failure, Phase),
    /// It will not come, and who waits for it asks for the next one.
    Over,
}

/// A generation and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) generation: Generation,
    pub(super) outcome: Outcome,
}

/// How a wait ended.
#[derive(Debug)]
pub(super) enum Passed {
    /// The awaited generation is ready.
    Open(Endpoint, WakeTimes, Turnstile),
    /// The awaited generation will not come.
    Failed(Failure, Phase),
    /// The lease is for a life that is over.
    Over,
}

impl Gate {
    pub(super) fn shut() -> Self {
        Self { generation: Generation(0), outcome: Outcome::Shut }
    }

    /// Waits for the first outcome of `generation` or a later one.
    pub(super) async fn pass(gate: &mut watch::Receiver<Self>, generation: Generation) -> Passed {
        let settled =
            |gate: &Self| generation <= gate.generation && !matches!(gate.outcome, Outcome::Shut);
        match gate.wait_for(settled).await {
            Ok(gate) if gate.generation == generation => match &gate.outcome {
                Outcome::Open(endpoint, times, turnstile) => {
                    Passed::Open(endpoint.clone(), *times, turnstile.clone())
                }
                Outcome::Failed(failure, phase) => Passed::Failed(*failure, *phase),
                Outcome::Shut | Outcome::Over => Passed::Over,
            },
            Ok(_) | Err(_) => Passed::Over,
        }
    }
}
