//! A linear layer with what follows it in a transformer, without passes of their own.

use std::ops::RangeInclusive;

use super::LinearDual;
use super::cuda::{Elements, Finish, Multiply, Product, Size};
use super::linear::{Linear, layer, layer_cpu, layer_shape, layer_vjp};
use crate::device::cpu::{par_rows, simd};
use crate::device::cuda::Queue;
use crate::device::kernel::{Slice, SliceMut};
use crate::error::{Error, Result};
use crate::ops::activation::{Gelu, GeluVjp, Silu, SiluVjp};
use crate::ops::broadcast::groups;
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels};
use crate::ops::elementwise::{ADD, Mul};
use crate::ops::kinds::Pointwise;
use crate::ops::reduce::sum_into;
use crate::ops::{
    Case, Cases, CpuFace, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
};
use crate::tensor::{Shape, Tensor};

/// What a layer's sums go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    None,
    /// [`Gelu`].
    Gelu,
    /// [`Silu`].
    Silu,
}

impl Act {
    #[inline(always)]
    pub(super) fn f<R: Real>(self, h: R) -> R {
        match self {
            Self::None => h,
            Self::Gelu => Gelu.f(h),
            Self::Silu => Silu.f(h),
        }
    }

    /// act'(h) d.
    #[inline(always)]
    pub(super) fn df<R: Real>(self, h: R, d: R) -> R {
        match self {
            Self::None => d,
            Self::Gelu => Gelu.df(h) * d,
            Self::Silu => Silu.df(h) * d,
        }
    }

    /// act(h).
    pub(in crate::ops) fn of(self, h: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(h.clone()),
            Self::Gelu => call(&Gelu, &[h]),
            Self::Silu => call(&Silu, &[h]),
        }
    }

    /// act'(h) g, which serves both modes.
    fn slope(self, h: &Tensor, g: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(g.clone()),
            Self::Gelu => call(&GeluVjp(Gelu), &[h, g]),
            Self::Silu => call(&SiluVjp(Silu), &[h, g]),
        }
    }
}

/// y = residual + gate act(x w^T + b) over the last axis.
///
/// Inputs x [.., I], w [O, I], b `[O]`, then residual [.., O], then a gate that is constant over
/// rows that follow each other, as [B, 1, O] is beside [B, n, O]; the last two may be left out.
#[derive(Clone, Debug)]
pub struct FusedLinear {
    /// The activation.
    pub act: Act,
    /// Whether x w^T + b is a second output, for the backward pass; else that computes it again.
    pub keep: bool,
}

impl FusedLinear {
    /// x w^T + b, kept or computed again.
    fn sums(&self, at: &Saved) -> Result<Tensor> {
        match self.keep {
            true => at.extra(0).cloned(),
            false => call(&Linear, &[at.x(0)?, at.x(1)?, at.x(2)?]),
        }
    }
}

impl Multiply for FusedLinear {
    fn size(&self, x: &[&Shape]) -> Size {
        layer(x)
    }
    fn product<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Product<'a, T>> {
        let size = layer(&[x[0].shape, x[1].shape]);
        let part = |i: usize| x.get(i).map_or(Ok(Slice::none(q)), CudaIn::get);
        let shape = x[0].shape.with_last(size.n);
        let finish = Finish {
            kept: SliceMut::none(q),
            bias: part(2)?,
            residual: part(3)?,
            gate: part(4)?,
            gates: x.get(4).and_then(|g| groups(&shape, g.shape)).unwrap_or(0),
            act: self.act as usize,
            piece: 0,
        };
        let (y, kept) = match y {
            [y, kept] => (y.get()?, kept.get()?),
            [y] => (y.get()?, SliceMut::none(q)),
            _ => return Err(Error::Internal("a fused layer has one or two outputs".into())),
        };
        let finish = Finish { kept, ..finish };
        Ok(Product { size, ta: false, tb: true, y, a: x[0].get()?, b: x[1].get()?, finish })
    }
}

