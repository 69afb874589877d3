//! Norms over the last axis, all without an affine part: layer norm, RMS norm, L2 normalisation.
//!
//! Their Jacobians are symmetric, so one kernel serves both modes. With h the normalised row and r
//! its factor:
//!   layer norm   r (g - mean(g) - h mean(h g))
//!   RMS norm     r (g - h mean(h g))
//!   L2           r (g - h sum(h g)), or r g where the length was clamped

mod ada;
mod dual;
mod heads;
mod rms;

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, warp_per_row};
use super::{
    Case, Cases, CpuFace, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
    lanes,
};
use crate::device::cpu;
use crate::device::launch::norm as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use ada::{AdaNorm, AdaNormJvp, AdaNormVjp};
pub use dual::AdaNormDual;
pub use heads::{EPS as HEAD_EPS, LN_MAX_SCALE, UnitHeads};
pub use rms::{RmsNorm, RmsNormVjp};

/// y = (x - mean) rstd over the last axis, with rstd = 1 / sqrt(variance + eps). Second output:
/// rstd [.., 1].
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// Both derivatives of [`LayerNorm`], from (y, rstd, g).
#[derive(Clone, Debug)]
pub struct LayerNormVjp;

/// y = x / max(|x|, eps) over the last axis. Second output: |x| [.., 1].
#[derive(Clone, Debug)]
pub struct L2Normalize {
    /// The length below which a row is no longer brought to length 1.
    pub eps: f64,
}

/// Both derivatives of [`L2Normalize`], from (y, |x|, g).
#[derive(Clone, Debug)]
pub struct L2NormalizeVjp {
    /// As in [`L2Normalize`].
    pub eps: f64,
}

/// Shapes (x, [.., 1]) of a norm over the last axis.
fn row_stats(op: &'static str, x: &[&Shape]) -> Result<Vec<Shape>> {
    match x {
        [x] if x.last() > 0 && x.rank() > 0 => Ok(vec![(*x).clone(), x.with_last(1)]),
        _ => Err(Error::shape(op, "wants one input whose last axis is not empty")),
    }
}

/// Checks (y, statistic, g).
fn row_vjp(op: &'static str, x: &[&Shape]) -> Result<Vec<Shape>> {
    match x {
        [y, stat, g] if y == g && **stat == y.with_last(1) => Ok(vec![(*y).clone()]),
        _ => Err(Error::shape(op, "wants y [.., C], its statistic [.., 1] and g [.., C]")),
    }
}

