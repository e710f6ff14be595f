//! The `dormouse` command.

use std::process::ExitCode;

/// Measured with `loadtest run loadtest/scenarios/warm.toml`: see docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dormouse::cli::main()
}
