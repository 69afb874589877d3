//! The life of a code book in training: how often its codes are drawn, new places for those that
//! nothing draws, and what is told of them. All of it stays on the device.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, block_per_job, kernels, over_elements};
use super::pyramid::packed;
use super::{Case, Cases, Diff, In, Input, Op, Out, Real};
use crate::device::kernel::Grid;
use crate::device::launch::usage as launch;
use crate::error::{Error, Result};
use crate::tensor::{Purpose, Shape, Stream};

/// Usage [K, V] and tokens [B, L] of all scales in a row to usage' = keep usage + (1 - keep) counts
/// of each code at each scale. What is no code counts nowhere.
#[derive(Clone, Debug)]
pub struct CodeUsage {
    /// Side of each scale.
    pub sides: Vec<usize>,
    /// How much of the usage so far remains.
    pub keep: f64,
}

/// Usage [K, V] and a pulse `[1]` to the usage after unused codes were moved, and for each code a
/// row of B L to move to, -1 for those that stay: all of them unless the pulse is finite.
///
/// A code is unused that is drawn, over all scales, less often than `below` of an even draw. Its
/// row is a draw of the stream's; it gets an even draw's credit at the scale that the row is of,
/// so that it has time to be used.
#[derive(Clone, Debug)]
pub struct ReviveCodes {
    /// Side of each scale.
    pub sides: Vec<usize>,
    /// B L, rows to choose from.
    pub rows: usize,
    /// Share of an even draw.
    pub below: f64,
    /// Where the draws come from: number v is code v's.
    pub stream: Stream,
}

/// Usage [K, V] and rows that codes were moved to `[V]` to [K + 2]: e^(entropy) of the codes of
/// each scale, how many codes in effect are in even use; how many are drawn at least `below` times
/// as often as an even draw; how many were moved.
#[derive(Clone, Debug)]
pub struct CodeHealth {
    /// Share of an even draw.
    pub below: f64,
}

/// x [V, C], rows [n, C] and a number for each row of x `[V]`: the row of that number, or x's own
/// where there is no such row.
#[derive(Clone, Debug)]
pub struct ReplaceRows;

/// Why nothing here has derivative rules.
const KEPT: Diff =
    Diff::No("it is bookkeeping of a training run, which nothing is trained through");

fn wrong(op: &'static str, wants: &str, x: &[&Shape]) -> Error {
    let found: Vec<String> = x.iter().map(ToString::to_string).collect();
    Error::shape(op, format!("wants {wants}; found {}", found.join(", ")))
}

/// How often each code is drawn, over all scales of usage [K, V], and an even draw.
fn draws<R: Real>(usage: &In<'_, R>) -> (Vec<R>, R) {
    let codes = usage.shape.last();
    let of = |v: usize| R::sum(usage.r().iter().skip(v).step_by(codes).copied());
    let all = R::sum(usage.r().iter().copied());
    ((0..codes).map(of).collect(), all / R::of(codes as f64))
}

/// Whether a code that is drawn so often is unused.
fn is_unused<R: Real>(drawn: R, even: R, below: f64) -> bool {
    drawn.val() < (even * R::of(below)).val()
}

