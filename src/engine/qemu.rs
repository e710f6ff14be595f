//! The QEMU engine: a session is a virtual machine of its own on this host, one process each.
//!
//! The truth is in each machine's folder: a lock that its process holds, a monitor that answers, a
//! disk, and the memory of one that is suspended. So an edge may die at any point and the next one
//! finds everything.

mod accelerator;
mod arguments;
mod memory;
mod monitor;
mod process;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use dashmap::DashMap;
use futures::stream::BoxStream;
use tokio::{
    process::{Child, Command},
    sync::{OnceCell, broadcast},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    arguments::{Accelerator, PORT},
    monitor::Monitor,
    process::Unborn,
};
use super::{
    Engine, EngineEvent, Error, Instance, Life, Started,
    alone::Alone,
    deaths,
    port::Port,
    vm::{
        self, disk,
        folder::{self, Base, Folder, Record},
        grace, new_life,
    },
};
use crate::session::{Address, Depth, Generation, QemuSpec, SessionId, Spec};

/// The session's own disk, over the base image.
const DISK: &str = "disk.qcow2";
/// The monitor's socket.
const MONITOR: &str = "monitor";
/// Where memory goes out and comes in.
const CHANNEL: &str = "channel";
/// What the guest finds as `opt/dormouse/env`.
const ENVIRONMENT: &str = "environment";
/// Events that a slow subscriber may be behind; then it is told to list everything.
const EVENTS_MAX: usize = 1024;
/// How often another port is tried when somebody took the one that was free.
const PORTS_MAX: usize = 3;

/// Where machines are and what runs them.
#[derive(Clone, Debug)]
pub struct Config {
    /// `qemu-system-…`.
    pub program: PathBuf,
    /// `qemu-img`.
    pub image_program: PathBuf,
    /// `Some(true)`: by KVM or not at all. `Some(false)`: without it. Otherwise as it can.
    pub kvm: Option<bool>,
    /// Two engines with the same one have the same machines.
    pub state: PathBuf,
    /// Where relative paths of routes begin.
    pub base: PathBuf,
    /// The most time for a start, a resume or a suspend.
    pub call_timeout: Duration,
}

/// Runs sessions as virtual machines. Dropping it leaves them running, for the next one to adopt.
pub struct Qemu {
    shared: Arc<Shared>,
    alone: Alone,
    _watchers_end_with_us: DropGuard,
}

impl fmt::Debug for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qemu").field("root", &self.shared.root).finish_non_exhaustive()
    }
}

