//! Trained models that later stages and the sampler only read, moved to where those run.

use std::ops::Deref;

use crate::autograd::{Param, Params};
use crate::device::Device;
use crate::error::Result;
use crate::ops::Precision;
use crate::ops::layout::rounded;
use crate::tensor::Tensor;

/// Parts of the names of weights that are never rounded to bf16: the code book and what follows it,
/// of which feature maps are made, and the logarithms of temperatures.
const WIDE: [&str; 2] = ["quantiser", "ln_scale"];

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
        self.place_in(device, Precision::F32)
    }

    /// Puts the weights where the model's ops are to run: on a GPU in this precision, but for
    /// those that are summed over scales or exponents, which stay in f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place_in(&self, device: &Device, precision: Precision) -> Result<()> {
        self.weights.iter().try_for_each(|(p, value)| {
            let placed = device.put(value)?;
            let wide = p.name().split('.').any(|part| WIDE.contains(&part));
            p.set(match precision == Precision::Bf16 && !wide {
                true => rounded(&placed)?,
                false => placed,
            })
        })
    }
}

impl<M> Deref for Frozen<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.model
    }
}
