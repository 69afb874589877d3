//! Batch norm in training mode: each column of [B, C] normalised over the batch, then scaled and
//! shifted.
//!
//! With h = (x - mean) rstd and P g = rstd (g - mean(g) - h mean(h g)) down each column:
//!   gx = w P gy,   gw = sum(h gy),   gb = sum(gy),   dy = w P dx + h dw + db.
//! P is symmetric, so the tangent reuses the gradient's kernel; evaluation mode is an affine map
//! and lives in the layer.

mod cuda;

use std::ops::RangeInclusive;

use super::cuda::Kernels;
use super::elementwise::ADD;
use super::{
    Case, Cases, CpuFace, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
    run,
};
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// y = (x - mean) rstd w + b with statistics over the rows: x [B, C], w `[C]`, b `[C]`. Further
/// outputs: mean `[C]` and variance `[C]` of the batch (divided by B), which a layer keeps running
/// averages of.
#[derive(Clone, Debug)]
pub struct BatchNormTrain {
    /// Added to the variance.
    pub eps: f64,
}

/// Gradients (gx, gw, gb) of [`BatchNormTrain`], from (x, w, mean, variance, gy).
#[derive(Clone, Debug)]
pub struct BatchNormTrainVjp {
    /// Added to the variance.
    pub eps: f64,
}

/// Columns of a parallel piece.
const COLUMNS: usize = 256;

/// Sums of columns `first..first + n` of `rows` rows: `f(row, column)` added up from the first row
/// on.
#[inline(always)]
fn column_sums(rows: usize, first: usize, n: usize, f: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut sums = vec![0.0; n];
    for r in 0..rows {
        for (c, s) in sums.iter_mut().enumerate() {
            *s += f(r, first + c);
        }
    }
    sums
}

/// Runs `f(first column, columns)` on pieces of the columns and joins the pairs it returns.
fn by_columns(
    cols: usize,
    f: impl Fn(usize, usize) -> (Vec<f32>, Vec<f32>) + Sync + Send,
) -> (Vec<f32>, Vec<f32>) {
    let pieces = cpu::par_map(cols.div_ceil(COLUMNS), |i| {
        let first = i * COLUMNS;
        cpu::simd(
            #[inline(always)]
            || f(first, COLUMNS.min(cols - first)),
        )
    });
    let (a, b): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
    (a.concat(), b.concat())
}

/// Runs `f(row, y row)` over the rows of y.
fn each_row(y: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    cpu::par_rows(y, cols, |first, part| {
        cpu::simd(
            #[inline(always)]
            || {
                for (i, y) in part.chunks_exact_mut(cols).enumerate() {
                    f(first + i, y);
                }
            },
        );
    });
}

fn scaled(v: Vec<f32>, by: f32) -> Vec<f32> {
    v.into_iter().map(|v| v * by).collect()
}

fn train_cpu(op: &BatchNormTrain, x: &[In<'_, f32>], out: &mut [Out<'_, f32>]) {
    let [y, mean, var] = out else { return };
    let (rows, cols) = x[0].shape.matrix();
    let inv = 1.0 / rows as f32;
    let (x, w, b) = (x[0].r(), x[1].r(), x[2].r());
    let (m, v) = by_columns(cols, |first, n| {
        let m = scaled(column_sums(rows, first, n, |r, c| x[r * cols + c]), inv);
        let v = column_sums(rows, first, n, |r, c| {
            let d = x[r * cols + c] - m[c - first];
            d * d
        });
        (m, scaled(v, inv))
    });
    mean.r().copy_from_slice(&m);
    var.r().copy_from_slice(&v);
    let rstd: Vec<f32> = v.iter().map(|v| 1.0 / (v + op.eps as f32).sqrt()).collect();
    each_row(y.r(), cols, |r, y| {
        let x = &x[r * cols..(r + 1) * cols];
        for c in 0..cols {
            y[c] = (x[c] - m[c]) * rstd[c] * w[c] + b[c];
        }
    });
}

fn vjp_cpu(op: &BatchNormTrainVjp, x: &[In<'_, f32>], out: &mut [Out<'_, f32>]) {
    let [gx, gw, gb] = out else { return };
    let (rows, cols) = x[0].shape.matrix();
    let inv = 1.0 / rows as f32;
    let [v, w, mean, var, g] = [x[0].r(), x[1].r(), x[2].r(), x[3].r(), x[4].r()];
    let rstd: Vec<f32> = var.iter().map(|v| 1.0 / (v + op.eps as f32).sqrt()).collect();
    let (w_sum, b_sum) = by_columns(cols, |first, n| {
        let gw = column_sums(rows, first, n, |r, c| {
            (v[r * cols + c] - mean[c]) * rstd[c] * g[r * cols + c]
        });
        (gw, column_sums(rows, first, n, |r, c| g[r * cols + c]))
    });
    gw.r().copy_from_slice(&w_sum);
    gb.r().copy_from_slice(&b_sum);
    each_row(gx.r(), cols, |r, gx| {
        let (v, g) = (&v[r * cols..(r + 1) * cols], &g[r * cols..(r + 1) * cols]);
        for c in 0..cols {
            let h = (v[c] - mean[c]) * rstd[c];
            gx[c] = w[c] * rstd[c] * (g[c] - b_sum[c] * inv - h * (w_sum[c] * inv));
        }
    });
}

/// Checks x [B, C] and per-column inputs.
fn check(op: &'static str, x: &Shape, columns: &[&Shape]) -> Result<(Shape, Shape)> {
    let c = Shape::from([x.last()]);
    if x.rank() != 2 || x.dims()[0] == 0 || columns.iter().any(|s| **s != c) {
        let found: Vec<String> = columns.iter().map(ToString::to_string).collect();
        let what =
            format!("wants x [B, C] with B > 0 and vectors [C]; found {x}, {}", found.join(", "));
        return Err(Error::shape(op, what));
    }
    Ok((x.clone(), c))
}

