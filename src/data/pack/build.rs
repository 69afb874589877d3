//! Building a pack: read, check, join, choose genes, shrink, compress, write.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::cut::Cut;
use super::free::{self, Block, FreeSource};
use super::store::{Images, Listing, to_json};
use super::{FORMAT, OVER, VERSION};
use crate::data::pairs::{self, Join, Unit};
use crate::data::rna::{Expression, Scaling};
use crate::data::source::{Rna, RnaOptions, Wanted};
use crate::data::tiles::{Tile, TileColumns, TileTable};
use crate::data::units::{Log, Quantity, Units};
use crate::error::{Error, Result};
use crate::io::safetensors::{Store, Writer};
use crate::tensor::Tensor;

/// Where the RNA comes from.
#[derive(Clone, Debug, Default)]
pub struct RnaSource {
    /// Files and folders, each with what is put before its samples' names.
    pub files: Vec<(String, PathBuf)>,
    /// How they are read.
    pub options: RnaOptions,
}

/// Of so many tiles without a table one is held out.
const HELD: usize = 10;

/// Which genes are kept when fewer than all are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GeneRule {
    /// The ones seen in most training samples: the best measured.
    Detected,
    /// The ones whose log-normalised value varies most over the training samples.
    Variance,
}

/// What must accompany the data wherever they go.
#[derive(Clone, Debug, Default)]
pub struct Notice {
    /// The licence's short name.
    pub licence: String,
    /// Source, citation and changes.
    pub text: String,
}

/// Everything that decides what is in a pack.
#[derive(Clone, Debug)]
pub struct BuildSpec {
    /// The file to write.
    pub out: PathBuf,
    /// The tile table; without one all images of the folder are taken, one in ten for the
    /// split val.
    pub table: Option<PathBuf>,
    /// The folder of the tiles.
    pub folder: PathBuf,
    /// Names of the table's columns.
    pub columns: TileColumns,
    /// The RNA; without files of it the pack is of tiles alone, for a tokenizer.
    pub rna: RnaSource,
    /// How tiles find their RNA.
    pub join: Join,
    /// What must not be shared between splits.
    pub unit: Unit,
    /// Whole sections to cut free crops from.
    pub free: Vec<FreeSource>,
    /// How image files become tiles; free crops are shrunk by the same factor.
    pub cut: Cut,
    /// JPEG quality of the store, or None for raw pixels.
    pub quality: Option<u8>,
    /// How many genes to keep; None keeps all.
    pub genes: Option<usize>,
    /// Which ones.
    pub rule: GeneRule,
    /// Free crops are added until the file would pass this size.
    pub max_bytes: u64,
    /// Licence and source.
    pub notice: Notice,
    /// Whether tiles that cannot be read are left out instead of ending it.
    pub skip_bad: bool,
}

/// What was put into a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Tiles with RNA, by split.
    pub paired: BTreeMap<String, usize>,
    /// Free crops, by section.
    pub free: BTreeMap<String, usize>,
    /// Tissue blocks that did not fit the size limit.
    pub left_out: usize,
    /// Genes kept.
    pub genes: usize,
    /// Samples of RNA kept.
    pub samples: usize,
    /// Tiles that were left out, and why.
    pub skipped: Vec<String>,
    /// What was found and done while the RNA was read.
    pub said: Vec<String>,
    /// Side of the images in pixels.
    pub tile_size: usize,
    /// Size of the file.
    pub bytes: u64,
}

