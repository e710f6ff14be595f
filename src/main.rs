//! The `dormouse` command.

use std::process::ExitCode;

/// Measured with `cargo bench --bench warm`: see docs/operations.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dormouse::cli::main()
}
