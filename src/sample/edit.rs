//! `genevar sample --set`: the same samples with some genes changed, and what that does to z.
//!
//! A change of `+2sd` adds two standard deviations to the profile's own value, on the scale that
//! the model reads (after the sum and the log). Deviations are those of the training samples, as
//! the checkpoint's gene prior keeps them. The sample's sum stays what it was: all other genes
//! enter as before, so what changes in a tile is the gene's doing.

use serde::Serialize;

use super::profiles::Profiles;
use crate::data::expression::Expression;
use crate::data::genes::GeneMap;
use crate::data::ids::{IdMap, bare, kind};
use crate::data::rna::{RnaNorm, Scaling};
use crate::data::units::{Log, Units, restated};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::train::system::System;

/// Dimensions of z that are told.
const TOP: usize = 8;
/// Genes that are suggested for a misspelt one.
const NEAR: usize = 3;

/// A change that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    gene: String,
    to: Goal,
    asked: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    /// So many deviations from its own value.
    Away(f64),
    /// A value in the table's units.
    Value(f64),
}

impl Edit {
    /// Reads `GENE=+2sd`, `GENE=-1sd` or `GENE=VALUE`.
    ///
    /// # Errors
    /// Anything else, saying what is wanted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wanted = "give GENE=+2sd, GENE=-1sd, or GENE=VALUE in the table's units";
        let (gene, asked) = text.rsplit_once('=').ok_or(wanted)?;
        let (gene, asked) = (gene.trim().to_string(), asked.trim().to_string());
        let number = |text: &str| text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or(wanted);
        let to = match asked.to_lowercase().strip_suffix("sd") {
            Some(times) if times.starts_with(['+', '-']) => Goal::Away(number(times.trim_end())?),
            Some(_) => return Err("say +2sd or -2sd: deviations from its own value".into()),
            None => Goal::Value(number(&asked)?),
        };
        if gene.is_empty() {
            return Err(wanted.into());
        }
        Ok(Self { gene, to, asked })
    }

    /// A few words for a picture.
    pub fn title(&self) -> String {
        let equals = if matches!(self.to, Goal::Value(_)) { "=" } else { " " };
        format!("{}{equals}{}", self.gene, self.asked)
    }
}

/// Where profiles come from.
pub struct Table<'a> {
    /// The matrix, in the model's units.
    pub x: &'a Expression,
    /// Rows of it that are drawn for.
    pub rows: &'a [usize],
    /// Where the model's genes are in it.
    pub map: &'a GeneMap,
    /// Translates names of genes.
    pub ids: Option<&'a IdMap>,
    /// What the person's values are, and what the model's are.
    pub units: (Option<Units>, Option<Units>),
}

/// What changed in a sample.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The sample, and its row in the table.
    pub sample: String,
    /// From 0.
    pub row: usize,
    /// Its changed genes.
    pub genes: Vec<GeneChange>,
    /// Its z.
    pub z: ZChange,
}

/// What changed in a gene; values in the table's units.
#[derive(Debug, Serialize)]
pub struct GeneChange {
    /// The model's name of it.
    pub gene: String,
    /// As it was written.
    pub asked: String,
    /// The profile's value; of a gene that is missing the one that is the training mean.
    pub before: f64,
    /// The edited one.
    pub after: f64,
    /// What the model reads: deviations from the training mean.
    pub standardised: [f32; 2],
    /// Whether the table lacks the gene.
    pub missing: bool,
    /// What kept it from going further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
}

/// What changed in z.
#[derive(Debug, Serialize)]
pub struct ZChange {
    /// Length of the difference.
    pub change: f64,
    /// Length of z before; z is standardised, so about the root of its dimensions.
    pub before: f64,
    /// The dimensions that changed most.
    pub top: Vec<Latent>,
}

/// A dimension of z.
#[derive(Debug, PartialEq, Serialize)]
pub struct Latent {
    /// From 0.
    pub latent: usize,
    /// In the profile as it is.
    pub before: f32,
    /// In the edited one.
    pub after: f32,
}

