//! A machine's process: who waits for its end, and who brings it about.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
    time::{Instant, sleep, timeout},
};

use super::folder::Folder;
use crate::engine::Error;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// What is killed is gone by then, unless the kernel keeps it.
const KILL_MAX: Duration = Duration::from_secs(10);

/// Waits for the end of a machine that we started, and takes its process away.
pub(in crate::engine) async fn attend(mut child: Child) {
    let words = child.stderr.take();
    let drain = async {
        if let Some(mut words) = words {
            // A guest can make it complain without end; nobody keeps it.
            let _ = tokio::io::copy(&mut words, &mut tokio::io::sink()).await;
        }
    };
    let _ = tokio::join!(child.wait(), drain);
}

/// Waits for the end of the folder's machine, whoever started it.
pub(in crate::engine) async fn watch(folder: &Folder) {
    match living(folder).await {
        Ok(Some(process)) => ended(process).await,
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot watch a machine"),
    }
}

/// Ends it by force.
pub(in crate::engine) async fn kill(process: OwnedFd) -> Result<(), Error> {
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(Error::Failed(format!("cannot kill the machine: {error}"))),
    }
    let ended = timeout(KILL_MAX, ended(process)).await;
    ended.map_err(|_| Error::Timeout { call: "KILL", after: KILL_MAX })
}

/// Who begins has not said yet which process it is, and who ends says so no more: for a moment.
pub(in crate::engine) async fn living(folder: &Folder) -> Result<Option<OwnedFd>, Error> {
    let io = |error: io::Error| super::disk(folder, &error);
    let deadline = Instant::now() + KILL_MAX;
    while Instant::now() < deadline {
        if let Some(process) = folder.process().map_err(io)? {
            return Ok(Some(process));
        }
        if !folder.is_alive().map_err(io)? {
            return Ok(None);
        }
        sleep(LOOK).await;
    }
    Err(Error::Failed("a machine runs and does not say as which process".to_owned()))
}

/// Waits for a process's end.
pub(in crate::engine) async fn ended(process: OwnedFd) {
    #[expect(
        deprecated,
        reason = "unsound for types that share their descriptor; OwnedFd does not"
    )]
    let process = AsyncFd::with_interest(process, Interest::READABLE);
    match process {
        Ok(process) => drop(process.readable().await),
        Err(error) => tracing::warn!(%error, "cannot wait for a machine's end"),
    }
}
