//! Whole slides: where there is tissue, and tiles of it at one scale.
//!
//! A slide is a pyramid of levels. The tissue is found on a small one: hue and saturation set
//! stained tissue apart from glass, and Otsu's threshold finds how much saturation that takes. A
//! tile is read from the level next finer than the scale that is wanted, and resampled to it.

mod cli;
mod mask;

use std::path::Path;

pub use cli::{SlideArgs, run};
pub use mask::{Mask, otsu};

use crate::data::augment::resize;
use crate::device::openslide::{self, Level};
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};

/// A picture in several sizes.
pub trait Pyramid: Sync {
    /// The sizes, the largest first.
    fn levels(&self) -> &[Level];

    /// Micrometres a pixel of the largest, if they are known.
    fn um_per_px(&self) -> Option<f64>;

    /// Pixels of a level from a corner in pixels of the largest.
    ///
    /// # Errors
    /// Those of the file.
    fn read(&self, level: usize, at: (u64, u64), size: (usize, usize)) -> Result<Rgb>;
}

impl Pyramid for openslide::Slide {
    fn levels(&self) -> &[Level] {
        self.levels()
    }

    fn um_per_px(&self) -> Option<f64> {
        let number = |name: &str| self.property(name)?.trim().parse::<f64>().ok();
        let sane = |um: &f64| (0.01..=100.0).contains(um);
        let told = number("openslide.mpp-x").filter(sane);
        // A 20x objective is half a micrometre a pixel, to within the scanners' habits.
        told.or_else(|| number("openslide.objective-power").map(|x| 10.0 / x).filter(sane))
    }

    fn read(&self, level: usize, at: (u64, u64), size: (usize, usize)) -> Result<Rgb> {
        let at = (at.0 as i64, at.1 as i64);
        Rgb::new(size.0, size.1, openslide::Slide::read(self, level, at, size)?)
    }
}

/// An image file: a pyramid of one level.
pub struct Flat {
    image: Rgb,
    level: [Level; 1],
    um_per_px: Option<f64>,
}

impl Flat {
    /// A picture as a slide.
    pub fn new(image: Rgb) -> Self {
        let (width, height) = (image.width as u64, image.height as u64);
        let level = [Level { width, height, downsample: 1.0 }];
        Self { image, level, um_per_px: None }
    }

    /// The same, with its micrometres a pixel if they are known.
    pub fn at(self, um_per_px: Option<f64>) -> Self {
        Self { um_per_px, ..self }
    }
}

impl Pyramid for Flat {
    fn levels(&self) -> &[Level] {
        &self.level
    }

    fn um_per_px(&self) -> Option<f64> {
        self.um_per_px
    }

    fn read(&self, _: usize, (x, y): (u64, u64), (width, height): (usize, usize)) -> Result<Rgb> {
        self.image.crop(x as usize, y as usize, width, height)
    }
}

/// Ends of file names that are slides and nothing else.
const ENDS: [&str; 7] = ["svs", "ndpi", "mrxs", "scn", "vms", "bif", "svslide"];

/// Whether a file is named as a whole slide.
pub fn named_slide(path: &Path) -> bool {
    let end = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    end.is_some_and(|e| ENDS.contains(&&*e))
}

/// Opens a slide: by OpenSlide if it is one, else as an image.
///
/// # Errors
/// Files that neither can read; a slide where there is no OpenSlide.
pub fn open(path: &Path) -> Result<Box<dyn Pyramid>> {
    let end = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let plain = matches!(end.as_deref(), Some("png" | "jpg" | "jpeg"));
    if !plain {
        match openslide::Slide::open(path) {
            Ok(slide) => return Ok(Box::new(slide)),
            // A TIFF of one picture is no slide, and is read without OpenSlide.
            Err(e) if !images::named_image(path) => return Err(e),
            Err(_) => {}
        }
    }
    let image = images::read(path, Expect::section())?;
    Ok(Box::new(Flat::new(image).at(images::um_per_px(path))))
}

/// How a slide is cut.
#[derive(Clone, Copy, Debug)]
pub struct SlideCut {
    /// Side of a tile in pixels.
    pub tile_px: usize,
    /// Micrometres a pixel of the tiles.
    pub mpp: f64,
    /// Micrometres a pixel of the slide, whatever it says.
    pub slide_mpp: Option<f64>,
    /// Least share of tissue of a tile.
    pub min_tissue: f64,
}

