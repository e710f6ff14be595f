//! Fly Machines: a session is a machine of one app, found by its metadata.
//!
//! The API is the truth: every step is decided from what it says of the machine. It takes one
//! request a second for a machine and action, so a wake is few calls, and `wait` instead of looks.

mod client;
mod machine;
mod volume;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use dashmap::DashMap;
use futures::stream::BoxStream;
use http::Method;
use serde_json::json;
use tokio::{
    net::lookup_host,
    sync::Mutex,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    client::Client,
    machine::{Machine, State},
    volume::Volume,
};
use super::{
    Engine, EngineEvent, Error, Instance, Life, Started,
    alone::Alone,
    poll::{self, Outside},
};
use crate::session::{Address, Behind, Depth, Generation, SessionId, Spec};

/// One Fly app, and how it is reached.
#[derive(Clone)]
pub struct Config {
    /// The API's address: `https://api.machines.dev/v1`, or inside 6PN
    /// `http://_api.internal:4280/v1`.
    pub endpoint: String,
    /// The app whose machines are the instances.
    pub app: String,
    /// The API token; sent in a header and shown nowhere.
    pub token: String,
    /// Where machines are created; Fly chooses when not given.
    pub region: Option<String>,
    /// By which public name machines are reached; their 6PN address when not given.
    pub public: Option<Public>,
    /// Whose the machines are: their metadata `dormouse_owner`.
    pub owner: String,
    /// The most time for one call of the engine: a start with its wait, a sleep with its wait.
    pub call_timeout: Duration,
    /// How often the app's machines are listed.
    pub poll: Duration,
    /// The least time between two requests of one action for one machine: 1 s, says Fly.
    pub interval: Duration,
}

/// Where Fly's proxy has the app, for everybody.
#[derive(Clone, Debug)]
pub struct Public {
    /// Whether it speaks TLS there.
    pub tls: bool,
    /// The app's name: `APP.fly.dev`, or one that has a certificate.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Debug for Config {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("endpoint", &self.endpoint).field("app", &self.app).finish()
    }
}

/// The machines of one Fly app.
pub struct Fly {
    shared: Arc<Shared>,
    alone: Alone,
    _poll_ends_with_us: DropGuard,
}

impl fmt::Debug for Fly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fly").field("app", &self.shared.config.app).finish()
    }
}

struct Shared {
    client: Client,
    config: Config,
    /// Which machine a session had when it was last looked up: a hint, never the truth.
    machines: DashMap<SessionId, String>,
    /// What the last list came to, and when it was asked for.
    listed: Mutex<Option<(Instant, Listed)>>,
    outside: Arc<Outside>,
    closing: CancellationToken,
}

type Listed = Result<Arc<[Machine]>, Error>;

/// How long to let something that others do to a machine go on before looking again.
const SETTLE: Duration = Duration::from_millis(500);
/// The longest `wait` that Fly takes, in seconds.
const WAIT_MAX: u64 = 60;
/// The most time for giving it back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(5);

impl Fly {
    /// Checks the configuration; an API that is down is found out by the first call.
    pub fn new(config: Config) -> Result<Self, Error> {
        let client = Client::new(&config)?;
        let closing = CancellationToken::new();
        let shared = Shared {
            client,
            machines: DashMap::new(),
            listed: Mutex::default(),
            outside: Arc::default(),
            closing: closing.clone(),
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
            alone: Alone::default(),
            _poll_ends_with_us: closing.drop_guard(),
        })
    }
}

impl Shared {
    /// The session's machine, whatever its state but destroyed.
    async fn find(&self, session: &SessionId) -> Result<Option<Machine>, Error> {
        let known = self.machines.get(session).map(|id| id.clone());
        if let Some(id) = known {
            if let Some(machine) = self.get(&id).await? {
                return Ok(Some(machine));
            }
            self.machines.remove(session);
        }
        let all = self.all().await?;
        let is_its =
            |machine: &&Machine| machine.session(&self.config.owner).as_ref() == Some(session);
        let its: Vec<_> = all.iter().filter(is_its).collect();
        if its.len() > 1 {
            return Err(Error::Conflict(format!(
                "{} machines of app {} are this session's: destroy all but one",
                its.len(),
                self.config.app
            )));
        }
        Ok(its.first().copied().cloned())
    }

