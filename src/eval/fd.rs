//! `genevar eval fd`: the distance between two sets of tiles, beside anchors that give it a scale.
//!
//! Of two sets of tiles the real one is split into two disjoint halves. One is the reference; the
//! other is the floor and, blurred or flattened, the anchors. As many tiles are drawn from the set
//! to judge, so that every row of the table has the same n. A trained system is judged by a
//! [`Trial`]. With `--whole` two sets are compared as they are, as FID tools do.

use std::path::{Path, PathBuf};

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
use crate::train::interrupt::Interrupt;
use crate::train::place::PlaceOptions;
use crate::train::system::System;
use clap::Args;

/// Two sets of tiles to compare, or a trained system to put on trial.
#[derive(Args, Clone, Debug)]
pub struct FdArgs {
    /// Real tiles: a folder of images, a pack with a split, as pack.safetensors#val, or an archive
    /// of bytes [N, H, W, 3] (.npz).
    #[arg(long, requires = "tiles")]
    pub real: Option<String>,
    /// Tiles to judge: a folder, a pack with a split, or an archive.
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
    /// Weights of the feature network, EfficientNet-Lite0.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Features of FID's Inception-v3 instead: its weights under pytorch-fid's names, as
    /// safetensors. Tiles are resized to 299 pixels as pytorch-fid does.
    #[arg(long, value_name = "INCEPTION", conflicts_with_all = ["weights", "input"])]
    pub features: Option<PathBuf>,
    /// Compares with all real tiles instead of one half of them, without floor and anchors, as FID
    /// tools do.
    #[arg(long, requires = "real")]
    pub whole: bool,
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
    let extractor = match (&args.features, &args.weights) {
        (Some(inception), _) => Extractor::inception(inception)?,
        (None, Some(weights)) => Extractor::load(weights)?.at(args.input)?,
        (None, None) => Extractor::load(&default_weights())?.at(args.input)?,
    };
    let (text, json) = match (&args.real, &args.tiles, &args.checkpoint, &args.pack) {
        (Some(real), Some(tiles), ..) if !args.draw.is_empty() => {
            let what = format!("{real} and {tiles} are there already; nothing is drawn");
            let fix = "leave --cfg, --guidance, --top-k and --top-p out, or give --checkpoint";
            return Err(Error::config("eval fd", what, fix));
        }
        (Some(real), Some(tiles), ..) => {
            let table = measure(&extractor, &Tiles::open(real)?, &Tiles::open(tiles)?, args)?;
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
    let draws = Draws { reps: args.reps, seed: args.seed, ..Draws::default() };
    let n = even(real, tiles, args)?;
    if args.whole {
        let (real, tiles) = (real.draw(n, args.seed), tiles.draw(n, args.seed));
        return Table::measure(extractor, &real, &[("fd", &tiles)], draws);
    }
    let (reference, other) = real.halves(args.seed);
    let (reference, other) = (reference.draw(n, args.seed), other.draw(n, args.seed));
    let other = other.named(format!("{}, other half", real.name()));
    let mut rows = vec![("fd", tiles.draw(n, args.seed))];
    rows.extend(with_anchors(&other));
    let rows: Vec<(&str, &Tiles)> = rows.iter().map(|(key, tiles)| (*key, tiles)).collect();
    let reference = reference.named(format!("{}, one half", real.name()));
    Table::measure(extractor, &reference, &rows, draws)
}

/// How many tiles each set has.
fn even(real: &Tiles, tiles: &Tiles, args: &FdArgs) -> Result<usize> {
    let share = if args.whole { 1 } else { 2 };
    let most = (real.n() / share).min(tiles.n());
    let n = args.n.unwrap_or(most);
    let held_back = if args.whole { "" } else { ", of which half is held back as the floor," };
    if most < 2 {
        return Err(Error::data(
            format!("{} has {} tiles, {} has {}", real.name(), real.n(), tiles.name(), tiles.n()),
            format!("give at least {} real tiles{held_back} and 2 to judge", 2 * share),
        ));
    }
    if n < 2 || n > most {
        let (many, found) = (real.n(), tiles.n());
        let what = format!("{n} tiles a set from {many} real ones{held_back} and {found}");
        return Err(Error::config("--n", what, format!("give 2 to {most}")));
    }
    Ok(n)
}
