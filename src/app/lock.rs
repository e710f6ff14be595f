//! One process at a time owns a state folder, and with it the sleep of what runs.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// The lock on a state folder. Held until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct StateLock(File);

impl StateLock {
    /// Makes the folder if there is none, and opens its lock without taking it.
    pub(super) fn open(state: &Path) -> anyhow::Result<Self> {
        if !state.exists() {
            let mut folder = DirBuilder::new();
            let made = folder.recursive(true).mode(0o700).create(state);
            made.with_context(|| format!("cannot make the state folder {}", state.display()))?;
        }
        let path = state.join("edge.lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path);
        Ok(Self(file.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// Takes it, or says who has it.
    pub(super) fn take(&mut self) -> anyhow::Result<()> {
        match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.sign().context("cannot write the state folder's lock"),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = self.0.read_to_string(&mut pid);
                anyhow::bail!(
                    "another dormouse (pid {}) uses this state folder; to take over from it, \
                     start with --upgrade and send it SIGQUIT",
                    pid.trim()
                )
            }
            Err(error) => Err(error).context("cannot lock the state folder"),
        }
    }

    /// Waits for the process that has it to end, then takes it. Blocks.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        flock(&self.0, FlockOperation::LockExclusive)?;
        self.sign()
    }

    fn sign(&mut self) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        writeln!(self.0, "{}", std::process::id())
    }
}

/// Removes the socket of a handover that never came, so that SIGQUIT can tell whether a new
/// process waits.
pub(super) fn forget_handover(socket: &Path) {
    if let Err(error) = fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %socket.display(), %error, "cannot remove");
    }
}
