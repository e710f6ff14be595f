//! What happens outside: deaths, and what others start and stop. An event only says *look*; what
//! the engine then answers is what counts.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use super::{
    EnginePort, Fleet, Phase, Verdict,
    cell::{Cell, Core},
};
use crate::{
    engine::{self, EngineEvent, Instance, InstanceState, Life},
    session::{Address, Depth, Event, Generation, Plan, SessionId, machine::State},
};

/// An engine that takes longer to say what is in the way has no hint.
const HINT_MAX: Duration = Duration::from_secs(2);
/// Inspections at once of sessions that a list contradicts.
const INSPECTIONS_MAX: usize = 8;
/// An event that was lost is made up for within this.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);

/// Listens to one engine until the process ends, and asks it now and then.
pub(super) async fn listen(fleet: Arc<Fleet>, name: Arc<str>) {
    let Some(port) = fleet.engines.get(&name) else { return };
    if port.circuit.is_left() {
        port.circuit.until_joined().await;
        fleet.adopt_listed(port, None).await;
    }
    // Side by side: a list that takes long delays no event.
    tokio::join!(
        hear(&fleet, port),
        reconcile_regularly(&fleet, port),
        port.circuit.watch(&port.name, &*port.engine),
    );
}

async fn hear(fleet: &Arc<Fleet>, port: &EnginePort) {
    let mut events = port.engine.events();
    while let Some(event) = events.next().await {
        match event {
            EngineEvent::Changed(session) => changed(fleet, port, session).await,
            EngineEvent::Resync => {
                port.circuit.hears(None);
                port.circuit.doubt();
                reconcile(fleet, port).await;
            }
            EngineEvent::Deaf(why) => {
                port.circuit.hears(Some(why));
                reconcile(fleet, port).await;
            }
        }
    }
    tracing::error!(engine = &*port.name, "the engine's events have ended");
}

async fn reconcile_regularly(fleet: &Arc<Fleet>, port: &EnginePort) {
    loop {
        sleep(RECONCILE_EVERY).await;
        reconcile(fleet, port).await;
    }
}

async fn changed(fleet: &Arc<Fleet>, port: &EnginePort, session: SessionId) {
    let known = fleet.cells.pin().get(&fleet.owner_of(&session)).cloned();
    match known {
        Some(cell) => {
            cell.changed.notify_one();
            fleet.tasks.spawn(async move { judge(&cell, None).await });
        }
        None => fleet.adopt_listed(port, Some(&session)).await,
    }
}

/// Compares what one engine lists with what is believed: looks at every session that the list
/// contradicts, and adopts what is unknown.
async fn reconcile(fleet: &Arc<Fleet>, port: &EnginePort) {
    let Some(listed) = fleet.list(port).await else { return };
    let instances = listed.iter().map(|instance| instance.session.clone()).collect();
    let mut found: HashMap<_, _> =
        listed.into_iter().map(|instance| (fleet.owner_of(&instance.session), instance)).collect();
    let cells: Vec<_> = fleet.cells.pin().values().cloned().collect();
    let mut contradicted = Vec::new();
    for cell in cells {
        let listed = found.remove(&cell.session);
        if is_contradicted(&cell, port, listed) {
            contradicted.push(cell);
        }
    }
    // The list is of a moment that has passed: it is a reason to look, and no more.
    stream::iter(contradicted)
        .for_each_concurrent(INSPECTIONS_MAX, |cell| async move {
            judge(&cell, None).await;
        })
        .await;
    for instance in found.into_values() {
        fleet.adopt_instance(port, instance);
    }
    fleet.adopt_named(port).await;
    fleet.release_gone(port, &instances).await;
}

