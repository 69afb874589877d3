//! A folder of GDC STAR counts: one file a sample, all of the same genes.
//!
//! A file begins with a comment, names its columns, and lists reads that belong to no gene
//! (`N_unmapped` ...) before the genes; these rows are left out. A sample is named as its file,
//! or as a sample sheet of the GDC portal says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Rna, RnaOptions};
use crate::data::expression::Expression;
use crate::data::ids::{IdKind, bare};
use crate::data::units::{Log, Quantity, Units};
use crate::error::{Error, Result};
use crate::io::tables::{Lines, MAX_VALUES, Table};

/// Which numbers of a STAR file are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum GdcColumn {
    /// Reads of either strand: raw counts.
    Unstranded,
    /// TPM.
    Tpm,
    /// FPKM.
    Fpkm,
    /// FPKM scaled to the upper quartile.
    FpkmUq,
}

impl GdcColumn {
    fn column(self) -> &'static str {
        match self {
            Self::Unstranded => "unstranded",
            Self::Tpm => "tpm_unstranded",
            Self::Fpkm => "fpkm_unstranded",
            Self::FpkmUq => "fpkm_uq_unstranded",
        }
    }

    fn units(self) -> Units {
        let quantity = match self {
            Self::Unstranded => Quantity::Counts,
            Self::Tpm => Quantity::Tpm,
            Self::Fpkm => Quantity::Fpkm,
            Self::FpkmUq => Quantity::FpkmUq,
        };
        Units { quantity, log: Log::None }
    }

    /// The numbers that a model of these units reads: counts unless it says otherwise.
    fn of(units: Option<Units>) -> Self {
        let all = [Self::Unstranded, Self::Tpm, Self::Fpkm, Self::FpkmUq];
        let fits = |c: &Self| units.is_some_and(|u| u.quantity == c.units().quantity);
        all.into_iter().find(fits).unwrap_or(Self::Unstranded)
    }
}

/// One file.
struct Star {
    ids: Vec<String>,
    names: Vec<String>,
    values: Vec<f32>,
}

/// Whether a folder holds such files.
pub fn is_folder(folder: &Path) -> bool {
    files(folder).is_ok_and(|f| !f.is_empty())
}

/// Reads a folder; `model` are the units that a model wants, by which the column is chosen if
/// nobody chose it.
///
/// # Errors
/// No files, files of different genes, a sample that two files name, and whatever is wrong in one.
pub(super) fn read(folder: &Path, options: &RnaOptions, model: Option<Units>) -> Result<Rna> {
    let files = files(folder)?;
    if files.is_empty() {
        let what = "holds no GDC STAR counts (.tsv with a column gene_id)";
        return Err(Error::file(folder, what, "name the folder that the GDC client filled"));
    }
    let gdc = options.gdc.unwrap_or_else(|| GdcColumn::of(model));
    let samples = names(folder, &files, options)?;
    let bar = indicatif::ProgressBar::new(files.len() as u64).with_message("STAR counts");
    let first = one(&files[0], gdc)?;
    if first.ids.len().saturating_mul(files.len()) > MAX_VALUES {
        let what = format!("{} files of {} genes are too many", files.len(), first.ids.len());
        return Err(Error::file(folder, what, "read them in parts"));
    }
    let rows = files.par_iter().map(|path| {
        let star = one(path, gdc)?;
        bar.inc(1);
        if star.ids != first.ids {
            let at = star.ids.iter().zip(&first.ids).position(|(a, b)| a != b);
            let at = at.unwrap_or(star.ids.len().min(first.ids.len()));
            let get = |ids: &[String]| ids.get(at).map_or("nothing".to_string(), Clone::clone);
            let what = format!(
                "gene {at} is {}, in {} it is {}",
                get(&star.ids),
                files[0].display(),
                get(&first.ids)
            );
            return Err(Error::file(path, what, "keep files of one gene model in a folder"));
        }
        Ok(star.values)
    });
    let values: Vec<Vec<f32>> = rows.collect::<Result<_>>()?;
    bar.finish_and_clear();
    let x = Expression::new(samples, first.ids, values.concat(), None)?;
    let mut rna = Rna::new(folder, x);
    rna.units = Some(gdc.units());
    rna.said.push(format!("{} STAR files, column {}", files.len(), gdc.column()));
    if options.gene_column.as_deref() == Some("gene_name") {
        rna.name_genes_by("gene_name", first.names)?;
    } else {
        rna.alternatives.push((IdKind::Symbol, first.names));
    }
    Ok(rna)
}

