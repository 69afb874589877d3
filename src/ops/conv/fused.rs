//! A convolution with its neighbours in the tokenizer: its map doubled before it, a residual added
//! after it.
//!
//! Group norm and SiLU before it are [`super::NormedConv`]: a window shares its elements with eight
//! others, so they are a matter of tiles of pixels.

use std::ops::RangeInclusive;

use super::{Conv2d, Conv2dDw, Conv2dDx, cpu, cuda, dims};
use crate::device::cpu::par_rows;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::Kernels;
use crate::ops::elementwise::ADD;
use crate::ops::reduce::{broadcast_into, sum_into};
use crate::ops::resample::Resample;
use crate::ops::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::tensor::{Shape, Tensor};

/// y = residual + conv(x, w) + b, of x or of x doubled.
///
/// Inputs x [B, H, W, I], w [O, kh, kw, I], b `[O]`, then a residual of the shape of y, which may
/// be left out.
#[derive(Clone, Debug)]
pub struct FusedConv {
    /// The convolution.
    pub conv: Conv2d,
    /// Whether it sees each pixel of x as 2 x 2 of them. No such map is written.
    pub double: bool,
}

impl FusedConv {
    /// The map that the convolution sees, for a map of this shape.
    pub(super) fn seen(&self, x: &Shape) -> Shape {
        let [b, h, w, c] = dims(x);
        let by = 1 + usize::from(self.double);
        Shape::from([b, by * h, by * w, c])
    }

    /// The map that the convolution sees.
    fn doubled(&self, x: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = dims(x.shape());
        match self.double {
            true => call(&Resample::nearest_x2([h, w]), &[x]),
            false => Ok(x.clone()),
        }
    }
}

/// Each pixel of x [B, H, W, C] as 2 x 2 of them.
fn double(x: &In<'_, f32>) -> Vec<f32> {
    let [b, h, w, c] = dims(x.shape);
    let mut y = vec![0.0; 4 * b * h * w * c];
    par_rows(&mut y, 2 * w * c, |first, part| {
        for (i, row) in part.chunks_exact_mut((2 * w * c).max(1)).enumerate() {
            // Rows of all images follow each other.
            let from = &x.r()[(first + i) / 2 * w * c..][..w * c];
            for (to, pixel) in row.chunks_exact_mut(2 * c).zip(from.chunks_exact(c)) {
                to[..c].copy_from_slice(pixel);
                to[c..].copy_from_slice(pixel);
            }
        }
    });
    y
}

