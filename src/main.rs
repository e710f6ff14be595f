//! The `dormouse` command.

use std::process::ExitCode;

/// Measured with `cargo bench --bench warm`: see docs/operations.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    dormouse::cli::main()
}