/// Runs `f(x row, y row) -> statistic` for each row.
#[inline(always)]
fn rows_cpu(
    x: &[In<'_, f32>],
    y: &mut [Out<'_, f32>],
    f: impl Fn(&[f32], &mut [f32]) -> f32 + Sync,
) {
    let (cols, x) = (x[0].shape.last(), x[0].r());
    let [y, stat] = y else { return };
    cpu::par_rows_and(y.r(), cols, stat.r(), 1, |first, y, stat| {
        cpu::simd(
            #[inline(always)]
            || {
                for (i, (y, s)) in y.chunks_exact_mut(cols).zip(stat).enumerate() {
                    let at = (first + i) * cols;
                    *s = f(&x[at..at + cols], y);
                }
            },
        );
    });
}

/// Runs `f(y row, statistic, g row, gx row)` for each row.
#[inline(always)]
fn rows_vjp_cpu(
    x: &[In<'_, f32>],
    gx: &mut [Out<'_, f32>],
    f: impl Fn(&[f32], f32, &[f32], &mut [f32]) + Sync,
) {
    let cols = x[0].shape.last();
    let (y, stat, g) = (x[0].r(), x[1].r(), x[2].r());
    cpu::par_rows(gx[0].r(), cols, |first, part| {
        cpu::simd(
            #[inline(always)]
            || {
                for (i, gx) in part.chunks_exact_mut(cols).enumerate() {
                    let at = (first + i) * cols..(first + i + 1) * cols;
                    f(&y[at.clone()], stat[first + i], &g[at], gx);
                }
            },
        );
    });
}

/// Named shapes round the vector width for an op over rows.
fn row_cases<O: Op>(op: fn() -> O, vjp: bool, stat: fn(Shape) -> Input) -> Vec<Case> {
    let shapes: &[(&str, &[usize])] = &[
        ("two", &[4, 2]),
        ("odd", &[3, 5, 7]),
        ("vector", &[3, 16]),
        ("past_a_vector", &[2, 17]),
        ("heads", &[2, 3, 4, 64]),
        ("no_rows", &[0, 8]),
        ("past_a_chunk", &[70, 257]),
    ];
    shapes.iter().map(|(name, s)| Case::new(*name, op(), row_inputs(s, vjp, stat))).collect()
}

fn row_inputs(shape: &[usize], vjp: bool, stat: fn(Shape) -> Input) -> Vec<Input> {
    let x = Input::normal(shape);
    match vjp {
        false => vec![x],
        true => vec![x.clone(), stat(x.shape.with_last(1)), x],
    }
}

/// A face was given other outputs than `shapes` names.
fn two_outputs(op: &'static str) -> Error {
    Error::Internal(format!("{op} writes two outputs"))
}

fn mean<R: Real>(n: usize, terms: impl Iterator<Item = R>) -> R {
    R::sum(terms) * R::of(1.0 / n as f64)
}

impl Op for LayerNorm {
    const NAME: &'static str = "layer_norm";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const SAVES: Saves = Saves::NOTHING.and_output().and_extras();
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let eps = op.eps as f32;
        let inv = 1.0 / x[0].shape.last() as f32;
        rows_cpu(
            x,
            y,
            #[inline(always)]
            |x, y| {
                let mean = lanes::sum(x, |x| x) * inv;
                let var = lanes::sum(x, |x| (x - mean) * (x - mean)) * inv;
                let rstd = 1.0 / (var + eps).sqrt();
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - mean) * rstd;
                }
                rstd
            },
        );
    });
    const F32_OUTPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols) = x[0].shape.matrix();
        let [y, rstd] = y else { return Err(two_outputs(Self::NAME)) };
        let (mut y, mut rstd, eps) = (y.get::<T>()?, rstd.get::<f32>()?, op.eps as f32);
        let grid = warp_per_row(q, rows);
        launch::layer_norm_fwd(q, grid, &mut y, &mut rstd, &x[0].get::<T>()?, rows, cols, eps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_stats(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = x[0].shape.last();
        for (r, x) in x[0].r().chunks(n).enumerate() {
            let m = mean(n, x.iter().copied());
            let var = mean(n, x.iter().map(|&x| (x - m) * (x - m)));
            let rstd = R::of(1.0) / (var + R::of(self.eps)).sqrt();
            for (y, &x) in y[0].r()[r * n..].iter_mut().zip(x) {
                *y = (x - m) * rstd;
            }
            y[1].r()[r] = rstd;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(&LayerNormVjp, &[at.y()?, at.extra(0)?, dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&LayerNormVjp, &[at.y()?, at.extra(0)?, gy])?)])
    }
    fn cases() -> Cases {
        let op = || LayerNorm { eps: 1e-6 };
        Cases {
            named: row_cases(op, false, Input::normal),
            draw: |d| {
                let s = [d.size(1, 9), d.size(2, 70)];
                Case::new("drawn", LayerNorm { eps: 1e-5 }, vec![Input::normal(s)])
            },
            bench: vec![Case::new("tokens", op(), vec![Input::normal([16, 130, 256])])],
        }
    }
}

impl Op for LayerNormVjp {
    const NAME: &'static str = "layer_norm_vjp";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|_, x, gx| {
        let inv = 1.0 / x[0].shape.last() as f32;
        rows_vjp_cpu(
            x,
            gx,
            #[inline(always)]
            |h, rstd, g, gx| {
                let mg = lanes::sum(g, |g| g) * inv;
                let mhg = lanes::sum2(h, g, |h, g| h * g) * inv;
                for (gx, (&h, &g)) in gx.iter_mut().zip(h.iter().zip(g)) {
                    *gx = rstd * (g - mg - h * mhg);
                }
            },
        );
    });
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, gx| {
        let (rows, cols) = x[0].shape.matrix();
        let (y, gy, rstd) = (x[0].get::<T>()?, x[2].get::<T>()?, x[1].get::<f32>()?);
        let grid = warp_per_row(q, rows);
        launch::layer_norm_vjp(q, grid, &mut gx[0].get::<T>()?, &y, &rstd, &gy, rows, cols)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_vjp(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], gx: &mut [Out<'_, R>]) {
        let n = x[0].shape.last().max(1);
        for (r, (h, g)) in x[0].r().chunks(n).zip(x[2].r().chunks(n)).enumerate() {
            let mg = mean(n, g.iter().copied());
            let mhg = mean(n, h.iter().zip(g).map(|(&h, &g)| h * g));
            for (gx, (&h, &g)) in gx[0].r()[r * n..].iter_mut().zip(h.iter().zip(g)) {
                *gx = x[1].r()[r] * (g - mg - h * mhg);
            }
        }
    }
    fn cases() -> Cases {
        let stat = |s: Shape| Input::uniform(s, 0.5, 2.0);
        Cases {
            named: row_cases(|| LayerNormVjp, true, stat),
            draw: |d| {
                let s = [d.size(1, 9), d.size(2, 70)];
                Case::new("drawn", LayerNormVjp, row_inputs(&s, true, Input::normal))
            },
            bench: vec![Case::new("tokens", LayerNormVjp, row_inputs(&[16, 130, 256], true, stat))],
        }
    }
}

