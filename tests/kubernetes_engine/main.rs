//! The Kubernetes engine against a real API server: each promise of `Engine`, the server's own
//! refusals, and what others may do to a Pod meanwhile. The test plays the kubelet.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
#[path = "../support/kubernetes/mod.rs"]
mod cluster;
#[path = "../contract/mod.rs"]
mod contract;
mod faults;
mod given;
mod restart;
mod scale;
#[path = "../support/faults.rs"]
mod spoilt;

use std::sync::Arc;

use dormouse::engine::{Engine as _, Started};

use bench::{Bench, shell, spec};

#[tokio::test]
async fn the_contract() {
    let bench = Bench::new("contract").await;
    contract::run(Arc::new(bench.engine()), |_| spec()).await;
    assert_eq!(bench.engine.list().await.unwrap(), []);
}

#[tokio::test]
async fn the_contract_for_an_instance_that_hangs() {
    let bench = Bench::new("contract-hang").await;
    let script = "trap '' TERM; busybox httpd -f -p {address} & while true; do sleep 1; done";
    contract::hang(Arc::new(bench.engine()), |_| shell(script)).await;
}

#[tokio::test]
async fn the_contract_for_an_instance_that_dies() {
    let bench = Bench::new("contract-death").await;
    let kill = async |started: Started| bench.kill_processes(&started).await;
    contract::death(Arc::new(bench.engine()), |_| spec(), kill).await;
}
