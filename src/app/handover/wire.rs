//! What the two processes say to each other, and how.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Counts up when the words change.
pub(super) const VERSION: u32 = 1;
/// The kernel passes no more at once.
const SOCKETS_MAX: usize = 253;
/// The longest line names that many addresses.
const LINE_MAX: usize = 64 * 1024;
/// A line fits into the kernel's buffer: only a broken system keeps it waiting.
const SAY_MAX: Duration = Duration::from_secs(5);

/// What one side says to the other.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The descriptors that come along, by [`crate::app::sockets::Sockets`]' names.
    Sockets {
        version: u32,
        pid: u32,
        names: Vec<String>,
    },
    /// Another new process waits already.
    Busy {
        pid: u32,
    },
    Begin,
    Serving,
    Yours,
    Thanks,
    No,
}

/// The state folder's socket, however long the folder's path is: a unix socket's address holds 107
/// bytes.
pub(super) struct Meeting {
    folder: File,
}

impl Meeting {
    pub(super) fn of(state: &Path) -> io::Result<Self> {
        Ok(Self { folder: File::open(state)? })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()).into()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path("upgrade.sock")
    }
}

/// One side's end of the connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: UnixStream,
    heard: Vec<u8>,
    pub(super) sockets: Vec<OwnedFd>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(SAY_MAX))?;
        Ok(Self { stream, heard: Vec::new(), sockets: Vec::new() })
    }

    pub(super) fn say(&mut self, word: &Word) -> io::Result<()> {
        self.stream.write_all(&line(word)?)
    }

    /// Says a word, and passes descriptors along.
    pub(super) fn pass(&mut self, word: &Word, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        if SOCKETS_MAX < sockets.len() {
            let text = format!("no more than {SOCKETS_MAX} listening sockets can be handed over");
            return Err(io::Error::other(text));
        }
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            along.push(SendAncillaryMessage::ScmRights(sockets));
        }
        let line = line(word)?;
        let bytes = [IoSlice::new(&line)];
        let sent = rustix::net::sendmsg(&self.stream, &bytes, &mut along, SendFlags::NOSIGNAL)?;
        self.stream.write_all(line.get(sent..).unwrap_or_default())
    }

    /// The next word; `None` where the other side is gone.
    pub(super) fn hear(&mut self, until: Instant) -> io::Result<Option<Word>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if LINE_MAX < self.heard.len() {
                return Err(io::Error::other("a line that does not end"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.receive() {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) if is_to_be_tried_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.stream, &mut into, &mut along, flags)?.bytes;
        for message in along.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.sockets.extend(sockets);
            }
        }
        self.heard.extend_from_slice(bytes.get(..received).unwrap_or_default());
        Ok(received)
    }

    /// Nothing that the other side says from now on arrives, and it is told so. What it has said
    /// before can still be heard: so both sides know the same of a word that comes too late.
    pub(super) fn stop_hearing(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Whether the other side is there, and silent.
    pub(super) fn is_alive(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(self.stream.as_fd(), &mut [0_u8; 1][..], flags);
        self.heard.is_empty() && peeked.is_err_and(|error| error == rustix::io::Errno::AGAIN)
    }
}

fn line(word: &Word) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    Ok(line)
}

/// The deadline is looked at before each try.
fn is_to_be_tried_again(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests;
