//! `genevar eval fd`: the distance between two sets of tiles, beside anchors that give it a scale.
//!
//! The real set is split into two disjoint halves. One is the reference; the other is the floor
//! and, blurred or flattened, the anchors. As many tiles are drawn from the other set, so that
//! every row of the table has the same n.

use std::path::{Path, PathBuf};

use clap::Args;
use rayon::prelude::*;

use super::bootstrap::Draws;
use super::features::{Extractor, INPUT, default_weights};
use super::metrics::pretty;
use super::table::{Table, with_anchors};
use super::tiles::Tiles;
use crate::data::pack::Pack;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::images::{self, Expect};

/// Two sets of tiles to compare.
#[derive(Args, Clone, Debug)]
pub struct FdArgs {
    /// Real tiles: a folder of images, or a pack with a split, as pack.safetensors#val.
    #[arg(long)]
    pub real: String,
    /// Tiles to judge: a folder or a pack with a split.
    #[arg(long)]
    pub tiles: String,
    /// Tiles in each set; half of the real ones, if that many are there.
    #[arg(long)]
    pub n: Option<usize>,
    /// Seed of the halves, the draws and the bootstrap.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Bootstrap repetitions behind each interval.
    #[arg(long, default_value_t = 100)]
    pub reps: usize,
    /// Side to which tiles are resized, a multiple of 32.
    #[arg(long, default_value_t = INPUT)]
    pub input: usize,
    /// Weights of the feature network.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Also writes the table to this file, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Runs the command: the table on standard output, and as JSON where asked.
///
/// # Errors
/// Unreadable tiles, sets too small or of different sizes, damaged weights.
pub fn run(args: &FdArgs) -> Result<Table> {
    if args.reps == 0 {
        return Err(Error::config("--reps", "is 0", "give at least 1, better 100"));
    }
    let weights = args.weights.clone().unwrap_or_else(default_weights);
    let extractor = Extractor::load(&weights)?.at(args.input)?;
    let (real, tiles) = (read_tiles(&args.real)?, read_tiles(&args.tiles)?);
    let table = measure(&extractor, &real, &tiles, args)?;
    if let Some(path) = &args.json {
        atomic::write(path, pretty(&table)?.as_bytes())?;
    }
    Ok(table)
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
