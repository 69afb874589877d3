//! Checks of the table itself: whatever implements `Op` is a row, names are unique, refusals have
//! reasons.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use genevar::ops::{Diff, OPS, table_markdown};

use super::faces::Verdict;

type Check = fn() -> Verdict;

/// Checks of the table, by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("every_op_of_the_source_is_a_row", every_op_is_a_row),
    ("the_source_reader_sees_every_form", reader_sees_every_form),
    ("names_are_unique", names_are_unique),
    ("cases_are_named_and_alike", cases_are_named),
    ("what_is_not_differentiable_says_why", reasons),
    ("markdown_lists_every_op", markdown),
    ("no_exception_is_stale", exceptions),
    ("sentinels_can_fail", super::faces::sentinels_can_fail),
];

fn all_or(faults: Vec<String>) -> Verdict {
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn source(file: &str) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops").join(file);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.split("#[cfg(test)]").next().unwrap_or_default().to_string())
}

/// Every .rs file below src/ops, as a path relative to it.
fn op_files() -> Result<Vec<String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let (mut todo, mut found) = (vec![root.clone()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).map_err(|e| e.to_string())? {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(&root).map_err(|e| e.to_string())?;
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

fn is_type(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
}

/// Macros of this text that implement `Op`, with how many types each makes into ops.
fn op_macros(text: &str) -> Vec<(String, usize)> {
    let bodies = text.split("macro_rules! ").skip(1);
    bodies
        .filter_map(|body| {
            let name = identifiers(body).next()?;
            let body = body.split("\n}").next()?;
            let made = body.matches("Op for $").count();
            (made > 0).then(|| (name.to_string(), made))
        })
        .collect()
}

/// Types that this text makes into ops: `impl Op for X`, and the first types given to such a macro.
fn op_types(text: &str, macros: &[(String, usize)]) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split("Op for ").skip(1) {
        if let (false, Some(name)) = (part.starts_with('$'), identifiers(part).next()) {
            found.push(name.to_string());
        }
    }
    for (name, made) in macros {
        for call in text.split(&format!("\n{name}!(")).skip(1) {
            let args = call.split(";\n").next().unwrap_or_default();
            let types = identifiers(args).filter(|w| is_type(w));
            found.extend(types.take(*made).map(String::from));
        }
    }
    // `impl<O: Op> DynOp for O` is the pointer form, not an op.
    found.retain(|name| is_type(name) && name != "O");
    found
}

fn every_op_is_a_row() -> Verdict {
    let table = source("mod.rs")?;
    let table = table.split("\ntable! {").nth(1).and_then(|t| t.split("\n}").next());
    let rows: BTreeSet<&str> =
        identifiers(table.ok_or("no table in mod.rs")?).filter(|w| is_type(w)).collect();
    let files = op_files()?;
    let texts: Vec<String> = files.iter().map(|f| source(f)).collect::<Result<_, _>>()?;
    let macros: Vec<(String, usize)> = texts.iter().flat_map(|t| op_macros(t)).collect();
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, text) in files.iter().zip(&texts) {
        for op in op_types(text, &macros) {
            if !rows.contains(op.as_str()) {
                faults.push(format!("src/ops/{file}: {op} is an op but no row of OPS"));
            }
            seen.insert(op);
        }
    }
    if seen.len() != OPS.len() {
        let (s, r) = (seen.len(), OPS.len());
        faults.push(format!("the source has {s} ops, OPS has {r} rows"));
    }
    all_or(faults)
}

fn reader_sees_every_form() -> Verdict {
    let made = "macro_rules! twin {\n    ($a:ident, $b:ident, $c:expr) => {\n        \
                impl crate::ops::Op for $a {}\n        impl crate::ops::Op for $b {}\n    };\n}\n";
    let macros = op_macros(made);
    if macros != [("twin".to_string(), 2)] {
        return Err(format!("macros: {macros:?}"));
    }
    let text = "impl Op for Mul {\n}\ntwin!(Gelu, GeluVjp, |s| Input::normal(s));\ntwin!(\n    \
                Abs,\n    AbsVjp,\n    Input,\n);\n";
    let found = op_types(text, &macros);
    match found == ["Mul", "Gelu", "GeluVjp", "Abs", "AbsVjp"] {
        true => Ok(()),
        false => Err(format!("types: {found:?}")),
    }
}

fn names_are_unique() -> Verdict {
    let mut seen = BTreeSet::new();
    all_or(
        OPS.iter()
            .filter(|row| !seen.insert(row.name))
            .map(|row| format!("two ops are called {}", row.name))
            .collect(),
    )
}

/// Every op has cases with unique names, all of that op, and as many fills as it has integer inputs
/// fit.
fn cases_are_named() -> Verdict {
    let mut faults = Vec::new();
    for row in OPS {
        let cases = (row.cases)();
        if cases.named.is_empty() {
            faults.push(format!("{} has no case", row.name));
        }
        let mut seen = BTreeSet::new();
        for case in cases.named.iter().chain(&cases.bench) {
            if case.op.name() != row.name {
                faults.push(format!("a case of {} runs {}", row.name, case.op.name()));
            }
            if case.op.int_inputs().iter().any(|&i| i >= case.inputs.len()) {
                faults.push(format!("{}/{}: an integer input is missing", row.name, case.name));
            }
        }
        for case in &cases.named {
            if !seen.insert(case.name.clone()) || case.name == "drawn" {
                faults.push(format!("{}/{}: the name is taken", row.name, case.name));
            }
        }
    }
    all_or(faults)
}

fn reasons() -> Verdict {
    let mut faults = Vec::new();
    for row in OPS {
        for case in (row.cases)().named {
            if let Diff::No(reason) = case.op.diff()
                && reason.split_whitespace().count() < 3
            {
                faults.push(format!("{}: \"{reason}\" is no reason", row.name));
            }
        }
    }
    all_or(faults)
}

fn markdown() -> Verdict {
    let text = table_markdown();
    all_or(
        OPS.iter()
            .filter(|row| {
                let start = format!("| {} |", row.name);
                text.lines().filter(|line| line.starts_with(&start)).count() != 1
            })
            .map(|row| format!("{} has not one row in the markdown table", row.name))
            .collect(),
    )
}

fn exceptions() -> Verdict {
    let names: Vec<&str> = OPS.iter().map(|row| row.name).collect();
    let stale = super::special::stale_exceptions(&names);
    all_or(stale.iter().map(|op| format!("exception for {op}, which is no op")).collect())
}