impl Op for L2Normalize {
    const NAME: &'static str = "l2_normalize";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const SAVES: Saves = Saves::NOTHING.and_output().and_extras();
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let eps = op.eps as f32;
        rows_cpu(
            x,
            y,
            #[inline(always)]
            |x, y| {
                let norm = lanes::sum(x, |x| x * x).sqrt();
                // Written so that a NaN length stays NaN.
                let factor = 1.0 / if norm < eps { eps } else { norm };
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * factor;
                }
                norm
            },
        );
    });
    const F32_OUTPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols) = x[0].shape.matrix();
        let [y, length] = y else { return Err(two_outputs(Self::NAME)) };
        let (mut y, mut length, eps) = (y.get::<T>()?, length.get::<f32>()?, op.eps as f32);
        let grid = warp_per_row(q, rows);
        launch::l2_normalize_fwd(q, grid, &mut y, &mut length, &x[0].get::<T>()?, rows, cols, eps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_stats(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = x[0].shape.last();
        for (r, x) in x[0].r().chunks(n).enumerate() {
            let norm = R::sum(x.iter().map(|&x| x * x)).sqrt();
            let length = norm.max(R::of(self.eps));
            for (y, &x) in y[0].r()[r * n..].iter_mut().zip(x) {
                *y = x / length;
            }
            y[1].r()[r] = norm;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let op = L2NormalizeVjp { eps: self.eps };
        dx[0].map(|dx| call(&op, &[at.y()?, at.extra(0)?, dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let op = L2NormalizeVjp { eps: self.eps };
        Ok(vec![Some(call(&op, &[at.y()?, at.extra(0)?, gy])?)])
    }
    fn cases() -> Cases {
        let op = || L2Normalize { eps: 1e-12 };
        let mut named = row_cases(op, false, Input::normal);
        // Rows far shorter than eps: the other branch.
        named.push(Case::new("clamped", L2Normalize { eps: 1e3 }, vec![Input::normal([5, 9])]));
        Cases {
            named,
            draw: |d| {
                let s = [d.size(1, 9), d.size(1, 70)];
                Case::new("drawn", L2Normalize { eps: 1e-6 }, vec![Input::normal(s)])
            },
            bench: vec![Case::new("heads", op(), vec![Input::normal([16, 130, 4, 64])])],
        }
    }
}

impl Op for L2NormalizeVjp {
    const NAME: &'static str = "l2_normalize_vjp";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, gx| {
        let eps = op.eps as f32;
        rows_vjp_cpu(
            x,
            gx,
            #[inline(always)]
            |h, norm, g, gx| {
                let clamped = norm < eps;
                let factor = 1.0 / if clamped { eps } else { norm };
                let along = if clamped { 0.0 } else { lanes::sum2(h, g, |h, g| h * g) };
                for (gx, (&h, &g)) in gx.iter_mut().zip(h.iter().zip(g)) {
                    *gx = factor * (g - h * along);
                }
            },
        );
    });
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, gx| {
        let (rows, cols) = x[0].shape.matrix();
        let (y, gy, length) = (x[0].get::<T>()?, x[2].get::<T>()?, x[1].get::<f32>()?);
        let (grid, eps) = (warp_per_row(q, rows), op.eps as f32);
        launch::l2_normalize_vjp(q, grid, &mut gx[0].get::<T>()?, &y, &length, &gy, rows, cols, eps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_vjp(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], gx: &mut [Out<'_, R>]) {
        let n = x[0].shape.last().max(1);
        for (r, (h, g)) in x[0].r().chunks(n).zip(x[2].r().chunks(n)).enumerate() {
            let (norm, eps) = (x[1].r()[r], R::of(self.eps));
            let clamped = norm < eps;
            let length = if clamped { eps } else { norm };
            let along = match clamped {
                true => R::of(0.0),
                false => R::sum(h.iter().zip(g).map(|(&h, &g)| h * g)),
            };
            for (gx, (&h, &g)) in gx[0].r()[r * n..].iter_mut().zip(h.iter().zip(g)) {
                *gx = (g - h * along) / length;
            }
        }
    }
    fn cases() -> Cases {
        let stat = |s: Shape| Input::uniform(s, 0.5, 2.0);
        let op = || L2NormalizeVjp { eps: 1e-12 };
        let mut named = row_cases(op, true, stat);
        let inputs = row_inputs(&[5, 9], true, stat);
        named.push(Case::new("clamped", L2NormalizeVjp { eps: 1e3 }, inputs));
        Cases {
            named,
            draw: |d| {
                let inputs = row_inputs(&[d.size(1, 9), d.size(1, 70)], true, |s| {
                    Input::uniform(s, 0.5, 2.0)
                });
                Case::new("drawn", L2NormalizeVjp { eps: 1.0 }, inputs)
            },
            bench: vec![Case::new("heads", op(), row_inputs(&[16, 130, 4, 64], true, stat))],
        }
    }
}