impl Qemu {
    /// Makes the state folder; whether QEMU is there is found out by the first start.
    pub fn new(config: Config) -> Result<Self, Error> {
        let root = config.state.join("qemu");
        let at = |path: &Path, e: &io::Error| Error::Failed(format!("{}: {e}", path.display()));
        std::fs::create_dir_all(&root).map_err(|e| at(&root, &e))?;
        let root = root.canonicalize().map_err(|e| at(&root, &e))?;
        let base = config.base.canonicalize().map_err(|e| at(&config.base, &e))?;
        let config = Config { base, ..config };
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            root,
            config,
            accelerator: OnceCell::new(),
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
impl Engine for Qemu {
    fn kind(&self) -> &'static str {
        "qemu"
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
        let root = self.shared.root.clone();
        let found = vm::all(move || Folder::all(&root)).await?;
        let instances = found.into_iter().map(|(folder, instance)| {
            if let Some(life) = &instance.life {
                self.shared.watch(&instance.session, life.clone(), folder, None);
            }
            instance
        });
        Ok(instances.collect())
    }

    async fn inspect(&self, session: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        let folder = Folder::of(&self.shared.root, session);
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
    accelerator: OnceCell<Accelerator>,
    /// Whose end is waited for.
    watched: DashMap<SessionId, Life>,
    events: broadcast::Sender<SessionId>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// A machine about to be started.
struct Plan<'a> {
    spec: &'a Spec,
    folder: &'a Folder,
    machine: Vec<String>,
}

impl Shared {
    async fn start(
        self: &Arc<Self>,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let folder = Folder::of(&self.root, session);
        let io = |e: io::Error| disk(&folder, &e);
        if folder.is_alive().map_err(io)? {
            return self.resume(session, &folder, generation).await;
        }
        if ![CHANNEL, MONITOR].iter().all(|name| folder.fits_socket(name)) {
            return Err(Error::Invalid(
                "the state folder's path is too long for unix sockets: shorten [paths] state"
                    .into(),
            ));
        }
        folder.create().map_err(io)?;
        let before = folder.record().map_err(io)?;
        let base = self.prepare_disk(&folder, spec, before.as_ref()).await?;
        let environment = arguments::environment(spec);
        folder.write_private(ENVIRONMENT, environment.as_bytes()).map_err(io)?;
        let machine = arguments::machine(self.accelerator().await?, session, &self.absolute(spec));
        let generation = before.map_or(0, |record| record.generation).max(generation.0);
        let record = Record {
            session: session.host().to_owned(),
            generation,
            life: new_life(),
            memory: arguments::memory(spec),
            fingerprint: arguments::fingerprint(&machine, &environment),
            port: 0,
            address: vm::address(spec.qemu.address.as_deref(), spec.port.unwrap_or(PORT))?,
            paused: false,
            base,
            grace_ms: u64::try_from(spec.qemu.grace.as_millis()).unwrap_or(u64::MAX),
        };
        let plan = Plan { spec, folder: &folder, machine };
        let (record, child) = self.run(&plan, record).await?;
        self.watch(session, record.life(), folder.clone(), Some(child));
        Ok(started(&record))
    }

    /// What runs already goes on, whoever stopped it.
    async fn resume(
        self: &Arc<Self>,
        session: &SessionId,
        folder: &Folder,
        generation: Generation,
    ) -> Result<Started, Error> {
        let io = |e: io::Error| disk(folder, &e);
        let lost = || Error::Failed("a machine runs and its record is lost".to_owned());
        let mut record = folder.record().map_err(io)?.ok_or_else(lost)?;
        // One that was to be suspended when its edge died has its memory in a file, too.
        folder.forget_memory().map_err(io)?;
        let monitor = Monitor::open(&folder.file(MONITOR)).await?;
        let ran_already = !std::mem::take(&mut record.paused);
        record.generation = record.generation.max(generation.0);
        // First: what moves without a record of it would be taken for asleep.
        folder.save(&record).map_err(io)?;
        monitor.resume().await?;
        self.watch(session, record.life(), folder.clone(), None);
        Ok(Started { ran_already, ..started(&record) })
    }

    /// From its memory where there is one that fits, else from its disk.
    async fn run(&self, plan: &Plan<'_>, record: Record) -> Result<(Record, Child), Error> {
        let (folder, session) = (plan.folder, &record.session);
        let io = |e: io::Error| disk(folder, &e);
        let had = folder.has(folder::MEMORY);
        let saved = folder.saved().map_err(io)?;
        let fits = saved.is_some_and(|saved| saved.fingerprint == record.fingerprint);
        if fits {
            match self.restore(plan, record.clone()).await {
                Ok(restored) => return Ok(restored),
                Err(error) => {
                    tracing::warn!(%session, %error, "its memory cannot be read: it boots instead");
                    process::end(folder, Duration::ZERO).await?;
                }
            }
        } else if had {
            tracing::warn!(%session, "its memory is of another machine or cut off: it boots instead");
        }
        folder.forget_memory().map_err(io)?;
        let (record, child, _monitor) = self.spawn(plan, record, false).await?;
        Ok((record, child))
    }

    async fn restore(&self, plan: &Plan<'_>, record: Record) -> Result<(Record, Child), Error> {
        let (record, child, monitor) = self.spawn(plan, record, true).await?;
        memory::load(plan.folder, &monitor, self.config.call_timeout).await?;
        // Before it goes on: with what it writes to its disk from then on, this memory fits no more.
        plan.folder.forget_memory().map_err(|e| disk(plan.folder, &e))?;
        monitor.resume().await?;
        Ok((record, child))
    }

    async fn spawn(
        &self,
        plan: &Plan<'_>,
        mut record: Record,
        resumes: bool,
    ) -> Result<(Record, Child, Monitor), Error> {
        for _ in 0..PORTS_MAX {
            // Held until QEMU has it; behind a tap none is forwarded.
            let port = match record.address {
                Some(_) => None,
                None => Some(
                    Port::free()
                        .map_err(|e| Error::Conflict(format!("no free port on 127.0.0.1: {e}")))?,
                ),
            };
            record.port = port.as_ref().map_or(0, Port::number);
            // First: what runs without a record is nobody's.
            plan.folder.save(&record).map_err(|e| disk(plan.folder, &e))?;
            let mut words = plan.machine.clone();
            words.extend(arguments::meeting(plan.spec, record.port, resumes));
            let limit = self.config.call_timeout;
            match process::start(&self.config.program, plan.folder, &words, limit).await {
                Ok((child, monitor)) => return Ok((record, child, monitor)),
                Err(Unborn::PortTaken) => {}
                Err(Unborn::Error(error)) => return Err(error),
            }
        }
        Err(Error::Conflict("every port that was free was taken meanwhile".to_owned()))
    }

    async fn accelerator(&self) -> Result<Accelerator, Error> {
        let found = match self.config.kvm {
            Some(false) => Accelerator::Tcg,
            Some(true) => Accelerator::Kvm,
            None => {
                let best = accelerator::best(&self.config.program);
                *self.accelerator.get_or_init(|| best).await
            }
        };
        Ok(found)
    }

    fn absolute(&self, spec: &Spec) -> Spec {
        let at = |file: &Option<String>| {
            file.as_ref().map(|file| self.config.base.join(file).to_string_lossy().into_owned())
        };
        let QemuSpec { kernel, initrd, disk, .. } = &spec.qemu;
        let qemu = QemuSpec {
            kernel: at(kernel),
            initrd: at(initrd),
            disk: at(disk),
            ..spec.qemu.clone()
        };
        Spec { qemu, ..spec.clone() }
    }

    /// Lays the session's own disk over the base image, once.
    async fn prepare_disk(
        &self,
        folder: &Folder,
        spec: &Spec,
        before: Option<&Record>,
    ) -> Result<Option<Base>, Error> {
        let Some(image) = &spec.qemu.disk else { return Ok(None) };
        let image = self.config.base.join(image);
        let base = Base::of(&image)
            .map_err(|e| Error::Missing(format!("the base image {}: {e}", image.display())))?;
        if folder.has(DISK) {
            return match before.and_then(|record| record.base.as_ref()) {
                Some(known) if *known != base => Err(Error::Conflict(format!(
                    "the base image {} is not the one that this session's disk was laid over: \
                     bring that back, or put the session to sleep as deep as `removed`",
                    image.display()
                ))),
                _ => Ok(Some(base)),
            };
        }
        let fresh = format!("{DISK}.part");
        let mut create = Command::new(&self.config.image_program);
        create
            .args(["create", "-q", "-f", "qcow2", "-F", &spec.qemu.disk_format, "-b"])
            .arg(&image)
            .arg(folder.file(&fresh))
            .kill_on_drop(true);
        let program = self.config.image_program.display();
        let limit = self.config.call_timeout;
        let ran = timeout(limit, create.output())
            .await
            .map_err(|_| Error::Timeout { call: "qemu-img", after: limit })?
            .map_err(|e| Error::Missing(format!("cannot run {program}: {e}")))?;
        if !ran.status.success() {
            let why = String::from_utf8_lossy(&ran.stderr);
            return Err(Error::Failed(format!("{program}: {}", why.trim())));
        }
        std::fs::rename(folder.file(&fresh), folder.file(DISK)).map_err(|e| disk(folder, &e))?;
        Ok(Some(base))
    }

    async fn sleep(
        &self,
        session: &SessionId,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let folder = Folder::of(&self.root, session);
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
        let paused = async { Monitor::open(&folder.file(MONITOR)).await?.pause().await };
        if paused.await.is_err() {
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
        let saved = async {
            let monitor = Monitor::open(&folder.file(MONITOR)).await?;
            memory::save(folder, &monitor, record, self.config.call_timeout).await
        };
        if let Err(error) = saved.await {
            let session = &record.session;
            tracing::warn!(%session, %error, "its memory cannot be kept: it is shut down instead");
            return self.stop(folder, record).await;
        }
        process::end(folder, Duration::ZERO).await
    }

    /// Its disk and its record stay.
    async fn stop(&self, folder: &Folder, record: &Record) -> Result<(), Error> {
        process::end(folder, grace(record)).await?;
        folder.forget_memory().map_err(|e| disk(folder, &e))
    }

    /// From here on the machine's end is told.
    fn watch(
        self: &Arc<Self>,
        session: &SessionId,
        life: Life,
        folder: Folder,
        child: Option<Child>,
    ) {
        if self.watched.insert(session.clone(), life.clone()) == Some(life.clone()) {
            return;
        }
        let (shared, session, closing) = (self.clone(), session.clone(), self.closing.clone());
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            match child {
                Some(child) => vm::process::attend(child).await,
                None => vm::process::watch(&folder).await,
            }
            shared.watched.remove_if(&session, |_, watched| *watched == life);
            let _ = shared.events.send(session); // no subscriber is no loss
        }));
    }
}

fn started(record: &Record) -> Started {
    let forwarded = ([127, 0, 0, 1], record.port).into();
    let address = Address::Tcp(record.address.unwrap_or(forwarded));
    Started { address, life: record.life(), ran_already: false }
}
