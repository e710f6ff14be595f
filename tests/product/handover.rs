//! One edge hands its listening sockets to the next, and either is killed at any step: at every
//! instant at least one accepts. Where a step is too short to be hit, the other side is played.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    net::TcpStream,
    os::unix::net::{UnixListener, UnixStream},
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};

use crate::{
    life::Socket,
    routes::{Load, get},
    support::{Edge, PATIENCE, Setup, client, signal_pid, wait_exit, witnessed},
};

const WAITS: &str = "waiting for the process before to get SIGQUIT";
const GOES_ON: &str = "the new process does not take over: this one goes on";

/// Starts a new process, which waits for SIGQUIT when this returns.
pub(crate) fn launch_next(edge: &mut Edge) -> Child {
    let before = edge.log_count(&[WAITS]);
    let next = edge.launch(&["--upgrade"]);
    edge.wait_until("the new process waits", |edge| before < edge.log_count(&[WAITS]));
    next
}

fn start() -> Edge {
    let drain = "[shutdown]\ndrain = \"10m\"\n";
    Setup::new().config(drain).route("demo", &witnessed("", "")).start()
}

/// Hands over by this signal to the old one, which ends.
fn hand_over_by(edge: &mut Edge, next: Child, signal: Signal) {
    let ready = edge.log_count(&["INFO", " ready "]);
    edge.signal(signal);
    let mut old = edge.replace(next);
    assert_eq!(wait_exit(&mut old).code(), Some(0));
    edge.wait_until("the new one serves", |edge| {
        edge.assert_lives();
        ready < edge.log_count(&["INFO", " ready "]) && edge.admin_status("/readyz") == Some(200)
    });
}

/// Connects without a pause, and counts where that is refused.
struct Knocking {
    ending: Arc<AtomicBool>,
    refused: JoinHandle<usize>,
}

impl Knocking {
    fn begin(edge: &Edge) -> Self {
        let (address, ending) = (edge.http, Arc::<AtomicBool>::default());
        let end = Arc::clone(&ending);
        let refused = std::thread::spawn(move || {
            let mut refused = 0;
            while !end.load(Ordering::Relaxed) {
                let knocked = TcpStream::connect(address).map_err(|error| error.kind());
                refused += usize::from(knocked.err() == Some(ErrorKind::ConnectionRefused));
                // Each leaves a port behind for a minute.
                std::thread::sleep(Duration::from_millis(1));
            }
            refused
        });
        Self { ending, refused }
    }

    fn end(self) {
        self.ending.store(true, Ordering::Relaxed);
        assert_eq!(self.refused.join().expect("no panic"), 0, "connections were refused");
    }
}

/// Plays the new process to a real old one.
struct New {
    reader: BufReader<UnixStream>,
}

impl New {
    /// One that waits.
    fn waiting(edge: &Edge) -> Self {
        let stream = UnixStream::connect(edge.path("state/upgrade.sock")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut new = Self { reader: BufReader::new(stream) };
        let sockets = new.hear();
        let names = format!("\"names\":[\"tcp:{}\",\"tcp:{}\"]", edge.http, edge.admin);
        assert!(sockets.contains("\"version\":1") && sockets.contains(&names), "{sockets}");
        new
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.reader.get_mut(), "{word}").expect("it hears");
    }
}

/// Plays the old process to a real new one.
struct Old {
    _lock: File,
    listener: UnixListener,
}

impl Old {
    /// In the place of the edge, which is killed.
    fn instead_of(edge: &mut Edge) -> Self {
        edge.kill();
        let lock = File::options().write(true).open(edge.path("state/edge.lock")).expect("a lock");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("it is free");
        let _ = fs::remove_file(edge.path("state/upgrade.sock"));
        let listener = UnixListener::bind(edge.path("state/upgrade.sock")).expect("a socket");
        Self { _lock: lock, listener }
    }

    /// The next new process.
    fn greet(&self, word: &str) -> New {
        let (stream, _) = self.listener.accept().expect("a new process");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut link = New { reader: BufReader::new(stream) };
        link.say(word);
        link
    }

