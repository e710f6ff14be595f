//! What outlives the edge: one small file per instance, and where each session's files are.
//!
//! A record is a claim, not a truth: whether its process lives is for /proc to say. It is renamed
//! into place and not synced: after a crash of the edge the page cache is still there, and after a
//! crash of the machine there is no process left to remember.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::family::{Motion, ProcessId};
use crate::{
    engine::{Health, Instance, InstanceState, Life, kept},
    session::{Address, Depth, Generation, SessionId, Spec},
};

/// Longer names, and those that could mean something to a file system, are hashed.
const NAME_MAX: usize = 100;
/// What a unix socket's address holds, without the final zero.
const SOCKET_PATH_MAX: usize = 107;
/// Logs kept of sessions without an instance; the ones written last stay.
const LOGS_MAX: usize = 1000;

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) session: String,
    pub(super) generation: u64,
    pub(super) leader: ProcessId,
    /// In which boot `leader` means anything.
    pub(super) boot: String,
    pub(super) address: String,
    /// We stopped it, and these members outside the leader's group with it.
    pub(super) paused: bool,
    pub(super) strays: Vec<ProcessId>,
    /// Of the route that started it, for when that route is gone.
    pub(super) grace_ms: u64,
    pub(super) log_max: u64,
}

impl Record {
    pub(super) fn new(
        session: &SessionId,
        generation: u64,
        leader: ProcessId,
        boot: &str,
        address: String,
        spec: &Spec,
    ) -> Self {
        Self {
            session: session.host().to_owned(),
            generation,
            leader,
            boot: boot.to_owned(),
            address,
            paused: false,
            strays: Vec::new(),
            grace_ms: u64::try_from(spec.process.grace.as_millis()).unwrap_or(u64::MAX),
            log_max: spec.process.log_max,
        }
    }

    pub(super) fn session(&self) -> SessionId {
        SessionId::new(self.session.as_str())
    }

    /// The leader, if its pid still says anything about it.
    pub(super) fn leader(&self, boot: &str) -> Option<ProcessId> {
        (self.boot == boot).then_some(self.leader)
    }

    /// What the leader does; `None` when it has ended.
    pub(super) fn motion(&self, boot: &str) -> Option<Motion> {
        self.leader(boot)?.motion()
    }

    pub(super) fn life(&self) -> Life {
        Life::new(format!("{}:{}", self.leader.pid, self.leader.start))
    }

    /// Whether `life` is over because this one came after it. A mark that we cannot read is one of
    /// no process of ours, so it is over too.
    pub(super) fn is_newer_than(&self, life: &Life) -> bool {
        let start = life.as_str().split_once(':').and_then(|(_, start)| start.parse::<u64>().ok());
        *life != self.life() && start.is_none_or(|start| self.leader.start >= start)
    }

    pub(super) fn address(&self) -> Option<Address> {
        match self.address.strip_prefix("unix:") {
            Some(path) => Some(Address::Unix(path.into())),
            None => self.address.parse().ok().map(Address::Tcp),
        }
    }

    pub(super) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(super) fn instance(&self, boot: &str) -> Option<Instance> {
        let state = match self.motion(boot)? {
            Motion::Stuck if self.paused => InstanceState::Asleep(Depth::Paused),
            Motion::Moves | Motion::Stuck => InstanceState::Running(Health::Unchecked),
            Motion::Stopped => InstanceState::Asleep(Depth::Paused),
        };
        Some(Instance {
            session: self.session(),
            generation: Generation(self.generation),
            life: Some(self.life()),
            state,
        })
    }
}

