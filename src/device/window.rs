//! Products over sliding windows: what convolutions and their gradients are made of.
//!
//! Nothing is unrolled into columns. A worker copies the few image rows that it needs, with their
//! zero padding, into a strip that stays in its cache, and a register tile of 8 windows by up to 3
//! vectors multiplies straight out of it: the kw taps of a kernel row are one contiguous run of a
//! channels-last image. An output element is one chain of fused multiply-adds in a fixed order,
//! whatever the batch or the threads.

#![allow(unsafe_code)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::{may_spread, par_map};
use super::pack::{Matrix, NARROW, PANEL};
use super::panel::{Columns, Rows, Start, multiply};

/// Outputs in a register tile of [`outer`].
const TILE: usize = 8;
/// Readable elements past a strip's end, so that a tile's last vector may run over.
const SLACK: usize = 64;
/// Multiply-adds below which a product stays on one thread.
const ALONE: usize = 1 << 18;

/// Windows over a batch of channels-last images. Beyond its image a window sees zeros.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Extents of the images: batch, rows, columns, channels.
    pub image: [usize; 4],
    /// Rows and columns of a window.
    pub kernel: [usize; 2],
    /// Rows, and columns, from window to window.
    pub step: usize,
    /// Row and column of the image where the first window begins; negative is padding.
    pub origin: [isize; 2],
    /// Windows down and across.
    pub count: [usize; 2],
}

impl Windows {
    /// Elements of one row of a window.
    fn run(&self) -> usize {
        self.kernel[1] * self.image[3]
    }
    /// Columns that all windows of a row reach.
    fn reach(&self) -> usize {
        (self.count[1].max(1) - 1) * self.step + self.kernel[1]
    }
    /// Elements of one image.
    fn area(&self) -> usize {
        self.image[1] * self.image[2] * self.image[3]
    }

    /// Fills `to` with `rows` padded rows of an image, `first` being a row of the image.
    fn strip(&self, to: &mut Vec<f32>, x: &[f32], first: isize, rows: usize) {
        let [_, h, w, c] = self.image;
        let pitch = self.reach() * c;
        to.resize(rows * pitch + SLACK, 0.0);
        let left = (-self.origin[1]).max(0) as usize;
        let skip = self.origin[1].max(0) as usize;
        let own = w.saturating_sub(skip).min(self.reach().saturating_sub(left));
        for (i, row) in to.chunks_exact_mut(pitch.max(1)).take(rows).enumerate() {
            let y = first + i as isize;
            if y < 0 || y >= h as isize || own == 0 {
                row.fill(0.0);
                continue;
            }
            let from = (y as usize * w + skip) * c;
            let (before, rest) = row.split_at_mut(left * c);
            let (inside, after) = rest.split_at_mut(own * c);
            before.fill(0.0);
            inside.copy_from_slice(&x[from..from + own * c]);
            after.fill(0.0);
        }
    }

    /// Where windows begin in a strip: `rows` rows of them, in order.
    fn starts(&self, rows: usize) -> Vec<usize> {
        let (c, pitch) = (self.image[3], self.reach() * self.image[3]);
        let row = |r: usize| (0..self.count[1]).map(move |i| (r * pitch + i * c) * self.step);
        (0..rows).flat_map(row).collect()
    }
}

/// A weight matrix [depth, outs] in panels of 32 columns (the last may be 16), padded with zeros.
pub struct Panels {
    data: Vec<f32>,
    depth: usize,
    outs: usize,
}

