//! Attention with its scores written to memory, head by head.

use super::{Parts, add, affine, mul, narrow, parts, power, row_sums, sub};
use crate::error::Result;
use crate::ops::activation::Exp;
use crate::ops::attention::{Attention, AttentionJvp, AttentionVjp, Mask};
use crate::ops::call;
use crate::ops::gemm::MatMul;
use crate::ops::layout::Concat;
use crate::tensor::Tensor;

/// a b^T of each sample.
const ROWS: MatMul = MatMul::batched(false, true);
/// a b of each sample.
const PLAIN: MatMul = MatMul::batched(false, false);
/// a^T b of each sample.
const COLUMNS: MatMul = MatMul::batched(true, false);

/// Head `h` of [B, n, H, D], or its log-sum-exp of [B, n, H], as [B, n, D] or [B, n, 1].
fn head(x: &Tensor, h: usize) -> Result<Tensor> {
    let (b, n) = (x.shape().dims()[0], x.shape().dims()[1]);
    let width = x.shape().dims().get(3).copied().unwrap_or(1);
    narrow(x, 2, h, 1)?.reshape([b, n, width])
}

/// Heads [B, n, D] beside each other: [B, n, H, D].
fn joined(heads: &[Tensor]) -> Result<Tensor> {
    let apart = heads.iter().map(|x| {
        let d = x.shape().dims();
        x.reshape([d[0], d[1], 1, d[2]])
    });
    let apart = apart.collect::<Result<Vec<_>>>()?;
    call(&Concat { axis: 2 }, &apart.iter().collect::<Vec<_>>())
}

/// What is added to scores [n, m] where a query does not see a key: enough for a weight of 0.
fn unseen(of: &Attention, q: &Tensor, k: &Tensor) -> Result<Option<Tensor>> {
    let (n, m) = (q.shape().dims()[1], k.shape().dims()[1]);
    let last = |i: usize| match &of.mask {
        Mask::Blocks(ends) => ends.iter().copied().find(|&end| end > m - n + i).unwrap_or(m),
        Mask::First(seen) => *seen,
        Mask::Full => m,
    };
    if of.mask == Mask::Full {
        return Ok(None);
    }
    let all = (0..n * m).map(|i| if i % m < last(i / m) { 0.0 } else { -1e9 });
    Tensor::from_f64s(q.dtype(), all.collect(), [n, m]).map(Some)
}

/// Scaled and masked scores [B, n, m] of a head.
fn scores(of: &Attention, q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let s = affine(&call(&ROWS, &[q, k])?, of.scale, 0.0)?;
    mask.map_or(Ok(s.clone()), |mask| add(&s, mask))
}

/// Whether there are queries and keys at all.
fn some(x: &[&Tensor]) -> bool {
    !x[0].is_empty() && !x[1].is_empty()
}

/// e^s over its sums, times v: for scores that do not overflow, as there is no op for the largest.
pub fn attention(op: &Attention, x: &[&Tensor]) -> Parts {
    if !some(x) {
        return Ok(None);
    }
    let mask = unseen(op, x[0], x[1])?;
    let one = |h: usize| {
        let [q, k, v] = [head(x[0], h)?, head(x[1], h)?, head(x[2], h)?];
        let e = call(&Exp, &[&scores(op, &q, &k, mask.as_ref())?])?;
        mul(&call(&PLAIN, &[&e, &v])?, &power(&row_sums(&e)?, -1.0)?)
    };
    let heads = (0..x[0].shape().dims()[2]).map(one).collect::<Result<Vec<_>>>()?;
    parts([joined(&heads)?])
}

/// Weights P [B, n, m] of a head, by its log-sum-exp.
fn weights(
    of: &Attention,
    (q, k, lse): (&Tensor, &Tensor, &Tensor),
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    call(&Exp, &[&sub(&scores(of, q, k, mask)?, lse)?])
}

/// (P (dS - mean dS)) v + P dv, with dS = scale (dq k^T + q dk^T).
pub fn attention_jvp(op: &AttentionJvp, x: &[&Tensor]) -> Parts {
    if !some(x) {
        return Ok(None);
    }
    let mask = unseen(&op.of, x[0], x[1])?;
    let mut at = 4;
    let places = op.given.map(|given| {
        at += usize::from(given);
        given.then_some(at - 1)
    });
    let one = |h: usize| {
        let [q, k, v, lse] = [head(x[0], h)?, head(x[1], h)?, head(x[2], h)?, head(x[3], h)?];
        let of = |i: usize| places[i].map(|at| head(x[at], h)).transpose();
        let p = weights(&op.of, (&q, &k, &lse), mask.as_ref())?;
        let mut slopes = Vec::new();
        if let Some(dq) = of(0)? {
            slopes.push(call(&ROWS, &[&dq, &k])?);
        }
        if let Some(dk) = of(1)? {
            slopes.push(call(&ROWS, &[&q, &dk])?);
        }
        let mut terms = Vec::new();
        let sum = |a: Tensor, b: Tensor| add(&a, &b);
        if let Some(s) = slopes.into_iter().map(Ok).reduce(|a, b| sum(a?, b?)).transpose()? {
            let ps = mul(&p, &affine(&s, op.of.scale, 0.0)?)?;
            let centred = sub(&ps, &mul(&p, &row_sums(&ps)?)?)?;
            terms.push(call(&PLAIN, &[&centred, &v])?);
        }
        if let Some(dv) = of(2)? {
            terms.push(call(&PLAIN, &[&p, &dv])?);
        }
        terms.into_iter().map(Ok).reduce(|a, b| sum(a?, b?)).transpose()
    };
    let heads = (0..x[0].shape().dims()[2]).map(one).collect::<Result<Option<Vec<_>>>>()?;
    heads.map_or(Ok(None), |heads| parts([joined(&heads)?]))
}

/// gS = P (go v^T - go o), then gq = scale gS k, gk = scale gS^T q, gv = P^T go.
pub fn attention_vjp(op: &AttentionVjp, x: &[&Tensor]) -> Parts {
    if !some(x) {
        return Ok(None);
    }
    let mask = unseen(&op.of, x[0], x[1])?;
    let (mut gq, mut gk, mut gv) = (Vec::new(), Vec::new(), Vec::new());
    for h in 0..x[0].shape().dims()[2] {
        let [q, k, v, lse] = [head(x[0], h)?, head(x[1], h)?, head(x[2], h)?, head(x[3], h)?];
        let [o, go] = [head(x[4], h)?, head(x[5], h)?];
        let p = weights(&op.of, (&q, &k, &lse), mask.as_ref())?;
        let centred = sub(&call(&ROWS, &[&go, &v])?, &row_sums(&mul(&go, &o)?)?)?;
        let gs = affine(&mul(&p, &centred)?, op.of.scale, 0.0)?;
        gq.push(call(&PLAIN, &[&gs, &k])?);
        gk.push(call(&COLUMNS, &[&gs, &q])?);
        gv.push(call(&COLUMNS, &[&p, &go])?);
    }
    parts([joined(&gq)?, joined(&gk)?, joined(&gv)?])
}
