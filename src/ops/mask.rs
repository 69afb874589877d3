//! The mask of the transformer's inputs: which positions are kept, and the learned token in the
//! place of the others.
//!
//! The saliency of a position is the l2 norm over channels of what the op is given: the gradient
//! G_k, or a pooled error. A mask is a constant: no derivative passes through the threshold.

use std::ops::RangeInclusive;

use super::composed::{self, Composed};
use super::cuda::{Kernels, block_per_job, kernels, over_elements, warp_per_row};
use super::elementwise::ADD;
use super::random::{Rows, last_word, stream_of};
use super::reduce::{broadcast_into, sum_into};
use super::{Case, Cases, Diff, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::device::kernel::Slice;
use crate::device::launch::mask as launch;
use crate::error::{Error, Result};
use crate::tensor::{Purpose, Shape, Stream, Tensor};

/// Added to the deviation before dividing by it, so that equal gradients give a coin and not a NaN.
pub(super) const ROOM: f64 = 1e-6;

/// How saliency is brought to the scale of N(0, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// (g - mean) / deviation over the positions of a sample.
    ZScore,
    /// g over its root mean square.
    Rms,
    /// As it is.
    Raw,
}

/// 1 where saliency exceeds the threshold, else 0: [B, .., C] with the samples' names [B, 4] (see
/// [`super::random::names`]) to [B, n, 1], n being all positions of a sample. Second output:
/// saliency [B, n].
#[derive(Clone, Debug)]
pub struct KeepMask {
    /// What saliency is compared as.
    pub level: Level,
    /// Whether thresholds are normals of each sample's stream, and not 0.
    pub sampled: bool,
    /// The scale, which names the stream beside the sample.
    pub scale: u16,
}

/// 1 with probability `rate`, else 0: the samples' names [B, 4] to [B, n, 1].
#[derive(Clone, Debug)]
pub struct KeepCoins {
    /// Positions n.
    pub positions: usize,
    /// The share that is kept.
    pub rate: f64,
    /// The scale, which names the stream beside the sample.
    pub scale: u16,
}

/// x [B, n, C] where `keep` [B, n, 1] is not 0, and e `[C]` elsewhere; with a table [n, C], that
/// added.
#[derive(Clone, Debug)]
pub struct SelectRows;

/// x [B, n, C] where `keep` [B, n, 1] is not 0 (where it is, if `rest`); zeros elsewhere.
#[derive(Clone, Debug)]
pub struct MaskRows {
    /// Whether the rows that are not kept are taken.
    pub rest: bool,
}

/// The stream of a sample's thresholds.
fn stream(scale: u16, words: &[i32]) -> Stream {
    stream_of((scale, Purpose::Mask), words)
}

/// Samples and positions of [B, .., C] with names [B, 4].
fn places(op: &'static str, x: &[&Shape]) -> Result<[usize; 2]> {
    match x[0].dims() {
        [b, .., _] if x[1].dims() == [*b, 4] && x[0].last() > 0 => {
            Ok([*b, x[0].dims()[1..x[0].rank() - 1].iter().product()])
        }
        _ => {
            let what = format!("wants [B, .., C] and names [B, 4]; found {}, {}", x[0], x[1]);
            Err(Error::shape(op, what))
        }
    }
}

fn outputs(op: &'static str) -> Error {
    Error::Internal(format!("{op} was given other outputs than it has"))
}

impl KeepMask {
    /// The thresholds of `n` positions.
    pub(super) fn rows(&self, n: usize) -> Rows {
        Rows { scale: self.scale, purpose: Purpose::Mask, row: [n].into() }
    }

