//! Settings: plain data that every layer may read, and that a checkpoint records.
//!
//! One struct a model, every open choice of the method a key with a default. The defaults are the
//! shapes of the paper; [`Config::tier`] gives the smaller sizes, [`Config::load`] reads a TOML
//! file that names a tier and overrides keys, and [`Config::validate`] refuses what cannot work
//! before anything is allocated. Sources: VAR, MeanFlow, RNA-GAN as published, else a choice of
//! ours.

mod check;
pub mod draw;
pub mod explain;
mod flow;
mod load;
mod models;
pub mod short;
mod tier;

use serde::{Deserialize, Serialize};

pub use flow::*;
pub use models::*;
pub use tier::TIERS;

/// Everything a run depends on besides the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The preset this configuration started from: one of [`TIERS`].
    pub tier: String,
    /// Seed of every random number of the run (below 2^63, which is what TOML can hold).
    pub seed: u64,
    /// Genes, crops and augmentation.
    pub data: DataConfig,
    /// The gene prior.
    pub beta_vae: BetaVaeConfig,
    /// The tokenizer.
    pub msvq: MsvqConfig,
    /// Causal MeanFlow, the network Phi.
    pub meanflow: MeanFlowConfig,
    /// The gradient-norm mask.
    pub mask: MaskConfig,
    /// The scale-wise autoregressive transformer.
    pub ar: ArConfig,
    /// Drawing tiles.
    pub sample: SampleConfig,
    /// One training recipe a stage.
    pub train: TrainConfigs,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tier: "t3".into(),
            seed: 0,
            data: DataConfig::default(),
            beta_vae: BetaVaeConfig::default(),
            msvq: MsvqConfig::default(),
            meanflow: MeanFlowConfig::default(),
            mask: MaskConfig::default(),
            ar: ArConfig::default(),
            sample: SampleConfig::default(),
            train: TrainConfigs::default(),
        }
    }
}

/// How RNA becomes numbers and tissue becomes crops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Pack of tiles and RNA to train on (`genevar data pack` makes one); `--data` overrides it.
    pub pack: String,
    /// Counts are scaled to this sum per profile before log1p; 0 leaves them as they are (FPKM).
    pub counts_per: f64,
    /// Takes ln(1 + x); off for values that are logarithms already.
    pub log1p: bool,
    /// Floor of a gene's standard deviation in the z-score.
    pub sigma_floor: f64,
    /// z-scores are clipped to +- this many standard deviations.
    pub z_clip: f64,
    /// Share of the model's genes that a table must hold. Missing genes read as their training
    /// mean, and below one half most of the profile would be invented.
    pub min_gene_match: f64,
    /// Share of a batch taken from unpaired tissue under the null condition, in [0, 1).
    pub unpaired: f64,
    /// Threads that decode, cut and turn tiles ahead of the steps, of msvq, meanflow and ar; 0 has
    /// each step do it. Any number gives the same bits.
    pub workers: usize,
    /// Batches that the workers have ready, at most.
    pub ahead: usize,
    /// MiB that decoded tiles may take. What does not fit is decoded whenever it is drawn.
    pub decoded: usize,
    /// What becomes of a tile that cannot be decoded.
    pub on_bad: BadTile,
}

/// What becomes of a tile that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadTile {
    /// The run ends and names it.
    #[default]
    Stop,
    /// It is named once, and the next one that can be decoded takes its place.
    Skip,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            pack: String::new(),
            counts_per: 0.0,
            log1p: true,
            sigma_floor: 1e-3,
            z_clip: 10.0,
            min_gene_match: 0.5,
            unpaired: 0.0,
            workers: 2,
            ahead: 4,
            decoded: 4096,
            on_bad: BadTile::Stop,
        }
    }
}

/// How guidance is spread over the scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Guidance {
    /// From nothing at the first scale to all of it at the last (VAR).
    #[default]
    Ramp,
    /// All of it at every scale: the first scales carry most of what RNA says.
    Flat,
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Classifier-free guidance: logits (1 + cfg) own - cfg null. VAR: 1.5.
    pub cfg: f64,
    /// How it is spread over the scales.
    pub guidance: Guidance,
    /// Tokens kept by rank; 0 is VAR's share, 900 of 4096.
    pub top_k: usize,
    /// Probability mass kept. VAR: 0.96.
    pub top_p: f64,
    /// On a GPU, scales of at most so many tokens take each block of the transformer in one launch:
    /// the least delay for a few tiles; 0, no scale: the most tiles at a time.
    pub few: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { cfg: 1.5, guidance: Guidance::Ramp, top_k: 0, top_p: 0.96, few: 0 }
    }
}

impl SampleConfig {
    /// Guidance at 0-based scale `k` of `scales`.
    pub fn guidance_at(&self, k: usize, scales: usize) -> f64 {
        match self.guidance {
            Guidance::Ramp => self.cfg * k as f64 / (scales.max(2) - 1) as f64,
            Guidance::Flat => self.cfg,
        }
    }

