//! A state folder, and the processes that a test starts.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{Engine as _, Health, InstanceState, Started, process::Process},
    session::{Depth, Generation, SessionId, Spec},
};
use procfs::process::Stat;
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const DORMOUSE: &str = env!("CARGO_BIN_EXE_dormouse");
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A state folder, and a word in the arguments of every process that a test starts.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) word: String,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let word = format!("lab{}", uuid::Uuid::new_v4().simple());
        Self { folder: tempfile::tempdir().unwrap(), word }
    }

    pub(crate) fn engine(&self) -> Process {
        Process::new(self.folder.path().join("state"), self.folder.path().into()).unwrap()
    }

    /// A shell script; `$LAB` in it is a shell that sleeps for ever and is found by its word.
    pub(crate) fn script(&self, script: &str) -> Spec {
        let forever = format!("sh -c 'sleep 1000000 & wait' {}", self.word);
        let script = script.replace("$LAB", &forever);
        let mut spec = Spec {
            command: ["sh", "-c", &script, &self.word].map(String::from).to_vec(),
            ..Spec::default()
        };
        spec.env.insert("LAB".into(), self.word.clone());
        spec
    }

    pub(crate) fn demo(&self, flags: &[&str]) -> Spec {
        let mut command = vec![DORMOUSE, "demo-session", "--listen", "{address}"];
        command.extend(flags);
        let mut spec =
            Spec { command: command.into_iter().map(String::from).collect(), ..Spec::default() };
        spec.env.insert("LAB".into(), self.word.clone());
        spec
    }

    /// Every living process that has the word in its arguments or its environment.
    pub(crate) fn alive(&self) -> Vec<Stat> {
        let all = procfs::process::all_processes().unwrap().filter_map(Result::ok);
        all.filter(|process| {
            let argued = process.cmdline().is_ok_and(|args| args.contains(&self.word));
            let marked = || process.environ().is_ok_and(|e| e.values().any(|v| *v == *self.word));
            process.pid != std::process::id().cast_signed() && (argued || marked())
        })
        .filter_map(|process| process.stat().ok())
        .filter(|stat| stat.state != 'Z')
        .collect()
    }

    pub(crate) fn records(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.folder.path().join("state/process")).unwrap();
        let paths = folder.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
    }
}

impl Drop for Lab {
    /// Also when a test fails: what has the word and what it forked, again and again, because it
    /// may be forking at this moment.
    fn drop(&mut self) {
        loop {
            let mut ours: Vec<i32> = self.alive().iter().map(|stat| stat.pid).collect();
            if ours.is_empty() {
                return;
            }
            let all = procfs::process::all_processes().unwrap();
            let stats: Vec<_> = all.filter_map(|process| process.ok()?.stat().ok()).collect();
            let children = stats.iter().filter(|stat| ours.contains(&stat.ppid)).map(|s| s.pid);
            ours.extend(children.collect::<Vec<_>>());
            for pid in ours {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(format!("{name}.process.localhost"))
}

pub(crate) fn pid(started: &Started) -> i32 {
    started.life.as_str().split_once(':').unwrap().0.parse().unwrap()
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn start(
    engine: &Process,
    session: &SessionId,
    spec: &Spec,
    generation: u64,
) -> Started {
    engine.start(session, spec, Generation(generation)).await.unwrap()
}

pub(crate) async fn state(engine: &Process, session: &SessionId) -> Option<InstanceState> {
    let instance = engine.inspect(session, &Spec::default()).await.unwrap();
    instance.map(|instance| instance.state)
}

pub(crate) const RUNNING: Option<InstanceState> = Some(InstanceState::Running(Health::Unchecked));
pub(crate) const PAUSED: Option<InstanceState> = Some(InstanceState::Asleep(Depth::Paused));

/// In the group, out of the group, stubborn, and without our marks.
pub(crate) const FAMILY: &str = "$LAB & (trap '' TERM; $LAB) & setsid $LAB & (setsid setsid $LAB &) & \
                      (trap '' TERM; env -i PATH=$PATH $LAB) & $LAB";
/// Two processes for each of its six members.
pub(crate) const FAMILY_MIN: usize = 12;
