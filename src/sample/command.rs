//! `genevar sample`: tiles for rows of an RNA table, as PNG files, a grid and a record.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::classes::{self, Class};
use super::{Graphs, Sampler, Subject, Tile, side_by_side};
use crate::config::draw::DrawOptions;
use crate::config::{RnaEncoding, SampleConfig};
use crate::data::genes::GeneMap;
use crate::data::loader::from_tensor;
use crate::data::rna::Expression;
use crate::data::source::{Rna, RnaOptions, Wanted};
use crate::error::{Error, Result, Within};
use crate::io::atomic;
use crate::io::images::{Rgb, grid, write_png};
use crate::io::safetensors::{Store, Writer};
use crate::io::tables::check_file_name;
use crate::tensor::Tensor;
use crate::train::place::PlaceOptions;
use crate::train::system::System;

/// Tiles that one row of a table may have: tile numbers are row * this + n.
const TILES_A_ROW: u64 = 1 << 20;
/// Most tiles shown in the grid, and the pixels between them.
const GRID_ROWS: usize = 16;
const GRID_GAP: usize = 2;

/// Arguments of `genevar sample`.
#[derive(Args, Debug)]
pub struct SampleArgs {
    /// Trained system: the folder of `genevar train`, or a bundle file.
    #[arg(long)]
    checkpoint: PathBuf,
    /// RNA: a table (TSV or CSV, may be .gz), AnnData (.h5ad), safetensors, a pack, or a folder of
    /// GDC STAR counts.
    #[arg(long, required_unless_present = "class")]
    rna: Option<PathBuf>,
    /// What a class-conditional transformer is to draw: numbers or names of classes, separated by
    /// commas. With --rna, for its Phi, one class.
    #[arg(long, value_delimiter = ',')]
    class: Vec<String>,
    #[command(flatten)]
    read: RnaOptions,
    /// Share of the model's genes that the table must hold; the checkpoint's data.min_gene_match
    /// unless given.
    #[arg(long)]
    min_matched: Option<f64>,
    /// Rows to draw for: numbers from 0, ranges (0-3) or sample names, separated by commas.
    /// Default: all.
    #[arg(long)]
    rows: Option<String>,
    /// Tiles for each row.
    #[arg(long, default_value_t = 4)]
    n: usize,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    draw: DrawOptions,
    #[command(flatten)]
    place: PlaceOptions,
    /// Draw one part of the tiles: 2/4 is the second of four. All parts are the tiles of one run.
    #[arg(long, value_parser = Shard::parse)]
    shard: Option<Shard>,
    /// Also writes what was drawn as numbers, before it is rounded to PNG (.safetensors): `z`
    /// [N, latent], `tokens` [N, L], `latent` [N, H, H, d], `pixels` [N, S, S, 3] in [-1, 1].
    #[arg(long, conflicts_with = "shard", value_name = "FILE")]
    tensors: Option<PathBuf>,
    /// Where the tiles go; made if it is not there.
    #[arg(long)]
    out: PathBuf,
}

/// A part of the tiles of a large job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    /// From 1.
    number: usize,
    of: usize,
}

impl Shard {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts = text.split_once('/').map(|(a, b)| (a.parse(), b.parse()));
        match parts {
            Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("give a part and how many there are, as 1/4 to 4/4".into()),
        }
    }

    /// Its stretch of `n` tiles.
    fn range(self, n: usize) -> Range<usize> {
        n * (self.number - 1) / self.of..n * self.number / self.of
    }
}

/// The record of a run, `samples.json`, or of a part, `samples-2-of-4.json`.
#[derive(Serialize)]
struct Record<'a> {
    checkpoint: String,
    /// The table of RNA, where there was one.
    rna: Option<String>,
    genes: String,
    seed: u64,
    #[serde(flatten)]
    draw: &'a SampleConfig,
    seconds_per_tile: f64,
    tiles: Vec<TileRecord<'a>>,
}

