//! One session's place in the fleet: its machine behind a lock, its gate, and what the driver knows.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Instant, SystemTime},
};

use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Fleet, Origin,
    capacity::{Need, Place},
    existing::Exists,
    gate::Gate,
    learned::Kind,
    pool,
    turnstile::Turnstile,
};
use crate::{
    engine::Life,
    session::{
        Address, Depth, Failure, Generation, Plan, SessionId,
        machine::{Session, State},
    },
};

/// Transitions remembered for one session.
const HISTORY_MAX: usize = 16;

/// A session. Lives as long as the fleet, or until the fleet is full and it is blank.
pub(super) struct Cell {
    pub(super) id: u64,
    pub(super) session: SessionId,
    /// Made ahead, for a session that does not exist yet.
    pub(super) is_spare: bool,
    pub(super) fleet: Arc<Fleet>,
    pub(super) gate: watch::Sender<Gate>,
    /// The engine reported a change: a probe looks again at once.
    pub(super) changed: Notify,
    /// What a wake started has ended, and runs anew by the engine's own doing.
    pub(super) reborn: Notify,
    /// Single flight of inspections; the generation and time that the last one vouched for.
    pub(super) inspection: tokio::sync::Mutex<Option<(Generation, Instant)>>,
    phase: AtomicU8,
    core: Mutex<Core>,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) machine: Session,
    /// How the next life is made.
    pub(super) plan: Arc<Plan>,
    /// What the engine was last told to start, until it is gone.
    pub(super) placed: Option<Placed>,
    /// Its place among those that run, from its start until it is asleep.
    pub(super) place: Option<Place>,
    /// The place of the life that is asked for, where it cannot be the one before's.
    pub(super) next_place: Option<Place>,
    /// It sleeps for another one, which gets its place.
    pub(super) gives_way: bool,
    /// Who made it wake: whose turn its start is.
    pub(super) origin: Option<Origin>,
    /// The time of this session's entry in the timer queue.
    pub(super) timer_at: Option<Instant>,
    /// Ends when the engine call before has ended: calls for one session never overlap.
    pub(super) tail: Option<oneshot::Receiver<()>>,
    /// Ends the wake that is under way.
    pub(super) wake: CancellationToken,
    /// Why the last wake or sleep failed, for the operator.
    pub(super) last_error: Option<String>,
    /// What the last look at an instance that is not ready saw, of the wake that is under way.
    pub(super) not_ready: Option<String>,
    /// A hold for this life has ended in vain, and the operator was told.
    pub(super) is_late: bool,
    /// How the wake that was under way has failed, until that is told.
    pub(super) wake_failed: Option<Failure>,
    pub(super) history: VecDeque<Moment>,
    /// The engine reported a change while it was busy with this session: look when it is done.
    pub(super) look_again: bool,
    /// Those who were held for this life are still being let in.
    pub(super) crowd: Option<Turnstile>,
    /// Taken out of the fleet: look it up again.
    pub(super) evicted: bool,
    /// One of its route's instances that exist, while it has one.
    pub(super) exists: Option<Exists>,
    /// The depth that the latest wake began at; `None` where the instance was found running.
    pub(super) woken_from: Option<Depth>,
}

/// An instance that was started, and by which plan.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) plan: Arc<Plan>,
    pub(super) life: Option<Life>,
    /// Whether this life has answered its probe.
    pub(super) ready: bool,
    /// Where it listens, or should, once its engine has said so.
    pub(super) address: Option<Address>,
}

impl Placed {
    /// Asked for, and not started yet.
    pub(super) fn planned(plan: &Arc<Plan>) -> Self {
        Self { plan: Arc::clone(plan), life: None, ready: false, address: None }
    }
}

/// One transition.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Moment {
    /// When, by the wall clock.
    #[serde(serialize_with = "super::view::unix_ms")]
    pub at: SystemTime,
    /// The state before.
    pub from: &'static str,
    /// The state after.
    pub to: &'static str,
    /// What happened.
    pub cause: &'static str,
    /// The generation after.
    pub generation: u64,
}

/// What a session that is neither awake nor asleep is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Waiting for another session's place among those that run.
    NoRoom,
    /// Waiting for a place among its engine's starts.
    Queued,
    /// The engine is starting the instance.
    Starting,
    /// The instance does not answer its probe yet.
    GettingReady,
    /// The life before is being put to sleep.
    Stopping,
}

