//! What a client sends behind an upgrade before its 101: it waits for the 101 of the instance, and
//! is thrown away with the connection where there is none. RFC 9931.

use tokio::io::AsyncWriteExt as _;

use crate::{
    hold::{Played, Raw, gated, open_gate, played, wait_held},
    support::{Edge, Setup, witnessed},
    wire::Wire,
};

const HOST: &str = "alice.test";
const EARLY: &str = "GET /smuggled HTTP/1.1\r\nHost: alice.test\r\nX-Request-Id: forged\r\n\r\n";
const TAKEN: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

fn plain() -> String {
    format!("GET /plain HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// An edge whose instance the test plays. It is waking until `Played::start`.
fn waking() -> Edge {
    Setup::new().config("[timeouts]\nupstream_idle = \"1s\"\n").route("demo", &played()).start()
}

/// A client that has sent an upgrade and more, in one piece or in two.
async fn hasty(edge: &Edge, in_one: bool) -> Wire {
    let (first, second) =
        if in_one { (upgrade("/ws") + EARLY, "") } else { (upgrade("/ws"), EARLY) };
    let mut wire = Wire::sent(edge.http, first.as_bytes()).await;
    wire.send(second.as_bytes()).await;
    wire
}

/// A request of somebody else goes all the way and back; the early bytes could have, too.
async fn time_passes(edge: &Edge, instance: &Played) {
    let mut other = Wire::sent(edge.http, plain().as_bytes()).await;
    let (mut raw, head) = instance.request().await;
    assert!(head.starts_with("GET /plain "), "{head}");
    raw.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    assert!(other.head().await.starts_with("HTTP/1.1 204 "));
}

/// The instance's side of the upgrade.
async fn upgrades(instance: &Played) -> Raw {
    let (raw, head) = instance.request().await;
    assert!(head.starts_with("GET /ws "), "{head}");
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn early_bytes_wait_for_the_101_also_through_a_wake() {
    let mut edge = waking();
    // Waking: it is held with what it has sent.
    let mut first = hasty(&edge, true).await;
    wait_held(&mut edge, HOST, 1);
    let instance = Played::start(&mut edge).await;
    let mut raw = upgrades(&instance).await;
    time_passes(&edge, &instance).await;
    assert!(raw.is_silent(), "bytes came before the 101");
    raw.send(TAKEN).await;
    assert!(first.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.until("forged\r\n\r\n").await, EARLY);
    // Awake.
    for in_one in [true, false] {
        let mut next = hasty(&edge, in_one).await;
        let mut raw = upgrades(&instance).await;
        time_passes(&edge, &instance).await;
        assert!(raw.is_silent(), "bytes came before the 101");
        raw.send(TAKEN).await;
        assert!(next.head().await.starts_with("HTTP/1.1 101 "));
        next.send(b"later").await;
        assert_eq!(raw.until("later").await, format!("{EARLY}later"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_bytes_go_with_their_connection_where_the_instance_refuses() {
    let mut edge = waking();
    let held = hasty(&edge, true).await;
    wait_held(&mut edge, HOST, 1);
    let instance = Played::start(&mut edge).await;
    let refusals = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 426 Upgrade Required\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ];
    let mut held = Some(held);
    for (number, refusal) in refusals.iter().cycle().take(6).enumerate() {
        let mut client = match held.take() {
            Some(held) => held,
            None => hasty(&edge, number % 2 == 0).await,
        };
        let mut raw = upgrades(&instance).await;
        raw.send(refusal).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&refusal[..12]), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert_eq!(raw.until("\0 never").await, "", "until the edge closes it");
    }
    edge.wait_until("the leases are back", |edge| edge.session(HOST)["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn early_bytes_go_with_their_connection_where_nobody_gets_ready() {
    let mut edge = Setup::new().route("demo", &gated("[wake]\ntimeout = \"1s\"\n")).start();
    edge.announce("wake");
    for in_one in [true, false] {
        let answer = hasty(&edge, in_one).await.rest().await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["503", "504"].contains(&status), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    open_gate(&edge, HOST);
    edge.wait_until("the leases are back", |edge| edge.session(HOST)["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_more_than_is_kept_before_its_101_is_cut() {
    let mut edge = waking();
    let mut wire = hasty(&edge, true).await;
    let instance = Played::start(&mut edge).await;
    let mut raw = upgrades(&instance).await;
    // It ends by the edge's closing, or the test by its patience.
    while wire.0.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
    assert_eq!(raw.until("\0 never").await, "");
    edge.wait_until("the lease is back", |edge| edge.session(HOST)["leases"] == 0);
}

/// An offer of HTTP/2 in clear is not taken: the next request is a request.
#[tokio::test(flavor = "multi_thread")]
async fn an_offer_of_h2c_is_no_upgrade() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let offer = format!(
        "GET /whoami HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    );
    let next = format!("GET /whoami?next HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answers = Wire::sent(edge.http, (offer + &next).as_bytes()).await.rest().await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 2, "{answers}");
    assert!(!answers.to_ascii_lowercase().contains("h2c"), "{answers}");
}
