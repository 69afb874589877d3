//! The mask M_k: where the transformer sees f_hat_k and where it sees the learned token e.
//!
//! G_k = d/dr_k of the squared error of f_hat_k, through both paths by which r_k enters Phi; its l2
//! norm over channels, standardised over the positions of a scale, keeps a position where it
//! exceeds gamma ~ N(0, 1). The raw norm is near 1e-3 and would make a fair coin of the rule, hence
//! the standardisation. Once made, the mask is a constant.

use super::meanflow::{FlowCond, sample};
use super::phi::Phi;
use crate::autograd::Pass;
use crate::config::{Gamma, MaskConfig, MaskKind, MaskTarget, Normalise};
use crate::error::Result;
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine, SUB};
use crate::ops::resample::{Map, Resample};
use crate::tensor::{Purpose, Stream, Tensor};

/// Scale indices of further noise draws are this far apart from the scales themselves.
const DRAW_STRIDE: u16 = 256;
/// Added to the deviation before dividing by it, so that equal gradients give a coin and not a NaN.
const STD_EPS: f64 = 1e-6;

/// One scale of a batch of tiles. Feature maps are standardised.
pub struct MaskInput<'a> {
    /// r_k [B, p, p, d].
    pub r_k: &'a Tensor,
    /// z [B, latent].
    pub z: &'a Tensor,
    /// 0-based scale.
    pub k: usize,
    /// The tile number of each row, which names its random numbers.
    pub ids: &'a [u64],
    /// The run's seed.
    pub seed: u64,
}

/// f_hat with its mask.
pub struct Refined {
    /// f_hat_k [B, H, H, d], standardised.
    pub f_hat: Tensor,
    /// M_k [B, n_k, 1], 1 where kept; None where the scale is not masked.
    pub keep: Option<Tensor>,
    /// The saliency before standardisation [B, n_k], where one was computed.
    pub saliency: Option<Tensor>,
}

/// Noise of a row: a function of (seed, tile, scale, draw) alone.
pub fn noise(phi: &Phi, x: &MaskInput<'_>, draw: u16) -> Result<Tensor> {
    let d = phi.dims();
    let n = d.side * d.side * d.d;
    let scale = x.k as u16 + draw * DRAW_STRIDE;
    let rows = x.ids.iter().map(|&id| Stream::new(x.seed, id, scale, Purpose::Noise).normals(n));
    let values: Vec<f32> = rows.flatten().collect();
    Ok(Tensor::new(values, [x.ids.len(), d.side, d.side, d.d])?.cast(x.z.dtype()))
}

