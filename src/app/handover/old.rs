//! The side of the process that runs.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    process,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::net::{UnixListener, UnixStream};

use super::wire::{Link, Meeting, VERSION, Word};

/// For a new process to adopt what runs, and to accept: an engine that does not answer holds it up
/// for 10 s.
const SERVING_MAX: Duration = Duration::from_secs(60);
/// For it to listen on a unix socket.
const THANKS_MAX: Duration = Duration::from_secs(5);
/// After a failed accept, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who takes over from this process.
#[derive(Debug, Default)]
pub(crate) struct Successor {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Nobody,
    Waits(Next),
    /// It has been told to begin.
    Begins,
}

/// A new process, with the sockets in its hand.
#[derive(Debug)]
pub(crate) struct Next {
    link: Link,
    /// 0 where it lives in another PID namespace.
    pub(crate) pid: u32,
}

/// Why the sockets stay with this process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("it has ended")]
    Gone,
    #[error("it does not serve within {} s", SERVING_MAX.as_secs())]
    Late,
    #[error("it does not speak as it should")]
    Strange,
    #[error("the connection to it has failed: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone,
            io::ErrorKind::InvalidData => Self::Strange,
            _ => Self::Failed(error),
        }
    }
}

impl Successor {
    /// Lets new processes wait, one at a time, until it is dropped.
    pub(crate) async fn welcome(&self, state: &Path, sockets: &[(String, OwnedFd)]) {
        let listener = match listen(state) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "`run --upgrade` cannot reach this process (upgrade.sock)");
                return;
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = self.greet(stream, sockets) {
                        tracing::warn!(%error, "a new process cannot wait");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "upgrade.sock cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn greet(&self, stream: UnixStream, sockets: &[(String, OwnedFd)]) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            let text = format!("user {} is another one than this process's", peer.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
        let mut link = Link::new(stream.into_std()?)?;
        let mut state = self.lock();
        match &*state {
            State::Waits(other) if other.link.is_alive() => {
                return link.say(&Word::Busy { pid: other.pid });
            }
            // Its connection ends without a word: it asks again, and finds who serves then.
            State::Begins => return Ok(()),
            State::Waits(_) | State::Nobody => {}
        }
        let names = sockets.iter().map(|(name, _)| name.clone()).collect();
        let passed: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        link.pass(&Word::Sockets { version: VERSION, pid: process::id(), names }, &passed)?;
        tracing::info!(pid, "a new process waits: SIGQUIT hands over to it");
        *state = State::Waits(Next { link, pid });
        Ok(())
    }

    /// The new process that waits, if it lives. Others ask again until [`Self::keep`].
    pub(crate) fn take(&self) -> Option<Next> {
        let mut state = self.lock();
        let State::Waits(next) = std::mem::take(&mut *state) else { return None };
        if !next.link.is_alive() {
            return None;
        }
        *state = State::Begins;
        Some(next)
    }

    /// The sockets stay with this process; the next new one may wait.
    pub(crate) fn keep(&self) {
        *self.lock() = State::Nobody;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Next {
    /// Lets it begin. Blocks until it serves, for a minute at most; until then, and where it fails,
    /// this process is to go on as it was.
    pub(crate) fn hand_over(mut self) -> Result<(), Failure> {
        let handed = self.try_hand_over();
        if handed.is_err() {
            // It may be dead.
            let _ = self.link.say(&Word::No);
        }
        handed
    }

    fn try_hand_over(&mut self) -> Result<(), Failure> {
        self.link.say(&Word::Begin)?;
        self.await_word(&Word::Serving, SERVING_MAX)?;
        self.link.say(&Word::Yours)?;
        self.await_word(&Word::Thanks, THANKS_MAX)
    }

    fn await_word(&mut self, word: &Word, max: Duration) -> Result<(), Failure> {
        let heard = match self.link.hear(Instant::now() + max) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.link.stop_hearing();
                // Said just before, perhaps.
                let heard = self.link.hear(Instant::now() + max)?;
                Some(heard.ok_or(Failure::Late)?)
            }
            heard => heard?,
        };
        match heard {
            None => Err(Failure::Gone),
            Some(heard) if heard == *word => Ok(()),
            Some(_) => Err(Failure::Strange),
        }
    }
}

/// Listens where a new process looks, for our own user alone. What listened there before has ended,
/// or has handed over to us.
fn listen(state: &Path) -> io::Result<UnixListener> {
    let meeting = Meeting::of(state)?;
    let part = meeting.path(&format!("upgrade.{}", process::id()));
    let _ = fs::remove_file(&part);
    let listener = UnixListener::bind(&part)?;
    let placed = fs::set_permissions(&part, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&part, meeting.socket()));
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed.map(|()| listener)
}
