//! What a request sees and costs while it is held: who leaves is forgotten, what was sent waits.

use std::{fs, net::SocketAddr};

use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::support::{Edge, PATIENCE, Setup, client, witnessed};

const HOST: &str = "alice.test";

/// A witnessed route whose instances listen only once the test has opened the gate of their host.
pub(crate) fn gated(more: &str) -> String {
    let gate = "; until [ -e gate-$DORMOUSE_SESSION ]; do sleep 0.01; done; exec ";
    witnessed("", more).replacen("; exec ", gate, 1)
}

pub(crate) fn open_gate(edge: &Edge, host: &str) {
    fs::write(edge.path(&format!("gate-{host}")), "").expect("the gate");
}

/// Waits until so many requests wait for `host`.
pub(crate) fn wait_held(edge: &mut Edge, host: &str, requests: u32) {
    let what = format!("{requests} requests wait for {host}");
    edge.wait_until(&what, |edge| edge.session(host)["leases"] == requests);
}

/// A client that decides on every byte.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    came: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).await.expect("it takes connections"))
    }

    pub(crate) fn of(stream: TcpStream) -> Self {
        Self { stream, came: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("it takes bytes");
    }

    /// Everything up to and with `end`; what was there until the peer closed, if it never came.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let end = end.as_bytes();
        loop {
            if let Some(at) = self.came.windows(end.len()).position(|window| window == end) {
                let text = self.came.drain(..at + end.len()).collect();
                return String::from_utf8(text).expect("text");
            }
            if !self.more().await {
                return String::from_utf8(std::mem::take(&mut self.came)).expect("text");
            }
        }
    }

    pub(crate) async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.came.len() < bytes {
            assert!(self.more().await, "it ended after {} of {bytes} bytes", self.came.len());
        }
        self.came.drain(..bytes).collect()
    }

    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.came)).await;
        0 < read.expect("something comes").expect("the connection lives")
    }

    /// A head, and the body that its Content-Length tells of.
    pub(crate) async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let body = self.exactly(length.unwrap_or(0)).await;
        (head, String::from_utf8(body).expect("text"))
    }

    /// Whether nothing has come so far.
    pub(crate) fn is_silent(&mut self) -> bool {
        let silent = |e: std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
        self.came.is_empty() && self.stream.try_read_buf(&mut self.came).is_err_and(silent)
    }
}

/// A route whose instance is the test itself: what the engine starts only says where to listen.
pub(crate) fn played() -> String {
    witnessed("", "")
        .replacen("; exec ", "; echo {address} > told; mv told address; exec sleep 1000000; : ", 1)
        .replace("probe = \"http\"\npath = \"/healthz\"", "probe = \"tcp\"")
}

/// The instance that the test plays.
pub(crate) struct Played(TcpListener);

impl Played {
    pub(crate) async fn start(edge: &mut Edge) -> Self {
        edge.wait_until("the instance is started", |edge| edge.path("address").exists());
        let address = fs::read_to_string(edge.path("address")).expect("the address");
        Self(TcpListener::bind(address.trim()).await.expect("the address is free"))
    }

    /// The next connection that brings a request, and the request's head. Probes bring none.
    pub(crate) async fn request(&self) -> (Raw, String) {
        loop {
            let next = timeout(PATIENCE, self.0.accept()).await.expect("the edge connects");
            let mut raw = Raw::of(next.expect("accept").0);
            let head = raw.until("\r\n\r\n").await;
            if !head.is_empty() {
                return (raw, head);
            }
        }
    }
}

/// Whoever asked has left: the place is free, the wake goes on, and the next one gets its instance,
/// which has heard of nobody else.
async fn assert_forgotten(mut edge: Edge) {
    edge.wait_until("the place is free", |edge| {
        edge.session(HOST)["leases"] == 0 && edge.metric(&["dormouse_held_requests"]) == 0.0
    });
    assert_eq!(edge.state(HOST), "waking", "the wake goes on");
    open_gate(&edge, HOST);
    edge.wait_state(HOST, "idle");
    let answer = client().get(edge.url(HOST, "/whoami")).send().await.expect("an answer");
    let who: Value = answer.json().await.expect("JSON");
    assert_eq!(who["requests"], 1, "nothing of those who left reached the instance");
    assert_eq!(edge.starts(HOST), 1);
}