impl Phase {
    /// The words for clients and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoom => "waiting for another session to go to sleep",
            Self::Queued => "waiting for other sessions to start",
            Self::Starting => "starting",
            Self::GettingReady => "getting ready",
            Self::Stopping => "still going to sleep",
        }
    }
}

impl Cell {
    pub(super) fn new(
        id: u64,
        session: SessionId,
        fleet: Arc<Fleet>,
        machine: Session,
        plan: Arc<Plan>,
    ) -> Self {
        Self {
            id,
            is_spare: pool::is_spare(&session),
            session,
            fleet,
            gate: watch::Sender::new(Gate::shut()),
            changed: Notify::new(),
            reborn: Notify::new(),
            inspection: tokio::sync::Mutex::new(None),
            phase: AtomicU8::new(Phase::Queued as u8),
            core: Mutex::new(Core {
                machine,
                plan,
                placed: None,
                place: None,
                next_place: None,
                gives_way: false,
                origin: None,
                timer_at: None,
                tail: None,
                wake: CancellationToken::new(),
                last_error: None,
                not_ready: None,
                is_late: false,
                wake_failed: None,
                history: VecDeque::new(),
                look_again: false,
                crowd: None,
                evicted: false,
                exists: None,
                woken_from: None,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::NoRoom,
            1 => Phase::Queued,
            2 => Phase::Starting,
            3 => Phase::GettingReady,
            _ => Phase::Stopping,
        }
    }

    /// A hold has ended and the wake goes on: what the operator hears of it, once a life.
    pub(super) fn tell_late(&self, phase: Phase) {
        let mut core = self.lock();
        if !matches!(core.machine.state(), State::Waking { .. }) {
            return;
        }
        let seen = core.not_ready.clone().filter(|_| phase == Phase::GettingReady);
        let what = seen.unwrap_or_else(|| format!("it is {}", phase.as_str()));
        let error = format!("not ready within wake.timeout: {what}");
        let (session, generation) = (&self.session, core.machine.generation());
        let told = std::mem::replace(&mut core.is_late, true);
        core.last_error = Some(error.clone());
        drop(core);
        if !told {
            tracing::warn!(%session, %generation, error, "wake is late");
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

impl Core {
    /// What its next life needs to run.
    pub(super) fn need(&self, engine_max: usize) -> Need {
        Need {
            route: Arc::clone(&self.plan.route),
            engine: Arc::clone(&self.plan.engine),
            route_max: most(self.plan.limits.running),
            engine_max,
        }
    }

    /// How its next wake will count.
    pub(super) fn kind(&self, from: Depth) -> Kind {
        let Plan { engine, route, .. } = &*self.plan;
        Kind { engine: Arc::clone(engine), route: Arc::clone(route), from }
    }

    /// Whether its next life has a place already: the one before's, if that is its own to keep.
    pub(super) fn has_place_for(&self, next: &Need) -> bool {
        let kept = self.place.as_ref().filter(|_| !self.gives_way);
        let place = self.next_place.as_ref().or(kept);
        place.is_some_and(|place| place.need().is_same_place(next))
    }

    /// Keeps for the operator how a wake failed, where the engine itself had nothing to complain of.
    pub(super) fn note(&mut self, failure: Failure, phase: Phase) {
        let seen = self.not_ready.take().filter(|_| phase == Phase::GettingReady);
        let noted = match failure {
            Failure::Died => {
                let seen = seen.unwrap_or_else(|| "see its log".to_owned());
                format!("the instance ended before it was ready: {seen}")
            }
            Failure::Timeout => {
                let what = seen.unwrap_or_else(|| format!("it was {}", phase.as_str()));
                format!("not ready in time: {what}")
            }
            Failure::EngineRefused
            | Failure::EngineBusy
            | Failure::StopFailing
            | Failure::PutToSleep
            | Failure::Retired => return,
        };
        self.last_error = Some(noted);
    }

    pub(super) fn remember(&mut self, moment: Moment) {
        if HISTORY_MAX <= self.history.len() {
            self.history.pop_front();
        }
        self.history.push_back(moment);
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cell({})", self.session)
    }
}

/// A limit as a count; without one, no count reaches it.
pub(super) fn most(limit: Option<u32>) -> usize {
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
