//! Tables of numbers: what an expression matrix comes as.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::check_unique;
use super::lines::Lines;
use crate::error::{Error, Result};

/// The most numbers that one table may hold: 4 GiB of them, all of TCGA with room to spare.
pub const MAX_VALUES: usize = 1 << 30;

/// Which way round an expression table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Orientation {
    /// A row a sample, the header naming the genes.
    SamplesByGenes,
    /// A row a gene, the header naming the samples (what most repositories ship).
    GenesBySamples,
}

/// How to read a table of expression values.
#[derive(Clone, Debug)]
pub struct DenseSpec {
    /// Which way round it lies.
    pub orientation: Orientation,
    /// Columns of text after the first that describe the row (cohort, patient): kept aside.
    pub annotations: Vec<String>,
    /// Whether negative values are right: yes for logs, no for counts.
    pub allow_negative: bool,
}

impl Default for DenseSpec {
    fn default() -> Self {
        let orientation = Orientation::SamplesByGenes;
        Self { orientation, annotations: Vec::new(), allow_negative: false }
    }
}

/// A table of numbers as it lies in its file.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Where it was read from.
    pub path: PathBuf,
    /// First cell of each row.
    pub rows: Vec<String>,
    /// File line of each row.
    pub lines: Vec<usize>,
    /// Names of the columns of numbers.
    pub columns: Vec<String>,
    /// `rows * columns` values, row-major.
    pub values: Vec<f32>,
    /// The annotation columns, each with a value a row.
    pub annotations: Vec<(String, Vec<String>)>,
}

/// An expression matrix, samples by genes.
#[derive(Clone, Debug)]
pub struct Dense {
    /// Where it was read from.
    pub path: PathBuf,
    /// Row names.
    pub samples: Vec<String>,
    /// Column names.
    pub genes: Vec<String>,
    /// `samples * genes` values, row-major.
    pub values: Vec<f32>,
    /// The annotation columns, each with a value a row of the file.
    pub annotations: Vec<(String, Vec<String>)>,
}

/// Reads an expression table of numbers.
///
/// # Errors
/// Those of [`read_raw`], missing values, and duplicate genes or samples.
pub fn read_dense(path: impl AsRef<Path>, spec: &DenseSpec) -> Result<Dense> {
    let path = path.as_ref();
    let raw = read_raw(path, Some(&spec.annotations), spec.allow_negative)?;
    raw.check_whole()?;
    let (row, column) = match spec.orientation {
        Orientation::SamplesByGenes => ("sample", "gene"),
        Orientation::GenesBySamples => ("gene", "sample"),
    };
    check_unique(path, &raw.columns, column)?;
    raw.check_rows(row)?;
    Ok(raw.lie(spec.orientation))
}

/// Reads a table whose first column names the rows and whose other columns are numbers, but for the
/// `annotations`; None takes for these the columns whose first cell is text. Where a value is
/// missing (an empty cell, NA, NaN) it is NaN.
///
/// # Errors
/// Ragged or binary tables, cells that are not numbers, infinite or (unless allowed) negative
/// values, each with line and column; more than [`MAX_VALUES`] values.
pub fn read_raw(path: &Path, annotations: Option<&[String]>, allow_negative: bool) -> Result<Raw> {
    let mut lines = Lines::open(path)?;
    let header = lines.header.clone();
    let mut split = annotations.map(|names| split_columns(path, &header, names)).transpose()?;
    let mut raw = Raw {
        path: path.to_path_buf(),
        rows: Vec::new(),
        lines: Vec::new(),
        columns: Vec::new(),
        values: Vec::new(),
        annotations: Vec::new(),
    };
    while let Some((line, cells)) = lines.next_row()? {
        let (kept, numeric) = match &split {
            Some(split) => split,
            None => split.insert(text_columns(path, &cells)?),
        };
        if raw.rows.is_empty() {
            raw.annotations = kept.iter().map(|&c| (header[c].clone(), Vec::new())).collect();
            raw.columns = numeric.iter().map(|&c| header[c].clone()).collect();
        }
        let label = cells[0].trim();
        for (slot, &c) in raw.annotations.iter_mut().zip(kept.iter()) {
            slot.1.push(cells[c].to_string());
        }
        if raw.values.len() + numeric.len() > MAX_VALUES {
            let what = format!("holds more than {MAX_VALUES} values");
            return Err(Error::file(path, what, "split it, or leave out genes nobody needs"));
        }
        for &c in numeric.iter() {
            let at = Cell { path, line, row: label, column: &header[c] };
            raw.values.push(at.number(cells[c], allow_negative)?);
        }
        raw.rows.push(label.to_string());
        raw.lines.push(line);
    }
    if raw.rows.is_empty() {
        return Err(Error::file(path, "the table has a header and no rows", "add rows"));
    }
    if annotations.is_none() {
        raw.check_text()?;
    }
    Ok(raw)
}

