//! A named set of equally large RGB tiles: what is compared with what.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::tensor::{Purpose, Stream};

/// RGB tiles of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    name: String,
    size: (usize, usize),
    images: Vec<Rgb>,
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
        Ok(Self { name, size, images })
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
        self.images.len()
    }

    /// (width, height) of every tile in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The tiles.
    pub fn images(&self) -> &[Rgb] {
        &self.images
    }

    /// The tiles `which`, in that order; every index must be below `n`.
    pub fn select(&self, which: &[usize]) -> Self {
        let images = which.iter().map(|&i| self.images[i].clone()).collect();
        Self { name: self.name.clone(), images, ..*self }
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

    /// The same set with `f` applied to every tile; `f` must keep the size.
    pub fn map(&self, name: impl Into<String>, f: impl Fn(&Rgb) -> Rgb + Sync + Send) -> Self {
        let images = self.images.par_iter().map(f).collect();
        Self { name: name.into(), images, ..*self }
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
        assert!(a.images().iter().all(|p| !b.images().contains(p)));
        assert_eq!(tiles(11).halves(4), (a.clone(), b));
        assert_ne!(tiles(11).halves(5).0, a);
    }

    #[test]
    fn draws_do_not_repeat_a_tile() {
        let d = tiles(9).draw(6, 1);
        let mut firsts: Vec<u8> = d.images().iter().map(|p| p.data[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 6);
        assert_eq!(tiles(9).draw(20, 1), tiles(9));
    }

    #[test]
    fn refuses_tiles_of_another_size() {
        let [a, b] = [(2, 1), (1, 2)].map(|(w, h)| Rgb::filled(w, h, [0; 3]));
        let e = Tiles::new("mine", vec![a, b]).unwrap_err();
        assert!(e.to_string().contains("mine: tile 1 is 1x2, tile 0 is 2x1"), "{e}");
        assert!(Tiles::new("x", vec![]).is_err());
    }
}
