//! `genevar data inspect`: what is in a file or folder, before anything is trained on it.
//!
//! Every kind of input is recognised by its first bytes: tables, AnnData, safetensors (packs,
//! bundles, checkpoints, matrices), images, and folders of these. What cannot be read as expression
//! is still counted: missing cells, words among numbers, NaN.

mod spread;
mod table;
mod tensors;
mod tiles;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::Serialize;
use spread::Spread;

use crate::data::expression::Missing;
use crate::data::slide::named_slide;
use crate::data::source::{Format, Rna, RnaOptions, Wanted, is_star_folder};
use crate::error::{Error, Result};
use crate::io::images::{self, Rgb, grid, write_png};

/// Says what is in files and folders: shapes, ranges, missing values, units, gene identifiers.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Tables, .h5ad, safetensors (packs, bundles, checkpoints), images, or folders of them.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// PNG to write with thumbnails of the images found.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// How many thumbnails.
    #[arg(long, default_value_t = 64)]
    pub thumbnails: usize,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub(crate) read: RnaOptions,
}

impl InspectArgs {
    /// Looks at one path, and writes nothing.
    pub fn of(path: &Path) -> Self {
        let read = RnaOptions::default();
        Self { paths: vec![path.to_path_buf()], out: None, thumbnails: 64, json: false, read }
    }
}

/// Side of a thumbnail in pixels, and the pixels between two.
const THUMB: usize = 96;
const GAP: usize = 2;
/// Values of an expression matrix that are looked at: all of most tables.
const LOOKED_AT: usize = 1 << 26;

/// What is said of one path.
#[derive(Serialize)]
struct Found {
    path: String,
    facts: Vec<Fact>,
    /// Spread of all values, where it is a matrix.
    values: Option<Spread>,
    #[serde(skip)]
    thumbnails: Vec<Rgb>,
}

/// A line of what is said.
#[derive(Serialize)]
struct Fact {
    name: String,
    what: String,
}

impl Found {
    fn new() -> Self {
        Self { path: String::new(), facts: Vec::new(), values: None, thumbnails: Vec::new() }
    }

    fn line(&mut self, name: &str, what: impl Display) {
        self.facts.push(Fact { name: name.into(), what: what.to_string() });
    }

    fn spread(&mut self, spread: Spread) {
        self.line("values", &spread);
        for line in spread.histogram() {
            self.line("", format!("  {line}"));
        }
        self.values = Some(spread);
    }

    /// For people.
    fn page(&self) -> String {
        let line = |fact: &Fact| format!("  {:<14} {}\n", fact.name, fact.what);
        format!("{}\n{}", self.path, self.facts.iter().map(line).collect::<String>())
    }
}

/// Runs the command; returns what is to be printed.
///
/// # Errors
/// A path that is not there or is of no known kind; nothing to make thumbnails of.
pub fn run(args: &InspectArgs) -> Result<String> {
    let mut all = Vec::new();
    let mut thumbnails = Vec::new();
    for path in &args.paths {
        let mut found = look(path, args)?;
        found.path = path.display().to_string();
        thumbnails.append(&mut found.thumbnails);
        all.push(found);
    }
    let mut out: String = match args.json {
        true => {
            serde_json::to_string_pretty(&all).map_err(|e| Error::Internal(e.to_string()))? + "\n"
        }
        false => all.iter().map(Found::page).collect(),
    };
    if let Some(to) = &args.out {
        if thumbnails.is_empty() {
            let fix = "name a folder of tiles, a pack or an image, or leave it out";
            return Err(Error::config("--out", "there are no images to show", fix));
        }
        thumbnails.truncate(args.thumbnails.max(1));
        let columns = (thumbnails.len() as f64).sqrt().ceil() as usize;
        write_png(to, &grid(&thumbnails, columns, GAP)?)?;
        if !args.json {
            out += &format!("{}\n  {} thumbnails\n", to.display(), thumbnails.len());
        }
    }
    Ok(out)
}

fn look(path: &Path, args: &InspectArgs) -> Result<Found> {
    match Format::of(path)? {
        Format::Folder if is_star_folder(path) => expression(path, &args.read, "GDC STAR counts"),
        Format::Folder => tiles::folder(path, args),
        Format::Hdf5 => expression(path, &args.read, "AnnData"),
        Format::Safetensors => tensors::look(path, args),
        Format::Table if named_slide(path) => tiles::slide(path),
        Format::Table if images::is_image(path) => tiles::image(path),
        Format::Table => table::look(path, &args.read),
    }
}

/// An expression matrix, as it would be packed.
fn expression(path: &Path, options: &RnaOptions, what: &str) -> Result<Found> {
    let rna = Rna::read(path, &for_looking(options), Wanted::default())?;
    let mut found = Found::new();
    found.line("what", what);
    describe(&mut found, &rna);
    Ok(found)
}

/// Reads whatever there is: what a model would refuse is shown.
fn for_looking(options: &RnaOptions) -> RnaOptions {
    let missing = match options.missing {
        Missing::Refuse => Missing::Keep,
        rule => rule,
    };
    RnaOptions { allow_negative: true, missing, ..options.clone() }
}

/// The sentences of an expression matrix and its values.
fn describe(found: &mut Found, rna: &Rna) {
    rna.said.iter().for_each(|said| found.line("expression", said));
    for (kind, ids) in &rna.alternatives {
        found.line("also named by", format!("{kind} ({}, ...)", ids.first().map_or("", |i| i)));
    }
    let some = |names: &[String]| {
        let shown: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
        format!("{}{}", shown.join(", "), if names.len() > 3 { ", ..." } else { "" })
    };
    found.line("samples", some(&rna.x.samples));
    found.line("genes", some(&rna.x.genes));
    let rows = (LOOKED_AT / rna.x.genes.len().max(1)).clamp(1, rna.x.len().max(1));
    let step = rna.x.len().div_ceil(rows).max(1);
    let mut spread = Spread::default();
    for i in (0..rna.x.len()).step_by(step) {
        rna.x.row(i).iter().for_each(|&v| spread.add(v));
    }
    let mut totals = rna.x.totals.clone();
    totals.sort_by(f64::total_cmp);
    if let (Some(low), Some(high)) = (totals.first(), totals.last()) {
        let middle = totals[totals.len() / 2];
        found.line("sample sums", format!("{low:.0} to {high:.0}, median {middle:.0}"));
    }
    found.spread(spread);
    if step > 1 {
        found.line("", format!("(of every {step}th sample)"));
    }
}
