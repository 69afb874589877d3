//! AdamW with global-norm clipping and a running mean of the weights, over the parameters of one
//! model.
//!
//! With n updates before this one, g the clipped gradient and t = n + 1:
//!   m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,
//!   w = w - lr (decay w + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + 1e-8)),
//!   e = d e + (1 - d) w with d = min(ema, (1 + n) / (10 + n)), so that a short run is not held
//!   back by where it began. Sources: Loshchilov and Hutter 2019; the ramp of d is TensorFlow's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::autograd::{Gradients, Param, Params};
use crate::config::StageConfig;
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

const EPS: f32 = 1e-8;

/// Elements a task; fixed, so that the sums below do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// One parameter's own state.
#[derive(Clone, Debug)]
struct Slot {
    m: Vec<f32>,
    v: Vec<f32>,
    /// Empty when no running mean is kept.
    ema: Vec<f32>,
}

/// The optimiser of one model.
pub struct Learner {
    params: Vec<Param>,
    slots: Vec<Slot>,
    config: StageConfig,
}

impl Learner {
    /// Moments at zero, the running mean at the current weights (if `config.ema` is above 0).
    ///
    /// # Errors
    /// A parameter that is not f32.
    pub fn new(params: &Params, config: &StageConfig) -> Result<Self> {
        let params: Vec<Param> = params.iter().cloned().collect();
        let slots = params
            .iter()
            .map(|p| {
                let value = p.value();
                let w = value.f32s()?;
                let ema = if config.ema > 0.0 { w.to_vec() } else { Vec::new() };
                Ok(Slot { m: vec![0.0; w.len()], v: vec![0.0; w.len()], ema })
            })
            .collect::<Result<_>>()?;
        Ok(Self { params, slots, config: config.clone() })
    }

    /// Norm of all gradients together; NaN or infinite as soon as one of them is.
    pub fn norm(&self, grads: &Gradients) -> Result<f64> {
        let mut sum = 0.0;
        for p in &self.params {
            if let Some(g) = grads.param(p) {
                let parts: Vec<f64> = g.f32s()?.par_chunks(CHUNK).map(square_sum).collect();
                sum += parts.iter().sum::<f64>();
            }
        }
        Ok(sum.sqrt())
    }

    /// Takes update number `n`, counting from 0, at learning rate `lr`. Returns the gradient norm
    /// before clipping; if that is not finite, nothing was changed. A parameter that the loss did
    /// not depend on takes no part: it keeps its weight and its moments.
    pub fn update(&mut self, grads: &Gradients, lr: f64, n: u64) -> Result<f64> {
        let norm = self.norm(grads)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clip = self.config.clip;
        let scale = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
        for (p, slot) in self.params.iter().zip(&mut self.slots) {
            if let Some(g) = grads.param(p) {
                let rule = Rule::new(&self.config, lr, scale, n, p.decays());
                let old = p.value();
                let new = rule.apply(old.f32s()?, g.f32s()?, slot);
                p.set(Tensor::new(new, old.shape())?)?;
            }
        }
        Ok(norm)
    }

    /// Fails, naming the first parameter whose gradient is not finite.
    pub fn blame(&self, grads: &Gradients) -> Result<()> {
        for p in &self.params {
            if let Some(g) = grads.param(p) {
                g.check_finite(&format!("gradient of {}", p.name()))?;
            }
        }
        Ok(())
    }

    /// For rows of `param` that were overwritten from outside: their moments begin again at zero and
    /// their running mean at the new values.
    ///
    /// # Errors
    /// A row that the parameter has not.
    pub fn forget_rows(&mut self, param: &Param, rows: &[usize]) -> Result<()> {
        let place = self.params.iter().position(|p| p.name() == param.name());
        let Some(slot) = place.and_then(|i| self.slots.get_mut(i)) else { return Ok(()) };
        let value = param.value();
        let count = value.shape().dims().first().copied().unwrap_or(1);
        let width = value.len().checked_div(count).unwrap_or(0);
        if let Some(bad) = rows.iter().find(|&&r| r >= count) {
            return Err(Error::shape("optimiser", format!("row {bad} of {}", value.shape())));
        }
        for part in rows.iter().map(|r| r * width..(r + 1) * width) {
            slot.m[part.clone()].fill(0.0);
            slot.v[part.clone()].fill(0.0);
            if !slot.ema.is_empty() {
                slot.ema[part.clone()].copy_from_slice(&value.f32s()?[part]);
            }
        }
        Ok(())
    }

