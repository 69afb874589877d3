//! Keeping the code book alive: the k-means that fills it, how often each code is drawn, and new
//! places for codes that nothing uses. The counting and moving happen where the training runs.

use crate::config::MsvqConfig;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::usage::{CodeHealth, CodeUsage, ReviveCodes};
use crate::ops::{call, run};
use crate::tensor::{DType, Purpose, Stream, Tensor};

/// Updates over which usage follows quickly, then slowly (VAR).
const QUICK: u64 = 100;
const DECAY: [f64; 2] = [0.9, 0.99];
/// A code is alive that is drawn this share as often as an even draw.
const ALIVE: f64 = 0.01;

/// How often each code is drawn at each scale: a running mean of counts, [K, V].
pub struct Usage {
    counts: Tensor,
    sides: Vec<usize>,
}

impl Usage {
    /// Nothing drawn yet.
    pub fn new(c: &MsvqConfig) -> Self {
        let counts = Tensor::zeros(DType::F32, [c.scales(), c.vocab]);
        Self { counts, sides: c.patch_nums.clone() }
    }

    /// Moves it to a device.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        self.counts = device.put(&self.counts)?;
        Ok(())
    }

    /// Counts update number `n` with the tokens [B, L].
    pub fn count(&mut self, tokens: &Tensor, n: u64) -> Result<()> {
        let (sides, keep) = (self.sides.clone(), DECAY[usize::from(n >= QUICK)]);
        self.counts = call(&CodeUsage { sides, keep }, &[&self.counts, tokens])?;
        Ok(())
    }

    /// [K + 2]: exp(entropy) of the codes of each scale, how many codes are alive, and how many of
    /// `moved` name a row.
    pub fn health(&self, moved: Option<&Tensor>) -> Result<Tensor> {
        let vocab = self.counts.shape().last();
        let none = || Device::of([&self.counts]).put(&Tensor::new_i32(vec![-1; vocab], [vocab])?);
        let moved = moved.cloned().map_or_else(none, Ok)?;
        call(&CodeHealth { below: ALIVE }, &[&self.counts, &moved])
    }

    /// Draws for codes that are drawn less often than `below` of an even draw a new place among
    /// `rows` vectors, a token's each, and gives them credit; -1 for the others, and for all unless
    /// the step's gate is finite.
    pub fn revive(
        &mut self,
        rows: usize,
        below: f64,
        stream: Stream,
        gate: &Tensor,
    ) -> Result<Tensor> {
        let op = ReviveCodes { sides: self.sides.clone(), rows, below, stream };
        let [counts, moved] = <[Tensor; 2]>::try_from(run(&op, &[&self.counts, gate])?)
            .map_err(|_| Error::Internal("revive_codes has two outputs".into()))?;
        self.counts = counts;
        Ok(moved)
    }

    /// For a checkpoint.
    pub fn tensor(&self) -> Tensor {
        self.counts.clone()
    }

    /// From a checkpoint.
    pub fn restore(&mut self, counts: &Tensor) -> Result<()> {
        if counts.shape() != self.counts.shape() {
            let what = format!("{} is not {}", counts.shape(), self.counts.shape());
            return Err(Error::shape("code usage", what));
        }
        self.counts = counts.clone();
        Ok(())
    }
}

/// Collects vectors for k-means, the same number from every scale and every batch.
pub struct Pool {
    data: Vec<f32>,
    each: usize,
    d: usize,
}

impl Pool {
    /// Takes up to `each` vectors of width `d` from every scale of every batch.
    pub fn new(each: usize, d: usize) -> Self {
        Self { data: Vec::new(), each, d }
    }

    /// Takes from the residuals of one batch.
    pub fn take(&mut self, residuals: &[Tensor], seed: u64, batch: u64) -> Result<()> {
        for (k, r) in residuals.iter().enumerate() {
            let n = r.len() / self.d;
            let order = Stream::new(seed, batch, 1 + k as u16, Purpose::Codebook).permutation(n);
            let rows = r.f32s()?;
            for &i in order.iter().take(self.each) {
                self.data.extend_from_slice(&rows[i * self.d..(i + 1) * self.d]);
            }
        }
        Ok(())
    }

    /// All of them, [n, d].
    pub fn vectors(self) -> Result<Tensor> {
        let n = self.data.len() / self.d.max(1);
        Tensor::new(self.data, [n, self.d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MsvqConfig {
        MsvqConfig { vocab: 8, patch_nums: vec![1, 2], d: 2, ..MsvqConfig::default() }
    }

    /// The guard against collapse: codes that nothing draws move onto what is being quantised.
    #[test]
    fn unused_codes_are_found_and_moved() {
        let mut usage = Usage::new(&config());
        for n in 0..300 {
            let tokens = Tensor::new_i32(vec![0, 1, 2, (n % 2) as i32, 0], [1, 5]).unwrap();
            usage.count(&tokens, n).unwrap();
        }
        let health = usage.health(None).unwrap().to_f64s();
        assert_eq!(health[2..], [3.0, 0.0]);
        assert!((health[0] - 1.0).abs() < 1e-6 && health[1] > 2.5);
        let draws = Stream::new(1, 0, 0, Purpose::Codebook);
        let still = Tensor::new(vec![f32::NAN], [1]).unwrap();
        let stay = usage.revive(5, 0.1, draws, &still).unwrap();
        assert_eq!(stay.i32s().unwrap(), [-1; 8]);
        let moved = usage.revive(5, 0.1, draws, &Tensor::zeros(DType::F32, [1])).unwrap();
        let rows = moved.i32s().unwrap();
        assert_eq!(rows[..3], [-1; 3]);
        assert!(rows[3..].iter().all(|row| (0..5).contains(row)), "{rows:?}");
        let health = usage.health(Some(&moved)).unwrap().to_f64s();
        assert_eq!(health[2..], [8.0, 5.0], "a moved code must get time");
        let mut twin = Usage::new(&config());
        twin.restore(&usage.tensor()).unwrap();
        assert_eq!(twin.health(Some(&moved)).unwrap().to_f64s(), health);
    }
}
