//! What the loss of MeanFlow pulls u to and pushes it from: targets in closed form, the contrastive
//! bracket, its clamp and its weight.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use genevar::autograd::{Pass, Var};
use genevar::config::{Clamp, Formulation, MeanFlowConfig};
use genevar::models::meanflow::{self, Targets, Times};
use genevar::ops::call;
use genevar::ops::elementwise::SUB;
use genevar::tensor::{DType, Purpose, Stream, Tensor};

fn normals(n: u64, len: usize) -> Vec<f64> {
    Stream::new(17, n, 0, Purpose::Test).normals(len).into_iter().map(f64::from).collect()
}

fn noise(n: u64, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new_f64(normals(n, len), shape).unwrap()
}

fn config() -> MeanFlowConfig {
    MeanFlowConfig::default()
}

/// Features, noise and times of three samples.
fn example(dtype: DType) -> (Tensor, Tensor, Times) {
    let times = Times { t: vec![0.9, 0.5, 0.7], r: vec![0.2, 0.5, 0.1] };
    (noise(20, &[3, 4, 4, 8]).cast(dtype), noise(21, &[3, 4, 4, 8]).cast(dtype), times)
}

fn targets<'a>(
    f: &'a Tensor,
    eps: &'a Tensor,
    times: &'a Times,
    negatives: &'a [(Tensor, Vec<f64>)],
) -> Targets<'a> {
    Targets { f, eps, dudt: None, times, negatives }
}

/// What the loss pulls u to and pushes it from (one counterfactual at most), read off its gradient
/// at u = 0: without weight and clamp that is -2 a / B, and 2 alpha c / B more with a push.
fn aims(cfg: &MeanFlowConfig, to: &Targets<'_>) -> (Tensor, Option<Tensor>) {
    let cfg = MeanFlowConfig { adaptive_p: 0.0, clamp: Clamp::None, ..cfg.clone() };
    let rows = to.times.t.len() as f64;
    let gradient = |to: &Targets<'_>, alpha: f64| {
        let p = Pass::tape();
        let u = p.leaf(Tensor::zeros(to.f.dtype(), to.f.shape()));
        let (loss, _) = meanflow::contrastive(&p, &cfg, &u, to, alpha).unwrap();
        p.backward(&loss).unwrap().of(&u).unwrap().clone()
    };
    let scaled = |g: Vec<f64>, k: f64| {
        let values = g.into_iter().map(|g| k * g).collect();
        Tensor::from_f64s(to.f.dtype(), values, to.f.shape()).unwrap()
    };
    let pull = gradient(&Targets { negatives: &[], ..*to }, 0.0).to_f64s();
    let a = scaled(pull.clone(), -0.5 * rows);
    if to.negatives.is_empty() {
        return (a, None);
    }
    let both = gradient(to, 0.25).to_f64s();
    let push = both.iter().zip(&pull).map(|(b, p)| b - p).collect();
    (a, Some(scaled(push, 2.0 * rows)))
}

/// Targets that come out as `a` and `c` for data at zero: eps is `a`, each counterfactual lies
/// at a - c, and lambda is |c| / |a|.
fn given(a: &Tensor, c: &[Tensor]) -> (Tensor, Vec<(Tensor, Vec<f64>)>) {
    let length = |x: &Tensor| x.to_f64s().iter().map(|v| v * v).sum::<f64>().sqrt();
    let negative = |c: &Tensor| (call(&SUB, &[a, c]).unwrap(), vec![length(c) / length(a)]);
    (Tensor::zeros(a.dtype(), a.shape()), c.iter().map(negative).collect())
}

#[test]
fn the_target_is_the_velocity_less_the_slope_over_the_span() {
    let (f, eps, times) = example(DType::F64);
    let slope = noise(22, &[3, 4, 4, 8]);
    let to = Targets { dudt: Some(&slope), ..targets(&f, &eps, &times, &[]) };
    let a = aims(&config(), &to).0;
    for i in 0..a.len() {
        let row = i / (a.len() / 3);
        let want = eps.at(i) - f.at(i) - (times.t[row] - times.r[row]) * slope.at(i);
        assert!((a.at(i) - want).abs() < 1e-12);
    }
}

#[test]
fn rows_with_equal_times_have_the_velocity_as_target_bit_for_bit() {
    let (f, eps, _) = example(DType::F32);
    let times = Times { t: vec![0.3, 0.6, 0.9], r: vec![0.3, 0.6, 0.1] };
    let (_, v) = meanflow::path(Formulation::A, &f, &eps, &times.t).unwrap();
    let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for row in 0..3 {
        // One by one: the mean over a batch of three would round.
        let own = |t: &Tensor| t.rows(row, 1).unwrap();
        let times = Times { t: vec![times.t[row]], r: vec![times.r[row]] };
        let (f, eps) = (own(&f), own(&eps));
        let to = Targets { dudt: Some(&f), ..targets(&f, &eps, &times, &[]) };
        let target = aims(&config(), &to).0;
        assert_eq!(bits(&target) == bits(&own(&v)), row < 2, "row {row}");
    }
}

const NOW: [f64; 1] = [0.5];

fn still() -> Times {
    Times { t: NOW.to_vec(), r: NOW.to_vec() }
}