/// Builds a pack and writes it, whole or not at all.
///
/// # Errors
/// Whatever is wrong with the input (see the readers); a pack without room for its tiles.
pub fn build(spec: &BuildSpec) -> Result<Report> {
    let size = spec.cut.side()?;
    if spec.quality.is_some_and(|q| q == 0 || q > 100) {
        return Err(Error::config("quality", "out of range", "use 1 to 100"));
    }
    let (tiles, mut said) = read_tiles(spec)?;
    let mut writer = Writer::new();
    let (rows, genes) = match spec.rna.files.is_empty() {
        true => (Rows::none(tiles.tiles.len()), no_rna(&mut writer, &mut said)?),
        false => paired(spec, &tiles, &mut writer, &mut said)?,
    };
    let (scales, told) = spec.cut.scales(&tiles)?;
    said.extend(told);
    add_head(&mut writer, spec, spec.cut.um_per_px(&tiles, &scales)?, size);

    let mut images = Images::new(spec.quality);
    let cut = |i: usize| -> Result<Vec<(String, Vec<u8>)>> {
        let tiles = spec.cut.tiles(&tiles, i, scales[i])?;
        tiles.into_iter().map(|(place, image)| Ok((place, images.encode(&image)?))).collect()
    };
    let cut: Vec<_> = (0..tiles.tiles.len()).into_par_iter().map(cut).collect();
    let mut listed = Listing::default();
    let mut report = Report { genes, samples: rows.used.len(), said, ..Report::default() };
    for ((tile, row), cut) in tiles.tiles.iter().zip(&rows.of).zip(cut) {
        if let (true, Err(why)) = (spec.skip_bad, &cut) {
            report.skipped.push(why.to_string());
            continue;
        }
        for (place, encoded) in cut? {
            images.push(encoded);
            listed.push(Tile { name: tile.name.clone() + &place, ..tile.clone() }, *row);
            *report.paired.entry(tile.split.clone()).or_default() += 1;
        }
    }
    if !report.paired.contains_key("train") {
        return Err(pairs::empty_split("train", listed.splits()));
    }
    let base = writer.size() + images.size() + listed.size();
    let room = spec.max_bytes.checked_sub(base).ok_or_else(|| {
        let what =
            format!("tiles and RNA need {base} bytes, at most {} are wanted", spec.max_bytes);
        Error::config("max-bytes", what, "raise it, keep fewer genes, or lower the JPEG quality")
    })?;
    add_free(spec, &tiles, (&mut images, &mut listed, &mut report), room)?;

    images.store(&mut writer, size)?;
    listed.store(&mut writer)?;
    report.tile_size = size;
    report.bytes = writer.save(&spec.out)?;
    Ok(report)
}

/// The tiles by their table, or all of the folder.
fn read_tiles(spec: &BuildSpec) -> Result<(TileTable, Vec<String>)> {
    let Some(table) = &spec.table else {
        if !spec.rna.files.is_empty() || !spec.free.is_empty() {
            let what = "is missing: it says which tiles belong to which RNA or section";
            return Err(Error::config("--table", what, "give it, or leave --rna and --free out"));
        }
        let tiles = TileTable::of_folder(&spec.folder, HELD)?;
        let said = format!(
            "no table: all {} images of the folder, every {HELD}th of them held out (val); nothing \
             is known of their patients",
            tiles.tiles.len()
        );
        return Ok((tiles, vec![said]));
    };
    let tiles = TileTable::read(table, &spec.folder, &spec.columns)?;
    pairs::check_splits(&tiles, spec.unit, &["train"])?;
    Ok((tiles, Vec::new()))
}

/// Reads, joins and stores the RNA; returns the rows of the tiles and the number of genes.
fn paired(
    spec: &BuildSpec,
    tiles: &TileTable,
    writer: &mut Writer,
    said: &mut Vec<String>,
) -> Result<(Rows, usize)> {
    let read = read_rna(&spec.rna, &expected(spec.join, tiles))?;
    said.extend(read.said);
    let (rna, units) = (read.rna, read.units);
    let joined = pairs::join(tiles, &rna.samples, spec.join)?;
    let counts = units == Some(Units::COUNTS) && can_be_stored(&rna);
    let genes = choose_genes(spec, &rna, &train_rows(tiles, &joined), units)?;
    let rows = Rows::new(&joined);
    add_rna(writer, &rna, &rows.used, &genes, counts)?;
    // Counts that are stored as counts need no word.
    if let Some(units) = units.filter(|_| !counts) {
        writer.meta("rna.units", units.to_string());
    }
    Ok((rows, genes.len()))
}

/// Stores that there is no RNA.
fn no_rna(writer: &mut Writer, said: &mut Vec<String>) -> Result<usize> {
    said.push("no RNA: a tokenizer can be trained on this pack, nothing that reads genes".into());
    writer.meta("genes", "[]");
    writer.tensor("rna.values", &Tensor::new(Vec::new(), [0, 0])?, Store::Full)?;
    Ok(0)
}

/// What was read, and what to say of it.
struct Read {
    rna: Expression,
    units: Option<Units>,
    said: Vec<String>,
}

/// Names that samples have when tiles find them by name.
fn expected(join: Join, tiles: &TileTable) -> Vec<String> {
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_string();
    let names = tiles.tiles.iter().flat_map(|t| match join {
        Join::Row => Vec::new(),
        Join::Tile => vec![t.name.clone(), stem(&t.name)],
        Join::Patient => vec![t.patient.clone()],
    });
    names.collect()
}

