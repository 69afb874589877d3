//! How expression becomes the input of a model.
//!
//! Counts are scaled to ten thousand a sample, log1p is taken, and each gene is standardised with
//! the TRAINING samples' mean and deviation (algorithm.md 3.2). The statistics travel in the
//! checkpoint as two tensors and a JSON value, so a profile is always seen as in training.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::genes::GeneMap;
use crate::data::units::{Log, Units};
use crate::error::{Error, Result, Within};
use crate::io::safetensors::TensorFile;
use crate::tensor::Tensor;

pub use crate::data::expression::{Expression, read_symbols};

/// How a value becomes an input: what is done before it is standardised, and the guards after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Counts are scaled to this sum a sample; 0 leaves values as they are.
    pub counts_per: f64,
    /// Take ln(1 + x): for counts and FPKM, not for values that are logs already.
    pub log1p: bool,
    /// Smallest deviation a gene is divided by: one that hardly varies in training says nothing.
    pub sd_floor: f32,
    /// Standardised values are cut at plus and minus this.
    pub clip: f32,
}

impl Scaling {
    /// Raw counts: per ten thousand, then log1p.
    pub const COUNTS: Self = Self { counts_per: 1e4, ..Self::FPKM };
    /// FPKM or TPM: log1p.
    pub const FPKM: Self = Self { counts_per: 0.0, log1p: true, sd_floor: 1e-3, clip: 10.0 };
    /// Values that are logarithms already.
    pub const LOG: Self = Self { log1p: false, ..Self::FPKM };

    /// A value of a sample whose values sum to `total`, before it is standardised.
    pub fn apply(self, value: f32, total: f64) -> f64 {
        let x = f64::from(value);
        let x = if self.counts_per > 0.0 { x * self.counts_per / total } else { x };
        if self.log1p { x.ln_1p() } else { x }
    }

    /// The value that [`Scaling::apply`] turns into `level`.
    pub fn undo(self, level: f64, total: f64) -> f64 {
        let x = if self.log1p { level.exp_m1() } else { level };
        if self.counts_per > 0.0 { x * total / self.counts_per } else { x }
    }

    /// Refuses what makes no sense of values in `units`: the logarithm of a logarithm.
    ///
    /// # Errors
    /// Logs that would be scaled as counts, or whose log would be taken.
    pub fn check(self, units: Units) -> Result<()> {
        if units.log == Log::None || (self.counts_per == 0.0 && !self.log1p) {
            return Ok(());
        }
        let key = if self.log1p { "data.log1p" } else { "data.counts_per" };
        let what = format!("would transform values that are logarithms already ({units})");
        Err(Error::config(key, what, "set data.counts_per = 0 and data.log1p = false"))
    }
}

/// How a model's RNA input is made: genes, scaling, and the training samples' statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct RnaNorm {
    /// The model's genes, in order.
    pub genes: Vec<String>,
    /// What is done before standardising.
    pub scaling: Scaling,
    /// What the values were before that, where it is known.
    pub units: Option<Units>,
    /// Mean of each gene over the training samples.
    pub mean: Vec<f32>,
    /// Deviation of each gene, at least the floor.
    pub sd: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct NormHead {
    genes: Vec<String>,
    scaling: Scaling,
    #[serde(default)]
    units: Option<Units>,
}

