//! The tape: what happened, so that gradients can be brought back.

use std::collections::HashMap;

use super::param::Param;
use super::pass::Var;
use crate::error::{Error, Result, Within};
use crate::ops::elementwise::ADD;
use crate::ops::{DynOp, Saved, call};
use crate::tensor::Tensor;

/// One recorded op, or a leaf.
pub(super) struct Node {
    pub(super) made_by: Option<(Box<dyn DynOp>, Saved)>,
    pub(super) parents: Vec<Option<usize>>,
}

/// The recorded ops of a pass, in order.
#[derive(Default)]
pub(super) struct Tape {
    pub(super) nodes: Vec<Node>,
    pub(super) params: HashMap<(u64, usize), usize>,
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
        while let Some(node) = self.nodes.pop() {
            let at = self.nodes.len();
            let Some((op, saved)) = node.made_by else { continue };
            let Some(g) = grads[at].take() else { continue };
            let want: Vec<bool> = node.parents.iter().map(Option::is_some).collect();
            let found =
                op.vjp(&saved, &g, &want).within(format_args!("backward of {}", op.name()))?;
            for (parent, g) in node.parents.iter().zip(found) {
                if let (Some(p), Some(g)) = (parent, g) {
                    grads[*p] = Some(match grads[*p].take() {
                        Some(sum) => call(&ADD, &[&sum, &g])?,
                        None => g,
                    });
                }
            }
        }
        Ok(Gradients { grads, params: self.params })
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
}
