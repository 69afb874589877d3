//! The loss of Causal MeanFlow in one op: the JVP target, the counterfactual targets and the
//! contrastive bracket under its adaptive weight, with no map written in between.
//!
//! Of each sample, with v = s (eps - f), s being 1 where time runs from data to noise and -1 where
//! it runs back: a = v - (t - r) du/dt and c_n = lambda_n |a| s (eps - f_n) / |eps - f_n| are
//! constants (Eq. 9 in closed form); with S = |u - a|^2, d_n = |u - c_n|^2, R_n = |a - c_n|^2
//!   loss = (S + (alpha / N) sum_n T_n) / sg(S + c)^p,
//! T_n being the push of [`Clamp`].

mod gradient;

use std::ops::RangeInclusive;

pub use gradient::FlowLossVjp;

use super::composed::{self, Composed};
use super::cuda::{CudaIn, Kernels, block_per_job, kernels, over_elements};
use super::elementwise::Mul;
use super::reduce::SumTo;
use super::{Case, Cases, CpuFace, Diff, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::device::Held;
use crate::device::cpu;
use crate::device::kernel::{Queue, Slice};
use crate::device::launch::flow as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Most counterfactuals of a sample: three image operators and another slide.
pub const MOST: usize = 4;

/// Added under square roots of lengths, so that an all-zero direction stays finite.
pub(super) const TINY: f64 = 1e-20;

/// What one counterfactual adds to the bracket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clamp {
    /// -d.
    None,
    /// -min(d, kappa R).
    Relative(f64),
    /// max(0, R - d).
    Hinge,
    /// tau softplus((S - d) / tau) with tau = R, which has the units of S.
    Softplus,
}

impl Clamp {
    /// As kernels/flow.cu numbers them, with the share of R that bounds d.
    fn number(self) -> (i32, f32) {
        match self {
            Self::None => (0, 0.0),
            Self::Relative(kappa) => (1, kappa as f32),
            Self::Hinge => (2, 1.0),
            Self::Softplus => (3, 0.0),
        }
    }
}

/// The point of the path from `f` to `eps` at each sample's time, and the velocity: maps [B, ..]
/// and t `[B]` to f + t (eps - f) and eps - f.
#[derive(Clone, Debug)]
pub struct FlowPath;

/// Loss of each sample `[B]` from maps u, f, eps, du/dt [B, ..], t - r `[B]`, lambda [B, N] and N
/// maps f_n, at most [`MOST`]. Further outputs: S, |u| and |a| [B, 3]; and, for the gradient, the
/// factors of u - a and of each u - c_n, and c_n / (eps - f_n) [B, 1 + 2 N].
///
/// Only u has a derivative.
#[derive(Clone, Debug)]
pub struct FlowLoss {
    /// 1, or -1 where data and noise change places.
    pub sign: f64,
    /// Weight of the push, below 1/2.
    pub alpha: f64,
    /// The push of one counterfactual.
    pub clamp: Clamp,
    /// p of the adaptive weight; 0 for none.
    pub power: f64,
    /// c of the adaptive weight.
    pub floor: f64,
}

/// What is known of a sample.
struct Sample<'a, R> {
    u: &'a [R],
    f: &'a [R],
    eps: &'a [R],
    dudt: &'a [R],
    span: R,
    negatives: Vec<&'a [R]>,
}

