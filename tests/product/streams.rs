//! What flows: sockets, events and large bodies, byte for byte and in constant memory.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    hold::{Played, Raw, gated, open_gate, played, wait_held},
    support::{Edge, Setup, client, witnessed},
    wire::Wire,
};

const HOST: &str = "alice.test";
const MIB: usize = 1024 * 1024;
/// Far below what is sent through; far above what allocators and tests in parallel make of it.
const FLAT: u64 = 16 * MIB as u64;

/// Bytes without a period that a buffer's size could hide.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(bytes).collect()
}

/// The most memory that the edge ever had beyond what it has warm and at rest.
struct Memory(u64);

impl Memory {
    /// Serves a request of another session first, so that what is made once is made.
    async fn at_rest(edge: &Edge) -> Self {
        open_gate(edge, "warm.test");
        let warm = client().get(edge.url("warm.test", "/download?bytes=1000000")).send().await;
        assert_eq!(warm.expect("an answer").bytes().await.expect("a body").len(), 1_000_000);
        Self(edge.memory())
    }

    fn assert_flat(&self, edge: &Edge) {
        let status = fs::read_to_string(format!("/proc/{}/status", edge.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        let grown = (kib * 1024).saturating_sub(self.0);
        assert!(grown < FLAT, "the edge took {} KiB more", grown / 1024);
    }
}

/// What waits in the kernel between the edge and a client: towards the edge, towards the client.
/// Both sides of the connection are on this machine.
fn in_the_kernel(edge: &Edge, client: std::net::SocketAddr) -> (u32, u32) {
    let sockets = procfs::net::tcp().expect("/proc/net/tcp");
    let ours = |local, remote| {
        sockets.iter().find(|s| s.local_address == local && s.remote_address == remote)
    };
    let edges = ours(edge.http, client).map_or((0, 0), |s| (s.rx_queue, s.tx_queue));
    let clients = ours(client, edge.http).map_or((0, 0), |s| (s.rx_queue, s.tx_queue));
    (edges.0 + clients.1, edges.1 + clients.0)
}

/// Waits until nothing moves any more between the edge and a client that do not read: the same
/// bytes lie there in two looks with a round trip of the edge's in between.
fn wait_stuck(edge: &mut Edge, what: &str, mut look: impl FnMut(&Edge) -> (u32, u32, usize)) {
    let mut last = (0, 0, 0);
    edge.wait_until(what, |edge| {
        let before = std::mem::replace(&mut last, look(edge));
        assert!(edge.metric(&["dormouse_connections"]) > 0.0);
        last == before && (0 < last.0 || 0 < last.1)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_wakes_and_carries_a_megabyte_both_ways() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let stream = TcpStream::connect(edge.http).await.expect("connect");
    let upgrade = tokio_tungstenite::client_async(format!("ws://{HOST}/ws"), stream).await;
    let (mut socket, answer) = upgrade.expect("101");
    assert!(answer.headers().contains_key("server-timing"), "it was held");
    let text: String = noise(MIB).into_iter().map(|byte| char::from(b' ' + byte % 64)).collect();
    for message in [Message::binary(noise(MIB)), Message::text(text), Message::text("small")] {
        socket.send(message.clone()).await.expect("sent");
        let echo = socket.next().await.expect("an echo").expect("an echo");
        assert!(echo == message, "{} bytes came back as {} others", message.len(), echo.len());
    }
    socket.close(None).await.expect("closed");
    assert_eq!(edge.starts(HOST), 1);
}

/// The stream changes hands after the 101: what came early is read before, what comes late after.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_around_the_101_reaches_the_other_side_in_order() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    // Masked with zeros, which changes nothing.
    let frame = |text: &str| [b"\x81\x85\0\0\0\0", text.as_bytes()].concat();
    for _ in 0..50 {
        let early = [handshake.as_bytes(), &frame("early")].concat();
        let mut wire = Wire::sent(edge.http, &early).await;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        wire.send(&frame("later")).await;
        wire.send(&frame("third")).await;
        let echoed = head + &wire.until("third").await;
        let (early, later) = (echoed.find("early"), echoed.find("later"));
        assert!(early.is_some() && early < later, "{echoed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_of_a_websocket_flow_at_once() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let stream = TcpStream::connect(edge.http).await.expect("connect");
    let upgrade = tokio_tungstenite::client_async(format!("ws://{HOST}/ws"), stream).await;
    let (mut sink, mut source) = upgrade.expect("101").0.split();
    let sent: Vec<_> = (1..20).map(|n| Message::binary(noise(n * 50_000))).collect();
    let messages = sent.clone();
    let send = async move {
        for message in messages {
            sink.send(message).await.expect("sent");
        }
    };
    let receive = async {
        for message in sent {
            assert!(source.next().await.expect("an echo").expect("an echo") == message);
        }
    };
    tokio::join!(send, receive);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_before_the_next_is_produced() {
    let mut edge = Setup::new().route("played", &played()).start();
    let mut raw = Raw::connect(edge.http).await;
    raw.send("GET /sse HTTP/1.1\r\nhost: alice.test\r\naccept: text/event-stream\r\n\r\n").await;
    let instance = Played::start(&mut edge).await;
    let (mut upstream, _) = instance.request().await;
    upstream
        .send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
             transfer-encoding: chunked\r\n\r\n",
        )
        .await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.contains("text/event-stream"), "{head}");
    for n in 0..20 {
        let event = format!("id: {n}\ndata: event {n}\n\n");
        upstream.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        let came = raw.until("\n\n\r\n").await;
        assert!(came.ends_with(&format!("{event}\r\n")), "{came}");
    }
    upstream.send("0\r\n\r\n").await;
    assert_eq!(raw.until("0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_flow_as_the_first_request() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let day = "/sse?events=2&every_ms=86400000";
    let mut answer = client().get(edge.url(HOST, day)).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let event = answer.chunk().await.expect("a chunk").expect("a chunk");
    assert!(event.ends_with(b"event 0\n\n") || event.starts_with(b"id"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_post_to_a_sleeping_session_arrives_once_in_constant_memory() {
    const SIZE: usize = 50 * MIB;
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let memory = Memory::at_rest(&edge).await;
    let body = Arc::new(noise(SIZE));
    let stream = TcpStream::connect(edge.http).await.expect("connect");
    let address = stream.local_addr().expect("an address");
    let (mut read, mut write) = stream.into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let (counter, bytes) = (Arc::clone(&sent), Arc::clone(&body));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {SIZE}\r\n\
             connection: close\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await.expect("sent");
        for piece in bytes.chunks(64 * 1024) {
            write.write_all(piece).await.expect("sent");
            counter.fetch_add(piece.len(), Ordering::Relaxed);
        }
        write
    });
    wait_held(&mut edge, HOST, 1);
    wait_stuck(&mut edge, "the kernel takes no more of the body", |edge| {
        let (up, down) = in_the_kernel(edge, address);
        (up, down, sent.load(Ordering::Relaxed))
    });
    assert!(sent.load(Ordering::Relaxed) < SIZE, "nobody reads a body that is held");
    memory.assert_flat(&edge);

    open_gate(&edge, HOST);
    let mut answer = String::new();
    read.read_to_string(&mut answer).await.expect("an answer");
    let (head, body_text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let told: Value = serde_json::from_str(body_text).expect("JSON");
    let hash: String = Sha256::digest(&*body).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told["sha256"], hash);
    assert_eq!((&told["bytes"], &told["uploads"]), (&SIZE.into(), &1.into()));
    memory.assert_flat(&edge);
    assert_eq!(edge.starts(HOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_flows_in_constant_memory_also_when_the_client_is_slow() {
    const SIZE: usize = 200 * MIB;
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let memory = Memory::at_rest(&edge).await;
    let mut raw = Raw::connect(edge.http).await;
    let address = raw.stream.local_addr().expect("an address");
    raw.send(format!("GET /download?bytes={SIZE} HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    let head = raw.until("\r\n\r\n").await;
    assert!(head.to_lowercase().contains(&format!("content-length: {SIZE}\r\n")), "{head}");
    wait_stuck(&mut edge, "the kernel takes no more of the download", |edge| {
        let (up, down) = in_the_kernel(edge, address);
        (up, down, 0)
    });
    memory.assert_flat(&edge);

    let periods: Vec<u8> = (0..=250).collect::<Vec<u8>>().repeat(1000);
    let mut left = SIZE;
    while 0 < left {
        let piece = raw.exactly(left.min(periods.len())).await;
        assert!(periods.starts_with(&piece), "other bytes, {left} before the end");
        left -= piece.len();
    }
    memory.assert_flat(&edge);
}
