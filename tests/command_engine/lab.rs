//! A folder, and the program that an engine runs in it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use dormouse::{
    engine::command::{Command, Config},
    session::{Depth, SessionId},
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

pub(crate) const DORMOUSE: &str = env!("CARGO_BIN_EXE_dormouse");
const MACHINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command_engine/machines.sh");
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Lab {
    /// Instances that are processes.
    pub(crate) fn machines() -> Self {
        let mut lab = Self::script("");
        let folder = lab.folder.path().display().to_string();
        lab.config.run = vec![MACHINES.into(), folder, DORMOUSE.into()];
        lab
    }

    /// A shell script that is run for every verb, in the lab's folder.
    pub(crate) fn script(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let config = Config {
            run: vec!["./program".into()],
            directory: folder.path().into(),
            depths: &[Depth::Paused, Depth::Stopped, Depth::Removed],
            environment: Vec::new(),
            call_timeout: DEADLINE,
            at_once: 4,
            poll: Duration::from_millis(50),
            owner: "lab".into(),
        };
        Self { folder, config }
    }

    pub(crate) fn engine(&self) -> Command {
        Command::new(self.config.clone()).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// The process whose number the script wrote to a file.
    pub(crate) fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.read(name).unwrap().parse().unwrap()).unwrap()
    }

    /// No process of the machines is left.
    pub(crate) fn ends_dark(&self) {
        assert_eq!(self.lives().into_iter().filter(|pid| is_alive(*pid)).count(), 0);
    }

    fn lives(&self) -> Vec<Pid> {
        let paths: Vec<PathBuf> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let lives = paths.iter().filter(|path| path.extension().is_some_and(|e| e == "life"));
        let pids = lives.filter_map(|path| {
            fs::read_to_string(path).ok()?.split(':').next()?.parse().ok().and_then(Pid::from_raw)
        });
        pids.collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.lives() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(format!("{name}.example.com"))
}

/// Whether it runs; a zombie does not.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = procfs::process::Process::new(pid.as_raw_nonzero().get()).and_then(|p| p.stat());
    test_kill_process(pid).is_ok() && stat.is_ok_and(|stat| stat.state != 'Z')
}

/// Waits for its end.
pub(crate) async fn ends(pid: Pid) {
    let since = Instant::now();
    while is_alive(pid) {
        assert!(since.elapsed() < DEADLINE, "{pid:?} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
