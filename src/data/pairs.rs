//! Pairing tiles with RNA, and keeping the splits apart.

use std::collections::{BTreeMap, HashMap};

use crate::data::tiles::{Tile, TileTable};
use crate::error::{Error, Result};

/// How a tile finds its RNA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Join {
    /// The tile table's row column is the row of the matrix.
    Row,
    /// The sample is named as the tile's file, with or without its extension.
    Tile,
    /// The sample is named as the tile's patient: all tiles of a patient share one profile.
    Patient,
}

/// For every tile, the row of its RNA.
///
/// # Errors
/// Tiles without RNA, named.
pub fn join(tiles: &TileTable, samples: &[String], by: Join) -> Result<Vec<usize>> {
    let index: HashMap<&str, usize> =
        samples.iter().enumerate().map(|(i, s)| (s.as_str(), i)).collect();
    let find = |tile: &Tile| -> Option<usize> {
        match by {
            Join::Row => tile.row.filter(|&r| r < samples.len()),
            Join::Patient => index.get(tile.patient.as_str()).copied(),
            Join::Tile => {
                let stem = tile.name.rsplit_once('.').map_or(tile.name.as_str(), |(s, _)| s);
                index.get(tile.name.as_str()).or_else(|| index.get(stem)).copied()
            }
        }
    };
    let found: Vec<Option<usize>> = tiles.tiles.iter().map(find).collect();
    let lost: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_none()).collect();
    if let Some(&first) = lost.first() {
        let names: Vec<&str> = lost.iter().take(3).map(|&i| tiles.tiles[i].name.as_str()).collect();
        let what = format!(
            "{} of {} tiles have no RNA (joined by {by:?}, {} samples), among them {}",
            lost.len(),
            found.len(),
            samples.len(),
            names.join(", ")
        );
        let fix = "add their RNA, remove the tiles, or join by another key";
        return Err(tiles.table.error(first, what, fix));
    }
    Ok(found.into_iter().flatten().collect())
}

/// The column whose values must not be shared between splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unit {
    /// Nothing of a patient in two splits: what a claim about new patients needs.
    Patient,
    /// Nothing of a section in two splits. Train and val may share a patient, train and test never.
    Section,
}

/// Checks that no unit is in two splits and no patient in both train and test.
///
/// # Errors
/// A tile without split or unit, a unit in two splits, a split of `wanted` without tiles.
pub fn check_splits(tiles: &TileTable, unit: Unit, wanted: &[&str]) -> Result<()> {
    for name in wanted {
        if !tiles.tiles.iter().any(|t| t.split == *name) {
            return Err(empty_split(name, tiles.tiles.iter().map(|t| t.split.as_str())));
        }
    }
    let key = |t: &Tile| match unit {
        Unit::Patient => t.patient.clone(),
        Unit::Section => t.section.clone(),
    };
    let label = if unit == Unit::Patient { "patient" } else { "section" };
    keep_apart(tiles, label, key, |_, _| true)?;
    if unit == Unit::Section && tiles.tiles.iter().any(|t| !t.patient.is_empty()) {
        let test = |a: &str, b: &str| a == "test" || b == "test";
        keep_apart(tiles, "patient", |t| t.patient.clone(), test)?;
    }
    Ok(())
}

/// The error of a split without tiles, naming the splits there are.
pub fn empty_split<'a>(name: &str, have: impl Iterator<Item = &'a str>) -> Error {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    have.for_each(|s| *counts.entry(s).or_default() += 1);
    let list: Vec<String> = counts.iter().map(|(s, n)| format!("{s} ({n})")).collect();
    let list = if list.is_empty() { "none".to_string() } else { list.join(", ") };
    Error::data(
        format!("the split \"{name}\" has no tiles; there are: {list}"),
        "correct the split column, or ask for a split that has tiles",
    )
}

fn keep_apart(
    tiles: &TileTable,
    label: &str,
    key: impl Fn(&Tile) -> String,
    matters: impl Fn(&str, &str) -> bool,
) -> Result<()> {
    // All splits a unit was seen in matter, not only its first: train may precede val and test.
    let mut seen: HashMap<String, Vec<(&str, usize)>> = HashMap::new();
    for (i, tile) in tiles.tiles.iter().enumerate() {
        let unit = key(tile);
        if unit.is_empty() || tile.split.is_empty() {
            let what = format!("tile \"{}\" has no {label} or no split", tile.name);
            return Err(tiles.table.error(i, what, "fill both in: splits cannot be checked else"));
        }
        let splits = seen.entry(unit.clone()).or_default();
        if splits.iter().any(|(s, _)| *s == tile.split) {
            continue;
        }
        if let Some((split, first)) = splits.iter().find(|(s, _)| matters(s, &tile.split)) {
            let what = format!(
                "leakage: {label} \"{unit}\" is in split \"{}\" here and in \"{split}\" in line {}",
                tile.split,
                tiles.table.line(*first)
            );
            return Err(tiles.table.error(i, what, format!("keep each {label} in one split")));
        }
        splits.push((&tile.split, i));
    }
    Ok(())
}
