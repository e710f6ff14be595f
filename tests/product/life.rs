//! A session's life: falling asleep, deeper and deeper; dying; and the moments in between.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{SinkExt, StreamExt, future::join_all};
use reqwest::Client;
use rustix::process::Signal;
use serde_json::Value;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::support::{DORMOUSE, Edge, PATIENCE, Setup, client, signal_pid, witnessed};

/// What an instance says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    pub(crate) requests: u64,
}

/// Asks the instance behind `host` who it is.
pub(crate) async fn who(client: &Client, edge: &Edge, host: &str) -> Who {
    let answer = client.get(edge.url(host, "/whoami")).send().await.expect("an answer");
    let (status, body) = (answer.status(), answer.text().await.expect("a body"));
    assert_eq!(status, 200, "{body}");
    read_who(host, &body)
}

/// Waits until the instance behind `host`, which was asked once before, has got a request that is
/// not ours.
pub(crate) async fn wait_arrived(client: &Client, edge: &Edge, host: &str) {
    for ours in 2.. {
        let answer = client.get(edge.url(host, "/whoami")).send().await.expect("an answer");
        let who: Value = answer.json().await.expect("JSON");
        if ours < who["requests"].as_u64().expect("a number") {
            return;
        }
    }
}

fn read_who(host: &str, body: &str) -> Who {
    let who: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(who["session"], host);
    let number = |name: &str| who[name].as_u64().expect("a number");
    Who {
        pid: u32::try_from(number("pid")).expect("a pid"),
        generation: number("generation"),
        requests: number("requests"),
    }
}

/// A WebSocket to the session of `host`.
pub(crate) struct Socket(WebSocketStream<tokio::net::TcpStream>);

