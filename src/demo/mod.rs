//! `genevar demo`: everything once, on real tissue, in minutes and without a download.
//!
//! All four stages are trained from nothing, killed once and resumed; the system that comes with
//! the repository paints tiles for RNA of held-out tissue, and is judged. What comes of it is
//! written at the end, each file whole: tiles.png, metrics.json, report.html.

mod assets;
mod memory;
mod page;
pub mod scratch;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use crate::data::pack::Pack;
use crate::error::{Error, Result, Within};
use crate::eval::features::Extractor;
use crate::eval::metrics::{Costs, Metrics};
use crate::eval::paint::Painter;
use crate::eval::trial::{Exhibit, Outcome, Trial};
use crate::io::atomic;
use crate::io::images::{Rgb, write_png};
use crate::io::sheet::{Group, sheet, spread};
use crate::train::interrupt::Interrupt;
use crate::train::system::System;
use assets::Assets;
use page::Story;
use scratch::{Curves, Scratch};

/// Bootstrap repetitions of each distance: they cost time.
const FD_REPS: usize = 40;
/// Columns of the picture for each tissue class of a split.
const COLUMNS: usize = 3;
/// Tiles that the system trained here paints.
const FIRST_TILES: usize = 6;
/// Where the training goes, below the output folder.
const TRAINING: &str = "training";

/// Arguments of `genevar demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder of the demo's files. Default: the repository's tools/demo.
    #[arg(long)]
    pub assets: Option<PathBuf>,
    /// Where picture, numbers and report go; made if it is not there.
    #[arg(long, default_value = "runs/demo")]
    pub out: PathBuf,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Runs the demo; returns what is to be printed.
///
/// # Errors
/// Missing or damaged files, a full disk, Ctrl-C. Nothing is half-written.
pub fn run(args: &DemoArgs) -> Result<String> {
    let started = Instant::now();
    let interrupt = Interrupt::from_keyboard()?;
    let assets = Assets::find(args.assets.as_deref())?;
    // All files are opened before the long work, so that a damaged one is told at once.
    let (pack, system) = (Pack::open(&assets.pack)?, System::load(&assets.system)?);
    let extractor = Extractor::load(&assets.network)?;
    atomic::create_folder(&args.out)?;
    eprintln!("1 of 3: training all four stages from nothing, killed once on the way");
    let scratch = scratch::config(pack.genes().len(), args.seed)?;
    let dir = args.out.join(TRAINING);
    let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
    let curves = scratch::train(&Scratch {
        program,
        pack: &assets.pack,
        dir: &dir,
        config: &scratch,
        interrupt: &interrupt,
    })?;
    eprintln!("2 of 3: painting tiles from RNA with the trained system of the repository");
    let trial = Trial {
        system: &system,
        pack: &pack,
        extractor: &extractor,
        seed: args.seed,
        most: None,
        fd_reps: FD_REPS,
        interrupt: &interrupt,
    };
    let outcome = trial.run()?;
    let first = first_tiles(&trial, &dir, &outcome)?;
    eprintln!("3 of 3: the report");
    let costs = Costs {
        train_seconds: curves.seconds,
        sample_seconds_per_tile: outcome.seconds_per_tile,
        peak_rss_bytes: memory::own_peak().max(curves.peak_rss),
        seconds: started.elapsed().as_secs_f64(),
    };
    let metrics = Metrics::new(&outcome.verdicts, Some(costs))?;
    let story = Story {
        metrics: &metrics,
        costs,
        tiles: &gallery(&outcome)?,
        first: &first,
        curves: &curves,
        scratch: &scratch,
        shipped: &system.config,
        notice: pack.notice(),
    };
    let page = story.page()?;
    interrupt.check()?;
    write_png(args.out.join("tiles.png"), story.tiles)?;
    metrics.write(&args.out.join("metrics.json"))?;
    page.write(&args.out.join("report.html"))?;
    Ok(summary(&outcome, &curves, &costs, &args.out))
}

/// What the system trained in this demo paints, to be seen beside the other's.
fn first_tiles(trial: &Trial<'_>, dir: &Path, outcome: &Outcome) -> Result<Rgb> {
    let system = System::load(dir).within("the training of this demo")?;
    let Some(exhibit) = outcome.exhibits.first() else {
        return Err(Error::Internal("a trial without tiles".into()));
    };
    let (pack, seed, interrupt) = (trial.pack, trial.seed, trial.interrupt);
    let painter = Painter { system: &system, pack, seed, interrupt, done: &|| () };
    let which = spread(exhibit.real.images.len(), FIRST_TILES, |_| true);
    let painted = painter.paint(&exhibit.real.select(&which), &exhibit.name)?;
    let rows = vec![exhibit.real.tiles.select(&which).all()?, painted.own.all()?];
    let group = Group::new(&exhibit.name, rows);
    sheet(&["real", "trained here"], &[group])
}

/// The demo's picture: for each split and class some real tiles and what was made for them.
fn gallery(outcome: &Outcome) -> Result<Rgb> {
    let mut groups = Vec::new();
    for exhibit in &outcome.exhibits {
        for class in ["cancer", "immune"] {
            let classes = &exhibit.floor.classes;
            let which = spread(classes.len(), COLUMNS, |i| classes[i] == class);
            if !which.is_empty() {
                let place = exhibit.name.split(" (").nth(1).unwrap_or_default();
                let title = format!("{} {class}", place.trim_end_matches(')'));
                groups.push(Group::new(&title, rows(exhibit, &which)?));
            }
        }
    }
    sheet(&["real", "from its RNA", "shuffled RNA", "tokenizer"], &groups)
}

fn rows(exhibit: &Exhibit, which: &[usize]) -> Result<Vec<Vec<Rgb>>> {
    let Exhibit { floor, painted, recon, .. } = exhibit;
    let sets = [&floor.tiles, &painted.own, &painted.shuffled, recon];
    sets.iter().map(|tiles| tiles.select(which).all()).collect()
}

fn summary(outcome: &Outcome, curves: &Curves, costs: &Costs, out: &Path) -> String {
    let kill = &curves.kill;
    let same = if kill.identical { "the same bytes" } else { "DIFFERENT BYTES" };
    let memory = costs.peak_rss_bytes.map_or("unknown".into(), page::megabytes);
    format!(
        "{outcome}\nTraining: {} killed after step {}, resumed from step {}; its log has {same} in \
         the steps that were taken twice.\n{:.0} s in all, {memory} of memory at most.\n{}\n",
        kill.stage,
        kill.logged,
        kill.resumed_at,
        costs.seconds,
        out.join("report.html").display()
    )
}

/// Ctrl-C before anything was written.
fn interrupted() -> Error {
    Error::Interrupted { resume: "no report was written: run the demo again".into() }
}