#[test]
fn u_star_is_the_minimum_of_the_contrastive_loss() {
    // u* = a + w (a - mean c), w = alpha / (1 - alpha), for the literal loss without adaptive
    // weight.
    let cfg = MeanFlowConfig { clamp: Clamp::None, adaptive_p: 0.0, ..config() };
    let alpha = 0.2;
    let a = noise(30, &[1, 4, 2, 3]);
    let c = [noise(31, &[1, 4, 2, 3]), noise(32, &[1, 4, 2, 3])];
    let (f, negatives) = given(&a, &c);
    let times = still();
    let to = targets(&f, &a, &times, &negatives);
    let w = alpha / (1.0 - alpha);
    let star: Vec<f64> =
        (0..a.len()).map(|i| a.at(i) + w * (a.at(i) - (c[0].at(i) + c[1].at(i)) / 2.0)).collect();
    let p = Pass::tape();
    let u = p.leaf(Tensor::new_f64(star.clone(), a.shape()).unwrap());
    let (loss, _) = meanflow::contrastive(&p, &cfg, &u, &to, alpha).unwrap();
    let least = loss.value().item().unwrap();
    let g = p.backward(&loss).unwrap();
    assert!(g.of(&u).unwrap().to_f64s().iter().all(|g| g.abs() < 1e-12));
    for seed in 40..50 {
        let v = star.iter().zip(normals(seed, star.len())).map(|(s, e)| s + e).collect();
        let u: Var = Tensor::new_f64(v, a.shape()).unwrap().into();
        let (l, _) = meanflow::contrastive(&Pass::eval(), &cfg, &u, &to, alpha).unwrap();
        assert!(l.value().item().unwrap() > least);
    }
}

#[test]
fn the_relative_clamp_bounds_the_loss_and_stops_the_push_far_away() {
    let cfg = MeanFlowConfig { adaptive_p: 0.0, ..config() };
    let (a, c) = (noise(30, &[1, 2, 2, 3]), noise(31, &[1, 2, 2, 3]));
    let far = Tensor::new_f64(a.to_f64s().iter().map(|v| v + 1e3).collect(), a.shape()).unwrap();
    let (f, negatives) = given(&a, &[c]);
    let times = still();
    let to = targets(&f, &a, &times, &negatives);
    let p = Pass::tape();
    let u = p.leaf(far.clone());
    let (loss, seen) = meanflow::contrastive(&p, &cfg, &u, &to, 0.4).unwrap();
    let g = p.backward(&loss).unwrap();
    // Only the pull is left: the gradient is 2 (u - a).
    for i in 0..a.len() {
        assert!((g.of(&u).unwrap().at(i) - 2.0 * (far.at(i) - a.at(i))).abs() < 1e-9);
    }
    assert!(loss.value().item().unwrap() > 0.9 * seen.at(0));
    let e = meanflow::contrastive(&Pass::eval(), &cfg, &a.clone().into(), &to, 0.5);
    assert!(e.err().unwrap().to_string().contains("alpha"));
}

#[test]
fn one_adaptive_weight_multiplies_pull_and_push() {
    let bare = MeanFlowConfig { adaptive_p: 0.0, clamp: Clamp::None, ..config() };
    let full = MeanFlowConfig { adaptive_p: 1.0, ..bare.clone() };
    let (a, c) = (noise(30, &[1, 2, 2, 3]), noise(31, &[1, 2, 2, 3]));
    let (f, negatives) = given(&a, &[c]);
    let times = still();
    let to = targets(&f, &a, &times, &negatives);
    let grad = |cfg: &MeanFlowConfig| {
        let p = Pass::tape();
        let u = p.leaf(noise(33, &[1, 2, 2, 3]));
        let (loss, seen) = meanflow::contrastive(&p, cfg, &u, &to, 0.1).unwrap();
        let g = p.backward(&loss).unwrap();
        (g.of(&u).unwrap().to_f64s(), seen.at(0))
    };
    let ((plain, _), (weighted, s)) = (grad(&bare), grad(&full));
    for (p, w) in plain.iter().zip(weighted) {
        assert!((p / (s + full.adaptive_c) - w).abs() < 1e-12);
    }
}

#[test]
fn counterfactual_direction_equals_the_difference_quotient_and_is_finite_at_equal_times() {
    let (f, eps, times) = example(DType::F64);
    let f_n = noise(50, &[3, 4, 4, 8]);
    for formulation in [Formulation::A, Formulation::B] {
        let cfg = MeanFlowConfig { formulation, ..config() };
        let (t, r) = match formulation {
            Formulation::A => (0.8, 0.3),
            Formulation::B => (0.2, 0.7),
        };
        let lambda = [0.5, 1.0, 1.5];
        let negatives = [(f_n.clone(), lambda.to_vec())];
        let to = Targets { dudt: Some(&f), ..targets(&f, &eps, &times, &negatives) };
        let (u, c) = aims(&cfg, &to);
        let c = c.unwrap();
        let at = |t: f64| meanflow::path(formulation, &f_n, &eps, &[t; 3]).unwrap().0;
        let (hi, lo) = (at(t), at(r));
        let n = u.len() / 3;
        for (row, lambda) in lambda.iter().enumerate() {
            let range = row * n..(row + 1) * n;
            let norm =
                |f: &dyn Fn(usize) -> f64| range.clone().map(|i| f(i).powi(2)).sum::<f64>().sqrt();
            let quotient = |i: usize| (hi.at(i) - lo.at(i)) / (t - r);
            let length = norm(&quotient);
            let wanted = lambda * norm(&|i| u.at(i));
            for i in range.clone() {
                assert!((c.at(i) - wanted * quotient(i) / length).abs() < 1e-9);
            }
        }
        // The closed form does not know the times at all, so equal times are no special case; an
        // identical tile, whose direction has no length, stays finite too.
        let same = [(eps.clone(), lambda.to_vec())];
        let (_, same) = aims(&cfg, &targets(&f, &eps, &times, &same));
        assert!(same.unwrap().to_f64s().iter().all(|v| v.is_finite()));
    }
}
