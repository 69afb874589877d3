//! `genevar sample`: tiles for rows of an RNA table, as PNG files, a grid and a record.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::classes::{self, Class};
use super::edit::{self, Edit, Table};
use super::job::{Job, TILES_A_ROW, real_tiles};
use super::output::{Drawn, Output, Shard};
use super::profiles::Profiles;
use super::{Graphs, Sampler, Subject};
use crate::config::SampleConfig;
use crate::config::draw::DrawOptions;
use crate::data::genes::GeneMap;
use crate::data::ids::read_map;
use crate::data::rna::{Expression, RnaNorm};
use crate::data::source::{Rna, RnaOptions, Wanted};
use crate::data::units::Units;
use crate::error::{Error, Result, Within};
use crate::io::tables::check_file_name;
use crate::train::place::PlaceOptions;
use crate::train::system::System;

/// Most tiles of a strip.
const STEPS: usize = 512;

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
    /// Tiles for each row; with --between strips.
    #[arg(long, default_value_t = 4)]
    n: usize,
    /// Changes a gene and draws each tile twice, as it is and edited, with the same random numbers:
    /// +2sd or -1sd moves it from its own value by deviations of the training samples, as the
    /// checkpoint keeps them; a number is a value in the table's units. May be given several times.
    /// edits.json tells what changed.
    #[arg(long, value_name = "GENE=CHANGE", value_parser = Edit::parse, requires = "rna")]
    set: Vec<Edit>,
    /// Draws strips from one row's profile to another's, in equal steps of z, each strip with the
    /// random numbers of a tile of the first.
    #[arg(long, num_args = 2, value_names = ["ROW_A", "ROW_B"], requires = "rna",
        conflicts_with_all = ["rows", "set"])]
    between: Vec<String>,
    /// Tiles of a strip, both ends among them.
    #[arg(long, default_value_t = 5, requires = "between")]
    steps: usize,
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
    /// Also writes all tiles into one NumPy archive, in the order of samples.json: `arr_0`, bytes
    /// [N, S, S, 3]. With --shard each part has its own, tiles-2-of-4.npz for tiles.npz.
    #[arg(long, value_name = "FILE")]
    npz: Option<PathBuf>,
    /// Where the tiles go; made if it is not there.
    #[arg(long)]
    out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with system, table or options, before anything is written; a full disk.
