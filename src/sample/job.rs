//! What a job of `genevar sample` draws: its tiles in order, and how they stand on the grid.
//!
//! Plain, it draws n tiles a row. With `--set` each of them is followed by the same tile of the
//! edited profile; with `--between` each is a strip of tiles from one profile to the other. What
//! stands side by side shares its random numbers.

use std::path::Path;

use serde::Serialize;

use super::Subject;
use super::edit::Change;
use super::profiles::{Profiles, share};
use crate::data::augment::centre;
use crate::data::pack::{self, Pack};
use crate::data::source::Format;
use crate::error::Result;
use crate::io::images::Rgb;
use crate::io::safetensors::TensorFile;
use crate::io::sheet::Group;
use crate::train::system::System;

/// Tiles that one row of a table may have: tile numbers are row * this + n.
pub const TILES_A_ROW: u64 = 1 << 20;
/// Most rows shown in the grid.
pub const GRID_ROWS: usize = 16;
/// Letters of a sample's name on the grid.
const NAME: usize = 24;

/// A tile of a job.
pub struct Item {
    /// Its file.
    pub file: String,
    /// The sample it is drawn for.
    pub sample: String,
    /// Its row in the table.
    pub row: usize,
    /// What it is beside a tile of that sample.
    pub what: What,
    /// What it is drawn for.
    pub subject: Subject,
}

/// What a tile is beside a tile of its sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// Nothing else.
    AsIs,
    /// Its profile was edited.
    Edited,
    /// Its profile lies so far on the way to another one.
    At(f64),
}

/// A tile's profile as it stands in the record: `{"edited": true}`, `{"at": 0.25}` or nothing.
#[derive(Serialize)]
pub struct Mark {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    edited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<f64>,
}

impl From<What> for Mark {
    fn from(what: What) -> Self {
        let at = if let What::At(t) = what { Some(t) } else { None };
        Self { edited: what == What::Edited, at }
    }
}

/// The tiles of a job.
pub struct Job {
    /// In the order of the record.
    pub items: Vec<Item>,
    /// What was read, for people.
    pub report: String,
    /// What `--set` changed.
    pub changes: Vec<Change>,
    /// How many tiles a row of the grid has.
    across: usize,
    /// Words before each row.
    names: Vec<String>,
    /// Titles of columns of equally many tiles, and whether each stands close to the one before.
    titles: Vec<(String, bool)>,
    /// Real tiles of the rows, before and after those that are drawn.
    real: [Vec<Rgb>; 2],
}

impl Job {
    /// `n` tiles for each profile; `edited` are the same profiles, changed, and a title for that.
    ///
    /// # Errors
    /// A system that reads no RNA.
    pub fn rows(
        system: &System,
        profiles: &Profiles,
        edited: Option<(&Profiles, &str)>,
        (rows, n): (&[usize], usize),
    ) -> Result<Self> {
        let mut items = Vec::with_capacity(rows.len() * n);
        for (i, &row) in rows.iter().enumerate() {
            let sample = &profiles.names[i];
            for j in 0..n {
                let id = row as u64 * TILES_A_ROW + j as u64;
                let mut add = |profiles: &Profiles, end: &str, what| -> Result<()> {
                    let (sample, file) = (sample.clone(), format!("{sample}_{j}{end}.png"));
                    let subject = profiles.subject(system, i, id)?;
                    items.push(Item { file, sample, row, what, subject });
                    Ok(())
                };
                add(profiles, "", What::AsIs)?;
                if let Some((edited, _)) = edited {
                    add(edited, "_edited", What::Edited)?;
                }
            }
        }
        let titles = match edited {
            None => vec![(if system.prior().is_ok() { "from RNA" } else { "" }.into(), false)],
            Some((_, title)) => {
                let pair = [("as it is".to_string(), false), (title.to_string(), true)];
                (0..n).flat_map(|_| pair.clone()).collect()
            }
        };
        let across = if edited.is_some() { 2 * n } else { n };
        let names = profiles.names.iter().take(GRID_ROWS).map(|name| short(name)).collect();
        Ok(Self { titles, names, ..Self::of(items, across) })
    }

