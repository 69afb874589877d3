//! The op table as a page: what `genevar ops` prints.

use std::collections::BTreeMap;

use super::{Case, Diff, OPS, Precision, Row, Site};
use crate::device::kernel::{Entry, Kind, Param};
use crate::device::launch::ENTRIES;

/// Checks of tests/ops.rs that every op passes at every case, in all its faces.
pub const CHECKS: [&str; 6] = ["value", "guards", "repeat", "special", "sizes", "refuses"];
/// The further one of ops that spare the passes of others: [`super::Op::COMPOSED`].
pub const COMPOSED_CHECKS: [&str; 1] = ["composed"];
/// The further one of ops with kernels: their counts against their cards.
pub const CUDA_CHECKS: [&str; 1] = ["floor"];
/// The further ones of ops with derivative rules.
pub const RULE_CHECKS: [&str; 2] = ["jvp", "adjoint"];

/// One row an op, in GitHub's table syntax: name, family, inputs and outputs of the first case,
/// faces, the kernels' variants with their types, whether it has derivative rules or why not, named
/// cases, checks, the bytes that kernels touch over the floor that their cards state, and the
/// factor by which what they ask for, and their operations, may exceed it: the least, where it
/// applies, and the most. The check `floor` counts both.
pub fn table_markdown() -> String {
    let mut page = String::from(
        "| op | family | inputs | outputs | faces | variants | differentiable | cases | checks | \
         bytes touched / floor | asked for / floor, at most |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in OPS {
        page.push_str(&line(row));
    }
    page
}

fn line(row: &Row) -> String {
    let all = (row.cases)();
    let cases = all.named.len();
    let Some(case) = all.named.iter().find(|c| c.inputs.iter().all(|i| !i.shape.is_empty())) else {
        return format!("| {} | {} | | | | | | {cases} | | | |\n", row.name, row.family);
    };
    let op = &case.op;
    let typed = |shapes: Vec<String>, ints: &[usize]| {
        let mark = |(i, s): (usize, String)| if ints.contains(&i) { format!("int {s}") } else { s };
        shapes.into_iter().enumerate().map(mark).collect::<Vec<_>>().join(", ")
    };
    let inputs = case.inputs.iter().map(|i| i.shape.to_string()).collect();
    let shapes: Vec<_> = case.inputs.iter().map(|i| &i.shape).collect();
    let outs = op.shapes(&shapes).unwrap_or_default();
    let outs = outs.iter().map(ToString::to_string).collect();
    let faces = [
        ("reference", true),
        ("composed", op.has_composed()),
        ("cpu", op.has_cpu()),
        ("cuda", op.has_cuda()),
    ];
    let faces: Vec<&str> = faces.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    let rules = match op.diff() {
        Diff::Yes => "yes".to_string(),
        Diff::No(reason) => format!("no: {reason}"),
    };
    let composed = op.has_composed().then_some(COMPOSED_CHECKS).into_iter().flatten();
    let cuda = op.has_cuda().then_some(CUDA_CHECKS).into_iter().flatten();
    let derived = (op.diff() == Diff::Yes).then_some(RULE_CHECKS).into_iter().flatten();
    let checks: Vec<&str> = CHECKS.into_iter().chain(composed).chain(cuda).chain(derived).collect();
    format!(
        "| {} | {} | {} | {} | {} | {} | {rules} | {cases} | {} | {} | {} |\n",
        row.name,
        row.family,
        typed(inputs, op.int_inputs()),
        typed(outs, op.int_outputs()),
        faces.join(", "),
        variants(all.named.iter().chain(&all.bench)),
        checks.join(", "),
        if op.has_cuda() { touched(row) } else { "" },
        if op.has_cuda() { over_floor(row) } else { String::new() },
    )
}

/// Names of the variants that some case is run in, with their types.
fn variants<'a>(cases: impl Iterator<Item = &'a Case>) -> String {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for case in cases {
        let shapes: Vec<_> = case.inputs.iter().map(|i| &i.shape).collect();
        for (precision, name) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
            for variant in case.op.variants(Site::any(precision), &shapes) {
                let types = all.entry(variant).or_default();
                if !types.contains(&name) {
                    types.push(name);
                }
            }
        }
    }
    let told = |(name, types): (&str, Vec<&str>)| match name {
        "only" => types.join(" "),
        _ => format!("{name}: {}", types.join(" ")),
    };
    all.into_iter().map(told).collect::<Vec<_>>().join(", ")
}

/// The kernels that bear an op's name, else all of its family.
fn entries(row: &Row) -> Vec<&'static Entry> {
    let family = || ENTRIES.iter().filter(|e| e.module.name == row.family);
    let own: Vec<&Entry> = family().filter(|e| e.name.starts_with(row.name)).collect();
    if own.is_empty() { family().collect() } else { own }
}

/// The bytes of an op's kernels over their floor, as the check `floor` has it.
fn touched(row: &Row) -> &'static str {
    let all = entries(row);
    let chosen = |p: &Param| p.element == "i32" && matches!(p.kind, Kind::Input);
    match () {
        () if all.iter().any(|e| e.params.iter().any(chosen)) => "as integers choose",
        () if all.iter().any(|e| e.card.contains("in runs")) => "1 and the ends of runs",
        () => "1",
    }
}

/// The least and the most slack of the cards of an op's kernels.
fn over_floor(row: &Row) -> String {
    let factors: Vec<f64> = entries(row).iter().flat_map(|e| slacks(e.card)).collect();
    let least = factors.iter().copied().fold(f64::INFINITY, f64::min);
    let most = factors.iter().copied().fold(0.0, f64::max);
    match (factors.is_empty(), least == most) {
        (true, _) => String::new(),
        (_, true) => format!("{most}"),
        _ => format!("{least} to {most}"),
    }
}

/// The factors of a card's slack; 1.05 where it has none.
fn slacks(card: &str) -> Vec<f64> {
    let Some((_, text)) = card.split_once("\n  slack ") else { return vec![1.05] };
    let text = text.split("\n  b").next().unwrap_or_default();
    // Reasons stand in parentheses, and may hold what looks like another factor.
    let mut depth = 0;
    let mut bare = String::new();
    for c in text.chars() {
        depth += i32::from(c == '(');
        if depth == 0 {
            bare.push(c);
        }
        depth -= i32::from(c == ')');
    }
    let first = |part: &str| part.split_whitespace().next()?.parse().ok();
    bare.split(';').filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slack_is_read_off_a_card() {
        let card =
            "x_fwd: y.\n  slack  1.4 for max(m, n) < 320 (why; 7 so); 1.05 for\n         cols <= 9;"
                .to_string() + " 2.05 beyond (x)\n  bits   2; 3";
        assert_eq!(slacks(&card), [1.4, 1.05, 2.05]);
        let plain = "x.\n  slack  3 for n <= 1; 30 beyond\n  bits   2; 3";
        assert_eq!((slacks(plain), slacks("x.")), (vec![3.0, 30.0], vec![1.05]));
    }
}
