//! What a program is given: its input, its environment, its place among others.

use std::collections::BTreeSet;

use dormouse::{
    engine::Engine as _,
    session::{Depth, Generation, Spec},
};
use futures::future::join_all;

use crate::lab::{Lab, session};

/// As `docs/engines/command.md` shows it.
#[tokio::test]
async fn the_verb_is_its_last_argument_and_json_its_input() {
    let script =
        r#"cat >"$1.json"; test "$1" = list && echo '[]' || echo '{"address":"127.0.0.1:1"}'"#;
    let lab = Lab::script(script);
    let engine = lab.engine();
    let mut spec = Spec { port: Some(80), ..Spec::default() };
    spec.parameters.insert("mac".into(), "02:00:00:00:00:01".into());
    spec.env.insert("A".into(), "b".into());
    engine.start(&session("a"), &spec, Generation(7)).await.unwrap();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&lab.read(name).unwrap()).unwrap()
    };
    let instance = serde_json::json!({
        "parameters": {"mac": "02:00:00:00:00:01"}, "image": null, "command": [],
        "env": {"A": "b"}, "port": 80, "memory": null, "nano_cpus": null, "pids": null,
        "volumes": [],
    });
    let start = serde_json::json!({
        "verb": "start", "owner": "lab", "session": "a.example.com", "generation": 7,
        "instance": instance,
    });
    assert_eq!(read("start.json"), start);

    engine.list().await.unwrap();
    assert_eq!(read("list.json"), serde_json::json!({"verb": "list", "owner": "lab"}));
    assert_eq!(engine.inspect(&session("a"), &spec).await.unwrap(), None);
    assert_eq!(read("list.json")["session"], "a.example.com");

    engine.sleep(&session("a"), &spec, None, Depth::Removed).await.unwrap();
    let sleep = serde_json::json!({
        "verb": "sleep", "owner": "lab", "session": "a.example.com", "to": "removed",
        "instance": instance,
    });
    assert_eq!(read("sleep.json"), sleep);
}

#[tokio::test]
async fn its_environment_is_what_was_named() {
    let mut lab = Lab::script("env >seen; pwd >where; echo '[]'");
    lab.config.environment = vec!["CARGO_PKG_NAME".into(), "NOT_THERE".into()];
    lab.engine().list().await.unwrap();
    let seen = lab.read("seen").unwrap();
    let names: BTreeSet<&str> = seen.lines().filter_map(|l| Some(l.split_once('=')?.0)).collect();
    // PWD and its like are the shell's own.
    let known =
        ["PATH", "HOME", "LANG", "TZ", "USER", "CARGO_PKG_NAME", "PWD", "SHLVL", "_", "OLDPWD"];
    let unknown: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(names.contains("CARGO_PKG_NAME") && names.contains("PATH"));
    let folder = lab.folder.path().canonicalize().unwrap();
    assert_eq!(lab.read("where").unwrap(), folder.display().to_string());
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    let lab = Lab::script("echo '{\"address\":\"127.0.0.1:1\"}'");
    let mut spec = Spec::default();
    spec.env.insert("BIG".into(), "x".repeat(1024 * 1024));
    lab.engine().start(&session("a"), &spec, Generation(1)).await.unwrap();
}

#[tokio::test]
async fn no_more_run_at_once_than_may() {
    let mut lab = Lab::script("mkdir inside || exit 1; sleep 0.05; rmdir inside; echo '[]'");
    lab.config.at_once = 1;
    let engine = lab.engine();
    for listed in join_all((0..6).map(|_| engine.list())).await {
        listed.unwrap();
    }
}
