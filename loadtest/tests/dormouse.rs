//! The real edge, in beds of its own: each command once, on small counts.

mod support;

use std::{path::PathBuf, process::Command, sync::OnceLock};

use procfs::process::all_processes;
use serde_json::Value;

/// The folder with the programs of this build, the edge among them.
fn bin() -> &'static PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        // Nothing but the tests of the root package makes cargo build the edge.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "-p", "dormouse", "--bin", "dormouse"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let built = cargo
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("it works");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        PathBuf::from(env!("CARGO_BIN_EXE_loadtest")).with_file_name("")
    })
}

const BED: &str = r#"
[bed.edges.edge.routes]
session = """
host = "{session}.localhost"
[instance]
command = ["${peer}", "instance", "{address}"]
[idle]
after = "1h"
"""
"#;

/// Runs a scenario in a folder of its own; its exit code and report. Nothing may be left of it.
fn run(measure: &str, bed: &str) -> (i32, Value) {
    let dir = tempfile::tempdir().expect("it works");
    let (file, json) = (dir.path().join("scenario.toml"), dir.path().join("report.json"));
    std::fs::write(&file, format!("promise = \"a test\"\n{measure}\n{bed}")).expect("it works");
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).expect("it works");
    let ran = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .arg("run")
        .arg(&file)
        .arg("--bin")
        .arg(bin())
        .args(["--quiet", "--max-time", "5m", "--json"])
        .arg(&json)
        .env("TMPDIR", &temporary)
        .output()
        .expect("it works");
    let report = support::read(&json, &ran);
    let left = std::fs::read_dir(&temporary).expect("it works").count();
    let inside = |process: &procfs::process::Process| {
        process.cwd().is_ok_and(|cwd| cwd.starts_with(dir.path()))
    };
    let alive = all_processes().expect("it works").flatten().filter(inside).count();
    assert_eq!((left, alive), (0, 0), "the bed left files or processes behind");
    (ran.status.code().expect("it works"), report)
}

fn count(report: &Value, server: usize, series: &str) -> u64 {
    let of = &report["servers"][server]["series"][series];
    of["count"].as_u64().unwrap_or_else(|| panic!("no {series}: {report}"))
}

#[test]
fn cold_wakes_as_often_as_asked_and_the_floor_starts_as_often() {
    let cold = |more: &str| {
        format!(
            r#"[measure.cold]
url = "http://s{{n}}.localhost/"
samples = 6
{more}
[measure.cold.reach]
connect = "${{edge}}"
[measure.cold.reset]
admin = "${{edge.admin}}"
[measure.cold.floor]
floor = "${{peer}} instance {{address}}""#
        )
    };
    for more in [
        "",
        "websocket = true",
        "sessions = 3\npattern = \"parallel=3\"",
        "sessions = 6\npattern = \"poisson=10\"",
    ] {
        let (code, report) = run(&cold(more), BED);
        assert_eq!(code, 0, "{more}: {report}");
        assert_eq!(report["servers"][0]["answers"], 6, "{more}");
        for series in ["ttfb", "overhead", "server.engine", "server.ready", "server.hold"] {
            assert_eq!(count(&report, 0, series), 6, "{more}: each woke");
        }
        assert_eq!(count(&report, 1, "ttfb"), 6, "{more}");
        let compared = |c: &Value| c["metric"] == "ttfb.p50" && c["peer"] == "floor";
        assert!(report["comparisons"].as_array().unwrap().iter().any(compared), "{report}");
    }
}

#[test]
fn a_herd_starts_one_life_each() {
    let herd = r#"[measure.herd]
url = "http://s{n}.localhost/"
clients = 20
sessions = 2
rounds = 2
identity = true
[measure.herd.reach]
connect = "${edge}"
[measure.herd.reset]
admin = "${edge.admin}"
[measure.herd.peers]
pid = "${edge.pid}""#;
    let (code, report) = run(herd, BED);
    assert_eq!((code, &report["servers"][0]["answers"]), (0, &80.into()), "{report}");
    assert_eq!(report["servers"][0]["series"]["starts"]["max"], 1.0);
    assert_eq!(count(&report, 0, "starts"), 4);
    assert!(report["servers"][0]["values"]["memory-per-held"]["median"].is_number());
}

#[test]
fn churn_finds_no_wrong_answer_and_sees_it_wake() {
    let churn = r#"[measure.churn]
url = "http://s{n}.localhost/whoami"
sessions = 4
clients = 4
time = "5s"
look-every = "100ms"
[measure.churn.reach]
connect = "${edge}"
[measure.churn.reset]
admin = "${edge.admin}"
[measure.churn.peers]
pid = "${edge.pid}""#;
    let (code, report) = run(churn, BED);
    let value = |name: &str| report["servers"][0]["values"][name]["median"].as_f64();
    assert_eq!((code, value("wrong-answers")), (0, Some(0.0)), "{report}");
    assert!(value("sleeps") > Some(0.0) && value("wakes") > Some(1.0), "{report}");
    assert!(value("rss-slope").is_some() && value("fds-growth").is_some(), "{report}");
}

#[test]
fn sockets_and_requests_go_through_the_edge_and_the_bare_peer() {
    let parts = r#"
[bed.parts.an-instance]
command = "${peer} instance ${listen}"
[bed.parts.bare]
command = "${peer} bare-pingora ${listen} ${an-instance}"
[bed.parts.missing]
command = "no-such-program"
optional = true
"#;
    for (kind, work, main) in [
        ("sockets", "sockets = 20\nsettle = \"0s\"\nrate = 200", "echo"),
        ("warm", "connections = 4", "latency"),
    ] {
        let measure = format!(
            r#"[measure.{kind}]
url = "http://s.localhost/"
{work}
time = "500ms"
rounds = 2
[measure.{kind}.reach]
connect = "${{edge}}"
[measure.{kind}.peers]
compare = ["bare=http://${{bare}}/", "missing=http://${{missing}}/"]
pid = "${{edge.pid}}"
compare-pid = ["bare=${{bare.pid}}", "missing=${{missing.pid}}"]"#
        );
        let (code, report) = run(&measure, &format!("{parts}{BED}"));
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["main"], main);
        assert!(0 < count(&report, 0, main) && 0 < count(&report, 1, main));
        assert_eq!(report["servers"].as_array().unwrap().len(), 2, "the missing one is left out");
        let notes = report["notes"].to_string();
        assert!(notes.contains("without missing") && notes.contains("no-such-program"), "{notes}");
    }
}

#[test]
fn what_goes_on_meanwhile_goes_on_and_its_errors_count() {
    let measure = r#"allow-errors = 0
[measure.warm]
url = "http://s.localhost/"
connections = 2
rate = 50
time = "1s"
rounds = 2
[measure.warm.reach]
connect = "${edge}"
[meanwhile.good.work.warm]
url = "http://other.localhost/"
connections = 1
time = "100ms"
rounds = 1
[meanwhile.good.work.warm.reach]
connect = "${edge}"
[meanwhile.bad.command]
command = "false"
every = "10ms""#;
    let (code, report) = run(measure, BED);
    assert_eq!((code, &report["servers"][0]["answers"]), (3, &100.into()), "{report}");
    assert!(report["servers"][0]["errors"]["meanwhile bad: false failed"].as_u64() > Some(0));
    assert!(report["notes"].to_string().contains("meanwhile good: "), "{report}");
}
