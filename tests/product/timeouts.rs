//! Every timeout by its name, and what it must not cut.
//!
//! A timeout is shown by its coming: the bound of a wait is the harness's patience. That one does
//! not come is shown by work that outlasts it several times over.

use std::{fs, time::Duration};

use futures::{SinkExt as _, StreamExt as _};
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    guest::{self, Guest},
    h2 as http2,
    support::{Edge, PATIENCE, Setup, client, witnessed},
    wire::Wire,
};

/// The one that is short in a test; the others are far longer than any test.
fn with(timeout: &str, arguments: &str, more: &str) -> Edge {
    let toml = format!("[timeouts]\n{timeout} = \"1s\"\n");
    Setup::new().config(&toml).route("demo", &witnessed(arguments, more)).start()
}

/// Three times the short one.
const LONG: Duration = Duration::from_secs(3);

async fn awake(edge: &Edge) {
    let answer = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

// ## client_head

#[tokio::test(flavor = "multi_thread")]
async fn client_head_cuts_a_head_that_trickles() {
    let edge = with("client_head", "", "");
    let began = Instant::now();
    let wire = Wire::open(edge.http).await;
    let head = format!("GET / HTTP/1.1\r\nHost: alice.test\r\nX-Slow: {}", "x".repeat(100_000));
    let mut sent = 0;
    for byte in head.bytes() {
        if wire.0.try_write(&[byte]).is_err() {
            break;
        }
        sent += 1;
        sleep(Duration::from_millis(50)).await;
        assert!(began.elapsed() < PATIENCE, "it trickles on after {sent} bytes");
    }
    assert_eq!(edge.starts("alice.test"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_head_cuts_a_client_that_says_nothing_or_stops_within_a_preface() {
    let edge = with("client_head", "", "");
    for start in [&b""[..], b"G", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: alice.test\r\n"] {
        let said = Wire::sent(edge.http, start).await.rest().await;
        assert!(!said.contains(" 200 "), "{said}");
    }
    // A second head of a connection that is kept, in a trickle.
    let request = b"GET /whoami HTTP/1.1\r\nHost: alice.test\r\n\r\n";
    let mut wire = Wire::sent(edge.http, request).await;
    assert!(wire.until("}").await.contains(" 200 "));
    wire.send(b"GET /who").await;
    assert!(!wire.rest().await.contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_head_cuts_an_http2_connection_that_never_asks() {
    let edge = with("client_head", "", "");
    // The preface, empty SETTINGS, and no request.
    let mut begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begun.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let _ = Wire::sent(edge.http, &begun).await.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_head_does_not_cut_a_held_request() {
    let edge = with("client_head", "--listen-after 3s", "");
    let (one, two) = tokio::join!(
        client().get(edge.url("alice.test", "/whoami")).send(),
        client().post(edge.url("alice.test", "/upload")).body("x").send(),
    );
    assert_eq!(one.expect("an answer").status(), 200);
    assert_eq!(two.expect("an answer").status(), 200);
}

/// An open socket, a flowing stream, a slow upload and a slow download, each of them longer than
/// all timeouts that have to do with clients or with the instance's silence.
#[tokio::test(flavor = "multi_thread")]
async fn no_timeout_cuts_what_is_open_or_flows() {
    let edge = Setup::new()
        .config(
            "[timeouts]\nclient_head = \"1s\"\nclient_body = \"1s\"\nclient_idle = \"1s\"\n\
             answer = \"1s\"\nupstream_idle = \"1s\"\nconnect = \"1s\"\n",
        )
        .route("demo", &witnessed("", ""))
        .start();
    awake(&edge).await;
    tokio::join!(silent_socket(&edge), quiet_events(&edge), flowing_events(&edge));
    tokio::join!(slow_upload(&edge), slow_http2_upload(&edge), slow_reader(&edge));
    assert_eq!(edge.starts("alice.test"), 1);
}

async fn silent_socket(edge: &Edge) {
    let url = format!("ws://alice.test:{}/ws", edge.http.port());
    let socket = tokio::net::TcpStream::connect(edge.http).await.expect("a connection");
    let opened = tokio_tungstenite::client_async(url, socket).await;
    let (mut socket, _) = opened.expect("a WebSocket");
    sleep(LONG).await;
    socket.send(Message::text("still there")).await.expect("open");
    let echo = socket.next().await.expect("open").expect("a message");
    assert_eq!(echo, Message::text("still there"));
}

/// Silent for longer than every timeout: the answer says that it is a stream, whatever was asked for.
async fn quiet_events(edge: &Edge) {
    let http2 = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
    let http2 = http2.resolve("alice.test", edge.http).build().expect("a client");
    let url = edge.url("alice.test", "/sse?events=2&every_ms=3000");
    let asked = ["text/event-stream", "application/json, text/event-stream", "*/*"];
    let asked = asked.iter().flat_map(|accept| [(client(), *accept), (http2.clone(), *accept)]);
    let all = asked.map(|(client, accept)| {
        let request = client.get(&url).header("accept", accept);
        async move {
            let answer = request.send().await.expect("an answer");
            let text = answer.text().await.unwrap_or_else(|error| panic!("{accept}: {error}"));
            assert!(text.contains("event 1"), "{accept}: {text}");
        }
    });
    futures::future::join_all(all).await;
}

/// Not asked for in any special way.
async fn flowing_events(edge: &Edge) {
    let url = edge.url("alice.test", "/sse?events=30&every_ms=100");
    let text = client().get(url).send().await.expect("an answer").text().await;
    assert!(text.expect("it was cut").contains("event 29"));
}

async fn slow_upload(edge: &Edge) {
    let head = "POST /upload HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 30\r\n\r\n";
    let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
    for _ in 0..30 {
        wire.send(b"x").await;
        sleep(Duration::from_millis(100)).await;
    }
    let answer = wire.until("}").await;
    assert!(answer.contains(" 200 ") && answer.contains("\"bytes\":30"), "{answer}");
}

async fn slow_http2_upload(edge: &Edge) {
    let mut sender = http2::connect(edge.http).await;
    let request = http::Request::post("http://alice.test/upload").body(()).expect("a request");
    let (answer, mut upload) = sender.send_request(request, false).expect("sent");
    for _ in 0..30 {
        upload.send_data("x".into(), false).expect("sent");
        sleep(Duration::from_millis(100)).await;
    }
    upload.send_data("x".into(), true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
}

/// A client that reads slowly is not the instance's silence.
async fn slow_reader(edge: &Edge) {
    let bytes = 32 * 1024 * 1024;
    let url = edge.url("alice.test", &format!("/download?bytes={bytes}"));
    let mut answer = client().get(url).send().await.expect("an answer");
    let mut got = answer.chunk().await.expect("a chunk").expect("a chunk").len();
    sleep(LONG).await;
    while let Some(chunk) = answer.chunk().await.expect("it was cut") {
        got += chunk.len();
    }
    assert_eq!(got, bytes);
}

// ## client_body

#[tokio::test(flavor = "multi_thread")]
async fn client_body_cuts_an_upload_that_stalls() {
    let mut edge = with("client_body", "", "");
    awake(&edge).await;
    let head = "POST /upload HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 30\r\n\r\nxxx";
    let answer = Wire::sent(edge.http, head.as_bytes()).await.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(edge.metric(&["dormouse_refused_total", "body_timeout"]), 1.0);
    edge.wait_until("the lease is back", |edge| edge.session("alice.test")["leases"] == 0);
    awake(&edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_body_cuts_an_upload_that_stalls_also_after_a_hold() {
    let edge = with("client_body", "--listen-after 2s", "");
    let head = "POST /upload HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 30\r\n\r\nxxx";
    let answer = Wire::sent(edge.http, head.as_bytes()).await.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// Pingora has no timeout for the body of an HTTP/2 request: the instance's silence ends it.
#[tokio::test(flavor = "multi_thread")]
async fn answer_ends_an_http2_upload_that_stalls() {
    let mut edge = with("answer", "", "");
    edge.announce("silent");
    awake(&edge).await;
    let mut sender = http2::connect(edge.http).await;
    let request = http::Request::post("http://alice.test/upload").body(()).expect("a request");
    let (answer, mut upload) = sender.send_request(request, false).expect("sent");
    upload.send_data("xxx".into(), false).expect("sent");
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("it waits for ever");
    assert_eq!(answer.expect("an answer").status(), 504);
    edge.wait_until("the lease is back", |edge| edge.session("alice.test")["leases"] == 0);
}

/// The answer has begun: both sides may be as slow as they like.
#[tokio::test(flavor = "multi_thread")]
async fn client_body_is_not_for_a_stream_whose_answer_has_begun() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_body = \"1s\"\n")
        .route("demo", &guest::route(Guest::Recorder, ""))
        .start();
    let begun = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n";
    fs::write(edge.path("answer"), begun).expect("a file");
    let head = "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 8\r\n\r\nfour";
    let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
    assert!(wire.until("begun").await.starts_with("HTTP/1.1 200"));
    sleep(LONG).await;
    wire.send(b"more").await;
    edge.wait_until("the rest has arrived", |edge| {
        guest::recorded(edge, "alice.test").first().is_some_and(|all| all.ends_with("fourmore"))
    });
}

/// Nobody waits for the rest any more, but the lease would.
#[tokio::test(flavor = "multi_thread")]
async fn client_body_is_again_for_an_upload_whose_answer_has_ended() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_body = \"1s\"\n")
        .route("demo", &guest::route(Guest::Recorder, ""))
        .start();
    let head = "POST / HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 8\r\n\r\nfour";
    for answer in ["Content-Length: 0\r\n\r\n", "Content-Length: 5\r\n\r\nwhole"] {
        fs::write(edge.path("answer"), format!("HTTP/1.1 200 OK\r\n{answer}")).expect("a file");
        let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
        assert!(wire.rest().await.starts_with("HTTP/1.1 200 "));
        edge.wait_until("the lease is back", |edge| edge.session("alice.test")["leases"] == 0);
    }
}

// ## answer

#[tokio::test(flavor = "multi_thread")]
async fn answer_gives_a_silent_instance_up() {
    let mut edge = with("answer", "", "");
    edge.announce("silent");
    awake(&edge).await;
    let url = edge.url("alice.test", "/slow?ms=600000");
    let silent = client().get(&url).send().await.expect("an answer");
    assert_eq!(silent.status(), 504);
    assert_eq!(silent.headers()["content-type"], "application/problem+json");
    let mut sender = http2::connect(edge.http).await;
    let (answer, _) =
        sender.send_request(http2::get("alice.test", "/slow?ms=600000"), true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 504);
    awake(&edge).await;
    assert_eq!(edge.starts("alice.test"), 1, "it was given up, not ended");
    assert_eq!(edge.metric(&["dormouse_refused_total", "silent"]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_cuts_a_body_in_which_the_instance_falls_silent() {
    let mut edge = Setup::new()
        .config("[timeouts]\nanswer = \"1s\"\nclient_write = \"1s\"\n")
        .route("demo", &guest::route(Guest::Recorder, ""))
        .start();
    edge.announce("silent");
    let http2 = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
    let http2 = http2.resolve("alice.test", edge.http).build().expect("a client");
    let json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let mut cut = 0.0;
    for body in ["Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n", "\r\nbegun"] {
        fs::write(edge.path("answer"), format!("{json}{body}")).expect("a file");
        for client in [client(), http2.clone()] {
            // An `Accept` only hints at what comes.
            for accept in ["*/*", "text/event-stream"] {
                let url = edge.url("alice.test", "/");
                let answer = client.get(url).header("accept", accept).send().await;
                let answer = answer.expect("an answer");
                assert_eq!(answer.status(), 200);
                assert!(answer.text().await.is_err(), "a cut body must not look whole: {body:?}");
                cut += 1.0;
            }
        }
    }
    assert_eq!(edge.metric(&["dormouse_refused_total", "silent"]), cut, "not cut by the edge");
    edge.wait_until("the lease is back", |edge| edge.session("alice.test")["leases"] == 0);
}

// ## An edge that was stopped

/// What it missed is nobody's fault. The pause is the absence itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_was_stopped_charges_its_absence_to_nobody() {
    let edge = Setup::new()
        .config(
            "[timeouts]\nclient_head = \"2s\"\nclient_body = \"2s\"\nanswer = \"2s\"\n\
             client_body_grace = \"2s\"\n",
        )
        .route("demo", &witnessed("", ""))
        .start();
    awake(&edge).await;
    let upload = "POST /upload HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 4\r\n\r\n";
    let get = "GET /whoami HTTP/1.1\r\nHost: alice.test\r\n\r\n";
    let slow = "GET /slow?ms=1000 HTTP/1.1\r\nHost: alice.test\r\n\r\n";
    let parts = [(get, &get[..20]), (upload, &upload[..upload.len() - 4]), (slow, slow)];
    let mut open = Vec::new();
    for (whole, part) in parts {
        open.push((Wire::sent(edge.http, part.as_bytes()).await, &whole[part.len()..]));
    }
    let mut body = Wire::sent(edge.http, format!("{upload}ab").as_bytes()).await;
    // All of them are under way when it stops.
    awake(&edge).await;
    edge.signal(rustix::process::Signal::STOP);
    sleep(Duration::from_secs(7)).await;
    edge.signal(rustix::process::Signal::CONT);
    awake(&edge).await;
    for (wire, rest) in &mut open {
        wire.send(rest.as_bytes()).await;
        if rest.len() == 4 {
            wire.send(b"abcd").await;
        }
    }
    body.send(b"cd").await;
    for wire in open.into_iter().map(|(wire, _)| wire).chain([body]) {
        let mut wire = wire;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}

// ## connect

/// Waits with its queue full: the kernel drops what else wants to connect.
#[tokio::test(flavor = "multi_thread")]
async fn connect_gives_up_on_an_instance_that_accepts_nothing() {
    let mut edge = Setup::new()
        .config("[timeouts]\nconnect = \"1s\"\n")
        .route("demo", &guest::route(Guest::Stuck, ""))
        .start();
    edge.announce("not_listening");
    let (status, session) = edge.admin_post("/v1/sessions/alice.test/wake");
    assert_eq!(status, 200);
    let address = session["session"]["address"].as_str().expect("an address").to_owned();
    fs::write(edge.path("deaf"), "").expect("a file");
    edge.wait_until("it is stuck", |edge| edge.path("stuck").exists());
    let _queue = guest::fill_queue(&address).await;
    let answer = client().get(edge.url("alice.test", "/")).send().await.expect("an answer");
    assert_eq!(answer.status(), 502);
    assert_eq!(edge.starts("alice.test"), 1, "it runs: no reason to wake it again");
    assert_eq!(edge.metric(&["dormouse_refused_total", "not_listening"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_gives_up_on_an_instance_that_has_closed_its_socket_and_lives() {
    let mut edge = Setup::new()
        .config("[timeouts]\nconnect = \"1s\"\n")
        .route("demo", &guest::route(Guest::Closing, ""))
        .start();
    edge.announce("not_listening");
    assert_eq!(edge.admin_post("/v1/sessions/alice.test/wake").0, 200);
    fs::write(edge.path("deaf"), "").expect("a file");
    edge.wait_until("it has closed its socket", |edge| edge.path("closed").exists());
    for _ in 0..2 {
        let answer = client().get(edge.url("alice.test", "/")).send().await.expect("an answer");
        assert_eq!(answer.status(), 502);
    }
    assert_eq!(edge.starts("alice.test"), 1, "it runs: no reason to wake it again");
    assert_eq!(edge.metric(&["dormouse_wakes_total"]), 1.0);
    edge.wait_until("the leases are back", |edge| edge.session("alice.test")["leases"] == 0);
}

// ## client_idle, upstream_idle

#[tokio::test(flavor = "multi_thread")]
async fn client_idle_closes_a_connection_without_a_request() {
    let edge = with("client_idle", "", "");
    let request = b"GET /whoami HTTP/1.1\r\nHost: alice.test\r\n\r\n";
    let mut wire = Wire::sent(edge.http, request).await;
    assert!(wire.until("}").await.contains(" 200 "));
    // Kept for now.
    wire.send(request).await;
    assert!(wire.until("}").await.contains(" 200 "));
    assert_eq!(wire.rest().await, "");

    let mut sender = http2::connect(edge.http).await;
    let (answer, _) = sender.send_request(http2::get("alice.test", "/whoami"), true).expect("sent");
    drop(answer.await.expect("an answer"));
    let mut edge = edge;
    edge.wait_until("both connections are closed", |edge| {
        edge.metric(&["dormouse_connections "]) == 0.0
    });
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_idle_closes_a_connection_that_is_kept_for_the_next_request() {
    let mut edge = with("upstream_idle", "", "");
    awake(&edge).await;
    let port = edge.session("alice.test")["address"].as_str().expect("an address").to_owned();
    let port: u16 = port.rsplit(':').next().expect("a port").parse().expect("a port");
    let kept = || {
        let tcp = procfs::net::tcp().expect("/proc/net/tcp");
        let established = procfs::net::TcpState::Established;
        tcp.iter().filter(|s| s.remote_address.port() == port && s.state == established).count()
    };
    assert_eq!(kept(), 1, "it is kept for the next request");
    edge.wait_until("it is closed", |_| kept() == 0);
    awake(&edge).await;
}
