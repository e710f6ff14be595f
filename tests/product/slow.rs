//! Clients that send a body too slowly, or take nothing of an answer, and those that only look so:
//! they are held, their instance takes nothing, or their answer has begun.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    h2 as http2,
    hold::{Played, gated, open_gate, played, wait_held},
    support::{Edge, Setup, client, witnessed},
    wire::Wire,
};

const HOST: &str = "alice.test";
const LONG: Duration = Duration::from_secs(3);

/// A body below 1 KiB a second is cut after a second of waiting.
const RATE: &str = "[limits]\nbody_rate = \"1KiB\"\n[timeouts]\nclient_body_grace = \"1s\"\n";
const WRITE: &str = "[timeouts]\nclient_write = \"1s\"\n";
/// And one that takes less than 256 KiB a second.
const TAKE: &str = "[limits]\nanswer_rate = \"256KiB\"\n[timeouts]\nclient_write = \"1s\"\n";

fn post(length: usize) -> String {
    format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n")
}

/// A byte now and then, until the edge has had enough.
async fn trickle(wire: &mut Wire) {
    // A close is seen by the second write after it.
    while wire.0.write_all(b"x").await.is_ok() {
        let closed = tokio::time::timeout(Duration::from_millis(100), wire.0.readable()).await;
        if closed.is_ok() {
            break;
        }
    }
}