    /// The number of tokens kept by rank for a vocabulary of `vocab`.
    pub fn kept(&self, vocab: usize) -> usize {
        let k = if self.top_k == 0 { (vocab * 900).div_ceil(4096) } else { self.top_k };
        k.clamp(1, vocab.max(1))
    }
}

/// The recipe of each stage, in the order they run: each is frozen before the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfigs {
    /// The gene prior (RNA-GAN, RNA-CDM).
    pub beta_vae: StageConfig,
    /// The tokenizer (vaex).
    pub msvq: StageConfig,
    /// Causal MeanFlow (MeanFlow, ImageNet settings).
    pub meanflow: StageConfig,
    /// The transformer (VAR).
    pub ar: StageConfig,
}

impl Default for TrainConfigs {
    fn default() -> Self {
        let base = StageConfig::default();
        Self {
            beta_vae: StageConfig {
                steps: 20_000,
                batch: 128,
                lr: 3e-3,
                warmup: 0.02,
                schedule: Schedule::Cosine,
                beta2: 0.999,
                clip: 0.0,
                ..base.clone()
            },
            msvq: StageConfig {
                steps: 200_000,
                batch: 768,
                lr: 3e-4,
                min_lr: 0.3,
                warmup: 0.02,
                schedule: Schedule::Cosine,
                beta1: 0.5,
                beta2: 0.9,
                weight_decay: 0.005,
                clip: 10.0,
                ema: 0.9999,
                ..base.clone()
            },
            meanflow: StageConfig {
                steps: 200_000,
                batch: 256,
                lr: 1e-4,
                warmup: 0.005,
                schedule: Schedule::Const,
                clip: 1.0,
                ema: 0.9999,
                ..base.clone()
            },
            ar: StageConfig {
                steps: 300_000,
                batch: 768,
                lr: 3e-4,
                min_lr: 0.1,
                warmup: 0.02,
                schedule: Schedule::Lin0,
                weight_decay: 0.05,
                clip: 2.0,
                ..base
            },
        }
    }
}

/// One stage's training: AdamW under a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Examples a step.
    pub batch: usize,
    /// Parts that a batch is taken in, one after the other, of msvq, meanflow and ar: the gradients
    /// are those of the whole, the memory is that of a part. An adversary's weight is of the whole
    /// batch too, for which its parts are painted twice. beta_vae takes its batches whole: the
    /// means of its batch norm are over them.
    pub accumulate: usize,
    /// Whether of each block of msvq, meanflow and ar only what it was given is kept, and the rest
    /// computed again for the backward pass: less memory, more time, the same bits.
    pub recompute: bool,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end, as a share of the peak (cosine and lin0).
    pub min_lr: f64,
    /// Share of the steps spent on a linear warm-up. VAR: .02.
    pub warmup: f64,
    /// Learning rate at the first step of the warm-up, as a share of the peak. VAR: .005.
    pub warmup_start: f64,
    /// The curve after the warm-up.
    pub schedule: Schedule,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay; none on biases, norms and tables.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 does not clip.
    pub clip: f64,
    /// Decay of the running mean of the weights that is used for sampling; 0 keeps none.
    pub ema: f64,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Steps between checkpoints; the last step always writes one.
    pub checkpoint_every: u64,
    /// How many checkpoints stay on disk.
    pub keep: usize,
    /// The logged number by which the best checkpoint is kept too, the lowest being best, or with
    /// a minus before its name the highest; empty keeps none.
    pub best: String,
    /// What becomes of a step whose loss or gradient norm is not finite, or a spike.
    pub on_bad: OnBad,
    /// A gradient norm so many times its mean over the last 100 steps or so is a spike; 0 looks
    /// for none.
    pub spike: f64,
    /// Skipped steps in a row that end the run after all.
    pub max_skips: u64,
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 16,
            accumulate: 1,
            recompute: false,
            lr: 1e-3,
            min_lr: 0.0,
            warmup: 0.02,
            warmup_start: 0.005,
            schedule: Schedule::Const,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.0,
            clip: 1.0,
            ema: 0.0,
            log_every: 10,
            checkpoint_every: 500,
            keep: 2,
            best: String::new(),
            on_bad: OnBad::Stop,
            spike: 0.0,
            max_skips: 10,
        }
    }
}

/// What becomes of a bad step. None changes a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    /// Ends the run, naming the op whose value went bad first.
    Stop,
    /// Leaves the step out, logs it as skipped and goes on.
    Skip,
}

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak.
    Const,
    /// Half a cosine from the peak to `min_lr`.
    Cosine,
    /// VAR's: the peak for the first 5 % of what is left, then a straight line to `min_lr`.
    Lin0,
}