#[derive(Serialize)]
struct TileRecord<'a> {
    file: String,
    sample: &'a str,
    row: usize,
    tile: u64,
    tokens: Vec<i32>,
}

/// RNA of some samples, as the system reads it.
pub struct Profiles {
    /// Sample names.
    pub names: Vec<String>,
    /// z [N, latent].
    pub z: Tensor,
    /// Standardised expression [N, genes].
    pub inputs: Tensor,
    /// A class number a row, where the transformer is conditioned on them.
    pub labels: Vec<i32>,
    /// What became of the genes, for people.
    pub report: String,
}

impl Profiles {
    /// Encodes rows of an expression matrix.
    pub fn encode(system: &System, x: &Expression, rows: &[usize]) -> Result<Self> {
        let genes = &system.prior()?.norm.genes;
        let map = GeneMap::new(genes, &x.genes, system.config.data.min_gene_match)?;
        Self::mapped(system, x, rows, &map)
    }

    /// Encodes rows of a matrix in which the system's genes were found.
    fn mapped(system: &System, x: &Expression, rows: &[usize], map: &GeneMap) -> Result<Self> {
        let prior = system.prior()?;
        let inputs = prior.norm.apply(x, rows, map)?;
        Ok(Self {
            names: rows.iter().map(|&r| x.samples[r].clone()).collect(),
            z: prior.condition(&inputs)?,
            inputs,
            labels: Vec::new(),
            report: map.report.to_string(),
        })
    }

    /// What row `i` is drawn for, as tile number `id`.
    pub fn subject(&self, system: &System, i: usize, id: u64) -> Result<Subject> {
        let other = match system.config.ar.rna {
            RnaEncoding::BetaVae => None,
            RnaEncoding::Linear => Some(self.inputs.rows(i, 1)?),
            RnaEncoding::ClassLabel => {
                let fix =
                    "name a class with --class, or draw with a model whose ar.rna is beta_vae";
                let none = || Error::config("ar.rna", "is class_label, which reads no RNA", fix);
                Some(Tensor::new_i32(vec![*self.labels.get(i).ok_or_else(none)?], [1])?)
            }
        };
        Ok(Subject { id, z: self.z.rows(i, 1)?, other })
    }
}

