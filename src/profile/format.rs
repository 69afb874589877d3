//! A profile as a value and as a file: JSON, one object, `format` and `version` first.
//!
//! Times are seconds, a list where there is one for each repeat; bytes and operations are those of
//! one repeat. A reader refuses another version. Version 1 is what the structs here say, field by
//! field.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::model::{Model, Side};
use crate::device::cuda::Counts;
use crate::error::{Error, Result};
use crate::io::atomic;

/// What a file begins with.
pub const FORMAT: &str = "genevar-profile";
/// The version that is written and read.
pub const VERSION: u32 = 1;

/// What the times of a profile are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The CPU's, which ran the ops.
    Cpu,
    /// A GPU's own.
    Gpu,
    /// The host's, where a driver ran kernels in software and counted: no GPU's times.
    Software,
    /// None: nothing ran.
    Plan,
}

impl Clock {
    /// Whether the times say how fast the device is.
    pub fn is_real(self) -> bool {
        matches!(self, Self::Cpu | Self::Gpu)
    }
}

/// A profile of some work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// What was done: `sample`, `train ar`.
    pub work: String,
    /// The preset or checkpoint.
    pub shapes: String,
    /// Tiles drawn together, or rows of a training batch.
    pub batch: usize,
    /// What weights and activations are: `f32`, `bf16`.
    pub precision: String,
    /// Where it was done.
    pub device: String,
    /// What the times are.
    pub clock: Clock,
    /// The ceilings that floors and predictions are made of.
    pub model: Model,
    /// Seconds of each repeat, start to end.
    pub seconds: Vec<f64>,
    /// Seconds of each replay of the same work as one graph, where it was recorded.
    pub replay_seconds: Vec<f64>,
    /// Copies to the device in a repeat.
    pub uploads: usize,
    /// Copies from the device in a repeat.
    pub fetches: usize,
    /// One row for each kernel, or op on the CPU, of each part of each scale, in the order in which
    /// they first ran.
    pub rows: Vec<Row>,
}

/// The calls of one kernel, or op on the CPU, in one part of one scale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The scale, from 1; none outside the scales.
    pub scale: Option<usize>,
    /// The part of the work.
    pub part: String,
    /// The op.
    pub op: String,
    /// The kernel with what its template is filled with; none on the CPU.
    pub kernel: Option<String>,
    /// Calls in a repeat.
    pub calls: u64,
    /// Seconds of all calls together, for each repeat.
    pub seconds: Vec<f64>,
    /// Seconds of one call over all repeats: median and 90th percentile.
    pub call_seconds: [f64; 2],
    /// Seconds before the calls in which the device did nothing, for each repeat.
    pub gaps: Vec<f64>,
    /// Bytes that must move: by the kernels' cards; inputs and outputs on the CPU.
    pub bytes: u64,
    /// Operations that must be done, by the kernels' cards.
    pub flops: u64,
    /// Seconds that bytes and operations take at least, call by call.
    pub floor: f64,
    /// The same with the launch, split by what binds each call: memory, compute, launch.
    pub bound: [f64; 3],
    /// What the driver counted, where it counts.
    pub counts: Option<Counts>,
    /// Seconds predicted for the device model: of the counts, or without them of the cards.
    pub predicted: Option<f64>,
}

impl Row {
    /// The kernel, or the op on the CPU.
    pub fn name(&self) -> &str {
        self.kernel.as_deref().unwrap_or(&self.op)
    }

    /// Median seconds of a repeat.
    pub fn time(&self) -> f64 {
        quantile(&self.seconds, 0.5)
    }

    /// What binds most of it.
    pub fn binds(&self) -> Side {
        let most = Side::ALL.into_iter().zip(self.bound);
        most.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Side::Launch, |(side, _)| side)
    }

    /// Adds another row's calls; its name and place are forgotten.
    pub fn add(&mut self, other: &Self) {
        let sums = |own: &mut Vec<f64>, other: &[f64]| {
            own.resize(own.len().max(other.len()), 0.0);
            own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        };
        sums(&mut self.seconds, &other.seconds);
        sums(&mut self.gaps, &other.gaps);
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.flops += other.flops;
        self.floor += other.floor;
        self.bound.iter_mut().zip(other.bound).for_each(|(own, other)| *own += other);
        if let Some(counts) = &other.counts {
            self.counts.get_or_insert_default().add(counts);
        }
        if let Some(predicted) = other.predicted {
            *self.predicted.get_or_insert_default() += predicted;
        }
    }
}

impl Profile {
    /// All rows together.
    pub fn total(&self) -> Row {
        self.sum(|_| true)
    }

    /// The rows that are wanted together.
    pub fn sum(&self, wanted: impl Fn(&Row) -> bool) -> Row {
        let mut total = Row::default();
        self.rows.iter().filter(|row| wanted(row)).for_each(|row| total.add(row));
        total
    }

    /// Sums of rows by a key, in the order in which the keys first come.
    pub fn by<K: PartialEq>(&self, key: impl Fn(&Row) -> K) -> Vec<(K, Row)> {
        let mut sums: Vec<(K, Row)> = Vec::new();
        for row in &self.rows {
            let own = key(row);
            match sums.iter_mut().find(|(known, _)| *known == own) {
                Some((_, sum)) => sum.add(row),
                None => {
                    let mut sum = Row::default();
                    sum.add(row);
                    sums.push((own, sum));
                }
            }
        }
        sums
    }

    /// The file's text.
    ///
    /// # Errors
    /// None that a person could cause.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|t| t + "\n").map_err(|e| Error::Internal(format!("a profile as JSON: {e}")))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, self.to_json()?.as_bytes())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is no profile, or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let fix = "give a file that `genevar profile sample --json FILE` wrote";
        let head: Head = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is no profile: {e}"), fix))?;
        if head.format != FORMAT || head.version != VERSION {
            let what = format!("is {} version {}", head.format, head.version);
            let fix = format!("this genevar reads {FORMAT} version {VERSION}: take it again");
            return Err(Error::file(path, what, fix));
        }
        let read: Self = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is a damaged profile: {e}"), fix))?;
        Ok(read)
    }
}

/// What a reader looks at first.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// The value below which a share of these lie, between two of them by proportion; 0 of none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize));
    low.zip(high).map_or(0.0, |(a, b)| a + (b - a) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!((quantile(&[], 0.5), quantile(&[3.0], 0.9)), (0.0, 3.0));
        assert_eq!(quantile(&[4.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.9), 9.0);
    }
}
