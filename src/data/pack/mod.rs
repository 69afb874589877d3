//! The pack: tiles and RNA of a data set in one memory-mapped safetensors file.
//!
//! Images come first as tiles with RNA, then as free crops without. A JPEG store keeps the bytes
//! that all its files begin with (their tables) once, as `image.head`. Counts are bytes; the few
//! above 254 stand in `rna.over_index` and `rna.over_value`. Strings are JSON in the metadata.

mod build;
mod cli;
mod cut;
mod free;
mod pixels;
mod store;

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

pub use build::{BuildSpec, GeneRule, Notice, Report, RnaSource, build};
pub use cli::{PackArgs, run};
pub use cut::{Crop, Cut};
pub use free::FreeSource;
pub use pixels::PackImages;

use crate::data::pairs::empty_split;
use crate::data::rna::Expression;
use crate::data::units::Units;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::io::safetensors::TensorFile;

/// Value of the metadata key `format`.
pub const FORMAT: &str = "genevar-pack";

/// Version of the format that is written and read.
pub const VERSION: &str = "1";

/// "None" among the 16-bit labels.
const NO_LABEL: u32 = u16::MAX as u32;

/// "No RNA" among the rows.
const NO_ROW: u32 = u32::MAX;

/// A byte count that continues in the overflow list.
const OVER: u8 = u8::MAX;

/// An open pack.
#[derive(Debug)]
pub struct Pack {
    file: Arc<TensorFile>,
    pixels: PackImages,
    genes: Vec<String>,
    splits: Labels,
    classes: Labels,
    sections: Labels,
    patients: Labels,
    rows: Vec<u32>,
    over: Vec<(u32, u32)>,
    totals: Option<Vec<f32>>,
}

/// A categorical column: names, and one number an image.
#[derive(Debug)]
struct Labels {
    names: Vec<String>,
    of: Vec<u32>,
}

impl Labels {
    fn read(file: &TensorFile, names: &str, column: &str, len: usize) -> Result<Self> {
        let names: Vec<String> = json(file, names)?;
        let of = file.u32s(column)?;
        if of.len() != len || of.iter().any(|&v| v != NO_LABEL && v as usize >= names.len()) {
            return Err(broken(file, &format!("\"{column}\" does not label {len} images")));
        }
        Ok(Self { names, of })
    }

    fn get(&self, i: usize) -> Option<&str> {
        self.names.get(self.of[i] as usize).map(String::as_str)
    }

    fn name(&self, i: usize) -> &str {
        self.get(i).unwrap_or_default()
    }
}

fn broken(file: &TensorFile, what: &str) -> Error {
    Error::file(file.path(), format!("corrupt pack: {what}"), "build the pack again")
}

fn json<T: serde::de::DeserializeOwned>(file: &TensorFile, key: &str) -> Result<T> {
    serde_json::from_str(file.meta(key)?)
        .map_err(|e| broken(file, &format!("metadata \"{key}\": {e}")))
}

