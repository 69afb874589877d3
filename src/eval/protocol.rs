//! What is compared with what: windows of the held-out tiles of a pack, and profiles in disorder.
//!
//! A held-out tile at least twice as wide as a painted one gives four disjoint windows, two of them
//! to the reference set and the other two to the floor; smaller tiles give one window each, to
//! either set in turn. A painted set has one tile for each window of the reference, from that
//! tile's own RNA, so that every set has the same n and the same profiles.

use super::tiles::Tiles;
use crate::data::augment::centre;
use crate::data::pack::Pack;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::tensor::{Purpose, Stream};

/// A lane of the bootstrap streams that no repetition uses.
const DISORDER: u16 = u16::MAX - 1;

/// Windows of real tiles with what is known of each.
#[derive(Clone, Debug)]
pub struct Windows {
    /// The windows.
    pub tiles: Tiles,
    /// The image of the pack that each was cut from.
    pub images: Vec<usize>,
    /// Names of those images.
    pub ids: Vec<String>,
    /// Their tissue classes, or empty.
    pub classes: Vec<String>,
}

impl Windows {
    fn new(pack: &Pack, name: String, parts: Vec<(usize, Rgb)>) -> Result<Self> {
        let images: Vec<usize> = parts.iter().map(|p| p.0).collect();
        let ids = images.iter().map(|&i| pack.id(i).to_string()).collect();
        let class = |&i: &usize| pack.class(i).unwrap_or_default().to_string();
        let classes = images.iter().map(class).collect();
        let tiles = Tiles::new(name, parts.into_iter().map(|p| p.1).collect())?;
        Ok(Self { tiles, images, ids, classes })
    }

    /// The windows `which`, in that order; every index must be below n.
    pub fn select(&self, which: &[usize]) -> Self {
        let pick = |names: &[String]| which.iter().map(|&i| names[i].clone()).collect();
        Self {
            tiles: self.tiles.select(which),
            images: which.iter().map(|&i| self.images[i]).collect(),
            ids: pick(&self.ids),
            classes: pick(&self.classes),
        }
    }
}

/// The two real sets of a held-out split: (reference, floor), disjoint and of equal n, with up to
/// `per` (1 or 2) windows of each tile in each.
///
/// # Errors
/// No tiles with RNA, tiles smaller than `side`, fewer than two tiles.
pub fn held_out(pack: &Pack, split: &str, side: usize, per: usize) -> Result<(Windows, Windows)> {
    let all = pack.split(split)?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (at, (&i, tile)) in all.iter().zip(pack.tiles(&all)?).enumerate() {
        let far = tile.width.checked_sub(side).ok_or_else(|| too_small(pack, i, side))?;
        let cut = |x, y| -> Result<(usize, Rgb)> { Ok((i, tile.crop(x, y, side, side)?)) };
        if far >= side {
            a.extend([cut(0, 0)?, cut(far, far)?].into_iter().take(per));
            b.extend([cut(far, 0)?, cut(0, far)?].into_iter().take(per));
        } else {
            let part = (i, centre(&tile, side)?);
            if at % 2 == 0 { a.push(part) } else { b.push(part) }
        }
    }
    a.truncate(b.len());
    if b.is_empty() {
        let what = format!("the split \"{split}\" has a single tile");
        return Err(Error::data(what, "a floor needs real tiles beside the reference"));
    }
    let name = |which: &str| format!("real {split} tiles, {which}");
    let a = Windows::new(pack, name("first half of the windows"), a)?;
    Ok((a, Windows::new(pack, name("other half of the windows"), b)?))
}

/// Windows of the training tiles of these classes: two opposite corners of each, or its middle.
///
/// # Errors
/// No such tiles, or tiles smaller than `side`.
pub fn training(pack: &Pack, side: usize, classes: &[&str]) -> Result<Windows> {
    let mut all = pack.split("train")?;
    all.retain(|&i| pack.class(i).is_some_and(|c| classes.contains(&c)));
    let mut parts = Vec::new();
    for (&i, tile) in all.iter().zip(pack.tiles(&all)?) {
        let far = tile.width.checked_sub(side).ok_or_else(|| too_small(pack, i, side))?;
        match far >= side {
            true => {
                parts.push((i, tile.crop(0, 0, side, side)?));
                parts.push((i, tile.crop(far, far, side, side)?));
            }
            false => parts.push((i, centre(&tile, side)?)),
        }
    }
    Windows::new(pack, "real training tiles".into(), parts)
}

fn too_small(pack: &Pack, i: usize, side: usize) -> Error {
    let have = pack.tile_size();
    Error::data(
        format!("tile {} is {have} pixels wide, the system paints {side}", pack.id(i)),
        "pack the tiles larger, or judge a system of smaller tiles",
    )
}

/// A permutation of 0..n that leaves nothing in its place: one cycle through all in random order.
///
/// # Errors
/// Fewer than two cannot change places.
pub fn derangement(n: usize, seed: u64) -> Result<Vec<usize>> {
    if n < 2 {
        let what = format!("{n} RNA profiles cannot be shuffled");
        return Err(Error::data(what, "give a split with at least two"));
    }
    let order = Stream::new(seed, 0, DISORDER, Purpose::Bootstrap).permutation(n);
    let mut to = vec![0; n];
    for (at, &from) in order.iter().enumerate() {
        to[from] = order[(at + 1) % n];
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_profile_keeps_its_place_and_each_is_used_once() {
        for n in [2, 3, 17, 178] {
            let to = derangement(n, 5).unwrap();
            assert!(to.iter().enumerate().all(|(i, &j)| i != j));
            let mut all = to.clone();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert_eq!(to, derangement(n, 5).unwrap());
        }
        assert_ne!(derangement(178, 5).unwrap(), derangement(178, 6).unwrap());
        assert!(derangement(1, 0).is_err());
    }
}
