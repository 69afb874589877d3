//! Resampling of channels-last maps: one banded matrix for the rows and one for the columns.
//!
//! All maps are linear, so forward mode is the op itself and reverse mode its transpose. Columns
//! first, then rows: `y[i,j]` = sum_p `R[i,p]` sum_q `C[j,q]` `x[p,q]`.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, over_elements};
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, call};
use crate::device::cpu;
use crate::device::cuda::{Buffer, Queue};
use crate::device::launch::resample as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// How a row of n elements becomes one of m.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Adaptive average: output i averages floor(i n / m) .. ceil((i + 1) n / m) - 1. Cells overlap
    /// where m does not divide n.
    Area,
    /// Cubic convolution with A = -0.75 at half-pixel centres; taps beyond the border repeat it; no
    /// antialiasing.
    Bicubic,
    /// Linear interpolation at half-pixel centres, clamped to the border; no antialiasing.
    Bilinear,
    /// Output i copies input floor(i n / m).
    Nearest,
    /// Means of neighbouring pairs, m = floor(n / 2); an odd last element is dropped.
    Pairs,
    /// The 11-tap Gaussian window of sigma 1.5 that SSIM uses, where it fits: m = n - 10.
    Gaussian,
    /// The same window round every element, cut at the border and renormalised: m = n.
    GaussianSame,
}

/// Taps of [`Map::Gaussian`].
const WINDOW: usize = 11;

/// x [B, from, C] to [B, to, C], or its transpose, which goes the other way.
#[derive(Clone, Debug)]
pub struct Resample {
    /// The map of both axes.
    pub map: Map,
    /// Rows and columns that the map reads.
    pub from: [usize; 2],
    /// Rows and columns that it writes.
    pub to: [usize; 2],
    /// Whether this is the transpose.
    pub transpose: bool,
}

/// One row of a banded matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Band {
    /// Column of the first weight.
    pub start: usize,
    /// Weights of neighbouring columns.
    pub weights: Vec<f64>,
}

impl Map {
    /// The matrix [m, n]; `None` when the sizes do not suit the map.
    pub fn matrix(self, n: usize, m: usize) -> Option<Vec<Band>> {
        let suits = match self {
            Self::Pairs => m == n / 2,
            Self::Gaussian => m + WINDOW == n + 1,
            Self::GaussianSame => m == n,
            _ => n > 0 || m == 0,
        };
        suits.then(|| (0..m).map(|i| self.band(i, n, m)).collect())
    }

    fn band(self, i: usize, n: usize, m: usize) -> Band {
        let centre = (i as f64 + 0.5) * n as f64 / m as f64 - 0.5;
        match self {
            Self::Area => {
                let (start, end) = (i * n / m, ((i + 1) * n).div_ceil(m));
                Band { start, weights: vec![1.0 / (end - start) as f64; end - start] }
            }
            Self::Nearest => Band { start: i * n / m, weights: vec![1.0] },
            Self::Pairs => Band { start: 2 * i, weights: vec![0.5; 2] },
            Self::Gaussian => bells(i, 0..WINDOW),
            Self::GaussianSame => {
                let (before, after) = (i.min(WINDOW / 2), (n - 1 - i).min(WINDOW / 2));
                bells(i - before, WINDOW / 2 - before..WINDOW / 2 + after + 1)
            }
            Self::Bilinear => {
                let centre = centre.max(0.0);
                let t = centre - centre.floor();
                clamped(centre.floor() as isize, &[1.0 - t, t], n)
            }
            Self::Bicubic => {
                let t = centre - centre.floor();
                let taps = [1.0 + t, t, 1.0 - t, 2.0 - t].map(cubic);
                clamped(centre.floor() as isize - 1, &taps, n)
            }
        }
    }
}

/// Some taps of the Gaussian window, renormalised.
fn bells(start: usize, taps: std::ops::Range<usize>) -> Band {
    let bell = |k: usize| (-(k as f64 - 5.0).powi(2) / (2.0 * 1.5 * 1.5)).exp();
    let total: f64 = taps.clone().map(bell).sum();
    Band { start, weights: taps.map(|k| bell(k) / total).collect() }
}

/// The cubic convolution kernel at a distance in [0, 2].
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    match x <= 1.0 {
        true => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        false => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
    }
}

/// Taps from column `first`, those outside 0..n moved to the border.
fn clamped(first: isize, taps: &[f64], n: usize) -> Band {
    let column = |k: usize| (first + k as isize).clamp(0, n as isize - 1) as usize;
    let start = column(0);
    let mut weights = vec![0.0; column(taps.len() - 1) - start + 1];
    for (k, tap) in taps.iter().enumerate() {
        weights[column(k) - start] += tap;
    }
    Band { start, weights }
}