impl Raw {
    /// Samples by genes, if it lies as `orientation` says.
    pub fn lie(self, orientation: Orientation) -> Dense {
        let Self { path, rows, columns, values, annotations, .. } = self;
        match orientation {
            Orientation::SamplesByGenes => {
                Dense { path, samples: rows, genes: columns, values, annotations }
            }
            Orientation::GenesBySamples => {
                let values = transpose(&values, rows.len(), columns.len());
                Dense { path, samples: columns, genes: rows, values, annotations }
            }
        }
    }

    /// Refuses missing values.
    ///
    /// # Errors
    /// The first one, by line, row and column.
    pub fn check_whole(&self) -> Result<()> {
        let width = self.columns.len().max(1);
        let Some(at) = self.values.iter().position(|v| v.is_nan()) else { return Ok(()) };
        let (row, column) = (at / width, &self.columns[at % width]);
        Err(Error::Line {
            path: self.path.clone(),
            line: self.lines[row],
            what: format!("row \"{}\", column \"{column}\" is missing or NaN", self.rows[row]),
            fix: "fill it in, or leave the gene out".into(),
        })
    }

    /// Refuses two rows of one name; `kind` is what a row is.
    pub fn check_rows(&self, kind: &str) -> Result<()> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (label, &line) in self.rows.iter().zip(&self.lines) {
            if let Some(first) = seen.insert(label, line) {
                return Err(Error::Line {
                    path: self.path.clone(),
                    line,
                    what: format!("{kind} \"{label}\" appears twice, first in line {first}"),
                    fix: "keep one of them, or sum them if they are counts".into(),
                });
            }
        }
        Ok(())
    }

    /// Refuses two columns of one name; `kind` is what a column is.
    pub fn check_columns(&self, kind: &str) -> Result<()> {
        check_unique(&self.path, &self.columns, kind)
    }

    /// A column was taken for text by its first cell. If most of its cells are numbers, that cell
    /// is a slip, and the column would be lost in silence.
    fn check_text(&self) -> Result<()> {
        for (name, cells) in &self.annotations {
            let numbers = cells.iter().filter(|c| c.trim().parse::<f32>().is_ok()).count();
            if numbers * 2 > cells.len() {
                let first = cells.first().map_or("", |c| c.trim());
                return Err(Error::Line {
                    path: self.path.clone(),
                    line: self.lines.first().copied().unwrap_or(0),
                    what: format!(
                        "column \"{name}\" is {first:?} in the first row and numbers in most others"
                    ),
                    fix: "correct the cell, or name the column as an annotation".into(),
                });
            }
        }
        Ok(())
    }
}

/// Positions of the annotation columns and of the columns of numbers.
type Split = (Vec<usize>, Vec<usize>);

fn split_columns(path: &Path, header: &[String], annotations: &[String]) -> Result<Split> {
    let mut kept = Vec::new();
    for name in annotations {
        let at = header.iter().skip(1).position(|h| h == name).ok_or_else(|| Error::Line {
            path: path.to_path_buf(),
            line: 1,
            what: format!("no annotation column \"{name}\""),
            fix: "name a column of the header".into(),
        })?;
        kept.push(at + 1);
    }
    let numeric: Vec<usize> = (1..header.len()).filter(|c| !kept.contains(c)).collect();
    some_numbers(path, (kept, numeric))
}

/// Splits by what the first row holds: what is neither a number nor missing is text.
fn text_columns(path: &Path, cells: &[&str]) -> Result<Split> {
    let is_number = |c: &usize| {
        let cell = cells[*c].trim();
        is_missing(cell) || cell.parse::<f32>().is_ok()
    };
    let (numeric, kept) = (1..cells.len()).partition(is_number);
    some_numbers(path, (kept, numeric))
}

fn some_numbers(path: &Path, split: Split) -> Result<Split> {
    if split.1.is_empty() {
        let what = "the table has no columns of numbers";
        return Err(Error::file(path, what, "check its delimiter"));
    }
    Ok(split)
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

/// Whether a cell says that there is no value.
pub fn is_missing(cell: &str) -> bool {
    matches!(cell, "" | "NA" | "na" | "N/A" | "NULL" | "NaN" | "nan")
}

/// Where a number stands, for messages.
struct Cell<'a> {
    path: &'a Path,
    line: usize,
    row: &'a str,
    column: &'a str,
}

impl Cell<'_> {
    fn number(&self, text: &str, allow_negative: bool) -> Result<f32> {
        let text = text.trim();
        if is_missing(text) {
            return Ok(f32::NAN);
        }
        let value: f32 = text.parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            self.error(
                &format!("is {shown:?}, not a number"),
                "correct it, or name the column as an annotation if it holds text",
            )
        })?;
        if value.is_infinite() {
            return Err(self.error("is infinite", "correct the value"));
        }
        if value < 0.0 && !allow_negative {
            let fix = "expression is never negative; if these are logs, allow negative values";
            return Err(self.error(&format!("is negative ({text})"), fix));
        }
        Ok(value)
    }

    fn error(&self, what: &str, fix: &str) -> Error {
        Error::Line {
            path: self.path.to_path_buf(),
            line: self.line,
            what: format!("row \"{}\", column \"{}\" {what}", self.row, self.column),
            fix: fix.into(),
        }
    }
}
