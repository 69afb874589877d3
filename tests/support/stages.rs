//! The stages of training on made-up tissue, for tests.

use genevar::config::Config;
use genevar::io::images::Rgb;
use genevar::models::genevar::FeatureStats;
use genevar::models::msvq::Msvq;
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::Stage;
use genevar::train::ar::{ArStage, Before};
use genevar::train::frozen::Frozen;
use genevar::train::meanflow::MeanFlowStage;
use genevar::train::msvq::MsvqStage;
use genevar::train::tissue::{BatchRule, Batches, Latents, Tissue};

use crate::models::{ROWS, config, fresh_ar, fresh_phi, noise, tokenizer};

/// How a stage is made, on the CPU.
pub type Made = fn(Data) -> Box<dyn Stage>;

/// What it trains on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Crops of some tiles.
    Many,
    /// The same, for models of more blocks.
    Deep,
    /// The same, for a model of so many blocks that they take most of the memory.
    Tall,
    /// One batch again and again, but for how its tiles lie.
    OneBatch,
    /// One large batch, where no row looks at another one.
    Alone,
}

const SIDE: usize = 20;
const TILES: usize = 12;

impl Data {
    fn rows(self) -> usize {
        match self {
            Self::Alone => 4 * ROWS,
            Self::Tall => 8 * ROWS,
            _ => ROWS,
        }
    }

    fn has_tiles(self) -> bool {
        matches!(self, Self::Many | Self::Deep | Self::Tall)
    }

    fn config(self) -> Config {
        let mut c = config();
        c.train.msvq.batch = self.rows();
        if self == Self::Tall {
            (c.ar.depth, c.msvq.res_blocks_enc, c.msvq.res_blocks_dec) = (24, 4, 4);
        }
        if self == Self::Deep {
            (c.meanflow.blocks, c.ar.depth) = (4, 4);
            (c.msvq.res_blocks_enc, c.msvq.res_blocks_dec) = (3, 3);
            (c.msvq.scale_dropout, c.msvq.scale_dropout_start) = (0.5, 1);
        }
        if self == Self::Alone {
            c.meanflow.counterfactual.other_slide = false;
        }
        if !self.has_tiles() {
            (c.ar.drop_path, c.ar.token_noise) = (0.0, 0.0);
            (c.msvq.warmup_steps, c.msvq.loss.gan) = (1000, 0.0);
            for s in c.train.stages_mut() {
                (s.steps, s.lr) = (1000, 5e-3);
            }
        }
        c
    }
}

/// Striped tiles of two kinds.
fn images(data: Data) -> Vec<Rgb> {
    let (count, side) = if data.has_tiles() { (TILES, SIDE) } else { (data.rows(), 16) };
    let tile = |i: usize| {
        let draws = Stream::new(8, i as u64, 0, Purpose::Test);
        let pixel = |p: usize| {
            let stripe = if (p / 3 % side / (2 + i % 2)).is_multiple_of(2) { 60 } else { 0 };
            70 + stripe + 40 * (p % 3) as u8 + draws.below(p, 20) as u8
        };
        Rgb::new(side, side, (0..3 * side * side).map(pixel).collect()).unwrap()
    };
    (0..count).map(tile).collect()
}

fn batches(c: &Config, data: Data) -> Batches {
    let (images, many) = (images(data), data.has_tiles());
    let paired = if many { TILES - 2 } else { data.rows() };
    let std = Tensor::full(DType::F32, [paired, c.beta_vae.latent], 0.2);
    let latents = Latents { mean: noise(1, &[paired, c.beta_vae.latent]), std };
    let slides = (0..images.len()).map(|i| i / 3).collect();
    let tissue =
        Tissue { images: images.into(), slides, latents, genes: None, classes: Vec::new() };
    let (seed, batch, crop) = (c.seed, data.rows(), c.msvq.image);
    let (unpaired, drop) = if many { (0.3, 0.2) } else { (0.0, 0.0) };
    Batches::new(tissue, BatchRule { seed, batch, crop, unpaired, drop, posterior: many }).unwrap()
}

/// Training of the tokenizer: codes from the second step, an adversary from the third.
pub fn msvq(data: Data) -> Box<dyn Stage> {
    let held = images(data);
    Box::new(MsvqStage::with_images(&data.config(), images(data), &held[..2]).unwrap())
}

/// Settings of a tokenizer whose attention has one head of 132.
pub fn with_a_wide_head(mut c: Config) -> Config {
    c.msvq.ch_mult = vec![1, 2, 22];
    c
}

/// Training of such a one.
pub fn wide_msvq(data: Data) -> Box<dyn Stage> {
    let (c, held) = (with_a_wide_head(data.config()), images(data));
    Box::new(MsvqStage::with_images(&c, images(data), &held[..2]).unwrap())
}

/// Training of Phi.
pub fn meanflow(data: Data) -> Box<dyn Stage> {
    let mut c = data.config();
    if data == Data::Tall {
        c.meanflow.blocks = 24;
    }
    let c: &'static Config = Box::leak(Box::new(c));
    let stats = FeatureStats::of(&noise(50, &[100, c.msvq.d])).unwrap();
    let msvq: &'static Frozen<Msvq> = Box::leak(Box::new(tokenizer(c)));
    Box::new(MeanFlowStage::new(c, msvq, stats, batches(c, data), fresh_phi(c)).unwrap())
}

/// Training of the transformer, with a look at held-out rows at the first step.
pub fn ar(data: Data) -> Box<dyn Stage> {
    let c: &'static Config = Box::leak(Box::new(data.config()));
    let stats = FeatureStats::of(&noise(50, &[100, c.msvq.d])).unwrap();
    let (params, phi) = fresh_phi(c);
    let phi = Some(Frozen::new(phi, &params));
    let before: &'static Before = Box::leak(Box::new(Before { msvq: tokenizer(c), phi, stats }));
    let stage = ArStage::new(c, before, batches(c, data), fresh_ar(c)).unwrap();
    Box::new(stage.with_held_out(batches(c, data), 10).unwrap())
}
