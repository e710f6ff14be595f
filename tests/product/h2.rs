//! HTTP/2 in cleartext from the client's first byte, and HTTP/1.0, which is told from it.

#![expect(clippy::disallowed_methods, reason = "a connection ends with its test")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use h2::client::SendRequest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use crate::{
    hold::{gated, open_gate},
    support::{Edge, Setup, witnessed},
    wire::Wire,
};

const MIB: usize = 1024 * 1024;

fn edge(arguments: &str) -> Edge {
    Setup::new().route("demo", &witnessed(arguments, "")).start()
}

/// One connection, on which every host can be asked.
pub(crate) async fn connect(edge: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(edge).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::spawn(async move {
        // Ends when the last request and the sender are gone.
        let _ = connection.await;
    });
    sender.ready().await.expect("it is ready")
}

pub(crate) fn get(host: &str, path: &str) -> http::Request<()> {
    http::Request::get(format!("http://{host}{path}")).body(()).expect("a request")
}

pub(crate) async fn body(mut answer: h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.expect("a chunk");
        answer.flow_control().release_capacity(chunk.len()).expect("released");
        all.extend_from_slice(&chunk);
    }
    all
}

fn client(edge: &Edge, host: &str) -> reqwest::Client {
    let builder = reqwest::Client::builder().http2_prior_knowledge().no_proxy();
    builder.resolve(host, edge.http).build().expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_one_connection_wake_several_sessions() {
    let mut edge = edge("--listen-after 200ms");
    let mut sender = connect(edge.http).await;
    let mut answers = Vec::new();
    for number in 0..90 {
        let host = format!("s{}.test", number % 3);
        sender = sender.ready().await.expect("it is ready");
        let (answer, _) = sender.send_request(get(&host, "/whoami"), true).expect("sent");
        answers.push(async move {
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let who: Value = serde_json::from_slice(&body(answer.into_body()).await).expect("JSON");
            assert_eq!(who["session"], host, "another session's answer");
        });
    }
    join_all(answers).await;
    for host in ["s0.test", "s1.test", "s2.test"] {
        assert_eq!(edge.starts(host), 1);
        edge.wait_until("no lease is left", |edge| edge.session(host)["leases"] == 0);
    }
    edge.wait_until("one connection is open", |edge| {
        edge.metric(&["dormouse_connections "]) == 1.0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_byte_exact_both_ways() {
    let edge = edge("");
    let sent: Vec<u8> = (0..24 * MIB).map(|at| (at % 239) as u8).collect();
    let hash: String = Sha256::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
    let client = client(&edge, "alice.test");
    let uploads =
        (0..2).map(|_| client.post(edge.url("alice.test", "/upload")).body(sent.clone()).send());
    for answer in join_all(uploads).await {
        let counted: Value = answer.expect("an answer").json().await.expect("JSON");
        assert_eq!(counted["bytes"], sent.len());
        assert_eq!(counted["sha256"], hash);
    }
    let url = edge.url("alice.test", &format!("/download?bytes={}", 24 * MIB));
    for answer in join_all((0..2).map(|_| client.get(&url).send())).await {
        let got = answer.expect("an answer").bytes().await.expect("a body");
        assert_eq!(got.len(), 24 * MIB);
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_not_read_for() {
    let mut edge = edge("");
    let mut sender = connect(edge.http).await;
    let (answer, _) = sender.send_request(get("alice.test", "/whoami"), true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
    let before = edge.memory();

    // 200 MiB that are asked for and not read, and a window that stays closed.
    let large = format!("/download?bytes={}", 200 * MIB);
    let (answer, _) = sender.send_request(get("alice.test", &large), true).expect("sent");
    let unread = answer.await.expect("an answer").into_body();
    for _ in 0..50 {
        let mut other = connect(edge.http).await;
        let path = format!("/download?bytes={MIB}");
        let (answer, _) = other.send_request(get("alice.test", &path), true).expect("sent");
        assert_eq!(body(answer.await.expect("an answer").into_body()).await.len(), MIB);
    }
    let grown = edge.memory().saturating_sub(before);
    println!("grown by {} kB beside an unread download of 200 MiB", grown / 1024);
    assert!(grown < 50 * MIB as u64, "{grown} bytes");
    edge.wait_until("only the unread one is left", |edge| {
        edge.session("alice.test")["leases"] == 1
    });
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_while_held_frees_its_place_and_the_wake_goes_on() {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let mut sender = connect(edge.http).await;
    let (kept, _) = sender.send_request(get("alice.test", "/whoami"), true).expect("sent");
    let mut sender = sender.ready().await.expect("it is ready");
    let (left, mut stream) = sender.send_request(get("alice.test", "/whoami"), true).expect("sent");
    edge.wait_until("both are held", |edge| edge.metric(&["dormouse_held_requests "]) == 2.0);
    stream.send_reset(h2::Reason::CANCEL);
    drop((left, stream));
    edge.wait_until("one has left", |edge| edge.metric(&["dormouse_held_requests "]) < 2.0);
    assert_eq!(edge.state("alice.test"), "waking");
    open_gate(&edge, "alice.test");
    assert_eq!(kept.await.expect("an answer").status(), 200);
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_others_of_its_connection_and_the_time_for_a_head() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_head = \"1s\"\n")
        .route("demo", &witnessed("", ""))
        .start();
    let socket = TcpStream::connect(edge.http).await.expect("a connection");
    let (sender, mut connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let mut pings = connection.ping_pong().expect("pings");
    tokio::spawn(connection);
    let mut sender: SendRequest<Bytes> = sender.ready().await.expect("it is ready");
    let events = get("alice.test", "/sse?every_ms=100");
    let (answer, _) = sender.send_request(events, true).expect("sent");
    let mut events = answer.await.expect("an answer").into_body();
    let mut sender = sender.ready().await.expect("it is ready");
    let (other, _) = sender.send_request(get("alice.test", "/whoami"), true).expect("sent");
    body(other.await.expect("an answer").into_body()).await;
    // Four times the time for a head: events come, and the client's own frames, but no request.
    for _ in 0..40 {
        pings.ping(h2::Ping::opaque()).await.expect("the connection was cut");
        let event = events.data().await.expect("it flows").expect("the stream was cut");
        events.flow_control().release_capacity(event.len()).expect("released");
    }
    // Without any stream it is idle, for which there is another time.
    drop(events);
    for _ in 0..30 {
        pings.ping(h2::Ping::opaque()).await.expect("the connection was cut");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (answer, _) = sender.send_request(get("alice.test", "/whoami"), true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
    drop(sender);
    edge.wait_until("no lease is left", |edge| edge.session("alice.test")["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_fewer_bytes_than_an_http2_preface_is_answered() {
    let edge = edge("");
    // 18 bytes, after which a client of HTTP/1.0 waits. It names no host.
    let mut wire = Wire::sent(edge.http, b"GET / HTTP/1.0\r\n\r\n").await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 400 "), "{answer}");
    // Also in pieces.
    let mut wire = Wire::sent(edge.http, b"GET /").await;
    wire.send(b" HTTP/1.0\r\n").await;
    wire.send(b"\r\n").await;
    assert!(wire.rest().await.contains(" 400 "));
    assert_eq!(edge.starts("alice.test"), 0);
}

/// What begins like a preface of HTTP/2 gets HTTP/2: a GOAWAY with PROTOCOL_ERROR.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_preface_gets_no_answer_of_http_1() {
    let edge = edge("");
    for bad in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.0\r\nHost: alice.test\r\n\r\n"] {
        let mut wire = Wire::sent(edge.http, bad.as_bytes()).await;
        let said = wire.rest().await;
        let goaway = "\0\0\u{8}\u{7}\0\0\0\0\0\0\0\0\0\0\0\0\u{1}";
        assert!(said.ends_with(goaway) && !said.contains("HTTP/1"), "{said:?}");
    }
    // Elsewhere it is a first line as wrong as others.
    let mut wire = Wire::sent(edge.http, b"GET * HTTP/2.0\r\n\r\n").await;
    assert!(wire.rest().await.starts_with("HTTP/1.1 505 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_wakes_and_its_connection_is_closed_after_the_answer() {
    let edge = edge("");
    let request = b"GET /whoami HTTP/1.0\r\nHost: alice.test\r\n\r\n";
    let answer = Wire::sent(edge.http, request).await.rest().await;
    assert!(answer.starts_with("HTTP/1."), "{answer}");
    assert!(answer.contains(" 200 "), "{answer}");
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "it knows no chunks: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let who: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(who["session"], "alice.test");
}
