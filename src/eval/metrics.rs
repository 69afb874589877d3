//! `metrics.json`: what a run is judged by, with its intervals.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

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
    /// Largest resident memory of the process.
    pub peak_rss_bytes: u64,
}

/// The probe's answers for one held-out split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The split.
    pub split: String,
    /// What was told apart.
    pub classes: Classes,
    /// Real tiles of the two classes.
    pub real_tiles: usize,
    /// Painted tiles of the positive class.
    pub positives: usize,
    /// Painted tiles of the negative class.
    pub negatives: usize,
    /// Distinct RNA profiles behind the painted tiles.
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

/// The numbers of a run. Names are the file's keys and do not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Distance of painted tiles from real ones.
    pub fd_generated: f64,
    /// Distance of real tiles that went through the tokenizer and back.
    pub fd_recon: f64,
    /// Distance of real tiles through the tokenizer and the one-step prediction f_hat_K.
    pub fd_recon_fhat: Option<f64>,
    /// Distance of real tiles from other real tiles: what n alone makes of it.
    pub fd_real_floor: f64,
    /// Distance of real tiles blurred by 0.5 pixels.
    pub fd_blur05: f64,
    /// Distance of real tiles blurred by 1 pixel.
    pub fd_blur1: f64,
    /// Distance of real tiles blurred by 2 pixels.
    pub fd_blur2: f64,
    /// Distance of tiles of one colour each.
    pub fd_mean_colour: f64,
    /// Bootstrap intervals of the distances, by their names.
    pub fd_intervals: BTreeMap<String, Interval>,
    /// Which distance this is.
    pub fd_name: String,
    /// What the distances are from.
    pub fd_reference: String,
    /// Probe AUC on real validation tiles.
    pub probe_auc_real: f64,
    /// Probe AUC on validation tiles painted from their own RNA.
    pub probe_auc_own_rna: f64,
    /// Probe AUC on validation tiles painted from shuffled RNA.
    pub probe_auc_shuffled_rna: f64,
    /// Bootstrap interval of own minus shuffled, on validation tiles.
    pub probe_auc_interval: Interval,
    /// Everything the probe said about the validation split.
    pub probe_validation: ProbeReport,
    /// The same for the unseen patient.
    pub probe_unseen_patient: Option<ProbeReport>,
    /// Tiles in each set of the distances.
    pub n: usize,
    /// What the run cost.
    #[serde(flatten)]
    pub costs: Costs,
}

impl Metrics {
    /// From the distance table of [`super::suite::distances`] and the probe's reports.
    ///
    /// # Errors
    /// `Internal` when the table lacks a row.
    pub fn new(
        table: Table,
        validation: ProbeReport,
        unseen: Option<ProbeReport>,
        costs: Costs,
    ) -> Result<Self> {
        let fd = |key: &str| {
            let row = table.row(key).map(|r| r.fd);
            row.ok_or_else(|| Error::Internal(format!("the distance table has no {key}")))
        };
        Ok(Self {
            fd_generated: fd("fd_generated")?,
            fd_recon: fd("fd_recon")?,
            fd_recon_fhat: table.row("fd_recon_fhat").map(|r| r.fd),
            fd_real_floor: fd("fd_real_floor")?,
            fd_blur05: fd("fd_blur05")?,
            fd_blur1: fd("fd_blur1")?,
            fd_blur2: fd("fd_blur2")?,
            fd_mean_colour: fd("fd_mean_colour")?,
            n: table.n,
            fd_intervals: table.rows.into_iter().map(|r| (r.key, r.interval)).collect(),
            fd_name: table.distance,
            fd_reference: table.reference,
            probe_auc_real: validation.auc_real.auc,
            probe_auc_own_rna: validation.auc_own_rna.auc,
            probe_auc_shuffled_rna: validation.auc_shuffled_rna.auc,
            probe_auc_interval: validation.difference_interval,
            probe_validation: validation,
            probe_unseen_patient: unseen,
            costs,
        })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// `Io` when it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, json(self)?.as_bytes())
    }
}

/// Indented JSON with a final newline.
pub(super) fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|t| t + "\n").map_err(|e| Error::Internal(format!("writing JSON: {e}")))
}
