//! Trained models that later stages and the sampler only read, moved to where those run.

use std::ops::Deref;

use crate::autograd::{Param, Params};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// A model with its trained weights, which are also kept in the CPU's memory: from there they go to
/// a device, and back from a plan, which holds none.
pub struct Frozen<M> {
    model: M,
    weights: Vec<(Param, Tensor)>,
}

impl<M> Frozen<M> {
    /// A model whose parameters, all of them, are these.
    pub fn new(model: M, params: &Params) -> Self {
        Self { model, weights: params.iter().map(|p| (p.clone(), p.value())).collect() }
    }

    /// Puts the weights where the model's ops are to run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&self, device: &Device) -> Result<()> {
        self.weights.iter().try_for_each(|(p, value)| p.set(device.put(value)?))
    }
}

impl<M> Deref for Frozen<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.model
    }
}
