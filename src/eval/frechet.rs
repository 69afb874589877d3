//! Frechet distance between two sets of features, as between Gaussians fitted to them:
//! `|mu1 - mu2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2)`, in f64, with unbiased covariances.
//!
//! With A, B the centred rows, `S1 = A'A/(n1-1)` and `S2 = B'B/(n2-1)`, so the nonzero eigenvalues
//! of
//! `S1 S2` are the squared singular values of `A B' / sqrt((n1-1)(n2-1))`: no covariance, no matrix
//! square root, and no harm when n is below d. A set with more rows than features is first replaced
//! by the triangle R of its QR factorisation, for which `R'R = A'A`. The estimate is biased upwards
//! in 1/n: compare distances only at equal n.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::bootstrap::{Draws, Interval, resample, spread_around};
use genevar_linalg as linalg;

use super::Features;
use crate::error::{Error, Result};
use faer::Mat;

/// Rows for a feature beyond which a repetition works on features instead of their inner products.
const LARGE: usize = 2;

/// The Frechet distance of two feature sets of equal width.
///
/// # Errors
/// `Data` for fewer than two rows in a set or different widths.
pub fn distance(a: &Features, b: &Features) -> Result<f64> {
    check(a, b)?;
    let (mean_a, mean_b) = (a.mean(), b.mean());
    let shift: f64 = mean_a.iter().zip(&mean_b).map(|(p, q)| (p - q) * (p - q)).sum();
    let (ca, cb) = (centred(a, &mean_a), centred(b, &mean_b));
    let degrees = [(a.n() - 1) as f64, (b.n() - 1) as f64];
    let traces = sum_of_squares(&ca) / degrees[0] + sum_of_squares(&cb) / degrees[1];
    if !(shift + traces).is_finite() {
        return Err(Error::data(
            "features are so large that their squares overflow",
            "extract them with a sound network",
        ));
    }
    let cross = linalg::times_transposed(
        compact(&ca, a.n(), a.d()).as_ref(),
        compact(&cb, b.n(), b.d()).as_ref(),
    );
    let overlap: f64 = linalg::singular_values(cross.as_ref())?.iter().sum();
    // Rounding alone can take the distance of a set to itself below zero.
    Ok((shift + traces - 2.0 * overlap / (degrees[0] * degrees[1]).sqrt()).max(0.0))
}

/// The distance with its bootstrap interval, resampling both sets.
///
/// `groups[i]` names the profile of row i of either set: tiles of one profile are not independent,
/// so profiles are drawn, the same ones on both sides, each with all its rows. Without groups every
/// row of either set is drawn for itself.
///
/// A resample repeats rows, has lower rank and so lies further from the other set; the repetitions
/// are therefore centred on the estimate. The interval says how much the number would move with
/// other tiles at this n. It does not remove the bias that every distance at this n has.
///
/// # Errors
/// As [`distance`]; groups that do not fit both sets.
pub fn distance_interval(
    a: &Features,
    b: &Features,
    groups: Option<&[usize]>,
    draws: Draws,
) -> Result<(f64, Interval)> {
    let estimate = distance(a, b)?;
    let groups = groups.map(|g| rows_of(g, a, b)).transpose()?;
    let drawn = |rep: usize| {
        let draw = |n: usize, lane: u16| resample(n, draws.seed, rep as u64, lane);
        match &groups {
            None => (draw(a.n(), 0), draw(b.n(), 1)),
            Some(groups) => {
                let drawn = draw(groups.len(), 0).into_iter();
                let rows: Vec<usize> = drawn.flat_map(|g| groups[g].clone()).collect();
                (rows.clone(), rows)
            }
        }
    };
    let repeats: Vec<f64> = if a.n().max(b.n()) > LARGE * a.d() {
        // Gram matrices grow with n^2: beyond the features' own size, rows are drawn from these.
        let one = |rep| {
            let (i, j) = drawn(rep);
            distance(&a.select(&i), &b.select(&j))
        };
        (0..draws.reps).map(one).collect::<Result<_>>()?
    } else {
        let grams = Grams::of(a, b);
        let one = |rep| {
            let (i, j) = drawn(rep);
            grams.distance(&i, &j)
        };
        (0..draws.reps).into_par_iter().map(one).collect::<Result<_>>()?
    };
    Ok((estimate, spread_around(estimate, &repeats, draws.level)))
}