    /// The mask of one sample's saliency.
    fn mask<R: Real>(&self, saliency: &[R], words: &[i32], keep: &mut [R]) {
        let n = saliency.len();
        let share = R::of(1.0 / n.max(1) as f64);
        // About the first, so that equal saliencies have no deviation at all.
        let first = saliency.first().copied().unwrap_or(R::of(0.0));
        let mean = first + R::sum(saliency.iter().map(|&g| g - first)) * share;
        let variance = R::sum(saliency.iter().map(|&g| (g - mean) * (g - mean))) * share;
        let (middle, spread) = match self.level {
            Level::ZScore => (mean, variance.sqrt() + R::of(ROOM)),
            Level::Rms => (R::of(0.0), (variance + mean * mean).sqrt() + R::of(ROOM)),
            Level::Raw => (R::of(0.0), R::of(1.0)),
        };
        let stream = stream(self.scale, words);
        for (i, (keep, &g)) in keep.iter_mut().zip(saliency).enumerate() {
            let gamma = if self.sampled { f64::from(stream.normal(i)) } else { 0.0 };
            *keep = ((g - middle) / spread - R::of(gamma)).step();
        }
    }
}

impl Op for KeepMask {
    const NAME: &'static str = "keep_mask";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const COMPOSED: Option<Composed<Self>> = Some(composed::keep_mask);
    const INT_INPUTS: &'static [usize] = &[1];
    const DIFF: Diff = Diff::No("a mask is a step of the saliency, and a constant once it is made");
    const F32_OUTPUTS: &'static [usize] = &[0, 1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let [rows, n] = places(Self::NAME, &[x[0].shape, x[1].shape])?;
        let [keep, saliency] = y else { return Err(outputs(Self::NAME)) };
        let (keep, saliency) = (&mut keep.get::<f32>()?, &mut saliency.get::<f32>()?);
        let (g, names, grid) = (x[0].get::<T>()?, x[1].get::<i32>()?, block_per_job(q, rows));
        let last = last_word(op.scale, Purpose::Mask);
        let (cols, level) = (x[0].shape.last(), op.level as i32);
        launch::keep_mask_fwd(
            q, grid, keep, saliency, &g, &names, rows, n, cols, last, level, op.sampled,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let [b, n] = places(Self::NAME, x)?;
        Ok(vec![[b, n, 1].into(), [b, n].into()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [keep, saliency] = y else { return };
        let (c, g) = (x[0].shape.last(), x[0].r());
        for (s, g) in saliency.r().iter_mut().zip(g.chunks(c)) {
            *s = R::sum(g.iter().map(|&g| g * g)).sqrt();
        }
        let n = saliency.r().len() / x[0].shape.dims()[0].max(1);
        let rows = saliency.r().chunks(n.max(1)).zip(x[1].i().chunks(4));
        for ((saliency, words), keep) in rows.zip(keep.r().chunks_mut(n.max(1))) {
            self.mask(saliency, words, keep);
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, s: &[usize], level, sampled| {
            let inputs = vec![Input::normal(s), Input::below([s[0], 4], 1 << 30)];
            Case::new(name, KeepMask { level, sampled, scale: 8 }, inputs)
        };
        Cases {
            named: vec![
                case("t0", &[3, 4, 4, 16], Level::ZScore, true),
                case("rms", &[2, 3, 3, 5], Level::Rms, true),
                case("raw", &[2, 7, 3], Level::Raw, true),
                case("no_noise", &[2, 13, 13, 8], Level::ZScore, false),
                case("past_a_block", &[1, 1100, 2], Level::ZScore, true),
                case("no_samples", &[0, 4, 2], Level::ZScore, true),
                case("no_positions", &[2, 0, 2], Level::ZScore, true),
            ],
            draw: |d| {
                let s = [d.size(1, 4), d.size(2, 20), d.size(1, 40)];
                let level = d.pick(&[Level::ZScore, Level::Rms, Level::Raw]);
                let inputs = vec![Input::normal(s), Input::below([s[0], 4], 1 << 30)];
                let op = KeepMask { level, sampled: d.coin(), scale: 3 };
                Case::new("drawn", op, inputs)
            },
            bench: vec![case("last_scale", &[32, 16, 16, 32], Level::ZScore, true)],
        }
    }
}

impl Op for KeepCoins {
    const NAME: &'static str = "keep_coins";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const INT_INPUTS: &'static [usize] = &[0];
    const DIFF: Diff = Diff::No("coins depend on no real input");
    const F32_OUTPUTS: &'static [usize] = &[0];
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let (rows, n) = (x[0].shape.matrix().0, op.positions);
        let (keep, names) = (&mut y[0].get::<T>()?, x[0].get::<i32>()?);
        let last = last_word(op.scale, Purpose::Mask);
        let grid = over_elements(q, rows * n);
        launch::keep_coins_fwd(q, grid, keep, &names, rows, n, last, op.rate)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match *x[0].dims() {
            [b, 4] => Ok(vec![[b, self.positions, 1].into()]),
            _ => Err(Error::shape(Self::NAME, format!("wants names [B, 4], found {}", x[0]))),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let rows = y[0].r().chunks_mut(self.positions.max(1)).zip(x[0].i().chunks(4));
        for (keep, words) in rows {
            let stream = stream(self.scale, words);
            for (i, keep) in keep.iter_mut().enumerate() {
                let kept = f64::from(stream.uniform(i)) < self.rate;
                *keep = R::of(if kept { 1.0 } else { 0.0 });
            }
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: usize, positions| {
            let op = KeepCoins { positions, rate: 0.6, scale: 9 };
            Case::new(name, op, vec![Input::below([rows, 4], 1 << 30)])
        };
        Cases {
            named: vec![
                case("one", 1, 1),
                case("odd", 3, 169),
                case("past_a_block", 2, 2050),
                case("no_samples", 0, 4),
            ],
            draw: |d| {
                let op = KeepCoins { positions: d.size(1, 40), rate: 0.3, scale: 1 };
                Case::new("drawn", op, vec![Input::below([d.size(1, 5), 4], 1 << 30)])
            },
            bench: vec![case("last_scale", 32, 256)],
        }
    }
}

/// Checks x [B, n, C] with `keep` [B, n, 1].
fn rows(op: &'static str, x: &[&Shape]) -> Result<Shape> {
    match x[0].rank() == 3 && *x[1] == x[0].with_last(1) {
        true => Ok(x[0].clone()),
        false => {
            let what = format!("wants x [B, n, C], keep [B, n, 1]; found {}, {}", x[0], x[1]);
            Err(Error::shape(op, what))
        }
    }
}

impl Op for SelectRows {
    const NAME: &'static str = "select_rows";
    const INPUTS: RangeInclusive<usize> = 3..=4;
    const COMPOSED: Option<Composed<Self>> = Some(composed::select_rows);
    const SAVES: Saves = Saves::inputs(&[1]);
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (rows, cols) = x[0].shape.matrix();
        let (period, tabled) = (x[0].shape.dims()[1], x.len() - 3);
        let table = x.get(3).map_or(Ok(Slice::none(q)), |t| t.get::<T>())?;
        let (x, keep, e) = (x[0].get::<T>()?, x[1].get::<f32>()?, x[2].get::<T>()?);
        let (y, grid) = (&mut y[0].get::<T>()?, warp_per_row(q, rows));
        launch::select_rows_fwd(q, grid, y, &x, &keep, &e, &table, rows, cols, period, tabled)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let shape = rows(Self::NAME, x)?;
        let d = shape.dims();
        if x[2].dims() != &d[2..] || x.get(3).is_some_and(|t| t.dims() != &d[1..]) {
            let what = format!("x {shape} wants e [C] and a table [n, C], found {}", x[2]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![shape])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = x[0].shape.last().max(1);
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let kept = x[1].r()[i / c].val() != 0.0;
            let v = if kept { x[0].r()[i] } else { x[2].r()[i % c] };
            *y = match x.get(3) {
                Some(table) => v + table.r()[i % table.r().len()],
                None => v,
            };
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let (keep, shape) = (at.x(1)?, at.y_shape());
        let kept = dx[0].map(|d| call(&MaskRows { rest: false }, &[d, keep])).transpose()?;
        let other =
            |d: &Tensor| call(&MaskRows { rest: true }, &[&broadcast_into(d, shape)?, keep]);
        let other = dx[2].map(other).transpose()?;
        let table = dx.get(3).copied().flatten().map(|d| broadcast_into(d, shape)).transpose()?;
        let mut parts = [kept, other, table].into_iter().flatten();
        let Some(first) = parts.next() else { return Ok(None) };
        parts.try_fold(first, |sum, part| call(&ADD, &[&sum, &part])).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let keep = at.x(1)?;
        let sum = |g: &Tensor, i: usize| sum_into(g, at.shape(i));
        let gx = || call(&MaskRows { rest: false }, &[gy, keep]);
        let ge = || sum(&call(&MaskRows { rest: true }, &[gy, keep])?, 2);
        let mut grads = vec![want[0].then(gx).transpose()?, None, want[2].then(ge).transpose()?];
        if want.len() > 3 {
            grads.push(want[3].then(|| sum(gy, 3)).transpose()?);
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        let case = |name: &str, s: [usize; 3], tabled: bool| select_case(name, s, tabled);
        Cases {
            named: vec![
                case("tokens", [2, 9, 16], true),
                case("odd", [3, 5, 7], true),
                case("bare", [3, 5, 7], false),
                case("one", [1, 1, 1], true),
                case("no_samples", [0, 3, 4], true),
                case("past_a_warp", [2, 3, 333], true),
            ],
            draw: |d| select_case("drawn", [d.size(1, 4), d.size(1, 9), d.size(1, 70)], d.coin()),
            bench: vec![case("d16", [16, 680, 1024], true)],
        }
    }
}

fn select_case(name: &str, s: [usize; 3], tabled: bool) -> Case {
    let [b, n, c] = s;
    let mut inputs = vec![Input::normal(s), Input::coins([b, n, 1]), Input::normal([c])];
    if tabled {
        inputs.push(Input::normal([n, c]));
    }
    Case::new(name, SelectRows, inputs)
}

impl Op for MaskRows {
    const NAME: &'static str = "mask_rows";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const COMPOSED: Option<Composed<Self>> = Some(composed::mask_rows);
    const SAVES: Saves = Saves::inputs(&[1]);
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols) = x[0].shape.matrix();
        let (x, keep) = (x[0].get::<T>()?, x[1].get::<f32>()?);
        let (y, grid) = (&mut y[0].get::<T>()?, warp_per_row(q, rows));
        launch::mask_rows_fwd(q, grid, y, &x, &keep, rows, cols, op.rest)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![rows(Self::NAME, x)?])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = x[0].shape.last().max(1);
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let taken = (x[1].r()[i / c].val() != 0.0) != self.rest;
            *y = if taken { x[0].r()[i] } else { R::of(0.0) };
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|d| call(self, &[d, at.x(1)?])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        Ok(vec![want[0].then(|| call(self, &[gy, at.x(1)?])).transpose()?, None])
    }
    fn cases() -> Cases {
        let case = |name: &str, s: [usize; 3], rest| {
            let inputs = vec![Input::normal(s), Input::coins([s[0], s[1], 1])];
            Case::new(name, MaskRows { rest }, inputs)
        };
        Cases {
            named: vec![
                case("tokens", [2, 9, 16], false),
                case("rest", [3, 5, 7], true),
                case("no_samples", [0, 3, 4], true),
            ],
            draw: |d| {
                let (b, n) = (d.size(1, 4), d.size(1, 9));
                let inputs = vec![Input::normal([b, n, d.size(1, 70)]), Input::coins([b, n, 1])];
                Case::new("drawn", MaskRows { rest: d.coin() }, inputs)
            },
            bench: vec![case("d16", [16, 680, 1024], false)],
        }
    }
}
