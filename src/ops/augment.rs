//! Image operators that make counterfactuals: stains and hue, contrast, sharpness (algorithm.md
//! 5.3).
//!
//! Tiles are [B, H, W, 3] in [-1, 1], and so are the results. Strengths are one row a tile, so that
//! a batch is one launch whatever each tile is to suffer.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, block_per_job, kernels, over_elements};
use super::{Case, Cases, CpuFace, Diff, Draw, In, Input, Op, Out, Real};
use crate::device::cpu;
use crate::device::cuda::Buffer;
use crate::device::launch::augment as launch;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Steps of an 8-bit channel in 1.
const HALF_RANGE: f64 = 127.5;
/// Deviation of the blur of [`Unsharp`], in pixels.
const SIGMA: f64 = 1.5;
/// Taps of its window on one side, the middle among them.
const TAPS: usize = 6;

/// Stains and hue: with d = -ln((v + 1) / 256) of the channels v in 0..255, v' = 256 e^-(d M + t) -
/// 1, clipped, then v' R. The rows of `how` [B, 21] are M [3, 3], t `[3]` and R [3, 3].
#[derive(Clone, Debug)]
pub struct StainHue;

/// mean + factor (x - mean), the mean of each channel over its tile, with factors `[B]`.
#[derive(Clone, Debug)]
pub struct Contrast;

/// x + amount (x - blur), with amounts `[B]` and a Gaussian blur of 1.5 pixels, cut at 5, the
/// border repeated.
#[derive(Clone, Debug)]
pub struct Unsharp;

/// Why nothing here has derivative rules.
const DATA: Diff = Diff::No("counterfactual tiles are data");

/// NaN stays.
fn clipped<R: Real>(v: R, low: f64, high: f64) -> R {
    v.max(R::of(low)).min(R::of(high))
}

/// Checks tiles and one row of `width` numbers for each (None is a bare number).
fn check(op: &'static str, x: &[&Shape], width: Option<usize>) -> Result<Vec<Shape>> {
    let rows = x[0].dims().first().copied().unwrap_or(0);
    let want: Vec<usize> = [rows].into_iter().chain(width).collect();
    match x[0].rank() == 4 && x[0].last() == 3 && x[1].dims() == want {
        true => Ok(vec![x[0].clone()]),
        false => {
            let what = format!("wants tiles [B, H, W, 3] with {want:?}; found {}, {}", x[0], x[1]);
            Err(Error::shape(op, what))
        }
    }
}

/// Tiles and pixels of one.
fn sizes(x: &Shape) -> (usize, usize) {
    let d = x.dims();
    (d[0], d[1] * d[2])
}

/// Row vector times matrix.
fn product<R: Real>(v: [R; 3], m: &[R]) -> [R; 3] {
    [0, 1, 2].map(|c| R::sum((0..3).map(|k| v[k] * m[3 * k + c])))
}

impl StainHue {
    /// Numbers that a tile's maps take.
    pub const WIDTH: usize = 21;

    fn pixel<R: Real>(v: [R; 3], how: &[R]) -> [R; 3] {
        let half = R::of(HALF_RANGE);
        let density = v.map(|v| -((v * half + half + R::of(1.0)) / R::of(256.0)).ln());
        let mut light = product(density, &how[..9]);
        for (v, &t) in light.iter_mut().zip(&how[9..12]) {
            *v = clipped(R::of(256.0) * (-(*v + t)).exp() - R::of(1.0), 0.0, 255.0);
        }
        product(light, &how[12..21])
            .map(|v| clipped(v * R::of(1.0 / HALF_RANGE) - R::of(1.0), -1.0, 1.0))
    }
}

/// Each pixel of y from that of x and its tile's settings.
fn each_pixel<R: Real>(
    first: usize,
    (x, how): (&In<'_, R>, &In<'_, R>),
    y: &mut [R],
    f: impl Fn([R; 3], &[R]) -> [R; 3],
) {
    let ((_, pixels), width) = (sizes(x.shape), how.shape.last());
    for (i, y) in y.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let at = first + i;
        let tile = at / pixels;
        let p = &x.r()[3 * at..3 * at + 3];
        *y = f([p[0], p[1], p[2]], &how.r()[tile * width..(tile + 1) * width]);
    }
}

