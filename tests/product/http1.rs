//! HTTP/1 as others write it: old clients, whole URIs, fields for one hop, uploads that ask first,
//! and answers that could be read in two ways.

use std::{fs, process::Command};

use crate::{
    guest::{self, Guest},
    support::{Edge, Setup, witnessed},
    wire::Wire,
};

const HOST: &str = "alice.test";
/// Each answer is for a connection of its own: a recorder answers once.
const PLAIN: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn demo() -> Edge {
    Setup::new().route("demo", &witnessed("", "")).start()
}

/// An edge whose instance gives this answer, and writes down what came.
fn answering(answer: &str) -> Edge {
    let edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    give(&edge, answer);
    edge
}

/// What the next connection to the instance is answered with.
fn give(edge: &Edge, answer: &str) {
    fs::write(edge.path("answer"), answer).expect("a file");
}

fn get(version: &str, path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/{version}\r\nHost: {HOST}\r\n{headers}\r\n")
}

async fn asked(edge: &Edge, request: &str) -> String {
    Wire::sent(edge.http, request.as_bytes()).await.rest().await
}

fn run(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().expect("it is installed");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{program}: {out}{err}");
    format!("{out}{err}")
}

// ## HTTP/1.0

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_no_chunks_and_its_connection_ends_the_answer() {
    let edge = demo();
    let events = "/sse?events=3&every_ms=10";
    let said = asked(&edge, &get("1.0", events, "Connection: keep-alive\r\n")).await;
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains("\r\nconnection: close"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(body.starts_with("id") || body.starts_with("data"), "{body:?}");
    assert!(body.ends_with("\n\n") && body.contains("event 2"), "{body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_keeps_its_connection_where_it_asks_to_and_the_length_is_known() {
    let edge = demo();
    let mut wire = Wire::open(edge.http).await;
    for _ in 0..2 {
        wire.send(get("1.0", "/whoami", "Connection: keep-alive\r\n").as_bytes()).await;
        let said = wire.until("}").await.to_ascii_lowercase();
        assert!(said.contains("\r\nconnection: keep-alive\r\n"), "{said}");
    }
    let said = asked(&edge, &get("1.0", "/whoami", "")).await;
    assert!(said.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_hears_of_no_interim_answer() {
    let hints = format!("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n{PLAIN}");
    let edge = answering(&hints);
    let said = asked(&edge, &get("1.0", "/", "")).await;
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("\r\n\r\nok"), "{said}");
    let said = asked(&edge, &get("1.1", "/", "Connection: close\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 103 ") && said.ends_with("\r\n\r\nok"), "{said}");
}

/// It speaks HTTP/1.0, and with `-k` asks to keep the connection.
#[tokio::test(flavor = "multi_thread")]
async fn ab_is_served_with_and_without_keep_alive() {
    let edge = demo();
    let host = format!("Host: {HOST}");
    for (path, kept) in [("/whoami", "50"), ("/sse?events=1&every_ms=1", "0")] {
        let url = format!("http://{}{path}", edge.http);
        let said =
            run("ab", &["-k", "-q", "-s", "20", "-l", "-n", "50", "-c", "4", "-H", &host, &url]);
        let line = |name: &str| {
            let line = said.lines().find(|line| line.starts_with(name)).expect("a line");
            line.split_whitespace().last().expect("a number").to_owned()
        };
        assert_eq!((&*line("Complete requests"), &*line("Failed requests")), ("50", "0"), "{said}");
        assert_eq!(line("Keep-Alive requests"), kept, "{said}");
    }
}

// ## Whole URIs

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_uri_reaches_the_instance_as_a_path() {
    let edge = answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let close = "Connection: close\r\n\r\n";
    for (number, (request, line)) in [
        ("GET http://ALICE.test:80/a?b HTTP/1.1\r\nHost: alice.test\r\n", "GET /a?b HTTP/1.1"),
        ("GET http://alice.test?b HTTP/1.1\r\nHost: Alice.test\r\n", "GET /?b HTTP/1.1"),
        ("OPTIONS http://alice.test HTTP/1.1\r\nHost: alice.test\r\n", "OPTIONS * HTTP/1.1"),
        ("GET http://alice.test/a HTTP/1.0\r\n", "GET /a HTTP/1.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut wire = Wire::open(edge.http).await;
        // As it comes, whole or in pieces.
        for piece in
            (request.to_owned() + close).as_bytes().chunks(if number % 2 == 0 { 7 } else { 900 })
        {
            wire.send(piece).await;
        }
        let said = wire.rest().await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{request}: {said}");
        let seen = guest::recorded(&edge, HOST);
        let seen = seen.last().expect("a request");
        assert!(seen.starts_with(&format!("{line}\r\n")), "{request}: {seen}");
        assert!(seen.to_ascii_lowercase().contains("\r\nhost: alice.test\r\n"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_uris_may_be_pipelined() {
    let edge = demo();
    let one = format!("GET http://{HOST}/whoami HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let last = one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let said = asked(&edge, &format!("{one}{one}{last}")).await;
    assert_eq!(said.matches("HTTP/1.1 200 ").count(), 3, "{said}");
    let proxied = format!("http://{}", edge.http);
    let said = run("curl", &["-s", "-i", "-x", &proxied, &format!("http://{HOST}/whoami")]);
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
}

// ## Fields for one hop

#[tokio::test(flavor = "multi_thread")]
async fn what_an_instance_says_for_one_hop_does_not_reach_the_client() {
    let edge = answering(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=9\r\n\
         Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTrailer: x\r\nTE: trailers\r\nX-Kept: 1\r\n\
         Content-Length: 2\r\n\r\nok",
    );
    let url = format!("http://{}/", edge.http);
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let host = format!("Host: {HOST}");
        let said = run("curl", &["-s", "-i", protocol, "-H", &host, &url]).to_ascii_lowercase();
        for field in ["x-named", "keep-alive:", "proxy-authenticate", "upgrade", "trailer", "te:"] {
            let line = format!("\n{field}");
            assert!(!said.contains(&line), "{protocol}: {field} in {said}");
        }
        assert!(said.contains("\nx-kept: 1\r\n") && said.ends_with("\r\n\r\nok"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_has_no_framing() {
    let edge = answering(
        "HTTP/1.1 204 No Content\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let mut wire = Wire::open(edge.http).await;
    for _ in 0..2 {
        wire.send(get("1.1", "/", "").as_bytes()).await;
        let head = wire.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 204 ") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    }
}

// ## Uploads that ask first

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_asked_first_keeps_its_connection() {
    let edge = demo();
    let mut wire = Wire::open(edge.http).await;
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    for _ in 0..3 {
        wire.send(head.as_bytes()).await;
        let said = wire.head().await;
        assert!(said.starts_with("HTTP/1.1 100 "), "{said}");
        wire.send(b"hello").await;
        let said = wire.until("}").await.to_ascii_lowercase();
        assert!(said.contains(" 200 ") && said.contains("\"bytes\":5"), "{said}");
        assert!(said.contains("\r\nconnection: keep-alive\r\n"), "{said}");
    }
    fs::write(edge.path("file"), vec![b'x'; 300_000]).expect("a file");
    let (file, url) = (edge.path("file"), format!("http://{}/upload", edge.http));
    let (file, host) = (file.to_str().expect("a path"), format!("Host: {HOST}"));
    let one = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", "-X", "POST"];
    let asks = ["-H", "Expect: 100-continue", "-H", &host, "-T", file, &url];
    let arguments = [&one[..], &asks, &["--next"], &one, &asks].concat();
    assert_eq!(run("curl", &arguments), "200 1\n200 0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_before_its_end_ends_the_connection() {
    let edge = answering("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
    let said = wire.head().await.to_ascii_lowercase();
    assert!(said.starts_with("http/1.1 417 ") && said.contains("\r\nconnection: close"), "{said}");
}

// ## Answers that could be read in two ways

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_could_be_read_in_two_ways_is_a_502() {
    let mut edge = answering("");
    edge.announce("broken");
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let all = [
        switching,
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    ];
    let url = format!("http://{}/", edge.http);
    let host = format!("Host: {HOST}");
    for answer in all {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            give(&edge, answer);
            let said = run("curl", &["-s", "-i", protocol, "-H", &host, &url]).to_ascii_lowercase();
            let status = said.lines().next().expect("a status").contains(" 502");
            assert!(status && said.contains("\nx-request-id: "), "{answer:?}: {said}");
            // Nothing of it is left for the next.
            give(&edge, PLAIN);
            let said = run("curl", &["-s", protocol, "-H", &host, &url]);
            assert_eq!(said, "ok", "after {answer:?}");
        }
    }
    edge.wait_until("the leases are back", |edge| edge.session(HOST)["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lax_in_an_answer_is_made_strict() {
    let edge = answering("");
    for (answer, line) in [
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2, 2\r\n\r\nok",
            "content-length: 2",
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "content-length: 2",
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "http/1.1 200 ok"),
    ] {
        give(&edge, answer);
        let said = asked(&edge, &get("1.1", "/", "Connection: close\r\n")).await;
        let head = said.to_ascii_lowercase();
        assert_eq!(head.lines().filter(|one| *one == line).count(), 1, "{answer:?}: {said}");
        assert_eq!(head.matches("content-length").count(), 1, "{answer:?}: {said}");
        assert!(said.ends_with("\r\n\r\nok"), "{answer:?}: {said}");
    }
}

// ## What Pingora 0.9.1 does not pass on: docs/security.md says so

#[tokio::test(flavor = "multi_thread")]
async fn trailers_end_at_the_edge_by_http_1() {
    let mut edge = answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n"
    );
    let said = asked(&edge, &request).await;
    assert!(said.ends_with("2\r\nok\r\n0\r\n\r\n") && !said.contains("X-Sum"), "{said}");
    edge.wait_until("the body is recorded", |edge| {
        guest::recorded(edge, HOST).concat().ends_with("2\r\nhi\r\n0\r\n\r\n")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_end_at_the_edge_by_http_2() {
    let edge = answering(&format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{PLAIN}"));
    let (url, host) = (format!("http://{}/", edge.http), format!("Host: {HOST}"));
    let said = run("curl", &["-s", "-i", "--http2-prior-knowledge", "-H", &host, &url]);
    assert!(said.starts_with("HTTP/2 200") && said.ends_with("\r\n\r\nok"), "{said}");
}
