//! Causal MeanFlow: the path from data to noise, the JVP target, the counterfactual push and the
//! one-step sample.
//!
//! Formulation A: f^t = (1 - t) f + t eps, v = eps - f, 0 <= r <= t <= 1, u_tgt = v - (t - r) du/dt
//! with du/dt = (v, 0, 1) . grad u over (f, r, t), and f_hat = eps - Phi(eps, t = 1, r = 0).
//! Formulation B is its mirror image (t -> 1 - t, r -> 1 - r, Phi -> -Phi) and exists to prove
//! that. Feature maps are standardised per channel.

use super::phi::{Phi, PhiInput};
use crate::autograd::{Pass, Var};
use crate::config::{Clamp, FlowMode, Formulation, MeanFlowConfig, TangentKind, TimeSampler};
use crate::error::{Error, Result, Within};
use crate::ops::activation::{Power, Softplus, Square};
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::reduce::SumTo;
use crate::tensor::{DType, Purpose, Shape, Stream, Tensor};

/// Added under square roots of lengths, so that an all-zero direction stays finite.
const TINY: f64 = 1e-20;

/// Times of a batch, one (t, r) a row.
#[derive(Clone, Debug)]
pub struct Times {
    /// Current times.
    pub t: Vec<f64>,
    /// Target times.
    pub r: Vec<f64>,
}

impl Times {
    /// Draws `rows` pairs for (seed, step).
    pub fn draw(cfg: &MeanFlowConfig, seed: u64, step: u64, rows: usize) -> Self {
        let s = Stream::new(seed, step, 0, Purpose::Time);
        let mut times = Self { t: Vec::new(), r: Vec::new() };
        for i in 0..rows {
            // Four draws a row: two times and two coins.
            let time = |j: usize| match cfg.times {
                TimeSampler::Uniform => f64::from(s.uniform(4 * i + j)),
                TimeSampler::Lognorm => {
                    let x = cfg.time_mean + cfg.time_std * f64::from(s.normal(4 * i + j));
                    1.0 / (1.0 + (-x).exp())
                }
            };
            let coins = Stream::new(seed, step, 1, Purpose::Time);
            let coin = |j: usize| f64::from(coins.uniform(2 * i + j));
            let (a, b) = (time(0), time(1));
            let (mut t, mut r) = (a.max(b), a.min(b));
            if coin(0) >= cfg.unequal || cfg.mode == FlowMode::FlowMatching {
                r = t;
            }
            if coin(1) < cfg.forced_ends && cfg.mode != FlowMode::FlowMatching {
                (t, r) = (1.0, 0.0);
            }
            if cfg.formulation == Formulation::B {
                (t, r) = (1.0 - t, 1.0 - r);
            }
            times.t.push(t);
            times.r.push(r);
        }
        times
    }
}

/// A training batch at one scale. Feature maps are [B, H, H, d] and standardised.
pub struct FlowBatch<'a> {
    /// 0-based scale k >= 1.
    pub k: usize,
    /// f_k.
    pub f: &'a Tensor,
    /// r_k [B, p, p, d]; it carries neither gradient nor tangent in training.
    pub r_k: &'a Var,
    /// z [B, latent].
    pub z: &'a Tensor,
    /// Rows that see the null instead of z.
    pub null: &'a [bool],
    /// Noise of the shape of f_k.
    pub eps: &'a Tensor,
    /// Times.
    pub times: &'a Times,
    /// Counterfactual f_k^n with their factors lambda `[B]`.
    pub negatives: &'a [(Tensor, Vec<f64>)],
    /// Weight of the push now.
    pub alpha: f64,
}

/// The loss of a batch and what is worth logging.
pub struct FlowLoss {
    /// The loss, one number.
    pub loss: Var,
    /// Mean squared error of u to its target, an element.
    pub mse: f64,
    /// The same over rows with r = t only: the plain velocity loss.
    pub mse_equal: f64,
    /// Mean length of u over mean length of its target.
    pub length_ratio: f64,
}

/// Per-sample scalars [B, 1, 1, 1].
fn column(dtype: DType, values: Vec<f64>) -> Result<Tensor> {
    let b = values.len();
    Tensor::from_f64s(dtype, values, [b, 1, 1, 1])
}

