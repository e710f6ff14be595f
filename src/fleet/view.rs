//! What an operator sees of a session.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

use super::{Fleet, Moment, capacity::Room, cell::Cell};
use crate::{metrics::METRICS, session::machine::State};

/// One session as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// Its canonical host.
    pub host: String,
    /// Its route's name.
    pub route: String,
    /// Its engine's name.
    pub engine: String,
    /// `asleep`, `waking`, `awake`, `idle` or `stopping`.
    pub state: &'static str,
    /// How deep it sleeps, or is going to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<&'static str>,
    /// What it is busy with, while waking or stopping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<&'static str>,
    /// The life that runs, or the last one.
    pub generation: u64,
    /// Requests, streams and sockets that hold it awake, waiting ones included.
    pub leases: u32,
    /// Where the instance listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Milliseconds until it sleeps, or sleeps deeper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleeps_in_ms: Option<u64>,
    /// The depth it then goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleeps_to: Option<&'static str>,
    /// Milliseconds until a client may wake it, after a failed wake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_ms: Option<u64>,
    /// Why its last wake or sleep failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Milliseconds that a wake from where it is takes, by those of late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usual_wake_ms: Option<u64>,
    /// The name that its engine has for its instance, where that was a spare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Nobody's yet: it was made ahead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spare: bool,
    /// Its route is gone: it sleeps once nobody uses it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// Its last transitions, oldest first.
    pub history: Vec<Moment>,
}

/// How many instances run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Running {
    /// By engine, with every engine that has a limit or does not answer.
    pub engines: BTreeMap<String, RunningOf>,
    /// By route, where any runs.
    pub routes: BTreeMap<String, usize>,
}

/// How many instances of one engine run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunningOf {
    /// Awake, waking or stopping.
    pub running: usize,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Why the engine is not called, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why it tells nothing of what happens outside, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deaf: Option<String>,
}

impl Fleet {
    /// How many instances run, by what limits them.
    pub fn running(&self) -> Running {
        let mut all = Running::default();
        for (engine, limit) in &self.limits.running {
            let none = RunningOf { limit: Some(*limit), ..RunningOf::default() };
            all.engines.insert(engine.to_string(), none);
        }
        for (room, count) in self.capacity.counts() {
            match room {
                Room::Engine(engine) => {
                    all.engines.entry(engine.to_string()).or_default().running = count;
                }
                Room::Route(route) => drop(all.routes.insert(route.to_string(), count)),
            }
        }
        for (engine, trouble) in self.troubles() {
            all.engines.entry(engine.to_string()).or_default().trouble = Some(trouble);
        }
        for (engine, why) in self.deaf() {
            all.engines.entry(engine.to_string()).or_default().deaf = Some(why);
        }
        all
    }

    /// The engines that do not answer, and why.
    pub fn troubles(&self) -> impl Iterator<Item = (&str, String)> {
        self.engines.values().filter_map(|port| Some((&*port.name, port.circuit.trouble()?)))
    }

    /// The engines that answer, and refuse to tell what happens outside; and why.
    pub fn deaf(&self) -> impl Iterator<Item = (&str, String)> {
        self.engines.values().filter_map(|port| Some((&*port.name, port.circuit.deaf()?)))
    }

    /// How many instances of one route run.
    pub fn running_of_route(&self, route: &str) -> usize {
        self.capacity.count(&Room::Route(route.into()))
    }

    /// Every session, by host.
    pub fn sessions(&self) -> Vec<SessionView> {
        let mut views: Vec<_> = self.cells.pin().values().map(|cell| view(cell)).collect();
        views.sort_by(|a, b| a.host.cmp(&b.host));
        views
    }

    /// One session.
    pub fn session(&self, host: &str) -> Option<SessionView> {
        self.cells.pin().get(host).map(|cell| view(cell))
    }

    /// Sets the gauge of sessions by state to what is true now.
    pub fn count_sessions(&self) {
        self.count_spares();
        for state in ["asleep", "waking", "awake", "idle", "stopping"] {
            METRICS.sessions.with_label_values(&[state]).set(0);
        }
        for cell in self.cells.pin().values().filter(|cell| !cell.is_spare) {
            let state = cell.lock().machine.state().name();
            METRICS.sessions.with_label_values(&[state]).inc();
        }
        for engine in self.engines.keys() {
            let count = self.capacity.count(&Room::Engine(Arc::clone(engine)));
            let running = METRICS.running.with_label_values(&[&**engine]);
            running.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

fn view(cell: &Cell) -> SessionView {
    let core = cell.lock();
    let now = tokio::time::Instant::now().into_std();
    let until = |at: std::time::Instant| millis(at.saturating_duration_since(now));
    let state = core.machine.state();
    let (address, cooldown) = match state {
        State::Asleep { not_before, .. } => (None, not_before.filter(|at| now < *at)),
        State::Stopping { .. } | State::Waking { .. } => (None, None),
        State::Awake { endpoint, .. } | State::Idle { endpoint, .. } => {
            (Some(endpoint.address.to_string()), None)
        }
    };
    let busy = matches!(state, State::Waking { .. } | State::Stopping { .. });
    let next = core.machine.next_sleep();
    let from = match state {
        State::Waking { .. } => core.woken_from,
        _ => core.machine.depth(),
    };
    let usual = from.and_then(|from| cell.fleet.learned.usual(&core.kind(from)));
    let instance = Some(cell.fleet.instance_of(&cell.session)).filter(|is| *is != cell.session);
    SessionView {
        host: cell.session.host().to_owned(),
        route: core.plan.route.to_string(),
        engine: core.plan.engine.to_string(),
        state: state.name(),
        depth: core.machine.depth().map(|depth| depth.as_str()),
        phase: busy.then(|| cell.phase().as_str()),
        generation: core.machine.generation().0,
        leases: core.machine.leases(),
        address,
        sleeps_in_ms: next.map(|(at, _)| until(at)),
        sleeps_to: next.map(|(_, to)| to.as_str()),
        cooldown_ms: cooldown.map(until),
        last_error: core.last_error.clone(),
        usual_wake_ms: usual.map(millis),
        instance: instance.map(|instance| instance.host().to_owned()),
        spare: cell.is_spare,
        retired: core.machine.is_retired(),
        history: core.history.iter().cloned().collect(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unix_ms<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(millis(at.duration_since(UNIX_EPOCH).unwrap_or_default()))
}
