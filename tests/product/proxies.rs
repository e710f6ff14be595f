//! Who the client is, where proxies stand in front of the edge.

use crate::{
    support::{Edge, Setup, witnessed},
    tls::{Authority, NAMES, ask},
    wire::Wire,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const REQUEST: &str = "GET /headers HTTP/1.1\r\nHost: alice.test\r\nConnection: close\r\n";

/// The values of a header as it reached the instance.
fn values(answer: &str, name: &str) -> Vec<String> {
    let body = answer.split_once("\r\n\r\n").expect("a head").1;
    let start = body.find('[').expect("JSON");
    let end = body.rfind(']').expect("JSON");
    let headers: Vec<(String, String)> =
        serde_json::from_str(&body[start..=end]).expect("a list of headers");
    headers.into_iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect()
}

async fn arrived(edge: &Edge, more: &str) -> String {
    let request = format!("{REQUEST}{more}\r\n");
    Wire::sent(edge.http, request.as_bytes()).await.rest().await
}

fn edge(listen: &str) -> Edge {
    Setup::new().listen(listen).route("demo", &witnessed("", "")).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_chain_is_believed_and_gone_on_with() {
    let mut edge = edge("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let noted = "X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\nX-Forwarded-For: 10.0.0.7\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Host: desk.example\r\n\
                 X-Forwarded-Port: 443\r\nForwarded: for=66.66.66.66\r\n";
    let answer = arrived(&edge, noted).await;
    assert_eq!(values(&answer, "x-forwarded-for"), ["6.6.6.6, 192.0.2.1, 10.0.0.7, 127.0.0.1"]);
    assert_eq!(values(&answer, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&answer, "x-forwarded-host"), ["desk.example"]);
    assert_eq!(values(&answer, "x-forwarded-port"), ["443"]);
    let chain = "for=6.6.6.6, for=192.0.2.1, for=10.0.0.7, \
                 for=127.0.0.1;host=\"alice.test\";proto=http";
    assert_eq!(values(&answer, "forwarded"), [chain]);
    // The client of that request: the rightmost hop that is not trusted.
    edge.wait_until("it is logged", |edge| {
        edge.log_count(&["request", "client=Some(192.0.2.1)"]) == 1
    });

    let answer = arrived(&edge, "Forwarded: for=\"[2001:db8::1]:80\";proto=https\r\n").await;
    assert_eq!(values(&answer, "x-forwarded-for"), ["2001:db8::1, 127.0.0.1"]);
    assert_eq!(values(&answer, "x-forwarded-proto"), ["https"]);
    let answer = arrived(&edge, "").await;
    assert_eq!(values(&answer, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&answer, "x-forwarded-proto"), ["http"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    let mut edge = edge("trusted_proxies = [\"10.0.0.0/8\"]");
    let noted = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\n\
                 X-Forwarded-Host: evil.example\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n";
    let answer = arrived(&edge, noted).await;
    assert_eq!(values(&answer, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&answer, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&answer, "x-forwarded-host"), ["alice.test"]);
    assert!(!answer.contains("6.6.6.6") && !answer.contains("evil"), "{answer}");
    edge.wait_until("it is logged", |edge| {
        edge.log_count(&["request", "client=Some(127.0.0.1)"]) == 1
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_speaks_tls_for_us_is_not_redirected_to_https() {
    let more = "[tls]\nredirect = true\nhsts = \"1d\"\n";
    let setup = Setup::new().listen("trusted_proxies = [\"127.0.0.1\"]");
    let edge = setup.route("demo", &witnessed("", more)).start();
    let answer = arrived(&edge, "X-Forwarded-Proto: https\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_lowercase().contains("strict-transport-security: max-age=86400\r\n"));
    let answer = arrived(&edge, "X-Forwarded-Proto: http\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    assert!(answer.to_lowercase().contains("location: https://alice.test/headers\r\n"), "{answer}");
}

/// `PROXY` version 2 for 192.0.2.7.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([192, 0, 2, 7, 10, 0, 0, 1, 4, 210, 1, 187]);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_says_who_the_client_is() {
    let setup = Setup::new()
        .http("[{ address = \"@HTTP@\", proxy_protocol = true }]")
        .listen("trusted_proxies = [\"127.0.0.1\"]")
        .route("demo", &witnessed("", ""));
    let mut edge = setup.start();
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 443\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 1234 443\r\n".to_vec(), "2001:db8::7"),
        (v2(), "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ] {
        // In one piece with the request, and byte by byte.
        let mut bytes = header.clone();
        bytes.extend(format!("{REQUEST}X-Forwarded-For: 6.6.6.6\r\n\r\n").bytes());
        let whole = Wire::sent(edge.http, &bytes).await.rest().await;
        let mut wire = Wire::open(edge.http).await;
        wire.0.set_nodelay(true).expect("set");
        for byte in bytes {
            wire.send(&[byte]).await;
        }
        for answer in [whole, wire.rest().await] {
            // The client's own word counts for nothing, also where the proxy does not know it.
            assert_eq!(values(&answer, "x-forwarded-for"), [client], "{header:?}");
        }
    }
    for bytes in
        [&b"PROXY TCP4 nonsense\r\n"[..], REQUEST.as_bytes(), b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0"]
    {
        assert_eq!(Wire::sent(edge.http, bytes).await.rest().await, "");
    }
    edge.wait_until("they are counted", |edge| {
        edge.metric(&["dormouse_handshakes_total", "proxy_header"]) == 3.0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_is_taken_from_trusted_proxies_alone() {
    let setup = Setup::new()
        .http("[{ address = \"@HTTP@\", proxy_protocol = true }]")
        .listen("trusted_proxies = [\"10.0.0.0/8\"]")
        .route("demo", &witnessed("", ""));
    let mut edge = setup.start();
    let mut bytes = v2();
    bytes.extend(format!("{REQUEST}\r\n").bytes());
    assert_eq!(Wire::sent(edge.http, &bytes).await.rest().await, "");
    assert_eq!(Wire::sent(edge.http, format!("{REQUEST}\r\n").as_bytes()).await.rest().await, "");
    edge.wait_until("they are counted", |edge| {
        edge.metric(&["dormouse_handshakes_total", "untrusted_proxy"]) == 2.0
    });
    assert_eq!(edge.starts("alice.test"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_where_none_is_due_is_no_request() {
    let edge = edge("trusted_proxies = [\"127.0.0.1\"]");
    let bytes = format!("PROXY TCP4 192.0.2.7 10.0.0.1 1234 443\r\n{REQUEST}\r\n");
    let answer = Wire::sent(edge.http, bytes.as_bytes()).await.rest().await;
    assert!(!answer.contains("200 OK"), "{answer}");
    assert_eq!(edge.starts("alice.test"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_stands_before_the_handshake() {
    let authority = Authority::new();
    let setup = Setup::new()
        .listen("https = [{ address = \"@HTTPS@\", proxy_protocol = true }]\n")
        .listen("trusted_proxies = [\"127.0.0.1\"]")
        .route("demo", &witnessed("", ""));
    let edge = authority.mint(NAMES).set_up(setup, "both").start();
    for header in [v2(), b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 443\r\n".to_vec()] {
        let mut socket = TcpStream::connect(edge.https).await.expect("a connection");
        socket.write_all(&header).await.expect("sent");
        let stream = authority.client().over(socket, "alice.test").await.expect("a handshake");
        let (mut wire, head) = ask(stream, REQUEST.trim_end()).await;
        let answer = head + &wire.until("]]").await;
        assert_eq!(values(&answer, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(values(&answer, "x-forwarded-proto"), ["https"]);
    }
    // Without the header there is no handshake.
    authority.client().connect(&edge, "alice.test").await.expect_err("refused");
}
