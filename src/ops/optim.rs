//! What an optimiser does: the norm of all gradients, and AdamW with decoupled decay, clipping by
//! that norm and a running mean of the weights.
//!
//! The norm is a tensor that updates read, so that a step on a GPU need not wait for the CPU to
//! look at it.

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels};
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

/// AdamW (Loshchilov and Hutter 2019) of many tensors: norm `[1]`, then (p, m, v, g) of each, to
/// (p', m', v') of each; with running means e of the weights (p, m, v, g, e) to (p', m', v', e').
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
    /// Weight decay.
    pub decay: f64,
    /// Which tensors decay.
    pub decays: Vec<bool>,
    /// Whether running means are kept.
    pub mean: bool,
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
    /// Tensors that each weight has: inputs and outputs.
    fn strides(&self) -> [usize; 2] {
        if self.mean { [5, 4] } else { [4, 3] }
    }

    /// The constants for one tensor.
    fn own<R: Real>(&self, norm: R, index: usize) -> Constants<R> {
        let decays = self.decays.get(index).copied().unwrap_or(false);
        let c = self.constants(norm);
        if decays { c } else { Constants { shrink: R::of(0.0), ..c } }
    }

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
    let [ins, outs] = op.strides();
    let norm = x[0].r()[0];
    for (i, (x, y)) in x[1..].chunks_exact(ins).zip(y.chunks_exact_mut(outs)).enumerate() {
        let c = op.own(norm, i);
        let from: Vec<&[f32]> = x.iter().map(|x| x.r()).collect();
        let Some(clip) = c.clip else {
            still(x, y);
            continue;
        };
        match y {
            [p1, m1, v1] => {
                cpu::par_parts([p1.r(), m1.r(), v1.r()], |at, y| run(&c, clip, &from, at, y));
            }
            [p1, m1, v1, e1] => {
                let y = [p1.r(), m1.r(), v1.r(), e1.r()];
                cpu::par_parts(y, |at, [p1, m1, v1, e1]| {
                    run(&c, clip, &from, at, [p1, m1, v1]);
                    let mean = &from[4][at..at + p1.len()];
                    for (e1, (&e, &p1)) in e1.iter_mut().zip(mean.iter().zip(&*p1)) {
                        *e1 = e + c.follow * (p1 - e);
                    }
                });
            }
            _ => {}
        }
    }
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
    for (y, from) in y.iter_mut().zip([0, 1, 2, 4]) {
        y.r().copy_from_slice(x[from].r());
    }
}

/// The norm, and what each tensor has.
fn adamw_inputs(shapes: &[Shape], mean: bool) -> Vec<Input> {
    let own = |s: &Shape| {
        let x = Input::normal(s);
        let all = [x.clone(), x.clone(), Input::uniform(s, 0.01, 1.0), x.clone(), x];
        all[..if mean { 5 } else { 4 }].to_vec()
    };
    let norm = Input::uniform([1], 0.1, 2.0);
    [norm].into_iter().chain(shapes.iter().flat_map(own)).collect()
}

/// Every second of so many tensors decays.
fn example(step: u64, tensors: usize, mean: bool) -> AdamW {
    let decays = (0..tensors).map(|i| i % 2 == 0).collect();
    let (betas, eps, clip) = ((0.9, 0.95), 1e-8, 0.5);
    AdamW { lr: 0.1, betas, eps, decay: 0.05, decays, mean, step, clip, follow: 0.01 }
}

/// A face was given other outputs than `shapes` names.
fn outputs(op: &'static str) -> Error {
    Error::Internal(format!("{op} was given another number of outputs"))
}

/// Elements that a block takes at a time, as kernels/optim.cu has them.
const CHUNK: usize = 8192;

/// A number as the kernels count.
fn counted(n: usize) -> Result<i32> {
    let too_many = |_| Error::shape("optimiser", format!("{n} elements in one launch"));
    i32::try_from(n).map_err(too_many)
}

/// What a launch over many tensors is told of them.
struct Lot {
    lines: Buffer<i32>,
    places: Buffer<u64>,
    tensors: usize,
    chunks: usize,
    total: usize,
}

