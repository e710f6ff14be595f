//! Lists, wakes and sleeps, over an engine that does as it is told.

use std::sync::atomic::Ordering;

use dormouse::{
    engine::Error,
    session::{Plan, machine::Asker},
};

use crate::{
    admin_bed::{Bed, ROUTE},
    wire::ask,
};

const ALICE: &str = "alice.localhost";
const WAKE: &str = "POST /v1/sessions/alice.localhost/wake";
const SLEEP: &str = "POST /v1/sessions/alice.localhost/sleep";

/// A plan is asked for only where the session is new.
fn known() -> Plan {
    panic!("the session is known")
}

#[tokio::test]
async fn a_wake_waits_until_ready_and_tells_where_the_time_went() {
    let bed = Bed::new().await;
    let answer = ask(&bed, WAKE).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["session"]["host"], ALICE);
    assert_eq!(body["session"]["state"], "idle", "the operator's lease is given back");
    assert_eq!(body["session"]["leases"], 0);
    for part in ["hold_ms", "queued_ms", "engine_ms", "ready_ms"] {
        assert!(body["took"][part].is_f64(), "{part}: {body}");
    }
    let again = ask(&bed, WAKE).await;
    assert_eq!((again.status, &again.json()["took"]), (200, &serde_json::Value::Null));
    assert_eq!(bed.engine.calls(), ["start alice.localhost"]);

    let one = ask(&bed, "GET /v1/sessions/ALICE.localhost.:80").await;
    assert_eq!(one.json()["state"], "idle", "a host has one canonical spelling");
}

#[tokio::test]
async fn what_cannot_be_woken_says_why_and_asks_no_engine() {
    let bed = Bed::new().await;
    let answer = ask(&bed, "POST /v1/sessions/alice.example/wake").await;
    assert_eq!((answer.status, answer.problem().as_str()), (404, "no_such_route"));
    let answer = ask(&bed, "POST /v1/sessions/-/wake").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad_request"));
    let answer = ask(&bed, &format!("{WAKE}?wiat=false")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad_request"));
    let answer = ask(&bed, "GET /v1/sessions/alice.localhost/wake").await;
    assert_eq!((answer.status, answer.problem().as_str()), (405, "wrong_method"));
    assert!(bed.engine.calls().is_empty());
    assert!(bed.fleet.sessions().is_empty());
}

#[tokio::test]
async fn nothing_moves_before_it_is_known_what_runs() {
    let bed = Bed::new().await;
    assert_eq!(ask(&bed, "GET /readyz").await.status, 200);
    bed.ready.store(false, Ordering::Release);
    for request in [WAKE, SLEEP, "GET /readyz"] {
        let answer = ask(&bed, request).await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "not_ready"), "{request}");
        assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
    }
    assert_eq!(ask(&bed, "GET /healthz").await.status, 200);
    assert!(bed.engine.calls().is_empty());
}

#[tokio::test]
async fn a_failed_wake_says_what_the_engine_said_and_may_be_tried_again_at_once() {
    let bed = Bed::new().await;
    bed.engine.fail_next(Error::Missing("no such program: serve".into()));
    let failed = ask(&bed, WAKE).await;
    assert_eq!((failed.status, failed.problem().as_str()), (502, "wake_failed"));
    assert_eq!(failed.json()["detail"], "no such program: serve");

    bed.until(ALICE, "asleep").await;
    let view = ask(&bed, "GET /v1/sessions/alice.localhost").await.json();
    assert_eq!(view["last_error"], "no such program: serve");
    assert!(view["cooldown_ms"].is_u64(), "a client would have to wait: {view}");

    bed.engine.fail_next(Error::Unreachable("the daemon is down".into()));
    let busy = ask(&bed, WAKE).await;
    assert_eq!((busy.status, busy.problem().as_str()), (503, "wake_failed"));
    assert!(busy.head.contains("retry-after: 1"), "{busy:?}");
    assert_eq!(ask(&bed, WAKE).await.status, 200, "an operator waits for no cooldown");
    let starts = bed.engine.calls().iter().filter(|call| call.starts_with("start")).count();
    assert_eq!(starts, 3);
}

#[tokio::test]
async fn a_wake_that_is_never_ready_ends_with_wake_timeout() {
    let bed = Bed::new().await;
    let short =
        ROUTE.replace("\"30s\"", "\"300ms\"\nboot_max = \"0s\"").replace("{session}", "slow");
    std::fs::write(bed.route_file("slow.toml"), short).unwrap();
    assert_eq!(ask(&bed, "POST /v1/reload").await.status, 200);
    bed.engine.hang();
    let answer = ask(&bed, "POST /v1/sessions/slow.localhost/wake").await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "wake_timeout"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("it was starting"), "{answer:?}");
    bed.engine.release();
    bed.until("slow.localhost", "asleep").await;
}

#[tokio::test]
async fn without_waiting_the_wake_goes_on() {
    let bed = Bed::new().await;
    bed.engine.hang();
    let answer = ask(&bed, &format!("{WAKE}?wait=false")).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["session"]["state"], "waking");
    bed.engine.release();
    bed.until(ALICE, "idle").await;
    let awake = ask(&bed, &format!("{WAKE}?wait=false")).await;
    assert_eq!(awake.status, 200, "there is nothing to wait for");
    assert_eq!(bed.engine.calls(), ["start alice.localhost"]);
}

