//! What fused ops spare: the same results by other ops of the table, for the tests that hold the
//! two together and the benches that race them.
//!
//! A composition gives the first outputs of its op, of which it may leave out those that only a
//! backward pass reads; None where an op's settings leave nothing to compose.

mod attention;
mod flow;

pub use attention::{attention, attention_jvp, attention_vjp};
pub use flow::{flow_loss, flow_loss_vjp, flow_path};

use super::activation::{Clamp, Exp, Power, Silu, Square};
use super::conv::{Conv2d, FusedConv, NormedConv};
use super::elementwise::{ADD, Affine, Axpy, GatedAdd, Modulate, Mul, SUB};
use super::embed::GatherRows;
use super::gemm::{FusedLinear, Linear, MatMul};
use super::group_norm::GroupNorm;
use super::layout::{Concat, Narrow};
use super::mask::{KeepMask, Level, MaskRows, SelectRows};
use super::norm::{
    AdaNorm, AdaNormJvp, AdaNormVjp, HEAD_EPS, L2Normalize, LN_MAX_SCALE, LayerNorm, LayerNormVjp,
    UnitHeads,
};
use super::pyramid::{QuantisePyramid, QuantiseRests};
use super::quantize::{NearestCode, SHORT};
use super::random::NormalRows;
use super::reduce::{SumTo, broadcast_into};
use super::resample::{Map, Resample};
use super::sample::SampleToken;
use super::{DynOp, Saved, call, run, run_on};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// A composition of an op of type `O`.
pub type Composed<O> = fn(&O, &[&Tensor]) -> Result<Option<Vec<Tensor>>>;

/// What a composition gives.
type Parts = Result<Option<Vec<Tensor>>>;

fn parts(all: impl Into<Vec<Tensor>>) -> Parts {
    Ok(Some(all.into()))
}

/// An op and then its tangent by its rule: what an op that is both at once spares.
pub fn apart(op: &dyn DynOp, x: &[&Tensor], dx: &[Option<&Tensor>]) -> Parts {
    let mut outs = run(op, x)?;
    let dy = op.jvp(&Saved::all(op, x, &outs), dx)?;
    outs.extend(dy);
    parts(outs)
}

/// scale x + shift.
fn affine(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    call(&Affine { scale, shift }, &[x])
}

fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    call(&Mul, &[a, b])
}

fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    call(&ADD, &[a, b])
}

fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    call(&SUB, &[a, b])
}

/// x^p of positive numbers.
fn power(x: &Tensor, p: f64) -> Result<Tensor> {
    call(&Power { p }, &[x])
}

/// The sums over the last axis, which stays with extent 1.
fn row_sums(x: &Tensor) -> Result<Tensor> {
    call(&SumTo { to: x.shape().with_last(1) }, &[x])
}

/// Positions of one axis.
fn narrow(x: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
    call(&Narrow { axis, start, len }, &[x])
}

fn last_axis(x: &Tensor) -> usize {
    x.shape().rank().saturating_sub(1)
}

/// The layer, its activation, the gate and the residual, each a pass.
pub fn fused_linear(op: &FusedLinear, x: &[&Tensor]) -> Parts {
    let sums = call(&Linear, &x[..3])?;
    let act = op.act.of(&sums)?;
    let y = match x {
        [_, _, _, residual, gate] => call(&GatedAdd, &[residual, gate, &act])?,
        [_, _, _, residual] => add(residual, &act)?,
        _ => act,
    };
    parts(if op.keep { vec![y, sums] } else { vec![y] })
}

/// Layer norm, then modulation.
pub fn ada_norm(op: &AdaNorm, x: &[&Tensor]) -> Parts {
    let h = call(&LayerNorm { eps: op.eps }, &x[..1])?;
    parts([call(&Modulate, &[&h, x[1], x[2]])?])
}

