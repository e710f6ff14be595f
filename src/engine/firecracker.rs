//! The Firecracker engine: a session is a microVM of its own on this host, one process each.
//!
//! As with QEMU the truth is in each machine's folder: a lock that its process holds, an API that
//! answers, a disk, and the memory of one that is suspended.

mod api;
mod files;
mod layer;
mod part;
mod process;
mod relay;
mod template;

use std::{
    fmt, io,
    os::unix::net::UnixListener as StdListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use dashmap::DashMap;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::{net::UnixListener, process::Child, sync::broadcast};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{api::Api, files::Golden, template::Files};
use super::{
    Engine, EngineEvent, Error, Instance, Life, Started,
    alone::Alone,
    deaths,
    vm::{
        self, disk,
        folder::{Folder, MEMORY, MEMORY_PART, Record, STATE, STATE_PART, Saved},
        grace, new_life,
    },
};
use crate::session::{Address, Depth, Generation, SessionId, Spec};

/// The API's socket.
const API: &str = "api";
/// Where Firecracker takes connections for the guest's vsock.
const VSOCK: &str = "vsock";
/// Where we take them.
const UPSTREAM: &str = "up-";
/// Of a life's mark in that name.
const MARK: usize = 8;
/// The port that an instance listens on when its route names none.
const PORT: u16 = 8080;
/// Events that a slow subscriber may be behind; then it is told to list everything.
const EVENTS_MAX: usize = 1024;
/// What a machine's process needs beside its guest's memory, in bytes.
const OVERHEAD: u64 = 64 << 20;

/// Where machines are and what runs them.
#[derive(Clone, Debug)]
pub struct Config {
    /// `firecracker`.
    pub program: PathBuf,
    /// How each is locked in, if it is.
    pub jail: Option<Jail>,
    /// `mkfs.ext4`, for routes with a layer.
    pub mkfs: PathBuf,
    /// Whether a resumed guest's clock is set on: x86-64, hosts from 5.16, and a Firecracker that
    /// has it.
    pub clock_realtime: bool,
    /// Two engines with the same one have the same machines.
    pub state: PathBuf,
    /// Where relative paths of routes begin.
    pub base: PathBuf,
    /// The most time for a start, a resume or a suspend.
    pub call_timeout: Duration,
}

/// Firecracker's jailer: a root directory, a user and a cgroup for each machine. Needs root.
#[derive(Clone, Debug)]
pub struct Jail {
    /// `jailer`.
    pub program: PathBuf,
    /// The user that machines run as.
    pub uid: u32,
    /// The group that machines run as.
    pub gid: u32,
}

/// Runs sessions as microVMs. Dropping it leaves them running, for the next one to adopt.
pub struct Firecracker {
    shared: Arc<Shared>,
    alone: Alone,
    _watchers_end_with_us: DropGuard,
}

impl fmt::Debug for Firecracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Firecracker").field("root", &self.shared.root).finish_non_exhaustive()
    }
}

impl Firecracker {
    /// Makes the state folder; whether Firecracker is there is found out by the first start.
    pub fn new(config: Config) -> Result<Self, Error> {
        let root = config.state.join("fc");
        let at = |path: &PathBuf, e: &io::Error| Error::Failed(format!("{}: {e}", path.display()));
        std::fs::create_dir_all(&root).map_err(|e| at(&root, &e))?;
        let root = root.canonicalize().map_err(|e| at(&root, &e))?;
        let base = config.base.canonicalize().map_err(|e| at(&config.base, &e))?;
        let config = Config { base, ..config };
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            root,
            config,
            warned: AtomicBool::new(false),
            watched: DashMap::new(),
            events: broadcast::Sender::new(EVENTS_MAX),
            tasks: TaskTracker::new(),
            closing: closing.clone(),
        });
        let _watchers_end_with_us = closing.drop_guard();
        Ok(Self { shared, alone: Alone::default(), _watchers_end_with_us })
    }
}

#[async_trait]
impl Engine for Firecracker {
    fn kind(&self) -> &'static str {
        "firecracker"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Paused, Depth::Suspended, Depth::Stopped, Depth::Removed]
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let (shared, of, spec) = (self.shared.clone(), session.clone(), spec.clone());
        self.alone.run(session, async move { shared.start(&of, &spec, generation).await }).await
    }

    async fn sleep(
        &self,
        session: &SessionId,
        _: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let (shared, of, life) = (self.shared.clone(), session.clone(), life.cloned());
        self.alone.run(session, async move { shared.sleep(&of, life.as_ref(), to).await }).await
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let shared = self.shared.clone();
        let jailed = move || {
            let folders = Folder::all(&shared.root)?;
            Ok(folders.into_iter().map(|folder| shared.jailed(folder)).collect())
        };
        let mut instances = Vec::new();
        for (folder, instance) in vm::all(jailed).await? {
            if instance.life.is_some()
                && let Some(record) = folder.record().map_err(|e| disk(&folder, &e))?
            {
                // One that cannot be reached is not all of them.
                if let Err(error) = self.shared.watch(&folder, &record, None) {
                    tracing::warn!(session = %instance.session, %error, "cannot reach a machine");
                }
            }
            instances.push(instance);
        }
        Ok(instances)
    }

    async fn inspect(&self, session: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        let folder = self.shared.folder(session);
        folder.instance().map_err(|e| disk(&folder, &e))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        deaths::told(&self.shared.events)
    }
}

