//! What memory a training step takes on a device, known before anything is allocated there.
//!
//! A step is rehearsed on shapes alone ([`Device::Plan`]): the same code runs, with the same tape,
//! and only bytes are counted. The workspaces that single kernels ask for are not part of it.

use super::run::Stage;
use crate::config::StageConfig;
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
pub(super) fn check(stage: &mut dyn Stage, of: &StageConfig, queue: &Queue) -> Result<()> {
    let wanted = rehearse(stage)?;
    let (free, all) = queue.gpu().memory()?;
    let told = format!(
        "a step of {} takes {}, {} of the GPU's {} are free",
        stage.name(),
        amount(wanted),
        amount(free as u64),
        amount(all as u64)
    );
    if wanted > free as u64 {
        return Err(Error::data(told, advice(stage, of, free as u64)?));
    }
    eprintln!("{told}");
    Ok(())
}

/// What to do about a step that does not fit: the largest parts of a batch that do.
fn advice(stage: &mut dyn Stage, of: &StageConfig, free: u64) -> Result<String> {
    let key = format!("train.{}", stage.name());
    let mut parts = of.accumulate;
    let mut divided = true;
    let mut fits = None;
    while fits.is_none() && parts < of.batch && divided {
        parts = (2 * parts).min(of.batch);
        divided = stage.divide(parts);
        if divided && rehearse(stage)? <= free {
            fits = Some(parts);
        }
    }
    stage.divide(of.accumulate);
    Ok(match (fits, divided) {
        (Some(parts), _) => {
            let rows = of.batch.div_ceil(parts);
            format!(
                "batches of {rows} fit: set {key}.accumulate = {parts}, or {key}.batch = {rows}"
            )
        }
        (None, true) => "a batch of one does not fit either: take a larger GPU or a smaller tier \
                         or stop what else runs there"
            .to_string(),
        (None, false) => format!("lower {key}.batch, or stop what else runs on the GPU"),
    })
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

    use std::collections::BTreeMap;

    use crate::tensor::{DType, Tensor};
    use crate::train::log::StepLog;
    use crate::train::numbers::Pending;

    /// Holds 4 KB an example.
    struct Hungry {
        parts: usize,
        divides: bool,
        device: Device,
    }

    impl Stage for Hungry {
        fn name(&self) -> &'static str {
            "ar"
        }
        fn step(&mut self, _: u64) -> Result<Pending> {
            self.device.put(&Tensor::zeros(DType::F32, [64 / self.parts, 1024]))?;
            Ok(StepLog::default().into())
        }
        fn state(&self) -> Result<BTreeMap<String, Tensor>> {
            Ok(BTreeMap::new())
        }
        fn restore(&mut self, _: BTreeMap<String, Tensor>) -> Result<()> {
            Ok(())
        }
        fn diagnose(&mut self, _: u64) -> Result<()> {
            Ok(())
        }
        fn place(&mut self, device: &Device) -> Result<()> {
            self.device = device.clone();
            Ok(())
        }
        fn divide(&mut self, parts: usize) -> bool {
            if self.divides {
                self.parts = parts;
            }
            self.divides
        }
    }

    #[test]
    fn the_largest_parts_that_fit_are_named() {
        let of = StageConfig { batch: 64, ..StageConfig::default() };
        let told = |free: u64, divides: bool| {
            let mut stage = Hungry { parts: 1, divides, device: Device::Cpu };
            let told = advice(&mut stage, &of, free).unwrap();
            assert_eq!(stage.parts, 1);
            told
        };
        let fits = told(40 << 10, true);
        assert!(fits.contains("batches of 8 fit") && fits.contains("ar.accumulate = 8"), "{fits}");
        assert!(told(1 << 10, true).contains("a batch of one does not fit"));
        assert!(told(40 << 10, false).contains("lower train.ar.batch"));
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!(amount(1 << 20), "1024 KiB");
        assert_eq!(amount((50 << 20) + 1), "51 MiB");
    }
}
