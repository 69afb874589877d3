//! The house rules that no compiler checks: layers, file heads, sizes, the home of unsafe code.
//!
//! Everything is read from the source text, so a rule that is broken names file and line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// A module and the modules below it that it may use. Whatever is not listed is above it or beside
/// it out of reach; a new module has to be placed here.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("config", &["error"]),
    ("tensor", &["error"]),
    ("device", &["error", "tensor"]),
    ("ops", &["error", "tensor", "device"]),
    ("autograd", &["error", "tensor", "device", "ops"]),
    ("io", &["error", "tensor", "device"]),
    ("data", &["error", "config", "tensor", "device", "io"]),
    ("nn", &["error", "config", "tensor", "device", "ops", "autograd", "io"]),
    ("models", &["error", "config", "tensor", "device", "ops", "autograd", "nn"]),
    ("report", &["error", "config", "tensor", "io"]),
    ("train", BELOW_PROGRAMS),
    ("sample", BELOW_PROGRAMS),
    ("eval", BELOW_PROGRAMS),
    ("profile", BELOW_PROGRAMS),
    ("runs", BELOW_PROGRAMS),
    ("demo", TOP),
    ("cli", TOP),
    ("main", TOP),
    ("lib", TOP),
];

const BELOW_PROGRAMS: &[&str] = &[
    "error", "config", "tensor", "device", "ops", "autograd", "io", "data", "nn", "models",
    "train", "sample", "eval", "profile", "report",
];

const TOP: &[&str] = &[
    "error", "config", "tensor", "device", "ops", "autograd", "io", "data", "nn", "models",
    "train", "sample", "eval", "profile", "report", "runs", "demo", "cli",
];

/// Where Rust code lies.
const ALL: &[&str] = &["src", "tests", "benches", "tools"];

/// Where unsafe code may stand: the devices, the foreign functions of the tools, and the tests that
/// call these.
const UNSAFE_HOMES: &[&str] = &[
    "src/device/",
    "tools/kernelc/src/nvrtc/ffi.rs",
    "tools/softcuda/src/abi/",
    "tools/softcuda/tests/abi/",
    "tools/softcuda/tests/card.rs",
    "tests/support/ops/gpu.rs",
    "tests/support/ops/soft.rs",
];