/// All files of a source as one matrix of the genes that all of them have.
fn read_rna(source: &RnaSource, samples: &[String]) -> Result<Read> {
    let mut parts = Vec::new();
    let mut said = Vec::new();
    for (prefix, path) in &source.files {
        let strip = |s: &String| s.strip_prefix(prefix.as_str()).map(String::from);
        let samples: Vec<String> = samples.iter().filter_map(strip).collect();
        let wanted = Wanted { samples: &samples, ..Wanted::default() };
        let mut part = Rna::read(path, &source.options, wanted)?;
        part.x.samples.iter_mut().for_each(|s| s.insert_str(0, prefix));
        said.push(format!("{}: {}", path.display(), part.said.join("; ")));
        parts.push(part);
    }
    let mut parts = parts.into_iter();
    let first = parts.next().ok_or_else(|| {
        Error::config("--rna", "names no file", "give a table, an .h5ad, a folder of STAR counts")
    })?;
    let (mut rna, units) = (first.x, first.units);
    for part in parts {
        if part.units != units {
            let name = |u: Option<Units>| u.map_or("of unknown units".into(), |u| u.to_string());
            let what = format!(
                "{} is {}, {} is {}",
                source.files[0].1.display(),
                name(units),
                part.path.display(),
                name(part.units)
            );
            return Err(Error::data(what, "give files of the same units, or pack them apart"));
        }
        rna = rna.joined(&part.x)?;
    }
    if source.files.len() > 1 {
        said.push(format!("together: {} samples x {} genes", rna.len(), rna.genes.len()));
    }
    Ok(Read { rna, units, said })
}

/// Whether values are whole numbers that fit the store of counts.
fn can_be_stored(rna: &Expression) -> bool {
    let fits = |v: &f32| v.fract() == 0.0 && (0.0..4e9).contains(v);
    (0..rna.len()).all(|i| rna.totals[i] < 4e9 && rna.row(i).iter().all(fits))
}

/// Samples of the training tiles, each once, in order.
fn train_rows(tiles: &TileTable, joined: &[usize]) -> Vec<usize> {
    let train = tiles.tiles.iter().zip(joined).filter(|(t, _)| t.split == "train");
    let mut rows: Vec<usize> = train.map(|(_, &r)| r).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// Columns of the genes to keep, in the order of the matrix. Only training samples are looked at.
fn choose_genes(
    spec: &BuildSpec,
    rna: &Expression,
    train: &[usize],
    units: Option<Units>,
) -> Result<Vec<usize>> {
    let all = rna.genes.len();
    let wanted = spec.genes.unwrap_or(all);
    if wanted == 0 || wanted > all {
        let what = format!("{wanted} genes of {all}");
        return Err(Error::config("genes", what, "keep at least one and at most all"));
    }
    if wanted == all {
        return Ok((0..all).collect());
    }
    let scaling = match units.map(|u| (u.quantity, u.log)) {
        Some((Quantity::Counts, Log::None)) => Scaling::COUNTS,
        Some((_, Log::None)) => Scaling::FPKM,
        _ => Scaling::LOG,
    };
    let (mut sum, mut square) = (vec![0f64; all], vec![0f64; all]);
    for &r in train {
        for (g, v) in rna.row(r).into_iter().enumerate() {
            let v = match spec.rule {
                GeneRule::Detected => f64::from(u8::from(v > 0.0)),
                GeneRule::Variance => scaling.apply(v, rna.totals[r].max(1.0)),
            };
            sum[g] += v;
            square[g] += v * v;
        }
    }
    let n = train.len() as f64;
    let score = |g: usize| match spec.rule {
        GeneRule::Detected => sum[g],
        GeneRule::Variance => square[g] / n - (sum[g] / n).powi(2),
    };
    let mut order: Vec<usize> = (0..all).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order.truncate(wanted);
    order.sort_unstable();
    Ok(order)
}

/// Samples that some tile uses, and for each tile the position of its sample among them.
struct Rows {
    used: Vec<usize>,
    of: Vec<Option<u32>>,
}

impl Rows {
    /// Of tiles without RNA.
    fn none(tiles: usize) -> Self {
        Self { used: Vec::new(), of: vec![None; tiles] }
    }

    fn new(joined: &[usize]) -> Self {
        let mut used = joined.to_vec();
        used.sort_unstable();
        used.dedup();
        let place = |r: &usize| used.partition_point(|u| u < r) as u32;
        let of = joined.iter().map(|r| Some(place(r))).collect();
        Self { used, of }
    }
}

fn add_rna(
    writer: &mut Writer,
    rna: &Expression,
    rows: &[usize],
    genes: &[usize],
    counts: bool,
) -> Result<()> {
    let shape = [rows.len(), genes.len()];
    let row = |&r: &usize| {
        let row = rna.row(r);
        genes.iter().map(move |&g| row[g]).collect::<Vec<f32>>()
    };
    let names: Vec<&String> = genes.iter().map(|&g| &rna.genes[g]).collect();
    writer.meta("genes", to_json(&names)?);
    let values: Vec<f32> = rows.iter().flat_map(row).collect();
    if !counts {
        return writer.tensor("rna.values", &Tensor::new(values, shape)?, Store::Full);
    }
    let mut bytes = Vec::with_capacity(values.len());
    let (mut index, mut over) = (Vec::new(), Vec::new());
    for (i, &v) in values.iter().enumerate() {
        if v < f32::from(OVER) {
            bytes.push(v as u8);
        } else {
            bytes.push(OVER);
            index.push(i as u32);
            over.push(v as u32);
        }
    }
    let totals: Vec<u32> = rows.iter().map(|&r| rna.totals[r] as u32).collect();
    writer.u8s("rna.counts", &shape, bytes)?;
    writer.u32s("rna.over_index", &[index.len()], &index)?;
    writer.u32s("rna.over_value", &[over.len()], &over)?;
    writer.u32s("rna.total", &[totals.len()], &totals)?;
    Ok(())
}

fn add_head(writer: &mut Writer, spec: &BuildSpec, um_per_px: Option<f64>, size: usize) {
    writer.meta("format", FORMAT);
    writer.meta("version", VERSION);
    writer.meta("tile_size", size.to_string());
    writer.meta("licence", spec.notice.licence.clone());
    writer.meta("notice", spec.notice.text.clone());
    if let Some(um) = um_per_px {
        writer.meta("um_per_px", um.to_string());
    }
}

type Parts<'a> = (&'a mut Images, &'a mut Listing, &'a mut Report);

