//! What a session's machine leaves on disk, and whether it lives.
//!
//! A machine's process has a lock on a file of its folder from its first moment to its last, as its
//! standard input: so no pid is ever believed, and an edge may die at any point.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use crate::{
    engine::{Health, Instance, InstanceState, Life, kept},
    session::{Depth, Generation, SessionId},
};

/// A suspended machine's memory, whole.
pub(in crate::engine) const MEMORY: &str = "memory";
pub(in crate::engine) const MEMORY_PART: &str = "memory.part";
/// What describes a suspended machine beside its memory, where its memory's file does not.
pub(in crate::engine) const STATE: &str = "state";
pub(in crate::engine) const STATE_PART: &str = "state.part";
const SAVED: &str = "memory.json";
const RECORD: &str = "machine.json";
const LOCK: &str = "lock";
/// Ours alone; all others are where the machine's process sees them.
const OURS: [&str; 4] = [RECORD, SAVED, LOCK, PID];
/// Written by the machine's process, or by who started it.
pub(in crate::engine) const PID: &str = "pid";
/// What a unix socket's address holds, without the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// What outlives the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Record {
    pub(in crate::engine) session: String,
    pub(in crate::engine) generation: u64,
    /// Of its latest process, dead or alive.
    pub(in crate::engine) life: String,
    /// Of 127.0.0.1, or of the guest's vsock.
    pub(in crate::engine) port: u16,
    /// Where it is reached, if by an address of its own.
    #[serde(default)]
    pub(in crate::engine) address: Option<SocketAddr>,
    /// By us.
    pub(in crate::engine) paused: bool,
    /// Of the machine as it was started, for when its route is another one.
    pub(in crate::engine) fingerprint: String,
    /// Its memory's size in bytes.
    pub(in crate::engine) memory: u64,
    /// What its disk lies over.
    pub(in crate::engine) base: Option<Base>,
    /// Of the route that started it, for when that route is gone.
    pub(in crate::engine) grace_ms: u64,
}

/// A base image as it was when a disk was laid over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Base {
    pub(in crate::engine) path: PathBuf,
    length: u64,
    modified_ns: u64,
}

impl Base {
    pub(in crate::engine) fn of(path: &Path) -> io::Result<Self> {
        let is = fs::metadata(path)?;
        let modified = is.modified()?.duration_since(std::time::UNIX_EPOCH);
        let modified_ns =
            modified.ok().and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0);
        Ok(Self { path: path.to_owned(), length: is.len(), modified_ns })
    }
}

/// A memory that was written to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Saved {
    /// Of the machine that wrote it.
    pub(in crate::engine) fingerprint: String,
    pub(in crate::engine) length: u64,
    /// Of what describes it beside, if that is a file of its own.
    #[serde(default)]
    pub(in crate::engine) state_length: u64,
}

impl Record {
    pub(in crate::engine) fn life(&self) -> Life {
        Life::new(self.life.as_str())
    }
}

/// One machine's.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Folder {
    path: PathBuf,
    /// Where the machine's process works: the same, or its jail.
    work: PathBuf,
}

impl Folder {
    /// Short, as a socket's path must be.
    pub(in crate::engine) fn of(root: &Path, session: &SessionId) -> Self {
        let digest = Sha256::digest(session.host());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self::at(root.join(name))
    }

    fn at(path: PathBuf) -> Self {
        Self { work: path.clone(), path }
    }

    /// Its process works in `jail`, which is in the folder.
    pub(in crate::engine) fn jailed(mut self, jail: impl AsRef<Path>) -> Self {
        self.work = self.path.join(jail);
        self
    }

    pub(in crate::engine) fn all(root: &Path) -> io::Result<Vec<Self>> {
        fs::read_dir(root)?.map(|entry| Ok(Self::at(entry?.path()))).collect()
    }

