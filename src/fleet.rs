//! The fleet: every session, the leases on it, and the driver that carries out what its machine
//! decides. Requests wait, the driver works: no request performs, owns or can strand a wake.
//!
//! `Fleet::apply` is the only function that runs a machine. It must not know route files or
//! HTTP: a [`Planner`] tells it what a host is made of.

mod adopt;
mod capacity;
mod cell;
mod circuit;
mod driver;
mod evict;
mod existing;
mod gate;
mod generations;
mod held;
mod learned;
mod lease;
mod origin;
mod outside;
mod pool;
mod probe;
mod starts;
mod timer;
mod tls;
mod turnstile;
mod view;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{runtime::Handle, sync::Notify};
use tokio_util::task::TaskTracker;

pub use cell::{Moment, Phase};
pub use gate::WakeTimes;
pub use lease::{Caller, Held, Lease};
pub use origin::Origin;
pub use pool::Templates;
pub use probe::takes_connections;
pub use view::{Running, SessionView};

use crate::{
    engine::Engine,
    metrics::METRICS,
    session::{
        self, Depth, Effect, Event, Failure, Generation, Plan, SessionId,
        machine::{Asker, Session, SleepAnswer, State},
    },
};
use capacity::Capacity;
use cell::{Cell, Core};
use circuit::Circuit;
use existing::Existing;
use gate::{Gate, Outcome};
use generations::Generations;
use held::HeldPlaces;
use learned::Learned;
use pool::Pools;
use starts::Starts;
use timer::Timers;

/// How soon a timer that must wait for another process is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Says what the session of a canonical host is made of; `None` when no route has it.
pub type Planner = Box<dyn Fn(&str) -> Option<Plan> + Send + Sync>;

/// Says which hosts have a route to what exists already, so that it may run before anybody asks.
pub type Named = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// The limits that the fleet keeps.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Held requests in all.
    pub held: usize,
    /// Sessions kept in memory.
    pub sessions: usize,
    /// Instances that are awake, waking or stopping, of the engines that have such a limit.
    pub running: BTreeMap<Arc<str>, usize>,
}

/// Why no lease was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests are held for this session as its route allows.
    SessionFull,
    /// As many requests are held for the route's sessions as it allows.
    RouteFull,
    /// As many requests are held in all as the edge allows.
    HeldFull,
    /// This client has begun as many wakes as one may; the next one may come after this.
    ClientRate(Duration),
    /// As many wakes of this route were begun as it allows; the next one may come after this.
    RouteRate(Duration),
    /// As many instances of the route run as it allows.
    RouteRunning,
    /// As many instances of the route exist as it allows.
    RouteInstances,
    /// As many instances of the engine run as it is given.
    EngineRunning,
    /// The session is not awake, and this request wakes nobody.
    Asleep,
    /// As many sessions are in use as the edge allows.
    SessionsFull,
    /// The last wake failed; the next one may come after this.
    CoolingDown(Duration),
    /// The instance cannot be put to sleep; tried again after this.
    StopFailing(Duration),
    /// Its route is gone.
    Retired,
    /// The session changed too often to be leased just now.
    Busy,
}

impl Refusal {
    fn of_machine(refusal: session::Refusal, now: Instant) -> Self {
        match refusal {
            session::Refusal::Full => Self::SessionFull,
            session::Refusal::Retired => Self::Retired,
            session::Refusal::Asleep => Self::Asleep,
            session::Refusal::CoolingDown(at) => {
                Self::CoolingDown(at.saturating_duration_since(now))
            }
            session::Refusal::StopFailing(at) => {
                Self::StopFailing(at.saturating_duration_since(now))
            }
        }
    }
}

/// Why a hold ended without an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// The wake failed, in this phase.
    Failed(Failure, Phase),
    /// `wake.timeout` is over, in this phase.
    TimedOut(Phase),
    /// The session would not be leased again.
    Refused(Refusal),
}

/// What the engine says of an instance that refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs; the connection failed for another reason.
    Runs,
    /// That life is over.
    Gone,
}

/// An engine by name, its places for starts, and whether it answers.
pub(crate) struct EnginePort {
    name: Arc<str>,
    engine: Arc<dyn Engine>,
    starts: Starts,
    circuit: Circuit,
}

