//! The parts of an adaLN transformer block besides attention: the feed-forward network, the
//! modulation vectors and the norm they act on.

use super::{Init, Linear, Onto};
use crate::autograd::{Params, Pass, Var};
use crate::error::Result;
use crate::ops::gemm::Act;
use crate::ops::norm::{AdaNorm, LayerNorm};

/// Epsilon of every layer norm (VAR, DiT).
pub(super) const EPS: f64 = 1e-6;

/// LayerNorm without affine over the last axis.
pub fn layer_norm(p: &Pass, x: &Var) -> Result<Var> {
    p.op(LayerNorm { eps: EPS }, &[x])
}

/// LN(x) (1 + scale) + shift.
pub fn norm_modulate(p: &Pass, x: &Var, scale: &Var, shift: &Var) -> Result<Var> {
    p.op(AdaNorm { eps: EPS }, &[x, scale, shift])
}

/// Linear(SiLU(c)), cut into equal vectors along the last axis: adaLN's scales, shifts and gates.
/// SiLU(c) is made once for all that share a condition.
pub struct AdaLn {
    linear: Linear,
    parts: usize,
}

impl AdaLn {
    /// `parts` vectors of the condition's width `c`.
    pub fn new(params: &mut Params, name: &str, [c, parts]: [usize; 2], init: Init) -> Self {
        Self { linear: Linear::new(params, name, [c, parts * c], init), parts }
    }

    /// The generator's linear layer, for initialisations that treat its rows differently.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }

    /// The generator's linear layer and how many vectors it makes.
    pub fn layer(&self) -> (&Linear, usize) {
        (&self.linear, self.parts)
    }

    /// SiLU(c) [.., C] to `parts` vectors [.., C].
    pub fn forward(&self, p: &Pass, active: &Var) -> Result<Vec<Var>> {
        self.linear.forward_parts(p, active, self.parts)
    }
}

/// C to 4C, GELU, back to C.
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// Width `c`; `init` for the first layer, `out` for the second.
    pub fn new(params: &mut Params, name: &str, c: usize, [init, out]: [Init; 2]) -> Self {
        params.at(name, |p| Self {
            fc1: Linear::new(p, "fc1", [c, 4 * c], init),
            fc2: Linear::new(p, "fc2", [4 * c, c], out),
        })
    }

    /// C to 4 C.
    pub(super) fn up(&self) -> &Linear {
        &self.fc1
    }

    /// 4 C to C.
    pub(super) fn down(&self) -> &Linear {
        &self.fc2
    }

    /// x [.., C] to [.., C], added to what it is put onto.
    pub fn forward(&self, p: &Pass, x: &Var, onto: &Onto<'_>) -> Result<Var> {
        let h = self.fc1.forward_act(p, x, Act::Gelu)?;
        self.fc2.forward_onto(p, &h, onto)
    }
}
