//! k-means with k-means++ seeding (Arthur and Vassilvitskii, 2007): the first code book.
//!
//! Sums run in the order of the vectors and all draws are named, so the book is a function of the
//! vectors and the seed.

use crate::error::{Error, Result};
use crate::ops::call;
use crate::ops::quantize::NearestCode;
use crate::tensor::{Purpose, Stream, Tensor};

/// `k` centres [k, d] of vectors [n, d] after `rounds` of Lloyd's iteration.
///
/// A centre that nothing is nearest to takes a vector that is far from its own. With fewer distinct
/// vectors than centres the rest are copies moved by a thousandth of the spread.
pub fn kmeans(vectors: &Tensor, k: usize, rounds: usize, seed: u64) -> Result<Tensor> {
    let (n, d) = vectors.shape().matrix();
    if n == 0 || d == 0 || k == 0 {
        return Err(Error::shape("k-means", format!("{k} centres of {}", vectors.shape())));
    }
    vectors.check_finite("k-means vectors")?;
    let x = vectors.f32s()?;
    let draws = Stream::new(seed, 0, 0, Purpose::Codebook);
    let mut centres = seed_centres(x, d, k, &draws);
    for round in 0..rounds {
        let book = Tensor::new(centres.clone(), [k, d])?;
        let labels = call(&NearestCode { cosine: false }, &[vectors, &book])?;
        let draws = Stream::new(seed, 1 + round as u64, 0, Purpose::Codebook);
        centres = update(x, labels.i32s()?, &centres, d, &draws);
    }
    Tensor::new(centres, [k, d])
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Each next centre is a vector drawn with the square of its distance to the centres so far.
fn seed_centres(x: &[f32], d: usize, k: usize, draws: &Stream) -> Vec<f32> {
    let n = x.len() / d;
    let row = |i: usize| &x[i * d..(i + 1) * d];
    let mut centres = row(draws.below(0, n)).to_vec();
    let mut nearest = vec![f64::INFINITY; n];
    for j in 1..k {
        let newest = centres[(j - 1) * d..].to_vec();
        for (i, far) in nearest.iter_mut().enumerate() {
            *far = far.min(distance(row(i), &newest));
        }
        let total: f64 = nearest.iter().sum();
        if total > 0.0 {
            let i = weighted(&nearest, total * f64::from(draws.uniform(j)));
            centres.extend_from_slice(row(i));
        } else {
            let spread = 1e-3 * (x.iter().map(|v| v.abs()).sum::<f32>() / x.len() as f32 + 1e-6);
            let shifts = Stream::new(u64::from(draws.word(j)), j as u64, 1, Purpose::Codebook);
            let from = row(draws.below(j, n)).iter().enumerate();
            centres.extend(from.map(|(c, v)| v + spread * shifts.normal(c)));
        }
    }
    centres
}

/// The first index at which the running sum of weights passes `at`.
fn weighted(weights: &[f64], at: f64) -> usize {
    let mut sum = 0.0;
    let passes = |w: &f64| {
        sum += w;
        sum > at
    };
    weights.iter().position(passes).unwrap_or(weights.len() - 1)
}

fn update(x: &[f32], labels: &[i32], old: &[f32], d: usize, draws: &Stream) -> Vec<f32> {
    let k = old.len() / d;
    let mut sums = vec![0f64; k * d];
    let mut counts = vec![0usize; k];
    let mut far = Vec::with_capacity(labels.len());
    for (v, &label) in x.chunks_exact(d).zip(labels) {
        let j = label as usize;
        counts[j] += 1;
        sums[j * d..(j + 1) * d].iter_mut().zip(v).for_each(|(s, v)| *s += f64::from(*v));
        far.push(distance(v, &old[j * d..(j + 1) * d]));
    }
    let total: f64 = far.iter().sum();
    let mut centres = Vec::with_capacity(old.len());
    for (j, &count) in counts.iter().enumerate() {
        let own = j * d..(j + 1) * d;
        match count {
            0 if total > 0.0 => {
                let i = weighted(&far, total * f64::from(draws.uniform(j)));
                centres.extend_from_slice(&x[i * d..(i + 1) * d]);
            }
            0 => centres.extend_from_slice(&old[own]),
            n => centres.extend(sums[own].iter().map(|s| (s / n as f64) as f32)),
        }
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(n: usize) -> Tensor {
        let noise = Stream::new(1, 0, 0, Purpose::Test);
        let data = (0..2 * n).map(|i| ((i / 2 % 4) * 10) as f32 + 0.1 * noise.normal(i)).collect();
        Tensor::new(data, [n, 2]).unwrap()
    }

    #[test]
    fn well_separated_clusters_are_found() {
        let centres = kmeans(&clusters(400), 4, 5, 3).unwrap();
        let mut found: Vec<f64> = (0..4).map(|j| centres.at(2 * j)).collect();
        found.sort_by(f64::total_cmp);
        for (found, want) in found.iter().zip([0.0, 10.0, 20.0, 30.0]) {
            assert!((found - want).abs() < 0.1, "{found} for {want}");
        }
        let again = kmeans(&clusters(400), 4, 5, 3).unwrap();
        assert_eq!(centres.f32s().unwrap(), again.f32s().unwrap());
    }

    #[test]
    fn more_centres_than_vectors_are_all_different() {
        let same = Tensor::new(vec![1.0; 6], [3, 2]).unwrap();
        let centres = kmeans(&same, 5, 2, 0).unwrap();
        let rows: Vec<&[f32]> = centres.f32s().unwrap().chunks(2).collect();
        for (i, a) in rows.iter().enumerate() {
            assert!(a.iter().all(|v| (v - 1.0).abs() < 0.1));
            assert!(rows[..i].iter().all(|b| b != a), "{rows:?}");
        }
        assert!(kmeans(&Tensor::new(vec![], [0, 2]).unwrap(), 4, 1, 0).is_err());
        assert!(kmeans(&Tensor::new(vec![f32::NAN; 4], [2, 2]).unwrap(), 2, 1, 0).is_err());
    }
}
