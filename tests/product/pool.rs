//! Spares of real engines: a new session's first wake is a resume, and what it got stays its own.

use std::collections::BTreeSet;

use crate::support::{Edge, Setup, client, witnessed};

const POOL: &str = "[pool]\nready = 2\n[idle]\nmin_awake = \"0s\"\nafter = \"1h\"\n";

/// The names of those that wait.
fn spares(edge: &Edge) -> BTreeSet<String> {
    let sessions = edge.admin_get("/v1/sessions");
    let all = sessions["sessions"].as_array().cloned().unwrap_or_default();
    let waits = |one: &&serde_json::Value| one["spare"] == true && one["depth"] == "paused";
    all.iter().filter(waits).filter_map(|one| one["host"].as_str().map(str::to_owned)).collect()
}

pub(crate) fn wait_for_spares(edge: &mut Edge) -> BTreeSet<String> {
    edge.wait_until("two spares wait", |edge| spares(edge).len() == 2);
    spares(edge)
}

pub(crate) fn instance(edge: &Edge, host: &str) -> String {
    edge.session(host)["instance"].as_str().unwrap_or_default().to_owned()
}

async fn get(edge: &Edge, host: &str) -> u16 {
    client().get(edge.url(host, "/healthz")).send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_gets_a_process_that_waited_and_keeps_it_over_a_crash_of_the_edge() {
    let mut edge = Setup::new().route("desk", &witnessed("", POOL)).start();
    let waiting = wait_for_spares(&mut edge);
    assert_eq!(edge.metric(&["dormouse_spares{route=\"desk\"}"]), 2.0);
    assert_eq!(get(&edge, "alice.test").await, 200);
    let hers = instance(&edge, "alice.test");
    assert!(waiting.contains(&hers), "{hers} is none of {waiting:?}");
    assert_eq!((edge.starts(&hers), edge.starts("alice.test")), (1, 0), "it was not started anew");
    let waiting = wait_for_spares(&mut edge);

    edge.kill();
    edge.spawn(&[]);
    assert_eq!(instance(&edge, "alice.test"), hers);
    edge.wait_state("alice.test", "idle");
    assert_eq!(get(&edge, "alice.test").await, 200);
    assert_eq!(edge.starts(&hers), 1, "it runs on");
    assert_eq!(spares(&edge), waiting, "those that waited wait still");
    assert_eq!(get(&edge, "bob.test").await, 200);
    assert_ne!(instance(&edge, "bob.test"), hers);
    assert_eq!(edge.metric(&["dormouse_spares_taken_total{route=\"desk\"}"]), 1.0);

    // What waits is of the route as it is now.
    let memory = ["dormouse_spares_memory_bytes{route=\"desk\"}"];
    let limited = "[ready]\nprobe = \"http\"";
    let route = witnessed("", &POOL.replace("ready = 2", "ready = 1"));
    let route = route.replace(limited, &format!("memory = \"64MiB\"\n{limited}"));
    edge.write_route("desk", &route);
    edge.wait_until("one spare waits", |edge| {
        spares(edge).len() == 1 && edge.metric(&memory) == f64::from(64 << 20)
    });
    edge.remove_route("desk");
    edge.wait_until("no spare is left", |edge| {
        let sessions = edge.admin_get("/v1/sessions");
        sessions["sessions"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["spare"] != true))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_has_no_more_instances_than_it_says() {
    let one = witnessed("", "").replace("[instance]\n", "[instance]\nmax = 1\n");
    let edge = Setup::new().route("desk", &one).start();
    assert_eq!(get(&edge, "alice.test").await, 200);
    let answer = client().get(edge.url("bob.test", "/")).send().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.expect("a body").contains("No room for a new session"));
    assert_eq!(edge.metric(&["dormouse_refused_total", "route_instances"]), 1.0);
    assert_eq!((get(&edge, "alice.test").await, edge.starts("bob.test")), (200, 0));
}
