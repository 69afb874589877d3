//! Self-attention and cross-attention over token sequences [B, n, C].
//!
//! Self-attention has VAR's options: a key bias fixed at zero, queries and keys of unit length per
//! head with a learned temperature, and a cache of keys and values for scale-by-scale decoding.

use super::linear::pieces;
use super::tables::Joined;
use super::transformer::EPS;
use super::{Init, Linear, Mlp, Onto};
use crate::autograd::{Param, Params, Pass, Var};
use crate::device::{OnGpu, constant};
use crate::error::{Error, Result, Within};
use crate::ops::activation::{Clamp, Exp};
use crate::ops::ada_block::AdaBlock;
use crate::ops::attention::{Attention, Mask};
use crate::ops::elementwise::Mul;
use crate::ops::gemm;
use crate::ops::layout::{Concat, Reshape};
use crate::ops::norm::{HEAD_EPS, L2Normalize, LN_MAX_SCALE, UnitHeads};
use crate::ops::{Room, run_into};
use crate::tensor::{Shape, Tensor};

/// Keys and values of the positions decoded so far, for one block. On a GPU they are written where
/// they belong, into memory for all positions; on the CPU they are appended.
#[derive(Default)]
pub struct KvCache {
    kv: Option<(Tensor, Tensor)>,
    /// Positions in all.
    room: usize,
    /// How many new positions at most take a block of the transformer in one launch.
    few: usize,
    /// Positions that are there, where there is room for all.
    filled: usize,
}

impl KvCache {
    /// Empty, for so many positions in all; at most `few` new ones take a block in one launch.
    pub fn of(room: usize, few: usize) -> Self {
        Self { kv: None, room, few, filled: 0 }
    }

    /// Whether tokens x [B, n, C] take a block in one launch.
    pub fn is_few(&self, p: &Pass, x: &Var) -> bool {
        x.dims().get(1).is_some_and(|n| *n <= self.few) && !p.differentiates() && self.in_place(x)
    }

    /// Whether what is made of `x` is written in place: on a GPU whose results nobody looks at
    /// between kernels.
    fn in_place(&self, x: &Var) -> bool {
        let looks = |on: &OnGpu| on.queue().checks() || on.queue().verifies();
        self.room > 0 && OnGpu::of(x.value()).is_some_and(|on| !looks(on))
    }

    /// Rooms for the next keys and values [B, n, H, D] of the type of `x`.
    fn rooms(&mut self, x: &Tensor, dims: [usize; 4]) -> Result<[Room; 2]> {
        let (k, v) = match self.kv.take() {
            Some(kv) => kv,
            None => {
                let whole = Shape::from([dims[0], self.room, dims[2], dims[3]]);
                let nowhere = || Error::Internal("a cache in place is on a GPU".into());
                let like = OnGpu::of(x).ok_or_else(nowhere)?;
                let new = || Tensor::away(like.unfilled(whole.len())?, &whole);
                (new()?, new()?)
            }
        };
        let at = self.filled;
        self.filled += dims[1];
        Ok([k, v].map(|tensor| Room { tensor, at }))
    }

    /// Appends [B, n, H, D] keys and values and hands back all of them.
    fn extend(&mut self, p: &Pass, k: &Var, v: &Var) -> Result<(Var, Var)> {
        let (k, v) = match self.kv.take() {
            None => (k.clone(), v.clone()),
            Some((old_k, old_v)) => {
                let join = Concat { axis: 1 };
                (p.op(join.clone(), &[&old_k.into(), k])?, p.op(join, &[&old_v.into(), v])?)
            }
        };
        self.kv = Some((k.value().clone(), v.value().clone()));
        Ok((k, v))
    }
}

/// [B, n, C] as heads [B, n, H, C / H].
fn heads(p: &Pass, x: &Var, h: usize) -> Result<Var> {
    let d = x.dims();
    p.op(Reshape { to: [d[0], d[1], h, d[2] / h].into() }, &[x])
}

/// [B, n, H, D] as tokens [B, n, H D].
fn tokens(p: &Pass, x: &Var) -> Result<Var> {
    let d = x.dims();
    p.op(Reshape { to: [d[0], d[1], d[2] * d[3]].into() }, &[x])
}

/// Self-attention.
pub struct SelfAttention {
    qkv: Param,
    q_bias: Param,
    v_bias: Param,
    /// ln of the temperature per head [H, 1]; absent for plain scaled dot products.
    ln_scale: Option<Param>,
    proj: Linear,
    heads: usize,
    bias: Joined,
}

