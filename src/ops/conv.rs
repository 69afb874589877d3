//! Convolutions over channels-last maps, and the two products that their gradients are.
//!
//! `y[b,i,j,o]` = `bias[o]` + sum_{p,q,c} x[b, i s + p - top, j s + q - left, c] `w[o,p,q,c]`, x
//! being zero outside. The zeros take part in the products, so a weight that is not finite shows at
//! the border too.

mod cuda;
mod extents;
mod fused;
mod normed;

use std::ops::RangeInclusive;

use super::cuda::Kernels;
use super::elementwise::ADD;
use super::reduce::{broadcast_into, sum_into};
use super::{
    Case, Cases, CpuFace, Diff, Draw, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves,
    call,
};
use crate::device::pack::Matrix;
use crate::device::window::{Panels, Windows, outer, product};
use crate::device::winograd::convolution;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use fused::FusedConv;
pub use normed::NormedConv;

/// x [B, H, W, I], w [O, kh, kw, I], bias `[O]` (optional) to [B, H', W', O].
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step in both directions.
    pub stride: usize,
    /// Zeros added at the top, bottom, left and right.
    pub pad: [usize; 4],
}

/// Gradient of [`Conv2d`] to its input: gy [B, H', W', O], w [O, kh, kw, I] to [B, H, W, I].
#[derive(Clone, Debug)]
pub struct Conv2dDx {
    /// The convolution.
    pub conv: Conv2d,
    /// Rows and columns of its input.
    pub size: [usize; 2],
}

/// Gradient of [`Conv2d`] to its weights: gy [B, H', W', O], x [B, H, W, I] to [O, kh, kw, I].
#[derive(Clone, Debug)]
pub struct Conv2dDw {
    /// The convolution.
    pub conv: Conv2d,
}

/// Four extents of a map or kernel.
fn four(op: &'static str, s: &Shape) -> Result<[usize; 4]> {
    match *s.dims() {
        [b, h, w, c] => Ok([b, h, w, c]),
        _ => Err(Error::shape(op, format!("wants four axes, found {s}"))),
    }
}

/// The same, of a shape that was checked.
fn dims(s: &Shape) -> [usize; 4] {
    let mut d = [1; 4];
    d.iter_mut().zip(s.dims()).for_each(|(d, &s)| *d = s);
    d
}

impl Conv2d {
    /// A kernel that keeps the size of its map: odd sides, stride 1, padded by half a kernel.
    pub fn same(side: usize) -> Self {
        Self { kernel: [side; 2], stride: 1, pad: [side / 2; 4] }
    }

    /// Whether it is [`Conv2d::same`] of 3.
    pub fn keeps_size_by_3(&self) -> bool {
        self.kernel == [3, 3] && self.stride == 1 && self.pad == [1; 4]
    }

    /// Rows and columns of the result for an input of this size; `None` when the kernel does not
    /// fit.
    pub fn out_size(&self, [h, w]: [usize; 2]) -> Option<[usize; 2]> {
        let [top, bottom, left, right] = self.pad;
        let count = |n: usize, k: usize| Some(n.checked_sub(k)? / self.stride.max(1) + 1);
        let (h, w) = (h + top + bottom, w + left + right);
        Some([count(h, self.kernel[0])?, count(w, self.kernel[1])?])
    }

    /// Shape of the weights for these channels.
    pub fn weights(&self, ins: usize, outs: usize) -> Shape {
        Shape::from([outs, self.kernel[0], self.kernel[1], ins])
    }

    fn checked_size(&self, op: &'static str, size: [usize; 2]) -> Result<[usize; 2]> {
        let fits = self.stride > 0 && !self.kernel.contains(&0);
        self.out_size(size).filter(|_| fits).ok_or_else(|| {
            let [h, w] = size;
            Error::shape(op, format!("{self:?} does not fit a map of {h} x {w}"))
        })
    }

    /// The windows of `x` that make the result.
    fn windows(&self, x: &Shape) -> Windows {
        let image = dims(x);
        Windows {
            image,
            kernel: self.kernel,
            step: self.stride,
            origin: [-(self.pad[0] as isize), -(self.pad[2] as isize)],
            count: self.out_size([image[1], image[2]]).unwrap_or([0; 2]),
        }
    }
}

