//! What asks a running edge: the real admin API on a real listener, the real binary in front.

use std::fs;

use dormouse::{
    engine::Error,
    session::{Plan, machine::Asker},
};

use crate::{
    admin_bed::{At, Bed, DEADLINE, ROUTE, TOKEN},
    command::{DONE, Ended, FAILED, REFUSED, UNKNOWN, UNREACHABLE, USAGE, command, dormouse, end},
};

const ALICE: &str = "alice.localhost";

/// Asks the bed's edge.
async fn ask(bed: &Bed, args: &[&str]) -> Ended {
    let args = [args, &["--admin", &bed.address]].concat();
    dormouse(bed.folder.path(), &args).await
}

#[tokio::test]
async fn wake_and_sleep_say_what_became_of_it() {
    for at in [At::Loopback, At::Unix] {
        let bed = Bed::with(at, None).await;
        let woken = ask(&bed, &["wake", "Alice.localhost:8080"]).await.code(DONE);
        woken.says("alice.localhost is awake (generation").says("engine");
        ask(&bed, &["wake", ALICE]).await.code(DONE).says("is awake already");
        let sleep = ask(&bed, &["sleep", ALICE, "--to", "paused"]).await.code(DONE);
        assert!(sleep.out.starts_with("alice.localhost is "), "{sleep:?}");
        bed.until(ALICE, "asleep").await;
        let again = ask(&bed, &["sleep", ALICE, "--to", "paused"]).await.code(DONE);
        again.says("alice.localhost is asleep (paused)");
        assert_eq!(bed.engine.calls(), ["start alice.localhost", "sleep alice.localhost paused"]);
    }
}

#[tokio::test]
async fn links_are_made_and_taken_back() {
    let bed = Bed::new().await;
    let link = ["link", "http://Alice.localhost:8080/a?b=1", "--expires", "2h", "--user", "al"];
    let refused = ask(&bed, &link).await.code(REFUSED);
    refused.complains("takes no links: add link = true");
    let route = format!("{}[access]\nlink = true\n", crate::admin_bed::ROUTE);
    fs::write(bed.route_file("demo.toml"), route).unwrap();
    ask(&bed, &["reload"]).await.code(DONE);
    let made = ask(&bed, &link).await.code(DONE);
    made.says("http://Alice.localhost:8080/a?b=1&dormouse=dm1l.own.");
    let plain = ask(&bed, &["link", ALICE, "--expires", "2h"]).await.code(DONE);
    plain.says("http://alice.localhost:8080/?dormouse=dm1l.own.");
    let id = made.err.split_once("link ").and_then(|(_, rest)| rest.split_once(':')).unwrap().0;
    ask(&bed, &["link", "revoke", id]).await.code(DONE).says("is revoked");
    for wrong in [
        &["link", ALICE][..],
        &["link", ALICE, "--expires", "soon"],
        &["link", ALICE, "--expires", "31d"],
        &["link", "revoke"],
        &["link", "revoke", "../x"],
        &["link", "ftp://alice.localhost/", "--expires", "1h"],
    ] {
        ask(&bed, wrong).await.code(USAGE);
    }
    ask(&bed, &["link", "revoke", "--key", "own"])
        .await
        .code(DONE)
        .says("all links of the key own");
    ask(&bed, &link).await.code(REFUSED).complains("the key `own` was revoked");
    ask(&bed, &["link", "revoke", "--key", "x"]).await.code(UNKNOWN).complains("no key is called");
    ask(&bed, &["link", "bob.example", "--expires", "1h"]).await.code(UNKNOWN);
    assert!(bed.engine.calls().is_empty(), "a link wakes nobody");
}

#[tokio::test]
async fn without_waiting_wake_comes_back_at_once() {
    let bed = Bed::new().await;
    bed.engine.hang();
    let ended = ask(&bed, &["wake", ALICE, "--no-wait"]).await.code(DONE);
    ended.says("alice.localhost is on its way: waking (");
    bed.engine.release();
    bed.until(ALICE, "idle").await;
}

