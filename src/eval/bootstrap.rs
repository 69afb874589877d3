//! Bootstrap intervals, and the paired difference of two AUCs.
//!
//! Repetition `rep` draws from `Stream(seed, rep, lane, Bootstrap)`, so results depend on the seed
//! alone. Labels keep their counts: resampling is within each class, which a rare class survives.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::probe::auc;
use crate::error::{Error, Result};
use crate::tensor::{Purpose, Stream};

/// A two-sided interval; in JSON the pair `[low, high]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 2]", into = "[f64; 2]")]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<[f64; 2]> for Interval {
    fn from([low, high]: [f64; 2]) -> Self {
        Self { low, high }
    }
}

impl From<Interval> for [f64; 2] {
    fn from(i: Interval) -> Self {
        [i.low, i.high]
    }
}

/// `n` draws with replacement from 0..n; `lane` separates draws of one repetition.
pub fn resample(n: usize, seed: u64, rep: u64, lane: u16) -> Vec<usize> {
    let stream = Stream::new(seed, rep, lane, Purpose::Bootstrap);
    (0..n).map(|i| stream.below(i, n)).collect()
}

/// The middle `level` (0.95) of the repetitions, with linear interpolation between order
/// statistics; NaN ends when there are none.
pub fn percentile(repeats: &[f64], level: f64) -> Interval {
    let mut sorted = repeats.to_vec();
    sorted.sort_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    Interval { low: quantile(&sorted, tail), high: quantile(&sorted, 1.0 - tail) }
}

/// The percentile interval moved so that the mean repetition falls on `estimate`; its lower end is
/// not below zero when the estimate is not.
pub fn spread_around(estimate: f64, repeats: &[f64], level: f64) -> Interval {
    let mean = repeats.iter().sum::<f64>() / repeats.len() as f64;
    let Interval { low, high } = percentile(repeats, level);
    let floor = if estimate >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
    Interval { low: (low - mean + estimate).max(floor), high: high - mean + estimate }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

/// An AUC with its bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Area under the ROC curve.
    pub auc: f64,
    /// Percentile bootstrap interval.
    pub interval: Interval,
}

/// Two scorings of the same labelled items, and what lies between them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// With tiles from their own RNA.
    pub own: Scored,
    /// With tiles from shuffled RNA.
    pub shuffled: Scored,
    /// `own - shuffled`.
    pub difference: f64,
    /// Percentile bootstrap interval of the difference, same draws on both sides.
    pub difference_interval: Interval,
    /// How many repetitions were drawn.
    pub reps: usize,
}

impl Paired {
    /// Whether the whole interval of the difference lies above zero: the RNA is visible in the
    /// tiles.
    pub fn rna_matters(&self) -> bool {
        self.difference_interval.low > 0.0
    }
}

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Number of repetitions.
    pub reps: usize,
    /// Two-sided level, 0.95.
    pub level: f64,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for Draws {
    fn default() -> Self {
        Self { reps: 2000, level: 0.95, seed: 0 }
    }
}

/// AUCs of `own` and `shuffled` scores for the same items, with the interval of their difference.
///
/// `groups[i]` names the RNA profile of item i; tiles of one profile are drawn together, since they
/// are not independent. A group must have one label.
///
/// # Errors
/// `Data` when the lengths differ, a class is missing, or a group has both labels.
pub fn paired_auc(
    labels: &[bool],
    own: &[f64],
    shuffled: &[f64],
    groups: &[usize],
    draws: Draws,
) -> Result<Paired> {
    if own.len() != labels.len() || shuffled.len() != labels.len() || groups.len() != labels.len() {
        return Err(Error::data(
            format!(
                "{} labels, {} own scores, {} shuffled scores, {} groups",
                labels.len(),
                own.len(),
                shuffled.len(),
                groups.len()
            ),
            "give one of each for every tile",
        ));
    }
    let (a, b) = (auc(labels, own)?, auc(labels, shuffled)?);
    let classes = grouped(labels, groups)?;
    let repeats: Vec<[f64; 3]> = (0..draws.reps)
        .into_par_iter()
        .map(|rep| {
            let items = draw(&classes, draws.seed, rep as u64);
            let labels: Vec<bool> = items.iter().map(|&i| labels[i]).collect();
            let pick = |s: &[f64]| items.iter().map(|&i| s[i]).collect::<Vec<_>>();
            let p = auc(&labels, &pick(own))?;
            let q = auc(&labels, &pick(shuffled))?;
            Ok([p, q, p - q])
        })
        .collect::<Result<_>>()?;
    let interval =
        |k: usize| percentile(&repeats.iter().map(|r| r[k]).collect::<Vec<_>>(), draws.level);
    Ok(Paired {
        own: Scored { auc: a, interval: interval(0) },
        shuffled: Scored { auc: b, interval: interval(1) },
        difference: a - b,
        difference_interval: interval(2),
        reps: draws.reps,
    })
}

