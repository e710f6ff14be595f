//! The embedded engine against real processes: the contract, and what only processes do.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod contract;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use dormouse::{
    engine::{Engine, EngineEvent, Error, Health, InstanceState, Started, process::Process},
    session::{Address, Depth, Generation, Listen, SessionId, Spec},
};
use futures::StreamExt;
use procfs::process::{Process as Proc, Stat};
use rustix::process::{Pid, Signal, kill_process};

const DORMOUSE: &str = env!("CARGO_BIN_EXE_dormouse");
const DEADLINE: Duration = Duration::from_secs(20);

/// A state folder, and a word in the arguments of every process that a test starts.
struct Lab {
    folder: tempfile::TempDir,
    word: String,
}

impl Lab {
    fn new() -> Self {
        let word = format!("lab{}", uuid::Uuid::new_v4().simple());
        Self { folder: tempfile::tempdir().unwrap(), word }
    }

    fn engine(&self) -> Process {
        Process::new(self.folder.path().join("state"), self.folder.path().into()).unwrap()
    }

    /// A shell script; `$LAB` in it is a shell that sleeps for ever and is found by its word.
    fn script(&self, script: &str) -> Spec {
        let forever = format!("sh -c 'sleep 1000000 & wait' {}", self.word);
        let script = script.replace("$LAB", &forever);
        let mut spec = Spec {
            command: ["sh", "-c", &script, &self.word].map(String::from).to_vec(),
            ..Spec::default()
        };
        spec.env.insert("LAB".into(), self.word.clone());
        spec
    }

    fn demo(&self, flags: &[&str]) -> Spec {
        let mut command = vec![DORMOUSE, "demo-session", "--listen", "{address}"];
        command.extend(flags);
        let mut spec =
            Spec { command: command.into_iter().map(String::from).collect(), ..Spec::default() };
        spec.env.insert("LAB".into(), self.word.clone());
        spec
    }

