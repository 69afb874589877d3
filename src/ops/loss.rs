//! Cross-entropy of logits against integer targets, with label smoothing.
//!
//! With p = softmax(x) and q = (1 - s) onehot(target) + s / V:
//!   loss = lse(x) - sum(q x),   gx = g (p - q),   dloss = sum((p - q) dx).
//! A target outside 0..V makes its row's loss and gradient NaN.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, variant, warp_per_row};
use super::elementwise::Mul;
use super::reduce::SumTo;
use super::{
    Case, Cases, CpuFace, Diff, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
    fast, lanes,
};
use crate::device::cpu;
use crate::device::launch::loss as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Loss of each row: logits [.., V] and integer targets [..] to [..]. Second output: lse(x) [..].
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// Label smoothing s; 0 for none.
    pub smoothing: f64,
}

/// g (softmax(x) - q), from (x, targets, lse, g).
#[derive(Clone, Debug)]
pub struct CrossEntropyVjp(pub CrossEntropy);

/// Elements of the logits a parallel piece holds.
const PIECE: usize = 1 << 14;

impl CrossEntropy {
    fn check(&self, op: &'static str, x: &[&Shape]) -> Result<Shape> {
        let d = x[0].dims();
        if d.is_empty() || x[0].last() == 0 || x[1].dims() != &d[..d.len() - 1] {
            let what = format!("wants logits [.., V], targets [..]; found {}, {}", x[0], x[1]);
            return Err(Error::shape(op, what));
        }
        Ok(x[1].clone())
    }

    /// sum(q x) from the target's logit and the sum of all.
    fn target<R: Real>(&self, at_target: R, sum: impl FnOnce() -> R, classes: usize) -> R {
        match self.smoothing == 0.0 {
            true => at_target,
            false => {
                let s = self.smoothing;
                R::of(1.0 - s) * at_target + R::of(s / classes as f64) * sum()
            }
        }
    }
}

/// Whole rows, 1 - s and s / V, as the kernels take them.
fn constants(op: &CrossEntropy, x: &Shape) -> ((usize, usize), f32, f32) {
    let (rows, n) = x.matrix();
    ((rows, n), (1.0 - op.smoothing) as f32, (op.smoothing / n as f64) as f32)
}

/// A variant of [`CrossEntropy`]; both launchers take the same.
macro_rules! forward {
    ($name:literal, $launch:ident) => {
        variant!($name, [f32, bf16], |op, q, x, y| {
            let [loss, lse] = y else {
                return Err(Error::Internal("cross_entropy writes two outputs".into()));
            };
            let (loss, lse) = (&mut loss.get()?, &mut lse.get()?);
            let ((rows, n), peak, even) = constants(op, x[0].shape);
            let (smooth, grid) = (op.smoothing != 0.0, warp_per_row(q, rows));
            let (x, t) = (x[0].get::<T>()?, x[1].get::<i32>()?);
            launch::$launch(q, grid, loss, lse, &x, &t, rows, n, peak, even, smooth)
        })
    };
}

/// The longest row that a warp holds, so that a second pass costs no second reading.
const HELD: usize = 1024;

/// The target's logit, or NaN.
fn pick<R: Real>(x: &[R], target: i32) -> R {
    usize::try_from(target).ok().and_then(|t| x.get(t).copied()).unwrap_or(R::of(f64::NAN))
}

fn forward_cpu(op: &CrossEntropy, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let [loss, lse] = y else { return };
    let ((rows, n), targets, x) = (x[0].shape.matrix(), x[1].i(), x[0].r());
    let step = (PIECE / n).max(1);
    let pieces = cpu::par_map(rows.div_ceil(step), |i| {
        let rows = i * step..((i + 1) * step).min(rows);
        let mut pairs = vec![(0.0, 0.0); rows.len()];
        let mut e = vec![0.0; n];
        cpu::simd(
            #[inline(always)]
            || {
                for (r, pair) in rows.zip(&mut pairs) {
                    let x = &x[r * n..(r + 1) * n];
                    let top = lanes::max(x, |x| x);
                    for (e, &x) in e.iter_mut().zip(x) {
                        *e = fast::exp(x - top);
                    }
                    let lse = top + lanes::sum(&e, |e| e).ln();
                    let sum = || lanes::sum(x, |x| x);
                    *pair = (lse - op.target(pick(x, targets[r]), sum, n), lse);
                }
            },
        );
        pairs
    });
    let outs = loss.r().iter_mut().zip(lse.r());
    for ((loss, lse), pair) in outs.zip(pieces.into_iter().flatten()) {
        (*loss, *lse) = pair;
    }
}

