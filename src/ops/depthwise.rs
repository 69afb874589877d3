//! Depthwise convolution over channels-last maps: each channel has its own small filter.
//!
//! `y[b, i, j, c] = bias[c] + sum_pq x[b, s i + p - before, s j + q - before, c] w[p, q, c]`, with
//! zeros outside x.
//! The filter is stored `[k, k, C]`, so that the innermost loop runs over contiguous channels of
//! all three.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, over_elements};
use super::{Case, Cases, CpuFace, Diff, In, Input, Op, Out, Real};
use crate::device::cpu::{par_rows, simd};
use crate::device::launch::depthwise as launch;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// y = depthwise convolution of x [B, H, W, C] with w [k, k, C] plus b `[C]`.
#[derive(Clone, Debug)]
pub struct DepthwiseConv {
    /// Step between windows, both ways.
    pub stride: usize,
    /// Rows of zeros above and columns of zeros to the left.
    pub before: usize,
    /// Rows of zeros below and columns of zeros to the right.
    pub after: usize,
}

/// Extents of one call.
#[derive(Clone, Copy)]
struct Extents {
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    out_h: usize,
    out_w: usize,
}

impl DepthwiseConv {
    fn extents(&self, x: &Shape, w: &Shape) -> Extents {
        let (x, k) = (x.dims(), w.dims()[0]);
        let out = |n: usize| (n + self.before + self.after - k) / self.stride + 1;
        Extents { h: x[1], w: x[2], c: x[3], k, out_h: out(x[1]), out_w: out(x[2]) }
    }

    /// Index along an axis of length `n` that tap `p` of window `i` reads; `None` in the padding.
    #[inline(always)]
    fn source(&self, i: usize, p: usize, n: usize) -> Option<usize> {
        (i * self.stride + p).checked_sub(self.before).filter(|&at| at < n)
    }

    /// Pairs of window and tap that lie inside an axis of length `n`.
    fn pairs(&self, windows: usize, taps: usize, n: usize) -> usize {
        let inside = |i: usize| (0..taps).filter(|&p| self.source(i, p, n).is_some()).count();
        (0..windows).map(inside).sum()
    }

    /// All channels of one output pixel, tap after tap; `x` is one image, its filter and bias.
    #[inline(always)]
    fn pixel(&self, e: Extents, at: [usize; 2], x: [&[f32]; 3], y: &mut [f32]) {
        let [x, filter, bias] = x;
        y.copy_from_slice(bias);
        for p in 0..e.k {
            let Some(row) = self.source(at[0], p, e.h) else { continue };
            for q in 0..e.k {
                let Some(col) = self.source(at[1], q, e.w) else { continue };
                let (from, tap) = ((row * e.w + col) * e.c, (p * e.k + q) * e.c);
                let taps = x[from..from + e.c].iter().zip(&filter[tap..tap + e.c]);
                y.iter_mut().zip(taps).for_each(|(y, (x, f))| *y += x * f);
            }
        }
    }
}

