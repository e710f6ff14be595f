//! Spares: instances made ahead from a route's template, asleep at a light depth, each of which
//! becomes the instance of one new session.
//!
//! To its engine a spare is a session of its own, with a name that no route has; whose it becomes is
//! a file of [`claims`]. Until then it is a cell like any other, whose ladder has one rung at zero.

mod claims;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    hash::{Hash as _, Hasher},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    EnginePort, Fleet,
    cell::{Cell, Core, Placed, most},
};
use crate::{
    engine::{Instance, InstanceState},
    metrics::METRICS,
    session::{
        Depth, Event, Plan, SPARES, SessionId,
        machine::{Asker, State},
    },
};
use claims::{Claim, Claims};

/// How often a pool is looked at where nothing calls for it.
const LOOK: Duration = Duration::from_secs(10);
/// After a spare that came to nothing.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Says what each route with a pool makes its spares of.
pub type Templates = Box<dyn Fn() -> Vec<Plan> + Send + Sync>;

/// The pools of all routes.
pub(super) struct Pools {
    templates: Templates,
    claims: Claims,
    /// By route. A route without spares may have no entry.
    spares: Mutex<BTreeMap<Arc<str>, Spares>>,
    changed: Notify,
}

#[derive(Default)]
struct Spares {
    /// Those that wait, and the one that is being made.
    cells: Vec<Arc<Cell>>,
    /// Those that are being removed.
    leaving: Vec<Arc<Cell>>,
    /// None is made before, after one came to nothing.
    not_before: Option<Instant>,
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").finish_non_exhaustive()
    }
}

/// Whether an instance is, or was, a spare.
pub(super) fn is_spare(instance: &SessionId) -> bool {
    instance.host().ends_with(SPARES)
}

fn spare_id(name: &str) -> SessionId {
    SessionId::new(format!("{name}{SPARES}"))
}

/// What a spare is made of, in a few letters of its name: an edge that starts later knows by it
/// which spares still fit.
fn mark(plan: &Plan) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            let digest = self.0.clone().finalize();
            digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut sha = Sha(Sha256::new());
    (&plan.route, &plan.engine, &plan.spec, &plan.probe, &plan.pool).hash(&mut sha);
    format!("{:016x}", sha.finish())
}

fn fits(instance: &SessionId, plan: &Plan) -> bool {
    instance.host().strip_suffix(SPARES).is_some_and(|name| name.ends_with(&mark(plan)))
}

impl Pools {
    fn new(templates: Templates, folder: &Path) -> io::Result<Self> {
        let claims = Claims::open(folder.to_owned())?;
        Ok(Self { templates, claims, spares: Mutex::default(), changed: Notify::new() })
    }

    /// Something may be to do.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Spares>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that waits and fits, out of the pool.
    fn take(&self, plan: &Plan) -> Option<Arc<Cell>> {
        let mut spares = self.lock();
        let cells = &mut spares.get_mut(&plan.route)?.cells;
        let at = cells.iter().position(|cell| fits(&cell.session, plan) && waits(cell))?;
        Some(cells.swap_remove(at))
    }
}

/// Whether it is as deep asleep as it is to wait.
fn waits(cell: &Cell) -> bool {
    let core = cell.lock();
    let wanted = core.plan.pool.map(|pool| pool.depth);
    let is_asleep =
        matches!(core.machine.state(), State::Asleep { depth, .. } if Some(*depth) == wanted);
    is_asleep && was_ready(&core)
}

/// Whether it came to nothing: too deep asleep, or before it was ever ready.
fn is_spoilt(cell: &Cell, wanted: Depth) -> bool {
    let core = cell.lock();
    let is_asleep = matches!(core.machine.state(), State::Asleep { .. });
    core.machine.depth() > Some(wanted) || (is_asleep && !was_ready(&core))
}

fn was_ready(core: &Core) -> bool {
    core.placed.as_ref().is_some_and(|placed| placed.ready)
}

