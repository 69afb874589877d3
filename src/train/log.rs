//! The log of a run: one JSON object a line, the step first.
//!
//! It holds no clock time, so the log of a run that was killed and resumed is, byte for byte, the
//! log of one that was not: on opening, lines of steps that will run again are dropped, and a line
//! that the kill tore in two with them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What one step has to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLog {
    /// The loss that was differentiated.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Whether the step changed nothing, its numbers being bad.
    pub skipped: bool,
    /// Further numbers by name: parts of the loss, norms, usage.
    pub more: Vec<(String, f64)>,
}

impl StepLog {
    /// A step's loss and learning rate.
    pub fn new(loss: f64, lr: f64) -> Self {
        Self { loss, lr, ..Self::default() }
    }

    /// Adds a named number.
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.more.push((name.into(), value));
        self
    }

    /// The name of the first number that is NaN or infinite.
    pub fn not_finite(&self) -> Option<&str> {
        if !self.loss.is_finite() {
            return Some("loss");
        }
        self.more.iter().find(|(_, v)| !v.is_finite()).map(|(name, _)| name.as_str())
    }
}

/// An open log file.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens or creates the log for a run whose next step is `from`; later lines are dropped.
    pub fn open(path: &Path, from: u64) -> Result<Self> {
        let old = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let kept: usize = old
            .split_inclusive('\n')
            .take_while(|line| line.ends_with('\n') && step_of(line).is_some_and(|s| s < from))
            .map(str::len)
            .sum();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| Error::io("create", path, e))?;
        file.set_len(kept as u64).map_err(|e| Error::io("shorten", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Appends the line of 0-based `step`.
    pub fn write(&mut self, step: u64, entry: &StepLog) -> Result<()> {
        // By hand, since serde_json sorts an object's keys and a reader wants the step first.
        let mut line = format!("{{\"step\":{step}");
        let head = [("loss", entry.loss), ("lr", entry.lr)];
        let more = entry.more.iter().map(|(name, value)| (name.as_str(), *value));
        for (name, value) in head.into_iter().chain(more) {
            line += &format!(",{}:{}", Value::from(name), Value::from(value));
        }
        line += if entry.skipped { ",\"skipped\":true}\n" } else { "}\n" };
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Puts what was written on disk: called before a checkpoint that counts on it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Reads a log back, for curves: (step, entry) in order of steps, further numbers in order of name.
/// A torn last line and steps that were skipped are left out.
pub fn read(path: &Path) -> Result<Vec<(u64, StepLog)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    Ok(text.lines().filter_map(entry_of).collect())
}

fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<Map<String, Value>>(line).ok()?.get("step")?.as_u64()
}

fn entry_of(line: &str) -> Option<(u64, StepLog)> {
    let map: Map<String, Value> = serde_json::from_str(line).ok()?;
    if map.contains_key("skipped") {
        return None;
    }
    let number = |name: &str| map.get(name).and_then(Value::as_f64);
    let mut entry = StepLog::new(number("loss")?, number("lr")?);
    for (name, value) in &map {
        if let (false, Some(v)) = (["step", "loss", "lr"].contains(&name.as_str()), value.as_f64())
        {
            entry.more.push((name.clone(), v));
        }
    }
    Some((map.get("step")?.as_u64()?, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(step: u64) -> StepLog {
        StepLog::new(1.0 / (step + 1) as f64, 1e-3).with("l2", 0.1 * step as f64)
    }

    fn write(path: &Path, steps: std::ops::Range<u64>) {
        let mut log = Log::open(path, steps.start).unwrap();
        for step in steps {
            log.write(step, &entry(step)).unwrap();
        }
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
        write(&whole, 0..9);
        write(&broken, 0..7);
        let mut torn = OpenOptions::new().append(true).open(&broken).unwrap();
        torn.write_all(b"{\"step\":7,\"lo").unwrap();
        write(&broken, 5..9);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&broken).unwrap());
        let back = read(&whole).unwrap();
        assert_eq!(back.len(), 9);
        assert_eq!(back[8], (8, entry(8)));
    }

    #[test]
    fn the_first_bad_number_is_named() {
        assert_eq!(entry(0).not_finite(), None);
        assert_eq!(entry(0).with("kl", f64::NAN).not_finite(), Some("kl"));
        assert_eq!(StepLog::new(f64::INFINITY, 0.0).not_finite(), Some("loss"));
    }
}