/// Squared length of each sample [B, 1, 1, 1].
fn squares(p: &Pass, x: &Var) -> Result<Var> {
    let to = Shape::from([x.dims()[0], 1, 1, 1]);
    p.op(SumTo { to }, &[&p.op(Square, &[x])?])
}

/// f^t and v of the straight path between `f` and `eps`.
pub fn path(form: Formulation, f: &Tensor, eps: &Tensor, t: &[f64]) -> Result<(Tensor, Tensor)> {
    let (data, noise) = match form {
        Formulation::A => (f, eps),
        Formulation::B => (eps, f),
    };
    // Either way f^t = (1 - t) first + t second and v = second - first.
    let v = call(&SUB, &[noise, data])?;
    let t = column(f.dtype(), t.to_vec())?;
    Ok((call(&ADD, &[data, &call(&Mul, &[&v, &t])?])?, v))
}

/// u_tgt = v - (t - r) du/dt. Where r = t it is v to the last bit.
pub fn target(v: &Tensor, dudt: &Tensor, times: &Times) -> Result<Tensor> {
    let span = times.t.iter().zip(&times.r).map(|(t, r)| t - r).collect();
    let span = column(v.dtype(), span)?;
    call(&SUB, &[v, &call(&Mul, &[dudt, &span])?])
}

/// u^n_tgt = lambda ||u_tgt|| (eps - f^n) / ||eps - f^n|| (Eq. 9 in closed form: with shared noise
/// the direction of f^{n,t} - f^{n,r} does not depend on the times). Formulation B turns the
/// direction round.
pub fn counterfactual_target(
    form: Formulation,
    u_tgt: &Tensor,
    eps: &Tensor,
    f_n: &Tensor,
    lambda: &[f64],
) -> Result<Tensor> {
    let (to, from) = match form {
        Formulation::A => (eps, f_n),
        Formulation::B => (f_n, eps),
    };
    let direction = call(&SUB, &[to, from])?;
    let p = Pass::eval();
    let root = |x: &Tensor, power: f64| {
        let s = squares(&p, &x.clone().into())?;
        let s = p.op(Affine { scale: 1.0, shift: TINY }, &[&s])?;
        Ok::<_, Error>(p.op(Power { p: power }, &[&s])?.into_value())
    };
    let factor = call(&Mul, &[&root(u_tgt, 0.5)?, &root(&direction, -0.5)?])?;
    let factor = call(&Mul, &[&factor, &column(u_tgt.dtype(), lambda.to_vec())?])?;
    call(&Mul, &[&direction, &factor])
}

/// S - (alpha / N) sum_n D_n per sample [B, 1, 1, 1], times one shared adaptive weight, averaged
/// over the batch.
///
/// S = ||u - a||^2 and d_n = ||u - c_n||^2. The weight 1 / sg(S + c)^p multiplies the whole
/// bracket: on the pull alone it would let the push win. alpha < 1/2 is required.
pub fn contrastive(
    p: &Pass,
    cfg: &MeanFlowConfig,
    u: &Var,
    anchor: &Tensor,
    negatives: &[Tensor],
    alpha: f64,
) -> Result<(Var, Tensor)> {
    if alpha.is_nan() || alpha >= 0.5 {
        let fix = "choose it below .5: at 1 the loss has no lower bound";
        return Err(Error::config("meanflow.alpha", format!("{alpha} is too large"), fix));
    }
    let a = Var::constant(anchor.clone());
    let s = squares(p, &p.op(SUB, &[u, &a])?)?;
    let mut bracket = s.clone();
    for c in negatives {
        let c = Var::constant(c.clone());
        let d = squares(p, &p.op(SUB, &[u, &c])?)?;
        let reach = squares(&Pass::eval(), &Pass::eval().op(SUB, &[&a, &c])?)?.into_value();
        let (term, sign) = push(p, cfg, &s, &d, &reach)?;
        let weight = Axpy { alpha: sign * alpha / negatives.len() as f64 };
        bracket = p.op(weight, &[&bracket, &term])?;
    }
    let s_value = s.into_value();
    let shifted = call(&Affine { scale: 1.0, shift: cfg.adaptive_c }, &[&s_value])?;
    let weight = match cfg.mode {
        FlowMode::Vit => Tensor::full(s_value.dtype(), s_value.shape(), 1.0),
        _ => call(&Power { p: -cfg.adaptive_p }, &[&shifted])?,
    };
    let weighted = p.op(Mul, &[&bracket, &weight.into()])?;
    let b = s_value.len() as f64;
    let sum = p.op(SumTo { to: [1].into() }, &[&weighted])?;
    Ok((p.op(Affine { scale: 1.0 / b, shift: 0.0 }, &[&sum])?, s_value))
}

