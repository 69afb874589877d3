//! Small models for training tests, on made-up tissue: odd widths, so that no kernel meets whole
//! packets alone.

use genevar::autograd::Params;
use genevar::config::{Config, StageConfig};
use genevar::io::images::Rgb;
use genevar::models::genevar::FeatureStats;
use genevar::models::masked_ar::{Dims, MaskedAr};
use genevar::models::msvq::Msvq;
use genevar::models::phi::{Phi, PhiDims};
use genevar::tensor::{Purpose, Stream, Tensor};
use genevar::train::Stage;
use genevar::train::ar::{ArStage, Before};
use genevar::train::frozen::Frozen;
use genevar::train::meanflow::MeanFlowStage;
use genevar::train::tissue::{BatchRule, Batches, Latents, Tissue};

/// How a stage is made, on the CPU.
pub type Made = fn() -> Box<dyn Stage>;

const SIDE: usize = 20;
const TILES: usize = 12;
const ROWS: usize = 3;

/// Three scales over a map of 4 x 4 x 6.
pub fn config() -> Config {
    let mut c = Config::tier("t0").unwrap();
    c.beta_vae.latent = 5;
    c.msvq.image = 16;
    (c.msvq.ch, c.msvq.ch_mult) = (6, vec![1, 2, 2]);
    (c.msvq.res_blocks_enc, c.msvq.res_blocks_dec) = (1, 1);
    (c.msvq.d, c.msvq.vocab, c.msvq.patch_nums) = (6, 30, vec![1, 3, 4]);
    (c.meanflow.width, c.meanflow.blocks, c.meanflow.head_width) = (36, 1, 18);
    c.meanflow.time_dims = 14;
    c.mask.k_m = 2;
    (c.ar.depth, c.ar.width, c.ar.heads) = (2, 36, 2);
    (c.ar.add_rk, c.ar.drop_path, c.ar.token_noise) = (true, 0.2, 0.1);
    let stage = StageConfig { steps: 20, batch: ROWS, ema: 0.9, clip: 1.0, ..Default::default() };
    for s in c.train.stages_mut() {
        *s = StageConfig { lr: 2e-3, warmup: 0.0, ..stage.clone() };
    }
    c
}

fn noise(n: u64, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(Stream::new(31, n, 0, Purpose::Test).normals(len), shape).unwrap()
}

/// Adds noise to all parameters, so that nothing is zero by initialisation.
fn stir(params: &Params, by: f64) {
    for (i, p) in params.iter().enumerate() {
        let v = p.value();
        let e = noise(1000 + i as u64, v.shape().dims());
        let moved = (0..v.len()).map(|i| v.at(i) + by * e.at(i)).collect();
        p.set(Tensor::from_f64s(v.dtype(), moved, v.shape()).unwrap()).unwrap();
    }
}

/// Striped tiles of two kinds, larger than a crop.
pub fn images() -> Vec<Rgb> {
    let tile = |i: usize| {
        let draws = Stream::new(8, i as u64, 0, Purpose::Test);
        let pixel = |p: usize| {
            let stripe = if (p / 3 % SIDE / (2 + i % 2)).is_multiple_of(2) { 60 } else { 0 };
            70 + stripe + 40 * (p % 3) as u8 + draws.below(p, 20) as u8
        };
        Rgb::new(SIDE, SIDE, (0..3 * SIDE * SIDE).map(pixel).collect()).unwrap()
    };
    (0..TILES).map(tile).collect()
}

fn batches(c: &Config) -> Batches {
    let latents = Latents {
        mean: noise(1, &[TILES - 2, c.beta_vae.latent]),
        std: Tensor::full(genevar::tensor::DType::F32, [TILES - 2, c.beta_vae.latent], 0.2),
    };
    let slides = (0..TILES).map(|i| i / 3).collect();
    let tissue = Tissue { images: images(), slides, latents, genes: None, classes: Vec::new() };
    let crop = c.msvq.image;
    let rule =
        BatchRule { seed: c.seed, batch: ROWS, crop, unpaired: 0.3, drop: 0.2, posterior: true };
    Batches::new(tissue, rule).unwrap()
}

fn msvq(c: &Config) -> Frozen<Msvq> {
    let mut params = Params::new(1);
    let model = Msvq::new(&c.msvq, &mut params);
    stir(&params, 0.05);
    Frozen::new(model, &params)
}

fn fresh_phi(c: &Config) -> (Params, Phi) {
    let (side, d, latent) = (c.msvq.latent_side(), c.msvq.d, c.beta_vae.latent);
    let dims = PhiDims { side, d, latent, patch_nums: c.msvq.patch_nums.clone() };
    let mut params = Params::new(6);
    let phi = Phi::new(&c.meanflow, &dims, &mut params);
    stir(&params, 0.05);
    (params, phi)
}

/// Training of Phi.
pub fn meanflow() -> Box<dyn Stage> {
    let c: &'static Config = Box::leak(Box::new(config()));
    let stats = FeatureStats::of(&noise(50, &[100, c.msvq.d])).unwrap();
    let msvq: &'static Frozen<Msvq> = Box::leak(Box::new(msvq(c)));
    Box::new(MeanFlowStage::new(c, msvq, stats, batches(c), fresh_phi(c)).unwrap())
}

/// Training of the transformer, with a look at held-out rows at the first step.
pub fn ar() -> Box<dyn Stage> {
    let c: &'static Config = Box::leak(Box::new(config()));
    let stats = FeatureStats::of(&noise(50, &[100, c.msvq.d])).unwrap();
    let (params, phi) = fresh_phi(c);
    let phi = Some(Frozen::new(phi, &params));
    let before: &'static Before = Box::leak(Box::new(Before { msvq: msvq(c), phi, stats }));
    let (latent, genes, d, vocab) = (c.beta_vae.latent, 9, c.msvq.d, c.msvq.vocab);
    let dims = Dims { latent, genes, d, vocab, patch_nums: c.msvq.patch_nums.clone() };
    let mut params = Params::new(4);
    let model = MaskedAr::new(&c.ar, &dims, &mut params).unwrap();
    let stage = ArStage::new(c, before, batches(c), (params, model)).unwrap();
    Box::new(stage.with_held_out(batches(c), 10).unwrap())
}
