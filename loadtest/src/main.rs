//! The `loadtest` command.

use std::process::ExitCode;

/// The client shares the machine with what it measures: it is to be cheap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    loadtest::cli::main()
}
