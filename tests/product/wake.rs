//! The first request, and many at once; wakes that fail, and requests that wake nothing.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    hold::{Raw, gated, open_gate},
    support::{Edge, PATIENCE, Setup, blocking, client, witnessed},
};

/// How many processes of instances of this edge there are.
fn instances(dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let marked = |environ: std::collections::HashMap<_, _>| {
        let mark: Option<&std::ffi::OsString> = environ.get(std::ffi::OsStr::new("TEST_DIR"));
        mark.is_some_and(|mark| mark.to_string_lossy() == dir)
    };
    let all = procfs::process::all_processes().expect("/proc").flatten();
    all.filter(|process| process.environ().is_ok_and(marked)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_get_wakes_and_is_answered() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let answer = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let timing = answer.headers()["server-timing"].to_str().expect("text").to_owned();
    for part in ["hold;dur=", "engine;dur=", "ready;dur=", "connect;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    let who: Value = answer.json().await.expect("JSON");
    assert_eq!(who["session"], "alice.test");

    let warm = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert!(!warm.headers().contains_key("server-timing"), "a warm answer carries none");
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_gets_are_one_start() {
    let edge = Setup::new().route("demo", &witnessed("--listen-after 300ms", "")).start();
    let client = client();
    let gets = (0..100).map(|_| client.get(edge.url("alice.test", "/whoami")).send());
    for answer in join_all(gets).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_wake_side_by_side() {
    let both = "; touch $DORMOUSE_SESSION; \
                until [ -e alice.test ] && [ -e bob.test ]; do sleep 0.01; done; exec ";
    let route = witnessed("", "").replacen("; exec ", both, 1);
    let edge = Setup::new().route("demo", &route).start();
    let client = client();
    let get = |host| client.get(edge.url(host, "/whoami")).send();
    // Neither gets ready before the other one has started too.
    for answer in join_all([get("alice.test"), get("bob.test")]).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_runs_before_it_listens_is_waited_for() {
    let probes = [("tcp", "probe = \"tcp\""), ("engine", "probe = \"engine\"")];
    let mut setup = Setup::new();
    for (name, probe) in probes {
        let route = gated("").replace("probe = \"http\"\npath = \"/healthz\"", probe);
        setup = setup.route(name, &route.replace("{session}.test", &format!("{name}.test")));
    }
    let mut edge = setup.route("http", &gated("")).start();
    let client = client();
    for host in ["tcp.test", "engine.test", "http.test"] {
        let mut asked = JoinSet::new();
        asked.spawn(client.get(edge.url(host, "/whoami")).send());
        edge.wait_until("it runs", |edge| edge.session(host)["phase"] == "getting ready");
        assert!(asked.try_join_next().is_none(), "{host}: held while nobody listens");
        open_gate(&edge, host);
        assert_eq!(asked.join_all().await.remove(0).expect("an answer").status(), 200, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_listens_late_is_no_502() {
    let http = "probe = \"http\"\npath = \"/healthz\"";
    for probe in ["probe = \"tcp\"", "probe = \"engine\"", http] {
        let route = witnessed("--listen-after 800ms", "").replace(http, probe);
        let edge = Setup::new().route("demo", &route).start();
        let answer = client().get(edge.url("alice.test", "/whoami")).send().await;
        assert_eq!(answer.expect("an answer").status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_never_gets_ready_is_a_504_cleaned_up_and_cools_down() {
    let wake = "[wake]\ntimeout = \"3s\"\nboot_max = \"0s\"\n";
    let route = witnessed("$(test -e broken && echo --never-ready)", wake);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    fs::write(edge.path("broken"), "").expect("broken");
    let client = client();
    let get = || client.get(edge.url("alice.test", "/whoami")).send();
    let began = Instant::now();
    for answer in join_all((0..50).map(|_| get())).await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 504);
        assert_eq!(answer.headers()["retry-after"], "1");
        let problem: Value = answer.json().await.expect("JSON");
        assert_eq!(problem["type"], "urn:dormouse:wake_timeout");
        let detail = problem["detail"].to_string();
        assert!(detail.contains("It was getting ready when its time was over"), "{problem}");
    }
    assert!(began.elapsed() < Duration::from_secs(21), "in time");

    let again = get().await.expect("an answer");
    assert_eq!(again.status(), 503);
    assert_eq!(again.headers()["retry-after"], "1");
    let problem: Value = again.json().await.expect("JSON");
    assert_eq!(problem["type"], "urn:dormouse:cooling_down");
    let (url, dir) = (edge.url("alice.test", "/whoami"), edge.dir.path().to_owned());
    edge.wait_state("alice.test", "asleep");
    assert_eq!(instances(&dir), 0, "what was half started is gone");
    assert_eq!(edge.starts("alice.test"), 1);

    fs::remove_file(edge.path("broken")).expect("not broken");
    edge.wait_until("the cooldown is over", |_| {
        let status = blocking(client.get(&url).send()).expect("an answer").status();
        assert!([200, 503].contains(&status.as_u16()), "{status}");
        status == 200
    });
    assert_eq!(edge.starts("alice.test"), 2);
}

/// Far beyond a test's patience: whoever waits for it fails.
const NEVER: &str = "[wake]\ntimeout = \"10m\"\n";

/// One request for a session that cannot start: told at once, and nothing internal.
async fn refused_at_once(edge: &Edge, internal: &[&str]) -> u16 {
    let answer = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    let status = answer.status().as_u16();
    let headers = format!("{:?}", answer.headers());
    let text = headers + &answer.text().await.expect("text");
    assert!(text.contains("application/problem+json"), "{text}");
    for part in internal {
        assert!(!text.contains(part), "`{part}` is nobody's business: {text}");
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_exits_at_once_is_told_at_once() {
    let route = witnessed("", NEVER).replacen("; exec ", "; exit 3; ", 1);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    assert_eq!(refused_at_once(&edge, &["exit", "/bin/sh", "127.0.0.1", "process"]).await, 502);
    edge.wait_state("alice.test", "asleep");
    let session = edge.session("alice.test");
    let error = session["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("ended"), "the operator sees why: {session}");
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_missing_is_told_at_once() {
    let route = format!(
        "host = \"{{session}}.test\"\n[instance]\ncommand = [\"/nowhere/to-be-found\"]\n{NEVER}"
    );
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("the program /nowhere/to-be-found does not exist");
    assert_eq!(refused_at_once(&edge, &["nowhere", "found", "process"]).await, 502);
    assert_eq!(refused_at_once(&edge, &["nowhere"]).await, 503, "it cools down");
    edge.wait_state("alice.test", "asleep");
    let session = edge.session("alice.test");
    let error = session["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("/nowhere/to-be-found"), "the operator sees why: {session}");
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_clients_ask_failing_wakes_are_few() {
    let route = witnessed("", NEVER).replacen("; exec ", "; exit 1; ", 1);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    let began = Instant::now();
    while edge.starts("alice.test") < 3 {
        assert!(began.elapsed() < PATIENCE, "cooldowns end");
        let asked = (0..10).map(|_| refused_at_once(&edge, &[]));
        for status in join_all(asked).await {
            assert!(matches!(status, 502 | 503), "{status}");
        }
    }
    // After n failures the cooldown is 2^(n-1) s, so that n starts take 2^(n-1) - 1 s in all.
    let starts = u32::try_from(edge.starts("alice.test")).expect("few");
    let least = Duration::from_secs(2_u64.pow(starts - 1) - 1);
    assert!(least <= began.elapsed(), "{starts} starts within {:?}", began.elapsed());
    edge.wait_state("alice.test", "asleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_failing_wakes_are_ten_starts() {
    let route = witnessed("", NEVER).replacen("; exec ", "; exit 1; ", 1);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    for wakes in 1..=10 {
        // An operator does not wait for the cooldown.
        let (status, _) = edge.admin_post("/v1/sessions/alice.test/wake");
        assert_eq!(status, 502);
        assert_eq!(refused_at_once(&edge, &[]).await, 503, "a client does");
        edge.wait_until("it has failed", |edge| {
            edge.starts("alice.test") == wakes && edge.state("alice.test") == "asleep"
        });
    }
    assert_eq!(edge.starts("alice.test"), 10);
    let cooldown = edge.session("alice.test")["cooldown_ms"].as_u64().expect("it cools down");
    assert!((30_000..=60_000).contains(&cooldown), "it has doubled up to its most: {cooldown}");
    assert_eq!(instances(edge.dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_route_is_a_404_and_nothing_else() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    for host in ["nobody.example", "a.b.test", "test"] {
        let answer = client().get(edge.url(host, "/")).send().await.expect("an answer");
        assert_eq!(answer.status(), 404, "{host}");
        let problem: Value = answer.json().await.expect("JSON");
        assert_eq!(problem["type"], "urn:dormouse:no_such_host");
    }
    nothing_woke(&edge);
}

/// Zero engine calls, told by the edge and by the instances; no session is remembered.
fn nothing_woke(edge: &Edge) {
    assert_eq!(edge.metric(&["dormouse_wakes_total"]), 0.0);
    assert_eq!(edge.metric(&["dormouse_sleeps_total"]), 0.0);
    assert!(!edge.path("starts").exists());
    assert_eq!(edge.admin_get("/v1/sessions")["total"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_must_name_exactly_one_host() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let bad = [
        "GET / HTTP/1.1\r\nhost: alice.test\r\nhost: bob.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: alice.test\r\nhost: alice.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: alice test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: alice.test, bob.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: alice.test/bob\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: bob@alice.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: alice.test:port\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: \u{e4}lice.test\r\n\r\n",
        "GET http://alice.test/ HTTP/1.1\r\nhost: bob.test\r\n\r\n",
        "GET http://alice.test/ HTTP/1.1\r\nhost: alice.test\r\nhost: alice.test\r\n\r\n",
        "GET http://bob@alice.test/ HTTP/1.1\r\nhost: alice.test\r\n\r\n",
    ];
    for request in bad {
        let mut raw = Raw::connect(edge.http).await;
        raw.send(request).await;
        let (head, body) = raw.answer().await;
        let status = head.split(' ').nth(1);
        assert_eq!(status, Some("400"), "{request:?}: {head}");
        assert!(!body.contains("bob") && !body.contains("alice"), "{body}");
    }
    nothing_woke(&edge);
    let good = [
        "GET /whoami HTTP/1.1\r\nhost: ALICE.test.:8080\r\n\r\n",
        "GET http://alice.test/whoami HTTP/1.1\r\nhost: alice.test\r\n\r\n",
    ];
    for request in good {
        let mut raw = Raw::connect(edge.http).await;
        raw.send(request).await;
        let (head, body) = raw.answer().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{request:?}: {head}");
        assert!(body.contains("\"session\":\"alice.test\""), "{body}");
    }
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_navigates_gets_a_page_and_who_does_not_a_problem() {
    type Headers<'h> = &'h [(&'h str, &'h str)];
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let cases: [(&str, Headers, bool); 9] = [
        ("GET", &[("sec-fetch-mode", "navigate"), ("accept", browser)], true),
        ("GET", &[("sec-fetch-mode", "navigate"), ("accept", "*/*")], true),
        ("GET", &[("accept", browser)], true),
        ("GET", &[("accept", browser), ("user-agent", "curl/8")], true),
        ("GET", &[("sec-fetch-mode", "cors"), ("accept", browser)], false),
        ("GET", &[("accept", "*/*"), ("user-agent", "Mozilla/5.0")], false),
        ("GET", &[("accept", "application/json, text/html;q=0.5")], false),
        ("GET", &[], false),
        ("POST", &[("sec-fetch-mode", "navigate"), ("accept", browser)], false),
    ];
    for (method, headers, page) in cases {
        let method = method.parse().expect("a method");
        let mut request = client().request(method, edge.url("nobody.example", "/"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.header("x-request-id", "mine-1").send().await.expect("an answer");
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.headers()["x-request-id"], "mine-1");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        let text = answer.text().await.expect("text");
        if page {
            assert_eq!(kind, "text/html; charset=utf-8", "{headers:?}");
            assert!(text.starts_with("<!doctype html>"), "{text}");
        } else {
            assert_eq!(kind, "application/problem+json", "{headers:?}");
            let problem: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(problem["status"], 404);
            assert_eq!(problem["request_id"], "mine-1");
        }
        assert!(text.contains("No such host") && text.contains("mine-1"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_harmful_request_id_is_replaced() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    for given in ["<script>", "", "a b", &"x".repeat(129)] {
        let request = client().get(edge.url("nobody.example", "/")).header("accept", "text/html");
        let answer = request.header("x-request-id", given).send().await.expect("an answer");
        let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
        assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
        assert!(answer.text().await.expect("text").contains(&id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_or_closed_as_the_client_was_told() {
    let route = witnessed("", NEVER).replacen("; exec ", "; exit 1; ", 1);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    let cases = [("nobody.example", "404", true), ("alice.test", "502", false)];
    for (host, status, kept) in cases {
        let mut raw = Raw::connect(edge.http).await;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        raw.send(&request).await;
        let (head, _) = raw.answer().await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
        assert_eq!(head.to_lowercase().contains("connection: close"), !kept, "{head}");
        if kept {
            raw.send(&request).await;
        }
        assert_eq!(!raw.until("\r\n\r\n").await.is_empty(), kept, "{host}");
    }
    edge.wait_state("alice.test", "asleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_large_body_to_a_session_that_fails_reads_why() {
    const SIZE: usize = 20 * 1024 * 1024;
    let route = witnessed("", NEVER).replacen("; exec ", "; exit 1; ", 1);
    let mut edge = Setup::new().route("demo", &route).start();
    edge.announce("wake failed");
    for (host, status) in [("alice.test", "502"), ("alice.test", "503"), ("nobody.example", "404")]
    {
        if status == "503" {
            // Cooldowns double: now one that outlasts a large body.
            for _ in 0..5 {
                assert_eq!(edge.admin_post(&format!("/v1/sessions/{host}/wake")).0, 502);
            }
        }
        let mut raw = Raw::connect(edge.http).await;
        let head =
            format!("POST /upload HTTP/1.1\r\nhost: {host}\r\ncontent-length: {SIZE}\r\n\r\n");
        raw.send(head).await;
        // A client that reads only when it has sent all.
        raw.send(vec![b'x'; SIZE]).await;
        let (head, body) = raw.answer().await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
        assert!(head.to_lowercase().contains("connection: close"), "{head}");
        assert!(body.contains("urn:dormouse:"), "{body}");
    }
    edge.wait_state("alice.test", "asleep");
}