/// Sends these bytes, leaves once the request is held.
async fn leave_after(sent: &[u8]) {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let mut raw = Raw::connect(edge.http).await;
    raw.send(sent).await;
    wait_held(&mut edge, HOST, 1);
    drop(raw);
    assert_forgotten(edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_leaves_frees_its_place_and_the_wake_goes_on() {
    leave_after(b"GET /whoami HTTP/1.1\r\nhost: alice.test\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_leaves_before_its_body_frees_its_place() {
    leave_after(b"POST /upload HTTP/1.1\r\nhost: alice.test\r\ncontent-length: 9\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_leaves_with_its_body_unread_frees_its_place() {
    let head = b"POST /upload HTTP/1.1\r\nhost: alice.test\r\ncontent-length: 20000\r\n\r\n";
    leave_after(&[head, &[b'x'; 20_000][..]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_breaks_off_while_the_kernel_is_full_of_it_frees_its_place() {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let mut raw = Raw::connect(edge.http).await;
    let length = 100_000_000;
    let head = format!("POST /upload HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {length}\r\n\r\n");
    raw.send(head).await;
    wait_held(&mut edge, HOST, 1);
    while raw.stream.try_write(&[b'x'; 64 * 1024]).is_ok() {}
    // A close in peace would wait behind the body that nobody reads.
    raw.stream.set_zero_linger().expect("a socket");
    drop(raw);
    assert_forgotten(edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_post_that_leaves_frees_its_place() {
    let head = b"POST /upload HTTP/1.1\r\nhost: alice.test\r\ntransfer-encoding: chunked\r\n\r\n";
    leave_after(&[&head[..], b"5\r\nhello\r\n"].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_leaves_frees_its_place() {
    leave_after(
        b"GET /ws HTTP/1.1\r\nhost: alice.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
          sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_leaves_with_a_second_request_behind_it_frees_its_place() {
    leave_after(&b"GET /whoami HTTP/1.1\r\nhost: alice.test\r\n\r\n".repeat(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_stream_frees_its_place_and_its_connection_goes_on() {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let stream = TcpStream::connect(edge.http).await.expect("connect");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut sender = sender.ready().await.expect("ready");
    let request = |method: &str, path: &str| {
        let uri = format!("http://{HOST}{path}");
        http::Request::builder().method(method).uri(uri).body(()).expect("a request")
    };
    let get = sender.send_request(request("GET", "/whoami"), true).expect("sent");
    let post = sender.send_request(request("POST", "/upload"), false).expect("sent");
    wait_held(&mut edge, HOST, 2);
    let ((_, mut get), (_, mut post)) = (get, post);
    get.send_reset(h2::Reason::CANCEL);
    wait_held(&mut edge, HOST, 1);
    post.send_data(vec![0; 1000].into(), false).expect("sent");
    post.send_reset(h2::Reason::CANCEL);
    wait_held(&mut edge, HOST, 0);

    let (third, _) = sender.send_request(request("GET", "/headers"), true).expect("sent");
    wait_held(&mut edge, HOST, 1);
    open_gate(&edge, HOST);
    assert_eq!(third.await.expect("an answer").status(), 200);
    edge.wait_state(HOST, "idle");
    let answer = client().get(edge.url(HOST, "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.json::<Value>().await.expect("JSON")["requests"], 2);
    assert_eq!(edge.starts(HOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_behind_a_held_one_is_answered_after_it() {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let mut raw = Raw::connect(edge.http).await;
    raw.send("GET /slow?ms=1 HTTP/1.1\r\nhost: alice.test\r\n\r\n").await;
    wait_held(&mut edge, HOST, 1);
    raw.send("POST /upload HTTP/1.1\r\nhost: alice.test\r\ncontent-length: 5\r\n\r\nhello").await;
    raw.send("GET /slow?ms=3 HTTP/1.1\r\nhost: bob.test\r\n\r\n").await;
    open_gate(&edge, HOST);
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "answered after 1 ms\n");
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains("\"bytes\":5"), "{body}");
    wait_held(&mut edge, "bob.test", 1);
    open_gate(&edge, "bob.test");
    assert_eq!(raw.answer().await.1, "answered after 3 ms\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_100_comes_from_the_instance_only() {
    let mut edge = Setup::new().route("played", &played()).start();
    let mut raw = Raw::connect(edge.http).await;
    let head = "POST / HTTP/1.1\r\nhost: alice.test\r\ncontent-length: 5\r\n\
                expect: 100-continue\r\n\r\n";
    raw.send(head).await;
    wait_held(&mut edge, HOST, 1);
    assert!(raw.is_silent(), "nothing comes while it is held");
    let instance = Played::start(&mut edge).await;
    let (mut upstream, head) = instance.request().await;
    assert!(head.to_lowercase().contains("\r\nexpect: 100-continue\r\n"), "{head}");
    assert!(raw.is_silent(), "nor before the instance says so");

    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(raw.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(upstream.is_silent(), "the body waits for the 100");
    raw.send("hello").await;
    assert_eq!(upstream.exactly(5).await, b"hello");
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200"), "a second 100? {head}");
    assert!(head.contains("server-timing"), "the final answer has the timings: {head}");
    assert_eq!(body, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_expects_a_100_and_is_refused_gets_none() {
    let mut edge = Setup::new().route("played", &played()).start();
    let mut raw = Raw::connect(edge.http).await;
    let head = "POST / HTTP/1.1\r\nhost: alice.test\r\ncontent-length: 5\r\n\
                expect: 100-continue\r\n\r\n";
    raw.send(head).await;
    let instance = Played::start(&mut edge).await;
    let (mut upstream, _) = instance.request().await;
    upstream.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert_eq!(body, "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_than_a_session_may_hold_is_refused_and_others_are_not() {
    let mut edge = Setup::new().route("demo", &gated("[wake]\nheld_max = 2\n")).start();
    let client = client();
    let get = |host| client.get(edge.url(host, "/whoami")).send();
    let (held, others) = ([get(HOST), get(HOST)], [get("bob.test"), get("bob.test")]);
    let mut waiting = JoinSet::new();
    held.into_iter().chain(others).for_each(|get| drop(waiting.spawn(get)));
    wait_held(&mut edge, HOST, 2);
    wait_held(&mut edge, "bob.test", 2);

    refused_as_full(&edge, HOST, "session_full").await;
    open_gate(&edge, HOST);
    open_gate(&edge, "bob.test");
    for answer in waiting.join_all().await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    assert_eq!((edge.starts(HOST), edge.starts("bob.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_than_all_may_hold_is_refused_and_who_is_awake_is_served() {
    let mut edge = Setup::new().config("[limits]\nheld = 2\n").route("demo", &gated("")).start();
    let client = client();
    open_gate(&edge, "awake.test");
    let warm = edge.url("awake.test", "/whoami");
    let warm = || client.get(&warm).send();
    assert_eq!(warm().await.expect("an answer").status(), 200);

    let mut waiting = JoinSet::new();
    for host in [HOST, "bob.test"] {
        waiting.spawn(client.get(edge.url(host, "/whoami")).send());
    }
    edge.wait_until("two are held", |edge| edge.metric(&["dormouse_held_requests"]) == 2.0);
    refused_as_full(&edge, "carol.test", "held_full").await;
    assert_eq!(edge.starts("carol.test"), 0, "who is refused wakes nothing");
    for answer in join_all((0..5).map(|_| warm())).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    open_gate(&edge, HOST);
    open_gate(&edge, "bob.test");
    for answer in waiting.join_all().await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    open_gate(&edge, "carol.test");
    let carol = client.get(edge.url("carol.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(carol.status(), 200, "the places are free again");
}

/// Asks for `host` and is told to come back later; counted as `reason`.
async fn refused_as_full(edge: &Edge, host: &str, reason: &str) {
    let reason_label = format!("reason=\"{reason}\"");
    let refused = || edge.metric(&["dormouse_refused_total", &reason_label]);
    assert_eq!(refused(), 0.0);
    let answer = client().get(edge.url(host, "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "1");
    let problem: Value = answer.json().await.expect("JSON");
    assert_eq!(problem["type"], format!("urn:dormouse:{reason}"));
    assert_eq!(refused(), 1.0);
}