impl Pack {
    /// Opens a pack and checks that its parts fit together. Pixels are read when asked for.
    ///
    /// # Errors
    /// Another kind or version of file, and whatever is missing or does not fit, by name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = Arc::new(TensorFile::open(&path)?);
        let format = file.metadata().get("format").map_or("none", String::as_str);
        if format != FORMAT {
            let what = format!("not a pack (its format is \"{format}\")");
            return Err(Error::file(path, what, "build one with `genevar data pack`"));
        }
        let version = file.meta("version")?;
        if version != VERSION {
            let what = format!("pack version {version}, this program reads {VERSION}");
            return Err(Error::file(path, what, "build it again with `genevar data pack`"));
        }
        let ids: Vec<String> = json(&file, "ids")?;
        let genes: Vec<String> = json(&file, "genes")?;
        let n = ids.len();
        let tile_size: usize = json(&file, "tile_size")?;
        let pixels = PackImages::open(&file, ids, tile_size)?;
        let rows = file.u32s("image.row")?;
        let samples = rna_samples(&file, genes.len())?;
        if rows.len() != n || rows.iter().any(|&r| r != NO_ROW && r as usize >= samples) {
            return Err(broken(&file, "\"image.row\" names RNA rows that are not there"));
        }
        let (over, totals) = read_counts_extra(&file, samples, genes.len())?;
        Ok(Self {
            splits: Labels::read(&file, "splits", "image.split", n)?,
            classes: Labels::read(&file, "classes", "image.class", n)?,
            sections: Labels::read(&file, "sections", "image.section", n)?,
            patients: Labels::read(&file, "patients", "image.patient", n)?,
            file,
            pixels,
            genes,
            rows,
            over,
            totals,
        })
    }

    /// Number of images, with and without RNA.
    pub fn len(&self) -> usize {
        self.pixels.ids().len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.ids().is_empty()
    }

    /// Side of every image in pixels.
    pub fn tile_size(&self) -> usize {
        self.pixels.side()
    }

    /// Micrometres a pixel, if the builder knew.
    pub fn um_per_px(&self) -> Option<f64> {
        self.file.metadata().get("um_per_px").and_then(|s| s.parse().ok())
    }

    /// What the RNA values are, if the builder knew; counts are whole numbers, and need no word.
    pub fn units(&self) -> Option<Units> {
        let recorded = self.file.metadata().get("rna.units").and_then(|s| s.parse().ok());
        recorded.or_else(|| (!self.file.contains("rna.values")).then_some(Units::COUNTS))
    }

    /// The genes, in the order of the counts.
    pub fn genes(&self) -> &[String] {
        &self.genes
    }

    /// Names of the tissue classes.
    pub fn classes(&self) -> &[String] {
        &self.classes.names
    }

    /// Licence, source, citation and changes: to be shown wherever the tiles are.
    pub fn notice(&self) -> &str {
        self.file.metadata().get("notice").map_or("", String::as_str)
    }

    /// Name of image `i`: the tile's file name, or section and position of a free crop.
    pub fn id(&self, i: usize) -> &str {
        &self.pixels.ids()[i]
    }

    /// Tissue class of image `i`.
    pub fn class(&self, i: usize) -> Option<&str> {
        self.classes.get(i)
    }

    /// Position of the class of image `i` in [`Pack::classes`].
    pub fn class_index(&self, i: usize) -> Option<usize> {
        self.classes.get(i).map(|_| self.classes.of[i] as usize)
    }

    /// Section or slide of image `i`, or empty.
    pub fn section(&self, i: usize) -> &str {
        self.sections.name(i)
    }

    /// Patient of image `i`, or empty.
    pub fn patient(&self, i: usize) -> &str {
        self.patients.name(i)
    }

    /// Split of image `i`, or empty.
    pub fn split_of(&self, i: usize) -> &str {
        self.splits.name(i)
    }

    /// Images of a split that have RNA, in table order; a split without any is an error.
    pub fn split(&self, name: &str) -> Result<Vec<usize>> {
        if self.rows.iter().all(|&r| r == NO_ROW) {
            let path = self.file.path();
            let fix = "it serves to train a tokenizer (msvq); pack the RNA with --table and --rna";
            return Err(Error::file(path, "a pack of tiles alone, without RNA", fix));
        }
        self.chosen(name, |i| self.rna_row(i).is_some())
    }

    /// All images of a split, with RNA or without: what the tokenizer trains on.
    pub fn images(&self, name: &str) -> Result<Vec<usize>> {
        self.chosen(name, |_| true)
    }

    fn chosen(&self, name: &str, keep: impl Fn(usize) -> bool) -> Result<Vec<usize>> {
        let all: Vec<usize> = (0..self.len()).filter(|&i| keep(i)).collect();
        let found: Vec<usize> =
            all.iter().copied().filter(|&i| self.splits.name(i) == name).collect();
        if found.is_empty() {
            return Err(empty_split(name, all.iter().map(|&i| self.splits.name(i))));
        }
        Ok(found)
    }

    /// The images, for who outlives the pack.
    pub fn pixels(&self) -> &PackImages {
        &self.pixels
    }

    /// Image `i`.
    ///
    /// # Errors
    /// One that cannot be decoded, by name.
    pub fn tile(&self, i: usize) -> Result<Rgb> {
        self.pixels.tile(i)
    }

    /// The images `indices`, decoded in parallel, in that order.
    pub fn tiles(&self, indices: &[usize]) -> Result<Vec<Rgb>> {
        indices.par_iter().map(|&i| self.tile(i)).collect()
    }

    /// Row of the RNA of image `i`; several images of a patient may share one.
    pub fn rna_row(&self, i: usize) -> Option<usize> {
        Some(self.rows[i]).filter(|&r| r != NO_ROW).map(|r| r as usize)
    }

    /// RNA of image `i`, in the order of [`Pack::genes`]: raw counts, or values as they were given.
    pub fn rna_counts(&self, i: usize) -> Result<Vec<f32>> {
        match self.rna_row(i) {
            Some(row) => self.values(row),
            None => Err(Error::data(
                format!("image {i} ({}) has no RNA: it is a free crop", self.id(i)),
                "take images from `split`, not from `images`",
            )),
        }
    }

    /// The RNA of the images `indices` as a matrix whose row j belongs to `indices[j]`, with the
    /// totals over all genes that were measured.
    pub fn expression(&self, indices: &[usize]) -> Result<Expression> {
        let mut values = Vec::with_capacity(indices.len() * self.genes.len());
        let mut totals = Vec::with_capacity(indices.len());
        for &i in indices {
            let row = self.rna_counts(i)?;
            let sum = || row.iter().map(|&v| f64::from(v)).sum();
            let at = self.rows[i] as usize;
            totals.push(self.totals.as_ref().map_or_else(sum, |t| f64::from(t[at])));
            values.extend(row);
        }
        let names = indices.iter().map(|&i| self.id(i).to_string()).collect();
        Expression::new(names, self.genes.clone(), values, Some(totals))
    }

    fn values(&self, row: usize) -> Result<Vec<f32>> {
        let g = self.genes.len();
        if self.file.contains("rna.values") {
            let bytes = &self.file.bytes("rna.values")?[4 * g * row..4 * g * (row + 1)];
            return Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect());
        }
        let bytes = &self.file.bytes("rna.counts")?[g * row..g * (row + 1)];
        let mut values: Vec<f32> = bytes.iter().map(|&b| f32::from(b)).collect();
        let first = self.over.partition_point(|&(at, _)| (at as usize) < g * row);
        for &(at, value) in self.over[first..].iter().take_while(|o| (o.0 as usize) < g * (row + 1))
        {
            values[at as usize - g * row] = value as f32;
        }
        Ok(values)
    }
}

