//! Causal MeanFlow: the path from data to noise, the JVP target, the counterfactual push and the
//! one-step sample.
//!
//! Formulation A: f^t = (1 - t) f + t eps, v = eps - f, 0 <= r <= t <= 1, u_tgt = v - (t - r) du/dt
//! with du/dt = (v, 0, 1) . grad u over (f, r, t), and f_hat = eps - Phi(eps, t = 1, r = 0).
//! Formulation B is its mirror image (t -> 1 - t, r -> 1 - r, Phi -> -Phi) and exists to prove
//! that. Feature maps are standardised per channel.

use super::phi::{Phi, PhiInput, PhiLatent, Settled};
use crate::autograd::{Pass, Var};
use crate::config::{Clamp, FlowMode, Formulation, MeanFlowConfig, TangentKind, TimeSampler};
use crate::device::{Device, constant};
use crate::error::{Error, Result, Within};
use crate::ops::elementwise::{ADD, Affine, Axpy, SUB};
use crate::ops::flow::{self, FlowPath};
use crate::ops::reduce::SumTo;
use crate::ops::run;
use crate::tensor::{Purpose, Stream, Tensor};

/// Times of a batch, one (t, r) a row.
#[derive(Clone, Debug)]
pub struct Times {
    /// Current times.
    pub t: Vec<f64>,
    /// Target times.
    pub r: Vec<f64>,
}

impl Times {
    /// Those of some rows.
    pub fn part(&self, rows: std::ops::Range<usize>) -> Self {
        let cut = |all: &[f64]| all.get(rows.clone()).unwrap_or_default().to_vec();
        Self { t: cut(&self.t), r: cut(&self.r) }
    }

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

/// The loss of a batch and what is worth logging, which is fetched when asked for.
pub struct FlowLoss {
    /// The loss, one number.
    pub loss: Var,
    /// S, |u| and |u_tgt| of each sample [B, 3].
    seen: Tensor,
    /// Which samples have r = t.
    equal: Vec<bool>,
    /// Elements of a sample.
    per_row: usize,
}

/// f^t and v of the straight path between `f` and `eps`.
pub fn path(form: Formulation, f: &Tensor, eps: &Tensor, t: &[f64]) -> Result<(Tensor, Tensor)> {
    let (data, noise) = match form {
        Formulation::A => (f, eps),
        Formulation::B => (eps, f),
    };
    // Either way f^t = (1 - t) first + t second and v = second - first.
    let t = Tensor::from_f64s(f.dtype(), t.to_vec(), [t.len()])?;
    let [at, v] = <[Tensor; 2]>::try_from(run(&FlowPath, &[data, noise, &t])?)
        .map_err(|_| Error::Internal("flow_path has two outputs".into()))?;
    Ok((at, v))
}

/// What u is held against. Maps are [B, H, H, d].
pub struct Targets<'a> {
    /// f_k.
    pub f: &'a Tensor,
    /// Noise.
    pub eps: &'a Tensor,
    /// du/dt along the path; None where r = t throughout.
    pub dudt: Option<&'a Tensor>,
    /// Times.
    pub times: &'a Times,
    /// Counterfactual f_k^n with their factors lambda `[B]`.
    pub negatives: &'a [(Tensor, Vec<f64>)],
}