/// Runs the command.
pub fn run(args: &SampleArgs) -> Result<()> {
    let mut system = System::load(&args.checkpoint)?;
    let settings = settings(args, &system.config.sample)?;
    let classes = classes::pick(&system, &args.class)?;
    let (profiles, rows) = match &args.rna {
        Some(path) => of_rna(args, path, &mut system, &classes)?,
        None => {
            args.place.place(&mut system)?;
            let rows = classes.iter().map(|class| class.number).collect();
            (classes::profiles(&system, &classes)?, rows)
        }
    };
    eprintln!("{}", profiles.report);
    atomic::create_folder(&args.out)?;
    let mut subjects = Vec::with_capacity(rows.len() * args.n);
    for (i, &row) in rows.iter().enumerate() {
        for j in 0..args.n as u64 {
            subjects.push(profiles.subject(&system, i, row as u64 * TILES_A_ROW + j)?);
        }
    }
    let part = args.shard.map_or(0..subjects.len(), |s| s.range(subjects.len()));
    let subjects = &subjects[part.clone()];
    let (refiner, device) = (system.refiner(args.seed), system.device.clone());
    let graphs = Graphs::default();
    let sampler = Sampler { refiner, ar: &system.ar, settings: &settings, device, graphs };
    let bar = progress(subjects.len() as u64);
    let started = std::time::Instant::now();
    let out = Written { args, settings: &settings, rows: &rows, profiles: &profiles, part };
    let done: Mutex<BTreeMap<usize, Done>> = Mutex::default();
    sampler.stream(subjects, &|i, tile| {
        let written = out.write(i, &tile)?;
        done.lock().unwrap_or_else(PoisonError::into_inner).insert(i, written);
        bar.inc(1);
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    out.finish(subjects, done, seconds / subjects.len().max(1) as f64)
}

/// The profiles of the wanted rows of a table or a pack, and their numbers.
fn of_rna(
    args: &SampleArgs,
    path: &Path,
    system: &mut System,
    classes: &[Class],
) -> Result<(Profiles, Vec<usize>)> {
    let (x, map, said) = expression(args, path, system)?;
    let rows = match &args.rows {
        None => (0..x.len()).collect(),
        Some(text) => pick_rows(text, &x.samples)?,
    };
    for &r in &rows {
        check_file_name(&x.samples[r]).within(path.display())?;
    }
    let labels = classes::one_for_all(system, classes, rows.len())?;
    args.place.place(system)?;
    let profiles = Profiles::mapped(system, &x, &rows, &map).within(path.display())?;
    Ok((Profiles { labels, report: said.join("\n"), ..profiles }, rows))
}

/// What is kept of a tile that was written.
struct Done {
    tokens: Vec<i32>,
    /// For the grid.
    image: Option<Rgb>,
    /// For --tensors.
    tile: Option<Tile>,
}

/// A bar with rate and remaining time; silent where nobody looks.
pub fn progress(n: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} ETA {eta}");
    let bar = ProgressBar::new(n).with_message("tiles");
    style.map_or(bar.clone(), |s| bar.with_style(s))
}

fn settings(args: &SampleArgs, base: &SampleConfig) -> Result<SampleConfig> {
    if args.n == 0 || args.n as u64 >= TILES_A_ROW {
        return Err(Error::config("--n", format!("{} tiles a row", args.n), "give 1 to 1048575"));
    }
    args.draw.over(base)
}

/// The RNA as the system wants it, where its genes are, and what to say of it.
fn expression(
    args: &SampleArgs,
    path: &Path,
    system: &System,
) -> Result<(Expression, GeneMap, Vec<String>)> {
    let norm = &system.prior()?.norm;
    let wanted = Wanted { genes: &norm.genes, units: norm.wants(), ..Wanted::default() };
    let least = args.min_matched.unwrap_or(system.config.data.min_gene_match);
    if !(0.0..=1.0).contains(&least) {
        return Err(Error::config("--min-matched", format!("{least}"), "give a share, 0 to 1"));
    }
    Rna::read(path, &args.read, wanted)?.fit(wanted, least)
}

/// `0-3,7,C6_10x14` as row numbers, in the order given, each once.
fn pick_rows(text: &str, names: &[String]) -> Result<Vec<usize>> {
    let mut rows: Vec<usize> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let range = part.split_once('-').unwrap_or((part, part));
        let found: Vec<usize> = match (range.0.parse::<usize>(), range.1.parse::<usize>()) {
            (Ok(a), Ok(b)) if a <= b && b < names.len() => (a..=b).collect(),
            _ => names.iter().position(|n| n == part).into_iter().collect(),
        };
        if found.is_empty() {
            let fix = format!("use 0 to {} or a sample's name", names.len().saturating_sub(1));
            return Err(Error::config("--rows", format!("{part:?} is no row of the table"), fix));
        }
        rows.extend(found);
    }
    let mut seen = std::collections::BTreeSet::new();
    rows.retain(|&r| seen.insert(r));
    match rows.is_empty() {
        true => Err(Error::config("--rows", "names no row", "give numbers, ranges or names")),
        false => Ok(rows),
    }
}

/// What is known of the tiles beside themselves.
struct Written<'a> {
    args: &'a SampleArgs,
    settings: &'a SampleConfig,
    rows: &'a [usize],
    profiles: &'a Profiles,
    /// Which of all tiles these are.
    part: Range<usize>,
}

