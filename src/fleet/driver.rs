//! Carries out what a machine decided: engine calls, one after the other for each session, many
//! sessions side by side.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    EnginePort, Fleet, Origin, Phase, WakeTimes,
    capacity::Place,
    cell::{Cell, Core, Placed},
    gate::{Gate, Outcome},
    outside, probe,
    starts::StartPlace,
    turnstile::Turnstile,
};
use crate::{
    engine::{self, Health, InstanceState, Started},
    metrics::METRICS,
    session::{Depth, Effect, Endpoint, Event, Failure, Generation, Plan, Probe},
};

/// An engine call that has not come back by then has failed; engines have limits of their own,
/// and shorter ones.
const CALL_MAX: Duration = Duration::from_secs(300);

/// Begins a wake. Called under the session's lock, so that calls keep the machine's order.
pub(super) fn start(fleet: &Fleet, cell: &Arc<Cell>, core: &mut Core, generation: Generation) {
    let plan = Arc::clone(&core.plan);
    let before = core.placed.replace(Placed::planned(&plan));
    core.wake = CancellationToken::new();
    core.is_late = false;
    core.not_ready = None;
    let (done, tail) = oneshot::channel();
    let wake = Wake {
        cell: Arc::clone(cell),
        generation,
        plan,
        origin: core.origin.take(),
        room: core.place.as_ref().map(Place::granted),
        cancel: core.wake.clone(),
        before,
        is_found: core.machine.is_found(),
        turn: core.tail.replace(tail),
    };
    cell.set_phase(Phase::Queued);
    fleet.tasks.spawn_on(wake.run(done), &fleet.handle());
}

/// Begins a sleep. Called under the session's lock.
pub(super) fn stop(
    fleet: &Fleet,
    cell: &Arc<Cell>,
    core: &mut Core,
    generation: Generation,
    to: Depth,
) {
    core.wake.cancel();
    let (done, tail) = oneshot::channel();
    let turn = core.tail.replace(tail);
    let cell = Arc::clone(cell);
    let task = async move {
        wait_for(turn).await;
        cell.set_phase(Phase::Stopping);
        let event = match sleep(&cell, to).await {
            Ok(()) => {
                let engine = {
                    let core = cell.lock();
                    let placed = core.placed.as_ref().map_or(&core.plan, |placed| &placed.plan);
                    Arc::clone(&placed.engine)
                };
                if cell.fleet.deepest(&engine) <= to {
                    cell.fleet.release(&cell.session).await;
                }
                Event::Stopped(generation)
            }
            Err(error) => {
                let session = &cell.session;
                tracing::warn!(%session, %generation, %error, "cannot put to sleep, will retry");
                cell.lock().last_error = Some(error.to_string());
                Event::StopFailed(generation)
            }
        };
        // The next call waits for `done`: the end is told only when the engine is free again.
        drop(done);
        cell.fleet.apply(&cell, "engine", |core, now, out| core.machine.handle(event, now, out));
        outside::look_again(&cell);
    };
    fleet.tasks.spawn_on(task, &fleet.handle());
}

async fn sleep(cell: &Arc<Cell>, to: Depth) -> Result<(), engine::Error> {
    let placed = {
        let core = cell.lock();
        let nothing = || Placed::planned(&core.plan);
        core.placed.clone().unwrap_or_else(nothing)
    };
    put_to_sleep(cell, &placed, to).await
}

async fn put_to_sleep(cell: &Cell, placed: &Placed, to: Depth) -> Result<(), engine::Error> {
    let port = port(&cell.fleet, &placed.plan)?;
    let instance = cell.fleet.instance_of(&cell.session);
    let call = port.engine.sleep(&instance, &placed.plan.spec, placed.life.as_ref(), to);
    let result = guarded("sleep", call).await;
    port.circuit.note(&result);
    let word = if result.is_ok() { "ok" } else { "failed" };
    METRICS.sleeps.with_label_values(&[&*port.name, to.as_str(), word]).inc();
    result
}

/// One wake, from the engine's call to the first answer.
struct Wake {
    cell: Arc<Cell>,
    generation: Generation,
    plan: Arc<Plan>,
    /// Whose turn its start is.
    origin: Option<Origin>,
    /// Tells when it has a place among those that run.
    room: Option<watch::Receiver<bool>>,
    cancel: CancellationToken,
    /// What was started last.
    before: Option<Placed>,
    /// It was seen to run: nothing is to be started.
    is_found: bool,
    /// Ends when the call before has ended.
    turn: Option<oneshot::Receiver<()>>,
}

/// How the call of a wake to its engine ended.
enum Called {
    /// There was none: the wake was called off.
    Off,
    /// There was none: what was seen to run does so no more, and sleeps as deep.
    Gone(Depth),
    Ended(Result<Started, engine::Error>),
}

