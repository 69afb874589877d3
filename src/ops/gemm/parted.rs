//! A linear layer whose result comes in pieces that lie apart: queries, keys and values, or scales,
//! shifts and gates, each a tensor of its own without a copy.

use std::ops::RangeInclusive;

use super::cuda::{Elements, Finish, Multiply, Product, Size};
use super::dual::LinearDual;
use super::linear::{layer, layer_shape, layer_vjp};
use super::{Act, Linear};
use crate::device::cuda::Queue;
use crate::error::{Error, Result};
use crate::ops::composed::Composed;
use crate::ops::cuda::{CudaIn, CudaOut, Kernels};
use crate::ops::elementwise::ADD;
use crate::ops::layout::{Concat, Narrow, Part};
use crate::ops::reduce::broadcast_into;
use crate::ops::{Case, Cases, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::tensor::{Shape, Tensor};

/// y = x w^T + b, cut along the last axis: x [.., I], w [P O, I], b [P O] (optional) to [P, .., O].
///
/// A [`Part`] of the result is a piece of it.
#[derive(Clone, Debug)]
pub struct PartedLinear {
    /// Number of pieces P.
    pub parts: usize,
}

impl PartedLinear {
    /// The result's shape for that of the layer, if it can be cut.
    fn cut(&self, y: &Shape) -> Option<Shape> {
        let cols = y.last();
        let whole = self.parts > 0 && y.rank() > 0 && cols.is_multiple_of(self.parts);
        let piece = whole.then(|| y.with_last(cols / self.parts))?;
        Some(Shape::from([&[self.parts], piece.dims()].concat()))
    }
}

impl Multiply for PartedLinear {
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
        let size = layer(&[x[0].shape, x[1].shape]);
        let finish = Finish { piece: size.n / self.parts, ..Finish::bias(q, bias) };
        let (y, a, b) = (y[0].get()?, x[0].get()?, x[1].get()?);
        Ok(Product { size, ta: false, tb: true, y, a, b, finish })
    }
}

impl Op for PartedLinear {
    const NAME: &'static str = "parted_linear";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const COMPOSED: Option<Composed<Self>> = Some(|op, x| {
        let y = call(&Linear, x)?;
        let (axis, len) = (y.shape().rank() - 1, y.shape().last() / op.parts);
        let piece = |i: usize| {
            let piece = call(&Narrow { axis, start: i * len, len }, &[&y])?;
            piece.reshape([&[1], piece.shape().dims()].concat())
        };
        let all = (0..op.parts).map(piece).collect::<Result<Vec<_>>>()?;
        Ok(Some(vec![call(&Concat { axis: 0 }, &all.iter().collect::<Vec<_>>())?]))
    });
    const CUDA: Kernels<Self> = Self::KERNELS;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let y = layer_shape(Self::NAME, x)?;
        let uncut = || Error::shape(Self::NAME, format!("{y} is not cut into {}", self.parts));
        Ok(vec![self.cut(&y).ok_or_else(uncut)?])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Size { m, n, k, .. } = layer(&[x[0].shape, x[1].shape]);
        let piece = n / self.parts;
        for i in 0..m {
            for j in 0..n {
                let products = (0..k).map(|l| x[0].r()[i * k + l] * x[1].r()[j * k + l]);
                let at = (j / piece * m + i) * piece + j % piece;
                y[0].r()[at] = R::sum(products.chain(x.get(2).map(|b| b.r()[j])));
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let bias = dx.get(2).copied().flatten();
        let whole = at.y_shape();
        let spread = |b: &Tensor| {
            let between = vec![1; whole.rank() - 2];
            broadcast_into(
                &b.reshape([&[self.parts], &between[..], &[whole.last()]].concat())?,
                whole,
            )
        };
        let mut total = match (dx[0], bias) {
            (Some(d), Some(b)) => Some(call(self, &[d, at.x(1)?, b])?),
            (Some(d), None) => Some(call(self, &[d, at.x(1)?])?),
            (None, Some(b)) => Some(spread(b)?),
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
        // One piece has another shape than the layer, and nothing to gain.
        if self.parts < 2 {
            return None;
        }
        LinearDual::of(Act::None, false, self.parts, given)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let piece = |index: usize| call(&Part { index }, &[gy]);
        let all = (0..self.parts).map(piece).collect::<Result<Vec<_>>>()?;
        Op::vjp_of_parts(self, at, &all, want)
    }
    fn vjp_of_parts(&self, at: &Saved, parts: &[Tensor], want: &[bool]) -> Result<Grads> {
        let axis = at.shape(0).rank() - 1;
        let all: Vec<&Tensor> = parts.iter().collect();
        layer_vjp(at, &call(&Concat { axis }, &all)?, want)
    }
    fn cases() -> Cases {
        let case = |name: &str, parts: usize, x: &[usize], o: usize, bias: bool| {
            let i = x[x.len() - 1];
            let mut inputs = vec![Input::normal(x), Input::normal([parts * o, i])];
            if bias {
                inputs.push(Input::normal([parts * o]));
            }
            Case::new(name, PartedLinear { parts }, inputs)
        };
        Cases {
            named: vec![
                case("qkv", 3, &[2, 5, 20], 8, true),
                case("odd", 3, &[3, 5, 21], 7, false),
                case("one_row_a_sample", 6, &[5, 1, 64], 36, true),
                case("several_tiles", 2, &[70, 136], 136, true),
                case("pieces_inside_tiles", 5, &[2, 40, 136], 28, false),
                case("one", 1, &[4, 9], 6, true),
                case("odd_pieces", 2, &[1, 12, 16], 29, false),
                case("no_rows", 2, &[0, 4], 3, true),
            ],
            draw: |d| {
                let (parts, bias) = (d.size(1, 6), d.coin());
                let x = [d.size(1, 3), d.size(1, 15), d.size(1, 70)];
                let o = d.size(1, 30);
                let inputs = [vec![x[0], x[1], x[2]], vec![parts * o, x[2]], vec![parts * o]];
                let inputs = inputs.map(Input::normal).into_iter().take(2 + usize::from(bias));
                Case::new("drawn", PartedLinear { parts }, inputs.collect())
            },
            bench: vec![
                case("phi_m_qkv", 3, &[8, 256, 512], 512, true),
                case("d16_ada", 6, &[2, 1, 1024], 1024, true),
            ],
        }
    }
}