fn is_contradicted(cell: &Cell, port: &EnginePort, listed: Option<Instance>) -> bool {
    let core = cell.lock();
    let placed = core.placed.as_ref();
    let plan = placed.map_or(&core.plan, |placed| &placed.plan);
    let life = placed.and_then(|placed| placed.life.as_ref());
    let (look, deepest) = (look(cell, &core), cell.fleet.deepest(&port.name));
    // What is under way is looked at when it ends.
    let wrong = look == Look::Busy || verdict(look, listed, life, deepest).is_some();
    plan.engine == port.name && wrong
}

/// Asks the engine about one session and tells its machine. `suspected` is the generation whose
/// instance refused a connection, and when: an older word of the engine says nothing about that.
pub(super) async fn judge(cell: &Arc<Cell>, suspected: Option<(Generation, Instant)>) -> Verdict {
    let mut vouched = cell.inspection.lock().await;
    let Some(sight) = Sight::of(cell) else { return Verdict::Gone };
    let known = suspected.and_then(|suspicion| sight.answers(suspicion, *vouched));
    if let Some(verdict) = known {
        return verdict;
    }
    let asked_at = tokio::time::Instant::now().into_std();
    match sight.ask(cell).await {
        Ok(Some(event)) => {
            sight.find_why(cell).await;
            sight.tell(cell, event);
            Verdict::Gone
        }
        Ok(None) => {
            *vouched = Some((sight.generation, asked_at));
            Verdict::Runs
        }
        Err(error) => {
            let session = &cell.session;
            tracing::warn!(%session, %error, "cannot ask the engine about an instance");
            Verdict::Runs
        }
    }
}

/// A session as it was when an inspection began: what the engine then says is about this.
struct Sight {
    before: Look,
    generation: Generation,
    plan: Arc<Plan>,
    life: Option<Life>,
    is_waking: bool,
}

impl Sight {
    /// `None` while an engine call is under way; its end looks again.
    fn of(cell: &Cell) -> Option<Self> {
        let mut core = cell.lock();
        let before = look(cell, &core);
        let (Look::Running(generation) | Look::Asleep(generation, _)) = before else {
            core.look_again = true;
            return None;
        };
        let placed = core.placed.as_ref();
        let plan = placed.map_or_else(|| Arc::clone(&core.plan), |placed| Arc::clone(&placed.plan));
        let life = placed.and_then(|placed| placed.life.clone());
        let is_waking = matches!(core.machine.state(), State::Waking { .. });
        Some(Self { before, generation, plan, life, is_waking })
    }

    /// What is known of a suspicion without asking.
    fn answers(
        &self,
        (suspected, refused_at): (Generation, Instant),
        vouched: Option<(Generation, Instant)>,
    ) -> Option<Verdict> {
        if self.before != Look::Running(suspected) {
            return Some(Verdict::Gone);
        }
        let since = vouched.is_some_and(|(g, at)| g == suspected && refused_at <= at);
        since.then_some(Verdict::Runs)
    }

    /// What the engine's word changes; `None` when all is as it was.
    async fn ask(&self, cell: &Cell) -> Result<Option<Event>, engine::Error> {
        let found = cell.fleet.inspect_whole(cell, &self.plan).await?;
        if self.is_reborn(found.as_ref()) {
            cell.reborn.notify_one();
            return Ok(None);
        }
        let deepest = cell.fleet.deepest(&self.plan.engine);
        Ok(verdict(self.before, found, self.life.as_ref(), deepest))
    }

    /// Why what was getting ready has ended, for the operator who reads of the failed wake.
    async fn find_why(&self, cell: &Arc<Cell>) {
        let address = {
            let core = cell.lock();
            let is_waking = matches!(core.machine.state(), State::Waking { .. });
            core.placed.as_ref().filter(|_| is_waking).and_then(|placed| placed.address.clone())
        };
        let Some(address) = address else { return };
        if let Some(why) = cell.fleet.hint(&cell.session, &self.plan, &address).await {
            cell.lock().not_ready = Some(why);
        }
    }

