//! Training the gene prior on the RNA of the training split.
//!
//! Every sample of RNA counts once, however many tiles share it. The statistics that standardise
//! genes and z are part of the state, so whoever loads the checkpoint sees RNA as it was seen here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::autograd::{Param, Params, Pass};
use crate::config::{BetaVaeConfig, Config, DataConfig, StageConfig};
use crate::data::genes::GeneMap;
use crate::data::loader::Sampler;
use crate::data::pack::Pack;
use crate::data::rna::{RnaNorm, Scaling};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::beta_vae::{BetaVae, Loss, active_dimensions};
use crate::ops::layout::Narrow;
use crate::ops::random::{DropoutMask, RandomNormal};
use crate::ops::{DynOp, call, run_on};
use crate::tensor::{Purpose, Stream, Tensor};
use crate::train::Stage;
use crate::train::bundle::Trained;
use crate::train::guard::Guard;
use crate::train::learner::Learner;
use crate::train::numbers::{Numbers, Pending};
use crate::train::schedule::{learning_rate, ramp};
use crate::train::untrained;

/// Prefix of the running statistics in a checkpoint.
const RUNNING: &str = "running.";
/// Key of the gene list among a checkpoint's notes.
const NORM: &str = "rna.norm";
/// Rows that are encoded at a time.
const ROWS: usize = 256;

/// A trained prior with the RNA statistics it was trained under.
pub struct Prior {
    /// How profiles become inputs.
    pub norm: RnaNorm,
    /// The model.
    pub model: BetaVae,
    running: Params,
    /// Where the model is, and its weights and statistics in the CPU's memory.
    device: Device,
    kept: Vec<(Param, Tensor)>,
}

impl Prior {
    fn fresh(config: &BetaVaeConfig, norm: RnaNorm, params: &mut Params) -> Self {
        Self::with(config, norm, params, Params::new(0))
    }

    fn with(
        config: &BetaVaeConfig,
        norm: RnaNorm,
        params: &mut Params,
        mut running: Params,
    ) -> Self {
        let model = BetaVae::new(config, params, &mut running);
        Self { norm, model, running, device: Device::Cpu, kept: Vec::new() }
    }

    /// From a trained stage; `config` is the one it records.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, a gene list that cannot be read.
    pub fn load(config: &BetaVaeConfig, trained: &Trained) -> Result<Self> {
        let norm = RnaNorm::from_parts(&trained.tensors, trained.note(NORM)?)?;
        let mut params = Params::unset();
        let mut prior = Self::with(config, norm, &mut params, Params::unset());
        params.load(&trained.tensors, "param.")?;
        prior.running.load(&trained.tensors, RUNNING)?;
        let all = params.iter().chain(prior.running.iter());
        prior.kept = all.map(|p| (p.clone(), p.value())).collect();
        Ok(prior)
    }

    /// Puts a trained prior where it is to encode.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        self.device = device.clone();
        self.kept.iter().try_for_each(|(p, value)| p.set(device.put(value)?))
    }

    /// Standardised z [n, latent] of inputs [n, genes]: posterior means. A row's z does not depend
    /// on the rows beside it.
    pub fn condition(&self, inputs: &Tensor) -> Result<Tensor> {
        let (n, genes) = inputs.shape().matrix();
        let alone = self.device.put(&inputs.reshape([n, 1, genes])?)?;
        let z = means(&self.model, &alone)?;
        self.model.standardise(&z)
    }
}

/// A prior that nothing trained, for genes G0, G1, ... of mean 0 and deviation 1.
///
/// # Errors
/// None for parameters on the CPU.
pub(super) fn untrained(config: &Config, seed: u64) -> Result<Trained> {
    let n = config.beta_vae.genes;
    let norm = RnaNorm {
        genes: (0..n).map(|g| format!("G{g}")).collect(),
        scaling: scaling(&config.data),
        units: None,
        mean: vec![0.0; n],
        sd: vec![1.0; n],
    };
    let (parts, json) = norm.to_parts()?;
    let mut params = Params::new(seed);
    let prior = Prior::fresh(&config.beta_vae, norm, &mut params);
    let mut tensors = untrained::weights(&params, seed)?;
    let running = prior.running.values();
    tensors.extend(running.into_iter().map(|(name, t)| (format!("{RUNNING}{name}"), t)));
    tensors.extend(parts.map(|(name, t)| (name.to_string(), t)));
    let notes = Map::from_iter([(NORM.to_string(), Value::from(json))]);
    Ok(Trained { step: 0, tensors, notes })
}