impl SelfAttention {
    /// Width `c`, `heads` heads. `unit` normalises queries and keys and learns the temperature
    /// (from 4).
    pub fn new(
        params: &mut Params,
        name: &str,
        [c, heads]: [usize; 2],
        unit: bool,
        [init, proj]: [Init; 2],
    ) -> Self {
        params.at(name, |p| Self {
            qkv: Linear::without_bias(p, "qkv", [c, 3 * c], init).weight().clone(),
            q_bias: p.constant("q_bias", [c], 0.0),
            v_bias: p.constant("v_bias", [c], 0.0),
            ln_scale: unit.then(|| p.constant("ln_scale", [heads, 1], 4f64.ln())),
            proj: Linear::new(p, "proj", [c, c], proj),
            heads,
            bias: Joined::default(),
        })
    }

    /// x [B, n, C] to [B, n, C], added to what it is put onto. With a cache, x holds the newest
    /// positions and sees all cached ones.
    pub fn forward(
        &self,
        p: &Pass,
        x: &Var,
        (mask, cache): (Mask, Option<&mut KvCache>),
        onto: &Onto<'_>,
    ) -> Result<Var> {
        let y = self.attend(p, x, mask, cache).within("self-attention")?;
        self.proj.forward_onto(p, &y, onto)
    }

    /// The biases of queries, keys and values [3 C]; keys have none. Joined once, unless
    /// they learn.
    fn bias(&self, p: &Pass) -> Result<Var> {
        let own = [&self.q_bias, &self.v_bias];
        let join = |p: &Pass, [q, v]: [Var; 2]| {
            let zeros = Tensor::zeros(q.value().dtype(), q.value().shape());
            let no_bias = Var::constant(constant(q.value(), &zeros)?);
            p.op(Concat { axis: 0 }, &[&q, &no_bias, &v])
        };
        if own.iter().any(|bias| p.tracks(bias)) {
            return join(p, own.map(|bias| p.param(bias)));
        }
        let make = |_: &[Tensor]| {
            Ok(join(&Pass::eval(), own.map(|bias| bias.value().into()))?.into_value())
        };
        self.bias.get(own.map(Param::value).into(), make).map(Var::constant)
    }

    /// x through this attention and the network behind it, each under adaptive layer norm, in one
    /// launch; `m` as [`AdaBlock`] orders gates, scales and shifts.
    pub fn whole_block(
        &self,
        p: &Pass,
        x: &Var,
        m: &[Var],
        (mlp, cache): (&Mlp, &mut KvCache),
    ) -> Result<Var> {
        let d = x.dims();
        let dims = [d[0], d[1], self.heads, d[2] / self.heads];
        let past = Tensor::zeros(x.value().dtype(), [d[0], 0, dims[2], dims[3]]);
        let past = Var::constant(constant(x.value(), &past)?);
        let (qkv, bias) = (p.param(&self.qkv), self.bias(p)?);
        let layers = [&self.proj, mlp.up(), mlp.down()].map(|l| l.parts(p, x));
        let [proj, up, down] = layers;
        let (proj, up, down) = (proj?, up?, down?);
        let heat = self.ln_scale.as_ref().map(|s| p.param(s));
        let mut all: Vec<&Var> = [x].into_iter().chain(m).collect();
        all.extend([&qkv, &bias, &past, &past, &proj[0], &proj[1], &up[0], &up[1]]);
        all.extend(down.iter().chain(&heat));
        let all: Vec<&Tensor> = all.into_iter().map(Var::value).collect();
        let [k, v] = cache.rooms(x.value(), dims)?;
        let op = AdaBlock { heads: self.heads, eps: EPS };
        let outs = run_into(&op, &all, vec![None, Some(k), Some(v)])?;
        let Ok([y, k, v]) = <[Tensor; 3]>::try_from(outs) else {
            return Err(Error::Internal("ada_block has three outputs".into()));
        };
        cache.kv = Some((k, v));
        Ok(y.into())
    }