/// The edited profiles and what changed in each; `plain` are the same rows as they are.
///
/// # Errors
/// A gene that the model does not have, a gene named twice, a value that the units do not have.
pub fn apply(
    system: &System,
    table: &Table<'_>,
    plain: &Profiles,
    edits: &[Edit],
) -> Result<(Profiles, Vec<Change>)> {
    let norm = &system.prior()?.norm;
    let mut which: Vec<usize> = Vec::with_capacity(edits.len());
    for edit in edits {
        let gene = find(&norm.genes, &edit.gene, table)?;
        if which.contains(&gene) {
            let what = format!("names {} twice", norm.genes[gene]);
            return Err(Error::config("--set", what, "give each gene once"));
        }
        which.push(gene);
    }
    let mut inputs = Vec::with_capacity(table.rows.len() * norm.genes.len());
    let mut genes = Vec::with_capacity(table.rows.len());
    for &r in table.rows {
        let (mut row, total) = (table.map.pick(&table.x.row(r)), table.x.totals[r]);
        let before = norm.standardise(&row, total);
        let mut changed = Vec::with_capacity(edits.len());
        for (edit, &gene) in edits.iter().zip(&which) {
            changed.push(change(norm, edit, (gene, &mut row, total), table.units)?);
        }
        let after = norm.standardise(&row, total);
        for (told, &gene) in changed.iter_mut().zip(&which) {
            told.standardised = [before[gene], after[gene]];
            let clip = after[gene].abs() >= norm.scaling.clip;
            told.limit = told.limit.or(clip.then_some("standardised values are cut there"));
        }
        inputs.extend(after);
        genes.push(changed);
    }
    let inputs = Tensor::new(inputs, [table.rows.len(), norm.genes.len()])?;
    let edited = Profiles::of_inputs(system, plain.names.clone(), inputs)?;
    let edited = Profiles { labels: plain.labels.clone(), ..edited };
    let mut changes = Vec::with_capacity(genes.len());
    for (i, genes) in genes.into_iter().enumerate() {
        let z = ZChange::between(plain.z.rows(i, 1)?.f32s()?, edited.z.rows(i, 1)?.f32s()?);
        changes.push(Change { sample: plain.names[i].clone(), row: table.rows[i], genes, z });
    }
    Ok((edited, changes))
}

/// Changes a gene of a row; the standardised values are filled in later.
fn change(
    norm: &RnaNorm,
    edit: &Edit,
    (gene, row, total): (usize, &mut [f32], f64),
    (person, model): (Option<Units>, Option<Units>),
) -> Result<GeneChange> {
    let scaling = norm.scaling;
    let (own, mean) = (row[gene], f64::from(norm.mean[gene]));
    let level = if own.is_nan() { mean } else { scaling.apply(own, total) };
    let before = if own.is_nan() { scaling.undo(mean, total) } else { f64::from(own) };
    let lowest = lowest(scaling, model);
    let (after, limit) = match edit.to {
        Goal::Away(times) => {
            let goal = level + times * f64::from(norm.sd[gene]);
            let limit = (goal < lowest).then_some("nothing is expressed below zero");
            (scaling.undo(goal.max(lowest), total), limit)
        }
        Goal::Value(value) => {
            let value = restated(value, person, model);
            if value < lowest {
                let what = format!("{}: no expression is below zero", edit.title());
                return Err(Error::config("--set", what, "give 0 or more"));
            }
            (value, None)
        }
    };
    row[gene] = after as f32;
    if !row[gene].is_finite() {
        let what = format!("{}: no expression is as high", edit.title());
        return Err(Error::config("--set", what, "give less"));
    }
    Ok(GeneChange {
        gene: norm.genes[gene].clone(),
        asked: edit.asked.clone(),
        before: restated(before, model, person),
        after: restated(f64::from(row[gene]), model, person),
        standardised: [0.0; 2],
        missing: own.is_nan(),
        limit,
    })
}

/// The least level that a gene can have: zero, but for logs that nobody described.
fn lowest(scaling: Scaling, model: Option<Units>) -> f64 {
    let logs = match model {
        Some(units) => units.log == Log::Unstated,
        None => !scaling.log1p && scaling.counts_per == 0.0,
    };
    if logs { f64::NEG_INFINITY } else { 0.0 }
}

/// A gene of the model by its name, as it is or translated.
fn find(genes: &[String], wanted: &str, table: &Table<'_>) -> Result<usize> {
    let at = |name: &str| genes.iter().position(|g| bare(g) == bare(name));
    let translated = || {
        let (names, n) = table.ids?.translate(&[wanted.to_string()], kind(genes));
        at(names.first().filter(|_| n > 0)?)
    };
    at(wanted).or_else(translated).ok_or_else(|| {
        let n = genes.len();
        if table.x.genes.iter().any(|g| bare(g) == bare(wanted)) {
            let what = format!("{wanted} is in the table, but not among the model's {n} genes");
            return Error::config("--set", what, "train with it to change it");
        }
        let score = |g: &str| strsim::jaro_winkler(&wanted.to_uppercase(), &g.to_uppercase());
        let mut near: Vec<&String> = genes.iter().collect();
        near.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let near: Vec<&str> = near.iter().take(NEAR).map(|g| g.as_str()).collect();
        let fix = format!("the nearest names are {}", near.join(", "));
        Error::config("--set", format!("{wanted:?} is none of the model's {n} genes"), fix)
    })
}

