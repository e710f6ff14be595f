//! The side of the new process.

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::wire::{Link, Meeting, VERSION, Word};
use crate::app::lock::StateLock;

/// How long a new process waits for SIGQUIT to reach the old one.
const WAIT_MAX: Duration = Duration::from_secs(5 * 60);
/// Between two looks for a process that listens on `upgrade.sock`.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// For a process that listens to say its first word, or its last.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// How often it is told that the process before says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a new process finds in the state folder.
pub(crate) enum Found {
    /// No other process. The lock is taken.
    Nobody,
    /// One that serves, and its listening sockets by their names.
    Serving(Before, HashMap<String, OwnedFd>),
}

/// The process that serves.
#[derive(Debug)]
pub(crate) struct Before {
    link: Link,
    pid: u32,
    until: Instant,
    has_left: Arc<AtomicBool>,
}

/// How a new process that serves stands to the process before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has succeeded it.
    Yours,
    /// That has died: nothing else serves.
    Died,
    /// That goes on; the new one must end.
    Refused,
    /// The new one has left, because it ends.
    Left,
}

/// Looks for the process that serves, and takes its sockets. Blocks while one has the state folder
/// that cannot be spoken to: it may just begin, or end.
pub(crate) fn find(state: &Path, lock: &mut StateLock) -> anyhow::Result<Found> {
    let meeting = Meeting::of(state).context("cannot open the state folder")?;
    let until = Instant::now() + WAIT_MAX;
    let mut has_told = false;
    loop {
        if let Some(found) = ask(&meeting, until)? {
            return Ok(found);
        }
        if lock.try_take()? {
            tracing::info!("there is no process before: this one begins by itself");
            return Ok(Found::Nobody);
        }
        let holder = lock.holder();
        anyhow::ensure!(
            Instant::now() < until,
            "the process before (pid {holder}) has not handed over within {} minutes. It does not \
             listen on upgrade.sock in the state folder: of an older version, it must be ended",
            WAIT_MAX.as_secs() / 60
        );
        if !has_told {
            tracing::info!(pid = holder, "waiting for the process before to listen or to end");
            has_told = true;
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// `None` where no process listens, or where that ends before it says a word.
fn ask(meeting: &Meeting, until: Instant) -> anyhow::Result<Option<Found>> {
    let Ok(stream) = UnixStream::connect(meeting.socket()) else { return Ok(None) };
    let owner = meeting.socket().metadata().map(|file| file.uid()).unwrap_or_default();
    anyhow::ensure!(
        owner == rustix::process::geteuid().as_raw(),
        "the process before runs as another user (its uid is {owner})"
    );
    let mut link = Link::new(stream)?;
    let greeting = link.hear(Instant::now() + GREETING_MAX);
    match greeting.context("the process before does not speak as it should")? {
        None => Ok(None),
        Some(Word::Busy { pid }) => {
            anyhow::bail!("another new process (pid {pid}) waits already to take over")
        }
        Some(Word::Sockets { version: VERSION, pid, names }) => {
            let sockets = std::mem::take(&mut link.sockets);
            anyhow::ensure!(names.len() == sockets.len(), "sockets have been lost on the way");
            let sockets = names.into_iter().zip(sockets).collect();
            let before = Before { link, pid, until, has_left: Arc::default() };
            Ok(Some(Found::Serving(before, sockets)))
        }
        Some(_) => {
            anyhow::bail!("the process before is of a version that cannot hand over to this")
        }
    }
}

impl Before {
    /// Blocks until it gets SIGQUIT, or dies: the new one is to begin then.
    pub(crate) fn wait(&mut self) -> anyhow::Result<()> {
        tracing::info!(pid = self.pid, "waiting for the process before to get SIGQUIT");
        let heard = match self.link.hear(self.until) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                anyhow::bail!(
                    "the process before (pid {}) did not get SIGQUIT within {} minutes, and goes on",
                    self.pid,
                    WAIT_MAX.as_secs() / 60
                )
            }
            heard => heard.context("the process before does not speak as it should")?,
        };
        match heard {
            Some(Word::Begin) => Ok(()),
            None => {
                tracing::warn!(pid = self.pid, "the process before has died: this one begins");
                Ok(())
            }
            Some(_) => anyhow::bail!("the process before does not speak as it should"),
        }
    }

    /// Ends the connection, from wherever: as long as it was not thanked, the process before goes on.
    pub(crate) fn leaver(&self) -> io::Result<Leaver> {
        let stream = self.link.stream.try_clone()?;
        Ok(Leaver { stream, has_left: Arc::clone(&self.has_left) })
    }

    /// The new one serves. Blocks until the process before knows, or has died.
    pub(crate) fn succeed(mut self) -> Verdict {
        let verdict = self.say(&Word::Serving).and_then(|()| self.hear_yours());
        let verdict = match verdict.and_then(|()| self.say(&Word::Thanks)) {
            Ok(()) => Verdict::Yours,
            Err(verdict) => verdict,
        };
        if verdict == Verdict::Died && self.has_left.load(Ordering::Acquire) {
            return Verdict::Left;
        }
        verdict
    }

    fn say(&mut self, word: &Word) -> Result<(), Verdict> {
        if self.link.say(word).is_ok() {
            return Ok(());
        }
        // Closed: what was its last word?
        match self.link.hear(Instant::now() + GREETING_MAX) {
            Ok(Some(Word::No)) => Err(Verdict::Refused),
            _ => Err(Verdict::Died),
        }
    }

    /// However long: a process before that lives and does not answer may still go on.
    fn hear_yours(&mut self) -> Result<(), Verdict> {
        loop {
            match self.link.hear(Instant::now() + SILENCE_MAX) {
                Ok(Some(Word::Yours)) => return Ok(()),
                Ok(Some(Word::No)) => return Err(Verdict::Refused),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    tracing::warn!(pid = self.pid, "the process before lives, and does not answer");
                }
                Ok(_) | Err(_) => return Err(Verdict::Died),
            }
        }
    }
}

/// Ends a connection to the process before.
#[derive(Debug)]
pub(crate) struct Leaver {
    stream: UnixStream,
    has_left: Arc<AtomicBool>,
}

impl Leaver {
    pub(crate) fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
