//! What memory a training step takes on a device, known before anything is allocated there.
//!
//! A step is rehearsed on shapes alone ([`Device::Plan`]): the same code runs, with the same tape,
//! and only bytes are counted. The workspaces that single kernels ask for are not part of it.

use super::run::Stage;
use crate::device::cuda::Queue;
use crate::device::{Device, Meter};
use crate::error::{Error, Result, Within};

/// Bytes that a step holds at most, weights and optimiser included. The stage is as before.
///
/// # Errors
/// A stage that runs on the CPU alone; those of the step.
pub fn rehearse(stage: &mut dyn Stage) -> Result<u64> {
    let state = stage.state()?;
    let meter = Meter::default();
    stage.place(&Device::Plan(meter.clone()))?;
    let step = stage.step(0).within("planning its memory");
    // First the place, so that what comes back stays on the CPU.
    stage.place(&Device::Cpu)?;
    stage.restore(state)?;
    step.map(|_| meter.peak())
}

/// Fails if a step would take more than is free on the GPU.
pub(super) fn check(stage: &mut dyn Stage, queue: &Queue) -> Result<()> {
    let wanted = rehearse(stage)?;
    let (free, all) = queue.gpu().memory()?;
    enough(stage.name(), wanted, (free as u64, all as u64))
}

fn enough(stage: &str, wanted: u64, (free, all): (u64, u64)) -> Result<()> {
    if wanted <= free {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let (wanted, free, all) = (mib(wanted), mib(free), mib(all));
    let what = format!("a step of {stage} takes {wanted} MiB, {free} of {all} MiB are free");
    let fix = format!("lower train.{stage}.batch, or stop what else runs on the GPU");
    Err(Error::data(what, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        assert!(enough("beta_vae", 1 << 20, (1 << 20, 1 << 30)).is_ok());
        let told = enough("beta_vae", (5 << 20) + 1, (3 << 20, 1 << 30)).unwrap_err().to_string();
        for part in ["beta_vae takes 6 MiB", "3 of 1024 MiB", "train.beta_vae.batch"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
