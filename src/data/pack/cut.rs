//! From an image file to tiles: brought to a scale, then cut.

use rayon::prelude::*;

use crate::data::augment::{centre, downscale, resize};
use crate::data::tiles::{Tile, TileTable};
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};
use crate::tensor::{Purpose, Stream};

/// How tiles are cut from images that are larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Crop {
    /// Not at all: an image must have the size of a tile.
    #[default]
    Exact,
    /// The middle.
    Center,
    /// As many side by side as fit, around the middle.
    Grid,
    /// Some at random places, the same ones each time.
    Random,
}

/// How far micrometres a pixel may differ: scanners calibrate to about a per cent, a change of
/// magnification is far more.
const SAME: f64 = 0.05;

/// How image files become tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Side of a tile in pixels, before it is shrunk.
    pub tile_px: usize,
    /// Whole factor by which tiles are shrunk after they are cut.
    pub downscale: usize,
    /// Where they are cut.
    pub crop: Crop,
    /// Tiles of an image, for random places.
    pub crops: usize,
    /// Micrometres a pixel that images are brought to before they are cut.
    pub mpp: Option<f64>,
    /// Micrometres a pixel of the files, where the table does not say; without either, the tags of
    /// a file do.
    pub um_per_px: Option<f64>,
}

impl Cut {
    /// Tiles of this size, taken as they are.
    pub fn exact(tile_px: usize, downscale: usize) -> Self {
        Self { tile_px, downscale, crop: Crop::Exact, crops: 1, mpp: None, um_per_px: None }
    }

    /// Side of what comes out.
    ///
    /// # Errors
    /// Sizes that do not divide, no crops, scales that are no lengths.
    pub fn side(&self) -> Result<usize> {
        let (px, by) = (self.tile_px, self.downscale);
        if by == 0 || px == 0 || !px.is_multiple_of(by) {
            let what = format!("{px}-pixel tiles do not shrink by {by}");
            return Err(Error::config("downscale", what, "use a divisor of the tile size"));
        }
        if self.crops == 0 {
            return Err(Error::config("--crops", "is 0", "take at least one crop of an image"));
        }
        for (key, um) in [("--mpp", self.mpp), ("--tile-mpp", self.um_per_px)] {
            if um.is_some_and(|um| !(0.01..=100.0).contains(&um)) {
                let fix = "give micrometres a pixel, 0.01 to 100 (0.5 is 20x)";
                return Err(Error::config(key, format!("is {}", um.unwrap_or(0.0)), fix));
            }
        }
        Ok(px / by)
    }

    /// Micrometres a pixel of each file of a table, where they are known, and what there is to say
    /// of them: by the table, else as said for all, else by the tags of the file.
    ///
    /// # Errors
    /// Cells that are no lengths.
    pub fn scales(&self, tiles: &TileTable) -> Result<(Vec<Option<f64>>, Vec<String>)> {
        let stated = self.stated(tiles)?;
        let file = |tile: &Tile| images::um_per_px(&tiles.folder.join(&tile.name));
        let tags: Vec<Option<f64>> = tiles.tiles.par_iter().map(file).collect();
        let mut said = Vec::new();
        let by_tags = stated.iter().zip(&tags).filter(|(s, t)| s.is_none() && t.is_some()).count();
        if by_tags > 0 {
            said.push(format!("{by_tags} files say their micrometres a pixel in their tags"));
        }
        let against = |(_, (s, t)): &(usize, (&Option<f64>, &Option<f64>))| {
            s.zip(**t).is_some_and(|(s, t)| (s / t - 1.0).abs() > SAME)
        };
        let mut odd = stated.iter().zip(&tags).enumerate().filter(against);
        if let Some((i, (Some(said_so), Some(tag)))) = odd.next() {
            said.push(format!(
                "{} files say other micrometres a pixel in their tags than stated ({}: {tag:.4}, \
                 stated {said_so}): what was stated is believed",
                1 + odd.count(),
                tiles.tiles[i].name
            ));
        }
        Ok((stated.iter().zip(&tags).map(|(s, t)| s.or(*t)).collect(), said))
    }

    /// What the table, or the person, says.
    fn stated(&self, tiles: &TileTable) -> Result<Vec<Option<f64>>> {
        let column = tiles.table.header.iter().position(|h| h == "um_per_px");
        let of = |(i, cells): (usize, &Vec<String>)| {
            let Some(cell) = column.map(|c| cells[c].trim()).filter(|c| !c.is_empty()) else {
                return Ok(self.um_per_px);
            };
            let um = cell.parse::<f64>().ok().filter(|um| (0.01..=100.0).contains(um));
            um.map(Some).ok_or_else(|| {
                let what = format!("um_per_px is {cell:?}, not micrometres a pixel");
                tiles.table.error(i, what, "correct it, or leave the cell empty")
            })
        };
        tiles.table.rows.iter().enumerate().map(of).collect()
    }

