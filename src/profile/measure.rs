//! Work, run some times and listened to.

use std::time::Instant;

use super::format::{Clock, FORMAT, Profile, VERSION};
use super::record::{self, Recording, Rows};
use super::{Place, cpu_name};
use crate::device::Device;
use crate::device::span::Listening;
use crate::error::Result;
use crate::ops::timed;

/// Runs `f` as often as the place says; the profile, and the last run as it was. `what` is the
/// work, its shapes and how many tiles or rows it is of.
///
/// # Errors
/// Those of `f`.
pub fn measure(
    place: &Place,
    what: (String, String, usize),
    mut f: impl FnMut() -> Result<()>,
) -> Result<(Profile, Recording)> {
    for _ in 0..place.warmup {
        f()?;
    }
    let (work, shapes, batch) = what;
    let mut profile = Profile {
        format: FORMAT.into(),
        version: VERSION,
        work,
        shapes,
        batch,
        precision: format!("{:?}", place.precision).to_lowercase(),
        device: match place.clock {
            Clock::Cpu => cpu_name(),
            _ => place.device.to_string(),
        },
        clock: place.clock,
        model: place.model.clone(),
        seconds: Vec::new(),
        replay_seconds: Vec::new(),
        uploads: 0,
        fetches: 0,
        rows: Vec::new(),
    };
    let mut rows = Rows::new(&place.model, !place.clock.is_real());
    let mut last = Recording::default();
    for _ in 0..place.repeats {
        let before = copies(&place.device);
        let (recording, seconds) = once(place, &mut f)?;
        let after = copies(&place.device);
        (profile.uploads, profile.fetches) = (after[0] - before[0], after[1] - before[1]);
        if place.clock != Clock::Plan {
            profile.seconds.push(seconds);
        }
        rows.add(recording.calls());
        last = recording;
    }
    profile.rows = rows.finish();
    Ok((profile, last))
}

/// Copies to and from the device so far.
fn copies(device: &Device) -> [usize; 2] {
    match device {
        Device::Cuda(queue) => [queue.uploads(), queue.fetches()],
        _ => [0; 2],
    }
}

/// Runs the work once; what was heard, and its seconds.
fn once(place: &Place, f: impl FnOnce() -> Result<()>) -> Result<(Recording, f64)> {
    let start = Instant::now();
    match (&place.device, place.clock) {
        (Device::Cuda(queue), Clock::Plan) => {
            let listening = Listening::begin();
            let (done, launches) = queue.trace(f);
            drop(listening);
            done?;
            let device = launches.iter().map(record::planned).collect();
            Ok((Recording { host: Vec::new(), device }, 0.0))
        }
        (Device::Cuda(queue), _) => {
            let (clocked, ran) = timed(|| queue.clocked(f));
            let ((), clock) = clocked?;
            let (host, device) = (record::host(&ran, start), record::launches(&clock, start));
            Ok((Recording { host, device }, clock.took.as_secs_f64()))
        }
        _ => {
            let (done, ran) = timed(f);
            let seconds = start.elapsed().as_secs_f64();
            done?;
            Ok((Recording { host: record::ops(&ran, start)?, device: Vec::new() }, seconds))
        }
    }
}
