//! A session that is a Deployment or StatefulSet of others: a wake scales it to 1, a sleep to 0.
//! Never created, never removed.
//!
//! Its label and annotations say whose session it is. They are written before it is scaled up, so
//! that nothing runs by our doing that a list would not show; and each change is bound to the
//! version that it was decided on.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{TryStreamExt as _, stream};
use kube::runtime::watcher::watch_object;
use tokio::time::{sleep, timeout};

use super::{
    Kubernetes, SETTLE, Seen,
    client::Client,
    found::Status,
    replicas::{Replicas, Watch},
    workload::{Mark, Reference, Workload},
};
use crate::{
    engine::{Error, Instance, Started},
    session::{Generation, SessionId, Spec},
};

/// How often a change is tried that others are faster than: controllers write into a workload's
/// status whenever a Pod of it changes.
const TRIES_MAX: u32 = 20;
/// How many workloads `list` asks about at once.
const LOOKS: usize = 16;

/// The workload that a route names, if it names one.
pub(super) fn named(spec: &Spec) -> Result<Option<Reference>, Error> {
    spec.kubernetes.scale.as_deref().map(str::parse).transpose()
}

impl Kubernetes {
    pub(super) async fn scale_up(
        &self,
        reference: &Reference,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
        seen: &mut Seen,
    ) -> Result<Started, Error> {
        let (client, owner) = (Arc::clone(&self.client), self.owner.clone());
        let (wanted, of) = (reference.clone(), session.clone());
        let up = async move { up(&client, &owner, &wanted, &of, generation).await };
        let (workload, ran_already) = self.to_its_end(session, up).await?;
        let mut pods = Watch::new(&self.client, &workload).await?;
        loop {
            match pods.next(&mut seen.trouble).await?.chosen() {
                Some(pod) => {
                    if let Some(error) = pod.stuck() {
                        return Err(error);
                    }
                    if let Some(started) = pod.started(spec) {
                        let life = Mark::of(reference, Some(pod));
                        return Ok(Started { life, ran_already, ..started });
                    }
                    seen.pod = Some(pod.clone());
                }
                None if seen.pod.is_some() => self.is_still_up(reference).await?,
                None => {}
            }
        }
    }

    async fn is_still_up(&self, reference: &Reference) -> Result<(), Error> {
        let gone = match self.client.workload(reference).await? {
            Some(workload) if workload.replicas > 0 => return Ok(()),
            Some(_) => "scaled to 0",
            None => "deleted",
        };
        Err(Error::Conflict(format!("{reference} was {gone} by somebody while it started")))
    }

    /// Why it has no Pod after all this time, if it says so.
    pub(super) async fn refusal(&self, reference: &Reference) -> Option<String> {
        let workload = self.client.workload(reference).await.ok()??;
        workload.refusal().map(|said| format!("{reference} gets no pod: {said}"))
    }

    /// Scales to 0 what is of this life, or, where no Pod is named, what is this session's, and
    /// waits until no Pod of it is left. With `forget`, the marks go too.
    pub(super) async fn scale_down(
        &self,
        session: &SessionId,
        mark: &Mark,
        forget: bool,
    ) -> Result<(), Error> {
        for _ in 0..TRIES_MAX {
            let Some(workload) = self.client.workload(&mark.reference).await? else {
                // Its Pods go with it, a moment later.
                return self.without_its_workload(mark).await;
            };
            let is_ours = workload.is_ours(&self.owner, session);
            if let Some((name, uid)) = &mark.pod {
                let pods = Replicas::list(&self.client, &workload).await?;
                let its = pods.that_may_run().find(|pod| pod.uid == *uid);
                let is_going = its.is_some_and(|pod| pod.status == Status::Ending);
                let is_anothers = workload.is_marked() && !is_ours;
                match its {
                    // Another Pod has taken its place, or another session the workload.
                    _ if is_anothers => return self.gone(name, uid, workload.grace()).await,
                    Some(_) if is_going && workload.replicas > 0 => {
                        return self.gone(name, uid, workload.grace()).await;
                    }
                    None if workload.replicas > 0 => return Ok(()),
                    _ => {}
                }
            } else if !is_ours {
                return Ok(());
            }
            if workload.replicas > 0 && !self.client.scale(&workload, 0).await? {
                sleep(SETTLE).await;
                continue;
            }
            self.scaled_down(&workload).await?;
            return if forget { self.forget(session, &mark.reference).await } else { Ok(()) };
        }
        Err(contended(&mark.reference))
    }

    async fn without_its_workload(&self, mark: &Mark) -> Result<(), Error> {
        match &mark.pod {
            Some((name, uid)) => self.gone(name, uid, Duration::ZERO).await,
            None => Ok(()),
        }
    }