/// The contrastive loss, averaged over the batch, and of each sample S, |u| and |u_tgt| [B, 3].
///
/// With u_tgt = v - (t - r) du/dt (v to the last bit where r = t) and, with shared noise, the
/// direction of f^{n,t} - f^{n,r} free of the times (Eq. 9 in closed form),
/// u^n_tgt = lambda |u_tgt| (eps - f^n) / |eps - f^n|. The weight 1 / sg(S + c)^p multiplies the
/// whole bracket: on the pull alone it would let the push win. alpha < 1/2 is required.
pub fn contrastive(
    p: &Pass,
    cfg: &MeanFlowConfig,
    u: &Var,
    to: &Targets<'_>,
    alpha: f64,
) -> Result<(Var, Tensor)> {
    if alpha.is_nan() || alpha >= 0.5 {
        let fix = "choose it below .5: at 1 the loss has no lower bound";
        return Err(Error::config("meanflow.alpha", format!("{alpha} is too large"), fix));
    }
    let clamp = match cfg.clamp {
        Clamp::None => flow::Clamp::None,
        Clamp::Relative => flow::Clamp::Relative(cfg.clamp_kappa),
        Clamp::Hinge => flow::Clamp::Hinge,
        Clamp::Softplus => flow::Clamp::Softplus,
    };
    let (sign, power) = match (cfg.mode, cfg.formulation) {
        // The deterministic network answers f itself: a = f, and no weight.
        (FlowMode::Vit, _) => (-1.0, 0.0),
        (_, Formulation::A) => (1.0, cfg.adaptive_p),
        (_, Formulation::B) => (-1.0, cfg.adaptive_p),
    };
    let op = flow::FlowLoss { sign, alpha, clamp, power, floor: cfg.adaptive_c };
    let (rows, n) = (to.times.t.len(), to.negatives.len());
    let dtype = to.f.dtype();
    let spans = to.times.t.iter().zip(&to.times.r).map(|(t, r)| t - r).collect();
    let span = Tensor::from_f64s(dtype, spans, [rows])?.into();
    let lambda = (0..rows).flat_map(|b| to.negatives.iter().map(move |(_, l)| l[b])).collect();
    let lambda = Tensor::from_f64s(dtype, lambda, [rows, n])?.into();
    // Without a tangent t - r is 0, and what it multiplies is of no account.
    let dudt = to.dudt.unwrap_or(to.f);
    let [f, eps, dudt] = [to.f, to.eps, dudt].map(|x| Var::constant(x.clone()));
    let negatives: Vec<Var> = to.negatives.iter().map(|(f, _)| f.clone().into()).collect();
    let mut x = vec![u, &f, &eps, &dudt, &span, &lambda];
    x.extend(&negatives);
    let (each, extras) = p.op_with_extras(op, &x)?;
    let seen = extras.into_iter().next();
    let sum = p.op(SumTo { to: [1].into() }, &[&each])?;
    let mean = p.op(Affine { scale: 1.0 / rows as f64, shift: 0.0 }, &[&sum])?;
    Ok((mean, seen.ok_or_else(|| Error::Internal("flow_loss keeps what it saw".into()))?))
}

/// The loss of one batch. `p` must be a dual_tape pass that trains Phi (a tape pass does for flow
/// matching and the deterministic network, which need no tangent).
pub fn loss(phi: &Phi, p: &Pass, b: &FlowBatch<'_>) -> Result<FlowLoss> {
    let cfg = phi.config();
    let dtype = b.f.dtype();
    let rows = b.times.t.len();
    let device = Device::of([b.f]);
    let at = |x: &[f64]| device.put(&Tensor::from_f64s(dtype, x.to_vec(), [rows])?);
    let (t, r) = (at(&b.times.t)?, at(&b.times.r)?);
    if cfg.mode == FlowMode::Vit {
        let zeros = Tensor::zeros(dtype, b.f.shape());
        let u = phi.forward(p, &input(b, &zeros.clone().into(), &t.into(), &r.into()))?;
        let still = Times { t: vec![0.0; rows], r: vec![0.0; rows] };
        let to = Targets { f: b.f, eps: &zeros, dudt: None, times: &still, negatives: &[] };
        return FlowLoss::new(contrastive(p, cfg, &u, &to, 0.0)?, &u, b);
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
            let one = device.put(&Tensor::full(dtype, t.shape(), 1.0))?;
            (p.with_tangent(f_t, tangent), p.with_tangent(t, one))
        }
    };
    let u = phi.forward(p, &input(b, &f_var, &t_var, &r))?;
    let dudt = u.tangent().map(|du| du.clone().into_tensor());
    let negatives = if b.alpha > 0.0 { b.negatives } else { &[] };
    let to = Targets { f: b.f, eps: b.eps, dudt: dudt.as_ref(), times: b.times, negatives };
    // From here on u is a value with a gradient; its tangent has done its work.
    let judged = contrastive(p, cfg, &u.without_tangent(), &to, b.alpha);
    FlowLoss::new(judged.within("contrastive loss")?, &u, b)
}

fn input<'a>(b: &'a FlowBatch<'_>, f: &'a Var, t: &'a Var, r: &'a Var) -> PhiInput<'a> {
    PhiInput { f, r_k: b.r_k, z: b.z.into(), null: b.null, t, r, k: b.k }
}

