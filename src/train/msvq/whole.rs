//! A step's batch, in one piece or in parts one after the other: its losses, their gradients and
//! the codes it was given, which are those of the whole either way.

use std::ops::Range;

use super::MsvqStage;
use super::loss::{AtImage, Painted, add, pixel_loss};
use crate::autograd::{Gradients, Pass, Var};
use crate::error::Result;
use crate::models::quantiser::{Codes, Keep, Quantised};
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul};
use crate::ops::layout::Concat;
use crate::ops::reduce::SumTo;
use crate::tensor::Tensor;
use crate::train::accumulate::{Sums, parts};

/// What a batch gave.
pub(super) struct Whole {
    pub(super) grads: Gradients,
    /// The loss, a mean over the batch.
    pub(super) loss: Tensor,
    /// Its parts, unweighted.
    pub(super) parts: Vec<(&'static str, Tensor)>,
    /// What was quantised, if it was.
    pub(super) codes: Option<Codes>,
    /// Gradients of the discriminator, where there is one yet.
    pub(super) hinge: Option<Gradients>,
}

/// A batch painted.
struct Run {
    image: Var,
    features: Var,
    pixels: AtImage,
    quantised: Option<Quantised>,
}

/// Which rows of which step.
#[derive(Clone, Copy)]
struct At<'a> {
    step: u64,
    keep: Keep<'a>,
    check: bool,
}

