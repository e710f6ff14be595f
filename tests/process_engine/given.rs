//! What an instance is given: environment, port, files, a log; and what cannot run at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dormouse::{
    engine::{Engine as _, Error},
    session::{Address, Depth, Generation, Listen, SessionId, Spec},
};

use crate::{
    contract,
    lab::{Lab, session, start, until},
};

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
    for path in [log.with_extension("log.1"), log] {
        let size = fs::metadata(&path).unwrap().len();
        assert!(0 < size && size <= MAX / 2, "{size}: {path:?}");
    }
}

/// Checked at every look: a file that is cut now and then is too long in between.
#[tokio::test]
async fn the_fastest_writer_keeps_to_the_bound() {
    const MAX: u64 = 1024 * 1024;
    let lab = Lab::new();
    let engine = lab.engine();
    let done = lab.folder.path().join("done");
    let print = format!("yes | head -c 50000000; echo the end; touch {}; $LAB", done.display());
    let (session, mut spec) = (session("fast"), lab.script(&print));
    spec.process.log_max = MAX;
    start(&engine, &session, &spec, 1).await;
    let log = engine.log_path(&session);
    let size = |path: &Path| fs::metadata(path).map_or(0, |is| is.len());
    until("it has printed 50 MB", || {
        let sizes = [&log, &log.with_extension("log.1")].map(|path| size(path));
        assert!(sizes.iter().all(|size| *size <= MAX / 2), "{sizes:?}");
        done.exists().then_some(())
    })
    .await;
    engine.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    assert!(fs::read_to_string(&log).unwrap().ends_with("y\nthe end\n"), "its last words");
}

/// Without an edge its output waits in a pipe, and so does the instance once that is full.
#[tokio::test]
async fn it_prints_on_when_there_is_an_edge_again() {
    const MAX: u64 = 1024 * 1024;
    let lab = Lab::new();
    let (go, done) = (lab.folder.path().join("go"), lab.folder.path().join("done"));
    let print = format!(
        "echo before; while ! [ -e {} ]; do sleep 0.01; done; yes | head -c 3000000; echo after; \
         touch {}; $LAB",
        go.display(),
        done.display()
    );
    let (session, mut spec) = (session("alone"), lab.script(&print));
    spec.process.log_max = MAX;
    let first = lab.engine();
    let started = start(&first, &session, &spec, 1).await;
    let log = first.log_path(&session);
    until("it began", || fs::read_to_string(&log).ok().filter(|text| text == "before\n")).await;
    drop(first);
    fs::write(&go, "").unwrap();
    let waits = || lab.alive().iter().any(|stat| stat.comm == "yes" && stat.state == 'S');
    until("it waits for a reader", || waits().then_some(())).await;
    assert!(!done.exists() && fs::read_to_string(&log).unwrap() == "before\n");

    let second = lab.engine();
    assert_eq!(start(&second, &session, &spec, 2).await.life, started.life);
    until("it went on", || done.exists().then_some(())).await;
    second.sleep(&session, &spec, None, Depth::Stopped).await.unwrap();
    assert!(fs::read_to_string(&log).unwrap().ends_with("y\nafter\n"));
    assert!(fs::metadata(log.with_extension("log.1")).unwrap().len() <= MAX / 2);
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
