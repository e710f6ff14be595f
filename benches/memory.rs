//! What a route and a session hold in memory, and how long 100,000 route files take to load. See
//! "Micro benches" in docs/performance.md.
//!
//! Each figure is the growth of a process of its own, read from the kernel while the allocator (the
//! one of Dormouse's binary) is told to give freed pages back at once: so it has in it what the
//! allocator itself needs and wastes.
//!
//! `cargo bench --bench memory`; ROUTES, SESSIONS and HOSTS change how many.

mod instant;

use std::{
    collections::BTreeMap,
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use dormouse::{
    fleet::Fleet,
    route::{EngineKind, Route, RouteTable, load_dir},
    session::Depth,
};
use instant::{Instantly, NOWHERE, asked_for, folder, memory, plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Freed pages go back to the kernel at once.
const ALLOCATOR_SETTINGS: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "0");
const PART: &str = "MEMORY_BENCH_PART";
const PARTS: [(&str, fn()); 4] = [
    ("exact routes, one template", || routes(false)),
    ("exact routes, a template each", || routes(true)),
    ("keys of one pattern", keys),
    ("sessions", sessions),
];

fn main() {
    if let Ok(part) = env::var(PART) {
        let (_, run) = PARTS.iter().find(|(name, _)| *name == part).expect("a part of PARTS");
        return run();
    }
    if !asked_for() {
        return;
    }
    let this = env::current_exe().expect("a path");
    for (name, _) in PARTS {
        let (key, value) = ALLOCATOR_SETTINGS;
        let status = Command::new(&this).env(PART, name).env(key, value).status();
        assert!(status.expect("it starts").success(), "{name}");
    }
}

fn number(name: &str, default: usize) -> usize {
    env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn engines() -> BTreeMap<String, EngineKind> {
    BTreeMap::from([("local".to_owned(), EngineKind::Process)])
}

/// Bytes that this process has grown by since `before`, for each of `n`.
fn grown(before: u64, n: usize) -> i64 {
    memory().saturating_sub(before).cast_signed() / i64::try_from(n).expect("few enough")
}

fn routes(own: bool) {
    let n = number("ROUTES", 100_000);
    let folder = folder(n, own);
    let before = memory();
    let began = Instant::now();
    let table = load_dir(folder.path(), &engines()).expect("they are right");
    let took = began.elapsed().as_secs_f64();
    let each = grown(before, table.len());
    let template = if own { "a template each" } else { "one template" };
    println!("{n} exact routes, {template}: {each} B each, loaded in {took:.2} s");
}

/// A pattern is one route, however many keys it has.
fn keys() {
    let n = number("HOSTS", 1_000_000);
    let text = "host = \"{person}.desk.example.com\"\nengine = \"local\"\n\
                instance.command = [\"/opt/desk/serve\", \"--user\", \"{person}\"]";
    let route = Route::parse("desk", Path::new("desk.toml"), text, &engines()).expect("a route");
    let table = RouteTable::new([route]).expect("there is one");
    let before = memory();
    let began = Instant::now();
    let mut host = String::new();
    for i in 0..n {
        use std::fmt::Write;
        host.clear();
        write!(host, "person-{i}.desk.example.com").expect("a string takes it");
        assert!(table.lookup(&host).is_some(), "{host}");
    }
    let took = began.elapsed().as_secs_f64() / n as f64 * 1e9;
    println!("{n} keys of one pattern: {} B each, {took:.0} ns to look one up", grown(before, n));
}

fn sessions() {
    let n = number("SESSIONS", 100_000);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let engine = Instantly::new(NOWHERE);
    let fleet = runtime.block_on(instant::fleet(engine.clone()));
    let host = |i| format!("person-{i}.desk.example.com");
    let before = memory();
    runtime.block_on(async {
        for i in 0..n {
            instant::wake(&fleet, &host(i), || plan(Duration::from_secs(3600))).await;
        }
    });
    println!("{n} idle sessions: {} B each", grown(before, n));
    runtime.block_on(async {
        for i in 0..n {
            fleet.sleep(&host(i), Some(Depth::Stopped)).expect("it is there");
        }
        while !all_sleep(&fleet) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    *engine.slept.lock().expect("nothing panics in it") = Vec::new();
    println!("{n} sleeping sessions: {} B each", grown(before, n));
}

fn all_sleep(fleet: &Fleet) -> bool {
    fleet.sessions().iter().all(|session| session.state == "asleep")
}
