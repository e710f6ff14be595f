//! The same engine against a real Podman: the whole contract, and where Podman differs.

use std::sync::Arc;

use dormouse::{
    engine::{Engine as _, EngineEvent, Error, Started},
    session::{Depth, DockerSpec, Spec},
};

use crate::{
    bench::{G1, G2, asleep, engine, get, running, session, shell, spec, until},
    contract,
    dockerd::IMAGE,
    podman_rig::Podman,
};

#[tokio::test]
async fn the_contract_on_podman() {
    let podman = Podman::up("contract").await;
    contract::run(Arc::new(engine(podman.endpoint(), "pod")), |_| spec()).await;
}

#[tokio::test]
async fn the_contract_on_podman_for_an_instance_that_hangs() {
    let podman = Podman::up("hang").await;
    let script = "trap '' TERM; busybox httpd -p {address} -h /www; while true; do sleep 1; done";
    contract::hang(Arc::new(engine(podman.endpoint(), "pod")), |_| shell(script)).await;
}

#[tokio::test]
async fn the_contract_on_podman_for_an_instance_that_dies() {
    let podman = Podman::up("death").await;
    let kill = async |started: Started| {
        let (container, _) = started.life.as_str().split_once('@').unwrap();
        assert!(podman.docker(&["kill", container]).status.success());
    };
    contract::death(Arc::new(engine(podman.endpoint(), "pod")), |_| spec(), kill).await;
}

/// Podman answers each of these with a 500 of its own, or with another word.
#[tokio::test]
async fn what_podman_says_otherwise_makes_no_difference() {
    let (podman, alice) = (Podman::up("differs").await, session("alice.test"));
    let engine = engine(podman.endpoint(), "pod");
    let publish = DockerSpec { publish: Some("true".to_owned()), ..spec().docker };
    let published = Spec { docker: publish, ..spec() };
    let first = engine.start(&alice, &published, G1).await.unwrap();
    assert!(get(&first.address).contains("hello"));

    // Frozen: a start thaws it, a second freeze is none, and it stops.
    let life = Some(&first.life);
    engine.sleep(&alice, &published, life, Depth::Paused).await.unwrap();
    engine.sleep(&alice, &published, life, Depth::Paused).await.unwrap();
    let state =
        async || engine.inspect(&alice, &published).await.unwrap().map(|instance| instance.state);
    assert_eq!(state().await, asleep(Depth::Paused));
    assert_eq!(engine.start(&alice, &published, G1).await.unwrap(), first);
    engine.sleep(&alice, &published, life, Depth::Paused).await.unwrap();
    engine.sleep(&alice, &published, life, Depth::Stopped).await.unwrap();
    assert_eq!(state().await, asleep(Depth::Stopped));
    let second = engine.start(&alice, &published, G2).await.unwrap();
    assert_ne!(second.life, first.life);
    assert_eq!(state().await, running());

    // Its word for what is gone is another one than Docker's.
    let mut events = engine.events();
    until(&mut events, EngineEvent::Resync).await;
    assert!(podman.docker(&["rm", "-f", "dormouse-pod-alice.test"]).status.success());
    until(&mut events, EngineEvent::Changed(alice.clone())).await;
    assert_eq!(state().await, None);
}

#[tokio::test]
async fn what_podman_does_not_have_is_said() {
    let (podman, alice) = (Podman::up("refuses").await, session("alice.test"));
    let engine = engine(podman.endpoint(), "pod");
    let none = Spec { image: Some("nowhere/nothing:1".to_owned()), ..spec() };
    let error = engine.start(&alice, &none, G1).await.unwrap_err();
    assert!(matches!(&error, Error::Missing(text) if text.contains("nowhere/nothing")), "{error}");
    let stranger = ["create", "--name", "dormouse-pod-alice.test", IMAGE];
    assert!(podman.docker(&stranger).status.success());
    let error = engine.start(&alice, &spec(), G1).await.unwrap_err();
    assert!(matches!(error, Error::Conflict(_)), "{error}");
}
