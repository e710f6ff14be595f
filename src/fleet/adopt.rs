//! At boot, and whenever events may have been missed: what is ours and routed is adopted, what is
//! ours and unrouted is put to sleep.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use tokio::time::timeout;

use super::{EnginePort, Fleet, Named, cell::Placed, pool::is_spare};
use crate::{
    engine::{Instance, InstanceState},
    session::{Depth, Event, SessionId, Spec},
};

/// The edge begins without an engine that takes longer to list what runs.
const BOOT_MAX: Duration = Duration::from_secs(10);
/// Tries to put an unrouted instance to sleep, with a second more between each.
const TRIES_MAX: u32 = 5;
/// Looks at once for what routes name.
const LOOKS_MAX: usize = 8;

impl Fleet {
    /// Adopts what every engine lists. An engine that does not answer in time is asked again as
    /// soon as its events come back.
    pub(super) async fn adopt_all(self: &Arc<Self>) {
        let asked = self.engines.values().filter(|port| !port.circuit.is_left());
        let adoptions = asked.map(async |port| {
            let adopted = async {
                self.adopt_listed(port, None).await;
                self.adopt_named(port).await;
            };
            if timeout(BOOT_MAX, adopted).await.is_err() {
                tracing::warn!(engine = &*port.name, "does not answer: going on without it");
            }
        });
        join_all(adoptions).await;
    }

    /// Adopts what one engine lists; of one session only, if given.
    pub(super) async fn adopt_listed(
        self: &Arc<Self>,
        port: &EnginePort,
        only: Option<&SessionId>,
    ) {
        for instance in self.list(port).await.unwrap_or_default() {
            if only.is_none_or(|only| *only == instance.session) {
                self.adopt_instance(port, instance);
            }
        }
    }

    /// From now on, what exists already and these hosts name is looked for, too: no engine lists
    /// what is not ours.
    pub fn keep_named(&self, named: Named) {
        let _ = self.named.set(named); // a second call changes nothing
    }

    /// The routes have changed: one may name what runs.
    pub(super) fn look_for_named(self: &Arc<Self>) {
        // Before the fleet runs, its start looks.
        let Some(runtime) = self.runtime.get() else { return };
        let fleet = Arc::clone(self);
        let look = async move {
            for port in fleet.engines.values() {
                fleet.adopt_named(port).await;
            }
        };
        self.tasks.spawn_on(look, runtime);
    }

    /// Adopts what the routes of one engine name and nobody has asked for yet.
    pub(super) async fn adopt_named(self: &Arc<Self>, port: &EnginePort) {
        let hosts = self.named.get().map_or_else(Vec::new, |named| named());
        stream::iter(hosts)
            .for_each_concurrent(LOOKS_MAX, |host| async move {
                let plan = (self.planner)(&host).filter(|plan| plan.engine == port.name);
                let Some(plan) = plan.filter(|_| !self.cells.pin().contains_key(&*host)) else {
                    return;
                };
                let session = SessionId::new(host);
                match port.engine.inspect(&session, &plan.spec).await {
                    Ok(Some(instance)) => self.adopt_instance(port, instance),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%session, %error, "cannot look for what its route names");
                    }
                }
            })
            .await;
    }

    /// What one engine lists; `None` where it does not.
    pub(super) async fn list(&self, port: &EnginePort) -> Option<Vec<Instance>> {
        let listed = port.engine.list().await;
        port.circuit.note(&listed);
        // Nothing may want this engine: an error only once a session does.
        listed
            .inspect_err(|error| {
                tracing::info!(engine = &*port.name, %error, "cannot list instances yet");
            })
            .ok()
    }

    pub(super) fn adopt_instance(self: &Arc<Self>, port: &EnginePort, instance: Instance) {
        let session = self.owner_of(&instance.session);
        let host = session.host();
        if self.cells.pin().contains_key(host) || self.adopt_spare(port, &instance) {
            return;
        }
        let plan = (self.planner)(host).filter(|plan| plan.engine == port.name);
        let Some(plan) = plan else {
            self.retire_instance(port, instance);
            return;
        };
        let last = self.generations.newest().max(instance.generation);
        let depth = match instance.state {
            InstanceState::Asleep(depth) => depth,
            InstanceState::Running(_) => Depth::Stopped,
        };
        let Ok(cell) = self.create(host, plan, depth, last) else {
            tracing::warn!(session = host, "not adopted: limits.sessions is reached");
            return;
        };
        // Also where nothing changes: the ladder's next step gets its timer.
        self.apply(&cell, "adopted", |core, now, out| match instance.state {
            // A start returns what runs as it is; then the probe says whether it is ready.
            InstanceState::Running(_) => core.machine.handle(Event::Found, now, out),
            // What sleeps with its memory was ready once.
            InstanceState::Asleep(depth) if depth < Depth::Stopped => {
                let plan = Arc::clone(&core.plan);
                core.placed =
                    Some(Placed { plan, life: instance.life, ready: true, address: None });
            }
            InstanceState::Asleep(_) => {}
        });
    }

    /// No route wants it on this engine: it sleeps; a spare, in which nobody was yet, is removed.
    fn retire_instance(self: &Arc<Self>, port: &EnginePort, instance: Instance) {
        let unused = is_spare(&instance.session) && !self.is_used(&instance.session);
        let to = if unused { self.deepest(&port.name) } else { Depth::Stopped };
        let kept = if unused { to } else { Depth::Suspended };
        if matches!(instance.state, InstanceState::Asleep(depth) if kept <= depth) {
            return;
        }
        if !self.knows_all_routes.load(Ordering::Acquire) {
            let session = &instance.session;
            tracing::info!(%session, "left as it is: its route may be in a file that is wrong");
            return;
        }
        let (engine, fleet) = (Arc::clone(&port.engine), Arc::clone(self));
        let task = async move {
            let session = &instance.session;
            tracing::info!(%session, "no route wants this instance: it goes to sleep");
            fleet.until_may_sleep().await;
            for attempt in 1..=TRIES_MAX {
                let life = instance.life.as_ref();
                match engine.sleep(session, &Spec::default(), life, to).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%session, %error, attempt, "cannot put to sleep"),
                }
                tokio::time::sleep(Duration::from_secs(attempt.into())).await;
            }
        };
        self.tasks.spawn_on(task, &self.handle());
    }
}