impl Op for CrossEntropy {
    const NAME: &'static str = "cross_entropy";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_INPUTS: &'static [usize] = &[1];
    const SAVES: Saves = Saves::inputs(&[0, 1]).and_extras();
    const CPU: Option<CpuFace<Self>> = Some(forward_cpu);
    const CUDA: Kernels<Self> = Kernels {
        variants: &[
            forward!("two_pass", cross_entropy_two_pass_fwd),
            forward!("online", cross_entropy_fwd),
        ],
        fastest: |_, _, x| usize::from(x[0].last() > HELD),
    };
    const F32_OUTPUTS: &'static [usize] = &[0, 1];

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let rows = self.check(Self::NAME, x)?;
        Ok(vec![rows.clone(), rows])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = x[0].shape.last();
        for (r, (x, &t)) in x[0].r().chunks(n).zip(x[1].i()).enumerate() {
            let top = x.iter().fold(x[0], |m, &x| m.max(x));
            let lse = top + R::sum(x.iter().map(|&x| (x - top).exp())).ln();
            let sum = || R::sum(x.iter().copied());
            y[0].r()[r] = lse - self.target(pick(x, t), sum, n);
            y[1].r()[r] = lse;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let Some(dx) = dx[0] else { return Ok(None) };
        let ones = Tensor::full(dx.dtype(), at.y_shape(), 1.0);
        let op = CrossEntropyVjp(self.clone());
        let slope = call(&op, &[at.x(0)?, at.x(1)?, at.extra(0)?, &ones])?;
        let to = at.shape(0).with_last(1);
        let dy = call(&SumTo { to }, &[&call(&Mul, &[&slope, dx])?])?;
        dy.reshape(at.y_shape()).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let x = [at.x(0)?, at.x(1)?, at.extra(0)?, gy];
        Ok(vec![Some(call(&CrossEntropyVjp(self.clone()), &x)?), None])
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: &[usize], n: usize, smoothing| {
            let x = Input::normal([rows, &[n]].concat());
            Case::new(name, CrossEntropy { smoothing }, vec![x, Input::below(rows, n)])
        };
        Cases {
            named: vec![
                case("two_classes", &[3], 2, 0.0),
                case("odd", &[2, 5], 37, 0.0),
                case("smoothed", &[7], 20, 0.1),
                case("no_rows", &[0], 5, 0.0),
                case("past_a_piece", &[70], 300, 0.0),
                case("past_a_warp", &[3], 1400, 0.1),
            ],
            draw: |d| {
                let (rows, n) = (d.size(1, 9), d.size(2, 70));
                let inputs = vec![Input::normal([rows, n]), Input::below([rows], n)];
                Case::new("drawn", CrossEntropy { smoothing: 0.05 }, inputs)
            },
            bench: vec![case("tokens", &[16, 130], 512, 0.0)],
        }
    }
}

impl Op for CrossEntropyVjp {
    const NAME: &'static str = "cross_entropy_vjp";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const INT_INPUTS: &'static [usize] = &[1];
    const DIFF: Diff = FIRST_ORDER;
    const F32_INPUTS: &'static [usize] = &[2, 3];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, gx| {
        let ((rows, n), peak, even) = constants(&op.0, x[0].shape);
        let (v, t) = (x[0].get::<T>()?, x[1].get::<i32>()?);
        let (lse, g) = (x[2].get::<f32>()?, x[3].get::<f32>()?);
        let (gx, grid) = (&mut gx[0].get::<T>()?, warp_per_row(q, rows));
        launch::cross_entropy_vjp(q, grid, gx, &v, &t, &lse, &g, rows, n, peak, even)
    });
    const CPU: Option<CpuFace<Self>> = Some(|op, x, gx| {
        let (n, targets) = (x[0].shape.last(), x[1].i());
        let (x, lse, g) = (x[0].r(), x[2].r(), x[3].r());
        let spread = (op.0.smoothing / n as f64) as f32;
        let peak = (1.0 - op.0.smoothing) as f32;
        cpu::par_rows(gx[0].r(), n, |first, part| {
            cpu::simd(
                #[inline(always)]
                || {
                    for (i, gx) in part.chunks_exact_mut(n).enumerate() {
                        let r = first + i;
                        let (x, lse, g) = (&x[r * n..(r + 1) * n], lse[r], g[r]);
                        for (gx, &x) in gx.iter_mut().zip(x) {
                            *gx = g * (fast::exp(x - lse) - spread);
                        }
                        match usize::try_from(targets[r]) {
                            Ok(t) if t < n => {
                                gx[t] = g * (fast::exp(x[t] - lse) - spread - peak);
                            }
                            _ => gx.fill(f32::NAN),
                        }
                    }
                },
            );
        });
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let rows = self.0.check(Self::NAME, x)?;
        match *x[2] == rows && *x[3] == rows {
            true => Ok(vec![x[0].clone()]),
            false => Err(Error::shape(Self::NAME, format!("lse and g must be {rows}"))),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], gx: &mut [Out<'_, R>]) {
        let (n, targets) = (x[0].shape.last(), x[1].i());
        let spread = R::of(self.0.smoothing / n as f64);
        for (r, row) in x[0].r().chunks(n).enumerate() {
            let (lse, g) = (x[2].r()[r], x[3].r()[r]);
            let target = usize::try_from(targets[r]).ok().filter(|&t| t < n);
            for (c, &x) in row.iter().enumerate() {
                let p = (x - lse).exp() - spread;
                gx[0].r()[r * n + c] = match target {
                    Some(t) if t == c => g * (p - R::of(1.0 - self.0.smoothing)),
                    Some(_) => g * p,
                    None => R::of(f64::NAN),
                };
            }
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: &[usize], n: usize, smoothing| {
            let inputs = vec![
                Input::normal([rows, &[n]].concat()),
                Input::below(rows, n),
                Input::uniform(rows, 1.0, 6.0),
                Input::normal(rows),
            ];
            Case::new(name, CrossEntropyVjp(CrossEntropy { smoothing }), inputs)
        };
        Cases {
            named: vec![
                case("two_classes", &[3], 2, 0.0),
                case("odd", &[2, 5], 37, 0.0),
                case("smoothed", &[7], 20, 0.1),
                case("no_rows", &[0], 5, 0.0),
                case("past_a_piece", &[70], 300, 0.0),
            ],
            draw: |d| {
                let (rows, n) = ([d.size(1, 9)], d.size(2, 70));
                let inputs = vec![
                    Input::normal([rows[0], n]),
                    Input::below(rows, n),
                    Input::uniform(rows, 1.0, 6.0),
                    Input::normal(rows),
                ];
                Case::new("drawn", CrossEntropyVjp(CrossEntropy { smoothing: 0.05 }), inputs)
            },
            bench: vec![case("tokens", &[16, 130], 512, 0.0)],
        }
    }
}