    /// Puts the running mean into the parameters and the parameters' values into its place; a
    /// second call puts them back. Without a running mean it does nothing.
    pub fn swap_ema(&mut self) -> Result<()> {
        for (p, slot) in self.params.iter().zip(&mut self.slots) {
            if !slot.ema.is_empty() {
                let old = p.value();
                let mean = std::mem::take(&mut slot.ema);
                p.set(Tensor::new(mean, old.shape())?)?;
                slot.ema = old.into_f32s()?;
            }
        }
        Ok(())
    }

    /// Runs `f` while the parameters hold the running mean, then puts them back, also after an
    /// error. Without a running mean it only runs `f`.
    pub fn averaged<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let old: Vec<Tensor> = self.params.iter().map(Param::value).collect();
        for ((p, slot), value) in self.params.iter().zip(&self.slots).zip(&old) {
            if !slot.ema.is_empty() {
                p.set(Tensor::new(slot.ema.clone(), value.shape())?)?;
            }
        }
        let answer = f();
        self.params.iter().zip(old).try_for_each(|(p, value)| p.set(value))?;
        answer
    }

    /// Weights, moments and running mean under `{prefix}param.`, `adam_m.`, `adam_v.` and `ema.`.
    pub fn state(&self, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (p, slot) in self.params.iter().zip(&self.slots) {
            let value = p.value();
            let mut put = |kind: &str, data: &[f32]| -> Result<()> {
                let tensor = Tensor::new(data.to_vec(), value.shape())?;
                state.insert(format!("{prefix}{kind}.{}", p.name()), tensor);
                Ok(())
            };
            put("adam_m", &slot.m)?;
            put("adam_v", &slot.v)?;
            if !slot.ema.is_empty() {
                put("ema", &slot.ema)?;
            }
            state.insert(format!("{prefix}param.{}", p.name()), value);
        }
        Ok(state)
    }

    /// Takes back what [`Learner::state`] gave; other names are ignored.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; nothing was changed then.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, prefix: &str) -> Result<()> {
        let mut slots = Vec::with_capacity(self.slots.len());
        let mut values = Vec::with_capacity(self.slots.len());
        for (p, slot) in self.params.iter().zip(&self.slots) {
            let shape = p.value().shape().clone();
            let take = |kind: &str| {
                wanted(state, &format!("{prefix}{kind}.{}", p.name()), &shape).cloned()
            };
            let ema = if slot.ema.is_empty() { Vec::new() } else { take("ema")?.into_f32s()? };
            let (m, v) = (take("adam_m")?.into_f32s()?, take("adam_v")?.into_f32s()?);
            slots.push(Slot { m, v, ema });
            values.push(take("param")?);
        }
        self.slots = slots;
        self.params.iter().zip(values).try_for_each(|(p, value)| p.set(value))
    }
}

/// The weights that a trained stage is used with: its running mean where it kept one. `state` is a
/// checkpoint's, `prefix` that of the model's learner; the names that come back are the model's.
pub fn weights(state: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let part = |kind: &str| -> BTreeMap<String, Tensor> {
        let start = format!("{prefix}{kind}.");
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(&start)?.to_string(), tensor.clone()))
        };
        state.iter().filter_map(strip).collect()
    };
    let mean = part("ema");
    if mean.is_empty() { part("param") } else { mean }
}

fn wanted<'a>(
    state: &'a BTreeMap<String, Tensor>,
    name: &str,
    shape: &Shape,
) -> Result<&'a Tensor> {
    let fix = "the checkpoint is of another architecture: use the configuration it records";
    match state.get(name) {
        Some(tensor) if tensor.shape() == shape => Ok(tensor),
        Some(tensor) => {
            let what = format!("tensor {name} is {}, the model wants {shape}", tensor.shape());
            Err(Error::data(what, fix))
        }
        None => Err(Error::data(format!("tensor {name} is missing"), fix)),
    }
}

