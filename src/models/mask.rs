//! The mask M_k: where the transformer sees f_hat_k and where it sees the learned token e.
//!
//! G_k = d/dr_k of the squared error of f_hat_k, through both paths by which r_k enters Phi; its l2
//! norm over channels, standardised over the positions of a scale, keeps a position where it
//! exceeds gamma ~ N(0, 1). The raw norm is near 1e-3 and would make a fair coin of the rule, hence
//! the standardisation. Once made, the mask is a constant.

use super::meanflow::{FlowCond, sample};
use super::phi::{Phi, PhiLatent};
use crate::autograd::Pass;
use crate::config::{Gamma, MaskConfig, MaskKind, MaskTarget, Normalise};
use crate::device::{Device, span};
use crate::error::{Error, Result};
use crate::ops::elementwise::{ADD, Affine, SUB};
use crate::ops::mask::{KeepCoins, KeepMask, Level};
use crate::ops::random::{Rows, normal_rows};
use crate::ops::resample::{Map, Resample};
use crate::ops::{call, run, run_on};
use crate::tensor::{Purpose, Tensor};

/// Scale indices of further noise draws are this far apart from the scales themselves.
const DRAW_STRIDE: u16 = 256;

/// One scale of a batch of tiles. Feature maps are standardised.
pub struct MaskInput<'a> {
    /// r_k [B, p, p, d].
    pub r_k: &'a Tensor,
    /// z.
    pub z: PhiLatent<'a>,
    /// 0-based scale.
    pub k: usize,
    /// What names each row's random numbers [B, 4]: see [`crate::ops::random::names`].
    pub names: &'a Tensor,
}

impl MaskInput<'_> {
    /// Tiles in the batch.
    fn rows(&self) -> usize {
        self.names.shape().dims().first().copied().unwrap_or(0)
    }
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
    let (scale, row) = (x.k as u16 + draw * DRAW_STRIDE, [d.side, d.side, d.d].into());
    let rows = Rows { scale, purpose: Purpose::Noise, row };
    Ok(normal_rows(&Device::of([x.r_k]), rows, x.names)?.cast(x.r_k.dtype()))
}

/// f_hat_k and M_k. `target` gives f* for a prediction f_hat (both standardised).
pub fn refine(
    phi: &Phi,
    cfg: &MaskConfig,
    x: &MaskInput<'_>,
    target: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<Refined> {
    let part = span::part("phi");
    let eps = noise(phi, x, 0)?;
    let masked = cfg.kind != MaskKind::None && x.k + 1 >= cfg.k_m;
    if masked && cfg.kind == MaskKind::Gradient {
        drop(part);
        let _part = span::part("mask");
        let (f_hat, g) = gradient(phi, cfg, x, target)?;
        let (keep, saliency) = threshold(cfg, x, &g)?;
        return Ok(Refined { f_hat, keep: Some(keep), saliency: Some(saliency) });
    }
    let none = vec![false; x.rows()];
    let cond = FlowCond { z: x.z, null: &none, k: x.k };
    let f_hat = sample(phi, &Pass::eval(), &eps, &x.r_k.clone().into(), &cond)?.into_value();
    drop(part);
    let _part = span::part("mask");
    let (keep, saliency) = match cfg.kind {
        MaskKind::Random if masked => (Some(coins(cfg, x)?), None),
        MaskKind::EDistance if masked => {
            let side = phi.dims().patch_nums[x.k];
            let error = call(&SUB, &[&target(&f_hat)?, &f_hat])?;
            let error =
                call(&Resample::new(Map::Area, [phi.dims().side; 2], [side; 2]), &[&error])?;
            let (keep, saliency) = threshold(cfg, x, &error)?;
            (Some(keep), Some(saliency))
        }
        _ => (None, None),
    };
    Ok(Refined { f_hat, keep, saliency })
}

/// f_hat of the first noise draw, and G_k [B, p, p, d] averaged over `cfg.draws` draws.
pub fn gradient(
    phi: &Phi,
    cfg: &MaskConfig,
    x: &MaskInput<'_>,
    target: &dyn Fn(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let none = vec![false; x.rows()];
    let cond = FlowCond { z: x.z, null: &none, k: x.k };
    let (mut first, mut total): (Option<Tensor>, Option<Tensor>) = (None, None);
    for draw in 0..cfg.draws.max(1) as u16 {
        let p = Pass::tape();
        let r_k = p.leaf(x.r_k.clone());
        let part = span::part("phi");
        let f_hat = sample(phi, &p, &noise(phi, x, draw)?, &r_k, &cond)?;
        drop(part);
        let rows = x.rows().max(1);
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
    let missing = || Error::Internal("no noise was drawn".into());
    let g = call(&mean, &[&total.ok_or_else(missing)?])?;
    Ok((first.ok_or_else(missing)?, g))
}

/// M, 1 where the saliency of a position - the norm of g [B, p, p, d] over channels - exceeds its
/// threshold, as [B, n, 1]; and the saliency [B, n].
pub fn threshold(cfg: &MaskConfig, x: &MaskInput<'_>, g: &Tensor) -> Result<(Tensor, Tensor)> {
    let level = match cfg.normalise {
        Normalise::ZScore => Level::ZScore,
        Normalise::Rms => Level::Rms,
        Normalise::Raw => Level::Raw,
    };
    let sampled = cfg.gamma == Gamma::Sampled;
    let op = KeepMask { level, sampled, scale: x.k as u16 };
    let mut outs = run(&op, &[g, x.names])?.into_iter();
    match (outs.next(), outs.next()) {
        (Some(keep), Some(saliency)) => Ok((keep.cast(g.dtype()), saliency)),
        _ => Err(Error::Internal("keep_mask has two outputs".into())),
    }
}

fn coins(cfg: &MaskConfig, x: &MaskInput<'_>) -> Result<Tensor> {
    let d = x.r_k.shape().dims();
    let (positions, rate) = (d[1] * d[2], cfg.random_keep);
    let op = KeepCoins { positions, rate, scale: x.k as u16 };
    let coins = run_on(&Device::of([x.r_k]), &op, &[x.names])?;
    let none = || Error::Internal("keep_coins has no output".into());
    Ok(coins.into_iter().next().ok_or_else(none)?.cast(x.r_k.dtype()))
}
