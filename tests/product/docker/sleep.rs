//! How sessions fall asleep, how deep, and what wakes from there.

use super::{Events, Yard, demo, hello};
use crate::support::{blocking, client};

const AT_ONCE: &str = "[idle]\nafter = \"300ms\"\nmin_awake = \"0s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_stopped_and_woken_in_the_same_container() {
    let mut yard = Yard::new(&demo("", AT_ONCE));
    let first = yard.whoami("alice.test").await;
    let (id, generation) = (yard.id("alice.test"), yard.generation("alice.test"));
    yard.wait_status("alice.test", "exited");
    let second = yard.whoami("alice.test").await;
    assert_eq!(yard.id("alice.test"), id);
    assert!(generation < yard.generation("alice.test"));
    assert_ne!(first["started_unix_ms"], second["started_unix_ms"]);
    assert_eq!(yard.edge.starts("alice.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_visits_goes_down_the_ladder() {
    let ladder = "[idle]\nmin_awake = \"0s\"\nsleep = [{ after = \"300ms\", to = \"paused\" }, \
                  { after = \"5s\", to = \"stopped\" }, { after = \"10s\", to = \"removed\" }]\n";
    let mut yard = Yard::new(&demo("", ladder));
    let events = Events::of(&yard.crew);
    yard.whoami("alice.test").await;
    yard.edge.wait_until("it is removed", |_| events.count("destroy") == 1);
    let steps = ["create", "start", "pause", "unpause", "die", "destroy"];
    let seen: Vec<_> = events.seen().into_iter().map(|seen| seen.action).collect();
    let seen: Vec<_> = seen.iter().filter(|seen| steps.contains(&seen.as_str())).collect();
    assert_eq!(seen, steps.iter().collect::<Vec<_>>(), "in this order, and each once");
    yard.whoami("alice.test").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_depth_is_woken_from() {
    let mut yard = Yard::new(&demo("", ""));
    let mut before = yard.whoami("alice.test").await["started_unix_ms"].clone();
    let mut generation = yard.generation("alice.test");
    for (depth, status) in [("paused", "paused"), ("stopped", "exited"), ("removed", "none")] {
        let id = yard.id("alice.test");
        yard.put_to_sleep("alice.test", depth);
        assert_eq!(yard.status("alice.test"), status);
        let now = yard.whoami("alice.test").await["started_unix_ms"].clone();
        assert_eq!(now == before, depth == "paused", "only what is paused lives on: {depth}");
        assert_eq!(yard.id("alice.test") == id, depth != "removed", "{depth}");
        assert!(generation < yard.generation("alice.test"), "{depth}");
        (before, generation) = (now, yard.generation("alice.test"));
    }
    assert_eq!(yard.edge.starts("alice.test"), 3);
    let sleeps = |to: &str| yard.edge.metric(&["dormouse_sleeps_total", "docker", to, "ok"]);
    assert_eq!(["paused", "stopped", "removed"].map(sleeps), [1.0; 3]);
    assert_eq!(yard.edge.metric(&["dormouse_wakes_total", "docker", "ok"]), 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_wakes_and_puts_to_sleep() {
    let mut yard = Yard::new(&demo("", ""));
    let woken = yard.cli(&["wake", "alice.test", "--json"]);
    assert!(woken.status.success(), "{}", String::from_utf8_lossy(&woken.stderr));
    let woken: serde_json::Value = serde_json::from_slice(&woken.stdout).expect("JSON");
    assert!(woken["took"]["engine_ms"].as_f64().is_some_and(|took| 0.0 < took), "{woken}");
    assert_eq!(yard.status("alice.test"), "running");

    let stream = client().get(yard.edge.url("alice.test", "/sse?every_ms=50")).send();
    let streaming = stream.await.expect("an answer");
    let refused = yard.cli(&["sleep", "alice.test", "--to", "removed"]);
    assert_eq!(refused.status.code(), Some(5), "a stream holds it awake");
    drop(streaming);
    yard.put_to_sleep("alice.test", "removed");
    assert_eq!(yard.status("alice.test"), "none");

    let wrong = yard.cli(&["sleep", "alice.test", "--to", "suspended"]);
    assert!(!wrong.status.success());
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("paused, stopped, removed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_meet_a_sleep_are_all_answered() {
    let mut yard = Yard::new(&hello("[idle]\nafter = \"1ms\"\nmin_awake = \"0s\"\n"));
    yard.edge.wait_until("thirty requests met as many sleeps as they could", |edge| {
        let url = edge.url("alice.test", "/");
        let answer = blocking(async { client().get(url).send().await });
        assert_eq!(answer.expect("an answer").status(), 200);
        10.0 <= edge.metric(&["dormouse_sleeps_total", "docker", "ok"])
    });
    assert_eq!(yard.crew.containers().len(), 1);
}
