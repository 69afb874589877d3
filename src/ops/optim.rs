//! What an optimiser does: the norm of all gradients, and AdamW with decoupled decay, clipping by
//! that norm and a running mean of the weights.
//!
//! The norm is a tensor that updates read, so that a step on a GPU need not wait for the CPU to
//! look at it.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, over_elements};
use super::{Case, Cases, CpuFace, CudaIn, CudaOut, Diff, In, Input, Op, Out, Real, lanes};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::Grid;
use crate::device::launch::optim as launch;
use crate::device::{Held, cpu};
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Why no derivative is taken of an update.
const UPDATE: Diff = Diff::No("updates happen between steps, outside of any derivative");

/// Euclidean norm `[1]` of all gradients together, whatever their shapes.
#[derive(Clone, Debug)]
pub struct GlobalNorm;

/// AdamW (Loshchilov and Hutter 2019): (p, m, v, g, norm `[1]`) to (p', m', v'), and with a running
/// mean e of the weights (p, m, v, g, norm, e) to (p', m', v', e').
///
/// m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2,
/// p' = p - lr (decay p + (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps)), with g first
/// multiplied by min(1, clip / norm), and e' = e + follow (p' - e). Where the norm is not finite,
/// everything stays as it was.
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
    /// Norm that gradients are brought down to; 0 clips nothing.
    pub clip: f64,
    /// How far the running mean goes towards the weights.
    pub follow: f64,
}

/// The constants of a step.
struct Constants<R> {
    /// `None` where the norm is not finite.
    clip: Option<R>,
    keep: (R, R),
    take: (R, R),
    rate: R,
    root: R,
    eps: R,
    shrink: R,
    follow: R,
}

impl AdamW {
    fn constants<R: Real>(&self, norm: R) -> Constants<R> {
        let (b1, b2) = self.betas;
        let t = self.step as f64;
        let clips = self.clip > 0.0 && norm.val() > self.clip;
        let clip = if clips { R::of(self.clip) / norm } else { R::of(1.0) };
        Constants {
            clip: norm.val().is_finite().then_some(clip),
            keep: (R::of(b1), R::of(b2)),
            take: (R::of(1.0 - b1), R::of(1.0 - b2)),
            rate: R::of(self.lr / (1.0 - b1.powf(t))),
            root: R::of(1.0 / (1.0 - b2.powf(t))),
            eps: R::of(self.eps),
            shrink: R::of(self.lr * self.decay),
            follow: R::of(self.follow),
        }
    }
}

impl<R: Real> Constants<R> {
    /// (p', m', v') of one element.
    #[inline(always)]
    fn step(&self, clip: R, [p, m, v, g]: [R; 4]) -> [R; 3] {
        let g = clip * g;
        let m = self.keep.0 * m + self.take.0 * g;
        let v = self.keep.1 * v + self.take.1 * g * g;
        let denominator = (v * self.root).sqrt() + self.eps;
        [p - self.shrink * p - self.rate * m / denominator, m, v]
    }
}

fn adamw_cpu(op: &AdamW, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let c = op.constants(x[4].r()[0]);
    let from: Vec<&[f32]> = [0, 1, 2, 3].into_iter().map(|i| x[i].r()).collect();
    let (Some(clip), Some(mean)) = (c.clip, x.get(5)) else {
        return match (c.clip, y) {
            (Some(clip), [p1, m1, v1]) => {
                cpu::par_parts([p1.r(), m1.r(), v1.r()], |at, y| run(&c, clip, &from, at, y));
            }
            (_, y) => still(x, y),
        };
    };
    let [p1, m1, v1, e1] = y else { return };
    cpu::par_parts([p1.r(), m1.r(), v1.r(), e1.r()], |at, [p1, m1, v1, e1]| {
        run(&c, clip, &from, at, [p1, m1, v1]);
        let mean = &mean.r()[at..at + p1.len()];
        for (e1, (&e, &p1)) in e1.iter_mut().zip(mean.iter().zip(&*p1)) {
            *e1 = e + c.follow * (p1 - e);
        }
    });
}

/// A stretch of an update that begins at element `at`.
fn run(c: &Constants<f32>, clip: f32, from: &[&[f32]], at: usize, y: [&mut [f32]; 3]) {
    let [p1, m1, v1] = y;
    cpu::simd(
        #[inline(always)]
        || {
            let n = p1.len();
            let [p, m, v, g] = [0, 1, 2, 3].map(|i| &from[i][at..at + n]);
            let (m1, v1) = (&mut m1[..n], &mut v1[..n]);
            for i in 0..n {
                [p1[i], m1[i], v1[i]] = c.step(clip, [p[i], m[i], v[i], g[i]]);
            }
        },
    );
}

/// An update that changes nothing.
fn still<R: Real>(x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
    for (y, from) in y.iter_mut().zip([0, 1, 2, 5]) {
        y.r().copy_from_slice(x[from].r());
    }
}