/// The transpose of a banded matrix with n columns.
fn transposed(matrix: &[Band], n: usize) -> Vec<Band> {
    let mut columns: Vec<Band> = vec![Band { start: 0, weights: Vec::new() }; n];
    for (i, band) in matrix.iter().enumerate() {
        for (k, &weight) in band.weights.iter().enumerate() {
            let column = &mut columns[band.start + k];
            if column.weights.is_empty() {
                column.start = i;
            }
            column.weights.resize(i - column.start, 0.0);
            column.weights.push(weight);
        }
    }
    columns
}

impl Resample {
    /// A map between sizes [rows, columns].
    pub fn new(map: Map, from: [usize; 2], to: [usize; 2]) -> Self {
        Self { map, from, to, transpose: false }
    }

    /// Twice the rows and columns, each element four times.
    pub fn nearest_x2([h, w]: [usize; 2]) -> Self {
        Self::new(Map::Nearest, [h, w], [2 * h, 2 * w])
    }

    /// The transpose.
    fn t(&self) -> Self {
        Self { transpose: !self.transpose, ..self.clone() }
    }

    /// Sizes of what this op itself reads and writes.
    fn ends(&self) -> [[usize; 2]; 2] {
        if self.transpose { [self.to, self.from] } else { [self.from, self.to] }
    }

    /// The matrix of an axis, as this op applies it.
    fn bands(&self, axis: usize) -> Option<Vec<Band>> {
        let matrix = self.map.matrix(self.from[axis], self.to[axis])?;
        Some(if self.transpose { transposed(&matrix, self.from[axis]) } else { matrix })
    }

    /// A draw of sizes that suit a map.
    fn suited(map: Map, from: [usize; 2], to: [usize; 2]) -> Self {
        match map {
            Map::Pairs => Self::new(map, from, from.map(|n| n / 2)),
            Map::Gaussian => Self::new(map, to.map(|m| m + WINDOW - 1), to),
            Map::GaussianSame => Self::new(map, to, to),
            _ => Self::new(map, from, to),
        }
    }
}

/// The bands in f32, with the whole stretch of outputs that share one set of weights and step by
/// one input: such a stretch is a sum of shifted rows.
struct Plan {
    bands: Vec<(usize, Vec<f32>)>,
    even: std::ops::Range<usize>,
}

impl Plan {
    fn new(bands: &[Band]) -> Self {
        let shifted = |i: usize| {
            bands[i].weights == bands[i - 1].weights && bands[i].start == bands[i - 1].start + 1
        };
        let mut even = 0..0;
        let mut first = 0;
        for i in 1..=bands.len() {
            if i == bands.len() || !shifted(i) {
                if i - first > even.len() {
                    even = first..i;
                }
                first = i;
            }
        }
        // Short stretches are not worth their own loop.
        if even.len() < 8 {
            even = 0..0;
        }
        let narrow = |b: &Band| (b.start, b.weights.iter().map(|&w| w as f32).collect());
        Self { bands: bands.iter().map(narrow).collect(), even }
    }

    /// One row: `y[j]` = sum_q `C[j,q]` `x[q]` for `c` channels.
    #[inline(always)]
    fn row(&self, x: &[f32], y: &mut [f32], c: usize) {
        for (j, (start, weights)) in self.bands.iter().enumerate() {
            if !self.even.contains(&j) {
                sum_of(&x[start * c..], weights, c, &mut y[j * c..(j + 1) * c]);
            }
        }
        if let Some((start, weights)) = self.bands.get(self.even.start)
            && !self.even.is_empty()
        {
            let y = &mut y[self.even.start * c..self.even.end * c];
            sum_of(&x[start * c..], weights, c, y);
        }
    }
}

/// y = sum of `weights[k]` x[k step..], over the length of y. A single weight of 1 copies.
#[inline(always)]
fn sum_of(x: &[f32], weights: &[f32], step: usize, y: &mut [f32]) {
    if let [1.0] = weights {
        y.copy_from_slice(&x[..y.len()]);
        return;
    }
    y.fill(0.0);
    for (k, &w) in weights.iter().enumerate() {
        for (y, &x) in y.iter_mut().zip(&x[k * step..]) {
            *y += w * x;
        }
    }
}

/// A banded matrix on a GPU, where it is placed once: where rows begin to read, where their weights
/// begin, and the weights.
struct Placed {
    starts: Buffer<i32>,
    begins: Buffer<i32>,
    weights: Buffer<f32>,
}

impl Placed {
    fn new(q: &Queue, bands: &[Band]) -> Result<Self> {
        let whole = |n: usize| i32::try_from(n).map_err(|_| Error::shape("resample", "too large"));
        let starts = bands.iter().map(|b| whole(b.start)).collect::<Result<Vec<_>>>()?;
        let weights: Vec<f32> = bands.iter().flat_map(|b| &b.weights).map(|&w| w as f32).collect();
        let mut begins = vec![0];
        for band in bands {
            begins.push(begins[begins.len() - 1] + whole(band.weights.len())?);
        }
        let (starts, begins) = (q.constant(&starts)?, q.constant(&begins)?);
        Ok(Self { starts, begins, weights: q.constant(&weights)? })
    }
}

