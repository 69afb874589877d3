//! RNA as it comes: one way in for every format, for packing, drawing and looking.
//!
//! A file is a table (TSV or CSV, plain or gzip, either way round), AnnData (.h5ad) or safetensors
//! (a pack, sparse counts, a matrix); a folder is GDC STAR counts. Whatever it is, what leaves here
//! is samples by genes, with the units stated or guessed, genes under one kind of identifier, and
//! sentences that say what was done.

mod h5ad;
mod star;
mod tensors;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::expression::{Expression, Missing};
use crate::data::genes::GeneMap;
use crate::data::ids::{IdKind, IdMap, Which, bare, kind, read_map, which_are_genes};
use crate::data::units::{self, Units};
use crate::error::{Error, Result, Within};
use crate::io::hdf5;
use crate::io::tables::{Orientation, read_raw};

pub use star::{GdcColumn, is_folder as is_star_folder};

/// How RNA is read.
#[derive(Clone, Debug, clap::Args)]
pub struct RnaOptions {
    /// Which way round a table lies; without it, that is told from the names.
    #[arg(long, value_enum)]
    pub orientation: Option<Orientation>,
    /// Columns of text of a table, comma-separated; without it, those whose first cell is text.
    #[arg(long, value_delimiter = ',')]
    pub annotations: Vec<String>,
    /// Accept negative values in a table (logs; `--units log...` says the same).
    #[arg(long)]
    pub allow_negative: bool,
    /// What the values are: counts, tpm, fpkm, fpkm-uq, any of these after log2- or ln- (of x + 1),
    /// log2, ln or log; without it, guessed where that is safe.
    #[arg(long)]
    pub units: Option<Units>,
    /// What is done about values that are missing: empty cells, NA, NaN.
    #[arg(long, value_enum, default_value = "refuse")]
    pub missing: Missing,
    /// Table that translates gene identifiers: a column `symbol`, and Ensembl genes or `entrez`.
    #[arg(long)]
    pub gene_map: Option<PathBuf>,
    /// Gene list of a matrix in safetensors: a table with a `symbol` column.
    #[arg(long)]
    pub genes_table: Option<PathBuf>,
    /// Column that names the genes: of `var` in AnnData, gene_name in STAR counts.
    #[arg(long)]
    pub gene_column: Option<String>,
    /// Matrix of AnnData: X, raw, or one of its layers.
    #[arg(long)]
    pub layer: Option<String>,
    /// Numbers of GDC STAR counts; without it, those the model wants, or counts.
    #[arg(long, value_enum)]
    pub gdc: Option<GdcColumn>,
    /// Sample sheet of the GDC portal, which names the sample of each file.
    #[arg(long)]
    pub sample_sheet: Option<PathBuf>,
    /// Its column that names the samples.
    #[arg(long, default_value = "Sample ID")]
    pub sheet_column: String,
}

impl Default for RnaOptions {
    fn default() -> Self {
        Self {
            orientation: None,
            annotations: Vec::new(),
            allow_negative: false,
            units: None,
            missing: Missing::Refuse,
            gene_map: None,
            genes_table: None,
            gene_column: None,
            layer: None,
            gdc: None,
            sample_sheet: None,
            sheet_column: "Sample ID".into(),
        }
    }
}

/// What is wanted of a file, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Its genes.
    pub genes: &'a [String],
    /// Names of samples, of which the file should have some.
    pub samples: &'a [String],
    /// Its units.
    pub units: Option<Units>,
}

/// RNA that was read.
#[derive(Clone, Debug)]
pub struct Rna {
    /// Where it came from.
    pub path: PathBuf,
    /// The values.
    pub x: Expression,
    /// What they are.
    pub units: Option<Units>,
    /// Whether a person or the file said so; else they were guessed.
    pub stated: bool,
    /// What was found and done, a sentence each.
    pub said: Vec<String>,
    /// Other names of the genes that the file holds.
    pub alternatives: Vec<(IdKind, Vec<String>)>,
}

/// What a file is, by its first bytes and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text, plain or gzip.
    Table,
    /// AnnData, or other HDF5.
    Hdf5,
    /// Safetensors, plain or gzip.
    Safetensors,
    /// A folder.
    Folder,
}

