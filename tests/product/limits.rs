//! The limits, and what it costs to come near them.

use std::{fs, time::Duration};

use futures::{SinkExt as _, StreamExt as _, future::join_all, stream};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{
    support::{DORMOUSE, Edge, PATIENCE, Setup, client, witnessed},
    wire::Wire,
};

const GET: &[u8] = b"GET /whoami HTTP/1.1\r\nHost: alice.test\r\n\r\n";

/// Sessions that listen once the file `open` exists, but bob's at once.
fn opened_by_hand(more: &str) -> String {
    let script = format!(
        "echo $DORMOUSE_SESSION >> starts; \
         [ $DORMOUSE_SESSION = bob.test ] || until [ -e open ]; do sleep 0.05; done; \
         exec {DORMOUSE} demo-session --listen {{address}}"
    );
    format!(
        "host = \"{{session}}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"/bin/sh\", \"-c\", {script:?}]\nenv = {{ TEST_DIR = \"@DIR@\" }}\n\
         [ready]\nprobe = \"http\"\npath = \"/healthz\"\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_is_closed_and_the_others_go_on() {
    let mut edge = Setup::new()
        .config("[limits]\nconnections = 3\n")
        .route("demo", &witnessed("", ""))
        .start();
    edge.wait_until("nobody is there", |edge| edge.metric(&["dormouse_connections "]) == 0.0);
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::sent(edge.http, GET).await;
        assert!(wire.until("}").await.contains(" 200 "));
        kept.push(wire);
    }
    for _ in 0..4 {
        assert_eq!(Wire::open(edge.http).await.rest().await, "");
    }
    assert_eq!(edge.metric(&["dormouse_connections_refused_total "]), 4.0);
    assert_eq!(edge.metric(&["dormouse_connections "]), 3.0);
    for wire in &mut kept {
        wire.send(GET).await;
        assert!(wire.until("}").await.contains(" 200 "));
    }
    kept.pop();
    edge.wait_until("one has left", |edge| edge.metric(&["dormouse_connections "]) == 2.0);
    let mut wire = Wire::sent(edge.http, GET).await;
    assert!(wire.until("}").await.contains(" 200 "), "it does not recover");
    assert_eq!(edge.metric(&["dormouse_connections_refused_total "]), 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_the_held_ones_gets_503_and_the_others_go_on() {
    let mut edge = Setup::new()
        .config("[limits]\nheld = 5\n")
        .route("demo", &opened_by_hand("[wake]\nheld_max = 3\n"))
        .start();
    let mut held = Vec::new();
    for (host, count, reason) in [("alice.test", 3, "session_full"), ("carol.test", 2, "held_full")]
    {
        for _ in 0..count {
            let get = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\n\r\n");
            held.push(Wire::sent(edge.http, get.as_bytes()).await);
        }
        let all = held.len() as f64;
        edge.wait_until("all are held", |edge| edge.metric(&["dormouse_held_requests "]) == all);
        let full = client().get(edge.url(host, "/whoami")).send().await.expect("an answer");
        assert_eq!(full.status(), 503);
        assert!(full.headers().contains_key("retry-after"));
        assert_eq!(edge.metric(&["dormouse_refused_total", reason]), 1.0);
    }
    // One that leaves makes room for one.
    held.pop();
    edge.wait_until("one has left", |edge| edge.metric(&["dormouse_held_requests "]) == 4.0);
    held.push(Wire::sent(edge.http, b"GET /whoami HTTP/1.1\r\nHost: carol.test\r\n\r\n").await);
    edge.wait_until("five are held", |edge| edge.metric(&["dormouse_held_requests "]) == 5.0);
    fs::write(edge.path("open"), "").expect("a file");
    for mut wire in held {
        assert!(wire.until("}").await.contains(" 200 "));
    }
    assert_eq!((edge.starts("alice.test"), edge.starts("carol.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_held_requests_are_one_start_and_little_memory() {
    const HELD: u64 = 5000;
    let mut edge = Setup::new()
        .config("[limits]\nconnections_per_client = 10000\n")
        .route("demo", &opened_by_hand("[wake]\nheld_max = 5000\ntimeout = \"10m\"\n"))
        .start();
    // Whatever a first request makes for good is made.
    let bob = edge.url("bob.test", "/whoami");
    assert_eq!(client().get(&bob).send().await.expect("an answer").status(), 200);
    let before = edge.memory();
    let opening = stream::iter(0..HELD).map(|_| Wire::sent(edge.http, GET)).buffer_unordered(100);
    let held: Vec<Wire> = opening.collect().await;
    edge.wait_until("all are held", |edge| {
        edge.metric(&["dormouse_held_requests "]) == HELD as f64
    });
    let each = edge.memory().saturating_sub(before) / HELD;
    println!("{each} bytes per held request");
    assert!(each < 64 * 1024, "{each} bytes per held request");

    let full = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(full.status(), 503, "one more than the limit");
    assert_eq!(client().get(&bob).send().await.expect("an answer").status(), 200);
    assert_eq!(edge.state("alice.test"), "waking");

    fs::write(edge.path("open"), "").expect("a file");
    let answers = held.into_iter().map(|mut wire| async move {
        let answer = wire.until("}").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
    join_all(answers).await;
    assert_eq!(edge.starts("alice.test"), 1);
    edge.wait_until("no lease is left", |edge| edge.session("alice.test")["leases"] == 0);
    assert_eq!(edge.metric(&["dormouse_held_requests "]), 0.0);
}

async fn socket(edge: &Edge) -> WebSocketStream<TcpStream> {
    let url = format!("ws://alice.test:{}/ws", edge.http.port());
    let socket = TcpStream::connect(edge.http).await.expect("a connection");
    let opened = timeout(PATIENCE, tokio_tungstenite::client_async(url, socket)).await;
    opened.expect("in time").expect("a WebSocket").0
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_idle_websockets_stay_and_keep_their_session_awake() {
    const SOCKETS: u64 = 2000;
    let mut edge = Setup::new()
        .config("[limits]\nconnections_per_client = 10000\n")
        .route("demo", &witnessed("", "[idle]\nafter = \"100ms\"\nmin_awake = \"0s\"\n"))
        .start();
    let first = socket(&edge).await;
    let before = edge.memory();
    let opening = stream::iter(1..SOCKETS).map(|_| socket(&edge)).buffer_unordered(50);
    let mut sockets: Vec<_> = opening.collect().await;
    sockets.push(first);
    assert_eq!(edge.session("alice.test")["leases"], SOCKETS);
    let each = edge.memory().saturating_sub(before) / SOCKETS;
    println!("{each} bytes per idle WebSocket, both sides");
    assert!(each < 160 * 1024, "{each} bytes per idle WebSocket");

    // Many times what a session without leases has until it sleeps.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(edge.state("alice.test"), "awake");
    let echoes = sockets.iter_mut().enumerate().map(|(number, socket)| async move {
        let said = Message::text(format!("socket {number}"));
        socket.send(said.clone()).await.expect("open");
        let echo = timeout(PATIENCE, socket.next()).await.expect("in time");
        assert_eq!(echo.expect("open").expect("a message"), said, "another socket's message");
    });
    join_all(echoes).await;
    assert_eq!(edge.session("alice.test")["leases"], SOCKETS);
    drop(sockets);
    edge.wait_until("it sleeps", |edge| edge.session("alice.test")["state"] == "asleep");
    assert_eq!(edge.session("alice.test")["leases"], 0);
    edge.wait_until("all have left", |edge| edge.metric(&["dormouse_connections "]) == 0.0);
    assert_eq!(edge.starts("alice.test"), 1);
}