    /// Every living process that has the word in its arguments or its environment.
    fn alive(&self) -> Vec<Stat> {
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

    fn records(&self) -> Vec<PathBuf> {
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

fn session(name: &str) -> SessionId {
    SessionId::new(format!("{name}.process.localhost"))
}

fn pid(started: &Started) -> i32 {
    started.life.as_str().split_once(':').unwrap().0.parse().unwrap()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn start(engine: &Process, session: &SessionId, spec: &Spec, generation: u64) -> Started {
    engine.start(session, spec, Generation(generation)).await.unwrap()
}

async fn state(engine: &Process, session: &SessionId) -> Option<InstanceState> {
    let instance = engine.inspect(session, &Spec::default()).await.unwrap();
    instance.map(|instance| instance.state)
}

const RUNNING: Option<InstanceState> = Some(InstanceState::Running(Health::Unchecked));
const PAUSED: Option<InstanceState> = Some(InstanceState::Asleep(Depth::Paused));

// ## The contract

#[tokio::test]
async fn the_contract_over_tcp() {
    let lab = Lab::new();
    contract::run(Arc::new(lab.engine()), |_| lab.demo(&[])).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn the_contract_over_unix_sockets() {
    let lab = Lab::new();
    let mut spec = lab.demo(&[]);
    spec.process.listen = Listen::Unix;
    contract::run(Arc::new(lab.engine()), |_| spec.clone()).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn an_instance_that_ignores_term_is_killed() {
    let lab = Lab::new();
    let mut spec = lab.demo(&["--ignore-term"]);
    spec.process.grace = Duration::from_millis(100);
    contract::hang(Arc::new(lab.engine()), |_| spec.clone()).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn a_death_is_told_at_once() {
    let lab = Lab::new();
    let kill = async |started: Started| signal(pid(&started), Signal::KILL);
    contract::death(Arc::new(lab.engine()), |_| lab.demo(&[]), kill).await;
}

// ## Sleep

/// Ticks of CPU time that all of a lab's processes have used.
fn cpu(lab: &Lab) -> u64 {
    lab.alive().iter().map(|stat| stat.utime + stat.stime).sum()
}

#[tokio::test]
async fn paused_uses_no_cpu_time_and_goes_on_where_it_was() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (engine, beside) = (lab.engine(), other.engine());
    let busy = "setsid sh -c 'while :; do :; done' & while :; do :; done";
    let (session, spec) = (session("busy"), lab.script(busy));
    let started = start(&engine, &session, &spec, 1).await;
    start(&beside, &session, &other.script("while :; do :; done"), 1).await;
    until("both of them work", || (lab.alive().len() == 2 && cpu(&lab) > 4).then_some(())).await;

    engine.sleep(&session, &spec, Some(&started.life), Depth::Paused).await.unwrap();
    assert_eq!(state(&engine, &session).await, PAUSED);
    let (before, witness) = (cpu(&lab), cpu(&other));
    until("time passes", || (cpu(&other) > witness + 20).then_some(())).await;
    assert_eq!(cpu(&lab), before, "one that had left the group went on");

    assert_eq!(start(&engine, &session, &spec, 2).await, started);
    assert_eq!(state(&engine, &session).await, RUNNING);
    until("both go on", || lab.alive().iter().all(|stat| stat.state != 'T').then_some(())).await;
    until("it goes on", || (cpu(&lab) > before + 4).then_some(())).await;
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(lab.alive().len(), 0);
}

/// A shell makes its children by `vfork`: it is stuck until its child's exec, and the child may lie
/// stopped before that. One that does nothing else is met in that moment sooner or later.
#[tokio::test]
async fn a_pause_in_the_middle_of_a_fork_ends_and_can_be_woken() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("forking"), lab.script("while :; do /bin/true; done"));
    let started = start(&engine, &session, &spec, 0).await;
    let spent = |stat: Stat| stat.cutime + stat.cstime;
    let forked = || Proc::new(pid(&started)).unwrap().stat().map(spent).unwrap();
    for generation in 1..=30 {
        engine.sleep(&session, &spec, None, Depth::Paused).await.unwrap();
        assert_eq!(state(&engine, &session).await, PAUSED);
        assert_eq!(start(&engine, &session, &spec, generation).await, started);
        let before = forked();
        until("it goes on", || (forked() > before).then_some(())).await;
        assert_eq!(state(&engine, &session).await, RUNNING);
    }
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
}

#[tokio::test]
async fn stopped_by_somebody_else_is_paused_and_can_be_woken() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("elsewhere"), lab.script("$LAB"));
    let started = start(&engine, &session, &spec, 1).await;
    signal(pid(&started), Signal::STOP);
    let stopped = || (Proc::new(pid(&started)).ok()?.stat().ok()?.state == 'T').then_some(());
    until("it has stopped", stopped).await;
    assert_eq!(state(&engine, &session).await, PAUSED);
    assert_eq!(start(&engine, &session, &spec, 2).await, started);
    until("it goes on", || stopped().is_none().then_some(())).await;
    assert_eq!(state(&engine, &session).await, RUNNING);
}

#[tokio::test]
async fn an_end_is_polite_first_also_for_the_paused() {
    let lab = Lab::new();
    let engine = lab.engine();
    let polite = "trap 'sleep 0.2; echo good bye; exit' TERM; echo hello; sleep 1000000 & wait";
    for paused in [false, true] {
        let session = session(if paused { "polite-paused" } else { "polite" });
        let log = engine.log_path(&session);
        let spec = lab.script(polite);
        start(&engine, &session, &spec, 1).await;
        until("it has set its trap", || fs::read_to_string(&log).ok().filter(|l| l == "hello\n"))
            .await;
        if paused {
            engine.sleep(&session, &spec, None, Depth::Paused).await.unwrap();
        }
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "hello\ngood bye\n");
        assert_eq!(state(&engine, &session).await, None);
    }
    assert_eq!(lab.records(), [] as [PathBuf; 0], "what does not exist has no record");
}

/// In the group, out of the group, stubborn, and without our marks.
const FAMILY: &str = "$LAB & (trap '' TERM; $LAB) & setsid $LAB & (setsid setsid $LAB &) & \
                      (trap '' TERM; env -i PATH=$PATH $LAB) & $LAB";
/// Two processes for each of its six members.
const FAMILY_MIN: usize = 12;

/// Ignores TERM, and is found by nothing but its group.
const UNMARKED: &str = "(trap '' TERM; env -i PATH=$PATH $LAB) & $LAB";

#[tokio::test]
async fn nothing_that_it_forked_is_left_behind() {
    for (script, min) in [(FAMILY, FAMILY_MIN), (UNMARKED, 4)] {
        let lab = Lab::new();
        let engine = lab.engine();
        let (session, mut spec) = (session("family"), lab.script(script));
        spec.process.grace = Duration::from_millis(200);
        for depth in [Depth::Stopped, Depth::Paused] {
            start(&engine, &session, &spec, 1).await;
            until("all are there", || (lab.alive().len() >= min).then_some(())).await;
            engine.sleep(&session, &spec, None, depth).await.unwrap();
            let moving = lab.alive().into_iter().filter(|stat| stat.state != 'T').count();
            assert_eq!(moving, 0, "{depth} {script}");
        }
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        assert_eq!(lab.alive().len(), 0, "{script}");
    }
}

#[tokio::test]
async fn when_the_leader_dies_the_rest_is_ended_and_the_zombie_reaped() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, mut spec) = (session("headless"), lab.script(FAMILY));
    spec.process.grace = Duration::from_millis(100);
    let mut events = engine.events();
    let started = start(&engine, &session, &spec, 1).await;
    until("all are there", || (lab.alive().len() >= FAMILY_MIN).then_some(())).await;
    signal(pid(&started), Signal::KILL);
    let told = tokio::time::timeout(DEADLINE, events.next()).await;
    assert_eq!(told.unwrap(), Some(EngineEvent::Changed(session.clone())));
    assert_eq!(state(&engine, &session).await, None, "dead as soon as it is told");
    until("nothing is left", || lab.alive().is_empty().then_some(())).await;
    until("no zombie is left", || Proc::new(pid(&started)).is_err().then_some(())).await;
    let again = start(&engine, &session, &spec, 2).await;
    assert_ne!(again.life, started.life);
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
}