impl ZChange {
    fn between(before: &[f32], after: &[f32]) -> Self {
        let length = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let moved = |i: usize| f64::from(after[i]) - f64::from(before[i]);
        let mut order: Vec<usize> = (0..before.len()).collect();
        order.sort_by(|&a, &b| moved(b).abs().total_cmp(&moved(a).abs()));
        let told = |&i: &usize| Latent { latent: i, before: before[i], after: after[i] };
        Self {
            change: length(&mut (0..before.len()).map(moved)),
            before: length(&mut before.iter().map(|&v| f64::from(v))),
            top: order.iter().take(TOP).filter(|&&i| moved(i) != 0.0).map(told).collect(),
        }
    }
}

impl Change {
    /// A sentence for people; `unit` names the values.
    pub fn sentence(&self, unit: &str) -> String {
        let gene = |g: &GeneChange| {
            let [a, b] = g.standardised;
            let limit = g.limit.map_or(String::new(), |limit| format!("; {limit}"));
            let missing = if g.missing { " (missing: the training mean)" } else { "" };
            let (name, before, after) = (&g.gene, g.before, g.after);
            format!(
                "{name} {before:.4}{missing} to {after:.4} {unit} ({a:+.2} to {b:+.2} sd{limit})"
            )
        };
        let genes: Vec<String> = self.genes.iter().map(gene).collect();
        let ZChange { change, before, .. } = self.z;
        format!("{}: {}; z, {before:.2} long, moves by {change:.3}", self.sample, genes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_others_refused() {
        let edit = |text: &str| Edit::parse(text).unwrap();
        assert_eq!(edit("ERBB2=+2sd").to, Goal::Away(2.0));
        assert_eq!(edit(" KRT8 = -1.5SD ").to, Goal::Away(-1.5));
        assert_eq!((edit("CD3E=0").to, edit("CD3E=0").gene.as_str()), (Goal::Value(0.0), "CD3E"));
        assert_eq!(edit("HLA-A=-0.5").to, Goal::Value(-0.5), "a log may be negative");
        assert_eq!((edit("A=+2sd").title(), edit("A=3").title()), ("A +2sd".into(), "A=3".into()));
        for bad in ["ERBB2", "ERBB2=", "=3", "A=2sd", "A=sd", "A=+sd", "A=x", "A=inf", "A=nan"] {
            assert!(Edit::parse(bad).is_err(), "{bad}");
        }
    }

    /// Counts of a gene whose level has a mean of 1 and a deviation of 0.5.
    fn changed(own: f32, asked: &str, total: f64) -> Result<(GeneChange, f32)> {
        let norm = RnaNorm {
            genes: vec!["A".into()],
            scaling: Scaling::COUNTS,
            units: Some(Units::COUNTS),
            mean: vec![1.0],
            sd: vec![0.5],
        };
        let mut row = [own];
        let counts = Some(Units::COUNTS);
        let edit = Edit::parse(asked).unwrap();
        let told = change(&norm, &edit, (0, &mut row, total), (counts, counts))?;
        let standardised = norm.standardise(&row, total)[0];
        Ok((told, standardised))
    }

    #[test]
    fn deviations_are_added_on_the_scale_that_the_model_reads() {
        let total = 20_000.0;
        let level = |value: f64| (value * 1e4 / total).ln_1p();
        let (told, sd) = changed(8.0, "A=+2sd", total).unwrap();
        assert!((level(told.after) - level(8.0) - 1.0).abs() < 1e-6, "{told:?}");
        assert!((f64::from(sd) - (level(8.0) + 1.0 - 1.0) / 0.5).abs() < 1e-5);
        assert_eq!((told.before, told.missing, told.limit), (8.0, false, None));
        let (told, _) = changed(1.0, "A=-9sd", total).unwrap();
        assert_eq!((told.after, told.limit.is_some()), (0.0, true));
        let (told, sd) = changed(f32::NAN, "A=+1sd", total).unwrap();
        assert!((sd - 1.0).abs() < 1e-5 && told.missing, "from the training mean");
        assert!((level(told.before) - 1.0).abs() < 1e-9);
        let (told, _) = changed(8.0, "A=3", total).unwrap();
        assert_eq!((told.before, told.after), (8.0, 3.0));
        for bad in ["A=-3", "A=1e39", "A=+900sd"] {
            let e = changed(8.0, bad, total).unwrap_err();
            assert!(e.to_string().contains("--set: A"), "{e}");
        }
    }

    #[test]
    fn the_largest_changes_of_z_come_first() {
        let z = ZChange::between(&[0.0, 3.0, 4.0], &[0.0, 3.5, 2.0]);
        let told: Vec<usize> = z.top.iter().map(|l| l.latent).collect();
        assert_eq!((told, z.before), (vec![2, 1], 5.0));
        assert!((z.change - 4.25f64.sqrt()).abs() < 1e-12);
    }
}
