//! A machine's memory, to a file and back. The edge holds the file: QEMU runs no program and writes
//! nowhere itself, so a disk that is full is seen here.

use std::time::Duration;

use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
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
    let io = |error: std::io::Error| disk(folder, &error);
    folder.forget_memory().and_then(|()| folder.forget(&[CHANNEL])).map_err(io)?;
    let listener = UnixListener::bind(folder.file(CHANNEL)).map_err(io)?;
    let mut file = File::from_std(folder.memory_part().map_err(io)?);
    let receive = async {
        let (from, _) = listener.accept().await?;
        // Whoever took QEMU over could send for ever.
        let length =
            tokio::io::copy(&mut from.take(record.memory.saturating_add(DEVICES)), &mut file)
                .await?;
        file.sync_all().await?;
        Ok::<_, std::io::Error>(length)
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
    let io = |error: std::io::Error| disk(folder, &error);
    folder.forget(&[CHANNEL]).map_err(io)?;
    monitor.take_memory(CHANNEL).await?;
    let copy = async {
        let mut file = File::open(folder.file(MEMORY)).await?;
        let mut to = UnixStream::connect(folder.file(CHANNEL)).await?;
        tokio::io::copy(&mut file, &mut to).await?;
        to.shutdown().await
    };
    match timeout(limit, copy).await {
        Ok(copied) => copied.map_err(io)?,
        Err(_) => return Err(Error::Timeout { call: "loading memory", after: limit }),
    }
    monitor.memory_taken(limit).await
}
