//! Tables of text: TSV or CSV, plain or gzip, streamed line by line.
//!
//! [`Table`] keeps every cell as text (tile lists, gene lists); [`read_dense`] turns a table of
//! numbers into an expression matrix. Both refuse ragged, binary and duplicate rows with the line
//! and column at fault.

mod dense;
mod lines;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use dense::{Dense, DenseSpec, MAX_VALUES, Orientation, Raw, is_missing, read_dense, read_raw};
pub use lines::Lines;

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

/// The most text that a [`Table`] holds, in bytes: it is for lists, not for matrices.
const MAX_TEXT: usize = 1 << 30;

impl Table {
    /// Reads a whole table.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut lines = Lines::open(path)?;
        let header = lines.header.clone();
        check_unique(path, &header, "column")?;
        let mut rows = Vec::new();
        let mut numbers = Vec::new();
        let mut size = 0;
        while let Some((line, cells)) = lines.next_row()? {
            size += cells.iter().map(|c| c.len() + size_of::<String>()).sum::<usize>();
            if size > MAX_TEXT {
                let what = "its text takes more than 1 GiB of memory";
                return Err(Error::file(path, what, "a list is wanted here, not a matrix"));
            }
            rows.push(cells.iter().map(ToString::to_string).collect());
            numbers.push(line);
        }
        Ok(Self { path: path.to_path_buf(), header, rows, lines: numbers })
    }

    /// A table that was made, not read; `path` stands in messages.
    pub fn made(path: &Path, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        let header = header.iter().map(ToString::to_string).collect();
        Self { path: path.to_path_buf(), header, lines: vec![0; rows.len()], rows }
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
