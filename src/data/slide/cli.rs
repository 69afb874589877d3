//! `genevar data cut`: tiles of whole slides, and the table that `genevar data pack` reads.

use std::fmt::Write;
use std::path::PathBuf;

use rayon::prelude::*;

use super::{Plan, SlideCut, named_slide, open, plan};
use crate::error::{Error, Result, Within};
use crate::io::atomic;
use crate::io::images::{self, write_png};
use crate::io::tables::check_file_name;

/// Cuts whole slides (.svs, .tiff ... with OpenSlide; PNG, JPEG without) into tiles of tissue.
#[derive(Clone, Debug, clap::Args)]
pub struct SlideArgs {
    /// Slides, or folders of them.
    #[arg(required = true)]
    pub slides: Vec<PathBuf>,
    /// Folder for the tiles and their table, tiles.tsv; made if it is not there.
    #[arg(long)]
    pub out: PathBuf,
    /// Side of a tile in pixels.
    #[arg(long, default_value_t = 256)]
    pub tile_px: usize,
    /// Micrometres a pixel of the tiles: 0.5 is 20x.
    #[arg(long, default_value_t = 0.5)]
    pub mpp: f64,
    /// Micrometres a pixel of the slides, whatever they say; needed where one does not.
    #[arg(long)]
    pub slide_mpp: Option<f64>,
    /// Least share of tissue of a tile.
    #[arg(long, default_value_t = 0.2)]
    pub min_tissue: f64,
    /// Most tiles of a slide, spread evenly over it; 0 takes all.
    #[arg(long, default_value_t = 0)]
    pub max_tiles: usize,
    /// Split that the table gives the tiles.
    #[arg(long, default_value = "train")]
    pub split: String,
}

/// How far what a slide says may be from what was stated before it is told.
const SAME: f64 = 0.05;

/// Runs the command; returns what is to be printed.
///
/// # Errors
/// No slides, two of one name, a slide that cannot be read, and those of writing.
pub fn run(args: &SlideArgs) -> Result<String> {
    let cut = SlideCut {
        tile_px: args.tile_px,
        mpp: args.mpp,
        slide_mpp: args.slide_mpp,
        min_tissue: args.min_tissue,
    };
    if args.tile_px == 0 || args.tile_px > 4096 {
        return Err(Error::config("--tile-px", format!("is {}", args.tile_px), "give 1 to 4096"));
    }
    let slides = slides(&args.slides)?;
    atomic::create_folder(&args.out)?;
    let mut table =
        String::from("tile\tsection\tpatient\tsplit\tcrop_x0\tcrop_y0\tum_per_px\ttissue_frac\n");
    let mut said = String::new();
    for (name, path) in &slides {
        let slide = open(path)?;
        let plan = plan(slide.as_ref(), &cut).within(path.display())?;
        if let (Some(stated), Some(own)) = (cut.slide_mpp, slide.um_per_px())
            && (stated / own - 1.0).abs() > SAME
        {
            let _ =
                writeln!(said, "{name}: says {own} um a pixel; {stated}, as stated, is believed");
        }
        let kept = thinned(&plan, args.max_tiles);
        let write = |i: &usize| -> Result<()> {
            let place = &plan.places[*i];
            let tile = plan.tile(slide.as_ref(), place, args.tile_px)?;
            write_png(args.out.join(tile_name(name, place.corner)), &tile)
        };
        kept.par_iter().try_for_each(write).within(path.display())?;
        for &i in &kept {
            let place = &plan.places[i];
            let (x, y) = place.corner;
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "{}\t{name}\t{}\t{}\t{x}\t{y}\t{}\t{:.3}",
                tile_name(name, place.corner),
                patient(name),
                args.split,
                args.mpp,
                place.tissue
            );
        }
        let (n, all, side) = (plan.places.len(), plan.all, plan.side());
        let _ = writeln!(
            said,
            "{name}: {n} of {all} tiles hold tissue, {} written; a side is {side:.0} of its pixels",
            kept.len()
        );
    }
    atomic::write(args.out.join("tiles.tsv"), table.as_bytes())?;
    let _ = writeln!(said, "{}", args.out.join("tiles.tsv").display());
    Ok(said)
}

fn tile_name(slide: &str, (x, y): (u64, u64)) -> String {
    format!("{slide}_x{x}_y{y}.png")
}

/// TCGA's barcodes begin with the patient's; other slides are patients of their own.
fn patient(slide: &str) -> &str {
    match slide.get(..12) {
        Some(barcode) if barcode.starts_with("TCGA-") && barcode.as_bytes()[7] == b'-' => barcode,
        _ => slide,
    }
}

/// At most `most` places, spread evenly.
fn thinned(plan: &Plan, most: usize) -> Vec<usize> {
    let n = plan.places.len();
    let kept = if most == 0 { n } else { n.min(most) };
    (0..kept).map(|i| i * n / kept).collect()
}

/// Slides by name, the folders among the paths opened.
fn slides(paths: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
            let mut inner = Vec::new();
            for entry in entries {
                inner.push(entry.map_err(|e| Error::io("read", path, e))?.path());
            }
            inner.retain(|p| named_slide(p) || images::named_image(p));
            inner.sort();
            found.extend(inner);
        } else {
            found.push(path.clone());
        }
    }
    if found.is_empty() {
        let fix = "their names end in .svs, .tiff, .ndpi, .mrxs, .scn or as images do";
        return Err(Error::data("no slides in these folders", fix));
    }
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    for path in found {
        let stem = path.file_stem().map_or(String::new(), |s| s.to_string_lossy().into_owned());
        // What follows the first dot of a GDC file is its UUID.
        let name = stem.split('.').next().unwrap_or_default().to_string();
        check_file_name(&name).within(path.display())?;
        if let Some((_, other)) = named.iter().find(|(n, _)| *n == name) {
            let what = format!("two slides are called {name}: the other is {}", other.display());
            return Err(Error::file(&path, what, "rename one, or cut them into two folders"));
        }
        named.push((name, path));
    }
    Ok(named)
}