/// The element of a map, or zero outside of it.
fn tap<R: Real>(x: &In<'_, R>, [b, c]: [usize; 2], h: isize, w: isize) -> R {
    let [_, rows, cols, depth] = dims(x.shape);
    let inside = h >= 0 && w >= 0 && h < rows as isize && w < cols as isize;
    match inside {
        true => x.r()[((b * rows + h as usize) * cols + w as usize) * depth + c],
        false => R::of(0.0),
    }
}

/// y = conv(x, w) + bias.
fn cpu(
    op: &Conv2d,
    x: &In<'_, f32>,
    (w, bias): (&In<'_, f32>, Option<&In<'_, f32>>),
    y: &mut [f32],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let [outs, kh, kw, c] = dims(w.shape);
    let w = Matrix::of_outputs(w.weights(), outs, kh * kw * c);
    convolution(y, (&op.windows(x.shape), x.r()), &w, bias.map(In::r), finish);
}

impl Op for Conv2d {
    const NAME: &'static str = "conv2d";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const HALVES: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        cpu(op, &x[0], (&x[1], x.get(2)), y[0].r(), |_, _| ());
    });
    const CUDA: Kernels<Self> = cuda::CONV2D;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [b, h, w, c] = four(Self::NAME, x[0])?;
        let [o, kh, kw, i] = four(Self::NAME, x[1])?;
        if [kh, kw] != self.kernel || i != c || x.get(2).is_some_and(|b| b.dims() != [o]) {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what = format!(
                "wants x [B, H, W, I], w [O, {}, {}, I], bias [O]; found {}",
                self.kernel[0],
                self.kernel[1],
                found.join(", ")
            );
            return Err(Error::shape(Self::NAME, what));
        }
        let [h, w] = self.checked_size(Self::NAME, [h, w])?;
        Ok(vec![Shape::from([b, h, w, o])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [outs, kh, kw, c] = dims(x[1].shape);
        let (at, w, depth) = (self.windows(x[0].shape), x[1].r(), kh * kw * c);
        let [down, across] = at.count;
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let (o, col, row) = (i % outs, i / outs % across, i / outs / across % down);
            let b = i / outs / across / down;
            let terms = (0..depth).map(|k| {
                let h = (row * at.step + k / c / kw) as isize + at.origin[0];
                let v = (col * at.step + k / c % kw) as isize + at.origin[1];
                tap(&x[0], [b, k % c], h, v) * w[o * depth + k]
            });
            *y = match x.get(2) {
                Some(bias) => R::sum(terms.chain([bias.r()[o]])),
                None => R::sum(terms),
            };
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let bias = dx.get(2).copied().flatten();
        let of_x = match (dx[0], bias) {
            (Some(d), Some(b)) => Some(call(self, &[d, at.x(1)?, b])?),
            (Some(d), None) => Some(call(self, &[d, at.x(1)?])?),
            (None, Some(b)) => Some(broadcast_into(b, at.y_shape())?),
            (None, None) => None,
        };
        let of_w = dx[1].map(|dw| call(self, &[at.x(0)?, dw])).transpose()?;
        Ok(match (of_x, of_w) {
            (Some(a), Some(b)) => Some(call(&ADD, &[&a, &b])?),
            (a, b) => a.or(b),
        })
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let [_, h, w, _] = dims(at.shape(0));
        let gx = || call(&Conv2dDx { conv: self.clone(), size: [h, w] }, &[gy, at.x(1)?]);
        let gw = || call(&Conv2dDw { conv: self.clone() }, &[gy, at.x(0)?]);
        let mut grads = vec![want[0].then(gx).transpose()?, want[1].then(gw).transpose()?];
        if at.arity() == 3 {
            let gb = || sum_into(gy, at.shape(2));
            grads.push(want[2].then(gb).transpose()?);
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        let case = |name, conv: Conv2d, x: [usize; 4], outs: usize, bias: bool| {
            let mut inputs = vec![Input::normal(x), Input::normal(conv.weights(x[3], outs))];
            if bias {
                inputs.push(Input::normal([outs]));
            }
            Case::new(name, conv, inputs)
        };
        Cases {
            named: geometries(|name, conv, x, outs| case(name, conv, x, outs, true))
                .into_iter()
                .chain([case("no_bias", Conv2d::same(3), [2, 5, 4, 6], 7, false)])
                .collect(),
            draw: |d| {
                let (conv, x, outs) = draw_geometry(d);
                let w = conv.weights(x[3], outs);
                let inputs = vec![Input::normal(x), Input::normal(w), Input::normal([outs])];
                Case::new("drawn", conv, inputs)
            },
            bench: DEMO
                .iter()
                .map(|&(name, side, c)| case(name, Conv2d::same(3), [8, side, side, c], c, true))
                .collect(),
        }
    }
}

impl Op for Conv2dDx {
    const NAME: &'static str = "conv2d_dx";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let stride = op.conv.stride;
        let y = y[0].r();
        if stride > 1 {
            y.fill(0.0);
        }
        for phase in 0..stride * stride {
            op.phase([phase / stride, phase % stride], x, y);
        }
    });
    const CUDA: Kernels<Self> = cuda::CONV2D_DX;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [b, h, w, o] = four(Self::NAME, x[0])?;
        let [outs, kh, kw, c] = four(Self::NAME, x[1])?;
        let size = self.conv.checked_size(Self::NAME, self.size)?;
        if size != [h, w] || o != outs || [kh, kw] != self.conv.kernel {
            let what = format!("{self:?} does not fit gy {} and w {}", x[0], x[1]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![Shape::from([b, self.size[0], self.size[1], c])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [outs, kh, kw, c] = dims(x[1].shape);
        let (w, step) = (x[1].r(), self.conv.stride as isize);
        let (top, left) = (self.conv.pad[0], self.conv.pad[2]);
        let [rows, cols] = self.size;
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let (ch, col, row) = (i % c, i / c % cols, i / c / cols % rows);
            let b = i / c / cols / rows;
            let terms = (0..kh * kw * outs).filter_map(|k| {
                let (o, q, p) = (k % outs, k / outs % kw, k / outs / kw);
                let h = (row + top) as isize - p as isize;
                let v = (col + left) as isize - q as isize;
                let meets = h.rem_euclid(step) == 0 && v.rem_euclid(step) == 0;
                let g = || tap(&x[0], [b, o], h.div_euclid(step), v.div_euclid(step));
                meets.then(|| g() * w[((o * kh + p) * kw + q) * c + ch])
            });
            *y = R::sum(terms);
        }
    }
    fn cases() -> Cases {
        let case = |name, conv: Conv2d, x: [usize; 4], outs: usize| {
            let [h, w] = conv.out_size([x[1], x[2]]).unwrap_or([0; 2]);
            let inputs =
                vec![Input::normal([x[0], h, w, outs]), Input::normal(conv.weights(x[3], outs))];
            Case::new(name, Conv2dDx { conv, size: [x[1], x[2]] }, inputs)
        };
        Cases {
            named: geometries(case),
            draw: |d| {
                let (conv, x, outs) = draw_geometry(d);
                let [h, w] = conv.out_size([x[1], x[2]]).unwrap_or([0; 2]);
                let weights = Input::normal(conv.weights(x[3], outs));
                let inputs = vec![Input::normal([x[0], h, w, outs]), weights];
                Case::new("drawn", Conv2dDx { conv, size: [x[1], x[2]] }, inputs)
            },
            bench: DEMO
                .iter()
                .map(|&(name, side, c)| case(name, Conv2d::same(3), [8, side, side, c], c))
                .collect(),
        }
    }
}

