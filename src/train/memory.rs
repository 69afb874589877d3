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
    judge(stage, of, wanted, Room { free: free as u64, all: all as u64, of: "GPU" })
}

/// The same for a run on the CPU, where the system tells what is left.
pub(super) fn check_here(stage: &mut dyn Stage, of: &StageConfig) -> Result<()> {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |name: &str| {
        let kib = told.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok()).map(|kib| kib << 10)
    };
    // A plan that cannot be made is no reason against a run that may well be.
    match (line("MemAvailable:"), line("MemTotal:"), rehearse(stage)) {
        (Some(free), Some(all), Ok(wanted)) => {
            judge(stage, of, wanted, Room { free, all, of: "machine" })
        }
        _ => Ok(()),
    }
}

/// Where a step has to fit.
#[derive(Clone, Copy)]
struct Room {
    free: u64,
    all: u64,
    of: &'static str,
}

fn judge(stage: &mut dyn Stage, of: &StageConfig, wanted: u64, room: Room) -> Result<()> {
    let (name, takes) = (stage.name(), amount(wanted));
    let (free, all) = (amount(room.free), amount(room.all));
    let told =
        format!("a step of {name} takes {takes}, {free} of the {}'s {all} are free", room.of);
    if wanted > room.free {
        return Err(Error::data(told, advice(stage, of, room)?));
    }
    eprintln!("{told}");
    Ok(())
}

/// What to do about a step that does not fit: compute blocks again, take the largest parts of a
/// batch that do, or both.
fn advice(stage: &mut dyn Stage, of: &StageConfig, room: Room) -> Result<String> {
    let free = room.free;
    let key = format!("train.{}", stage.name());
    let mut cures = Vec::new();
    let again = !of.recompute && stage.recompute(true);
    if again && rehearse(stage)? <= free {
        cures.push(format!("set {key}.recompute = true, which takes more time"));
    }
    stage.recompute(of.recompute);
    let (fits, divided) = parts_that_fit(stage, of, free)?;
    let in_parts = |parts: usize| {
        let rows = of.batch.div_ceil(parts);
        format!("batches of {rows} fit: set {key}.accumulate = {parts}, or {key}.batch = {rows}")
    };
    cures.extend(fits.map(in_parts));
    if cures.is_empty() && again {
        stage.recompute(true);
        let both = parts_that_fit(stage, of, free)?.0.map(in_parts);
        cures.extend(both.map(|parts| format!("with {key}.recompute = true {parts}")));
        stage.recompute(of.recompute);
    }
    Ok(match (cures.is_empty(), divided) {
        (false, _) => cures.join("; or "),
        (true, true) => format!(
            "a batch of one does not fit either: take a larger {} or a smaller tier or stop what \
             else runs there",
            room.of
        ),
        (true, false) => format!("lower {key}.batch, or stop what else runs on the {}", room.of),
    })
}

/// The fewest parts of a batch whose step fits, and whether the stage takes batches in parts.
fn parts_that_fit(
    stage: &mut dyn Stage,
    of: &StageConfig,
    free: u64,
) -> Result<(Option<usize>, bool)> {
    let (mut parts, mut divided, mut fits) = (of.accumulate, true, None);
    while fits.is_none() && parts < of.batch && divided {
        parts = (2 * parts).min(of.batch);
        divided = stage.divide(parts);
        if divided && rehearse(stage)? <= free {
            fits = Some(parts);
        }
    }
    stage.divide(of.accumulate);
    Ok((fits, divided))
}

/// Bytes for people.
pub fn amount(bytes: u64) -> String {
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

    /// Holds 4 KiB an example, half where values are computed again.
    struct Hungry {
        parts: usize,
        divides: bool,
        /// Whether half is enough; none where it can not.
        recomputes: Option<bool>,
        device: Device,
    }

    impl Stage for Hungry {
        fn name(&self) -> &'static str {
            "ar"
        }
        fn step(&mut self, _: u64) -> Result<Pending> {
            let width = if self.recomputes == Some(true) { 512 } else { 1024 };
            self.device.put(&Tensor::zeros(DType::F32, [64 / self.parts, width]))?;
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
        fn recompute(&mut self, on: bool) -> bool {
            self.recomputes = self.recomputes.map(|_| on);
            self.recomputes.is_some()
        }
    }

    #[test]
    fn the_largest_parts_that_fit_are_named() {
        let of = StageConfig { batch: 64, ..StageConfig::default() };
        let told = |free: u64, divides: bool, recomputes: Option<bool>| {
            let mut stage = Hungry { parts: 1, divides, recomputes, device: Device::Cpu };
            let told = advice(&mut stage, &of, Room { free, all: free, of: "GPU" }).unwrap();
            assert_eq!((stage.parts, stage.recomputes), (1, recomputes));
            told
        };
        let fits = told(40 << 10, true, None);
        assert!(fits.contains("batches of 8 fit") && fits.contains("ar.accumulate = 8"), "{fits}");
        assert!(!fits.contains("recompute"), "{fits}");
        assert!(told(1 << 10, true, None).contains("a batch of one does not fit"));
        assert!(told(40 << 10, false, None).contains("lower train.ar.batch"));
        // Two cures where each is enough, one where only parts are, both where neither is.
        let either = told(130 << 10, true, Some(false));
        assert!(either.contains("ar.recompute = true, which takes more time; or batches of 32"));
        let parts = told(40 << 10, true, Some(false));
        assert!(parts.starts_with("batches of 8 fit"), "{parts}");
        let both = told(3 << 10, true, Some(false));
        assert!(both.contains("ar.recompute = true batches of 1 fit"), "{both}");
        assert!(told(1 << 10, true, Some(false)).contains("a batch of one does not fit"));
    }

    #[test]
    fn a_machine_is_asked_too() {
        let of = StageConfig { batch: 64, ..StageConfig::default() };
        let (divides, recomputes, device) = (true, None, Device::Cpu);
        let mut stage = Hungry { parts: 1, divides, recomputes, device };
        check_here(&mut stage, &of).unwrap();
        let room = Room { free: 40 << 10, all: 1 << 20, of: "machine" };
        let told = judge(&mut stage, &of, 256 << 10, room).unwrap_err().to_string();
        let parts = ["takes 256 KiB, 40 KiB of the machine's 1024 KiB", "batches of 8 fit"];
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!(amount(1 << 20), "1024 KiB");
        assert_eq!(amount((50 << 20) + 1), "51 MiB");
    }
}
