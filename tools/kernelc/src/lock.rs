//! The resource lock: registers, stack, spills, shared memory, tensor-core instructions and 16-byte
//! loads of every entry, checked in as sorted lines, so that a change of any shows in a diff.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::error::{Fault, Result};
use crate::ptxas::Resources;
use crate::sass::Code;

/// What an entry uses on an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The file's name without `.cu`.
    pub module: String,
    /// The instance, as `layer_norm_fwd<float>`.
    pub entry: String,
    /// The architecture, as `sm_80`.
    pub arch: String,
    /// What it uses.
    pub resources: Resources,
}

/// A lock as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// The version of the NVRTC it was made with.
    pub nvrtc: String,
    /// Its lines.
    pub rows: Vec<Usage>,
}

const HEAD: &str = "# What each kernel entry uses, by architecture; kernelc compares it at every \
                    build.\n# Rewritten by a build with GENEVAR_BLESS_RESOURCES=1. Spills are 0.\n";

const FORM: &str = "a line reads `MODULE ENTRY ARCH registers=N stack=N spill_stores=N \
                    spill_loads=N shared=N tensor=N wide=N`; rewrite the file with \
                    GENEVAR_BLESS_RESOURCES=1";

const NAMES: [&str; 7] =
    ["registers", "stack", "spill_stores", "spill_loads", "shared", "tensor", "wide"];

fn numbers(r: &Resources) -> [u32; 7] {
    let Code { tensor, wide } = r.code;
    [r.registers, r.stack, r.spill_stores, r.spill_loads, r.shared, tensor, wide]
}

/// The text of a lock. Rows of `kept` stay for the architectures that `rows` does not have.
pub fn render(nvrtc: &str, rows: &[Usage], kept: &[Usage]) -> String {
    let others = kept.iter().filter(|k| rows.iter().all(|r| r.arch != k.arch));
    let mut lines: Vec<String> = rows.iter().chain(others).map(line).collect();
    lines.sort();
    format!("{HEAD}nvrtc {nvrtc}\n{}\n", lines.join("\n"))
}

fn line(row: &Usage) -> String {
    let mut text = format!("{} {} {}", row.module, row.entry.replace(' ', ""), row.arch);
    for (name, number) in NAMES.iter().zip(numbers(&row.resources)) {
        let _ = write!(text, " {name}={number}");
    }
    text
}

/// Reads the text of a lock that lies in `file`.
pub fn parse(file: &str, text: &str) -> Result<Lock> {
    let mut lock = Lock::default();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(version) = line.strip_prefix("nvrtc ") {
            lock.nvrtc = version.to_string();
            continue;
        }
        let fault = || Fault::new(format!("cannot read `{line}`"), FORM).at(file, i + 1);
        lock.rows.push(row(line).ok_or_else(fault)?);
    }
    Ok(lock)
}

fn row(line: &str) -> Option<Usage> {
    let words: Vec<&str> = line.split(' ').collect();
    let [module, entry, arch, ref values @ ..] = words[..] else { return None };
    let mut n = [0; NAMES.len()];
    if values.len() != n.len() {
        return None;
    }
    for (i, value) in values.iter().enumerate() {
        n[i] = value.strip_prefix(NAMES[i])?.strip_prefix('=')?.parse().ok()?;
    }
    let [registers, stack, spill_stores, spill_loads, shared, tensor, wide] = n;
    let code = Code { tensor, wide };
    let resources = Resources { registers, stack, spill_stores, spill_loads, shared, code };
    let text = |s: &str| s.to_string();
    Some(Usage { module: text(module), entry: text(entry), arch: text(arch), resources })
}