/// Where a phase of [`Conv2dDx`] lies along one axis.
#[derive(Clone, Copy)]
struct Axis {
    /// Taps that reach this phase.
    taps: usize,
    /// The first element of the input that belongs to it.
    first: usize,
    /// How many do.
    count: usize,
    /// The row of gy where the first one's window begins.
    origin: isize,
}

impl Axis {
    /// Elements h with (h + pad) mod stride = phase see taps phase, phase + stride, ...
    fn new(phase: usize, stride: usize, pad: usize, kernel: usize, size: usize) -> Self {
        let taps = kernel.saturating_sub(phase).div_ceil(stride);
        let window = pad.saturating_sub(phase).div_ceil(stride);
        let first = window * stride + phase - pad;
        let count = size.saturating_sub(first).div_ceil(stride);
        Self { taps, first, count, origin: window as isize + 1 - taps as isize }
    }
}

impl Conv2dDx {
    /// The elements of gx that share one remainder by the stride: a plain convolution of gy with
    /// every stride-th tap, turned round.
    fn phase(&self, phase: [usize; 2], x: &[In<'_, f32>], gx: &mut [f32]) {
        let [outs, kh, kw, c] = dims(x[1].shape);
        let ([b, ..], [h, w], s) = (dims(x[0].shape), self.size, self.conv.stride);
        let v = Axis::new(phase[0], s, self.conv.pad[0], kh, h);
        let u = Axis::new(phase[1], s, self.conv.pad[2], kw, w);
        if v.taps * u.taps * v.count * u.count * c == 0 {
            return;
        }
        let at = Windows {
            image: dims(x[0].shape),
            kernel: [v.taps, u.taps],
            step: 1,
            origin: [v.origin, u.origin],
            count: [v.count, u.count],
        };
        let weights = x[1].r();
        let panels = Panels::new(v.taps * u.taps * outs, c, |k, first, row| {
            let p = phase[0] + (v.taps - 1 - k / outs / u.taps) * s;
            let q = phase[1] + (u.taps - 1 - k / outs % u.taps) * s;
            let from = ((k % outs * kh + p) * kw + q) * c + first;
            row.copy_from_slice(&weights[from..from + row.len()]);
        });
        if s == 1 {
            return product(gx, (&at, x[0].r()), &panels, None, |_, _| ());
        }
        let line = u.count * c;
        let mut part = vec![0.0; b * v.count * line];
        product(&mut part, (&at, x[0].r()), &panels, None, |_, _| ());
        for (i, line) in part.chunks_exact(line).enumerate() {
            let row = i / v.count * h + v.first + i % v.count * s;
            for (j, pixel) in line.chunks_exact(c).enumerate() {
                let to = (row * w + u.first + j * s) * c;
                gx[to..to + c].copy_from_slice(pixel);
            }
        }
    }
}

impl Op for Conv2dDw {
    const NAME: &'static str = "conv2d_dw";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        outer(y[0].r(), &op.conv.windows(x[1].shape), x[1].r(), x[0].r());
    });
    const CUDA: Kernels<Self> = cuda::CONV2D_DW;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [gb, h, w, o] = four(Self::NAME, x[0])?;
        let [b, xh, xw, c] = four(Self::NAME, x[1])?;
        if self.conv.checked_size(Self::NAME, [xh, xw])? != [h, w] || gb != b {
            let what = format!("{self:?} does not fit gy {} and x {}", x[0], x[1]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![self.conv.weights(c, o)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let ([b, down, across, outs], at) = (dims(x[0].shape), self.conv.windows(x[1].shape));
        let ([_, kw], c) = (self.conv.kernel, at.image[3]);
        let (g, depth) = (x[0].r(), self.conv.kernel[0] * kw * c);
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let (o, k) = (i / depth, i % depth);
            let terms = (0..b * down * across).map(|p| {
                let (row, col) = (p / across % down, p % across);
                let h = (row * at.step + k / c / kw) as isize + at.origin[0];
                let v = (col * at.step + k / c % kw) as isize + at.origin[1];
                tap(&x[1], [p / across / down, k % c], h, v) * g[p * outs + o]
            });
            *y = R::sum(terms);
        }
    }
    fn cases() -> Cases {
        let case = |name, conv: Conv2d, x: [usize; 4], outs: usize| {
            let [h, w] = conv.out_size([x[1], x[2]]).unwrap_or([0; 2]);
            let inputs = vec![Input::normal([x[0], h, w, outs]), Input::normal(x)];
            Case::new(name, Conv2dDw { conv }, inputs)
        };
        Cases {
            named: geometries(case),
            draw: |d| {
                let (conv, x, outs) = draw_geometry(d);
                let [h, w] = conv.out_size([x[1], x[2]]).unwrap_or([0; 2]);
                let inputs = vec![Input::normal([x[0], h, w, outs]), Input::normal(x)];
                Case::new("drawn", Conv2dDw { conv }, inputs)
            },
            bench: DEMO
                .iter()
                .map(|&(name, side, c)| case(name, Conv2d::same(3), [8, side, side, c], c))
                .collect(),
        }
    }
}