/// Adds free crops, best first, while they fit into `room` bytes.
fn add_free(
    spec: &BuildSpec,
    tiles: &TileTable,
    (images, listed, report): Parts<'_>,
    room: u64,
) -> Result<()> {
    if spec.free.is_empty() {
        return Ok(());
    }
    let owner = |f: &FreeSource| tiles.tiles.iter().find(|t| t.section == f.section);
    let mut like = Vec::new();
    for f in &spec.free {
        like.push(owner(f).ok_or_else(|| {
            let what = format!("the tile table has no section \"{}\"", f.section);
            Error::data(what, "name each section image as its section is named in the table")
        })?);
    }
    let taken = corners(tiles, &spec.free)?;
    let mut left = room;
    let mut full = false;
    for block in free::blocks(&spec.free, &taken, spec.cut.tile_px, spec.cut.downscale)? {
        let Block { id, source, image, .. } = block;
        let encoded = images.encode(&image)?;
        let cost = images.cost(&encoded) + Listing::cost(&id);
        full |= cost > left;
        if full {
            report.left_out += 1;
            continue;
        }
        left -= cost;
        images.push(encoded);
        let tile = Tile { name: id, class: String::new(), row: None, ..like[source].clone() };
        *report.free.entry(tile.section.clone()).or_default() += 1;
        listed.push(tile, None);
    }
    Ok(())
}

/// Top left corners of the paired tiles of each source, where the table gives them.
fn corners(tiles: &TileTable, sources: &[FreeSource]) -> Result<Vec<Vec<(f64, f64)>>> {
    let have = |c: &str| tiles.table.header.iter().any(|h| h == c);
    if !have("crop_x0") || !have("crop_y0") {
        return Ok(vec![Vec::new(); sources.len()]);
    }
    let (x, y) = (tiles.numbers("crop_x0")?, tiles.numbers("crop_y0")?);
    let of = |f: &FreeSource| {
        let inside = |&i: &usize| tiles.tiles[i].section == f.section;
        (0..tiles.tiles.len()).filter(inside).map(|i| (x[i], y[i])).collect()
    };
    Ok(sources.iter().map(of).collect())
}