fn square_sum(part: &[f32]) -> f64 {
    // Eight running sums, in an order of their own: the compiler may not reorder one.
    let mut sums = [0.0f64; 8];
    let (eights, rest) = part.as_chunks::<8>();
    cpu::simd(|| {
        for eight in eights {
            for (s, x) in sums.iter_mut().zip(eight) {
                *s += f64::from(*x) * f64::from(*x);
            }
        }
    });
    let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    sums.iter().sum::<f64>() + rest
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy)]
struct Rule {
    b1: f32,
    b2: f32,
    /// Learning rate over 1 - b1^t.
    rate: f32,
    /// 1 / sqrt(1 - b2^t).
    spread: f32,
    /// What decay leaves of a weight.
    keep: f32,
    /// Factor on the gradient from clipping.
    scale: f32,
    mean: f32,
}

impl Rule {
    fn new(config: &StageConfig, lr: f64, scale: f64, n: u64, decays: bool) -> Self {
        let t = n as f64 + 1.0;
        let decay = if decays { config.weight_decay } else { 0.0 };
        Self {
            b1: config.beta1 as f32,
            b2: config.beta2 as f32,
            rate: (lr / (1.0 - config.beta1.powf(t))) as f32,
            spread: (1.0 / (1.0 - config.beta2.powf(t)).sqrt()) as f32,
            keep: (1.0 - lr * decay) as f32,
            scale: scale as f32,
            mean: config.ema.min(t / (9.0 + t)) as f32,
        }
    }

    /// The new weights; the moments and the running mean change in place.
    fn apply(self, w: &[f32], g: &[f32], slot: &mut Slot) -> Vec<f32> {
        let mut new = w.to_vec();
        new.par_chunks_mut(CHUNK)
            .zip(slot.m.par_chunks_mut(CHUNK))
            .zip(slot.v.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|(((w, m), v), g)| cpu::simd(|| self.adam(w, m, v, g)));
        if !slot.ema.is_empty() {
            let follow = |(e, w): (&mut [f32], &[f32])| {
                cpu::simd(|| {
                    for (e, w) in e.iter_mut().zip(w) {
                        *e += (1.0 - self.mean) * (*w - *e);
                    }
                });
            };
            slot.ema.par_chunks_mut(CHUNK).zip(new.par_chunks(CHUNK)).for_each(follow);
        }
        new
    }

    #[inline(always)]
    fn adam(self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.scale;
            *m += (1.0 - self.b1) * (g - *m);
            *v += (1.0 - self.b2) * (g * g - *v);
            *w = *w * self.keep - self.rate * *m / (v.sqrt() * self.spread + EPS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Pass;
    use crate::ops::{activation, reduce};

    fn config() -> StageConfig {
        StageConfig { clip: 0.0, weight_decay: 0.1, ema: 0.5, ..StageConfig::default() }
    }

    fn model() -> Params {
        let mut params = Params::new(3);
        params.normal("w", [20_000], 1.0, true);
        params.normal("b", [3], 1.0, false);
        params.constant("unused", [2], 4.0);
        params
    }

    /// Gradients of sum(w^2) + sum(b^2): twice the weights.
    fn gradients(params: &Params) -> Gradients {
        let pass = Pass::tape().training(params);
        let mut sums = params.iter().take(2).map(|p| {
            let square = pass.op(activation::Square, &[&pass.param(p)]).unwrap();
            pass.op(reduce::SumTo { to: Shape::from([1]) }, &[&square]).unwrap()
        });
        let (a, b) = (sums.next().unwrap(), sums.next().unwrap());
        drop(sums);
        let loss = pass.op(crate::ops::elementwise::ADD, &[&a, &b]).unwrap();
        pass.backward(&loss).unwrap()
    }

    fn values(params: &Params) -> Vec<f64> {
        params.iter().flat_map(|p| p.value().to_f64s()).collect()
    }

    #[test]
    fn two_updates_match_the_formula_in_f64() {
        let params = model();
        let mut learner = Learner::new(&params, &config()).unwrap();
        let mut want = values(&params);
        let mut mean = want.clone();
        let (mut m, mut v) = (vec![0.0; want.len()], vec![0.0; want.len()]);
        for n in 0..2u64 {
            let norm = learner.update(&gradients(&params), 0.01, n).unwrap();
            let g: Vec<f64> = want[..20_003].iter().map(|w| 2.0 * w).collect();
            let square: f64 = g.iter().map(|g| g * g).sum();
            assert!((norm - square.sqrt()).abs() < 1e-4 * norm);
            let t = n as f64 + 1.0;
            for (i, g) in g.iter().enumerate() {
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let step = m[i] / (1.0 - 0.9f64.powf(t));
                let root = (v[i] / (1.0 - 0.95f64.powf(t))).sqrt() + 1e-8;
                let decay = if i < 20_000 { 0.1 * want[i] } else { 0.0 };
                want[i] -= 0.01 * (decay + step / root);
                let d = 0.5f64.min(t / (9.0 + t));
                mean[i] += (1.0 - d) * (want[i] - mean[i]);
            }
        }
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&values(&params), &want));
        assert!(close(&learner.averaged(|| Ok(values(&params))).unwrap(), &mean));
        learner.swap_ema().unwrap();
        assert!(close(&values(&params), &mean));
        learner.swap_ema().unwrap();
        assert!(close(&values(&params), &want));
    }

