//! The convolution layer over channels-last maps.

use crate::autograd::{Param, Params, Pass, Var};
use crate::error::{Error, Result, Within};
use crate::nn::linear::{columns, pieces};
use crate::nn::norm::GroupNorm;
use crate::ops::conv::{Conv2d, FusedConv, NormedConv};
use crate::ops::layout::Reshape;
use crate::tensor::{DType, Tensor};

/// How a kernel [out, kh, kw, in] and its bias start.
#[derive(Clone, Copy, Debug)]
pub enum ConvInit {
    /// Both uniform within 1 / sqrt(kh kw in): what VAR leaves to its framework.
    FanIn,
    /// Kernel normal with this standard deviation, bias zero.
    Normal(f64),
    /// The map itself: 1 at the centre where in = out, else 0; bias zero.
    Identity,
}

/// y = conv(x, w) + b.
pub struct Conv {
    w: Param,
    b: Param,
    op: Conv2d,
}

impl Conv {
    /// `[B, H, W, io[0]]` to `[B, H', W', io[1]]` by the windows of `op`.
    pub fn new(
        params: &mut Params,
        name: &str,
        io: [usize; 2],
        op: Conv2d,
        init: ConvInit,
    ) -> Self {
        let ([inputs, outputs], [kh, kw]) = (io, op.kernel);
        let shape = [outputs, kh, kw, inputs];
        let limit = 1.0 / ((kh * kw * inputs).max(1) as f64).sqrt();
        let (w, b) = params.at(name, |p| match init {
            ConvInit::FanIn => {
                let w = p.uniform("weight", shape, limit, true);
                (w, p.uniform("bias", [outputs], limit, false))
            }
            ConvInit::Normal(std) => {
                let w = p.normal("weight", shape, std, true);
                (w, p.constant("bias", [outputs], 0.0))
            }
            ConvInit::Identity => {
                (p.add("weight", identity(shape), true), p.constant("bias", [outputs], 0.0))
            }
        });
        Self { w, b, op }
    }

    /// A convolution that keeps the size of its map.
    pub fn same(params: &mut Params, name: &str, io: [usize; 2], side: usize) -> Self {
        Self::new(params, name, io, Conv2d::same(side), ConvInit::FanIn)
    }

    /// Halves the map: a row and a column of zeros at the bottom and right, then 3x3 with stride 2
    /// (VAR).
    pub fn halving(params: &mut Params, name: &str, channels: usize) -> Self {
        let op = Conv2d { kernel: [3, 3], stride: 2, pad: [0, 1, 0, 1] };
        Self::new(params, name, [channels; 2], op, ConvInit::FanIn)
    }

    /// The kernel.
    pub fn weight(&self) -> &Param {
        &self.w
    }

    /// The biases.
    pub fn bias(&self) -> &Param {
        &self.b
    }

    /// x [B, H, W, in] to [B, H', W', out].
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        self.with_weight(p, x, &p.param(&self.w))
    }

    /// residual + the layer of x: what ends a residual block.
    pub fn add_to(&self, p: &Pass, residual: &Var, x: &Var) -> Result<Var> {
        let op = FusedConv { conv: self.op.clone(), double: false };
        p.op(op, &[x, &p.param(&self.w), &p.param(&self.b), residual]).within(self.w.name())
    }

    /// Equal pieces of a 1 x 1 layer's result along the channels. On a GPU they come apart: none is
    /// copied.
    pub fn forward_parts(&self, p: &Pass, x: &Var, parts: usize) -> Result<Vec<Var>> {
        let (w, b) = (p.param(&self.w), p.param(&self.b));
        if x.value().remote().is_none() {
            let all = self.forward(p, x)?;
            let len = all.value().shape().last() / parts;
            return (0..parts).map(|i| columns(p, &all, i, len)).collect();
        }
        let &[outs, _, _, ins] = w.dims() else {
            return Err(Error::shape("conv", "a kernel has four axes"));
        };
        let w = p.op(Reshape { to: [outs, ins].into() }, &[&w])?;
        pieces(p, [x, &w], Some(&b), parts).within(self.w.name())
    }

    /// The layer of the norm of x, and where there is a residual, that plus it. On a GPU a 3 x 3
    /// layer takes a norm with SiLU into its load, and no map between them is written.
    pub fn of_normed(
        &self,
        p: &Pass,
        norm: &GroupNorm,
        x: &Var,
        residual: Option<&Var>,
    ) -> Result<Var> {
        let (op, [gamma, beta]) = norm.parts();
        if x.value().remote().is_some() && op.silu && self.op.keeps_size_by_3() {
            let fused = NormedConv { groups: op.groups, eps: op.eps };
            let own = [gamma, beta, &self.w, &self.b].map(|param| p.param(param));
            let all = [x].into_iter().chain(&own).chain(residual);
            return p.op(fused, &all.collect::<Vec<_>>()).within(self.w.name());
        }
        let h = norm.forward(p, x)?;
        match residual {
            Some(residual) => self.add_to(p, residual, &h),
            None => self.forward(p, &h),
        }
    }

    /// The layer of x with 2 x 2 copies of each pixel: x [B, H, W, in] as [B, 2 H, 2 W, in].
    pub fn of_doubled(&self, p: &Pass, x: &Var) -> Result<Var> {
        let op = FusedConv { conv: self.op.clone(), double: true };
        p.op(op, &[x, &p.param(&self.w), &p.param(&self.b)]).within(self.w.name())
    }

    /// [`Conv::forward`] with the kernel given as a variable: for gradients at this layer alone.
    pub fn with_weight(&self, p: &Pass, x: &Var, w: &Var) -> Result<Var> {
        p.op(self.op.clone(), &[x, w, &p.param(&self.b)]).within(self.w.name())
    }
}

fn identity([outputs, kh, kw, inputs]: [usize; 4]) -> Tensor {
    let mut w = vec![0.0; outputs * kh * kw * inputs];
    let centre = (kh / 2) * kw + kw / 2;
    for o in 0..outputs.min(inputs) {
        w[(o * kh * kw + centre) * inputs + o] = 1.0;
    }
    // The values were made for this shape, so the fallback is never taken.
    let shape = [outputs, kh, kw, inputs];
    Tensor::new(w, shape).unwrap_or_else(|_| Tensor::zeros(DType::F32, shape))
}
