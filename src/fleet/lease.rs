//! How a request borrows a session: while a lease lives the session does not sleep, and dropping
//! it is the only way to give it back.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::sync::watch;

use super::{
    Fleet, HoldEnd, Origin, Phase, Refusal, WakeTimes,
    capacity::{Need, Place, Room},
    cell::{Cell, Core, most},
    gate::{Gate, Passed},
    held::HeldPlace,
    turnstile::{Turn, Turnstile},
};
use crate::{
    metrics::METRICS,
    session::{
        Admission, Effect, Endpoint, Event, Generation, SessionId, WhenFull,
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
    origin: Option<Origin>,
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
    _place: HeldPlace,
}

/// Who asks for a lease, from where, and who has a word in it before a wake begins.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// Who asks.
    pub asker: Asker,
    /// Whom the wake is for, if it becomes one: starts take turns by it.
    pub origin: Option<Origin>,
    /// Asked once, and only where the lease would begin a wake.
    pub may_wake: Option<&'a (dyn Fn() -> Result<(), Refusal> + Sync)>,
}

impl From<Asker> for Caller<'_> {
    fn from(asker: Asker) -> Self {
        Self { asker, origin: None, may_wake: None }
    }
}

impl fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.asker).field(&self.origin).finish()
    }
}

impl Caller<'_> {
    /// Whether it may begin a wake. An answer of yes is final.
    pub(super) fn may_wake(&mut self) -> Result<(), Refusal> {
        if let Some(may_wake) = self.may_wake {
            may_wake()?;
            self.may_wake = None;
        }
        Ok(())
    }
}

/// How an attempt to lease a cell ended.
enum Attempt {
    Done(Result<Lease, Refusal>),
    /// The cell was taken out of the fleet meanwhile.
    Gone,
    /// A wake needs this, and there is no place for it there.
    Full(Need, Room, WhenFull),
}

impl Lease {
    /// Leases `cell`; `None` when it was taken out of the fleet meanwhile.
    pub(super) fn take(cell: &Arc<Cell>, mut caller: Caller<'_>) -> Option<Result<Self, Refusal>> {
        let fleet = &cell.fleet;
        let mut claim = None;
        // A second round only with a claim, a third where the plan has changed meanwhile.
        for _ in 0..3 {
            match Self::attempt(cell, &mut caller, claim.take()) {
                Attempt::Done(result) => return Some(result),
                Attempt::Gone => return None,
                Attempt::Full(_, room, WhenFull::Refuse) => return Some(Err(no_place(&room))),
                Attempt::Full(need, room, WhenFull::EvictIdle) => {
                    // Claimed first: so the place that becomes free is nobody else's.
                    let place = fleet.capacity.claim(&need);
                    if !place.is_granted() && !fleet.make_place(&need) {
                        return Some(Err(no_place(&room)));
                    }
                    claim = Some(place);
                }
            }
        }
        Some(Err(Refusal::Busy))
    }

    /// The steps in the order in which a request can be refused: the rates of wakes, the held
    /// requests, the instances that run; then the machine's word.
    fn attempt(cell: &Arc<Cell>, caller: &mut Caller<'_>, claim: Option<Place>) -> Attempt {
        let fleet = &cell.fleet;
        fleet.apply(cell, "request", |core, now, out| {
            if core.evicted {
                return Attempt::Gone;
            }
            if cell.is_spare {
                // A route may have its host; nobody has it yet.
                return Attempt::Done(Err(Refusal::Retired));
            }
            let awake = matches!(core.machine.state(), State::Awake { .. } | State::Idle { .. });
            let turn = core.crowd.as_ref().and_then(Turnstile::try_enter);
            let at_once = awake && (core.crowd.is_none() || turn.is_some());
            if at_once || (!awake && caller.asker == Asker::Ignored) {
                let mut leased = Self::admit(cell, core, None, caller, now, out);
                if let Ok(lease) = &mut leased {
                    lease.turn = turn;
                }
                return Attempt::Done(leased);
            }
            let wakes = core.machine.would_wake(caller.asker, now);
            let held = match fleet.find_held_place(core, caller, wakes) {
                Ok(held) => held,
                Err(refusal) => return Attempt::Done(Err(refusal)),
            };
            if wakes {
                if core.exists.is_none() {
                    let most = most(core.plan.limits.instances);
                    let Some(exists) = fleet.existing.add(&core.plan.route, most) else {
                        return Attempt::Done(Err(Refusal::RouteInstances));
                    };
                    core.exists = Some(exists);
                }
                if let Err((need, room)) = fleet.find_place(core, claim) {
                    return Attempt::Full(need, room, core.plan.limits.when_full);
                }
                core.origin = caller.origin;
            }
            Attempt::Done(Self::admit(cell, core, Some(held), caller, now, out))
        })
    }