impl Lot {
    /// Of tensors of so many elements, each with its number for the line and its addresses; empty
    /// ones are left out.
    fn new(q: &Queue, of: impl IntoIterator<Item = (usize, bool, Vec<u64>)>) -> Result<Self> {
        let (mut lines, mut places, mut chunks, mut total) = (Vec::new(), Vec::new(), 0, 0);
        for (n, decays, own) in of.into_iter().filter(|(n, ..)| *n > 0) {
            lines.extend([counted(chunks)?, counted(n)?, i32::from(decays)]);
            places.extend(own);
            chunks += n.div_ceil(CHUNK);
            total += n;
        }
        // Which tensors there are stays from step to step, where they lie does not.
        let tensors = lines.len() / 3;
        let (lines, places) = (q.constant(&lines)?, Buffer::from_slice(q, &places)?);
        Ok(Self { lines, places, tensors, chunks, total })
    }

    fn grid(&self) -> Grid {
        Grid::line(self.chunks.max(1), super::cuda::THREADS)
    }
}

fn adamw_cuda<T>(op: &AdamW, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()>
where
    T: Held + launch::adamw_fwd::Instance<0> + launch::adamw_fwd::Instance<1>,
{
    let [ins, outs] = op.strides();
    let Some((norm, x)) = x.split_first() else { return Err(outputs("adamw")) };
    let mut all = Vec::with_capacity(x.len() / ins);
    for (i, (x, y)) in x.chunks_exact(ins).zip(y.chunks_exact_mut(outs)).enumerate() {
        let from = x.iter().map(|x| Ok(x.get::<T>()?.address())).collect::<Result<Vec<_>>>()?;
        let to = y.iter_mut().map(|y| Ok(y.get::<T>()?.address())).collect::<Result<Vec<_>>>()?;
        let (moved, mean) = (to.split_at(3), from.split_at(4));
        let own = [moved.0, mean.0, moved.1, mean.1].concat();
        all.push((x[0].shape.len(), op.decays.get(i).copied().unwrap_or(false), own));
    }
    let lot = Lot::new(q, all)?;
    // The norm is not known here; the constants that depend on it are the kernel's.
    let (c, limit) = (op.constants(0.0f32), op.clip as f32);
    let ((b1, b2), (t1, t2)) = (c.keep, c.take);
    let launch = match op.mean {
        false => launch::adamw_fwd::<T, 0>,
        true => launch::adamw_fwd::<T, 1>,
    };
    launch(
        q,
        lot.grid(),
        &lot.lines.slice(),
        &lot.places.slice(),
        &norm.get::<f32>()?,
        lot.tensors,
        counted(lot.chunks)?,
        lot.total,
        limit,
        b1,
        b2,
        t1,
        t2,
        c.rate,
        c.root,
        c.eps,
        c.shrink,
        c.follow,
    )
}

impl Op for AdamW {
    const NAME: &'static str = "adamw";
    const INPUTS: RangeInclusive<usize> = 1..=usize::MAX;
    const DIFF: Diff = UPDATE;
    const CPU: Option<CpuFace<Self>> = Some(adamw_cpu);
    const CUDA: Kernels<Self> = kernels!([f32], adamw_cuda::<T>);

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let ([ins, outs], tensors) = (self.strides(), self.decays.len());
        let all = x[1..].chunks_exact(ins);
        let alike = all.clone().all(|own| own.iter().all(|s| *s == own[0]));
        if x[0].dims() != [1] || x.len() != 1 + ins * tensors || !alike {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let names = if self.mean { "p, m, v, g, mean" } else { "p, m, v, g" };
            let found = found.join(", ");
            let what = format!("wants norm [1] and {names} of {tensors} tensors; found {found}");
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(all.flat_map(|own| vec![own[0].clone(); outs]).collect())
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let [ins, outs] = self.strides();
        for (t, (own, y)) in x[1..].chunks_exact(ins).zip(y.chunks_exact_mut(outs)).enumerate() {
            let c = self.own(x[0].r()[0], t);
            let Some(clip) = c.clip else {
                still(own, y);
                continue;
            };
            for i in 0..own[0].r().len() {
                let [p, m, v] = c.step(clip, [0, 1, 2, 3].map(|j| own[j].r()[i]));
                (y[0].r()[i], y[1].r()[i], y[2].r()[i]) = (p, m, v);
                if let Some(e) = own.get(4).map(|e| e.r()[i]) {
                    y[3].r()[i] = e + c.follow * (p - e);
                }
            }
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, step: u64, shapes: &[&[usize]], mean: bool| {
            let shapes: Vec<Shape> = shapes.iter().map(|&s| s.into()).collect();
            Case::new(name, example(step, shapes.len(), mean), adamw_inputs(&shapes, mean))
        };
        Cases {
            named: vec![
                case("empty", 3, &[&[0]], false),
                case("one", 3, &[&[1]], true),
                case("odd", 3, &[&[3, 5, 7]], false),
                case("some", 3, &[&[3, 5], &[0], &[7], &[2, 2, 2], &[0]], false),
                case("some_with_means", 3, &[&[0], &[3, 5], &[7], &[8]], true),
                case("past_a_chunk", 3, &[&[8195], &[1], &[16_390]], true),
            ],
            draw: |d| {
                let n = d.size(1, 5);
                let shapes: Vec<_> = (0..n).map(|_| [d.size(1, 9), d.size(1, 40)].into()).collect();
                let mean = d.coin();
                Case::new("drawn", example(1000, n, mean), adamw_inputs(&shapes, mean))
            },
            bench: vec![case("ffn", 3, &[&[1024, 256], &[1024], &[256, 1024], &[256]], true)],
        }
    }
}

/// Elements that the CPU sums at a time.
const PART: usize = 4096;

fn norm_cuda<T>(q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()>
where
    T: Held + launch::squares_fwd::Instance,
{
    let own = |x: &CudaIn<'_>| Ok((x.shape.len(), false, vec![x.get::<T>()?.address()]));
    let lot = Lot::new(q, x.iter().map(own).collect::<Result<Vec<_>>>()?)?;
    let mut all = Buffer::<f32>::new(q, lot.chunks)?;
    let (lines, places) = (lot.lines.slice(), lot.places.slice());
    let mut part = all.slice_mut();
    launch::squares_fwd::<T>(
        q,
        lot.grid(),
        &mut part,
        &lines,
        &places,
        lot.tensors,
        lot.chunks,
        lot.total,
    )?;
    let mut norm = y.first_mut().ok_or_else(|| outputs("global_norm"))?.get::<f32>()?;
    let grid = Grid::line(1, super::cuda::THREADS);
    launch::root_of_sum_fwd(q, grid, &mut norm, &all.slice(), lot.chunks)
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
        let op = AdamW { decay: 0.0, clip: 0.0, eps: 0.0, ..example(1, 1, false) };
        let p = Tensor::new(vec![1.0, -2.0, 0.5], [3]).unwrap();
        let g = Tensor::new(vec![3.0, -0.01, 100.0], [3]).unwrap();
        let zero = Tensor::zeros(p.dtype(), [3]);
        let out = run(&op, &[&one(9.0), &p, &zero, &zero, &g]).unwrap();
        for (i, want) in [0.9, -1.9, 0.4].iter().enumerate() {
            assert!((out[0].at(i) - want).abs() < 1e-6, "{}", out[0].at(i));
        }
        // Decay acts on the weight alone, whatever the gradient.
        let op = AdamW { decay: 0.5, eps: 1e-8, ..op };
        let still = run(&op, &[&one(0.0), &p, &zero, &zero, &zero]).unwrap();
        assert!((still[0].at(0) - 0.95).abs() < 1e-6 && (still[0].at(1) + 1.9).abs() < 1e-6);
    }

    #[test]
    fn the_norm_is_over_all_tensors_clips_and_stops_what_is_not_finite() {
        let a = Tensor::new(vec![3.0, 0.0], [2]).unwrap();
        let b = Tensor::new(vec![4.0], [1, 1]).unwrap();
        let norm = call(&GlobalNorm, &[&a, &b]).unwrap();
        assert_eq!(norm.f32s().unwrap(), [5.0]);
        // With b1 = 0 the first moment is the clipped gradient.
        let op = AdamW { betas: (0.0, 0.9), clip: 2.0, follow: 0.5, ..example(1, 1, true) };
        let zero = Tensor::zeros(a.dtype(), [2]);
        let out = run(&op, &[&norm, &zero, &zero, &zero, &a, &zero]).unwrap();
        assert!((out[1].at(0) - 1.2).abs() < 1e-6, "{}", out[1].at(0));
        assert_eq!(out[3].at(0), 0.5 * out[0].at(0));
        for bad in [f32::NAN, f32::INFINITY] {
            let out = run(&op, &[&one(bad), &a, &a, &a, &zero, &zero]).unwrap();
            let same = |i: usize| out[i].f32s().unwrap() == a.f32s().unwrap();
            assert!(same(0) && same(1) && same(2) && out[3].f32s().unwrap() == [0.0, 0.0]);
        }
    }
}