impl Op for CodeUsage {
    const NAME: &'static str = "code_usage";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_INPUTS: &'static [usize] = &[1];
    const DIFF: Diff = KEPT;
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let (scales, codes) = x[0].shape.matrix();
        let (rows, length) = x[1].shape.matrix();
        let (usage, tokens) = (x[0].get::<T>()?, x[1].get::<i32>()?);
        let [low, high] = packed(Self::NAME, &op.sides)?;
        // Codes of a block, as kernels/usage.cu has them.
        let (y, grid) = (&mut y[0].get::<T>()?, block_per_job(q, scales * codes.div_ceil(1024)));
        let (keep, gain) = (op.keep as f32, (1.0 - op.keep) as f32);
        launch::code_usage_fwd(
            q, grid, y, &usage, &tokens, scales, codes, rows, length, low, high, keep, gain,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let length: usize = self.sides.iter().map(|p| p * p).sum();
        match (x[0].dims(), x[1].dims()) {
            (&[k, _], &[_, l]) if k == self.sides.len() && l == length => Ok(vec![x[0].clone()]),
            _ => Err(wrong(Self::NAME, "usage [K, V] and tokens [B, L]", x)),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let codes = x[0].shape.last();
        let mut counts = vec![0u32; x[0].r().len()];
        let scale = |i: usize| {
            let mut end = 0;
            let past = |p: &usize| {
                end += p * p;
                end > i
            };
            self.sides.iter().position(past).unwrap_or(0)
        };
        let scales: Vec<usize> = (0..x[1].shape.last()).map(scale).collect();
        for (&token, &k) in x[1].i().iter().zip(scales.iter().cycle()) {
            let code = usize::try_from(token).ok().filter(|&t| t < codes);
            if let Some(code) = code {
                counts[k * codes + code] += 1;
            }
        }
        let (keep, gain) = (R::of(self.keep), R::of(1.0 - self.keep));
        for ((y, &u), n) in y[0].r().iter_mut().zip(x[0].r()).zip(counts) {
            *y = keep * u + gain * R::of(f64::from(n));
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: usize, sides: &[usize], codes: usize, keep| {
            let length = sides.iter().map(|p| p * p).sum();
            let usage = Input::uniform([sides.len(), codes], 0.0, 5.0);
            let op = CodeUsage { sides: sides.to_vec(), keep };
            Case::new(name, op, vec![usage, Input::below([rows, length], codes + 1)])
        };
        Cases {
            named: vec![
                case("t0", 3, &[1, 2, 3, 4], 40, 0.9),
                case("one", 1, &[1], 1, 0.99),
                case("past_a_block", 2, &[2, 9], 2050, 0.9),
                case("counts", 5, &[4], 60, 0.0),
                case("no_rows", 0, &[1, 4], 7, 0.9),
            ],
            draw: |d| {
                let (side, codes) = (d.size(1, 6), d.size(1, 90));
                let op = CodeUsage { sides: vec![1, side], keep: d.pick(&[0.0, 0.9, 0.99]) };
                let tokens = Input::below([d.size(1, 4), 1 + side * side], codes + 1);
                Case::new("drawn", op, vec![Input::uniform([2, codes], 0.0, 5.0), tokens])
            },
            bench: vec![case("paper", 32, &PAPER, 4096, 0.99)],
        }
    }
}

/// The sides of VAR's scales.
const PAPER: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];

impl Op for ReviveCodes {
    const NAME: &'static str = "revive_codes";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_OUTPUTS: &'static [usize] = &[1];
    const DIFF: Diff = KEPT;
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let ([y, pick], (scales, codes)) = (y, x[0].shape.matrix()) else {
            return Err(Error::Internal("revive_codes has two outputs".into()));
        };
        let (usage, pulse) = (x[0].get::<T>()?, x[1].get::<T>()?);
        let length: usize = op.sides.iter().map(|p| p * p).sum();
        let [low, high] = packed(Self::NAME, &op.sides)?;
        let ([k0, k1], [t0, t1, t2]) = op.stream.name();
        let (rows, length, below) = (op.rows as u32, length as u32, op.below as f32);
        let grid = Grid::line(1, 1024);
        let (y, pick) = (&mut y.get::<T>()?, &mut pick.get::<i32>()?);
        launch::revive_codes_fwd(
            q, grid, y, pick, &usage, &pulse, scales, codes, rows, length, low, high, k0, k1, t0,
            t1, t2, below,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match (x[0].dims(), x[1].dims()) {
            (&[k, v], &[1]) if k == self.sides.len() => Ok(vec![x[0].clone(), [v].into()]),
            _ => Err(wrong(Self::NAME, "usage [K, V] and a pulse [1]", x)),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [usage, pick] = y else { return };
        let (codes, (drawn, even)) = (x[0].shape.last(), draws(&x[0]));
        let moves = self.rows > 0 && x[1].r().iter().all(|p| p.val().is_finite());
        let length: usize = self.sides.iter().map(|p| p * p).sum();
        usage.r().copy_from_slice(x[0].r());
        for (v, (pick, &own)) in pick.i().iter_mut().zip(&drawn).enumerate() {
            *pick = -1;
            if !moves || !is_unused(own, even, self.below) {
                continue;
            }
            let row = self.stream.below(v, self.rows);
            *pick = row as i32;
            let mut begin = 0;
            for (k, p) in self.sides.iter().enumerate() {
                let scale = begin..begin + p * p;
                let credit = scale.contains(&(row % length.max(1)));
                usage.r()[k * codes + v] = if credit { even } else { R::of(0.0) };
                begin = scale.end;
            }
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, sides: &[usize], codes: usize, below| {
            let length: usize = sides.iter().map(|p| p * p).sum();
            let stream = Stream::new(5, 7, u16::MAX, Purpose::Test);
            let op = ReviveCodes { sides: sides.to_vec(), rows: 3 * length, below, stream };
            let usage = Input::uniform([sides.len(), codes], 0.0, 5.0);
            Case::new(name, op, vec![usage, Input::normal([1])])
        };
        Cases {
            named: vec![
                case("t0", &[1, 2, 3, 4], 40, 0.9),
                case("all", &[1, 3], 33, 1e6),
                case("none", &[1, 3], 33, 0.0),
                case("one", &[1], 1, 0.5),
                case("past_a_block", &[2, 9], 2050, 1.0),
            ],
            draw: |d| {
                let (side, codes) = (d.size(1, 6), d.size(1, 90));
                let stream = Stream::new(d.size(0, 99) as u64, 1, 0, Purpose::Test);
                let (rows, below) = (d.size(0, 200), d.pick(&[0.1, 0.7, 1.1]));
                let op = ReviveCodes { sides: vec![1, side], rows, below, stream };
                let usage = Input::uniform([2, codes], 0.0, 5.0);
                Case::new("drawn", op, vec![usage, Input::normal([1])])
            },
            bench: vec![case("paper", &PAPER, 4096, 0.01)],
        }
    }
}

impl Op for CodeHealth {
    const NAME: &'static str = "code_health";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_INPUTS: &'static [usize] = &[1];
    const DIFF: Diff = KEPT;
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let ((scales, codes), below) = (x[0].shape.matrix(), op.below as f32);
        let (usage, pick) = (x[0].get::<T>()?, x[1].get::<i32>()?);
        let (y, grid) = (&mut y[0].get::<T>()?, block_per_job(q, scales + 1));
        launch::code_health_fwd(q, grid, y, &usage, &pick, scales, codes, below)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match (x[0].dims(), x[1].dims()) {
            (&[k, v], &[n]) if v == n => Ok(vec![[k + 2].into()]),
            _ => Err(wrong(Self::NAME, "usage [K, V] and rows [V]", x)),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (scales, codes) = x[0].shape.matrix();
        let (drawn, even) = draws(&x[0]);
        let y = y[0].r();
        for (y, own) in y.iter_mut().zip(x[0].r().chunks(codes.max(1))) {
            *y = perplexity(own);
        }
        if codes == 0 {
            y.fill(R::of(0.0));
        }
        let live = drawn.iter().filter(|&&d| !is_unused(d, even, self.below)).count();
        y[scales] = R::of(live as f64);
        y[scales + 1] = R::of(x[1].i().iter().filter(|&&row| row >= 0).count() as f64);
    }
    fn cases() -> Cases {
        let case = |name: &str, scales: usize, codes: usize| {
            let usage = Input::uniform([scales, codes], 0.0, 5.0);
            Case::new(name, CodeHealth { below: 0.3 }, vec![usage, Input::below([codes], 9)])
        };
        Cases {
            named: vec![
                case("t0", 4, 40),
                case("one", 1, 1),
                case("odd", 3, 333),
                case("past_a_block", 2, 1030),
            ],
            draw: |d| {
                let (scales, codes) = (d.size(1, 6), d.size(1, 90));
                let usage = Input::uniform([scales, codes], 0.0, 5.0);
                let op = CodeHealth { below: 0.1 };
                Case::new("drawn", op, vec![usage, Input::below([codes], 9)])
            },
            bench: vec![case("paper", 10, 4096)],
        }
    }
}

/// e^(entropy) of how often each code is drawn; 0 where nothing is.
fn perplexity<R: Real>(counts: &[R]) -> R {
    let total = R::sum(counts.iter().copied());
    if total.val() <= 0.0 {
        return R::of(0.0);
    }
    let shares = counts.iter().map(|&c| c / total).filter(|q| q.val() > 0.0);
    (-R::sum(shares.map(|q| q * q.ln()))).exp()
}

impl Op for ReplaceRows {
    const NAME: &'static str = "replace_rows";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const INT_INPUTS: &'static [usize] = &[2];
    const DIFF: Diff = KEPT;
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let ((rows, cols), count) = (x[0].shape.matrix(), x[1].shape.matrix().0);
        let (own, from, pick) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<i32>()?);
        let (y, grid) = (&mut y[0].get::<T>()?, over_elements(q, rows * cols));
        launch::replace_rows_fwd(q, grid, y, &own, &from, &pick, rows, cols, count)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match (x[0].dims(), x[1].dims(), x[2].dims()) {
            (&[v, c], &[_, from], &[n]) if v == n && c == from => Ok(vec![x[0].clone()]),
            _ => Err(wrong(Self::NAME, "x [V, C], rows [n, C] and numbers [V]", x)),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (cols, count) = (x[0].shape.last(), x[1].shape.matrix().0);
        for (i, y) in y[0].r().iter_mut().enumerate() {
            let row = usize::try_from(x[2].i()[i / cols]).ok().filter(|&row| row < count);
            *y = row.map_or(x[0].r()[i], |row| x[1].r()[row * cols + i % cols]);
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, [rows, count, cols]: [usize; 3]| {
            let pick = Input::below([rows], 2 * count + 1);
            let inputs = vec![Input::normal([rows, cols]), Input::normal([count, cols]), pick];
            Case::new(name, ReplaceRows, inputs)
        };
        Cases {
            named: vec![
                case("codes", [40, 30, 16]),
                case("odd", [7, 3, 5]),
                case("no_rows", [4, 0, 8]),
                case("past_a_block", [300, 9, 33]),
            ],
            draw: |d| {
                let [rows, count, cols] = [d.size(1, 60), d.size(1, 30), d.size(1, 40)];
                let pick = Input::below([rows], 2 * count);
                let inputs = vec![Input::normal([rows, cols]), Input::normal([count, cols]), pick];
                Case::new("drawn", ReplaceRows, inputs)
            },
            bench: vec![case("paper", [4096, 32 * 680, 32])],
        }
    }
}
