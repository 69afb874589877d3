//! The distance table: one reference set, and how far other sets of the same n lie from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Features;
use super::anchors::{BLURS, blurred, mean_colour};
use super::bootstrap::{Draws, Interval};
use super::features::Extractor;
use super::frechet::distance_interval;
use super::tiles::Tiles;
use crate::error::{Error, Result, Within};
use crate::train::progress::{Progress, Shared};

/// One set's distance from the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Short name for programs: `fd_generated`, `fd_blur2`.
    pub key: String,
    /// What the set holds, for people.
    pub set: String,
    /// The distance.
    pub fd: f64,
    /// Bootstrap interval about it.
    pub interval: Interval,
}

/// Distances of several sets from one reference, all of n tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The distance's name.
    pub distance: String,
    /// What the reference holds.
    pub reference: String,
    /// Tiles in the reference and in every set.
    pub n: usize,
    /// Level of the intervals.
    pub level: f64,
    /// Bootstrap repetitions behind them.
    pub reps: usize,
    /// The sets, as they were given.
    pub rows: Vec<Row>,
}

/// A set whose features are known.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Short name for programs.
    pub key: &'a str,
    /// What it holds, for people.
    pub name: &'a str,
    /// One row a tile.
    pub features: &'a Features,
}

impl Table {
    /// Measures every set against `real`; each comes with its key.
    ///
    /// # Errors
    /// `Data` when sets differ in n or in the size of their tiles, or hold fewer than two.
    pub fn measure(
        extractor: &Extractor,
        real: &Tiles,
        sets: &[(&str, &Tiles)],
        draws: Draws,
    ) -> Result<Self> {
        for (_, set) in sets {
            check_like(real, set)?;
        }
        let bar = Shared::new("features", real.n() * (1 + sets.len()));
        let look = |set: &Tiles| extractor.extract_each(set, &|| bar.one());
        let reference = look(real)?;
        let features: Vec<Features> =
            sets.iter().map(|(_, set)| look(set)).collect::<Result<_>>()?;
        bar.finish();
        let seen: Vec<Seen<'_>> = sets
            .iter()
            .zip(&features)
            .map(|((key, set), features)| Seen { key, name: set.name(), features })
            .collect();
        let reference = Seen { key: "real", name: real.name(), features: &reference };
        Self::of(extractor.name(), reference, &seen, None, draws)
    }

    /// Measures sets whose features are known; `groups` as in [`distance_interval`].
    ///
    /// # Errors
    /// `Data` when sets differ in n or hold fewer than two tiles.
    pub fn of(
        distance: String,
        real: Seen<'_>,
        sets: &[Seen<'_>],
        groups: Option<&[usize]>,
        draws: Draws,
    ) -> Result<Self> {
        let mut rows = Vec::with_capacity(sets.len());
        let mut bar = Progress::new("distances", sets.len() as u64, 0);
        for (i, set) in sets.iter().enumerate() {
            check_n((real.name, real.features.n()), (set.name, set.features.n()))?;
            let (fd, interval) = distance_interval(real.features, set.features, groups, draws)
                .within(format!("{} against {}", set.name, real.name))?;
            rows.push(Row { key: set.key.into(), set: set.name.into(), fd, interval });
            bar.update(i as u64 + 1, "");
        }
        bar.finish();
        let (n, reference) = (real.features.n(), real.name.to_string());
        let Draws { level, reps, .. } = draws;
        Ok(Self { distance, reference, n, level, reps, rows })
    }

    /// The row of a key.
    pub fn row(&self, key: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.key == key)
    }
}

/// The floor and the anchors: `other`, real tiles disjoint from the reference, as they are and made
/// worse in steps.
pub fn with_anchors(other: &Tiles) -> Vec<(&'static str, Tiles)> {
    let [half, one, two] = BLURS.map(|sigma| blurred(other, sigma));
    vec![
        ("fd_real_floor", other.clone()),
        ("fd_blur05", half),
        ("fd_blur1", one),
        ("fd_blur2", two),
        ("fd_mean_colour", mean_colour(other)),
    ]
}

/// What a set says, by its key, in a few words for people.
pub fn meaning(key: &str) -> &'static str {
    match key {
        "fd_generated" => "what the system paints",
        "fd" => "the tiles that are judged",
        "fd_shuffled" => "the same set in another order: a distance cannot see the RNA",
        "fd_recon" => "what the tokenizer loses",
        "fd_recon_fhat" => "the tokenizer, its last scale predicted",
        "fd_real_floor" => "real against real: what n alone makes",
        "fd_blur05" => "hardly visible blur",
        "fd_blur1" => "visible blur",
        "fd_blur2" => "strong blur",
        "fd_mean_colour" => "colour and nothing else",
        _ => "",
    }
}

fn check_like(real: &Tiles, set: &Tiles) -> Result<()> {
    check_n((real.name(), real.n()), (set.name(), set.n()))?;
    if real.size() != set.size() {
        let ((w, h), (v, u)) = (real.size(), set.size());
        return Err(Error::data(
            format!("tiles of {} are {w}x{h}, of {} {v}x{u}", real.name(), set.name()),
            "bring both to one size and one resolution first",
        ));
    }
    Ok(())
}

fn check_n((real, n): (&str, usize), (set, m): (&str, usize)) -> Result<()> {
    match n == m {
        true => Ok(()),
        false => Err(Error::data(
            format!("{real} has {n} tiles, {set} has {m}"),
            "compare distances only at equal n: draw as many from each",
        )),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, n = {} against {}: {}", self.distance, self.n, self.n, self.reference)?;
        let wide = self.rows.iter().map(|r| r.set.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let Interval { low, high } = row.interval;
            writeln!(f, "  {:wide$}  {:8.2}  [{low:.2}, {high:.2}]", row.set, row.fd)?;
        }
        let percent = 100.0 * self.level;
        writeln!(f, "Brackets: {percent:.0} % bootstrap intervals, {} repetitions.", self.reps)
    }
}
