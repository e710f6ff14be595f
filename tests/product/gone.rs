//! Clients that are gone without a word: their link is cut, or nothing answers for them any more.
//! Those that are only quiet stay.

use std::process::{Child, Command};

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    h2::{connect, get},
    support::{Edge, Setup, free_port, witnessed},
    wire::Wire,
};

const CONFIG: &str = "[timeouts]\nclient_gone = \"3s\"\n";

/// A network with one client's machine in it, and the link to it.
struct Link {
    name: String,
    /// The edge's address in it.
    address: String,
    client: Option<Child>,
}

/// Opens a connection for each text, sends that, and reads whatever comes, for as long as it lives.
const CLIENT: &str = "
import select, socket, sys
kept = []
for says in sys.argv[3:]:
    kept.append(socket.create_connection((sys.argv[1], int(sys.argv[2]))))
    kept[-1].sendall(says.encode())
while kept:
    for one in select.select(kept, [], [])[0]:
        if not one.recv(65536): kept.remove(one)
";

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip");
    assert!(done.status.success(), "ip {arguments}: {done:?}");
}

impl Link {
    fn up() -> Self {
        let pid = std::process::id();
        let name = format!("dmgone{}", pid % 1_000_000);
        let net = format!("10.{}.{}", 128 + pid / 256 % 64, pid % 256);
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name}a type veth peer name {name}b netns {name}"));
        ip(&format!("addr add {net}.1/30 dev {name}a"));
        ip(&format!("link set {name}a up"));
        ip(&format!("-n {name} addr add {net}.2/30 dev {name}b"));
        ip(&format!("-n {name} link set {name}b up"));
        Self { name, address: format!("{net}.1"), client: None }
    }

    /// A client in it that says these, each on a connection of its own.
    fn client(&mut self, port: u16, says: &[String]) {
        let mut client = Command::new("ip");
        client.args(["netns", "exec", &self.name, "/usr/bin/python3", "-c", CLIENT]);
        client.args([&self.address, &port.to_string()]).args(says);
        self.client = Some(client.spawn().expect("a client"));
    }

    /// From now on nothing goes through it, in neither direction, and neither side is told.
    fn cut(&self) {
        ip(&format!("-n {name} link set {name}b down", name = self.name));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(mut client) = self.client.take() {
            client.kill().expect("it lives");
            client.wait().expect("it has ended");
        }
        ip(&format!("netns del {}", self.name));
    }
}

fn leases(edge: &Edge, host: &str) -> u64 {
    edge.session(host)["leases"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_link_is_cut_keeps_no_session_awake_and_a_quiet_one_does() {
    let mut link = Link::up();
    let (http, https) = (free_port(), free_port());
    let late = witnessed("--listen-after 1h", "[wake]\ntimeout = \"1h\"\n");
    let mut edge = Setup::new()
        .config(CONFIG)
        .ports(http, https)
        .http(&format!("[\"@HTTP@\", \"{}:{}\"]", link.address, http.port()))
        .route("demo", &witnessed("", ""))
        .route("late", &late.replace("{session}.test", "{session}.late"))
        .start();

    // Quiet, and there.
    let (mut socket, _) = {
        let stream = tokio::net::TcpStream::connect(edge.http).await.expect("a connection");
        tokio_tungstenite::client_async("ws://quiet-ws.test/ws", stream).await.expect("a WebSocket")
    };
    let events = "/sse?every_ms=3600000";
    let mut http2 = connect(edge.http).await;
    let (answer, _) = http2.send_request(get("quiet-h2.test", events), true).expect("sent");
    let by_http2 = answer.await.expect("an answer");
    let quiet = format!("GET {events} HTTP/1.1\r\nHost: quiet-sse.test\r\n\r\n");
    let mut by_http1 = Wire::sent(edge.http, quiet.as_bytes()).await;
    assert!(by_http1.head().await.starts_with("HTTP/1.1 200 "));

    let get = |host: &str, path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let gone = ["ws.test", "ticking-ws.test", "sse.test", "ticking-sse.test", "held.late"];
    let says = [
        get(gone[0], "/ws", upgrade),
        get(gone[1], "/ws?tick=1", upgrade),
        get(gone[2], events, ""),
        get(gone[3], "/sse?every_ms=100", ""),
        get(gone[4], "/", ""),
    ];
    link.client(http.port(), &says);
    for host in gone {
        edge.wait_until(&format!("{host} is open"), |edge| leases(edge, host) == 1);
    }
    link.cut();
    for host in gone {
        edge.wait_until(&format!("{host} is gone"), |edge| leases(edge, host) == 0);
    }
    for host in ["quiet-ws.test", "quiet-h2.test", "quiet-sse.test"] {
        assert_eq!(leases(&edge, host), 1, "{host} is only quiet");
    }
    socket.send(Message::text("still here")).await.expect("sent");
    let echo = socket.next().await.expect("an echo").expect("an echo");
    assert_eq!(echo, Message::text("still here"));
    drop((socket, by_http1, by_http2, http2));
}

/// Its kernel, or a proxy's, answers for it; only PING tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_answers_no_ping_is_gone() {
    let mut edge = Setup::new().config(CONFIG).route("demo", &witnessed("", "")).start();
    let mut http2 = connect(edge.http).await;
    let events = "/sse?every_ms=3600000";
    let (answer, _) = http2.send_request(get("quiet.test", events), true).expect("sent");
    let answer = answer.await.expect("an answer");

    // GET, http, a path and an authority; no index but of the static table (RFC 7541).
    let mut head = vec![0x82, 0x86];
    for (name, value) in [(0x04, events), (0x01, "mute.test")] {
        head.extend([name, u8::try_from(value.len()).expect("short")]);
        head.extend(value.bytes());
    }
    let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    says.extend([0, 0, u8::try_from(head.len()).expect("short"), 0x01, 0x05, 0, 0, 0, 1]);
    says.extend(head);
    let mute = Wire::sent(edge.http, &says).await;
    edge.wait_until("it has woken its session", |edge| edge.starts("mute.test") == 1);
    edge.wait_until("it was missed", |edge| {
        edge.metric(&["dormouse_refused_total", "client_gone"]) == 1.0
    });
    edge.wait_until("it is gone", |edge| leases(edge, "mute.test") == 0);
    assert_eq!(leases(&edge, "quiet.test"), 1, "it answers");
    drop((mute, answer, http2));
}