    async fn get(&self, id: &str) -> Result<Option<Machine>, Error> {
        match self.client.call(Method::GET, id, "", "", None, None).await {
            Ok(machine) => Ok(Machine::read(machine)?.filter(|machine| !machine.is_gone())),
            Err(refused) if refused.status == Some(404) => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// All machines of the app. Fly gives one such list a second: who waits while one is asked
    /// for shares the next.
    async fn all(&self) -> Listed {
        let came = Instant::now();
        let mut listed = self.listed.lock().await;
        if let Some((asked, all)) = &*listed
            && came <= *asked
        {
            return all.clone();
        }
        let asked = Instant::now();
        let all = self.list_anew().await;
        *listed = Some((asked, all.clone()));
        all
    }

    async fn list_anew(&self) -> Listed {
        let all = self.client.call(Method::GET, "", "", "", None, None).await?;
        let all = Machine::read_all(all, &self.config.owner)?;
        self.remember(&all);
        Ok(all.into())
    }

    /// Which machine is whose; of two of one session neither is.
    fn remember(&self, all: &[Machine]) {
        let mut its: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for machine in all {
            if let Some(session) = machine.session(&self.config.owner) {
                its.entry(session).or_default().push(&machine.id);
            }
        }
        self.machines.retain(|session, _| its.get(session).is_some_and(|ids| ids.len() == 1));
        for (session, ids) in its {
            if let [id] = ids[..] {
                self.machines.insert(session, id.to_owned());
            }
        }
    }

    async fn bring_up(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
        seen: &mut String,
    ) -> Result<Started, Error> {
        let mut ran_already = true;
        loop {
            let Some(machine) = self.find(session).await? else {
                self.create(session, spec, generation, seen).await?;
                ran_already = false;
                continue;
            };
            ran_already &= matches!(machine.kind(), State::Started);
            *seen = format!("machine {} is `{}`", machine.id, machine.state);
            match machine.kind() {
                State::Started => match self.address(&machine, spec).await?.zip(machine.life()) {
                    Some((address, life)) => return Ok(Started { address, life, ran_already }),
                    None => sleep(SETTLE).await, // its address comes a moment later
                },
                State::Asleep(_) => {
                    let started =
                        self.client.call(Method::POST, &machine.id, "start", "", None, None).await;
                    match started {
                        Ok(_) => self.wait(&machine, "started").await?,
                        // Leased by who puts it to sleep, or still replaced: the next look tells.
                        Err(refused) if refused.is_in_the_way() => {
                            let refused = refused.without(&machine::secrets(spec));
                            *seen = format!("{seen}: {}", refused.told());
                            sleep(SETTLE).await;
                        }
                        Err(refused) => {
                            return Err(refused.without(&machine::secrets(spec)).into());
                        }
                    }
                }
                State::Starting => self.wait(&machine, "started").await?,
                State::Failed => self.destroy(&machine, None).await?,
                State::Changing => sleep(SETTLE).await,
            }
        }
    }

    /// `None` while it has none.
    async fn address(&self, machine: &Machine, spec: &Spec) -> Result<Option<Address>, Error> {
        let Some(Public { tls, host, port }) = &self.config.public else {
            let ip = machine.ip();
            return Ok(ip.map(|ip| Address::Tcp((ip, machine::port_of(spec)).into())));
        };
        let unknown = |why: &str| Error::Unreachable(format!("where {host} is, is unknown: {why}"));
        let mut found = lookup_host((&**host, *port)).await.map_err(|e| unknown(&e.to_string()))?;
        let proxy = found.next().ok_or_else(|| unknown("it has no address"))?;
        // "force": another machine is another session, and no answer is better than its answer.
        let header = ("fly-force-instance-id", machine.id.as_str().into());
        let behind = Behind { proxy, host: host.as_str().into(), tls: *tls, header };
        Ok(Some(Address::Behind(Arc::new(behind))))
    }

    async fn create(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
        seen: &mut String,
    ) -> Result<(), Error> {
        let volume = self.volume(spec).await?;
        let volume = volume.as_ref().map(|(volume, path)| (volume, *path));
        let body = machine::create(&self.config, session, spec, generation, volume)?;
        match self.client.call(Method::POST, "", "", "", Some(body), None).await {
            Ok(created) => {
                if let Some(machine) = Machine::read(created)? {
                    self.machines.insert(session.clone(), machine.id);
                }
                Ok(())
            }
            // Somebody was faster: the next look finds theirs. Or there is no room for it now.
            Err(refused) if refused.is_in_the_way() || refused.is_name_taken() => {
                let refused = refused.without(&machine::secrets(spec));
                *seen = format!("Fly makes no machine: {}", refused.told());
                sleep(SETTLE).await;
                Ok(())
            }
            Err(refused) => Err(refused.without(&machine::secrets(spec)).into()),
        }
    }

    /// The volume that the route wants, made if it is not there, and its path.
    async fn volume<'a>(&self, spec: &'a Spec) -> Result<Option<(Volume, &'a str)>, Error> {
        let Some((name, path)) = volume::wanted(&self.config, spec) else { return Ok(None) };
        let listed = self.client.volumes(Method::GET, None).await?;
        if let Some(found) = Volume::find(listed, &name)? {
            return Ok(Some((found, path)));
        }
        let body = volume::create(&self.config, spec, &name);
        let made = self.client.volumes(Method::POST, Some(body)).await?;
        Ok(Some((Volume::read(made)?, path)))
    }

    /// Whether it got there in time is for the next look to say.
    async fn wait(&self, machine: &Machine, state: &str) -> Result<(), Error> {
        let seconds = self.config.call_timeout.as_secs().clamp(1, WAIT_MAX);
        let query = format!("?state={state}&timeout={seconds}&instance_id={}", machine.instance_id);
        match self.client.call(Method::GET, &machine.id, "wait", &query, None, None).await {
            Ok(_) => Ok(()),
            Err(refused) if matches!(refused.status, Some(404 | 408)) => Ok(()),
            // It is in another state for good, or of another version by now.
            Err(refused) if matches!(refused.status, Some(400 | 409 | 412)) => {
                sleep(SETTLE).await;
                Ok(())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn put_to_sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let limit = self.config.call_timeout;
        let end = Instant::now() + limit;
        let mut seen = String::new();
        let leased = async {
            let Some(machine) = self.find(session).await? else { return Ok(None) };
            // Nobody else may start it between the look and the stop.
            Ok(self.lease(&machine.id, end, &mut seen).await?.map(|nonce| (machine.id, nonce)))
        };
        let leased = timeout_at(end, leased).await;
        let leased = leased.unwrap_or_else(|_| Err(wedged("sleep", limit, &seen)))?;
        let Some((id, nonce)) = leased else { return Ok(()) };
        let slept = self.sleep_leased(&id, spec, life, to, &nonce, &mut seen);
        let slept =
            timeout_at(end, slept).await.unwrap_or_else(|_| Err(wedged("sleep", limit, &seen)));
        let give_back = self.client.call(Method::DELETE, &id, "lease", "", None, Some(&nonce));
        if !matches!(timeout(GIVE_BACK_MAX, give_back).await, Ok(Ok(_))) {
            tracing::debug!(%session, "a lease ends by itself only, or with its machine");
        }
        slept
    }

    /// `None` where the machine is gone.
    async fn lease(
        &self,
        id: &str,
        end: Instant,
        seen: &mut String,
    ) -> Result<Option<String>, Error> {
        loop {
            // No longer than it is needed: an edge that crashes cannot give it back.
            let left = end.saturating_duration_since(Instant::now()) + GIVE_BACK_MAX;
            let ttl = left.as_secs().max(1);
            let body = json!({ "ttl": ttl, "description": "dormouse puts it to sleep" });
            match self.client.call(Method::POST, id, "lease", "", Some(body), None).await {
                Ok(lease) => {
                    let nonce = [&lease["nonce"], &lease["data"]["nonce"]];
                    let nonce = nonce.iter().find_map(|nonce| nonce.as_str());
                    let nonce =
                        nonce.ok_or_else(|| Error::Failed("a lease without nonce".into()))?;
                    return Ok(Some(nonce.to_owned()));
                }
                Err(refused) if refused.status == Some(404) => return Ok(None),
                Err(refused) if refused.status == Some(409) => {
                    *seen = format!("machine {id} is leased: {}", refused.told());
                    sleep(SETTLE).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    async fn sleep_leased(
        &self,
        id: &str,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
        nonce: &str,
        seen: &mut String,
    ) -> Result<(), Error> {
        loop {
            let Some(machine) = self.get(id).await? else { return Ok(()) };
            *seen = format!("machine {} is `{}`", machine.id, machine.state);
            if let (Some(life), Some(now)) = (life, machine.life())
                && *life != now
            {
                return Ok(());
            }
            let action = match (machine.kind(), to) {
                (_, Depth::Removed) | (State::Failed, _) => {
                    return self.destroy(&machine, Some(nonce)).await;
                }
                (State::Asleep(at), _) if at >= to => return Ok(()),
                (State::Started, Depth::Suspended) => "suspend",
                (State::Started | State::Asleep(_), Depth::Stopped) => "stop",
                (State::Starting, _) => {
                    self.wait(&machine, "started").await?;
                    continue;
                }
                (State::Changing, _) => {
                    sleep(SETTLE).await;
                    continue;
                }
                (_, Depth::Paused | Depth::Suspended) => {
                    return Err(Error::Invalid(format!("a machine of Fly has no depth `{to}`")));
                }
            };
            let body = (action == "stop").then(|| {
                let grace = spec.process.grace.as_secs().max(1);
                json!({ "signal": "SIGTERM", "timeout": format!("{grace}s") })
            });
            let asked = self.client.call(Method::POST, id, action, "", body, Some(nonce)).await;
            match asked {
                Ok(_) => {
                    let state = if action == "stop" { "stopped" } else { "suspended" };
                    self.wait(&machine, state).await?;
                }
                Err(refused) if refused.is_in_the_way() || refused.status == Some(404) => {
                    *seen = format!("{seen}: {}", refused.told());
                    sleep(SETTLE).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    async fn destroy(&self, machine: &Machine, nonce: Option<&str>) -> Result<(), Error> {
        let gone = self.client.call(Method::DELETE, &machine.id, "", "?force=true", None, nonce);
        match gone.await {
            Ok(_) => Ok(()),
            Err(refused) if refused.status == Some(404) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let limit = self.config.call_timeout;
        let mut seen = String::new();
        let call = timeout(limit, self.bring_up(session, spec, generation, &mut seen)).await;
        let started = call.unwrap_or_else(|_| Err(wedged("start", limit, &seen)))?;
        self.outside.started(session, &started.life);
        Ok(started)
    }

    async fn inspect(&self, session: &SessionId) -> Result<Option<Instance>, Error> {
        let limit = self.config.call_timeout;
        let found = timeout(limit, self.find(session)).await;
        let found = found.unwrap_or_else(|_| Err(wedged("inspect", limit, "")))?;
        Ok(found.map(|machine| machine.instance(session.clone())))
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let limit = self.config.call_timeout;
        let listed = timeout(limit, self.list_all()).await;
        listed.unwrap_or_else(|_| Err(wedged("list", limit, "")))
    }

    async fn list_all(&self) -> Result<Vec<Instance>, Error> {
        let mut found = BTreeMap::new();
        for machine in &*self.all().await? {
            let Some(session) = machine.session(&self.config.owner) else { continue };
            found.insert(session.clone(), machine.instance(session));
        }
        Ok(found.into_values().collect())
    }
}

/// The limit was reached; `seen` says what was in the way, where Fly told anything.
fn wedged(call: &'static str, limit: Duration, seen: &str) -> Error {
    if seen.is_empty() {
        return Error::Timeout { call, after: limit };
    }
    Error::Conflict(format!("after {limit:?}, {seen}: look at it with `fly machine status`"))
}

#[async_trait]
impl Engine for Fly {
    fn kind(&self) -> &'static str {
        "fly"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Suspended, Depth::Stopped, Depth::Removed]
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let (shared, spec, host) = (self.shared.clone(), spec.clone(), session.clone());
        self.alone.run(session, async move { shared.start(&host, &spec, generation).await }).await
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let (shared, spec, host) = (self.shared.clone(), spec.clone(), session.clone());
        let life = life.cloned();
        self.alone
            .run(session, async move { shared.put_to_sleep(&host, &spec, life.as_ref(), to).await })
            .await
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.shared.list().await
    }

    async fn inspect(&self, session: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        self.shared.inspect(session).await
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let Shared { outside, closing, config, .. } = &*self.shared;
        let shared = self.shared.clone();
        poll::stream(outside, closing, config.poll, move || {
            let shared = shared.clone();
            Box::pin(async move { shared.list().await })
        })
    }
}