/// The most memory that it may hold meanwhile, in bytes; `None` where its route sets no limit.
fn memory_held(cell: &Arc<Cell>) -> Option<u64> {
    let core = cell.lock();
    let is_off =
        matches!(core.machine.state(), State::Asleep { depth, .. } if *depth > Depth::Paused);
    core.plan.spec.memory.map(|memory| if is_off { 0 } else { memory })
}

impl Fleet {
    /// Keeps pools from now on. Claims are files of `folder`.
    pub fn keep_pools(&self, templates: Templates, folder: &Path) -> io::Result<()> {
        let pools = Pools::new(templates, folder)?;
        let _ = self.pools.set(pools); // a second call changes nothing
        Ok(())
    }

    /// Which instance is this session's.
    pub(super) fn instance_of(&self, session: &SessionId) -> SessionId {
        let claimed = self.pools.get().and_then(|pools| pools.claims.instance(session.host()));
        claimed.unwrap_or_else(|| session.clone())
    }

    /// Which session this instance is of.
    pub(super) fn owner_of(&self, instance: &SessionId) -> SessionId {
        let owner = self.pools.get().and_then(|pools| pools.claims.owner(instance));
        owner.unwrap_or_else(|| instance.clone())
    }

    /// Whether this instance is, or was, somebody's, though it was a spare.
    pub(super) fn is_used(&self, instance: &SessionId) -> bool {
        self.pools.get().is_some_and(|pools| pools.claims.is_used(instance))
    }

    /// Hands a spare to a new session; `None` where none waits.
    pub(super) async fn claim(
        self: &Arc<Self>,
        session: &SessionId,
        plan: &Plan,
    ) -> Option<Placed> {
        self.pools.get()?;
        loop {
            let spare = self.pools.get()?.take(plan)?;
            let (fleet, engine) = (Arc::clone(self), Arc::clone(&plan.engine));
            let (instance, of) = (spare.session.clone(), session.clone());
            let claim =
                move || fleet.pools.get().map(|pools| pools.claims.claim(&instance, &engine, &of));
            let claimed = tokio::task::spawn_blocking(claim).await.ok()??;
            // Whatever came of it, it is no spare any more.
            let placed = self.dismiss(&spare);
            self.look_after_pools();
            match (claimed, placed) {
                (Ok(Claim::Made), Some(placed)) => {
                    let instance = spare.session.host();
                    tracing::info!(%session, instance, "takes a spare");
                    METRICS.spares_taken.with_label_values(&[&*plan.route]).inc();
                    return Some(placed);
                }
                (Ok(Claim::Made), None) => self.release(session).await,
                (Ok(Claim::Taken), _) => {}
                (Err(error), _) => {
                    tracing::warn!(%session, %error, "cannot note whose a spare is: none is taken");
                    return None;
                }
            }
        }
    }

    /// Takes a spare out of the fleet; what the engine placed, if it still waits.
    fn dismiss(&self, spare: &Cell) -> Option<Placed> {
        let placed = {
            let mut core = spare.lock();
            core.evicted = true;
            let asleep = matches!(core.machine.state(), State::Asleep { .. });
            core.placed.take().filter(|_| asleep)
        };
        self.cells.pin().remove(&spare.session);
        placed
    }

    /// The session's instance is gone: the next one may be another spare.
    pub(super) async fn release(self: &Arc<Self>, session: &SessionId) {
        if self.instance_of(session) == *session {
            return;
        }
        let (fleet, of) = (Arc::clone(self), session.clone());
        let release = move || fleet.pools.get().map(|pools| pools.claims.release(&of));
        if let Ok(Some(Err(error))) = tokio::task::spawn_blocking(release).await {
            tracing::warn!(%session, %error, "cannot forget whose a spare was");
        }
    }

