//! Optimiser updates: AdamW with decoupled decay, the moving average of weights, the global
//! gradient norm.

use std::ops::RangeInclusive;

use super::activation::Square;
use super::cuda::{Kernels, kernels, over_elements};
use super::kinds::same_shape;
use super::reduce::SumTo;
use super::{Case, Cases, CpuFace, Diff, Draw, In, Input, Op, Out, Real, call};
use crate::device::cpu;
use crate::device::launch::optim as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Why no derivative is taken of an update.
const UPDATE: Diff = Diff::No("updates happen between steps, outside of any derivative");

/// AdamW (Loshchilov and Hutter 2019): (p, m, v, g) to (p', m', v').
///
/// m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2 and
/// p' = p - lr (decay p + (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps)), with g first
/// multiplied by `clip`.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates (b1, b2) of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay; 0 for parameters that do not decay.
    pub decay: f64,
    /// Number t of this step, from 1.
    pub step: u64,
    /// Factor on the gradient, from [`clip_factor`].
    pub clip: f64,
}

/// Moving average: (average, p) to average + (1 - decay) (p - average).
#[derive(Clone, Debug)]
pub struct Ema {
    /// What is kept of the average at each step.
    pub decay: f64,
}

/// Euclidean norm of all gradients together.
pub fn global_norm<'a>(grads: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut total = 0.0;
    for g in grads {
        total += call(&SumTo { to: [1].into() }, &[&call(&Square, &[g])?])?.item()?;
    }
    Ok(total.sqrt())
}

/// The factor that brings gradients of norm `norm` down to at most `limit`; a limit of 0 clips
/// nothing.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit { limit / norm } else { 1.0 }
}

/// The constants of a step.
struct Constants<R> {
    clip: R,
    keep: (R, R),
    take: (R, R),
    rate: R,
    root: R,
    eps: R,
    shrink: R,
}

impl AdamW {
    fn constants<R: Real>(&self) -> Constants<R> {
        let (b1, b2) = self.betas;
        let t = self.step as f64;
        Constants {
            clip: R::of(self.clip),
            keep: (R::of(b1), R::of(b2)),
            take: (R::of(1.0 - b1), R::of(1.0 - b2)),
            rate: R::of(self.lr / (1.0 - b1.powf(t))),
            root: R::of(1.0 / (1.0 - b2.powf(t))),
            eps: R::of(self.eps),
            shrink: R::of(self.lr * self.decay),
        }
    }
}

impl<R: Real> Constants<R> {
    /// (p', m', v') of one element.
    #[inline(always)]
    fn step(&self, [p, m, v, g]: [R; 4]) -> [R; 3] {
        let g = self.clip * g;
        let m = self.keep.0 * m + self.take.0 * g;
        let v = self.keep.1 * v + self.take.1 * g * g;
        let denominator = (v * self.root).sqrt() + self.eps;
        [p - self.shrink * p - self.rate * m / denominator, m, v]
    }
}

fn adamw_cpu(op: &AdamW, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let [p, m, v, g] = [x[0].r(), x[1].r(), x[2].r(), x[3].r()];
    let [p1, m1, v1] = y else { return };
    let c = op.constants::<f32>();
    cpu::par_thirds([p1.r(), m1.r(), v1.r()], |at, [p1, m1, v1]| {
        cpu::simd(
            #[inline(always)]
            || {
                let n = p1.len();
                let (p, m) = (&p[at..at + n], &m[at..at + n]);
                let (v, g) = (&v[at..at + n], &g[at..at + n]);
                let (m1, v1) = (&mut m1[..n], &mut v1[..n]);
                for i in 0..n {
                    [p1[i], m1[i], v1[i]] = c.step([p[i], m[i], v[i], g[i]]);
                }
            },
        );
    });
}

