//! The demo's picture: real tiles above what was made for them, in columns by tissue.

use super::lettering;
use crate::error::Result;
use crate::io::images::Rgb;

/// How often a pixel of a tile is repeated each way.
const ENLARGE: usize = 2;
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
    /// Words above them.
    pub title: String,
    /// For each row of the sheet, the tiles of these columns; all rows equally many.
    pub rows: Vec<Vec<Rgb>>,
}

/// Rows of tiles, enlarged, with words on the left and above; all tiles have one size.
///
/// # Errors
/// Tiles of several sizes.
pub fn sheet(names: &[&str], groups: &[Group]) -> Result<Rgb> {
    let tile = groups.iter().flat_map(|g| g.rows.iter().flatten()).next();
    let (w, h) =
        tile.map_or((1, lettering::height(DOT)), |t| (ENLARGE * t.width, ENLARGE * t.height));
    let left = names.iter().map(|n| lettering::width(n, DOT)).max().unwrap_or(0) + 2 * MARGIN;
    let top = 2 * MARGIN + lettering::height(DOT);
    let columns = |g: &Group| g.rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |g: &Group| (columns(g) * (w + GAP)).max(lettering::width(&g.title, DOT));
    let all: usize = groups.iter().map(|g| wide(g) + GROUP_GAP).sum();
    let size = (left + all.saturating_sub(GROUP_GAP) + MARGIN, top + names.len() * (h + GAP));
    let mut page = Rgb::filled(size.0, size.1 + MARGIN, [255; 3]);
    for (r, name) in names.iter().enumerate() {
        let y = top + r * (h + GAP) + (h - lettering::height(DOT).min(h)) / 2;
        lettering::write(&mut page, name, (MARGIN, y), DOT)?;
    }
    let mut x = left;
    for group in groups {
        lettering::write(&mut page, &group.title, (x, MARGIN), DOT)?;
        for (r, row) in group.rows.iter().enumerate() {
            for (c, tile) in row.iter().enumerate() {
                let tile = enlarged(tile)?;
                page.paste(&tile, x + c * (w + GAP), top + r * (h + GAP))?;
            }
        }
        x += wide(group) + GROUP_GAP;
    }
    Ok(page)
}

/// Every pixel repeated: nothing is smoothed that was not smooth.
fn enlarged(tile: &Rgb) -> Result<Rgb> {
    let (w, h) = (ENLARGE * tile.width, ENLARGE * tile.height);
    let pixel = |i: usize| tile.pixel(i % w / ENLARGE, i / w / ENLARGE);
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
        let tile = |v: u8| Rgb::filled(8, 8, [v; 3]);
        let group = |v: u8| Group {
            title: "C6".into(),
            rows: vec![vec![tile(v), tile(v + 1)], vec![tile(v + 2), tile(v + 3)]],
        };
        let page = sheet(&["real", "own RNA"], &[group(10), group(20)]).unwrap();
        let count = |v: u8| page.data.chunks(3).filter(|p| *p == [v; 3]).count();
        for v in [10, 11, 12, 13, 20, 21, 22, 23] {
            assert_eq!(count(v), 4 * 64, "{v}");
        }
        assert!(sheet(&["real"], &[]).is_ok());
    }

    #[test]
    fn choices_are_spread_and_of_the_kind_asked_for() {
        assert_eq!(spread(12, 3, |i| i % 2 == 0), [2, 6, 10]);
        assert_eq!(spread(4, 9, |i| i > 1), [2, 3]);
        assert!(spread(4, 2, |_| false).is_empty());
    }
}
