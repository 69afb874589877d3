//! RMS norm over the last axis: rows brought to a root mean square of 1, their mean left alone.
//!
//! LlamaGen's blocks use it with eps = 1e-5 and a weight per channel, which is the layer's.

use std::ops::RangeInclusive;

use super::{mean, row_cases, row_inputs, row_stats, row_vjp, rows_cpu, rows_vjp_cpu, two_outputs};
use crate::device::launch::norm as launch;
use crate::error::Result;
use crate::ops::cuda::{Kernels, kernels, warp_per_row};
use crate::ops::{
    Case, Cases, CpuFace, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
    lanes,
};
use crate::tensor::{Shape, Tensor};

/// y = x rstd over the last axis, with rstd = 1 / sqrt(mean(x^2) + eps). Second output: rstd
/// [.., 1].
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
}

/// Both derivatives of [`RmsNorm`], from (y, rstd, g).
#[derive(Clone, Debug)]
pub struct RmsNormVjp;

impl Op for RmsNorm {
    const NAME: &'static str = "rms_norm";
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
                let rstd = 1.0 / (lanes::sum(x, |x| x * x) * inv + eps).sqrt();
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = x * rstd;
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
        launch::rms_norm_fwd(q, grid, &mut y, &mut rstd, &x[0].get::<T>()?, rows, cols, eps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_stats(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = x[0].shape.last();
        for (r, x) in x[0].r().chunks(n).enumerate() {
            let square = mean(n, x.iter().map(|&x| x * x));
            let rstd = R::of(1.0) / (square + R::of(self.eps)).sqrt();
            for (y, &x) in y[0].r()[r * n..].iter_mut().zip(x) {
                *y = x * rstd;
            }
            y[1].r()[r] = rstd;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(&RmsNormVjp, &[at.y()?, at.extra(0)?, dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&RmsNormVjp, &[at.y()?, at.extra(0)?, gy])?)])
    }
    fn cases() -> Cases {
        let op = || RmsNorm { eps: 1e-5 };
        Cases {
            named: row_cases(op, false, Input::normal),
            draw: |d| {
                let s = [d.size(1, 9), d.size(1, 70)];
                Case::new("drawn", RmsNorm { eps: 1e-5 }, vec![Input::normal(s)])
            },
            bench: vec![Case::new("tokens", op(), vec![Input::normal([16, 130, 256])])],
        }
    }
}

impl Op for RmsNormVjp {
    const NAME: &'static str = "rms_norm_vjp";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(|_, x, gx| {
        let inv = 1.0 / x[0].shape.last() as f32;
        rows_vjp_cpu(
            x,
            gx,
            #[inline(always)]
            |h, rstd, g, gx| {
                let mhg = lanes::sum2(h, g, |h, g| h * g) * inv;
                for (gx, (&h, &g)) in gx.iter_mut().zip(h.iter().zip(g)) {
                    *gx = rstd * (g - h * mhg);
                }
            },
        );
    });
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, gx| {
        let (rows, cols) = x[0].shape.matrix();
        let (y, gy, rstd) = (x[0].get::<T>()?, x[2].get::<T>()?, x[1].get::<f32>()?);
        let grid = warp_per_row(q, rows);
        launch::rms_norm_vjp(q, grid, &mut gx[0].get::<T>()?, &y, &rstd, &gy, rows, cols)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        row_vjp(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], gx: &mut [Out<'_, R>]) {
        let n = x[0].shape.last().max(1);
        for (r, (h, g)) in x[0].r().chunks(n).zip(x[2].r().chunks(n)).enumerate() {
            let mhg = mean(n, h.iter().zip(g).map(|(&h, &g)| h * g));
            for (gx, (&h, &g)) in gx[0].r()[r * n..].iter_mut().zip(h.iter().zip(g)) {
                *gx = x[1].r()[r] * (g - h * mhg);
            }
        }
    }
    fn cases() -> Cases {
        let stat = |s: Shape| Input::uniform(s, 0.5, 2.0);
        Cases {
            named: row_cases(|| RmsNormVjp, true, stat),
            draw: |d| {
                let s = [d.size(1, 9), d.size(1, 70)];
                Case::new("drawn", RmsNormVjp, row_inputs(&s, true, Input::normal))
            },
            bench: vec![Case::new("tokens", RmsNormVjp, row_inputs(&[16, 130, 256], true, stat))],
        }
    }
}