/// Posterior means [n, latent], a part of the rows at a time.
fn means(model: &BetaVae, inputs: &Tensor) -> Result<Tensor> {
    let n = inputs.shape().dims()[0];
    let mut all = Vec::with_capacity(n * model.config().latent);
    for start in (0..n).step_by(ROWS) {
        let part = call(&Narrow { axis: 0, start, len: ROWS.min(n - start) }, &[inputs])?;
        all.extend(model.encode_mean(&part)?.f32s()?);
    }
    Tensor::new(all, [n, model.config().latent])
}

/// How the configuration says that expression is scaled.
pub fn scaling(c: &DataConfig) -> Scaling {
    Scaling {
        counts_per: c.counts_per,
        log1p: c.log1p,
        sd_floor: c.sigma_floor as f32,
        clip: c.z_clip as f32,
    }
}

/// The gene prior in training.
pub struct BetaVaeStage {
    config: BetaVaeConfig,
    stage: StageConfig,
    seed: u64,
    params: Params,
    prior: Prior,
    learner: Learner,
    guard: Guard,
    train: Tensor,
    held: Option<Tensor>,
    sampler: Sampler,
    device: Device,
}

impl BetaVaeStage {
    /// Trains on the RNA of the pack's training split, held-out numbers are of its validation
    /// split.
    ///
    /// # Errors
    /// A pack without RNA, or with another number of genes than the configuration.
    pub fn new(config: &Config, pack: &Pack) -> Result<Self> {
        let paired = pack.split("train")?;
        if pack.genes().len() != config.beta_vae.genes {
            let (have, want) = (pack.genes().len(), config.beta_vae.genes);
            let what = format!("is {want}, the pack holds {have} genes");
            return Err(Error::config("beta_vae.genes", what, format!("set it to {have}")));
        }
        let all = pack.expression(&one_a_sample(pack, &paired))?;
        let rows: Vec<usize> = (0..all.len()).collect();
        let scaling = scaling(&config.data);
        pack.units().map_or(Ok(()), |units| scaling.check(units))?;
        let norm = RnaNorm { units: pack.units(), ..RnaNorm::fit(&all, &rows, scaling)? };
        let map = GeneMap::new(&norm.genes, pack.genes(), config.data.min_gene_match)?;
        let train = norm.apply(&all, &rows, &map)?;
        let held = one_a_sample(pack, &pack.split("val").unwrap_or_default());
        let held = match held.is_empty() {
            true => None,
            false => {
                let rows: Vec<usize> = (0..held.len()).collect();
                Some(norm.apply(&pack.expression(&held)?, &rows, &map)?)
            }
        };
        Self::with_inputs(config, norm, train, held)
    }

    /// Trains on standardised inputs [n, genes]; `held` are never trained on.
    pub fn with_inputs(
        config: &Config,
        norm: RnaNorm,
        train: Tensor,
        held: Option<Tensor>,
    ) -> Result<Self> {
        let (vae, stage) = (config.beta_vae.clone(), config.train.beta_vae.clone());
        let mut params = Params::new(config.seed);
        let prior = Prior::fresh(&vae, norm, &mut params);
        Ok(Self {
            learner: Learner::new(&params, &stage)?,
            guard: Guard::new(&stage),
            sampler: Sampler::new(train.shape().matrix().0, stage.batch, config.seed)?,
            config: vae,
            stage,
            seed: config.seed,
            params,
            prior,
            train,
            held,
            device: Device::Cpu,
        })
    }

    /// The prior, with the weights of the last step.
    pub fn prior(&self) -> &Prior {
        &self.prior
    }

    fn batch(&mut self, step: u64) -> Result<Tensor> {
        let width = self.config.genes;
        let all = self.train.f32s()?;
        let picked = self.sampler.batch(step);
        let rows: Vec<f32> = picked
            .iter()
            .flat_map(|e| &all[e.index * width..(e.index + 1) * width])
            .copied()
            .collect();
        self.device.put(&Tensor::new(rows, [picked.len(), width])?)
    }

    /// Random numbers, made where the steps run.
    fn draw(&self, op: &dyn DynOp) -> Result<Tensor> {
        let none = || Error::Internal(format!("{} has no output", op.name()));
        run_on(&self.device, op, &[])?.pop().ok_or_else(none)
    }

