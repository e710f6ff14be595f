//! The first start, and what an instance is given.

use std::{collections::BTreeMap, fs::Permissions, os::unix::fs::PermissionsExt as _};

use dormouse::{
    engine::Engine as _,
    session::{Address, Depth, DockerSpec, Spec},
};
use futures::future::join_all;

use crate::bench::{Bench, G1, G2, engine, get, running, session, shell, spec};

#[tokio::test]
async fn first_start_creates_a_container_that_answers() {
    let (bench, alice) = (Bench::new("create"), session("alice.localhost"));
    assert_eq!(bench.look(&alice, &spec()).await, None);
    let started = bench.start(&alice, &spec(), G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    let instance = bench.look(&alice, &spec()).await.unwrap();
    assert_eq!(instance.session, alice);
    assert_eq!(instance.generation, G1);
    assert_eq!(instance.life, Some(started.life));
    assert_eq!(Some(instance.state), running());
}

#[tokio::test]
async fn second_start_of_a_running_instance_is_the_same_life() {
    let (bench, alice) = (Bench::new("idempotent"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    assert_eq!(bench.start(&alice, &spec(), G2).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_make_one_container() {
    let (bench, alice) = (Bench::new("herd"), session("alice.localhost"));
    let spec = spec();
    // Two edges that share an owner: nothing in one process keeps them apart.
    let engines: Vec<_> = (0..4).map(|_| engine(bench.rig.endpoint(), bench.owner)).collect();
    let starts = engines.iter().map(|engine| engine.start(&alice, &spec, G1));
    let started: Vec<_> = join_all(starts).await.into_iter().map(Result::unwrap).collect();
    assert!(started.iter().all(|each| *each == started[0]), "{started:?}");
    assert_eq!(bench.engine.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn stopped_instance_starts_as_a_new_life_of_the_same_container() {
    let (bench, alice) = (Bench::new("restart"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    bench.sleep(&alice, &spec(), &first, Depth::Stopped).await;
    let id = bench.field(&bench.name(&alice), ".Id");
    let second = bench.start(&alice, &spec(), G2).await;
    assert_ne!(second.life, first.life);
    assert_eq!(bench.field(&bench.name(&alice), ".Id"), id);
    assert!(get(&second.address).ends_with("hello\n"));
}

#[tokio::test]
async fn host_that_is_no_container_name_gets_a_name_of_its_own() {
    let bench = Bench::new("names");
    let long = format!("{}.localhost", ["x".repeat(60).as_str(); 4].join("."));
    for host in [long.as_str(), "[::1]"] {
        let session = session(host);
        let started = bench.start(&session, &spec(), G1).await;
        assert!(get(&started.address).ends_with("hello\n"));
        bench.sleep(&session, &spec(), &started, Depth::Stopped).await;
    }
    assert_eq!(bench.engine.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn placeholders_in_command_and_environment_are_filled_in() {
    let (bench, alice) = (Bench::new("filled"), session("alice.localhost"));
    let script =
        "echo $AT $NAME {port} > /tmp/index.html; exec busybox httpd -f -p {address} -h /tmp";
    let env = [("AT", "{host}:{port}"), ("NAME", "alice")];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let spec = Spec { port: Some(9000), env: BTreeMap::from(env), ..shell(script) };
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("0.0.0.0:9000 alice 9000\n"));
}

#[tokio::test]
async fn limits_and_hardening_reach_the_daemon() {
    let (bench, alice) = (Bench::new("limits"), session("alice.localhost"));
    let folder = tempfile::tempdir().unwrap();
    // Only the mount keeps user 1000 from writing there.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let host = folder.path().display();
    let spec = Spec {
        memory: Some(64 << 20),
        nano_cpus: Some(500_000_000),
        pids: Some(50),
        volumes: vec![format!("{host}:/mnt:ro"), "dormouse-limits:/data".to_owned()],
        docker: DockerSpec {
            user: Some("1000:1000".to_owned()),
            cap_add: vec!["NET_BIND_SERVICE".to_owned()],
            tmpfs: vec!["/run".to_owned(), "/var:size=1m".to_owned()],
            ..spec().docker
        },
        ..spec()
    };
    let started = bench.start(&alice, &spec, G1).await;
    get(&started.address);
    let name = bench.name(&alice);
    let set = |key: &str| bench.field(&name, &format!(".HostConfig.{key}"));
    assert_eq!(set("Memory"), 64 << 20);
    assert_eq!(set("NanoCpus"), 500_000_000);
    assert_eq!(set("PidsLimit"), 50);
    assert_eq!(set("ReadonlyRootfs"), true);
    assert_eq!(set("CapDrop"), serde_json::json!(["ALL"]));
    assert_eq!(set("CapAdd"), serde_json::json!(["NET_BIND_SERVICE"]));
    assert_eq!(set("RestartPolicy.Name"), "no");
    assert_eq!(set("LogConfig.Config"), serde_json::json!({"max-size": "1m", "max-file": "2"}));
    // As the program inside meets them.
    let inside = |script: &str| {
        let ran = bench.rig.try_docker(&["exec", &name, "sh", "-c", script]);
        (ran.status.success(), String::from_utf8(ran.stdout).unwrap())
    };
    let status = inside("while read key value; do echo $key $value; done < /proc/self/status").1;
    assert!(status.contains("NoNewPrivs: 1"), "{status}");
    assert!(status.contains("CapBnd: 0000000000000400"), "{status}");
    assert!(status.contains("Uid: 1000 1000"), "{status}");
    let writable = |folder: &str| inside(&format!("touch {folder}/file")).0;
    assert!(["/tmp", "/run", "/var"].into_iter().all(writable));
    assert!(!["/", "/www", "/mnt"].into_iter().any(writable));
    assert!(!folder.path().join("file").exists());
}

#[tokio::test]
async fn published_port_is_dialled_anew_after_each_start() {
    let (bench, alice) = (Bench::new("publish"), session("alice.localhost"));
    let docker = DockerSpec { publish: Some("127.0.0.1".to_owned()), ..spec().docker };
    let spec = Spec { docker, ..spec() };
    let mut generation = G1;
    for _ in 0..2 {
        let started = bench.start(&alice, &spec, generation).await;
        let Address::Forwarded(address) = started.address else { panic!("not forwarded") };
        assert!(address.ip().is_loopback());
        assert!(get(&started.address).ends_with("hello\n"));
        bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
        generation = generation.next();
    }
}

#[tokio::test]
async fn instance_is_dialled_on_the_network_that_it_joins() {
    let (bench, alice) = (Bench::new("network"), session("alice.localhost"));
    bench.rig.try_docker(&["network", "create", "sessions"]);
    let docker = DockerSpec { network: Some("sessions".to_owned()), ..spec().docker };
    let spec = Spec { docker, ..spec() };
    let started = bench.start(&alice, &spec, G1).await;
    let path = ".NetworkSettings.Networks.sessions.IPAddress";
    let ip = bench.field(&bench.name(&alice), path);
    assert_eq!(started.address.to_string(), format!("{}:8080", ip.as_str().unwrap()));
    assert!(get(&started.address).ends_with("hello\n"));
}

#[tokio::test]
async fn edited_route_takes_effect_at_the_next_start_and_not_under_a_running_instance() {
    let (bench, alice) = (Bench::new("edited"), session("alice.localhost"));
    let first = bench.start(&alice, &spec(), G1).await;
    let edited = Spec { pids: Some(77), ..spec() };
    assert_eq!(bench.start(&alice, &edited, G1).await, first);
    bench.sleep(&alice, &edited, &first, Depth::Stopped).await;
    bench.start(&alice, &edited, G2).await;
    assert_eq!(bench.field(&bench.name(&alice), ".HostConfig.PidsLimit"), 77);
    assert_eq!(bench.look(&alice, &edited).await.unwrap().generation, G2);
}