/// Every session of this edge. Made once, lives as long as the process.
pub struct Fleet {
    cells: papaya::HashMap<SessionId, Arc<Cell>>,
    engines: HashMap<Arc<str>, EnginePort>,
    planner: Planner,
    limits: Limits,
    held: Arc<HeldPlaces>,
    capacity: Arc<Capacity>,
    existing: Arc<Existing>,
    learned: Learned,
    /// Set before the fleet runs, where there are any.
    pools: OnceLock<Pools>,
    /// Every session with a place among those that run, by its number.
    running: Mutex<HashMap<u64, Weak<Cell>>>,
    /// Whose turn it is to make room.
    evicting: Mutex<()>,
    timers: Timers,
    tasks: TaskTracker,
    runtime: OnceLock<Handle>,
    next_id: AtomicU64,
    generations: Generations,
    /// Hosts of routes that name what exists already.
    named: OnceLock<Named>,
    /// Cleared while another process may hold leases on the same instances: nothing sleeps then.
    may_sleep: AtomicBool,
    /// Told when it is set again.
    sleep_allowed: Notify,
    /// While files of routes cannot be used, what no route wants may be theirs: it is left alone.
    knows_all_routes: AtomicBool,
}

impl Fleet {
    /// `engines` by name, each with its most starts at once.
    pub fn new(
        engines: impl IntoIterator<Item = (Arc<str>, Arc<dyn Engine>)>,
        starts: usize,
        limits: Limits,
        planner: Planner,
    ) -> Arc<Self> {
        let port = |(name, engine): (Arc<str>, _)| {
            let starts = Starts::new(starts);
            (Arc::clone(&name), EnginePort { name, engine, starts, circuit: Circuit::default() })
        };
        Arc::new(Self {
            cells: papaya::HashMap::new(),
            engines: engines.into_iter().map(port).collect(),
            planner,
            held: Arc::new(HeldPlaces::new(limits.held)),
            limits,
            capacity: Arc::default(),
            existing: Arc::default(),
            learned: Learned::default(),
            pools: OnceLock::new(),
            running: Mutex::default(),
            evicting: Mutex::default(),
            timers: Timers::default(),
            tasks: TaskTracker::new(),
            runtime: OnceLock::new(),
            next_id: AtomicU64::new(0),
            generations: Generations::default(),
            named: OnceLock::new(),
            may_sleep: AtomicBool::new(true),
            sleep_allowed: Notify::new(),
            knows_all_routes: AtomicBool::new(true),
        })
    }