impl Written<'_> {
    /// The sample of tile `i` of the part, and its file.
    fn name(&self, i: usize) -> (&str, String) {
        let (at, n) = (self.part.start + i, self.args.n);
        let sample = &self.profiles.names[at / n];
        (sample, format!("{sample}_{}.png", at % n))
    }

    /// Writes a tile.
    fn write(&self, i: usize, tile: &Tile) -> Result<Done> {
        let image = from_tensor(&tile.pixels)?.swap_remove(0);
        write_png(self.args.out.join(self.name(i).1), &image)?;
        let shown = self.args.shard.is_none() && i < self.args.n * GRID_ROWS;
        Ok(Done {
            tokens: tile.tokens.i32s()?.to_vec(),
            image: shown.then_some(image),
            tile: self.args.tensors.is_some().then(|| tile.clone()),
        })
    }

    /// Writes the numbers of all tiles where they were asked for.
    fn write_tensors(&self, subjects: &[Subject], done: &BTreeMap<usize, Done>) -> Result<()> {
        let Some(path) = &self.args.tensors else { return Ok(()) };
        let tiles: Vec<&Tile> = done.values().filter_map(|d| d.tile.as_ref()).collect();
        let all = |of: fn(&Tile) -> &Tensor| side_by_side(tiles.iter().map(|t| of(t)));
        let mut writer = Writer::new();
        let z = side_by_side(subjects.iter().map(|s| &s.z))?;
        writer.tensor("z", &z, Store::Full)?;
        writer.tensor("tokens", &all(|t| &t.tokens)?, Store::Full)?;
        writer.tensor("latent", &all(|t| &t.latent)?, Store::Full)?;
        writer.tensor("pixels", &all(|t| &t.pixels)?, Store::Full)?;
        writer.meta("seed", self.args.seed.to_string());
        let ids: Vec<String> = subjects.iter().map(|s| s.id.to_string()).collect();
        writer.meta("ids", ids.join(" "));
        writer.save(path).map(drop)
    }

    /// Writes grid and record.
    fn finish(
        &self,
        subjects: &[Subject],
        done: BTreeMap<usize, Done>,
        seconds_per_tile: f64,
    ) -> Result<()> {
        self.write_tensors(subjects, &done)?;
        let mut images: Vec<Rgb> = Vec::new();
        let mut records = Vec::with_capacity(done.len());
        for ((i, done), subject) in done.into_iter().zip(subjects) {
            let (sample, file) = self.name(i);
            let row = self.rows[(self.part.start + i) / self.args.n];
            images.extend(done.image);
            records.push(TileRecord { file, sample, row, tile: subject.id, tokens: done.tokens });
        }
        let name = match self.args.shard {
            None => {
                let grid = grid(&images, self.args.n, GRID_GAP)?;
                write_png(self.args.out.join("grid.png"), &grid)?;
                "samples.json".to_string()
            }
            Some(Shard { number, of }) => format!("samples-{number}-of-{of}.json"),
        };
        let record = Record {
            checkpoint: self.args.checkpoint.display().to_string(),
            rna: self.args.rna.as_ref().map(|path| path.display().to_string()),
            genes: self.profiles.report.clone(),
            seed: self.args.seed,
            draw: self.settings,
            seconds_per_tile,
            tiles: records,
        };
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::Internal(format!("{name}: {e}")))?;
        atomic::write(self.args.out.join(name), &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_tiles_once() {
        for (n, of) in [(0, 3), (1, 4), (7, 3), (12, 4)] {
            let parts = (1..=of).flat_map(|number| Shard { number, of }.range(n));
            assert!(parts.eq(0..n), "{n} tiles in {of} parts");
        }
        assert_eq!(Shard::parse("2/4"), Ok(Shard { number: 2, of: 4 }));
        for bad in ["", "4", "0/4", "5/4", "1/0", "a/b", "-1/2"] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rows_are_numbers_ranges_and_names() {
        let names: Vec<String> = ["a", "b", "10x14", "d"].map(String::from).to_vec();
        assert_eq!(pick_rows("0-1,d,1", &names).unwrap(), [0, 1, 3]);
        assert_eq!(pick_rows("10x14", &names).unwrap(), [2]);
        for bad in ["9", "0-9", "zz", "", "2-1"] {
            let e = pick_rows(bad, &names).unwrap_err();
            assert!(e.to_string().contains("--rows") && e.exit_code() == 2, "{bad}");
        }
    }
}