    /// For nobody else to read: memory and disks hold what the session did.
    pub(in crate::engine) fn create(&self) -> io::Result<()> {
        for path in [&self.path, &self.work] {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        Ok(())
    }

    pub(in crate::engine) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the machine's process works.
    pub(in crate::engine) fn work(&self) -> &Path {
        &self.work
    }

    pub(in crate::engine) fn file(&self, name: &str) -> PathBuf {
        if OURS.contains(&name) { self.path.join(name) } else { self.work.join(name) }
    }

    pub(in crate::engine) fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    /// Whether a unix socket of this name can be in there.
    pub(in crate::engine) fn fits_socket(&self, name: &str) -> bool {
        self.file(name).as_os_str().len() <= SOCKET_PATH_MAX
    }

    /// The next machine's. Waits for those who only look, so no machine may live.
    pub(in crate::engine) fn lock(&self) -> io::Result<File> {
        let file = private().create(true).truncate(false).open(self.file(LOCK))?;
        file.lock()?;
        Ok(file)
    }

    pub(in crate::engine) fn is_alive(&self) -> io::Result<bool> {
        let file = match File::open(self.file(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        // Shared: two who look at once do not take each other for a machine.
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The living machine's process; `None` where there is none.
    pub(in crate::engine) fn process(&self) -> io::Result<Option<OwnedFd>> {
        let pid = fs::read_to_string(self.file(PID)).ok().and_then(|text| text.trim().parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { return Ok(None) };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
        // Who lives now wrote this pid, and had it when the process was opened.
        Ok(self.is_alive()?.then_some(process))
    }

    pub(in crate::engine) fn record(&self) -> io::Result<Option<Record>> {
        read(&self.file(RECORD))
    }

    /// Whether there is a record, also one that nobody can read: what lies beside it is somebody's.
    pub(in crate::engine) fn is_known(&self) -> bool {
        self.has(RECORD)
    }

    pub(in crate::engine) fn save(&self, record: &Record) -> io::Result<()> {
        self.write(RECORD, record)
    }

    /// A memory that is whole, as far as can be seen from outside.
    pub(in crate::engine) fn saved(&self) -> io::Result<Option<Saved>> {
        let saved: Option<Saved> = read(&self.file(SAVED))?;
        let length = |name| fs::metadata(self.file(name)).map_or(0, |is| is.len());
        let found = (length(MEMORY), length(STATE));
        Ok(saved.filter(|saved| (saved.length, saved.state_length) == found))
    }

    /// Where memory is written to until it is whole.
    pub(in crate::engine) fn memory_part(&self) -> io::Result<File> {
        private().create(true).truncate(true).open(self.file(MEMORY_PART))
    }

    /// The part, written and synced, becomes the memory.
    pub(in crate::engine) fn keep_memory(&self, saved: &Saved) -> io::Result<()> {
        fs::rename(self.file(MEMORY_PART), self.file(MEMORY))?;
        if 0 < saved.state_length {
            fs::rename(self.file(STATE_PART), self.file(STATE))?;
        }
        File::open(&self.work)?.sync_all()?;
        self.write(SAVED, saved)?;
        File::open(&self.path)?.sync_all()
    }

    /// First what says that it is whole.
    pub(in crate::engine) fn forget_memory(&self) -> io::Result<()> {
        self.forget(&[SAVED, MEMORY, MEMORY_PART, STATE, STATE_PART])
    }

    pub(in crate::engine) fn forget(&self, names: &[&str]) -> io::Result<()> {
        for name in names {
            gone_is_fine(fs::remove_file(self.file(name)))?;
        }
        Ok(())
    }

    pub(in crate::engine) fn remove(&self) -> io::Result<()> {
        gone_is_fine(fs::remove_dir_all(&self.path))
    }

    /// What `list` says of it; `None` where nothing is left.
    pub(in crate::engine) fn instance(&self) -> io::Result<Option<Instance>> {
        let Some(record) = self.record()? else { return Ok(None) };
        let (life, state) = if self.is_alive()? {
            let awake = InstanceState::Running(Health::Unchecked);
            let state = if record.paused { InstanceState::Asleep(Depth::Paused) } else { awake };
            (Some(record.life()), state)
        } else if self.saved()?.is_some() {
            (None, InstanceState::Asleep(Depth::Suspended))
        } else {
            (None, InstanceState::Asleep(Depth::Stopped))
        };
        let session = SessionId::new(record.session);
        Ok(Some(Instance { session, generation: Generation(record.generation), life, state }))
    }

    pub(in crate::engine) fn write_private(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        io::Write::write_all(
            &mut private().create(true).truncate(true).open(self.file(name))?,
            bytes,
        )
    }

    fn write(&self, name: &str, what: &impl Serialize) -> io::Result<()> {
        let fresh = format!("{name}.part");
        self.write_private(&fresh, &serde_json::to_vec_pretty(what)?)?;
        File::open(self.file(&fresh))?.sync_all()?;
        fs::rename(self.file(&fresh), self.file(name))
    }
}

fn private() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = kept::read(path)? else { return Ok(None) };
    let said = |error: &serde_json::Error| {
        tracing::warn!(path = %path.display(), %error, "nobody can read this file");
    };
    Ok(serde_json::from_slice(&text).inspect_err(said).ok())
}

/// What is to be away, and is.
pub(in crate::engine) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