/// One negative's term and its sign in the loss. `reach` is ||a - c_n||^2, a constant.
fn push(p: &Pass, cfg: &MeanFlowConfig, s: &Var, d: &Var, reach: &Tensor) -> Result<(Var, f64)> {
    match cfg.clamp {
        Clamp::None => Ok((d.clone(), -1.0)),
        Clamp::Relative => {
            let limit = call(&Affine { scale: cfg.clamp_kappa, shift: 0.0 }, &[reach])?;
            Ok((smaller(p, d, &limit)?, -1.0))
        }
        // max(0, m^2 - d) = m^2 - min(d, m^2).
        Clamp::Hinge => {
            let near = smaller(p, d, reach)?;
            Ok((p.op(SUB, &[&reach.clone().into(), &near])?, 1.0))
        }
        // tau softplus((S - d) / tau) with tau = m^2, so that it has the units of S.
        Clamp::Softplus => {
            let tau = call(&Affine { scale: 1.0, shift: TINY }, &[reach])?;
            let inverse = call(&Power { p: -1.0 }, &[&tau])?;
            let x = p.op(Mul, &[&p.op(SUB, &[s, d])?, &inverse.into()])?;
            Ok((p.op(Mul, &[&p.op(Softplus, &[&x])?, &tau.into()])?, 1.0))
        }
    }
}

/// min(d, limit) for a constant limit; no gradient where the limit holds.
fn smaller(p: &Pass, d: &Var, limit: &Tensor) -> Result<Var> {
    let n = d.value().len();
    let below = |i: &usize| d.value().at(*i) < limit.at(*i);
    let near = (0..n).map(|i| f64::from(u8::from(below(&i)))).collect();
    let rest = (0..n).map(|i| if below(&i) { 0.0 } else { limit.at(i) }).collect();
    let near = column(d.value().dtype(), near)?;
    let rest = column(d.value().dtype(), rest)?;
    p.op(ADD, &[&p.op(Mul, &[d, &near.into()])?, &rest.into()])
}

/// The loss of one batch. `p` must be a dual_tape pass that trains Phi (a tape pass does for flow
/// matching and the deterministic network, which need no tangent).
pub fn loss(phi: &Phi, p: &Pass, b: &FlowBatch<'_>) -> Result<FlowLoss> {
    let cfg = phi.config();
    let dtype = b.f.dtype();
    let rows = b.times.t.len();
    let at = |x: &[f64]| Tensor::from_f64s(dtype, x.to_vec(), [rows]);
    let (t, r) = (at(&b.times.t)?, at(&b.times.r)?);
    if cfg.mode == FlowMode::Vit {
        let zeros = Tensor::zeros(dtype, b.f.shape());
        let u = phi.forward(p, &input(b, &zeros.into(), &t.into(), &r.into()))?;
        let (loss, s) = contrastive(p, cfg, &u, b.f, &[], 0.0)?;
        return report(loss, &u, b.f, &s, b);
    }
    let (f_t, v) = path(cfg.formulation, b.f, b.eps, &b.times.t)?;
    let r = Var::constant(r);
    let tangent = match cfg.tangent {
        TangentKind::Cond => v.clone(),
        TangentKind::Pred => {
            let t = Var::constant(t.clone());
            phi.forward(&Pass::eval(), &input(b, &f_t.clone().into(), &t, &t))?.into_value()
        }
    };
    let (f_var, t_var) = match cfg.mode {
        FlowMode::FlowMatching => (Var::constant(f_t), Var::constant(t)),
        _ => {
            let one = Tensor::full(dtype, t.shape(), 1.0);
            (p.with_tangent(f_t, tangent), p.with_tangent(t, one))
        }
    };
    let u = phi.forward(p, &input(b, &f_var, &t_var, &r))?;
    let u_tgt = match u.tangent() {
        Some(du) => target(&v, &du.clone().into_tensor(), b.times)?,
        None => v,
    };
    // From here on u is a value with a gradient; its tangent has done its work.
    let form = cfg.formulation;
    let negatives = match b.alpha > 0.0 {
        true => b
            .negatives
            .iter()
            .map(|(f_n, lambda)| counterfactual_target(form, &u_tgt, b.eps, f_n, lambda))
            .collect::<Result<Vec<_>>>()?,
        false => Vec::new(),
    };
    let (loss, s) = contrastive(p, cfg, &u.without_tangent(), &u_tgt, &negatives, b.alpha)
        .within("contrastive loss")?;
    report(loss, &u, &u_tgt, &s, b)
}