impl Op for DepthwiseConv {
    const NAME: &'static str = "depthwise_conv";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = Diff::No(
        "only the frozen feature extractor of evaluation uses it; nothing is trained through it",
    );
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let e = op.extents(x[0].shape, x[1].shape);
        let (image, filter, bias) = (e.h * e.w * e.c, x[1].r(), x[2].r());
        let line = e.out_w * e.c;
        par_rows(y[0].r(), line, |first, part| {
            simd(
                #[inline(always)]
                || {
                    for (r, line) in part.chunks_exact_mut(line.max(1)).enumerate() {
                        let (b, i) = ((first + r) / e.out_h, (first + r) % e.out_h);
                        let x = &x[0].r()[b * image..(b + 1) * image];
                        for (j, pixel) in line.chunks_exact_mut(e.c).enumerate() {
                            op.pixel(e, [i, j], [x, filter, bias], pixel);
                        }
                    }
                },
            );
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let Extents { h, w, c, k, out_h, out_w } = op.extents(x[0].shape, x[1].shape);
        let b = x[0].shape.dims()[0];
        let grid = over_elements(q, b * out_h * out_w * c);
        let (rows, cols) = (op.pairs(out_h, k, h), op.pairs(out_w, k, w));
        let (x, f, bias) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
        let whole = |n: usize| u32::try_from(n).map_err(|_| Error::shape(Self::NAME, "too large"));
        let (step, before, y) = (whole(op.stride)?, whole(op.before)?, &mut y[0].get::<T>()?);
        launch::depthwise_conv_fwd(
            q, grid, y, &x, &f, &bias, b, h, w, c, k, out_h, out_w, step, before, rows, cols,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let fits = x.len() == 3 && x[0].rank() == 4 && x[1].rank() == 3 && self.stride > 0 && {
            let (d, f) = (x[0].dims(), x[1].dims());
            let room = self.before + self.after + d[1].min(d[2]);
            f[0] == f[1] && f[0] > 0 && f[2] == d[3] && x[2].dims() == [d[3]] && f[0] <= room
        };
        if !fits {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let found = found.join(", ");
            let what = format!("wants x [B, H, W, C], w [k, k, C], b [C]; found {found}");
            return Err(Error::shape(Self::NAME, what));
        }
        let e = self.extents(x[0], x[1]);
        Ok(vec![Shape::from([x[0].dims()[0], e.out_h, e.out_w, e.c])])
    }

    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let e = self.extents(x[0].shape, x[1].shape);
        let (map, filter, bias, y) = (x[0].r(), x[1].r(), x[2].r(), y[0].r());
        for (at, y) in y.iter_mut().enumerate() {
            let (c, j) = (at % e.c, at / e.c % e.out_w);
            let (i, b) = (at / e.c / e.out_w % e.out_h, at / e.c / e.out_w / e.out_h);
            let taps = (0..e.k * e.k).filter_map(|t| {
                let row = self.source(i, t / e.k, e.h)?;
                let col = self.source(j, t % e.k, e.w)?;
                Some(map[((b * e.h + row) * e.w + col) * e.c + c] * filter[t * e.c + c])
            });
            *y = R::sum(taps.chain([bias[c]]));
        }
    }

    fn cases() -> Cases {
        let case = |name: &str, x: [usize; 4], k: usize, stride: usize, pad: [usize; 2]| {
            let c = x[3];
            let inputs = vec![Input::normal(x), Input::normal([k, k, c]), Input::normal([c])];
            Case::new(name, DepthwiseConv { stride, before: pad[0], after: pad[1] }, inputs)
        };
        Cases {
            named: vec![
                case("same_3", [2, 6, 7, 33], 3, 1, [1, 1]),
                case("same_5_stride_2", [1, 10, 8, 48], 5, 2, [1, 2]),
                case("same_3_stride_2", [1, 8, 6, 16], 3, 2, [0, 1]),
                case("bare", [1, 5, 5, 3], 5, 1, [0, 0]),
                case("no_images", [0, 5, 5, 4], 3, 1, [1, 1]),
            ],
            draw: |d| {
                let x = [d.size(1, 2), d.size(3, 9), d.size(3, 9), d.size(1, 40)];
                let k = d.pick(&[1, 3]);
                let c = x[3];
                let op = DepthwiseConv {
                    stride: d.size(1, 3),
                    before: d.size(0, 2),
                    after: d.size(0, 2),
                };
                let inputs = vec![Input::normal(x), Input::normal([k, k, c]), Input::normal([c])];
                Case::new("drawn", op, inputs)
            },
            bench: vec![
                case("effnet_block1", [1, 112, 112, 96], 3, 2, [0, 1]),
                case("effnet_block9", [1, 14, 14, 672], 5, 1, [2, 2]),
            ],
        }
    }
}
