//! What runs is not what is being started; and lives that begin slowly, or go on badly.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    hold::{gated, open_gate},
    life::{motion, put_to_sleep},
    routes::get,
    signals::hand_over,
    support::{Edge, Setup, client, wait_exit},
};

const HOST: &str = "alice.test";

/// Does one thing at a time, as many do. It tells its pid; files of its folder say what it is to do.
const APP: &str = r#"
import http.server, os, signal, sys, time

def thawed(*_):
    if os.path.exists("dies"):
        os.remove("dies")
        os._exit(1)

signal.signal(signal.SIGCONT, thawed)

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/compute":
            open("computes", "w").close()
            while not os.path.exists("computed"):
                time.sleep(0.01)
        body = str(os.getpid()).encode()
        self.send_response(503 if os.path.exists("maintenance") else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

open("starts", "a").write("alice.test\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
"#;

const SHORT: &str = "[wake]\ntimeout = \"1s\"\nboot_max = \"1s\"\n";

fn app(more: &str) -> Setup {
    let route = format!(
        "host = \"{HOST}\"\nengine = \"local\"\n[instance]\n\
         command = [\"/usr/bin/python3\", \"app.py\", \"{{port}}\"]\n\
         env = {{ TEST_DIR = \"@DIR@\" }}\n[ready]\nprobe = \"http\"\n{more}"
    );
    Setup::new().file("app.py", APP).route("app", &route)
}

async fn ask(edge: &Edge, path: &str) -> (u16, String) {
    let answer = client().get(edge.url(HOST, path)).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

async fn pid(edge: &Edge) -> u32 {
    let (status, pid) = ask(edge, "/").await;
    assert_eq!(status, 200, "{pid}");
    pid.parse().expect("a pid")
}

/// Two requests, one after the other, wait for `wake.timeout`, and nothing else happens.
async fn assert_held_in_vain(edge: &mut Edge, pid: u32) {
    edge.announce("wake is late");
    for _ in 0..2 {
        let (status, problem) = ask(edge, "/").await;
        let problem: Value = serde_json::from_str(&problem).expect("JSON");
        assert_eq!((status, &problem["type"]), (504, &"urn:dormouse:wake_timeout".into()));
        assert_eq!(problem["detail"], "It is getting ready. Try again in a moment.");
        assert!(motion(pid).is_some(), "it was stopped");
    }
    assert_eq!(edge.state(HOST), "waking");
}

async fn assert_served_again(edge: &mut Edge, before: u32) {
    edge.wait_until("it is found ready", |edge| ["idle", "awake"].contains(&&*edge.state(HOST)));
    assert_eq!(pid(edge).await, before);
    assert_eq!(edge.starts(HOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_computes_while_the_edge_is_restarted_goes_on() {
    let mut edge = app(SHORT).config("[shutdown]\ndrain = \"100ms\"\n").start();
    let before = pid(&edge).await;
    let cut = tokio::spawn(client().get(edge.url(HOST, "/compute")).send());
    edge.wait_until("it computes", |edge| edge.path("computes").exists());
    edge.signal(Signal::TERM);
    edge.wait_exit();
    drop(cut.await.expect("no panic"));
    edge.spawn(&[]);
    assert_held_in_vain(&mut edge, before).await;
    fs::write(edge.path("computed"), "").expect("written");
    assert_served_again(&mut edge, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_answers_the_edge_before_is_not_stopped_by_the_next_one() {
    let mut edge = app(SHORT).config("[shutdown]\ndrain = \"10m\"\n").start();
    let before = pid(&edge).await;
    let slow = tokio::spawn(client().get(edge.url(HOST, "/compute")).send());
    edge.wait_until("it computes", |edge| edge.path("computes").exists());
    let mut old = hand_over(&mut edge);
    assert_held_in_vain(&mut edge, before).await;
    fs::write(edge.path("computed"), "").expect("written");
    let slow = slow.await.expect("no panic").expect("an answer");
    assert_eq!(slow.status(), 200);
    assert_eq!(slow.text().await.expect("a body"), before.to_string());
    assert_eq!(wait_exit(&mut old).code(), Some(0));
    assert_served_again(&mut edge, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_maintenance_outlives_a_restart_of_the_edge() {
    let mut edge = app(SHORT).start();
    let before = pid(&edge).await;
    fs::write(edge.path("maintenance"), "").expect("written");
    assert_eq!(ask(&edge, "/").await.0, 503, "the instance's own");
    edge.kill();
    edge.spawn(&[]);
    assert_held_in_vain(&mut edge, before).await;
    fs::remove_file(edge.path("maintenance")).expect("removed");
    assert_served_again(&mut edge, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_and_never_gets_ready_is_put_to_sleep_by_idleness() {
    let idle = "[idle]\nafter = \"1s\"\nmin_awake = \"0s\"\n";
    let mut edge = app(&format!("{SHORT}{}", idle.replace("1s", "1h"))).start();
    let before = pid(&edge).await;
    fs::write(edge.path("maintenance"), "").expect("written");
    edge.kill();
    let route = fs::read_to_string(edge.path("routes/app.toml")).expect("the route");
    edge.write_route("app", &route.replace("1h", "1s"));
    edge.spawn(&[]);
    edge.wait_state(HOST, "asleep");
    assert_eq!(motion(before), None);
    let session = edge.session(HOST);
    assert_eq!(session["cooldown_ms"], Value::Null, "no wake has failed: {session}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_that_is_longer_than_a_hold_is_one_start_and_comes_up() {
    let wake = "[wake]\ntimeout = \"500ms\"\n";
    let mut edge = Setup::new().route("demo", &gated(wake)).start();
    edge.announce("wake is late");
    for _ in 0..3 {
        let (status, problem) = ask(&edge, "/whoami").await;
        let problem: Value = serde_json::from_str(&problem).expect("JSON");
        assert_eq!((status, &problem["type"]), (504, &"urn:dormouse:wake_timeout".into()));
        assert_eq!(problem["title"], "The session is not ready yet");
        assert_eq!(problem["detail"], "It is getting ready. Try again in a moment.");
    }
    assert_eq!((edge.starts(HOST), &*edge.state(HOST)), (1, "waking"));
    let error = edge.session(HOST)["last_error"].to_string();
    assert!(error.contains("not ready within wake.timeout"), "{error}");
    assert_eq!(edge.log_count(&["WARN", "wake is late", HOST]), 1, "once, not for each request");
    open_gate(&edge, HOST);
    edge.wait_state(HOST, "idle");
    assert_eq!(get(&client(), &edge.url(HOST, "/whoami")).await.0, 200);
    assert_eq!(edge.starts(HOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_without_end_is_ended_and_told_so() {
    let wake = "[wake]\ntimeout = \"500ms\"\nboot_max = \"2s\"\n";
    let mut edge = Setup::new().route("demo", &gated(wake)).start();
    edge.announce("wake is late");
    edge.announce("wake failed");
    assert_eq!(ask(&edge, "/whoami").await.0, 504);
    edge.wait_state(HOST, "asleep");
    let session = edge.session(HOST);
    assert!(session["last_error"].to_string().contains("not ready in time"), "{session}");
    assert_eq!(edge.starts(HOST), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_whose_instance_dies_is_a_boot_within_the_same_hold() {
    let ladder = "[idle]\nmin_awake = \"0s\"\nsleep = [{ after = \"1h\", to = \"paused\" }]\n";
    let mut edge = app(ladder).start();
    let before = pid(&edge).await;
    put_to_sleep(&mut edge, HOST);
    edge.wait_state(HOST, "asleep");
    assert_eq!(motion(before), Some('T'));
    fs::write(edge.path("dies"), "").expect("written");
    let after = pid(&edge).await;
    assert!(!edge.path("dies").exists(), "it was thawed");
    assert_ne!(after, before);
    assert_eq!(edge.starts(HOST), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_go_on_though_the_clock_was_set_back() {
    let mut edge = app("").start();
    let (before, generation) = (pid(&edge).await, |edge: &Edge| {
        edge.session(HOST)["generation"].as_u64().expect("a number")
    });
    let first = generation(&edge);
    put_to_sleep(&mut edge, HOST);
    edge.wait_state(HOST, "asleep");
    edge.kill();
    // What an edge leaves behind whose clock was a day ahead.
    let kept = fs::read_to_string(edge.path("state/generation")).expect("it is kept");
    let kept: u64 = kept.trim().parse().expect("a number");
    assert!(first < kept, "{first} was given, and {kept} is kept");
    let ahead = kept + 24 * 60 * 60 * 1000;
    fs::write(edge.path("state/generation"), ahead.to_string()).expect("written");
    edge.spawn(&[]);
    assert_ne!(pid(&edge).await, before);
    assert!(ahead < generation(&edge));
}
