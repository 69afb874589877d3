//! Free crops: blocks of tissue cut from whole section images, without RNA, for the tokenizer.

use std::path::PathBuf;

use crate::data::augment::{downscale, grey_sd};
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};

/// Grey deviation above which a patch counts as tissue (demo-recipe.md).
const TISSUE_SD: f64 = 10.0;

/// Side, in pixels of the pack, of the patches in which tissue is looked for.
const PATCH: usize = 32;

/// Smallest share of tissue patches in a block that is kept.
const TISSUE_SHARE: f64 = 0.5;

/// A whole-section image.
#[derive(Clone, Debug)]
pub struct FreeSource {
    /// Name of the section, as in the tile table: its split decides the crops' split.
    pub section: String,
    /// The image, in the pixels the tile table's positions are in.
    pub path: PathBuf,
}

/// A block that could be kept.
pub(super) struct Block {
    /// `SECTION@XxY` in native pixels.
    pub id: String,
    /// Position in the list of sources.
    pub source: usize,
    /// The pixels, at the pack's resolution.
    pub image: Rgb,
    /// Share of the block that paired tiles already show.
    overlap: f64,
    tissue: f64,
}

/// All tissue blocks of the sources, the ones that show most new tissue first.
///
/// `taken` holds, for each source, the top left corners of its paired tiles in native pixels.
pub(super) fn blocks(
    sources: &[FreeSource],
    taken: &[Vec<(f64, f64)>],
    native: usize,
    factor: usize,
) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    for (source, free) in sources.iter().enumerate() {
        let image = downscale(&images::read(&free.path, Expect::section())?, factor)?;
        let size = native / factor;
        for y in (0..(image.height + 1).saturating_sub(size)).step_by(size) {
            for x in (0..(image.width + 1).saturating_sub(size)).step_by(size) {
                let tissue = tissue_share(&image, x, y, size);
                if tissue < TISSUE_SHARE {
                    continue;
                }
                let corner = ((x * factor) as f64, (y * factor) as f64);
                found.push(Block {
                    id: format!("{}@{}x{}", free.section, x * factor, y * factor),
                    source,
                    image: image.crop(x, y, size, size)?,
                    overlap: overlap(corner, &taken[source], native as f64),
                    tissue,
                });
            }
        }
    }
    if found.is_empty() && !sources.is_empty() {
        let paths: Vec<String> = sources.iter().map(|s| s.path.display().to_string()).collect();
        let what = format!("no tissue in {}", paths.join(", "));
        return Err(Error::data(what, "check that these are stained sections"));
    }
    // The sort is stable, so ties stay in the order of sections, rows and columns.
    found.sort_by(|a, b| a.overlap.total_cmp(&b.overlap).then(b.tissue.total_cmp(&a.tissue)));
    Ok(found)
}

fn tissue_share(image: &Rgb, x: usize, y: usize, size: usize) -> f64 {
    let side = PATCH.min(size);
    let steps = size / side;
    let is_tissue = |i: usize| {
        let (px, py) = (x + i % steps * side, y + i / steps * side);
        grey_sd(image, px, py, side, side) > TISSUE_SD
    };
    (0..steps * steps).filter(|&i| is_tissue(i)).count() as f64 / (steps * steps) as f64
}

/// Share of the block that the tiles cover; the tiles do not overlap one another.
fn overlap((x, y): (f64, f64), tiles: &[(f64, f64)], side: f64) -> f64 {
    let common = |a: f64, b: f64| (side - (a - b).abs()).max(0.0);
    tiles.iter().map(|&(tx, ty)| common(x, tx) * common(y, ty)).sum::<f64>() / (side * side)
}
