//! Requests that could be understood in two ways, or are beyond a limit: answered by the edge, in
//! their turn, and never seen by an instance. What is rare and plain goes through.

use std::{fs, time::Duration};

use crate::{
    guest::{self, Guest},
    h2 as http2,
    support::{Edge, Setup, client, witnessed},
    wire::Wire,
};

const HOST: &str = "alice.test";

/// An edge whose instance records raw bytes and answers every connection once.
fn recording(config: &str) -> Edge {
    let edge =
        Setup::new().config(config).route("demo", &guest::route(Guest::Recorder, "")).start();
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    fs::write(edge.path("answer"), answer).expect("a file");
    edge
}

async fn answers(edge: &Edge, request: &str) -> String {
    Wire::sent(edge.http, request.as_bytes()).await.rest().await
}

fn seen(edge: &Edge) -> String {
    guest::recorded(edge, HOST).concat()
}

fn get(headers: &str) -> String {
    format!("GET /whoami HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_may_come_in_any_pieces() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let body = "2\r\nab\r\n1;x=y\r\nc\r\n0\r\nA: b\r\n\r\n";
    let post = format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
    );
    let all = post + &get("") + &get("Connection: close\r\n");
    for size in [1, 7, all.len()] {
        let mut wire = Wire::open(edge.http).await;
        wire.0.set_nodelay(true).expect("a socket");
        for piece in all.as_bytes().chunks(size) {
            wire.send(piece).await;
        }
        let answers = wire.rest().await;
        assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 3, "{answers}");
        assert!(answers.contains("\"bytes\":3"), "{answers}");
    }
}