    /// Forgets the claims on instances that are gone, of one engine of which this is all there is.
    pub(super) async fn release_gone(
        self: &Arc<Self>,
        port: &EnginePort,
        listed: &HashSet<SessionId>,
    ) {
        let Some(pools) = self.pools.get() else { return };
        let deepest = self.deepest(&port.name);
        for session in pools.claims.lost(&port.name, listed) {
            let cell = self.cells.pin().get(&session).cloned();
            // One that wakes may not be listed yet.
            if cell.is_none_or(|cell| cell.lock().machine.is_blank(deepest)) {
                self.release(&session).await;
            }
        }
        if let Err(error) = pools.claims.forget_gone(&port.name, listed, Instant::now()) {
            tracing::warn!(%error, "cannot forget whose spares were");
        }
    }

    /// Reads what the process before claimed until its end: those are no spares.
    pub(super) fn refresh_claims(&self) {
        let Some(pools) = self.pools.get() else { return };
        if let Err(error) = pools.claims.refresh() {
            tracing::warn!(%error, "cannot read whose spares are");
        }
        for spares in pools.lock().values_mut() {
            for cell in spares.cells.extract_if(.., |cell| pools.claims.is_used(&cell.session)) {
                self.dismiss(&cell);
            }
        }
    }

    pub(super) fn look_after_pools(&self) {
        if let Some(pools) = self.pools.get() {
            pools.look();
        }
    }

    /// Sets the gauge of spares to what is true now.
    pub(super) fn count_spares(&self) {
        let Some(pools) = self.pools.get() else { return };
        METRICS.spares.reset();
        METRICS.spares_memory.reset();
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (route, spares) in &*pools.lock() {
            METRICS.spares.with_label_values(&[&**route]).set(gauge(spares.cells.len() as u64));
            let held: Option<u64> = spares.cells.iter().map(memory_held).sum();
            if let Some(held) = held.filter(|_| !spares.cells.is_empty()) {
                METRICS.spares_memory.with_label_values(&[&**route]).set(gauge(held));
            }
        }
    }

    /// How many spares of a route wait.
    pub fn spares_of_route(&self, route: &str) -> usize {
        let Some(pools) = self.pools.get() else { return 0 };
        let spares = pools.lock();
        let cells = spares.get(route).map_or(&[][..], |spares| &spares.cells);
        cells.iter().filter(|cell| waits(cell)).count()
    }

