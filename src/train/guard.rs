//! What becomes of a step whose numbers are bad: not finite, or a gradient norm that leaps.
//!
//! It is decided on the device ([`Watch`]), so that a step need not be waited for before the next
//! begins. A bad step changes nothing there; whoever runs the stage learns of it one step later and
//! ends the run or goes on, as `train.*.on_bad` says.

use crate::config::{OnBad, StageConfig};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::elementwise::{ADD, Affine};
use crate::ops::layout::Concat;
use crate::ops::watch::{Commit, Watch};
use crate::ops::{call, run};
use crate::tensor::{DType, Tensor};

/// Its name in a checkpoint.
pub const MEAN: &str = "guard.norm_mean";
/// Steps before a norm can be a spike: the mean has to mean something.
const YOUNG: u64 = 20;
/// Steps that the mean looks back, roughly.
const SPAN: u64 = 100;

/// The running mean of gradient norms, and whether the newest step happened.
pub struct Guard {
    spike: f64,
    ends: bool,
    mean: Tensor,
    gate: Tensor,
}

impl Guard {
    /// Of a stage that begins.
    pub fn new(stage: &StageConfig) -> Self {
        let zero = Tensor::zeros(DType::F32, [1]);
        let ends = stage.on_bad == OnBad::Stop;
        Self { spike: stage.spike, ends, mean: zero.clone(), gate: zero }
    }

    /// Judges a step by the norm of its gradients and its other numbers, one element each; gives
    /// the norm to update by, which is NaN where nothing may change.
    ///
    /// # Errors
    /// Those of the device.
    pub fn judge(&mut self, step: u64, norm: &Tensor, others: &[&Tensor]) -> Result<Tensor> {
        let flat = others.iter().map(|t| t.reshape([1])).collect::<Result<Vec<_>>>()?;
        let felt = call(&Concat { axis: 0 }, &flat.iter().collect::<Vec<_>>())?;
        let spike = if step < YOUNG { 0.0 } else { self.spike };
        let watch = Watch { spike, follow: 1.0 / (step + 1).min(SPAN) as f64, ends: self.ends };
        let [gate, mean] = <[Tensor; 2]>::try_from(run(&watch, &[&felt, norm, &self.mean])?)
            .map_err(|_| Error::Internal("watch has two outputs".into()))?;
        (self.gate, self.mean) = (gate.clone(), mean);
        Ok(gate)
    }

    /// The newest step's norm, NaN if it did not happen.
    pub fn gate(&self) -> &Tensor {
        &self.gate
    }

    /// Another norm of the same step to update by.
    ///
    /// # Errors
    /// Those of the device.
    pub fn also(&self, norm: &Tensor) -> Result<Tensor> {
        // Zero times anything finite is zero.
        call(&ADD, &[norm, &call(&Affine { scale: 0.0, shift: 0.0 }, &[&self.gate])?])
    }

    /// What the newest step made of something, unless it did not happen.
    ///
    /// # Errors
    /// Tensors that are not alike; those of the device.
    pub fn commit(&self, before: &Tensor, after: &Tensor) -> Result<Tensor> {
        call(&Commit, &[before, after, &self.gate])
    }

    /// Moves it to a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        self.mean = device.put(&self.mean)?;
        self.gate = device.put(&Tensor::zeros(DType::F32, [1]))?;
        Ok(())
    }

    /// For a checkpoint.
    pub fn state(&self) -> (String, Tensor) {
        (MEAN.into(), self.mean.clone())
    }

    /// From a checkpoint; what is not there is as at the start.
    pub fn restore(&mut self, state: &std::collections::BTreeMap<String, Tensor>) {
        let zero = || Tensor::zeros(DType::F32, [1]);
        self.mean = state.get(MEAN).cloned().unwrap_or_else(zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: f32) -> Tensor {
        Tensor::new(vec![x], [1]).unwrap()
    }

    fn guard(on_bad: OnBad) -> Guard {
        Guard::new(&StageConfig { on_bad, spike: 5.0, ..StageConfig::default() })
    }

    /// Which steps of norms and losses happen.
    fn happen(guard: &mut Guard, steps: &[(u64, f32, f32)]) -> Vec<bool> {
        let judged = |&(step, norm, loss): &(u64, f32, f32)| {
            guard.judge(step, &one(norm), &[&one(loss)]).unwrap().item().unwrap().is_finite()
        };
        steps.iter().map(judged).collect()
    }

    #[test]
    fn a_bad_step_is_left_out_or_ends_all() {
        let steps = [(0, 1.0, 1.0), (1, 1.0, f32::NAN), (2, 100.0, 1.0), (3, 1.0, 1.0)];
        assert_eq!(happen(&mut guard(OnBad::Skip), &steps), [true, false, true, true]);
        assert_eq!(happen(&mut guard(OnBad::Stop), &steps), [true, false, false, false]);
    }

    #[test]
    fn a_norm_that_leaps_is_bad_once_the_mean_is_known() {
        let steady: Vec<_> =
            (0..30).map(|step| (step, 1.0 + 0.1 * (step % 3) as f32, 0.0)).collect();
        let mut guard = guard(OnBad::Skip);
        assert!(happen(&mut guard, &steady).iter().all(|&happened| happened));
        assert_eq!(happen(&mut guard, &[(30, 6.0, 0.0), (31, 4.0, 0.0)]), [false, true]);
        let mut other = super::tests::guard(OnBad::Skip);
        other.restore(&[guard.state()].into());
        let next = [(32, 5.9, 0.0), (33, 1.0, 0.0)];
        assert_eq!(happen(&mut other, &next), happen(&mut guard, &next));
    }

    #[test]
    fn what_hangs_on_a_step_follows_its_gate() {
        let mut guard = guard(OnBad::Skip);
        for (norm, kept) in [(1.0, 8.0), (f32::INFINITY, 7.0)] {
            guard.judge(0, &one(norm), &[&one(0.0)]).unwrap();
            assert_eq!(guard.commit(&one(7.0), &one(8.0)).unwrap().item().unwrap(), kept);
            assert_eq!(guard.also(&one(2.0)).unwrap().item().unwrap().is_nan(), norm.is_infinite());
        }
    }
}