/// (x - mean) rstd and rstd, of x and its statistics.
fn standardised(x: &Tensor, stats: &Tensor) -> Result<(Tensor, Tensor)> {
    let axis = last_axis(stats);
    let (mean, rstd) = (narrow(stats, axis, 0, 1)?, narrow(stats, axis, 1, 1)?);
    Ok((mul(&sub(x, &mean)?, &rstd)?, rstd))
}

/// Layer norm's tangent, modulated, and what the scale's and the shift's tangents add.
pub fn ada_norm_jvp(op: &AdaNormJvp, x: &[&Tensor]) -> Parts {
    let (h, rstd) = standardised(x[0], x[1])?;
    let mut tangents = x[3..].iter();
    let mut terms = Vec::new();
    for (i, _) in op.given.iter().enumerate().filter(|(_, given)| **given) {
        let Some(d) = tangents.next() else { return Ok(None) };
        terms.push(match i {
            0 => mul(&call(&LayerNormVjp, &[&h, &rstd, d])?, &affine(x[2], 1.0, 1.0)?)?,
            1 => mul(&h, d)?,
            _ => broadcast_into(d, x[0].shape())?,
        });
    }
    let mut terms = terms.into_iter();
    let Some(first) = terms.next() else { return Ok(None) };
    parts([terms.try_fold(first, |sum, term| add(&sum, &term))?])
}

/// Layer norm's gradient of the scaled gradient, and the product whose sums are the scale's.
pub fn ada_norm_vjp(op: &AdaNormVjp, x: &[&Tensor]) -> Parts {
    let (h, rstd) = standardised(x[0], x[1])?;
    let scaled = mul(x[3], &affine(x[2], 1.0, 1.0)?)?;
    let mut all = vec![call(&LayerNormVjp, &[&h, &rstd, &scaled])?];
    if op.scaled {
        all.push(mul(x[3], &h)?);
    }
    parts(all)
}

/// The split, two normalisations and the temperature.
pub fn unit_heads(op: &UnitHeads, x: &[&Tensor]) -> Parts {
    let (&[b, n, wide], heads) = (x[0].shape().dims(), op.heads) else { return Ok(None) };
    let c = wide / 3;
    let part = |i: usize| narrow(x[0], 2, i * c, c)?.reshape([b, n, heads, c / heads]);
    let Some(scale) = x.get(1) else { return parts([part(0)?, part(1)?, part(2)?]) };
    let unit = |x: Tensor| call(&L2Normalize { eps: HEAD_EPS }, &[&x]);
    let limit = Clamp { lo: f64::NEG_INFINITY, hi: LN_MAX_SCALE };
    let heat = call(&Exp, &[&call(&limit, &[scale])?])?;
    parts([mul(&unit(part(0)?)?, &heat)?, unit(part(1)?)?, part(2)?])
}

/// Group norm, then SiLU.
pub fn group_norm(op: &GroupNorm, x: &[&Tensor]) -> Parts {
    if !op.silu {
        return Ok(None);
    }
    let mut all = run(&GroupNorm { silu: false, ..op.clone() }, x)?;
    all[0] = call(&Silu, &[&all[0]])?;
    parts(all)
}

/// The doubled map, the convolution and the residual.
pub fn fused_conv(op: &FusedConv, x: &[&Tensor]) -> Parts {
    let map = match (op.double, x[0].shape().dims()) {
        (true, &[_, h, w, _]) => call(&Resample::nearest_x2([h, w]), &[x[0]])?,
        _ => x[0].clone(),
    };
    let y = call(&op.conv, &[&map, x[1], x[2]])?;
    parts([x.get(3).map_or(Ok(y.clone()), |residual| add(residual, &y))?])
}

/// Group norm with SiLU, then the convolution.
pub fn normed_conv(op: &NormedConv, x: &[&Tensor]) -> Parts {
    let map = call(&op.norm(), &x[..3])?;
    let conv = FusedConv { conv: Conv2d::same(3), double: false };
    let all: Vec<&Tensor> = [&map].into_iter().chain(x[3..].iter().copied()).collect();
    parts([call(&conv, &all)?])
}

