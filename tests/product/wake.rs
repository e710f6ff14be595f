//! The first request, and many at once.

use futures::future::join_all;
use serde_json::Value;

use crate::support::{Setup, client, witnessed};

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_get_wakes_and_is_answered() {
    let edge = Setup::new().route("demo", &witnessed("", "")).start();
    let answer = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let timing = answer.headers()["server-timing"].to_str().expect("text").to_owned();
    for part in ["hold;dur=", "engine;dur=", "ready;dur=", "connect;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    let who: Value = answer.json().await.expect("JSON");
    assert_eq!(who["session"], "alice.test");

    let warm = client().get(edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert!(!warm.headers().contains_key("server-timing"), "a warm answer carries none");
    assert_eq!(edge.starts("alice.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_gets_are_one_start() {
    let edge = Setup::new().route("demo", &witnessed("--listen-after 300ms", "")).start();
    let client = client();
    let gets = (0..100).map(|_| client.get(edge.url("alice.test", "/whoami")).send());
    for answer in join_all(gets).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    assert_eq!(edge.starts("alice.test"), 1);
}