impl Format {
    /// Looks at a path.
    ///
    /// # Errors
    /// A path that cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if meta.is_dir() {
            return Ok(Self::Folder);
        }
        let mut start = Vec::new();
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        file.take(8).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
        let name = path.to_string_lossy().to_lowercase();
        if start == hdf5::MAGIC || name.ends_with(".h5ad") {
            return Ok(Self::Hdf5);
        }
        let named = name.ends_with(".safetensors") || name.ends_with(".safetensors.gz");
        Ok(if named { Self::Safetensors } else { Self::Table })
    }
}

impl Rna {
    fn new(path: &Path, x: Expression) -> Self {
        let path = path.to_path_buf();
        Self { path, x, units: None, stated: false, said: Vec::new(), alternatives: Vec::new() }
    }

    /// Reads `path`, for a model if one is given.
    ///
    /// # Errors
    /// Whatever is wrong with the file, by name and place; units that cannot be.
    pub fn read(path: &Path, options: &RnaOptions, wanted: Wanted<'_>) -> Result<Self> {
        let mut rna = match Format::of(path)? {
            Format::Folder => star::read(path, options, wanted.units)?,
            Format::Hdf5 => h5ad::read(path, options)?,
            Format::Safetensors => tensors::read(path, options)?,
            Format::Table => table(path, options, wanted)?,
        };
        let shape = format!("{} samples x {} genes", rna.x.len(), rna.x.genes.len());
        rna.said.insert(0, shape);
        rna = rna.settle_gaps(options.missing)?;
        rna.settle_units(options.units)?;
        let map = read_map(options.gene_map.as_ref())?;
        rna.settle_genes(map.as_ref(), wanted.genes)
    }

    /// Names the genes by another column of the file.
    fn name_genes_by(&mut self, column: &str, ids: Vec<String>) -> Result<()> {
        if ids.len() != self.x.genes.len() {
            let what = format!("{} names for {} genes", ids.len(), self.x.genes.len());
            return Err(Error::file(&self.path, what, format!("\"{column}\" is not of the genes")));
        }
        let own = std::mem::replace(&mut self.x.genes, ids);
        self.alternatives.push((kind(&own), own));
        self.said.push(format!("genes named by {column}"));
        Ok(())
    }

    /// Does what is to be done about missing values; other names of genes follow.
    fn settle_gaps(mut self, rule: Missing) -> Result<Self> {
        let before = self.x.genes.clone();
        let (x, told) = self.x.settled(rule).within(self.path.display())?;
        self.x = x;
        self.said.extend(told);
        if self.x.genes.len() < before.len() {
            let mut left = self.x.genes.iter().peekable();
            // Genes keep their order, so those that are left are met in turn.
            let kept: Vec<bool> =
                before.iter().map(|g| left.next_if(|next| *next == g).is_some()).collect();
            for (_, ids) in &mut self.alternatives {
                let mut kept = kept.iter();
                ids.retain(|_| kept.next() == Some(&true));
            }
        }
        Ok(self)
    }

    fn settle_units(&mut self, stated: Option<Units>) -> Result<()> {
        if let Some(stated) = stated {
            if let Some(known) = self.units.filter(|known| *known != stated) {
                let what = format!("says {stated}, {} holds {known}", self.path.display());
                return Err(Error::config("--units", what, "leave it out"));
            }
            self.units = Some(stated);
        }
        self.stated = self.units.is_some();
        if let Some(units) = self.units {
            self.said.push(format!("units: {units}"));
            return Ok(());
        }
        let guess = units::guess(&self.x);
        self.units = guess.units;
        self.said.push(match guess.units {
            Some(units) => format!("units: {units}, guessed: {}", guess.why),
            None => format!("units: unknown: {}", guess.why),
        });
        Ok(())
    }