    fn attend(
        &self,
        p: &Pass,
        x: &Var,
        mask: Mask,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Var> {
        let (c, unit) = (x.value().shape().last(), self.ln_scale.is_some());
        let scale = if unit { 1.0 } else { ((c / self.heads) as f64).powf(-0.5) };
        let (w, bias) = (p.param(&self.qkv), self.bias(p)?);
        // On a GPU heads that need no pass of their own come out of the product apart.
        let ready = !unit && cache.is_none() && x.value().remote().is_some();
        let (q, k, v) = if p.differentiates() || ready {
            self.parts(p, &pieces(p, [x, &w], Some(&bias), 3)?)?
        } else {
            let qkv = p.op(gemm::Linear, &[x, &w, &bias])?;
            if let Some(cache) = cache.as_deref_mut().filter(|cache| cache.in_place(&qkv)) {
                let (q, k, v) = self.parts_in_place(p, &qkv, cache)?;
                let mask = Mask::First(cache.filled);
                return tokens(p, &p.op(Attention { scale, mask }, &[&q, &k, &v])?);
            }
            self.parts_at_once(p, &qkv)?
        };
        let (k, v) = match cache {
            Some(cache) => cache.extend(p, &k, &v)?,
            None => (k, v),
        };
        tokens(p, &p.op(Attention { scale, mask }, &[&q, &k, &v])?)
    }
}

impl SelfAttention {
    /// Queries, keys and values of the projection's pieces [B, n, C], by ops that have derivatives.
    fn parts(&self, p: &Pass, qkv: &[Var]) -> Result<(Var, Var, Var)> {
        let [q, k, v] = qkv else { return Err(Error::Internal("three pieces".into())) };
        let part = |x: &Var| heads(p, x, self.heads);
        let (q, k, v) = (part(q)?, part(k)?, part(v)?);
        let Some(ln_scale) = &self.ln_scale else { return Ok((q, k, v)) };
        let limit = Clamp { lo: f64::NEG_INFINITY, hi: LN_MAX_SCALE };
        let s = p.op(Exp, &[&p.op(limit, &[&p.param(ln_scale)])?])?;
        let q = p.op(Mul, &[&p.op(L2Normalize { eps: HEAD_EPS }, &[&q])?, &s])?;
        Ok((q, p.op(L2Normalize { eps: HEAD_EPS }, &[&k])?, v))
    }

    /// The same in one pass over the projection.
    fn parts_at_once(&self, p: &Pass, qkv: &Var) -> Result<(Var, Var, Var)> {
        let scale = self.ln_scale.as_ref().map(|s| p.param(s));
        let x: Vec<&Var> = [qkv].into_iter().chain(&scale).collect();
        let (q, rest) = p.op_with_extras(UnitHeads { heads: self.heads }, &x)?;
        match <[Tensor; 2]>::try_from(rest) {
            Ok([k, v]) => Ok((q, k.into(), v.into())),
            Err(_) => Err(Error::Internal("unit_heads has three outputs".into())),
        }
    }
}

impl SelfAttention {
    /// The same, keys and values written into their cache: the queries of these positions, and all
    /// keys and values with the room behind them.
    fn parts_in_place(&self, p: &Pass, qkv: &Var, cache: &mut KvCache) -> Result<(Var, Var, Var)> {
        let scale = self.ln_scale.as_ref().map(|s| p.param(s).into_value());
        let x: Vec<&Tensor> = [qkv.value()].into_iter().chain(&scale).collect();
        let d = qkv.dims();
        let dims = [d[0], d[1], self.heads, d[2] / 3 / self.heads];
        let [k, v] = cache.rooms(qkv.value(), dims)?;
        let outs = run_into(&UnitHeads { heads: self.heads }, &x, vec![None, Some(k), Some(v)])?;
        let Ok([q, k, v]) = <[Tensor; 3]>::try_from(outs) else {
            return Err(Error::Internal("unit_heads has three outputs".into()));
        };
        cache.kv = Some((k.clone(), v.clone()));
        Ok((q.into(), k.into(), v.into()))
    }
}

/// Attention of one sequence to another.
pub struct CrossAttention {
    q: Linear,
    kv: Linear,
    proj: Linear,
    heads: usize,
}

impl CrossAttention {
    /// Width `c`, `heads` heads.
    pub fn new(params: &mut Params, name: &str, [c, heads]: [usize; 2], init: Init) -> Self {
        params.at(name, |p| Self {
            q: Linear::new(p, "q", [c, c], init),
            kv: Linear::new(p, "kv", [c, 2 * c], init),
            proj: Linear::new(p, "proj", [c, c], init),
            heads,
        })
    }

    /// The layer that makes keys and values of what answers, and that they are two.
    pub fn layer(&self) -> (&Linear, usize) {
        (&self.kv, 2)
    }

    /// x [B, n, C] asks, keys and values [B, m, C] answer: [B, n, C], added to what it is put onto.
    pub fn forward(&self, p: &Pass, x: &Var, kv: &[Var], onto: &Onto<'_>) -> Result<Var> {
        let c = x.value().shape().last();
        let q = heads(p, &self.q.forward(p, x)?, self.heads)?;
        let kv = kv.iter().map(|x| heads(p, x, self.heads)).collect::<Result<Vec<_>>>()?;
        let [k, v] = &kv[..] else { return Err(Error::Internal("two pieces".into())) };
        let scale = ((c / self.heads) as f64).powf(-0.5);
        let y =
            p.op(Attention { scale, mask: Mask::Full }, &[&q, k, v]).within("cross-attention")?;
        self.proj.forward_onto(p, &tokens(p, &y)?, onto)
    }
}
