//! What the tokenizer's pixels are trained on: a loss without pretrained networks, as a gradient at
//! the image.
//!
//! The gradient at the reconstruction is taken on a tape of its own; the network's tape then
//! carries it back. So the adversarial part can be weighed against it at the decoder's last layer
//! (VQGAN's adaptive weight) without a second pass through the decoder.

use crate::autograd::{Params, Pass, Var};
use crate::config::{MsvqLossConfig, StageConfig};
use crate::device::Device;
use crate::error::Result;
use crate::models::discriminator::{Discriminator, feature_distance, mean};
use crate::models::ms_ssim::{Border, ms_ssim};
use crate::nn::conv::Conv;
use crate::ops::activation::{Abs, Clamp, Power, Square};
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::optim::GlobalNorm;
use crate::tensor::Tensor;
use crate::train::accumulate::Sums;
use crate::train::learner::Learner;

/// Limits of the adaptive weight, and what is added to its denominator (VQGAN).
const WEIGHT_CAP: f64 = 1e4;
const WEIGHT_EPS: f64 = 1e-4;

/// A loss at an image: named parts, their weighted sum, the gradient of the sum.
pub struct AtImage {
    /// The weighted sum, one element.
    pub total: Tensor,
    /// The parts, unweighted, one element each.
    pub parts: Vec<(&'static str, Tensor)>,
    /// d total / d image, [B, S, S, 3].
    pub gradient: Tensor,
}

/// A reconstruction and where it came from.
pub struct Painted<'a> {
    /// The image.
    pub image: &'a Tensor,
    /// What the decoder's last layer turned into it.
    pub features: &'a Tensor,
    /// That layer.
    pub last: &'a Conv,
    /// The pixel loss there.
    pub pixels: &'a AtImage,
}

/// l2, l1 and 1 - MS-SSIM of a reconstruction against its original.
pub fn pixel_loss(
    c: &MsvqLossConfig,
    image: &Tensor,
    wanted: &Tensor,
    check: bool,
) -> Result<AtImage> {
    let p = Pass::tape().checked(check);
    let (x, y) = (p.leaf(image.clone()), Var::constant(wanted.clone()));
    let difference = p.op(SUB, &[&x, &y])?;
    let mut terms = vec![("l2", c.l2, mean(&p, &p.op(Square, &[&difference])?)?)];
    if c.l1 > 0.0 {
        terms.push(("l1", c.l1, mean(&p, &p.op(Abs, &[&difference])?)?));
    }
    if c.ms_ssim > 0.0 {
        let similarity = ms_ssim(&p, &x, &y, c.ms_ssim_scales, Border::Same)?;
        terms.push((
            "ssim_loss",
            c.ms_ssim,
            p.op(Affine { scale: -1.0, shift: 1.0 }, &[&similarity])?,
        ));
    }
    finish(p, &x, &terms)
}

