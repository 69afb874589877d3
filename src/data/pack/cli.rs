//! `genevar data pack`: the command line of [`build()`].

use std::path::{Path, PathBuf};

use super::store::to_json_page;
use super::{BuildSpec, Crop, Cut, FreeSource, GeneRule, Notice, RnaSource, build};
use crate::data::pairs::{Join, Unit};
use crate::data::source::RnaOptions;
use crate::data::tiles::TileColumns;
use crate::error::{Error, Result};

/// Builds a pack from a tile folder, its table and an expression matrix.
#[derive(Clone, Debug, clap::Args)]
pub struct PackArgs {
    /// Folder of the tile images.
    #[arg(long)]
    pub tiles: PathBuf,
    /// Table with one row a tile (TSV or CSV, plain or gzip). Without it, and without RNA, all
    /// images of the folder make a pack for a tokenizer, every tenth held out.
    #[arg(long)]
    pub table: Option<PathBuf>,
    /// RNA: a table (TSV or CSV, may be .gz), AnnData (.h5ad), safetensors, or a folder of GDC STAR
    /// counts. May be repeated; PREFIX=FILE puts PREFIX before the names of its samples.
    /// Without it the pack is of tiles alone.
    #[arg(long, requires = "table")]
    pub rna: Vec<String>,
    #[command(flatten)]
    pub(crate) read: RnaOptions,
    /// Pack file to write.
    #[arg(long)]
    pub out: PathBuf,
    /// How tiles find their RNA.
    #[arg(long, value_enum, default_value = "tile")]
    pub join: Join,
    /// Column of tile file names.
    #[arg(long, default_value = "tile")]
    pub tile_column: String,
    /// Column of splits.
    #[arg(long, default_value = "split")]
    pub split_column: String,
    /// Column of sections; empty for none.
    #[arg(long, default_value = "section")]
    pub section_column: String,
    /// Column of patients; empty for none.
    #[arg(long, default_value = "patient")]
    pub patient_column: String,
    /// Column of classes; empty for none.
    #[arg(long, default_value = "")]
    pub class_column: String,
    /// Column of matrix rows, for `--join row`.
    #[arg(long, default_value = "row")]
    pub row_column: String,
    /// What must not be shared between splits.
    #[arg(long, value_enum, default_value = "patient")]
    pub unit: Unit,
    /// Whole-section image to cut free crops from, as SECTION=PATH; may be repeated.
    #[arg(long)]
    pub free: Vec<String>,
    /// Side of a tile in pixels, before it is shrunk.
    #[arg(long, default_value_t = 256)]
    pub tile_px: usize,
    /// How tiles are cut from larger images.
    #[arg(long, value_enum, default_value = "exact")]
    pub crop: Crop,
    /// Tiles of an image with `--crop random`.
    #[arg(long, default_value_t = 1)]
    pub crops: usize,
    /// Micrometres a pixel that images are brought to first (0.5 is 20x); needs theirs, from the
    /// column um_per_px of the table, `--tile-mpp` or the tags of the files.
    #[arg(long)]
    pub mpp: Option<f64>,
    /// Micrometres a pixel of the image files, where the table does not say.
    #[arg(long)]
    pub tile_mpp: Option<f64>,
    /// Whole factor to shrink by.
    #[arg(long, default_value_t = 1)]
    pub downscale: usize,
    /// JPEG quality of the store (4:4:4); 0 stores raw pixels.
    #[arg(long, default_value_t = 90)]
    pub quality: u8,
    /// How many genes to keep; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub genes: usize,
    /// Which genes to keep.
    #[arg(long, value_enum, default_value = "detected")]
    pub gene_rule: GeneRule,
    /// Free crops are added until the file would pass this size.
    #[arg(long, default_value_t = u64::MAX)]
    pub max_bytes: u64,
    /// Leaves out tiles that cannot be read, and says which and why, instead of ending there.
    #[arg(long)]
    pub skip_bad: bool,
    /// Short name of the data's licence.
    #[arg(long, default_value = "")]
    pub licence: String,
    /// File with licence, source, citation and changes, kept inside the pack.
    #[arg(long)]
    pub notice: Option<PathBuf>,
    /// Prints what the pack holds as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command; returns what the pack holds, to be printed.
///
/// # Errors
/// As [`build()`].
pub fn run(args: &PackArgs) -> Result<String> {
    let report = build(&spec(args)?)?;
    if args.json {
        return to_json_page(&report);
    }
    let list = |m: &std::collections::BTreeMap<String, usize>| {
        let parts: Vec<String> = m.iter().map(|(k, n)| format!("{k} {n}")).collect();
        parts.join(", ")
    };
    let mut out: String = report.said.iter().map(|line| format!("{line}\n")).collect();
    out.extend(report.skipped.iter().map(|line| format!("skipped: {line}\n")));
    let mut line = |what: &str, text: String| out += &format!("  {what:<16} {text}\n");
    line("file", format!("{} ({:.2} MB)", args.out.display(), report.bytes as f64 / 1e6));
    let what = if report.samples == 0 { "tiles" } else { "tiles with RNA" };
    line(what, list(&report.paired));
    line("free crops", format!("{} ({} left out)", list(&report.free), report.left_out));
    line("RNA", format!("{} samples x {} genes", report.samples, report.genes));
    line("image side", format!("{} px", report.tile_size));
    Ok(out)
}

fn spec(args: &PackArgs) -> Result<BuildSpec> {
    let row = if args.join == Join::Row { args.row_column.clone() } else { String::new() };
    let text = match &args.notice {
        Some(path) => std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?,
        None => String::new(),
    };
    Ok(BuildSpec {
        out: args.out.clone(),
        table: args.table.clone(),
        folder: args.tiles.clone(),
        columns: TileColumns {
            tile: args.tile_column.clone(),
            split: args.split_column.clone(),
            section: args.section_column.clone(),
            patient: args.patient_column.clone(),
            class: args.class_column.clone(),
            row,
        },
        rna: rna_source(args),
        join: args.join,
        unit: args.unit,
        free: args.free.iter().map(|f| free_source(f)).collect::<Result<_>>()?,
        cut: Cut {
            tile_px: args.tile_px,
            downscale: args.downscale,
            crop: args.crop,
            crops: args.crops,
            mpp: args.mpp,
            um_per_px: args.tile_mpp,
        },
        quality: Some(args.quality).filter(|&q| q > 0),
        genes: Some(args.genes).filter(|&g| g > 0),
        rule: args.gene_rule,
        max_bytes: args.max_bytes,
        notice: Notice { licence: args.licence.clone(), text },
        skip_bad: args.skip_bad,
    })
}

fn rna_source(args: &PackArgs) -> RnaSource {
    // A file whose name holds "=" is meant as it is.
    let one = |text: &String| match text.split_once('=') {
        Some((prefix, path)) if !Path::new(text).exists() => (prefix.to_string(), path.into()),
        _ => (String::new(), text.into()),
    };
    RnaSource { files: args.rna.iter().map(one).collect(), options: args.read.clone() }
}

fn free_source(text: &str) -> Result<FreeSource> {
    match text.split_once('=') {
        Some((section, path)) if !section.is_empty() && Path::new(path).file_name().is_some() => {
            Ok(FreeSource { section: section.into(), path: path.into() })
        }
        _ => Err(Error::config("--free", format!("\"{text}\""), "write SECTION=PATH")),
    }
}