/// What differs between a lock and what was compiled with the NVRTC `nvrtc`, a line each; nothing
/// is said of architectures that were not compiled. Another NVRTC makes other code: then that is
/// the one thing said.
pub fn compare(lock: &Lock, nvrtc: &str, rows: &[Usage]) -> Vec<String> {
    let mut told: Vec<String> = rows.iter().filter_map(spills).collect();
    if lock.nvrtc != nvrtc {
        let other = if lock.nvrtc.is_empty() { "nothing" } else { &lock.nvrtc };
        told.push(format!("not compared: the lock is of NVRTC {other}, this is {nvrtc}"));
        return told;
    }
    let key = |u: &Usage| (u.module.clone(), u.entry.replace(' ', ""), u.arch.clone());
    let name = |u: &Usage| format!("{} {} {}", u.module, u.entry.replace(' ', ""), u.arch);
    let old: BTreeMap<_, _> = lock.rows.iter().map(|u| (key(u), u)).collect();
    let new: BTreeMap<_, _> = rows.iter().map(|u| (key(u), u)).collect();
    for (key, row) in &new {
        match old.get(key) {
            None => told.push(format!("{}: not in the lock", name(row))),
            Some(was) if was.resources != row.resources => {
                told.push(format!("{}: {}", name(row), changes(&was.resources, &row.resources)));
            }
            Some(_) => {}
        }
    }
    let compiled = |u: &&&Usage| rows.iter().any(|r| r.arch == u.arch);
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, u)| u);
    told.extend(gone.filter(compiled).map(|u| format!("{}: no such entry any more", name(u))));
    told
}

pub(crate) fn spills(row: &Usage) -> Option<String> {
    let Resources { spill_stores, spill_loads, .. } = row.resources;
    (spill_stores + spill_loads > 0).then(|| {
        format!(
            "{} {} {}: spills {spill_stores} bytes out and {spill_loads} back; a kernel may not",
            row.module, row.entry, row.arch
        )
    })
}

fn changes(was: &Resources, is: &Resources) -> String {
    let pairs = NAMES.iter().zip(numbers(was).into_iter().zip(numbers(is)));
    let told = pairs.filter(|(_, (a, b))| a != b).map(|(n, (a, b))| format!("{n} {a} -> {b}"));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(entry: &str, arch: &str, registers: u32) -> Usage {
        let resources = Resources { registers, shared: 16, ..Resources::default() };
        Usage { module: "norm".into(), entry: entry.into(), arch: arch.into(), resources }
    }

    #[test]
    fn what_is_written_is_read_back_sorted() {
        let rows = [usage("f<float, 4>", "sm_90a", 9), usage("f<bf16, 4>", "sm_80", 8)];
        let text = render("13.0", &rows, &[usage("g", "sm_70", 1), usage("g", "sm_80", 1)]);
        let lock = parse("kernels/RESOURCES.lock", &text).unwrap();
        assert_eq!(lock.nvrtc, "13.0");
        let entries: Vec<&str> = lock.rows.iter().map(|r| r.entry.as_str()).collect();
        assert_eq!(entries, ["f<bf16,4>", "f<float,4>", "g"]);
        assert!(compare(&lock, "13.0", &rows).is_empty());
    }

    #[test]
    fn every_difference_is_told() {
        let lock = Lock {
            nvrtc: "13.0".into(),
            rows: vec![usage("f", "sm_80", 8), usage("old", "sm_80", 8), usage("old", "sm_70", 8)],
        };
        let mut rows = vec![usage("f", "sm_80", 10), usage("new", "sm_80", 8)];
        assert_eq!(
            compare(&lock, "13.0", &rows),
            [
                "norm f sm_80: registers 8 -> 10",
                "norm new sm_80: not in the lock",
                "norm old sm_80: no such entry any more"
            ]
        );
        rows[0].resources.spill_loads = 4;
        let told = compare(&lock, "12.8", &rows);
        assert_eq!(told[0], "norm f sm_80: spills 0 bytes out and 4 back; a kernel may not");
        assert_eq!(told[1..], ["not compared: the lock is of NVRTC 13.0, this is 12.8"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let text = "# head\nnvrtc 13.0\nnorm f sm_80 registers=8\n";
        let told = parse("kernels/RESOURCES.lock", text).unwrap_err().to_string();
        assert!(told.starts_with("kernels/RESOURCES.lock:3: cannot read `norm f sm_80"), "{told}");
    }
}