impl Panels {
    /// `fill(k, first, row)` writes entries (k, first..) of the matrix; `row` arrives as zeros and
    /// ends with the matrix.
    pub fn new(depth: usize, outs: usize, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> Self {
        Self::filled(depth, outs, |first, part| {
            let width = PANEL.min((outs - first).next_multiple_of(NARROW));
            for (k, row) in part.chunks_exact_mut(width).enumerate() {
                fill(k, first, &mut row[..width.min(outs - first)]);
            }
        })
    }

    /// Those of a matrix.
    pub fn of(w: &Matrix<'_>) -> Self {
        Self::filled(w.depth, w.outs, |first, part| w.pack(part, first))
    }

    fn filled(depth: usize, outs: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let mut data = vec![0.0; outs.next_multiple_of(NARROW) * depth];
        let chunk = (PANEL * depth).max(1);
        match data.len() > ALONE / 16 && may_spread() {
            true => data.par_chunks_mut(chunk).enumerate().for_each(|(i, p)| fill(i * PANEL, p)),
            false => data.chunks_mut(chunk).enumerate().for_each(|(i, p)| fill(i * PANEL, p)),
        }
        Self { data, depth, outs }
    }
}

/// y = windows * weights + bias: y is [batch, windows down, windows across, outs], all of it
/// written. `finish` sees each stretch of y when it is done: `finish(first element, stretch)`.
pub fn product(
    y: &mut [f32],
    (at, x): (&Windows, &[f32]),
    w: &Panels,
    bias: Option<&[f32]>,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let [down, across] = at.count;
    let line = across * w.outs;
    assert_eq!(y.len(), at.image[0] * down * line, "the product's buffer has another size");
    assert_eq!(x.len(), at.image[0] * at.area(), "the images have another size");
    assert_eq!(w.depth, at.kernel[0] * at.run(), "the weights have another depth");
    if y.is_empty() {
        return;
    }
    let windows = at.image[0] * down * across;
    let rows = (windows / 8).clamp(32, 512).div_ceil(across).min(down);
    let starts = at.starts(rows);
    let area = down * line;
    let block = |image: usize, i: usize, y: &mut [f32]| {
        let x = &x[image * at.area()..(image + 1) * at.area()];
        let mut strip = Vec::new();
        let first = at.origin[0] + (i * rows * at.step) as isize;
        let tall = (y.len() / line - 1) * at.step + at.kernel[0];
        at.strip(&mut strip, x, first, tall);
        let rows_of = Rows {
            data: &strip,
            starts: &starts[..y.len() / w.outs],
            taps: at.kernel[0],
            pitch: at.reach() * at.image[3],
            run: at.run(),
        };
        for first in (0..w.outs).step_by(PANEL) {
            let own = PANEL.min(w.outs - first);
            let panel = &w.data[first * w.depth..][..own.next_multiple_of(NARROW) * w.depth];
            let start = bias.map_or(Start::Zero, |b| Start::Bias(&b[first..]));
            multiply(Columns::new(y, w.outs, first, own), rows_of, panel, start);
        }
        finish(image * area + i * rows * line, y);
    };
    if windows * w.depth * w.outs > ALONE && may_spread() {
        y.par_chunks_mut(area).enumerate().for_each(|(n, y)| {
            y.par_chunks_mut(rows * line).enumerate().for_each(|(i, y)| block(n, i, y));
        });
    } else {
        for (n, y) in y.chunks_mut(area).enumerate() {
            y.chunks_mut(rows * line).enumerate().for_each(|(i, y)| block(n, i, y));
        }
    }
}

/// Windows of one partial sum of [`outer`].
const GROUP: usize = 2048;
/// Outputs of one task of [`outer`].
const OUTS: usize = 32;
/// Rows of a partial sum are padded to the widest vector.
const LANES: usize = 16;

/// gw = sum over windows of g (outer) window: g is [batch, down, across, outs], gw [outs, kernel,
/// channels].
///
/// Partial sums cover a fixed number of images and are added in order, whatever the threads.
pub fn outer(gw: &mut [f32], at: &Windows, x: &[f32], g: &[f32]) {
    let [down, across] = at.count;
    let (images, taps, run) = (at.image[0], at.kernel[0], at.run());
    let depth = taps * run;
    gw.fill(0.0);
    let windows = images * down * across;
    if gw.is_empty() || windows == 0 || x.is_empty() {
        return;
    }
    let outs = gw.len() / depth;
    assert_eq!(gw.len(), outs * depth, "the gradient has another depth");
    assert_eq!(x.len(), images * at.area(), "the images have another size");
    assert_eq!(g.len(), windows * outs, "the outer factor has another size");
    // A tile reads 8 outputs at once.
    let even = outs.next_multiple_of(TILE);
    let mut wide = Vec::new();
    if even != outs {
        wide.resize(windows * even, 0.0);
        for (wide, g) in wide.chunks_exact_mut(even).zip(g.chunks_exact(outs)) {
            wide[..outs].copy_from_slice(g);
        }
    }
    let g = if even == outs { g } else { &wide };
    let share = (GROUP / (down * across)).max(1);
    let (groups, parts) = (images.div_ceil(share), even.div_ceil(OUTS));
    let task = |i: usize| {
        let (part, ky) = (i % parts, i / parts % taps);
        let first = i / parts / taps * share;
        let outs = part * OUTS..even.min((part + 1) * OUTS);
        let images = first..images.min(first + share);
        Arch::new().dispatch(Outer { at, x, g, even, ky, outs, images })
    };
    let tasks = groups * taps * parts;
    let sums: Vec<Vec<f32>> = match windows * depth * outs > ALONE {
        true => par_map(tasks, task),
        false => (0..tasks).map(task).collect(),
    };
    let pitch = run.next_multiple_of(LANES);
    for (i, sum) in sums.iter().enumerate() {
        let (part, ky) = (i % parts, i / parts % taps);
        for (o, row) in (part * OUTS..outs).zip(sum.chunks_exact(pitch)) {
            let gw = &mut gw[o * depth + ky * run..][..run];
            gw.iter_mut().zip(row).for_each(|(a, &b)| *a += b);
        }
    }
}

/// A partial sum of one kernel row and some outputs over some images: [outs, run padded].
struct Outer<'a> {
    at: &'a Windows,
    x: &'a [f32],
    g: &'a [f32],
    /// Outputs in a row of `g`.
    even: usize,
    ky: usize,
    outs: std::ops::Range<usize>,
    images: std::ops::Range<usize>,
}

