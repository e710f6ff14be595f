//! What others do to containers behind the edge's back.

use tokio::task::JoinSet;

use super::{Yard, demo};
use crate::{life::wait_arrived, support::client};

const SOON: &str = "[idle]\nafter = \"1s\"\nmin_awake = \"0s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_killed_or_removed_is_woken_again_once() {
    let mut yard = Yard::new(&demo("", ""));
    yard.whoami("alice.test").await;
    let mut starts = 1;
    for verb in [&["kill"][..], &["rm", "-f"]] {
        // At once, before the edge may have heard of it.
        yard.docker(&[verb, &[&yard.name("alice.test")]].concat());
        yard.whoami("alice.test").await;
        starts += 1;
        assert_eq!(yard.edge.starts("alice.test"), starts, "docker {verb:?}");
        // And once it has.
        yard.edge.wait_state("alice.test", "idle");
        yard.docker(&[verb, &[&yard.name("alice.test")]].concat());
        yard.edge.wait_state("alice.test", "asleep");
        assert_eq!(yard.edge.starts("alice.test"), starts, "nobody asked for it");
        yard.whoami("alice.test").await;
        starts += 1;
        assert_eq!(yard.edge.starts("alice.test"), starts, "docker {verb:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_dies_under_a_request_costs_that_request_alone() {
    let mut yard = Yard::new(&demo("", ""));
    yard.edge.announce("broken");
    yard.whoami("alice.test").await;
    let url = yard.edge.url("alice.test", "/slow?ms=60000");
    let mut doomed = JoinSet::new();
    doomed.spawn(client().get(url).send());
    wait_arrived(&client(), &yard.edge, "alice.test").await;
    yard.docker(&["kill", &yard.name("alice.test")]);
    let doomed = doomed.join_next().await.expect("one").expect("it does not panic");
    let doomed = doomed.expect("an answer");
    assert_eq!(doomed.status(), 502);
    yard.whoami("alice.test").await;
    assert_eq!(yard.edge.starts("alice.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_started_outside_is_adopted_as_idle_and_sleeps_later() {
    let mut yard = Yard::new(&demo("", SOON));
    yard.whoami("alice.test").await;
    let generation = yard.generation("alice.test");
    yard.wait_status("alice.test", "exited");
    yard.docker(&["start", &yard.name("alice.test")]);
    yard.edge.wait_until("it was adopted", |edge| {
        edge.session("alice.test")["generation"].as_u64().is_some_and(|now| generation < now)
    });
    yard.wait_status("alice.test", "exited");
    yard.edge.wait_state("alice.test", "asleep");
    assert_eq!(yard.edge.starts("alice.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_restarted_outside_is_another_life() {
    let mut yard = Yard::new(&demo("", ""));
    let first = yard.whoami("alice.test").await;
    let generation = yard.generation("alice.test");
    yard.docker(&["restart", "--time", "1", &yard.name("alice.test")]);
    yard.edge.wait_until("it was adopted", |edge| {
        let session = edge.session("alice.test");
        session["state"] == "idle"
            && session["generation"].as_u64().is_some_and(|now| generation < now)
    });
    let second = yard.whoami("alice.test").await;
    assert_ne!(first["started_unix_ms"], second["started_unix_ms"]);
    assert_eq!(yard.edge.starts("alice.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_paused_outside_is_woken_by_the_next_request() {
    let mut yard = Yard::new(&demo("", ""));
    let first = yard.whoami("alice.test").await;
    yard.edge.wait_state("alice.test", "idle");
    yard.docker(&["pause", &yard.name("alice.test")]);
    yard.edge.wait_state("alice.test", "asleep");
    assert_eq!(yard.edge.session("alice.test")["depth"], "paused");
    assert_eq!(yard.status("alice.test"), "paused", "nobody asked for it");
    let second = yard.whoami("alice.test").await;
    assert_eq!(first["started_unix_ms"], second["started_unix_ms"]);
    // And resumed outside it is adopted.
    yard.edge.wait_state("alice.test", "idle");
    yard.docker(&["pause", &yard.name("alice.test")]);
    yard.edge.wait_state("alice.test", "asleep");
    yard.docker(&["unpause", &yard.name("alice.test")]);
    yard.edge.wait_state("alice.test", "idle");
    assert_eq!(yard.edge.starts("alice.test"), 1);
}
