//! Segments of a tape that keep no values: their ops run again when the reverse pass comes by.
//!
//! Of a segment, a block of a model say, the tape holds the ops and what came from outside it. The
//! first gradient that reaches it runs those ops again whose results a derivative rule looks at,
//! in their order, on the same values: the same bits, for memory of one segment at a time.

use super::tape::Node;
use crate::device::span;
use crate::error::{Error, Result};
use crate::ops::{DynOp, Saved, run};
use crate::tensor::Tensor;

/// Where an op of a segment finds an input again.
pub(super) enum Source {
    /// Made outside.
    Held(Tensor),
    /// The result of that node of the tape, of the same segment.
    Node(usize),
}

/// How an op of a segment is run again.
pub(super) struct Again {
    /// The node that the segment begins at.
    pub(super) first: usize,
    pub(super) inputs: Vec<Source>,
    /// The op for value and tangent at once that ran in its place, and which inputs had tangents.
    pub(super) dual: Option<(Box<dyn DynOp>, Vec<bool>)>,
}

impl Again {
    /// The outputs of `op` once more. What ran as one with its tangent does so again, for the bits
    /// of the value are that op's; they do not depend on the tangents, so values stand for those.
    fn outputs(&self, op: &dyn DynOp, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let Some((dual, given)) = &self.dual else { return run(op, x) };
        let moving = x.iter().zip(given).filter(|(_, given)| **given).map(|(x, _)| *x);
        let mut outs = run(&**dual, &x.iter().copied().chain(moving).collect::<Vec<_>>())?;
        outs.pop();
        Ok(outs)
    }

    fn within(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.inputs.iter().enumerate().filter_map(|(i, source)| match source {
            Source::Node(node) => Some((i, node - self.first)),
            Source::Held(_) => None,
        })
    }
}

/// Gives all nodes, those of one segment up to where a gradient reached it, what they save.
pub(super) fn rerun(nodes: &mut [Node]) -> Result<()> {
    let _part = span::part("recomputation");
    let (runs, mut uses) = plan(nodes);
    let mut results: Vec<Option<Tensor>> = vec![None; nodes.len()];
    for (i, node) in nodes.iter_mut().enumerate() {
        let Some(made) = &mut node.made_by else { continue };
        let Some(again) = made.again.take() else { continue };
        let take = |source: &Source| match source {
            Source::Held(x) => Some(x.clone()),
            Source::Node(node) => results.get(node - again.first).cloned().flatten(),
        };
        let x: Vec<Option<Tensor>> = again.inputs.iter().map(take).collect();
        let outs = match runs[i] {
            true => {
                let all: Vec<&Tensor> = x.iter().flatten().collect();
                if all.len() < x.len() {
                    return Err(Error::Internal(format!("{} lacks an input", made.op.name())));
                }
                Some(again.outputs(&*made.op, &all)?)
            }
            false => None,
        };
        results[i] = outs.as_ref().and_then(|outs| outs.first().cloned());
        made.saved.fill(&*made.op, x, outs);
        // Nothing outlives its last reader.
        for (_, from) in again.within() {
            uses[from] -= 1;
            if uses[from] == 0 {
                results[from] = None;
            }
        }
        if uses[i] == 0 {
            results[i] = None;
        }
    }
    Ok(())
}

/// Which nodes must run, and how many inputs each is.
fn plan(nodes: &[Node]) -> (Vec<bool>, Vec<usize>) {
    let (mut runs, mut uses) = (vec![false; nodes.len()], vec![0; nodes.len()]);
    for (i, node) in nodes.iter().enumerate().rev() {
        let Some(made) = &node.made_by else { continue };
        let Some(again) = &made.again else { continue };
        let saves = made.op.saves();
        runs[i] |= saves.output || saves.extras;
        for (input, from) in again.within() {
            uses[from] += 1;
            runs[from] |= runs[i] || saves.inputs.contains(&input);
        }
    }
    (runs, uses)
}

/// What the tape keeps of an op that ran: everything its rule looks at, or in a segment its shapes
/// and how to run it again.
pub(super) struct Made {
    pub(super) op: Box<dyn DynOp>,
    pub(super) saved: Saved,
    pub(super) again: Option<Again>,
}
