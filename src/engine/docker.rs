//! The Docker engine: a session is a container, one that exists already or one made from the
//! route's template on first wake.
//!
//! The daemon is the truth: every step is decided from what it says of the container, never from
//! what was asked of it before. Nothing here knows a route, a request or a lease.

mod client;
mod events;
mod found;
mod template;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bollard::models::ContainerInspectResponse;
use futures::{
    TryStreamExt,
    stream::{self, BoxStream},
};
use tokio::time::sleep;

use self::{
    client::{Client, Endpoint, Refused},
    events::Watched,
    found::{Found, Status},
    template::Template,
};
use super::{Engine, EngineEvent, Error, Instance, Life, Started};
use crate::session::{Address, Depth, Generation, SessionId, Spec};

/// How one Docker daemon is reached and what is ours there.
#[derive(Clone, Debug)]
pub struct Config {
    /// `unix://`, `tcp://` or `ssh://`; `DOCKER_HOST` or the usual unix socket when not given.
    pub endpoint: Option<String>,
    /// Whose containers are ours: the value of their label `dormouse.owner`.
    pub owner: String,
    /// Speak TLS to a `tcp://` endpoint.
    pub tls: Option<Tls>,
    /// The most time one call to the daemon may take, the grace of a stop not counted.
    pub call_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            owner: "default".to_owned(),
            tls: None,
            call_timeout: Duration::from_secs(30),
        }
    }
}

/// PEM files for a daemon that speaks TLS and asks for a certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Who signed the daemon's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One Docker daemon, reached when it is first needed.
pub struct Docker {
    client: Arc<Client>,
    owner: String,
    watched: Arc<Watched>,
}

impl fmt::Debug for Docker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Docker").field("endpoint", &self.client.endpoint().to_string()).finish()
    }
}

/// How long to let something that others do to a container go on before looking again.
const SETTLE: Duration = Duration::from_millis(50);
/// How many containers `list` asks about at once.
const LOOKS: usize = 16;
/// Containers that live in the network of one that lives in the network of one …
const HOPS: usize = 4;

impl Docker {
    /// Checks the configuration; a daemon that is down is found out by the first call.
    pub fn new(config: Config) -> Result<Self, Error> {
        let endpoint = Endpoint::parse(config.endpoint, config.tls)?;
        Ok(Self {
            client: Arc::new(Client::new(endpoint, config.call_timeout)),
            owner: config.owner,
            watched: Arc::default(),
        })
    }

    /// The session's container, ours or the one that the route names.
    async fn find(&self, session: &SessionId, spec: &Spec) -> Result<Option<Found>, Error> {
        let Some(inspected) = self.look(session, spec).await? else { return Ok(None) };
        let found = Found::new(inspected);
        if is_existing(spec) {
            self.watched.add(session, &found, spec);
        } else if !found.is_ours(&self.owner, session) {
            return Err(Error::Conflict(format!(
                "a container `{}` exists and is not this edge's: rename or remove it",
                found.name
            )));
        }
        Ok(Some(found))
    }

    async fn look(
        &self,
        session: &SessionId,
        spec: &Spec,
    ) -> Result<Option<ContainerInspectResponse>, Error> {
        if let Some(name) = &spec.docker.container {
            return self.client.inspect(name).await;
        }
        let Some(label) = &spec.docker.label else {
            return self.client.inspect(&template::name(&self.owner, session)).await;
        };
        match self.client.list(label).await?.as_slice() {
            [] => Ok(None),
            [one] => self.client.inspect(one.id.as_deref().unwrap_or_default()).await,
            many => Err(Error::Conflict(format!(
                "{} containers have the label `{label}`: one session needs exactly one",
                many.len()
            ))),
        }
    }

    async fn bring_up(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let template = Template { owner: &self.owner, session, spec, generation };
        let (mut booted, mut is_first_look) = (false, true);
        loop {
            let ran_already = std::mem::take(&mut is_first_look);
            let Some(found) = self.find(session, spec).await? else {
                self.create(&template).await?;
                continue;
            };
            match found.status {
                Status::Running => {
                    return Ok(Started { ran_already, ..self.started(found, spec).await? });
                }
                Status::Paused => {
                    if self.client.unpause(&found.id).await? {
                        // Neither address nor life changed: no need to look again.
                        return self.started(found, spec).await;
                    }
                    sleep(SETTLE).await;
                }
                Status::Exited if booted => return Err(self.ended(&found, &template).await),
                Status::Created | Status::Exited if self.is_outdated(&found, &template) => {
                    self.client.remove(&found.id).await?;
                }
                Status::Created | Status::Exited => {
                    booted = match self.client.start(&found.id).await {
                        Ok(booted) => booted,
                        Err(refused) => {
                            let refused = refused.without(&template.secrets());
                            return Err(self.explain(refused, spec).await);
                        }
                    };
                    if !booted {
                        sleep(SETTLE).await;
                    }
                }
                Status::Dead if !is_existing(spec) => self.client.remove(&found.id).await?,
                Status::Dead => {
                    return Err(Error::Failed(format!(
                        "container `{}` is dead: the daemon could not remove it",
                        found.name
                    )));
                }
                Status::Restarting | Status::Stopping | Status::Removing => sleep(SETTLE).await,
            }
        }
    }

