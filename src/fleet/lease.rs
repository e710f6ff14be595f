//! How a request borrows a session: while a lease lives the session does not sleep, and dropping
//! it is the only way to give it back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::sync::watch;

use super::{
    HoldEnd, Phase, Refusal, WakeTimes,
    cell::{Cell, Core},
    gate::{Gate, Passed},
    turnstile::Turn,
};
use crate::{
    metrics::METRICS,
    session::{
        Admission, Effect, Endpoint, Event, Generation, SessionId,
        machine::{Asker, State},
    },
};

/// How often a hold may find that the life it waited for is over already, and lease the next one.
const REACQUIRE_MAX: u32 = 3;

/// A borrowed session.
#[derive(Debug)]
pub struct Lease {
    pub(super) cell: Arc<Cell>,
    pub(super) generation: Generation,
    asker: Asker,
    endpoint: Option<Endpoint>,
    hold: Option<Hold>,
    held: Option<Held>,
    /// Among those who were held for the same wake; until the request has ended.
    turn: Option<Turn>,
}

/// What a request that was held can tell of its wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// How long this request waited.
    pub hold: Duration,
    /// How long the wake it waited for took.
    pub wake: WakeTimes,
}

/// A lease that waits for its session to become ready.
#[derive(Debug)]
struct Hold {
    gate: watch::Receiver<Gate>,
    since: Instant,
    timeout: Duration,
    /// The instance is ready, and others who were held go first.
    for_turn: bool,
    _place: Place,
}

/// A place among `limits.held`.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    pub(super) fn take(held: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let room = |held: usize| (held < max).then_some(held + 1);
        held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).ok()?;
        METRICS.held.inc();
        Some(Self(Arc::clone(held)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        METRICS.held.dec();
    }
}

impl Lease {
    /// Leases `cell`; `None` when it was taken out of the fleet meanwhile.
    pub(super) fn take(cell: &Arc<Cell>, asker: Asker) -> Option<Result<Self, Refusal>> {
        let fleet = &cell.fleet;
        fleet.apply(cell, "request", |core, now, out| {
            if core.evicted {
                return None;
            }
            let awake = matches!(core.machine.state(), State::Awake { .. } | State::Idle { .. });
            let mut place = None;
            if !awake || core.crowded {
                place = Place::take(&fleet.held, fleet.limits.held);
                if place.is_none() {
                    let session_full = core.plan.policy.held_max <= core.machine.leases();
                    let refusal =
                        if session_full { Refusal::SessionFull } else { Refusal::HeldFull };
                    return Some(Err(refusal));
                }
            }
            Some(Self::admit(cell, core, place, asker, now, out))
        })
    }

    fn admit(
        cell: &Arc<Cell>,
        core: &mut Core,
        place: Option<Place>,
        asker: Asker,
        now: Instant,
        out: &mut Vec<Effect>,
    ) -> Result<Self, Refusal> {
        let (generation, endpoint) = match core.machine.acquire(asker, now, out) {
            // The gate is open, and the turnstile behind it is still used.
            Admission::Ready(endpoint) if core.crowded => (endpoint.generation, None),
            Admission::Ready(endpoint) => (endpoint.generation, Some(endpoint)),
            Admission::Wait(generation) => (generation, None),
            Admission::Refuse(refusal) => return Err(Refusal::of_machine(refusal, now)),
        };
        let for_turn = matches!(core.machine.state(), State::Awake { .. });
        let hold = place.filter(|_| endpoint.is_none()).map(|place| Hold {
            for_turn,
            gate: cell.gate.subscribe(),
            since: now,
            timeout: core.plan.policy.wake_timeout,
            _place: place,
        });
        Ok(Self {
            cell: Arc::clone(cell),
            generation,
            asker,
            endpoint,
            hold,
            held: None,
            turn: None,
        })
    }

    /// Whose it is.
    pub fn session(&self) -> &SessionId {
        &self.cell.session
    }

    /// The life that it holds awake.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether that life is known to be over.
    pub fn is_over(&self) -> bool {
        let core = self.cell.lock();
        let runs = matches!(core.machine.state(), State::Awake { .. } | State::Idle { .. });
        !runs || core.machine.generation() != self.generation
    }

    /// A number that no other session of this process has.
    pub fn session_number(&self) -> u64 {
        self.cell.id
    }

    /// Where the instance listens, once it is ready.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// What the wait was made of, when there was one.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Waits until the instance is ready, at most `wake.timeout`. Dropping the future, or the
    /// lease, gives the place back; the wake goes on.
    pub async fn ready(&mut self) -> Result<Endpoint, HoldEnd> {
        for _ in 0..REACQUIRE_MAX {
            if let Some(endpoint) = &self.endpoint {
                return Ok(endpoint.clone());
            }
            let Some(hold) = &mut self.hold else { break };
            let end = tokio::time::Instant::from_std(hold.since) + hold.timeout;
            let pass = Gate::pass(&mut hold.gate, self.generation);
            let passed = match tokio::time::timeout_at(end, pass).await {
                Ok(passed) => passed,
                Err(_) => {
                    let phase = self.cell.phase();
                    // The wake ends by the same clock, and its cleaning up is another phase.
                    let pass = Gate::pass(&mut hold.gate, self.generation);
                    pass.now_or_never().ok_or(HoldEnd::TimedOut(phase))?
                }
            };
            match passed {
                Passed::Open(endpoint, wake, turnstile) => {
                    // Who would wait for too long goes without a turn.
                    let turn = tokio::time::timeout_at(end, turnstile.enter()).await.ok();
                    self.opened(endpoint, wake);
                    self.turn = turn;
                }
                Passed::Failed(failure, phase) => return Err(HoldEnd::Failed(failure, phase)),
                Passed::Over => self.take_again()?,
            }
        }
        Err(HoldEnd::Refused(Refusal::Busy))
    }

    fn opened(&mut self, endpoint: Endpoint, wake: WakeTimes) {
        if let Some(hold) = self.hold.take().filter(|hold| !hold.for_turn) {
            let now = tokio::time::Instant::now().into_std();
            let waited = now.saturating_duration_since(hold.since);
            METRICS.hold_seconds.observe(waited.as_secs_f64());
            self.held = Some(Held { hold: waited, wake });
        }
        self.endpoint = Some(endpoint);
    }

    /// The life it waited for came and went before it looked: lease the next one, and keep
    /// counting the wait from its beginning.
    fn take_again(&mut self) -> Result<(), HoldEnd> {
        let since = self.hold.as_ref().map(|hold| hold.since);
        let mut again = Self::take(&self.cell, self.asker)
            .unwrap_or(Err(Refusal::Busy))
            .map_err(HoldEnd::Refused)?;
        if let (Some(hold), Some(since)) = (&mut again.hold, since) {
            hold.since = since;
        }
        *self = again;
        Ok(())
    }

    /// What the session is busy with.
    pub fn phase(&self) -> Phase {
        self.cell.phase()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let release = Event::Release(self.generation);
        self.cell.fleet.apply(&self.cell, "last lease given back", |core, now, out| {
            core.machine.handle(release, now, out);
        });
    }
}