    /// Waits until its controller has seen that none is wanted, and no Pod is left: before that
    /// it may still be about to make one.
    async fn scaled_down(&self, workload: &Workload) -> Result<(), Error> {
        let limit = workload.grace() + self.client.call_timeout();
        let (reference, mut left, mut trouble) = (&workload.reference, Vec::new(), None);
        let down = async {
            self.is_obeyed(reference, &mut trouble).await?;
            let mut pods = Watch::new(&self.client, workload).await?;
            loop {
                let running = pods.next(&mut trouble).await?.that_may_run();
                left = running.map(|pod| format!("`{}`", pod.name)).collect();
                if left.is_empty() {
                    return Ok(());
                }
            }
        };
        let Ok(down) = timeout(limit, down).await else {
            let text = match left.as_slice() {
                [] => format!(
                    "{reference} is not scaled down after {limit:?}: does its controller run?"
                ),
                pods => format!(
                    "{} of {reference} still there after {limit:?}: is the node alive?",
                    pods.join(", ")
                ),
            };
            return Err(trouble.unwrap_or(Error::Conflict(text)));
        };
        down
    }

    async fn is_obeyed(
        &self,
        reference: &Reference,
        trouble: &mut Option<Error>,
    ) -> Result<(), Error> {
        let api = self.client.workloads(reference.kind).await?;
        let mut watch = pin!(watch_object(api, &reference.name));
        while let Some(object) = self.client.next(&mut watch, true, trouble).await? {
            let workload = Workload::new(reference.kind, object);
            if workload.replicas > 0 {
                let text = format!("{reference} was scaled up while it went to sleep");
                return Err(Error::Conflict(text));
            }
            if workload.is_obeyed() {
                break;
            }
        }
        Ok(())
    }

    /// Takes the marks off, unless it is awake again or another's by now.
    async fn forget(&self, session: &SessionId, reference: &Reference) -> Result<(), Error> {
        for _ in 0..TRIES_MAX {
            let Some(workload) = self.client.workload(reference).await? else { return Ok(()) };
            if workload.replicas > 0 || !workload.is_ours(&self.owner, session) {
                return Ok(());
            }
            if self.client.mark(&workload, &self.owner, None).await?.is_some() {
                return Ok(());
            }
            sleep(SETTLE).await;
        }
        Err(contended(reference))
    }

    pub(super) async fn scaled(
        &self,
        reference: &Reference,
        session: &SessionId,
    ) -> Result<Option<Instance>, Error> {
        let Some(workload) = self.client.workload(reference).await? else { return Ok(None) };
        let is_anothers = workload.is_marked() && !workload.is_ours(&self.owner, session);
        // One that sleeps and was never woken by an edge is no instance yet.
        if is_anothers || (!workload.is_marked() && workload.replicas == 0) {
            return Ok(None);
        }
        self.instance(workload, session.clone()).await.map(Some)
    }

    /// Every workload that carries this edge's marks.
    pub(super) async fn all_scaled(&self) -> Result<Vec<Instance>, Error> {
        let workloads = self.client.marked(&self.owner).await?.into_iter();
        let ours = workloads.filter_map(|workload| workload.session().map(|of| Ok((workload, of))));
        stream::iter(ours)
            .map_ok(|(workload, session)| self.instance(workload, session))
            .try_buffer_unordered(LOOKS)
            .try_collect()
            .await
    }

    async fn instance(&self, workload: Workload, session: SessionId) -> Result<Instance, Error> {
        if workload.replicas == 0 {
            return Ok(workload.instance(session, None));
        }
        let pods = Replicas::list(&self.client, &workload).await?;
        Ok(workload.instance(session, pods.chosen()))
    }
}

/// Marks the workload and scales it up; one that is up already is only marked, and keeps as many
/// Pods as it has.
async fn up(
    client: &Client,
    owner: &str,
    reference: &Reference,
    session: &SessionId,
    generation: Generation,
) -> Result<(Workload, bool), Error> {
    for _ in 0..TRIES_MAX {
        let Some(workload) = client.workload(reference).await? else {
            return Err(Error::Missing(format!(
                "{reference} is not in the namespace `{}`, and a route that names one never \
                 creates it",
                client.namespace().await?
            )));
        };
        if workload.is_going {
            return Err(Error::Conflict(format!("{reference} is being deleted")));
        }
        let is_ours = workload.is_ours(owner, session);
        match (is_ours, workload.replicas) {
            (true, 1..) => return Ok((workload, true)),
            // Asleep it is anybody's: the marks of a route that is gone are in nobody's way.
            (false, 1..) if workload.is_marked() => {
                let whose = workload.whose();
                return Err(Error::Conflict(format!("{reference} is awake as {whose}")));
            }
            _ => {}
        }
        let marked = client.mark(&workload, owner, Some((session, generation))).await?;
        if let Some(marked) = marked {
            let was_up = marked.replicas > 0;
            if was_up || client.scale(&marked, 1).await? {
                return Ok((marked, was_up));
            }
        }
        sleep(SETTLE).await;
    }
    Err(contended(reference))
}

fn contended(reference: &Reference) -> Error {
    Error::Conflict(format!("somebody else changes {reference} all the time"))
}