/// (name, side, channels) of the demo tokenizer's levels.
const DEMO: [(&str, usize, usize); 4] =
    [("demo_64", 64, 16), ("demo_32", 32, 32), ("demo_16", 16, 64), ("demo_8", 8, 128)];

/// Geometries that meet every path: (name, convolution, extents of x, outputs).
fn geometries(make: impl Fn(&'static str, Conv2d, [usize; 4], usize) -> Case) -> Vec<Case> {
    let conv = |kernel, stride, pad| Conv2d { kernel, stride, pad };
    vec![
        make("same", Conv2d::same(3), [2, 6, 5, 3], 4),
        make("pointwise", conv([1, 1], 1, [0; 4]), [2, 3, 4, 17], 33),
        make("pointwise_full_vectors", conv([1, 1], 1, [0; 4]), [1, 3, 5, 16], 32),
        make("two_panels", Conv2d::same(3), [1, 3, 9, 18], 50),
        make("downsample", conv([3, 3], 2, [0, 1, 0, 1]), [2, 6, 8, 5], 6),
        make("patch_gan", conv([4, 4], 2, [1; 4]), [1, 9, 8, 3], 16),
        make("stride_past_kernel", conv([1, 2], 3, [1, 0, 0, 2]), [1, 7, 8, 2], 3),
        make("wide_pad", conv([2, 2], 1, [3, 2, 0, 4]), [1, 3, 2, 2], 2),
        make("unread_border", conv([2, 3], 2, [0; 4]), [1, 5, 6, 2], 3),
        make("packets", Conv2d::same(3), [2, 7, 9, 16], 72),
        make("packets_down", conv([3, 3], 2, [0, 1, 0, 1]), [2, 12, 10, 24], 40),
        make("parts_of_a_sample", Conv2d::same(3), [1, 3, 3, 120], 120),
        make("tiles", Conv2d::same(3), [1, 15, 14, 32], 17),
        make("blocks_of_rows", Conv2d::same(3), [3, 17, 40, 2], 9),
        make("no_images", Conv2d::same(3), [0, 4, 4, 2], 3),
    ]
}

fn draw_geometry(d: &mut Draw<'_>) -> (Conv2d, [usize; 4], usize) {
    let kernel = [d.size(1, 4), d.size(1, 4)];
    let pad = [0; 4].map(|_: usize| d.size(0, 2));
    let conv = Conv2d { kernel, stride: d.size(1, 3), pad };
    let x = [d.size(1, 3), d.size(4, 9), d.size(4, 9), d.size(1, 19)];
    (conv, x, d.size(1, 35))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Purpose, Stream};

    fn random(shape: impl Into<Shape>, sample: u64) -> Tensor {
        let shape = shape.into();
        Tensor::new(Stream::new(3, sample, 0, Purpose::Test).normals(shape.len()), shape).unwrap()
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch_nor_on_the_threads() {
        for (side, c) in [(64, 16), (8, 128)] {
            let conv = Conv2d::same(3);
            let x = random([3, side, side, c], 0);
            let (w, b) = (random(conv.weights(c, c), 1), random([c], 2));
            let all = || call(&conv, &[&x, &w, &b]).unwrap();
            let batch = all();
            for i in 0..3 {
                let alone = call(&conv, &[&x.rows(i, 1).unwrap(), &w, &b]).unwrap();
                assert_eq!(alone.f32s().unwrap(), batch.rows(i, 1).unwrap().f32s().unwrap());
            }
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(one.install(all).f32s().unwrap(), batch.f32s().unwrap());
            let dw = || call(&Conv2dDw { conv: conv.clone() }, &[&batch, &x]).unwrap();
            assert_eq!(one.install(dw).f32s().unwrap(), dw().f32s().unwrap());
        }
    }

    #[test]
    fn an_edge_filter_finds_the_edge() {
        let x = Tensor::new(vec![0.0, 0.0, 1.0, 1.0], [1, 1, 4, 1]).unwrap();
        let w = Tensor::new(vec![-1.0, 1.0], [1, 1, 2, 1]).unwrap();
        let conv = Conv2d { kernel: [1, 2], stride: 1, pad: [0; 4] };
        assert_eq!(call(&conv, &[&x, &w]).unwrap().f32s().unwrap(), [0.0, 1.0, 0.0]);
        let odd = Conv2d { kernel: [5, 2], ..conv };
        let tall = random(odd.weights(1, 1), 0);
        let message = call(&odd, &[&x, &tall]).unwrap_err().to_string();
        assert!(message.contains("does not fit a map of 1 x 4"), "{message}");
    }
}
