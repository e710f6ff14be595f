//! The embedded engine: an instance is a command on this machine, with everything it forks.
//!
//! The truth is in /proc, found by a record on disk or by the marks in a process's environment;
//! memory holds only who is watched and which ports are given away. So an edge may die at any point
//! and the next one finds everything, and nothing is signalled that is not certainly ours.
//!
//! It is no boundary: instances run as the edge's user, see its files, and could reach each other.
//! `memory`, `cpus`, `pids`, `image`, `port` and `volumes` of a route do nothing here; limits are
//! for engines with cgroups.

mod adopt;
mod ends;
mod family;
mod log;
mod record;
mod signal;
mod spawn;
mod watch;

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use dashmap::DashMap;
use futures::stream::BoxStream;
use tokio::sync::{Mutex, OnceCell, broadcast};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    ends::Ends,
    family::{Motion, ProcessId},
    log::Output,
    record::{Folder, Record},
    signal::Target,
    spawn::{Bind, Spawn},
};
use super::{
    Engine, EngineEvent, Error, Instance, Life, Started, deaths, listeners::Listeners, port::Port,
};
use crate::session::{Address, Depth, Generation, Listen, SessionId, Spec};

/// Events that a slow subscriber may be behind; then it is told to list everything.
const EVENTS_MAX: usize = 1024;

/// Runs sessions as processes. Dropping it leaves them running, for the next one to adopt.
#[derive(Debug)]
pub struct Process {
    shared: Arc<Shared>,
    adopted: OnceCell<()>,
    _watchers_end_with_us: DropGuard,
}

impl Process {
    /// `state_dir` is where records, logs and sockets are: two engines with the same one have the
    /// same instances. Relative paths of routes begin in `base_dir`.
    pub fn new(state_dir: PathBuf, base_dir: PathBuf) -> Result<Self, Error> {
        let at = |path: &Path, e: &io::Error| Error::Failed(format!("{}: {e}", path.display()));
        let folder = Folder::open(&state_dir).map_err(|e| at(&state_dir, &e))?;
        let base = base_dir.canonicalize().map_err(|e| at(&base_dir, &e))?;
        let boot = family::boot().map_err(|e| Error::Failed(format!("cannot read /proc: {e}")))?;
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            owner: folder.owner(),
            folder,
            base,
            boot,
            slots: DashMap::new(),
            ends: Ends::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            tasks: TaskTracker::new(),
            closing: closing.clone(),
        });
        Ok(Self { shared, adopted: OnceCell::new(), _watchers_end_with_us: closing.drop_guard() })
    }

    /// The file with what a session's instances printed; `.1` beside it holds what was before.
    pub fn log_path(&self, session: &SessionId) -> PathBuf {
        self.shared.folder.log(session)
    }

    /// Before anything else: what an edge before us left running is ours.
    async fn adopted(&self) -> Result<(), Error> {
        self.adopted.get_or_try_init(|| self.shared.clone().reconcile()).await.map(drop)
    }

    /// Runs `call` to its end even if nobody waits for it any longer: half a start has no record,
    /// half a stop may leave members behind.
    async fn to_its_end<T, F>(&self, call: F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let task = self.shared.tasks.spawn(call);
        task.await.unwrap_or_else(|e| Err(Error::Failed(format!("the runtime ends: {e}"))))
    }
}

