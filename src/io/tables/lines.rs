//! Rows of a delimited file, one at a time.
//!
//! Tabs, commas or semicolons, told from the header; gzip told from the first bytes; comment lines
//! before the header, a byte order mark, R's header without a name for the first column, and lines
//! ended in either way are taken as they come. A row is held in memory, never the file.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;

use crate::error::{Error, Result};

/// The longest row that is read, in bytes: a million samples of sixty characters.
const MAX_ROW: u64 = 64 << 20;

/// Files larger than this show how far they are read.
const SHOWN: u64 = 32 << 20;

/// Rows of a delimited file.
pub struct Lines {
    path: PathBuf,
    reader: csv::Reader<Box<dyn Read>>,
    record: csv::ByteRecord,
    /// Names of the columns.
    pub header: Vec<String>,
    pending: bool,
    /// Bytes read since the last row ended.
    since: Rc<Cell<u64>>,
}

/// Counts what is read, and refuses a row that does not end.
struct Metered<R> {
    inner: R,
    since: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        let since = self.since.get() + n as u64;
        self.since.set(since);
        if since > MAX_ROW {
            return Err(io::Error::other("a row is longer than 64 MiB"));
        }
        Ok(n)
    }
}

impl Lines {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// Files that are missing, empty, not text, or have one column.
    pub fn open(path: &Path) -> Result<Self> {
        let mut text = open_text(path)?;
        let start = text.fill_buf().map_err(|e| unreadable(path, &e))?;
        if start.starts_with(&[0xFF, 0xFE]) || start.starts_with(&[0xFE, 0xFF]) {
            let what = "holds bytes that are not text in UTF-8, but UTF-16";
            return Err(Error::file(path, what, "save it as UTF-8"));
        }
        let (delimiter, quoted) = style(start);
        let since = Rc::new(Cell::new(0));
        let source: Box<dyn Read> = Box::new(Metered { inner: text, since: since.clone() });
        let reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(quoted)
            .has_headers(false)
            .flexible(true)
            .from_reader(source);
        let mut lines = Self {
            path: path.to_path_buf(),
            reader,
            record: csv::ByteRecord::new(),
            header: Vec::new(),
            pending: false,
            since,
        };
        lines.read_header()?;
        Ok(lines)
    }

    fn read_header(&mut self) -> Result<()> {
        let header = loop {
            let Some((_, cells)) = self.next_record()? else {
                return Err(Error::file(&self.path, "the table is empty", "fetch it again"));
            };
            let first = cells.first().map_or("", |c| c.trim_start_matches('\u{feff}'));
            if cells.len() == 1 && first.starts_with('#') {
                continue;
            }
            let mut header: Vec<String> = cells.iter().map(|c| c.trim().to_string()).collect();
            if let Some(first) = header.first_mut() {
                *first = first.trim_start_matches('\u{feff}').trim().to_string();
            }
            break header;
        };
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
    ///
    /// # Errors
    /// A row of another length, bytes that are not text, a file that ends too early.
    pub fn next_row(&mut self) -> Result<Option<(usize, Vec<&str>)>> {
        let wanted = self.header.len();
        let path = self.path.clone();
        match self.next_loose()? {
            Some((line, cells)) if cells.len() != wanted => Err(Error::Line {
                path,
                line,
                what: format!("has {} columns, the header has {wanted}", cells.len()),
                fix: "the table is ragged or cut off: write it again".into(),
            }),
            other => Ok(other),
        }
    }

    /// The next row as it is, of whatever length.
    ///
    /// # Errors
    /// Bytes that are not text, a file that ends too early.
    pub fn next_loose(&mut self) -> Result<Option<(usize, Vec<&str>)>> {
        if self.pending {
            self.pending = false;
            return cells_of(&self.path, &self.record).map(Some);
        }
        self.next_record()
    }

    fn next_record(&mut self) -> Result<Option<(usize, Vec<&str>)>> {
        let more = self.reader.read_byte_record(&mut self.record);
        self.since.set(0);
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

/// The text of a file that may be compressed.
fn open_text(path: &Path) -> Result<BufReader<Box<dyn Read>>> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let size = file.metadata().map_or(0, |m| m.len());
    let file: Box<dyn Read> = match size > SHOWN {
        true => Box::new(ProgressBar::new(size).wrap_read(file)),
        false => Box::new(file),
    };
    let mut raw = BufReader::with_capacity(1 << 16, file);
    let start = raw.fill_buf().map_err(|e| Error::io("read", path, e))?;
    if start.is_empty() {
        return Err(Error::file(path, "the file is empty (0 bytes)", "fetch it again"));
    }
    let gzip = start.starts_with(&[0x1F, 0x8B]);
    let plain: Box<dyn Read> =
        if gzip { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };
    Ok(BufReader::with_capacity(1 << 16, plain))
}

/// The delimiter of a file that begins so, and whether its cells may be quoted.
fn style(start: &[u8]) -> (u8, bool) {
    let start = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start);
    let mut lines = start.split(|&b| b == b'\n');
    let first = lines.find(|line| !line.starts_with(b"#") || line.contains(&b'\t'));
    let first = first.unwrap_or_default();
    if first.contains(&b'\t') {
        // A quote inside a TSV is a character like any other, unless R put all names into quotes.
        return (b'\t', first.starts_with(b"\""));
    }
    let semicolons = !first.contains(&b',') && first.contains(&b';');
    (if semicolons { b';' } else { b',' }, true)
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

fn unreadable(path: &Path, e: &io::Error) -> Error {
    Error::file(path, format!("cannot be read to its end ({e})"), "fetch or compress it again")
}
