//! A linear tissue-class probe: standardised features, principal components, L2 logistic
//! regression.
//!
//! It is fitted on real training tiles and asked about other tiles, real or synthesised, by AUC:
//! the threshold may shift between real and synthesised tiles, the order need not. Newton's method
//! on a strictly convex loss has one answer and no random numbers, so the same tiles give the same
//! probe.

use faer::Mat;
use serde::{Deserialize, Serialize};

use genevar_linalg as linalg;

use super::Features;
use crate::error::{Error, Result};

/// The two classes a probe tells apart, by their names in the tile table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// The class that should score high.
    pub positive: String,
    /// The class that should score low.
    pub negative: String,
}

impl Default for Classes {
    fn default() -> Self {
        Self { positive: "cancer".into(), negative: "immune".into() }
    }
}

impl Classes {
    /// Indices of the tiles of either class, and whether each is positive.
    pub fn pick<S: AsRef<str>>(&self, names: &[S]) -> (Vec<usize>, Vec<bool>) {
        let known = |name: &str| name == self.positive || name == self.negative;
        let which: Vec<usize> = (0..names.len()).filter(|&i| known(names[i].as_ref())).collect();
        let labels = which.iter().map(|&i| names[i].as_ref() == self.positive).collect();
        (which, labels)
    }
}

/// Size of a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeConfig {
    /// Principal components kept, at most.
    pub components: usize,
    /// Weight of `|w|^2 / 2` beside the mean log-loss; the intercept is free.
    pub l2: f64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        // The best mean AUC (.828) when leaving out one training section of HER2ST after another.
        Self { components: 64, l2: 0.3 }
    }
}

/// A fitted probe.
#[derive(Clone, Debug)]
pub struct Probe {
    mean: Vec<f64>,
    weights: Vec<f64>,
    bias: f64,
}

impl Probe {
    /// Fits on `features` with one label a row.
    ///
    /// # Errors
    /// `Data` when the labels do not fit or a class has fewer than two tiles, `Config` for a bad
    /// size.
    pub fn fit(features: &Features, labels: &[bool], config: ProbeConfig) -> Result<Self> {
        check(features, labels, config)?;
        let (n, d) = (features.n(), features.d());
        let mean = features.mean();
        let scale = inverse_deviation(features, &mean);
        let z = Mat::from_fn(n, d, |i, j| (features.row(i)[j] - mean[j]) * scale[j]);
        let (s, v) = linalg::right_vectors(z.as_ref())?;
        let least = s.first().copied().unwrap_or(0.0) * 1e-9;
        let k = s.iter().take(config.components).take_while(|&&s| s > least).count();
        let projected = linalg::times(z.as_ref(), v.subcols(0, k));
        let rows: Vec<Vec<f64>> =
            (0..n).map(|i| (0..k).map(|j| projected[(i, j)]).chain([1.0]).collect()).collect();
        let w = logistic(&rows, labels, config.l2)?;
        // Back to one weight a feature: scoring needs no components.
        let weights =
            (0..d).map(|j| scale[j] * (0..k).map(|c| v[(j, c)] * w[c]).sum::<f64>()).collect();
        Ok(Self { mean, weights, bias: w[k] })
    }

    /// The log-odds of the positive class for each row.
    ///
    /// # Errors
    /// `Data` when the width differs from the training features'.
    pub fn score(&self, features: &Features) -> Result<Vec<f64>> {
        if features.d() != self.mean.len() {
            return Err(Error::data(
                format!("a probe of {} features met {}", self.mean.len(), features.d()),
                "extract both with the same network",
            ));
        }
        let term = |row: &[f64]| {
            let centred = row.iter().zip(&self.mean).map(|(x, m)| x - m);
            self.bias + centred.zip(&self.weights).map(|(x, w)| x * w).sum::<f64>()
        };
        Ok((0..features.n()).map(|i| term(features.row(i))).collect())
    }
}

/// Area under the ROC curve: the chance that a positive scores above a negative, ties counting
/// half.
///
/// # Errors
/// `Data` when lengths differ, a class is missing or a score is not a number.
pub fn auc(labels: &[bool], scores: &[f64]) -> Result<f64> {
    let positives = labels.iter().filter(|&&l| l).count();
    let negatives = labels.len() - positives;
    if labels.len() != scores.len() || positives == 0 || negatives == 0 {
        return Err(Error::data(
            format!(
                "an AUC of {} scores for {positives} positive and {negatives} negative tiles",
                scores.len()
            ),
            "give one score a tile and tiles of both classes",
        ));
    }
    if let Some(first) = scores.iter().position(|s| s.is_nan()) {
        let count = scores.iter().filter(|s| s.is_nan()).count();
        let place = "probe scores".to_string();
        return Err(Error::NotFinite { place, count, len: scores.len(), first });
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[i].total_cmp(&scores[j]));
    let (mut below, mut twice) = (0usize, 0usize);
    // `==` and not the total order, so that -0 and 0 tie.
    for tie in order.chunk_by(|&i, &j| scores[i] == scores[j]) {
        let up = tie.iter().filter(|&&i| labels[i]).count();
        let down = tie.len() - up;
        twice += up * (2 * below + down);
        below += down;
    }
    Ok(twice as f64 / (2 * positives * negatives) as f64)
}