#[tokio::test]
async fn without_waiting_a_session_that_falls_asleep_wakes_behind_its_stop() {
    let bed = Bed::new().await;
    assert_eq!(ask(&bed, WAKE).await.status, 200);
    bed.engine.hang();
    assert_eq!(ask(&bed, SLEEP).await.status, 202);
    bed.engine.asked("sleep alice.localhost stopped").await;
    let answer = ask(&bed, &format!("{WAKE}?wait=false")).await;
    assert_eq!((answer.status, &answer.json()["session"]["state"]), (202, &"stopping".into()));
    bed.engine.release();
    bed.until(ALICE, "idle").await;
    assert_eq!(bed.engine.calls().len(), 3, "{:?}", bed.engine.calls());
}

#[tokio::test]
async fn sleep_begins_once_and_goes_as_deep_as_it_was_told() {
    let bed = Bed::new().await;
    assert_eq!(ask(&bed, WAKE).await.status, 200);
    let begun = ask(&bed, &format!("{SLEEP}?to=paused")).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    bed.until(ALICE, "asleep").await;
    let already = ask(&bed, &format!("{SLEEP}?to=paused")).await;
    assert_eq!((already.status, &already.json()["depth"]), (200, &"paused".into()));
    assert_eq!(ask(&bed, SLEEP).await.status, 202, "its route's first step is deeper");
    bed.until(ALICE, "asleep").await;
    let calls = bed.engine.calls();
    assert_eq!(calls[1..], ["sleep alice.localhost paused", "sleep alice.localhost stopped"]);
}

#[tokio::test]
async fn what_is_in_use_is_not_put_to_sleep() {
    let bed = Bed::new().await;
    assert_eq!(ask(&bed, WAKE).await.status, 200);
    let lease = bed.fleet.acquire(ALICE, Asker::Client, known).unwrap();
    let refused = ask(&bed, SLEEP).await;
    assert_eq!((refused.status, refused.problem().as_str()), (409, "in_use"));
    assert_eq!(refused.json()["leases"], 1);
    assert_eq!(bed.engine.calls(), ["start alice.localhost"]);
    drop(lease);
    assert_eq!(ask(&bed, SLEEP).await.status, 202);
}

#[tokio::test]
async fn sleep_knows_its_sessions_and_their_depths() {
    let bed = Bed::new().await;
    let unknown = ask(&bed, SLEEP).await;
    assert_eq!((unknown.status, unknown.problem().as_str()), (404, "no_such_session"));
    assert!(unknown.json()["detail"].as_str().unwrap().contains("`demo`"), "{unknown:?}");
    let unrouted = ask(&bed, "POST /v1/sessions/alice.example/sleep").await;
    assert_eq!((unrouted.status, unrouted.problem().as_str()), (404, "no_such_route"));
    assert_eq!(ask(&bed, WAKE).await.status, 200);
    for depth in ["removed", "deep", ""] {
        let answer = ask(&bed, &format!("{SLEEP}?to={depth}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "no_such_depth"));
        assert!(answer.body.contains("paused, stopped"), "{answer:?}");
    }
    assert_eq!(bed.engine.calls(), ["start alice.localhost"]);
}

#[tokio::test]
async fn the_list_is_filtered_and_bounded() {
    let bed = Bed::new().await;
    for session in ["a", "b", "c"] {
        let answer = ask(&bed, &format!("POST /v1/sessions/{session}.localhost/wake")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(ask(&bed, "POST /v1/sessions/b.localhost/sleep").await.status, 202);
    bed.until("b.localhost", "asleep").await;
    let hosts = async |query: &str| {
        let body = ask(&bed, &format!("GET /v1/sessions{query}")).await.json();
        let sessions = body["sessions"].as_array().unwrap().clone();
        let hosts: Vec<_> = sessions.iter().map(|s| s["host"].as_str().unwrap()).collect();
        (hosts.join(" "), body["total"].as_u64().unwrap())
    };
    assert_eq!(hosts("").await, ("a.localhost b.localhost c.localhost".into(), 3));
    assert_eq!(hosts("?state=idle").await, ("a.localhost c.localhost".into(), 2));
    assert_eq!(hosts("?state=idle&limit=1").await, ("a.localhost".into(), 2));
    assert_eq!(hosts("?state=waking").await, (String::new(), 0));
    for wrong in ["?state=sleeping", "?limit=-1", "?sate=idle"] {
        let answer = ask(&bed, &format!("GET /v1/sessions{wrong}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad_request"), "{wrong}");
    }
}

#[tokio::test]
async fn prometheus_gets_its_text() {
    let bed = Bed::new().await;
    assert_eq!(ask(&bed, WAKE).await.status, 200);
    let answer = ask(&bed, "GET /metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    assert!(answer.body.contains("# TYPE dormouse_sessions gauge"), "{}", answer.body);
    assert!(!answer.body.contains("alice"), "never a session in a metric");
}