impl Op for FusedConv {
    const NAME: &'static str = "fused_conv";
    const INPUTS: RangeInclusive<usize> = 3..=4;
    const COMPOSED: Option<Composed<Self>> = Some(composed::fused_conv);
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const HALVES: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (seen, own) = (op.seen(x[0].shape), if op.double { double(&x[0]) } else { vec![] });
        let map = if op.double { &own } else { x[0].r() };
        let residual = x.get(3).map(In::r);
        cpu(&op.conv, &In::real(&seen, map), (&x[1], Some(&x[2])), y[0].r(), |at, y| {
            let own = residual.map_or(&[][..], |r| &r[at..at + y.len()]);
            y.iter_mut().zip(own).for_each(|(y, r)| *y += r);
        });
    });
    const CUDA: Kernels<Self> = cuda::FUSED_CONV;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if x[0].rank() != 4 {
            return Err(Error::shape(Self::NAME, format!("wants a map of four axes: {}", x[0])));
        }
        let y = Op::shapes(&self.conv, &[&self.seen(x[0]), x[1], x[2]])?;
        match x.get(3).filter(|r| ***r != y[0]) {
            Some(r) => {
                Err(Error::shape(Self::NAME, format!("the residual is {r}, the result {}", y[0])))
            }
            None => Ok(y),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let seen = self.seen(x[0].shape);
        let [_, h, w, c] = dims(&seen);
        let by = 1 + usize::from(self.double);
        let pixel = |i: usize| {
            let (col, row, b) = (i % w, i / w % h, i / w / h);
            ((b * (h / by) + row / by) * (w / by) + col / by) * c
        };
        let copies = (0..seen.len()).map(|i| x[0].r()[pixel(i / c) + i % c]);
        let map: Vec<R> = copies.collect();
        self.conv.reference(&[In::real(&seen, &map), x[1], x[2]], y);
        if let Some(residual) = x.get(3) {
            y[0].r().iter_mut().zip(residual.r()).for_each(|(y, &r)| *y = r + *y);
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let of = |i: usize| dx.get(i).copied().flatten();
        let conv = |x: &Tensor, w: &Tensor| call(&self.conv, &[&self.doubled(x)?, w]);
        let terms = [
            of(0).map(|d| conv(d, at.x(1)?)).transpose()?,
            of(1).map(|d| conv(at.x(0)?, d)).transpose()?,
            of(2).map(|d| broadcast_into(d, at.y_shape())).transpose()?,
            of(3).cloned(),
        ];
        let mut terms = terms.into_iter().flatten();
        let Some(first) = terms.next() else { return Ok(None) };
        terms.try_fold(first, |a, b| call(&ADD, &[&a, &b])).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let ([_, h, w, _], [_, rows, cols, _]) = (dims(at.shape(0)), dims(&self.seen(at.shape(0))));
        let gx = || {
            let conv = self.conv.clone();
            let g = call(&Conv2dDx { conv, size: [rows, cols] }, &[gy, at.x(1)?])?;
            let back = Resample { transpose: true, ..Resample::nearest_x2([h, w]) };
            if self.double { call(&back, &[&g]) } else { Ok(g) }
        };
        let gw = || call(&Conv2dDw { conv: self.conv.clone() }, &[gy, &self.doubled(at.x(0)?)?]);
        let gb = || sum_into(gy, at.shape(2));
        let mut grads = vec![
            want[0].then(gx).transpose()?,
            want[1].then(gw).transpose()?,
            want[2].then(gb).transpose()?,
        ];
        if at.arity() == 4 {
            grads.push(want[3].then(|| gy.clone()));
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        let down = Conv2d { kernel: [3, 3], stride: 2, pad: [0, 1, 0, 1] };
        let point = Conv2d { kernel: [1, 1], stride: 1, pad: [0; 4] };
        let same = || Conv2d::same(3);
        Cases {
            named: vec![
                case("residual", same(), [2, 6, 5, 3], 4, [false, true]),
                case("residual_packets", same(), [2, 7, 9, 16], 72, [false, true]),
                case("residual_parts", same(), [1, 3, 3, 120], 12, [false, true]),
                case("doubled", same(), [2, 3, 4, 5], 7, [true, false]),
                case("doubled_packets", same(), [2, 5, 4, 16], 40, [true, false]),
                case("residual_tiles", same(), [2, 13, 14, 32], 9, [false, true]),
                case("doubled_tiles", same(), [1, 7, 8, 32], 5, [true, true]),
                case("doubled_down", down, [1, 4, 3, 2], 3, [true, true]),
                case("doubled_point", point, [2, 3, 2, 8], 16, [true, true]),
                case("no_images", same(), [0, 4, 4, 2], 3, [true, true]),
            ],
            draw: |d| {
                let (conv, x, outs) = super::draw_geometry(d);
                case("drawn", conv, x, outs, [d.coin(), d.coin()])
            },
            bench: vec![
                case("demo_32", same(), [8, 32, 32, 32], 32, [false, true]),
                case("demo_16_doubled", same(), [8, 16, 16, 64], 64, [true, false]),
            ],
        }
    }
}

/// A case with x of these extents, doubled, with a residual.
fn case(
    name: &str,
    conv: Conv2d,
    x: [usize; 4],
    outs: usize,
    [double, residual]: [bool; 2],
) -> Case {
    let w = conv.weights(x[3], outs);
    let op = FusedConv { conv, double };
    let [b, h, w_seen, _] = dims(&op.seen(&x.into()));
    let [down, across] = op.conv.out_size([h, w_seen]).unwrap_or_default();
    let mut inputs = vec![Input::normal(x), Input::normal(w), Input::normal([outs])];
    if residual {
        inputs.push(Input::normal([b, down, across, outs]));
    }
    Case::new(name, op, inputs)
}