/// What calls and watchers share.
struct Shared {
    root: PathBuf,
    config: Config,
    /// The operator knows what one memory in many sessions means.
    warned: AtomicBool,
    /// Whose end is waited for.
    watched: DashMap<SessionId, Life>,
    events: broadcast::Sender<SessionId>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// A machine about to be started.
struct Plan<'a> {
    session: &'a SessionId,
    spec: &'a Spec,
    folder: &'a Folder,
    calls: Vec<(&'static str, Value)>,
    /// The memory that a first wake goes on from.
    golden: Option<Golden>,
}

impl Shared {
    fn folder(&self, session: &SessionId) -> Folder {
        self.jailed(Folder::of(&self.root, session))
    }

    fn jailed(&self, folder: Folder) -> Folder {
        if self.config.jail.is_none() {
            return folder;
        }
        let program = self.config.program.file_name().unwrap_or_default();
        let jail = PathBuf::from(program).join(name(&folder)).join("root");
        folder.jailed(jail)
    }

    async fn start(
        self: &Arc<Self>,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let folder = self.folder(session);
        let io = |e: io::Error| disk(&folder, &e);
        if folder.is_alive().map_err(io)? {
            return self.resume(&folder, generation).await;
        }
        if ![API, VSOCK, "up-01234567"].iter().all(|name| folder.fits_socket(name)) {
            return Err(Error::Invalid(
                "the state folder's path is too long for unix sockets: shorten [paths] state"
                    .into(),
            ));
        }
        let port = spec.port.unwrap_or(PORT);
        let address = vm::address(spec.firecracker.address.as_deref(), port)?;
        let before = folder.record().map_err(io)?;
        folder.create().map_err(io)?;
        let is_new = !folder.is_known();
        let prepared = self.prepare(&folder, spec, before.clone()).await;
        if prepared.is_err() && is_new {
            // Half of what a session begins with is nobody's, and takes room.
            folder.remove().map_err(io)?;
        }
        let (files, golden) = prepared?;
        let calls = template::machine(spec, &files);
        let generation = before.as_ref().map_or(0, |record| record.generation).max(generation.0);
        let record = Record {
            session: session.host().to_owned(),
            generation,
            life: new_life(),
            memory: template::memory(spec),
            fingerprint: template::fingerprint(&calls, files.base.as_ref()),
            port,
            address,
            paused: false,
            base: files.base,
            grace_ms: u64::try_from(spec.firecracker.grace.as_millis()).unwrap_or(u64::MAX),
        };
        // First: what runs without a record is nobody's.
        folder.save(&record).map_err(io)?;
        let plan = Plan { session, spec, folder: &folder, calls, golden };
        let ran = self.run(&plan, &record).await;
        let watched = ran.and_then(|child| self.watch(&folder, &record, Some(child)));
        if watched.is_err() {
            // Half of a start must not run on, and what it left is not waited for by anything else.
            process::end(&folder, Duration::ZERO).await?;
            if is_new {
                // So that the next try is a first one, too, and begins with the golden memory.
                folder.remove().map_err(io)?;
            }
        }
        watched?;
        Ok(started(&folder, &record))
    }

    /// What the machine is made of is there, or the error says what is not.
    async fn prepare(
        &self,
        folder: &Folder,
        spec: &Spec,
        before: Option<Record>,
    ) -> Result<(Files, Option<Golden>), Error> {
        let (config, of, made_of) = (self.config.clone(), folder.clone(), spec.clone());
        let prepare = move || files::prepare(&config, &of, &made_of, before.as_ref());
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let prepared =
            prepared.map_err(|_| Error::Failed("the machine's files: a panic".to_owned()))??;
        if let Some(size) = spec.firecracker.layer {
            layer::make(&self.config, folder, size).await?;
        }
        Ok(prepared)
    }