/// Sums terms (name, weight, value) and brings their gradient to `x`.
fn finish(p: Pass, x: &Var, terms: &[(&'static str, f64, Var)]) -> Result<AtImage> {
    let mut total = p.op(Affine { scale: terms[0].1, shift: 0.0 }, &[&terms[0].2])?;
    for (_, weight, term) in &terms[1..] {
        total = p.op(Axpy { alpha: *weight }, &[&total, term])?;
    }
    let parts = terms.iter().map(|(name, _, value)| (*name, value.value().clone())).collect();
    let value = total.value().clone();
    let gradient = p.backward(&total)?.of(x)?.clone();
    Ok(AtImage { total: value, parts, gradient })
}

/// The discriminator and its optimiser.
pub struct Adversary {
    params: Params,
    net: Discriminator,
    /// Its optimiser; part of the stage's state.
    pub learner: Learner,
    config: MsvqLossConfig,
}

impl Adversary {
    /// A fresh discriminator, trained under the tokenizer's own recipe.
    pub fn new(config: &MsvqLossConfig, stage: &StageConfig, seed: u64) -> Result<Self> {
        // Another stream of initial values than the tokenizer's.
        let mut params = Params::new(seed ^ 0x6469_7363);
        let net = Discriminator::new(config, &mut params);
        let stage = StageConfig { ema: 0.0, ..stage.clone() };
        let learner = Learner::new(&params, &stage)?;
        Ok(Self { params, net, learner, config: config.clone() })
    }

    /// How little a reconstruction looks real.
    fn doubt(&self, image: &Tensor) -> Result<AtImage> {
        let p = Pass::tape();
        let x = p.leaf(image.clone());
        let verdict = self.net.forward(&p, &x)?;
        let loss = p.op(Affine { scale: -1.0, shift: 0.0 }, &[&mean(&p, &verdict.logits)?])?;
        finish(p, &x, &[("gan", 1.0, loss)])
    }

    /// The gradients at the kernel of the decoder's last layer, of the pixel loss and of the
    /// adversarial one. Those of a batch are the means of its parts'.
    pub fn pulls(&self, at: &Painted<'_>) -> Result<[Tensor; 2]> {
        let doubt = self.doubt(at.image)?;
        Ok([at_last(at, &at.pixels.gradient)?, at_last(at, &doubt.gradient)?])
    }

    /// The weight of the adversarial loss for these gradients at the last layer: as much as makes
    /// it pull as the pixel loss does. `ramp` is a factor in [0, 1].
    pub fn weight(&self, [fit, fooled]: [&Tensor; 2], ramp: f64) -> Result<Tensor> {
        let [fit, fooled] = [call(&GlobalNorm, &[fit])?, call(&GlobalNorm, &[fooled])?];
        let above = call(&Affine { scale: 1.0, shift: WEIGHT_EPS }, &[&fooled])?;
        let adaptive = call(&Mul, &[&fit, &call(&Power { p: -1.0 }, &[&above])?])?;
        let adaptive = call(&Clamp { lo: 0.0, hi: WEIGHT_CAP }, &[&adaptive])?;
        let scale = self.config.gan * ramp;
        call(&Affine { scale, shift: 0.0 }, &[&adaptive])
    }

    /// The adversarial and feature-matching loss at a reconstruction. `ramp` is a factor in [0, 1];
    /// the adversarial part's `weight` is that of this reconstruction where none is given.
    pub fn judge(
        &self,
        at: &Painted<'_>,
        wanted: &Tensor,
        (ramp, weight): (f64, Option<&Tensor>),
    ) -> Result<AtImage> {
        let gan = self.doubt(at.image)?;
        let weight = match weight {
            Some(weight) => weight.clone(),
            None => {
                let fooled = at_last(at, &gan.gradient)?;
                self.weight([&at_last(at, &at.pixels.gradient)?, &fooled], ramp)?
            }
        };
        let mut sum = AtImage {
            total: call(&Mul, &[&gan.total, &weight])?,
            gradient: call(&Mul, &[&gan.gradient, &weight])?,
            parts: vec![("gan", gan.total), ("gan_weight", weight)],
        };
        if self.config.feature_matching > 0.0 {
            let matched = self.match_features(at.image, wanted)?;
            let alpha = self.config.feature_matching * ramp;
            sum.total = call(&Axpy { alpha }, &[&sum.total, &matched.total])?;
            sum.parts.extend(matched.parts);
            sum.gradient = call(&Axpy { alpha }, &[&sum.gradient, &matched.gradient])?;
        }
        Ok(sum)
    }

    fn match_features(&self, image: &Tensor, wanted: &Tensor) -> Result<AtImage> {
        let p = Pass::tape();
        let x = p.leaf(image.clone());
        let real = self.net.forward(&Pass::eval(), &wanted.clone().into())?;
        let distance = feature_distance(&p, &self.net.forward(&p, &x)?, &real)?;
        finish(p, &x, &[("features", 1.0, distance)])
    }

    /// Moves it to a device.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        self.params.place(device)?;
        self.learner.place(device)
    }

    /// The hinge loss of the discriminator at images that are this share of a batch, whose
    /// gradients go to the sums over it.
    pub fn hinge(
        &self,
        [real, fake]: [&Tensor; 2],
        (sums, share): (&mut Sums, f64),
    ) -> Result<Tensor> {
        let p = Pass::tape().training(&self.params);
        let loss = self.net.hinge(&p, &real.clone().into(), &fake.clone().into())?;
        sums.add(p, &loss, share)?;
        Ok(loss.into_value())
    }
}

/// Gradient at the last layer's kernel for the gradient `g` at its output.
fn at_last(at: &Painted<'_>, g: &Tensor) -> Result<Tensor> {
    let p = Pass::tape();
    let w = p.leaf(at.last.weight().value());
    let y = at.last.with_weight(&p, &at.features.clone().into(), &w)?;
    p.backward_from(&y, g.clone())?.of(&w).cloned()
}

/// Adds a second gradient at the same image.
pub fn add(a: &mut AtImage, b: AtImage) -> Result<()> {
    a.total = call(&ADD, &[&a.total, &b.total])?;
    a.parts.extend(b.parts);
    a.gradient = call(&ADD, &[&a.gradient, &b.gradient])?;
    Ok(())
}
