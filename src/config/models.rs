//! The settings of the gene prior, the tokenizer and the transformer.

use serde::{Deserialize, Serialize};

/// The gene prior: genes -> hidden -> latent and back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BetaVaeConfig {
    /// Input width: the number of genes. The paper has 17,655.
    pub genes: usize,
    /// Encoder widths from the genes inwards; the decoder has them reversed. RNA-CDM: 6000, 4000.
    pub hidden: Vec<usize>,
    /// Width of z. The paper: 200.
    pub latent: usize,
    /// Dropout on the input profile. RNA-GAN: .5.
    pub dropout: f64,
    /// Weight of the KL term (summed over z) beside the mean squared error (mean over genes).
    pub beta: f64,
    /// Share of the steps over which beta grows from 0.
    pub kl_warmup: f64,
    /// Ends the decoder in tanh, as the sibling code does; it cannot reach |z-score| > 1.
    pub tanh: bool,
    /// The log-variance is clamped to +- this.
    pub logvar_clamp: f64,
    /// Slope of the LeakyReLU below 0. RNA-GAN: .01.
    pub leak: f64,
}

impl Default for BetaVaeConfig {
    fn default() -> Self {
        Self {
            genes: 17_655,
            hidden: vec![6000, 4000],
            latent: 200,
            dropout: 0.5,
            beta: 0.005,
            kl_warmup: 0.1,
            tanh: false,
            logvar_clamp: 20.0,
            leak: 0.01,
        }
    }
}

/// The tokenizer: VAR's encoder, decoder and residual multi-scale quantiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MsvqConfig {
    /// Side of a tile in pixels.
    pub image: usize,
    /// Channels of the first level. VAR: 160.
    pub ch: usize,
    /// Channel multiple of each level; each level but the first halves the side.
    pub ch_mult: Vec<usize>,
    /// Residual blocks a level in the encoder.
    pub res_blocks_enc: usize,
    /// Residual blocks a level in the decoder.
    pub res_blocks_dec: usize,
    /// Attention blocks at the smallest level and in the middle.
    pub attention: bool,
    /// Groups of every GroupNorm; 0 is the rule of [`MsvqConfig::groups`].
    pub norm_groups: usize,
    /// Channels of the latent map and of a code.
    pub d: usize,
    /// Codes in the book, shared by all scales.
    pub vocab: usize,
    /// Side of each scale's token map, growing to the latent side.
    pub patch_nums: Vec<usize>,
    /// Number of convolutions phi shared out over the scales. VAR: 4.
    pub phi: usize,
    /// phi(h) = (1 - q) h + q conv(h). VAR: .5.
    pub quant_resi: f64,
    /// Weight of the commitment term, at every scale. VAR: .25.
    pub beta: f64,
    /// How the nearest code is found.
    pub lookup: Lookup,
    /// Share of samples whose later scales are left out of a step. ImageFolder: .1.
    pub scale_dropout: f64,
    /// Fewest scales that a sample with scale dropout keeps.
    pub scale_dropout_start: usize,
    /// Steps between restarts of codes that nothing uses; 0 never restarts.
    pub restart_every: u64,
    /// Codes drawn less often than this share of an even draw count as unused.
    pub restart_below: f64,
    /// Residual vectors, balanced over the scales, for the k-means that fills the code book; 0
    /// leaves the book as it starts, for a warm start.
    pub kmeans_vectors: usize,
    /// Steps as a plain autoencoder before the k-means.
    pub warmup_steps: u64,
    /// Trains the decoder alone, over the frozen encoder and code book of a warm start: tokens, and
    /// whatever was trained on them, stay valid.
    pub decoder_only: bool,
    /// Weights of the terms of the loss.
    pub loss: MsvqLossConfig,
}

/// What the tokenizer is trained to do, without pretrained networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MsvqLossConfig {
    /// Mean squared error of pixels in [-1, 1].
    pub l2: f64,
    /// Mean absolute error.
    pub l1: f64,
    /// 1 - MS-SSIM, its windows cut at the border so that every pixel counts.
    pub ms_ssim: f64,
    /// Scales of the MS-SSIM (11-tap windows, weights renormalised); 5 need sides of 176 and more.
    pub ms_ssim_scales: usize,
    /// The quantiser's loss.
    pub vq: f64,
    /// PatchGAN hinge, times its adaptive weight; 0 builds no discriminator.
    pub gan: f64,
    /// Share of the steps before the discriminator starts.
    pub gan_start: f64,
    /// Stride-2 layers of the discriminator.
    pub gan_layers: usize,
    /// Channels of the discriminator's first layer.
    pub gan_ch: usize,
    /// L1 between the discriminator's activations on real and reconstructed tiles.
    pub feature_matching: f64,
}

impl Default for MsvqLossConfig {
    fn default() -> Self {
        Self {
            l2: 1.0,
            l1: 0.2,
            ms_ssim: 0.5,
            ms_ssim_scales: 5,
            vq: 1.0,
            gan: 0.4,
            gan_start: 0.25,
            gan_layers: 3,
            gan_ch: 64,
            feature_matching: 1.0,
        }
    }
}