impl<'a, R: Real> Sample<'a, R> {
    /// Sample `b` of maps u, f, eps, du/dt, t - r and, from input `first` on, the f_n.
    fn new(x: &[In<'a, R>], b: usize, first: usize) -> Self {
        let n = x[0].r().len() / x[0].shape.dims()[0].max(1);
        let map = |x: &In<'a, R>| &x.r()[b * n..(b + 1) * n];
        Self {
            u: map(&x[0]),
            f: map(&x[1]),
            eps: map(&x[2]),
            dudt: map(&x[3]),
            span: x[4].r()[b],
            negatives: x[first..].iter().map(map).collect(),
        }
    }

    /// a - the target of u - at element `i`.
    fn anchor(&self, sign: R, i: usize) -> R {
        (sign * (self.eps[i] - self.f[i]) - self.span * self.dudt[i]).fixed()
    }

    /// eps - f_n at element `i`.
    fn towards(&self, n: usize, i: usize) -> R {
        self.eps[i] - self.negatives[n][i]
    }

    fn sum(&self, term: impl Fn(usize) -> R) -> R {
        R::sum((0..self.u.len()).map(term))
    }
}

fn square<R: Real>(x: R) -> R {
    x * x
}

/// The results for one sample.
struct Judged<R> {
    loss: R,
    seen: [R; 3],
    factors: Vec<R>,
}

impl FlowLoss {
    /// The term T_n with its derivatives to S and to d_n.
    fn push<R: Real>(&self, s: R, d: R, reach: R) -> [R; 3] {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let below = |limit: R| if d < limit { (d, -one) } else { (limit, zero) };
        match self.clamp {
            Clamp::None => [-d, zero, -one],
            Clamp::Relative(kappa) => {
                let (near, slope) = below(R::of(kappa) * reach);
                [-near, zero, slope]
            }
            Clamp::Hinge => {
                let (near, slope) = below(reach);
                [reach - near, zero, slope]
            }
            Clamp::Softplus => {
                let tau = reach + R::of(TINY);
                let x = (s - d) / tau;
                let soft = x.max(zero) + (one + (-x.abs()).exp()).ln();
                [tau * soft, x.sigmoid(), -x.sigmoid()]
            }
        }
    }

    fn judge<R: Real>(&self, at: &Sample<'_, R>, lambda: &[R]) -> Judged<R> {
        let sign = R::of(self.sign);
        let length = |square: R| (square + R::of(TINY)).sqrt();
        let a2 = at.sum(|i| square(at.anchor(sign, i)));
        let s = at.sum(|i| square(at.u[i] - at.anchor(sign, i)));
        let share = R::of(self.alpha / lambda.len().max(1) as f64);
        let (mut bracket, mut pull) = (s, R::of(1.0));
        let (mut pushes, mut scales) = (Vec::new(), Vec::new());
        for (n, &lambda) in lambda.iter().enumerate() {
            let far = length(at.sum(|i| square(at.towards(n, i))));
            let scale = (sign * lambda * length(a2) / far).fixed();
            let c = |i: usize| (scale * at.towards(n, i)).fixed();
            let d = at.sum(|i| square(at.u[i] - c(i)));
            let reach = at.sum(|i| square(at.anchor(sign, i) - c(i)));
            let [term, of_s, of_d] = self.push(s, d, reach);
            bracket = bracket + share * term;
            pull = pull + share * of_s;
            pushes.push(share * of_d);
            scales.push(scale);
        }
        let weight = self.weight(s).fixed();
        let factor = |k: R| R::of(2.0) * weight * k;
        let u2 = at.sum(|i| square(at.u[i]));
        Judged {
            loss: bracket * weight,
            seen: [s, u2.sqrt(), a2.sqrt()],
            factors: [pull].into_iter().chain(pushes).map(factor).chain(scales).collect(),
        }
    }

