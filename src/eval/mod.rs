//! Evaluation: how far apart two sets of tiles are, and whether the RNA can be seen in the tiles.
//!
//! Everything here works on plain `f64` feature rows or RGB bytes. The distance is FD-EffNet, a
//! Frechet distance in the features of EfficientNet-Lite0: a named surrogate that must never be
//! called FID. With the weights of FID's Inception-v3, which a person brings, it is FD-Inception.

pub mod anchors;
pub mod bootstrap;
pub mod effnet;
pub mod fd;
pub mod features;
pub mod frechet;
pub mod inception;
pub mod metrics;
pub mod paint;
pub mod probe;
pub mod protocol;
mod shelf;
pub mod suite;
pub mod table;
pub mod tiles;
pub mod trial;

use crate::error::{Error, Result};

/// A set of feature rows, `[n, d]` row-major, every value finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    n: usize,
    d: usize,
    data: Vec<f64>,
}

impl Features {
    /// Checks that `data` fills `[n, d]` and is finite; `name` says whose features these are.
    ///
    /// # Errors
    /// `Data` when the length does not fit or `d` is 0, `NotFinite` for a NaN or an infinity.
    pub fn new(name: &str, n: usize, d: usize, data: Vec<f64>) -> Result<Self> {
        if d == 0 || n.checked_mul(d) != Some(data.len()) {
            return Err(Error::data(
                format!("{name}: {} values are not {n} rows of {d} features", data.len()),
                "give one equally long feature row per tile",
            ));
        }
        if let Some(first) = data.iter().position(|x| !x.is_finite()) {
            let count = data.iter().filter(|x| !x.is_finite()).count();
            let place = format!("features of {name}");
            return Err(Error::NotFinite { place, count, len: data.len(), first });
        }
        Ok(Self { n, d, data })
    }

    /// Number of rows (tiles).
    pub fn n(&self) -> usize {
        self.n
    }

    /// Number of features in a row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// All values, row-major.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.d..(i + 1) * self.d]
    }

    /// The rows `which`, in that order, repeats allowed; every index must be below `n`.
    pub fn select(&self, which: &[usize]) -> Self {
        let data = which.iter().flat_map(|&i| self.row(i).iter().copied()).collect();
        Self { n: which.len(), d: self.d, data }
    }

    /// Mean of each feature, `[d]`; zeros for an empty set.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.d];
        for i in 0..self.n {
            mean.iter_mut().zip(self.row(i)).for_each(|(m, x)| *m += x);
        }
        mean.iter_mut().for_each(|m| *m /= self.n.max(1) as f64);
        mean
    }
}