#[tokio::test]
async fn starts_that_nobody_waits_for_are_stopped_all_the_same() {
    let lab = Lab::new();
    let engine = lab.engine();
    let spec = lab.script("$LAB");
    engine.list().await.unwrap(); // adopted: the next start goes to work with its first poll
    let sessions: Vec<_> = (0..40).map(|number| session(&format!("left{number}"))).collect();
    for session in &sessions {
        let mut start = engine.start(session, &spec, Generation(1));
        assert!(futures::poll!(&mut start).is_pending());
    }
    let ends = sessions.iter().map(|s| engine.sleep(s, &spec, None, Depth::Stopped));
    assert!(futures::future::join_all(ends).await.iter().all(Result::is_ok));
    // Begun later, so when this one is up, nothing of the others is still to come.
    let last = session("last");
    start(&engine, &last, &spec, 1).await;
    engine.sleep(&last, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(lab.alive().len(), 0);
    assert_eq!(lab.records(), [] as [PathBuf; 0]);
}

// ## The edge ends

#[tokio::test]
async fn what_runs_is_adopted_with_its_life_and_its_port() {
    let lab = Lab::new();
    let (running, paused) = (session("running"), session("paused"));
    let spec = lab.demo(&[]);
    let first = lab.engine();
    let one = start(&first, &running, &spec, 41).await;
    let two = start(&first, &paused, &spec, 42).await;
    first.sleep(&paused, &spec, None, Depth::Paused).await.unwrap();
    drop(first);

    let second = lab.engine();
    let mut listed = second.list().await.unwrap();
    listed.sort_by_key(|instance| instance.generation);
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(listed[0].session, running);
    assert_eq!((listed[0].generation, listed[0].life.as_ref()), (Generation(41), Some(&one.life)));
    assert_eq!((Some(listed[0].state), Some(listed[1].state)), (RUNNING, PAUSED));
    let mut events = second.events();
    signal(pid(&one), Signal::KILL);
    let told = tokio::time::timeout(DEADLINE, events.next()).await;
    assert_eq!(told.unwrap(), Some(EngineEvent::Changed(running.clone())));

    assert_eq!(start(&second, &paused, &spec, 51).await, two);
    contract::answers(&two.address).await;
    second.sleep(&paused, &spec, Some(&two.life), Depth::Stopped).await.unwrap();
    assert_eq!(second.list().await.unwrap(), []);
    until("nothing is left", || lab.alive().is_empty().then_some(())).await;
}

/// Not a test: the edge that `a_paused_instance_outlives_the_edge` kills.
#[tokio::test]
#[ignore = "a part of another test"]
async fn an_edge_to_be_killed() {
    let Ok(folder) = std::env::var("LAB_FOLDER").map(PathBuf::from) else { return };
    let engine = Process::new(folder.join("state"), folder).unwrap();
    let command = ["sh", "-c", "sleep 1000000 & wait"].map(String::from).to_vec();
    let mut spec = Spec { command, ..Spec::default() };
    spec.env.insert("LAB".into(), std::env::var("LAB_WORD").unwrap());
    start(&engine, &session("outlives"), &spec, 7).await;
    engine.sleep(&session("outlives"), &spec, None, Depth::Paused).await.unwrap();
    println!("asleep");
    std::future::pending::<()>().await;
}

/// The kernel hangs up a stopped process group when the last process that could continue it goes.
#[tokio::test]
async fn a_paused_instance_outlives_the_edge() {
    let lab = Lab::new();
    let mut edge = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_edge_to_be_killed", "--ignored", "--nocapture"])
        .env("LAB_FOLDER", lab.folder.path())
        .env("LAB_WORD", &lab.word)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(edge.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("asleep") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "the edge died");
    }
    edge.kill().unwrap();
    edge.wait().unwrap();

    let (engine, session) = (lab.engine(), session("outlives"));
    assert_eq!(state(&engine, &session).await, PAUSED);
    let woken = start(&engine, &session, &lab.script("$LAB"), 8).await;
    assert_eq!(state(&engine, &session).await, RUNNING);
    let instance = engine.inspect(&session, &Spec::default()).await.unwrap().unwrap();
    assert_eq!((instance.life, instance.generation), (Some(woken.life), Generation(8)));
    engine.sleep(&session, &Spec::default(), None, Depth::Stopped).await.unwrap();
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn without_its_record_it_is_found_by_its_marks() {
    let lab = Lab::new();
    let (session, spec) = (session("unrecorded"), lab.demo(&[]));
    for running_engine in [true, false] {
        let engine = lab.engine();
        let started = start(&engine, &session, &spec, 9).await;
        for record in lab.records() {
            fs::remove_file(record).unwrap();
        }
        let engine = if running_engine { engine } else { lab.engine() };
        let found = engine.list().await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0].session, found[0].generation), (&session, Generation(9)));
        assert_eq!(found[0].life.as_ref(), Some(&started.life));
        assert_eq!(start(&engine, &session, &spec, 10).await, started, "with its address");
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        assert_eq!(lab.alive().len(), 0);
    }
}

