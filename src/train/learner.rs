//! The optimiser of one model: AdamW with global-norm clipping, and a running mean of the weights.
//!
//! The arithmetic is that of the ops [`GlobalNorm`] and [`AdamW`]. The running mean follows with
//! the decay min(ema, t / (9 + t)) at update t, so that a short run is not held back by where it
//! began.

use std::collections::BTreeMap;

use crate::autograd::{Gradients, Param, Params};
use crate::config::StageConfig;
use crate::device::{Device, span};
use crate::error::{Error, Result};
use crate::ops::optim::{AdamW, GlobalNorm};
use crate::ops::usage::ReplaceRows;
use crate::ops::{call, run};
use crate::tensor::{DType, Shape, Tensor};

const EPS: f64 = 1e-8;
/// Elements of parameters that are moved at once, unless one has more: their new state takes up to
/// 256 MiB beside the old.
const AT_ONCE: usize = 1 << 24;

/// One parameter's own state.
#[derive(Clone, Debug)]
struct Slot {
    m: Tensor,
    v: Tensor,
    /// The running mean of the weights, where one is kept.
    ema: Option<Tensor>,
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
        let mut slots = Vec::with_capacity(params.len());
        for p in &params {
            let value = p.value();
            if value.dtype() != DType::F32 {
                let what = format!("{} is {:?}, training is in f32", p.name(), value.dtype());
                return Err(Error::shape("optimiser", what));
            }
            let zero = Tensor::zeros(DType::F32, value.shape());
            let ema = (config.ema > 0.0).then_some(value);
            slots.push(Slot { m: zero.clone(), v: zero, ema });
        }
        Ok(Self { params, slots, config: config.clone() })
    }

    /// Moves the optimiser's own tensors to a device; the parameters are moved by whoever owns
    /// them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        for slot in &mut self.slots {
            (slot.m, slot.v) = (device.put(&slot.m)?, device.put(&slot.v)?);
            slot.ema = slot.ema.as_ref().map(|mean| device.put(mean)).transpose()?;
        }
        Ok(())
    }

    /// Norm `[1]` of all gradients together; NaN or infinite as soon as one of them is.
    pub fn norm(&self, grads: &Gradients) -> Result<Tensor> {
        let _part = span::part("optimiser");
        let all: Vec<&Tensor> = self.params.iter().filter_map(|p| grads.param(p)).collect();
        match all.is_empty() {
            true => Ok(Tensor::zeros(DType::F32, [1])),
            false => call(&GlobalNorm, &all),
        }
    }

    /// Takes update number `n`, counting from 0, at learning rate `lr`. `norm` `[1]` is the
    /// gradients' before clipping; if it is not finite, nothing is changed. A parameter that the
    /// loss did not depend on takes no part: it keeps its weight and its moments.
    pub fn update(&mut self, grads: &Gradients, norm: &Tensor, lr: f64, n: u64) -> Result<()> {
        let _part = span::part("optimiser");
        let given = |i: &usize| self.params.get(*i).and_then(|p| grads.param(p)).is_some();
        let all: Vec<usize> = (0..self.params.len()).filter(given).collect();
        // The old and the new are both there for a moment: not of all of them at once.
        let (mut from, mut size) = (0, 0);
        let mut lots = Vec::new();
        for (at, &i) in all.iter().enumerate() {
            size += self.params[i].value().len();
            if size > AT_ONCE || at + 1 == all.len() {
                lots.push(from..at + 1);
                (from, size) = (at + 1, 0);
            }
        }
        lots.into_iter().try_for_each(|lot| self.move_lot(&all[lot], (grads, norm), lr, n))
    }

    /// The update of some parameters, which have gradients.
    fn move_lot(
        &mut self,
        lot: &[usize],
        (grads, norm): (&Gradients, &Tensor),
        lr: f64,
        n: u64,
    ) -> Result<()> {
        let c = &self.config;
        let t = n as f64 + 1.0;
        let mean = c.ema > 0.0;
        let rule = AdamW {
            lr,
            betas: (c.beta1, c.beta2),
            eps: EPS,
            decay: c.weight_decay,
            decays: lot.iter().map(|&i| self.params[i].decays()).collect(),
            mean,
            step: n + 1,
            clip: c.clip,
            follow: 1.0 - c.ema.min(t / (9.0 + t)),
        };
        let values: Vec<Tensor> = lot.iter().map(|&i| self.params[i].value()).collect();
        let mut x = vec![norm];
        for (&i, value) in lot.iter().zip(&values) {
            let slot = &self.slots[i];
            x.extend([value, &slot.m, &slot.v]);
            x.extend(grads.param(&self.params[i]));
            x.extend(&slot.ema);
        }
        let mut new = run(&rule, &x)?.into_iter();
        for &i in lot {
            let (Some(w), Some(m), Some(v)) = (new.next(), new.next(), new.next()) else {
                return Err(Error::Internal("adamw has three outputs or more".into()));
            };
            self.slots[i] = Slot { m, v, ema: if mean { new.next() } else { None } };
            self.params[i].set(w)?;
        }
        Ok(())
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

    /// Replaces rows of `param` [V, C]: row v by row `pick[v]` of `from` [n, C], where there is
    /// one. Their moments begin again at zero and their running mean at the new values.
    ///
    /// # Errors
    /// Shapes that do not fit; those of the device.
    pub fn replace_rows(&mut self, param: &Param, from: &Tensor, pick: &Tensor) -> Result<()> {
        let rewrite = |own: &Tensor, from: &Tensor| call(&ReplaceRows, &[own, from, pick]);
        param.set(rewrite(&param.value(), from)?)?;
        let Some(slot) = self.slot(param) else { return Ok(()) };
        let zeros = Device::of([from]).put(&Tensor::zeros(DType::F32, from.shape()))?;
        (slot.m, slot.v) = (rewrite(&slot.m, &zeros)?, rewrite(&slot.v, &zeros)?);
        slot.ema = slot.ema.as_ref().map(|mean| rewrite(mean, from)).transpose()?;
        Ok(())
    }

    /// Begins again for a parameter that was overwritten from outside.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forget(&mut self, param: &Param) -> Result<()> {
        let value = param.value();
        let Some(slot) = self.slot(param) else { return Ok(()) };
        let zero = Device::of([&value]).put(&Tensor::zeros(DType::F32, value.shape()))?;
        let ema = slot.ema.is_some().then_some(value);
        *slot = Slot { m: zero.clone(), v: zero, ema };
        Ok(())
    }

    fn slot(&mut self, param: &Param) -> Option<&mut Slot> {
        let place = self.params.iter().position(|p| p.name() == param.name());
        place.and_then(|i| self.slots.get_mut(i))
    }

    /// Runs `f` while the parameters hold the running mean, then puts them back, also after an
    /// error. Without a running mean it only runs `f`.
    pub fn averaged<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let old: Vec<Tensor> = self.params.iter().map(Param::value).collect();
        for (p, slot) in self.params.iter().zip(&self.slots) {
            if let Some(mean) = &slot.ema {
                p.set(mean.clone())?;
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
            let mut put = |kind: &str, tensor: &Tensor| {
                state.insert(format!("{prefix}{kind}.{}", p.name()), tensor.clone());
            };
            put("param", &p.value());
            put("adam_m", &slot.m);
            put("adam_v", &slot.v);
            if let Some(mean) = &slot.ema {
                put("ema", mean);
            }
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
            let ema = slot.ema.as_ref().map(|_| take("ema")).transpose()?;
            slots.push(Slot { m: take("adam_m")?, v: take("adam_v")?, ema });
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
        params.normal("b", [3, 1], 1.0, false);
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

    /// An update by the gradients; their norm.
    fn update(learner: &mut Learner, params: &Params, lr: f64, n: u64) -> f64 {
        let grads = gradients(params);
        let norm = learner.norm(&grads).unwrap();
        learner.update(&grads, &norm, lr, n).unwrap();
        norm.item().unwrap()
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
            let norm = update(&mut learner, &params, 0.01, n);
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
        assert!(close(&values(&params), &want));
    }

    #[test]
    fn clipping_bounds_the_norm_and_a_bad_gradient_changes_nothing() {
        let params = model();
        let clipped = StageConfig { clip: 1e-3, beta1: 0.0, ..config() };
        let mut learner = Learner::new(&params, &clipped).unwrap();
        update(&mut learner, &params, 0.0, 0);
        // With beta1 = 0 the first moment is the clipped gradient itself.
        let m: f64 = learner.slots.iter().flat_map(|s| s.m.to_f64s()).map(|x| x * x).sum();
        assert!((m.sqrt() - 1e-3).abs() < 1e-8, "{}", m.sqrt());
        let before = learner.state("").unwrap();
        let b = params.iter().nth(1).unwrap();
        b.set(Tensor::new(vec![1.0, f32::INFINITY, 0.0], [3, 1]).unwrap()).unwrap();
        assert!(!update(&mut learner, &params, 0.1, 1).is_finite());
        let after = learner.state("").unwrap();
        for (name, tensor) in before.iter().filter(|(name, _)| *name != "param.b") {
            assert_eq!(tensor.to_f64s(), after[name].to_f64s(), "{name}");
        }
    }

    #[test]
    fn overwritten_rows_begin_again_and_a_bad_gradient_is_named() {
        let params = model();
        let mut learner = Learner::new(&params, &config()).unwrap();
        update(&mut learner, &params, 0.01, 0);
        let b = params.iter().nth(1).unwrap();
        let kept = b.value().at(1);
        let from = Tensor::new(vec![7.0, 5.0], [2, 1]).unwrap();
        let pick = Tensor::new_i32(vec![1, -1, 0], [3]).unwrap();
        learner.replace_rows(b, &from, &pick).unwrap();
        let slot = &learner.slots[1];
        let ema = slot.ema.as_ref().unwrap();
        assert_eq!((slot.m.at(0), slot.v.at(2), ema.at(0), ema.at(2)), (0.0, 0.0, 5.0, 7.0));
        assert_eq!(b.value().to_f64s(), [5.0, kept, 7.0]);
        assert!(slot.m.at(1) != 0.0 && slot.v.at(1) != 0.0 && ema.at(1) != 0.0);
        assert!(learner.replace_rows(b, &from, &from).is_err());
        b.set(Tensor::new(vec![5.0, f32::NAN, 7.0], [3, 1]).unwrap()).unwrap();
        let error = learner.blame(&gradients(&params)).unwrap_err().to_string();
        assert!(error.contains("gradient of b"), "{error}");
        learner.forget(b).unwrap();
        let slot = &learner.slots[1];
        assert_eq!((slot.m.to_f64s(), slot.ema.as_ref().unwrap().at(2)), (vec![0.0; 3], 7.0));
    }

    #[test]
    fn a_restored_learner_goes_on_with_the_same_bits() {
        let (params, twin) = (model(), model());
        let mut learner = Learner::new(&params, &config()).unwrap();
        update(&mut learner, &params, 0.01, 0);
        let mut other = Learner::new(&twin, &config()).unwrap();
        other.restore(&learner.state("x.").unwrap(), "x.").unwrap();
        for (model, learner) in [(&params, &mut learner), (&twin, &mut other)] {
            update(learner, model, 0.01, 1);
        }
        let (a, b) = (learner.state("").unwrap(), other.state("").unwrap());
        assert!(a.iter().all(|(name, t)| t.to_f64s() == b[name].to_f64s()));
        assert_eq!(weights(&a, "")["w"].to_f64s(), a["ema.w"].to_f64s());
        let error = other.restore(&a, "y.").unwrap_err().to_string();
        assert!(error.contains("y.ema.w is missing"), "{error}");
    }
}