impl WithSimd for Outer<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let at = self.at;
        let [down, across] = at.count;
        let pitch = at.run().next_multiple_of(LANES);
        let mut sum = vec![0.0f32; self.outs.len() * pitch];
        // About 64 windows at a time, so that strip and factor stay in the first cache.
        let rows = 64usize.div_ceil(across).min(down);
        let starts = at.starts(rows);
        let mut strip = Vec::new();
        for image in self.images {
            let x = &self.x[image * at.area()..(image + 1) * at.area()];
            for row in (0..down).step_by(rows) {
                let live = rows.min(down - row);
                let first = at.origin[0] + (row * at.step + self.ky) as isize;
                at.strip(&mut strip, x, first, (live - 1) * at.step + 1);
                let window = (image * down + row) * across;
                let g = &self.g[window * self.even..(window + live * across) * self.even];
                let starts = &starts[..live * across];
                let patch = Patch { strip: &strip, starts, g, even: self.even };
                for o in (0..self.outs.len()).step_by(TILE) {
                    let sum = S::as_mut_simd_f32s(&mut sum[o * pitch..(o + TILE) * pitch]).0;
                    patch.add::<S>(simd, sum, self.outs.start + o);
                }
            }
        }
        sum
    }
}

/// Windows of one strip with their outer factors.
struct Patch<'a> {
    strip: &'a [f32],
    starts: &'a [usize],
    g: &'a [f32],
    even: usize,
}

impl Patch<'_> {
    /// Adds to the sums of outputs o..o + 8: eight rows of vectors.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, sum: &mut [S::f32s], o: usize) {
        let vectors = sum.len() / TILE;
        let mut v = 0;
        while v < vectors {
            match vectors - v {
                1 => self.tile::<S, 1>(simd, sum, v, o),
                2 => self.tile::<S, 2>(simd, sum, v, o),
                _ => self.tile::<S, 3>(simd, sum, v, o),
            }
            v += (vectors - v).min(3);
        }
    }

    /// One register tile: vectors v..v + N of eight outputs.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, simd: S, sum: &mut [S::f32s], v: usize, o: usize) {
        let vectors = sum.len() / TILE;
        let mut acc = [[simd.splat_f32s(0.0); N]; TILE];
        for (acc, sum) in acc.iter_mut().zip(sum.chunks_exact(vectors)) {
            for (acc, sum) in acc.iter_mut().zip(&sum[v..v + N]) {
                *acc = *sum;
            }
        }
        let acc = self.windows::<S, N>(simd, v * S::F32_LANES, o, acc);
        for (acc, sum) in acc.iter().zip(sum.chunks_exact_mut(vectors)) {
            for (acc, sum) in acc.iter().zip(&mut sum[v..v + N]) {
                *sum = *acc;
            }
        }
    }

    /// Adds all windows to a register tile. The sums come and go by value: were they borrowed, each
    /// step would store them.
    #[inline(always)]
    fn windows<S: Simd, const N: usize>(
        &self,
        simd: S,
        from: usize,
        o: usize,
        mut acc: [[S::f32s; N]; TILE],
    ) -> [[S::f32s; N]; TILE] {
        let furthest = self.starts.iter().max().map_or(0, |s| s + from + N * S::F32_LANES);
        assert!(furthest <= self.strip.len() && o + TILE <= self.even);
        assert!(self.starts.len() * self.even <= self.g.len());
        for (i, start) in self.starts.iter().enumerate() {
            let mut x = [simd.splat_f32s(0.0); N];
            for (n, x) in x.iter_mut().enumerate() {
                let at = start + from + n * S::F32_LANES;
                // SAFETY: at + a vector's lanes <= furthest <= strip.len(); any alignment is read.
                *x = unsafe { self.strip.as_ptr().add(at).cast::<S::f32s>().read_unaligned() };
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                // SAFETY: i < starts.len(), o + j < even and starts.len() * even <= g.len().
                let g = simd.splat_f32s(unsafe { *self.g.as_ptr().add(i * self.even + o + j) });
                for (acc, &x) in acc.iter_mut().zip(&x) {
                    *acc = simd.mul_add_f32s(g, x, *acc);
                }
            }
        }
        acc
    }
}