fn inputs(b: usize, c: usize, vjp: bool) -> Vec<Input> {
    let (x, v) = (Input::normal([b, c]), Input::normal([c]));
    match vjp {
        false => vec![x, v.clone(), v],
        true => vec![x.clone(), v.clone(), v, Input::uniform([c], 0.5, 2.0), x],
    }
}

fn named<O: Op>(op: fn() -> O, vjp: bool) -> Vec<Case> {
    let shapes = [
        ("two", 2, 5),
        ("odd", 7, 19),
        ("past_a_piece", 9, 300),
        ("past_a_chunk", 70, 257),
        // More rows than a block holds.
        ("tall", 200, 8),
        ("tall_odd", 190, 3),
    ];
    shapes.map(|(name, b, c)| Case::new(name, op(), inputs(b, c, vjp))).into()
}

impl Op for BatchNormTrain {
    const NAME: &'static str = "batch_norm_train";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]).and_extras();
    const CPU: Option<CpuFace<Self>> = Some(train_cpu);
    const CUDA: Kernels<Self> = cuda::FORWARD;
    const F32_OUTPUTS: &'static [usize] = &[1, 2];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (x, c) = check(Self::NAME, x[0], &x[1..])?;
        Ok(vec![x, c.clone(), c])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (rows, cols) = x[0].shape.matrix();
        let (w, b, x) = (x[1].r(), x[2].r(), x[0].r());
        let inv = R::of(1.0 / rows as f64);
        for c in 0..cols {
            let mean = R::sum((0..rows).map(|r| x[r * cols + c])) * inv;
            let squares = (0..rows).map(|r| (x[r * cols + c] - mean) * (x[r * cols + c] - mean));
            let var = R::sum(squares) * inv;
            let rstd = R::of(1.0) / (var + R::of(self.eps)).sqrt();
            for r in 0..rows {
                y[0].r()[r * cols + c] = (x[r * cols + c] - mean) * rstd * w[c] + b[c];
            }
            y[1].r()[c] = mean;
            y[2].r()[c] = var;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let (x, w) = (at.x(0)?, at.x(1)?);
        let vjp = BatchNormTrainVjp { eps: self.eps };
        let dy = dx[0].map(|dx| call(&vjp, &[x, w, at.extra(0)?, at.extra(1)?, dx])).transpose()?;
        if dx[1].is_none() && dx[2].is_none() {
            return Ok(dy);
        }
        // y is linear in (w, b).
        let zero = Tensor::zeros(w.dtype(), w.shape());
        let affine = call(self, &[x, dx[1].unwrap_or(&zero), dx[2].unwrap_or(&zero)])?;
        Ok(Some(match dy {
            Some(dy) => call(&ADD, &[&dy, &affine])?,
            None => affine,
        }))
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let vjp = BatchNormTrainVjp { eps: self.eps };
        let grads = run(&vjp, &[at.x(0)?, at.x(1)?, at.extra(0)?, at.extra(1)?, gy])?;
        Ok(grads.into_iter().zip(want).map(|(g, &want)| want.then_some(g)).collect())
    }
    fn cases() -> Cases {
        let op = || BatchNormTrain { eps: 1e-5 };
        Cases {
            named: named(op, false),
            draw: |d| {
                let inputs = inputs(d.size(2, 12), d.size(1, 40), false);
                Case::new("drawn", BatchNormTrain { eps: 1e-3 }, inputs)
            },
            bench: vec![Case::new("genes", op(), inputs(128, 6000, false))],
        }
    }
}

impl Op for BatchNormTrainVjp {
    const NAME: &'static str = "batch_norm_train_vjp";
    const INPUTS: RangeInclusive<usize> = 5..=5;
    const DIFF: Diff = FIRST_ORDER;
    const CPU: Option<CpuFace<Self>> = Some(vjp_cpu);
    const CUDA: Kernels<Self> = cuda::BACKWARD;
    const F32_INPUTS: &'static [usize] = &[2, 3];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (full, c) = check(Self::NAME, x[0], &x[1..4])?;
        if *x[4] != full {
            return Err(Error::shape(Self::NAME, format!("x is {full}, gy is {}", x[4])));
        }
        Ok(vec![full, c.clone(), c])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (rows, cols) = x[0].shape.matrix();
        let [v, w, mean, var, g] = [x[0].r(), x[1].r(), x[2].r(), x[3].r(), x[4].r()];
        let inv = R::of(1.0 / rows as f64);
        for c in 0..cols {
            let rstd = R::of(1.0) / (var[c] + R::of(self.eps)).sqrt();
            let h = |r: usize| (v[r * cols + c] - mean[c]) * rstd;
            let gb = R::sum((0..rows).map(|r| g[r * cols + c]));
            let gw = R::sum((0..rows).map(|r| h(r) * g[r * cols + c]));
            for r in 0..rows {
                let inner = g[r * cols + c] - gb * inv - h(r) * (gw * inv);
                y[0].r()[r * cols + c] = w[c] * rstd * inner;
            }
            y[1].r()[c] = gw;
            y[2].r()[c] = gb;
        }
    }
    fn cases() -> Cases {
        let op = || BatchNormTrainVjp { eps: 1e-5 };
        Cases {
            named: named(op, true),
            draw: |d| {
                let inputs = inputs(d.size(2, 12), d.size(1, 40), true);
                Case::new("drawn", BatchNormTrainVjp { eps: 1e-3 }, inputs)
            },
            bench: vec![Case::new("genes", op(), inputs(128, 6000, true))],
        }
    }
}
