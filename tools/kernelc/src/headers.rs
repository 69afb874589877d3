//! A kernel file with the headers it includes, as NVRTC is given them.
//!
//! Files go to NVRTC from memory under the fixed name `/kernels/...`: its line tables then name no
//! folder of this machine, and the same text gives the same image everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{Error, Fault, Result};
use crate::source::{Source, directive};

/// What NVRTC takes the kernels' folder for.
pub(crate) const ROOT: &str = "/kernels/";

/// The headers that `text` includes, directly or not: name as included, and text.
pub(crate) fn headers(kernels: &Path, file: &str, text: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    collect(kernels, file, text, &mut found)?;
    Ok(found)
}

fn collect(
    kernels: &Path,
    file: &str,
    text: &str,
    found: &mut BTreeMap<String, String>,
) -> Result<()> {
    for (name, line) in Source::new(file, text)?.includes()? {
        if found.contains_key(&name) {
            continue;
        }
        let path = kernels.join(&name);
        let inside = !name.starts_with('/') && !name.split('/').any(|part| part == "..");
        let body = fs::read_to_string(&path).ok().filter(|_| inside).ok_or_else(|| {
            let fix = "includes are written from kernels/, as in `#include \"lib/bf16.cuh\"`";
            Fault::new(format!("there is no header kernels/{name}"), fix).at(file, line)
        })?;
        found.insert(name.clone(), body.clone());
        collect(kernels, &format!("kernels/{name}"), &body, found)?;
    }
    Ok(())
}

/// The text with its includes under [`ROOT`], line for line.
pub(crate) fn rooted(text: &str) -> String {
    let lines = text.split('\n').map(|line| match directive(line, "include") {
        Some(rest) if rest.starts_with('"') => format!("#include \"{ROOT}{}", &rest[1..]),
        _ => line.to_string(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A message of NVRTC with places as `kernels/x.cu:12`.
pub(crate) fn places(log: &str) -> String {
    let lines = log.lines().map(|line| {
        let mut told = String::new();
        let mut rest = line;
        while let Some(at) = rest.find(ROOT) {
            told += &rest[..at];
            rest = &rest[at + 1..];
            let name = rest.find(['(', '"', ' ', ':']).unwrap_or(rest.len());
            told += &rest[..name];
            rest = &rest[name..];
            let number = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
            if let Some((number, after)) = number.filter(|(n, _)| n.parse::<u32>().is_ok()) {
                told += &format!(":{number}");
                rest = after;
            }
        }
        told + rest
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The kernels' file names in `dir`, sorted.
pub(crate) fn files(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_and_places_change_root() {
        let text = "// a\n  #include \"lib/a.cuh\" // why\nint x;\n";
        assert_eq!(rooted(text), "// a\n#include \"/kernels/lib/a.cuh\" // why\nint x;\n");
        let log =
            "/kernels/x.cu(11): error: no\n  at line 3 of /kernels/lib/a.cuh\n\"/kernels/y.cu\"";
        let want = "kernels/x.cu:11: error: no\n  at line 3 of kernels/lib/a.cuh\n\"kernels/y.cu\"";
        assert_eq!(places(log), want);
    }
}
