//! The command engine with programs that really run: the contract, and what programs do wrong.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

#[path = "../contract/mod.rs"]
mod contract;
mod examples;
mod faults;
mod given;
mod lab;

use std::sync::Arc;

use dormouse::{engine::Started, session::Spec};
use rustix::process::{Pid, Signal, kill_process};

use lab::Lab;

#[tokio::test]
async fn the_contract() {
    let lab = Lab::machines();
    contract::run(Arc::new(lab.engine()), |_| Spec::default()).await;
    lab.ends_dark();
}

#[tokio::test]
async fn an_instance_that_ignores_term_is_killed() {
    let lab = Lab::machines();
    let mut spec = Spec::default();
    spec.parameters.insert("flags".into(), "--ignore-term".into());
    contract::hang(Arc::new(lab.engine()), |_| spec.clone()).await;
    lab.ends_dark();
}

#[tokio::test]
async fn a_death_is_told_by_the_next_listing() {
    let lab = Lab::machines();
    let kill = async |started: Started| {
        let pid = started.life.as_str().split(':').next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    };
    contract::death(Arc::new(lab.engine()), |_| Spec::default(), kill).await;
    lab.ends_dark();
}
