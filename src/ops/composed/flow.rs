//! The loss of Causal MeanFlow with every map written: targets, counterfactual targets, distances.

use super::{Parts, add, affine, mul, narrow, parts, power, row_sums, sub};
use crate::error::Result;
use crate::ops::activation::{LeakyRelu, Softplus, Square};
use crate::ops::call;
use crate::ops::elementwise::Axpy;
use crate::ops::flow::{Clamp, FlowLoss, FlowLossVjp, FlowPath, TINY};
use crate::tensor::Tensor;

/// A map [B, ..] as rows [B, n].
fn flat(x: &Tensor) -> Result<Tensor> {
    let rows = x.shape().dims()[0];
    x.reshape([rows, x.len().checked_div(rows).unwrap_or(0)])
}

/// A number of each sample, `[B]`, as [B, 1].
fn column(x: &Tensor) -> Result<Tensor> {
    x.reshape([x.len(), 1])
}

/// Sums of squares of each sample, [B, 1].
fn squares(x: &Tensor) -> Result<Tensor> {
    row_sums(&call(&Square, &[x])?)
}

/// eps - f, then f + t times that.
pub fn flow_path(_: &FlowPath, x: &[&Tensor]) -> Parts {
    if x[0].is_empty() {
        return Ok(None);
    }
    let (f, v) = (flat(x[0])?, sub(&flat(x[1])?, &flat(x[0])?)?);
    let at = add(&f, &mul(&v, &column(x[2])?)?)?;
    parts([at.reshape(x[0].shape().clone())?, v.reshape(x[0].shape().clone())?])
}

/// a = s (eps - f) - (t - r) du/dt of maps [f, eps, du/dt] as rows.
fn anchor(sign: f64, [f, eps, dudt]: [&Tensor; 3], span: &Tensor) -> Result<Tensor> {
    let v = affine(&sub(eps, f)?, sign, 0.0)?;
    sub(&v, &mul(dudt, &column(span)?)?)
}

/// min(d, limit).
fn least(d: &Tensor, limit: &Tensor) -> Result<Tensor> {
    sub(limit, &call(&LeakyRelu { slope: 0.0 }, &[&sub(limit, d)?])?)
}

impl FlowLoss {
    /// T_n of distances [B, 1].
    fn composed_push(&self, s: &Tensor, d: &Tensor, reach: &Tensor) -> Result<Tensor> {
        match self.clamp {
            Clamp::None => affine(d, -1.0, 0.0),
            Clamp::Relative(kappa) => affine(&least(d, &affine(reach, kappa, 0.0)?)?, -1.0, 0.0),
            Clamp::Hinge => sub(reach, &least(d, reach)?),
            Clamp::Softplus => {
                let tau = affine(reach, 1.0, TINY)?;
                let x = mul(&sub(s, d)?, &power(&tau, -1.0)?)?;
                mul(&tau, &call(&Softplus, &[&x])?)
            }
        }
    }
}

/// The loss alone: a pass for every difference, square, sum and scale.
pub fn flow_loss(op: &FlowLoss, x: &[&Tensor]) -> Parts {
    if x[0].is_empty() {
        return Ok(None);
    }
    let [u, f, eps, dudt] = [flat(x[0])?, flat(x[1])?, flat(x[2])?, flat(x[3])?];
    let a = anchor(op.sign, [&f, &eps, &dudt], x[4])?;
    let s = squares(&sub(&u, &a)?)?;
    let length = |x: &Tensor| power(&affine(&squares(x)?, 1.0, TINY)?, 0.5);
    let (reach_of_a, share) = (length(&a)?, op.alpha / (x.len() - 6).max(1) as f64);
    let mut bracket = s.clone();
    for (n, negative) in x[6..].iter().enumerate() {
        let towards = sub(&eps, &flat(negative)?)?;
        let lambda = affine(&narrow(x[5], 1, n, 1)?, op.sign, 0.0)?;
        let scale = mul(&mul(&lambda, &reach_of_a)?, &power(&length(&towards)?, -1.0)?)?;
        let c = mul(&towards, &scale)?;
        let (d, reach) = (squares(&sub(&u, &c)?)?, squares(&sub(&a, &c)?)?);
        let term = op.composed_push(&s, &d, &reach)?;
        bracket = call(&Axpy { alpha: share }, &[&bracket, &term])?;
    }
    let loss = match op.power {
        0.0 => bracket,
        p => mul(&bracket, &power(&affine(&s, 1.0, op.floor)?, -p)?)?,
    };
    parts([loss.reshape([x[0].shape().dims()[0]])?])
}

/// The factors' sum over u - a and each u - c_n.
pub fn flow_loss_vjp(op: &FlowLossVjp, x: &[&Tensor]) -> Parts {
    if x[0].is_empty() {
        return Ok(None);
    }
    let [u, f, eps, dudt] = [flat(x[0])?, flat(x[1])?, flat(x[2])?, flat(x[3])?];
    let (factor, count) = (|i: usize| narrow(x[5], 1, i, 1), x.len() - 7);
    let a = anchor(op.sign, [&f, &eps, &dudt], x[4])?;
    let mut gu = mul(&sub(&u, &a)?, &factor(0)?)?;
    for (n, negative) in x[7..].iter().enumerate() {
        let c = mul(&sub(&eps, &flat(negative)?)?, &factor(1 + count + n)?)?;
        gu = add(&gu, &mul(&sub(&u, &c)?, &factor(1 + n)?)?)?;
    }
    parts([mul(&gu, &column(x[6])?)?.reshape(x[0].shape().clone())?])
}
