//! What is decided before a session has a word in it: local answers, whom nobody wakes for, rates,
//! and how many may run.

use std::{fs, net::IpAddr, time::Duration};

use futures::{SinkExt as _, StreamExt as _, future::join_all};
use reqwest::{Response, StatusCode};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    support::{DORMOUSE, Edge, PATIENCE, Setup, client, witnessed},
    wire::Wire,
};

/// A client of its own: all of 127.0.0.0/8 is this machine.
fn client_at(address: &str) -> reqwest::Client {
    let address: IpAddr = address.parse().expect("an address");
    crate::support::client_builder().local_address(address).build().expect("a client")
}

async fn get(edge: &Edge, host: &str, path: &str) -> Response {
    client().get(edge.url(host, path)).send().await.expect("an answer")
}

async fn get_from(edge: &Edge, address: &str, host: &str) -> Response {
    client_at(address).get(edge.url(host, "/whoami")).send().await.expect("an answer")
}

fn retry_after(answer: &Response) -> u64 {
    let header = answer.headers().get("retry-after").expect("Retry-After");
    header.to_str().expect("text").parse().expect("seconds")
}

async fn reason(answer: Response) -> String {
    let body: serde_json::Value = answer.json().await.expect("a problem");
    body["type"].as_str().expect("a type").trim_start_matches("urn:dormouse:").to_owned()
}

fn never_woken(edge: &Edge, host: &str) {
    assert_eq!(edge.starts(host), 0);
    assert_eq!(edge.metric(&["dormouse_wakes_total"]), 0.0);
    assert_eq!(edge.state(host), "none", "nothing is left of it");
}