#[tokio::test]
async fn scripts_learn_why_from_the_exit_code() {
    let bed = Bed::new().await;
    ask(&bed, &["wake", "alice.example"]).await.code(UNKNOWN).complains("no route has the host");
    ask(&bed, &["sleep", ALICE]).await.code(UNKNOWN).complains("nobody has asked for");
    bed.engine.fail_next(Error::Missing("no such program:\x1b[31m serve".into()));
    let failed = ask(&bed, &["wake", ALICE]).await.code(FAILED);
    failed.complains("error: The wake failed: no such program: [31m serve");
    bed.engine.fail_next(Error::Unreachable("the daemon is down".into()));
    ask(&bed, &["wake", ALICE]).await.code(FAILED).complains("the daemon is down");

    ask(&bed, &["wake", ALICE]).await.code(DONE);
    let known = || -> Plan { panic!("the session is known") };
    let lease = bed.fleet.acquire(ALICE, Asker::Client, known).unwrap();
    let refused = ask(&bed, &["sleep", ALICE, "--json"]).await.code(REFUSED);
    refused.complains("1 requests, streams or sockets");
    assert_eq!(refused.json()["leases"], 1, "a problem is data, too");
    drop(lease);
    ask(&bed, &["sleep", ALICE, "--to", "removed"]).await.code(USAGE).complains("paused, stopped");

    bed.ready.store(false, std::sync::atomic::Ordering::Release);
    ask(&bed, &["wake", ALICE]).await.code(REFUSED).complains("starting or ending");
}

#[tokio::test]
async fn sessions_are_a_table_for_people_and_json_for_scripts() {
    let bed = Bed::new().await;
    let nobody = ask(&bed, &["sessions"]).await.code(DONE);
    assert_eq!((nobody.out.as_str(), nobody.err.as_str()), ("", "no sessions\n"));
    ask(&bed, &["wake", ALICE]).await.code(DONE);
    bed.engine.fail_next(Error::Missing("no such program".into()));
    ask(&bed, &["wake", "bob.localhost"]).await.code(FAILED);
    bed.until("bob.localhost", "asleep").await;

    let table = ask(&bed, &["sessions"]).await.code(DONE);
    let lines: Vec<_> = table.out.lines().collect();
    assert_eq!(lines.len(), 3, "{table:?}");
    assert!(lines[0].starts_with("HOST") && lines[0].ends_with("LAST ERROR"), "{table:?}");
    assert!(lines[1].starts_with("alice.localhost") && lines[1].contains("idle"), "{table:?}");
    assert!(lines[1].contains("(stopped)") && lines[1].contains("demo"), "{table:?}");
    assert!(lines[2].contains("asleep (stopped)"), "{table:?}");
    assert!(lines[2].ends_with("no such program"), "{table:?}");

    let idle = ask(&bed, &["sessions", "--state", "idle"]).await.code(DONE);
    assert!(idle.out.contains(ALICE) && !idle.out.contains("bob"), "{idle:?}");
    let one = ask(&bed, &["sessions", "--limit", "1"]).await.code(DONE);
    one.complains("and 1 more");
    let data = ask(&bed, &["sessions", "--json"]).await.code(DONE).json();
    assert_eq!((&data["total"], &data["sessions"][0]["host"]), (&2.into(), &ALICE.into()));
}

#[tokio::test]
async fn reload_says_what_has_changed_or_where_it_is_wrong() {
    let bed = Bed::new().await;
    ask(&bed, &["reload"]).await.code(DONE).says("1 route, nothing has changed");
    fs::write(bed.route_file("new.toml"), "host = \"new.example\"\nengine = \"lcal\"\n").unwrap();
    let wrong = ask(&bed, &["reload"]).await.code(USAGE);
    wrong.complains("routes/new.toml:2:10: ").complains("error: Not reloaded: ");
    let data = ask(&bed, &["reload", "--json"]).await.code(USAGE).json();
    assert_eq!(data["errors"][0]["line"], 2);
    let right = "host = \"new.example\"\nengine = \"local\"\n[instance]\ncommand = [\"serve\"]\n";
    fs::write(bed.route_file("new.toml"), right).unwrap();
    let ended = ask(&bed, &["reload"]).await.code(DONE);
    assert_eq!(ended.out, "2 routes\nadded: new\n");
}

