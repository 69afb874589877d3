//! The tape: what happened, so that gradients can be brought back.

use std::collections::HashMap;

use super::param::Param;
use super::pass::Var;
use super::segment::{Made, rerun};
use crate::device::Device;
use crate::error::{Error, Result, Within};
use crate::ops::call;
use crate::ops::elementwise::ADD;
use crate::ops::layout::stacked;
use crate::tensor::Tensor;

/// One recorded op, or a leaf.
pub(super) struct Node {
    pub(super) made_by: Option<Made>,
    pub(super) parents: Vec<Option<usize>>,
}

/// The recorded ops of a pass, in order.
#[derive(Default)]
pub(super) struct Tape {
    pub(super) nodes: Vec<Node>,
    pub(super) params: HashMap<(u64, usize), usize>,
    /// The node that the segment being recorded begins at.
    pub(super) segment: Option<usize>,
}

impl Tape {
    pub(super) fn leaf(&mut self) -> usize {
        self.push(Node { made_by: None, parents: Vec::new() })
    }

    pub(super) fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Brings `seed`, the gradient of node `from`, back to every leaf. Each node is dropped as soon
    /// as it has been passed, so memory falls as the pass goes.
    pub(super) fn backward(mut self, from: usize, seed: Tensor) -> Result<Gradients> {
        let mut grads: Vec<Option<Tensor>> = Vec::new();
        grads.resize_with(self.nodes.len(), || None);
        grads[from] = Some(seed);
        let mut parts = Parts::default();
        while let Some(at) = self.nodes.len().checked_sub(1) {
            let (whole, entries) = (grads[at].take(), parts.of(at)?);
            if whole.is_some() || entries.is_some() {
                self.recall(at)?;
            }
            let Some(node) = self.nodes.pop() else { break };
            let Some(Made { op, saved, .. }) = node.made_by else {
                // A leaf keeps its gradient.
                grads[at] = sum(whole, entries.map(|e| stacked(&e)).transpose()?)?;
                continue;
            };
            let want: Vec<bool> = node.parents.iter().map(Option::is_some).collect();
            let found = match (whole, entries) {
                (None, None) => continue,
                (Some(g), None) => match (op.part(), &node.parents[..]) {
                    (Some(index), [Some(of)]) => {
                        parts.add(*of, (index, saved.shape(0).dims()[0]), g)?;
                        continue;
                    }
                    _ => op.vjp(&saved, &g, &want),
                },
                (None, Some(entries)) => op.vjp_of_parts(&saved, &entries, &want),
                (whole, Some(entries)) => {
                    let g = sum(whole, Some(stacked(&entries)?))?;
                    g.map_or(Ok(Vec::new()), |g| op.vjp(&saved, &g, &want))
                }
            };
            let found = found.within(format_args!("backward of {}", op.name()))?;
            for (parent, g) in node.parents.iter().zip(found) {
                if let Some(p) = parent {
                    grads[*p] = sum(grads[*p].take(), g)?;
                }
            }
        }
        Ok(Gradients { grads, params: self.params })
    }

    /// Sees to it that the last node has what it saves.
    fn recall(&mut self, last: usize) -> Result<()> {
        let made = self.nodes[last].made_by.as_ref();
        match made.and_then(|made| made.again.as_ref()).map(|again| again.first) {
            Some(first) => rerun(&mut self.nodes[first..]).within("recomputing for the backward"),
            None => Ok(()),
        }
    }
}

/// The sum of gradients that are there.
fn sum(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    match (a, b) {
        (Some(a), Some(b)) => call(&ADD, &[&a, &b]).map(Some),
        (a, b) => Ok(a.or(b)),
    }
}

/// Gradients of entries of the outermost axis of a node's result, until all have come.
#[derive(Default)]
struct Parts(HashMap<usize, Vec<Option<Tensor>>>);

impl Parts {
    /// Adds the gradient of entry `index` of so many.
    fn add(&mut self, node: usize, (index, count): (usize, usize), g: Tensor) -> Result<()> {
        let all = self.0.entry(node).or_insert_with(|| vec![None; count]);
        all[index] = sum(all[index].take(), Some(g))?;
        Ok(())
    }

    /// Those of a node, zeros where none came; `None` where there are none at all.
    fn of(&mut self, node: usize) -> Result<Option<Vec<Tensor>>> {
        let Some(all) = self.0.remove(&node) else { return Ok(None) };
        let Some(like) = all.iter().flatten().next().cloned() else { return Ok(None) };
        let zeros = || Device::of([&like]).put(&Tensor::zeros(like.dtype(), like.shape()));
        all.into_iter().map(|g| g.map_or_else(zeros, Ok)).collect::<Result<_>>().map(Some)
    }
}

/// Gradients of the leaves of one tape.
pub struct Gradients {
    grads: Vec<Option<Tensor>>,
    params: HashMap<(u64, usize), usize>,
}

impl Gradients {
    /// The gradient of a tracked leaf; an error if the loss does not depend on it.
    pub fn of(&self, leaf: &Var) -> Result<&Tensor> {
        leaf.node()
            .and_then(|i| self.grads.get(i))
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::Internal("the loss does not depend on this leaf".into()))
    }

    /// The gradient of a parameter, `None` if the loss does not depend on it.
    pub fn param(&self, p: &Param) -> Option<&Tensor> {
        self.params.get(&p.key()).and_then(|&i| self.grads[i].as_ref())
    }

    /// The sums with those of another loss, parameter by parameter; gradients of other leaves are
    /// let go.
    ///
    /// # Errors
    /// Those of the device.
    pub fn plus(mut self, other: &Self) -> Result<Self> {
        let mut all = Self { grads: Vec::new(), params: HashMap::new() };
        for key in self.params.keys().chain(other.params.keys()) {
            all.params.entry(*key).or_insert_with(|| {
                all.grads.push(None);
                all.grads.len() - 1
            });
        }
        for (key, &at) in &all.params {
            let own = self.params.get(key).and_then(|&i| self.grads[i].take());
            let more = other.params.get(key).and_then(|&i| other.grads[i].clone());
            all.grads[at] = sum(own, more)?;
        }
        Ok(all)
    }
}
