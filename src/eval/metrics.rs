//! `metrics.json`: what a run is judged by, with its intervals.
//!
//! The numbers of the validation split stand under their names (`fd_generated`, `probe_auc_real`),
//! those of the unseen patient under the same names with `_unseen` behind them. Names do not
//! change.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::bootstrap::{Interval, Scored};
use super::probe::Classes;
use super::table::Table;
use crate::error::{Error, Result};
use crate::io::atomic;

/// What a run cost; measured by whoever ran it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Wall-clock seconds of training all stages.
    pub train_seconds: f64,
    /// Wall-clock seconds of painting one tile.
    pub sample_seconds_per_tile: f64,
    /// Largest resident memory; None where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
}

/// The probe's answers for one held-out split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The split.
    pub split: String,
    /// What was told apart.
    pub classes: Classes,
    /// Real training windows that the probe was fitted on.
    pub trained_on: usize,
    /// Windows, and painted tiles, of the positive class.
    pub positives: usize,
    /// Windows, and painted tiles, of the negative class.
    pub negatives: usize,
    /// Distinct RNA profiles behind them.
    pub profiles: usize,
    /// On the split's real tiles: the most that can be hoped for.
    pub auc_real: Scored,
    /// On tiles painted from their own RNA.
    pub auc_own_rna: Scored,
    /// On tiles painted from another tile's RNA: chance is 0.5.
    pub auc_shuffled_rna: Scored,
    /// Own minus shuffled.
    pub difference: f64,
    /// Its bootstrap interval, over profiles, the same draws on both sides.
    pub difference_interval: Interval,
    /// Whether that interval lies above zero.
    pub rna_matters: bool,
}

/// What is said of one held-out split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The split, for people.
    pub name: String,
    /// Distances.
    pub table: Table,
    /// The probe's answers; none where the split lacks one of its classes.
    pub probe: Option<ProbeReport>,
}

/// The numbers of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The validation split.
    pub validation: Verdict,
    /// The unseen patient, where there is one.
    pub unseen: Option<Verdict>,
    /// What the run cost, where somebody measured it.
    pub costs: Option<Costs>,
}

impl Metrics {
    /// From the verdicts of a trial, the validation split's first.
    ///
    /// # Errors
    /// `Internal` when there are none.
    pub fn new(verdicts: &[Verdict], costs: Option<Costs>) -> Result<Self> {
        let none = || Error::Internal("a trial without verdicts".into());
        let validation = verdicts.first().cloned().ok_or_else(none)?;
        Ok(Self { validation, unseen: verdicts.get(1).cloned(), costs })
    }

    /// The file's content.
    ///
    /// # Errors
    /// `Internal` for a number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String> {
        let mut out = Map::new();
        add(&mut out, &self.validation, "")?;
        if let Some(unseen) = &self.unseen {
            add(&mut out, unseen, "_unseen")?;
        }
        if let Some(Value::Object(costs)) = self.costs.as_ref().map(value).transpose()? {
            out.extend(costs);
        }
        pretty(&Value::Object(out))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, self.to_json()?.as_bytes())
    }
}

fn add(out: &mut Map<String, Value>, verdict: &Verdict, suffix: &str) -> Result<()> {
    let mut put = |name: &str, value: Value| out.insert(format!("{name}{suffix}"), value);
    let table = &verdict.table;
    let mut intervals = Map::new();
    for row in &table.rows {
        put(&row.key, json!(row.fd));
        intervals.insert(row.key.clone(), value(&row.interval)?);
    }
    put("fd_intervals", Value::Object(intervals));
    put("fd_name", json!(table.distance));
    put("fd_reference", json!(table.reference));
    put("n", json!(table.n));
    put("split", json!(verdict.name));
    if let Some(probe) = &verdict.probe {
        put("probe_auc_real", json!(probe.auc_real.auc));
        put("probe_auc_own_rna", json!(probe.auc_own_rna.auc));
        put("probe_auc_shuffled_rna", json!(probe.auc_shuffled_rna.auc));
        put("probe_auc_difference", json!(probe.difference));
        put("probe_auc_interval", value(&probe.difference_interval)?);
        put("probe", value(probe)?);
    }
    Ok(())
}

fn value(of: &impl Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|e| Error::Internal(format!("writing JSON: {e}")))
}

/// Indented JSON with a final newline.
pub(super) fn pretty(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|t| t + "\n").map_err(|e| Error::Internal(format!("writing JSON: {e}")))
}

impl ProbeReport {
    /// A sentence for people.
    pub fn sentence(&self) -> String {
        let verdict = match self.rna_matters {
            true => "so the RNA shows in the tiles",
            false => "so these tiles do not show that the RNA matters",
        };
        format!(
            "{}: AUC {:.3} on tiles from their own RNA, {:.3} from shuffled RNA, {:.3} on real \
             tiles; own minus shuffled lies in [{:.3}, {:.3}], {verdict} ({} and {} tiles, {} \
             profiles).",
            self.split,
            self.auc_own_rna.auc,
            self.auc_shuffled_rna.auc,
            self.auc_real.auc,
            self.difference_interval.low,
            self.difference_interval.high,
            self.positives,
            self.negatives,
            self.profiles
        )
    }
}