    /// Fills and drains the pools until dropped.
    pub(super) async fn keep_filling(self: Arc<Self>) {
        let Some(pools) = self.pools.get() else { return };
        loop {
            self.until_may_sleep().await;
            let plans = (pools.templates)();
            self.drain_others(pools, &plans);
            for plan in plans {
                self.tend(pools, plan);
            }
            tokio::select! {
                () = pools.changed.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Spares of which there is no route, or another one than they were made for.
    fn drain_others(self: &Arc<Self>, pools: &Pools, plans: &[Plan]) {
        let mut all = pools.lock();
        for (route, spares) in &mut *all {
            let plan = plans.iter().find(|plan| plan.route == *route);
            let fits = |cell: &Arc<Cell>| plan.is_some_and(|plan| fits(&cell.session, plan));
            self.drain(spares, |cell| !fits(cell));
            spares.leaving.retain(|cell| !self.is_gone(cell));
        }
        all.retain(|route, spares| {
            let wanted = plans.iter().any(|plan| plan.route == *route);
            wanted || !spares.leaving.is_empty()
        });
    }

    /// As deep as they go: then they are gone.
    fn drain(&self, spares: &mut Spares, unwanted: impl Fn(&Arc<Cell>) -> bool) {
        for cell in spares.cells.extract_if(.., |cell| unwanted(cell)) {
            let deepest = self.deepest(&cell.lock().plan.engine);
            self.apply(&cell, "spare not needed", |core, now, out| {
                core.machine.sleep(deepest, now, out);
            });
            spares.leaving.push(cell);
        }
    }

    /// Takes a spare of which nothing is left out of the fleet.
    fn is_gone(&self, cell: &Cell) -> bool {
        let gone = {
            let core = cell.lock();
            let deepest = self.deepest(&core.plan.engine);
            matches!(core.machine.state(), State::Asleep { depth, .. } if deepest <= *depth)
        };
        if gone {
            self.dismiss(cell);
        }
        gone
    }

    /// One spare more or some fewer, where there are not as many as there should be.
    fn tend(self: &Arc<Self>, pools: &Pools, plan: Plan) {
        let (Some(pool), now) = (plan.pool, Instant::now()) else { return };
        let room = most(plan.limits.instances).saturating_sub(self.existing.of_route(&plan.route));
        let wanted = most(Some(pool.ready)).min(room);
        let mut all = pools.lock();
        let spares = all.entry(Arc::clone(&plan.route)).or_default();
        let before = spares.cells.len();
        self.drain(spares, |cell| is_spoilt(cell, pool.depth));
        if spares.cells.len() < before {
            spares.not_before = Some(now + AFTER_FAILURE);
        }
        let surplus: Vec<_> = spares.cells.iter().skip(wanted).cloned().collect();
        self.drain(spares, |cell| surplus.iter().any(|one| Arc::ptr_eq(one, cell)));
        let may = spares.not_before.is_none_or(|at| at <= now)
            && spares.cells.iter().all(|cell| waits(cell));
        if spares.cells.len() < wanted && may {
            spares.cells.extend(self.make_spare(plan));
        }
    }

    /// `None` where there is no room for one.
    fn make_spare(self: &Arc<Self>, plan: Plan) -> Option<Arc<Cell>> {
        let (deepest, last) = (self.deepest(&plan.engine), self.generations.newest());
        let number = self.next_id.load(Ordering::Relaxed);
        // No other process has begun in the same millisecond with the same state.
        let name = format!("{:x}-{number:x}-{}", last.0, mark(&plan));
        let running_max = self.running_max(&plan.engine);
        let cell = self.create(spare_id(&name).host(), plan, deepest, last).ok()?;
        let need = cell.lock().need(running_max);
        let Ok(place) = self.capacity.take(&need) else {
            self.dismiss(&cell);
            return None;
        };
        self.apply(&cell, "spare wanted", |core, now, out| {
            core.next_place = Some(place);
            // Nobody waits for it.
            core.machine.acquire(Asker::Operator, now, out);
            core.machine.handle(Event::Release(core.machine.generation()), now, out);
        });
        Some(cell)
    }

    /// A spare that an engine lists: still one, or one too many. `false` for what is no spare.
    pub(super) fn adopt_spare(self: &Arc<Self>, port: &EnginePort, instance: &Instance) -> bool {
        let Some(pools) = self.pools.get() else { return false };
        if !is_spare(&instance.session) || pools.claims.is_used(&instance.session) {
            return false;
        }
        let plans = (pools.templates)();
        let mine = |plan: &&Plan| plan.engine == port.name && fits(&instance.session, plan);
        let Some(plan) = plans.iter().find(mine) else { return false };
        let depth = match instance.state {
            InstanceState::Asleep(depth) => depth,
            InstanceState::Running(_) => Depth::Stopped,
        };
        let last = self.generations.newest().max(instance.generation);
        let Ok(cell) = self.create(instance.session.host(), plan.clone(), depth, last) else {
            return false;
        };
        self.apply(&cell, "adopted", |core, now, out| match instance.state {
            InstanceState::Running(_) => core.machine.handle(Event::Found, now, out),
            InstanceState::Asleep(_) => {
                let (plan, life) = (Arc::clone(&core.plan), instance.life.clone());
                core.placed = Some(Placed { plan, life, ready: true, address: None });
            }
        });
        pools.lock().entry(Arc::clone(&plan.route)).or_default().cells.push(cell);
        true
    }
}