/// Sessions that listen once the file `open` exists.
fn opened_by_hand(more: &str) -> String {
    let script = format!(
        "echo $DORMOUSE_SESSION >> starts; until [ -e open ]; do sleep 0.05; done; \
         exec {DORMOUSE} demo-session --listen {{address}}"
    );
    format!(
        "host = \"{{session}}.test\"\nengine = \"local\"\n[instance]\n\
         command = [\"/bin/sh\", \"-c\", {script:?}]\nenv = {{ TEST_DIR = \"@DIR@\" }}\n\
         [ready]\nprobe = \"http\"\npath = \"/healthz\"\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_path_is_answered_by_the_edge_and_wakes_nobody() {
    let statics = "[static]\n\
        \"/healthz\" = { body = \"fine\\n\" }\n\
        \"/nothing\" = { status = 204 }\n\
        \"/gone\" = { status = 410, body = \"<p>gone\", content_type = \"text/html\" }\n\
        \"/logo.svg\" = { file = \"logo.svg\" }\n";
    let mut edge = Setup::new().start();
    fs::write(edge.path("routes").join("logo.svg"), "<svg/>").expect("a file");
    edge.write_route("demo", &witnessed("", statics));
    edge.wait_until("the route is there", |edge| edge.metric(&["dormouse_routes "]) == 1.0);

    let answer = get(&edge, "alice.test", "/healthz?deep=1").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(answer.text().await.expect("a body"), "fine\n");
    let answer = get(&edge, "alice.test", "/logo.svg").await;
    assert_eq!(answer.headers()["content-type"], "image/svg+xml");
    assert_eq!(answer.text().await.expect("a body"), "<svg/>");
    let answer = get(&edge, "alice.test", "/gone").await;
    assert_eq!(
        (answer.status(), &answer.headers()["content-type"]),
        (StatusCode::GONE, &"text/html".parse().expect("a value"))
    );

    // On one connection, so that a body that was promised and not sent would show.
    let mut wire = Wire::open(edge.http).await;
    for (request, expected) in [
        ("HEAD /healthz", "content-length: 5"),
        ("GET /nothing", "204"),
        ("OPTIONS /healthz", "405"),
        ("GET /healthz", "fine"),
    ] {
        wire.send(format!("{request} HTTP/1.1\r\nHost: alice.test\r\n\r\n").as_bytes()).await;
        let answer = wire.until(if expected == "fine" { "fine\n" } else { "\r\n\r\n" }).await;
        assert!(answer.to_lowercase().contains(expected), "{request}: {answer}");
    }
    let answer = client().post(edge.url("alice.test", "/healthz")).body("x").send().await;
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.status(), answer.headers()["allow"].to_str().expect("text")),
        (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD")
    );
    edge.announce("there is no route yet");
    never_woken(&edge, "alice.test");
    assert_eq!(edge.metric(&["dormouse_local_answers_total{step=\"static\"}"]), 8.0);

    assert_eq!(get(&edge, "alice.test", "/whoami").await.status(), 200, "all else is its own");
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_ignored_wakes_nobody_and_keeps_nobody_awake() {
    let more = "[wake.ignore]\nagents = [\"Googlebot\", \"kube-probe/*\"]\npaths = [\"/metrics\"]\n\
                [idle]\nafter = \"5s\"\nmin_awake = \"0s\"\n";
    let quiet = witnessed("", "[wake.ignore]\nagents = [\"bot\"]\nstatus = 204\n")
        .replace("{session}.test", "{session}.quiet.test");
    let mut edge = Setup::new().route("demo", &witnessed("", more)).route("quiet", &quiet).start();
    let ask = async |host: &str, path: &str, agent: &str| {
        let request = client().get(edge.url(host, path)).header("user-agent", agent);
        request.send().await.expect("an answer")
    };
    for (path, agent) in [
        ("/whoami", "Mozilla/5.0 (compatible; googlebot/2.1)"),
        ("/whoami", "kube-probe/1.30"),
        ("/metrics", "curl/8"),
    ] {
        let answer = ask("alice.test", path, agent).await;
        assert_eq!(answer.status(), 503, "{path} by {agent}");
        assert!(0 < retry_after(&answer));
        assert_eq!(reason(answer).await, "ignored");
    }
    let answer = ask("alice.quiet.test", "/", "a bot").await;
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.text().await.expect("no body"), "");
    never_woken(&edge, "alice.test");
    assert_eq!(edge.metric(&["dormouse_refused_total{reason=\"ignored\"}"]), 4.0);

    assert_eq!(ask("alice.test", "/whoami", "a person").await.status(), 200);
    // While it is awake the request is served; and it sleeps although that never stops.
    let mut served = 0;
    while edge.state("alice.test") != "asleep" {
        let answer = ask("alice.test", "/whoami", "kube-probe/1.30").await;
        served += u32::from(answer.status() == 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(0 < served);
    assert_eq!(ask("alice.test", "/whoami", "kube-probe/1.30").await.status(), 503);
    assert_eq!(edge.starts("alice.test"), 1);
    edge.assert_lives();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_wakes_so_many_and_then_none_and_the_others_go_on() {
    let edge = Setup::new()
        .config("[limits]\nwakes_per_client = \"2/h\"\n")
        .route("demo", &witnessed("", ""))
        .start();
    for host in ["a.test", "b.test"] {
        assert_eq!(get_from(&edge, "127.0.0.2", host).await.status(), 200);
    }
    let before = edge.metric(&["dormouse_wakes_total"]);
    for _ in 0..20 {
        let refused = get_from(&edge, "127.0.0.2", "c.test").await;
        assert_eq!(refused.status(), 429);
        assert!((1700..=1800).contains(&retry_after(&refused)), "{refused:?}");
        assert_eq!(reason(refused).await, "client_rate");
    }
    assert_eq!(edge.metric(&["dormouse_wakes_total"]), before, "no engine was called");
    assert_eq!((edge.starts("c.test"), &*edge.state("c.test")), (0, "none"));
    assert_eq!(edge.metric(&["dormouse_refused_total{reason=\"client_rate\"}"]), 20.0);
    // What is awake costs nothing.
    for host in ["a.test", "b.test", "a.test"] {
        assert_eq!(get_from(&edge, "127.0.0.2", host).await.status(), 200);
    }
    assert_eq!(get_from(&edge, "127.0.0.3", "c.test").await.status(), 200, "another client");
    assert_eq!(get_from(&edge, "127.0.0.2", "c.test").await.status(), 200, "it is awake now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_wakes_so_many_whoever_asks_and_other_routes_go_on() {
    let other = witnessed("", "").replace("{session}.test", "{session}.other.test");
    let edge = Setup::new()
        .route("demo", &witnessed("", "[limits]\nwakes = \"1/h burst 2\"\n"))
        .route("other", &other)
        .start();
    for (client, host) in [("127.0.0.2", "a.test"), ("127.0.0.3", "b.test")] {
        assert_eq!(get_from(&edge, client, host).await.status(), 200);
    }
    let refused = get_from(&edge, "127.0.0.4", "c.test").await;
    assert_eq!(refused.status(), 429);
    assert!((3500..=3600).contains(&retry_after(&refused)));
    assert_eq!(reason(refused).await, "route_rate");
    assert_eq!(edge.starts("c.test"), 0);
    assert_eq!(get_from(&edge, "127.0.0.4", "c.other.test").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_as_many_run_as_may_the_next_is_refused_until_one_sleeps() {
    let more = "[limits]\nrunning = 2\n[idle]\nafter = \"1h\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new().route("demo", &witnessed("", more)).start();
    for host in ["a.test", "b.test"] {
        assert_eq!(get(&edge, host, "/whoami").await.status(), 200);
    }
    let refused = get(&edge, "c.test", "/whoami").await;
    assert_eq!(refused.status(), 503);
    assert!(0 < retry_after(&refused));
    assert_eq!(reason(refused).await, "route_running");
    assert_eq!(edge.starts("c.test"), 0);
    assert_eq!(edge.metric(&["dormouse_running_instances{engine=\"local\"}"]), 2.0);
    assert_eq!(edge.admin_get("/v1/sessions")["running"]["routes"]["demo"], 2);
    edge.admin_post("/v1/sessions/a.test/sleep");
    edge.wait_state("a.test", "asleep");
    assert_eq!(get(&edge, "c.test", "/whoami").await.status(), 200);
    assert_eq!(edge.metric(&["dormouse_evictions_total"]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_nobody_uses_makes_room_and_one_in_use_does_not() {
    let more = "[limits]\nwhen_full = \"evict_idle\"\n[idle]\nafter = \"1h\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new()
        .config("[engines.local]\nkind = \"process\"\nrunning = 3\n")
        .route("demo", &witnessed("", more))
        .start();
    let url = format!("ws://used.test:{}/ws", edge.http.port());
    let stream = TcpStream::connect(edge.http).await.expect("a connection");
    let opened = timeout(PATIENCE, tokio_tungstenite::client_async(url, stream)).await;
    let (mut socket, _) = opened.expect("in time").expect("a WebSocket");
    for host in ["first.test", "second.test"] {
        assert_eq!(get(&edge, host, "/whoami").await.status(), 200);
        edge.wait_state(host, "idle");
    }
    // `used` woke first, and `first` is idle the longest.
    assert_eq!(get(&edge, "third.test", "/whoami").await.status(), 200);
    edge.wait_state("third.test", "idle");
    let states = ["used.test", "first.test", "second.test"].map(|host| edge.state(host));
    assert_eq!(states, ["awake", "asleep", "idle"]);
    assert_eq!(edge.metric(&["dormouse_evictions_total{engine=\"local\"}"]), 1.0);
    socket.send(Message::text("still there")).await.expect("open");
    let echo = timeout(PATIENCE, socket.next()).await.expect("in time");
    assert_eq!(echo.expect("open").expect("a message"), Message::text("still there"));

    // Two at once: each gets the place of another one.
    let both =
        join_all([get(&edge, "fourth.test", "/whoami"), get(&edge, "fifth.test", "/whoami")]);
    assert!(both.await.iter().all(|answer| answer.status() == 200));
    assert_eq!(edge.state("used.test"), "awake");
    assert_eq!(edge.metric(&["dormouse_running_instances{engine=\"local\"}"]), 3.0);
    assert_eq!(edge.starts("used.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_are_in_use_nobody_is_evicted() {
    let more = "[limits]\nrunning = 1\nwhen_full = \"evict_idle\"\n[idle]\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new().route("demo", &opened_by_hand(more)).start();
    let mut held = Wire::sent(edge.http, b"GET /whoami HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    edge.wait_until("it is held", |edge| edge.metric(&["dormouse_held_requests "]) == 1.0);
    let refused = get(&edge, "b.test", "/whoami").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(reason(refused).await, "route_running");
    fs::write(edge.path("open"), "").expect("a file");
    assert!(held.until("}").await.contains(" 200 "));
    edge.wait_state("a.test", "idle");
    assert_eq!(get(&edge, "b.test", "/whoami").await.status(), 200);
    assert_eq!((edge.starts("a.test"), edge.starts("b.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_holds_no_more_than_its_share() {
    let other = witnessed("", "").replace("{session}.test", "{session}.other.test");
    let mut edge = Setup::new()
        .route("demo", &opened_by_hand("[limits]\nheld = 2\n"))
        .route("other", &other)
        .start();
    let mut held = Vec::new();
    for host in ["a.test", "b.test"] {
        let get = format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\n\r\n");
        held.push(Wire::sent(edge.http, get.as_bytes()).await);
    }
    edge.wait_until("both are held", |edge| edge.metric(&["dormouse_held_requests "]) == 2.0);
    for host in ["a.test", "c.test"] {
        let refused = get(&edge, host, "/whoami").await;
        assert_eq!(refused.status(), 503);
        assert!(0 < retry_after(&refused));
        assert_eq!(reason(refused).await, "route_full", "{host}");
    }
    assert_eq!(edge.starts("c.test"), 0);
    assert_eq!(get(&edge, "a.other.test", "/whoami").await.status(), 200);
    fs::write(edge.path("open"), "").expect("a file");
    for mut wire in held {
        assert!(wire.until("}").await.contains(" 200 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_connections_and_another_has_its_own() {
    let mut edge = Setup::new()
        .config("[limits]\nconnections_per_client = 3\n")
        .route("demo", &witnessed("", "[static]\n\"/\" = { body = \"}\" }\n"))
        .start();
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let open = async |address: &str| {
        let socket = TcpSocket::new_v4().expect("a socket");
        let address = format!("{address}:0").parse().expect("an address");
        socket.bind(address).expect("all of 127.0.0.0/8 is ours");
        let mut wire = Wire(socket.connect(edge.http).await.expect("a connection"));
        // A connection that is closed at once may be reset under the request.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut wire.0, GET).await;
        let answer = wire.until("}").await;
        (wire, answer)
    };
    let mut kept = Vec::new();
    for _ in 0..3 {
        let (wire, answer) = open("127.0.0.2").await;
        assert!(answer.contains(" 200 "), "{answer}");
        kept.push(wire);
    }
    for _ in 0..4 {
        assert_eq!(open("127.0.0.2").await.1, "");
    }
    assert_eq!(edge.metric(&["dormouse_client_connections_refused_total "]), 4.0);
    assert_eq!(edge.metric(&["dormouse_connections_refused_total "]), 0.0);
    assert!(open("127.0.0.3").await.1.contains(" 200 "));
    for wire in &mut kept {
        wire.send(GET).await;
        assert!(wire.until("}").await.contains(" 200 "));
    }
    kept.pop();
    edge.wait_until("one has left", |edge| edge.metric(&["dormouse_connections "]) == 2.0);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("ours");
    let mut wire = Wire(socket.connect(edge.http).await.expect("a connection"));
    wire.send(GET).await;
    assert!(wire.until("}").await.contains(" 200 "), "it does not recover");
}

/// One place for starts, and no rate that stops the flood. Its instances end at once.
#[tokio::test(flavor = "multi_thread")]
async fn another_clients_wake_does_not_wait_behind_a_flood_of_one() {
    const FLOOD: usize = 1500;
    let dying = "host = \"{session}.flood.test\"\n[instance]\n\
                 command = [\"/bin/sh\", \"-c\", \"echo {session} >> starts\"]\n\
                 env = { TEST_DIR = \"@DIR@\" }\n";
    let mut edge = Setup::new()
        .config("[limits]\nstarts = 1\nwakes_per_client = \"unlimited\"\nconnections_per_client = 2000\n")
        .route("flood", dying)
        .route("demo", &witnessed("", ""))
        .start();
    let starts = |edge: &Edge| -> Vec<String> {
        let starts = fs::read_to_string(edge.path("starts")).unwrap_or_default();
        starts.lines().map(str::to_owned).collect()
    };
    let sending = futures::stream::iter(0..FLOOD).map(|n| {
        let get = format!("GET / HTTP/1.1\r\nHost: f{n}.flood.test\r\n\r\n");
        async move { Wire::sent(edge.http, get.as_bytes()).await }
    });
    let flood: Vec<Wire> = sending.buffer_unordered(200).collect().await;
    let before = starts(&edge).len();
    let answer = get_from(&edge, "127.0.0.2", "other.test").await;
    assert_eq!(answer.status(), 200);
    let all = starts(&edge);
    let at = all.iter().position(|host| host == "other.test").expect("it was started");
    println!("{before} of {FLOOD} had started when it came, {at} when it was started");
    let waiting = FLOOD - before;
    assert!(100 <= waiting, "this flood was none");
    // One in its turn, and those that were started while the request was on its way.
    assert!(at - before < waiting / 3, "it waited for {} others", at - before);
    drop(flood);
    edge.announce("wake failed");
}
