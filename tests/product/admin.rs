//! The admin API of an edge that runs.

use std::collections::BTreeMap;

use crate::{
    support::{Edge, Setup, client, witnessed},
    wire::Wire,
};

fn edge() -> Edge {
    Setup::new().route("demo", &witnessed("", "")).start()
}

async fn status(edge: &Edge, request: String) -> u16 {
    let head = Wire::sent(edge.admin, request.as_bytes()).await.head().await;
    let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {head:?}"));
    status.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_cannot_be_talked_into_the_admin_api() {
    let edge = edge();
    let own = edge.admin.to_string();
    let ask = async |method: &str, path: &str, host: &str, more: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}");
        status(&edge, head + "Content-Length: 0\r\nConnection: close\r\n\r\n").await
    };
    let wake = "/v1/sessions/alice.test/wake";
    for host in ["evil.test", "alice.test", "10.0.0.1", "localhost.evil.test", ""] {
        for path in ["/v1/sessions", "/metrics", "/healthz"] {
            let got = ask("GET", path, host, "").await;
            assert!(matches!(got, 400 | 403), "{host:?} {path}: {got}");
        }
        assert!(matches!(ask("POST", wake, host, "").await, 400 | 403), "{host:?}");
    }
    for more in [
        "Origin: http://evil.test\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        assert_eq!(ask("POST", wake, &own, more).await, 403, "{more}");
        assert_eq!(ask("GET", "/v1/sessions", &own, more).await, 403, "{more}");
    }
    assert_eq!(edge.starts("alice.test"), 0, "a refused request has woken it");
    let same = format!("Origin: http://{own}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(ask("POST", wake, &own, &same).await, 200);
    let localhost = format!("localhost:{}", edge.admin.port());
    assert_eq!(ask("GET", "/v1/sessions", &localhost, "").await, 200);
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_is_not_on_the_public_listener() {
    let edge = edge();
    for path in ["/metrics", "/v1/sessions", "/healthz", "/readyz"] {
        let url = format!("http://{}{path}", edge.http);
        assert_eq!(client().get(url).send().await.expect("an answer").status(), 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_only_its_bearer_gets_in() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("token");
    std::fs::write(&file, "a-secret-of-many-letters\n").expect("a file");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private).expect("permissions");
    let edge = Setup::new()
        .config(&format!("[admin]\ntoken_file = {file:?}\n"))
        .route("demo", &witnessed("", ""))
        .start();
    let get = async |path: &str, token: &str| {
        let url = format!("http://{}{path}", edge.admin);
        let request = client().get(url).header("authorization", token);
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(get("/v1/sessions", "").await, 401);
    assert_eq!(get("/metrics", "Bearer a-secret-of-many-letter").await, 401);
    assert_eq!(get("/metrics", "Bearer a-secret-of-many-letters").await, 200);
    assert_eq!(get("/readyz", "").await, 200);
    assert_eq!(edge.log_count(&["a-secret"]), 0, "a secret in the log");
}

/// The Prometheus text format, as its specification says it: `# HELP` and `# TYPE` before the
/// samples of a family, every line a sample with a number, no sample twice.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let mut families = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned(), kind).is_none(), "twice: {line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').is_some_and(|(_, help)| help.ends_with('.')), "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().expect("a name");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|family| families.get(*family) == Some(&"histogram"))
            .unwrap_or(name);
        assert!(families.contains_key(family), "no TYPE before {line}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        assert_eq!(sample.contains('{'), sample.ends_with('}'), "{line}");
        let value = value.parse().expect("a number");
        assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
    }
    samples
}

async fn metrics(edge: &Edge) -> BTreeMap<String, f64> {
    let answer = client().get(format!("http://{}/metrics", edge.admin)).send().await;
    let answer = answer.expect("an answer");
    let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    parsed(&answer.text().await.expect("text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_prometheus_text_and_tell_what_happened() {
    let mut edge = edge();
    let before = metrics(&edge).await;
    assert_eq!(before["dormouse_routes"], 1.0);
    for host in ["alice.test", "alice.test", "bob.test", "nowhere.example"] {
        client().get(edge.url(host, "/whoami")).send().await.expect("an answer");
    }
    // A request is counted after its last byte was sent, and gives its lease back after that.
    edge.wait_until("all are counted", |edge| edge.metric(&["dormouse_requests_total"]) == 4.0);
    edge.wait_until("no lease is left", |edge| {
        ["alice.test", "bob.test"].iter().all(|host| edge.session(host)["leases"] == 0)
    });
    let after = metrics(&edge).await;
    assert_eq!(after["dormouse_requests_total{class=\"2xx\"}"], 3.0);
    assert_eq!(after["dormouse_requests_total{class=\"4xx\"}"], 1.0);
    assert_eq!(after["dormouse_refused_total{reason=\"no_such_host\"}"], 1.0);
    assert_eq!(after["dormouse_wakes_total{engine=\"local\",result=\"ok\"}"], 2.0);
    assert_eq!(after["dormouse_hold_seconds_count"], 2.0);
    assert_eq!(after["dormouse_held_requests"], 0.0);
    assert_eq!(after["dormouse_sessions{state=\"idle\"}"], 2.0);
    let bounds = after.keys().filter(|k| k.starts_with("dormouse_hold_seconds_bucket")).count();
    assert!(1 < bounds);
    assert_eq!(after["dormouse_hold_seconds_bucket{le=\"+Inf\"}"], 2.0);
    let named = after.keys().any(|k| ["alice", "bob", "nowhere"].iter().any(|n| k.contains(n)));
    assert!(!named, "a session's name in a metric");
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_says_whether_it_serves_and_the_api_what_it_has() {
    let mut edge = edge();
    for path in ["/healthz", "/readyz"] {
        let answer = client().get(format!("http://{}{path}", edge.admin)).send().await;
        assert_eq!(answer.expect("an answer").text().await.expect("text"), "ok\n");
    }
    assert_eq!(edge.admin_get("/v1/routes")["routes"][0]["name"], "demo");
    assert_eq!(edge.admin_get("/v1/sessions")["total"], 0);
    assert_eq!(edge.admin_post("/v1/sessions/alice.test/wake").0, 200);
    assert_eq!(edge.state("alice.test"), "idle");
    assert_eq!(edge.admin_post("/v1/sessions/alice.test/sleep").0, 202);
    edge.wait_state("alice.test", "asleep");
    assert_eq!(edge.admin_post("/v1/sessions/nowhere.example/wake").0, 404);
}
