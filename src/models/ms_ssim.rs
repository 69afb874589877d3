//! Multi-scale structural similarity (Wang, Simoncelli and Bovik, 2003), differentiable.
//!
//! Images are brought from [-1, 1] to [0, 1]. At each scale, with means, variances and covariance
//! under an 11-tap Gaussian window of deviation 1.5, cs = (2 s_xy + C2) / (s_xx + s_yy + C2) and,
//! at the last, l = (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1). Between scales 2x2 means are taken.
//! The result is the product of the mean cs and, at the last scale, the mean l cs, under the
//! published exponents renormalised to one.
//!
//! The published index looks only where the whole window fits, so the pixels of the border count
//! for little; a loss made of it leaves the border of a picture soft. [`Border`] says which is
//! wanted.

use crate::autograd::{Pass, Var};
use crate::error::{Error, Result};
use crate::ops::activation::{Clamp, Power, Square};
use crate::ops::elementwise::{ADD, Affine, Mul, SUB};
use crate::ops::reduce::SumTo;
use crate::ops::resample::{Map, Resample};

/// Taps of the window.
pub const WINDOW: usize = 11;
/// Exponents of the five scales.
const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
const C1: f64 = 1e-4;
const C2: f64 = 9e-4;
/// Floor of a mean before its root: a structure that is anti-correlated has no gradient.
const FLOOR: f64 = 1e-4;

/// What happens to windows at the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// Only whole windows: the published index, for reports.
    Valid,
    /// A window round every pixel, cut at the border and renormalised, for a loss.
    Same,
}

/// MS-SSIM of images [B, H, W, C] in [-1, 1], mean over the batch and the channels; one element.
///
/// # Errors
/// More than five scales, or a side that is below the window at the last of them.
pub fn ms_ssim(p: &Pass, x: &Var, y: &Var, scales: usize, border: Border) -> Result<Var> {
    let Some(exponents) = EXPONENTS.get(..scales).filter(|e| !e.is_empty()) else {
        return Err(Error::shape("ms_ssim", format!("1 to 5 scales, not {scales}")));
    };
    let total: f64 = exponents.iter().sum();
    let unit = Affine { scale: 0.5, shift: 0.5 };
    let (mut x, mut y) = (p.op(unit.clone(), &[x])?, p.op(unit, &[y])?);
    let mut product: Option<Var> = None;
    for (j, exponent) in exponents.iter().enumerate() {
        let &[b, h, w, c] = x.dims() else {
            return Err(Error::shape(
                "ms_ssim",
                format!("{} is not a batch of images", x.value().shape()),
            ));
        };
        if h.min(w) < WINDOW {
            let what = format!("scale {} is {h}x{w}, below the {WINDOW}-tap window", j + 1);
            return Err(Error::shape("ms_ssim", what));
        }
        let map = similarity(p, &x, &y, j + 1 == scales, border)?;
        let area = map.value().len() / (b * c).max(1);
        let sum = p.op(SumTo { to: [b, 1, 1, c].into() }, &[&map])?;
        let mean = p.op(Affine { scale: 1.0 / area as f64, shift: 0.0 }, &[&sum])?;
        let mean = p.op(Clamp { lo: FLOOR, hi: 2.0 }, &[&mean])?;
        let term = p.op(Power { p: exponent / total }, &[&mean])?;
        product = Some(match product {
            Some(q) => p.op(Mul, &[&q, &term])?,
            None => term,
        });
        if j + 1 < scales {
            let half = Resample::new(Map::Pairs, [h, w], [h / 2, w / 2]);
            (x, y) = (p.op(half.clone(), &[&x])?, p.op(half, &[&y])?);
        }
    }
    let Some(product) = product else { return Err(Error::shape("ms_ssim", "no scales")) };
    let n = product.value().len().max(1);
    let sum = p.op(SumTo { to: [1].into() }, &[&product])?;
    p.op(Affine { scale: 1.0 / n as f64, shift: 0.0 }, &[&sum])
}

/// The map of cs, or of l cs, over the places of the window.
fn similarity(p: &Pass, x: &Var, y: &Var, with_luminance: bool, border: Border) -> Result<Var> {
    let blur = |v: &Var| -> Result<Var> {
        let from = [v.dims()[1], v.dims()[2]];
        let window = match border {
            Border::Valid => Resample::new(Map::Gaussian, from, from.map(|n| n + 1 - WINDOW)),
            Border::Same => Resample::new(Map::GaussianSame, from, from),
        };
        p.op(window, &[v])
    };
    let (mx, my) = (blur(x)?, blur(y)?);
    let (mxx, myy) = (p.op(Square, &[&mx])?, p.op(Square, &[&my])?);
    let mxy = p.op(Mul, &[&mx, &my])?;
    let squares = p.op(ADD, &[&p.op(Square, &[x])?, &p.op(Square, &[y])?])?;
    let means = p.op(ADD, &[&mxx, &myy])?;
    let variances = p.op(SUB, &[&blur(&squares)?, &means])?;
    let covariance = p.op(SUB, &[&blur(&p.op(Mul, &[x, y])?)?, &mxy])?;
    let ratio = |twice: &Var, sum: &Var, c: f64| -> Result<Var> {
        let top = p.op(Affine { scale: 2.0, shift: c }, &[twice])?;
        let bottom = p.op(Affine { scale: 1.0, shift: c }, &[sum])?;
        p.op(Mul, &[&top, &p.op(Power { p: -1.0 }, &[&bottom])?])
    };
    let cs = ratio(&covariance, &variances, C2)?;
    match with_luminance {
        true => p.op(Mul, &[&cs, &ratio(&mxy, &means, C1)?]),
        false => Ok(cs),
    }
}