    /// 1 / (S + c)^p.
    fn weight<R: Real>(&self, s: R) -> R {
        let shifted = s + R::of(self.floor);
        match self.power {
            0.0 => R::of(1.0),
            1.0 => R::of(1.0) / shifted,
            p => (R::of(-p) * shifted.ln()).exp(),
        }
    }
}

/// The batch and the number of elements of a sample.
fn extents(x: &Shape) -> (usize, usize) {
    let rows = x.dims().first().copied().unwrap_or(0);
    (rows, x.len().checked_div(rows).unwrap_or(0))
}

/// Checks maps of one shape [B, ..], and that the others are as told.
fn check(
    op: &'static str,
    maps: &[&Shape],
    others: &[(&str, &Shape, Vec<usize>)],
) -> Result<(Shape, usize)> {
    let shape = maps[0];
    let alike = shape.rank() > 0 && maps.iter().all(|m| *m == shape);
    if !alike {
        let found: Vec<String> = maps.iter().map(ToString::to_string).collect();
        let what = format!("wants maps of one shape [B, ..], found {}", found.join(", "));
        return Err(Error::shape(op, what));
    }
    match others.iter().find(|(_, s, want)| s.dims() != want.as_slice()) {
        None => Ok((shape.clone(), shape.dims()[0])),
        Some((name, s, want)) => {
            Err(Error::shape(op, format!("{name} is {s}, maps {shape} want {want:?}")))
        }
    }
}

impl Op for FlowPath {
    const NAME: &'static str = "flow_path";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const COMPOSED: Option<Composed<Self>> = Some(composed::flow_path);
    const DIFF: Diff = Diff::No("data, noise and times are drawn, not trained");
    const F32_INPUTS: &'static [usize] = &[2];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (rows, cols) = extents(x[0].shape);
        let [at, v] = y else { return Err(outputs(Self::NAME)) };
        let (f, eps, t) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<f32>()?);
        let (at, v) = (&mut at.get::<T>()?, &mut v.get::<T>()?);
        launch::flow_path_fwd(q, over_elements(q, rows * cols), at, v, &f, &eps, &t, rows, cols)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let rows = x[0].dims().first().copied().unwrap_or(0);
        let (shape, _) = check(Self::NAME, &x[..2], &[("t", x[2], vec![rows])])?;
        Ok(vec![shape.clone(), shape])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (_, n) = extents(x[0].shape);
        for i in 0..x[0].r().len() {
            let v = x[1].r()[i] - x[0].r()[i];
            y[0].r()[i] = x[0].r()[i] + x[2].r()[i / n] * v;
            y[1].r()[i] = v;
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, s: &[usize]| {
            let t = Input::uniform([s[0]], 0.0, 1.0);
            Case::new(name, FlowPath, vec![Input::normal(s), Input::normal(s), t])
        };
        Cases {
            named: MAPS.iter().map(|(name, s)| case(name, s)).collect(),
            draw: |d| {
                let s = [d.size(1, 5), d.size(1, 90)];
                let t = Input::uniform([s[0]], 0.0, 1.0);
                Case::new("drawn", FlowPath, vec![Input::normal(s), Input::normal(s), t])
            },
            bench: vec![case("reference", &[32, 16, 16, 32])],
        }
    }
}

/// Shapes of maps: T0's and others that no packet and no block divides.
const MAPS: [(&str, &[usize]); 5] = [
    ("t0", &[3, 4, 4, 16]),
    ("odd", &[2, 3, 5, 7]),
    ("past_a_block", &[2, 2311]),
    ("one", &[1, 1]),
    ("no_rows", &[0, 8]),
];

/// A face was given other outputs than `shapes` names.
fn outputs(op: &'static str) -> Error {
    Error::Internal(format!("{op} was given other outputs than it has"))
}

/// The maps f_n as the kernels take them: always [`MOST`], of which the last may be absent.
fn negatives<'a, T: Held>(q: &Queue, x: &[CudaIn<'a>]) -> Result<[Slice<'a, T>; MOST]> {
    let mut all = [Slice::none(q); MOST];
    for (slot, x) in all.iter_mut().zip(x) {
        *slot = x.get::<T>()?;
    }
    Ok(all)
}

