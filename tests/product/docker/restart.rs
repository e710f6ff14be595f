//! The edge ends, in whatever way; containers stay, and the next edge finds them.

use rustix::process::Signal;

use super::{Yard, demo, hello};
use crate::dockerd;

const LADDER: &str = "[idle]\nmin_awake = \"0s\"\nsleep = [{ after = \"1h\", to = \"paused\" }, \
                      { after = \"2h\", to = \"stopped\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_edge_loses_nothing_and_the_next_one_adopts() {
    let mut yard = Yard::new(&demo("", LADDER));
    let other = demo("", LADDER).replace("{session}.test", "{session}.other");
    yard.edge.write_route("other", &other);
    yard.edge.wait_until("the route is there", |edge| {
        edge.admin_get("/v1/routes")["routes"].as_array().is_some_and(|all| all.len() == 2)
    });
    let mut lives = Vec::new();
    for (host, depth) in
        [("alice.test", None), ("bob.test", Some("paused")), ("carol.test", Some("stopped"))]
    {
        lives.push((host, yard.whoami(host).await["started_unix_ms"].clone()));
        if let Some(depth) = depth {
            yard.put_to_sleep(host, depth);
        }
    }
    for host in ["dave.other", "erin.other"] {
        yard.whoami(host).await;
    }
    yard.put_to_sleep("erin.other", "paused");
    let generation = yard.generation("alice.test");
    yard.edge.kill();
    for (host, status) in [("alice.test", "running"), ("bob.test", "paused")] {
        assert_eq!(yard.status(host), status, "{host} outlives the edge");
    }
    yard.edge.remove_route("other");
    yard.edge.spawn(&[]);

    // What no route wants sleeps.
    yard.wait_status("dave.other", "exited");
    yard.wait_status("erin.other", "exited");
    // What one wants is adopted as it is.
    yard.edge.wait_state("alice.test", "idle");
    assert!(generation < yard.generation("alice.test"), "numbers only grow");
    let known = |host: &str| {
        let session = yard.edge.session(host);
        (session["state"].to_string(), session["depth"].to_string())
    };
    assert_eq!(known("bob.test"), ("\"asleep\"".to_owned(), "\"paused\"".to_owned()));
    assert_eq!(known("carol.test"), ("\"asleep\"".to_owned(), "\"stopped\"".to_owned()));
    let next = yard.edge.session("bob.test");
    assert_eq!(next["sleeps_to"], "stopped", "the ladder goes on: {next}");
    for (host, life) in lives {
        let now = yard.whoami(host).await["started_unix_ms"].clone();
        assert_eq!(now == life, host != "carol.test", "{host}");
    }
    assert_eq!(yard.edge.starts("alice.test"), 1);
    assert_eq!(yard.edge.starts("carol.test"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ladder_of_an_adopted_session_goes_on() {
    let ladder = LADDER.replace("2h", "3s");
    let mut yard = Yard::new(&demo("", &ladder.replace("1h", "100ms")));
    yard.whoami("alice.test").await;
    yard.wait_status("alice.test", "paused");
    yard.edge.kill();
    assert_eq!(yard.status("alice.test"), "paused");
    yard.edge.spawn(&[]);
    yard.wait_status("alice.test", "exited");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_containers_up() {
    let mut yard = Yard::new(&demo("", ""));
    let before = yard.whoami("alice.test").await;
    yard.edge.signal(Signal::TERM);
    assert!(yard.edge.wait_exit().success());
    assert_eq!(yard.status("alice.test"), "running");
    yard.edge.spawn(&[]);
    let after = yard.whoami("alice.test").await;
    assert_eq!(before["started_unix_ms"], after["started_unix_ms"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_calls_unhealthy_since_it_was_thawed_is_served_by_the_next_edge() {
    // Healthy at its first check alone, as one is whose next check is half a minute away.
    let check = "HEALTHCHECK --interval=100ms --retries=1000000 \
                 CMD test ! -e /tmp/checked && touch /tmp/checked";
    dockerd::shared().image("dormouse-test/thawed", &["--change", check]);
    let wake = "[wake]\ntimeout = \"3s\"\nboot_max = \"0s\"\n";
    let route = hello(wake).replace("probe = \"http\"", "probe = \"engine\"");
    let mut yard = Yard::new(&route.replace(dockerd::IMAGE, "dormouse-test/thawed"));
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    yard.put_to_sleep("alice.test", "paused");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    let name = yard.name("alice.test");
    let life = |yard: &Yard<'_>| (yard.id("alice.test"), yard.field(&name, ".State.StartedAt"));
    let before = life(&yard);
    yard.edge.kill();
    assert_eq!(yard.field(&name, ".State.Health.Status"), "unhealthy");
    yard.edge.spawn(&[]);
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    assert_eq!(life(&yard), before);
}
