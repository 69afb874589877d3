//! Training the tokenizer: a plain autoencoder first, then k-means fills the code book and
//! quantisation begins.
//!
//! A step is a function of the state and of (seed, step). Held-out numbers are taken with the
//! running mean of the weights on centre crops of the validation split, at every checkpoint.

mod book;
mod loss;
mod whole;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::autograd::{Params, Pass, Var};
use crate::config::{Config, MsvqConfig, StageConfig};
use crate::data::ahead::{Ahead, Workers};
use crate::data::augment;
use crate::data::gallery::Gallery;
use crate::data::loader::{Sampler, Windows, to_tensor};
use crate::data::pack::Pack;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::models::ms_ssim::{Border, ms_ssim};
use crate::models::msvq::Msvq;
use crate::models::quantiser::Codes;
use crate::tensor::{Purpose, Stream, Tensor};
use crate::train::Stage;
use crate::train::guard::Guard;
use crate::train::kmeans::kmeans;
use crate::train::learner::Learner;
use crate::train::numbers::{Numbers, Pending};
use crate::train::schedule::{learning_rate, ramp};
use book::{Pool, Usage};
use loss::Adversary;
use whole::Whole;

/// Key of the micrometres a pixel among a checkpoint's notes.
pub const UM_PER_PX: &str = "um_per_px";
/// Images of the fixed held-out batch.
const HELD: usize = 32;
/// Most batches that k-means draws its vectors from, and its rounds.
const KMEANS_BATCHES: usize = 64;
const KMEANS_ROUNDS: usize = 12;
/// Codes are moved only before this share of the steps, so that the last ones can settle.
const RESTART_UNTIL: f64 = 0.8;
/// Share of the steps over which a discriminator that has just begun gains its weight.
const GAN_RAMP: f64 = 0.02;

/// The tokenizer in training.
pub struct MsvqStage {
    config: MsvqConfig,
    stage: StageConfig,
    seed: u64,
    params: Params,
    model: Msvq,
    learner: Learner,
    guard: Guard,
    adversary: Option<Adversary>,
    usage: Usage,
    held: Option<Tensor>,
    windows: Ahead<Windows>,
    /// Micrometres a pixel of the images, if they are known.
    um_per_px: Option<f64>,
    device: Device,
    parts: usize,
}

impl MsvqStage {
    /// Trains on all images of the pack's training split; held-out numbers are of its validation
    /// split.
    pub fn new(config: &Config, pack: &Pack) -> Result<Self> {
        let images = Gallery::of(pack, &pack.images("train")?, &config.data)?;
        // A pack of tiles alone holds some out, too.
        let held = pack.split("val").or_else(|_| pack.images("val"));
        let held: Vec<usize> = held.unwrap_or_default();
        let stride = held.len().div_ceil(HELD).max(1);
        let held: Vec<usize> = held.into_iter().step_by(stride).collect();
        let held = Gallery::of(pack, &held, &config.data)?.all()?;
        let mut stage = Self::with_images(config, images, &held)?;
        stage.um_per_px = pack.um_per_px();
        Ok(stage)
    }

    /// Trains on these images, at least as large as the model's; `held` are never trained on.
    pub fn with_images(config: &Config, images: impl Into<Gallery>, held: &[Rgb]) -> Result<Self> {
        let images = images.into();
        let (msvq, stage) = (config.msvq.clone(), config.train.msvq.clone());
        let mut params = Params::new(config.seed);
        let model = Msvq::new(&msvq, &mut params);
        let learner = Learner::new(&params, &stage)?;
        let adversary = match msvq.loss.gan > 0.0 {
            true => Some(Adversary::new(&msvq.loss, &stage, config.seed)?),
            false => None,
        };
        let crops: Vec<Rgb> =
            held.iter().map(|i| augment::centre(i, msvq.image)).collect::<Result<_>>()?;
        let sampler = Sampler::new(images.len(), stage.batch, config.seed)?;
        let windows = Windows { images, sampler, size: msvq.image, seed: config.seed };
        Ok(Self {
            windows: Ahead::new(windows, Workers::of(&config.data)),
            usage: Usage::new(&msvq),
            held: if crops.is_empty() { None } else { Some(to_tensor(&crops)?) },
            config: msvq,
            guard: Guard::new(&stage),
            parts: stage.accumulate,
            stage,
            seed: config.seed,
            params,
            model,
            learner,
            adversary,
            um_per_px: None,
            device: Device::Cpu,
        })
    }