    /// Puts genes under the identifiers that most of the wanted ones are found by, or, where none
    /// are wanted, under symbols if a map was given; merges genes that are several.
    fn settle_genes(mut self, map: Option<&IdMap>, wanted: &[String]) -> Result<Self> {
        let own: Vec<String> = self.x.genes.iter().map(|g| bare(g).into_owned()).collect();
        let target = if wanted.is_empty() { IdKind::Symbol } else { kind(wanted) };
        let have = kind(&own);
        self.said.push(format!("genes: {have}"));
        let mut candidates = vec![(own, String::new())];
        for (kind, ids) in &self.alternatives {
            // A gene without another name keeps its own.
            let named = |(id, own): (&String, &String)| match id.trim().is_empty() {
                true => own.clone(),
                false => bare(id).into_owned(),
            };
            let ids = ids.iter().zip(&candidates[0].0).map(named).collect();
            candidates.push((ids, format!("found by the file's {kind}")));
        }
        if let Some(map) = map {
            if !map.has(target) {
                let what = format!("{} has no {target}", map.name);
                return Err(Error::config("--gene-map", what, "give a map that has them"));
            }
            let (ids, n) = map.translate(&candidates[0].0, target);
            candidates
                .push((ids, format!("{n} of {} translated by {}", self.x.genes.len(), map.name)));
        }
        let found = |ids: &[String]| matched(ids, wanted);
        let best = match wanted.is_empty() {
            true if map.is_some() => candidates.len() - 1,
            true => 0,
            // The first of the best: the file's own names before others.
            false => {
                (0..candidates.len()).rev().max_by_key(|&i| found(&candidates[i].0)).unwrap_or(0)
            }
        };
        let (names, how) = candidates.swap_remove(best);
        if !how.is_empty() {
            self.said.push(how);
        }
        let merge = Units::merge(self.units);
        let (x, several) = self.x.renamed(names, merge)?;
        if let Some(first) = several.first() {
            let n = several.len();
            self.said.push(format!(
                "{n} genes stood there more than once ({first}, ...): {}",
                merge.name()
            ));
        }
        self.x = x;
        Ok(self)
    }

    /// Brings the values to what a model wants and finds its genes.
    ///
    /// # Errors
    /// Other units, too few genes.
    pub fn fit(
        self,
        wanted: Wanted<'_>,
        min_matched: f64,
    ) -> Result<(Expression, GeneMap, Vec<String>)> {
        let (path, mut said) = (self.path.display().to_string(), self.said);
        let (x, units) =
            units::adapt(self.x, (self.units, self.stated), wanted.units).within(&path)?;
        said.push(units);
        let map = GeneMap::new(wanted.genes, &x.genes, min_matched).within(&path)?;
        said.push(map.report.to_string());
        Ok((x, map, said))
    }
}

/// How many of `wanted` are among `ids`.
fn matched(ids: &[String], wanted: &[String]) -> usize {
    let have: std::collections::HashSet<&str> = ids.iter().map(String::as_str).collect();
    wanted.iter().filter(|g| have.contains(bare(g).as_ref())).count()
}

/// A table, the way round that its names or the options say.
fn table(path: &Path, options: &RnaOptions, wanted: Wanted<'_>) -> Result<Rna> {
    let given = (!options.annotations.is_empty()).then_some(options.annotations.as_slice());
    let negative = options.allow_negative || options.units.is_some_and(Units::may_be_negative);
    let raw = read_raw(path, given, negative)?;
    let (way, told) = match options.orientation {
        Some(way) => (way, "as said".to_string()),
        None => match which_are_genes(&raw.columns, &raw.rows, wanted.genes, wanted.samples) {
            Which::First(why) => (Orientation::SamplesByGenes, format!("the header has {why}")),
            Which::Second(why) => {
                (Orientation::GenesBySamples, format!("the first column has {why}"))
            }
            Which::Unclear => {
                let what = format!(
                    "rows are {}, ..., columns {}, ...: neither is known for genes",
                    raw.rows[0], raw.columns[0]
                );
                let fix = "say --orientation samples-by-genes or genes-by-samples";
                return Err(Error::file(path, what, fix));
            }
        },
    };
    let row = match way {
        Orientation::SamplesByGenes => {
            raw.check_rows("sample")?;
            "sample"
        }
        Orientation::GenesBySamples => {
            raw.check_columns("sample")?;
            "gene"
        }
    };
    let mut said = vec![format!("a row a {row} ({told})")];
    if !raw.annotations.is_empty() {
        let names: Vec<&str> = raw.annotations.iter().map(|a| a.0.as_str()).collect();
        said.push(format!("columns of text, kept aside: {}", names.join(", ")));
    }
    let mut rna = Rna::new(path, Expression::from_dense(raw.lie(way))?);
    rna.said = said;
    Ok(rna)
}