impl Op for StainHue {
    const NAME: &'static str = "stain_hue";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = DATA;
    const F32_INPUTS: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        cpu::par_rows(y[0].r(), 3, |first, y| {
            each_pixel(first, (&x[0], &x[1]), y, Self::pixel);
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (rows, pixels) = sizes(x[0].shape);
        let (x, how) = (x[0].get::<T>()?, x[1].get::<f32>()?);
        let grid = over_elements(q, rows * pixels);
        launch::stain_hue_fwd(q, grid, &mut y[0].get::<T>()?, &x, &how, rows, pixels)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check(Self::NAME, x, Some(Self::WIDTH))
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        each_pixel(0, (&x[0], &x[1]), y[0].r(), Self::pixel);
    }
    fn cases() -> Cases {
        cases_of(
            StainHue,
            |rows| Input::uniform([rows, 21], 0.1, 0.4),
            |d| {
                let s = [d.size(1, 3), d.size(1, 14), d.size(1, 14), 3];
                let how = Input::uniform([s[0], 21], 0.1, 0.4);
                Case::new("drawn", StainHue, vec![Input::uniform(s, -0.9, 0.9), how])
            },
        )
    }
}

impl Contrast {
    fn tile<R: Real>(x: &[R], factor: R) -> Vec<R> {
        let share = R::of(1.0 / (x.len() / 3).max(1) as f64);
        let mean = [0, 1, 2].map(|c| R::sum(x.iter().skip(c).step_by(3).copied()) * share);
        let one = |(i, &x): (usize, &R)| {
            let mean = mean[i % 3];
            clipped(mean + factor * (x - mean), -1.0, 1.0)
        };
        x.iter().enumerate().map(one).collect()
    }
}

impl Op for Contrast {
    const NAME: &'static str = "contrast";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = DATA;
    const F32_INPUTS: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let (rows, pixels) = sizes(x[0].shape);
        let tile = |b: usize| Self::tile(&x[0].r()[3 * b * pixels..][..3 * pixels], x[1].r()[b]);
        y[0].r().copy_from_slice(&cpu::par_map(rows, tile).concat());
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (rows, pixels) = sizes(x[0].shape);
        let (x, factor, grid) = (x[0].get::<T>()?, x[1].get::<f32>()?, block_per_job(q, rows));
        launch::contrast_fwd(q, grid, &mut y[0].get::<T>()?, &x, &factor, rows, pixels)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check(Self::NAME, x, None)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = (3 * sizes(x[0].shape).1).max(1);
        for (b, (tile, y)) in x[0].r().chunks(n).zip(y[0].r().chunks_mut(n)).enumerate() {
            y.copy_from_slice(&Self::tile(tile, x[1].r()[b]));
        }
    }
    fn cases() -> Cases {
        cases_of(
            Contrast,
            |rows| Input::uniform([rows], 0.4, 2.0),
            |d| {
                let s = [d.size(1, 3), d.size(1, 14), d.size(1, 14), 3];
                let how = Input::uniform([s[0]], 0.4, 2.0);
                Case::new("drawn", Contrast, vec![Input::uniform(s, -0.9, 0.9), how])
            },
        )
    }
}

/// The window's weights from the middle outwards.
fn bell() -> [f64; TAPS] {
    let at = |i: usize| (-0.5 * (i as f64 / SIGMA).powi(2)).exp();
    let sum = at(0) + 2.0 * (1..TAPS).map(at).sum::<f64>();
    std::array::from_fn(|i| at(i) / sum)
}

impl Unsharp {
    /// The window round element `i` of `n`, the ends repeated.
    fn blurred<R: Real>(bell: &[f64; TAPS], i: usize, n: usize, at: impl Fn(usize) -> R) -> R {
        let pair =
            |(k, &w): (usize, &f64)| R::of(w) * (at(i.saturating_sub(k)) + at((i + k).min(n - 1)));
        let pairs = bell.iter().enumerate().skip(1).map(pair);
        R::sum([R::of(bell[0]) * at(i)].into_iter().chain(pairs))
    }

