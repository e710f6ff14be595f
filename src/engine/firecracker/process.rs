//! A machine's process: its command line, with or without the jailer, its start and its end.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStderr, Command},
    time::{Instant, sleep, timeout},
};

use super::{API, Jail, VSOCK, api::Api};
use crate::engine::{
    Error,
    vm::{
        self, disk,
        folder::{Folder, PID},
        process::{ended, kill, living},
    },
};

/// Between two looks whether the API listens; it comes within some milliseconds.
const LOOK: Duration = Duration::from_millis(1);
/// No more of what it says when it gives up.
const WORDS_MAX: u64 = 4096;
/// What a machine gets of the edge's environment. All else stays here: it may be a secret.
const INHERITED: [&str; 2] = ["PATH", "LANG"];

/// What the process is started with.
pub(super) struct Line {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
}

/// Every machine has a name of its own on the host; its jail is made in `base`.
pub(super) fn line(
    program: &Path,
    jail: Option<&Jail>,
    (base, id): (&Path, &str),
    limits: &[String],
) -> Line {
    let machine = ["--api-sock", API, "--id", id].map(str::to_owned);
    let Some(jail) = jail else {
        return Line { program: program.to_owned(), arguments: machine.into() };
    };
    let (uid, gid) = (jail.uid.to_string(), jail.gid.to_string());
    let mut arguments: Vec<String> =
        ["--id", id, "--uid", &uid, "--gid", &gid, "--cgroup-version", "2"]
            .map(str::to_owned)
            .into();
    for (name, path) in [("--chroot-base-dir", base), ("--exec-file", program)] {
        arguments.extend([name.to_owned(), path.display().to_string()]);
    }
    for limit in limits {
        arguments.extend(["--cgroup".to_owned(), limit.clone()]);
    }
    arguments.extend(["--", "--api-sock", API].map(str::to_owned));
    Line { program: jail.program.clone(), arguments }
}

/// Starts a machine's process and waits until its API answers.
pub(super) async fn start(
    folder: &Folder,
    line: &Line,
    limit: Duration,
) -> Result<(Child, Api), Error> {
    let io = |error: io::Error| disk(folder, &error);
    folder.forget(&[API, VSOCK, PID]).map_err(io)?;
    let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let spawned = Command::new(&line.program)
        .args(&line.arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(inherited)
        .stdin(Stdio::from(folder.lock().map_err(io)?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C in the edge's terminal is not for it.
        .process_group(0)
        .spawn();
    let program = line.program.display();
    let mut child =
        spawned.map_err(|error| Error::Missing(format!("cannot run {program}: {error}")))?;
    let pid = child.id().unwrap_or_default().to_string();
    if let Err(error) = folder.write_private(PID, pid.as_bytes()) {
        let _ = child.kill().await; // without it no other call can end it
        return Err(io(error));
    }
    let mut words = child.stderr.take();
    let api = tokio::select! {
        api = answering(folder, limit) => api,
        _ = child.wait() => return Err(last_words(&mut words).await),
    };
    match api {
        Ok(api) => {
            child.stderr = words;
            Ok((child, api))
        }
        Err(error) => {
            let _ = child.kill().await;
            Err(error)
        }
    }
}

async fn answering(folder: &Folder, limit: Duration) -> Result<Api, Error> {
    let deadline = Instant::now() + limit;
    let api = Api::at(folder.file(API));
    while Instant::now() < deadline {
        match api.answers().await {
            Ok(()) => return Ok(api),
            // It does not listen yet.
            Err(Error::Failed(_)) => sleep(LOOK).await,
            Err(error) => return Err(error),
        }
    }
    Err(Error::Timeout { call: "start of the machine", after: limit })
}

async fn last_words(words: &mut Option<ChildStderr>) -> Error {
    let mut text = Vec::new();
    if let Some(words) = words {
        let _ = words.take(WORDS_MAX).read_to_end(&mut text).await;
    }
    let text = String::from_utf8_lossy(&text);
    Error::Failed(format!("the machine did not start: {}", text.trim()))
}

/// Ends the folder's machine: by its guest's own doing within `grace`, else by force.
pub(super) async fn end(folder: &Folder, grace: Duration) -> Result<(), Error> {
    let Some(process) = living(folder).await? else { return Ok(()) };
    if !grace.is_zero() {
        let api = Api::at(folder.file(API));
        let awake = process.try_clone().map_err(|error| vm::disk(folder, &error))?;
        if api.resume().await.is_ok()
            && api.press_keys().await.is_ok()
            && timeout(grace, ended(awake)).await.is_ok()
        {
            return Ok(());
        }
    }
    kill(process).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_jail_the_jailer_starts_it_with_its_user_and_limits() {
        let jail = Jail { program: "/usr/bin/jailer".into(), uid: 4000, gid: 4001 };
        let limits = ["memory.max=1".to_owned()];
        let line = line(
            Path::new("/usr/bin/firecracker"),
            Some(&jail),
            (Path::new("/state/ab12"), "ab12"),
            &limits,
        );
        assert_eq!(line.program, PathBuf::from("/usr/bin/jailer"));
        assert_eq!(
            line.arguments.join(" "),
            "--id ab12 --uid 4000 --gid 4001 --cgroup-version 2 --chroot-base-dir /state/ab12 \
             --exec-file /usr/bin/firecracker --cgroup memory.max=1 -- --api-sock api"
        );
    }
}