/// The engine's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes it, for nobody else to read: logs may hold what the instances print.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let root = state.join("process");
        let folders = ["logs", "pipes", "sockets"].map(|name| root.join(name));
        for folder in std::iter::once(&root).chain(&folders) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(Self { root: root.canonicalize()? })
    }

    /// Tells this folder's instances from those of another edge.
    pub(super) fn owner(&self) -> String {
        hash(self.root.as_os_str().as_bytes())
    }

    pub(super) fn log(&self, session: &SessionId) -> PathBuf {
        self.root.join("logs").join(name(session) + ".log")
    }

    /// Where an instance's output leaves it.
    pub(super) fn pipe(&self, session: &SessionId) -> PathBuf {
        self.root.join("pipes").join(name(session) + ".pipe")
    }

    /// `None` when no name fits into a socket's address: the folder's own path is too long.
    pub(super) fn socket(&self, session: &SessionId) -> Option<PathBuf> {
        let names = [name(session), hash(session.host().as_bytes())];
        let paths = names.map(|name| self.root.join("sockets").join(name + ".sock"));
        paths.into_iter().find(|path| path.as_os_str().len() <= SOCKET_PATH_MAX)
    }

    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.record(&record.session());
        let fresh = path.with_extension("json.tmp");
        let text = serde_json::to_vec_pretty(record)?;
        let saved = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        saved.map_err(|error| {
            let _ = fs::remove_file(fresh); // half of it would only take room
            kept::at(&path, &error)
        })
    }

    /// `None` when there is none that can be read; then the marks in /proc are all that there is.
    pub(super) fn load(&self, session: &SessionId) -> io::Result<Option<Record>> {
        let record = read(&self.record(session))?;
        Ok(record.filter(|record: &Record| record.session == session.host()))
    }

    /// One that cannot be read is told to `unread` and left out: it is not all of them.
    pub(super) fn all(&self, mut unread: impl FnMut(io::Error)) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(|e| kept::at(&self.root, &e))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(record) => records.extend(record),
                    Err(error) => unread(error),
                }
            }
        }
        Ok(records)
    }

    /// Removes what an instance needed while it existed; its log stays.
    pub(super) fn forget(&self, session: &SessionId) -> io::Result<()> {
        let paths = [Some(self.record(session)), Some(self.pipe(session)), self.socket(session)];
        for path in paths.into_iter().flatten() {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(kept::at(&path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the oldest logs of sessions that have no instance, above a fixed number. A log that
    /// cannot be removed is no reason not to work: the error names it.
    pub(super) fn prune_logs(&self) -> io::Result<()> {
        let folder = self.root.join("logs");
        let logs = names(&folder, "log")?;
        if logs.len() <= LOGS_MAX {
            return Ok(());
        }
        let live = names(&self.root, "json")?;
        let mut idle: Vec<(SystemTime, PathBuf)> = Vec::new();
        for path in logs.difference(&live).map(|name| folder.join(name).with_added_extension("log"))
        {
            let is = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file);
            idle.extend(is.and_then(|is| is.modified().ok()).map(|since| (since, path)));
        }
        idle.sort_unstable_by(|a, b| b.cmp(a));
        let mut failed = Ok(());
        for (_, path) in idle.into_iter().skip(LOGS_MAX) {
            let _ = fs::remove_file(path.with_extension("log.1"));
            if let Err(error) = fs::remove_file(&path) {
                failed = Err(kept::at(&path, &error));
            }
        }
        failed
    }

    fn record(&self, session: &SessionId) -> PathBuf {
        self.root.join(name(session) + ".json")
    }
}

/// Files of `folder` that end in `.end`, without that.
fn names(folder: &Path, end: &str) -> io::Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(folder).map_err(|e| kept::at(folder, &e))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == end) {
            names.extend(path.file_stem().map(OsStr::to_owned));
        }
    }
    Ok(names)
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    let Some(text) = kept::read(path)? else { return Ok(None) };
    match serde_json::from_slice(&text) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "removed a record that nobody can read");
            fs::remove_file(path).map(|()| None)
        }
    }
}

/// The host where it can be a file's name, else its hash; a hash has no dot and a host's name that
/// has none keeps to 63 characters of its own, so the two never meet.
fn name(session: &SessionId) -> String {
    let host = session.host();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let safe = host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(plain);
    if safe && host.len() <= NAME_MAX { host.to_owned() } else { hash(host.as_bytes()) }
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
