//! Processes that are nobody's instance are left alone, whatever a record says.

use std::{fs, process::Command};

use dormouse::{engine::Engine as _, session::Depth};
use procfs::process::Process as Proc;
use rustix::process::Signal;

use crate::lab::{Lab, session, signal, start, state, until};

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
