//! What is in an image, and in a folder of images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Found, InspectArgs, THUMB};
use crate::data::augment::{centre, grey_sd, resize};
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};

/// Images of a folder that are decoded.
const DECODED: usize = 256;
/// Below this deviation of grey a tile is glass.
const GLASS: f64 = 6.0;

/// A small picture of an image: its middle square.
///
/// # Errors
/// An image without pixels.
pub(super) fn thumbnail(image: &Rgb) -> Result<Rgb> {
    let side = image.width.min(image.height);
    resize(&centre(image, side)?, THUMB, THUMB)
}

/// Looks at one image.
///
/// # Errors
/// Images that cannot be used as tiles or sections.
pub(super) fn image(path: &Path) -> Result<Found> {
    let image = images::read(path, Expect::section())?;
    let mut found = Found::new();
    found.line("what", format!("image of {} x {} pixels", image.width, image.height));
    found.line("scale", scale(images::um_per_px(path)));
    let colour = Colour::of(&image);
    found.line("colour", colour);
    found.thumbnails.push(thumbnail(&image)?);
    Ok(found)
}

fn scale(um: Option<f64>) -> String {
    um.map_or("not in the file".into(), |um| format!("{um:.4} um a pixel by its tags"))
}

/// Looks at a whole slide.
///
/// # Errors
/// No OpenSlide, a slide that it does not read.
pub(super) fn slide(path: &Path) -> Result<Found> {
    let slide = crate::data::slide::open(path)?;
    let mut found = Found::new();
    found.line("what", "whole slide");
    let um = slide.um_per_px();
    found.line("scale", um.map_or("unknown".into(), |um| format!("{um} um a pixel")));
    for level in slide.levels() {
        let (w, h) = (level.width, level.height);
        found.line("level", format!("{w} x {h} pixels, 1/{:.3}", level.downsample));
    }
    found.thumbnails.push(thumbnail(&crate::data::slide::overview(slide.as_ref())?)?);
    Ok(found)
}

/// Mean colour, and how much of it varies.
struct Colour {
    mean: [f64; 3],
    sd: f64,
}

impl Colour {
    fn of(image: &Rgb) -> Self {
        let mut sum = [0f64; 3];
        for pixel in image.data.as_chunks::<3>().0 {
            (0..3).for_each(|c| sum[c] += f64::from(pixel[c]));
        }
        let n = (image.width * image.height).max(1) as f64;
        let sd = grey_sd(image, 0, 0, image.width, image.height);
        Self { mean: sum.map(|s| s / n), sd }
    }
}

impl std::fmt::Display for Colour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [r, g, b] = self.mean;
        write!(f, "mean RGB {r:.0} {g:.0} {b:.0}, deviation of grey {:.1}", self.sd)
    }
}

/// Looks at a folder: its images, or what else lies there.
///
/// # Errors
/// A folder that cannot be listed or is empty.
pub(super) fn folder(path: &Path, args: &InspectArgs) -> Result<Found> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
    let mut all: Vec<PathBuf> = Vec::new();
    for entry in entries {
        all.push(entry.map_err(|e| Error::io("read", path, e))?.path());
    }
    all.sort();
    let mut found = Found::new();
    let pictures: Vec<&PathBuf> = all.iter().filter(|p| images::named_image(p)).collect();
    if pictures.is_empty() {
        if all.is_empty() {
            return Err(Error::file(path, "an empty folder", "name a folder with data"));
        }
        found
            .line("what", if path.join("LATEST").exists() { RUN } else { "folder without images" });
        for entry in all.iter().take(20) {
            let name =
                entry.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
            let size = entry.metadata().map_or(0, |m| m.len());
            let is = if entry.is_dir() { "folder".into() } else { format!("{size} bytes") };
            found.line(&name, is);
        }
        return Ok(found);
    }
    tiles(&mut found, &pictures, args)?;
    Ok(found)
}

/// Micrometres a pixel by the tags of files.
fn scales(pictures: &[&PathBuf]) -> String {
    let mut all: Vec<f64> = pictures.par_iter().filter_map(|p| images::um_per_px(p)).collect();
    all.sort_by(f64::total_cmp);
    match (all.first(), all.last()) {
        (Some(low), Some(high)) => {
            let n =
                if all.len() < pictures.len() { format!(" in {}", all.len()) } else { "".into() };
            let range = if high / low > 1.001 { format!(" to {high:.4}") } else { String::new() };
            format!("{low:.4}{range} um a pixel by the tags{n}")
        }
        _ => "not in the files".into(),
    }
}

const RUN: &str = "stage of a run: its newest checkpoint is named in LATEST";

fn tiles(found: &mut Found, pictures: &[&PathBuf], args: &InspectArgs) -> Result<()> {
    found.line("what", format!("folder of {} images", pictures.len()));
    let sizes: Vec<Result<(u32, u32)>> = pictures.par_iter().map(|p| images::size(p)).collect();
    let mut by_size: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut bad = Vec::new();
    for size in sizes {
        match size {
            Ok(size) => *by_size.entry(size).or_default() += 1,
            Err(e) => bad.push(e.to_string()),
        }
    }
    for ((w, h), n) in by_size.iter().take(8) {
        found.line("size", format!("{w} x {h} pixels: {n}"));
    }
    if by_size.len() > 8 {
        found.line("size", format!("and {} more", by_size.len() - 8));
    }
    found.line("scale", scales(pictures));
    let step = pictures.len().div_ceil(DECODED);
    let some: Vec<&PathBuf> = pictures.iter().step_by(step).copied().collect();
    let keep = args.out.is_some();
    let look = |p: &&PathBuf| -> Result<(Colour, Option<Rgb>)> {
        let image = images::read(p, Expect::section())?;
        Ok((Colour::of(&image), if keep { Some(thumbnail(&image)?) } else { None }))
    };
    let looked: Vec<Result<_>> = some.par_iter().map(look).collect();
    let mut colours = Vec::new();
    let every = some.len().div_ceil(args.thumbnails.max(1)).max(1);
    for (i, one) in looked.into_iter().enumerate() {
        match one {
            Ok((colour, thumb)) => {
                colours.push(colour);
                found.thumbnails.extend(thumb.filter(|_| i % every == 0));
            }
            Err(e) => bad.push(e.to_string()),
        }
    }
    bad.sort();
    bad.dedup();
    let n = colours.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Colour) -> f64| colours.iter().map(of).sum::<f64>() / n;
    let rgb = [0, 1, 2].map(|c| mean(&|x: &Colour| x.mean[c]));
    let glass = colours.iter().filter(|c| c.sd < GLASS).count();
    let [r, g, b] = rgb;
    let sd = mean(&|x: &Colour| x.sd);
    found.line("colour", format!("mean RGB {r:.0} {g:.0} {b:.0}, deviation of grey {sd:.1}"));
    found.line("looked at", format!("{} images, {glass} of them glass", colours.len()));
    match bad.is_empty() {
        true => found.line("unreadable", 0),
        false => bad.iter().take(5).for_each(|e| found.line("unreadable", e)),
    }
    Ok(())
}
