//! The tokenizer: a convolutional encoder and decoder (VAR's shapes, algorithm.md 1.2) round the
//! residual multi-scale [`Quantiser`].

use crate::autograd::{Param, Params, Pass, Var};
use crate::config::MsvqConfig;
use crate::error::{Error, Result, Within};
use crate::models::blocks::{Block, ResBlock};
use crate::models::quantiser::Quantiser;
use crate::nn::conv::Conv;
use crate::nn::norm::GroupNorm;
use crate::tensor::Tensor;

/// Pixels to the latent map f and back, and f to tokens and back.
pub struct Msvq {
    config: MsvqConfig,
    encoder: Encoder,
    decoder: Decoder,
    quantiser: Quantiser,
    quant_conv: Conv,
    post_quant_conv: Conv,
}

impl Msvq {
    /// Makes the parameters: `encoder.`, `decoder.`, `quant_conv.`, `post_quant_conv.`,
    /// `quantiser.`.
    pub fn new(config: &MsvqConfig, params: &mut Params) -> Self {
        let d = config.d;
        Self {
            config: config.clone(),
            encoder: params.at("encoder", |p| Encoder::new(config, p)),
            decoder: params.at("decoder", |p| Decoder::new(config, p)),
            quant_conv: Conv::same(params, "quant_conv", [d, d], 3),
            post_quant_conv: Conv::same(params, "post_quant_conv", [d, d], 3),
            quantiser: params.at("quantiser", |p| Quantiser::new(config, p)),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &MsvqConfig {
        &self.config
    }

    /// The quantiser: tokens, pyramids, one more scale, pooling.
    pub fn quantiser(&self) -> &Quantiser {
        &self.quantiser
    }

    /// Images [B, S, S, 3] in [-1, 1] to the latent map f [B, h, w, d], before quantisation.
    pub fn encode(&self, p: &Pass, image: &Var) -> Result<Var> {
        let s = self.config.image;
        match image.dims() {
            &[_, h, w, 3] if h == s && w == s => {}
            _ => {
                let what = format!("images are {}, not [B, {s}, {s}, 3]", image.value().shape());
                return Err(Error::shape("tokenizer", what));
            }
        }
        self.quant_conv.forward(p, &self.encoder.forward(p, image)?)
    }

    /// A latent map [B, h, w, d] to images [B, S, S, 3], not clamped.
    pub fn decode(&self, p: &Pass, f: &Var) -> Result<Var> {
        let x = self.decoder.before_norm(p, &self.post_quant_conv.forward(p, f)?)?;
        self.decoder.conv_out.of_normed(p, &self.decoder.norm_out, &x, None)
    }

    /// The decoder up to its last convolution.
    pub fn decode_features(&self, p: &Pass, f: &Var) -> Result<Var> {
        self.decoder.features(p, &self.post_quant_conv.forward(p, f)?)
    }

    /// The decoder's last convolution, where the adaptive weight of the GAN compares gradients.
    pub fn last_layer(&self) -> &Conv {
        &self.decoder.conv_out
    }

    /// Images to tokens [B, L], all scales in a row.
    pub fn tokenize(&self, image: &Tensor) -> Result<Tensor> {
        let p = Pass::eval();
        let f = self.encode(&p, &Var::constant(image.clone()))?;
        self.quantiser.tokens(f.value())
    }

    /// Tokens [B, L] to images [B, S, S, 3] in [-1, 1].
    pub fn paint(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut pyramid = self.quantiser.pyramid(tokens)?;
        match pyramid.pop() {
            Some(f) => self.paint_latent(&f),
            None => Err(Error::shape("tokenizer", "there are no scales")),
        }
    }

    /// A latent map to images in [-1, 1].
    pub fn paint_latent(&self, f: &Tensor) -> Result<Tensor> {
        let p = Pass::eval();
        let image = self.decode(&p, &Var::constant(f.clone())).within("decoder")?;
        let clamp = crate::ops::activation::Clamp { lo: -1.0, hi: 1.0 };
        Ok(p.op(clamp, &[&image])?.into_value())
    }

    /// The code book [V, d].
    pub fn book(&self) -> &Param {
        self.quantiser.book()
    }
}

/// Residual, attention, residual at the smallest size.
struct Middle {
    first: Block,
    last: ResBlock,
}

impl Middle {
    fn new(c: &MsvqConfig, params: &mut Params, width: usize) -> Self {
        params.at("mid", |p| Self {
            first: Block::new(p, "0", c, [width, width], c.attention),
            last: ResBlock::new(p, "1", c, [width, width]),
        })
    }

    fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        let x = self.first.forward(p, x)?;
        p.segment(|| self.last.forward(p, &x))
    }
}

/// The blocks of one size, and the convolution to the next.
struct Level {
    blocks: Vec<Block>,
    resize: Option<Conv>,
}

impl Level {
    fn forward(&self, p: &Pass, x: Var) -> Result<Var> {
        self.blocks.iter().try_fold(x, |x, block| block.forward(p, &x))
    }
}

/// The blocks of level `i`: `n` of them, the first from `from` channels.
fn blocks(c: &MsvqConfig, p: &mut Params, i: usize, from: usize, n: usize) -> Vec<Block> {
    let width = c.ch * c.ch_mult[i];
    let attends = c.attention && i + 1 == c.ch_mult.len();
    (0..n)
        .map(|j| {
            let io = [if j == 0 { from } else { width }, width];
            Block::new(p, &j.to_string(), c, io, attends)
        })
        .collect()
}

struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Encoder {
    fn new(c: &MsvqConfig, p: &mut Params) -> Self {
        let conv_in = Conv::same(p, "conv_in", [3, c.ch], 3);
        let (mut levels, mut width) = (Vec::new(), c.ch);
        for i in 0..c.ch_mult.len() {
            let last = i + 1 == c.ch_mult.len();
            levels.push(p.at(format_args!("down.{i}"), |p| {
                let blocks = blocks(c, p, i, width, c.res_blocks_enc);
                width = c.ch * c.ch_mult[i];
                Level { blocks, resize: (!last).then(|| Conv::halving(p, "halve", width)) }
            }));
        }
        Self {
            conv_in,
            levels,
            middle: Middle::new(c, p, width),
            norm_out: GroupNorm::new(p, "norm_out", width, c.groups(width)).silu(),
            conv_out: Conv::same(p, "conv_out", [width, c.d], 3),
        }
    }

    fn forward(&self, p: &Pass, image: &Var) -> Result<Var> {
        let mut x = self.conv_in.forward(p, image)?;
        for level in &self.levels {
            x = level.forward(p, x)?;
            if let Some(halve) = &level.resize {
                x = halve.forward(p, &x)?;
            }
        }
        let x = self.middle.forward(p, &x)?;
        self.conv_out.of_normed(p, &self.norm_out, &x, None)
    }
}

struct Decoder {
    conv_in: Conv,
    middle: Middle,
    /// From the smallest size up.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Decoder {
    fn new(c: &MsvqConfig, p: &mut Params) -> Self {
        let mut width = c.ch * c.ch_mult.last().copied().unwrap_or(1);
        let conv_in = Conv::same(p, "conv_in", [c.d, width], 3);
        let middle = Middle::new(c, p, width);
        let mut levels = Vec::new();
        for i in (0..c.ch_mult.len()).rev() {
            levels.push(p.at(format_args!("up.{i}"), |p| {
                let blocks = blocks(c, p, i, width, c.res_blocks_dec);
                width = c.ch * c.ch_mult[i];
                let resize = (i > 0).then(|| Conv::same(p, "double", [width, width], 3));
                Level { blocks, resize }
            }));
        }
        Self {
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::new(p, "norm_out", width, c.groups(width)).silu(),
            conv_out: Conv::same(p, "conv_out", [width, 3], 3),
        }
    }

    fn features(&self, p: &Pass, f: &Var) -> Result<Var> {
        self.norm_out.forward(p, &self.before_norm(p, f)?)
    }

    fn before_norm(&self, p: &Pass, f: &Var) -> Result<Var> {
        let x = self.conv_in.forward(p, f)?;
        let mut x = self.middle.forward(p, &x)?;
        for level in &self.levels {
            x = level.forward(p, x)?;
            if let Some(conv) = &level.resize {
                x = conv.of_doubled(p, &x)?;
            }
        }
        Ok(x)
    }
}
