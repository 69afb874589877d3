//! `genevar eval fd`: the distance between two sets of tiles, beside anchors that give it a scale.
//!
//! Of two sets of tiles the real one is split into two disjoint halves. One is the reference; the
//! other is the floor and, blurred or flattened, the anchors. As many tiles are drawn from the set
//! to judge, so that every row of the table has the same n. A trained system is judged by a
//! [`Trial`].

use std::path::{Path, PathBuf};

use clap::Args;
use rayon::prelude::*;

use super::bootstrap::Draws;
use super::features::{Extractor, INPUT, default_weights};
use super::metrics::{Metrics, pretty};
use super::table::{Table, with_anchors};
use super::tiles::Tiles;
use super::trial::Trial;
use crate::config::draw::DrawOptions;
use crate::data::pack::Pack;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::images::{self, Expect};
use crate::train::interrupt::Interrupt;
use crate::train::place::PlaceOptions;
use crate::train::system::System;

/// Two sets of tiles to compare, or a trained system to put on trial.
#[derive(Args, Clone, Debug)]
pub struct FdArgs {
    /// Real tiles: a folder of images, or a pack with a split, as pack.safetensors#val.
    #[arg(long, requires = "tiles")]
    pub real: Option<String>,
    /// Tiles to judge: a folder or a pack with a split.
    #[arg(long, requires = "real")]
    pub tiles: Option<String>,
    /// A trained system, run folder or bundle, to judge on the held-out splits of --pack: tiles
    /// from RNA, the tokenizer, floor and anchors, and whether the RNA matters.
    #[arg(long, requires = "pack", conflicts_with = "tiles")]
    pub checkpoint: Option<PathBuf>,
    /// Real tiles and RNA for --checkpoint.
    #[arg(long, requires = "checkpoint")]
    pub pack: Option<PathBuf>,
    /// How the tiles of --checkpoint are drawn.
    #[command(flatten)]
    pub draw: DrawOptions,
    /// Where the tiles of --checkpoint are drawn.
    #[command(flatten)]
    pub place: PlaceOptions,
    /// Tiles in each set; half of the real ones, if that many are there. With --checkpoint the most
    /// windows of each split.
    #[arg(long)]
    pub n: Option<usize>,
    /// Seed of the halves, the draws and the bootstrap.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Bootstrap repetitions behind each interval of a distance.
    #[arg(long, default_value_t = 100)]
    pub reps: usize,
    /// Side to which tiles are resized, a multiple of 32.
    #[arg(long, default_value_t = INPUT)]
    pub input: usize,
    /// Weights of the feature network.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Also writes the numbers to this file, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Runs the command; returns what is to be printed, and writes JSON where asked.
///
/// # Errors
/// Unreadable tiles, sets too small or of different sizes, damaged weights, and those of a trial.
pub fn run(args: &FdArgs) -> Result<String> {
    if args.reps == 0 {
        return Err(Error::config("--reps", "is 0", "give at least 1, better 100"));
    }
    let weights = args.weights.clone().unwrap_or_else(default_weights);
    let extractor = Extractor::load(&weights)?.at(args.input)?;
    let (text, json) = match (&args.real, &args.tiles, &args.checkpoint, &args.pack) {
        (Some(real), Some(tiles), ..) if !args.draw.is_empty() => {
            let what = format!("{real} and {tiles} are there already; nothing is drawn");
            let fix = "leave --cfg, --guidance, --top-k and --top-p out, or give --checkpoint";
            return Err(Error::config("eval fd", what, fix));
        }
        (Some(real), Some(tiles), ..) => {
            let table = measure(&extractor, &read_tiles(real)?, &read_tiles(tiles)?, args)?;
            (table.to_string(), pretty(&table)?)
        }
        (_, _, Some(checkpoint), Some(pack)) => on_trial(&extractor, (checkpoint, pack), args)?,
        _ => {
            let fix = "give --real A --tiles B, or --checkpoint C --pack P";
            return Err(Error::config("eval fd", "nothing to compare", fix));
        }
    };
    if let Some(path) = &args.json {
        atomic::write(path, json.as_bytes())?;
    }
    Ok(text)
}

fn on_trial(
    extractor: &Extractor,
    (checkpoint, pack): (&Path, &Path),
    args: &FdArgs,
) -> Result<(String, String)> {
    if args.n.is_some_and(|n| n < 2) {
        return Err(Error::config("--n", "a distance needs two tiles a set", "give at least 2"));
    }
    let interrupt = Interrupt::from_keyboard()?;
    let (mut system, pack) = (System::load(checkpoint)?, Pack::open(pack)?);
    system.config.sample = args.draw.over(&system.config.sample)?;
    system.config.validate()?;
    args.place.place(&mut system)?;
    let trial = Trial {
        system: &system,
        pack: &pack,
        extractor,
        seed: args.seed,
        most: args.n,
        fd_reps: args.reps,
        interrupt: &interrupt,
    };
    let outcome = trial.run()?;
    let json = Metrics::new(&outcome.verdicts, None)?.to_json()?;
    Ok((format!("{outcome}\n"), json))
}

fn measure(extractor: &Extractor, real: &Tiles, tiles: &Tiles, args: &FdArgs) -> Result<Table> {
    let most = (real.n() / 2).min(tiles.n());
    let n = args.n.unwrap_or(most);
    if most < 2 {
        return Err(Error::data(
            format!("{} has {} tiles, {} has {}", real.name(), real.n(), tiles.name(), tiles.n()),
            "give at least 4 real tiles, of which half are the floor, and 2 to judge",
        ));
    }
    if n < 2 || n > most {
        let what = format!(
            "{n} tiles a set from {} real ones, of which half is held back as the floor, and {}",
            real.n(),
            tiles.n()
        );
        return Err(Error::config("--n", what, format!("give 2 to {most}")));
    }
    let (reference, other) = real.halves(args.seed);
    let (reference, other) = (reference.draw(n, args.seed), other.draw(n, args.seed));
    let other = other.named(format!("{}, other half", real.name()));
    let mut rows = vec![("fd", tiles.draw(n, args.seed))];
    rows.extend(with_anchors(&other));
    let rows: Vec<(&str, &Tiles)> = rows.iter().map(|(key, tiles)| (*key, tiles)).collect();
    let draws = Draws { reps: args.reps, seed: args.seed, ..Draws::default() };
    let reference = reference.named(format!("{}, one half", real.name()));
    Table::measure(extractor, &reference, &rows, draws)
}

/// Tiles of a folder (in the order of their names) or of a pack's split (`FILE#SPLIT`).
///
/// # Errors
/// A missing or empty folder, an unreadable image, tiles of several sizes, an unknown split.
pub fn read_tiles(from: &str) -> Result<Tiles> {
    if let Some((file, split)) = from.split_once('#') {
        let pack = Pack::open(file)?;
        let which = pack.images(split)?;
        return Tiles::new(from, pack.tiles(&which)?);
    }
    let folder = Path::new(from);
    let paths = image_paths(folder)?;
    let read = |path: &PathBuf| images::read(path, Expect::any());
    let first = read(&paths[0])?;
    let like = Expect::tile(first.width, first.height);
    let rest: Vec<_> =
        paths[1..].par_iter().map(|p| images::read(p, like)).collect::<Result<_>>()?;
    Tiles::new(from, std::iter::once(first).chain(rest).collect())
}

/// The images directly in a folder, sorted by name; at least one.
fn image_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        let end = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let end = end.unwrap_or_default();
        if ["png", "jpg", "jpeg", "tif", "tiff"].contains(&end.as_str()) {
            paths.push(path);
        }
    }
    paths.sort();
    match paths.is_empty() {
        false => Ok(paths),
        true => {
            let fix = "give a folder of tiles, or a pack with a split, as pack.safetensors#val";
            Err(Error::file(folder, "holds no PNG, JPEG or TIFF images", fix))
        }
    }
}
