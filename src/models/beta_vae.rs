//! The gene prior: a beta-VAE from RNA to z and back (RNA-CDM's shapes in RNA-GAN's layout).
//!
//! The encoder is Linear, batch norm, LeakyReLU for each hidden width and once more for the width
//! of z, then two linear heads, mean and log-variance. The decoder mirrors the hidden widths and
//! ends in a linear layer. What the later stages see is the posterior mean, standardised with the
//! training set's statistics.

use crate::autograd::{Param, Params, Pass, Var};
use crate::config::BetaVaeConfig;
use crate::error::{Error, Result};
use crate::nn::norm::{BatchNorm, BatchStats};
use crate::nn::{Init, Linear};
use crate::ops::activation::{Clamp, Exp, LeakyRelu, Square, Tanh};
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::reduce::SumTo;
use crate::tensor::Tensor;

/// Linear, batch norm, LeakyReLU.
struct Layer {
    linear: Linear,
    norm: BatchNorm,
}

/// RNA [B, genes] to a Gaussian over z [B, latent] and back.
pub struct BetaVae {
    config: BetaVaeConfig,
    encoder: Vec<Layer>,
    mean: Linear,
    logvar: Linear,
    decoder: Vec<Layer>,
    out: Linear,
    z_mean: Param,
    z_sd: Param,
}

/// Which statistics the batch norms use.
enum Mode<'a> {
    /// The batch's own, which are collected.
    Batch(&'a mut Vec<BatchStats>),
    /// The running ones.
    Running,
}

/// The parts of a training step's loss.
pub struct Loss {
    /// Reconstruction plus beta times KL, one element.
    pub total: Var,
    /// Mean squared error over batch and genes, one element.
    pub mse: Tensor,
    /// KL divergence to the standard normal, summed over z, mean over the batch, one element.
    pub kl: Tensor,
    stats: Vec<BatchStats>,
}

