//! The Kubernetes engine: a session is a Pod, made from the route's template at each wake and
//! deleted at each sleep; or a workload that exists, scaled up and down (see `scale`).
//!
//! The API server is the truth, and a Pod's uid is one life. A sleep deletes under that uid and
//! waits until the Pod is gone: the kubelet takes a Pod away only when its processes have ended.

mod client;
mod events;
mod found;
mod replicas;
mod scale;
mod template;
mod workload;

use std::{fmt, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use dashmap::DashMap;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::watch_object;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    client::Client,
    found::{Found, Status},
    template::Template,
    workload::{Mark, Reference},
};
use super::{Engine, EngineEvent, Error, Instance, Life, Started, without};
use crate::session::{Depth, Generation, SessionId, Spec};

/// How one cluster is reached and what is ours there.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kubeconfig; `KUBECONFIG`, `~/.kube/config` or the Pod's service account when not given.
    pub kubeconfig: Option<PathBuf>,
    /// The context of that file; its current one when not given.
    pub context: Option<String>,
    /// The namespace of the Pods; the context's, or the edge's own, when not given.
    pub namespace: Option<String>,
    /// Whose Pods are ours: the value of their label `dormouse.owner`.
    pub owner: String,
    /// The most time one call to the API server may take.
    pub call_timeout: Duration,
    /// The most time until a Pod has a node, its image and an address.
    pub start_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: None,
            owner: "default".to_owned(),
            call_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(120),
        }
    }
}

/// One cluster, reached when it is first needed.
pub struct Kubernetes {
    client: Arc<Client>,
    owner: String,
    start_timeout: Duration,
    /// Creates on their way to the server: who puts to sleep waits for them.
    creating: Arc<DashMap<SessionId, Arc<Mutex<()>>>>,
    tasks: TaskTracker,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// How long a watch that failed is left alone.
const SETTLE: Duration = Duration::from_millis(200);

impl Kubernetes {
    /// A cluster that cannot be reached is found out by the first call.
    pub fn new(config: Config) -> Self {
        Self {
            client: Arc::new(Client::new(&config)),
            owner: config.owner,
            start_timeout: config.start_timeout,
            creating: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    fn name(&self, session: &SessionId) -> String {
        template::name(&self.owner, session)
    }

    fn ours(&self, pod: Pod, session: &SessionId) -> Result<Found, Error> {
        let found = Found::new(pod);
        if found.is_ours(&self.owner, session) {
            return Ok(found);
        }
        Err(Error::Conflict(format!(
            "a pod `{}` exists and is not this edge's: rename or delete it",
            found.name
        )))
    }

    /// The session's Pod.
    async fn find(&self, session: &SessionId) -> Result<Option<Found>, Error> {
        let pod = self.client.pod(&self.name(session)).await?;
        pod.map(|pod| self.ours(pod, session)).transpose()
    }

    /// Runs until the Pod is up.
    async fn bring_up(&self, template: &Template<'_>, seen: &mut Seen) -> Result<Started, Error> {
        let name = self.name(template.session);
        let mut watch = pin!(watch_object(self.client.all::<Pod>().await?, &name));
        let (mut created, mut looked) = (false, false);
        loop {
            let pod = self.client.next(&mut watch, looked, &mut seen.trouble).await?;
            looked = true;
            seen.pod = pod.map(|pod| self.ours(pod, template.session)).transpose()?;
            match &seen.pod {
                None if created => return Err(deleted(&name)),
                None => {
                    self.create(template).await?;
                    created = true;
                }
                Some(found) => match found.status {
                    Status::Ended if created => return Err(Error::Failed(found.ended())),
                    Status::Ended => {
                        self.client.delete(&name, &found.uid, Duration::ZERO).await?;
                    }
                    Status::Ending if created => return Err(deleted(&name)),
                    // Gone, it makes room for a new one.
                    Status::Ending => {}
                    Status::Pending | Status::Running => {
                        if let Some(started) = found.started(template.spec) {
                            return Ok(Started { ran_already: !created, ..started });
                        }
                        if let Some(error) = found.stuck() {
                            return Err(error);
                        }
                    }
                },
            }
        }
    }

    /// Makes the claims that are missing, and the Pod.
    async fn create(&self, template: &Template<'_>) -> Result<(), Error> {
        let (claims, pod) = (template.claims()?, template.pod()?);
        let client = Arc::clone(&self.client);
        let creating = async move { create(&client, claims, pod).await };
        self.to_its_end(template.session, creating).await
    }

    /// Runs to its end when nobody waits for it any longer: what is half-way to the server cannot
    /// be called back, only waited for.
    async fn to_its_end<T: Send + 'static>(
        &self,
        session: &SessionId,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (creating, of) = (Arc::clone(&self.creating), session.clone());
        let turn = Arc::clone(&*self.creating.entry(session.clone()).or_default());
        let turn = turn.lock_owned().await;
        let task = async move {
            let done = work.await;
            creating.remove(&of);
            drop(turn);
            done
        };
        let done = self.tasks.spawn(task).await;
        done.unwrap_or_else(|_| Err(Error::Failed("a start panicked half-way".to_owned())))
    }

    async fn created(&self, session: &SessionId) {
        let turn = self.creating.get(session).map(|turn| Arc::clone(&*turn));
        if let Some(turn) = turn {
            drop(turn.lock().await);
        }
    }

    async fn why_not_up(&self, seen: Seen, workload: Option<&Reference>, after: Duration) -> Error {
        if let Some(trouble) = seen.trouble {
            return trouble;
        }
        let waits = match (seen.pod.as_ref().and_then(Found::waits_for), workload) {
            (None, Some(workload)) => self.refusal(workload).await,
            (waits, _) => waits,
        };
        match waits {
            Some(waits) => Error::Conflict(format!("{waits} (after {after:?})")),
            None => Error::Timeout { call: "start", after },
        }
    }

    /// Ends one life and waits until its Pod is gone.
    async fn delete(&self, found: &Found, grace: Duration) -> Result<(), Error> {
        self.client.delete(&found.name, &found.uid, grace).await?;
        self.gone(&found.name, &found.uid, grace).await
    }

    /// Waits until a Pod whose end was asked for is gone.
    async fn gone(&self, name: &str, uid: &str, grace: Duration) -> Result<(), Error> {
        let (limit, mut trouble) = (grace + self.client.call_timeout(), None);
        let gone = async {
            let mut watch = pin!(watch_object(self.client.all::<Pod>().await?, name));
            let is_it = |pod: Pod| pod.metadata.uid.as_deref() == Some(uid);
            while self.client.next(&mut watch, true, &mut trouble).await?.is_some_and(is_it) {}
            Ok(())
        };
        let gone = timeout(limit, gone).await;
        gone.unwrap_or_else(|_| Err(trouble.unwrap_or_else(|| still_there(name, limit))))
    }

    async fn put_to_sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let named = scale::named(spec)?;
        let mark = match life {
            Some(life) => Mark::read(life),
            None => named.clone().map(|reference| Mark { reference, pod: None }),
        };
        if let Some(mark) = mark {
            let is_routed = named.as_ref() == Some(&mark.reference);
            return self.scale_down(session, &mark, to == Depth::Removed || !is_routed).await;
        }
        let found = match self.find(session).await {
            // What is in the way of a start is not what it half-started.
            Err(Error::Conflict(_)) | Ok(None) => return Ok(()),
            found => found?,
        };
        let meant = found.filter(|found| life.is_none_or(|life| *life == found.life()));
        match meant {
            Some(found) => self.delete(&found, spec.kubernetes.grace).await,
            // A Pod has one life: where its uid is another, this life is over.
            None => Ok(()),
        }
    }

