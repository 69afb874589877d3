//! The tiles that a stage draws from, by number.
//!
//! Where all of them fit into the memory that they may take, they are decoded once, at the start;
//! else each whenever it is drawn. A tile that cannot be read ends the run, or, where asked, is
//! told of once and stands back for the next one that can: which one that is depends on the tiles
//! alone, not on when they were read.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::config::{BadTile, DataConfig};
use crate::data::pack::{Pack, PackImages};
use crate::error::{Error, Result};
use crate::io::images::Rgb;

/// Tiles by number; clones share them.
#[derive(Clone)]
pub struct Gallery(Arc<Inner>);

struct Inner {
    count: usize,
    from: From,
    skips: bool,
    /// Bad tiles that were told of.
    told: Mutex<BTreeSet<usize>>,
}

enum From {
    /// All of them; none where a tile is bad.
    Memory(Vec<Option<Rgb>>),
    /// Numbers in a pack.
    Pack(PackImages, Vec<usize>),
}

impl std::convert::From<Vec<Rgb>> for Gallery {
    fn from(tiles: Vec<Rgb>) -> Self {
        let (count, told) = (tiles.len(), Mutex::default());
        let from = From::Memory(tiles.into_iter().map(Some).collect());
        Self(Arc::new(Inner { count, from, skips: false, told }))
    }
}

impl Gallery {
    /// The images `indices` of a pack.
    ///
    /// # Errors
    /// Where they fit into memory, the first that cannot be read, unless those are skipped.
    pub fn of(pack: &Pack, indices: &[usize], config: &DataConfig) -> Result<Self> {
        let (count, skips) = (indices.len(), config.on_bad == BadTile::Skip);
        let one = 3 * pack.tile_size().pow(2);
        let fits = count.saturating_mul(one) <= config.decoded.saturating_mul(1 << 20);
        let all = Self(Arc::new(Inner {
            count,
            from: From::Pack(pack.pixels().clone(), indices.to_vec()),
            skips,
            told: Mutex::default(),
        }));
        if !fits {
            return Ok(all);
        }
        let decode = |i: usize| match all.0.one(i) {
            Ok(tile) => Ok(Some(tile.into_owned())),
            Err(e) if skips => {
                all.0.tell(i, &e);
                Ok(None)
            }
            Err(e) => Err(e),
        };
        let tiles = (0..count).into_par_iter().map(decode).collect::<Result<Vec<_>>>()?;
        let told = Mutex::new(all.0.told.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(Self(Arc::new(Inner { count, from: From::Memory(tiles), skips, told })))
    }

    /// How many tiles.
    pub fn len(&self) -> usize {
        self.0.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tile `i`, or where it is bad and such are skipped, the next of `among` that is not, round
    /// and round; its number, and the tile.
    ///
    /// # Errors
    /// A tile that cannot be read; with skipping, none that can.
    pub fn at(&self, i: usize, among: Range<usize>) -> Result<(usize, Cow<'_, Rgb>)> {
        let n = among.len().max(1);
        for j in (0..n).map(|d| among.start + (i - among.start + d) % n) {
            match self.0.one(j) {
                Ok(tile) => return Ok((j, tile)),
                Err(e) if !self.0.skips => return Err(e),
                Err(e) => self.0.tell(j, &e),
            }
        }
        let fix = "build the pack again from tiles that can be read";
        Err(Error::data(format!("none of {n} tiles can be read"), fix))
    }

    /// All that can be read, in order.
    ///
    /// # Errors
    /// As of [`Gallery::at`].
    pub fn all(&self) -> Result<Vec<Rgb>> {
        let kept = |i| match self.0.one(i) {
            Ok(tile) => Ok(Some(tile.into_owned())),
            Err(e) if !self.0.skips => Err(e),
            Err(e) => {
                self.0.tell(i, &e);
                Ok(None)
            }
        };
        let all = (0..self.len()).into_par_iter().map(kept).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    }
}

impl Inner {
    fn one(&self, i: usize) -> Result<Cow<'_, Rgb>> {
        let lacks = || Error::Internal(format!("tile {i} of {}", self.count));
        match &self.from {
            From::Memory(tiles) => match tiles.get(i).ok_or_else(lacks)? {
                Some(tile) => Ok(Cow::Borrowed(tile)),
                None => Err(Error::data(format!("tile {i} is bad"), "build the pack again")),
            },
            From::Pack(images, indices) => {
                images.tile(*indices.get(i).ok_or_else(lacks)?).map(Cow::Owned)
            }
        }
    }

    /// Says once, of each bad tile, which file it is and why.
    fn tell(&self, i: usize, why: &Error) {
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(i) {
            eprintln!("skipped: {why}");
        }
    }
}