impl Wake {
    async fn run(mut self, done: oneshot::Sender<()>) {
        wait_for(self.turn.take()).await;
        let mut times = WakeTimes::default();
        let called = self.call_engine(&mut times).await;
        drop(done);
        match called {
            Called::Off => {}
            Called::Gone(depth) => self.gone(depth),
            Called::Ended(Ok(started)) => self.get_ready(started, times).await,
            Called::Ended(Err(error)) => self.failed(&error),
        }
    }

    /// Waits for room among those that run, then for a place among those that start.
    async fn place<'p>(&self, port: &'p EnginePort) -> StartPlace<'p> {
        if let Some(mut room) = self.room.clone().filter(|room| !*room.borrow()) {
            self.cell.set_phase(Phase::NoRoom);
            if room.wait_for(|granted| *granted).await.is_err() {
                // Its place is gone: so is this life, and whoever ends it cancels this.
                std::future::pending::<()>().await;
            }
        }
        self.cell.set_phase(Phase::Queued);
        port.starts.place(self.origin).await
    }

    /// Waits for a place and calls the engine. A call that has begun runs to its end, so that the
    /// stop behind it knows what there is to stop.
    async fn call_engine(&mut self, times: &mut WakeTimes) -> Called {
        let cell = Arc::clone(&self.cell);
        let port = match port(&cell.fleet, &self.plan) {
            Ok(port) => port,
            Err(error) => return Called::Ended(Err(error)),
        };
        if let Err(error) = port.circuit.admit() {
            return Called::Ended(Err(error));
        }
        let began = Instant::now();
        let _place = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Called::Off,
            place = self.place(port) => place,
        };
        times.queued = began.elapsed();
        self.cell.set_phase(Phase::Starting);
        self.tell(Event::Begun(self.generation), "engine");
        let called = Instant::now();
        // An edited route leaves it behind on another engine.
        let elsewhere = |old: &&Placed| old.plan.engine != self.plan.engine;
        if let Some(old) = self.before.as_ref().filter(elsewhere)
            && let Err(error) = put_to_sleep(&self.cell, old, Depth::Stopped).await
        {
            return Called::Ended(Err(error));
        }
        if self.is_found {
            match cell.fleet.inspect(&cell, &self.plan).await {
                Ok(Some(InstanceState::Running(_))) => {}
                Ok(Some(InstanceState::Asleep(depth))) => return Called::Gone(depth),
                Ok(None) => return Called::Gone(cell.fleet.deepest(&self.plan.engine)),
                Err(error) => return Called::Ended(Err(error)),
            }
        }
        self.take_spare().await;
        let instance = cell.fleet.instance_of(&cell.session);
        let call = port.engine.start(&instance, &self.plan.spec, self.generation);
        let started = guarded("start", call).await;
        port.circuit.note(&started);
        times.engine = called.elapsed();
        if let Ok(started) = &started {
            self.cell.lock().placed = Some(Placed {
                plan: Arc::clone(&self.plan),
                life: Some(started.life.clone()),
                ready: self.resumes(started),
                address: Some(started.address.clone()),
            });
            if started.ran_already {
                self.tell(Event::RunsAlready(self.generation), "it runs already");
            }
        }
        Called::Ended(started)
    }

    fn tell(&self, event: Event, cause: &'static str) {
        let step = |core: &mut Core, now, out: &mut Vec<Effect>| {
            core.machine.handle(event, now, out);
        };
        self.cell.fleet.apply(&self.cell, cause, step);
    }

    /// What was seen to run does so no more: it is no start that failed, and nothing was started.
    fn gone(&self, depth: Depth) {
        self.tell(Event::Lost(self.generation, depth), "found by the engine");
    }

    /// A session that has no instance takes one that was made ahead.
    async fn take_spare(&mut self) {
        let Some(pool) = self.plan.pool.filter(|_| !self.cell.is_spare) else { return };
        let fleet = &self.cell.fleet;
        let woken_from = self.cell.lock().woken_from;
        if woken_from.is_none_or(|depth| depth < fleet.deepest(&self.plan.engine)) {
            return;
        }
        fleet.release(&self.cell.session).await;
        if let Some(spare) = fleet.claim(&self.cell.session, &self.plan).await {
            self.before = Some(spare);
            self.cell.lock().woken_from = Some(pool.depth);
        }
    }

    async fn get_ready(&self, mut started: Started, mut times: WakeTimes) {
        self.cell.set_phase(Phase::GettingReady);
        outside::look_again(&self.cell);
        let began = Instant::now();
        loop {
            let probe = match &self.plan.probe {
                Probe::Engine if self.served_before(&started).await => &Probe::Tcp,
                probe => probe,
            };
            let ready = probe::ready(&self.cell, &self.plan, probe, &started.address);
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = ready => break,
                () = self.cell.reborn.notified() => {}
            }
            started = match self.start_again().await {
                None => return,
                Some(Ok(started)) => started,
                Some(Err(error)) => return self.failed(&error),
            };
        }
        times.ready = began.elapsed();
        METRICS.wakes.with_label_values(&[&*self.plan.engine, "ok"]).inc();
        let parts = [("queued", times.queued), ("engine", times.engine), ("ready", times.ready)];
        for (part, took) in parts {
            let seconds = METRICS.wake_seconds.with_label_values(&[&*self.plan.engine, part]);
            seconds.observe(took.as_secs_f64());
        }
        let generation = self.generation;
        let endpoint = Endpoint { generation, address: started.address.clone() };
        self.cell.fleet.apply(&self.cell, "ready", |core, now, out| {
            core.last_error = None;
            if let Some(from) = core.woken_from {
                self.cell.fleet.learned.note(core.kind(from), times.engine + times.ready);
            }
            if let Some(placed) = &mut core.placed {
                placed.ready = true;
            }
            core.machine.handle(Event::Started(endpoint), now, out);
            for effect in &*out {
                if let Effect::Open(endpoint) = effect {
                    let turnstile = Turnstile::new();
                    self.let_in(turnstile.clone());
                    core.crowd = Some(turnstile.clone());
                    let outcome = Outcome::Open(endpoint.clone(), times, turnstile);
                    self.cell.gate.send_replace(Gate { generation, outcome });
                }
            }
        });
    }

    /// What was started has ended, and the engine itself has started it anew: its next life is this
    /// wake's, and may be at another address. `None` when the wake is called off.
    async fn start_again(&self) -> Option<Result<Started, engine::Error>> {
        let (done, tail) = oneshot::channel();
        {
            let mut core = self.cell.lock();
            if self.cancel.is_cancelled() {
                return None;
            }
            // The call before was this wake's own, and has ended.
            core.tail = Some(tail);
        }
        let instance = self.cell.fleet.instance_of(&self.cell.session);
        let port = match port(&self.cell.fleet, &self.plan) {
            Ok(port) => port,
            Err(error) => return Some(Err(error)),
        };
        let call = port.engine.start(&instance, &self.plan.spec, self.generation);
        let started = guarded("start", call).await;
        port.circuit.note(&started);
        if let Ok(started) = &started {
            self.cell.lock().placed = Some(Placed {
                plan: Arc::clone(&self.plan),
                life: Some(started.life.clone()),
                ready: false,
                address: Some(started.address.clone()),
            });
        }
        drop(done);
        Some(started)
    }

    /// Until nobody waits any more, who comes now must not overtake those who were held.
    fn let_in(&self, turnstile: Turnstile) {
        let (cell, generation) = (Arc::clone(&self.cell), self.generation);
        self.cell.fleet.tasks.spawn(async move {
            turnstile.open_up().await;
            let mut core = cell.lock();
            if core.machine.generation() == generation {
                core.crowd = None;
            }
        });
    }

    /// Whether this life need not become healthy again. An engine may call unhealthy what it has
    /// just thawed until its next check, which can be half a minute away: Docker does. What ran
    /// before this edge knew of it may be such a one, and was served by the edge before.
    async fn served_before(&self, started: &Started) -> bool {
        if self.resumes(started) {
            return true;
        }
        let state = self.cell.fleet.inspect(&self.cell, &self.plan);
        (self.is_found || started.ran_already)
            && matches!(state.await, Ok(Some(InstanceState::Running(Health::Unhealthy))))
    }

    /// Whether this is a life that was ready before, and only lay still.
    fn resumes(&self, started: &Started) -> bool {
        let before = self.before.as_ref().filter(|before| before.ready);
        before.is_some_and(|before| before.life.as_ref() == Some(&started.life))
    }

    fn failed(&self, error: &engine::Error) {
        let generation = self.generation;
        if self.is_found {
            // It runs as far as is known, and can be looked at.
            self.cell.set_phase(Phase::GettingReady);
            let session = &self.cell.session;
            tracing::warn!(%session, %generation, %error, "what runs cannot be reached: asked again");
        }
        let failure =
            if error.is_retryable() { Failure::EngineBusy } else { Failure::EngineRefused };
        self.cell.fleet.apply(&self.cell, "engine", |core, now, out| {
            core.last_error = Some(error.to_string());
            core.machine.handle(Event::StartFailed(generation, failure), now, out);
        });
    }
}

fn port<'f>(fleet: &'f Fleet, plan: &Plan) -> Result<&'f EnginePort, engine::Error> {
    let unknown = || engine::Error::Invalid(format!("there is no engine named `{}`", plan.engine));
    fleet.engines.get(&plan.engine).ok_or_else(unknown)
}

async fn wait_for(turn: Option<oneshot::Receiver<()>>) {
    if let Some(turn) = turn {
        // The sender is dropped, never used: the call before has ended either way.
        let _ = turn.await;
    }
}

/// An engine that hangs or panics has failed; the session is told in any case.
async fn guarded<T>(
    call: &'static str,
    answer: impl Future<Output = Result<T, engine::Error>>,
) -> Result<T, engine::Error> {
    let answer = AssertUnwindSafe(answer).catch_unwind();
    match tokio::time::timeout(CALL_MAX, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(engine::Error::Failed(format!("the engine's {call} panicked"))),
        Err(_) => Err(engine::Error::Timeout { call, after: CALL_MAX }),
    }
}
