//! The embedded engine: an instance is a command on this machine, with everything it forks.
//!
//! The truth is in /proc, found by a record on disk or by the marks in a process's environment;
//! memory holds only who is watched and which ports are given away. So an edge may die at any point
//! and the next one finds everything, and nothing is signalled that is not certainly ours.
//!
//! It is no boundary: instances run as the edge's user, see its files, and could reach each other.
//! `memory`, `cpus`, `pids`, `image`, `port` and `volumes` of a route do nothing here; limits are
//! for engines with cgroups.

mod ends;
mod family;
mod log;
mod record;
mod signal;
mod spawn;

use std::{
    collections::HashMap,
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
    family::{Family, Marked, Motion, ProcessId},
    log::Output,
    record::{Folder, Record},
    signal::{Exit, Target},
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

    /// Watches every instance that there is, and ends the remains of those that died unwatched.
    async fn reconcile(self: Arc<Self>) -> Result<(), Error> {
        let shared = self.clone();
        let look = move || {
            let unread = |error| tracing::warn!(%error, "skipped a record that cannot be read");
            Ok((family::marked(&shared.owner)?, shared.folder.all(unread)?))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (mut marked, records) =
            looked.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e: io::Error| {
                Error::Failed(format!("cannot find out what runs already: {e}"))
            })?;
        for record in records {
            marked.entry(record.session).or_default();
        }
        self.adopt(marked).await;
        self.prune_logs().await;
        Ok(())
    }

    async fn adopt(self: &Arc<Self>, marked: HashMap<String, Vec<Marked>>) {
        for (host, marked) in marked {
            let session = SessionId::new(host);
            let slot = self.slot(&session);
            {
                // If held, somebody works on it now, and knows more than our look did.
                let Ok(mut slot) = slot.try_lock() else { continue };
                if let Err(error) = self.adopt_one(&session, marked, &mut slot).await {
                    tracing::warn!(%session, %error, "cannot adopt or end a session's processes");
                }
            }
            drop(slot);
            self.tidy(&session);
        }
    }

    async fn adopt_one(
        self: &Arc<Self>,
        session: &SessionId,
        mut marked: Vec<Marked>,
        slot: &mut Slot,
    ) -> Result<(), Error> {
        let record = self.load(session)?;
        if let Some(record) = record.as_ref().filter(|r| r.motion(&self.boot).is_some()) {
            self.watch(record, Held::default(), slot);
            return Ok(());
        }
        // The first process of an edge that died between its spawn and its record. Where there is a
        // record, that process is dead, and who leads now is only what it left behind.
        marked.sort_by_key(|marked| marked.id.start);
        let mut leaders = marked.iter().filter(|m| m.leads && m.id.motion().is_some());
        if let (None, Some(first)) = (&record, leaders.next()) {
            let (generation, address) = (first.generation, first.address.clone());
            let spec = Spec::default();
            let record = Record::new(session, generation, first.id, &self.boot, address, &spec);
            if let Err(error) = self.folder.save(&record) {
                // The start that it is of was never answered, so it serves no request.
                self.take_back(session, first.id).await;
                return Err(disk(&error));
            }
            self.watch(&record, Held::default(), slot);
            return Ok(());
        }
        let leader = record.and_then(|record| record.leader(&self.boot));
        self.end(session, leader, Duration::ZERO, slot).await
    }

    /// From here on the death of `record`'s leader is noticed at once.
    fn watch(self: &Arc<Self>, record: &Record, held: Held, slot: &mut Slot) {
        if slot.watched == Some(record.leader) {
            return;
        }
        slot.watched = Some(record.leader);
        let opened = held.output.map_or_else(|| self.output(&record.session(), record.log_max), Ok);
        slot.output = match opened {
            Ok(output) => Some(Arc::new(output)),
            Err(error) => {
                let session = &record.session;
                tracing::warn!(%session, %error, "what an instance prints cannot be read");
                None
            }
        };
        let output = slot.output.clone();
        let port = held.port.or_else(|| match record.address()? {
            Address::Tcp(address) => Some(Port::of_instance(address.port())),
            Address::Unix(_) | Address::Behind(_) => None,
        });
        let (shared, record) = (self.clone(), record.clone());
        let closing = self.closing.clone();
        self.tasks.spawn(closing.run_until_cancelled_owned(async move {
            shared.attend(record, output).await;
            drop(port); // given away again only when nothing of the instance is left
        }));
    }

    async fn attend(self: Arc<Self>, record: Record, output: Option<Arc<Output>>) {
        let (session, leader) = (record.session(), record.leader);
        match output {
            Some(output) => output.carry(signal::surely_ended(leader)).await,
            None => signal::surely_ended(leader).await,
        }
        {
            let slot = self.slot(&session);
            let mut slot = slot.lock().await;
            if slot.watched == Some(leader) {
                slot.watched = None;
            }
            // Our own stop, or the start of the next life, may have been here before us.
            let by_itself = leader.motion().is_none()
                && self.load(&session).is_ok_and(|now| now.is_some_and(|now| now.leader == leader));
            if by_itself {
                self.note_end(&session, leader).await;
            }
            let _ = self.events.send(session.clone()); // no subscriber is no loss
            if by_itself
                && let Err(error) =
                    self.end(&session, Some(leader), Duration::ZERO, &mut slot).await
            {
                tracing::warn!(%session, %error, "cannot end what a dead instance left behind");
            }
        }
        // Only now: the zombie held the number of its group, by which we found the rest.
        signal::reap(leader);
        self.tidy(&session);
    }

    /// Before it is told and its remains are ended: the reason may be asked for at once.
    async fn note_end(&self, session: &SessionId, leader: ProcessId) {
        let exit = signal::exit(leader);
        // A program that goes to the background says that all went well.
        let left = match exit {
            None | Some(Exit::Code(0)) => self.target(session, Some(leader)).members().await,
            Some(_) => Ok(Family::default()),
        };
        let left = left.map_or(0, |left| left.ids().count());
        let words = ends::describe(exit, left, &self.folder.log(session));
        tracing::info!(%session, "{words}");
        self.ends.note(session, words);
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