    /// `n` strips from the first profile to the second, in `steps` tiles each. A strip has the
    /// random numbers of a tile of the first.
    ///
    /// # Errors
    /// A system that reads no RNA.
    pub fn between(
        system: &System,
        two: &Profiles,
        (row, n): (usize, usize),
        steps: usize,
    ) -> Result<Self> {
        let way = two.between(steps)?;
        let (from, to) = (&two.names[0], &two.names[1]);
        let mut items = Vec::with_capacity(n * steps);
        for j in 0..n {
            let id = row as u64 * TILES_A_ROW + j as u64;
            for s in 0..steps {
                let file = format!("{from}_to_{to}_{j}_{s:03}.png");
                let (sample, what) = (from.clone(), What::At(share(s, steps)));
                let subject = way.subject(system, s, id)?;
                items.push(Item { file, sample, row, what, subject });
            }
        }
        let title = |s: usize| match s {
            0 => short(from),
            _ if s + 1 == steps => short(to),
            _ => way.names[s].clone(),
        };
        let titles = (0..steps).map(|s| (title(s), s > 0)).collect();
        let names = (0..n.min(GRID_ROWS)).map(|j| format!("tile {j}")).collect();
        Ok(Self { titles, names, ..Self::of(items, steps) })
    }

    fn of(items: Vec<Item>, across: usize) -> Self {
        let (names, titles, changes) = (Vec::new(), Vec::new(), Vec::new());
        let real = [Vec::new(), Vec::new()];
        Self { items, report: String::new(), changes, across, names, titles, real }
    }

    /// The same with real tiles, one for each row of the grid, before and after those that are
    /// drawn.
    pub fn beside(self, real: [Vec<Rgb>; 2]) -> Self {
        Self { real, ..self }
    }

    /// Whether tile `i` is on the grid.
    pub fn is_shown(&self, i: usize) -> bool {
        i < self.names.len() * self.across
    }

    /// The grid's row names and columns, of the tiles that are shown in their order.
    pub fn columns(&self, shown: &[Rgb]) -> (Vec<&str>, Vec<Group>) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let wide = self.across / self.titles.len().max(1);
        let real = |tiles: &Vec<Rgb>| {
            let rows: Vec<Vec<Rgb>> = tiles.iter().map(|t| vec![t.clone()]).collect();
            (rows.len() == names.len()).then(|| Group::new("real", rows))
        };
        let drawn = self.titles.iter().enumerate().map(|(g, (title, joined))| {
            let part = |row: &[Rgb]| row[g * wide..(g + 1) * wide].to_vec();
            let group = Group::new(title, shown.chunks_exact(self.across).map(part).collect());
            if *joined { group.joined() } else { group }
        });
        let [before, after] = [&self.real[0], &self.real[1]].map(real);
        (names.clone(), before.into_iter().chain(drawn).chain(after).collect())
    }
}

fn short(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        None => name.to_string(),
        Some((at, _)) => format!("{}..", &name[..at]),
    }
}

/// Real tiles of the first rows of a pack, cut to `side`; none where `path` is no pack or its tiles
/// are smaller.
///
/// # Errors
/// A damaged pack.
pub fn real_tiles(path: &Path, rows: &[usize], side: usize) -> Result<Vec<Rgb>> {
    let is_pack = Format::of(path)? == Format::Safetensors
        && TensorFile::open(path)?.metadata().get("format").is_some_and(|f| f == pack::FORMAT);
    if !is_pack {
        return Ok(Vec::new());
    }
    let pack = Pack::open(path)?;
    if pack.tile_size() < side {
        return Ok(Vec::new());
    }
    let with: Vec<usize> = (0..pack.len()).filter(|&i| pack.rna_row(i).is_some()).collect();
    let chosen: Vec<usize> = rows.iter().take(GRID_ROWS).map(|&r| with[r]).collect();
    pack.tiles(&chosen)?.iter().map(|tile| centre(tile, side)).collect()
}