/// All scores x e - |e|^2 / 2, V a vector, then the best of each row: a draw among one.
pub fn nearest_code(op: &NearestCode, x: &[&Tensor]) -> Parts {
    let scores = match op.cosine {
        true => {
            let unit = call(&L2Normalize { eps: SHORT }, &[x[1]])?;
            call(&MatMul::of(false, true), &[x[0], &unit])?
        }
        false => {
            let lengths = row_sums(&call(&Square, &[x[1]])?)?;
            let lengths = lengths.reshape([lengths.len()])?;
            let products = call(&MatMul::of(false, true), &[x[0], x[1]])?;
            call(&Axpy { alpha: -0.5 }, &[&products, &lengths])?
        }
    };
    let dims = x[0].shape().dims();
    let scores = scores.reshape(x[0].shape().with_last(x[1].shape().dims()[0]))?;
    let zero = Tensor::zeros(x[0].dtype(), &dims[..dims.len().saturating_sub(1)]);
    let best = SampleToken { top_k: 1, top_p: 1.0, guidance: None };
    parts([call(&best, &[&scores, &zero])?])
}

/// The mixed logits, then the draw.
pub fn sample_token(op: &SampleToken, x: &[&Tensor]) -> Parts {
    let Some(tau) = op.guidance else { return Ok(None) };
    let rows = x[1].shape().dims().first().copied().unwrap_or(0);
    let (own, null) = (narrow(x[0], 0, 0, rows)?, narrow(x[0], 0, rows, rows)?);
    let mixed = call(&Axpy { alpha: tau }, &[&own, &sub(&own, &null)?])?;
    parts([call(&SampleToken { guidance: None, ..op.clone() }, &[&mixed, x[1]])?])
}

/// Lengths, their mean and deviation, the thresholds and the comparison.
pub fn keep_mask(op: &KeepMask, x: &[&Tensor]) -> Parts {
    // A step as arithmetic: what is not 0 is driven beyond 0 or 1.
    const STEEP: f64 = 1e30;
    let (b, c) = (x[0].shape().dims()[0], x[0].shape().last());
    let n = x[0].len().checked_div(b * c).unwrap_or(0);
    if n == 0 {
        return Ok(None);
    }
    let (share, one) = (1.0 / n as f64, Shape::from([b, 1]));
    let squares = call(&Square, &[x[0]])?.reshape([b, n, c])?;
    let saliency = power(&row_sums(&squares)?, 0.5)?.reshape([b, n])?;
    let mean_of = |x: &Tensor| affine(&call(&SumTo { to: one.clone() }, &[x])?, share, 0.0);
    let rooted = |square: &Tensor| affine(&power(square, 0.5)?, 1.0, super::mask::ROOM);
    let score = match op.level {
        Level::Raw => saliency.clone(),
        Level::Rms => {
            let spread = rooted(&mean_of(&call(&Square, &[&saliency])?)?)?;
            mul(&saliency, &power(&spread, -1.0)?)?
        }
        Level::ZScore => {
            let from_mean = sub(&saliency, &mean_of(&saliency)?)?;
            let spread = rooted(&mean_of(&call(&Square, &[&from_mean])?)?)?;
            mul(&from_mean, &power(&spread, -1.0)?)?
        }
    };
    let above = match op.sampled {
        true => {
            let draw = NormalRows(op.rows(n));
            let device = Device::of(x.iter().copied());
            let none = || Error::Internal("normal_rows has no output".into());
            let thresholds = run_on(&device, &draw, &x[1..])?.pop().ok_or_else(none)?;
            let thresholds = match device {
                Device::Cpu => thresholds.cast(score.dtype()),
                _ => thresholds,
            };
            sub(&score, &thresholds.reshape([b, n])?)?
        }
        false => score,
    };
    let keep = call(&Clamp { lo: 0.0, hi: 1.0 }, &[&affine(&above, STEEP, 0.0)?])?;
    parts([keep.reshape([b, n, 1])?, saliency])
}