fn check(features: &Features, labels: &[bool], config: ProbeConfig) -> Result<()> {
    if config.components == 0 {
        return Err(Error::config("probe.components", "is 0", "keep at least one"));
    }
    if !(config.l2 > 0.0 && config.l2.is_finite()) {
        return Err(Error::config(
            "probe.l2",
            format!("is {}", config.l2),
            "give a positive weight: without it separable classes have no finite answer",
        ));
    }
    let positives = labels.iter().filter(|&&l| l).count();
    if labels.len() != features.n() || positives < 2 || labels.len() - positives < 2 {
        return Err(Error::data(
            format!(
                "a probe on {} tiles with {positives} positive of {} labels",
                features.n(),
                labels.len()
            ),
            "give one label a tile and at least two tiles of each class",
        ));
    }
    Ok(())
}

/// One over the standard deviation of each feature; 0 for a constant one, which then has no say.
fn inverse_deviation(f: &Features, mean: &[f64]) -> Vec<f64> {
    let mut squares = vec![0.0; f.d()];
    for i in 0..f.n() {
        for (s, (x, m)) in squares.iter_mut().zip(f.row(i).iter().zip(mean)) {
            *s += (x - m) * (x - m);
        }
    }
    let deviation = |s: f64, m: f64| {
        let sd = (s / (f.n() - 1) as f64).sqrt();
        if sd > 1e-12 * (1.0 + m.abs()) { 1.0 / sd } else { 0.0 }
    };
    squares.iter().zip(mean).map(|(&s, &m)| deviation(s, m)).collect()
}

/// Newton's method for logistic regression; the last column of `rows` is the constant 1,
/// unpenalised.
fn logistic(rows: &[Vec<f64>], labels: &[bool], l2: f64) -> Result<Vec<f64>> {
    const STEPS: usize = 100;
    let p = rows[0].len();
    let mut w = vec![0.0; p];
    let mut loss = log_loss(rows, labels, &w, l2);
    for _ in 0..STEPS {
        let (mut hessian, mut step) = newton_system(rows, labels, &w, l2);
        linalg::solve_spd(&mut hessian, &mut step)
            .ok_or_else(|| Error::Internal("the probe's Hessian is singular".into()))?;
        let length: f64 = step.iter().map(|s| s * s).sum::<f64>().sqrt();
        let mut rate = 1.0;
        let (next, next_loss) = loop {
            let next: Vec<f64> = w.iter().zip(&step).map(|(w, s)| w - rate * s).collect();
            let value = log_loss(rows, labels, &next, l2);
            // Near the minimum rounding alone can raise the loss: a tiny step is taken as it is.
            if value <= loss || rate * length < 1e-10 {
                break (next, value);
            }
            rate *= 0.5;
        };
        (w, loss) = (next, next_loss);
        if length < 1e-10 {
            break;
        }
    }
    Ok(w)
}

/// Hessian and gradient of the penalised mean log-loss.
fn newton_system(rows: &[Vec<f64>], labels: &[bool], w: &[f64], l2: f64) -> (Vec<f64>, Vec<f64>) {
    let p = w.len();
    let n = rows.len() as f64;
    let (mut hessian, mut gradient) = (vec![0.0; p * p], vec![0.0; p]);
    for (row, &label) in rows.iter().zip(labels) {
        let q = 1.0 / (1.0 + (-dot(row, w)).exp());
        let residual = (q - f64::from(u8::from(label))) / n;
        let curve = q * (1.0 - q) / n;
        for i in 0..p {
            gradient[i] += residual * row[i];
            for j in 0..p {
                hessian[i * p + j] += curve * row[i] * row[j];
            }
        }
    }
    for i in 0..p - 1 {
        gradient[i] += l2 * w[i];
        hessian[i * p + i] += l2;
    }
    // The intercept's curvature vanishes when every tile is classified with certainty.
    hessian[p * p - 1] += 1e-12;
    (hessian, gradient)
}