    /// What runs already goes on, whoever stopped it.
    async fn resume(
        self: &Arc<Self>,
        folder: &Folder,
        generation: Generation,
    ) -> Result<Started, Error> {
        let io = |e: io::Error| disk(folder, &e);
        let lost = || Error::Failed("a machine runs and its record is lost".to_owned());
        let mut record = folder.record().map_err(io)?.ok_or_else(lost)?;
        // One that was to be suspended when its edge died has its memory in a file, too.
        folder.forget_memory().map_err(io)?;
        let ran_already = !std::mem::take(&mut record.paused);
        record.generation = record.generation.max(generation.0);
        // First: what moves without a record of it would be taken for asleep.
        folder.save(&record).map_err(io)?;
        Api::at(folder.file(API)).resume().await?;
        self.watch(folder, &record, None)?;
        Ok(Started { ran_already, ..started(folder, &record) })
    }

    /// From its own memory where there is one that fits, or a golden one, else from its disk.
    async fn run(&self, plan: &Plan<'_>, record: &Record) -> Result<Child, Error> {
        let (folder, session) = (plan.folder, plan.session);
        let io = |e: io::Error| disk(folder, &e);
        let had = folder.has(MEMORY) && plan.golden.is_none();
        let saved = folder.saved().map_err(io)?;
        let fits = saved.is_some_and(|saved| saved.fingerprint == record.fingerprint);
        if plan.golden.is_some() {
            self.warn_of_twins(plan.spec);
        }
        if fits || plan.golden.is_some() {
            match self.restore(plan).await {
                Ok(child) => return Ok(child),
                Err(error) => {
                    tracing::warn!(%session, %error, "its memory cannot be read: it boots instead");
                    process::end(folder, Duration::ZERO).await?;
                }
            }
        } else if had {
            tracing::warn!(%session, "its memory is of another machine or cut off: it boots instead");
        }
        folder.forget_memory().map_err(io)?;
        if plan.spec.firecracker.kernel.is_none() {
            return Err(Error::Missing(
                "no kernel to boot: set instance.firecracker.kernel".to_owned(),
            ));
        }
        let (child, api) = self.spawn(plan).await?;
        for (path, body) in &plan.calls {
            api.put(path, body).await?;
        }
        self.tell(plan, &api).await?;
        api.boot().await?;
        Ok(child)
    }

    async fn restore(&self, plan: &Plan<'_>) -> Result<Child, Error> {
        let (child, api) = self.spawn(plan).await?;
        let mut load = json!({
            "snapshot_path": STATE,
            "mem_backend": { "backend_type": "File", "backend_path": MEMORY },
            "resume_vm": false,
        });
        if self.config.clock_realtime {
            load["clock_realtime"] = json!(true);
        }
        if let Some(overrides) = template::overrides(plan.spec) {
            load["network_overrides"] = overrides;
        }
        api.put_slowly("/snapshot/load", &load, self.config.call_timeout).await?;
        // Before it goes on: with what it writes to its disk from then on, this memory fits no more.
        // The machine has the file open, and needs no name for it.
        plan.folder.forget_memory().map_err(|e| disk(plan.folder, &e))?;
        self.tell(plan, &api).await?;
        api.resume().await?;
        Ok(child)
    }

    /// Who it is, for a guest that can ask.
    async fn tell(&self, plan: &Plan<'_>, api: &Api) -> Result<(), Error> {
        match template::metadata(plan.spec, plan.session) {
            Some(metadata) => api.put("/mmds", &metadata).await,
            None => Ok(()),
        }
    }

    async fn spawn(&self, plan: &Plan<'_>) -> Result<(Child, Api), Error> {
        let id = name(plan.folder);
        let mut limits =
            vec![format!("memory.max={}", template::memory(plan.spec).saturating_add(OVERHEAD))];
        limits.extend(plan.spec.pids.map(|pids| format!("pids.max={pids}")));
        let (program, jail) = (&self.config.program, self.config.jail.as_ref());
        let line = process::line(program, jail, (plan.folder.path(), &id), &limits);
        process::start(plan.folder, &line, self.config.call_timeout).await
    }

