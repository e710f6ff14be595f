//! The first request, and many at once.

use std::collections::HashMap;

use futures::{SinkExt as _, StreamExt as _, future::join_all};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use super::{Events, Made, Yard, demo, hello};
use crate::{dockerd, support::client};

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_get_creates_the_container_that_the_route_describes() {
    let volume = format!("data-alice-{}", std::process::id());
    let route = demo("user = \"0:0\"\ntmpfs = [\"/run-{session}\"]\n", "").replace(
        "volumes = [",
        &format!(
            "env = {{ GREETING = \"hello {{session}}\", AT = \"{{address}}\" }}\n\
             memory = \"256MiB\"\npids = 99\ncpus = 0.5\nvolumes = [\"{}:/data:ro\", ",
            volume.replace("alice", "{session}")
        ),
    );
    let yard = Yard::new(&route);
    let remove = Made {
        rig: dockerd::shared(),
        remove: ["volume", "rm", &volume].map(str::to_owned).into(),
    };
    let answer =
        client().get(yard.edge.url("alice.test", "/whoami")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let timing = answer.headers()["server-timing"].to_str().expect("text").to_owned();
    for part in ["hold;dur=", "engine;dur=", "ready;dur=", "connect;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    assert_eq!(answer.json::<Value>().await.expect("JSON")["session"], "alice.test");
    let warm = client().get(yard.edge.url("alice.test", "/")).send().await.expect("an answer");
    assert!(!warm.headers().contains_key("server-timing"), "a warm answer carries none");
    assert_eq!(yard.edge.starts("alice.test"), 1);

    let name = yard.name("alice.test");
    let set = |path: &str| yard.field(&name, path);
    assert_eq!(set(".Config.Labels")["dormouse.owner"], yard.crew.owner.as_str());
    assert_eq!(set(".Config.Labels")["dormouse.session"], "alice.test");
    let env = set(".Config.Env");
    for wanted in ["GREETING=hello alice", "AT=0.0.0.0:8080"] {
        assert!(env.as_array().expect("a list").contains(&json!(wanted)), "{env}");
    }
    let mounts = set(".Mounts");
    let mounts = mounts.as_array().expect("a list");
    let data = mounts.iter().find(|mount| mount["Destination"] == "/data").expect("/data");
    assert_eq!((&data["Name"], &data["RW"]), (&json!(volume), &json!(false)));
    let host = set(".HostConfig");
    assert_eq!((&host["Memory"], &host["PidsLimit"]), (&json!(256 << 20), &json!(99)));
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"]), (&json!(true), &json!(["ALL"])));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert!(host["Tmpfs"].as_object().expect("a table").contains_key("/run-alice"), "{host}");
    drop(yard);
    drop(remove);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_cold_gets_are_one_container() {
    let yard = Yard::new(&demo("", ""));
    let client = client();
    let gets = (0..50).map(|_| client.get(yard.edge.url("alice.test", "/whoami")).send());
    for answer in join_all(gets).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    assert_eq!(yard.edge.starts("alice.test"), 1);
    assert_eq!(yard.crew.containers().len(), 1);
    assert_eq!(yard.edge.metric(&["dormouse_wakes_total", "docker", "ok"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_live_side_by_side() {
    let mut yard = Yard::new(&demo("", ""));
    let (alice, bob) = tokio::join!(yard.whoami("alice.test"), yard.whoami("bob.test"));
    assert_ne!(alice["session"], bob["session"]);
    assert_eq!(yard.crew.containers().len(), 2);
    let before = yard.id("bob.test");
    yard.put_to_sleep("alice.test", "removed");
    assert_eq!(yard.status("alice.test"), "none");
    assert_eq!((yard.status("bob.test").as_str(), yard.id("bob.test")), ("running", before));
    yard.whoami("bob.test").await;
    assert_eq!(yard.edge.starts("bob.test"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_of_sessions_is_started_four_at_a_time() {
    let route = hello("[wake]\ntimeout = \"5m\"\n");
    let yard = Yard::with(dockerd::shared(), "[limits]\nstarts = 4\n", &[("demo", &route)]);
    let events = Events::of(&yard.crew);
    let hosts: Vec<_> = (0..30).map(|number| format!("s{number}.test")).collect();
    for (status, text) in join_all(hosts.iter().map(|host| yard.get(host, "/"))).await {
        assert_eq!((status, text.as_str()), (200, "hello\n"));
    }
    let mut edge = yard.edge;
    edge.wait_until("the daemon has told of 30 starts", |_| 30 <= events.count("start"));
    // From the end of `create` to the end of `start` a container is within the engine's start.
    let (mut under_way, mut most) = (HashMap::new(), 0);
    let mut seen = events.seen();
    seen.sort_by_key(|seen| seen.nanos);
    for seen in seen {
        match seen.action.as_str() {
            "create" => drop(under_way.insert(seen.container, ())),
            "start" => drop(under_way.remove(&seen.container)),
            _ => {}
        }
        most = most.max(under_way.len());
    }
    assert!((2..=4).contains(&most), "{most} starts at once");
    assert_eq!(edge.metric(&["dormouse_wakes_total", "docker", "ok"]), 30.0);
    edge.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_and_a_large_body_are_first_requests_too() {
    let yard = Yard::new(&demo("", ""));
    let request = format!("ws://alice.test:{}/ws", yard.edge.http.port());
    let request = request.into_client_request().expect("a request");
    let stream = TcpStream::connect(yard.edge.http).await.expect("the edge");
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a socket");
    let message = Message::binary(vec![7; 1 << 20]);
    socket.send(message.clone()).await.expect("sent");
    assert_eq!(socket.next().await.expect("a message").expect("a message"), message);
    assert_eq!(yard.edge.state("alice.test"), "awake", "an open socket holds it awake");

    let body: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let post = client().post(yard.edge.url("bob.test", "/upload")).body(body).send();
    let said: Value = post.await.expect("an answer").json().await.expect("JSON");
    assert_eq!(said, json!({ "bytes": 20_000_000, "sha256": hash, "uploads": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_is_dialled_anew_in_each_life() {
    let mut yard = Yard::new(&demo("publish = true\n", ""));
    for life in 1..=2 {
        yard.whoami("alice.test").await;
        let address = yard.edge.session("alice.test")["address"].to_string();
        assert!(address.contains("127.0.0.1:"), "{address}");
        assert_eq!(yard.edge.starts("alice.test"), life);
        yard.put_to_sleep("alice.test", "stopped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_moves_to_another_session_leads_no_request_astray() {
    let rig = dockerd::shared();
    let network = format!("narrow-{}", std::process::id());
    // Two addresses, and one is the gateway's: every container gets the same.
    let subnet = format!("10.215.{}.0/30", std::process::id() % 250);
    let create = ["network", "create", "--subnet", &subnet, &network];
    let network_made = Made::by(rig, &create, &["network", "rm", &network]);
    let route = demo(&format!("network = \"{network}\"\n"), "");
    let mut yard = Yard::with(rig, "[timeouts]\nupstream_idle = \"5m\"\n", &[("demo", &route)]);
    let mut addresses = Vec::new();
    for host in ["alice.test", "bob.test", "alice.test", "bob.test"] {
        yard.whoami(host).await;
        addresses.push(yard.edge.session(host)["address"].clone());
        // Cut off, it cannot close the connection that is kept to it.
        yard.docker(&["network", "disconnect", "--force", &network, &yard.name(host)]);
        yard.put_to_sleep(host, "removed");
    }
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    drop(yard);
    drop(network_made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_told_to_the_operator_and_not_to_the_client() {
    let mut yard = Yard::new(&hello("").replace(dockerd::IMAGE, "nowhere/secret-image:1"));
    yard.edge.announce("wake failed");
    let (status, text) = yard.get("alice.test", "/").await;
    assert_eq!(status, 502, "{text}");
    assert!(!text.contains("secret-image") && !text.contains("docker"), "{text}");
    let why = "image `nowhere/secret-image:1` is not on the daemon: docker pull";
    let cooling = client().get(yard.edge.url("alice.test", "/")).send().await.expect("an answer");
    assert_eq!(cooling.status(), 503);
    assert!(cooling.headers().contains_key("retry-after"));
    let session = yard.edge.session("alice.test");
    assert!(session["last_error"].as_str().expect("an error").contains(why), "{session}");
    yard.edge.wait_until("it is told", |edge| edge.log_count(&["wake failed", why]) == 1);
    assert_eq!(yard.edge.log_count(&["wake failed"]), 1, "a cooldown asks no engine");
    // Once it is there, an operator need not wait.
    yard.docker(&["tag", dockerd::IMAGE, "nowhere/secret-image:1"]);
    let _tag = Made {
        rig: dockerd::shared(),
        remove: ["rmi", "nowhere/secret-image:1"].map(str::to_owned).into(),
    };
    yard.edge.wait_state("alice.test", "asleep");
    let woken = yard.cli(&["wake", "alice.test"]);
    assert!(woken.status.success(), "{}", String::from_utf8_lossy(&woken.stderr));
    assert_eq!(yard.get("alice.test", "/").await, (200, "hello\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_stranger_has_is_a_conflict_and_the_stranger_is_left_alone() {
    let rig = dockerd::shared();
    let mut yard = Yard::new(&hello(""));
    yard.edge.announce("wake failed");
    let name = yard.name("alice.test");
    let stranger = Made::by(rig, &["create", "--name", &name, dockerd::IMAGE], &["rm", &name]);
    let answer = client().get(yard.edge.url("alice.test", "/")).send().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(!answer.text().await.expect("a body").contains(&name));
    let error = yard.edge.session("alice.test")["last_error"].to_string();
    assert!(error.contains(&name) && error.contains("rename or remove"), "{error}");
    yard.edge.wait_state("alice.test", "asleep");
    assert_eq!(yard.status("alice.test"), "created");
    drop(stranger);
    let answer = || async { yard.get("alice.test", "/").await.0 };
    while answer().await == 503 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(answer().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_is_ready_and_a_paused_instance_need_not_become_healthy_again() {
    // Docker forgets the health of what it pauses, until its next check: here there is none.
    let check = "HEALTHCHECK --interval=100ms --retries=1000000 \
                 CMD test ! -e /tmp/checked && touch /tmp/checked";
    dockerd::shared().image("dormouse-test/once-healthy", &["--change", check]);
    let route = hello("").replace("probe = \"http\"", "probe = \"engine\"");
    let mut yard = Yard::new(&route.replace(dockerd::IMAGE, "dormouse-test/once-healthy"));
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
    let name = yard.name("alice.test");
    assert_eq!(yard.field(&name, ".State.Health.Status"), "healthy");
    yard.put_to_sleep("alice.test", "paused");
    assert_eq!(yard.field(&name, ".State.Health.Status"), "unhealthy");
    assert_eq!(yard.get("alice.test", "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_never_gets_healthy_is_given_up_in_time_and_cleaned_up() {
    let check = "HEALTHCHECK --interval=100ms --retries=2 CMD false";
    dockerd::shared().image("dormouse-test/never-healthy", &["--change", check]);
    // Long enough for a busy daemon to start it: what is shown is that it gets no further.
    let wake = "[wake]\ntimeout = \"10s\"\nboot_max = \"0s\"\n";
    let route = hello(wake).replace("probe = \"http\"", "probe = \"engine\"");
    let mut yard = Yard::new(&route.replace(dockerd::IMAGE, "dormouse-test/never-healthy"));
    yard.edge.announce("wake failed");
    let answer = client().get(yard.edge.url("alice.test", "/")).send().await.expect("an answer");
    assert_eq!(answer.status(), 504);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(answer.text().await.expect("a body").contains("getting ready"));
    assert_eq!(yard.get("alice.test", "/").await.0, 503, "it cools down");
    yard.edge.wait_state("alice.test", "asleep");
    assert_eq!(yard.status("alice.test"), "exited");
}