    /// Where it listens; a container that lives in another one's network is reached there.
    async fn started(&self, mut found: Found, spec: &Spec) -> Result<Started, Error> {
        for _ in 0..HOPS {
            let Some(host) = found.shares_network_of() else { return found.started(spec) };
            let host = self.client.inspect(host).await?.map(Found::new);
            match host.filter(|host| host.status == Status::Running) {
                Some(host) => found.lives_in(host),
                None => break,
            }
        }
        Err(Error::Conflict(format!(
            "container `{}` shares the network of another one, which does not run: start that one \
             first",
            found.name
        )))
    }

    /// An edited route takes effect when its container is started next; never under a running one.
    fn is_outdated(&self, found: &Found, template: &Template<'_>) -> bool {
        !is_existing(template.spec) && found.fingerprint() != Some(&template.fingerprint())
    }

    async fn create(&self, template: &Template<'_>) -> Result<(), Error> {
        if let Some(existing) = existing(template.spec) {
            return Err(Error::Missing(format!(
                "{existing} is not on the daemon, and a route that names one never creates it"
            )));
        }
        self.gives_its_runtime(template.spec).await?;
        let body = template.body()?;
        let image = body.image.clone().unwrap_or_default();
        match self.client.create(&template.name(), body).await {
            Ok(()) => Ok(()),
            // Somebody was faster, or the name is being freed: the next look tells which.
            Err(refused) if refused.is_name_in_use() => {
                sleep(SETTLE).await;
                Ok(())
            }
            Err(refused) if refused.is_no_image() => Err(Error::Missing(format!(
                "image `{image}` is not on the daemon: docker pull {image}"
            ))),
            Err(refused) => {
                let refused = refused.without(&template.secrets());
                Err(self.explain(refused, template.spec).await)
            }
        }
    }

    /// An isolation that a route wants, and nobody gives, is worse than none.
    async fn gives_its_runtime(&self, spec: &Spec) -> Result<(), Error> {
        let Some(wanted) = &spec.docker.runtime else { return Ok(()) };
        match self.client.only_runtime().await? {
            Some(only) if only != *wanted => Err(Error::Invalid(format!(
                "Podman runs every container in `{only}`, whatever runtime is asked for: set \
                 runtime = \"{wanted}\" under [engine] of its containers.conf, or leave \
                 docker.runtime out"
            ))),
            _ => Ok(()),
        }
    }

    /// With the runtimes that there are, where the route wants another one.
    async fn explain(&self, refused: Refused, spec: &Spec) -> Error {
        let Some(runtime) = &spec.docker.runtime else { return refused.into() };
        match self.client.runtimes().await {
            Ok(known) if !known.contains(runtime) => Error::Invalid(format!(
                "the daemon has no runtime `{runtime}`, only: {}",
                known.join(", ")
            )),
            _ => refused.into(),
        }
    }

    async fn ended(&self, found: &Found, template: &Template<'_>) -> Error {
        let log = self.client.log_tail(&found.id, &template.secrets()).await.unwrap_or_default();
        Error::Failed(format!(
            "container `{}` ended right after its start with exit code {}; its last lines: {log}",
            found.name, found.exit_code
        ))
    }

    /// The container that a sleep is about: that of the given life and no newer one.
    async fn of_life(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
    ) -> Result<Option<Found>, Error> {
        let Some(life) = life else {
            return match self.find(session, spec).await {
                // What is in the way of a start is not what it half-started: somebody else's container
                // of that name, or several of the label.
                Err(Error::Conflict(_)) => Ok(None),
                found => found,
            };
        };
        // A container has one life at a time: where its mark is another one, this life is over.
        let found = self.client.inspect(found::container_of(life)).await?.map(Found::new);
        Ok(found.filter(|found| found.life().as_ref() == Some(life)))
    }

    async fn pause(&self, found: &Found) -> Result<(), Error> {
        match found.status {
            Status::Running => self.client.pause(&found.id).await,
            // Nothing runs: as good as paused.
            Status::Paused | Status::Created | Status::Exited => Ok(()),
            Status::Dead | Status::Removing => Ok(()),
            Status::Restarting | Status::Stopping => self.stop(found, Duration::ZERO).await,
        }
    }

