//! Tables of text: TSV or CSV, plain or gzip, streamed line by line.
//!
//! [`Table`] keeps every cell as text (tile lists, gene lists); [`read_dense`] turns a table of
//! numbers into an expression matrix. Both refuse ragged, binary and duplicate rows with the line
//! and column at fault.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

/// A table of text with a header row.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where it was read from.
    pub path: PathBuf,
    /// Column names.
    pub header: Vec<String>,
    /// Cells, row by row; every row is as long as the header.
    pub rows: Vec<Vec<String>>,
    lines: Vec<usize>,
}

impl Table {
    /// Reads a whole table.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut lines = Lines::open(path)?;
        let header = lines.header.clone();
        check_unique(path, &header, "column")?;
        let mut rows = Vec::new();
        let mut numbers = Vec::new();
        while let Some((line, cells)) = lines.next_row()? {
            rows.push(cells.iter().map(ToString::to_string).collect());
            numbers.push(line);
        }
        Ok(Self { path: path.to_path_buf(), header, rows, lines: numbers })
    }

    /// Position of a column; a missing one is an error that suggests the nearest name.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.header.iter().position(|h| h == name).ok_or_else(|| {
            let near = self.header.iter().map(|h| (strsim::jaro_winkler(h, name), h));
            let near = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.75);
            let fix = match near {
                Some((_, h)) => format!("did you mean \"{h}\"?"),
                None => format!("its columns are {}", self.header.join(", ")),
            };
            Error::Line {
                path: self.path.clone(),
                line: 1,
                what: format!("no column \"{name}\""),
                fix,
            }
        })
    }

    /// File line of a row, the header being line 1.
    pub fn line(&self, row: usize) -> usize {
        self.lines.get(row).copied().unwrap_or(0)
    }

    /// An error at a row of this table.
    pub fn error(&self, row: usize, what: impl Into<String>, fix: impl Into<String>) -> Error {
        let (what, fix) = (what.into(), fix.into());
        Error::Line { path: self.path.clone(), line: self.line(row), what, fix }
    }
}

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
/// Ragged or binary tables, cells that are not numbers, NaN, infinite or (unless allowed) negative
/// values, duplicate genes or samples; each with line and column.
pub fn read_dense(path: impl AsRef<Path>, spec: &DenseSpec) -> Result<Dense> {
    let path = path.as_ref();
    let mut lines = Lines::open(path)?;
    let header = lines.header.clone();
    let (kept, numeric) = split_columns(path, &header, spec)?;
    let mut labels = Vec::new();
    let mut values = Vec::new();
    let mut annotations: Vec<(String, Vec<String>)> =
        kept.iter().map(|&c| (header[c].clone(), Vec::new())).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    while let Some((line, cells)) = lines.next_row()? {
        let label = cells[0].trim();
        if let Some(first) = seen.insert(label.to_string(), line) {
            return Err(duplicate_row(path, line, label, first, spec.orientation));
        }
        labels.push(label.to_string());
        for (slot, &c) in annotations.iter_mut().zip(&kept) {
            slot.1.push(cells[c].to_string());
        }
        for &c in &numeric {
            let at = Cell { path, line, row: label, column: &header[c] };
            values.push(at.number(cells[c], spec.allow_negative)?);
        }
    }
    if labels.is_empty() {
        return Err(Error::file(path, "the table has a header and no rows", "add rows"));
    }
    let columns: Vec<String> = numeric.iter().map(|&c| header[c].clone()).collect();
    Ok(match spec.orientation {
        Orientation::SamplesByGenes => {
            Dense { path: path.into(), samples: labels, genes: columns, values, annotations }
        }
        Orientation::GenesBySamples => {
            let values = transpose(&values, labels.len(), columns.len());
            Dense { path: path.into(), samples: columns, genes: labels, values, annotations }
        }
    })
}

/// A name that becomes part of a file name: not empty, one path component, nothing hidden.
///
/// # Errors
/// Names with `/`, `\`, control characters, a leading dot, or longer than 200 bytes.
pub fn check_file_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.starts_with('.')
        || name.len() > 200
        || name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control());
    if bad {
        return Err(Error::data(
            format!("the name {name:?} cannot be part of a file name"),
            "use letters, digits, '-', '_' and '.', not beginning with '.'",
        ));
    }
    Ok(())
}

fn split_columns(
    path: &Path,
    header: &[String],
    spec: &DenseSpec,
) -> Result<(Vec<usize>, Vec<usize>)> {
    check_unique(
        path,
        &header[1..],
        match spec.orientation {
            Orientation::SamplesByGenes => "gene",
            Orientation::GenesBySamples => "sample",
        },
    )?;
    let mut kept = Vec::new();
    for name in &spec.annotations {
        let at = header.iter().skip(1).position(|h| h == name).ok_or_else(|| Error::Line {
            path: path.to_path_buf(),
            line: 1,
            what: format!("no annotation column \"{name}\""),
            fix: "name a column of the header".into(),
        })?;
        kept.push(at + 1);
    }
    let numeric: Vec<usize> = (1..header.len()).filter(|c| !kept.contains(c)).collect();
    if numeric.is_empty() {
        return Err(Error::file(
            path,
            "the table has no columns of numbers",
            "check its delimiter",
        ));
    }
    Ok((kept, numeric))
}

fn duplicate_row(path: &Path, line: usize, label: &str, first: usize, way: Orientation) -> Error {
    let kind = match way {
        Orientation::SamplesByGenes => "sample",
        Orientation::GenesBySamples => "gene",
    };
    Error::Line {
        path: path.to_path_buf(),
        line,
        what: format!("{kind} \"{label}\" appears twice, first in line {first}"),
        fix: "keep one of them, or sum them if they are counts".into(),
    }
}

