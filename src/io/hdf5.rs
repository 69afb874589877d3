//! HDF5 files, as AnnData writes them: datasets of numbers and strings, groups, attributes.
//!
//! The decoder is the crate `hdf5-reader`. Here its errors get the file's name and a cure, what a
//! header may make it allocate is bounded, sums that a damaged file makes it overflow end as
//! errors too, and numbers of every stored type come out as f32.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hdf5_reader::group::Group;
use hdf5_reader::{
    Attribute, Dataset, Datatype, H5Type, Hdf5File, OpenOptions, SliceInfo, SliceInfoElem,
};

use super::tables::MAX_VALUES;
use crate::error::{Error, Result};

/// The first bytes of a file without a user block.
pub const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The most one read may take, and one chunk, in bytes.
const MAX_READ: usize = 4 * MAX_VALUES;
const MAX_CHUNK: usize = 1 << 28;

/// Bytes that deflate makes of one, at the very most.
const MOST_PACKED: u64 = 1032;

/// An open file.
pub struct H5 {
    path: PathBuf,
    file: Hdf5File,
    /// The file's size in bytes.
    size: u64,
}

impl H5 {
    /// Opens a file.
    ///
    /// # Errors
    /// Files that are missing or not HDF5.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
        let options = OpenOptions::default()
            .with_chunk_cache_bytes(16 << 20)
            .with_max_chunk_bytes(MAX_CHUNK)
            .with_max_read_bytes(MAX_READ);
        let file = caught(|| Hdf5File::open_with_options(path, options)).map_err(|e| {
            Error::file(path, format!("not a readable HDF5 file: {e}"), "fetch or write it again")
        })?;
        Ok(Self { path: path.to_path_buf(), file, size })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error of this file.
    pub fn error(&self, what: impl Display, fix: impl Display) -> Error {
        Error::file(&self.path, what, fix)
    }

    fn bad(&self, name: &str, e: impl Display) -> Error {
        self.error(format!("\"{name}\" cannot be read: {e}"), "write the file again with anndata")
    }

    fn dataset(&self, name: &str) -> Result<Dataset> {
        caught(|| self.file.dataset(name)).map_err(|e| self.bad(name, e))
    }

    fn group(&self, name: &str) -> Result<Group> {
        caught(|| self.file.group(name)).map_err(|e| self.bad(name, e))
    }

    /// Whether there is a dataset of that name.
    pub fn has_dataset(&self, name: &str) -> bool {
        self.dataset(name).is_ok()
    }

    /// Whether there is a group of that name.
    pub fn has_group(&self, name: &str) -> bool {
        self.group(name).is_ok()
    }

    /// Names of what a group holds: groups, then datasets; nothing where there is no group.
    pub fn members(&self, name: &str) -> Vec<String> {
        let names = self.group(name).ok().and_then(|g| caught(|| g.member_names()).ok());
        names.map_or_else(Vec::new, |(groups, sets)| groups.into_iter().chain(sets).collect())
    }