    async fn stop(&self, found: &Found, grace: Duration) -> Result<(), Error> {
        if found.status == Status::Paused {
            // Docker thaws what it stops, so that it can end in its own way; Podman refuses.
            self.client.unpause(&found.id).await?;
        }
        if found.is_stopped() {
            return Ok(());
        }
        let stopped = self.client.stop(&found.id, grace).await;
        if !self.still_runs(found).await? {
            return Ok(());
        }
        self.client.kill(&found.id).await?;
        if !self.still_runs(found).await? {
            return Ok(());
        }
        stopped?;
        Err(Error::Failed(format!("container `{}` runs although it was killed", found.name)))
    }

    async fn still_runs(&self, found: &Found) -> Result<bool, Error> {
        let now = self.client.inspect(&found.id).await?.map(Found::new);
        Ok(now.is_some_and(|now| !now.is_stopped() && now.life() == found.life()))
    }

    async fn remove(&self, session: &SessionId, found: &Found, spec: &Spec) -> Result<(), Error> {
        if let Some(existing) = existing(spec) {
            // Others remove it, or what the route names is another one by now: not ours either way.
            let is_named = async || {
                let named = self.look(session, spec).await?;
                Ok::<_, Error>(named.is_some_and(|named| named.id.as_ref() == Some(&found.id)))
            };
            if found.status == Status::Removing || !is_named().await? {
                return Ok(());
            }
            return Err(Error::Invalid(format!("{existing} is not Dormouse's to remove")));
        }
        self.stop(found, spec.docker.grace).await?;
        self.client.remove(&found.id).await
    }

    async fn instance(&self, id: &str) -> Result<Option<Instance>, Error> {
        let Some(found) = self.client.inspect(id).await?.map(Found::new) else { return Ok(None) };
        let session = found.session().filter(|session| {
            // A copy with our labels under another name is nobody's.
            found.name == template::name(&self.owner, session)
        });
        Ok(session.and_then(|session| found.instance(session)))
    }
}

#[async_trait]
impl Engine for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Paused, Depth::Stopped, Depth::Removed]
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let limit = self.client.call_timeout();
        tokio::time::timeout(limit, self.bring_up(session, spec, generation))
            .await
            .unwrap_or(Err(Error::Timeout { call: "start", after: limit }))
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let Some(found) = self.of_life(session, spec, life).await? else { return Ok(()) };
        match to {
            // A container that never ran is a start that failed half-way. Its start may still be
            // on its way to the daemon: gone, it can do nothing any more.
            _ if found.status == Status::Created && life.is_none() && !is_existing(spec) => {
                self.remove(session, &found, spec).await
            }
            Depth::Paused => self.pause(&found).await,
            Depth::Stopped => self.stop(&found, spec.docker.grace).await,
            Depth::Removed => self.remove(session, &found, spec).await,
            Depth::Suspended => Err(Error::Invalid("docker has no depth `suspended`".to_owned())),
        }
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let ours = self.client.list(&format!("{}={}", template::OWNER, self.owner)).await?;
        // The list lacks when a container started and, in old daemons, its health.
        let looks = ours.into_iter().filter_map(|container| container.id).map(Ok);
        stream::iter(looks)
            .map_ok(|id| async move { self.instance(&id).await })
            .try_buffer_unordered(LOOKS)
            .try_filter_map(|instance| async move { Ok(instance) })
            .try_collect()
            .await
    }

    async fn inspect(&self, session: &SessionId, spec: &Spec) -> Result<Option<Instance>, Error> {
        match self.find(session, spec).await {
            Ok(found) => Ok(found.and_then(|found| found.instance(session.clone()))),
            Err(Error::Conflict(_)) if !is_existing(spec) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn hint(&self, session: &SessionId, spec: &Spec, _: &Address) -> Option<String> {
        let found = self.find(session, spec).await.ok()??;
        if found.is_stopped() {
            let secrets = Template { owner: &self.owner, session, spec, generation: Generation(0) };
            let log = self.client.log_tail(&found.id, &secrets.secrets()).await.unwrap_or_default();
            let code = found.exit_code;
            return Some(format!("it ended with exit code {code}; its last lines: {log}"));
        }
        let port = template::port(spec);
        tokio::task::spawn_blocking(move || found.listens_elsewhere(port)).await.ok()?
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        events::stream(self.client.clone(), self.owner.clone(), self.watched.clone())
    }
}

/// Whether the route names a container that exists, so that none is created or removed.
fn is_existing(spec: &Spec) -> bool {
    spec.docker.container.is_some() || spec.docker.label.is_some()
}

fn existing(spec: &Spec) -> Option<String> {
    let docker = &spec.docker;
    let by_name = docker.container.as_ref().map(|name| format!("container `{name}`"));
    by_name.or_else(|| docker.label.as_ref().map(|label| format!("a container labelled `{label}`")))
}