    #[test]
    fn clipping_bounds_the_norm_and_a_bad_gradient_changes_nothing() {
        let params = model();
        let clipped = StageConfig { clip: 1e-3, beta1: 0.0, ..config() };
        let mut learner = Learner::new(&params, &clipped).unwrap();
        learner.update(&gradients(&params), 0.0, 0).unwrap();
        // With beta1 = 0 the first moment is the clipped gradient itself.
        let m: f64 = learner.slots.iter().flat_map(|s| &s.m).map(|x| f64::from(x * x)).sum();
        assert!((m.sqrt() - 1e-3).abs() < 1e-8, "{}", m.sqrt());
        let before = learner.state("").unwrap();
        let b = params.iter().nth(1).unwrap();
        b.set(Tensor::new(vec![1.0, f32::INFINITY, 0.0], [3]).unwrap()).unwrap();
        assert!(!learner.update(&gradients(&params), 0.1, 1).unwrap().is_finite());
        let after = learner.state("").unwrap();
        for (name, tensor) in before.iter().filter(|(name, _)| *name != "param.b") {
            assert_eq!(tensor.to_f64s(), after[name].to_f64s(), "{name}");
        }
    }

    #[test]
    fn overwritten_rows_begin_again_and_a_bad_gradient_is_named() {
        let params = model();
        let mut learner = Learner::new(&params, &config()).unwrap();
        learner.update(&gradients(&params), 0.01, 0).unwrap();
        let b = params.iter().nth(1).unwrap();
        b.set(Tensor::new(vec![5.0, f32::NAN, 7.0], [3]).unwrap()).unwrap();
        learner.forget_rows(b, &[0, 2]).unwrap();
        let slot = &learner.slots[1];
        assert_eq!((slot.m[0], slot.v[2], slot.ema[0], slot.ema[2]), (0.0, 0.0, 5.0, 7.0));
        assert!(slot.m[1] != 0.0 && slot.v[1] != 0.0 && slot.ema[1].is_finite());
        assert!(learner.forget_rows(b, &[3]).is_err());
        let error = learner.blame(&gradients(&params)).unwrap_err().to_string();
        assert!(error.contains("gradient of b"), "{error}");
    }

    #[test]
    fn a_restored_learner_goes_on_with_the_same_bits() {
        let (params, twin) = (model(), model());
        let mut learner = Learner::new(&params, &config()).unwrap();
        learner.update(&gradients(&params), 0.01, 0).unwrap();
        let mut other = Learner::new(&twin, &config()).unwrap();
        other.restore(&learner.state("x.").unwrap(), "x.").unwrap();
        for (model, learner) in [(&params, &mut learner), (&twin, &mut other)] {
            learner.update(&gradients(model), 0.01, 1).unwrap();
        }
        let (a, b) = (learner.state("").unwrap(), other.state("").unwrap());
        assert!(a.iter().all(|(name, t)| t.to_f64s() == b[name].to_f64s()));
        assert_eq!(weights(&a, "")["w"].to_f64s(), a["ema.w"].to_f64s());
        let error = other.restore(&a, "y.").unwrap_err().to_string();
        assert!(error.contains("y.ema.w is missing"), "{error}");
    }
}