/// The AUC of one scoring with its interval; groups as in [`paired_auc`].
///
/// # Errors
/// As [`paired_auc`].
pub fn auc_interval(
    labels: &[bool],
    scores: &[f64],
    groups: &[usize],
    draws: Draws,
) -> Result<Scored> {
    paired_auc(labels, scores, scores, groups, draws).map(|p| p.own)
}

/// Items of each group, for each label: `[label][group][item]`, groups in order of their number.
fn grouped(labels: &[bool], groups: &[usize]) -> Result<[Vec<Vec<usize>>; 2]> {
    let mut items: Vec<usize> = (0..labels.len()).collect();
    items.sort_by_key(|&i| (groups[i], i));
    let mut classes = [Vec::new(), Vec::new()];
    for group in items.chunk_by(|&i, &j| groups[i] == groups[j]) {
        let label = labels[group[0]];
        if group.iter().any(|&i| labels[i] != label) {
            return Err(Error::data(
                format!("RNA profile {} has tiles of both classes", groups[group[0]]),
                "give each profile one class",
            ));
        }
        classes[usize::from(label)].push(group.to_vec());
    }
    Ok(classes)
}

fn draw(classes: &[Vec<Vec<usize>>; 2], seed: u64, rep: u64) -> Vec<usize> {
    let mut items = Vec::new();
    for (lane, groups) in classes.iter().enumerate() {
        for g in resample(groups.len(), seed, rep, lane as u16) {
            items.extend_from_slice(&groups[g]);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniforms(n: usize, sample: u64) -> Vec<f64> {
        let s = Stream::new(5, sample, 0, Purpose::Test);
        (0..n).map(|i| f64::from(s.uniform(i))).collect()
    }

    #[test]
    fn quantiles_interpolate() {
        let x: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let i = percentile(&x, 0.9);
        assert!((i.low - 5.0).abs() < 1e-12 && (i.high - 95.0).abs() < 1e-12);
        let i = percentile(&[2.0], 0.95);
        assert_eq!((i.low, i.high), (2.0, 2.0));
        assert!(percentile(&[], 0.95).low.is_nan());
    }

    #[test]
    fn a_real_effect_is_found_and_no_effect_is_not() {
        let n = 240;
        let labels: Vec<bool> = (0..n).map(|i| i % 3 == 0).collect();
        let noise = uniforms(n, 1);
        let own: Vec<f64> =
            noise.iter().zip(&labels).map(|(x, &l)| x + if l { 0.4 } else { 0.0 }).collect();
        let groups: Vec<usize> = (0..n).collect();
        let draws = Draws { reps: 400, ..Draws::default() };
        let p = paired_auc(&labels, &own, &uniforms(n, 2), &groups, draws).unwrap();
        assert!(p.rna_matters(), "{p:?}");
        assert!(
            p.difference_interval.low < p.difference && p.difference < p.difference_interval.high
        );
        let p = paired_auc(&labels, &noise, &uniforms(n, 2), &groups, draws).unwrap();
        assert!(!p.rna_matters(), "{p:?}");
    }

    #[test]
    fn pairs_share_their_draws() {
        let n = 60;
        let labels: Vec<bool> = (0..n).map(|i| i % 2 == 0).collect();
        let x = uniforms(n, 3);
        let groups: Vec<usize> = (0..n).collect();
        let p = paired_auc(&labels, &x, &x, &groups, Draws::default()).unwrap();
        assert_eq!(p.difference_interval, Interval { low: 0.0, high: 0.0 });
    }

    #[test]
    fn tiles_of_one_profile_count_once() {
        // Repeating every tile of a profile adds no information, so it must not narrow the
        // interval.
        let n = 40;
        let labels: Vec<bool> = (0..n).map(|i| i % 2 == 0).collect();
        let x = uniforms(n, 4);
        let groups: Vec<usize> = (0..n).collect();
        let draws = Draws { reps: 300, ..Draws::default() };
        let once = auc_interval(&labels, &x, &groups, draws).unwrap();
        let thrice = |v: &[f64]| [v, v, v].concat();
        let many = auc_interval(
            &[&labels[..], &labels, &labels].concat(),
            &thrice(&x),
            &[&groups[..], &groups, &groups].concat(),
            draws,
        )
        .unwrap();
        assert!((once.interval.low - many.interval.low).abs() < 1e-12);
        assert!((once.interval.high - many.interval.high).abs() < 1e-12);
    }

    #[test]
    fn bad_input_is_an_error() {
        let d = Draws::default();
        assert!(paired_auc(&[true], &[1.0, 2.0], &[1.0], &[0], d).is_err());
        assert!(auc_interval(&[true, true], &[1.0, 2.0], &[0, 1], d).is_err());
        assert!(auc_interval(&[true, false], &[1.0, 2.0], &[0, 0], d).is_err());
    }
}