    /// Begins from trained weights (`param.` and a name) instead of fresh ones.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn begin_from(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.params.load(tensors, "param.")?;
        self.learner = Learner::new(&self.params, &self.stage)?;
        Ok(())
    }

    /// The model, with the weights of the last step.
    pub fn model(&self) -> &Msvq {
        &self.model
    }

    fn quantises(&self, step: u64) -> bool {
        self.config.decoder_only || step >= self.config.warmup_steps
    }

    /// How many scales each sample of a step keeps.
    fn kept_scales(&self, step: u64) -> Vec<usize> {
        let (k, first) = (self.config.scales(), self.config.scale_dropout_start);
        let draws = Stream::new(self.seed, step, 0, Purpose::Dropout);
        let one = |b: usize| match f64::from(draws.uniform(2 * b)) < self.config.scale_dropout {
            true if first < k => first + draws.below(2 * b + 1, k - first),
            _ => k,
        };
        (0..self.stage.batch).map(one).collect()
    }

    /// f_K of images, all scales, not tracked.
    fn quantised(&self, image: &Tensor) -> Result<Tensor> {
        let f = self.model.encode(&Pass::eval(), &image.clone().into())?;
        let (_, mut sums) = self.model.quantiser().walk(f.value())?;
        sums.pop().ok_or_else(|| Error::shape("tokenizer", "there are no scales"))
    }

    /// Weight of the adversarial part in [0, 1]; `None` before it starts.
    fn gan_ramp(&self, step: u64) -> Option<f64> {
        let start = (self.config.loss.gan_start * self.stage.steps as f64) as u64;
        let start = start.max(self.config.warmup_steps);
        (step >= start).then(|| ramp(GAN_RAMP, self.stage.steps, step - start))
    }

    /// Fills the book by k-means over residuals, balanced over the scales: first those of an
    /// unlimited book, then those that the first book leaves.
    fn fill_book(&mut self, step: u64) -> Result<()> {
        for round in 0..2 {
            let quota = self.config.kmeans_vectors.div_ceil(self.config.scales().max(1));
            let batches = quota.div_ceil(self.stage.batch).clamp(1, KMEANS_BATCHES);
            let mut pool = Pool::new(quota.div_ceil(batches), self.config.d);
            for i in 0..batches as u64 {
                let x = self.windows.at(step + i)?;
                let f = self.encoded(&x)?;
                let q = self.model.quantiser();
                let residuals = match round {
                    0 => q.ideal_residuals(&f)?,
                    _ => q.residuals(&f)?,
                };
                pool.take(&residuals, self.seed, step + i)?;
            }
            let vectors = self.device.put(&pool.vectors()?)?;
            let book = kmeans(&vectors, self.config.vocab, KMEANS_ROUNDS, self.seed)?;
            self.model.book().set(self.device.put(&book)?)?;
        }
        self.learner.forget(self.model.book())
    }

    /// Counts the codes of a step, and moves unused ones when it is time. Returns what is told of
    /// the book.
    fn tend_book(&mut self, step: u64, q: &Codes) -> Result<Tensor> {
        let n = step - self.config.warmup_steps;
        self.usage.count(&q.tokens, n)?;
        let every = self.config.restart_every;
        let late = step as f64 >= RESTART_UNTIL * self.stage.steps as f64;
        let stays = every == 0 || late || !(n + 1).is_multiple_of(every);
        let moved = if stays { None } else { Some(self.move_codes(step, q)?) };
        self.usage.health(moved.as_ref())
    }

    /// Moves unused codes onto vectors that scales quantise now; returns for each code the row it
    /// moved to.
    fn move_codes(&mut self, step: u64, q: &Codes) -> Result<Tensor> {
        let draws = Stream::new(self.seed, step, u16::MAX, Purpose::Codebook);
        let vectors = self.model.quantiser().vectors(q)?;
        let rows = vectors.shape().matrix().0;
        let below = self.config.restart_below;
        let moved = self.usage.revive(rows, below, draws, self.guard.gate())?;
        self.learner.replace_rows(self.model.book(), &vectors, &moved)?;
        Ok(moved)
    }

    /// Adds the numbers of the held-out batch, taken with the running mean of the weights.
    fn held_out(&self, step: u64, log: Numbers) -> Result<Numbers> {
        let Some(held) = &self.held else { return Ok(log) };
        let wanted = self.device.put(held)?;
        let quantises = self.quantises(step);
        let (psnr, similarity) = self.learner.averaged(|| self.score(&wanted, quantises))?;
        Ok(log.known("val_psnr", psnr).known("val_ms_ssim", similarity))
    }

    /// (PSNR in dB, MS-SSIM) of reconstructions of images [B, S, S, 3], means over the batch.
    fn score(&self, wanted: &Tensor, quantises: bool) -> Result<(f64, f64)> {
        let p = Pass::eval();
        let f = match quantises {
            true => self.quantised(wanted)?,
            false => self.model.encode(&p, &wanted.clone().into())?.into_value(),
        };
        let image = self.model.paint_latent(&f)?;
        let scales = self.config.loss.ms_ssim_scales;
        let [x, y] = [&image, wanted].map(|t| Var::from(t.clone()));
        let similarity = ms_ssim(&p, &x, &y, scales, Border::Valid)?;
        Ok((psnr(&image, wanted)?, similarity.value().item()?))
    }
}