    /// Leases the session of a canonical host. `plan` is asked only when the session is new.
    pub fn acquire<'a>(
        self: &Arc<Self>,
        host: &str,
        caller: impl Into<Caller<'a>>,
        plan: impl Fn() -> Plan,
    ) -> Result<Lease, Refusal> {
        let mut caller = caller.into();
        // A second round only where the cell was taken out between look-up and lock.
        for _ in 0..3 {
            let found = self.cells.pin().get(host).cloned();
            let cell = match found {
                Some(cell) => cell,
                None if caller.asker == Asker::Ignored => return Err(Refusal::Asleep),
                None => {
                    // Before anything is made that outlives the request.
                    caller.may_wake()?;
                    self.create(host, plan(), Depth::Removed, self.generations.newest())?
                }
            };
            if let Some(lease) = Lease::take(&cell, caller) {
                return lease;
            }
        }
        Err(Refusal::Busy)
    }

    /// Asks the engine, once for all who ask, whether the lease's instance still runs, which
    /// refused a connection at `refused_at`.
    pub async fn suspect(&self, lease: &Lease, refused_at: Instant) -> Verdict {
        outside::judge(&lease.cell, Some((lease.generation, refused_at))).await
    }

    /// Puts a session to sleep for an operator; `None` when there is no such session. While another
    /// process may hold leases on it, it counts as in use.
    pub fn sleep(&self, host: &str, to: Option<Depth>) -> Option<SleepAnswer> {
        let cell = self.cells.pin().get(host).cloned()?;
        if !self.may_sleep.load(Ordering::Acquire) {
            return Some(SleepAnswer::InUse(cell.lock().machine.leases().max(1)));
        }
        Some(self.apply(&cell, "operator", |core, now, out| {
            let first = core.plan.policy.ladder.first().map(|rung| rung.to);
            core.machine.sleep(to.or(first).unwrap_or(Depth::Stopped), now, out)
        }))
    }

    /// The depths of the engine that the session of `host` uses.
    pub fn depths(&self, host: &str) -> &'static [Depth] {
        let cell = self.cells.pin().get(host).cloned();
        let engine = cell.map(|cell| Arc::clone(&cell.lock().plan.engine));
        engine.and_then(|name| self.engines.get(&name)).map_or(&[], |port| port.engine.depths())
    }

    /// The routes have changed: retires the sessions that none has any more, updates the others.
    pub fn replan(self: &Arc<Self>) {
        let cells: Vec<_> = self.cells.pin().values().cloned().collect();
        self.look_after_pools();
        self.look_for_named();
        for cell in cells.into_iter().filter(|cell| !cell.is_spare) {
            let plan = (self.planner)(cell.session.host());
            let revived = self.apply(&cell, "routes changed", |core, now, out| {
                let retired = core.machine.is_retired();
                match plan {
                    None if !self.may_sleep.load(Ordering::Acquire) => {}
                    None => core.machine.handle(Event::Retire, now, out),
                    Some(plan) if *core.plan != plan || retired => {
                        core.machine.adopt_policy(plan.policy.clone());
                        core.plan = Arc::new(plan);
                    }
                    Some(_) => {}
                }
                retired && !core.machine.is_retired()
            });
            if revived {
                // Nobody looked while no route wanted it: others may have started it.
                let judged = async move { outside::judge(&cell, None).await };
                self.tasks.spawn_on(judged, &self.handle());
            }
        }
    }

    /// Whether every route is known. While some are not, an instance without one is left as it is;
    /// once they are, it is looked at again.
    pub fn set_knows_all_routes(self: &Arc<Self>, all: bool) {
        let did = self.knows_all_routes.swap(all, Ordering::AcqRel);
        // Before the fleet runs, its start is still to look.
        if all && !did && self.runtime.get().is_some() {
            let fleet = Arc::clone(self);
            self.tasks.spawn_on(async move { fleet.adopt_all().await }, &self.handle());
        }
    }

    /// Asks this engine nothing before a route is on it: what it has may be another edge's.
    pub fn leave_until_routed(&self, engine: &str) {
        if let Some(port) = self.engines.get(engine) {
            port.circuit.leave();
        }
    }

    /// Routes are on these engines.
    pub fn set_routed<'n>(&self, engines: impl Iterator<Item = &'n str>) {
        engines.filter_map(|name| self.engines.get(name)).for_each(|port| port.circuit.join());
    }

    /// Whether idle sessions may be put to sleep. Not while another process that shares the
    /// instances still serves requests.
    pub fn set_may_sleep(self: &Arc<Self>, may: bool) {
        if may {
            self.refresh_claims();
        }
        if !self.may_sleep.swap(may, Ordering::AcqRel) && may {
            self.sleep_allowed.notify_waiters();
            // Routes that went meanwhile.
            self.replan();
        }
    }

    /// Returns once instances may be put to sleep.
    async fn until_may_sleep(&self) {
        loop {
            // Before the look: from here on it is told.
            let allowed = self.sleep_allowed.notified();
            if self.may_sleep.load(Ordering::Acquire) {
                return;
            }
            allowed.await;
        }
    }

    /// Adopts what runs, then keeps the clock and listens to the engines until dropped.
    /// `adopted` is called once requests may be taken.
    pub async fn run(self: Arc<Self>, adopted: impl FnOnce()) {
        self.runtime.get_or_init(Handle::current);
        self.adopt_all().await;
        adopted();
        for port in self.engines.values() {
            let listen = outside::listen(Arc::clone(&self), Arc::clone(&port.name));
            self.tasks.spawn(listen);
        }
        self.tasks.spawn(Arc::clone(&self).keep_filling());
        self.tasks.spawn(Arc::clone(&self).keep_learning());
        loop {
            let (at, cell) = self.timers.next().await;
            if let Some(cell) = cell.upgrade() {
                self.fire(&cell, at);
            }
        }
    }

    /// What is due for a session happens now, and not when its timer comes round.
    fn look_at_clock(&self, cell: &Arc<Cell>) {
        self.fire(cell, tokio::time::Instant::now().into_std());
    }

    fn fire(&self, cell: &Arc<Cell>, at: Instant) {
        self.apply(cell, "timer", |core, now, out| {
            if core.timer_at == Some(at) {
                core.timer_at = None;
            }
            if self.must_wait(core) {
                core.machine.look(now, out);
            } else {
                core.machine.handle(Event::Timer, now, out);
            }
        });
    }

    /// Whether its next timer could put an instance to sleep that another process may still use.
    fn must_wait(&self, core: &Core) -> bool {
        let dozing = matches!(core.machine.state(), State::Idle { .. } | State::Asleep { .. })
            || core.machine.is_found();
        dozing && !self.may_sleep.load(Ordering::Acquire)
    }

    /// Runs a machine: lock, step, move the gate, post the effects while the lock still keeps
    /// their order, arm the timer; then, unlocked, log the transition.
    fn apply<R>(
        &self,
        cell: &Arc<Cell>,
        cause: &'static str,
        step: impl FnOnce(&mut Core, Instant, &mut Vec<Effect>) -> R,
    ) -> R {
        let mut core = cell.lock();
        let now = tokio::time::Instant::now().into_std();
        let (from, slept) = (core.machine.state().name(), core.machine.depth());
        let mut out = Vec::new();
        let result = step(&mut core, now, &mut out);
        if let (Some(depth), State::Waking { .. }) = (slept, core.machine.state()) {
            core.woken_from = Some(depth);
        }
        if core.machine.is_found() {
            core.woken_from = None;
        }
        for effect in out {
            self.carry_out(cell, &mut core, effect);
        }
        if let Some(mut at) = core.machine.deadline() {
            if self.must_wait(&core) {
                at = at.max(now + LOOK_AGAIN);
            }
            if core.timer_at.is_none_or(|armed| at < armed) {
                self.arm(cell, &mut core, at);
            }
        }
        if core.next_place.is_some() && core.machine.leases() == 0 {
            // Whoever it was found for has left, or was refused.
            core.next_place = None;
        }
        // Not where a warm request is all that happens.
        if !matches!(core.machine.state(), State::Awake { .. } | State::Idle { .. }) {
            self.count_existing(cell, &mut core);
        }
        let to = core.machine.state().name();
        if from == to {
            return result;
        }
        if cell.is_spare {
            self.look_after_pools();
        }
        if let State::Asleep { .. } = core.machine.state() {
            self.vacate(cell, &mut core);
        }
        let generation = core.machine.generation();
        let warm = matches!((from, to), ("awake", "idle") | ("idle", "awake"));
        if !warm {
            let at = SystemTime::now();
            core.remember(Moment { at, from, to, cause, generation: generation.0 });
        }
        let failed = core.wake_failed.take().map(|failure| (failure, core.last_error.clone()));
        let engine = Arc::clone(&core.plan.engine);
        drop(core);
        if let Some((failure, error)) = failed {
            tell_failed_wake(&cell.session, generation, &engine, failure, error.as_deref());
        }
        let session = &cell.session;
        if warm {
            tracing::debug!(%session, %generation, from, to, cause, "session");
        } else {
            tracing::info!(%session, %generation, from, to, cause, "session");
        }
        result
    }

    fn carry_out(&self, cell: &Arc<Cell>, core: &mut Core, effect: Effect) {
        match effect {
            Effect::Start(generation) => {
                self.generations.see(generation);
                self.occupy(cell, core);
                driver::start(self, cell, core, generation);
            }
            Effect::Stop(generation, to) => driver::stop(self, cell, core, generation, to),
            // `driver::start` opens the gate itself, with the times of the wake.
            Effect::Open(_) => {}
            Effect::Fail(generation, failure) => {
                let phase = cell.phase();
                core.note(failure, phase);
                // Those who wait behind a stop are told as well: their wake had not begun.
                if generation == core.machine.generation() {
                    core.wake_failed = Some(failure);
                }
                cell.gate
                    .send_replace(Gate { generation, outcome: Outcome::Failed(failure, phase) });
            }
            Effect::Rejoin(generation) => {
                cell.gate.send_replace(Gate { generation, outcome: Outcome::Over });
            }
        }
    }

    /// A life begins: its place is the one found for it, or the one before's. What runs already
    /// gets one in any case.
    fn occupy(&self, cell: &Arc<Cell>, core: &mut Core) {
        let need = core.need(self.running_max(&core.plan.engine));
        let before = core.place.take();
        let place = if core.next_place.is_none() && before.is_some() && !core.gives_way {
            before.filter(|place| place.need().is_same_place(&need))
        } else {
            core.next_place.take()
        };
        core.place = Some(place.unwrap_or_else(|| self.capacity.force(&need)));
        core.gives_way = false;
        self.lock_running().insert(cell.id, Arc::downgrade(cell));
    }

    /// Whether it has an instance, of whatever depth; a spare is nobody's yet.
    fn count_existing(&self, cell: &Cell, core: &mut Core) {
        let deepest = self.deepest(&core.plan.engine);
        let gone = core.machine.depth().is_some_and(|depth| deepest <= depth)
            && matches!(core.machine.state(), State::Asleep { .. });
        if gone || cell.is_spare {
            core.exists = None;
        } else if core.exists.as_ref().is_none_or(|exists| !exists.is_of(&core.plan.route)) {
            core.exists = self.existing.add(&core.plan.route, usize::MAX);
        }
    }

    /// Nothing of it runs any more.
    fn vacate(&self, cell: &Cell, core: &mut Core) {
        (core.place, core.next_place, core.gives_way) = (None, None, false);
        self.lock_running().remove(&cell.id);
    }

    fn lock_running(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<Cell>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most instances of an engine.
    fn running_max(&self, engine: &str) -> usize {
        self.limits.running.get(engine).copied().unwrap_or(usize::MAX)
    }

    fn arm(&self, cell: &Arc<Cell>, core: &mut Core, at: Instant) {
        self.timers.arm(cell.id, core.timer_at, at, Arc::downgrade(cell));
        core.timer_at = Some(at);
    }

    /// A cell for `host`, made or found; makes room among blank ones when the fleet is full.
    fn create(
        self: &Arc<Self>,
        host: &str,
        plan: Plan,
        depth: Depth,
        last: Generation,
    ) -> Result<Arc<Cell>, Refusal> {
        if self.limits.sessions <= self.cells.len() && !self.make_room() {
            return Err(Refusal::SessionsFull);
        }
        let session = SessionId::new(host);
        let now = tokio::time::Instant::now().into_std();
        let machine = Session::new(plan.policy.clone(), last, depth, now);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let cell = Cell::new(id, session.clone(), Arc::clone(self), machine, Arc::new(plan));
        Ok(Arc::clone(self.cells.pin().get_or_insert(session, Arc::new(cell))))
    }

    /// Forgets an eighth of the blank sessions; whether there was any.
    fn make_room(&self) -> bool {
        let cells = self.cells.pin();
        let most = self.limits.sessions / 8 + 1;
        let blank = cells.values().filter(|cell| {
            let mut core = cell.lock();
            let deepest = self.deepest(&core.plan.engine);
            core.evicted = core.machine.is_blank(deepest) && core.machine.leases() == 0;
            if core.evicted {
                // If it comes back, its lives are numbered on.
                self.generations.see(core.machine.generation());
            }
            core.evicted
        });
        let blank: Vec<_> = blank.take(most).map(|cell| cell.session.clone()).collect();
        for session in &blank {
            cells.remove(session);
        }
        !blank.is_empty()
    }

    fn deepest(&self, engine: &str) -> Depth {
        let port = self.engines.get(engine);
        port.and_then(|port| port.engine.depths().last().copied()).unwrap_or(Depth::Stopped)
    }

    fn handle(&self) -> Handle {
        self.runtime.get().cloned().unwrap_or_else(Handle::current)
    }
}

/// The one place where a wake that came to nothing is logged and counted.
fn tell_failed_wake(
    session: &SessionId,
    generation: Generation,
    engine: &str,
    failure: Failure,
    error: Option<&str>,
) {
    let was_wanted = matches!(failure, Failure::PutToSleep | Failure::Retired);
    let result = if was_wanted { "cancelled" } else { "failed" };
    METRICS.wakes.with_label_values(&[engine, result]).inc();
    if !was_wanted {
        tracing::warn!(%session, %generation, engine, error, "wake failed");
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fleet({} sessions)", self.cells.len())
    }
}
