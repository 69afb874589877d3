//! Where NVRTC lies: the folder an environment variable names, what `tools/setup` fetched, or a
//! CUDA toolkit.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Nvrtc;
use crate::error::{Error, Result};

/// Names the folder of libnvrtc, ahead of every other place.
pub const VARIABLE: &str = "GENEVAR_NVRTC";

/// Versions that will do. Drivers of the 580 series speak CUDA 13.0, and sm_90a came with 12.0.
const OLDEST: (i32, i32) = (12, 0);
const NEWEST: (i32, i32) = (13, 0);

/// The library of `dir` whose name begins with `stem`, the longest version first.
pub(super) fn library(dir: &Path, stem: &str) -> Option<PathBuf> {
    let names = fs::read_dir(dir).ok()?.flatten().map(|e| e.file_name());
    let fits = names.filter(|n| n.to_str().is_some_and(|n| n.starts_with(stem)));
    fits.max().map(|n| dir.join(n))
}

/// Looks for NVRTC: in the folder that [`VARIABLE`] names, in `fetched`, then in toolkits. `None`
/// comes with what was found and passed over.
pub fn find(fetched: &Path) -> Result<(Option<Nvrtc>, Vec<String>)> {
    if let Some(dir) = env::var_os(VARIABLE).filter(|d| !d.is_empty()) {
        return Ok((Some(Nvrtc::open(Path::new(&dir))?), Vec::new()));
    }
    let mut notes = Vec::new();
    for dir in [vec![fetched.to_path_buf()], toolkits()].concat() {
        if library(&dir, "libnvrtc.so").is_none() {
            continue;
        }
        match Nvrtc::open(&dir) {
            Ok(nvrtc) if (OLDEST..=NEWEST).contains(&nvrtc.version) => {
                return Ok((Some(nvrtc), notes));
            }
            Ok(nvrtc) => notes.push(format!(
                "{} has version {}, {}.{} to {}.{} will do",
                dir.display(),
                nvrtc.version(),
                OLDEST.0,
                OLDEST.1,
                NEWEST.0,
                NEWEST.1
            )),
            Err(Error::Nvrtc { what, .. }) => notes.push(what),
            Err(other) => return Err(other),
        }
    }
    Ok((None, notes))
}

/// Library folders of CUDA toolkits, as `tools/setup` looks for them.
fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut homes: Vec<PathBuf> = named.filter(|v| !v.is_empty()).map(PathBuf::from).collect();
    let mut local: Vec<PathBuf> = fs::read_dir("/usr/local")
        .into_iter()
        .flat_map(|entries| entries.flatten().map(|e| e.path()))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("cuda")))
        .collect();
    local.sort();
    homes.extend(local);
    let mut dirs: Vec<PathBuf> =
        homes.iter().flat_map(|h| [h.join("lib64"), h.join("lib")]).collect();
    dirs.extend(known_to_the_linker());
    dirs
}

/// Folders of libnvrtc in the dynamic linker's cache.
fn known_to_the_linker() -> Vec<PathBuf> {
    let told = Command::new("ldconfig").arg("-p").output();
    let Ok(told) = told else { return Vec::new() };
    String::from_utf8_lossy(&told.stdout)
        .lines()
        .filter(|l| l.trim_start().starts_with("libnvrtc.so"))
        .filter_map(|l| Path::new(l.split("=> ").nth(1)?.trim()).parent().map(Path::to_path_buf))
        .collect()
}
