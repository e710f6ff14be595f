//! Containers that others made, and a route names.

use dormouse::{
    engine::{Engine as _, Error},
    session::{Address, Depth, DockerSpec, Generation, Spec},
};

use crate::{
    bench::{Bench, G1, G2, eventually, get, running, session, shell, spec},
    dockerd::IMAGE,
};

pub(crate) fn existing(container: &str) -> Spec {
    let docker = DockerSpec { container: Some(container.to_owned()), ..spec().docker };
    Spec { docker, ..Spec::default() }
}

#[tokio::test]
async fn existing_container_is_started_and_never_created_or_removed() {
    let (bench, alice) = (Bench::new("existing"), session("alice.localhost"));
    let spec = existing("existing-alice");
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("`existing-alice`")));
    assert_eq!(bench.look(&alice, &spec).await, None);

    bench.foreign("existing-alice", &[]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    let instance = bench.look(&alice, &spec).await.unwrap();
    assert_eq!((instance.session.clone(), instance.generation), (alice.clone(), Generation(0)));
    assert_eq!(bench.engine.list().await.unwrap(), []);

    let life = Some(&started.life);
    let refused = bench.engine.sleep(&alice, &spec, life, Depth::Removed).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    assert_eq!(bench.state(&alice, &spec).await, running());
    bench.sleep(&alice, &spec, &started, Depth::Paused).await;
    assert_eq!(bench.start(&alice, &spec, G2).await, started);
    bench.sleep(&alice, &spec, &started, Depth::Stopped).await;
    assert_eq!(bench.status("existing-alice"), "exited");
    bench.rig.docker(&["rm", "existing-alice"]);
}

#[tokio::test]
async fn existing_container_is_found_by_its_label_when_exactly_one_has_it() {
    let (bench, alice) = (Bench::new("labelled"), session("alice.localhost"));
    let label = Some("app=alice-desk".to_owned());
    let spec = Spec { docker: DockerSpec { label, ..spec().docker }, ..Spec::default() };
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("app=alice-desk")));

    bench.foreign("labelled-1", &["--label", "app=alice-desk"]);
    let started = bench.start(&alice, &spec, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    assert_eq!(bench.status("labelled-1"), "running");

    bench.foreign("labelled-2", &["--label", "app=alice-desk"]);
    let error = bench.engine.start(&alice, &spec, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict(text) if text.contains("2 containers")));
    // Nothing was started, so there is nothing to end; what runs is left alone.
    bench.engine.sleep(&alice, &spec, None, Depth::Stopped).await.unwrap();
    assert_eq!(bench.status("labelled-1"), "running");
    bench.rig.docker(&["rm", "-f", "labelled-1", "labelled-2"]);
}

#[tokio::test]
async fn existing_container_that_others_remove_or_rename_is_no_more_to_be_ended() {
    let (bench, alice) = (Bench::new("renamed"), session("alice.localhost"));
    let spec = existing("renamed-alice");
    bench.foreign("renamed-alice", &[]);
    let started = bench.start(&alice, &spec, G1).await;
    bench.rig.docker(&["rename", "renamed-alice", "renamed-bob"]);
    assert_eq!(bench.look(&alice, &spec).await, None);
    bench.sleep(&alice, &spec, &started, Depth::Removed).await;
    assert_eq!(bench.status("renamed-bob"), "running");
    bench.rig.docker(&["rm", "-f", "renamed-bob"]);
    bench.sleep(&alice, &spec, &started, Depth::Removed).await;
}

#[tokio::test]
async fn a_container_in_the_network_of_another_one_is_reached_there() {
    let (bench, alice) = (Bench::new("shared-network"), session("alice.localhost"));
    let docker = |arguments: &[&str]| bench.rig.docker(arguments);
    docker(&["run", "-d", "--name", "shared-vpn", IMAGE, "sleep", "600"]);
    bench.foreign("shared-alice", &["--network", "container:shared-vpn"]);
    let ip = bench.field("shared-vpn", ".NetworkSettings.IPAddress");
    let started = bench.start(&alice, &existing("shared-alice"), G1).await;
    assert_eq!(started.address.to_string(), format!("{}:8080", ip.as_str().unwrap()));
    assert!(get(&started.address).ends_with("hello\n"));
    bench.sleep(&alice, &existing("shared-alice"), &started, Depth::Stopped).await;

    // And one that is made for a route.
    let bob = session("bob.localhost");
    let network = Some("container:shared-vpn".to_owned());
    let made = Spec { docker: DockerSpec { network, ..spec().docker }, ..spec() };
    let started = bench.start(&bob, &made, G1).await;
    assert!(get(&started.address).ends_with("hello\n"));
    bench.sleep(&bob, &made, &started, Depth::Removed).await;

    bench.foreign("shared-none", &["--network", "none"]);
    let error = bench.engine.start(&alice, &existing("shared-none"), G1).await.unwrap_err();
    assert!(error.to_string().contains("docker network connect NETWORK shared-none"), "{error}");
    docker(&["rm", "-f", "shared-vpn", "shared-alice", "shared-none"]);
}

/// Docker's proxy takes connections from the container's start on, and ends them.
#[tokio::test]
async fn a_published_port_takes_connections_once_the_instance_does() {
    let (bench, alice) = (Bench::new("forwarded"), session("alice.localhost"));
    let script = "until test -f /tmp/go; do sleep 0.02; done; exec busybox httpd -f -p {address}";
    let docker = DockerSpec { publish: Some("127.0.0.1".to_owned()), ..spec().docker };
    let spec = Spec { docker, ..shell(script) };
    let started = bench.start(&alice, &spec, G1).await;
    let Address::Forwarded(at) = started.address else { panic!("{started:?}") };
    assert!(tokio::net::TcpStream::connect(at).await.is_ok(), "nobody forwards");
    assert!(dormouse::fleet::takes_connections(&started.address).await.is_err());
    bench.rig.docker(&["exec", &bench.name(&alice), "touch", "/tmp/go"]);
    eventually("it listens", async || {
        dormouse::fleet::takes_connections(&started.address).await.is_ok()
    })
    .await;
    assert!(get(&started.address).starts_with("HTTP/1.0") || get(&started.address).contains("404"));
}

#[tokio::test]
async fn an_operator_is_told_on_what_a_container_listens_instead_and_how_it_ended() {
    let (bench, alice) = (Bench::new("elsewhere"), session("alice.localhost"));
    let script = "trap 'echo bye; exit 7' TERM; busybox httpd -p 127.0.0.1:9999; echo up; \
                  while true; do sleep 0.05; done";
    let spec = shell(script);
    let started = bench.start(&alice, &spec, G1).await;
    let hint = async || bench.engine.hint(&alice, &spec, &started.address).await;
    eventually("it says what it listens on", async || {
        let said = hint().await.unwrap_or_default();
        said.contains("it listens on 127.0.0.1:9999 only, not on") && said.contains(":8080")
    })
    .await;
    bench.rig.docker(&["stop", "--time", "30", &bench.name(&alice)]);
    let hint = hint().await.unwrap();
    assert!(hint.contains("exit code 7") && hint.contains("bye"), "{hint}");
}
