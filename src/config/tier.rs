//! Presets: the same method from a smoke test to the paper's shapes.

use super::{
    Config, Guidance, MaskConfig, MsvqConfig, MsvqLossConfig, SampleConfig, Schedule, StageConfig,
};
use crate::error::{Error, Result};

/// The presets, smallest first. `demo` is the one whose checkpoint ships with the program.
pub const TIERS: [&str; 5] = ["t0", "demo", "t1", "t2", "t3"];

impl Config {
    /// The preset called `name`; an unknown name is an error that suggests the nearest.
    pub fn tier(name: &str) -> Result<Self> {
        match name {
            "t0" => Ok(t0()),
            "demo" => Ok(demo()),
            "t1" => Ok(t1()),
            "t2" => Ok(t2()),
            "t3" => Ok(Self::default()),
            other => {
                let known = TIERS.join(", ");
                Err(Error::config("tier", format!("no preset is called {other:?}"), known)
                    .suggesting(other, &TIERS))
            }
        }
    }
}

impl Config {
    fn ar_size(&mut self, depth: usize, width: usize, heads: usize) {
        self.ar.depth = depth;
        self.ar.width = width;
        self.ar.heads = heads;
        self.ar.drop_path = 0.1 * depth as f64 / 24.0;
    }

    fn phi_size(&mut self, width: usize, blocks: usize, head_width: usize) {
        self.meanflow.width = width;
        self.meanflow.blocks = blocks;
        self.meanflow.head_width = head_width;
    }
}

/// 64 px, 4x4 latents, seconds on a laptop: continuous integration and oracles.
fn t0() -> Config {
    let mut c = Config { tier: "t0".into(), ..Config::default() };
    c.beta_vae.genes = 512;
    c.beta_vae.hidden = vec![256, 128];
    c.beta_vae.latent = 16;
    c.msvq = MsvqConfig {
        image: 64,
        ch: 32,
        d: 16,
        vocab: 256,
        patch_nums: vec![1, 2, 3, 4],
        kmeans_vectors: 4096,
        warmup_steps: 10,
        restart_every: 20,
        loss: MsvqLossConfig { ms_ssim_scales: 3, gan: 0.0, ..MsvqLossConfig::default() },
        ..c.msvq
    };
    c.phi_size(64, 2, 32);
    c.meanflow.time_dims = 32;
    c.mask.k_m = 3;
    c.ar_size(2, 64, 2);
    for stage in c.train.stages_mut() {
        *stage = StageConfig { steps: 40, batch: 8, checkpoint_every: 20, ..stage.clone() };
        stage.log_every = 1;
        stage.warmup = 0.1;
        stage.ema = if stage.ema > 0.0 { 0.9 } else { 0.0 };
    }
    c
}

/// 64 px crops at 1.38 um a pixel and 8x8 latents: trains on two cores, ships with the program.
fn demo() -> Config {
    let mut c = Config { tier: "demo".into(), ..Config::default() };
    c.data.counts_per = 10_000.0;
    c.data.unpaired = 0.25;
    c.beta_vae.genes = 2000;
    c.beta_vae.hidden = vec![512, 256];
    c.beta_vae.latent = 32;
    // At .005 only 6 of 32 dimensions stay active on spot data, at 5e-4 31 do.
    c.beta_vae.beta = 5e-4;
    c.msvq = MsvqConfig {
        image: 64,
        ch: 16,
        ch_mult: vec![1, 2, 4, 8],
        res_blocks_enc: 1,
        res_blocks_dec: 2,
        d: 16,
        vocab: 2048,
        patch_nums: vec![1, 2, 3, 4, 6, 8],
        kmeans_vectors: 40_000,
        warmup_steps: 250,
        restart_every: 100,
        // At .1 the held-out PSNR is .4 dB lower after 800 steps.
        scale_dropout: 0.0,
        loss: MsvqLossConfig {
            ms_ssim: 1.0,
            ms_ssim_scales: 3,
            gan: 0.0,
            gan_layers: 2,
            gan_ch: 32,
            feature_matching: 0.3,
            ..MsvqLossConfig::default()
        },
        ..c.msvq
    };
    c.phi_size(192, 4, 64);
    c.mask = MaskConfig { k_m: 5, ..c.mask };
    c.ar_size(4, 256, 4);
    c.ar.cond_drop = 0.25;
    c.ar.standardise = true;
    c.ar.posterior_z = true;
    c.ar.add_rk = true;
    // Nearly all that RNA says is in the token of the first scale, where VAR's guidance is 0.
    c.sample = SampleConfig { cfg: 4.0, guidance: Guidance::Flat, ..c.sample };
    demo_training(&mut c);
    c
}

fn demo_training(c: &mut Config) {
    let base = StageConfig {
        batch: 16,
        lr: 1e-3,
        min_lr: 0.1,
        schedule: Schedule::Cosine,
        clip: 1.0,
        checkpoint_every: 100,
        ..StageConfig::default()
    };
    let t = &mut c.train;
    t.beta_vae = StageConfig { steps: 1000, batch: 64, ..base.clone() };
    t.msvq = StageConfig { steps: 9000, batch: 8, beta2: 0.99, ema: 0.999, ..base.clone() };
    t.meanflow = StageConfig { steps: 4000, lr: 6e-4, ema: 0.999, ..base.clone() };
    t.ar = StageConfig { steps: 3000, weight_decay: 0.05, clip: 2.0, ema: 0.999, ..base };
}

/// 128 px: minutes on a GPU.
fn t1() -> Config {
    let mut c = Config { tier: "t1".into(), ..Config::default() };
    c.beta_vae.genes = 2000;
    c.beta_vae.hidden = vec![1024, 512];
    c.beta_vae.latent = 64;
    c.msvq = MsvqConfig {
        image: 128,
        ch: 64,
        vocab: 1024,
        patch_nums: vec![1, 2, 3, 4, 5, 6, 8],
        warmup_steps: 500,
        loss: MsvqLossConfig { ms_ssim_scales: 4, ..MsvqLossConfig::default() },
        ..c.msvq
    };
    c.phi_size(384, 6, 64);
    c.mask.k_m = 5;
    c.ar_size(8, 512, 8);
    c.scale_training(20_000, 64);
    c
}

/// 256 px and the paper's ten scales with a narrow tokenizer: the main small experiments.
fn t2() -> Config {
    let mut c = Config { tier: "t2".into(), ..Config::default() };
    c.msvq.ch = 64;
    c.ar_size(12, 768, 12);
    c.scale_training(100_000, 128);
    c
}

impl Config {
    /// Shorter training on smaller batches; VAR's learning rate follows the batch.
    fn scale_training(&mut self, steps: u64, batch: usize) {
        for stage in self.train.stages_mut() {
            stage.steps = steps;
            stage.batch = batch;
            stage.ema = if stage.ema > 0.0 { 0.999 } else { 0.0 };
        }
        self.train.ar.lr = 1e-4 * batch as f64 / 256.0;
    }
}