    fn loss(&self, step: u64, x: &Tensor, check: bool) -> Result<(Pass, Loss)> {
        let rows = x.shape().matrix().0;
        let stream = |purpose| Stream::new(self.seed, step, 0, purpose);
        let noise = self.draw(&RandomNormal {
            stream: stream(Purpose::Posterior),
            shape: [rows, self.config.latent].into(),
        })?;
        let keep = self.draw(&DropoutMask {
            stream: stream(Purpose::Dropout),
            shape: x.shape().clone(),
            rate: self.config.dropout,
        })?;
        let beta = self.config.beta * ramp(self.config.kl_warmup, self.stage.steps, step);
        let pass = Pass::tape().training(&self.params).checked(check);
        let loss = self.prior.model.loss(&pass, x, &keep, &noise, beta)?;
        Ok((pass, loss))
    }

    /// Statistics of z, and what the held-out profiles say.
    fn take_stock(&self, numbers: Numbers) -> Result<Numbers> {
        self.learner.averaged(|| self.stock(numbers))
    }

    fn stock(&self, mut numbers: Numbers) -> Result<Numbers> {
        let model = &self.prior.model;
        let z = means(model, &self.train)?;
        model.set_statistics(&z)?;
        numbers = numbers.known("active", active_dimensions(&z) as f64);
        if let Some(held) = &self.held {
            let back = model.reconstruct(&means(model, held)?)?;
            let pairs = back.f32s()?.iter().zip(held.f32s()?);
            let sum: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            numbers = numbers.known("val_mse", sum / held.len().max(1) as f64);
        }
        Ok(numbers)
    }
}

/// The first image of each sample of RNA.
fn one_a_sample(pack: &Pack, images: &[usize]) -> Vec<usize> {
    let mut seen = std::collections::BTreeSet::new();
    images.iter().copied().filter(|&i| seen.insert(pack.rna_row(i))).collect()
}

impl Stage for BetaVaeStage {
    fn name(&self) -> &'static str {
        "beta_vae"
    }

    fn step(&mut self, step: u64) -> Result<Pending> {
        let x = self.batch(step)?;
        let (pass, loss) = self.loss(step, &x, false)?;
        let grads = pass.backward(&loss.total)?;
        let lr = learning_rate(&self.stage, step);
        let norm = self.learner.norm(&grads)?;
        let total = loss.total.value();
        let gate = self.guard.judge(step, &norm, &[total, &loss.mse, &loss.kl])?;
        self.learner.update(&grads, &gate, lr, step)?;
        self.prior.model.remember(&loss, x.shape().matrix().0, &gate)?;
        let numbers = Numbers::new(lr, total)
            .under(&gate)
            .one("grad_norm", &norm)
            .one("mse", &loss.mse)
            .one("kl", &loss.kl);
        let done = step + 1;
        match done == self.stage.steps || done.is_multiple_of(self.stage.checkpoint_every) {
            true => self.take_stock(numbers)?.send(),
            false => numbers.send(),
        }
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = self.learner.state("")?;
        state.extend([self.guard.state()]);
        let running = self.prior.running.values();
        state.extend(running.into_iter().map(|(name, t)| (format!("{RUNNING}{name}"), t)));
        let (tensors, _) = self.prior.norm.to_parts()?;
        state.extend(tensors.map(|(name, t)| (name.to_string(), t)));
        Ok(state)
    }

    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        self.learner.restore(&state, "")?;
        self.guard.restore(&state);
        self.prior.running.load(&state, RUNNING)?;
        self.place(&self.device.clone())
    }

    fn place(&mut self, device: &Device) -> Result<()> {
        self.params.place(device)?;
        self.prior.running.place(device)?;
        self.learner.place(device)?;
        self.guard.place(device)?;
        self.device = device.clone();
        Ok(())
    }

    fn diagnose(&mut self, step: u64) -> Result<()> {
        let x = self.batch(step)?;
        let (pass, loss) = self.loss(step, &x, true)?;
        let grads = pass.backward(&loss.total)?;
        self.learner.blame(&grads)
    }

    fn notes(&self) -> Map<String, Value> {
        let json = self.prior.norm.to_parts().map(|(_, json)| json).unwrap_or_default();
        Map::from_iter([(NORM.to_string(), Value::from(json))])
    }
}