/// Where a tile lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Top left corner in pixels of the largest level.
    pub corner: (u64, u64),
    /// Share of tissue.
    pub tissue: f64,
}

/// What a slide is cut by.
pub struct Plan {
    /// Tiles with enough tissue, row by row.
    pub places: Vec<Place>,
    /// Tiles that the slide has room for.
    pub all: usize,
    /// Side of a tile in pixels of the largest level.
    side: f64,
    /// The level that is read.
    level: usize,
    /// Side of a tile there.
    read: usize,
}

/// Side of the picture that tissue is looked for on, at most.
const MASK_SIDE: u64 = 2048;

/// Finds the tiles of a slide.
///
/// # Errors
/// A slide whose scale is not known, a scale that is no length, and those of reading.
pub fn plan(slide: &dyn Pyramid, cut: &SlideCut) -> Result<Plan> {
    let Some(um) = cut.slide_mpp.or_else(|| slide.um_per_px()) else {
        let what = "the slide does not say its micrometres a pixel";
        return Err(Error::config("--slide-mpp", what, "give them (0.25 for 40x, 0.5 for 20x)"));
    };
    let factor = cut.mpp / um;
    let side = cut.tile_px as f64 * factor;
    if !(0.02..=50.0).contains(&factor) || side < 8.0 {
        let what = format!("{} micrometres a pixel of a slide of {um}", cut.mpp);
        return Err(Error::config("--mpp", what, "give a scale near that of the slide"));
    }
    let levels = slide.levels();
    let Some(largest) = levels.first() else {
        return Err(Error::Internal("a slide without levels".into()));
    };
    // The smallest level that is not smaller than what is wanted.
    let fine = levels.iter().rposition(|l| l.downsample <= factor * 1.01).unwrap_or(0);
    let mask = Mask::of(&overview(slide)?);
    let along = |n: u64| (n as f64 / side) as usize;
    let (columns, rows) = (along(largest.width), along(largest.height));
    let mut places = Vec::new();
    for i in 0..columns * rows {
        let (x, y) = ((i % columns) as f64 * side, (i / columns) as f64 * side);
        let (w, h) = (largest.width as f64, largest.height as f64);
        let tissue = mask.share((x / w, y / h), (side / w, side / h));
        if tissue >= cut.min_tissue {
            places.push(Place { corner: (x as u64, y as u64), tissue });
        }
    }
    let read = (side / levels[fine].downsample).round().max(1.0) as usize;
    Ok(Plan { places, all: columns * rows, side, level: fine, read })
}

impl Plan {
    /// The tile at a place.
    ///
    /// # Errors
    /// Those of reading.
    pub fn tile(&self, slide: &dyn Pyramid, place: &Place, tile_px: usize) -> Result<Rgb> {
        let region = slide.read(self.level, place.corner, (self.read, self.read))?;
        resize(&region, tile_px, tile_px)
    }

    /// Side of a tile in pixels of the largest level.
    pub fn side(&self) -> f64 {
        self.side
    }
}

/// The whole slide, small.
///
/// # Errors
/// Those of reading.
pub fn overview(slide: &dyn Pyramid) -> Result<Rgb> {
    let levels = slide.levels();
    let small = |l: &Level| l.width.max(l.height) >= MASK_SIDE / 2;
    let at = levels.iter().rposition(small).unwrap_or(levels.len().saturating_sub(1));
    let (w, h) = (levels[at].width, levels[at].height);
    let by = (w.max(h).div_ceil(MASK_SIDE)).max(1);
    let (wide, high) = ((w / by).max(1) as usize, (h / by).max(1) as usize);
    if w.saturating_mul(h) <= 1 << 26 {
        let whole = slide.read(at, (0, 0), (w as usize, h as usize))?;
        return resize(&whole, wide, high);
    }
    // A slide of one large level: strip by strip.
    let mut data = Vec::with_capacity(3 * wide * high);
    for row in 0..high as u64 {
        let y = (row * by) as f64 * levels[at].downsample;
        let strip = slide.read(at, (0, y as u64), (w as usize, by as usize))?;
        data.extend(resize(&strip, wide, 1)?.data);
    }
    Rgb::new(wide, high, data)
}