fn adamw_inputs(s: &Shape, mean: bool) -> Vec<Input> {
    let x = Input::normal(s);
    let norm = Input::uniform([1], 0.1, 2.0);
    let all = [x.clone(), x.clone(), Input::uniform(s, 0.01, 1.0), x.clone(), norm, x];
    all[..if mean { 6 } else { 5 }].to_vec()
}

fn example(step: u64) -> AdamW {
    AdamW { lr: 0.1, betas: (0.9, 0.95), eps: 1e-8, decay: 0.05, step, clip: 0.5, follow: 0.01 }
}

/// A face was given other outputs than `shapes` names.
fn outputs(op: &'static str) -> Error {
    Error::Internal(format!("{op} was given another number of outputs"))
}

fn adamw_cuda<T>(op: &AdamW, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()>
where
    T: Held + launch::adamw_fwd::Instance + launch::adamw_mean_fwd::Instance,
{
    let [p, m, v, g] = [0, 1, 2, 3].map(|i| x[i].get::<T>());
    let (p, m, v, g, norm) = (p?, m?, v?, g?, x[4].get::<f32>()?);
    // The norm is not known here; the constants that depend on it are the kernel's.
    let (n, c, limit) = (x[0].shape.len(), op.constants(0.0f32), op.clip as f32);
    let ((b1, b2), (t1, t2)) = (c.keep, c.take);
    let (rate, root, eps, shrink) = (c.rate, c.root, c.eps, c.shrink);
    let grid = over_elements(q, n);
    match (y, x.get(5)) {
        ([p1, m1, v1], None) => {
            let (mut p1, mut m1, mut v1) = (p1.get::<T>()?, m1.get::<T>()?, v1.get::<T>()?);
            launch::adamw_fwd(
                q, grid, &mut p1, &mut m1, &mut v1, &p, &m, &v, &g, &norm, n, limit, b1, b2, t1,
                t2, rate, root, eps, shrink,
            )
        }
        ([p1, m1, v1, e1], Some(e)) => {
            let (mut p1, mut m1, mut v1) = (p1.get::<T>()?, m1.get::<T>()?, v1.get::<T>()?);
            let (mut e1, e) = (e1.get::<T>()?, e.get::<T>()?);
            launch::adamw_mean_fwd(
                q, grid, &mut p1, &mut m1, &mut v1, &mut e1, &p, &m, &v, &g, &norm, &e, n, limit,
                b1, b2, t1, t2, rate, root, eps, shrink, c.follow,
            )
        }
        _ => Err(outputs("adamw")),
    }
}

impl Op for AdamW {
    const NAME: &'static str = "adamw";
    const INPUTS: RangeInclusive<usize> = 5..=6;
    const DIFF: Diff = UPDATE;
    const CPU: Option<CpuFace<Self>> = Some(adamw_cpu);
    const CUDA: Kernels<Self> = kernels!([f32], adamw_cuda::<T>);

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let alike = |i: usize| i == 4 || x[i] == x[0];
        if !(0..x.len()).all(alike) || x[4].dims() != [1] {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what = format!("wants p, m, v, g, norm [1], mean; found {}", found.join(", "));
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![x[0].clone(); x.len() - 2])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let c = self.constants(x[4].r()[0]);
        let Some(clip) = c.clip else { return still(x, y) };
        for i in 0..x[0].r().len() {
            let [p, m, v] = c.step(clip, [x[0].r()[i], x[1].r()[i], x[2].r()[i], x[3].r()[i]]);
            (y[0].r()[i], y[1].r()[i], y[2].r()[i]) = (p, m, v);
            if let Some(e) = x.get(5).map(|e| e.r()[i]) {
                y[3].r()[i] = e + c.follow * (p - e);
            }
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, s: &[usize], mean: bool| {
            Case::new(name, example(3), adamw_inputs(&s.into(), mean))
        };
        Cases {
            named: vec![
                case("empty", &[0], false),
                case("one", &[1], true),
                case("odd", &[3, 5, 7], false),
                case("odd_with_mean", &[3, 5, 7], true),
                case("past_a_chunk", &[16_390], true),
            ],
            draw: |d| {
                let s = Shape::from([d.size(1, 9), d.size(1, 40)]);
                Case::new("drawn", example(1000), adamw_inputs(&s, d.coin()))
            },
            bench: vec![case("ffn", &[1024, 256], true)],
        }
    }
}

/// Most blocks that sum the squares of one tensor.
const PARTS: usize = 64;
/// Elements that are worth a block of their own.
const PART: usize = 4096;

fn norm_cuda<T>(q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()>
where
    T: Held + launch::squares_fwd::Instance,
{
    let parts: Vec<usize> =
        x.iter().map(|x| x.shape.len().div_ceil(PART).clamp(1, PARTS)).collect();
    let mut all = Buffer::<f32>::new(q, parts.iter().sum())?;
    let mut at = 0;
    for (x, &parts) in x.iter().zip(&parts) {
        let grid = Grid::line(parts, super::cuda::THREADS);
        let mut part = all.slice_mut();
        let part = &mut part.part(at..at + parts)?;
        launch::squares_fwd(q, grid, part, &x.get::<T>()?, x.shape.len(), parts)?;
        at += parts;
    }
    let mut norm = y.first_mut().ok_or_else(|| outputs("global_norm"))?.get::<f32>()?;
    launch::root_of_sum_fwd(q, Grid::line(1, super::cuda::THREADS), &mut norm, &all.slice(), at)
}

impl Op for GlobalNorm {
    const NAME: &'static str = "global_norm";
    const INPUTS: RangeInclusive<usize> = 1..=usize::MAX;
    const DIFF: Diff = UPDATE;
    const F32_OUTPUTS: &'static [usize] = &[0];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let squares = |x: &In<'_, f32>| {
            let x = x.r();
            let part = |i: usize| {
                let part = &x[i * PART..x.len().min((i + 1) * PART)];
                cpu::simd(
                    #[inline(always)]
                    || lanes::sum(part, |x| x * x),
                )
            };
            cpu::par_map(x.len().div_ceil(PART), part).into_iter().map(f64::from).sum::<f64>()
        };
        y[0].r()[0] = x.iter().map(squares).sum::<f64>().sqrt() as f32;
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| norm_cuda::<T>(q, x, y));

    fn shapes(&self, _: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![[1].into()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let squares = x.iter().flat_map(|x| x.r()).map(|&x| x * x);
        y[0].r()[0] = R::sum(squares).sqrt();
    }
    fn cases() -> Cases {
        let case = |name: &str, shapes: &[&[usize]]| {
            Case::new(name, GlobalNorm, shapes.iter().map(|s| Input::normal(*s)).collect())
        };
        Cases {
            named: vec![
                case("one", &[&[1]]),
                case("some", &[&[3, 5], &[0], &[7], &[2, 2, 2]]),
                case("past_a_part", &[&[16_390], &[1025]]),
            ],
            draw: |d| {
                let inputs =
                    (0..d.size(1, 4)).map(|_| Input::normal([d.size(1, 9), d.size(1, 40)]));
                Case::new("drawn", GlobalNorm, inputs.collect())
            },
            bench: vec![case("model", &[&[1024, 256], &[1024], &[256, 1024], &[256]])],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{call, run};
    use super::*;
    use crate::tensor::Tensor;

    fn one(x: f32) -> Tensor {
        Tensor::new(vec![x], [1]).unwrap()
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        let op = AdamW { decay: 0.0, clip: 0.0, eps: 0.0, ..example(1) };
        let p = Tensor::new(vec![1.0, -2.0, 0.5], [3]).unwrap();
        let g = Tensor::new(vec![3.0, -0.01, 100.0], [3]).unwrap();
        let zero = Tensor::zeros(p.dtype(), [3]);
        let out = run(&op, &[&p, &zero, &zero, &g, &one(9.0)]).unwrap();
        for (i, want) in [0.9, -1.9, 0.4].iter().enumerate() {
            assert!((out[0].at(i) - want).abs() < 1e-6, "{}", out[0].at(i));
        }
        // Decay acts on the weight alone, whatever the gradient.
        let op = AdamW { decay: 0.5, eps: 1e-8, ..op };
        let still = run(&op, &[&p, &zero, &zero, &zero, &one(0.0)]).unwrap();
        assert!((still[0].at(0) - 0.95).abs() < 1e-6 && (still[0].at(1) + 1.9).abs() < 1e-6);
    }

    #[test]
    fn the_norm_is_over_all_tensors_clips_and_stops_what_is_not_finite() {
        let a = Tensor::new(vec![3.0, 0.0], [2]).unwrap();
        let b = Tensor::new(vec![4.0], [1, 1]).unwrap();
        let norm = call(&GlobalNorm, &[&a, &b]).unwrap();
        assert_eq!(norm.f32s().unwrap(), [5.0]);
        // With b1 = 0 the first moment is the clipped gradient.
        let op = AdamW { betas: (0.0, 0.9), clip: 2.0, follow: 0.5, ..example(1) };
        let zero = Tensor::zeros(a.dtype(), [2]);
        let out = run(&op, &[&zero, &zero, &zero, &a, &norm, &zero]).unwrap();
        assert!((out[1].at(0) - 1.2).abs() < 1e-6, "{}", out[1].at(0));
        assert_eq!(out[3].at(0), 0.5 * out[0].at(0));
        for bad in [f32::NAN, f32::INFINITY] {
            let out = run(&op, &[&a, &a, &a, &zero, &one(bad), &zero]).unwrap();
            let same = |i: usize| out[i].f32s().unwrap() == a.f32s().unwrap();
            assert!(same(0) && same(1) && same(2) && out[3].f32s().unwrap() == [0.0, 0.0]);
        }
    }
}
