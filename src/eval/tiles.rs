//! A named set of equally large RGB tiles: what is compared with what.

use crate::error::{Error, Result};
use crate::tensor::{Purpose, Stream};

/// RGB tiles of one size, each `[height, width, 3]` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    name: String,
    width: usize,
    height: usize,
    pixels: Vec<Vec<u8>>,
}

impl Tiles {
    /// Checks that every tile is `width` x `height` RGB.
    ///
    /// # Errors
    /// `Data` naming the first tile of another length, or for tiles without pixels.
    pub fn new(
        name: impl Into<String>,
        width: usize,
        height: usize,
        pixels: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let name = name.into();
        let bytes = width.checked_mul(height).and_then(|p| p.checked_mul(3)).unwrap_or(0);
        if bytes == 0 {
            return Err(Error::data(format!("{name}: tiles of {width}x{height}"), "give pixels"));
        }
        if let Some(i) = pixels.iter().position(|p| p.len() != bytes) {
            return Err(Error::data(
                format!("{name}: tile {i} has {} bytes, not {width}x{height}x3", pixels[i].len()),
                "give RGB tiles of one size",
            ));
        }
        Ok(Self { name, width, height, pixels })
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
        self.pixels.len()
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The tiles' bytes.
    pub fn pixels(&self) -> &[Vec<u8>] {
        &self.pixels
    }

    /// The tiles `which`, in that order; every index must be below `n`.
    pub fn select(&self, which: &[usize]) -> Self {
        let pixels = which.iter().map(|&i| self.pixels[i].clone()).collect();
        Self { name: self.name.clone(), pixels, ..*self }
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

    /// The same set with `f` applied to every tile's bytes.
    pub fn map(&self, name: impl Into<String>, f: impl Fn(&[u8]) -> Vec<u8> + Sync) -> Self {
        use rayon::prelude::*;
        let pixels = self.pixels.par_iter().map(|p| f(p)).collect();
        Self { name: name.into(), pixels, ..*self }
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
        Tiles::new("t", 2, 1, (0..n).map(|i| vec![i; 6]).collect()).unwrap()
    }

    #[test]
    fn halves_are_disjoint_equal_and_repeatable() {
        let (a, b) = tiles(11).halves(4);
        assert_eq!((a.n(), b.n()), (5, 5));
        assert!(a.pixels().iter().all(|p| !b.pixels().contains(p)));
        assert_eq!(tiles(11).halves(4), (a.clone(), b));
        assert_ne!(tiles(11).halves(5).0, a);
    }

    #[test]
    fn draws_do_not_repeat_a_tile() {
        let d = tiles(9).draw(6, 1);
        let mut firsts: Vec<u8> = d.pixels().iter().map(|p| p[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 6);
        assert_eq!(tiles(9).draw(20, 1), tiles(9));
    }

    #[test]
    fn refuses_tiles_of_another_size() {
        let e = Tiles::new("mine", 2, 1, vec![vec![0; 6], vec![0; 5]]).unwrap_err();
        assert!(e.to_string().contains("mine: tile 1 has 5 bytes"), "{e}");
        assert!(Tiles::new("x", 0, 4, vec![]).is_err());
        assert!(Tiles::new("x", usize::MAX, 4, vec![]).is_err());
    }
}
