//! The edge ends, in whatever way; the next one finds what it left.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use dormouse::{
    engine::{Engine as _, EngineEvent, process::Process},
    session::{Depth, Generation, Spec},
};
use futures::StreamExt as _;
use rustix::process::Signal;

use crate::{
    contract,
    lab::{
        DEADLINE, FAMILY, FAMILY_MIN, Lab, PAUSED, RUNNING, pid, session, signal, start, state,
        until,
    },
};

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
        .args(["--exact", "adoption::an_edge_to_be_killed", "--ignored", "--nocapture"])
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
