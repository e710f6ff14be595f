//! The Docker engine against a real daemon: each promise of `Engine`, and what others may do to a
//! container meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
#[path = "../contract/mod.rs"]
mod contract;
mod daemon;
#[path = "../support/dockerd.rs"]
mod dockerd;
mod existing;
mod faults;
mod gvisor;
mod podman;
#[path = "../support/podman.rs"]
mod podman_rig;
mod refusals;
mod rootless;
mod sleep;
#[path = "../support/faults.rs"]
mod spoilt;
mod start;

use std::sync::Arc;

use dormouse::{
    engine::{Engine as _, InstanceState, Started},
    session::{DockerSpec, Spec},
};

use bench::{Bench, engine, shell, spec};

#[tokio::test]
async fn the_contract() {
    let bench = Bench::new("contract");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    contract::run(engine, |_| spec()).await;
    let left = bench.engine.list().await.unwrap();
    assert!(left.iter().all(|instance| matches!(instance.state, InstanceState::Asleep(_))));
}

#[tokio::test]
async fn the_contract_for_an_instance_that_hangs() {
    let bench = Bench::new("contract-hang");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    let script = "trap '' TERM; busybox httpd -p {address} -h /www; while true; do sleep 1; done";
    // On a network of its own nobody else is given its address, where the suite looks afterwards.
    bench.rig.try_docker(&["network", "create", "hang"]);
    let network = |spec: Spec| Spec {
        docker: DockerSpec { network: Some("hang".to_owned()), ..spec.docker },
        ..spec
    };
    contract::hang(engine, |_| network(shell(script))).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_dies() {
    let bench = Bench::new("contract-death");
    let engine = Arc::new(engine(bench.rig.endpoint(), bench.owner));
    let kill = async |started: Started| {
        let (container, _) = started.life.as_str().split_once('@').unwrap();
        bench.rig.docker(&["kill", container]);
    };
    contract::death(engine, |_| spec(), kill).await;
}
