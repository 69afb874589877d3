//! Norms with weights: over groups of channels, and over the batch.

use crate::autograd::{Param, Params, Pass, Var};
use crate::error::{Error, Result, Within};
use crate::ops::activation::Power;
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::watch::Commit;
use crate::ops::{batch_norm, call, group_norm};
use crate::tensor::Tensor;

/// Added to variances by the tokenizer's norms (VAR).
const GROUP_EPS: f64 = 1e-6;
/// Added to variances by batch norms.
const BATCH_EPS: f64 = 1e-5;
/// Share of the newest batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// Group norm over [B, H, W, C], with SiLU after it where asked for.
pub struct GroupNorm {
    w: Param,
    b: Param,
    op: group_norm::GroupNorm,
}

impl GroupNorm {
    /// `channels` in `groups` groups.
    pub fn new(params: &mut Params, name: &str, channels: usize, groups: usize) -> Self {
        let op = group_norm::GroupNorm { groups, eps: GROUP_EPS, silu: false };
        params.at(name, |p| Self {
            w: p.constant("weight", [channels], 1.0),
            b: p.constant("bias", [channels], 0.0),
            op,
        })
    }

    /// Followed by SiLU, in one pass over the map.
    pub fn silu(mut self) -> Self {
        self.op.silu = true;
        self
    }

    /// The op with its weights and biases.
    pub fn parts(&self) -> (&group_norm::GroupNorm, [&Param; 2]) {
        (&self.op, [&self.w, &self.b])
    }

    /// x [B, H, W, C] to the same.
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        p.op(self.op.clone(), &[x, &p.param(&self.w), &p.param(&self.b)]).within(self.w.name())
    }
}

/// Batch norm over the rows of [B, C]. The running statistics are parameters of a second, untrained
/// group, so that a checkpoint can keep them.
pub struct BatchNorm {
    w: Param,
    b: Param,
    mean: Param,
    var: Param,
}

impl BatchNorm {
    /// `width` columns; the running statistics go into `running`.
    pub fn new(params: &mut Params, running: &mut Params, name: &str, width: usize) -> Self {
        let (w, b) = params
            .at(name, |p| (p.constant("weight", [width], 1.0), p.constant("bias", [width], 0.0)));
        let (mean, var) = running.at(name, |p| {
            (p.constant("running_mean", [width], 0.0), p.constant("running_var", [width], 1.0))
        });
        Self { w, b, mean, var }
    }

    /// With the statistics of this batch; returns also what [`BatchNorm::remember`] wants.
    pub fn forward_train(&self, p: &Pass, x: &Var) -> Result<(Var, BatchStats)> {
        let op = batch_norm::BatchNormTrain { eps: BATCH_EPS };
        let (w, b) = (p.param(&self.w), p.param(&self.b));
        let (y, mut stats) = p.op_with_extras(op, &[x, &w, &b]).within(self.w.name())?;
        match (stats.pop(), stats.pop()) {
            (Some(var), Some(mean)) => Ok((y, BatchStats { mean, var })),
            _ => Err(Error::Internal("batch norm without statistics".into())),
        }
    }

    /// With the running statistics.
    pub fn forward_eval(&self, p: &Pass, x: &Var) -> Result<Var> {
        let (mean, var) = (self.mean.value(), self.var.value());
        let above = call(&Affine { scale: 1.0, shift: BATCH_EPS }, &[&var])?;
        let rstd = call(&Power { p: -0.5 }, &[&above])?;
        let scale = call(&Mul, &[&rstd, &self.w.value()])?;
        let shift = call(&SUB, &[&self.b.value(), &call(&Mul, &[&mean, &scale])?])?;
        let y = p.op(Mul, &[x, &scale.into()]).within(self.w.name())?;
        p.op(ADD, &[&y, &shift.into()])
    }

    /// Moves the running statistics a tenth of the way to those of a batch of `rows` rows, unless
    /// the gate `[1]` of that step is not finite.
    pub fn remember(&self, stats: &BatchStats, rows: usize, gate: &Tensor) -> Result<()> {
        // The variance over the batch divides by its rows, the running one is unbiased.
        let unbiased = rows as f64 / (rows.max(2) - 1) as f64;
        for (slot, new, factor) in
            [(&self.mean, &stats.mean, 1.0), (&self.var, &stats.var, unbiased)]
        {
            let kept = call(&Affine { scale: 1.0 - MOMENTUM, shift: 0.0 }, &[&slot.value()])?;
            let next = call(&Axpy { alpha: MOMENTUM * factor }, &[&kept, new])?;
            slot.set(call(&Commit, &[&slot.value(), &next, gate])?)?;
        }
        Ok(())
    }
}

/// Mean and variance of each column of a batch.
pub struct BatchStats {
    mean: Tensor,
    var: Tensor,
}
