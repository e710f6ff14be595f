//! Instances of every kind that a route can speak to, and what must not reach one.

use std::{fs, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncReadExt as _, task::JoinSet};

use crate::{
    guest::{self, Guest},
    support::{Edge, Setup, client, end_instances, witnessed},
    wire::Wire,
};

async fn get(edge: &Edge, host: &str) -> Value {
    let answer = client().get(edge.url(host, "/some?where")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.json().await.expect("JSON")
}

// ## TLS

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_https_is_probed_and_asked_over_tls() {
    let more = "[ready]\nprobe = \"http\"\npath = \"/healthz\"\nstatus = 200\n\
                [upstream]\ntls = { verify = false }\n";
    let edge = Setup::new().route("demo", &guest::route(Guest::Https, more)).start();
    for host in ["alice.test", "alice.test", "bob.test"] {
        let came = get(&edge, host).await;
        assert_eq!(came["session"], host);
        assert_eq!(came["version"], "HTTP/1.1");
        // The client's own side is what counts.
        let proto = serde_json::json!(["x-forwarded-proto", "http"]);
        assert!(came["headers"].as_array().expect("headers").contains(&proto), "{came}");
    }
    let body = vec![b'x'; 3_000_000];
    let answer = client().post(edge.url("alice.test", "/")).body(body).send().await;
    let came: Value = answer.expect("an answer").json().await.expect("JSON");
    assert_eq!(came["bytes"], 3_000_000);
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_certificate_nobody_trusts_is_refused() {
    let mut edge =
        Setup::new().route("demo", &guest::route(Guest::Https, "[upstream]\ntls = true\n")).start();
    edge.announce("not_listening").announce("broken");
    for _ in 0..2 {
        let answer = client().get(edge.url("alice.test", "/")).send().await.expect("an answer");
        assert_eq!(answer.status(), 502);
    }
    assert_eq!(edge.starts("alice.test"), 1, "a certificate is no reason to wake it again");
    edge.wait_until("the leases are back", |edge| edge.session("alice.test")["leases"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_does_not_speak_tls_is_not_spoken_to_in_clear() {
    let more = "[upstream]\ntls = { verify = false }\n";
    let route = guest::route(Guest::Recorder, more);
    let mut edge =
        Setup::new().config("[timeouts]\nconnect = \"1s\"\n").route("demo", &route).start();
    edge.announce("not_listening").announce("broken");
    fs::write(edge.path("answer"), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("a file");
    let answer = client().get(edge.url("alice.test", "/secret")).send().await.expect("an answer");
    assert_eq!(answer.status(), 502);
    assert!(!guest::recorded(&edge, "alice.test").concat().contains("secret"));
}

// ## Unix sockets, HTTP/2

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_a_unix_socket_is_served_in_every_way() {
    let unix = "[instance.process]\nlisten = \"unix\"\n";
    let mut edge = Setup::new()
        .route(
            "demo",
            &witnessed("", &format!("{unix}[idle]\nafter = \"100ms\"\nmin_awake = \"0s\"\n")),
        )
        .start();
    for _ in 0..2 {
        // While it is open, it does not sleep between two of these.
        let url = format!("ws://alice.test:{}/ws", edge.http.port());
        let socket = tokio::net::TcpStream::connect(edge.http).await.expect("a connection");
        let opened = tokio_tungstenite::client_async(url, socket).await;
        let opened = opened.expect("a WebSocket");
        let url = edge.url("alice.test", "/whoami");
        let who: Value = client().get(url).send().await.expect("it").json().await.expect("JSON");
        assert!(who["address"].as_str().expect("an address").starts_with("unix:/"), "{who}");
        let url = edge.url("alice.test", "/upload");
        let sent = client().post(url).body(vec![0; 2_000_000]).send().await.expect("an answer");
        let sent: Value = sent.json().await.expect("JSON");
        assert_eq!(sent["bytes"], 2_000_000);
        drop(opened);
        edge.wait_state("alice.test", "asleep");
    }
    assert_eq!(edge.starts("alice.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_speaks_http2_alone_is_spoken_to_in_http2() {
    let edge = Setup::new()
        .route("demo", &guest::route(Guest::Http2, "[upstream]\nprotocol = \"http2\"\n"))
        .start();
    let came = get(&edge, "alice.test").await;
    assert_eq!(came["version"], "HTTP/2.0");
    assert!(came["uri"].as_str().expect("a URI").ends_with("/some?where"), "{came}");
    let body = vec![b'x'; 3_000_000];
    let many =
        (0..20).map(|_| client().post(edge.url("alice.test", "/")).body(body.clone()).send());
    for answer in futures::future::join_all(many).await {
        let came: Value = answer.expect("an answer").json().await.expect("JSON");
        assert_eq!(came["bytes"], 3_000_000);
    }
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_instance_that_is_woken_again_gets_no_stream_of_its_old_connections() {
    let more = "[upstream]\nprotocol = \"http2\"\n[idle]\nafter = \"50ms\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new().route("demo", &guest::route(Guest::Http2, more)).start();
    for _ in 0..3 {
        get(&edge, "alice.test").await;
        edge.wait_state("alice.test", "asleep");
    }
    assert_eq!(edge.starts("alice.test"), 3);
}

// ## What must not reach an instance

const SECOND: &str = "GET /smuggled HTTP/1.1\r\nHost: alice.test\r\nX-Second: 1\r\n\r\n";

/// What two readers may frame differently: the name of it, and the bytes from the method on.
fn ambiguous() -> Vec<(&'static str, String)> {
    let n = SECOND.len();
    let te = "Transfer-Encoding: chunked\r\n";
    let last = "\r\n0\r\n\r\n";
    let heads = [
        ("CL and TE", format!("Content-Length: 4\r\n{te}{last}")),
        ("TE and CL", format!("{te}Content-Length: 4\r\n{last}")),
        ("two CL", format!("Content-Length: 0\r\nContent-Length: {n}\r\n\r\n")),
        ("two CL, the other way", format!("Content-Length: {n}\r\nContent-Length: 0\r\n\r\n")),
        ("a list of CL", format!("Content-Length: 0,{n}\r\n\r\n")),
        ("a list of equal CL", "Content-Length: 1000,1000\r\n\r\n".to_owned()),
        ("CL with a sign", "Content-Length: +0\r\n\r\n".to_owned()),
        ("TE folded", format!("Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n{last}")),
        ("CL folded away", "X-A: b\r\n Content-Length: 3\r\n\r\n".to_owned()),
        ("a space before the colon of CL", format!("Content-Length : {n}\r\n\r\n")),
        ("a space before the colon of TE", format!("Transfer-Encoding : chunked\r\n{last}")),
        ("an unknown TE", format!("Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n{last}")),
        ("TE and identity", format!("Transfer-Encoding: identity\r\n{te}{last}")),
        ("TE not last", format!("Transfer-Encoding: chunked, identity\r\n{last}")),
        (
            "TE with an underscore",
            format!("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n{last}"),
        ),
        ("a bare CR", "X-A: b\rContent-Length: 9\r\nContent-Length: 0\r\n\r\n".to_owned()),
        ("bare LF", "Content-Length: 0\n\n".to_owned()),
        ("a bare LF before TE", format!("X-A: b\n{te}Content-Length: 5\r\n{last}")),
        ("a chunk's size with rubbish", format!("{te}\r\n0x0\r\n\r\n")),
        ("a chunk longer than it says", format!("{te}\r\n1\r\nabc{last}")),
        ("a chunk's extension with a line", format!("{te}\r\n1;a=\"\nb\"\r\nx{last}")),
        ("a chunk's extension", format!("{te}\r\n1;a=b\r\nx{last}")),
    ];
    let whole =
        |head: String| format!("POST /first HTTP/1.1\r\nHost: alice.test\r\n{head}{SECOND}");
    heads.into_iter().map(|(name, head)| (name, whole(head))).collect()
}

/// The heads that a strict reader finds in what came by one connection. What it would have to
/// refuse is an error.
fn requests(mut bytes: &str) -> Result<Vec<&str>, String> {
    let mut heads = Vec::new();
    while let Some((head, rest)) = bytes.split_once("\r\n\r\n") {
        let (_, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        heads.push(head);
        let mut lengths = Vec::new();
        let mut chunked = false;
        for header in headers.split("\r\n") {
            let (name, value) = header.split_once(':').ok_or(format!("no header: {header:?}"))?;
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                return Err(format!("a strange name: {header:?}"));
            }
            if value.contains(['\r', '\n']) {
                return Err(format!("a strange value: {header:?}"));
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.trim().to_owned()),
                "transfer-encoding" if value.trim() == "chunked" && !chunked => chunked = true,
                "transfer-encoding" => return Err(format!("a strange coding: {header:?}")),
                _ => {}
            }
        }
        bytes = match (chunked, lengths.as_slice()) {
            (true, []) => after_chunks(rest)?,
            (false, []) => rest,
            (false, [one]) => {
                let digits = one.bytes().all(|b| b.is_ascii_digit());
                let length = one.parse::<usize>().ok().filter(|_| digits);
                let length = length.ok_or(format!("a strange length: {one:?}"))?;
                rest.get(length..).unwrap_or("")
            }
            _ => return Err(format!("more than one framing: {head:?}")),
        };
    }
    Ok(heads)
}

fn after_chunks(mut bytes: &str) -> Result<&str, String> {
    while let Some((size, rest)) = bytes.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("a chunk of {size:?}"))?;
        bytes = rest.get(size + 2..).unwrap_or("");
        if size == 0 {
            break;
        }
    }
    Ok(bytes)
}

/// Whatever the edge makes of it, be it one request or two, the instance sees no request that the
/// edge did not see, and all are framed so that nobody can see others.
#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_request_does_not_become_two() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_body = \"2s\"\nclient_idle = \"1s\"\nanswer = \"1s\"\n")
        .route("demo", &guest::route(Guest::Recorder, ""))
        .start();
    edge.announce("silent").announce("broken");
    fs::write(edge.path("answer"), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("a file");
    let mut wrong = Vec::new();
    for (number, (name, bytes)) in ambiguous().into_iter().enumerate() {
        let host = format!("s{number}.test");
        assert_eq!(edge.admin_post(&format!("/v1/sessions/{host}/wake")).0, 200);
        let bytes = bytes.replace("alice.test", &host);
        let answers = Wire::sent(edge.http, bytes.as_bytes()).await.rest().await;
        edge.wait_until("all is over", |edge| edge.session(&host)["leases"] == 0);
        edge.assert_lives();
        let seen = guest::recorded(&edge, &host);
        let lines = answers.lines().filter(|line| line.starts_with("HTTP/1."));
        println!("{name}: {:?}, the instance saw {seen:?}", lines.collect::<Vec<_>>());
        let found: Result<Vec<_>, _> = seen.iter().map(|seen| requests(seen)).collect();
        match found.map(|heads| heads.concat()) {
            Ok(heads) if heads.iter().all(|head| head.contains("\r\nX-Request-Id: ")) => {}
            found => wrong.push(format!("{name}: {found:?} in {seen:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_strict_reader_finds_what_is_there() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let two = |framing: &str| format!("{post}{framing}{SECOND}");
    for framing in [
        "\r\n",
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        assert_eq!(requests(&two(framing)).expect("plain").len(), 2, "{framing:?}");
    }
    let one = format!("{post}Content-Length: {}\r\n\r\n{SECOND}", SECOND.len());
    assert_eq!(requests(&one).expect("plain").len(), 1);
    for framing in [
        "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "Content-Length : 1\r\n\r\nx",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        assert!(requests(&two(framing)).is_err(), "{framing:?}");
    }
}

/// A connect waits for as long as nothing answers it, and then reaches whoever has the address.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_outlives_its_instance_brings_nothing_to_the_next_at_its_address() {
    let mut edge = Setup::new()
        .config("[timeouts]\nconnect = \"30s\"\n")
        .route("demo", &guest::route(Guest::Stuck, ""))
        .start();
    let (status, woken) = edge.admin_post("/v1/sessions/alice.test/wake");
    assert_eq!(status, 200);
    let address = woken["session"]["address"].as_str().expect("an address").to_owned();
    fs::write(edge.path("deaf"), "").expect("a file");
    edge.wait_until("it is stuck", |edge| edge.path("stuck").exists());
    let queue = guest::fill_queue(&address).await;
    // The next life is one that answers.
    edge.write_route("demo", &witnessed("", ""));
    edge.wait_until("the route has changed", |edge| edge.log_count(&["routes reloaded"]) == 1);
    let mut asked = JoinSet::new();
    asked.spawn(client().get(edge.url("alice.test", "/whoami")).send());
    edge.wait_state("alice.test", "awake");

    end_instances(edge.dir.path());
    edge.wait_until("its end is noticed", |edge| edge.state("alice.test") != "awake");
    let next = tokio::net::TcpListener::bind(&address).await.expect("its address is free");
    let mut came = JoinSet::new();
    came.spawn(async move {
        let mut bytes = Vec::new();
        let mut stream = next.accept().await.expect("accept").0;
        stream.read_to_end(&mut bytes).await.map(|_| bytes)
    });
    let answer = asked.join_next().await.expect("one").expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(edge.starts("alice.test"), 2);
    // If it came in the moment when nobody had the address, it came to nobody.
    if let Some(came) = came.try_join_next() {
        let came = came.expect("no panic").unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&came), "");
    }
    drop(queue);
}

fn upgrade(host: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// RFC 9931: an optimistic client sends on before it is told that its upgrade was taken.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_an_upgrade_do_not_reach_an_instance_before_its_101() {
    let mut edge = Setup::new()
        .config("[timeouts]\nclient_body = \"2s\"\nclient_idle = \"1s\"\n")
        .route("demo", &guest::route(Guest::Recorder, ""))
        .start();
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
    // Silent, and refusing. Both are asked after a hold.
    for (host, answer) in [("silent.test", ""), ("refusing.test", refusal)] {
        fs::write(edge.path("answer"), answer).expect("a file");
        let together = upgrade(host) + &SECOND.replace("alice.test", host);
        let apart = upgrade(host);
        let one = Wire::sent(edge.http, together.as_bytes()).await;
        let two = Wire::sent(edge.http, apart.as_bytes()).await;
        edge.wait_until("the requests have arrived", |edge| {
            let seen = guest::recorded(edge, host);
            seen.iter().filter(|seen| seen.ends_with("\r\n\r\n")).count() == 2
        });
        let _ = two.0.try_write(SECOND.as_bytes());
        // No event tells of bytes that do not come.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop((one, two));
        edge.wait_until("the leases are back", |edge| edge.session(host)["leases"] == 0);
        let seen = guest::recorded(&edge, host).concat();
        assert!(seen.contains("GET /ws") && !seen.contains("smuggled"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_on_and_leaves_before_the_101_gives_its_lease_back() {
    let mut edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    for (host, together) in [("alice.test", true), ("bob.test", false)] {
        let early = if together { "too early" } else { "" };
        let wire = Wire::sent(edge.http, (upgrade(host) + early).as_bytes()).await;
        edge.wait_until("the request has arrived", |edge| {
            guest::recorded(edge, host).first().is_some_and(|all| all.ends_with("\r\n\r\n"))
        });
        if !together {
            wire.0.try_write(b"too early").expect("sent");
        }
        drop(wire);
        edge.wait_until("the lease is back", |edge| edge.session(host)["leases"] == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_the_101_go_both_ways_unread() {
    let mut edge = Setup::new().route("demo", &guest::route(Guest::Recorder, "")).start();
    let taken = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\n\r\nnot even a frame";
    fs::write(edge.path("answer"), taken).expect("a file");
    let mut wire = Wire::sent(edge.http, upgrade("alice.test").as_bytes()).await;
    let answer = wire.until("not even a frame").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    wire.send(SECOND.as_bytes()).await;
    edge.wait_until("all has arrived", |edge| {
        guest::recorded(edge, "alice.test").concat().ends_with(SECOND)
    });
    assert_eq!(edge.session("alice.test")["leases"], 1);
}