/// f_hat_k and M_k. `target` gives f* for a prediction f_hat (both standardised).
pub fn refine(
    phi: &Phi,
    cfg: &MaskConfig,
    x: &MaskInput<'_>,
    target: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<Refined> {
    let eps = noise(phi, x, 0)?;
    let masked = cfg.kind != MaskKind::None && x.k + 1 >= cfg.k_m;
    if masked && cfg.kind == MaskKind::Gradient {
        let (f_hat, saliency) = gradient_norm(phi, cfg, x, target)?;
        let keep = Some(threshold(cfg, x, &saliency)?);
        return Ok(Refined { f_hat, keep, saliency: Some(saliency) });
    }
    let none = vec![false; x.ids.len()];
    let cond = FlowCond { z: x.z, null: &none, k: x.k };
    let f_hat = sample(phi, &Pass::eval(), &eps, &x.r_k.clone().into(), &cond)?.into_value();
    let (keep, saliency) = match cfg.kind {
        MaskKind::Random if masked => (Some(coins(cfg, x)?), None),
        MaskKind::EDistance if masked => {
            let side = phi.dims().patch_nums[x.k];
            let error = call(&SUB, &[&target(&f_hat)?, &f_hat])?;
            let error =
                call(&Resample::new(Map::Area, [phi.dims().side; 2], [side; 2]), &[&error])?;
            let saliency = channel_norms(&error)?;
            (Some(threshold(cfg, x, &saliency)?), Some(saliency))
        }
        _ => (None, None),
    };
    Ok(Refined { f_hat, keep, saliency })
}

/// f_hat of the first noise draw, and ||G_k|| [B, n_k] averaged over `cfg.draws` draws.
pub fn gradient_norm(
    phi: &Phi,
    cfg: &MaskConfig,
    x: &MaskInput<'_>,
    target: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let none = vec![false; x.ids.len()];
    let cond = FlowCond { z: x.z, null: &none, k: x.k };
    let (mut first, mut total): (Option<Tensor>, Option<Tensor>) = (None, None);
    for draw in 0..cfg.draws.max(1) as u16 {
        let p = Pass::tape();
        let r_k = p.leaf(x.r_k.clone());
        let f_hat = sample(phi, &p, &noise(phi, x, draw)?, &r_k, &cond)?;
        let rows = x.ids.len().max(1);
        let per_row = (f_hat.value().len() / rows) as f64;
        let gy = match cfg.target {
            // Hutchinson: the norm of the Jacobian along one random direction.
            MaskTarget::Sens => noise(phi, x, draw + cfg.draws as u16)?,
            // The gradient of the mean squared error of each row.
            _ => {
                let error = call(&SUB, &[f_hat.value(), &target(f_hat.value())?])?;
                call(&Affine { scale: 2.0 / per_row, shift: 0.0 }, &[&error])?
            }
        };
        let value = f_hat.value().clone();
        let grads = p.backward_from(&f_hat, gy)?;
        let g = grads.of(&r_k)?;
        total = Some(match total {
            Some(t) => call(&ADD, &[&t, g])?,
            None => g.clone(),
        });
        first.get_or_insert(value);
    }
    let mean = Affine { scale: 1.0 / cfg.draws.max(1) as f64, shift: 0.0 };
    let missing = || crate::Error::Internal("no noise was drawn".into());
    let g = call(&mean, &[&total.ok_or_else(missing)?])?;
    Ok((first.ok_or_else(missing)?, channel_norms(&g)?))
}

/// l2 norms over channels: [B, p, p, d] to [B, p^2].
fn channel_norms(g: &Tensor) -> Result<Tensor> {
    let d = g.shape().dims().to_vec();
    let c = g.shape().last();
    let norm = |i: usize| (0..c).map(|j| g.at(i * c + j).powi(2)).sum::<f64>().sqrt();
    let norms = (0..d[0] * d[1] * d[2]).map(norm).collect();
    Tensor::from_f64s(g.dtype(), norms, [d[0], d[1] * d[2]])
}

/// M = `1[normalised saliency > gamma]` as [B, n, 1].
pub fn threshold(cfg: &MaskConfig, x: &MaskInput<'_>, saliency: &Tensor) -> Result<Tensor> {
    let (rows, n) = saliency.shape().matrix();
    let mut keep = Vec::with_capacity(rows * n);
    for (b, &id) in x.ids.iter().enumerate().take(rows) {
        let g: Vec<f64> = (0..n).map(|i| saliency.at(b * n + i)).collect();
        let mean = g.iter().sum::<f64>() / n as f64;
        let var = g.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        let rms = (var + mean * mean).sqrt();
        let gamma = match cfg.gamma {
            Gamma::Sampled => Stream::new(x.seed, id, x.k as u16, Purpose::Mask).normals(n),
            Gamma::Zero => vec![0.0; n],
        };
        keep.extend(g.iter().zip(gamma).map(|(&g, gamma)| {
            let level = match cfg.normalise {
                Normalise::ZScore => (g - mean) / (var.sqrt() + STD_EPS),
                Normalise::Rms => g / (rms + STD_EPS),
                Normalise::Raw => g,
            };
            f64::from(u8::from(level > f64::from(gamma)))
        }));
    }
    Tensor::from_f64s(saliency.dtype(), keep, [rows, n, 1])
}

fn coins(cfg: &MaskConfig, x: &MaskInput<'_>) -> Result<Tensor> {
    let n = x.r_k.shape().dims()[1] * x.r_k.shape().dims()[2];
    let row = |&id: &u64| {
        let draws = Stream::new(x.seed, id, x.k as u16, Purpose::Mask).uniforms(n);
        draws.into_iter().map(|u| f64::from(u8::from(f64::from(u) < cfg.random_keep)))
    };
    Tensor::from_f64s(x.z.dtype(), x.ids.iter().flat_map(row).collect(), [x.ids.len(), n, 1])
}