#[tokio::test]
async fn what_died_while_no_edge_was_there_leaves_nothing() {
    let lab = Lab::new();
    let (session, spec) = (session("died-alone"), lab.script(FAMILY));
    let first = lab.engine();
    let started = start(&first, &session, &spec, 1).await;
    until("all are there", || (lab.alive().len() >= FAMILY_MIN).then_some(())).await;
    drop(first);
    signal(pid(&started), Signal::KILL);
    until("it is dead", || lab.alive().iter().all(|s| s.pid != pid(&started)).then_some(())).await;

    let second = lab.engine();
    assert_eq!(second.list().await.unwrap(), []);
    assert_eq!(lab.alive().len(), 0);
    assert_eq!(lab.records(), [] as [PathBuf; 0]);
}

/// A process that is nobody's instance, leading a group and a kernel session of its own.
struct Bystander(std::process::Child);

impl Bystander {
    fn new() -> Self {
        Self(Command::new("setsid").args(["sleep", "1000000"]).spawn().unwrap())
    }

    fn is_untouched(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
            && Proc::new(self.0.id().cast_signed()).unwrap().stat().unwrap().state != 'T'
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_pid_that_was_used_again_is_never_signalled() {
    for forgery in ["start", "boot"] {
        let lab = Lab::new();
        let (session, spec) = (session("reused"), lab.demo(&[]));
        let mut bystander = Bystander::new();
        let theirs = bystander.0.id();
        let leads = || {
            let stat = Proc::new(theirs.cast_signed()).unwrap().stat().unwrap();
            (stat.session == stat.pid).then_some(stat.starttime)
        };
        let their_start = until("it leads its session", leads).await;

        let engine = lab.engine();
        start(&engine, &session, &spec, 1).await;
        let genuine = fs::read_to_string(&lab.records()[0]).unwrap();
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        let forge = || {
            let mut record: serde_json::Value = serde_json::from_str(&genuine).unwrap();
            record["leader"]["pid"] = theirs.into();
            record["leader"]["start"] = (their_start - 1).into();
            if forgery == "boot" {
                record["leader"]["start"] = their_start.into();
                record["boot"] = "another".into();
            }
            let path = format!("state/process/{session}.json");
            fs::write(lab.folder.path().join(path), record.to_string()).unwrap();
        };

        forge();
        assert_eq!(state(&engine, &session).await, None, "{forgery}");
        for depth in [Depth::Paused, Depth::Stopped] {
            forge();
            engine.sleep(&session, &spec, None, depth).await.unwrap();
            assert!(bystander.is_untouched(), "{depth}, {forgery}");
        }
        forge();
        start(&engine, &session, &spec, 2).await;
        assert!(bystander.is_untouched(), "start, {forgery}");
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        forge();
        assert_eq!(lab.engine().list().await.unwrap(), []);
        assert!(bystander.is_untouched(), "adoption, {forgery}");
    }
}

#[tokio::test]
async fn a_pid_that_was_used_again_is_not_continued_either() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("reused-stray"), lab.script("$LAB"));
    let bystander = Bystander::new();
    let theirs = bystander.0.id().cast_signed();
    signal(theirs, Signal::STOP);
    let stopped = || (Proc::new(theirs).ok()?.stat().ok()?.state == 'T').then_some(());
    until("it has stopped", stopped).await;

