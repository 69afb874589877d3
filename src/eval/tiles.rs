//! A named set of equally large RGB tiles: what is compared with what.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::shelf::Shelf;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::tensor::{Purpose, Stream};

/// What is done to a tile when it is looked at.
type Change = Arc<dyn Fn(&Rgb) -> Rgb + Sync + Send>;

/// RGB tiles of one size.
#[derive(Clone)]
pub struct Tiles {
    name: String,
    size: (usize, usize),
    shelf: Arc<Shelf>,
    which: Vec<usize>,
    changes: Vec<Change>,
}

impl Tiles {
    /// Checks that there are tiles and that all have the first one's size.
    ///
    /// # Errors
    /// `Data` for no tiles, for tiles without pixels, or naming the first tile of another size.
    pub fn new(name: impl Into<String>, images: Vec<Rgb>) -> Result<Self> {
        let name = name.into();
        let size = match images.first() {
            Some(t) if t.width > 0 && t.height > 0 => (t.width, t.height),
            _ => return Err(Error::data(format!("{name}: no tiles"), "give at least one tile")),
        };
        if let Some(i) = images.iter().position(|t| (t.width, t.height) != size) {
            let (t, (w, h)) = (&images[i], size);
            return Err(Error::data(
                format!("{name}: tile {i} is {}x{}, tile 0 is {w}x{h}", t.width, t.height),
                "give tiles of one size",
            ));
        }
        Ok(Self::on(name, Shelf::Held(images)))
    }

    /// Tiles of a folder (in the order of their names), of a pack's split (`FILE#SPLIT`) or of an
    /// archive (`.npz`). They stay there, and each is read when it is looked at.
    ///
    /// # Errors
    /// A missing or empty folder, images of several sizes, an unknown split, no archive of images.
    pub fn open(from: &str) -> Result<Self> {
        Ok(Self::on(from.into(), Shelf::open(from)?))
    }

    fn on(name: String, shelf: Shelf) -> Self {
        let (size, which) = (shelf.size(), (0..shelf.n()).collect());
        Self { name, size, shelf: Arc::new(shelf), which, changes: Vec::new() }
    }

    /// What the set is called in tables and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same tiles under another name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Number of tiles.
    pub fn n(&self) -> usize {
        self.which.len()
    }

    /// (width, height) of every tile in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Tile `i`, which must be below n.
    ///
    /// # Errors
    /// A tile that cannot be read.
    pub fn tile(&self, i: usize) -> Result<Cow<'_, Rgb>> {
        let tile = self.shelf.tile(self.which[i])?;
        Ok(self.changes.iter().fold(tile, |tile, change| Cow::Owned(change(&tile))))
    }

    /// All tiles, in memory.
    ///
    /// # Errors
    /// The first tile that cannot be read.
    pub fn all(&self) -> Result<Vec<Rgb>> {
        (0..self.n()).into_par_iter().map(|i| Ok(self.tile(i)?.into_owned())).collect()
    }

    /// The tiles `which`, in that order; every index must be below `n`.
    pub fn select(&self, which: &[usize]) -> Self {
        Self { which: which.iter().map(|&i| self.which[i]).collect(), ..self.clone() }
    }

    /// `n` tiles drawn without replacement; all of them, in order, when there are no more.
    pub fn draw(&self, n: usize, seed: u64) -> Self {
        if n >= self.n() {
            return self.clone();
        }
        let mut which = shuffled(self.n(), seed);
        which.truncate(n);
        self.select(&which)
    }

    /// Two disjoint halves of equal n in random order; an odd tile is left out.
    pub fn halves(&self, seed: u64) -> (Self, Self) {
        let order = shuffled(self.n(), seed);
        let half = self.n() / 2;
        (self.select(&order[..half]), self.select(&order[half..2 * half]))
    }

    /// The same set with `f` applied to a tile whenever it is looked at; `f` must keep the size.
    pub fn map(
        &self,
        name: impl Into<String>,
        f: impl Fn(&Rgb) -> Rgb + Sync + Send + 'static,
    ) -> Self {
        let mut set = self.clone().named(name);
        set.changes.push(Arc::new(f));
        set
    }
}

impl fmt::Debug for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, size, which, .. } = self;
        f.debug_struct("Tiles").field("name", name).field("size", size).field("n", which).finish()
    }
}

/// A lane of the bootstrap streams that no repetition uses.
const SPLIT: u16 = u16::MAX;

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    Stream::new(seed, 0, SPLIT, Purpose::Bootstrap).permutation(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles(n: u8) -> Tiles {
        Tiles::new("t", (0..n).map(|i| Rgb::filled(2, 1, [i; 3])).collect()).unwrap()
    }

    #[test]
    fn halves_are_disjoint_equal_and_repeatable() {
        let (a, b) = tiles(11).halves(4);
        assert_eq!((a.n(), b.n()), (5, 5));
        let (a, b) = (a.all().unwrap(), b.all().unwrap());
        assert!(a.iter().all(|p| !b.contains(p)));
        assert_eq!(tiles(11).halves(4).1.all().unwrap(), b);
        assert_ne!(tiles(11).halves(5).0.all().unwrap(), a);
    }

    #[test]
    fn draws_do_not_repeat_a_tile() {
        let d = tiles(9).draw(6, 1);
        let mut firsts: Vec<u8> = d.all().unwrap().iter().map(|p| p.data[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 6);
        assert_eq!(tiles(9).draw(20, 1).all().unwrap(), tiles(9).all().unwrap());
    }

    #[test]
    fn refuses_tiles_of_another_size() {
        let [a, b] = [(2, 1), (1, 2)].map(|(w, h)| Rgb::filled(w, h, [0; 3]));
        let e = Tiles::new("mine", vec![a, b]).unwrap_err();
        assert!(e.to_string().contains("mine: tile 1 is 1x2, tile 0 is 2x1"), "{e}");
        assert!(Tiles::new("x", vec![]).is_err());
    }
}
