//! Compiles the CUDA kernels through NVRTC and writes their typed launchers; without NVRTC the
//! engine is built for the CPU alone, with one warning.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let root = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    // Checkpoints name the commit; a development build would be made anew for each.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        name_commit(Path::new(&root));
    }
    let config = kernelc::Config::from_env(Path::new(&root), "crate::device::kernel");
    match config.and_then(|config| kernelc::build(&config)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the crate which commit it is built from, where git knows.
fn name_commit(root: &Path) {
    let ask = |what: &[&str]| {
        let told = Command::new("git").args(what).current_dir(root).output().ok()?;
        let text = String::from_utf8(told.stdout).ok()?.trim().to_string();
        (told.status.success() && !text.is_empty()).then_some(text)
    };
    if let Some(log) = ask(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    if let Some(commit) = ask(&["rev-parse", "--short", "HEAD"]) {
        println!("cargo:rustc-env=GENEVAR_COMMIT={commit}");
    }
}
