//! Floating-point operations of a training step and of a sample, counted from the shapes of the
//! matrix products and convolutions (a multiply and an add are two). Pointwise work, norms, the
//! optimiser and the discriminator are left out: they are a few percent of the large tiers.

use genevar::config::Config;

/// A map's side or a number of positions, channels and the like, as a float to multiply.
fn f(n: usize) -> f64 {
    n as f64
}

/// A step of reverse mode costs about two forward passes on top of one.
const TRAIN: f64 = 3.0;
/// MeanFlow carries a tangent beside the values, which is one more forward pass.
const TRAIN_WITH_TANGENT: f64 = 4.0;

/// The gene prior, one profile forward.
fn beta_vae(c: &Config) -> f64 {
    let v = &c.beta_vae;
    let mut widths = vec![v.genes];
    widths.extend(&v.hidden);
    let chain: f64 = widths.windows(2).map(|w| 2.0 * f(w[0]) * f(w[1])).sum();
    let inner = f(*widths.last().unwrap_or(&0));
    // Encoder and decoder, two heads of the posterior, one way back in.
    2.0 * chain + 6.0 * inner * f(v.latent)
}

/// A k x k convolution on a map of this side.
fn conv(side: usize, k: usize, io: [usize; 2]) -> f64 {
    2.0 * f(side * side) * f(k * k) * f(io[0]) * f(io[1])
}

/// Two convolutions, and one more where the width changes.
fn res_block(side: usize, io: [usize; 2]) -> f64 {
    let shortcut = if io[0] == io[1] { 0.0 } else { conv(side, 1, io) };
    conv(side, 3, io) + conv(side, 3, [io[1], io[1]]) + shortcut
}

/// Self-attention of one head over a map.
fn attn_block(side: usize, c: usize) -> f64 {
    conv(side, 1, [c, 4 * c]) + 4.0 * f(side * side).powi(2) * f(c)
}

/// One half of the tokenizer on one image: (encoder, decoder).
fn tokenizer(c: &Config) -> (f64, f64) {
    let m = &c.msvq;
    let levels = m.ch_mult.len();
    let width = |i: usize| m.ch * m.ch_mult[i];
    let side = |i: usize| m.image >> i;
    let attn = |i: usize| match m.attention && i + 1 == levels {
        true => attn_block(side(i), width(i)),
        false => 0.0,
    };
    let level = |i: usize, from: usize, n: usize| {
        let rest = f(n.saturating_sub(1)) * res_block(side(i), [width(i); 2]);
        res_block(side(i), [from, width(i)]) + rest + f(n) * attn(i)
    };
    let (last, top) = (levels - 1, width(levels - 1));
    let middle = 2.0 * res_block(side(last), [top; 2]) + attn(last);
    let mut encoder = conv(m.image, 3, [3, m.ch]) + middle + conv(side(last), 3, [top, m.d]);
    let mut decoder = conv(m.image, 3, [m.ch, 3]) + middle + conv(side(last), 3, [m.d, top]);
    let (mut down, mut up) = (m.ch, top);
    for i in 0..levels {
        encoder += level(i, down, m.res_blocks_enc);
        down = width(i);
        let j = last - i;
        decoder += level(j, up, m.res_blocks_dec);
        up = width(j);
        if i < last {
            encoder += conv(side(i + 1), 3, [down; 2]);
            decoder += conv(side(j - 1), 3, [up; 2]);
        }
    }
    (encoder + quantiser(c), decoder)
}

/// Nearest codes of every scale and the convolutions after each.
fn quantiser(c: &Config) -> f64 {
    let m = &c.msvq;
    let lookup = 2.0 * f(m.tokens()) * f(m.vocab) * f(m.d);
    lookup + f(m.scales()) * conv(m.latent_side(), 3, [m.d; 2])
}

/// Phi forward on one map at 0-based scale `k`.
fn phi(c: &Config, k: usize) -> f64 {
    let w = f(c.meanflow.width);
    let n = f(c.msvq.latent_side()).powi(2);
    let m = f(c.msvq.patch_nums[k]).powi(2);
    // Projections, network and generators of self-attention and of cross-attention to r_k.
    let attention = 8.0 * n * w * w + 4.0 * n * n * w;
    let network = 16.0 * n * w * w + 12.0 * w * w;
    let cross = 4.0 * n * w * w + 4.0 * m * w * w + 4.0 * n * m * w + 6.0 * n * w * w;
    f(c.meanflow.blocks) * (attention + network + cross)
}

/// Phi over every scale that has a coarser one, with `back` for the scales that are masked by a
/// gradient.
fn refinement(c: &Config, back: f64) -> f64 {
    let factor = |k: usize| if k + 1 >= c.mask.k_m { back } else { 1.0 };
    (1..c.msvq.scales()).map(|k| factor(k) * phi(c, k)).sum()
}

/// The transformer forward on all tokens of one image.
fn transformer(c: &Config) -> f64 {
    let (w, l) = (f(c.ar.width), f(c.msvq.tokens()));
    let mut seen = 0.0;
    let mut before = 0.0;
    for p in &c.msvq.patch_nums {
        before += f(p * p);
        seen += f(p * p) * before;
    }
    let block = 24.0 * l * w * w + 4.0 * seen * w + 12.0 * w * w;
    f(c.ar.depth) * block + 2.0 * l * w * f(c.msvq.vocab)
}

/// One training step of a stage, by the stage's name.
pub fn step(c: &Config, stage: &str) -> f64 {
    let t = &c.train;
    let (encoder, decoder) = tokenizer(c);
    match stage {
        "beta_vae" => f(t.beta_vae.batch) * TRAIN * beta_vae(c),
        "msvq" => f(t.msvq.batch) * TRAIN * (encoder + decoder),
        "meanflow" => {
            let scales = (1..c.msvq.scales()).map(|k| phi(c, k));
            let mean = scales.sum::<f64>() / f(c.msvq.scales() - 1);
            // The tile and its counterfactuals are tokenized anew at each step.
            let n = &c.meanflow.counterfactual;
            let drawn = [n.colour, n.contrast, n.sharpness].iter().filter(|on| **on).count();
            f(t.meanflow.batch) * (TRAIN_WITH_TANGENT * mean + f(1 + drawn) * encoder)
        }
        _ => f(t.ar.batch) * (TRAIN * transformer(c) + refinement(c, 3.0) + encoder),
    }
}

/// One tile from RNA: two streams for guidance, Phi with the mask's gradient, the decoder.
pub fn sample(c: &Config) -> f64 {
    let streams = if c.sample.cfg == 0.0 { 1.0 } else { 2.0 };
    streams * transformer(c) + refinement(c, 3.0) + tokenizer(c).1
}