fn wait_given_back(edge: &mut Edge) {
    edge.wait_until("the lease is back", |edge| edge.session(HOST)["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_below_the_rate_gets_408() {
    let mut edge = Setup::new().config(RATE).route("demo", &witnessed("", "")).start();
    for framing in
        [post(30_000), post(0).replace("Content-Length: 0", "Transfer-Encoding: chunked")]
    {
        let mut wire = Wire::sent(edge.http, framing.as_bytes()).await;
        if framing.contains("chunked") {
            wire.send(b"7530\r\n").await;
        }
        trickle(&mut wire).await;
        let answer = wire.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        wait_given_back(&mut edge);
    }
    assert_eq!(edge.metric(&["dormouse_refused_total", "body_timeout"]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_body_below_the_rate_gets_408() {
    let mut edge = Setup::new().config(RATE).route("demo", &witnessed("", "")).start();
    let mut sender = http2::connect(edge.http).await;
    let url = format!("http://{HOST}/upload");
    let request = http::Request::post(url).body(()).expect("a request");
    let (answer, mut upload) = sender.send_request(request, false).expect("sent");
    let sends = async {
        while upload.send_data("x".into(), false).is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let answer = tokio::select! { answer = answer => answer, () = sends => panic!("reset") };
    assert_eq!(answer.expect("an answer").status(), 408);
    wait_given_back(&mut edge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_body_is_not_waited_for() {
    let mut edge = Setup::new().config(RATE).route("demo", &gated("")).start();
    let mut wire = Wire::sent(edge.http, post(30).as_bytes()).await;
    wire.send(b"some").await;
    wait_held(&mut edge, HOST, 1);
    sleep(LONG).await;
    open_gate(&edge, HOST);
    wire.send(&[b'x'; 26]).await;
    let answer = wire.until("}").await;
    assert!(answer.contains(" 200 ") && answer.contains("\"bytes\":30"), "{answer}");
}

/// The client has sent what the edge and the kernel take, and cannot send more.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_instance_does_not_take_is_not_waited_for() {
    const BYTES: usize = 32 * 1024 * 1024;
    let mut edge = Setup::new().config(RATE).route("demo", &played()).start();
    let mut wire = Wire::sent(edge.http, post(BYTES).as_bytes()).await;
    let instance = Played::start(&mut edge).await;
    let (mut raw, _) = instance.request().await;
    let (mut answers, mut body) = wire.0.split();
    let sends = async {
        body.write_all(&vec![b'x'; BYTES]).await.expect("it was cut");
    };
    let takes = async {
        sleep(LONG).await;
        raw.exactly(BYTES).await;
        raw.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    };
    tokio::join!(sends, takes);
    let mut answer = [0; 13];
    answers.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204 ");
}

/// A grace's worth of nothing, then the rate's worth, and so on.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_at_the_rate_and_one_whose_answer_has_begun_go_on() {
    let mut edge = Setup::new().config(RATE).route("demo", &played()).start();
    let mut fast = Wire::sent(edge.http, post(12_000).as_bytes()).await;
    let instance = Played::start(&mut edge).await;
    let (mut raw, _) = instance.request().await;
    for _ in 0..6 {
        sleep(Duration::from_millis(500)).await;
        fast.send(&[b'x'; 2_000]).await;
    }
    raw.exactly(12_000).await;
    raw.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    assert!(fast.head().await.starts_with("HTTP/1.1 204 "));

    let mut slow = Wire::sent(edge.http, post(2).as_bytes()).await;
    let (mut raw, _) = instance.request().await;
    raw.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
    assert!(slow.until("a\r\n").await.starts_with("HTTP/1.1 200 "));
    sleep(LONG).await;
    slow.send(b"hi").await;
    assert_eq!(raw.exactly(2).await, b"hi");
    raw.send("0\r\n\r\n").await;
    slow.until("0\r\n\r\n").await;
}

// ## Who takes nothing

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_of_its_answer_is_cut() {
    let mut edge = Setup::new().config(WRITE).route("demo", &witnessed("", "")).start();
    let get = format!("GET /download?bytes=64000000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut wire = Wire::sent(edge.http, get.as_bytes()).await;
    assert!(wire.head().await.starts_with("HTTP/1.1 200 "));
    wait_given_back(&mut edge);
    assert_eq!(edge.metric(&["dormouse_refused_total", "client_too_slow"]), 1.0);
}

/// What the kernel keeps of connections to this address that are closed for the edge.
fn left_in_kernel(edge: &Edge) -> Vec<String> {
    let at = format!(":{:04X} ", edge.http.port());
    let all = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's connections");
    // sl, local, remote, state: 01 is open, 0A listens, 06 waits for nothing.
    let is_left = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| format!("{local} ").ends_with(&at));
        local && !["01", "06", "0A"].contains(&fields.nth(1).unwrap_or("06"))
    };
    all.lines().filter(is_left).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_a_little_now_and_then_is_cut_and_nothing_is_kept_for_it() {
    const BYTES: usize = 256_000_000;
    let mut edge = Setup::new().config(TAKE).route("demo", &witnessed("", "")).start();
    let get = format!("GET /download?bytes={BYTES} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut wire = Wire::sent(edge.http, get.as_bytes()).await;
    let takes_a_little = async {
        while edge.metric(&["dormouse_refused_total", "client_too_slow"]) < 1.0 {
            wire.0.read_exact(&mut [0; 100]).await.expect("there is more");
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, takes_a_little).await.expect("it is not cut");
    wait_given_back(&mut edge);
    let rest = wire.0.read_to_end(&mut Vec::new()).await;
    assert_eq!(rest.expect_err("an end").kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(left_in_kernel(&edge), Vec::<String>::new());
}

/// Some 2 MB a second, and more than kernel and edge keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_enough_gets_all_of_it() {
    const BYTES: usize = 16_000_000;
    let edge = Setup::new().config(TAKE).route("demo", &witnessed("", "")).start();
    let get = format!(
        "GET /download?bytes={BYTES} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    );
    let mut wire = Wire::sent(edge.http, get.as_bytes()).await;
    let (mut taken, mut some) = (0, vec![0; 100_000]);
    while let n @ 1.. = wire.0.read(&mut some).await.expect("it was cut") {
        taken += n;
        sleep(Duration::from_millis(50)).await;
    }
    assert!(BYTES < taken, "{taken}");
}

/// Less than the rate is sent, and all that is sent is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_which_little_is_sent_goes_on() {
    let mut edge = Setup::new().config(TAKE).route("demo", &played()).start();
    let get = format!("GET /events HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut wire = Wire::sent(edge.http, get.as_bytes()).await;
    let instance = Played::start(&mut edge).await;
    let (mut raw, _) = instance.request().await;
    raw.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..6 {
        raw.send("1\r\na\r\n").await;
        wire.until("a\r\n").await;
        sleep(Duration::from_millis(500)).await;
    }
    raw.send("0\r\n\r\n").await;
    wire.until("0\r\n\r\n").await;
    assert_eq!(edge.metric(&["dormouse_refused_total", "client_too_slow"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_http2_that_is_not_taken_is_cut_and_others_go_on() {
    let mut edge = Setup::new().config(WRITE).route("demo", &witnessed("", "")).start();
    let mut sender = http2::connect(edge.http).await;
    let request = http2::get(HOST, "/download?bytes=64000000");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    // Kept, and nothing of it is read.
    let _answer = answer.await.expect("an answer");
    wait_given_back(&mut edge);
    let (answer, _) = sender.send_request(http2::get(HOST, "/whoami"), true).expect("sent");
    assert_eq!(answer.await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_socket_that_takes_nothing_is_cut_and_a_silent_one_is_not() {
    let mut edge = Setup::new().config(WRITE).route("demo", &witnessed("", "")).start();
    let connect = async |edge: &Edge| {
        let url = format!("ws://{HOST}:{}/ws", edge.http.port());
        let socket = tokio::net::TcpStream::connect(edge.http).await.expect("a connection");
        tokio_tungstenite::client_async(url, socket).await.expect("a WebSocket").0
    };
    let mut silent = connect(&edge).await;
    let mut deaf = connect(&edge).await;
    // What it says comes back, and it does not listen.
    let says = async { while deaf.send(Message::binary(vec![0; 1_000_000])).await.is_ok() {} };
    tokio::time::timeout(crate::support::PATIENCE, says).await.expect("it is not cut");
    edge.wait_until("its lease is back", |edge| edge.session(HOST)["leases"] == 1);
    sleep(LONG).await;
    silent.send(Message::text("still there")).await.expect("open");
    let echo = silent.next().await.expect("open").expect("a message");
    assert_eq!(echo, Message::text("still there"));
    let one = client().get(edge.url(HOST, "/whoami")).send().await.expect("an answer");
    assert_eq!(one.status(), 200);
}