    /// Whether what is not ready yet has ended and was started anew, by an engine that restarts
    /// what ends: the wake goes on with that.
    fn is_reborn(&self, found: Option<&Instance>) -> bool {
        let runs = found.filter(|found| matches!(found.state, InstanceState::Running(_)));
        self.is_waking && self.life.is_some() && runs.is_some_and(|now| now.life != self.life)
    }

    fn tell(&self, cell: &Arc<Cell>, event: Event) {
        cell.fleet.apply(cell, "found by the engine", |core, now, out| {
            // What was seen may be about a life that has ended since.
            if look(cell, core) == self.before {
                core.look_again |= matches!(self.before, Look::Running(_));
                core.machine.handle(event, now, out);
            }
        });
    }
}

/// An engine call for this session has ended: looks, if something was reported meanwhile.
pub(super) fn look_again(cell: &Arc<Cell>) {
    if std::mem::take(&mut cell.lock().look_again) {
        let looked = Arc::clone(cell);
        cell.fleet.tasks.spawn(async move { judge(&looked, None).await });
    }
}

/// What an inspection can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// An engine call is under way: its own answer counts.
    Busy,
    Running(Generation),
    Asleep(Generation, Depth),
}

fn look(cell: &Cell, core: &Core) -> Look {
    let generation = core.machine.generation();
    match core.machine.state() {
        State::Awake { .. } | State::Idle { .. } => Look::Running(generation),
        State::Waking { .. } if cell.phase() == Phase::GettingReady => Look::Running(generation),
        State::Asleep { depth, .. } => Look::Asleep(generation, *depth),
        State::Waking { .. } | State::Stopping { .. } => Look::Busy,
    }
}

fn verdict(
    before: Look,
    found: Option<Instance>,
    life: Option<&Life>,
    deepest: Depth,
) -> Option<Event> {
    match (before, found.map(|instance| (instance.state, instance.life))) {
        (Look::Busy, _) => None,
        (Look::Running(g), None) => Some(Event::Lost(g, deepest)),
        (Look::Running(g), Some((InstanceState::Asleep(depth), _))) => Some(Event::Lost(g, depth)),
        // Somebody restarted it: that life is over; the look after its stop finds the new one.
        (Look::Running(g), Some((InstanceState::Running(_), now))) => {
            let other = life.is_some() && now.as_ref() != life;
            other.then_some(Event::Lost(g, Depth::Stopped))
        }
        (Look::Asleep(..), Some((InstanceState::Running(_), _))) => Some(Event::Found),
        (Look::Asleep(g, depth), Some((InstanceState::Asleep(now), _))) => {
            (now != depth).then_some(Event::Lost(g, now))
        }
        (Look::Asleep(g, depth), None) => (depth < deepest).then_some(Event::Lost(g, deepest)),
    }
}

impl Fleet {
    /// What the engine knows of an instance that does not get ready, within a limit.
    pub(super) async fn hint(
        &self,
        session: &SessionId,
        plan: &Plan,
        address: &Address,
    ) -> Option<String> {
        let port = self.engines.get(&plan.engine)?;
        let instance = self.instance_of(session);
        timeout(HINT_MAX, port.engine.hint(&instance, &plan.spec, address)).await.ok()?
    }

    /// What the engine says of a session's instance.
    pub(super) async fn inspect_whole(
        &self,
        cell: &Cell,
        plan: &Plan,
    ) -> Result<Option<Instance>, engine::Error> {
        match self.engines.get(&plan.engine) {
            Some(port) => port.engine.inspect(&self.instance_of(&cell.session), &plan.spec).await,
            None => Ok(None),
        }
    }

    /// The same, the state alone.
    pub(super) async fn inspect(
        &self,
        cell: &Cell,
        plan: &Plan,
    ) -> Result<Option<InstanceState>, engine::Error> {
        Ok(self.inspect_whole(cell, plan).await?.map(|instance| instance.state))
    }
}