pub fn run(args: &SampleArgs) -> Result<()> {
    let mut system = System::load(&args.checkpoint)?;
    let settings = settings(args, &system.config.sample)?;
    let classes = classes::pick(&system, &args.class)?;
    let mut told = Told::default();
    let job = match &args.rna {
        Some(path) => of_rna(args, path, (&mut system, &classes), &mut told)?,
        None => {
            args.place.place(&mut system)?;
            let rows: Vec<usize> = classes.iter().map(|class| class.number).collect();
            let report = classes::report(&system, &classes);
            let profiles = classes::profiles(&system, &classes)?;
            let mut job = Job::rows(&system, &profiles, None, (&rows, args.n))?;
            job.report = report;
            job
        }
    };
    eprintln!("{}", job.report);
    job.changes.iter().for_each(|change| eprintln!("{}", change.sentence(&told.unit)));
    let drawn = Drawn {
        checkpoint: args.checkpoint.display().to_string(),
        rna: args.rna.as_ref().map(|path| path.display().to_string()),
        genes: &job.report,
        seed: args.seed,
        settings: &settings,
    };
    let all = job.items.len();
    let part = (args.shard.map_or(0..all, |s| s.range(all)), args.shard);
    let mut out = Output::new(&job, drawn, part, args.out.clone(), args.tensors.clone())?;
    if let Some(path) = &args.npz {
        out = out.archived(path, system.config.msvq.image)?;
    }
    let subjects: Vec<Subject> = out.items().iter().map(|item| item.subject.clone()).collect();
    let (refiner, device) = (system.refiner(args.seed), system.device.clone());
    let graphs = Graphs::default();
    let sampler = Sampler { refiner, ar: &system.ar, settings: &settings, device, graphs };
    let bar = progress(subjects.len() as u64);
    let started = std::time::Instant::now();
    sampler.stream(&subjects, &|i, tile| {
        out.write(i, &tile)?;
        bar.inc(1);
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64() / subjects.len().max(1) as f64;
    bar.finish();
    out.finish(seconds, (!args.set.is_empty()).then_some((&told.unit, &told.deviations)))
}

/// What a record says of numbers.
#[derive(Default)]
struct Told {
    /// Units of the table.
    unit: String,
    /// Where deviations come from.
    deviations: String,
}

/// The job of a table or a pack.
fn of_rna(
    args: &SampleArgs,
    path: &Path,
    (system, classes): (&mut System, &[Class]),
    told: &mut Told,
) -> Result<Job> {
    let read = Read::from(args, path, system)?;
    let (x, map) = (&read.x, &read.map);
    let rows = rows(args, &x.samples)?;
    for &r in &rows {
        check_file_name(&x.samples[r]).within(path.display())?;
    }
    let ids = read_map(args.read.gene_map.as_ref())?;
    let labels = classes::one_for_all(system, classes, rows.len())?;
    args.place.place(system)?;
    let profiles = Profiles::mapped(system, x, &rows, map).within(path.display())?;
    let profiles = Profiles { labels, ..profiles };
    let norm = &system.prior()?.norm;
    let real = |rows: &[usize]| match args.shard {
        None => real_tiles(path, rows, system.config.msvq.image),
        Some(_) => Ok(Vec::new()),
    };
    let mut job = if let [from, to] = rows[..]
        && !args.between.is_empty()
    {
        let strips = vec![from; args.n];
        let others = vec![to; args.n];
        let job = Job::between(system, &profiles, (from, args.n), args.steps)?;
        job.beside([real(&strips)?, real(&others)?])
    } else if args.set.is_empty() {
        let job = Job::rows(system, &profiles, None, (&rows, args.n))?;
        job.beside([real(&rows)?, Vec::new()])
    } else {
        let units = (read.units, norm.wants());
        let table = Table { x, rows: &rows, map, ids: ids.as_ref(), units };
        let (edited, changes) = edit::apply(system, &table, &profiles, &args.set)?;
        let title = if let [one] = &args.set[..] { one.title() } else { "edited".into() };
        let job = Job::rows(system, &profiles, Some((&edited, &title)), (&rows, args.n))?;
        told.unit =
            read.units.or(norm.wants()).map_or("(units not stated)".into(), |u| u.to_string());
        told.deviations = deviations(norm, &args.checkpoint);
        let mut job = job.beside([real(&rows)?, Vec::new()]);
        job.changes = changes;
        job
    };
    job.report = read.said.join("\n");
    Ok(job)
}

/// Where the deviations of `--set` come from.
fn deviations(norm: &RnaNorm, checkpoint: &Path) -> String {
    let scaling = norm.scaling;
    let scaled = match scaling.counts_per > 0.0 {
        true => format!("{} x / sum of the sample", scaling.counts_per),
        false => "x".to_string(),
    };
    let level = if scaling.log1p { format!("ln(1 + {scaled})") } else { scaled };
    format!(
        "rna.sd of the stage beta_vae in {}: of {level}, over the training samples",
        checkpoint.display()
    )
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
    if !(2..=STEPS).contains(&args.steps) {
        let what = format!("a strip of {} tiles", args.steps);
        return Err(Error::config("--steps", what, format!("give 2 to {STEPS}")));
    }
    args.draw.over(base)
}

/// RNA as the system wants it.
struct Read {
    x: Expression,
    /// What the values were before.
    units: Option<Units>,
    /// Where the system's genes are.
    map: GeneMap,
    /// What is said of it.
    said: Vec<String>,
}

impl Read {
    fn from(args: &SampleArgs, path: &Path, system: &System) -> Result<Self> {
        let norm = &system.prior()?.norm;
        let wanted = Wanted { genes: &norm.genes, units: norm.wants(), ..Wanted::default() };
        let least = args.min_matched.unwrap_or(system.config.data.min_gene_match);
        if !(0.0..=1.0).contains(&least) {
            return Err(Error::config("--min-matched", format!("{least}"), "give a share, 0 to 1"));
        }
        let rna = Rna::read(path, &args.read, wanted)?;
        let units = rna.units;
        let (x, map, said) = rna.fit(wanted, least)?;
        Ok(Self { x, units, map, said })
    }
}

/// The rows that are drawn for.
fn rows(args: &SampleArgs, names: &[String]) -> Result<Vec<usize>> {
    if let [a, b] = &args.between[..] {
        let end = |text: &str| match pick_rows(text, names).as_deref() {
            Ok([row]) => Ok(*row),
            _ => {
                let fix = format!("use 0 to {} or a sample's name", names.len().saturating_sub(1));
                Err(Error::config("--between", format!("{text:?} is no row of the table"), fix))
            }
        };
        return Ok(vec![end(a)?, end(b)?]);
    }
    match &args.rows {
        None => Ok((0..names.len()).collect()),
        Some(text) => pick_rows(text, names),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
