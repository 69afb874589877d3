//! What a job of `genevar sample` leaves: PNG tiles, a labelled grid, and records of how they were
//! drawn.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::edit::Change;
use super::job::{Item, Job, Mark};
use super::{Tile, side_by_side};
use crate::config::SampleConfig;
use crate::data::loader::from_tensor;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::images::{Rgb, write_png};
use crate::io::npz::NpzWriter;
use crate::io::safetensors::{Store, Writer};
use crate::io::sheet::sheet;
use crate::tensor::Tensor;

/// A part of the tiles of a large job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    /// Reads `2/4`.
    ///
    /// # Errors
    /// Anything else, saying what is wanted.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts = text.split_once('/').map(|(a, b)| (a.parse(), b.parse()));
        match parts {
            Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("give a part and how many there are, as 1/4 to 4/4".into()),
        }
    }

    /// A file of this part: `tiles-2-of-4.npz` for `tiles.npz`.
    pub fn file(self, whole: &Path) -> PathBuf {
        let end = |e: &std::ffi::OsStr| format!(".{}", e.to_string_lossy());
        let end = whole.extension().map_or(String::new(), end);
        let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
        whole.with_file_name(format!("{stem}-{}-of-{}{end}", self.number, self.of))
    }

    /// Its stretch of `n` tiles.
    pub fn range(self, n: usize) -> Range<usize> {
        n * (self.number - 1) / self.of..n * self.number / self.of
    }
}

/// How the tiles were drawn.
#[derive(Serialize)]
pub struct Drawn<'a> {
    /// The trained system.
    pub checkpoint: String,
    /// The table of RNA, where there was one.
    pub rna: Option<String>,
    /// What became of its genes.
    pub genes: &'a str,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Guidance and truncation.
    #[serde(flatten)]
    pub settings: &'a SampleConfig,
}

/// The record of a job, `samples.json`, or of a part, `samples-2-of-4.json`.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    drawn: &'a Drawn<'a>,
    seconds_per_tile: f64,
    tiles: Vec<TileRecord<'a>>,
}

#[derive(Serialize)]
struct TileRecord<'a> {
    file: &'a str,
    sample: &'a str,
    row: usize,
    tile: u64,
    #[serde(flatten)]
    mark: Mark,
    tokens: Vec<i32>,
}

/// The record of an edit, `edits.json`.
#[derive(Serialize)]
struct EditRecord<'a> {
    checkpoint: &'a str,
    rna: Option<&'a str>,
    seed: u64,
    /// What `before` and `after` are.
    unit: &'a str,
    /// Where the deviations come from.
    deviations: &'a str,
    samples: &'a [Change],
}

/// What is kept of a tile that was written.
struct Done {
    tokens: Vec<i32>,
    /// For the grid.
    image: Option<Rgb>,
    /// For the file of numbers.
    tile: Option<Tile>,
}

/// A job's output in the making.
pub struct Output<'a> {
    /// The job.
    pub job: &'a Job,
    /// How it is drawn.
    pub drawn: Drawn<'a>,
    /// Which of its tiles are drawn, and as which part.
    pub part: (Range<usize>, Option<Shard>),
    /// Where tiles go.
    pub folder: PathBuf,
    /// Where numbers go.
    pub tensors: Option<PathBuf>,
    npz: Option<NpzWriter>,
    done: Mutex<BTreeMap<usize, Done>>,
}