    fn admit(
        cell: &Arc<Cell>,
        core: &mut Core,
        place: Option<HeldPlace>,
        caller: &Caller<'_>,
        now: Instant,
        out: &mut Vec<Effect>,
    ) -> Result<Self, Refusal> {
        let (generation, endpoint) = match core.machine.acquire(caller.asker, now, out) {
            // The gate is open, and the turnstile behind it is still used.
            Admission::Ready(endpoint) if place.is_some() => (endpoint.generation, None),
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
        let Caller { asker, origin, .. } = *caller;
        let cell = Arc::clone(cell);
        Ok(Self { cell, generation, asker, origin, endpoint, hold, held: None, turn: None })
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
        let mut again = 0;
        loop {
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
                    // The wake may end by the same clock: whether it goes on is told truly.
                    self.cell.fleet.look_at_clock(&self.cell);
                    let pass = Gate::pass(&mut hold.gate, self.generation);
                    pass.now_or_never().ok_or_else(|| {
                        self.cell.tell_late(phase);
                        HoldEnd::TimedOut(phase)
                    })?
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
                Passed::Over if again < REACQUIRE_MAX => self.take_again()?,
                Passed::Over => break,
            }
            again += 1;
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

    /// The life it waited for is over: lease the next one, and keep counting the wait from its
    /// beginning.
    fn take_again(&mut self) -> Result<(), HoldEnd> {
        // Its place among the held is free for itself.
        let since = self.hold.take().map(|hold| hold.since);
        // It was let in once.
        let caller = Caller { asker: self.asker, origin: self.origin, may_wake: None };
        let mut again = Self::take(&self.cell, caller)
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

fn no_place(room: &Room) -> Refusal {
    match room {
        Room::Route(_) => Refusal::RouteRunning,
        Room::Engine(_) => Refusal::EngineRunning,
    }
}

impl Fleet {
    /// A place among the held requests, if the rates of wakes allow one that begins here.
    fn find_held_place(
        &self,
        core: &Core,
        caller: &mut Caller<'_>,
        wakes: bool,
    ) -> Result<HeldPlace, Refusal> {
        if wakes {
            caller.may_wake()?;
        }
        if core.machine.is_full() {
            return Err(Refusal::SessionFull);
        }
        self.held.take(&core.plan.route, most(core.plan.limits.held))
    }

    /// Gives the next life of a session its place: its own, the one claimed for it, or a free one;
    /// or says what it needs, and which room of that is full.
    fn find_place(&self, core: &mut Core, claim: Option<Place>) -> Result<(), (Need, Room)> {
        let need = core.need(self.running_max(&core.plan.engine));
        if core.has_place_for(&need) {
            return Ok(());
        }
        let claimed = claim.filter(|claim| *claim.need() == need);
        let place = match claimed.map_or_else(|| self.capacity.take(&need), Ok) {
            Ok(place) => place,
            Err(room) => return Err((need, room)),
        };
        core.next_place = Some(place);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let release = match self.asker {
            Asker::Client | Asker::Operator => Event::Release(self.generation),
            Asker::Ignored => Event::ReleaseIgnored(self.generation),
        };
        self.cell.fleet.apply(&self.cell, "last lease given back", |core, now, out| {
            core.machine.handle(release, now, out);
        });
    }
}
