//! Which route a host belongs to: `RouteTable::lookup`.
//!
//! A table of N routes is N exact hosts, and as many patterns as a tenth of that. The hosts asked
//! for are spread over the whole table, as they are in life: a large table does not fit the CPU's
//! caches, and that is part of the figure.

use std::{collections::BTreeMap, hint::black_box, path::Path};

use divan::Bencher;
use dormouse::route::{EngineKind, Engines, HostPattern, Route, RouteTable};

const SIZES: [usize; 3] = [1, 1_000, 100_000];
/// Different hosts asked for in turn.
const ASKED: usize = 4096;

pub(crate) fn engines() -> Engines {
    BTreeMap::from([("local".to_owned(), EngineKind::Process)])
}

/// `n` exact routes and a tenth as many patterns.
pub(crate) fn table(n: usize) -> RouteTable {
    let text = "host = \"one.test\"\nengine = \"local\"\ninstance.command = [\"x\"]";
    let one = Route::parse("one", Path::new("one.toml"), text, &engines()).expect("a route");
    let named = |name: String, host: String| {
        let mut route = one.clone();
        route.name = name.into();
        route.host = HostPattern::parse(&host).expect("a host");
        route
    };
    let exact = (0..n).map(|i| named(format!("exact-{i}"), exact_host(i)));
    let patterns =
        (0..n.div_ceil(10)).map(|i| named(format!("pattern-{i}"), pattern_host(i, "{s}")));
    RouteTable::new(exact.chain(patterns)).expect("no two are the same")
}

fn exact_host(i: usize) -> String {
    format!("h{i}.desk.example.com")
}

fn pattern_host(i: usize, key: &str) -> String {
    format!("{key}.team{i}.example.com")
}

fn lookups(bencher: Bencher<'_, '_>, n: usize, host: impl Fn(usize) -> String) {
    let table = table(n);
    let hosts: Vec<String> = (0..ASKED).map(|i| host(i * 7919)).collect();
    let mut next = hosts.iter().cycle();
    bencher
        .with_inputs(|| next.next().expect("it is a cycle").as_str())
        .bench_local_values(|host| table.lookup(black_box(host)).is_some());
}

#[divan::bench(args = SIZES, sample_size = 512)]
fn exact(bencher: Bencher<'_, '_>, n: usize) {
    lookups(bencher, n, |i| exact_host(i % n));
}

#[divan::bench(args = SIZES, sample_size = 512)]
fn pattern(bencher: Bencher<'_, '_>, n: usize) {
    lookups(bencher, n, |i| pattern_host(i % n.div_ceil(10), &format!("alice{i}")));
}

#[divan::bench(args = SIZES, sample_size = 512)]
fn miss(bencher: Bencher<'_, '_>, n: usize) {
    lookups(bencher, n, |i| format!("nobody{i}.elsewhere.example.com"));
}