fn input<'a>(b: &'a FlowBatch<'_>, f: &'a Var, t: &'a Var, r: &'a Var) -> PhiInput<'a> {
    PhiInput { f, r_k: b.r_k, z: b.z, null: b.null, t, r, k: b.k }
}

fn report(loss: Var, u: &Var, tgt: &Tensor, s: &Tensor, b: &FlowBatch<'_>) -> Result<FlowLoss> {
    let rows = s.len();
    let per_row = (u.value().len() / rows.max(1)) as f64;
    let mean = |keep: &dyn Fn(usize) -> bool| {
        let kept: Vec<usize> = (0..rows).filter(|&i| keep(i)).collect();
        kept.iter().map(|&i| s.at(i)).sum::<f64>() / (kept.len().max(1) as f64 * per_row)
    };
    let length = |x: &Tensor| {
        let p = Pass::eval();
        let s = squares(&p, &x.clone().into())?.into_value();
        Ok::<_, Error>(s.to_f64s().iter().map(|v| v.sqrt()).sum::<f64>())
    };
    Ok(FlowLoss {
        mse: mean(&|_| true),
        mse_equal: mean(&|i| b.times.t[i] == b.times.r[i]),
        length_ratio: length(u.value())? / length(tgt)?.max(TINY),
        loss,
    })
}

/// What a sample is conditioned on.
pub struct FlowCond<'a> {
    /// z [B, latent].
    pub z: &'a Tensor,
    /// Rows that see the null instead of z.
    pub null: &'a [bool],
    /// 0-based scale.
    pub k: usize,
}

/// f_hat [B, H, H, d] from noise: one step of MeanFlow, `euler_steps` of flow matching, or the
/// deterministic network. `r_k` may be a tracked leaf: the mask asks for the gradient to it.
pub fn sample(phi: &Phi, p: &Pass, eps: &Tensor, r_k: &Var, cond: &FlowCond<'_>) -> Result<Var> {
    let cfg = phi.config();
    let rows = cond.null.len();
    let time = |x: f64| Var::constant(Tensor::full(eps.dtype(), [rows], x));
    let u = |f: &Var, t: f64, r: f64| {
        let (t, r) = (time(t), time(r));
        let (z, null, k) = (cond.z, cond.null, cond.k);
        phi.forward(p, &PhiInput { f, r_k, z, null, t: &t, r: &r, k })
    };
    let noise = Var::constant(eps.clone());
    match (cfg.mode, cfg.formulation) {
        (FlowMode::Vit, _) => u(&Tensor::zeros(eps.dtype(), eps.shape()).into(), 0.0, 0.0),
        (FlowMode::FlowMatching, form) => {
            let (n, mut f) = (cfg.euler_steps, noise);
            let h = 1.0 / n as f64;
            for i in 0..n {
                let gone = i as f64 * h;
                f = match form {
                    Formulation::A => {
                        p.op(Axpy { alpha: -h }, &[&f, &u(&f, 1.0 - gone, 1.0 - gone)?])?
                    }
                    Formulation::B => p.op(Axpy { alpha: h }, &[&f, &u(&f, gone, gone)?])?,
                };
            }
            Ok(f)
        }
        (_, Formulation::A) => p.op(SUB, &[&noise, &u(&noise, 1.0, 0.0)?]),
        (_, Formulation::B) => p.op(ADD, &[&noise, &u(&noise, 0.0, 1.0)?]),
    }
}