#[tokio::test]
async fn explain_knows_what_the_session_does_now() {
    let bed = Bed::new().await;
    let explain = async || ask(&bed, &["explain", ALICE]).await.code(DONE);
    explain().await.says("now       nobody has asked for it yet: a request is held");
    ask(&bed, &["wake", ALICE]).await.code(DONE);
    explain().await.says("now       idle: a request goes to 127.0.0.1:").says("; sleeps in ");
    ask(&bed, &["sleep", ALICE]).await.code(DONE);
    bed.until(ALICE, "asleep").await;
    explain().await.says("now       asleep (stopped), and would wake: a request is held");
    // Cooldowns double: this one outlasts a few commands.
    for _ in 0..5 {
        bed.engine.fail_next(Error::Missing("no such program".into()));
        ask(&bed, &["wake", ALICE]).await.code(FAILED);
    }
    bed.until(ALICE, "asleep").await;
    explain().await.says("its last wake failed (no such program): a request gets 503 for");

    let data = ask(&bed, &["explain", ALICE, "--json"]).await.code(DONE).json();
    assert_eq!(data["live"]["last_error"], "no such program");
    fs::write(
        bed.route_file("new.toml"),
        "host = \"new.example\"\nengine = \"local\"\n[instance]\ncommand = [\"serve\"]\n",
    )
    .unwrap();
    let new = ask(&bed, &["explain", "new.example"]).await.code(DONE);
    new.says("now       the running edge has other routes, and answers 404");
    assert!(bed.engine.calls().iter().all(|call| !call.contains("new")), "nothing is woken");
}

#[tokio::test]
async fn what_limits_a_route_and_how_many_run_is_said() {
    let bed = Bed::new().await;
    let limits = "[limits]\nwakes = \"5/m burst 9\"\nheld = 7\nrunning = 3\n\
                  when_full = \"evict_idle\"\n";
    fs::write(bed.route_file("demo.toml"), format!("{ROUTE}\n{limits}")).unwrap();
    let explain = async || ask(&bed, &["explain", ALICE]).await.code(DONE);
    explain().await.says(
        "limits    wakes 60/m burst 120 a client, 5/m burst 9 the route; 7 held of the route; 3 \
         running of the route; when full: evict_idle; 0 of the route run now",
    );
    ask(&bed, &["wake", ALICE]).await.code(DONE);
    explain().await.says("; 1 of the route run now");
    ask(&bed, &["sessions"]).await.code(DONE).complains("running: 1 on local; 1 of demo");
    let data = ask(&bed, &["sessions", "--json"]).await.code(DONE).json();
    assert_eq!(data["running"]["engines"]["local"]["running"], 1);
    let data = ask(&bed, &["explain", ALICE, "--json"]).await.code(DONE).json();
    assert_eq!(data["limits"]["running"], 3);
    assert_eq!(data["limits"]["running_now"], 1);
    assert_eq!(data["limits"]["engine_running"], serde_json::Value::Null);
}

#[tokio::test]
async fn the_token_comes_from_the_environment_or_with_the_settings() {
    let bed = Bed::with(At::Loopback, Some(TOKEN)).await;
    let folder = bed.folder.path();
    let none = ask(&bed, &["sessions"]).await.code(USAGE);
    none.complains("Unauthorized").complains("DORMOUSE_ADMIN_TOKEN");
    for (token, code) in [(TOKEN, DONE), ("wrong-but-long-enough", USAGE), ("short", USAGE)] {
        let mut asking = command(folder, &["sessions"]);
        asking.env("DORMOUSE_ADMIN", &bed.address).env("DORMOUSE_ADMIN_TOKEN", token);
        let ended = end(asking).await.code(code);
        assert!(!(ended.out + &ended.err).contains(token), "a token is printed");
    }
    let settings = format!("[listen]\nadmin = \"{}\"\n[admin]\ntoken_file = \"t\"\n", bed.address);
    fs::write(folder.join("dormouse.toml"), settings).unwrap();
    dormouse(folder, &["sessions"]).await.code(USAGE).complains("t: cannot be read");
    fs::write(folder.join("t"), TOKEN).unwrap();
    dormouse(folder, &["sessions"]).await.code(DONE);
    // The settings' token is theirs alone: another address does not get it by the way.
    ask(&bed, &["sessions"]).await.code(USAGE).complains("Unauthorized");
    let both = ["sessions", "--config", "dormouse.toml", "--admin", &bed.address];
    dormouse(folder, &both).await.code(DONE);
}

#[tokio::test]
async fn what_is_no_admin_api_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let answer = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = stranger.accept().await.unwrap();
        let mut request = [0; 1024];
        assert_ne!(stream.read(&mut request).await.unwrap(), 0);
        let page = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
        stream.write_all(page).await.unwrap();
    };
    let args = ["sessions", "--admin", &address];
    let answer = tokio::time::timeout(DEADLINE, answer);
    let (ended, answered) = tokio::join!(dormouse(folder.path(), &args), answer);
    assert!(answered.is_ok(), "the stranger was not asked: {ended:?}");
    ended.code(UNREACHABLE).complains("is no admin API of Dormouse");
}