impl<'a> Output<'a> {
    /// Nothing yet.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(
        job: &'a Job,
        drawn: Drawn<'a>,
        part: (Range<usize>, Option<Shard>),
        folder: PathBuf,
        tensors: Option<PathBuf>,
    ) -> Result<Self> {
        atomic::create_folder(&folder)?;
        let done = Mutex::default();
        Ok(Self { job, drawn, part, folder, tensors, npz: None, done })
    }

    /// Writes the tiles, of a `side`, into one archive too; a part into its own.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn archived(self, path: &Path, side: usize) -> Result<Self> {
        let path = self.part.1.map_or_else(|| path.to_path_buf(), |shard| shard.file(path));
        let npz = Some(NpzWriter::create(&path, self.items().len(), (side, side))?);
        Ok(Self { npz, ..self })
    }

    /// The tiles that are drawn.
    pub fn items(&self) -> &'a [Item] {
        &self.job.items[self.part.0.clone()]
    }

    /// Writes tile `i` of the part; from any thread.
    ///
    /// # Errors
    /// A pixel that is no number, a full disk.
    pub fn write(&self, i: usize, tile: &Tile) -> Result<()> {
        let image = from_tensor(&tile.pixels)?.swap_remove(0);
        write_png(self.folder.join(&self.items()[i].file), &image)?;
        self.npz.iter().try_for_each(|npz| npz.put(i, &image))?;
        let shown = self.part.1.is_none() && self.job.is_shown(i);
        let done = Done {
            tokens: tile.tokens.i32s()?.to_vec(),
            image: shown.then_some(image),
            tile: self.tensors.is_some().then(|| tile.clone()),
        };
        self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(i, done);
        Ok(())
    }

    /// Writes grid and records when all tiles are written.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(mut self, seconds_per_tile: f64, edits: Option<(&str, &str)>) -> Result<()> {
        self.npz.take().map_or(Ok(()), NpzWriter::finish)?;
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        self.write_tensors(&done)?;
        let mut images: Vec<Rgb> = Vec::new();
        let mut tiles = Vec::with_capacity(done.len());
        for (done, item) in done.into_values().zip(self.items()) {
            images.extend(done.image);
            let Item { file, sample, row, what, subject } = item;
            let (mark, tokens) = (Mark::from(*what), done.tokens);
            tiles.push(TileRecord { file, sample, row: *row, tile: subject.id, mark, tokens });
        }
        let name = match self.part.1 {
            None => {
                let (names, columns) = self.job.columns(&images);
                write_png(self.folder.join("grid.png"), &sheet(&names, &columns)?)?;
                "samples.json".to_string()
            }
            Some(Shard { number, of }) => format!("samples-{number}-of-{of}.json"),
        };
        let record = Record { drawn: &self.drawn, seconds_per_tile, tiles };
        self.write_json(&name, &record)?;
        let Some((unit, deviations)) = edits else { return Ok(()) };
        let Drawn { checkpoint, rna, seed, .. } = &self.drawn;
        let (rna, seed, samples) = (rna.as_deref(), *seed, self.job.changes.as_slice());
        let record = EditRecord { checkpoint, rna, seed, unit, deviations, samples };
        self.write_json("edits.json", &record)
    }

    fn write_json(&self, name: &str, record: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec_pretty(record)
            .map_err(|e| Error::Internal(format!("{name}: {e}")))?;
        atomic::write(self.folder.join(name), &json)
    }

    /// Writes the numbers of all tiles where they were asked for.
    fn write_tensors(&self, done: &BTreeMap<usize, Done>) -> Result<()> {
        let Some(path) = &self.tensors else { return Ok(()) };
        let tiles: Vec<&Tile> = done.values().filter_map(|d| d.tile.as_ref()).collect();
        let all = |of: fn(&Tile) -> &Tensor| side_by_side(tiles.iter().map(|t| of(t)));
        let mut writer = Writer::new();
        let z = side_by_side(self.items().iter().map(|item| &item.subject.z))?;
        writer.tensor("z", &z, Store::Full)?;
        writer.tensor("tokens", &all(|t| &t.tokens)?, Store::Full)?;
        writer.tensor("latent", &all(|t| &t.latent)?, Store::Full)?;
        writer.tensor("pixels", &all(|t| &t.pixels)?, Store::Full)?;
        writer.meta("seed", self.drawn.seed.to_string());
        let ids: Vec<String> = self.items().iter().map(|i| i.subject.id.to_string()).collect();
        writer.meta("ids", ids.join(" "));
        writer.save(path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_tiles_once() {
        for (n, of) in [(0, 3), (1, 4), (7, 3), (12, 4)] {
            let parts = (1..=of).flat_map(|number| Shard { number, of }.range(n));
            assert!(parts.eq(0..n), "{n} tiles in {of} parts");
        }
        assert_eq!(Shard::parse("2/4"), Ok(Shard { number: 2, of: 4 }));
        let file = Shard { number: 2, of: 4 }.file(Path::new("a.b/tiles.npz"));
        assert_eq!(file, Path::new("a.b/tiles-2-of-4.npz"));
        for bad in ["", "4", "0/4", "5/4", "1/0", "a/b", "-1/2"] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }
}
