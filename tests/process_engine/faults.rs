//! What goes wrong around an instance: a full disk, odd files, a command that does not do as it
//! should.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use dormouse::{
    engine::{Engine as _, EngineEvent, process::Process},
    session::{Depth, Generation},
};
use futures::StreamExt as _;

use crate::{
    lab::{DEADLINE, DORMOUSE, Lab, session, start, state, until},
    tmpfs::Tmpfs,
};

/// Takes all the room that there is.
fn fill(folder: &Path) {
    let _ = fs::write(folder.join("filler"), vec![b'x'; 1024 * 1024]);
}

/// The program throws its marks away, so nothing but its start can end it.
#[tokio::test]
async fn a_start_that_has_no_room_for_its_record_leaves_no_process() {
    let (lab, disk) = (Lab::new(), Tmpfs::mount("64k"));
    let engine = Process::new(disk.path().join("state"), lab.folder.path().into()).unwrap();
    let (session, mut spec) = (session("full"), lab.script(""));
    let shim = ["env", "-i", "sh", "-c", "read forever < /dev/ptmx", &lab.word];
    spec.command = shim.map(String::from).to_vec();
    fill(disk.path());
    let refused = engine.start(&session, &spec, Generation(1)).await.unwrap_err();
    assert!(refused.to_string().contains("full.process.localhost.json"), "{refused}");
    assert_eq!(lab.alive().len(), 0, "a process is left behind the error");
    assert_eq!(state(&engine, &session).await, None);

    fs::remove_file(disk.path().join("filler")).unwrap();
    start(&engine, &session, &spec, 2).await;
    assert_eq!(lab.alive().len(), 1, "one instance");
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(lab.alive().len(), 0);
}

/// What moves without a record would be taken for asleep.
#[tokio::test]
async fn a_resume_that_has_no_room_for_its_record_does_not_resume() {
    let (lab, disk) = (Lab::new(), Tmpfs::mount("64k"));
    let engine = Process::new(disk.path().join("state"), lab.folder.path().into()).unwrap();
    let (session, spec) = (session("full"), lab.script("$LAB"));
    let started = start(&engine, &session, &spec, 1).await;
    engine.sleep(&session, &spec, None, Depth::Paused).await.unwrap();
    fill(disk.path());
    engine.start(&session, &spec, Generation(2)).await.unwrap_err();
    assert!(lab.alive().iter().all(|stat| stat.state == 'T'), "{:?}", lab.alive());
    fs::remove_file(disk.path().join("filler")).unwrap();
    assert_eq!(start(&engine, &session, &spec, 3).await.life, started.life);
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
}

#[tokio::test]
async fn what_an_adoption_cannot_record_is_ended() {
    let (lab, disk) = (Lab::new(), Tmpfs::mount("64k"));
    let state = disk.path().join("state");
    let first = Process::new(state.clone(), lab.folder.path().into()).unwrap();
    let session = session("unrecorded");
    start(&first, &session, &lab.script("$LAB"), 1).await;
    drop(first);
    fs::remove_file(state.join("process/unrecorded.process.localhost.json")).unwrap();
    fill(disk.path());
    let second = Process::new(state, lab.folder.path().into()).unwrap();
    assert_eq!(second.list().await.unwrap(), []);
    assert_eq!(lab.alive().len(), 0, "it runs, and the list says that it does not");
}

