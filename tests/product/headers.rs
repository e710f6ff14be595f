//! What the edge does to headers on their way.

use reqwest::{RequestBuilder, header::HeaderMap};

use crate::{
    guest::{self, Guest},
    support::{Edge, Setup, client, witnessed},
    wire::Wire,
};

fn edge(more: &str) -> Edge {
    Setup::new().route("demo", &witnessed("", more)).start()
}

/// A client that speaks HTTP/2 from its first byte.
fn http2(edge: &Edge) -> reqwest::Client {
    let builder = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
    builder.resolve("alice.test", edge.http).build().expect("a client")
}

/// The headers with which a request reaches the instance.
async fn arrived(request: RequestBuilder) -> Vec<(String, String)> {
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.json().await.expect("JSON")
}

fn all<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn for_whom_it_forwards_is_said_by_the_edge_alone() {
    let edge = edge("");
    let mut forged = HeaderMap::new();
    for name in [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-server",
        "forwarded",
        "x-real-ip",
    ] {
        forged.append(name, "6.6.6.6".parse().expect("a value"));
        forged.append(name, "for=6.6.6.6;host=evil.test".parse().expect("a value"));
    }
    let url = edge.url("alice.test", "/headers");
    for client in [client(), http2(&edge)] {
        let headers = arrived(client.get(&url).headers(forged.clone())).await;
        assert_eq!(all(&headers, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
        let host = format!("alice.test:{}", edge.http.port());
        assert_eq!(all(&headers, "x-forwarded-host"), [&host]);
        let forwarded = format!("for=127.0.0.1;host=\"{host}\";proto=http");
        assert_eq!(all(&headers, "forwarded"), [forwarded]);
        assert!(!format!("{headers:?}").contains("6.6.6.6"), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_reaches_the_instance_as_the_client_wrote_it() {
    let edge = edge("");
    let url = edge.url("alice.test", "/headers");
    for client in [client(), http2(&edge)] {
        let headers = arrived(client.get(&url)).await;
        assert_eq!(all(&headers, "host"), [format!("alice.test:{}", edge.http.port())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_harmless_request_id_is_kept_and_said_to_both_sides() {
    let edge = edge("");
    let url = edge.url("alice.test", "/headers");
    let longest = "x".repeat(128);
    for id in ["a", "3f2a-B_9.z", &longest] {
        let answer = client().get(&url).header("x-request-id", id).send().await.expect("an answer");
        assert_eq!(answer.headers()["x-request-id"], id);
        let headers: Vec<(String, String)> = answer.json().await.expect("JSON");
        assert_eq!(all(&headers, "x-request-id"), [id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_request_id_is_replaced() {
    let edge = edge("");
    let url = edge.url("alice.test", "/headers");
    let long = "x".repeat(129);
    let strange: [&[u8]; 6] =
        [b"", long.as_bytes(), b"two words", b"a\"b", b"<script>", b"\xc3\xa9t\xc3\xa9"];
    for id in strange {
        let value = reqwest::header::HeaderValue::from_bytes(id).expect("a value");
        let request = client().get(&url).header("x-request-id", &value);
        let answer = request.send().await.expect("an answer");
        let ours = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
        assert_eq!(ours.len(), 36, "{ours}");
        assert_ne!(ours.as_bytes(), id);
        let headers: Vec<(String, String)> = answer.json().await.expect("JSON");
        assert_eq!(all(&headers, "x-request-id"), [ours]);
    }
    // Also where the edge answers by itself.
    let nowhere = client().get(edge.url("nowhere.example", "/")).header("x-request-id", "<script>");
    let nowhere = nowhere.send().await.expect("an answer");
    assert_eq!(nowhere.status(), 404);
    assert_eq!(nowhere.headers()["x-request-id"].len(), 36);
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_headers_end_at_the_edge() {
    let edge = edge("");
    let url = edge.url("alice.test", "/headers");
    let request = client()
        .get(&url)
        .header("connection", "keep-alive, x-nominated, X-Other")
        .header("x-nominated", "1")
        .header("x-other", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic c2VjcmV0")
        .header("te", "gzip, deflate;q=0.5")
        .header("x-kept", "1");
    let headers = arrived(request).await;
    for name in [
        "x-nominated",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "upgrade",
    ] {
        assert!(all(&headers, name).is_empty(), "{name} in {headers:?}");
    }
    assert!(!format!("{:?}", all(&headers, "connection")).contains("nominated"), "{headers:?}");
    assert_eq!(all(&headers, "x-kept"), ["1"]);

    let trailers = arrived(client().get(&url).header("te", "gzip, trailers")).await;
    assert_eq!(all(&trailers, "te"), ["trailers"], "trailers may be asked for");

    // An `Upgrade` that `Connection` does not name asks for no upgrade.
    let stray = arrived(client().get(&url).header("upgrade", "websocket")).await;
    assert!(all(&stray, "upgrade").is_empty(), "{stray:?}");
    // Nor does the edge open a way past itself: HTTP/2 in an upgraded connection would be one.
    let h2c = client().get(&url).header("connection", "Upgrade, HTTP2-Settings");
    let h2c = h2c.header("upgrade", "h2c").header("http2-settings", "AAMAAABkAAQAAP__");
    let h2c = arrived(h2c).await;
    assert!(all(&h2c, "upgrade").is_empty() && all(&h2c, "http2-settings").is_empty(), "{h2c:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_headers_reach_the_instance_over_the_clients_own() {
    let edge = edge(
        "[upstream]\nset_headers = { Authorization = \"Bearer of-{session}\", \
         x-set = \"{session}/{{x}}\" }\n",
    );
    let url = edge.url("alice.test", "/headers");
    let mut own = HeaderMap::new();
    own.append("authorization", "Bearer mine".parse().expect("a value"));
    own.append("authorization", "Bearer mine too".parse().expect("a value"));
    for client in [client(), http2(&edge)] {
        let headers = arrived(client.get(&url).headers(own.clone())).await;
        assert_eq!(all(&headers, "authorization"), ["Bearer of-alice"]);
        assert_eq!(all(&headers, "x-set"), ["alice/{x}"]);
    }
    let bob = arrived(client().get(edge.url("bob.test", "/headers"))).await;
    assert_eq!(all(&bob, "authorization"), ["Bearer of-bob"]);
    // A client cannot have one taken off by naming it in `Connection`.
    let nominated = client().get(&url).header("connection", "authorization, x-set");
    let headers = arrived(nominated).await;
    assert_eq!(all(&headers, "authorization"), ["Bearer of-alice"]);
    assert_eq!(all(&headers, "x-set"), ["alice/{x}"]);
    let shown = format!("{}{}", edge.admin_get("/v1/routes"), edge.session("alice.test"));
    assert!(!shown.contains("Bearer"), "{shown}");
    assert_eq!(edge.log_count(&["Bearer"]), 0, "a secret in the log");
}

/// KasmVNC, among others, looks for `Authorization: ` letter by letter.
#[tokio::test(flavor = "multi_thread")]
async fn names_reach_the_instance_as_they_were_spelled() {
    let more = "[upstream]\nset_headers = { Authorization = \"Bearer x\" }\n";
    let edge = Setup::new().route("demo", &guest::route(Guest::Recorder, more)).start();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    std::fs::write(edge.path("answer"), answer).expect("a file");
    let head = "GET / HTTP/1.1\r\nHost: alice.test\r\nX-oDd: 1\r\nConnection: close\r\n\r\n";
    let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
    assert!(wire.rest().await.starts_with("HTTP/1.1 200 "));
    let arrived = guest::recorded(&edge, "alice.test").concat();
    for name in [
        "X-oDd",
        "Authorization",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Request-Id",
    ] {
        assert!(arrived.contains(&format!("\r\n{name}: ")), "{name} is not in {arrived}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wake_is_timed_once() {
    let mut edge = edge("[idle]\nafter = \"100ms\"\nmin_awake = \"0s\"\n");
    let url = edge.url("alice.test", "/whoami");
    let client = client();
    for _ in 0..2 {
        let held = client.get(&url).send().await.expect("an answer");
        assert_eq!(held.headers().get_all("server-timing").iter().count(), 1);
        edge.wait_state("alice.test", "asleep");
    }
    // While a stream keeps it awake, whatever comes was not held.
    let stream = client.get(edge.url("alice.test", "/sse?every_ms=10")).send().await;
    let stream = stream.expect("an answer");
    assert!(stream.headers().contains_key("server-timing"));
    let warm = client.get(&url).send().await.expect("an answer");
    assert!(!warm.headers().contains_key("server-timing"));
    drop(stream);
}