/// Large enough that Pingora takes it in several reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_head_goes_through_whole() {
    let edge = recording("");
    let cookie = "x".repeat(50_000);
    let request = get(&format!("Cookie: a={cookie}\r\nConnection: close\r\n"));
    assert!(answers(&edge, &request).await.starts_with("HTTP/1.1 200 "));
    assert!(seen(&edge).contains(&cookie));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_in_its_turn_and_ends_the_connection() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let bad = get("Content-Length: 1\r\nContent-Length: 2\r\n");
    // Under way while the bad one is already there.
    let both = get("").replace("/whoami", "/slow?ms=500") + &bad + &get("");
    let said = answers(&edge, &both).await;
    let at = |status: &str| said.find(&format!("HTTP/1.1 {status} "));
    assert!(at("200") == Some(0) && at("200") < at("400"), "{said}");
    assert_eq!(said.matches("HTTP/1.1 ").count(), 2, "{said}");
    assert!(said.contains("Content-Length must be one plain number."), "{said}");
    assert_eq!(edge.metric(&["dormouse_refused_total", "bad_request"]), 1.0);
    // What it sends on while it is answered does not take the answer from it.
    let long = bad + &"x".repeat(500_000);
    let said = answers(&edge, &long).await;
    assert!(said.starts_with("HTTP/1.1 400 ") && said.ends_with('}'), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_head_wakes_nobody() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    for (request, status) in [
        (get("X: a\r\n b\r\n"), 400),
        (get("X : a\r\n"), 400),
        (get("X\u{e9}: a\r\n"), 400),
        (get("X: a\0b\r\n"), 400),
        (get("").replace("\r\n", "\n"), 400),
        (format!("GET http://bob.test/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), 400),
        (get("Host: bob.test\r\n"), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /\r\n".to_owned(), 400),
        (get("Transfer-Encoding: xyz\r\n"), 501),
        (get("").replace("1.1", "1.2"), 505),
        (get("").replace("GET", "CONNECT"), 405),
        (get("").replace("whoami", &"x".repeat(20_000)), 414),
        (get(&format!("X: {}\r\n", "x".repeat(70_000))), 431),
        (get(&"X: y\r\n".repeat(201)), 431),
    ] {
        let said = answers(&edge, &request).await;
        let start = format!("HTTP/1.1 {status} ");
        assert!(said.starts_with(&start), "{:.80}: {said}", request);
        assert!(said.contains("application/problem+json"), "{said}");
    }
    assert_eq!(edge.starts(HOST), 0);
    assert_eq!(edge.state(HOST), "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_ends_the_request_and_goes_nowhere() {
    let mut edge = recording("");
    fs::remove_file(edge.path("answer")).expect("it does not answer");
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n"
    );
    for (number, bad) in ["x\r\n", "1;a\nb\r\nc\r\n", "2\r\nabc\r\n"].into_iter().enumerate() {
        let mut wire = Wire::sent(edge.http, head.as_bytes()).await;
        edge.wait_until("the beginning is there", |edge| {
            let seen = guest::recorded(edge, HOST);
            seen.get(number).is_some_and(|all| all.ends_with("4\r\ngood\r\n"))
        });
        wire.send(bad.as_bytes()).await;
        let said = wire.rest().await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
        edge.wait_until("the lease is back", |edge| edge.session(HOST)["leases"] == 0);
        let seen = guest::recorded(&edge, HOST);
        assert!(seen[number].ends_with("4\r\ngood\r\n"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_answered_when_its_time_is_over() {
    let edge = Setup::new()
        .config("[timeouts]\nclient_head = \"1s\"\n")
        .route("demo", &witnessed("", ""))
        .start();
    let said = answers(&edge, &get("")[..40]).await;
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    // Behind an answered one, too.
    let mut wire = Wire::sent(edge.http, get("").as_bytes()).await;
    assert!(wire.until("}").await.starts_with("HTTP/1.1 200 "));
    wire.send(b"GET /who").await;
    assert!(wire.rest().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(edge.metric(&["dormouse_refused_total", "head_timeout"]), 2.0);
}

/// A local answer is over before anything is read behind its request.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_for_a_head_does_not_run_between_two_requests() {
    let edge = Setup::new()
        .config("[timeouts]\nclient_head = \"1s\"\n")
        .route("demo", &witnessed("", ""))
        .start();
    let nowhere = "GET / HTTP/1.1\r\nHost: no.where\r\n\r\n";
    let mut wire = Wire::sent(edge.http, nowhere.as_bytes()).await;
    assert!(wire.until("}").await.starts_with("HTTP/1.1 404 "));
    tokio::time::sleep(Duration::from_secs(2)).await;
    wire.send(nowhere.as_bytes()).await;
    assert!(wire.until("}").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn underscores_are_dropped_refused_or_passed() {
    let request =
        get("X_Forwarded_For: 6.6.6.6\r\nX_Mine: a\r\nX-Mine: b\r\nConnection: close\r\n");
    for (policy, status, mine) in
        [("drop", 200, false), ("refuse", 400, false), ("pass", 200, true)]
    {
        let edge = recording(&format!("[limits]\nunderscores = \"{policy}\"\n"));
        let said = answers(&edge, &request).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{policy}: {said}");
        let seen = seen(&edge);
        assert_eq!(seen.contains("X_Mine"), mine, "{policy}: {seen}");
        assert_eq!(seen.contains("X-Mine: b"), status == 200, "{policy}: {seen}");
        assert!(!seen.contains("6.6.6.6"), "{policy}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_may_have_a_body_where_the_operator_says_so() {
    let request = get("Content-Length: 2\r\nConnection: close\r\n") + "hi";
    let edge = recording("");
    assert!(answers(&edge, &request).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(seen(&edge), "");
    let mut edge = recording("[limits]\nget_body = \"pass\"\n");
    assert!(answers(&edge, &request).await.starts_with("HTTP/1.1 200 "));
    edge.wait_until("the body is recorded", |edge| seen(edge).ends_with("\r\n\r\nhi"));
}

#[tokio::test(flavor = "multi_thread")]
async fn codings_below_chunked_reach_the_instance_in_one_plain_line() {
    let mut edge = recording("");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nTransfer-Encoding: GZIP , identity\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    );
    assert!(answers(&edge, &request).await.starts_with("HTTP/1.1 200 "));
    // It answers a head, and records what comes behind it a moment later.
    edge.wait_until("the body is recorded", |edge| seen(edge).ends_with("0\r\n\r\n"));
    let seen = seen(&edge).to_ascii_lowercase();
    assert_eq!(seen.matches("transfer-encoding").count(), 1, "{seen}");
    assert!(seen.contains("\r\ntransfer-encoding: gzip, chunked\r\n"), "{seen}");
    assert!(seen.ends_with("2\r\nhi\r\n0\r\n\r\n"), "{seen}");
}

/// Pingora refuses these by itself with an empty 400 that nothing counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_must_be_encoded_is_refused_in_words_and_what_browsers_send_goes_on() {
    let edge = recording("");
    for (count, target) in (1..).zip(["/<b>", "/a`b", "/?q=<b>", "/?q=\"x\""]) {
        let request = get("").replace("/whoami", target);
        let said = answers(&edge, &request).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{target}: {said}");
        assert!(said.to_lowercase().contains("x-request-id: "), "{target}: {said}");
        assert!(said.contains("must be percent-encoded"), "{target}: {said}");
        assert_eq!(edge.metric(&["dormouse_refused_total", "bad_request"]), f64::from(count));
    }
    assert_eq!(edge.starts(HOST), 0, "none of them wakes");
    let target = "/{a}|\"b\"^\\?q=`{x}`|^";
    let said = answers(&edge, &get("Connection: close\r\n").replace("/whoami", target)).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    assert!(seen(&edge).starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{}", seen(&edge));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_keeps_to_the_same_rules() {
    let edge = recording("[http2]\nheader_list = \"128KiB\"\n");
    let mut sender = http2::connect(edge.http).await;
    let mut status = async |request: http::Request<()>| {
        let (answer, _) = sender.send_request(request, true).expect("sent");
        answer.await.expect("an answer").status().as_u16()
    };
    let with = |name: &str, value: &str| {
        let mut request = http2::get(HOST, "/");
        let name: http::HeaderName = name.parse().expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
        request
    };
    assert_eq!(status(with("transfer_encoding", "chunked")).await, 400);
    assert_eq!(status(with("content__length", "1")).await, 400);
    assert_eq!(status(http2::get(HOST, &format!("/{}", "x".repeat(20_000)))).await, 414);
    let mut many = http2::get(HOST, "/");
    for number in 0..201 {
        let name: http::HeaderName = format!("x-{number}").parse().expect("a name");
        many.headers_mut().append(name, "y".parse().expect("a value"));
    }
    assert_eq!(status(many).await, 431);
    assert_eq!(edge.starts(HOST), 0, "none of them wakes");
    assert_eq!(status(with("x_mine", "a")).await, 200);
    assert!(!seen(&edge).contains("x_mine"));
    let one = client().get(edge.url(HOST, "/")).send().await.expect("an answer");
    assert_eq!(one.status(), 200);
}