/// What is told of a code book, of its health [K + 2].
fn told(health: &[f64]) -> Vec<(String, f64)> {
    let (scales, rest) = health.split_at(health.len().saturating_sub(2));
    let counts = ["live", "moved"].map(String::from).into_iter().zip(rest.iter().copied()).rev();
    let scales = scales.iter().enumerate().map(|(k, &p)| (format!("perplexity_{}", k + 1), p));
    counts.chain(scales).collect()
}

/// Mean over images [B, ..] in [-1, 1] of the peak signal-to-noise ratio in dB.
pub fn psnr(image: &Tensor, wanted: &Tensor) -> Result<f64> {
    let b = image.shape().dims().first().copied().unwrap_or(0).max(1);
    let n = (image.len() / b).max(1);
    let pairs = image.f32s()?.chunks(n).zip(wanted.f32s()?.chunks(n));
    let one = |(x, y): (&[f32], &[f32])| {
        let sum: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        -10.0 * (sum / n as f64 / 4.0).max(1e-10).log10()
    };
    Ok(pairs.map(one).sum::<f64>() / b as f64)
}

impl Stage for MsvqStage {
    fn name(&self) -> &'static str {
        "msvq"
    }

    fn step(&mut self, step: u64) -> Result<Pending> {
        let first = step == self.config.warmup_steps && !self.config.decoder_only;
        if first && self.config.kmeans_vectors > 0 {
            self.fill_book(step)?;
        }
        let wanted = self.windows.at(step)?;
        let Whole { grads, loss, parts, codes, hinge } = self.whole(step, &wanted, false)?;
        let lr = learning_rate(&self.stage, step);
        let norm = self.learner.norm(&grads)?;
        let felt = [&loss].into_iter().chain(parts.iter().map(|(_, value)| value));
        let gate = self.guard.judge(step, &norm, &felt.collect::<Vec<_>>())?;
        self.learner.update(&grads, &gate, lr, step)?;
        if let (Some(adversary), Some(grads)) = (&mut self.adversary, &hinge) {
            let norm = self.guard.also(&adversary.learner.norm(grads)?)?;
            adversary.learner.update(grads, &norm, lr, step)?;
        }
        let mut numbers = Numbers::new(lr, &loss).under(&gate).one("grad_norm", &norm);
        numbers = parts.iter().fold(numbers, |n, (name, value)| n.one(name, value));
        if let Some(codes) = &codes {
            numbers = numbers.many(&self.tend_book(step, codes)?, told);
        }
        let last = step + 1 == self.stage.steps;
        match last || step.is_multiple_of(self.stage.checkpoint_every) {
            true => self.held_out(step, numbers)?.send(),
            false => numbers.send(),
        }
    }

    fn notes(&self) -> Map<String, Value> {
        let note = |um: f64| (UM_PER_PX.to_string(), Value::from(um));
        self.um_per_px.map(note).into_iter().collect()
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = self.learner.state("")?;
        state.extend([self.guard.state()]);
        if let Some(adversary) = &self.adversary {
            state.extend(adversary.learner.state("disc.")?);
        }
        state.insert("usage".into(), self.usage.tensor());
        Ok(state)
    }

    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        self.learner.restore(&state, "")?;
        self.guard.restore(&state);
        if let Some(adversary) = &mut self.adversary {
            adversary.learner.restore(&state, "disc.")?;
        }
        match state.get("usage") {
            Some(counts) => self.usage.restore(counts)?,
            None => {
                return Err(Error::data("tensor usage is missing", "train the tokenizer again"));
            }
        }
        self.place(&self.device.clone())
    }

    fn place(&mut self, device: &Device) -> Result<()> {
        self.params.place(device)?;
        self.learner.place(device)?;
        self.adversary.iter_mut().try_for_each(|a| a.place(device))?;
        self.usage.place(device)?;
        self.guard.place(device)?;
        self.device = device.clone();
        Ok(())
    }

    /// The last step has every part: codes, adversary, held-out images.
    fn heaviest(&self) -> u64 {
        self.stage.steps.saturating_sub(1)
    }

    fn divide(&mut self, parts: usize) -> bool {
        self.parts = parts;
        true
    }

    fn recompute(&mut self, on: bool) -> bool {
        self.stage.recompute = on;
        true
    }

    fn diagnose(&mut self, step: u64) -> Result<()> {
        let wanted = self.windows.at(step)?;
        self.learner.blame(&self.whole(step, &wanted, true)?.grads)
    }
}
