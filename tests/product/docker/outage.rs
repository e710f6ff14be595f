//! The Docker daemon goes away and comes back.

use super::{Events, Yard, hello};
use crate::{
    dockerd,
    support::{client, witnessed},
};

/// What an outage may say to the operator.
const LOUD: [&str; 6] = [
    "docker events lost",
    "cannot put to sleep, will retry",
    "cannot ask the engine about an instance",
    "wake failed",
    "not_listening",
    "broken",
];

const UP: [&str; 2] = ["dormouse_engine_up", "docker"];

fn ready(yard: &Yard<'_>) -> String {
    let url = format!("http://{}/readyz", yard.edge.admin);
    crate::support::blocking(async { client().get(url).send().await?.text().await }).expect("text")
}

fn announce(yard: &mut Yard<'_>) {
    for part in LOUD {
        yard.edge.announce(part);
    }
}

/// Asks until it is answered; every other answer on the way is one that an outage may give.
fn wait_answered(yard: &mut Yard<'_>, host: &str) {
    yard.edge.wait_until(&format!("{host} is answered"), |edge| {
        let url = edge.url(host, "/");
        let status = crate::support::blocking(async { client().get(url).send().await });
        let status = status.expect("an answer").status();
        assert!([200, 502, 503].contains(&status.as_u16()), "{status}");
        status == 200
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_goes_away_takes_its_containers_along_and_gives_them_back() {
    let rig = dockerd::own("away", "");
    let local = witnessed("", "").replace("{session}.test", "{session}.local");
    let routes = [("docker", hello("")), ("process", local)];
    let routes = routes.each_ref().map(|(name, route)| (*name, route.as_str()));
    let mut yard = Yard::with(&rig, "[timeouts]\nconnect = \"1s\"\n", &routes);
    announce(&mut yard);
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    yard.whoami("alice.local").await;
    let id = yard.id("alice.test");

    rig.halt();
    let (status, text) = yard.get("alice.test", "/").await;
    assert!([502, 503].contains(&status), "{status} {text}");
    assert!(!text.contains("docker"), "{text}");
    let bob = client().get(yard.edge.url("bob.test", "/")).send().await.expect("an answer");
    assert_eq!(bob.status(), 503);
    assert!(bob.headers().contains_key("retry-after"));
    let error = yard.edge.session("bob.test")["last_error"].to_string();
    assert!(error.contains("cannot reach the engine"), "{error}");
    yard.whoami("alice.local").await;
    yard.edge.wait_until("the engine is left alone", |edge| edge.metric(&UP) == 0.0);
    let trouble = &yard.edge.admin_get("/v1/sessions")["running"]["engines"]["docker"]["trouble"];
    assert!(trouble.to_string().contains("no answer for"), "{trouble}");
    assert_eq!(ready(&yard), "ok\nengine docker does not answer\n");

    rig.start();
    wait_answered(&mut yard, "alice.test");
    assert_eq!((yard.edge.metric(&UP), ready(&yard)), (1.0, "ok\n".to_owned()));
    wait_answered(&mut yard, "bob.test");
    assert_eq!(yard.id("alice.test"), id);
    yard.edge.assert_lives();
    assert_eq!(yard.edge.log_count(&["panicked"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_a_daemon_is_served_all_the_while() {
    let rig = dockerd::own("alive", "--live-restore");
    let mut yard = Yard::with(&rig, "", &[("demo", &hello(""))]);
    announce(&mut yard);
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    let (id, generation) = (yard.id("alice.test"), yard.generation("alice.test"));
    rig.halt();
    yard.edge
        .wait_until("the edge has noticed", |edge| 0 < edge.log_count(&["docker events lost"]));
    for _ in 0..3 {
        assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
    }
    rig.start();
    wait_answered(&mut yard, "bob.test");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    assert_eq!((yard.id("alice.test"), yard.generation("alice.test")), (id, generation));
    // Events are heard again.
    yard.docker(&["kill", &yard.name("alice.test")]);
    yard.edge.wait_state("alice.test", "asleep");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_starts_while_the_daemon_is_down_works_once_it_is_up() {
    let rig = dockerd::own("late", "");
    let local = witnessed("", "").replace("{session}.test", "{session}.local");
    let routes = [("docker", hello("")), ("process", local)];
    let routes = routes.each_ref().map(|(name, route)| (*name, route.as_str()));
    let mut yard = Yard::with(&rig, "", &routes);
    announce(&mut yard);
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    yard.put_to_sleep("alice.test", "stopped");
    yard.edge.kill();
    rig.halt();
    yard.edge.spawn(&[]);
    yard.whoami("carol.local").await;
    assert_eq!(yard.get("bob.test", "/").await.0, 503);
    rig.start();
    // What it could not list at boot it adopts now.
    yard.edge.wait_state("alice.test", "asleep");
    wait_answered(&mut yard, "alice.test");
    wait_answered(&mut yard, "bob.test");
    assert_eq!(yard.crew.containers().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_in_the_middle_of_a_start_and_of_a_stop_costs_neither_session() {
    let rig = dockerd::own("killed", "");
    let stubborn = hello("[idle]\nmin_awake = \"0s\"\nafter = \"1h\"\n")
        .replace("{session}.test", "{session}.stubborn")
        .replace("[instance.docker]\ngrace = \"1s\"", STUBBORN);
    let mut yard = Yard::with(&rig, "", &[("demo", &hello("")), ("stubborn", &stubborn)]);
    announce(&mut yard);
    assert_eq!(yard.get("carol.stubborn", "/").await.0, 200);
    yard.edge.wait_state("carol.stubborn", "idle");

    // A stop that takes its whole grace, and a start that has just begun.
    assert_eq!(yard.edge.admin_post("/v1/sessions/carol.stubborn/sleep?to=stopped").0, 202);
    yard.edge.wait_state("carol.stubborn", "stopping");
    let url = yard.edge.url("alice.test", "/");
    let events = Events::of(&yard.crew);
    let starting = tokio::spawn(async move { client().get(url).send().await });
    yard.edge.wait_until("its container is made", |_| 0 < events.count("create"));
    rig.rig("kill");
    let status = starting.await.expect("no panic").expect("an answer").status();
    assert!([200, 502, 503].contains(&status.as_u16()), "{status}");

    rig.start();
    wait_answered(&mut yard, "alice.test");
    yard.edge.wait_state("carol.stubborn", "asleep");
    yard.wait_status("carol.stubborn", "exited");
    assert_eq!(yard.crew.containers().len(), 2);
    wait_answered(&mut yard, "carol.stubborn");
    yard.edge.assert_lives();
}

/// It does not end before its grace is over.
const STUBBORN: &str = "command = [\"sh\", \"-c\", \"trap : TERM; busybox httpd -p 8080 -h /www; \
                        while :; do sleep 1; done\"]\n[instance.docker]\ngrace = \"10s\"";
