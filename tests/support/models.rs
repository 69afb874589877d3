//! Small models for tests, with made-up weights: odd widths, so that no kernel meets whole packets
//! alone.

use genevar::autograd::Params;
use genevar::config::{Config, StageConfig};
use genevar::models::masked_ar::{Dims, MaskedAr};
use genevar::models::msvq::Msvq;
use genevar::models::phi::{Phi, PhiDims};
use genevar::tensor::{Purpose, Stream, Tensor};
use genevar::train::frozen::Frozen;

/// Rows of a batch.
pub const ROWS: usize = 3;

/// Three scales over a map of 4 x 4 x 6.
pub fn config() -> Config {
    let mut c = Config::tier("t0").unwrap();
    c.beta_vae.latent = 5;
    c.msvq.image = 16;
    (c.msvq.ch, c.msvq.ch_mult) = (6, vec![1, 2, 2]);
    (c.msvq.res_blocks_enc, c.msvq.res_blocks_dec) = (1, 1);
    (c.msvq.d, c.msvq.vocab, c.msvq.patch_nums) = (6, 30, vec![1, 3, 4]);
    (c.meanflow.width, c.meanflow.blocks, c.meanflow.head_width) = (36, 1, 18);
    (c.msvq.warmup_steps, c.msvq.kmeans_vectors, c.msvq.restart_every) = (1, 60, 4);
    (c.msvq.loss.ms_ssim_scales, c.msvq.loss.feature_matching) = (1, 0.3);
    (c.msvq.loss.gan, c.msvq.loss.gan_start) = (0.4, 0.1);
    (c.msvq.loss.gan_layers, c.msvq.loss.gan_ch) = (1, 6);
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

/// Standard normals.
pub fn noise(n: u64, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(Stream::new(31, n, 0, Purpose::Test).normals(len), shape).unwrap()
}

/// Adds noise to all parameters, so that nothing is zero by initialisation.
pub fn stir(params: &Params, by: f64) {
    for (i, p) in params.iter().enumerate() {
        let v = p.value();
        let e = noise(1000 + i as u64, v.shape().dims());
        let moved = (0..v.len()).map(|i| v.at(i) + by * e.at(i)).collect();
        p.set(Tensor::from_f64s(v.dtype(), moved, v.shape()).unwrap()).unwrap();
    }
}

/// A tokenizer that nothing trained.
pub fn tokenizer(c: &Config) -> Frozen<Msvq> {
    let mut params = Params::new(1);
    let model = Msvq::new(&c.msvq, &mut params);
    stir(&params, 0.05);
    Frozen::new(model, &params)
}

/// Phi before training, stirred.
pub fn fresh_phi(c: &Config) -> (Params, Phi) {
    let (side, d, latent) = (c.msvq.latent_side(), c.msvq.d, c.beta_vae.latent);
    let dims = PhiDims { side, d, latent, patch_nums: c.msvq.patch_nums.clone() };
    let mut params = Params::new(6);
    let phi = Phi::new(&c.meanflow, &dims, &mut params);
    stir(&params, 0.05);
    (params, phi)
}

/// The transformer before training.
pub fn fresh_ar(c: &Config) -> (Params, MaskedAr) {
    let (latent, genes, d, vocab) = (c.beta_vae.latent, 9, c.msvq.d, c.msvq.vocab);
    let dims = Dims { latent, genes, d, vocab, patch_nums: c.msvq.patch_nums.clone() };
    let mut params = Params::new(4);
    let model = MaskedAr::new(&c.ar, &dims, &mut params).unwrap();
    (params, model)
}
