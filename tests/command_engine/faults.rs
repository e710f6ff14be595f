//! Programs that hang, flood, stammer or refuse: each a clear error, and nothing left behind.

use std::time::Duration;

use dormouse::{
    engine::{Engine as _, EngineEvent, Error, Life},
    session::{Depth, Generation, Spec},
};
use futures::StreamExt;
use rustix::process::{Signal, kill_process};

use crate::lab::{DEADLINE, Lab, ends, is_alive, session};

async fn start(lab: &Lab, spec: &Spec) -> Result<dormouse::engine::Started, Error> {
    lab.engine().start(&session("a"), spec, Generation(1)).await
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_that() {
    let cases = [
        (r#"printf '{"address":"127'"#, "start printed half an answer"),
        ("echo started", "start printed no answer that can be read"),
        ("true", "start ended with 0 and printed no answer"),
        (r#"echo '{"adress":"127.0.0.1:1"}'"#, "unknown field `adress`"),
        (r#"echo '{"address":"127.0.0.1"}'"#, "expected HOST:PORT or unix:/path"),
        (r#"echo '{"address":"unix:run/x"}'"#, "no absolute path"),
        (r#"echo '{"address":"no.such.invalid:1"}'"#, "cannot look the name up"),
        (r#"echo '{"address":"127.0.0.1:1"}{}'"#, "trailing characters"),
    ];
    for (script, said) in cases {
        let error = start(&Lab::script(script), &Spec::default()).await.unwrap_err();
        assert!(matches!(error, Error::Failed(_)), "{error:?}");
        assert!(error.to_string().contains(said), "{script}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_list_is_not_taken_in_part() {
    let a = r#"{"session":"a.example.com","state":"running"}"#;
    let cases = [
        (format!("[{a},{a}]"), "list answered `a.example.com` twice"),
        (r#"[{"session":"A B","state":"running"}]"#.into(), "no host name"),
        (r#"[{"session":"a.example.com","state":"asleep"}]"#.into(), "unknown variant `asleep`"),
        (format!("[{a},"), "half an answer"),
    ];
    for (answer, said) in cases {
        let lab = Lab::script(&format!("echo '{answer}'"));
        let error = lab.engine().list().await.unwrap_err();
        assert!(error.to_string().contains(said), "{answer}: {error}");
        let asked = lab.engine().inspect(&session("a"), &Spec::default()).await.unwrap_err();
        assert_eq!(asked, error);
    }
}

#[tokio::test]
async fn a_hang_is_killed_with_all_that_it_started() {
    let mut lab = Lab::script("sleep 1000000 & echo $! >child; echo $$ >self; wait");
    lab.config.call_timeout = Duration::from_millis(500);
    let error = start(&lab, &Spec::default()).await.unwrap_err();
    assert_eq!(error, Error::Timeout { call: "start", after: Duration::from_millis(500) });
    assert!(error.is_retryable());
    for file in ["self", "child"] {
        ends(lab.pid(file)).await;
    }
}

#[tokio::test]
async fn a_flood_is_killed() {
    let lab = Lab::script("echo $$ >self; yes & echo $! >child; yes");
    let error = start(&lab, &Spec::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "start printed more than 1048576 bytes and was killed");
    for file in ["self", "child"] {
        ends(lab.pid(file)).await;
    }
}

#[tokio::test]
async fn an_exit_code_says_what_kind_of_failure_it_is() {
    type Is = fn(&Error) -> bool;
    let cases: [(i32, Is); 7] = [
        (1, |e| matches!(e, Error::Failed(_))),
        (127, |e| matches!(e, Error::Failed(_))),
        (64, |e| matches!(e, Error::Invalid(_))),
        (78, |e| matches!(e, Error::Invalid(_))),
        (66, |e| matches!(e, Error::Missing(_))),
        (69, |e| matches!(e, Error::Unreachable(_))),
        (75, |e| matches!(e, Error::Conflict(_))),
    ];
    for (code, is) in cases {
        let lab = Lab::script(&format!("echo no such volume >&2; exit {code}"));
        let error = start(&lab, &Spec::default()).await.unwrap_err();
        assert!(is(&error), "{code}: {error:?}");
        assert!(error.to_string().contains(&format!("exit status: {code}): no such volume")));
        assert_eq!(error.is_retryable(), code == 69 || code == 75);
    }
    let error = start(&Lab::script("kill -SEGV $$"), &Spec::default()).await.unwrap_err();
    assert!(error.to_string().contains("signal: 11 (SIGSEGV)"), "{error}");
    assert!(error.to_string().contains("nothing on stderr"), "{error}");
}

#[tokio::test]
async fn the_last_lines_of_stderr_are_told_and_no_secret() {
    let script = "for i in $(seq 2000); do echo line $i of many >&2; done; cat >&2; exit 1";
    let mut spec = Spec::default();
    spec.env.insert("PASSWORD".into(), "hunter2-in-env".into());
    spec.parameters.insert("domain".into(), "desk-7".into());
    let error = start(&Lab::script(script), &spec).await.unwrap_err().to_string();
    assert!(error.contains("line 2000 of many") && !error.contains("line 1990"), "{error}");
    assert!(
        error.contains("PASSWORD") && error.contains("***") && error.contains("desk-7"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    assert!(!format!("{:?}", Lab::script("").engine()).contains("hunter2"));
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_path_and_a_hint() {
    let mut lab = Lab::script("true");
    let of = |run: &str| vec![run.to_owned()];
    std::fs::write(lab.folder.path().join("plain"), "true").unwrap();
    for (run, missing, said) in [
        ("./nothing", true, "correct `run`"),
        ("no-such-program", true, "no-such-program does not exist"),
        ("./plain", false, "chmod +x"),
    ] {
        lab.config.run = of(run);
        let error = start(&lab, &Spec::default()).await.unwrap_err();
        assert_eq!(matches!(error, Error::Missing(_)), missing, "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
    lab.config.run = Vec::new();
    assert!(dormouse::engine::command::Command::new(lab.config.clone()).is_err());
}

#[tokio::test]
async fn a_depth_that_it_does_not_have_is_not_asked_of_it() {
    let mut lab = Lab::script("touch asked");
    lab.config.depths = &[Depth::Stopped];
    let slept = lab.engine().sleep(&session("a"), &Spec::default(), None, Depth::Paused).await;
    assert!(matches!(slept, Err(Error::Invalid(_))), "{slept:?}");
    assert_eq!(lab.read("asked"), None);
}

/// A program that fences nothing is fenced by what it lists.
#[tokio::test]
async fn a_late_sleep_of_an_old_life_is_not_asked_of_it() {
    let lab = Lab::script(
        r#"echo "$1" >>verbs; test "$1" = sleep || echo '[{"session":"a.example.com","state":"running","life":"2"}]'"#,
    );
    let engine = lab.engine();
    let sleep = async |life: &str| {
        let life = Life::new(life);
        engine.sleep(&session("a"), &Spec::default(), Some(&life), Depth::Stopped).await.unwrap();
    };
    sleep("1").await;
    assert_eq!(lab.read("verbs").unwrap(), "list");
    sleep("2").await;
    assert_eq!(lab.read("verbs").unwrap(), "list\nlist\nsleep");
}

#[tokio::test]
async fn what_it_leaves_running_may_hold_its_output_open() {
    let lab = Lab::script(
        r#"sleep 1000000 & echo $! >child; head -c 60000 /dev/zero | tr '\0' ' '; echo '{"address":"127.0.0.1:1"}'"#,
    );
    assert_eq!(start(&lab, &Spec::default()).await.unwrap().address.to_string(), "127.0.0.1:1");
    assert!(is_alive(lab.pid("child")), "what a start leaves running is the instance");
    kill_process(lab.pid("child"), Signal::KILL).unwrap();
}

#[tokio::test]
async fn an_outage_is_followed_by_a_look_at_everything() {
    let lab = Lab::script("test -e well || exit 69; echo '[]'");
    let engine = lab.engine();
    let mut events = engine.events();
    let quiet = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    assert!(quiet.is_err(), "it cannot list: {quiet:?}");
    std::fs::write(lab.folder.path().join("well"), "").unwrap();
    let event = tokio::time::timeout(DEADLINE, events.next()).await.unwrap();
    assert_eq!(event, Some(EngineEvent::Resync));
}