/// The rows of each group, in order of the groups' numbers.
fn rows_of(groups: &[usize], a: &Features, b: &Features) -> Result<Vec<Vec<usize>>> {
    if groups.len() != a.n() || groups.len() != b.n() {
        return Err(Error::data(
            format!("{} profiles for sets of {} and {} tiles", groups.len(), a.n(), b.n()),
            "name the profile of every tile, the same in both sets",
        ));
    }
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, &group) in groups.iter().enumerate() {
        rows.entry(group).or_default().push(row);
    }
    Ok(rows.into_values().collect())
}

fn check(a: &Features, b: &Features) -> Result<()> {
    if a.d() != b.d() {
        return Err(Error::data(
            format!("the two sets have {} and {} features a tile", a.d(), b.d()),
            "extract both with the same network",
        ));
    }
    if a.n() < 2 || b.n() < 2 {
        return Err(Error::data(
            format!("a Frechet distance of {} against {} tiles", a.n(), b.n()),
            "give at least two tiles in each set",
        ));
    }
    Ok(())
}

fn centred(f: &Features, mean: &[f64]) -> Vec<f64> {
    f.data().chunks(f.d()).flat_map(|row| row.iter().zip(mean).map(|(x, m)| x - m)).collect()
}

fn sum_of_squares(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum()
}

/// The rows themselves, or a triangle with the same Gram matrix when there are more rows than
/// columns.
fn compact(rows: &[f64], n: usize, d: usize) -> Mat<f64> {
    let m = linalg::view(rows, n, d);
    if n > d { linalg::triangle(m) } else { m.to_owned() }
}

/// Inner products of all rows about one common centre. Every resample's distance follows from them,
/// so a repetition costs one singular value problem and never touches the features.
struct Grams {
    aa: Mat<f64>,
    ab: Mat<f64>,
    bb: Mat<f64>,
}

impl Grams {
    fn of(a: &Features, b: &Features) -> Self {
        let centre: Vec<f64> = a.mean().iter().zip(b.mean()).map(|(p, q)| 0.5 * (p + q)).collect();
        let (a, b, d) = (centred(a, &centre), centred(b, &centre), a.d());
        let a = linalg::view(&a, a.len() / d, d);
        let b = linalg::view(&b, b.len() / d, d);
        let product = linalg::times_transposed;
        Self { aa: product(a, a), ab: product(a, b), bb: product(b, b) }
    }

    /// The distance between rows `i` of the first and rows `j` of the second set.
    fn distance(&self, i: &[usize], j: &[usize]) -> Result<f64> {
        let (aa, trace_a) = mean_and_trace(&self.aa, i);
        let (bb, trace_b) = mean_and_trace(&self.bb, j);
        let (n, m) = (i.len(), j.len());
        let mut cross = Mat::from_fn(n, m, |p, q| self.ab[(i[p], j[q])]);
        let row: Vec<f64> =
            (0..n).map(|p| (0..m).map(|q| cross[(p, q)]).sum::<f64>() / m as f64).collect();
        let col: Vec<f64> =
            (0..m).map(|q| (0..n).map(|p| cross[(p, q)]).sum::<f64>() / n as f64).collect();
        let ab = row.iter().sum::<f64>() / n as f64;
        for q in 0..m {
            for p in 0..n {
                cross[(p, q)] += ab - row[p] - col[q];
            }
        }
        let overlap: f64 = linalg::singular_values(cross.as_ref())?.iter().sum();
        let scale = ((n - 1) as f64 * (m - 1) as f64).sqrt();
        Ok((aa + bb - 2.0 * ab + trace_a + trace_b - 2.0 * overlap / scale).max(0.0))
    }
}