    let started = start(&engine, &session, &spec, 1).await;
    engine.sleep(&session, &spec, None, Depth::Paused).await.unwrap();
    let text = fs::read_to_string(&lab.records()[0]).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["paused"], true);
    record["strays"] = serde_json::json!([{ "pid": theirs, "start": 1 }]);
    fs::write(&lab.records()[0], record.to_string()).unwrap();

    assert_eq!(start(&engine, &session, &spec, 2).await, started);
    assert!(stopped().is_some(), "a stranger was told to go on");
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
}

#[tokio::test]
async fn a_record_that_nobody_can_read_is_no_obstacle() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("torn"), lab.demo(&[]));
    let started = start(&engine, &session, &spec, 3).await;
    fs::write(&lab.records()[0], "{\"session\": \"to").unwrap();
    let engine = lab.engine();
    assert_eq!(start(&engine, &session, &spec, 4).await, started);
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
}

// ## What an instance is given

#[tokio::test]
async fn it_gets_its_own_environment_and_nothing_of_the_edges() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, mut spec) = (session("environment"), lab.script("env; echo done"));
    spec.env.insert("UPSTREAM".into(), "http://{host}:{port}/ at {address}".into());
    spec.env.insert("DORMOUSE_SESSION".into(), "somebody else".into());
    let started = start(&engine, &session, &spec, 12).await;
    let log = engine.log_path(&session);
    let printed =
        until("it printed", || fs::read_to_string(&log).ok().filter(|t| t.ends_with("done\n")))
            .await;
    let Address::Tcp(address) = started.address else { panic!("{started:?}") };
    let port = address.port();
    for line in [
        format!("UPSTREAM=http://127.0.0.1:{port}/ at 127.0.0.1:{port}"),
        format!("PORT={port}"),
        format!("DORMOUSE_ADDRESS=127.0.0.1:{port}"),
        format!("DORMOUSE_SESSION={session}"),
        "DORMOUSE_GENERATION=12".into(),
    ] {
        assert!(printed.lines().any(|l| l == line), "{line} is not in\n{printed}");
    }
    // Inherited on purpose, or made by the shell itself.
    let fine = ["PATH", "HOME", "LANG", "TZ", "USER", "PWD", "OLDPWD", "SHLVL", "_"];
    let ours: Vec<_> = std::env::vars().filter(|(n, _)| !fine.contains(&n.as_str())).collect();
    assert!(!ours.is_empty(), "this edge has nothing to keep for itself");
    for (name, _) in ours {
        let leaked = printed.lines().any(|line| line.starts_with(&format!("{name}=")));
        assert!(!leaked, "{name} leaked");
    }
}

