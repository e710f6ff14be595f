//! What each step of a request costs by itself, in time and in allocations. No figure here is a
//! promise: they show where a change went. See "Micro benches" in docs/performance.md.
//!
//! `cargo bench --bench micro [NAME]`

#[path = "../instant/mod.rs"]
mod instant;

mod hooks;
mod leases;
mod machine;
mod reload;
mod routes;

use divan::AllocProfiler;
use mimalloc::MiMalloc;

/// The allocator of Dormouse's own binary, counted.
#[global_allocator]
static ALLOCATOR: AllocProfiler<MiMalloc> = AllocProfiler::new(MiMalloc);

fn main() {
    divan::main();
}