    /// A real new process, that waits.
    fn next(edge: &mut Edge) -> (Self, New) {
        let old = Self::instead_of(edge);
        let next = edge.launch(&["--upgrade"]);
        edge.put(next);
        let link = old.greet(r#"{"sockets":{"version":1,"pid":7,"names":[]}}"#);
        edge.wait_until("it waits", |edge| 0 < edge.log_count(&[WAITS]));
        (old, link)
    }
}

fn wait_serves(edge: &mut Edge) {
    edge.wait_until("it serves", |edge| {
        edge.assert_lives();
        edge.admin_status("/readyz") == Some(200)
    });
}

async fn new_process_is_gone(end: Signal) {
    let mut edge = start();
    edge.announce("SIGQUIT, but no new process waits");
    let load = Load::begin(&edge.url("alice.test", "/whoami"));
    load.flows(&mut edge);
    let mut next = launch_next(&mut edge);
    signal_pid(next.id(), end);
    wait_exit(&mut next);
    edge.signal(Signal::QUIT);
    edge.wait_until("it has heard", |edge| edge.log_count(&["WARN", "SIGQUIT"]) == 1);
    load.flows(&mut edge);
    assert_eq!(edge.admin_status("/readyz"), Some(200));
    // It can be asked again.
    let next = launch_next(&mut edge);
    hand_over_by(&mut edge, next, Signal::QUIT);
    load.flows(&mut edge);
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_after_the_new_process_was_killed_changes_nothing() {
    new_process_is_gone(Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_after_the_new_process_was_ended_changes_nothing() {
    new_process_is_gone(Signal::TERM).await;
    new_process_is_gone(Signal::INT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_at_any_step_leaves_the_old_one_as_it_was() {
    let mut edge = start();
    edge.announce(GOES_ON);
    let load = Load::begin(&edge.url("alice.test", "/whoami"));
    load.flows(&mut edge);
    // What it says before its connection ends, and why it is not followed.
    let steps: [(&[&str], &str); 4] = [
        (&[], "it has ended"),
        (&["\"serving\""], "it has ended"),
        (&["\"thanks\""], "it does not speak as it should"),
        (&["\"serving\"", "nonsense"], "it does not speak as it should"),
    ];
    for (step, (words, why)) in steps.into_iter().enumerate() {
        let mut new = New::waiting(&edge);
        edge.signal(Signal::QUIT);
        assert_eq!(new.hear(), "\"begin\"");
        for word in words {
            new.say(word);
            if *word == "\"serving\"" {
                assert_eq!(new.hear(), "\"yours\"");
            }
        }
        if why.contains("speak") {
            assert_eq!(new.hear(), "\"no\"", "it is told that the old one goes on");
        }
        drop(new);
        edge.wait_until("it goes on", |edge| edge.log_count(&[GOES_ON]) == step + 1);
        assert_eq!(edge.log_count(&[GOES_ON, why]), edge.log_count(&[why]));
        load.flows(&mut edge);
        assert_eq!(edge.admin_status("/readyz"), Some(200));
    }
    // Custody is its own again: what is idle sleeps.
    assert_eq!(get(&client(), &edge.url("bob.test", "/whoami")).await.0, 200);
    crate::life::put_to_sleep(&mut edge, "bob.test");
    edge.wait_state("bob.test", "asleep");
    let next = launch_next(&mut edge);
    hand_over_by(&mut edge, next, Signal::QUIT);
    load.flows(&mut edge);
    load.end().await;
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_refused_when_the_old_process_is_killed_while_a_new_one_waits() {
    let mut edge = start();
    edge.announce("the process before has died: this one begins");
    let knocking = Knocking::begin(&edge);
    let next = launch_next(&mut edge);
    edge.signal(Signal::KILL);
    let mut old = edge.replace(next);
    wait_exit(&mut old);
    wait_serves(&mut edge);
    assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
    knocking.end();
    edge.wait_until("it has custody", |edge| {
        edge.log_count(&["the process before has ended"]) == 1
    });
    // And it can be followed.
    let next = launch_next(&mut edge);
    hand_over_by(&mut edge, next, Signal::QUIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_process_that_is_ended_while_a_new_one_waits_hands_over_first() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut edge = start();
        let load = Load::begin(&edge.url("alice.test", "/whoami"));
        load.flows(&mut edge);
        let next = launch_next(&mut edge);
        hand_over_by(&mut edge, next, signal);
        load.flows(&mut edge);
        load.end().await;
        assert_eq!(edge.starts("alice.test"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hand_overs_in_a_row_lose_no_request_and_a_socket_stays_with_its_process() {
    let mut edge = start();
    let load = Load::begin(&edge.url("alice.test", "/whoami"));
    load.flows(&mut edge);
    let mut socket = Socket::open(&edge, "bob.test", "?tick=1").await;
    let mut olds = Vec::new();
    for turn in 1..=3 {
        let next = launch_next(&mut edge);
        edge.signal(Signal::QUIT);
        // Another SIGQUIT changes nothing.
        edge.signal(Signal::QUIT);
        olds.push(edge.replace(next));
        edge.wait_until("the new one serves", |edge| {
            edge.assert_lives();
            edge.log_count(&["the new process serves"]) == turn
        });
        wait_serves(&mut edge);
        load.flows(&mut edge);
        socket.assert_echoes().await;
    }
    assert!(olds[0].try_wait().expect("wait").is_none(), "the first serves the socket still");
    drop(socket);
    for mut old in olds {
        assert_eq!(wait_exit(&mut old).code(), Some(0));
    }
    edge.wait_until("the last has custody", |edge| {
        0 < edge.log_count(&["the process before has ended"])
    });
    load.flows(&mut edge);
    load.end().await;
    assert_eq!((edge.starts("alice.test"), edge.starts("bob.test")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_begins_at_whatever_step_the_old_one_dies() {
    // What the old one says before its connection ends, and whether it heard `serving` before that.
    let steps: [&[&str]; 3] = [&[], &["\"begin\""], &["\"begin\"", "\"yours\""]];
    for words in steps {
        let mut edge = start();
        edge.announce("the process before has died: this one begins");
        let (old, mut link) = Old::next(&mut edge);
        assert_eq!(edge.admin_status("/readyz"), None, "it accepts nothing while it waits");
        for word in words {
            link.say(word);
            if *word == "\"begin\"" {
                assert_eq!(link.hear(), "\"serving\"");
            }
        }
        drop(link);
        wait_serves(&mut edge);
        assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
        drop(old);
        edge.wait_until("it has custody", |edge| {
            edge.log_count(&["the process before has ended"]) == 1
        });
        let next = launch_next(&mut edge);
        hand_over_by(&mut edge, next, Signal::QUIT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_is_not_wanted_or_ended_never_thanks() {
    let mut edge = start();
    edge.announce("this one served too late");
    let (_old, mut link) = Old::next(&mut edge);
    link.say("\"begin\"");
    assert_eq!(link.hear(), "\"serving\"");
    link.say("\"no\"");
    assert_eq!(link.hear(), "");
    assert_eq!(edge.wait_exit().code(), Some(1));

    let mut edge = start();
    let (_old, mut link) = Old::next(&mut edge);
    link.say("\"begin\"");
    assert_eq!(link.hear(), "\"serving\"");
    edge.signal(Signal::TERM);
    assert_eq!(link.hear(), "", "the old one learns that it goes on");
    assert_eq!(edge.wait_exit().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_new_process_and_one_with_a_bad_config_end_with_a_sentence() {
    let mut edge = start();
    let next = launch_next(&mut edge);
    let mut second = edge.launch(&["--upgrade"]);
    assert_eq!(wait_exit(&mut second).code(), Some(1));
    let sentence = format!("error: another new process (pid {}) waits already", next.id());
    edge.wait_until("it says why", |edge| edge.log_count(&[&sentence]) == 1);

    edge.announce("the routes stay as they were");
    edge.write_route("bad", "host = 7\n");
    let mut bad = edge.launch(&["--upgrade"]);
    assert_eq!(wait_exit(&mut bad).code(), Some(2));
    edge.remove_route("bad");
    let load = Load::begin(&edge.url("alice.test", "/whoami"));
    load.flows(&mut edge);
    hand_over_by(&mut edge, next, Signal::QUIT);
    load.flows(&mut edge);
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_process_says_otherwise_ends_the_new_one_with_a_sentence() {
    for (word, sentence) in [
        ("{\"busy\":{\"pid\":7}}", "another new process (pid 7) waits already"),
        (
            "{\"sockets\":{\"version\":2,\"pid\":7,\"names\":[]}}",
            "of a version that cannot hand over",
        ),
        ("{\"sockets\":{\"version\":1,\"pid\":7,\"names\":[\"tcp:a\"]}}", "sockets have been lost"),
        ("GET / HTTP/1.1", "the process before does not speak as it should"),
    ] {
        let mut edge = start();
        let old = Old::instead_of(&mut edge);
        let next = edge.launch(&["--upgrade"]);
        edge.put(next);
        let _link = old.greet(word);
        assert_eq!(edge.wait_exit().code(), Some(1));
        assert_eq!(edge.log_count(&["error: ", sentence]), 1, "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_are_edited_while_a_new_process_waits_count_in_it() {
    let mut edge = start();
    let next = launch_next(&mut edge);
    edge.write_route("other", &witnessed("", "").replace("{session}.test", "other.example"));
    edge.wait_until("the old one has it", |edge| edge.log_count(&["routes reloaded"]) == 1);
    hand_over_by(&mut edge, next, Signal::QUIT);
    assert_eq!(get(&client(), &edge.url("other.example", "/whoami")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_drains_keeps_no_socket_that_could_be_knocked_at() {
    let mut edge = start();
    let mut socket = Socket::open(&edge, "alice.test", "").await;
    edge.signal(Signal::TERM);
    edge.wait_until("it drains", |edge| edge.log_count(&[": draining;"]) == 1);
    edge.wait_until("connections are refused", |edge| {
        [edge.http, edge.admin].iter().all(|address| TcpStream::connect(address).is_err())
    });
    socket.assert_echoes().await;
    drop(socket);
    assert_eq!(edge.wait_exit().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_without_a_process_before_begins_and_a_stale_socket_is_nothing() {
    let mut edge = start();
    edge.kill();
    assert!(edge.path("state/upgrade.sock").exists(), "stale");
    edge.spawn(&["--upgrade"]);
    assert_eq!(edge.log_count(&["there is no process before"]), 1);
    assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_with_a_long_path_and_an_admin_socket_are_handed_over_too() {
    let long = "long/".repeat(40);
    let state = format!("[paths]\nstate = \"@DIR@/{long}\"\n");
    let mut edge = Setup::new().config(&state).route("demo", &witnessed("", "")).start();
    let toml = fs::read_to_string(edge.path("dormouse.toml")).expect("a file");
    let socket = format!("unix:{}", edge.path("admin.sock").display());
    let next = toml.replace(&format!("admin = \"{}\"", edge.admin), &format!("admin = {socket:?}"));
    edge.write_file("dormouse.toml", &next);
    // The first listens on TCP, the others on the socket.
    for turn in 1..=3 {
        let next = launch_next(&mut edge);
        edge.signal(Signal::QUIT);
        let mut old = edge.replace(next);
        assert_eq!(wait_exit(&mut old).code(), Some(0));
        edge.wait_until("it serves", |edge| edge.log_count(&["INFO", " ready "]) == 1 + turn);
        assert_eq!(get(&client(), &edge.url("alice.test", "/whoami")).await.0, 200);
        assert!(UnixStream::connect(edge.path("admin.sock")).is_ok(), "turn {turn}");
    }
}
