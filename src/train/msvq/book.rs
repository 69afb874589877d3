//! Keeping the code book alive: the k-means that fills it, how often each code is drawn, and new
//! places for codes that nothing uses.

use crate::config::MsvqConfig;
use crate::error::{Error, Result};
use crate::models::quantiser::perplexity;
use crate::tensor::{Purpose, Stream, Tensor};

/// Updates over which usage follows quickly, then slowly (VAR).
const QUICK: u64 = 100;
const DECAY: [f32; 2] = [0.9, 0.99];

/// How often each code is drawn at each scale: a running mean of counts, [K, V].
pub struct Usage {
    counts: Vec<f32>,
    scales: usize,
    vocab: usize,
}

impl Usage {
    /// Nothing drawn yet.
    pub fn new(c: &MsvqConfig) -> Self {
        let (scales, vocab) = (c.scales(), c.vocab);
        Self { counts: vec![0.0; scales * vocab], scales, vocab }
    }

    /// Counts update number `n` with the tokens of each scale.
    pub fn count(&mut self, tokens: &[Tensor], n: u64) -> Result<()> {
        let decay = DECAY[usize::from(n >= QUICK)];
        for (mean, map) in self.counts.chunks_mut(self.vocab).zip(tokens) {
            mean.iter_mut().for_each(|c| *c *= decay);
            map.i32s()?.iter().for_each(|&t| mean[t as usize] += 1.0 - decay);
        }
        Ok(())
    }

    /// exp(entropy) of the codes of each scale.
    pub fn perplexities(&self) -> Vec<f64> {
        self.counts.chunks(self.vocab).map(perplexity).collect()
    }

    /// Codes drawn less often, over all scales, than `below` of an even draw.
    pub fn dead(&self, below: f64) -> Vec<usize> {
        let of = |v: usize| (0..self.scales).map(|k| self.counts[k * self.vocab + v]).sum::<f32>();
        let floor = self.even() * below as f32;
        (0..self.vocab).filter(|&v| of(v) < floor).collect()
    }

    /// Codes that are drawn at least a hundredth as often as an even draw.
    pub fn live(&self) -> usize {
        self.vocab - self.dead(0.01).len()
    }

    fn even(&self) -> f32 {
        self.counts.iter().sum::<f32>() / self.vocab.max(1) as f32
    }

    /// Gives a code that was moved an even draw's credit at the scale its new place comes from, so
    /// that it has time to be used.
    fn credit(&mut self, code: usize, scale: usize, even: f32) {
        for k in 0..self.scales {
            self.counts[k * self.vocab + code] = if k == scale { even } else { 0.0 };
        }
    }

    /// For a checkpoint.
    pub fn tensor(&self) -> Result<Tensor> {
        Tensor::new(self.counts.clone(), [self.scales, self.vocab])
    }

    /// From a checkpoint.
    pub fn restore(&mut self, counts: &Tensor) -> Result<()> {
        if counts.shape().dims() != [self.scales, self.vocab] {
            let what = format!("{} is not [{}, {}]", counts.shape(), self.scales, self.vocab);
            return Err(Error::shape("code usage", what));
        }
        self.counts = counts.f32s()?.to_vec();
        Ok(())
    }
}

/// Moves unused codes onto vectors that scales quantise now. Returns the new book and the codes
/// moved.
pub fn revive(
    book: &Tensor,
    usage: &mut Usage,
    residuals: &[Tensor],
    below: f64,
    draws: &Stream,
) -> Result<(Tensor, Vec<usize>)> {
    let dead = usage.dead(below);
    let (_, d) = book.shape().matrix();
    let ends: Vec<usize> = residuals
        .iter()
        .scan(0, |sum, r| {
            *sum += r.len() / d;
            Some(*sum)
        })
        .collect();
    let total = ends.last().copied().unwrap_or(0);
    if dead.is_empty() || total == 0 {
        return Ok((book.clone(), Vec::new()));
    }
    let even = usage.even();
    let mut data = book.f32s()?.to_vec();
    for &code in &dead {
        let at = draws.below(code, total);
        let scale = ends.partition_point(|&end| end <= at);
        let first = if scale == 0 { 0 } else { ends[scale - 1] };
        let from = (at - first) * d;
        data[code * d..(code + 1) * d].copy_from_slice(&residuals[scale].f32s()?[from..from + d]);
        usage.credit(code, scale, even);
    }
    Ok((Tensor::new(data, book.shape())?, dead))
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
            let one = Tensor::new_i32(vec![0], [1]).unwrap();
            let two = Tensor::new_i32(vec![1, 2, (n % 2) as i32, 0], [4]).unwrap();
            usage.count(&[one, two], n).unwrap();
        }
        assert_eq!(usage.dead(0.1), [3, 4, 5, 6, 7]);
        assert_eq!(usage.live(), 3);
        let perplexities = usage.perplexities();
        assert!((perplexities[0] - 1.0).abs() < 1e-6 && perplexities[1] > 2.5);
        let book = Tensor::new(vec![0.0; 16], [8, 2]).unwrap();
        let residuals = [
            Tensor::new(vec![1.0, 1.0], [1, 2]).unwrap(),
            Tensor::new((2..10).map(|i| i as f32).collect(), [4, 2]).unwrap(),
        ];
        let draws = Stream::new(1, 0, 0, Purpose::Codebook);
        let (book, moved) = revive(&book, &mut usage, &residuals, 0.1, &draws).unwrap();
        assert_eq!(moved, [3, 4, 5, 6, 7]);
        let rows: Vec<&[f32]> = book.f32s().unwrap().chunks(2).collect();
        assert!(rows[..3].iter().all(|r| *r == [0.0, 0.0]));
        for row in &rows[3..] {
            assert!(row[0] >= 1.0 && (row[1] == row[0] || row[1] == row[0] + 1.0), "{row:?}");
        }
        assert!(usage.dead(0.1).is_empty(), "a moved code must get time");
        let mut twin = Usage::new(&config());
        twin.restore(&usage.tensor().unwrap()).unwrap();
        assert_eq!(twin.perplexities(), usage.perplexities());
    }
}
