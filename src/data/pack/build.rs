//! Building a pack: read, check, join, choose genes, shrink, compress, write.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::free::{self, Block, FreeSource};
use super::{FORMAT, NO_LABEL, NO_ROW, OVER, VERSION};
use crate::data::augment::downscale;
use crate::data::pairs::{self, Join, Unit};
use crate::data::rna::{Expression, Scaling};
use crate::data::tiles::{Tile, TileColumns, TileTable};
use crate::error::{Error, Result, Within};
use crate::io::images::{self, Expect, Rgb};
use crate::io::safetensors::{Store, Writer};
use crate::io::tables::{self, DenseSpec};
use crate::tensor::Tensor;

/// Where the RNA comes from.
#[derive(Clone, Debug)]
pub enum RnaSource {
    /// Sparse counts and their gene list.
    Csr {
        /// A safetensors file with `indptr`, `indices`, `counts`, `shape`.
        counts: PathBuf,
        /// A table with a `symbol` column.
        genes: PathBuf,
    },
    /// A table of numbers.
    Dense {
        /// TSV or CSV, plain or gzip.
        path: PathBuf,
        /// How to read it.
        spec: DenseSpec,
    },
}

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
    /// The tile table.
    pub table: PathBuf,
    /// The folder of the tiles.
    pub folder: PathBuf,
    /// Names of the table's columns.
    pub columns: TileColumns,
    /// The RNA.
    pub rna: RnaSource,
    /// How tiles find their RNA.
    pub join: Join,
    /// What must not be shared between splits.
    pub unit: Unit,
    /// Whole sections to cut free crops from.
    pub free: Vec<FreeSource>,
    /// Side of a tile file in pixels.
    pub tile_px: usize,
    /// Whole factor by which tiles and crops are shrunk.
    pub downscale: usize,
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
}