fn log_loss(rows: &[Vec<f64>], labels: &[bool], w: &[f64], l2: f64) -> f64 {
    let one = |row: &Vec<f64>, &label: &bool| {
        let margin = if label { dot(row, w) } else { -dot(row, w) };
        // ln(1 + exp(-margin)) without overflow.
        (-margin).max(0.0) + (-margin.abs()).exp().ln_1p()
    };
    let data: f64 = rows.iter().zip(labels).map(|(r, l)| one(r, l)).sum();
    let penalty: f64 = w[..w.len() - 1].iter().map(|w| w * w).sum();
    data / rows.len() as f64 + 0.5 * l2 * penalty
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Purpose, Stream};

    fn two_classes(n: usize, d: usize, gap: f64, sample: u64) -> (Features, Vec<bool>) {
        let x = Stream::new(3, sample, 0, Purpose::Test).normals(n * d);
        let labels: Vec<bool> = (0..n).map(|i| i % 3 == 0).collect();
        let data = x
            .iter()
            .enumerate()
            .map(|(k, &x)| {
                let up = labels[k / d] && k % d == 0;
                // Unequal scales, so that standardising has something to do.
                (f64::from(x) + if up { gap } else { 0.0 }) * 10f64.powi((k % d % 3) as i32)
            })
            .collect();
        (Features::new("test", n, d, data).unwrap(), labels)
    }

    #[test]
    fn auc_counts_pairs_and_halves_ties() {
        let labels = [false, true, false, true];
        assert_eq!(auc(&labels, &[1.0, 2.0, 3.0, 4.0]).unwrap(), 0.75);
        assert_eq!(auc(&labels, &[5.0; 4]).unwrap(), 0.5);
        assert_eq!(auc(&labels, &[0.0, 0.0, -0.0, 1.0]).unwrap(), 0.75);
        assert_eq!(auc(&labels, &[4.0, 3.0, 2.0, 1.0]).unwrap(), 0.25);
        assert_eq!(auc(&labels, &[1.0, f64::INFINITY, 0.0, 2.0]).unwrap(), 1.0);
        assert!(auc(&labels, &[1.0, f64::NAN, 0.0, 2.0]).is_err());
        assert!(auc(&[true, true], &[1.0, 2.0]).is_err());
        assert!(auc(&labels, &[1.0]).is_err());
    }

    #[test]
    fn auc_matches_all_pairs() {
        let s = Stream::new(9, 0, 0, Purpose::Test);
        let scores: Vec<f64> = (0..70).map(|i| s.below(i, 12) as f64).collect();
        let labels: Vec<bool> = (70..140).map(|i| s.below(i, 3) == 0).collect();
        let (mut won, mut all) = (0.0, 0.0);
        for i in (0..70).filter(|&i| labels[i]) {
            for j in (0..70).filter(|&j| !labels[j]) {
                all += 1.0;
                won += if scores[i] > scores[j] { 1.0 } else { 0.0 };
                won += if scores[i] == scores[j] { 0.5 } else { 0.0 };
            }
        }
        assert!((auc(&labels, &scores).unwrap() - won / all).abs() < 1e-15);
    }

    #[test]
    fn finds_the_class_on_tiles_it_never_saw() {
        // Also with more features than tiles.
        for (d, least) in [(10, 0.9), (300, 0.6)] {
            let (train, labels) = two_classes(150, d, 3.0, 1);
            let (test, truth) = two_classes(90, d, 3.0, 2);
            let probe = Probe::fit(&train, &labels, ProbeConfig::default()).unwrap();
            let a = auc(&truth, &probe.score(&test).unwrap()).unwrap();
            assert!(a > least, "{d} features: {a}");
            let (none, truth) = two_classes(90, d, 0.0, 3);
            let a = auc(&truth, &probe.score(&none).unwrap()).unwrap();
            assert!((a - 0.5).abs() < 0.15, "{d} features: {a}");
        }
    }

    #[test]
    fn newton_ends_where_the_gradient_is_zero() {
        let (f, labels) = two_classes(60, 5, 50.0, 4);
        let rows: Vec<Vec<f64>> =
            (0..60).map(|i| f.row(i).iter().copied().chain([1.0]).collect()).collect();
        // Separable, so only the penalty keeps the answer finite.
        let w = logistic(&rows, &labels, 1e-3).unwrap();
        let (_, gradient) = newton_system(&rows, &labels, &w, 1e-3);
        gradient.iter().for_each(|g| assert!(g.abs() < 1e-9, "{gradient:?}"));
    }

    #[test]
    fn constant_features_are_ignored() {
        let (f, labels) = two_classes(60, 4, 3.0, 5);
        let wide: Vec<f64> = (0..60).flat_map(|i| f.row(i).iter().copied().chain([7.0])).collect();
        let wide = Features::new("test", 60, 5, wide).unwrap();
        let a = Probe::fit(&f, &labels, ProbeConfig::default()).unwrap().score(&f).unwrap();
        let b = Probe::fit(&wide, &labels, ProbeConfig::default()).unwrap();
        let b = b.score(&wide).unwrap();
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-9));
    }

    #[test]
    fn picks_named_classes_and_refuses_bad_input() {
        let names = ["cancer", "unknown", "immune", "cancer"];
        let (which, labels) = Classes::default().pick(&names);
        assert_eq!((which, labels), (vec![0, 2, 3], vec![true, false, true]));
        let (f, labels) = two_classes(30, 3, 1.0, 6);
        assert!(Probe::fit(&f, &labels[1..], ProbeConfig::default()).is_err());
        assert!(Probe::fit(&f, &[true; 30], ProbeConfig::default()).is_err());
        assert!(Probe::fit(&f, &labels, ProbeConfig { components: 0, l2: 1.0 }).is_err());
        assert!(Probe::fit(&f, &labels, ProbeConfig { components: 3, l2: 0.0 }).is_err());
        let probe = Probe::fit(&f, &labels, ProbeConfig::default()).unwrap();
        assert!(probe.score(&two_classes(30, 4, 1.0, 6).0).is_err());
    }
}
