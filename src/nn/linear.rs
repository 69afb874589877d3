//! The linear layer and the ways to initialise a matrix.

use super::tables::Joined;
use crate::autograd::{Param, Params, Pass, Var};
use crate::device::constant;
use crate::error::{Result, Within};
use crate::ops::call;
use crate::ops::gemm::{self, Act, FusedLinear, PartedLinear};
use crate::ops::layout::{Concat, Narrow, Part};
use crate::tensor::Tensor;

/// How a matrix [out, in] starts.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform within sqrt(6 / (in + out)) (Glorot and Bengio, 2010).
    Xavier,
    /// All zeros.
    Zero,
}

/// y = x w^T + b over the last axis.
pub struct Linear {
    w: Param,
    b: Option<Param>,
}

impl Linear {
    /// [.., inputs] to [.., outputs], with a bias that starts at zero.
    pub fn new(params: &mut Params, name: &str, io: [usize; 2], init: Init) -> Self {
        params.at(name, |p| {
            let w = matrix(p, io, init);
            Self { w, b: Some(p.constant("bias", [io[1]], 0.0)) }
        })
    }

    /// The same without a bias.
    pub fn without_bias(params: &mut Params, name: &str, io: [usize; 2], init: Init) -> Self {
        params.at(name, |p| Self { w: matrix(p, io, init), b: None })
    }

    /// The matrix [outputs, inputs].
    pub fn weight(&self) -> &Param {
        &self.w
    }

    /// x [.., inputs] to [.., outputs].
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        let w = p.param(&self.w);
        match &self.b {
            Some(b) => p.op(gemm::Linear, &[x, &w, &p.param(b)]),
            None => p.op(gemm::Linear, &[x, &w]),
        }
        .within(self.w.name())
    }

    /// Equal pieces of the layer's result along the last axis. On a GPU they come apart: none is
    /// copied.
    pub fn forward_parts(&self, p: &Pass, x: &Var, parts: usize) -> Result<Vec<Var>> {
        let b = self.b.as_ref().map(|b| p.param(b));
        pieces(p, [x, &p.param(&self.w)], b.as_ref(), parts).within(self.w.name())
    }

    /// act(x w^T + b), in one pass.
    pub fn forward_act(&self, p: &Pass, x: &Var, act: Act) -> Result<Var> {
        self.fused(p, act, x, &[])
    }

    /// stream + gate (x w^T + b), in one pass.
    pub fn forward_onto(&self, p: &Pass, x: &Var, onto: &Onto<'_>) -> Result<Var> {
        self.fused(p, Act::None, x, &[onto.stream, onto.gate])
    }

    /// Weight and bias, zeros where there is none, for an op that x goes into.
    pub(super) fn parts(&self, p: &Pass, x: &Var) -> Result<[Var; 2]> {
        let w = p.param(&self.w);
        let b = match &self.b {
            Some(b) => p.param(b),
            None => constant(x.value(), &Tensor::zeros(x.value().dtype(), [w.dims()[0]]))?.into(),
        };
        Ok([w, b])
    }

    fn fused(&self, p: &Pass, act: Act, x: &Var, rest: &[&Var]) -> Result<Var> {
        let [w, b] = self.parts(p, x)?;
        // The derivatives of an activation or a gate want the sums themselves.
        let op = FusedLinear { act, keep: p.differentiates() };
        p.op(op, &[&[x, &w, &b], rest].concat()).within(self.w.name())
    }
}

/// Layers that read the same x, as one product: their matrices and biases are joined, once, while
/// they are not trained.
#[derive(Default)]
pub struct Stack([Joined; 2]);

impl Stack {
    /// Equal pieces of the results of these layers, all of `parts` equal pieces each, in order.
    pub fn pieces(&self, p: &Pass, x: &Var, of: &[(&Linear, usize)]) -> Result<Vec<Vec<Var>>> {
        let biases: Option<Vec<&Param>> = of.iter().map(|(l, _)| l.b.as_ref()).collect();
        let tracked = of.iter().any(|(l, _)| p.tracks(&l.w));
        let (Some(biases), false, true) = (biases, tracked, x.value().remote().is_some()) else {
            return of.iter().map(|(layer, parts)| layer.forward_parts(p, x, *parts)).collect();
        };
        let join = |kept: &Joined, all: Vec<&Param>| {
            let make = |of: &[Tensor]| call(&Concat { axis: 0 }, &of.iter().collect::<Vec<_>>());
            kept.get(all.into_iter().map(Param::value).collect(), make).map(Var::constant)
        };
        let w = join(&self.0[0], of.iter().map(|(l, _)| &l.w).collect())?;
        let b = join(&self.0[1], biases)?;
        let mut all = pieces(p, [x, &w], Some(&b), of.iter().map(|(_, parts)| parts).sum())?;
        Ok(of.iter().map(|(_, parts)| all.drain(..*parts).collect()).collect())
    }
}

/// Equal pieces of x w^T + b along the last axis.
pub(super) fn pieces(p: &Pass, xw: [&Var; 2], b: Option<&Var>, parts: usize) -> Result<Vec<Var>> {
    let all: Vec<&Var> = xw.into_iter().chain(b).collect();
    if xw[0].value().remote().is_none() {
        let all = p.op(gemm::Linear, &all)?;
        let len = all.value().shape().last() / parts;
        return (0..parts).map(|i| columns(p, &all, i, len)).collect();
    }
    let all = p.op(PartedLinear { parts }, &all)?;
    (0..parts).map(|index| p.op(Part { index }, &[&all])).collect()
}

/// Columns `i * len ..` of the last axis.
pub(super) fn columns(p: &Pass, x: &Var, i: usize, len: usize) -> Result<Var> {
    p.op(Narrow { axis: x.dims().len() - 1, start: i * len, len }, &[x])
}

/// What a branch of a network is added to: stream + gate branch.
pub struct Onto<'a> {
    /// The stream [.., C].
    pub stream: &'a Var,
    /// The gate [.., C], a row for rows that follow each other.
    pub gate: &'a Var,
}

fn matrix(p: &mut Params, [inputs, outputs]: [usize; 2], init: Init) -> Param {
    let shape = [outputs, inputs];
    match init {
        Init::Normal(std) => p.normal("weight", shape, std, true),
        Init::Xavier => {
            let limit = (6.0 / (inputs + outputs).max(1) as f64).sqrt();
            p.uniform("weight", shape, limit, true)
        }
        Init::Zero => p.zeros("weight", shape, true),
    }
}
