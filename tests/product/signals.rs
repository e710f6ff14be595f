//! How an edge ends, hands over, crashes and comes back; and how it refuses to begin.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    handover::launch_next,
    hold::{gated, open_gate},
    life::{Socket, motion, put_to_sleep, who},
    routes::{Load, get},
    support::{DORMOUSE, Edge, Setup, blocking, client, wait_exit, witnessed},
};

const DRAIN_LONG: &str = "[shutdown]\ndrain = \"10m\"\n";

fn wait_drain(edge: &mut Edge) {
    edge.wait_until("it drains", |edge| edge.log_count(&[": draining;"]) == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_request_of_five_seconds_end_and_leaves_the_instances_up() {
    let mut edge = Setup::new().config(DRAIN_LONG).route("demo", &witnessed("", "")).start();
    let client = client();
    let alice = who(&client, &edge, "alice.test").await;
    edge.wait_state("alice.test", "idle");
    let slow = tokio::spawn(client.get(edge.url("alice.test", "/slow?ms=5000")).send());
    edge.wait_state("alice.test", "awake");
    edge.signal(Signal::TERM);
    wait_drain(&mut edge);
    let slow = slow.await.expect("no panic").expect("an answer");
    assert_eq!(slow.status(), 200);
    assert_eq!(slow.text().await.expect("a whole body"), "answered after 5000 ms\n");
    assert_eq!(edge.wait_exit().code(), Some(0));
    assert_eq!(edge.log_count(&["INFO", "drained"]), 1, "it ends with its last request");
    assert!(motion(alice.pid).is_some(), "the instance stays up");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_endless_socket_when_the_drain_is_over_and_not_before() {
    let drain = "[shutdown]\ndrain = \"2s\"\n";
    let mut edge = Setup::new().config(drain).route("demo", &witnessed("", "")).start();
    let mut socket = Socket::open(&edge, "alice.test", "?tick=1").await;
    socket.assert_echoes().await;
    let began = Instant::now();
    edge.signal(Signal::TERM);
    while socket.next().await.is_some() {}
    assert!(Duration::from_secs(2) <= began.elapsed(), "cut after {:?}", began.elapsed());
    assert_eq!(edge.wait_exit().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(22), "it took {:?}", began.elapsed());
}

async fn the_second_signal_ends_at_once(signal: Signal, name: &str) {
    let mut edge = Setup::new().config(DRAIN_LONG).route("demo", &witnessed("", "")).start();
    edge.announce("not drained");
    let mut socket = Socket::open(&edge, "alice.test", "").await;
    edge.signal(signal);
    wait_drain(&mut edge);
    assert_eq!(edge.log_count(&[name, ": draining;"]), 1);
    socket.assert_echoes().await;
    edge.signal(signal);
    assert_eq!(edge.wait_exit().code(), Some(0));
    assert_eq!(socket.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once() {
    the_second_signal_ends_at_once(Signal::TERM, "SIGTERM").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_at_once() {
    the_second_signal_ends_at_once(Signal::INT, "SIGINT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_is_ignored_while_no_new_process_waits() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    edge.announce("SIGQUIT, but no new process waits");
    for heard in 1..=2 {
        edge.signal(Signal::QUIT);
        edge.wait_until("it has heard", |edge| edge.log_count(&["WARN", "SIGQUIT"]) == heard);
        assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
    }
    edge.assert_lives();
}

/// When the process that answers at the admin address was started; `None` while none does.
fn started(edge: &Edge) -> Option<String> {
    let url = format!("http://{}/metrics", edge.admin);
    let text = blocking(async { reqwest::get(url).await?.text().await }).ok()?;
    let mut lines = text.lines();
    lines.find(|line| line.starts_with("dormouse_start_time_seconds")).map(str::to_owned)
}

/// SIGQUIT with a new process waiting; returns the old one, once the new one has the admin API.
pub(crate) fn hand_over(edge: &mut Edge) -> std::process::Child {
    let before = started(edge).expect("the old one answers");
    let new = launch_next(edge);
    edge.signal(Signal::QUIT);
    let old = edge.replace(new);
    edge.wait_until("the new process answers", |edge| {
        edge.assert_lives();
        started(edge).is_some_and(|now| now != before)
    });
    old
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_hands_over_under_load_and_no_request_fails() {
    let idle = "[idle]\nafter = \"100ms\"\nmin_awake = \"0s\"\n";
    let alices = witnessed("", idle).replace("{session}.test", "alice.test");
    let mut edge = Setup::new()
        .config(DRAIN_LONG)
        .route("alice", &alices)
        .route("demo", &witnessed("", ""))
        .start();
    let client = client();
    let mut socket = Socket::open(&edge, "alice.test", "?tick=1").await;
    let alice = who(&client, &edge, "alice.test").await;
    let load = Load::begin(&edge.url("bob.test", "/whoami"));
    load.flows(&mut edge);

    let mut old = hand_over(&mut edge);
    load.flows(&mut edge);
    edge.wait_state("alice.test", "idle");
    // Nobody uses alice as far as the new process knows, and her time was over long ago.
    for _ in 0..3 {
        socket.next().await.expect("a tick");
    }
    assert_eq!(edge.state("alice.test"), "idle");
    socket.assert_echoes().await;
    assert!(old.try_wait().expect("wait").is_none(), "the old one still serves the socket");
    assert_eq!(who(&client, &edge, "alice.test").await.pid, alice.pid);
    load.flows(&mut edge);

    drop(socket);
    assert_eq!(wait_exit(&mut old).code(), Some(0));
    edge.wait_state("alice.test", "asleep");
    assert_eq!(motion(alice.pid), None);
    load.flows(&mut edge);
    load.end().await;
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_during_a_handover_is_answered() {
    let mut edge =
        Setup::new().config(DRAIN_LONG).route("demo", &witnessed("--listen-after 3s", "")).start();
    let url = edge.url("alice.test", "/whoami");
    let asker = client();
    let held = tokio::spawn(async move { get(&asker, &url).await });
    edge.wait_until("the instance starts", |edge| edge.starts("alice.test") == 1);
    let mut old = hand_over(&mut edge);
    assert_eq!(held.await.expect("no panic").0, 200);
    assert_eq!(wait_exit(&mut old).code(), Some(0));
    who(&client(), &edge, "alice.test").await;
    assert_eq!(edge.starts("alice.test"), 1);

    // The new one can be followed by a newer one.
    edge.wait_until("it is alone", |edge| edge.log_count(&["the process before has ended"]) == 1);
    let mut old = hand_over(&mut edge);
    assert_eq!(wait_exit(&mut old).code(), Some(0));
    who(&client(), &edge, "alice.test").await;
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_what_runs_is_adopted_and_what_no_route_wants_sleeps() {
    let of = |name: &str, idle: &str| witnessed("", idle).replace("{session}.test", name);
    let quick = "[idle]\nafter = \"300ms\"\nmin_awake = \"0s\"\n";
    let mut edge = Setup::new()
        .route("demo", &of("{session}.test", ""))
        .route("gone", &of("carol.gone", ""))
        .route("quick", &of("dave.quick", quick))
        .start();
    let client = client();
    let alice = who(&client, &edge, "alice.test").await;
    let bob = who(&client, &edge, "bob.test").await;
    let carol = who(&client, &edge, "carol.gone").await;
    let _socket = Socket::open(&edge, "dave.quick", "").await;
    let dave = who(&client, &edge, "dave.quick").await;
    let before = edge.session("alice.test")["generation"].as_u64();
    edge.wait_until("nobody uses bob", |edge| edge.session("bob.test")["leases"] == 0);
    assert_eq!(edge.admin_post("/v1/sessions/bob.test/sleep?to=paused").0, 202);
    edge.wait_state("bob.test", "asleep");

    edge.kill();
    edge.remove_route("gone");
    edge.spawn(&[]);
    assert_eq!(edge.state("bob.test"), "asleep");
    assert_eq!(edge.session("bob.test")["depth"], "paused");
    assert_eq!(motion(bob.pid), Some('T'));
    assert_eq!(who(&client, &edge, "alice.test").await.pid, alice.pid);
    assert!(before < edge.session("alice.test")["generation"].as_u64(), "in a new life");
    assert_eq!(who(&client, &edge, "bob.test").await.pid, bob.pid);
    edge.wait_until("carol ends", |_| motion(carol.pid).is_none());
    edge.wait_until("dave sleeps", |_| motion(dave.pid).is_none());
    edge.wait_state("dave.quick", "asleep");
    for host in ["alice.test", "bob.test", "carol.gone", "dave.quick"] {
        assert_eq!(edge.starts(host), 1, "{host}");
    }
    put_to_sleep(&mut edge, "alice.test");
    edge.wait_until("alice ends", |_| motion(alice.pid).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_a_crash_cut_off_goes_on_in_the_next_edge() {
    let mut edge = Setup::new().route("demo", &gated("")).start();
    let url = edge.url("alice.test", "/whoami");
    let asker = client();
    let cut = tokio::spawn(async move { get(&asker, &url).await });
    edge.wait_until("the instance starts", |edge| edge.starts("alice.test") == 1);
    edge.kill();
    assert_eq!(cut.await.expect("no panic").0, 0, "nobody is there to answer");
    edge.spawn(&[]);
    open_gate(&edge, "alice.test");
    who(&client(), &edge, "alice.test").await;
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_edge_on_the_same_state_folder_is_refused() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let mut second = edge.launch(&[]);
    assert_eq!(wait_exit(&mut second).code(), Some(1));
    let sentence = format!("another dormouse (pid {}) uses this state folder", edge.pid());
    edge.wait_until("it says why", |edge| edge.log_count(&["error: ", &sentence]) == 1);
    assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
    assert_eq!(edge.starts("alice.test"), 1);
}

/// Runs an edge that is expected to end by itself; its exit code and what it complained of.
fn refused(dir: &Path, listen: &str, routes: &[(&str, &str)]) -> (Option<i32>, String) {
    let engines = "[engines.local]\nkind = \"process\"\n";
    fs::write(dir.join("dormouse.toml"), format!("[listen]\n{listen}\n{engines}")).expect("a file");
    fs::create_dir(dir.join("routes")).expect("a folder");
    for (name, text) in routes {
        fs::write(dir.join("routes").join(name), text).expect("a file");
    }
    let mut child = Command::new(DORMOUSE)
        .args(["run", "--strict", "--config"])
        .arg(dir.join("dormouse.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // Killed by its handle if the wait fails: it is nobody else's.
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_exit(&mut child)));
    let _ = child.kill();
    let output = child.wait_with_output().expect("it has ended");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (waited.unwrap_or_else(|_| panic!("it runs: {complaint}")).code(), complaint)
}

#[test]
fn an_address_in_use_is_a_clear_error() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = taken.local_addr().expect("an address");
    let free = crate::support::free_port();
    for listen in [
        format!("http = [\"{address}\"]\nadmin = \"{free}\""),
        format!("http = [\"{free}\"]\nadmin = \"{address}\""),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let (code, complaint) = refused(dir.path(), &listen, &[]);
        assert_eq!(code, Some(1), "{complaint}");
        let sentence = format!("error: cannot listen on {address}");
        assert!(complaint.contains(&sentence), "{complaint}");
        assert!(!complaint.contains("panicked"), "{complaint}");
    }
}

#[test]
fn wrong_routes_are_all_told_where_a_start_is_strict() {
    let dir = tempfile::tempdir().expect("a folder");
    let (http, admin) = (crate::support::free_port(), crate::support::free_port());
    let listen = format!("http = [\"{http}\"]\nadmin = \"{admin}\"");
    let (code, complaint) = refused(
        dir.path(),
        &listen,
        &[
            ("one.toml", "host = \"a.test\"\nengin = \"local\"\n"),
            ("two.toml", "host = 7\n"),
            ("right.toml", "host = \"c.test\"\n[instance]\ncommand = [\"true\"]\n"),
        ],
    );
    assert_eq!(code, Some(2), "{complaint}");
    for part in ["one.toml:2:1:", "engine", "two.toml:1:8:"] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    assert!(!complaint.contains("right.toml"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_hands_addresses_with_tls_over_and_sighup_reads_certificates_again() {
    use crate::tls::{Authority, HTTPS, NAMES, shown};
    let authority = Authority::new();
    let setup = Setup::new().listen(HTTPS).route("demo", &witnessed("", ""));
    let (old, new) = (authority.mint(NAMES), authority.mint(NAMES));
    let mut edge = old.set_up(setup, "both").start();
    let before = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&before) == old.der());
    drop(before);
    let mut gone = hand_over(&mut edge);
    wait_exit(&mut gone);
    let after = authority.client().connect(&edge, "alice.test").await.expect("a handshake");
    assert!(shown(&after) == old.der());
    drop(after);

    // What a symlink that leads out of the folder shows is not watched.
    let whole = |minted: &crate::tls::Minted| minted.key.clone() + &minted.certificate;
    edge.write_file("elsewhere.pem", &whole(&old));
    fs::remove_file(edge.path("certs/both.pem")).expect("removed");
    std::os::unix::fs::symlink("../elsewhere.pem", edge.path("certs/both.pem")).expect("a link");
    edge.admin_post("/v1/reload");
    edge.write_file("elsewhere.pem", &whole(&new));
    edge.signal(Signal::HUP);
    edge.wait_until("it is in force", |edge| {
        let connect = authority.client().connect(edge, "alice.test");
        blocking(async { shown(&connect.await.expect("a handshake")) == new.der() })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_wakes_take_is_known_to_the_next_edge() {
    let ladder = "[idle]\nmin_awake = \"0s\"\nsleep = [{ after = \"1h\", to = \"paused\" }]\n";
    let mut edge = Setup::new().route("demo", &witnessed("", ladder)).start();
    let client = client();
    let wakes = |edge: &Edge| edge.session("alice.test")["usual_wake_ms"].as_u64();
    who(&client, &edge, "alice.test").await;
    put_to_sleep(&mut edge, "alice.test");
    edge.wait_state("alice.test", "asleep");
    assert_eq!(wakes(&edge), None, "none from a pause yet");
    who(&client, &edge, "alice.test").await;
    put_to_sleep(&mut edge, "alice.test");
    edge.wait_state("alice.test", "asleep");
    let known = wakes(&edge);
    assert!(known.is_some());
    edge.signal(Signal::TERM);
    assert_eq!(edge.wait_exit().code(), Some(0));
    edge.spawn(&[]);
    edge.wait_state("alice.test", "asleep");
    assert_eq!(wakes(&edge), known);
}