#[async_trait]
impl Engine for Process {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn depths(&self) -> &'static [Depth] {
        &[Depth::Paused, Depth::Stopped]
    }

    async fn start(
        &self,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        self.adopted().await?;
        let (shared, session, spec) = (self.shared.clone(), session.clone(), spec.clone());
        self.to_its_end(async move {
            let started = shared.start(&session, &spec, generation).await;
            shared.tidy(&session);
            started
        })
        .await
    }

    async fn sleep(
        &self,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        self.adopted().await?;
        let (shared, session, spec) = (self.shared.clone(), session.clone(), spec.clone());
        let life = life.cloned();
        self.to_its_end(async move {
            let slept = shared.sleep(&session, &spec, life.as_ref(), to).await;
            shared.tidy(&session);
            slept
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        let shared = self.shared.clone();
        let listed = self.to_its_end(async move {
            shared.clone().reconcile().await?;
            let told = |_| (); // by the look before
            let records = shared.folder.all(told).map_err(|e| disk(&e))?;
            Ok(records.iter().filter_map(|record| record.instance(&shared.boot)).collect())
        });
        let listed = listed.await?;
        let _ = self.adopted.set(()); // the first wake need not look again
        Ok(listed)
    }

    async fn inspect(&self, session: &SessionId, _: &Spec) -> Result<Option<Instance>, Error> {
        self.adopted().await?;
        let record = self.shared.load(session)?;
        Ok(record.and_then(|record| record.instance(&self.shared.boot)))
    }

    async fn hint(&self, session: &SessionId, _: &Spec, address: &Address) -> Option<String> {
        let record = self.shared.load(session).ok().flatten();
        let record = record.filter(|record| record.motion(&self.shared.boot).is_some());
        let Some(record) = record else { return self.shared.ends.of(session) };
        let family = self.shared.target(session, Some(record.leader)).members().await.ok()?;
        let pids: Vec<_> = family.ids().map(|id| id.pid).collect();
        let found = tokio::task::spawn_blocking(move || Listeners::of(pids)).await;
        let elsewhere = found.ok()?.ok()?.instead_of(address)?;
        Some(format!("{elsewhere}: give it {{address}}, {{port}} or $PORT"))
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        deaths::told(&self.shared.events)
    }
}

/// What calls and watchers share.
#[derive(Debug)]
struct Shared {
    folder: Folder,
    owner: String,
    base: PathBuf,
    boot: String,
    /// One lock per session that is being worked on or watched.
    slots: DashMap<SessionId, Arc<Mutex<Slot>>>,
    ends: Ends,
    events: broadcast::Sender<SessionId>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Held while anything is done to a session's processes.
#[derive(Debug, Default)]
struct Slot {
    watched: Option<ProcessId>,
    /// Of the one that is watched.
    output: Option<Arc<Output>>,
}

/// What is held for an instance that was just spawned.
#[derive(Debug, Default)]
struct Held {
    port: Option<Port>,
    output: Option<Output>,
}

impl Shared {
    async fn start(
        self: &Arc<Self>,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<Started, Error> {
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        if let Some(record) = self.load(session)? {
            if let Some(motion) = record.motion(&self.boot) {
                return self.wake(record, motion, generation, &mut slot).await;
            }
            self.end(session, record.leader(&self.boot), Duration::ZERO, &mut slot).await?;
        }
        self.ends.forget(session);
        let (record, held) = self.clone().spawn(session, spec, generation).await?;
        self.watch(&record, held, &mut slot);
        self.started(&record)
    }

    /// What exists already is resumed if it lies stopped, whoever stopped it.
    async fn wake(
        self: &Arc<Self>,
        mut record: Record,
        motion: Motion,
        generation: Generation,
        slot: &mut Slot,
    ) -> Result<Started, Error> {
        let ran_already = !record.paused && motion != Motion::Stopped;
        let (was_paused, strays) = (record.paused, mem::take(&mut record.strays));
        record.generation = record.generation.max(generation.0);
        record.paused = false;
        // First: what moves without a record of it would be taken for asleep.
        self.folder.save(&record).map_err(|e| disk(&e))?;
        if was_paused {
            signal::resume(record.leader, &strays)?;
        } else if motion == Motion::Stopped {
            self.target(&record.session(), Some(record.leader)).resume().await?;
        }
        self.watch(&record, Held::default(), slot);
        Ok(Started { ran_already, ..self.started(&record)? })
    }

    fn started(&self, record: &Record) -> Result<Started, Error> {
        let unread = || Error::Failed(format!("`{}` is not an address", record.address));
        let address = record.address().ok_or_else(unread)?;
        Ok(Started { address, life: record.life(), ran_already: false })
    }

    async fn spawn(
        self: Arc<Self>,
        session: &SessionId,
        spec: &Spec,
        generation: Generation,
    ) -> Result<(Record, Held), Error> {
        let (shared, of, spec) = (self.clone(), session.clone(), spec.clone());
        let spawned = tokio::task::spawn_blocking(move || {
            let bind = shared.bind(&of, spec.process.listen)?;
            log::open(&shared.folder.log(&of)).map_err(|e| disk(&e))?;
            let pipe = log::make_pipe(&shared.folder.pipe(&of)).map_err(|e| disk(&e))?;
            // Before its writer begins: what is in a pipe goes when all that hold it have gone.
            let output = shared.output(&of, spec.process.log_max).map_err(|e| disk(&e))?;
            let leader = Spawn {
                session: &of,
                spec: &spec,
                generation,
                owner: &shared.owner,
                base: &shared.base,
                output: &pipe,
                bind: &bind,
            }
            .run()?;
            let address = bind.address();
            let record = Record::new(&of, generation.0, leader, &shared.boot, address, &spec);
            let saved = shared.folder.save(&record).map_err(|e| disk(&e));
            Ok((record, Held { port: bind.into_port(), output: Some(output) }, saved))
        });
        let (record, held, saved) = spawned
            .await
            .unwrap_or_else(|e| Err(Error::Failed(format!("the runtime ends: {e}"))))?;
        if let Err(error) = saved {
            self.take_back(session, record.leader).await;
            return Err(error);
        }
        Ok((record, held))
    }

    /// Ends what was just spawned and has no record: only its leader's id finds all of it, because
    /// a program may throw its marks away.
    async fn take_back(&self, session: &SessionId, leader: ProcessId) {
        if let Err(error) = self.target(session, Some(leader)).end(Duration::ZERO).await {
            tracing::warn!(%session, pid = leader.pid, %error, "cannot end what has no record");
        }
        signal::reap(leader);
    }

    fn bind(&self, session: &SessionId, listen: Listen) -> Result<Bind, Error> {
        match listen {
            Listen::Tcp => Port::free()
                .map(Bind::Tcp)
                .map_err(|e| Error::Conflict(format!("no free port on 127.0.0.1: {e}"))),
            Listen::Unix => self.folder.socket(session).map(Bind::Unix).ok_or_else(|| {
                Error::Invalid(
                    "the state folder's path is too long for unix sockets: shorten [paths] state, \
                     or use listen = \"tcp\""
                        .into(),
                )
            }),
        }
    }

    async fn sleep(
        self: &Arc<Self>,
        session: &SessionId,
        spec: &Spec,
        life: Option<&Life>,
        to: Depth,
    ) -> Result<(), Error> {
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        let Some(mut record) = self.load(session)? else {
            return self.end(session, None, spec.process.grace, &mut slot).await;
        };
        if life.is_some_and(|life| record.is_newer_than(life)) {
            return Ok(());
        }
        let leader = record.leader(&self.boot);
        if to == Depth::Paused && record.motion(&self.boot).is_some() {
            record.strays = self.target(session, leader).pause().await?;
            record.paused = true;
            return self.folder.save(&record).map_err(|e| disk(&e));
        }
        // A spec without a command is that of no route: the instance's own knows its grace.
        let orphan = spec.command.is_empty();
        let grace = if orphan { record.grace() } else { spec.process.grace };
        self.end(session, leader, grace, &mut slot).await
    }

    /// After this nothing of the session is left but its log.
    async fn end(
        &self,
        session: &SessionId,
        leader: Option<ProcessId>,
        grace: Duration,
        slot: &mut Slot,
    ) -> Result<(), Error> {
        self.target(session, leader).end(grace).await?;
        if let Some(output) = slot.output.take() {
            output.drain().await; // its last words
        }
        self.folder.forget(session).map_err(|e| disk(&e))?;
        self.prune_logs().await;
        Ok(())
    }

    async fn prune_logs(&self) {
        let folder = self.folder.clone();
        let pruned = tokio::task::spawn_blocking(move || folder.prune_logs()).await;
        if let Ok(Err(error)) = pruned {
            tracing::warn!(%error, "cannot remove an old log");
        }
    }

    /// A slot that nobody holds and nobody watches is not kept.
    fn tidy(&self, session: &SessionId) {
        self.slots.remove_if(session, |_, slot| {
            Arc::strong_count(slot) == 1 && slot.try_lock().is_ok_and(|s| s.watched.is_none())
        });
    }

    fn slot(&self, session: &SessionId) -> Arc<Mutex<Slot>> {
        self.slots.entry(session.clone()).or_default().clone()
    }

    fn output(&self, session: &SessionId, max: u64) -> io::Result<Output> {
        Output::open(&self.folder.pipe(session), self.folder.log(session), max)
    }

    fn target(&self, session: &SessionId, leader: Option<ProcessId>) -> Target {
        Target { owner: self.owner.clone(), session: session.host().to_owned(), leader }
    }

    fn load(&self, session: &SessionId) -> Result<Option<Record>, Error> {
        self.folder.load(session).map_err(|e| disk(&e))
    }
}

fn disk(error: &io::Error) -> Error {
    Error::Failed(format!("cannot keep records in the state folder: {error}"))
}
