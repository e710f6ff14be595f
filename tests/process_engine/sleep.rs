//! How processes are paused and ended, with everything that they forked.

use std::{fs, path::PathBuf, time::Duration};

use dormouse::{
    engine::{Engine as _, EngineEvent},
    session::{Depth, Generation},
};
use futures::StreamExt as _;
use procfs::process::{Process as Proc, Stat};
use rustix::process::Signal;

use crate::lab::{
    DEADLINE, FAMILY, FAMILY_MIN, Lab, PAUSED, RUNNING, pid, session, signal, start, state, until,
};

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