/// Means over a batch by name, of those over its parts.
#[derive(Default)]
struct Means(Vec<(&'static str, Tensor)>);

impl Means {
    fn add(&mut self, share: f64, part: Vec<(&'static str, Tensor)>) -> Result<()> {
        for (name, value) in part {
            let own = shared(share, value)?;
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum = call(&ADD, &[sum, &own])?,
                None => self.0.push((name, own)),
            }
        }
        Ok(())
    }
}

/// A part's mean as its share of the batch's.
fn shared(share: f64, value: Tensor) -> Result<Tensor> {
    match share {
        1.0 => Ok(value),
        scale => call(&Affine { scale, shift: 0.0 }, &[&value]),
    }
}

impl MsvqStage {
    /// Losses and gradients of the images `wanted` of a step, of the host.
    pub(super) fn whole(&self, step: u64, wanted: &Tensor, check: bool) -> Result<Whole> {
        let kept = self.kept_scales(step);
        let ramp = self.adversary.as_ref().and_then(|_| self.gan_ramp(step));
        let weight = match ramp {
            Some(ramp) if self.parts > 1 => Some(self.gan_weight(step, wanted, ramp)?),
            _ => None,
        };
        let (mut sums, mut hinge, mut means) = (Sums::default(), Sums::default(), Means::default());
        let mut codes = Vec::new();
        for rows in parts(kept.len(), self.parts) {
            let share = rows.len() as f64 / kept.len() as f64;
            let (own, keep) = self.part(wanted, (&rows, &kept))?;
            let pass = Pass::tape().training(&self.params).checked(check);
            let pass = pass.recomputing(self.stage.recompute);
            let mut run = self.paint(&pass, &own, At { step, keep, check })?;
            if let (Some(adversary), Some(ramp)) = (&self.adversary, ramp) {
                let judged = adversary.judge(&self.at(&run), &own, (ramp, weight.as_ref()))?;
                add(&mut run.pixels, judged)?;
            }
            let root = self.root(&pass, &run)?;
            sums.add(pass, &root, share)?;
            let mut told = vec![("loss", self.loss(&run)?)];
            told.append(&mut run.pixels.parts);
            told.extend(run.quantised.iter().map(|q| ("vq", q.loss.value().clone())));
            if let (Some(adversary), Some(_)) = (&self.adversary, ramp) {
                let loss = adversary.hinge([&own, run.image.value()], (&mut hinge, share))?;
                told.push(("disc", loss));
            }
            means.add(share, told)?;
            codes.extend(run.quantised.map(|q| q.codes));
        }
        let mut all = means.0;
        let parts = all.split_off(1.min(all.len()));
        let (grads, root) = sums.whole()?;
        let loss = all.pop().map_or(root, |(_, loss)| loss);
        let hinge = ramp.map(|_| hinge.whole()).transpose()?.map(|(grads, _)| grads);
        let codes = self.model.quantiser().joined_codes(codes)?;
        Ok(Whole { grads, loss, parts, codes, hinge })
    }

    /// Some rows of a batch, where the training runs, and the scales that they keep.
    fn part<'a>(
        &self,
        wanted: &Tensor,
        (rows, kept): (&Range<usize>, &'a [usize]),
    ) -> Result<(Tensor, Keep<'a>)> {
        let keep = Keep { part: &kept[rows.clone()], batch: kept };
        let own = match rows.len() == kept.len() {
            true => wanted.clone(),
            false => wanted.rows(rows.start, rows.len())?,
        };
        Ok((self.device.put(&own)?, keep))
    }

    /// What to differentiate: its gradient is the loss's.
    fn root(&self, pass: &Pass, run: &Run) -> Result<Var> {
        let product = pass.op(Mul, &[&run.image, &run.pixels.gradient.clone().into()])?;
        let root = pass.op(SumTo { to: [1].into() }, &[&product])?;
        match &run.quantised {
            Some(q) => pass.op(Axpy { alpha: self.config.loss.vq }, &[&root, &q.loss]),
            None => Ok(root),
        }
    }

    fn loss(&self, run: &Run) -> Result<Tensor> {
        let total = &run.pixels.total;
        match &run.quantised {
            Some(q) => call(&Axpy { alpha: self.config.loss.vq }, &[total, q.loss.value()]),
            None => Ok(total.clone()),
        }
    }

    fn at<'a>(&'a self, run: &'a Run) -> Painted<'a> {
        Painted {
            image: run.image.value(),
            features: run.features.value(),
            last: self.model.last_layer(),
            pixels: &run.pixels,
        }
    }

    fn paint(&self, pass: &Pass, wanted: &Tensor, at: At<'_>) -> Result<Run> {
        let (latent, quantised) = self.latent(pass, wanted, at)?;
        let features = self.model.decode_features(pass, &latent)?;
        let image = self.model.last_layer().forward(pass, &features)?;
        let pixels = pixel_loss(&self.config.loss, image.value(), wanted, at.check)?;
        Ok(Run { image, features, pixels, quantised })
    }

    /// What the decoder reads, and how it was quantised where that is to be learnt.
    fn latent(&self, p: &Pass, image: &Tensor, at: At<'_>) -> Result<(Var, Option<Quantised>)> {
        if self.config.decoder_only {
            return Ok((self.quantised(image)?.into(), None));
        }
        let f = self.model.encode(p, &image.clone().into())?;
        if !self.quantises(at.step) {
            return Ok((f, None));
        }
        let q = self.model.quantiser().quantise(p, &f, at.keep)?;
        Ok((q.latent.clone(), Some(q)))
    }

    /// The adversarial loss's weight for a batch in parts, each of which is painted for it first:
    /// it is a quotient of norms of the whole batch's gradients.
    fn gan_weight(&self, step: u64, wanted: &Tensor, ramp: f64) -> Result<Tensor> {
        let kept = self.kept_scales(step);
        let mut pulls = Means::default();
        for rows in parts(kept.len(), self.parts) {
            let share = rows.len() as f64 / kept.len() as f64;
            let (own, keep) = self.part(wanted, (&rows, &kept))?;
            let run = self.paint(&Pass::eval(), &own, At { step, keep, check: false })?;
            if let Some(adversary) = &self.adversary {
                let [fit, fooled] = adversary.pulls(&self.at(&run))?;
                pulls.add(share, vec![("fit", fit), ("fooled", fooled)])?;
            }
        }
        match (&self.adversary, &pulls.0[..]) {
            (Some(adversary), [(_, fit), (_, fooled)]) => adversary.weight([fit, fooled], ramp),
            _ => Err(crate::Error::Internal("no adversary to weigh".into())),
        }
    }

    /// The latent maps of images of the host, not tracked.
    pub(super) fn encoded(&self, images: &Tensor) -> Result<Tensor> {
        let count = images.shape().dims().first().copied().unwrap_or(0);
        let encode = |rows: Range<usize>| {
            let own = self.device.put(&images.rows(rows.start, rows.len())?)?;
            Ok(self.model.encode(&Pass::eval(), &own.into())?.into_value())
        };
        let mut maps = parts(count, self.parts).map(encode).collect::<Result<Vec<_>>>()?;
        match maps.len() {
            1 => Ok(maps.swap_remove(0)),
            _ => call(&Concat { axis: 0 }, &maps.iter().collect::<Vec<_>>()),
        }
    }
}