impl Op for FusedLinear {
    const NAME: &'static str = "fused_linear";
    const INPUTS: RangeInclusive<usize> = 3..=5;
    const COMPOSED: Option<Composed<Self>> = Some(composed::fused_linear);
    const SAVES: Saves = Saves::inputs(&[0, 1, 2, 4]).and_extras();
    const HALVES: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let n = x[1].shape.dims()[0];
        let gates = x.get(4).and_then(|g| groups(&x[0].shape.with_last(n), g.shape));
        let each = x[0].shape.matrix().0 / gates.unwrap_or(1).max(1);
        let finish = |i: usize, at: usize, part: &mut [f32]| {
            let gate = x.get(4).map(|g| &g.r()[i / each * n + at..][..part.len()]);
            let residual = x.get(3).map(|r| &r.r()[i * n + at..][..part.len()]);
            finish_row(op.act, part, gate, residual);
        };
        let [y, kept @ ..] = y else { return };
        match kept {
            [] => layer_cpu(&x[..3], y.r(), finish),
            [kept, ..] => {
                layer_cpu(&x[..3], kept.r(), |_, _, _| ());
                y.r().copy_from_slice(kept.r());
                par_rows(y.r(), n, |first, part| {
                    for (i, row) in part.chunks_exact_mut(n.max(1)).enumerate() {
                        finish(first + i, 0, row);
                    }
                });
            }
        }
    });
    const CUDA: Kernels<Self> = Self::KERNELS;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let y = layer_shape(Self::NAME, &x[..3])?;
        if let Some(r) = x.get(3).filter(|r| ***r != y) {
            return Err(Error::shape(Self::NAME, format!("the residual is {r}, the result {y}")));
        }
        if let Some(g) = x.get(4).filter(|g| groups(&y, g).is_none()) {
            let what = format!("the gate {g} has not the result's rows {y}, or one for several");
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![y; 1 + usize::from(self.keep)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Size { m, n, k, .. } = layer(&[x[0].shape, x[1].shape]);
        let gates = x.get(4).and_then(|g| groups(&x[0].shape.with_last(n), g.shape));
        let each = m / gates.unwrap_or(1).max(1);
        for i in 0..m {
            for j in 0..n {
                let products = (0..k).map(|l| x[0].r()[i * k + l] * x[1].r()[j * k + l]);
                let sum = R::sum(products.chain([x[2].r()[j]]));
                let mut v = self.act.f(sum);
                if let Some(gate) = x.get(4) {
                    v = gate.r()[i / each * n + j] * v;
                }
                if let Some(residual) = x.get(3) {
                    v = residual.r()[i * n + j] + v;
                }
                y[0].r()[i * n + j] = v;
                if self.keep {
                    y[1].r()[i * n + j] = sum;
                }
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let of = |i: usize| dx.get(i).copied().flatten();
        let mut terms = Vec::new();
        if let Some(d) = Op::jvp(&Linear, at, &dx[..3])? {
            let d = self.act.slope(&self.sums(at)?, &d)?;
            terms.push(if at.arity() == 5 { call(&Mul, &[&d, at.x(4)?])? } else { d });
        }
        if let Some(dg) = of(4) {
            terms.push(call(&Mul, &[&self.act.of(&self.sums(at)?)?, dg])?);
        }
        terms.extend(of(3).cloned());
        let add = |a: Tensor, b: Tensor| call(&ADD, &[&a, &b]);
        let mut terms = terms.into_iter();
        let Some(first) = terms.next() else { return Ok(None) };
        terms.try_fold(first, add).map(Some)
    }
    fn dual(&self, _: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        LinearDual::of(self.act, self.keep, 1, given)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let wants = |i: usize| want.get(i).copied().unwrap_or(false);
        let gated = at.arity() == 5;
        let mut grads = vec![None; 3];
        if want[..3].contains(&true) {
            let g = if gated { call(&Mul, &[gy, at.x(4)?])? } else { gy.clone() };
            let g = match self.act {
                Act::None => g,
                act => act.slope(&self.sums(at)?, &g)?,
            };
            grads = layer_vjp(at, &g, &want[..3])?;
        }
        if at.arity() > 3 {
            grads.push(wants(3).then(|| gy.clone()));
        }
        if gated {
            let gate = || {
                let g = call(&Mul, &[gy, &self.act.of(&self.sums(at)?)?])?;
                sum_into(&g, at.shape(4))
            };
            grads.push(wants(4).then(gate).transpose()?);
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                case("gelu", Act::Gelu, false, &[3, 5, 20], 7, None),
                case("silu_kept", Act::Silu, true, &[33, 18], 65, None),
                case("gelu_kept_one_row", Act::Gelu, true, &[1, 64], 130, None),
                case("residual", Act::None, false, &[2, 3, 9], 12, Some(&[])),
                case("gate_per_sample", Act::None, true, &[2, 35, 24], 72, Some(&[2, 1, 72])),
                case("gate_per_row", Act::Gelu, false, &[2, 3, 9], 11, Some(&[2, 3, 11])),
                case("gate_for_all", Act::Silu, true, &[2, 4, 16], 8, Some(&[8])),
                case("no_rows", Act::Gelu, true, &[0, 4], 3, Some(&[0, 3])),
            ],
            draw: |d| {
                let (b, n) = (d.size(1, 3), d.size(1, 15));
                let (i, o) = (d.size(1, 70), d.size(1, 40));
                let act = d.pick(&[Act::None, Act::Gelu, Act::Silu]);
                let gate = d.pick(&[None, Some([b, 1, o]), Some([b, n, o]), Some([1, 1, o])]);
                let gate = gate.as_ref().map(|g| &g[..]);
                case("drawn", act, d.coin(), &[b, n, i], o, gate)
            },
            bench: vec![
                case("d16_fc1", Act::Gelu, false, &[2, 256, 1024], 4096, None),
                case("d16_fc2", Act::None, false, &[2, 256, 4096], 1024, Some(&[2, 1, 1024])),
                case("d16_fc1_one_token", Act::Gelu, false, &[2, 1, 1024], 4096, None),
                case(
                    "d16_fc2_one_token",
                    Act::None,
                    false,
                    &[2, 1, 4096],
                    1024,
                    Some(&[2, 1, 1024]),
                ),
            ],
        }
    }
}

/// A case; a gate of no axes is a residual without a gate.
fn case(name: &str, act: Act, keep: bool, x: &[usize], o: usize, gate: Option<&[usize]>) -> Case {
    let i = x[x.len() - 1];
    let mut inputs = vec![Input::normal(x), Input::normal([o, i]), Input::normal([o])];
    if let Some(gate) = gate {
        inputs.push(Input::normal([&x[..x.len() - 1], &[o]].concat()));
        inputs.extend((!gate.is_empty()).then(|| Input::normal(gate)));
    }
    Case::new(name, FusedLinear { act, keep }, inputs)
}

/// A row of sums to residual + gate act(sum).
fn finish_row(act: Act, row: &mut [f32], gate: Option<&[f32]>, residual: Option<&[f32]>) {
    simd(
        #[inline(always)]
        || {
            match act {
                Act::None => {}
                Act::Gelu => row.iter_mut().for_each(|v| *v = Gelu.f(*v)),
                Act::Silu => row.iter_mut().for_each(|v| *v = Silu.f(*v)),
            }
            if let Some(gate) = gate {
                row.iter_mut().zip(gate).for_each(|(v, g)| *v *= g);
            }
            if let Some(residual) = residual {
                row.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
            }
        },
    );
}