/// The first cell of `names` that appears twice is an error of line 1.
fn check_unique(path: &Path, names: &[String], kind: &str) -> Result<()> {
    let mut seen = HashMap::new();
    for (i, name) in names.iter().enumerate() {
        if let Some(first) = seen.insert(name.as_str(), i) {
            return Err(Error::Line {
                path: path.to_path_buf(),
                line: 1,
                what: format!(
                    "{kind} \"{name}\" appears twice in the header, as column {} and {} of them",
                    first + 1,
                    i + 1
                ),
                fix: "keep one of them, or sum them if they are counts".into(),
            });
        }
    }
    Ok(())
}

fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
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
        let value: f32 = match text {
            "" | "NA" | "na" | "N/A" | "NULL" => {
                return Err(self.error("is missing", "fill it in, or leave the gene out"));
            }
            _ => text.parse().map_err(|_| {
                let shown: String = text.chars().take(40).collect();
                self.error(
                    &format!("is {shown:?}, not a number"),
                    "correct it, or name the column as an annotation if it holds text",
                )
            })?,
        };
        if value.is_nan() {
            return Err(self.error("is NaN", "fill it in, or leave the gene out"));
        }
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

/// Rows of a delimited file, one at a time.
struct Lines {
    path: PathBuf,
    reader: csv::Reader<Box<dyn Read>>,
    record: csv::ByteRecord,
    header: Vec<String>,
    pending: bool,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let mut raw = BufReader::with_capacity(1 << 16, file);
        let start = raw.fill_buf().map_err(|e| Error::io("read", path, e))?;
        if start.is_empty() {
            return Err(Error::file(path, "the file is empty (0 bytes)", "fetch it again"));
        }
        let gzip = start.starts_with(&[0x1F, 0x8B]);
        let plain: Box<dyn Read> =
            if gzip { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };
        let mut text = BufReader::with_capacity(1 << 16, plain);
        let start = text.fill_buf().map_err(|e| unreadable(path, &e))?;
        let first = start.split(|&b| b == b'\n').next().unwrap_or_default();
        let delimiter = if first.contains(&b'\t') { b'\t' } else { b',' };
        let source: Box<dyn Read> = Box::new(text);
        // A quote inside a TSV is a character like any other.
        let reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(delimiter == b',')
            .has_headers(false)
            .flexible(true)
            .from_reader(source);
        let mut lines = Self {
            path: path.to_path_buf(),
            reader,
            record: csv::ByteRecord::new(),
            header: Vec::new(),
            pending: false,
        };
        lines.read_header()?;
        Ok(lines)
    }

    fn read_header(&mut self) -> Result<()> {
        let Some((_, cells)) = self.next_record()? else {
            return Err(Error::file(&self.path, "the table is empty", "fetch it again"));
        };
        let mut header: Vec<String> = cells.iter().map(|c| c.trim().to_string()).collect();
        if let Some(first) = header.first_mut() {
            *first = first.trim_start_matches('\u{feff}').to_string();
        }
        self.header = header;
        if let Some((_, cells)) = self.next_record()? {
            let wide = cells.len() == self.header.len() + 1;
            if wide {
                self.header.insert(0, String::new());
            }
            self.pending = true;
        }
        if self.header.len() < 2 {
            let what = "only one column was found";
            return Err(Error::file(&self.path, what, "separate the columns by tabs or commas"));
        }
        Ok(())
    }

    /// The next row and its line number; every row is as long as the header.
    fn next_row(&mut self) -> Result<Option<(usize, Vec<&str>)>> {
        let wanted = self.header.len();
        let path = self.path.clone();
        let row = if self.pending {
            self.pending = false;
            Some(cells_of(&path, &self.record)?)
        } else {
            self.next_record()?
        };
        match row {
            Some((line, cells)) if cells.len() != wanted => Err(Error::Line {
                path,
                line,
                what: format!("has {} columns, the header has {wanted}", cells.len()),
                fix: "the table is ragged or cut off: write it again".into(),
            }),
            other => Ok(other),
        }
    }

    fn next_record(&mut self) -> Result<Option<(usize, Vec<&str>)>> {
        let more = self.reader.read_byte_record(&mut self.record);
        match more {
            Ok(true) => cells_of(&self.path, &self.record).map(Some),
            Ok(false) => Ok(None),
            Err(e) => match e.into_kind() {
                csv::ErrorKind::Io(e) => Err(unreadable(&self.path, &e)),
                other => {
                    let what = format!("not a readable table: {other:?}");
                    Err(Error::file(&self.path, what, "write it again as TSV"))
                }
            },
        }
    }
}

fn cells_of<'r>(path: &Path, record: &'r csv::ByteRecord) -> Result<(usize, Vec<&'r str>)> {
    let line = record.position().map_or(0, |p| p.line() as usize);
    let mut cells = Vec::with_capacity(record.len());
    for cell in record {
        match std::str::from_utf8(cell) {
            Ok(text) if !text.contains('\0') => cells.push(text),
            _ => {
                return Err(Error::Line {
                    path: path.to_path_buf(),
                    line,
                    what: "holds bytes that are not text".into(),
                    fix: "give a TSV or CSV table, plain or gzip, in UTF-8".into(),
                });
            }
        }
    }
    Ok((line, cells))
}

fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::file(path, format!("cannot be read to its end ({e})"), "fetch or compress it again")
}