    async fn list_all(&self) -> Result<Vec<Instance>, Error> {
        let pods = self.client.pods(&format!("{}={}", template::OWNER, self.owner)).await?;
        let instances = pods.into_iter().map(Found::new).filter_map(|found| {
            // A copy with our marks under another name is nobody's.
            let session = found.session().filter(|session| found.name == self.name(session))?;
            Some(found.instance(session))
        });
        let mut instances: Vec<_> = instances.collect();
        instances.extend(self.all_scaled().await?);
        Ok(instances)
    }

    async fn look(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        if let Some(reference) = scale::named(spec)? {
            return self.scaled(&reference, session).await;
        }
        match self.find(session).await {
            Ok(found) => Ok(found.map(|found| found.instance(session.clone()))),
            Err(Error::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What a start waited for last.
#[derive(Default)]
struct Seen {
    /// The session's Pod.
    pod: Option<Found>,
    /// Why it could not look.
    trouble: Option<Error>,
}

fn still_there(name: &str, after: Duration) -> Error {
    Error::Conflict(format!(
        "pod `{name}` is still there {after:?} after its end was asked for: is its node alive?"
    ))
}

fn deleted(name: &str) -> Error {
    Error::Conflict(format!("pod `{name}` was deleted while it started"))
}

async fn create(
    client: &Client,
    claims: Vec<k8s_openapi::api::core::v1::PersistentVolumeClaim>,
    pod: Pod,
) -> Result<(), Error> {
    for claim in claims {
        if !client.has_claim(claim.metadata.name.as_deref().unwrap_or_default()).await? {
            client.create("create a claim", claim).await?;
        }
    }
    client.create("create a pod", pod).await
}

/// No longer than a log line should be: as much as a kubelet keeps of a container's last lines.
const TEXT_MAX: usize = 4096;

/// An error whose text is not too long.
fn brief(error: Error) -> Error {
    cleaned(error, &[])
}

/// The same without any of these values: a server may repeat what it was given. They go first,
/// so that none is cut in two and no longer known.
fn cleaned(error: Error, secrets: &[String]) -> Error {
    let clean = |text| without(text, secrets).chars().take(TEXT_MAX).collect();
    match error {
        Error::Unreachable(text) => Error::Unreachable(clean(text)),
        Error::Missing(text) => Error::Missing(clean(text)),
        Error::Conflict(text) => Error::Conflict(clean(text)),
        Error::Invalid(text) => Error::Invalid(clean(text)),
        Error::Failed(text) => Error::Failed(clean(text)),
        timeout @ Error::Timeout { .. } => timeout,
    }
}

#[async_trait]
impl Engine for Kubernetes {
    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Stopped, Depth::Removed]
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let template = Template { owner: &self.owner, session, spec, generation };
        let (limit, mut seen) = (self.start_timeout, Seen::default());
        let until = sleep_until(Instant::now() + limit);
        let workload = scale::named(spec)?;
        let bring_up = async {
            match &workload {
                Some(named) => self.scale_up(named, session, spec, generation, &mut seen).await,
                None => self.bring_up(&template, &mut seen).await,
            }
        };
        let started = tokio::select! {
            started = bring_up => started,
            () = until => Err(self.why_not_up(seen, workload.as_ref(), limit).await),
        };
        started.map_err(|error| cleaned(error, &template.secrets()))
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        if to < Depth::Stopped {
            return Err(Error::Invalid(format!("kubernetes has no depth `{to}`")));
        }
        self.created(session).await;
        self.put_to_sleep(session, spec, life, to).await.map_err(brief)
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.list_all().await.map_err(brief)
    }

    async fn inspect(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        self.look(session, spec).await.map_err(brief)
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        events::stream(Arc::clone(&self.client), self.owner.clone())
    }
}