impl FlowLoss {
    fn new((loss, seen): (Var, Tensor), u: &Var, b: &FlowBatch<'_>) -> Result<Self> {
        let equal = b.times.t.iter().zip(&b.times.r).map(|(t, r)| t == r).collect();
        Ok(Self { loss, seen, equal, per_row: u.value().len() / b.times.t.len().max(1) })
    }

    /// Of each sample S, |u| and |u_tgt| [B, 3]: what [`Summary::of`] takes.
    pub fn seen(&self) -> &Tensor {
        &self.seen
    }

    /// What sums them up.
    pub fn summary(&self) -> Summary {
        Summary { equal: self.equal.clone(), per_row: self.per_row }
    }
}

/// Sums up what a loss saw, once it is known on the host.
pub struct Summary {
    equal: Vec<bool>,
    per_row: usize,
}

impl Summary {
    /// With that of more samples, which follow.
    pub fn and(mut self, more: Self) -> Self {
        self.equal.extend(more.equal);
        self
    }

    /// Of S, |u| and |u_tgt| [B, 3]: the mean squared error of u to its target, an element; the
    /// same over rows with r = t only, the plain velocity loss; the mean length of u over that of
    /// its target.
    pub fn of(&self, seen: &[f64]) -> [f64; 3] {
        let mean = |keep: &dyn Fn(usize) -> bool| {
            let kept: Vec<usize> = (0..self.equal.len()).filter(|&i| keep(i)).collect();
            let sum = kept.iter().map(|&i| seen[3 * i]).sum::<f64>();
            sum / (kept.len().max(1) * self.per_row) as f64
        };
        let sum = |j: usize| seen.iter().skip(j).step_by(3).sum::<f64>();
        let ratio = sum(1) / sum(2).max(f64::MIN_POSITIVE);
        [mean(&|_| true), mean(&|i| self.equal[i]), ratio]
    }
}

/// What a sample is conditioned on.
pub struct FlowCond<'a> {
    /// z.
    pub z: PhiLatent<'a>,
    /// Rows that see the null instead of z.
    pub null: &'a [bool],
    /// 0-based scale.
    pub k: usize,
}

/// (t, r) of all that [`sample`] asks Phi for; None where it goes by several steps.
fn ends(cfg: &MeanFlowConfig) -> Option<[f64; 2]> {
    match (cfg.mode, cfg.formulation) {
        (FlowMode::Vit, _) => Some([0.0, 0.0]),
        (FlowMode::FlowMatching, _) => None,
        (_, Formulation::A) => Some([1.0, 0.0]),
        (_, Formulation::B) => Some([0.0, 1.0]),
    }
}

/// What [`sample`] reads of z [B, latent], none of its rows null, at every scale.
///
/// # Errors
/// Those of the ops.
pub fn settle(phi: &Phi, z: &Tensor) -> Result<Settled> {
    phi.settle(&Pass::eval(), z, ends(phi.config())).within("Phi's condition")
}

/// f_hat [B, H, H, d] from noise: one step of MeanFlow, `euler_steps` of flow matching, or the
/// deterministic network. `r_k` may be a tracked leaf: the mask asks for the gradient to it.
pub fn sample(phi: &Phi, p: &Pass, eps: &Tensor, r_k: &Var, cond: &FlowCond<'_>) -> Result<Var> {
    let cfg = phi.config();
    let rows = cond.null.len();
    let time = |x: f64| {
        Ok::<_, Error>(Var::constant(constant(eps, &Tensor::full(eps.dtype(), [rows], x))?))
    };
    let u = |f: &Var, t: f64, r: f64| {
        let (t, r) = (time(t)?, time(r)?);
        let (z, null, k) = (cond.z, cond.null, cond.k);
        phi.forward(p, &PhiInput { f, r_k, z, null, t: &t, r: &r, k })
    };
    let noise = Var::constant(eps.clone());
    match (ends(cfg), cfg.formulation) {
        (Some([t, r]), _) if cfg.mode == FlowMode::Vit => {
            u(&Tensor::zeros(eps.dtype(), eps.shape()).into(), t, r)
        }
        (Some([t, r]), form) => {
            let u = u(&noise, t, r)?;
            p.op(if form == Formulation::A { SUB } else { ADD }, &[&noise, &u])
        }
        (None, form) => {
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
    }
}
