//! The linear layer.

use std::ops::RangeInclusive;

use super::cuda::{Elements, Finish, Multiply, Product, Size};
use super::{Act, LinearDual, MatMul, view};
use crate::device::cpu::{gemm, par_rows, simd};
use crate::device::cuda::Queue;
use crate::error::{Error, Result};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels};
use crate::ops::elementwise::ADD;
use crate::ops::reduce::{SumTo, broadcast_into};
use crate::ops::{
    Case, Cases, CpuFace, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
};
use crate::tensor::{Shape, Tensor};

/// y = x w^T + b over the last axis: x [.., I], w [O, I], b `[O]` (optional) to [.., O].
#[derive(Clone, Debug)]
pub struct Linear;

/// Sides of VAR's ten token maps; each is a batch of two with guidance.
const SIDES: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];

/// The extents of a linear layer.
pub(super) fn layer(x: &[&Shape]) -> Size {
    let (m, k) = x[0].matrix();
    Size { batch: 1, m, n: x[1].dims().first().copied().unwrap_or(0), k, own: own_rows(x[0]) }
}

/// Rows of each sample of x: of [B, n, .., I] those of one B, of a matrix all.
pub(super) fn own_rows(x: &Shape) -> usize {
    match x.dims() {
        [_, between @ .., _] if !between.is_empty() => between.iter().product(),
        _ => x.matrix().0,
    }
}

/// The shape of a linear layer's result, or what does not fit.
pub(super) fn layer_shape(op: &'static str, x: &[&Shape]) -> Result<Shape> {
    let fits = x[1].rank() == 2
        && x[0].rank() >= 1
        && x[1].last() == x[0].last()
        && x.get(2).is_none_or(|b| b.dims() == [x[1].dims()[0]]);
    if !fits {
        let found: Vec<String> = x.iter().map(ToString::to_string).collect();
        let what = format!("wants x [.., I], w [O, I], b [O]; found {}", found.join(", "));
        return Err(Error::shape(op, what));
    }
    Ok(x[0].with_last(x[1].dims()[0]))
}

/// x w^T + b into y.
pub(super) fn layer_cpu(x: &[In<'_, f32>], y: &mut [f32]) {
    let Size { m: rows, n: cols, k, .. } = layer(&[x[0].shape, x[1].shape]);
    if let Some(b) = x.get(2) {
        let b = b.r();
        par_rows(y, cols, |_, part| {
            simd(
                #[inline(always)]
                || {
                    part.chunks_exact_mut(cols.max(1)).for_each(|row| row.copy_from_slice(b));
                },
            );
        });
    }
    let (a, w) = (view(x[0].r(), rows, k, false), view(x[1].r(), cols, k, true));
    gemm(y, cols, a, w, x.len() > 2);
}

/// Gradients of x, w and b, of which as many as `want` says, for that of the sums.
pub(super) fn layer_vjp(at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
    let gx = || call(&MatMul::of(false, false), &[gy, at.x(1)?])?.reshape(at.shape(0));
    let gw = || call(&MatMul::of(true, false), &[gy, at.x(0)?]);
    let mut grads = vec![want[0].then(gx).transpose()?, want[1].then(gw).transpose()?];
    if let Some(wanted) = want.get(2) {
        let gb = || call(&SumTo { to: at.shape(2).clone() }, &[gy]);
        grads.push(wanted.then(gb).transpose()?);
    }
    Ok(grads)
}

impl Multiply for Linear {
    fn size(&self, x: &[&Shape]) -> Size {
        layer(x)
    }
    fn product<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Product<'a, T>> {
        let bias = x.get(2).map(CudaIn::get).transpose()?;
        Ok(Product {
            size: layer(&[x[0].shape, x[1].shape]),
            ta: false,
            tb: true,
            y: y[0].get()?,
            a: x[0].get()?,
            b: x[1].get()?,
            finish: Finish::bias(q, bias),
        })
    }
}

impl Op for Linear {
    const NAME: &'static str = "linear";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| layer_cpu(x, y[0].r()));
    const CUDA: Kernels<Self> = Self::KERNELS;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![layer_shape(Self::NAME, x)?])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (rows, k) = x[0].shape.matrix();
        let n = x[1].shape.dims()[0];
        let (a, w, y) = (x[0].r(), x[1].r(), y[0].r());
        for i in 0..rows {
            for j in 0..n {
                let products = (0..k).map(|l| a[i * k + l] * w[j * k + l]);
                y[i * n + j] = match x.get(2) {
                    Some(b) => R::sum(products.chain([b.r()[j]])),
                    None => R::sum(products),
                };
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let bias = dx.get(2).copied().flatten();
        let mut total = match (dx[0], bias) {
            (Some(d), Some(b)) => Some(call(self, &[d, at.x(1)?, b])?),
            (Some(d), None) => Some(call(self, &[d, at.x(1)?])?),
            (None, Some(b)) => Some(broadcast_into(b, at.y_shape())?),
            (None, None) => None,
        };
        if let Some(dw) = dx[1] {
            let d = call(self, &[at.x(0)?, dw])?;
            total = Some(match total {
                Some(t) => call(&ADD, &[&t, &d])?,
                None => d,
            });
        }
        Ok(total)
    }
    fn dual(&self, _: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        LinearDual::of(Act::None, false, given)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        layer_vjp(at, gy, want)
    }
    fn cases() -> Cases {
        let case = |name: &str, x: &[usize], o: usize, bias: bool| {
            let i = x[x.len() - 1];
            let mut inputs = vec![Input::normal(x), Input::normal([o, i])];
            if bias {
                inputs.push(Input::normal([o]));
            }
            Case::new(name, Linear, inputs)
        };
        Cases {
            named: vec![
                case("bias", &[3, 5, 20], 7, true),
                case("plain", &[33, 18], 65, false),
                case("one_row", &[1, 64], 130, true),
                case("few_rows", &[2, 4, 136], 24, true),
                case("few_rows_a_sample", &[13, 3, 136], 24, true),
                case("one_output", &[35, 40], 1, true),
                case("no_rows", &[0, 4], 3, true),
            ],
            draw: |d| {
                let (n, i, o) = (d.size(1, 40), d.size(1, 70), d.size(1, 40));
                let inputs = vec![Input::normal([n, i]), Input::normal([o, i]), Input::normal([o])];
                Case::new("drawn", Linear, inputs)
            },
            bench: SIDES
                .iter()
                .map(|side| {
                    let name = format!("d16_qkv_side_{side}");
                    case(&name, &[2, side * side, 1024], 3072, true)
                })
                .chain([
                    case("demo_ffn", &[16, 130, 256], 1024, true),
                    case("d16_fc1", &[2, 256, 1024], 4096, true),
                    case("beta_vae_in", &[256, 17_655], 6000, true),
                    case("beta_vae_out", &[256, 6000], 17_655, true),
                ])
                .collect(),
        }
    }
}
