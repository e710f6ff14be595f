//! 100,000 idle sessions with a deadline each: what it costs to wait for them, and how long after
//! its deadline each one's sleep is called. The real clock and the real fleet, over an engine that
//! does everything at once. See "Micro benches" in docs/performance.md.
//!
//! `cargo bench --bench idle`; SESSIONS, QUIET and SPREAD (seconds) change how much and how long.

mod instant;

use std::{
    collections::HashMap,
    env, thread,
    time::{Duration, Instant},
};

use dormouse::session::SessionId;
use instant::{Instantly, NOWHERE, cpu_time, plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time to wake them all before the quiet begins.
const WAKING: Duration = Duration::from_secs(20);
/// How much later than the last deadline a sleep is still waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    if !instant::asked_for() {
        return;
    }
    let number =
        |name, default| env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let sessions: usize = number("SESSIONS", 100_000);
    let quiet = Duration::from_secs(number("QUIET", 10) as u64);
    let spread = Duration::from_secs(number("SPREAD", 20) as u64);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let engine = Instantly::new(NOWHERE);
    let fleet = runtime.block_on(instant::fleet(engine.clone()));

    let began = Instant::now();
    let first = began + WAKING + quiet;
    let mut due_at = HashMap::with_capacity(sessions);
    for n in 0..sessions {
        let host = format!("person-{n}.desk.example.com");
        // Not in the order of their making: as those of people.
        let shuffled = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as f64 / u64::MAX as f64;
        let due = first + spread.mul_f64(shuffled);
        let until = || due.saturating_duration_since(Instant::now());
        runtime.block_on(instant::wake(&fleet, &host, || plan(until())));
        due_at.insert(SessionId::new(host), due);
    }
    let woken = began.elapsed();
    println!("{sessions} sessions woken, one after the other: {:.1} s", woken.as_secs_f64());
    assert!(woken < WAKING, "this machine is too slow for so many: set SESSIONS");

    // Settled: what the waking left behind is done.
    thread::sleep(Duration::from_secs(1));
    let waiting = share_of_a_core(first - Duration::from_millis(100));
    println!("waiting for the first deadline: {:.3} % of a core", waiting * 100.0);

    let before = cpu_time();
    let end = first + spread + PATIENCE;
    let all_sleep = || sessions <= engine.slept.lock().expect("nothing panics in it").len();
    while !all_sleep() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    let used = cpu_time() - before;
    let slept = engine.slept.lock().expect("nothing panics in it");
    let mut late: Vec<f64> =
        slept.iter().map(|(session, at)| lateness(*at, due_at[session])).collect();
    late.sort_by(f64::total_cmp);
    println!("put to sleep: {} of {sessions}, deadlines spread over {spread:?}", slept.len());
    println!(
        "from the deadline to the engine's call: median {:.2} ms, p99 {:.2} ms, most {:.2} ms",
        late[late.len() / 2],
        late[late.len() * 99 / 100],
        late[late.len() - 1],
    );
    println!(
        "meanwhile {:.2} % of a core, {:.1} µs for each sleep",
        used.as_secs_f64() / spread.as_secs_f64() * 100.0,
        used.as_secs_f64() / sessions as f64 * 1e6,
    );
}

/// Milliseconds. A deadline counts from the end of its wake, a little after `due` was reckoned: the
/// figure has that in it.
fn lateness(called: Instant, due: Instant) -> f64 {
    called.saturating_duration_since(due).as_secs_f64() * 1e3
}

/// CPU time of this process until then, by the clock.
fn share_of_a_core(until: Instant) -> f64 {
    let (began, before) = (Instant::now(), cpu_time());
    thread::sleep(until.saturating_duration_since(began));
    (cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64()
}
