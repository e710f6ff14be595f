//! What an operator reads of each request afterwards.

use std::{fs, path::Path};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Edge, Setup, client, witnessed};

fn edge() -> Edge {
    Setup::new()
        .config("[log]\naccess = \"access.log\"\n")
        .route("demo", &witnessed("", ""))
        .start()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // A line may be half-way to the file.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_line_and_no_query_is_in_it() {
    let mut edge = edge();
    let log = edge.path("access.log");
    let woken = client().get(edge.url("alice.test", "/whoami?token=secret")).send();
    let woken = woken.await.expect("an answer");
    let id = woken.headers()["x-request-id"].to_str().expect("text").to_owned();
    let length = woken.bytes().await.expect("a body").len();
    let unknown = client().get(edge.url("nobody.example", "/")).send().await.expect("an answer");
    assert_eq!(unknown.status(), 404);
    edge.wait_until("both are written", |_| lines(&log).len() == 2);
    // A line is written when the edge is done, not when the client is.
    let lines = lines(&log);
    let of = |status| lines.iter().find(|line| line["status"] == status).expect("its line");
    let (woken, unknown) = (of(200), of(404));
    assert_eq!(woken["id"], id);
    assert_eq!(woken["client"], "127.0.0.1");
    assert_eq!(woken["method"], "GET");
    assert_eq!(woken["host"], "alice.test");
    assert_eq!(woken["path"], "/whoami");
    assert_eq!(woken["route"], "demo");
    assert_eq!(woken["bytes"], length);
    assert_eq!(woken["generation"], edge.session("alice.test")["generation"]);
    assert!(0.0 < woken["held_ms"].as_f64().expect("it was held"), "{woken}");
    assert_eq!(unknown["reason"], "no_such_host");
    assert_eq!(unknown["held_ms"], Value::Null);
    assert!(!fs::read_to_string(&log).expect("the log").contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_begins_a_new_file_and_the_last_lines_are_written_at_the_end() {
    let mut edge = edge();
    let log = edge.path("access.log");
    let ask = async |edge: &Edge, path: &str| {
        let answer = client().get(edge.url("nobody.example", path)).send().await;
        assert_eq!(answer.expect("an answer").status(), 404);
    };
    ask(&edge, "/before").await;
    edge.wait_until("it is written", |_| lines(&log).len() == 1);
    fs::rename(&log, edge.path("access.log.1")).expect("rotated");
    edge.signal(Signal::HUP);
    edge.wait_until("there is a new file", |_| log.exists());
    ask(&edge, "/after").await;
    edge.signal(Signal::TERM);
    edge.wait_exit();
    assert_eq!(lines(&log).last().expect("a line")["path"], "/after");
    assert_eq!(lines(&edge.path("access.log.1")).len(), 1);
}
