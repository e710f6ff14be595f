//! A machine's process: its start, its end, and who waits for it.

use std::{io, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStderr, Command},
    time::{Instant, sleep, timeout},
};

use super::{MONITOR, monitor::Monitor};
use crate::engine::{
    Error,
    vm::{
        self,
        folder::{Folder, PID},
        process::{ended, kill, living},
    },
};

/// Between two looks whether the monitor listens.
const LOOK: Duration = Duration::from_millis(2);
/// No more of what QEMU says when it gives up.
const WORDS_MAX: u64 = 4096;
/// A machine that was told to quit writes out its disks first.
const QUIT_MAX: Duration = Duration::from_secs(5);
/// What a machine gets of the edge's environment. All else stays here: it may be a secret.
const INHERITED: [&str; 2] = ["PATH", "LANG"];

/// Why a start failed.
pub(super) enum Unborn {
    /// Somebody else took the port meanwhile.
    PortTaken,
    Error(Error),
}

/// Starts a machine and waits until its monitor answers.
pub(super) async fn start(
    program: &Path,
    folder: &Folder,
    arguments: &[String],
    limit: Duration,
) -> Result<(Child, Monitor), Unborn> {
    let disk = |error: io::Error| Unborn::Error(vm::disk(folder, &error));
    folder.forget(&[MONITOR, PID]).map_err(disk)?;
    let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let spawned = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(inherited)
        .stdin(Stdio::from(folder.lock().map_err(disk)?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C in the edge's terminal is not for it.
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| {
        let program = program.display();
        Unborn::Error(Error::Missing(format!("cannot run {program}: {error}")))
    })?;
    let mut words = child.stderr.take();
    let monitor = tokio::select! {
        monitor = answering(folder, limit) => monitor,
        _ = child.wait() => return Err(last_words(&mut words).await),
    };
    match monitor {
        Ok(monitor) => {
            child.stderr = words;
            Ok((child, monitor))
        }
        Err(error) => {
            let _ = child.kill().await;
            Err(Unborn::Error(error))
        }
    }
}

async fn answering(folder: &Folder, limit: Duration) -> Result<Monitor, Error> {
    let deadline = Instant::now() + limit;
    let path = folder.file(MONITOR);
    while Instant::now() < deadline {
        match Monitor::open(&path).await {
            // It does not listen yet.
            Err(Error::Failed(_)) => sleep(LOOK).await,
            opened => return opened,
        }
    }
    Err(Error::Timeout { call: "start of the machine", after: limit })
}

async fn last_words(words: &mut Option<ChildStderr>) -> Unborn {
    let mut text = Vec::new();
    if let Some(words) = words {
        let _ = words.take(WORDS_MAX).read_to_end(&mut text).await;
    }
    let text = String::from_utf8_lossy(&text);
    if text.contains("Could not set up host forwarding rule") {
        return Unborn::PortTaken;
    }
    Unborn::Error(Error::Failed(format!("the machine did not start: {}", text.trim())))
}

/// Ends the folder's machine: by its power button within `grace`, by its monitor, by force.
pub(super) async fn end(folder: &Folder, grace: Duration) -> Result<(), Error> {
    let Some(process) = living(folder).await? else { return Ok(()) };
    let ended = ended(process.try_clone().map_err(|error| vm::disk(folder, &error))?);
    tokio::pin!(ended);
    let monitor = Monitor::open(&folder.file(MONITOR)).await;
    if let Ok(monitor) = &monitor {
        if !grace.is_zero()
            && monitor.resume().await.is_ok()
            && monitor.press_power().await.is_ok()
            && timeout(grace, &mut ended).await.is_ok()
        {
            return Ok(());
        }
        if monitor.quit().await.is_ok() && timeout(QUIT_MAX, &mut ended).await.is_ok() {
            return Ok(());
        }
    }
    kill(process).await
}