impl BetaVae {
    /// Trained parameters go into `params`; the running statistics of the batch norms and of z,
    /// which are not trained, into `running`.
    pub fn new(config: &BetaVaeConfig, params: &mut Params, running: &mut Params) -> Self {
        let (z, hidden) = (config.latent, &config.hidden);
        let inwards: Vec<usize> = [&[config.genes], hidden.as_slice(), &[z]].concat();
        let outwards: Vec<usize> = [z].into_iter().chain(hidden.iter().rev().copied()).collect();
        let mut stack = |name: &str, widths: &[usize]| -> Vec<Layer> {
            let pairs = widths.windows(2).enumerate();
            pairs
                .map(|(i, io)| {
                    let name = format!("{name}.{i}");
                    let linear = Linear::new(params, &name, [io[0], io[1]], Init::Xavier);
                    let norm = BatchNorm::new(params, running, &format!("{name}.norm"), io[1]);
                    Layer { linear, norm }
                })
                .collect()
        };
        let encoder = stack("encoder", &inwards);
        let decoder = stack("decoder", &outwards);
        let last = outwards.last().copied().unwrap_or(z);
        Self {
            config: config.clone(),
            encoder,
            decoder,
            mean: Linear::new(params, "mean", [z, z], Init::Xavier),
            logvar: Linear::new(params, "logvar", [z, z], Init::Xavier),
            out: Linear::new(params, "out", [last, config.genes], Init::Xavier),
            z_mean: running.constant("z.mean", [z], 0.0),
            z_sd: running.constant("z.sd", [z], 1.0),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &BetaVaeConfig {
        &self.config
    }

    fn stack(&self, p: &Pass, layers: &[Layer], x: &Var, mode: &mut Mode) -> Result<Var> {
        let mut x = x.clone();
        for layer in layers {
            let h = layer.linear.forward(p, &x)?;
            let h = match mode {
                Mode::Running => layer.norm.forward_eval(p, &h)?,
                Mode::Batch(kept) => {
                    let (y, stats) = layer.norm.forward_train(p, &h)?;
                    kept.push(stats);
                    y
                }
            };
            x = p.op(LeakyRelu { slope: self.config.leak }, &[&h])?;
        }
        Ok(x)
    }

    fn encode(&self, p: &Pass, x: &Var, mode: &mut Mode) -> Result<(Var, Var)> {
        if x.dims().len() < 2 || x.value().shape().last() != self.config.genes {
            let what =
                format!("profiles are {}, not [.., {}]", x.value().shape(), self.config.genes);
            return Err(Error::shape("beta-VAE", what));
        }
        let h = self.stack(p, &self.encoder, x, mode)?;
        let limit = self.config.logvar_clamp;
        let logvar = self.logvar.forward(p, &h)?;
        let logvar = p.op(Clamp { lo: -limit, hi: limit }, &[&logvar])?;
        Ok((self.mean.forward(p, &h)?, logvar))
    }

    fn decode(&self, p: &Pass, z: &Var, mode: &mut Mode) -> Result<Var> {
        let y = self.out.forward(p, &self.stack(p, &self.decoder, z, mode)?)?;
        if self.config.tanh { p.op(Tanh, &[&y]) } else { Ok(y) }
    }

    /// The loss on profiles [B, genes]: `keep` [B, genes] multiplies the input (0 or 1 / (1 -
    /// dropout)), `noise` [B, latent] is standard normal, `beta` the weight of the KL term.
    pub fn loss(
        &self,
        p: &Pass,
        x: &Tensor,
        keep: &Tensor,
        noise: &Tensor,
        beta: f64,
    ) -> Result<Loss> {
        let mut stats = Vec::new();
        let wanted = Var::constant(x.clone());
        let input = p.op(Mul, &[&wanted, &keep.clone().into()])?;
        let (mean, logvar) = self.encode(p, &input, &mut Mode::Batch(&mut stats))?;
        let half = p.op(Affine { scale: 0.5, shift: 0.0 }, &[&logvar])?;
        let spread = p.op(Mul, &[&p.op(Exp, &[&half])?, &noise.clone().into()])?;
        let z = p.op(ADD, &[&mean, &spread])?;
        let y = self.decode(p, &z, &mut Mode::Batch(&mut stats))?;
        let error = p.op(Square, &[&p.op(SUB, &[&y, &wanted])?])?;
        let mse = scaled_sum(p, &error, 1.0 / x.len().max(1) as f64)?;
        // KL of one dimension: (mean^2 + e^logvar - 1 - logvar) / 2.
        let variance = p.op(Affine { scale: 1.0, shift: -1.0 }, &[&p.op(Exp, &[&logvar])?])?;
        let kl = p.op(ADD, &[&p.op(Square, &[&mean])?, &p.op(SUB, &[&variance, &logvar])?])?;
        let kl = scaled_sum(p, &kl, 0.5 / x.shape().dims()[0].max(1) as f64)?;
        let total = p.op(Axpy { alpha: beta }, &[&mse, &kl])?;
        Ok(Loss { total, mse: mse.into_value(), kl: kl.into_value(), stats })
    }

    /// Moves the batch norms' running statistics towards a step's batch of `rows` rows, unless the
    /// gate `[1]` of that step is not finite.
    pub fn remember(&self, loss: &Loss, rows: usize, gate: &Tensor) -> Result<()> {
        let layers = self.encoder.iter().chain(&self.decoder);
        layers.zip(&loss.stats).try_for_each(|(layer, s)| layer.norm.remember(s, rows, gate))
    }

    /// Posterior (mean, log-variance) [.., latent] of profiles [.., genes].
    pub fn posterior(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (m, v) = self.encode(&Pass::eval(), &x.clone().into(), &mut Mode::Running)?;
        Ok((m.into_value(), v.into_value()))
    }

    /// Posterior mean [B, latent], as it is.
    pub fn encode_mean(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.posterior(x)?.0)
    }

    /// Profiles [B, genes] of z [B, latent], z as the encoder gives it.
    pub fn reconstruct(&self, z: &Tensor) -> Result<Tensor> {
        Ok(self.decode(&Pass::eval(), &z.clone().into(), &mut Mode::Running)?.into_value())
    }

    /// The condition of the later stages: z standardised per dimension with the training set's
    /// statistics.
    pub fn standardise(&self, z: &Tensor) -> Result<Tensor> {
        let (mean, sd) = (self.z_mean.value(), self.z_sd.value());
        let n = self.config.latent.max(1);
        let data = (0..z.len()).map(|i| (z.at(i) - mean.at(i % n)) / sd.at(i % n)).collect();
        Tensor::from_f64s(z.dtype(), data, z.shape())
    }

    /// Mean + e^(logvar / 2) noise: a draw from the posterior, before it is standardised.
    pub fn draw(&self, mean: &Tensor, logvar: &Tensor, noise: &[f32]) -> Result<Tensor> {
        let one = |(i, n): (usize, &f32)| mean.at(i) + (0.5 * logvar.at(i)).exp() * f64::from(*n);
        let data = noise.iter().enumerate().take(mean.len()).map(one).collect();
        Tensor::from_f64s(mean.dtype(), data, mean.shape())
    }

    /// Takes the statistics of z from the posterior means [n, latent] of the training profiles. A
    /// dimension that does not vary is left at its scale.
    pub fn set_statistics(&self, means: &Tensor) -> Result<()> {
        let (mean, variance) = column_moments(means);
        let sd = variance.iter().map(|v| if *v > 1e-8 { v.sqrt() } else { 1.0 }).collect();
        let dtype = means.dtype();
        self.z_mean.set(Tensor::from_f64s(dtype, mean, [self.config.latent])?)?;
        self.z_sd.set(Tensor::from_f64s(dtype, sd, [self.config.latent])?)
    }
}

/// How many dimensions of z vary with the profile: those whose posterior means [n, latent] have a
/// variance above .01 (Burda et al., 2016).
pub fn active_dimensions(means: &Tensor) -> usize {
    column_moments(means).1.iter().filter(|v| **v > 0.01).count()
}

/// Mean and variance of each column.
fn column_moments(x: &Tensor) -> (Vec<f64>, Vec<f64>) {
    let (rows, cols) = x.shape().matrix();
    let over = |f: &dyn Fn(usize) -> f64| (0..rows).map(f).sum::<f64>() / rows.max(1) as f64;
    let mean: Vec<f64> = (0..cols).map(|c| over(&|r| x.at(r * cols + c))).collect();
    let variance = (0..cols).map(|c| over(&|r| (x.at(r * cols + c) - mean[c]).powi(2))).collect();
    (mean, variance)
}

fn scaled_sum(p: &Pass, x: &Var, scale: f64) -> Result<Var> {
    let sum = p.op(SumTo { to: [1].into() }, &[x])?;
    p.op(Affine { scale, shift: 0.0 }, &[&sum])
}

/// Trained parameters of the layout above, without making them. The paper's sizes have 261.6
/// million.
pub fn parameter_count(c: &BetaVaeConfig) -> usize {
    let inwards: Vec<usize> = [&[c.genes], c.hidden.as_slice(), &[c.latent]].concat();
    let outwards: Vec<usize> =
        [c.latent].into_iter().chain(c.hidden.iter().rev().copied()).collect();
    let linear = |i: usize, o: usize| i * o + o;
    // A norm adds a scale and a shift to each width.
    let stack =
        |w: &[usize]| w.windows(2).map(|io| linear(io[0], io[1]) + 2 * io[1]).sum::<usize>();
    let last = outwards.last().copied().unwrap_or(c.latent);
    stack(&inwards) + stack(&outwards) + 2 * linear(c.latent, c.latent) + linear(last, c.genes)
}
