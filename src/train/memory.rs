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
/// Those of the step.
pub fn rehearse(stage: &mut dyn Stage) -> Result<u64> {
    let state = stage.state()?;
    let meter = Meter::default();
    stage.place(&Device::Plan(meter.clone()))?;
    let step = stage.step(stage.heaviest()).within("planning its memory");
    // First the place, so that what comes back stays on the CPU.
    stage.place(&Device::Cpu)?;
    stage.restore(state)?;
    step.map(|_| meter.peak())
}

/// Says what a step takes, and fails if that is more than is free on the GPU.
pub(super) fn check(stage: &mut dyn Stage, queue: &Queue) -> Result<()> {
    let wanted = rehearse(stage)?;
    let (free, all) = queue.gpu().memory()?;
    let told = enough(stage.name(), wanted, (free as u64, all as u64))?;
    eprintln!("{told}");
    Ok(())
}

fn enough(stage: &str, wanted: u64, (free, all): (u64, u64)) -> Result<String> {
    let told = format!(
        "a step of {stage} takes {}, {} of the GPU's {} are free",
        amount(wanted),
        amount(free),
        amount(all)
    );
    if wanted <= free {
        return Ok(told);
    }
    let fix = format!("lower train.{stage}.batch, or stop what else runs on the GPU");
    Err(Error::data(told, fix))
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..0xa0_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_its_numbers() {
        let fits = enough("beta_vae", 1 << 20, (1 << 20, 1 << 30)).unwrap();
        assert_eq!(
            fits,
            "a step of beta_vae takes 1024 KiB, 1024 KiB of the GPU's 1024 MiB are free"
        );
        let told = enough("beta_vae", (50 << 20) + 1, (3 << 20, 1 << 30)).unwrap_err().to_string();
        for part in ["beta_vae takes 51 MiB", "3072 KiB of", "train.beta_vae.batch"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