    /// Once for all: what is the same in every clone is known to each of them.
    fn warn_of_twins(&self, spec: &Spec) {
        if !spec.firecracker.vmgenid && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "sessions made from one golden memory begin with the same random numbers and keys, \
                 unless their guest's kernel heeds VMGenID (Linux from 5.18 does): say \
                 instance.firecracker.vmgenid = true if it does"
            );
        }
    }

    async fn sleep(
        &self,
        session: &SessionId,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let folder = self.folder(session);
        let io = |e: io::Error| disk(&folder, &e);
        let Some(record) = folder.record().map_err(io)? else { return Ok(()) };
        // A folder has one life at a time: where it is another one, that life is over.
        if life.is_some_and(|life| *life != record.life()) {
            return Ok(());
        }
        match to {
            Depth::Paused => self.pause(&folder, record).await,
            Depth::Suspended => self.suspend(&folder, &record).await,
            Depth::Stopped => self.stop(&folder, &record).await,
            Depth::Removed => {
                process::end(&folder, grace(&record)).await?;
                folder.remove().map_err(io)
            }
        }
    }

    async fn pause(&self, folder: &Folder, mut record: Record) -> Result<(), Error> {
        let io = |e: io::Error| disk(folder, &e);
        if !folder.is_alive().map_err(io)? {
            return Ok(());
        }
        if Api::at(folder.file(API)).pause().await.is_err() {
            // It hangs.
            return process::end(folder, Duration::ZERO).await;
        }
        record.paused = true;
        folder.save(&record).map_err(io)
    }

    async fn suspend(&self, folder: &Folder, record: &Record) -> Result<(), Error> {
        if !folder.is_alive().map_err(|e| disk(folder, &e))? {
            return Ok(());
        }
        if let Err(error) = self.keep_memory(folder, record).await {
            // What is left of it takes the room that something else may need.
            let _ = folder.forget_memory();
            let session = &record.session;
            tracing::warn!(%session, %error, "its memory cannot be kept: it is shut down instead");
            return self.stop(folder, record).await;
        }
        process::end(folder, Duration::ZERO).await
    }

    async fn keep_memory(&self, folder: &Folder, record: &Record) -> Result<(), Error> {
        let io = |e: io::Error| disk(folder, &e);
        let api = Api::at(folder.file(API));
        api.pause().await?;
        folder.forget_memory().map_err(io)?;
        let create = json!({
            "snapshot_type": "Full", "snapshot_path": STATE_PART, "mem_file_path": MEMORY_PART,
        });
        api.put_slowly("/snapshot/create", &create, self.config.call_timeout).await?;
        let of = folder.clone();
        let synced = tokio::task::spawn_blocking(move || files::sync(&of)).await;
        let (length, state_length) =
            synced.map_err(|_| Error::Failed("a panic".to_owned()))?.map_err(io)?;
        if length < record.memory {
            return Err(Error::Failed(format!("{length} bytes of {} were written", record.memory)));
        }
        let saved = Saved { fingerprint: record.fingerprint.clone(), length, state_length };
        folder.keep_memory(&saved).map_err(io)
    }

    /// Its disk and its record stay.
    async fn stop(&self, folder: &Folder, record: &Record) -> Result<(), Error> {
        process::end(folder, grace(record)).await?;
        folder.forget_memory().map_err(|e| disk(folder, &e))
    }

    /// From here on the machine is reached, and its end is told.
    fn watch(
        self: &Arc<Self>,
        folder: &Folder,
        record: &Record,
        child: Option<Child>,
    ) -> Result<(), Error> {
        let (session, life) = (SessionId::new(record.session.as_str()), record.life());
        if self.watched.get(&session).is_some_and(|watched| *watched == life) {
            return Ok(());
        }
        let listener = match record.address {
            Some(_) => None,
            None => Some(self.listen(folder, record).map_err(|e| disk(folder, &e))?),
        };
        self.watched.insert(session.clone(), life.clone());
        let (shared, folder, closing) = (self.clone(), folder.clone(), self.closing.clone());
        let (vsock, port) = (folder.file(VSOCK), record.port);
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            let end = async {
                match child {
                    Some(child) => vm::process::attend(child).await,
                    None => vm::process::watch(&folder).await,
                }
            };
            match listener {
                Some(listener) => tokio::select! {
                    () = end => {}
                    () = relay::serve(listener, vsock, port) => {}
                },
                None => end.await,
            }
            shared.watched.remove_if(&session, |_, watched| *watched == life);
            let _ = shared.events.send(session); // no subscriber is no loss
        }));
        Ok(())
    }

    /// Where the edge comes in, under a name of this life alone.
    fn listen(&self, folder: &Folder, record: &Record) -> io::Result<UnixListener> {
        let path = upstream(folder, record);
        for entry in std::fs::read_dir(folder.path())? {
            let old = entry?.path();
            let is_old =
                old.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UPSTREAM));
            if is_old {
                std::fs::remove_file(old)?;
            }
        }
        let listener = StdListener::bind(path)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }
}

/// A name for a machine among all of this host.
fn name(folder: &Folder) -> String {
    folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn upstream(folder: &Folder, record: &Record) -> PathBuf {
    let mark = &record.life[record.life.len().saturating_sub(MARK)..];
    folder.path().join(format!("{UPSTREAM}{mark}"))
}

fn started(folder: &Folder, record: &Record) -> Started {
    let address = match record.address {
        Some(address) => Address::Tcp(address),
        None => Address::Unix(upstream(folder, record).to_string_lossy().into()),
    };
    Started { address, life: record.life(), ran_already: false }
}