const HEAD_LINES: usize = 12;
const FILE_LINES: usize = 500;
const COLUMNS: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` whose name ends in one of `ends`, sorted.
fn files(dir: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path, ends));
        } else if ends.iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn rust_files(top: &[&str]) -> Vec<(String, String)> {
    let paths = top.iter().flat_map(|dir| files(&root().join(dir), &[".rs"]));
    paths.map(|p| (name(&p), fs::read_to_string(p).unwrap())).collect()
}

/// The path from the root, with forward slashes.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/")
}

/// The part of a file that is the product: what precedes its test module.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

fn verdict(rule: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{rule}\n  {}", faults.join("\n  "));
}

/// The line without strings and comments, roughly: enough to look for a keyword in code.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap();
    line.split('"').step_by(2).collect::<Vec<_>>().join(" ")
}

/// The first names after every `crate::` in `line`, also inside `crate::{a, b}`.
fn crate_names(line: &str) -> Vec<String> {
    let word = |s: &str| -> String {
        s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                let flat: String = list
                    .chars()
                    .take_while(|c| {
                        depth += i32::from(*c == '{') - i32::from(*c == '}');
                        depth >= 0
                    })
                    .collect();
                names.extend(flat.split(',').map(word));
            }
        }
    }
    names.retain(|n| n.starts_with(|c: char| c.is_ascii_lowercase()));
    names
}

#[test]
fn layers_use_only_what_lies_below() {
    let mut faults = Vec::new();
    for (file, text) in rust_files(&["src"]) {
        let module = file.trim_start_matches("src/").split(['/', '.']).next().unwrap();
        let Some((_, allowed)) = LAYERS.iter().find(|(m, _)| *m == module) else {
            faults.push(format!("{file}: place `{module}` in the table of tests/tidy.rs"));
            continue;
        };
        for (i, line) in product(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in crate_names(line) {
                let known = LAYERS.iter().any(|(m, _)| *m == used);
                if known && used != module && !allowed.contains(&used.as_str()) {
                    faults.push(format!("{file}:{}: {module} may not use {used}", i + 1));
                }
            }
        }
    }
    verdict("Layers: top may use bottom, never the reverse.", faults);
}

#[test]
fn the_layer_reader_sees_every_form_of_use() {
    assert_eq!(crate_names("use crate::ops::{Op, Real};"), ["ops"]);
    assert_eq!(crate_names("use crate::{Error, data::{a, b}, nn};"), ["data", "b", "nn"]);
    assert_eq!(crate_names("let x = crate::tensor::f(crate::io::g());"), ["tensor", "io"]);
}

#[test]
fn every_file_says_what_it_is() {
    let mut faults = Vec::new();
    for (file, text) in rust_files(ALL) {
        let head = text.lines().take_while(|l| l.starts_with("//!")).count();
        if head == 0 && file != "src/lib.rs" {
            faults.push(format!("{file}: opens without a //! head"));
        }
        if head > HEAD_LINES {
            faults.push(format!("{file}: the head has {head} lines, {HEAD_LINES} are allowed"));
        }
    }
    verdict("A file opens with at most 12 lines saying what it is.", faults);
}

#[test]
fn files_and_lines_stay_small() {
    let mut faults = Vec::new();
    for (file, text) in rust_files(ALL) {
        let lines = text.lines().count();
        if lines > FILE_LINES {
            faults.push(format!("{file}: {lines} lines, the cap is {FILE_LINES}"));
        }
        for (i, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS {
                faults.push(format!("{file}:{}: {columns} columns", i + 1));
            }
            if line.ends_with(char::is_whitespace) {
                faults.push(format!("{file}:{}: trailing space", i + 1));
            }
        }
    }
    verdict("Files have at most 500 lines, lines at most 100 columns.", faults);
}

#[test]
fn unsafe_code_lives_in_its_homes_alone() {
    let mut faults = Vec::new();
    for (file, text) in rust_files(ALL) {
        for (i, line) in text.lines().enumerate() {
            let code = code(line);
            let words = || code.split(|c: char| !c.is_alphanumeric() && c != '_');
            let is_unsafe = words().any(|w| w == "unsafe");
            if is_unsafe && !UNSAFE_HOMES.iter().any(|home| file.starts_with(home)) {
                faults.push(format!("{file}:{}: unsafe", i + 1));
            }
            if words().any(|w| w == "dead_code") {
                faults.push(format!("{file}:{}: dead code is removed, not allowed", i + 1));
            }
        }
    }
    verdict("Unsafe code has its homes, and nothing dead is kept.", faults);
}

#[test]
fn nothing_names_this_or_that_machine() {
    let machine: Vec<String> =
        ["work", "root", "home", "tmp", "Users"].iter().map(|d| format!("/{d}/")).collect();
    let mut texts: Vec<PathBuf> = ["src", "tests", "benches", "tools", ".ci", "kernels"]
        .iter()
        .flat_map(|d| files(&root().join(d), &[".rs", ".py", ".sh", ".md", ".toml", ".cu", ".cuh"]))
        .collect();
    texts.extend(["README.md", "Cargo.toml", "tools/test", "tools/setup", ".ci/run"].map(|f| {
        let path = root().join(f);
        assert!(path.exists(), "{f} is missing");
        path
    }));
    let mut faults = Vec::new();
    for path in texts.iter().filter(|p| name(p) != "tests/tidy.rs") {
        let text = fs::read_to_string(path).unwrap();
        for (i, line) in text.lines().enumerate() {
            for bad in machine.iter().filter(|m| line.contains(m.as_str())) {
                faults.push(format!("{}:{}: {bad}", name(path), i + 1));
            }
        }
    }
    verdict("No path of somebody's machine.", faults);
}

/// Names of the ops that a file of `src/ops` defines, by hand or through the macro of pointwise
/// ops.
fn ops_of(text: &str) -> Vec<String> {
    let word = |s: &str| -> String {
        s.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect()
    };
    let mut names: Vec<String> = text.split(" Op for ").skip(1).map(word).collect();
    for call in text.split("\npointwise!(").skip(1) {
        names.extend(call.split(',').take(2).map(word));
    }
    names.retain(|n| n.starts_with(|c: char| c.is_ascii_uppercase()));
    names
}

#[test]
fn every_op_is_a_row_of_the_table() {
    let dir = root().join("src/ops");
    let table = fs::read_to_string(dir.join("mod.rs")).unwrap();
    let rows = table.split("\ntable! {").nth(1).unwrap().split("\n}").next().unwrap();
    let listed: Vec<&str> = rows.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in files(&dir, &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        for op in ops_of(product(&text)) {
            seen += 1;
            if !listed.contains(&op.as_str()) {
                faults.push(format!("{}: no row of OPS names {op}", name(&path)));
            }
        }
    }
    verdict("Every op is a row of OPS, or it is dead code.", faults);
    assert!(seen > 10, "only {seen} ops were found: the reader of this test is blind");
}

/// The files that set or judge keys without using them.
const WRITERS: &[&str] = &["config/check.rs", "config/load.rs", "config/tier.rs"];

#[test]
fn every_configuration_key_is_read() {
    let users: String = rust_files(&["src"])
        .iter()
        .filter(|(file, _)| !WRITERS.iter().any(|w| file.ends_with(w)))
        .map(|(_, text)| product(text))
        .collect();
    let reads = |key: &str| {
        let field = format!(".{key}");
        users.match_indices(&field).any(|(at, _)| {
            let next = users[at + field.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '(')
        })
    };
    let mut faults = Vec::new();
    for (file, text) in rust_files(&["src/config"]) {
        for (i, line) in product(&text).lines().enumerate() {
            let Some(field) = line.strip_prefix("    pub ").and_then(|l| l.split_once(": ")) else {
                continue;
            };
            if !field.0.contains(' ') && !reads(field.0) {
                faults.push(format!("{file}:{}: nothing reads `{}`", i + 1, field.0));
            }
        }
    }
    verdict("A key that nothing reads is a lie.", faults);
}
