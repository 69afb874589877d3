//! Tiles in rows and columns with words beside them: what a person looks at to compare.

use super::images::Rgb;
use super::lettering;
use crate::error::{Error, Result};

/// Small tiles are enlarged, by whole pixels, to about this side.
const SIDE: usize = 128;
/// How often a pixel is repeated at most.
const ENLARGE: usize = 4;
/// White pixels between tiles, and between groups of columns.
const GAP: usize = 4;
const GROUP_GAP: usize = 20;
/// Size of a letter's dot.
const DOT: usize = 2;
/// Pixels round everything.
const MARGIN: usize = 8;

/// Columns that belong together.
#[derive(Clone, Debug)]
pub struct Group {
    title: String,
    rows: Vec<Vec<Rgb>>,
    joined: bool,
}

impl Group {
    /// Columns under a title; `rows` are the tiles of each row of the sheet, all equally many.
    pub fn new(title: &str, rows: Vec<Vec<Rgb>>) -> Self {
        Self { title: title.into(), rows, joined: false }
    }

    /// The same, close to the group before it.
    pub fn joined(self) -> Self {
        Self { joined: true, ..self }
    }

    fn width(&self, tile: usize) -> usize {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let tiles = (columns * (tile + GAP)).saturating_sub(GAP);
        tiles.max(lettering::width(&self.title, DOT) + MARGIN)
    }
}

/// Rows of tiles with words on the left and above.
///
/// # Errors
/// Tiles of several sizes.
pub fn sheet(names: &[&str], groups: &[Group]) -> Result<Rgb> {
    let mut tiles = groups.iter().flat_map(|g| g.rows.iter().flatten());
    let (w, h) = tiles.next().map_or((1, lettering::height(DOT)), |t| (t.width, t.height));
    if let Some(other) = tiles.find(|t| (t.width, t.height) != (w, h)) {
        let what = format!("a tile is {}x{}, the first is {w}x{h}", other.width, other.height);
        return Err(Error::shape("sheet", what));
    }
    let times = (SIDE / w.max(1)).clamp(1, ENLARGE);
    let (w, h) = (times * w, times * h);
    let left = names.iter().map(|n| lettering::width(n, DOT)).max().unwrap_or(0);
    let left = if left == 0 { MARGIN } else { left + 2 * MARGIN };
    let top = 2 * MARGIN + lettering::height(DOT);
    let mut x = left;
    let mut places = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        let gap = if group.joined { GAP } else { GROUP_GAP };
        x += if i == 0 { 0 } else { gap };
        places.push(x);
        x += group.width(w);
    }
    let mut page = Rgb::filled(x + MARGIN, top + names.len() * (h + GAP) + MARGIN, [255; 3]);
    for (r, name) in names.iter().enumerate() {
        let y = top + r * (h + GAP) + (h - lettering::height(DOT).min(h)) / 2;
        lettering::write(&mut page, name, (MARGIN, y), DOT)?;
    }
    for (group, x) in groups.iter().zip(places) {
        lettering::write(&mut page, &group.title, (x, MARGIN), DOT)?;
        for (r, row) in group.rows.iter().enumerate() {
            for (c, tile) in row.iter().enumerate() {
                let tile = enlarged(tile, times)?;
                page.paste(&tile, x + c * (w + GAP), top + r * (h + GAP))?;
            }
        }
    }
    Ok(page)
}

/// Every pixel repeated: nothing is smoothed that was not smooth.
fn enlarged(tile: &Rgb, times: usize) -> Result<Rgb> {
    let (w, h) = (times * tile.width, times * tile.height);
    let pixel = |i: usize| tile.pixel(i % w / times, i / w / times);
    Rgb::new(w, h, (0..w * h).flat_map(pixel).collect())
}

/// `count` of the items for which `wanted` holds, evenly spread over them.
pub fn spread(n: usize, count: usize, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let all: Vec<usize> = (0..n).filter(|&i| wanted(i)).collect();
    let count = count.min(all.len());
    (0..count).map(|k| all[(2 * k + 1) * all.len() / (2 * count)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_stand_in_their_rows_and_groups() {
        let tile = |v: u8| Rgb::filled(32, 32, [v; 3]);
        let group = |v: u8| {
            let rows = vec![vec![tile(v), tile(v + 1)], vec![tile(v + 2), tile(v + 3)]];
            Group::new("C6", rows)
        };
        let apart = sheet(&["real", "own RNA"], &[group(10), group(20)]).unwrap();
        let joined = sheet(&["real", "own RNA"], &[group(10), group(20).joined()]).unwrap();
        for page in [&apart, &joined] {
            let count = |v: u8| page.data.chunks(3).filter(|p| *p == [v; 3]).count();
            for v in [10, 11, 12, 13, 20, 21, 22, 23] {
                assert_eq!(count(v), 128 * 128, "{v}");
            }
        }
        assert_eq!(apart.width - joined.width, GROUP_GAP - GAP);
        assert!(sheet(&["real"], &[]).is_ok());
        let other = Group::new("", vec![vec![tile(1), Rgb::filled(16, 16, [2; 3])]]);
        assert!(sheet(&["real"], &[other]).unwrap_err().to_string().contains("16x16"));
    }

    #[test]
    fn choices_are_spread_and_of_the_kind_asked_for() {
        assert_eq!(spread(12, 3, |i| i % 2 == 0), [2, 6, 10]);
        assert_eq!(spread(4, 9, |i| i > 1), [2, 3]);
        assert!(spread(4, 2, |_| false).is_empty());
    }
}