/// For the rows `i` of a Gram matrix: squared length of their mean, and trace of their covariance.
fn mean_and_trace(gram: &Mat<f64>, i: &[usize]) -> (f64, f64) {
    let n = i.len() as f64;
    let all: f64 = i.iter().map(|&p| i.iter().map(|&q| gram[(q, p)]).sum::<f64>()).sum();
    let own: f64 = i.iter().map(|&p| gram[(p, p)]).sum();
    (all / (n * n), (own - all / n) / (n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Purpose, Stream};

    fn normals(n: usize, d: usize, sample: u64) -> Features {
        let x = Stream::new(11, sample, 0, Purpose::Test).normals(n * d);
        Features::new("test", n, d, x.into_iter().map(f64::from).collect()).unwrap()
    }

    fn map(f: &Features, g: impl Fn(usize, f64) -> f64) -> Features {
        let data = f.data().iter().enumerate().map(|(i, &x)| g(i % f.d(), x)).collect();
        Features::new("test", f.n(), f.d(), data).unwrap()
    }

    #[test]
    fn the_same_set_is_at_distance_zero_and_a_shift_adds_its_square() {
        // Both shapes: more rows than features, and fewer.
        for (n, d) in [(50, 6), (7, 30)] {
            let a = normals(n, d, 1);
            assert!(distance(&a, &a).unwrap() < 1e-9);
            let b = map(&a, |j, x| x + if j == 2 { 3.0 } else { 0.0 });
            assert!((distance(&a, &b).unwrap() - 9.0).abs() < 1e-9);
        }
    }

    #[test]
    fn diagonal_gaussians_have_the_closed_form() {
        // Exactly uncorrelated columns of unit variance: signed unit vectors, scaled.
        let d = 5;
        let n = 2 * d;
        let unit = ((n - 1) as f64 / 2.0).sqrt();
        let data: Vec<f64> = (0..n * d)
            .map(|k| match (k / d, k % d) {
                (i, j) if i == 2 * j => unit,
                (i, j) if i == 2 * j + 1 => -unit,
                _ => 0.0,
            })
            .collect();
        let base = Features::new("test", n, d, data).unwrap();
        let (s, t) = ([1.0, 2.0, 0.5, 3.0, 0.0], [1.5, 0.0, 4.0, 3.0, 0.0]);
        let m = [0.1, -1.0, 0.0, 2.0, 0.7];
        let a = map(&base, |j, x| s[j] * x);
        let b = map(&base, |j, x| t[j] * x + m[j]);
        let want: f64 = (0..d).map(|j| (s[j] - t[j]) * (s[j] - t[j]) + m[j] * m[j]).sum();
        assert!((distance(&a, &b).unwrap() - want).abs() < 1e-12);
    }

    #[test]
    fn the_compact_and_the_direct_path_agree() {
        let a = normals(40, 9, 2);
        let b = map(&normals(60, 9, 3), |j, x| x * (1.0 + 0.3 * j as f64) + 0.2);
        let direct = Grams::of(&a, &b)
            .distance(&(0..40).collect::<Vec<_>>(), &(0..60).collect::<Vec<_>>())
            .unwrap();
        let compact = distance(&a, &b).unwrap();
        assert!((direct - compact).abs() < 1e-10 * compact, "{direct} {compact}");
        assert!((distance(&b, &a).unwrap() - compact).abs() < 1e-10 * compact);
    }

    #[test]
    fn matches_the_eigenvalues_of_the_covariance_product() {
        // In two dimensions Tr (S1 S2)^(1/2) = sqrt(tr + 2 sqrt(det)) of the product.
        let a = map(&normals(30, 2, 4), |j, x| x * (1.0 + j as f64));
        let b = normals(25, 2, 5);
        let cov = |f: &Features| {
            let m = f.mean();
            let c = centred(f, &m);
            let s = |i: usize, j: usize| {
                c.chunks(2).map(|r| r[i] * r[j]).sum::<f64>() / (f.n() - 1) as f64
            };
            [s(0, 0), s(0, 1), s(1, 1)]
        };
        let (p, q) = (cov(&a), cov(&b));
        let trace = p[0] * q[0] + 2.0 * p[1] * q[1] + p[2] * q[2];
        let det = (p[0] * p[2] - p[1] * p[1]) * (q[0] * q[2] - q[1] * q[1]);
        let shift: f64 = a.mean().iter().zip(b.mean()).map(|(x, y)| (x - y) * (x - y)).sum();
        let want = shift + p[0] + p[2] + q[0] + q[2] - 2.0 * (trace + 2.0 * det.sqrt()).sqrt();
        assert!((distance(&a, &b).unwrap() - want).abs() < 1e-12);
    }

    #[test]
    fn an_interval_holds_its_estimate_and_repeats() {
        let (a, b) = (normals(30, 50, 6), map(&normals(30, 50, 7), |_, x| 1.2 * x));
        let draws = Draws { reps: 40, level: 0.9, seed: 3 };
        let (estimate, i) = distance_interval(&a, &b, None, draws).unwrap();
        assert!(i.low < estimate && estimate < i.high, "{i:?} {estimate}");
        assert_eq!(distance_interval(&a, &b, None, draws).unwrap(), (estimate, i));
        let other = Draws { seed: 4, ..draws };
        assert_ne!(distance_interval(&a, &b, None, other).unwrap().1, i);
    }

    #[test]
    fn many_rows_have_the_interval_of_their_inner_products() {
        let (a, b) = (normals(40, 9, 2), map(&normals(40, 9, 3), |_, x| 1.2 * x));
        let draws = Draws { reps: 20, level: 0.9, seed: 3 };
        let (estimate, i) = distance_interval(&a, &b, None, draws).unwrap();
        let grams = Grams::of(&a, &b);
        let one = |rep: u64| {
            let draw = |lane| resample(40, draws.seed, rep, lane);
            grams.distance(&draw(0), &draw(1)).unwrap()
        };
        let repeats: Vec<f64> = (0..20).map(one).collect();
        let want = spread_around(estimate, &repeats, draws.level);
        assert!((i.low - want.low).abs() + (i.high - want.high).abs() < 1e-9, "{i:?} {want:?}");
    }

    #[test]
    fn tiles_of_one_profile_are_drawn_together() {
        let (a, b) = (normals(12, 20, 8), map(&normals(12, 20, 9), |_, x| 1.5 * x));
        let draws = Draws { reps: 30, level: 0.9, seed: 1 };
        let interval = |g: &[usize]| distance_interval(&a, &b, Some(g), draws).unwrap().1;
        // A single profile can only be drawn whole: nothing varies.
        let one = interval(&[0; 12]);
        assert!((one.high - one.low).abs() < 1e-9, "{one:?}");
        let each: Vec<usize> = (0..12).collect();
        assert!(interval(&each).high - interval(&each).low > 1e-3);
        assert!(distance_interval(&a, &b, Some(&each[1..]), draws).is_err());
    }

    #[test]
    fn refuses_what_has_no_distance() {
        assert!(distance(&normals(1, 3, 1), &normals(5, 3, 2)).is_err());
        assert!(distance(&normals(5, 3, 1), &normals(5, 4, 2)).is_err());
        assert!(Features::new("x", 2, 2, vec![0.0, f64::NAN, 1.0, 2.0]).is_err());
        assert!(Features::new("x", 2, 2, vec![0.0; 3]).is_err());
        assert!(Features::new("x", 0, 0, vec![]).is_err());
    }
}