/// Two products, their sum and the table.
pub fn select_rows(_: &SelectRows, x: &[&Tensor]) -> Parts {
    let kept = mul(x[0], x[1])?;
    let other = mul(&broadcast_into(x[2], x[0].shape())?, &affine(x[1], -1.0, 1.0)?)?;
    let both = add(&kept, &other)?;
    parts([x.get(3).map_or(Ok(both.clone()), |table| add(&both, table))?])
}

/// A product.
pub fn mask_rows(op: &MaskRows, x: &[&Tensor]) -> Parts {
    let keep = if op.rest { affine(x[1], -1.0, 1.0)? } else { x[1].clone() };
    parts([mul(x[0], &keep)?])
}

/// Pooling, lookup, enlargement, convolution and the rest of it, scale by scale; the tokens are
/// joined by the host.
pub fn quantise_pyramid(op: &QuantisePyramid, x: &[&Tensor]) -> Parts {
    Ok(walk(op, x, &|_| Ok(None))?.map(|(_, tokens)| vec![tokens]))
}

/// The same, what each scale leaves first; scales that a sample does not keep add zeros.
pub fn quantise_rests(op: &QuantiseRests, x: &[&Tensor]) -> Parts {
    let &[b, h, w, d] = x[0].shape().dims() else { return Ok(None) };
    let kept = x[4].i32s()?;
    let mask = |k: usize| {
        let ones = kept.iter().map(|&n| f64::from(n > k as i32)).collect();
        Tensor::from_f64s(x[0].dtype(), ones, [b, 1, 1, 1]).map(Some)
    };
    let Some((rests, tokens)) = walk(&op.0, x, &mask)? else { return Ok(None) };
    let rests = rests.iter().map(|r| r.reshape([b, 1, h, w, d])).collect::<Result<Vec<_>>>()?;
    parts([call(&Concat { axis: 1 }, &rests.iter().collect::<Vec<_>>())?, tokens])
}

/// Maps of what each scale leaves, and the tokens of all scales in a row. What a scale adds is
/// multiplied by its mask, where it has one.
fn walk(
    op: &QuantisePyramid,
    x: &[&Tensor],
    mask: &dyn Fn(usize) -> Result<Option<Tensor>>,
) -> Result<Option<(Vec<Tensor>, Tensor)>> {
    let &[b, side, _, d] = x[0].shape().dims() else { return Ok(None) };
    let lookup = NearestCode { cosine: op.cosine };
    let conv = Conv2d::same(3);
    let resize = |map: Map, from: usize, to: usize, x: Tensor| match from == to {
        true => Ok(x),
        false => call(&Resample::new(map, [from; 2], [to; 2]), &[&x]),
    };
    let (mut rest, mut maps, mut rests) = (x[0].clone(), Vec::new(), Vec::new());
    for ((&p, &phi), k) in op.sides.iter().zip(&op.phis).zip(0..) {
        let pooled = resize(Map::Area, side, p, rest.clone())?;
        let tokens = call(&lookup, &[&pooled, x[1]])?;
        let codes = call(&GatherRows, &[x[1], &tokens])?;
        let up = resize(Map::Bicubic, p, side, codes)?;
        let adds = match x[3].is_empty() {
            true => up,
            false => {
                let (w, bias) = (narrow(x[2], 0, phi * d, d)?, narrow(x[3], 0, phi * d, d)?);
                let own = affine(&up, 1.0 - op.share, 0.0)?;
                call(&Axpy { alpha: op.share }, &[&own, &call(&conv, &[&up, &w, &bias])?])?
            }
        };
        let adds = mask(k)?.map_or(Ok(adds.clone()), |mask| mul(&adds, &mask))?;
        rest = sub(&rest, &adds)?;
        rests.push(rest.clone());
        maps.push((p * p, tokens));
    }
    let mut all = Vec::new();
    for sample in 0..b {
        for (n, map) in &maps {
            all.extend_from_slice(&map.i32s()?[sample * n..(sample + 1) * n]);
        }
    }
    let tokens = all.len().checked_div(b).unwrap_or(0);
    Ok(Some((rests, Tensor::new_i32(all, [b, tokens])?)))
}