/// Shapes of an update with `arity` inputs, by name.
fn update_cases<O: Op>(
    op: fn() -> O,
    inputs: fn(Shape) -> Vec<Input>,
    draw: fn(&mut Draw<'_>) -> Case,
) -> Cases {
    let case = |name: &str, s: &[usize]| Case::new(name, op(), inputs(s.into()));
    Cases {
        named: vec![
            case("empty", &[0]),
            case("one", &[1]),
            case("odd", &[3, 5, 7]),
            case("past_a_chunk", &[16_390]),
        ],
        draw,
        bench: vec![case("ffn", &[1024, 256])],
    }
}

fn adamw_inputs(s: Shape) -> Vec<Input> {
    let x = Input::normal(&s);
    vec![x.clone(), x.clone(), Input::uniform(&s, 0.01, 1.0), x]
}

fn example(step: u64) -> AdamW {
    AdamW { lr: 0.1, betas: (0.9, 0.95), eps: 1e-8, decay: 0.05, step, clip: 0.5 }
}

impl Op for AdamW {
    const NAME: &'static str = "adamw";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const DIFF: Diff = UPDATE;
    const CPU: Option<CpuFace<Self>> = Some(adamw_cpu);
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let [p1, m1, v1] = y else { return Err(Error::Internal("adamw has three outputs".into())) };
        let (mut p1, mut m1, mut v1) = (p1.get::<T>()?, m1.get::<T>()?, v1.get::<T>()?);
        let (p, m, v, g) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?, x[3].get::<T>()?);
        let (n, c) = (x[0].shape.len(), op.constants::<f32>());
        let ((b1, b2), (t1, t2)) = (c.keep, c.take);
        let grid = over_elements(q, n);
        let (p1, m1, v1) = (&mut p1, &mut m1, &mut v1);
        let (rate, root, eps, shrink) = (c.rate, c.root, c.eps, c.shrink);
        launch::adamw_fwd(
            q, grid, p1, m1, v1, &p, &m, &v, &g, n, c.clip, b1, b2, t1, t2, rate, root, eps, shrink,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let one = same_shape(Self::NAME, x, 4)?;
        Ok(vec![one[0].clone(), one[0].clone(), one[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = self.constants::<R>();
        for i in 0..x[0].r().len() {
            let [p, m, v] = c.step([x[0].r()[i], x[1].r()[i], x[2].r()[i], x[3].r()[i]]);
            (y[0].r()[i], y[1].r()[i], y[2].r()[i]) = (p, m, v);
        }
    }
    fn cases() -> Cases {
        update_cases(
            || example(3),
            adamw_inputs,
            |d| {
                let s = [d.size(1, 9), d.size(1, 40)];
                Case::new("drawn", example(1000), adamw_inputs(s.into()))
            },
        )
    }
}

impl Op for Ema {
    const NAME: &'static str = "ema";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = UPDATE;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (a, p, take) = (x[0].r(), x[1].r(), (1.0 - op.decay) as f32);
        cpu::par_rows(y[0].r(), 1, |at, y| {
            let (a, p) = (&a[at..at + y.len()], &p[at..at + y.len()]);
            cpu::simd(
                #[inline(always)]
                || {
                    for (y, (&a, &p)) in y.iter_mut().zip(a.iter().zip(p)) {
                        *y = a + take * (p - a);
                    }
                },
            );
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32], |op, q, x, y| {
        let (n, take) = (x[0].shape.len(), (1.0 - op.decay) as f32);
        let grid = over_elements(q, n);
        launch::ema_fwd(
            q,
            grid,
            &mut y[0].get::<T>()?,
            &x[0].get::<T>()?,
            &x[1].get::<T>()?,
            n,
            take,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        same_shape(Self::NAME, x, 2)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        for (y, (&a, &p)) in y[0].r().iter_mut().zip(x[0].r().iter().zip(x[1].r())) {
            *y = a + R::of(1.0 - self.decay) * (p - a);
        }
    }
    fn cases() -> Cases {
        let two = |s: Shape| vec![Input::normal(&s), Input::normal(&s)];
        update_cases(
            || Ema { decay: 0.99 },
            two,
            |d| {
                let s = Shape::from([d.size(1, 9), d.size(1, 40)]);
                let inputs = vec![Input::normal(&s), Input::normal(&s)];
                Case::new("drawn", Ema { decay: 0.5 }, inputs)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        let op = AdamW { decay: 0.0, clip: 1.0, eps: 0.0, ..example(1) };
        let p = Tensor::new(vec![1.0, -2.0, 0.5], [3]).unwrap();
        let g = Tensor::new(vec![3.0, -0.01, 100.0], [3]).unwrap();
        let zero = Tensor::zeros(p.dtype(), [3]);
        let out = run(&op, &[&p, &zero, &zero, &g]).unwrap();
        for (i, want) in [0.9, -1.9, 0.4].iter().enumerate() {
            assert!((out[0].at(i) - want).abs() < 1e-6, "{}", out[0].at(i));
        }
        // Decay acts on the weight alone, whatever the gradient.
        let op = AdamW { decay: 0.5, ..op };
        let still = run(&AdamW { eps: 1e-8, ..op }, &[&p, &zero, &zero, &zero]).unwrap();
        assert!((still[0].at(0) - 0.95).abs() < 1e-6 && (still[0].at(1) + 1.9).abs() < 1e-6);
    }

    #[test]
    fn the_norm_is_over_all_tensors_and_clipping_reaches_the_limit() {
        let a = Tensor::new(vec![3.0, 0.0], [2]).unwrap();
        let b = Tensor::new(vec![4.0], [1, 1]).unwrap();
        let norm = global_norm([&a, &b].into_iter()).unwrap();
        assert_eq!((norm, clip_factor(norm, 2.0)), (5.0, 0.4));
        assert_eq!((clip_factor(1.0, 2.0), clip_factor(9.0, 0.0)), (1.0, 1.0));
    }
}