    fn tile<R: Real>(x: &[R], [rows, cols]: [usize; 2], amount: R) -> Vec<R> {
        let bell = bell();
        let across = |i: usize| {
            let (c, col) = (i % 3, i / 3 % cols);
            Self::blurred(&bell, col, cols, |k| x[i - 3 * col - c + 3 * k + c])
        };
        let across: Vec<R> = (0..x.len()).map(across).collect();
        let one = |i: usize| {
            let (line, row) = (3 * cols, i / (3 * cols));
            let soft = Self::blurred(&bell, row, rows, |k| across[i - row * line + k * line]);
            clipped(x[i] + amount * (x[i] - soft), -1.0, 1.0)
        };
        (0..x.len()).map(one).collect()
    }
}

impl Op for Unsharp {
    const NAME: &'static str = "unsharp";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = DATA;
    const F32_INPUTS: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let ((batch, pixels), d) = (sizes(x[0].shape), x[0].shape.dims());
        let tile = |b: usize| {
            let own = &x[0].r()[3 * b * pixels..][..3 * pixels];
            Self::tile(own, [d[1], d[2]], x[1].r()[b])
        };
        y[0].r().copy_from_slice(&cpu::par_map(batch, tile).concat());
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let [batch, rows, cols, _] = *x[0].shape.dims() else { return Ok(()) };
        let [b0, b1, b2, b3, b4, b5] = bell().map(|w| w as f32);
        let n = 3 * batch * rows * cols;
        let (x, amount, grid) = (x[0].get::<T>()?, x[1].get::<f32>()?, over_elements(q, n));
        let mut across = Buffer::new(q, n)?;
        let across = &mut across.slice_mut();
        let lines = batch * rows;
        launch::blur_across_fwd(q, grid, across, &x, lines, cols, b0, b1, b2, b3, b4, b5)?;
        let (y, across) = (&mut y[0].get::<T>()?, across.written());
        launch::unsharp_fwd(
            q, grid, y, &x, &across, &amount, batch, rows, cols, b0, b1, b2, b3, b4, b5,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check(Self::NAME, x, None)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (d, n) = (x[0].shape.dims(), (3 * sizes(x[0].shape).1).max(1));
        for (b, (tile, y)) in x[0].r().chunks(n).zip(y[0].r().chunks_mut(n)).enumerate() {
            y.copy_from_slice(&Self::tile(tile, [d[1], d[2]], x[1].r()[b]));
        }
    }
    fn cases() -> Cases {
        // A single pixel is its own blur but for rounding, which decides what infinity makes of it.
        let draw = |d: &mut Draw<'_>| {
            let s = [d.size(1, 3), d.size(2, 14), d.size(2, 14), 3];
            let amount = Input::uniform([s[0]], 1.5, 3.0);
            Case::new("drawn", Unsharp, vec![Input::uniform(s, -0.9, 0.9), amount])
        };
        let mut all = cases_of(Unsharp, |rows| Input::uniform([rows], 1.5, 3.0), draw);
        all.named.retain(|case| case.name != "one");
        all
    }
}

/// Tiles round a window and a packet.
fn cases_of<O: Op>(op: O, how: fn(usize) -> Input, draw: fn(&mut Draw<'_>) -> Case) -> Cases {
    let case = |name: &str, [b, h, w]: [usize; 3]| {
        let tiles = Input::uniform([b, h, w, 3], -0.9, 0.9);
        Case::new(name, op.clone(), vec![tiles, how(b)])
    };
    Cases {
        named: vec![
            case("small", [2, 3, 5]),
            case("fours", [2, 16, 12]),
            case("window", [1, 9, 21]),
            case("one", [1, 1, 1]),
            case("no_tiles", [0, 4, 4]),
            case("past_a_block", [2, 40, 36]),
        ],
        draw,
        bench: vec![case("reference", [32, 256, 256])],
    }
}
