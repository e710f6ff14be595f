//! Route files that are added, changed, removed, broken and mended, while requests flow.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use reqwest::Client;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    life::{Socket, motion, who},
    support::{DORMOUSE, Edge, Setup, client, wait_exit, witnessed},
};

/// Requests without a pause: some on connections that are kept, some on new ones.
pub(crate) struct Load {
    ending: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn begin(url: &str) -> Self {
        let mut load = Self {
            ending: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            tasks: Vec::new(),
        };
        for task in 0..4 {
            let (ending, answered) = (Arc::clone(&load.ending), Arc::clone(&load.answered));
            let (failed, url) = (Arc::clone(&load.failed), url.to_owned());
            let mut client = client();
            load.tasks.push(tokio::spawn(async move {
                while !ending.load(Ordering::Relaxed) {
                    if task % 2 == 0 {
                        client = crate::support::client();
                    }
                    match get(&client, &url).await {
                        (200, _) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        other => failed.lock().expect("failed").push(format!("{other:?}")),
                    }
                }
            }));
        }
        load
    }

    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until requests that began after this call were answered.
    pub(crate) fn flows(&self, edge: &mut Edge) {
        let before = self.answered();
        edge.wait_until("requests are answered", |_| before + 40 <= self.answered());
    }

    /// Ends it; no request may have failed.
    pub(crate) async fn end(self) {
        self.ending.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        let failed = self.failed.lock().expect("failed");
        assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..failed.len().min(9)]);
    }
}

/// Status and body; 0 and the error where there is no answer.
pub(crate) async fn get(client: &Client, url: &str) -> (u16, String) {
    let answer = async {
        let answer = client.get(url).send().await?;
        Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.text().await?))
    };
    answer.await.unwrap_or_else(|error| (0, format!("{error:?}")))
}

/// An edge whose alice is asked without a pause.
fn busy() -> (Edge, Load) {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let load = Load::begin(&edge.url("alice.test", "/whoami"));
    load.flows(&mut edge);
    (edge, load)
}