/// Number of RNA rows.
fn rna_samples(file: &TensorFile, genes: usize) -> Result<usize> {
    let name = if file.contains("rna.values") { "rna.values" } else { "rna.counts" };
    let wanted = if name == "rna.values" { "F32" } else { "U8" };
    match file.shape(name)? {
        &[rows, width] if width == genes && file.dtype(name)? == wanted => Ok(rows),
        other => Err(broken(file, &format!("\"{name}\" is {other:?} for {genes} genes"))),
    }
}

type CountsExtra = (Vec<(u32, u32)>, Option<Vec<f32>>);

fn read_counts_extra(file: &TensorFile, samples: usize, genes: usize) -> Result<CountsExtra> {
    if file.contains("rna.values") {
        return Ok((Vec::new(), None));
    }
    let index = file.u32s("rna.over_index")?;
    let value = file.u32s("rna.over_value")?;
    let inside = index.last().is_none_or(|&i| (i as usize) < samples * genes);
    if index.len() != value.len() || !index.is_sorted() || !inside {
        return Err(broken(file, "\"rna.over_index\" and \"rna.over_value\" do not fit"));
    }
    let totals = file.u32s("rna.total")?;
    if totals.len() != samples {
        return Err(broken(file, "\"rna.total\" does not have one value a sample"));
    }
    let totals = totals.iter().map(|&t| t as f32).collect();
    Ok((index.into_iter().zip(value).collect(), Some(totals)))
}
