//! The op table as a page: what `genevar ops` prints.

use super::{Diff, OPS, Row};

/// One row an op, in GitHub's table syntax: name, family, inputs and outputs of the first case,
/// faces, whether it has derivative rules or why not, number of named cases.
pub fn table_markdown() -> String {
    let mut page = String::from(
        "| op | family | inputs | outputs | faces | differentiable | cases |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in OPS {
        page.push_str(&line(row));
    }
    page
}

fn line(row: &Row) -> String {
    let cases = (row.cases)().named;
    let Some(case) = cases.iter().find(|c| c.inputs.iter().all(|i| !i.shape.is_empty())) else {
        return format!("| {} | {} | | | | | {} |\n", row.name, row.family, cases.len());
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
    let faces = [("reference", true), ("cpu", op.has_cpu()), ("cuda", op.has_cuda())];
    let faces: Vec<&str> = faces.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    let faces = faces.join(", ");
    let rules = match op.diff() {
        Diff::Yes => "yes".to_string(),
        Diff::No(reason) => format!("no: {reason}"),
    };
    format!(
        "| {} | {} | {} | {} | {faces} | {rules} | {} |\n",
        row.name,
        row.family,
        typed(inputs, op.int_inputs()),
        typed(outs, op.int_outputs()),
        cases.len()
    )
}