async fn end(edge: &Edge, load: Load) {
    load.end().await;
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_added_serves_its_hosts() {
    let (mut edge, load) = busy();
    let (client, url) = (client(), edge.url("bob.other.test", "/whoami"));
    assert_eq!(get(&client, &url).await.0, 404);
    edge.write_route("other", &witnessed("", "").replace("{session}.test", "{session}.other.test"));
    edge.wait_until("the route is live", |edge| {
        edge.admin_get("/v1/routes")["routes"].as_array().is_some_and(|routes| routes.len() == 2)
    });
    assert_eq!(get(&client, &url).await.0, 200);
    load.flows(&mut edge);
    end(&edge, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_header_and_idle_time_count_at_once_and_a_command_for_the_next_life() {
    let (mut edge, load) = busy();
    let client = client();
    let first = who(&client, &edge, "bob.test").await;
    let changed = witnessed(
        "",
        "[idle]\nafter = \"2h\"\n[upstream]\nset_headers = { x-new = \"{session}\" }\n",
    )
    .replace("echo $DORMOUSE_SESSION", "echo $DORMOUSE_SESSION >> second; echo $DORMOUSE_SESSION");
    edge.write_route("demo", &changed);
    edge.wait_until("the route has changed", |edge| {
        edge.admin_get("/v1/routes")["routes"][0]["policy"]["sleep"][0]["after"] == "2h"
    });
    let (status, headers) = get(&client, &edge.url("bob.test", "/headers")).await;
    assert_eq!(status, 200);
    let headers: Vec<(String, String)> = serde_json::from_str(&headers).expect("JSON");
    assert!(headers.contains(&("x-new".to_owned(), "bob".to_owned())), "{headers:?}");
    assert_eq!(who(&client, &edge, "bob.test").await.pid, first.pid, "the instance goes on");
    edge.wait_until("bob sleeps by the new rule", |edge| {
        edge.session("bob.test")["sleeps_in_ms"].as_u64().is_some_and(|ms| 3_600_000 < ms)
    });
    assert!(!edge.path("second").exists());

    crate::life::put_to_sleep(&mut edge, "bob.test");
    assert_ne!(who(&client, &edge, "bob.test").await.pid, first.pid);
    assert_eq!(fs::read_to_string(edge.path("second")).expect("the new command"), "bob.test\n");

    // A rule that is shorter than the time it has been idle already.
    edge.write_route("demo", &witnessed("", "[idle]\nafter = \"1ms\"\nmin_awake = \"0s\"\n"));
    edge.wait_state("bob.test", "asleep");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_removed_ends_for_new_requests_and_not_for_open_streams() {
    let (mut edge, load) = busy();
    let client = client();
    edge.write_route("gone", &witnessed("", "").replace("{session}.test", "{session}.gone.test"));
    let url = edge.url("bob.gone.test", "/whoami");
    edge.wait_until("the route is live", |edge| {
        edge.admin_get("/v1/routes")["routes"].as_array().is_some_and(|routes| routes.len() == 2)
    });
    let bob = who(&client, &edge, "bob.gone.test").await;
    let mut socket = Socket::open(&edge, "bob.gone.test", "").await;
    edge.remove_route("gone");
    edge.wait_until("the route is gone", |edge| {
        edge.admin_get("/v1/routes")["routes"].as_array().is_some_and(|routes| routes.len() == 1)
    });
    assert_eq!(get(&client, &url).await.0, 404);
    socket.assert_echoes().await;
    edge.wait_until("bob is retired", |edge| edge.session("bob.gone.test")["retired"] == true);
    assert!(motion(bob.pid).is_some());
    drop(socket);
    edge.wait_state("bob.gone.test", "asleep");
    assert_eq!(motion(bob.pid), None);
    assert_eq!(get(&client, &url).await.0, 404);
    load.flows(&mut edge);
    end(&edge, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_route_changes_nothing_and_is_told_until_it_is_mended() {
    let (mut edge, load) = busy();
    edge.announce("the routes stay as they were");
    let good = witnessed("", "");
    edge.write_route("added", &good.replace("{session}.test", "{session}.added.test"));
    edge.wait_until("the route is live", |edge| edge.metric(&["dormouse_routes "]) as u64 == 2);

    // Both change, one is broken: neither counts. The broken one first, or the other alone would
    // count if it took us long to write both.
    edge.write_route("demo", &format!("{good}[idle]\nafer = \"1ms\"\n"));
    edge.write_route("added", &good.replace("{session}.test", "{session}.moved.test"));
    // The list is filled after the count is.
    edge.wait_until("the error is listed", |edge| {
        edge.admin_get("/v1/routes")["errors"].as_array().is_some_and(|all| !all.is_empty())
    });
    assert_eq!(edge.metric(&["dormouse_route_errors "]) as u64, 1);
    let row = good.lines().count() + 2;
    let errors = edge.admin_get("/v1/routes")["errors"].clone();
    assert_eq!(errors.as_array().map(Vec::len), Some(1), "{errors}");
    assert_eq!((&errors[0]["line"], &errors[0]["column"]), (&Value::from(row), &Value::from(1)));
    let hint = errors[0]["hint"].as_str().expect("a hint");
    assert!(hint.contains("after"), "{hint}");
    let place = format!("demo.toml:{row}:1");
    edge.wait_until("it is told, with its place", |edge| edge.log_count(&["ERROR", &place]) == 1);
    let client = client();
    assert_eq!(get(&client, &edge.url("bob.added.test", "/whoami")).await.0, 200);
    assert_eq!(get(&client, &edge.url("bob.moved.test", "/whoami")).await.0, 404);
    load.flows(&mut edge);

    edge.write_route("demo", &good);
    // The list is emptied after the count is.
    edge.wait_until("it is mended", |edge| {
        edge.admin_get("/v1/routes")["errors"] == Value::Array(Vec::new())
    });
    assert_eq!(edge.metric(&["dormouse_route_errors "]) as u64, 0);
    assert_eq!(edge.log_count(&["ERROR", &place]), 1, "told once");
    assert_eq!(get(&client, &edge.url("bob.moved.test", "/whoami")).await.0, 200);
    load.flows(&mut edge);
    end(&edge, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_what_the_watch_cannot_see() {
    let (mut edge, load) = busy();
    // A symlink that leads out of the folder: an edit behind it is seen by nobody.
    let behind = edge.path("behind.toml");
    let host = |name: &str| witnessed("", "").replace("{session}.test", name);
    fs::write(&behind, host("before.test").replace("@DIR@", &edge.dir.path().to_string_lossy()))
        .expect("a file");
    std::os::unix::fs::symlink(&behind, edge.path("routes/linked.toml")).expect("a symlink");
    let client = client();
    edge.wait_until("the route is live", |edge| edge.metric(&["dormouse_routes "]) as u64 == 2);
    fs::write(&behind, host("after.test").replace("@DIR@", &edge.dir.path().to_string_lossy()))
        .expect("a file");
    edge.signal(Signal::HUP);
    edge.wait_until("the routes are reloaded", |edge| {
        1 == edge.log_count(&["routes reloaded", "changed=[\"linked\"]"])
    });
    assert_eq!(get(&client, &edge.url("after.test", "/whoami")).await.0, 200);
    assert_eq!(edge.log_count(&["SIGHUP"]), 1);
    load.flows(&mut edge);
    end(&edge, load).await;
}

/// Runs the binary against the edge; its exit code, what it printed, and what it complained of.
fn dormouse(edge: &Edge, arguments: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(DORMOUSE)
        .args(arguments)
        .arg("--config")
        .arg(edge.path("dormouse.toml"))
        .output()
        .expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal"), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_wakes_lists_and_puts_to_sleep() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let (code, _, complaint) = dormouse(&edge, &["sleep", "alice.test"]);
    assert_eq!(code, 4, "nobody has asked for it: {complaint}");
    assert_eq!(dormouse(&edge, &["wake", "alice.nowhere"]).0, 4);
    assert_eq!(dormouse(&edge, &["wake", "not a host"]).0, 2);

    let (code, woken, _) = dormouse(&edge, &["wake", "alice.test"]);
    assert_eq!(code, 0);
    assert!(woken.starts_with("alice.test is awake (generation "), "{woken}");
    assert_eq!(edge.starts("alice.test"), 1);
    let (code, list, _) = dormouse(&edge, &["sessions", "--json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!((code, &list["sessions"][0]["host"]), (0, &Value::from("alice.test")));
    assert!(dormouse(&edge, &["sessions"]).1.contains("alice.test"));

    let socket = Socket::open(&edge, "alice.test", "").await;
    let (code, _, complaint) = dormouse(&edge, &["sleep", "alice.test"]);
    assert_eq!(code, 5, "{complaint}");
    assert!(complaint.contains("hold it awake"), "{complaint}");
    assert_eq!(edge.state("alice.test"), "awake");
    drop(socket);
    edge.wait_state("alice.test", "idle");
    assert_eq!(dormouse(&edge, &["sleep", "alice.test", "--to", "paused"]).0, 0);
    edge.wait_state("alice.test", "asleep");
    assert_eq!(edge.session("alice.test")["depth"], "paused");
    assert_eq!(dormouse(&edge, &["sleep", "alice.test", "--to", "removed"]).0, 2);
    assert_eq!(dormouse(&edge, &["wake", "alice.test"]).0, 0);
    assert_eq!(edge.starts("alice.test"), 1, "it was only paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reloads_and_says_what_is_wrong() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    edge.announce("the routes stay as they were");
    let (code, text, _) = dormouse(&edge, &["reload"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("1 route"), "{text}");
    edge.write_route("bad", "host = 7\n");
    let (code, _, complaint) = dormouse(&edge, &["reload"]);
    assert_eq!(code, 2);
    assert!(complaint.contains("bad.toml:1:8"), "{complaint}");
    edge.remove_route("bad");
    assert_eq!(dormouse(&edge, &["reload"]).0, 0);
    edge.kill();
    let (code, _, complaint) = dormouse(&edge, &["sessions"]);
    assert_eq!(code, 3);
    assert!(complaint.contains("cannot be reached"), "{complaint}");
}

/// A typo in one file takes no other route away, and nothing that runs.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_starts_with_its_good_routes_and_leaves_alone_what_a_bad_file_may_have_held() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    let other = witnessed("", "").replace("{session}.test", "{session}.other");
    edge.write_route("other", &other);
    edge.wait_until("both are routed", |edge| edge.metric(&["dormouse_routes "]) == 2.0);
    assert_eq!(get(&client(), &edge.url("alice.test", "/")).await.0, 200);
    assert_eq!(get(&client(), &edge.url("bob.other", "/")).await.0, 200);
    edge.kill();
    edge.announce("this file is left out").announce("the routes stay as they were");
    edge.write_route("other", &format!("{other}\nnonsense = 1\n"));

    let refused = wait_exit(&mut edge.launch(&["--strict"]));
    assert_eq!(refused.code(), Some(2));
    edge.spawn(&[]);
    edge.wait_state("alice.test", "idle");
    assert_eq!(get(&client(), &edge.url("alice.test", "/")).await.0, 200);
    assert_eq!(get(&client(), &edge.url("bob.other", "/")).await.0, 404);
    assert_eq!(edge.metric(&["dormouse_route_errors "]), 1.0);
    let told = edge.admin_get("/v1/routes").to_string();
    assert!(told.contains("nonsense"), "{told}");
    edge.wait_until("it is seen", |edge| 0 < edge.log_count(&["bob.other", "left as it is"]));

    edge.write_route("other", &other);
    edge.wait_state("bob.other", "idle");
    assert_eq!(edge.starts("bob.other"), 1, "it ran on");
    assert_eq!(get(&client(), &edge.url("bob.other", "/")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_names_the_keys_that_wait_for_a_restart_and_where_the_file_is_wrong() {
    let mut edge = Setup::new().route("demo", &witnessed("", "")).start();
    edge.announce("wait for a restart").announce("nothing is reloaded");
    let file = edge.path("dormouse.toml");
    let before = std::fs::read_to_string(&file).expect("the settings");
    std::fs::write(&file, format!("{before}\n[shutdown]\ndrain = \"7s\"\n")).expect("written");
    let (code, text, _) = dormouse(&edge, &["reload"]);
    assert_eq!(code, 0);
    assert!(text.contains("\nwaits for a restart: shutdown.drain"), "{text}");
    assert!(!text.contains("nothing has changed"), "{text}");
    std::fs::write(&file, format!("{before}\n[shutdown]\ndrian = \"7s\"\n")).expect("written");
    let (status, told) = edge.admin_post("/v1/reload");
    assert_eq!(status, 422);
    assert!(told.to_string().contains("unknown key `drian`"), "{told}");
    std::fs::write(&file, before).expect("written");
    let (_, text, _) = dormouse(&edge, &["reload"]);
    assert!(text.contains("nothing has changed"), "{text}");
}