/// Files of a folder and of the folders in it (the GDC client makes one a file), sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
        entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io("read", folder, e))).collect()
    };
    let mut found = Vec::new();
    for path in list(folder)? {
        let inner = if path.is_dir() { list(&path)? } else { vec![path] };
        found.extend(inner.into_iter().filter(|p| p.is_file() && is_star(p)));
    }
    found.sort();
    Ok(found)
}

fn is_star(path: &Path) -> bool {
    let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().to_lowercase());
    let table = [".tsv", ".tsv.gz", ".txt", ".txt.gz"].iter().any(|end| name.ends_with(end));
    if !table || name.starts_with('.') {
        return false;
    }
    // By its name, or else by its header.
    name.contains("star_gene_counts")
        || Lines::open(path).is_ok_and(|l| {
            l.header.first().is_some_and(|h| h == "gene_id")
                && l.header.iter().any(|h| h == "unstranded")
        })
}

/// The sample of each file.
fn names(folder: &Path, files: &[PathBuf], options: &RnaOptions) -> Result<Vec<String>> {
    let name = |p: &Path| p.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let Some(sheet) = &options.sample_sheet else {
        let stem = |p: &PathBuf| {
            let name = name(p);
            let stem = name.split(".rna_seq").next().unwrap_or(&name);
            let ends = [".gz", ".tsv", ".txt"];
            ends.iter().fold(stem, |s, end| s.strip_suffix(*end).unwrap_or(s)).to_string()
        };
        return distinct(folder, files.iter().map(stem).collect());
    };
    let table = Table::read(sheet)?;
    let (file, sample) = (table.column("File Name")?, table.column(&options.sheet_column)?);
    let of: HashMap<&str, &str> =
        table.rows.iter().map(|r| (r[file].trim(), r[sample].trim())).collect();
    let find = |p: &PathBuf| {
        let name = name(p);
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        of.get(name.as_str()).or_else(|| of.get(plain)).map(ToString::to_string).ok_or_else(|| {
            let what = format!("does not list the file {name} of {}", folder.display());
            Error::file(sheet, what, "give the sheet of these files, or leave it out")
        })
    };
    distinct(folder, files.iter().map(find).collect::<Result<_>>()?)
}

fn distinct(folder: &Path, names: Vec<String>) -> Result<Vec<String>> {
    let mut seen = std::collections::HashSet::new();
    match names.iter().find(|n| !seen.insert(n.as_str())) {
        None => Ok(names),
        Some(twice) => {
            let what = format!("two files are of the sample \"{twice}\"");
            let fix = "keep one of them, or name samples by another --sheet-column";
            Err(Error::file(folder, what, fix))
        }
    }
}

fn one(path: &Path, gdc: GdcColumn) -> Result<Star> {
    let mut lines = Lines::open(path)?;
    let at = |name: &str| {
        lines.header.iter().position(|h| h == name).ok_or_else(|| {
            let what =
                format!("has no column \"{name}\": its columns are {}", lines.header.join(", "));
            Error::file(path, what, "give GDC STAR counts, or read it as a table")
        })
    };
    let (id, symbol, value) = (at("gene_id")?, at("gene_name")?, at(gdc.column())?);
    let mut star = Star { ids: Vec::new(), names: Vec::new(), values: Vec::new() };
    while let Some((line, cells)) = lines.next_loose()? {
        let cell = |c: usize| cells.get(c).map_or("", |c| c.trim());
        if cell(id).starts_with("N_") {
            continue;
        }
        let parsed = cell(value).parse::<f32>().ok().filter(|v| v.is_finite() && *v >= 0.0);
        let Some(parsed) = parsed.filter(|_| !cell(id).is_empty()) else {
            return Err(Error::Line {
                path: path.to_path_buf(),
                line,
                what: format!("gene \"{}\": {} is {:?}", cell(id), gdc.column(), cell(value)),
                fix: "the file is damaged or cut off: fetch it again".into(),
            });
        };
        star.ids.push(bare(cell(id)).into_owned());
        star.names.push(cell(symbol).to_string());
        star.values.push(parsed);
    }
    match star.ids.is_empty() {
        true => Err(Error::file(path, "lists no genes", "fetch it again")),
        false => Ok(star),
    }
}