impl Socket {
    pub(crate) async fn open(edge: &Edge, host: &str, query: &str) -> Self {
        let stream = tokio::net::TcpStream::connect(edge.http).await.expect("it listens");
        let url = format!("ws://{host}/ws{query}");
        Self(client_async(url, stream).await.expect("an upgrade").0)
    }

    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message");
            match next?.ok()? {
                Message::Text(text) => return Some(text.to_string()),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    pub(crate) async fn assert_echoes(&mut self) {
        self.0.send(Message::text("echo")).await.expect("it is open");
        while self.next().await.expect("an echo") != "echo" {}
    }
}

/// The kernel's letter for what a process does; `None` when it has ended.
pub(crate) fn motion(pid: u32) -> Option<char> {
    let stat = procfs::process::Process::new(pid.cast_signed()).and_then(|it| it.stat()).ok()?;
    // The first thread of a process may have ended while others still hold its sockets open.
    let ended = matches!(stat.state, 'Z' | 'X' | 'x') && stat.num_threads <= 1;
    (!ended).then_some(stat.state)
}

pub(crate) fn kill(edge: &mut Edge, pid: u32) {
    signal_pid(pid, Signal::KILL);
    edge.wait_until("the instance is dead", |_| motion(pid).is_none());
}

/// When the session last went from one state to another, in milliseconds since 1970.
fn moment(edge: &Edge, host: &str, from: &str, to: &str) -> u64 {
    let session = edge.session(host);
    let moments = session["history"].as_array().expect("a history");
    let found = moments.iter().rfind(|moment| moment["from"] == from && moment["to"] == to);
    found.and_then(|moment| moment["at"].as_u64()).unwrap_or_else(|| panic!("{session}"))
}

/// An operator's sleep, once the last answer's lease is given back.
pub(crate) fn put_to_sleep(edge: &mut Edge, host: &str) {
    edge.wait_until("nobody uses it", |edge| edge.session(host)["leases"] == 0);
    assert_eq!(edge.admin_post(&format!("/v1/sessions/{host}/sleep")).0, 202);
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_falls_asleep_and_not_before_its_time() {
    let idle = "[idle]\nafter = \"700ms\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new().route("demo", &witnessed("", idle)).start();
    let client = client();
    who(&client, &edge, "alice.test").await;
    let asked = now_ms();
    let first = who(&client, &edge, "alice.test").await;
    // On a busy machine it may have slept between the two.
    let starts = edge.starts("alice.test");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(edge.session("alice.test")["depth"], "stopped");
    assert_eq!(motion(first.pid), None, "nothing of it runs");
    let slept = moment(&edge, "alice.test", "idle", "stopping");
    assert!(asked + 700 <= slept, "{} ms early", asked + 700 - slept);

    let second = who(&client, &edge, "alice.test").await;
    assert!(first.generation < second.generation);
    assert_eq!(edge.starts("alice.test"), starts + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn min_awake_holds_off_a_sleep_that_is_due() {
    let idle = "[idle]\nafter = \"1ms\"\nmin_awake = \"1500ms\"\n";
    let mut edge = Setup::new().route("demo", &witnessed("", idle)).start();
    let client = client();
    let first = who(&client, &edge, "alice.test").await;
    edge.wait_until("the session is idle", |edge| edge.session("alice.test")["leases"] == 0);
    edge.wait_state("alice.test", "asleep");
    // Not from when it was awake: that is written down a moment after it was.
    let asked = moment(&edge, "alice.test", "asleep", "waking");
    let slept = moment(&edge, "alice.test", "idle", "stopping");
    assert!(asked + 1500 <= slept, "awake for less than {} ms", slept - asked);
    assert_eq!(motion(first.pid), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_web_socket_keeps_its_session_awake() {
    let idle = "[idle]\nafter = \"200ms\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new().route("demo", &witnessed("", idle)).start();
    let client = client();
    let mut socket = Socket::open(&edge, "alice.test", "").await;
    let first = who(&client, &edge, "alice.test").await;
    // Another session's sleep is the clock: alice has been silent for longer.
    for _ in 0..2 {
        who(&client, &edge, "bob.test").await;
        edge.wait_state("bob.test", "asleep");
    }
    assert_eq!(edge.state("alice.test"), "awake");
    socket.assert_echoes().await;
    assert_eq!(who(&client, &edge, "alice.test").await.pid, first.pid);

    drop(socket);
    edge.wait_state("alice.test", "asleep");
    assert_eq!(motion(first.pid), None);
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ladder_pauses_first_and_stops_later() {
    let ladder = |stop: &str| {
        let rungs = format!(
            r#"{{ after = "100ms", to = "paused" }}, {{ after = "{stop}", to = "stopped" }}"#
        );
        witnessed("", &format!("[idle]\nmin_awake = \"0s\"\nsleep = [{rungs}]\n"))
    };
    let mut edge = Setup::new().route("demo", &ladder("1h")).start();
    let client = client();
    let first = who(&client, &edge, "alice.test").await;
    edge.wait_state("alice.test", "asleep");
    assert_eq!(edge.session("alice.test")["depth"], "paused");
    assert_eq!(motion(first.pid), Some('T'));

    let second = who(&client, &edge, "alice.test").await;
    assert_eq!(second.pid, first.pid, "the same instance goes on");
    let generation = edge.session("alice.test")["generation"].as_u64().expect("a number");
    assert!(first.generation < generation, "in a new life");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(motion(first.pid), Some('T'));

    edge.write_route("demo", &ladder("300ms"));
    edge.wait_until("alice is stopped", |edge| edge.session("alice.test")["depth"] == "stopped");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(motion(first.pid), None);
    assert_eq!(edge.starts("alice.test"), 1);

    // Without a hand on the file: the same way down, by the clock alone. Who comes late to both
    // steps takes them as one.
    edge.write_route("demo", &ladder("5s"));
    edge.wait_until("the route has changed", |edge| {
        edge.admin_get("/v1/routes")["routes"][0]["policy"]["sleep"][1]["after"] == "5s"
    });
    who(&client, &edge, "bob.test").await;
    edge.wait_until("bob is stopped", |edge| {
        let bob = edge.session("bob.test");
        bob["state"] == "asleep" && bob["depth"] == "stopped"
    });
    let steps = |edge: &Edge| {
        let session = edge.session("bob.test");
        let moments = session["history"].as_array().expect("a history").clone();
        moments.iter().filter(|moment| moment["to"] == "stopping").count()
    };
    assert_eq!(steps(&edge), 2, "{}", edge.session("bob.test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_outside_it_wakes_once_for_the_next_request() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let client = client();
    for killed in 1..=10 {
        let before = who(&client, &edge, "alice.test").await;
        kill(&mut edge, before.pid);
        let after = who(&client, &edge, "alice.test").await;
        assert_ne!(after.pid, before.pid);
        assert!(before.generation < after.generation);
        assert_eq!(edge.starts("alice.test"), killed + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_after_a_kill_is_one_start() {
    let mut edge = Setup::new().route("demo", &witnessed("--listen-after 200ms", "")).start();
    let client = client();
    for killed in 1..=3 {
        let before = who(&client, &edge, "alice.test").await;
        kill(&mut edge, before.pid);
        let all = join_all((0..60).map(|_| who(&client, &edge, "alice.test"))).await;
        assert!(all.iter().all(|after| after.pid == all[0].pid && after.pid != before.pid));
        assert_eq!(edge.starts("alice.test"), killed + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_a_request_that_one_fails_and_no_other() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    edge.announce("broken");
    let client = client();
    let alice = who(&client, &edge, "alice.test").await;
    who(&client, &edge, "bob.test").await;
    let slow = |host: &str, ms: u32| {
        tokio::spawn(client.get(edge.url(host, &format!("/slow?ms={ms}"))).send())
    };
    let (cut, bobs) = (slow("alice.test", 60_000), slow("bob.test", 2_000));
    for host in ["alice.test", "bob.test"] {
        wait_arrived(&client, &edge, host).await;
    }
    kill(&mut edge, alice.pid);
    let cut = cut.await.expect("no panic").expect("an answer");
    assert_eq!(cut.status(), 502);
    assert_eq!(cut.headers()["content-type"], "application/problem+json");

    assert_ne!(who(&client, &edge, "alice.test").await.pid, alice.pid);
    assert_eq!(bobs.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (2, 1));
    assert_eq!(edge.metric(&["dormouse_refused_total", "broken"]) as u64, 1);
}

/// Asks for `/slow` again and again, each time at about the moment when the session falls asleep:
/// the pause is steered to where every other request finds it awake still.
async fn at_the_edge_of_sleep(to: &str, hosts: usize, rounds: usize) {
    let idle =
        format!("[idle]\nmin_awake = \"0s\"\nsleep = [{{ after = \"10ms\", to = \"{to}\" }}]\n");
    let edge = Setup::new().route("demo", &witnessed("", &idle)).start();
    let client = client();
    let herd = (0..hosts).map(|host| {
        let (client, host) = (client.clone(), format!("s{host}.test"));
        let url = edge.url(&host, "/slow?ms=2");
        tokio::spawn(async move {
            let (mut pause, mut held, mut warm) = (Duration::from_millis(10), 0, 0);
            for _ in 0..rounds {
                let answer = client.get(&url).send().await.expect("an answer");
                assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
                // Who comes a moment too late is held, and told so.
                if answer.headers().contains_key("server-timing") {
                    held += 1;
                    pause = pause.saturating_sub(Duration::from_micros(300));
                } else {
                    warm += 1;
                    pause += Duration::from_micros(300);
                }
                assert!(answer.text().await.expect("a whole body").starts_with("answered"));
                // Finer than the runtime's clock.
                tokio::task::block_in_place(|| std::thread::sleep(pause));
            }
            (held, warm)
        })
    });
    let (mut held, mut warm) = (0, 0);
    for host in join_all(herd).await {
        let (host_held, host_warm) = host.expect("no panic");
        held += host_held;
        warm += host_warm;
    }
    assert_eq!(held + warm, hosts * rounds);
    assert!(hosts * rounds / 10 < held.min(warm), "not at the edge: {held} held, {warm} warm");
    assert_eq!(edge.metric(&["dormouse_requests_total", "5xx"]) as u64, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_in_the_very_moment_of_a_pause() {
    at_the_edge_of_sleep("paused", 2, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_in_the_very_moment_of_a_stop() {
    at_the_edge_of_sleep("stopped", 4, 250).await;
}

/// A session that takes two seconds to stop.
fn stubborn() -> Edge {
    let process = "[instance.process]\ngrace = \"2s\"\n";
    Setup::new().route("demo", &witnessed("--ignore-term", process)).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_while_it_stops_are_held_for_its_next_life() {
    let mut edge = stubborn();
    let client = client();
    let first = who(&client, &edge, "alice.test").await;
    put_to_sleep(&mut edge, "alice.test");
    assert_eq!(edge.state("alice.test"), "stopping");
    let held = join_all((0..20).map(|_| who(&client, &edge, "alice.test"))).await;
    for second in &held {
        assert_eq!(second.pid, held[0].pid);
        assert!(first.generation < second.generation);
    }
    assert_eq!(motion(first.pid), None, "two lives at once");
    assert_eq!(edge.starts("alice.test"), 2);
    edge.assert_lives();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ignores_sigterm_is_killed_after_its_grace() {
    let mut edge = stubborn();
    let first = who(&client(), &edge, "alice.test").await;
    let asked = now_ms();
    put_to_sleep(&mut edge, "alice.test");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(motion(first.pid), None);
    let ended = moment(&edge, "alice.test", "stopping", "asleep");
    assert!(asked + 2000 <= ended, "killed after {} ms", ended - asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_one_life_serves_no_other_life_at_the_same_address() {
    // The old life outlives its sleep here, by leaving everything that the engine knows it by, and
    // the connection to it stays open: only its generation says that it is of another life.
    let script = format!(
        "env -i TEST_DIR=$TEST_DIR DORMOUSE_SESSION=$DORMOUSE_SESSION \
         DORMOUSE_GENERATION=$DORMOUSE_GENERATION \
         setsid {DORMOUSE} demo-session --listen {{address}} & exec sleep 1000000"
    );
    let route = format!(
        "host = \"{{session}}.test\"\n[instance]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n\
         env = {{ TEST_DIR = \"@DIR@\" }}\n[instance.process]\nlisten = \"unix\"\n\
         [ready]\nprobe = \"http\"\npath = \"/healthz\"\n"
    );
    let mut edge = Setup::new().route("demo", &route).start();
    let client = client();
    let first = who(&client, &edge, "alice.test").await;
    assert_eq!(who(&client, &edge, "alice.test").await.requests, 2, "a warm connection");
    let address = edge.session("alice.test")["address"].clone();
    put_to_sleep(&mut edge, "alice.test");
    edge.wait_state("alice.test", "asleep");
    assert!(motion(first.pid).is_some(), "the old life answers still");

    for _ in 0..20 {
        let second = who(&client, &edge, "alice.test").await;
        assert!(first.generation < second.generation, "an answer of the old life");
    }
    assert_eq!(edge.session("alice.test")["address"], address, "the address is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_connection_reaches_each_session_in_its_newest_life() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let stream = TcpStream::connect(edge.http).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut stream = BufReader::new(stream);
    let mut last = [0, 0];
    for _ in 0..3 {
        for (host, last) in ["alice.test", "bob.test"].into_iter().zip(&mut last) {
            let first = ask_on(&mut stream, host);
            assert!(*last < first.generation);
            assert_eq!(ask_on(&mut stream, host).generation, first.generation);
            *last = first.generation;
        }
        for host in ["alice.test", "bob.test"] {
            put_to_sleep(&mut edge, host);
            edge.wait_state(host, "asleep");
        }
    }
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (3, 3));
}

/// `GET /whoami` on a connection that stays open.
fn ask_on(stream: &mut BufReader<TcpStream>, host: &str) -> Who {
    write!(stream.get_mut(), "GET /whoami HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("it is open");
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a head");
        let line = line.trim_end().to_ascii_lowercase();
        assert!(!line.starts_with("http/") || line.contains(" 200"), "{line}");
        assert_ne!(line, "connection: close");
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a number");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    read_who(host, &String::from_utf8(body).expect("text"))
}
