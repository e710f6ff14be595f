//! A machine's memory, to a file and back. The edge holds the file: QEMU runs no program and writes
//! nowhere itself, so a disk that is full is seen here.

use std::{
    fs::File,
    io::{self, Read as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use tokio::{
    net::UnixListener,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use super::{CHANNEL, monitor::Monitor};
use crate::engine::{
    Error,
    vm::{
        disk,
        folder::{Folder, MEMORY, Record, Saved},
    },
};

/// More than a machine's memory takes what describes it and its devices.
const DEVICES: u64 = 256 << 20;

/// Pauses the machine and keeps its memory. After an error it is paused still, and what was kept of
/// it is gone.
pub(super) async fn save(
    folder: &Folder,
    monitor: &Monitor,
    record: &Record,
    limit: Duration,
) -> Result<(), Error> {
    monitor.pause().await?;
    let io = |error: io::Error| disk(folder, &error);
    folder.forget_memory().and_then(|()| folder.forget(&[CHANNEL])).map_err(io)?;
    let listener = UnixListener::bind(folder.file(CHANNEL)).map_err(io)?;
    let file = folder.memory_part().map_err(io)?;
    // Whoever took QEMU over could send for ever.
    let most = record.memory.saturating_add(DEVICES);
    let receive = async {
        let from = listener.accept().await?.0.into_std()?;
        spawn_blocking(move || take(&from, &file, most, limit)).await.unwrap_or_else(panicked)
    };
    let send = async {
        monitor.send_memory(CHANNEL).await?;
        monitor.memory_sent(limit).await
    };
    // The first error ends both: the machine then finds nobody who reads.
    let received = async { receive.await.map_err(io) };
    let kept = match tokio::try_join!(received, send) {
        Ok((length, ())) => {
            let saved = Saved { fingerprint: record.fingerprint.clone(), length, state_length: 0 };
            folder.keep_memory(&saved).map_err(io)
        }
        Err(error) => Err(error),
    };
    if kept.is_err() {
        // What is left of it takes the room that something else may need.
        let _ = folder.forget_memory();
    }
    kept
}

/// Gives a machine that waits for it the memory that was kept.
pub(super) async fn load(folder: &Folder, monitor: &Monitor, limit: Duration) -> Result<(), Error> {
    let io = |error: io::Error| disk(folder, &error);
    folder.forget(&[CHANNEL]).map_err(io)?;
    monitor.take_memory(CHANNEL).await?;
    let (memory, channel) = (folder.file(MEMORY), folder.file(CHANNEL));
    let copy = async {
        spawn_blocking(move || give(memory, channel, limit)).await.unwrap_or_else(panicked)
    };
    match timeout(limit, copy).await {
        Ok(copied) => copied.map_err(io)?,
        Err(_) => return Err(Error::Timeout { call: "loading memory", after: limit }),
    }
    monitor.memory_taken(limit).await
}

/// The kernel moves the bytes; a thread of its own waits for that.
fn take(from: &UnixStream, mut to: &File, most: u64, limit: Duration) -> io::Result<u64> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(limit))?;
    let length = io::copy(&mut from.take(most), &mut to)?;
    to.sync_all()?;
    Ok(length)
}

fn give(memory: PathBuf, channel: PathBuf, limit: Duration) -> io::Result<()> {
    let (mut from, mut to) = (File::open(memory)?, UnixStream::connect(channel)?);
    to.set_write_timeout(Some(limit))?;
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn panicked<T>(error: JoinError) -> io::Result<T> {
    Err(io::Error::other(error))
}
