//! Finding a model's genes in somebody's table, with a report of what was not found.
//!
//! A missing gene enters as z = 0, its training mean. Input dropout shows the beta-VAE just that,
//! for half of its inputs at a time: so half of the genes is the least that a profile may have by
//! default (`data.min_gene_match`). Below it a table is nearly always a panel, another species, or
//! in other identifiers, and the profile would be mostly invented.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::data::ids::{IdKind, bare, kind};
use crate::error::{Error, Result};

/// What a mapping found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneReport {
    /// How many of the model's genes are in the table.
    pub matched: usize,
    /// The model's genes that are not.
    pub missing: Vec<String>,
    /// The model's genes that the table has more than once.
    pub duplicated: Vec<String>,
    /// How many of the table's genes the model does not use.
    pub unused: usize,
}

impl fmt::Display for GeneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.matched + self.missing.len();
        write!(f, "{} of {total} genes matched", self.matched)?;
        if !self.missing.is_empty() {
            let (n, list) = (self.missing.len(), some(&self.missing));
            write!(f, ", {n} missing ({list}): read as their training means")?;
        }
        if !self.duplicated.is_empty() {
            write!(f, ", {} duplicated ({})", self.duplicated.len(), some(&self.duplicated))?;
        }
        write!(f, ", {} of the table unused", self.unused)
    }
}

/// Where each of the model's genes is in a table.
#[derive(Clone, Debug)]
pub struct GeneMap {
    /// For each model gene, its column in the table.
    pub columns: Vec<Option<usize>>,
    /// What was found.
    pub report: GeneReport,
}

impl GeneMap {
    /// Maps `model` onto `table`, Ensembl identifiers compared without version, others exactly but
    /// for surrounding blanks.
    ///
    /// # Errors
    /// No common genes, fewer than the share `min_match` of the model's genes, or a gene of the
    /// model that the table has twice.
    pub fn new(model: &[String], table: &[String], min_match: f64) -> Result<Self> {
        let mut places: HashMap<Cow<'_, str>, Vec<usize>> = HashMap::new();
        for (i, gene) in table.iter().enumerate() {
            places.entry(bare(gene)).or_default().push(i);
        }
        let mut report = GeneReport::default();
        let mut columns = Vec::with_capacity(model.len());
        for gene in model {
            let found = places.get(&bare(gene)).map(Vec::as_slice).unwrap_or_default();
            columns.push(found.first().copied());
            match found.len() {
                0 => report.missing.push(gene.clone()),
                1 => report.matched += 1,
                _ => {
                    report.matched += 1;
                    report.duplicated.push(gene.clone());
                }
            }
        }
        let used: HashSet<Cow<'_, str>> = model.iter().map(|g| bare(g)).collect();
        report.unused = table.iter().filter(|g| !used.contains(&bare(g))).count();
        refuse(model, table, min_match, &report)?;
        Ok(Self { columns, report })
    }

    /// The model's genes of one row of the table; missing genes are NaN, which
    /// [`crate::data::rna::RnaNorm`] turns into the training mean.
    pub fn pick(&self, row: &[f32]) -> Vec<f32> {
        self.columns.iter().map(|c| c.map_or(f32::NAN, |c| row[c])).collect()
    }
}

fn refuse(model: &[String], table: &[String], min_match: f64, report: &GeneReport) -> Result<()> {
    if report.matched == 0 {
        let what = format!(
            "no common genes: the model has {}, the table has {}",
            some(model),
            some(table)
        );
        return Err(Error::data(what, hint(model, table)));
    }
    if !report.duplicated.is_empty() {
        let what = format!("duplicate genes in the table: {}", some(&report.duplicated));
        return Err(Error::data(what, "keep one of each, or sum them if they are counts"));
    }
    let share = report.matched as f64 / model.len() as f64;
    if share < min_match {
        let what = format!(
            "{:.1} % of the model's genes are in the table, at least {:.1} % must be: {report}",
            100.0 * share,
            100.0 * min_match
        );
        return Err(Error::data(what, hint(model, table)));
    }
    Ok(())
}

/// The likeliest reason for a poor match.
fn hint(model: &[String], table: &[String]) -> String {
    let (wanted, have) = (kind(model), kind(table));
    if wanted != have {
        return format!(
            "the model wants {wanted}, the table has {have}: give a table of both with --gene-map"
        );
    }
    let upper: HashSet<String> = table.iter().map(|g| g.trim().to_uppercase()).collect();
    let same_letters = model.iter().filter(|g| upper.contains(&g.trim().to_uppercase())).count();
    if same_letters * 2 > model.len() {
        return "the symbols differ in upper and lower case: is the table of another species?"
            .into();
    }
    let other = if wanted == IdKind::Symbol { "human gene symbols" } else { "genes" };
    format!("check that the table holds {other}, and which way round it lies (--orientation)")
}

/// The first few of a list.
fn some(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(4).map(String::as_str).collect();
    let more = if names.len() > 4 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn maps_by_symbol_and_reports() {
        let model = list(&["A", "B", "C", "D"]);
        let map = GeneMap::new(&model, &list(&["D", "x", " A", "B"]), 0.75).unwrap();
        assert_eq!(map.columns, [Some(2), Some(3), None, Some(0)]);
        assert_eq!(map.report.missing, ["C"]);
        assert_eq!((map.report.matched, map.report.unused), (3, 1));
        let row = map.pick(&[4.0, 9.0, 1.0, 2.0]);
        assert_eq!(row[..2], [1.0, 2.0]);
        assert!(row[2].is_nan() && row[3] == 4.0);
    }

    #[test]
    fn refuses_too_few_duplicated_and_foreign_genes() {
        let model = list(&["ACTB", "ERBB2", "CD3E", "KRT8"]);
        let error =
            |table: &[&str]| GeneMap::new(&model, &list(table), 0.75).unwrap_err().to_string();
        assert!(error(&["ACTB", "ERBB2"]).contains("50.0 % of"));
        assert!(error(&["ACTB", "ERBB2", "CD3E", "ERBB2"]).contains("duplicate genes"));
        assert!(error(&["Actb", "Erbb2", "Cd3e"]).contains("another species"));
        assert!(error(&["ENSG00000000001", "ENSG00000000002"]).contains("Ensembl"));
        assert!(error(&["s1", "s2"]).contains("no common genes"));
    }
}
