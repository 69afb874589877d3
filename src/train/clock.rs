//! When steps were taken, and where: `clock.jsonl` beside the log, which holds no clock time so
//! that a resumed run's is that of an uninterrupted one.
//!
//! A line is written with each checkpoint. Nothing reads it back but people and reports.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::device::cpu::threads;

const FILE: &str = "clock.jsonl";

/// How far a process had come at a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The first step that it took.
    pub first: u64,
    /// The steps that were finished.
    pub step: u64,
    /// Wall-clock seconds since it began.
    pub seconds: f64,
    /// Where it ran.
    pub device: String,
    /// Threads of the CPU that it had.
    pub threads: usize,
}

/// A process's clock.
pub struct Clock {
    path: PathBuf,
    started: Instant,
    first: u64,
    device: String,
}

impl Clock {
    /// Begins at step `first` of the stage in `dir`.
    pub fn start(dir: &Path, first: u64, device: &Device) -> Self {
        let (path, started) = (dir.join(FILE), Instant::now());
        Self { path, started, first, device: name(device) }
    }

    /// Writes that `step` steps are finished. A clock that cannot be written is no reason to stop.
    pub fn mark(&self, step: u64) {
        let seconds = self.started.elapsed().as_secs_f64();
        let (first, device) = (self.first, self.device.clone());
        let mark = Mark { first, step, seconds, device, threads: threads() };
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        if let (Ok(mut file), Ok(line)) = (file, serde_json::to_string(&mark)) {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// What a device is called.
fn name(device: &Device) -> String {
    match device {
        Device::Cuda(queue) => queue.gpu().facts().name.clone(),
        _ => {
            let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let model = told.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
            model.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
        }
    }
}

/// The marks of a stage's folder, as they were written; none where there are none.
pub fn read(dir: &Path) -> Vec<Mark> {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What all processes of a stage took together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pace {
    /// Steps, those taken twice counted twice.
    pub steps: u64,
    /// Wall-clock seconds, pauses between processes left out.
    pub seconds: f64,
    /// Processes that came to a checkpoint.
    pub processes: usize,
    /// Where they ran, each once.
    pub devices: Vec<String>,
}

/// The pace of marks; `None` without any.
pub fn pace(marks: &[Mark]) -> Option<Pace> {
    let mut all = Pace::default();
    for (i, mark) in marks.iter().enumerate() {
        let device = format!("{}, {} threads", mark.device, mark.threads);
        if !all.devices.contains(&device) {
            all.devices.push(device);
        }
        // The last mark of a process counts; the next one begins elsewhere or anew.
        let goes_on = |next: &Mark| next.first == mark.first && next.step > mark.step;
        if !marks.get(i + 1).is_some_and(goes_on) {
            all.steps += mark.step.saturating_sub(mark.first);
            all.seconds += mark.seconds;
            all.processes += 1;
        }
    }
    (all.steps > 0).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_counts_the_last_mark_of_each_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(pace(&read(dir.path())), None);
        let clock = Clock::start(dir.path(), 0, &Device::Cpu);
        clock.mark(5);
        clock.mark(10);
        let torn = b"{\"first\":10,\"st\n";
        OpenOptions::new().append(true).open(&clock.path).unwrap().write_all(torn).unwrap();
        Clock::start(dir.path(), 10, &Device::Cpu).mark(15);
        let mut marks = read(dir.path());
        assert_eq!(marks.iter().map(|m| m.step).collect::<Vec<_>>(), [5, 10, 15]);
        marks.iter_mut().for_each(|m| m.seconds = m.step as f64);
        marks[2].seconds = 2.0;
        let pace = pace(&marks).unwrap();
        assert_eq!((pace.steps, pace.seconds, pace.processes), (15, 12.0, 2));
        assert_eq!(pace.devices.len(), 1);
    }
}
