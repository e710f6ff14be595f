//! One process at a time owns a state folder, and with it the sleep of what runs.

use std::{
    fs::{DirBuilder, File, OpenOptions},
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

    /// Takes it, or says which process has it.
    pub(super) fn take(&mut self) -> anyhow::Result<()> {
        let pid = if self.try_take()? { return Ok(()) } else { self.holder() };
        anyhow::bail!(
            "another dormouse (pid {pid}) uses this state folder; to take over from it, start with \
             --upgrade and send it SIGQUIT"
        )
    }

    /// Takes it, unless another process has it.
    pub(super) fn try_take(&mut self) -> anyhow::Result<bool> {
        match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.sign().context("cannot write the state folder's lock")?;
                Ok(true)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error).context("cannot lock the state folder"),
        }
    }

    /// The pid of the process that has it.
    pub(super) fn holder(&mut self) -> String {
        let mut pid = String::new();
        let _ = self.0.rewind().and_then(|()| self.0.read_to_string(&mut pid));
        pid.trim().to_owned()
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
