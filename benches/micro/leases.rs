//! A lease taken and given back on a session whose instance is up: what the fleet adds to every warm
//! request.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divan::Bencher;
use dormouse::{fleet::Fleet, session::machine::Asker};
use tokio::runtime::Runtime;

use crate::instant::{self, Instantly, NOWHERE, plan};

/// Longer than the bench.
const IDLE: Duration = Duration::from_secs(3600);
const HOSTS: [&str; 2] = ["a.desk.example.com", "b.desk.example.com"];

/// A fleet with both sessions idle, and what runs it.
fn fleet() -> (Runtime, Arc<Fleet>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let fleet = runtime.block_on(async {
        let fleet = instant::fleet(Instantly::new(NOWHERE)).await;
        for host in HOSTS {
            instant::wake(&fleet, host, || plan(IDLE)).await;
        }
        fleet
    });
    (runtime, fleet)
}

fn take_and_give_back(fleet: &Arc<Fleet>, host: &str) {
    drop(fleet.acquire(host, Asker::Client, || plan(IDLE)).expect("it is up"));
}

/// The only request: idle → awake → idle.
#[divan::bench(threads = [1, 2], sample_count = 40, sample_size = 50_000)]
fn same_session(bencher: Bencher<'_, '_>) {
    let (_runtime, fleet) = fleet();
    bencher.bench(|| take_and_give_back(&fleet, HOSTS[0]));
}

/// One among others: the session stays awake.
#[divan::bench(threads = [1, 2], sample_count = 40, sample_size = 50_000)]
fn same_session_awake(bencher: Bencher<'_, '_>) {
    let (_runtime, fleet) = fleet();
    let _other = fleet.acquire(HOSTS[0], Asker::Client, || plan(IDLE)).expect("it is up");
    bencher.bench(|| take_and_give_back(&fleet, HOSTS[0]));
}

/// A session for each thread: nothing to wait for each other for.
#[divan::bench(threads = [2], sample_count = 40, sample_size = 50_000)]
fn session_per_thread(bencher: Bencher<'_, '_>) {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static HOST: Cell<&'static str> =
            Cell::new(HOSTS[THREADS.fetch_add(1, Ordering::Relaxed) % HOSTS.len()]);
    }
    let (_runtime, fleet) = fleet();
    bencher.with_inputs(|| HOST.get()).bench_values(|host| take_and_give_back(&fleet, host));
}
