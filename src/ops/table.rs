//! The op table as a page: what `genevar ops` prints.

use std::collections::BTreeMap;

use serde::Serialize;

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
    for row in table() {
        page.push_str(&row.line());
    }
    page
}

/// What is said of an op.
#[derive(Serialize)]
pub struct Told {
    op: &'static str,
    family: &'static str,
    inputs: Vec<String>,
    outputs: Vec<String>,
    faces: Vec<&'static str>,
    /// Types by the name of a variant; "only" where there is one.
    variants: BTreeMap<&'static str, Vec<&'static str>>,
    differentiable: bool,
    /// Why it is not.
    reason: Option<&'static str>,
    cases: usize,
    checks: Vec<&'static str>,
    /// Bytes touched over their floor, and those asked for, at most.
    touched: String,
    asked: String,
}

/// One row an op.
pub fn table() -> Vec<Told> {
    OPS.iter().map(Told::of).collect()
}

impl Told {
    fn of(row: &Row) -> Self {
        let all = (row.cases)();
        let mut told = Self {
            op: row.name,
            family: row.family,
            inputs: Vec::new(),
            outputs: Vec::new(),
            faces: Vec::new(),
            variants: BTreeMap::new(),
            differentiable: false,
            reason: None,
            cases: all.named.len(),
            checks: Vec::new(),
            touched: String::new(),
            asked: String::new(),
        };
        let whole = |c: &&Case| c.inputs.iter().all(|i| !i.shape.is_empty());
        let Some(case) = all.named.iter().find(whole) else { return told };
        let op = &case.op;
        let typed = |shapes: Vec<String>, ints: &[usize]| {
            let mark = |(i, s): (usize, String)| match ints.contains(&i) {
                true => format!("int {s}"),
                false => s,
            };
            shapes.into_iter().enumerate().map(mark).collect()
        };
        let shapes: Vec<_> = case.inputs.iter().map(|i| &i.shape).collect();
        let outs = op.shapes(&shapes).unwrap_or_default();
        told.inputs = typed(shapes.iter().map(ToString::to_string).collect(), op.int_inputs());
        told.outputs = typed(outs.iter().map(ToString::to_string).collect(), op.int_outputs());
        let faces = [
            ("reference", true),
            ("composed", op.has_composed()),
            ("cpu", op.has_cpu()),
            ("cuda", op.has_cuda()),
        ];
        told.faces = faces.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        match op.diff() {
            Diff::Yes => told.differentiable = true,
            Diff::No(reason) => told.reason = Some(reason),
        }
        let composed = op.has_composed().then_some(COMPOSED_CHECKS).into_iter().flatten();
        let cuda = op.has_cuda().then_some(CUDA_CHECKS).into_iter().flatten();
        let derived = told.differentiable.then_some(RULE_CHECKS).into_iter().flatten();
        told.checks = CHECKS.into_iter().chain(composed).chain(cuda).chain(derived).collect();
        told.variants = variants(all.named.iter().chain(&all.bench));
        if op.has_cuda() {
            told.touched = touched(row).into();
            told.asked = over_floor(row);
        }
        told
    }

    fn line(&self) -> String {
        let Self { op, family, cases, .. } = self;
        if self.faces.is_empty() {
            return format!("| {op} | {family} | | | | | | {cases} | | | |\n");
        }
        let rules = match self.reason {
            None => "yes".to_string(),
            Some(reason) => format!("no: {reason}"),
        };
        let variant = |(name, types): (&&str, &Vec<&str>)| match *name {
            "only" => types.join(" "),
            _ => format!("{name}: {}", types.join(" ")),
        };
        let variants: Vec<String> = self.variants.iter().map(variant).collect();
        format!(
            "| {op} | {family} | {} | {} | {} | {} | {rules} | {cases} | {} | {} | {} |\n",
            self.inputs.join(", "),
            self.outputs.join(", "),
            self.faces.join(", "),
            variants.join(", "),
            self.checks.join(", "),
            self.touched,
            self.asked,
        )
    }
}

/// Names of the variants that some case is run in, with their types.
fn variants<'a>(
    cases: impl Iterator<Item = &'a Case>,
) -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut all: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
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
    all
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