    /// Extents of a dataset.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let set = self.dataset(name)?;
        let extent = |&d: &u64| usize::try_from(d).map_err(|e| self.bad(name, e));
        set.shape().iter().map(extent).collect()
    }

    fn attribute(&self, name: &str, key: &str) -> Option<Attribute> {
        match self.group(name) {
            Ok(group) => caught(|| group.attribute(key)).ok(),
            Err(_) => {
                let set = self.dataset(name).ok()?;
                caught(|| set.attribute(key)).ok()
            }
        }
    }

    /// A text attribute of a group or dataset.
    pub fn text_attribute(&self, name: &str, key: &str) -> Option<String> {
        let attribute = self.attribute(name, key)?;
        caught(|| attribute.read_strings()).ok()?.into_iter().next()
    }

    /// An attribute of whole numbers.
    pub fn integers_attribute(&self, name: &str, key: &str) -> Option<Vec<i64>> {
        let attribute = self.attribute(name, key)?;
        caught(|| attribute.read_1d::<i64>()).ok().or_else(|| {
            let wide = caught(|| attribute.read_1d::<u64>()).ok()?;
            wide.into_iter().map(|v| i64::try_from(v).ok()).collect()
        })
    }

    /// A dataset of strings.
    pub fn strings(&self, name: &str) -> Result<Vec<String>> {
        let set = self.dataset(name)?;
        self.bounded(name, &set)?;
        caught(|| set.read_strings()).map_err(|e| self.bad(name, e))
    }

    /// A dataset of whole numbers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let set = self.dataset(name)?;
        self.bounded(name, &set)?;
        let all = SliceInfo::all(set.ndim());
        self.numbers(name, &set, &all, |v| v as i64, |v| v)
    }

    /// A dataset of numbers, whatever its type; of the rows `rows` alone if they are given.
    pub fn floats(&self, name: &str, rows: Option<(usize, usize)>) -> Result<Vec<f32>> {
        let set = self.dataset(name)?;
        self.bounded(name, &set)?;
        let mut slice = SliceInfo::all(set.ndim());
        if let (Some((start, end)), Some(first)) = (rows, slice.selections.first_mut()) {
            *first = SliceInfoElem::Slice { start: start as u64, end: end as u64, step: 1 };
        }
        self.numbers(name, &set, &slice, |v| v as f32, |v| v as f32)
    }

    fn bounded(&self, name: &str, set: &Dataset) -> Result<()> {
        let n = caught(|| set.num_elements()).map_err(|e| self.bad(name, e))?;
        if n > MAX_VALUES as u64 {
            let what = format!("\"{name}\" holds {n} values, at most {MAX_VALUES} are read");
            return Err(self.error(what, "write a part of it"));
        }
        let element = caught(|| set.raw_element_size()).map_err(|e| self.bad(name, e))? as u64;
        let most = self.size.saturating_mul(MOST_PACKED).saturating_add(1 << 20);
        if n.saturating_mul(element) > most {
            let what = format!("{n} values of {element} bytes are more than the file can hold");
            return Err(self.bad(name, what));
        }
        Ok(())
    }

    fn numbers<T>(
        &self,
        name: &str,
        set: &Dataset,
        slice: &SliceInfo,
        float: impl Fn(f64) -> T,
        integer: impl Fn(i64) -> T,
    ) -> Result<Vec<T>> {
        match *set.dtype() {
            Datatype::FloatingPoint { size: 4, .. } => {
                self.read(name, set, slice, |v: f32| float(f64::from(v)))
            }
            Datatype::FloatingPoint { size: 8, .. } => self.read(name, set, slice, float),
            Datatype::FixedPoint { size: 1, signed: true, .. } => {
                self.read(name, set, slice, |v: i8| integer(v.into()))
            }
            Datatype::FixedPoint { size: 1, .. } => {
                self.read(name, set, slice, |v: u8| integer(v.into()))
            }
            Datatype::FixedPoint { size: 2, signed: true, .. } => {
                self.read(name, set, slice, |v: i16| integer(v.into()))
            }
            Datatype::FixedPoint { size: 2, .. } => {
                self.read(name, set, slice, |v: u16| integer(v.into()))
            }
            Datatype::FixedPoint { size: 4, signed: true, .. } => {
                self.read(name, set, slice, |v: i32| integer(v.into()))
            }
            Datatype::FixedPoint { size: 4, .. } => {
                self.read(name, set, slice, |v: u32| integer(v.into()))
            }
            Datatype::FixedPoint { size: 8, signed: true, .. } => {
                self.read(name, set, slice, integer)
            }
            // Beyond 63 bits nothing is counted; a float is the nearest to such a number.
            Datatype::FixedPoint { size: 8, .. } => self.read(name, set, slice, |v: u64| {
                i64::try_from(v).map_or_else(|_| float(v as f64), &integer)
            }),
            ref other => Err(self.bad(name, format!("its type {other:?} is not of numbers"))),
        }
    }

    fn read<H: H5Type, T>(
        &self,
        name: &str,
        set: &Dataset,
        slice: &SliceInfo,
        convert: impl Fn(H) -> T,
    ) -> Result<Vec<T>> {
        let array = caught(|| set.read_slice::<H>(slice)).map_err(|e| self.bad(name, e))?;
        Ok(array.into_iter().map(convert).collect())
    }
}

/// What the decoder says, with a panic of its own turned into a sentence: its lengths and addresses
/// come from the file, and one that nobody thought of may overflow.
fn caught<T>(read: impl FnOnce() -> hdf5_reader::error::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its structure is damaged".into()),
    }
}