impl Op for Resample {
    const NAME: &'static str = "resample";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (Some(rows), Some(cols)) = (op.bands(0), op.bands(1)) else { return };
        let [_, h, w, c] = *x[0].shape.dims() else { return };
        let (lines, line) = (rows.len(), cols.len() * c);
        let (rows, cols) = (Plan::new(&rows).bands, Plan::new(&cols));
        let (b, x) = (x[0].shape.dims()[0], x[0].r());
        let mut wide = vec![0.0; b * h * line];
        cpu::par_rows(&mut wide, line, |first, part| {
            cpu::simd(
                #[inline(always)]
                || {
                    for (i, y) in part.chunks_exact_mut(line.max(1)).enumerate() {
                        cols.row(&x[(first + i) * w * c..(first + i + 1) * w * c], y, c);
                    }
                },
            );
        });
        cpu::par_rows(y[0].r(), line, |first, part| {
            cpu::simd(
                #[inline(always)]
                || {
                    for (i, y) in part.chunks_exact_mut(line.max(1)).enumerate() {
                        let (start, weights) = &rows[(first + i) % lines];
                        let top = (first + i) / lines * h + start;
                        sum_of(&wide[top * line..], weights, line, y);
                    }
                },
            );
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (Some(rows), Some(cols)) = (op.bands(0), op.bands(1)) else { return Ok(()) };
        let [b, h, w, c] = *x[0].shape.dims() else { return Ok(()) };
        let (x, y) = (x[0].get::<T>()?, &mut y[0].get::<T>()?);
        let (high, line) = (rows.len(), cols.len() * c);
        let mut wide = Buffer::<f32>::new(q, b * h * line)?;
        let wide = &mut wide.slice_mut();
        let on = Placed::new(q, &cols)?;
        let (s, e, weights) = (on.starts.slice(), on.begins.slice(), on.weights.slice());
        let (grid, n, taps) = (over_elements(q, wide.len()), cols.len(), weights.len());
        launch::resample_cols_fwd(q, grid, wide, &x, &s, &e, &weights, b * h, w, n, c, taps)?;
        let on = Placed::new(q, &rows)?;
        let (s, e, weights) = (on.starts.slice(), on.begins.slice(), on.weights.slice());
        let (grid, x, taps) = (over_elements(q, y.len()), wide.written(), weights.len());
        launch::resample_rows_fwd(q, grid, y, &x, &s, &e, &weights, b, h, high, line, taps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [reads, writes] = self.ends();
        let found = match x {
            [x] if x.rank() == 4 => x.dims(),
            _ => return Err(Error::shape(Self::NAME, "wants one input [B, H, W, C]")),
        };
        if found[1..3] != reads || (0..2).any(|axis| self.bands(axis).is_none()) {
            let what = format!("{self:?} does not fit {}", x[0]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![Shape::from([found[0], writes[0], writes[1], found[3]])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (Some(rows), Some(cols)) = (self.bands(0), self.bands(1)) else { return };
        let [_, h, w, c] = *x[0].shape.dims() else { return };
        let x = x[0].r();
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let (ch, row) = (i % c, &rows[i / c / cols.len() % rows.len()]);
            let col = &cols[i / c % cols.len()];
            let top = i / c / cols.len() / rows.len() * h + row.start;
            let terms = row.weights.iter().enumerate().map(|(p, &weight)| {
                let line = &x[(top + p) * w * c..];
                let inner = col.weights.iter().enumerate();
                let inner =
                    inner.map(|(q, &weight)| R::of(weight) * line[(col.start + q) * c + ch]);
                R::of(weight) * R::sum(inner)
            });
            *y = R::sum(terms);
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, _: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&self.t(), &[gy])?)])
    }
    fn cases() -> Cases {
        let case = |name: &str, op: Resample, b: usize, c: usize| {
            let [[h, w], _] = op.ends();
            Case::new(name, op, vec![Input::normal([b, h, w, c])])
        };
        let new = Resample::new;
        Cases {
            named: vec![
                case("area", new(Map::Area, [16, 16], [3, 5]), 2, 4),
                case("area_up", new(Map::Area, [2, 3], [5, 4]), 1, 3),
                case("bicubic", new(Map::Bicubic, [3, 2], [8, 8]), 2, 5),
                case("bicubic_from_one", new(Map::Bicubic, [1, 1], [4, 4]), 2, 3),
                case("bilinear", new(Map::Bilinear, [5, 4], [7, 9]), 1, 3),
                case("nearest", Resample::nearest_x2([3, 4]), 2, 17),
                case("nearest_t", Resample::nearest_x2([3, 4]).t(), 2, 17),
                case("pairs", new(Map::Pairs, [5, 6], [2, 3]), 2, 3),
                case("gaussian", new(Map::Gaussian, [13, 21], [3, 11]), 1, 3),
                case("gaussian_t", new(Map::Gaussian, [29, 31], [19, 21]).t(), 2, 3),
                case("gaussian_same", new(Map::GaussianSame, [13, 4], [13, 4]), 1, 3),
                case("gaussian_same_t", new(Map::GaussianSame, [1, 22], [1, 22]).t(), 2, 3),
                case("past_a_chunk", Resample::nearest_x2([33, 32]), 1, 16),
                case("no_images", new(Map::Area, [4, 4], [2, 2]), 0, 3),
                case("no_outputs", new(Map::Area, [4, 4], [0, 2]), 1, 3),
            ],
            draw: |d| {
                let maps = [Map::Area, Map::Bicubic, Map::Bilinear, Map::Nearest, Map::Pairs];
                let map = d.pick(&[maps.as_slice(), &[Map::Gaussian, Map::GaussianSame]].concat());
                let from = [d.size(1, 9), d.size(1, 9)];
                let op = Resample::suited(map, from, [d.size(1, 12), d.size(1, 12)]);
                let op = if d.coin() { op.t() } else { op };
                let ([[h, w], _], c) = (op.ends(), d.size(1, 20));
                Case::new("drawn", op, vec![Input::normal([d.size(1, 2), h, w, c])])
            },
            bench: vec![
                case("decoder_up", Resample::nearest_x2([32, 32]), 8, 32),
                case("ssim_window", new(Map::GaussianSame, [64, 64], [64, 64]), 8, 3),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(map: Map, n: usize, m: usize) -> Vec<Vec<f64>> {
        let bands = map.matrix(n, m).unwrap();
        let row = |b: &Band| {
            let mut row = vec![0.0; n];
            row[b.start..b.start + b.weights.len()].copy_from_slice(&b.weights);
            row
        };
        bands.iter().map(row).collect()
    }

    /// D U, the round trip of a p x p map through side n.
    fn round_trip(p: usize, n: usize) -> Vec<Vec<f64>> {
        let (up, down) = (dense(Map::Bicubic, p, n), dense(Map::Area, n, p));
        let entry = |d: &Vec<f64>, j: usize| (0..n).map(|i| d[i] * up[i][j]).sum();
        down.iter().map(|d| (0..p).map(|j| entry(d, j)).collect()).collect()
    }

    fn distance_from_identity(m: &[Vec<f64>]) -> f64 {
        let entry = |i: usize, j: usize| (m[i][j] - f64::from(u8::from(i == j))).abs();
        let n = m.len();
        (0..n * n).map(|k| entry(k / n, k % n)).fold(0.0, f64::max)
    }

    #[test]
    fn a_constant_stays_what_it_is() {
        for map in [Map::Area, Map::Bicubic, Map::Bilinear, Map::Nearest] {
            for (n, m) in [(16, 1), (16, 3), (16, 13), (16, 16), (1, 16), (5, 16), (13, 16)] {
                for row in dense(map, n, m) {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-14, "{map:?} {n} {m}");
                }
            }
        }
        for (map, m) in [(Map::Pairs, 8), (Map::Gaussian, 7)] {
            for row in dense(map, 17, m) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-14, "{map:?}");
            }
        }
        assert!(dense(Map::Bicubic, 1, 16).iter().all(|row| row == &[1.0]));
    }

    #[test]
    fn area_after_bicubic_is_the_identity_at_the_ends_only() {
        assert_eq!(distance_from_identity(&dense(Map::Area, 16, 16)), 0.0);
        assert_eq!(distance_from_identity(&dense(Map::Bicubic, 16, 16)), 0.0);
        assert!(distance_from_identity(&round_trip(1, 16)) < 1e-15);
        let off: Vec<f64> =
            [2, 3, 4, 5, 6, 8, 10, 13].map(|p| distance_from_identity(&round_trip(p, 16))).into();
        assert!(off.iter().all(|&d| d > 0.01), "{off:?}");
        assert!((off[0] - 0.07).abs() < 0.01 && (off[7] - 0.54).abs() < 0.01, "{off:?}");
    }

    #[test]
    fn cells_of_the_area_map_are_the_reference_ones() {
        let cells = Map::Area.matrix(16, 3).unwrap();
        let spans: Vec<_> =
            cells.iter().map(|b| (b.start, b.start + b.weights.len() - 1)).collect();
        assert_eq!(spans, [(0, 5), (5, 10), (10, 15)]);
        assert!(Map::Gaussian.matrix(10, 1).is_none() && Map::Pairs.matrix(5, 3).is_none());
    }
}