impl Op for FlowLoss {
    const NAME: &'static str = "flow_loss";
    const INPUTS: RangeInclusive<usize> = 6..=6 + MOST;
    const COMPOSED: Option<Composed<Self>> = Some(composed::flow_loss);
    const SAVES: Saves = Saves::inputs(&[0, 1, 2, 3, 4, 6, 7, 8, 9]).and_extras();
    const F32_INPUTS: &'static [usize] = &[4, 5];
    const F32_OUTPUTS: &'static [usize] = &[0, 1, 2];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let all = x[5].shape.last();
        let judge = |b| op.judge(&Sample::new(x, b, 6), &x[5].r()[b * all..(b + 1) * all]);
        let judged = cpu::par_map(x[0].shape.dims()[0], judge);
        fill(y, judged);
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols) = extents(x[0].shape);
        let [loss, seen, factors] = y else { return Err(outputs(Self::NAME)) };
        let (loss, seen, factors) = (&mut loss.get()?, &mut seen.get()?, &mut factors.get()?);
        let [u, f, eps, dudt] = [0, 1, 2, 3].map(|i| x[i].get::<T>());
        let (span, lambda) = (x[4].get::<f32>()?, x[5].get::<f32>()?);
        let ([n0, n1, n2, n3], n) = (negatives::<T>(q, &x[6..])?, x.len() - 6);
        let ((clamp, kappa), grid) = (op.clamp.number(), block_per_job(q, rows));
        let share = (op.alpha / n.max(1) as f64) as f32;
        launch::flow_loss_fwd(
            q,
            grid,
            loss,
            seen,
            factors,
            &u?,
            &f?,
            &eps?,
            &dudt?,
            &span,
            &lambda,
            &n0,
            &n1,
            &n2,
            &n3,
            rows,
            cols,
            n,
            clamp,
            op.sign as f32,
            share,
            kappa,
            op.power as f32,
            op.floor as f32,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (rows, n) = (x[0].dims().first().copied().unwrap_or(0), x.len() - 6);
        let maps: Vec<&Shape> = x[..4].iter().chain(&x[6..]).copied().collect();
        let others = [("t - r", x[4], vec![rows]), ("lambda", x[5], vec![rows, n])];
        let (_, rows) = check(Self::NAME, &maps, &others)?;
        Ok(vec![[rows].into(), [rows, 3].into(), [rows, 1 + 2 * n].into()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = x[5].shape.last();
        let rows = 0..x[0].shape.dims()[0];
        let lambda = |b: usize| &x[5].r()[b * n..(b + 1) * n];
        fill(y, rows.map(|b| self.judge(&Sample::new(x, b, 6), lambda(b))).collect());
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let Some(du) = dx[0] else { return Ok(None) };
        let ones = Tensor::full(du.dtype(), at.y_shape(), 1.0);
        let gu = self.gradient(at, &ones)?;
        let (rows, cols) = extents(du.shape());
        let products = call(&Mul, &[&gu, du])?.reshape([rows, cols])?;
        let sums = call(&SumTo { to: [rows, 1].into() }, &[&products])?;
        sums.reshape([rows]).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let mut grads = vec![None; want.len()];
        grads[0] = want[0].then(|| self.gradient(at, gy)).transpose()?;
        Ok(grads)
    }
    fn cases() -> Cases {
        let named = MAPS.iter().zip([4, 2, 1, 1, 2]).map(|((name, s), n)| loss_case(name, s, n));
        let clamps = [Clamp::None, Clamp::Hinge, Clamp::Softplus].into_iter();
        let clamps = clamps.zip(["free", "hinge", "softplus"]).map(|(clamp, name)| {
            let op = FlowLoss { clamp, sign: -1.0, power: 0.5, ..usual() };
            Case { op: Box::new(op), ..loss_case(name, &[3, 4, 4, 8], 3) }
        });
        let alone = Case {
            op: Box::new(FlowLoss { power: 0.0, alpha: 0.0, ..usual() }),
            ..loss_case("pull_alone", &[3, 37], 0)
        };
        Cases {
            named: named.chain(clamps).chain([alone]).collect(),
            draw: |d| loss_case("drawn", &[d.size(1, 4), d.size(1, 90)], d.size(0, MOST)),
            bench: vec![loss_case("reference", &[32, 16, 16, 32], MOST)],
        }
    }
}

/// The defaults of training.
fn usual() -> FlowLoss {
    FlowLoss { sign: 1.0, alpha: 0.05, clamp: Clamp::Relative(4.0), power: 1.0, floor: 0.01 }
}

fn loss_case(name: &str, s: &[usize], n: usize) -> Case {
    let map = || Input::normal(s);
    let times = Input::uniform([s[0]], 0.0, 1.0);
    let lambda = Input::uniform([s[0], n], 0.5, 1.5);
    let mut inputs = vec![map(), map(), map(), map(), times, lambda];
    inputs.extend((0..n).map(|_| map()));
    Case::new(name, usual(), inputs)
}

fn fill<R: Real>(y: &mut [Out<'_, R>], judged: Vec<Judged<R>>) {
    let [loss, seen, factors] = y else { return };
    for (b, own) in judged.into_iter().enumerate() {
        let n = own.factors.len();
        loss.r()[b] = own.loss;
        seen.r()[3 * b..3 * b + 3].copy_from_slice(&own.seen);
        factors.r()[b * n..(b + 1) * n].copy_from_slice(&own.factors);
    }
}

impl FlowLoss {
    fn gradient(&self, at: &Saved, gy: &Tensor) -> Result<Tensor> {
        let mut x = [0, 1, 2, 3, 4].into_iter().map(|i| at.x(i)).collect::<Result<Vec<_>>>()?;
        x.extend([at.extra(1)?, gy]);
        for i in 6..at.arity() {
            x.push(at.x(i)?);
        }
        call(&FlowLossVjp { sign: self.sign }, &x)
    }
}
