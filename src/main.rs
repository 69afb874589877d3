//! The `genevar` command.

use std::process::ExitCode;

/// Tensors come and go in megabytes at every op; the system's allocator would hand each one back
/// and pay for its pages again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    genevar::cli::main()
}