#[tokio::test]
async fn sessions_that_start_at_once_never_share_a_port() {
    let lab = Lab::new();
    let engine = lab.engine();
    let spec = lab.script("$LAB");
    let sessions: Vec<_> = (0..40).map(|number| session(&format!("port{number}"))).collect();
    let starts = sessions.iter().map(|session| start(&engine, session, &spec, 1));
    let mut addresses: Vec<_> =
        futures::future::join_all(starts).await.iter().map(|s| s.address.to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), sessions.len());
    let ends = sessions.iter().map(|s| engine.sleep(s, &spec, None, Depth::Stopped));
    assert!(futures::future::join_all(ends).await.iter().all(Result::is_ok));
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn any_name_gets_its_own_files_inside_the_folder() {
    let lab = Lab::new();
    let engine = lab.engine();
    let mut spec = lab.demo(&[]);
    spec.process.listen = Listen::Unix;
    let long = format!("{}.localhost", ["a"; 60].map(|label| label.repeat(3)).join("."));
    for host in ["../../escape", ".hidden", "a/b", "UPPER", "", "ünï\u{0}", &long] {
        let session = SessionId::new(host);
        if host.contains('\0') {
            let refused = engine.start(&session, &spec, Generation(1)).await;
            assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
            continue;
        }
        let started = start(&engine, &session, &spec, 1).await;
        contract::answers(&started.address).await;
        let logs = lab.folder.path().join("state/process/logs").canonicalize().unwrap();
        let log = engine.log_path(&session);
        assert!(log.is_file() && log.parent() == Some(logs.as_path()), "{log:?}");
        let listed = engine.list().await.unwrap();
        assert!(listed.iter().any(|i| i.session == session), "{host:?} not in {listed:?}");
        let Address::Unix(path) = &started.address else { panic!("{started:?}") };
        assert!(Path::new(&**path).exists());
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
        assert!(!Path::new(&**path).exists(), "the socket is removed");
    }
}

#[tokio::test]
async fn its_log_stays_small_while_it_writes() {
    const MAX: u64 = 64 * 1024;
    let lab = Lab::new();
    let engine = lab.engine();
    let print = "i=0; while i=$((i+1)); do printf '%01000d\\n' $i; sleep 0.005; done";
    let (session, mut spec) = (session("chatty"), lab.script(print));
    spec.process.log_max = MAX;
    start(&engine, &session, &spec, 1).await;
    let log = engine.log_path(&session);
    let last = || {
        let text = fs::read_to_string(&log).ok()?;
        text.lines().rfind(|line| line.len() == 1000)?.parse::<u64>().ok()
    };
    until("it wrote four times that", || last().filter(|&n| n * 1001 > 4 * MAX)).await;
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    let older = fs::metadata(log.with_extension("log.1")).unwrap().len();
    let size = fs::metadata(&log).unwrap().len();
    assert!(older <= MAX / 2, "{older}");
    assert!(size + older < 4 * MAX, "{size} + {older}: it was never cut");
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_path_and_a_hint() {
    let lab = Lab::new();
    let engine = lab.engine();
    let folder = lab.folder.path().canonicalize().unwrap();
    fs::write(folder.join("plain"), "#!/bin/sh\n").unwrap();
    fs::write(folder.join("orphan"), "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.join("orphan"), mode).unwrap();

    let of = |program: &str| Spec { command: vec![program.into()], ..Spec::default() };
    let at = |name: &str| folder.join(name).display().to_string();
    let mut no_directory = of("true");
    no_directory.process.directory = Some("no/such".into());
    let mut no_port = of("true");
    no_port.command.push("{port}".into());
    no_port.process.listen = Listen::Unix;
    let cases = [
        (of("./bin/nothing"), true, at("bin/nothing")),
        (of("no-such-program"), true, "no-such-program is not in the edge's PATH".into()),
        (of("./plain"), false, "chmod +x".into()),
        (of("./orphan"), true, "interpreter".into()),
        (no_directory, true, at("no/such")),
        (no_port, false, "{address}".into()),
        (Spec::default(), false, "command".into()),
    ];
    for (spec, missing, hint) in cases {
        let refused = engine.start(&session("refused"), &spec, Generation(1)).await.unwrap_err();
        assert_eq!(matches!(refused, Error::Missing(_)), missing, "{refused:?}");
        assert_eq!(matches!(refused, Error::Invalid(_)), !missing, "{refused:?}");
        assert!(refused.to_string().contains(&hint), "{refused} lacks {hint}");
        assert!(!refused.is_retryable());
    }
    assert_eq!(engine.list().await.unwrap(), []);
    assert_eq!(lab.records(), [] as [PathBuf; 0]);
}
