//! The Pods of a workload, listed or watched.
//!
//! A selector says which Pods may be its own, their owners say which are: two workloads may select
//! the same labels, and a session must never be sent to another's Pod.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};

use super::{
    client::Client,
    found::{Found, Status},
    workload::Workload,
};
use crate::engine::Error;

/// No session is so many Pods.
const PODS_MAX: usize = 1000;

/// What one look has found.
#[derive(Debug, Default)]
pub(super) struct Replicas(HashMap<String, Replica>);

#[derive(Debug)]
struct Replica {
    pod: Found,
    belongs: Belongs,
}

/// Whether a Pod is the workload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belongs {
    Yes,
    No,
    /// What stood between them is gone.
    Unknown,
}

impl Replicas {
    pub(super) async fn list(client: &Client, workload: &Workload) -> Result<Self, Error> {
        let mut listed = Self::default();
        for pod in client.pods(&workload.selector()?).await? {
            listed.see(client, &workload.uid, pod).await?;
        }
        Ok(listed)
    }

    async fn see(&mut self, client: &Client, workload: &str, pod: Pod) -> Result<(), Error> {
        let pod = Found::new(pod);
        let belongs = match self.0.get(&pod.uid) {
            Some(known) => known.belongs,
            None if self.0.len() == PODS_MAX => {
                let text = format!("a workload's selector selects more than {PODS_MAX} Pods");
                return Err(Error::Invalid(text));
            }
            None => belongs(client, workload, &pod).await?,
        };
        self.0.insert(pod.uid.clone(), Replica { pod, belongs });
        Ok(())
    }

    /// The Pod that the session is: of several, the one that has run the longest, so that it stays
    /// the same one for as long as it does.
    pub(super) fn chosen(&self) -> Option<&Found> {
        let its = self.0.values().filter(|replica| replica.belongs == Belongs::Yes);
        let alive = its
            .map(|replica| &replica.pod)
            .filter(|pod| matches!(pod.status, Status::Pending | Status::Running));
        alive.max_by_key(|pod| {
            let runs = pod.status == Status::Running;
            (pod.stuck().is_none(), runs, Reverse((pod.age(), &pod.name)))
        })
    }

    /// The Pods that may run and may be its own.
    pub(super) fn that_may_run(&self) -> impl Iterator<Item = &Found> {
        let its = self.0.values().filter(|replica| replica.belongs != Belongs::No);
        its.map(|replica| &replica.pod).filter(|pod| pod.may_run())
    }
}

async fn belongs(client: &Client, workload: &str, pod: &Found) -> Result<Belongs, Error> {
    let Some(owner) = pod.controller() else { return Ok(Belongs::No) };
    if owner.uid == workload {
        return Ok(Belongs::Yes);
    }
    if owner.kind != "ReplicaSet" {
        return Ok(Belongs::No);
    }
    Ok(match client.owner_of_set(owner).await? {
        Some(uid) if uid == workload => Belongs::Yes,
        Some(_) => Belongs::No,
        None => Belongs::Unknown,
    })
}

/// The same, as it changes.
pub(super) struct Watch {
    client: Arc<Client>,
    workload: String,
    seen: Replicas,
    looked: bool,
    events: BoxStream<'static, watcher::Result<Event<Pod>>>,
}

impl Watch {
    pub(super) async fn new(client: &Arc<Client>, workload: &Workload) -> Result<Self, Error> {
        let config = watcher::Config::default().labels(&workload.selector()?);
        Ok(Self {
            client: Arc::clone(client),
            workload: workload.uid.clone(),
            seen: Replicas::default(),
            looked: false,
            events: watcher(client.all::<Pod>().await?, config).boxed(),
        })
    }

    /// Waits for the next change; at first, for the first look. Why none comes is in `trouble`.
    pub(super) async fn next(&mut self, trouble: &mut Option<Error>) -> Result<&Replicas, Error> {
        loop {
            match self.client.next(&mut self.events, self.looked, trouble).await? {
                Event::Init => self.seen = Replicas::default(),
                Event::InitApply(pod) => self.see(pod).await?,
                Event::InitDone => {
                    self.looked = true;
                    return Ok(&self.seen);
                }
                Event::Apply(pod) => {
                    self.see(pod).await?;
                    return Ok(&self.seen);
                }
                Event::Delete(pod) => {
                    self.seen.0.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                    return Ok(&self.seen);
                }
            }
        }
    }

    async fn see(&mut self, pod: Pod) -> Result<(), Error> {
        self.seen.see(&self.client, &self.workload, pod).await
    }
}