impl Default for MsvqConfig {
    fn default() -> Self {
        Self {
            image: 256,
            ch: 160,
            ch_mult: vec![1, 1, 2, 2, 4],
            res_blocks_enc: 2,
            res_blocks_dec: 3,
            attention: true,
            norm_groups: 0,
            d: 32,
            vocab: 4096,
            patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            phi: 4,
            quant_resi: 0.5,
            beta: 0.25,
            lookup: Lookup::L2,
            scale_dropout: 0.1,
            scale_dropout_start: 3,
            restart_every: 500,
            restart_below: 0.1,
            kmeans_vectors: 50_000,
            warmup_steps: 2000,
            decoder_only: false,
            loss: MsvqLossConfig::default(),
        }
    }
}

impl MsvqConfig {
    /// Side of the latent map: the image side halved between levels.
    pub fn latent_side(&self) -> usize {
        self.image >> self.ch_mult.len().saturating_sub(1)
    }

    /// Number of scales K.
    pub fn scales(&self) -> usize {
        self.patch_nums.len()
    }

    /// Tokens of a tile over all scales, L.
    pub fn tokens(&self) -> usize {
        self.patch_nums.iter().map(|p| p * p).sum()
    }

    /// Groups of a GroupNorm over `channels`. By the rule: 32 where a group then has 4 channels or
    /// more, else as near to 8 channels a group as divides, since 32 groups of 32 channels would
    /// be instance norm.
    pub fn groups(&self, channels: usize) -> usize {
        let wanted = match self.norm_groups {
            0 if channels >= 128 => 32,
            0 => (channels / 8).max(1),
            n => n,
        };
        (1..=wanted.min(channels)).rev().find(|g| channels.is_multiple_of(*g)).unwrap_or(1)
    }

    /// Which phi serves 0-based `scale`: the nearest of `phi` ticks spread over [0, 1], a tie going
    /// to the later one. For the ten scales of the paper `[0,0,1,1,1,2,2,3,3,3]`, as in VAR.
    pub fn phi_of(&self, scale: usize) -> usize {
        let n = self.phi.max(1) as f64;
        let at = scale as f64 / (self.scales().max(2) - 1) as f64;
        // VAR places four ticks a little further out than any other number of them.
        let first = if self.phi == 4 { 1.0 / 12.0 } else { 0.5 / n };
        let step = if self.phi > 1 { (1.0 - 2.0 * first) / (n - 1.0) } else { 0.0 };
        let distance = |j: usize| (at - first - step * j as f64).abs();
        (1..self.phi).fold(0, |best, j| if distance(j) <= distance(best) + 1e-9 { j } else { best })
    }
}

/// How a vector finds its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// The smallest squared distance.
    L2,
    /// The largest dot product after normalising both sides.
    Cosine,
}

/// The transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArConfig {
    /// Blocks.
    pub depth: usize,
    /// Width C. VAR: 64 x depth.
    pub width: usize,
    /// Attention heads. VAR: depth.
    pub heads: usize,
    /// Drop path at the last block, growing linearly from 0. VAR: .1 depth / 24.
    pub drop_path: f64,
    /// Dropout on the sublayers' outputs. VAR: 0.
    pub dropout: f64,
    /// Share of rows that see the null condition in training. VAR: .1.
    pub cond_drop: f64,
    /// Adds an embedding of r_k to the input beside f_hat's.
    pub add_rk: bool,
    /// Plain VAR: the input is r_k; no Phi and no mask.
    pub plain_var: bool,
    /// Inputs are standardised with the training set's channel statistics before they are embedded.
    pub standardise: bool,
    /// How RNA becomes the condition.
    pub rna: RnaEncoding,
    /// Number of classes (class_label).
    pub classes: usize,
    /// Draws z from the posterior in training instead of taking its mean.
    pub posterior_z: bool,
    /// Factor on the head's initial weights. VAR: .02.
    pub head_gain: f64,
    /// Factor on the initial weights of the AdaLN scales and shifts. VAR: .5.
    pub adaln_gain: f64,
    /// Factor on the initial weights of the AdaLN gates. VAR: 1e-3 up to d20.
    pub gate_gain: f64,
    /// Share of codes replaced by random ones before f_{k-1} is built, against exposure bias.
    pub token_noise: f64,
}

impl Default for ArConfig {
    fn default() -> Self {
        Self {
            depth: 16,
            width: 1024,
            heads: 16,
            drop_path: 0.1 * 16.0 / 24.0,
            dropout: 0.0,
            cond_drop: 0.1,
            add_rk: false,
            plain_var: false,
            standardise: false,
            rna: RnaEncoding::BetaVae,
            classes: 5,
            posterior_z: false,
            head_gain: 0.02,
            adaln_gain: 0.5,
            gate_gain: 1e-3,
            token_noise: 0.0,
        }
    }
}

/// Where the condition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RnaEncoding {
    /// The standardised posterior mean of the gene prior.
    BetaVae,
    /// One linear map from the genes, trained with the transformer.
    Linear,
    /// An embedding of the tissue class: no RNA at all.
    ClassLabel,
}
