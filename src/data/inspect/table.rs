//! What is in a table: its columns, or, if it holds expression, its values.

use std::collections::BTreeSet;
use std::path::Path;

use super::spread::{Spread, number};
use super::{Found, describe, for_looking};
use crate::data::ids::{IdKind, Which, kind, which_are_genes};
use crate::data::source::{Rna, RnaOptions, Wanted};
use crate::error::Result;
use crate::io::tables::{Lines, is_missing};

/// Tables of more columns of numbers than this are matrices.
const MATRIX: usize = 40;
/// Different texts of a column that are counted.
const DISTINCT: usize = 1000;
/// Row names that are kept.
const LABELS: usize = 100_000;

#[derive(Default)]
struct Column {
    spread: Spread,
    numbers: u64,
    /// Cells that are neither numbers nor missing.
    words: u64,
    distinct: BTreeSet<String>,
    /// More texts than are counted.
    more: bool,
}

impl Column {
    /// Counts a cell; of a matrix's columns no values are kept: there may be thousands.
    fn add(&mut self, cell: &str, keep: bool) {
        let cell = cell.trim();
        if is_missing(cell) {
            self.spread.missing += 1;
            return;
        }
        match cell.parse::<f32>() {
            Ok(v) => {
                self.numbers += 1;
                if keep {
                    self.spread.add(v);
                }
            }
            Err(_) => self.words += 1,
        }
        self.more |= keep && self.distinct.len() >= DISTINCT;
        if keep && !self.more {
            self.distinct.insert(cell.to_string());
        }
    }

    fn is_number(&self) -> bool {
        self.words == 0 && self.numbers > 0
    }

    fn describe(&self) -> String {
        let more = if self.more { "more than " } else { "" };
        let distinct = format!("{more}{} different", self.distinct.len());
        let missing = match self.spread.missing {
            0 => String::new(),
            n => format!("; {n} missing"),
        };
        if self.is_number() {
            let (low, high) = self.spread.range();
            let whole = if self.spread.is_whole() { "whole numbers" } else { "numbers" };
            return format!("{whole} {} to {}; {distinct}{missing}", number(low), number(high));
        }
        if self.words == 0 {
            return format!("empty{missing}");
        }
        let ids: Vec<&String> = self.distinct.iter().collect();
        let what = match kind(&ids) {
            IdKind::Ensembl => "Ensembl identifiers",
            _ => "text",
        };
        let first: Vec<String> = ids.iter().take(3).map(|s| s.chars().take(30).collect()).collect();
        format!("{what}; {distinct}: {}{missing}", first.join(", "))
    }
}

/// Looks at a table.
///
/// # Errors
/// Files that are no tables: ragged, binary, of one column.
pub(super) fn look(path: &Path, options: &RnaOptions) -> Result<Found> {
    let mut lines = Lines::open(path)?;
    let header = lines.header.clone();
    let mut columns: Vec<Column> = header.iter().map(|_| Column::default()).collect();
    let matrix = header.len() > MATRIX;
    let mut labels = Vec::new();
    let mut rows = 0usize;
    while let Some((_, cells)) = lines.next_row()? {
        rows += 1;
        if labels.len() < LABELS {
            labels.push(cells[0].trim().to_string());
        }
        for (column, cell) in columns.iter_mut().zip(cells) {
            column.add(cell, !matrix);
        }
    }
    let mut found = Found::new();
    found.line("what", format!("table of {rows} rows x {} columns", header.len()));
    let numbers = columns.iter().skip(1).filter(|c| c.is_number()).count();
    let genes = which_are_genes(&header[1..], &labels, &[], &[]);
    // A list of genes names them in its rows too; a matrix has nothing but numbers beside.
    let is_matrix = numbers > MATRIX || genes != Which::Unclear && numbers + 1 == header.len();
    if !is_matrix {
        for (name, column) in header.iter().zip(&columns) {
            found.line(name, column.describe());
        }
        return Ok(found);
    }
    let missing: u64 = columns[1..].iter().map(|c| c.spread.missing).sum();
    let words: u64 = columns[1..].iter().filter(|c| c.numbers > 0).map(|c| c.words).sum();
    if missing + words > 0 {
        found.line("cells", format!("{missing} missing, {words} words among numbers"));
    }
    match Rna::read(path, &for_looking(options), Wanted::default()) {
        Ok(rna) => describe(&mut found, &rna),
        Err(e) => found.line("not readable", e),
    }
    Ok(found)
}
