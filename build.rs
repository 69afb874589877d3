//! Compiles the CUDA kernels through NVRTC and writes their typed launchers; without NVRTC the
//! engine is built for the CPU alone, with one warning.

use std::env;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let root = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    let config = kernelc::Config::from_env(Path::new(&root), "crate::device::kernel");
    match config.and_then(|config| kernelc::build(&config)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