    /// Micrometres a pixel of the pack, if they are known.
    ///
    /// # Errors
    /// Files of different scales that are not brought to one.
    pub fn um_per_px(&self, tiles: &TileTable, scales: &[Option<f64>]) -> Result<Option<f64>> {
        if let Some(mpp) = self.mpp {
            return Ok(Some(mpp * self.downscale as f64));
        }
        let mut known = scales.iter().flatten();
        let Some(first) = known.next() else { return Ok(None) };
        if known.any(|um| (um / first - 1.0).abs() > SAME) {
            let what = "the tiles have different micrometres a pixel (column um_per_px)";
            let fix = "bring them to one with --mpp, or pack them apart";
            return Err(Error::file(&tiles.table.path, what, fix));
        }
        let all = scales.iter().all(Option::is_some);
        Ok(all.then_some(first * self.downscale as f64))
    }

    /// The tiles of image `i` of a table, each with what is put behind the image's name.
    ///
    /// # Errors
    /// Images that cannot be read, are too small, or whose scale is wanted and not known.
    pub fn tiles(
        &self,
        tiles: &TileTable,
        i: usize,
        scale: Option<f64>,
    ) -> Result<Vec<(String, Rgb)>> {
        let exact = self.crop == Crop::Exact && self.mpp.is_none();
        let size = (self.tile_px, self.tile_px);
        let expect = Expect { size: exact.then_some(size), ..Expect::section() };
        let image = tiles.load(i, expect)?;
        let image = match (self.mpp, scale) {
            (None, _) => image,
            (Some(to), Some(from)) => scaled(&image, from / to)?,
            (Some(_), None) => {
                let what =
                    format!("{}: its micrometres a pixel are not known", tiles.tiles[i].name);
                let fix = "fill in the column um_per_px, or give --tile-mpp for all";
                return Err(tiles.table.error(i, what, fix));
            }
        };
        let px = self.tile_px;
        let (w, h) = (image.width, image.height);
        if w < px || h < px || self.crop == Crop::Exact && (w, h) != size {
            let what = format!("the image is {w}x{h} pixels, expected {px}x{px}");
            let fix = if w < px || h < px { "lower --tile-px" } else { "cut it with --crop" };
            return Err(Error::file(tiles.folder.join(&tiles.tiles[i].name), what, fix));
        }
        let cut = |(x, y): (usize, usize)| {
            let tile = downscale(&image.crop(x, y, px, px)?, self.downscale)?;
            Ok((format!("@{x}x{y}"), tile))
        };
        match self.crop {
            Crop::Exact | Crop::Center => {
                Ok(vec![(String::new(), downscale(&centre(&image, px)?, self.downscale)?)])
            }
            Crop::Grid => grid_places(w, h, px).map(cut).collect(),
            Crop::Random => random_places(i, self.crops, (w, h), px).map(cut).collect(),
        }
    }
}

/// An image `factor` times as large each way.
fn scaled(image: &Rgb, factor: f64) -> Result<Rgb> {
    let to = |n: usize| ((n as f64 * factor).round() as usize).max(1);
    let (w, h) = (to(image.width), to(image.height));
    if w.saturating_mul(h) as u64 > Expect::section().max_pixels {
        let what = format!("would be {w}x{h} pixels of an image");
        return Err(Error::config("--mpp", what, "check the micrometres a pixel of the files"));
    }
    resize(image, w, h)
}

/// Corners of the tiles that fit side by side, what is left over equal on both sides.
fn grid_places(w: usize, h: usize, px: usize) -> impl Iterator<Item = (usize, usize)> {
    let (x0, y0) = (w % px / 2, h % px / 2);
    (0..h / px).flat_map(move |r| (0..w / px).map(move |c| (x0 + c * px, y0 + r * px)))
}

/// Corners drawn by the number of the image alone.
fn random_places(
    image: usize,
    crops: usize,
    (w, h): (usize, usize),
    px: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let draw = Stream::new(0, image as u64, 0, Purpose::Augment);
    (0..crops).map(move |k| (draw.below(2 * k, w - px + 1), draw.below(2 * k + 1, h - px + 1)))
}