/// What was put into a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    let size = tile_size(spec)?;
    let tiles = TileTable::read(&spec.table, &spec.folder, &spec.columns)?;
    pairs::check_splits(&tiles, spec.unit, &["train"])?;
    let rna = read_rna(&spec.rna)?;
    let joined = pairs::join(&tiles, &rna.samples, spec.join)?;
    let genes = choose_genes(spec, &rna, &train_rows(&tiles, &joined))?;

    let mut writer = Writer::new();
    let rows = Rows::new(&joined);
    add_rna(&mut writer, &rna, &rows.used, &genes, matches!(spec.rna, RnaSource::Csr { .. }))?;
    add_head(&mut writer, spec, &tiles, size)?;

    let expect = Expect::tile(spec.tile_px, spec.tile_px);
    let load = |i: usize| downscale(&tiles.load(i, expect)?, spec.downscale);
    let paired: Vec<Rgb> =
        (0..tiles.tiles.len()).into_par_iter().map(load).collect::<Result<_>>()?;
    let mut images = Images::new(spec.quality);
    images.extend(&paired)?;
    drop(paired);

    let mut listed = Listing::default();
    for (tile, row) in tiles.tiles.iter().zip(&rows.of) {
        listed.push(tile.clone(), Some(*row));
    }
    let mut report = Report { genes: genes.len(), samples: rows.used.len(), ..Report::default() };
    for tile in &tiles.tiles {
        *report.paired.entry(tile.split.clone()).or_default() += 1;
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

fn tile_size(spec: &BuildSpec) -> Result<usize> {
    if spec.downscale == 0 || spec.tile_px == 0 || !spec.tile_px.is_multiple_of(spec.downscale) {
        let what = format!("{}-pixel tiles do not shrink by {}", spec.tile_px, spec.downscale);
        return Err(Error::config("downscale", what, "use a divisor of the tile size"));
    }
    if spec.quality.is_some_and(|q| q == 0 || q > 100) {
        return Err(Error::config("quality", "out of range", "use 1 to 100"));
    }
    Ok(spec.tile_px / spec.downscale)
}

fn read_rna(source: &RnaSource) -> Result<Expression> {
    match source {
        RnaSource::Csr { counts, genes } => Expression::read_csr(counts, genes),
        RnaSource::Dense { path, spec } => Expression::from_dense(tables::read_dense(path, spec)?),
    }
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
fn choose_genes(spec: &BuildSpec, rna: &Expression, train: &[usize]) -> Result<Vec<usize>> {
    let all = rna.genes.len();
    let wanted = spec.genes.unwrap_or(all);
    if wanted == 0 || wanted > all {
        let what = format!("{wanted} genes of {all}");
        return Err(Error::config("genes", what, "keep at least one and at most all"));
    }
    if wanted == all {
        return Ok((0..all).collect());
    }
    let counts = matches!(spec.rna, RnaSource::Csr { .. });
    let scaling = if counts { Scaling::COUNTS } else { Scaling::LOG };
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
    of: Vec<u32>,
}

impl Rows {
    fn new(joined: &[usize]) -> Self {
        let mut used = joined.to_vec();
        used.sort_unstable();
        used.dedup();
        let of = joined.iter().map(|r| used.partition_point(|u| u < r) as u32).collect();
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

fn add_head(writer: &mut Writer, spec: &BuildSpec, tiles: &TileTable, size: usize) -> Result<()> {
    writer.meta("format", FORMAT);
    writer.meta("version", VERSION);
    writer.meta("tile_size", size.to_string());
    writer.meta("licence", spec.notice.licence.clone());
    writer.meta("notice", spec.notice.text.clone());
    if tiles.table.header.iter().any(|h| h == "um_per_px") {
        // Scanners calibrate to about a per cent; a change of magnification is far more.
        let um = tiles.numbers("um_per_px")?;
        if um.iter().any(|v| (v / um[0] - 1.0).abs() > 0.05) {
            let what = "the tiles have different micrometres a pixel (column um_per_px)";
            return Err(Error::file(&spec.table, what, "rescale them to one, or pack them apart"));
        }
        writer.meta("um_per_px", (um[0] * spec.downscale as f64).to_string());
    }
    Ok(())
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
    for block in free::blocks(&spec.free, &taken, spec.tile_px, spec.downscale)? {
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

/// The image store while it grows.
struct Images {
    quality: Option<u8>,
    encoded: Vec<Vec<u8>>,
    /// Bytes that all JPEGs so far begin with.
    common: usize,
}

impl Images {
    fn new(quality: Option<u8>) -> Self {
        Self { quality, encoded: Vec::new(), common: usize::MAX }
    }

    fn encode(&self, image: &Rgb) -> Result<Vec<u8>> {
        match self.quality {
            Some(q) => images::encode_jpeg(image, q),
            None => Ok(image.data.clone()),
        }
    }

    fn extend(&mut self, all: &[Rgb]) -> Result<()> {
        let encoded: Vec<Vec<u8>> =
            all.par_iter().map(|i| self.encode(i)).collect::<Result<_>>().within("encoding")?;
        encoded.into_iter().for_each(|e| self.push(e));
        Ok(())
    }

    fn push(&mut self, bytes: Vec<u8>) {
        let common = match self.encoded.first() {
            Some(first) => first.iter().zip(&bytes).take_while(|(a, b)| a == b).count(),
            None => bytes.len(),
        };
        self.common = self.common.min(common);
        self.encoded.push(bytes);
    }

    /// Bytes that one more image takes, its offset included.
    fn cost(&self, bytes: &[u8]) -> u64 {
        let shared = if self.quality.is_some() { self.common } else { 0 };
        bytes.len().saturating_sub(shared) as u64 + 4
    }

    fn size(&self) -> u64 {
        self.encoded.iter().map(|e| self.cost(e)).sum::<u64>() + 1024
    }

    fn store(self, writer: &mut Writer, size: usize) -> Result<()> {
        let n = self.encoded.len();
        if self.quality.is_none() {
            return writer.u8s("image.raw", &[n, size, size, 3], self.encoded.concat());
        }
        let head = self.encoded.first().map_or(Vec::new(), |e| e[..self.common].to_vec());
        let mut bytes = Vec::new();
        let mut offsets = vec![0u32];
        for e in &self.encoded {
            bytes.extend_from_slice(&e[self.common..]);
            offsets.push(u32::try_from(bytes.len()).map_err(|_| {
                let what = "the tiles take more than 4 GB";
                Error::data(what, "split the data over several packs")
            })?);
        }
        writer.u8s("image.head", &[head.len()], head)?;
        writer.u32s("image.offsets", &[n + 1], &offsets)?;
        let length = bytes.len();
        writer.u8s("image.bytes", &[length], bytes)
    }
}

/// The per-image columns while they grow.
#[derive(Default)]
struct Listing {
    tiles: Vec<Tile>,
    rows: Vec<u32>,
}

impl Listing {
    fn push(&mut self, tile: Tile, row: Option<u32>) {
        self.tiles.push(tile);
        self.rows.push(row.unwrap_or(NO_ROW));
    }

    /// Bytes of one image's columns and name: four labels, a row, the name in JSON in JSON.
    fn cost(id: &str) -> u64 {
        (4 * 2 + 4 + id.len() + 5) as u64
    }

    /// Bytes of all columns, and some for the header.
    fn size(&self) -> u64 {
        self.tiles.iter().map(|t| Self::cost(&t.name)).sum::<u64>() + 4096
    }

    fn store(&self, writer: &mut Writer) -> Result<()> {
        let ids: Vec<&String> = self.tiles.iter().map(|t| &t.name).collect();
        writer.meta("ids", to_json(&ids)?);
        writer.u32s("image.row", &[self.rows.len()], &self.rows)?;
        self.column(writer, ("splits", "image.split"), |t| &t.split)?;
        self.column(writer, ("classes", "image.class"), |t| &t.class)?;
        self.column(writer, ("sections", "image.section"), |t| &t.section)?;
        self.column(writer, ("patients", "image.patient"), |t| &t.patient)
    }

    fn column(
        &self,
        writer: &mut Writer,
        (names, column): (&str, &str),
        of: impl Fn(&Tile) -> &String,
    ) -> Result<()> {
        let mut distinct: Vec<&String> = self.tiles.iter().map(&of).collect();
        distinct.sort_unstable();
        distinct.dedup();
        distinct.retain(|d| !d.is_empty());
        if distinct.len() >= NO_LABEL as usize {
            let what = format!("{} different {names}", distinct.len());
            return Err(Error::data(what, "split the data over several packs"));
        }
        let label = |t: &Tile| match distinct.binary_search(&of(t)) {
            Ok(i) => i as u16,
            Err(_) => NO_LABEL as u16,
        };
        let labels: Vec<u16> = self.tiles.iter().map(label).collect();
        writer.meta(names, to_json(&distinct)?);
        writer.u16s(column, &[labels.len()], &labels)
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))
}