impl RnaNorm {
    /// Learns mean and deviation from the samples `rows`, which must be training samples. A sample
    /// that several tiles share may be listed as often as it has tiles, or once.
    ///
    /// # Errors
    /// No samples, or a sample without counts that are to be scaled.
    pub fn fit(x: &Expression, rows: &[usize], scaling: Scaling) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::data("no training samples to learn from", "check the split"));
        }
        let width = x.genes.len();
        let (mut sum, mut square) = (vec![0f64; width], vec![0f64; width]);
        for &r in rows {
            check_total(x, r, scaling)?;
            for (g, v) in x.row(r).into_iter().enumerate() {
                let v = scaling.apply(v, x.totals[r]);
                sum[g] += v;
                square[g] += v * v;
            }
        }
        let n = rows.len() as f64;
        let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
        let variance = |(q, m): (&f64, &f64)| (q / n - m * m).max(0.0);
        let sd =
            square.iter().zip(&mean).map(variance).map(|v| (v.sqrt() as f32).max(scaling.sd_floor));
        let sd = sd.collect();
        let mean = mean.iter().map(|&m| m as f32).collect();
        Ok(Self { genes: x.genes.clone(), scaling, units: None, mean, sd })
    }

    /// One sample's input: values in the order of `genes` (NaN: missing) and the sample's total.
    pub fn standardise(&self, values: &[f32], total: f64) -> Vec<f32> {
        let clip = self.scaling.clip;
        let one = |((&v, &m), &sd): ((&f32, &f32), &f32)| {
            // A missing gene enters as the training mean.
            if v.is_nan() {
                return 0.0;
            }
            ((self.scaling.apply(v, total) as f32 - m) / sd).clamp(-clip, clip)
        };
        values.iter().zip(&self.mean).zip(&self.sd).map(one).collect()
    }

    /// Inputs `[rows, genes]` of a matrix whose genes are mapped by `map`.
    ///
    /// # Errors
    /// A row out of range, a map of another gene list, a sample without counts that are to be
    /// scaled.
    pub fn apply(&self, x: &Expression, rows: &[usize], map: &GeneMap) -> Result<Tensor> {
        if map.columns.len() != self.genes.len() {
            let what = format!("the map has {} genes, not {}", map.columns.len(), self.genes.len());
            return Err(Error::shape("rna", what));
        }
        let mut out = Vec::with_capacity(rows.len() * self.genes.len());
        for &r in rows {
            if r >= x.len() {
                let what = format!("row {r} of a table of {} samples", x.len());
                return Err(Error::data(what, "rows count from 0"));
            }
            check_total(x, r, self.scaling)?;
            out.extend(self.standardise(&map.pick(&x.row(r)), x.totals[r]));
        }
        Tensor::new(out, [rows.len(), self.genes.len()])
    }

    /// For a checkpoint: tensors `rna.mean` and `rna.sd`, and a JSON value to keep under the
    /// metadata key `rna.norm`.
    pub fn to_parts(&self) -> Result<([(&'static str, Tensor); 2], String)> {
        let n = self.genes.len();
        let mean = Tensor::new(self.mean.clone(), [n])?;
        let sd = Tensor::new(self.sd.clone(), [n])?;
        let head = NormHead { genes: self.genes.clone(), scaling: self.scaling, units: self.units };
        let json = serde_json::to_string(&head).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(([("rna.mean", mean), ("rna.sd", sd)], json))
    }

    /// What a table's values must be: what was recorded, or what the scaling implies.
    pub fn wants(&self) -> Option<Units> {
        self.units.or((self.scaling.counts_per > 0.0).then_some(Units::COUNTS))
    }

    /// From a file written with [`RnaNorm::to_parts`].
    pub fn from_file(file: &TensorFile) -> Result<Self> {
        let tensor = |name: &str| Ok((name.to_string(), file.tensor(name)?));
        let tensors = ["rna.mean", "rna.sd"].map(tensor);
        let tensors = tensors.into_iter().collect::<Result<_>>()?;
        Self::from_parts(&tensors, file.meta("rna.norm")?).within(file.path().display())
    }

    /// From what [`RnaNorm::to_parts`] gave: tensors that include its two, and its JSON value.
    ///
    /// # Errors
    /// A gene list that cannot be read, statistics of another length or without sense.
    pub fn from_parts(tensors: &BTreeMap<String, Tensor>, json: &str) -> Result<Self> {
        let bad = |what: String| Error::data(what, "train again");
        let head: NormHead = serde_json::from_str(json)
            .map_err(|e| bad(format!("corrupt gene list \"rna.norm\": {e}")))?;
        let take = |name: &str| match tensors.get(name) {
            Some(t) if t.len() == head.genes.len() => t.clone().into_f32s(),
            _ => Err(bad(format!("\"{name}\" does not hold {} genes", head.genes.len()))),
        };
        let (mean, sd) = (take("rna.mean")?, take("rna.sd")?);
        if sd.iter().any(|&s| s.is_nan() || s <= 0.0) || mean.iter().any(|m| !m.is_finite()) {
            return Err(bad("\"rna.mean\" or \"rna.sd\" hold impossible values".into()));
        }
        Ok(Self { genes: head.genes, scaling: head.scaling, units: head.units, mean, sd })
    }
}

fn check_total(x: &Expression, row: usize, scaling: Scaling) -> Result<()> {
    if scaling.counts_per > 0.0 && x.totals[row] <= 0.0 {
        let what = format!("sample \"{}\" has no counts at all", x.samples[row]);
        return Err(Error::data(what, "leave it out"));
    }
    Ok(())
}
