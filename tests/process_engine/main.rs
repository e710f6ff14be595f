//! The embedded engine against real processes: the contract, and what only processes do.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod adoption;
#[path = "../contract/mod.rs"]
mod contract;
mod faults;
mod given;
mod lab;
mod sleep;
mod strangers;
#[path = "../support/tmpfs.rs"]
mod tmpfs;

use std::{sync::Arc, time::Duration};

use dormouse::{engine::Started, session::Listen};
use rustix::process::Signal;

use lab::{Lab, pid, signal};

#[tokio::test]
async fn the_contract_over_tcp() {
    let lab = Lab::new();
    contract::run(Arc::new(lab.engine()), |_| lab.demo(&[])).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn the_contract_over_unix_sockets() {
    let lab = Lab::new();
    let mut spec = lab.demo(&[]);
    spec.process.listen = Listen::Unix;
    contract::run(Arc::new(lab.engine()), |_| spec.clone()).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn an_instance_that_ignores_term_is_killed() {
    let lab = Lab::new();
    let mut spec = lab.demo(&["--ignore-term"]);
    spec.process.grace = Duration::from_millis(100);
    contract::hang(Arc::new(lab.engine()), |_| spec.clone()).await;
    assert_eq!(lab.alive().len(), 0);
}

#[tokio::test]
async fn a_death_is_told_at_once() {
    let lab = Lab::new();
    let kill = async |started: Started| signal(pid(&started), Signal::KILL);
    contract::death(Arc::new(lab.engine()), |_| lab.demo(&[]), kill).await;
}