#[tokio::test]
async fn an_odd_file_among_the_records_is_skipped() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("good"), lab.demo(&[]));
    let started = start(&engine, &session, &spec, 1).await;
    let folder = lab.folder.path().join("state/process");
    fs::create_dir(folder.join("folder.json")).unwrap();
    symlink("loop.json", folder.join("loop.json")).unwrap();
    symlink("/dev/zero", folder.join("endless.json")).unwrap();
    symlink("/nowhere", folder.join("dangling.json")).unwrap();
    mkfifo(&folder.join("pipe.json"));
    fs::create_dir(folder.join("logs/folder.log")).unwrap();

    for engine in [engine, lab.engine()] {
        let listed = tokio::time::timeout(DEADLINE, engine.list()).await.expect("it waits");
        assert_eq!(listed.unwrap().len(), 1);
        assert_eq!(start(&engine, &session, &spec, 2).await.life, started.life);
    }
    let engine = lab.engine();
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();

    // A session whose own record is one of these is the only one that fails, and says by what.
    let other = crate::lab::session("other");
    fs::create_dir(folder.join("other.process.localhost.json")).unwrap();
    let refused = engine.start(&other, &spec, Generation(3)).await.unwrap_err();
    assert!(refused.to_string().contains("other.process.localhost.json"), "{refused}");
    start(&engine, &session, &spec, 3).await;
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(lab.alive().len(), 0);
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn old_logs_are_removed_as_sessions_end() {
    let lab = Lab::new();
    let engine = lab.engine();
    let (session, spec) = (session("new"), lab.script("echo here; $LAB"));
    start(&engine, &session, &spec, 1).await;
    let log = engine.log_path(&session);
    let logs = log.parent().unwrap();
    for number in 0..1100 {
        fs::write(logs.join(format!("old{number}.log")), "old").unwrap();
        fs::write(logs.join(format!("old{number}.log.1")), "older").unwrap();
    }
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    let count = |end: &str| {
        let all = fs::read_dir(logs).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|is| is == end)).count()
    };
    assert_eq!(count("log"), 1000);
    assert!(count("1") <= 1000, "{}", count("1"));
}

#[tokio::test]
async fn one_that_listens_elsewhere_is_named_with_what_it_listens_on() {
    let lab = Lab::new();
    let engine = lab.engine();
    for (name, listen, says) in [
        ("six", "[::1]:{port}", Some("it listens on [::1]:")),
        ("any", "0.0.0.0:{port}", None),
        ("right", "{address}", None),
    ] {
        let (session, mut spec) = (session(name), lab.demo(&[]));
        spec.command = [DORMOUSE, "demo-session", "--listen", listen].map(String::from).to_vec();
        let started = start(&engine, &session, &spec, 1).await;
        // Its first moments, in which it does not listen yet.
        let hint = loop {
            let hint = engine.hint(&session, &spec, &started.address).await;
            if hint.as_ref().is_none_or(|hint| !hint.contains("nowhere")) {
                break hint;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        match says {
            None => assert_eq!(hint, None, "{name}"),
            Some(says) => {
                let hint = hint.unwrap();
                assert!(hint.starts_with(says), "{hint}");
                assert!(hint.contains(&format!("not on {}", started.address)), "{hint}");
            }
        }
        engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    }
}

#[tokio::test]
async fn a_command_that_goes_to_the_background_is_told_to_stay() {
    let lab = Lab::new();
    let engine = lab.engine();
    let mut events = engine.events();
    let daemon = "$LAB & (setsid $LAB &) & sleep 0.1";
    let cases = [
        (daemon, "exit code 0 and left 4 in the background"),
        ("sleep 0.1; exit 3", "its command ended with exit code 3"),
        ("sleep 0.1; kill -9 $$", "its command was ended by signal 9"),
    ];
    for (number, (script, says)) in cases.into_iter().enumerate() {
        let (session, spec) = (session(&format!("ends{number}")), lab.script(script));
        let started = start(&engine, &session, &spec, 1).await;
        let told = tokio::time::timeout(DEADLINE, events.next()).await;
        assert_eq!(told.unwrap(), Some(EngineEvent::Changed(session.clone())));
        let hint = engine.hint(&session, &spec, &started.address).await.unwrap();
        assert!(hint.contains(says), "{hint}");
        assert!(hint.contains(engine.log_path(&session).to_str().unwrap()), "{hint}");
        until("nothing is left", || lab.alive().is_empty().then_some(())).await;
    }
}
