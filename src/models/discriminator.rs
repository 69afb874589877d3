//! PatchGAN (Isola et al., 2017): one real-or-not answer for each patch, with group norm for batch
//! norm, since a batch here is small. Its activations serve feature matching, the stand-in for a
//! perceptual network.

use crate::autograd::{Params, Pass, Var};
use crate::config::MsvqLossConfig;
use crate::error::{Error, Result};
use crate::nn::conv::{Conv, ConvInit};
use crate::nn::norm::GroupNorm;
use crate::ops::activation::{Abs, LeakyRelu};
use crate::ops::conv::Conv2d;
use crate::ops::elementwise::{ADD, Affine, SUB};
use crate::ops::reduce::SumTo;

/// Standard deviation of the initial kernels.
const STD: f64 = 0.02;
/// Channels double up to this multiple of the first layer's.
const WIDEST: usize = 8;

/// 4x4 convolutions, the first few with stride 2, LeakyReLU between them.
pub struct Discriminator {
    layers: Vec<(Conv, Option<GroupNorm>)>,
    last: Conv,
}

/// What the discriminator says of a batch.
pub struct Verdict {
    /// One number a patch, [B, h, w, 1]; positive is real.
    pub logits: Var,
    /// Activations after each layer but the last.
    pub features: Vec<Var>,
}

impl Discriminator {
    /// `gan_layers` layers of stride 2, one of stride 1, and the answer.
    pub fn new(c: &MsvqLossConfig, params: &mut Params) -> Self {
        let conv = |p: &mut Params, name: &str, io, stride| {
            let op = Conv2d { kernel: [4, 4], stride, pad: [1; 4] };
            Conv::new(p, name, io, op, ConvInit::Normal(STD))
        };
        let mut layers = Vec::new();
        let mut from = 3;
        for i in 0..=c.gan_layers {
            let to = c.gan_ch * WIDEST.min(1 << i);
            let stride = if i < c.gan_layers { 2 } else { 1 };
            layers.push(params.at(format_args!("layers.{i}"), |p| {
                let groups = (1..=(to / 8).max(1)).rev().find(|g| to.is_multiple_of(*g));
                let norm = (i > 0).then(|| GroupNorm::new(p, "norm", to, groups.unwrap_or(1)));
                (conv(p, "conv", [from, to], stride), norm)
            }));
            from = to;
        }
        Self { layers, last: conv(params, "last", [from, 1], 1) }
    }

    /// Images [B, S, S, 3] in [-1, 1] to a verdict.
    pub fn forward(&self, p: &Pass, image: &Var) -> Result<Verdict> {
        let mut x = image.clone();
        let mut features = Vec::with_capacity(self.layers.len());
        for (conv, norm) in &self.layers {
            x = conv.forward(p, &x)?;
            if let Some(norm) = norm {
                x = norm.forward(p, &x)?;
            }
            x = p.op(LeakyRelu { slope: 0.2 }, &[&x])?;
            features.push(x.clone());
        }
        Ok(Verdict { logits: self.last.forward(p, &x)?, features })
    }

    /// Half of mean relu(1 - D(real)) + mean relu(1 + D(fake)).
    pub fn hinge(&self, p: &Pass, real: &Var, fake: &Var) -> Result<Var> {
        let side = |image: &Var, sign: f64| -> Result<Var> {
            let logits = self.forward(p, image)?.logits;
            let margin = p.op(Affine { scale: sign, shift: 1.0 }, &[&logits])?;
            mean(p, &p.op(LeakyRelu { slope: 0.0 }, &[&margin])?)
        };
        let sum = p.op(ADD, &[&side(real, -1.0)?, &side(fake, 1.0)?])?;
        p.op(Affine { scale: 0.5, shift: 0.0 }, &[&sum])
    }
}

/// Mean absolute difference of two verdicts' features, the real side being a constant.
pub fn feature_distance(p: &Pass, fake: &Verdict, real: &Verdict) -> Result<Var> {
    let mut total: Option<Var> = None;
    for (a, b) in fake.features.iter().zip(&real.features) {
        let d = mean(p, &p.op(Abs, &[&p.op(SUB, &[a, &b.detach()])?])?)?;
        total = Some(match total {
            Some(t) => p.op(ADD, &[&t, &d])?,
            None => d,
        });
    }
    let total = total.ok_or_else(|| Error::shape("feature matching", "no features"))?;
    p.op(Affine { scale: 1.0 / fake.features.len() as f64, shift: 0.0 }, &[&total])
}

/// The mean of all elements.
pub fn mean(p: &Pass, x: &Var) -> Result<Var> {
    let sum = p.op(SumTo { to: [1].into() }, &[x])?;
    p.op(Affine { scale: 1.0 / x.value().len().max(1) as f64, shift: 0.0 }, &[&sum])
}
