//! The oracles of MeanFlow: closed forms on Gaussian data, the convention of time and sign, the JVP
//! of Phi. What the loss pulls to and pushes from is in contrastive.rs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use genevar::autograd::{Params, Pass, Var};
use genevar::config::{FlowMode, Formulation, MeanFlowConfig, StageConfig};
use genevar::models::meanflow::{self, FlowBatch, FlowCond, Times};
use genevar::models::phi::{Phi, PhiDims, PhiInput, PhiLatent};
use genevar::nn::{Init, Linear};
use genevar::ops::activation::{Silu, Square};
use genevar::ops::elementwise::{Affine, SUB};
use genevar::ops::layout::Concat;
use genevar::ops::reduce::SumTo;
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::learner::Learner;

const M: f64 = 1.7;
const S: f64 = 0.6;

fn stream(n: u64) -> Stream {
    Stream::new(17, n, 0, Purpose::Test)
}

fn normals(n: u64, len: usize) -> Vec<f64> {
    stream(n).normals(len).into_iter().map(f64::from).collect()
}

fn noise(n: u64, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new_f64(normals(n, len), shape).unwrap()
}

/// Deviation of f^t of N(m, s^2) data under formulation A.
fn sigma(t: f64) -> f64 {
    ((1.0 - t).powi(2) * S * S + t * t).sqrt()
}

/// The exact average velocity of N(m, S^2) data under formulation A.
fn u_exact(m: f64, z: f64, t: f64, r: f64) -> f64 {
    let xi = (z - (1.0 - t) * m) / sigma(t);
    let slope = if (t - r).abs() < 1e-12 {
        (t - (1.0 - t) * S * S) / sigma(t)
    } else {
        (sigma(t) - sigma(r)) / (t - r)
    };
    -m + xi * slope
}

fn mean_std(x: &[f64]) -> (f64, f64) {
    let m = x.iter().sum::<f64>() / x.len() as f64;
    (m, (x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
}

#[test]
fn oracle_a_identity_residual_vanishes() {
    for &(z, t, r) in &[(0.3, 0.8, 0.3), (-1.0, 0.5, 0.1), (2.0, 0.99, 0.0), (1.1, 0.4, 0.39)] {
        let h = 1e-5;
        let uz = (u_exact(M, z + h, t, r) - u_exact(M, z - h, t, r)) / (2.0 * h);
        let ut = (u_exact(M, z, t + h, r) - u_exact(M, z, t - h, r)) / (2.0 * h);
        let v = u_exact(M, z, t, t);
        let residual = u_exact(M, z, t, r) + (t - r) * (v * uz + ut) - v;
        assert!(residual.abs() < 1e-6, "{residual} at {z} {t} {r}");
    }
}

#[test]
fn oracle_b_one_step_gives_the_data_distribution() {
    let samples: Vec<f64> =
        normals(1, 100_000).iter().map(|&e| e - u_exact(M, e, 1.0, 0.0)).collect();
    let (m, s) = mean_std(&samples);
    assert!((m - M).abs() < 0.01 * M && (s - S).abs() < 0.01 * S, "{m} {s}");
}

#[test]
fn oracle_c_regression_on_the_stochastic_target_gives_u() {
    let (t, r, n) = (0.8, 0.3, 400_000);
    let (e, x) = (normals(2, n), normals(3, n));
    let (mut sx, mut sy, mut sxx, mut sxy) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..n {
        let data = M + S * x[i];
        let (z, v) = ((1.0 - t) * data + t * e[i], e[i] - data);
        let h = 1e-5;
        let uz = (u_exact(M, z + h, t, r) - u_exact(M, z - h, t, r)) / (2.0 * h);
        let ut = (u_exact(M, z, t + h, r) - u_exact(M, z, t - h, r)) / (2.0 * h);
        let y = v - (t - r) * (v * uz + ut);
        sx += z;
        sy += y;
        sxx += z * z;
        sxy += z * y;
    }
    let n = n as f64;
    let slope = (sxy - sx * sy / n) / (sxx - sx * sx / n);
    let intercept = (sy - slope * sx) / n;
    let want_slope = u_exact(M, 1.0, t, r) - u_exact(M, 0.0, t, r);
    assert!((slope - want_slope).abs() < 5e-3, "{slope} {want_slope}");
    assert!((intercept - u_exact(M, 0.0, t, r)).abs() < 1e-2, "{intercept}");
}

#[test]
fn oracle_d_the_literal_pairing_of_the_summary_fails() {
    // Noise at t = 0 with the sampler eps - Phi(eps, 1, 0) applies the data-to-noise map to noise.
    let u_b = |z: f64, t: f64, r: f64| -u_exact(M, z, 1.0 - t, 1.0 - r);
    let samples: Vec<f64> = normals(4, 100_000).iter().map(|&e| e - u_b(e, 1.0, 0.0)).collect();
    let (m, s) = mean_std(&samples);
    assert!((m + M / S).abs() < 0.03 && (s - 1.0 / S).abs() < 0.03, "{m} {s}");
    assert!((m - M).abs() > 1.0, "the literal pairing must not pass the test of oracle b");
}

#[test]
fn oracle_e_formulation_b_is_the_mirror_image_of_a() {
    let sigma_b = |t: f64| (t * t * S * S + (1.0 - t).powi(2)).sqrt();
    let u_b =
        |z: f64, t: f64, r: f64| M + (z - t * M) / sigma_b(t) * (sigma_b(t) - sigma_b(r)) / (t - r);
    for &(z, t, r) in &[(0.4, 0.9, 0.2), (-1.5, 0.6, 0.0), (2.2, 1.0, 0.5)] {
        assert!((u_exact(M, z, t, r) + u_b(z, 1.0 - t, 1.0 - r)).abs() < 1e-12);
    }
    // The program's own paths: the same point of space and the opposite velocity.
    let (f, e) = (noise(5, &[3, 2, 2, 2]), noise(6, &[3, 2, 2, 2]));
    let t = [0.2, 0.7, 1.0];
    let (xa, va) = meanflow::path(Formulation::A, &f, &e, &t).unwrap();
    let mirrored: Vec<f64> = t.iter().map(|t| 1.0 - t).collect();
    let (xb, vb) = meanflow::path(Formulation::B, &f, &e, &mirrored).unwrap();
    for i in 0..xa.len() {
        assert!((xa.at(i) - xb.at(i)).abs() < 1e-14 && (va.at(i) + vb.at(i)).abs() < 1e-14);
    }
}

/// A network of z, t, r and an optional class mean, [n, 1] each.
struct Mlp([Linear; 3]);

impl Mlp {
    fn new(p: &mut Params, inputs: usize) -> Self {
        let x = Init::Xavier;
        Self([
            Linear::new(p, "a", [inputs, 64], x),
            Linear::new(p, "b", [64, 64], x),
            Linear::new(p, "c", [64, 1], x),
        ])
    }
    fn forward(&self, p: &Pass, x: &[&Var]) -> Var {
        let x = p.op(Concat { axis: 1 }, x).unwrap();
        let h = p.op(Silu, &[&self.0[0].forward(p, &x).unwrap()]).unwrap();
        let h = p.op(Silu, &[&self.0[1].forward(p, &h).unwrap()]).unwrap();
        self.0[2].forward(p, &h).unwrap()
    }
}

/// Trains on N(m, S^2) with m given as an input and reports the largest error to u on a grid.
fn train_mlp(means: &[f64], steps: u64) -> f64 {
    let mut params = Params::new(9);
    let net = Mlp::new(&mut params, 4);
    let stage = StageConfig { lr: 2e-3, ema: 0.99, clip: 1.0, ..StageConfig::default() };
    let mut learner = Learner::new(&params, &stage).unwrap();
    let n = 256;
    let column = |v: Vec<f64>| Tensor::from_f64s(DType::F32, v, [n, 1]).unwrap();
    for step in 0..steps {
        let s = |i: u64| Stream::new(3, step, i as u16, Purpose::Test);
        let (e, x, u1, u2) = (s(0).normals(n), s(1).normals(n), s(2).uniforms(n), s(3).uniforms(n));
        let m: Vec<f64> = (0..n).map(|i| means[i % means.len()]).collect();
        let (mut t, mut r, mut z, mut v) = (vec![], vec![], vec![], vec![]);
        for i in 0..n {
            let (a, b) = (f64::from(u1[i].max(u2[i])), f64::from(u1[i].min(u2[i])));
            let b = if i % 2 == 0 { a } else { b };
            let (data, eps) = (m[i] + S * f64::from(x[i]), f64::from(e[i]));
            t.push(a);
            r.push(b);
            z.push((1.0 - a) * data + a * eps);
            v.push(eps - data);
        }
        let span: Vec<f64> = t.iter().zip(&r).map(|(t, r)| t - r).collect();
        let p = Pass::dual_tape().training(&params);
        let z = p.with_tangent(column(z), column(v.clone()));
        let t = p.with_tangent(column(t), Tensor::full(DType::F32, [n, 1], 1.0));
        let u = net.forward(&p, &[&z, &t, &column(r).into(), &column(m).into()]);
        let du = u.tangent().unwrap().clone().into_tensor();
        let target = (0..n).map(|i| v[i] - span[i] * du.at(i)).collect();
        let error = p.op(SUB, &[&u.without_tangent(), &column(target).into()]).unwrap();
        let square = p.op(Square, &[&error]).unwrap();
        let sum = p.op(SumTo { to: [1].into() }, &[&square]).unwrap();
        let loss = p.op(Affine { scale: 1.0 / n as f64, shift: 0.0 }, &[&sum]).unwrap();
        let grads = p.backward(&loss).unwrap();
        let lr = stage.lr * (1.0 - step as f64 / steps as f64);
        let norm = learner.norm(&grads).unwrap();
        learner.update(&grads, &norm, lr, step).unwrap();
    }
    let mut worst = 0.0f64;
    learner
        .averaged(|| {
            for &m in means {
                for &(t, r) in &[(1.0, 0.0), (0.8, 0.3), (0.5, 0.5), (0.9, 0.9)] {
                    for xi in [-1.0, 0.0, 1.0] {
                        let z = (1.0 - t) * m + sigma(t) * xi;
                        let one =
                            |x: f64| -> Var { Tensor::new(vec![x as f32], [1, 1]).unwrap().into() };
                        let u = net.forward(&Pass::eval(), &[&one(z), &one(t), &one(r), &one(m)]);
                        worst = worst.max((u.value().item()? - u_exact(m, z, t, r)).abs());
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    worst
}

#[test]
fn oracle_f_a_small_network_learns_u() {
    let worst = train_mlp(&[M], 2000);
    assert!(worst < 0.15, "largest error {worst}");
}

#[test]
fn oracle_i_the_conditional_version_learns_u_of_each_class() {
    let worst = train_mlp(&[-1.0, M], 10_000);
    assert!(worst < 0.25, "largest error {worst}");
}

fn config() -> MeanFlowConfig {
    MeanFlowConfig {
        width: 32,
        blocks: 2,
        head_width: 16,
        time_dims: 16,
        ..MeanFlowConfig::default()
    }
}

/// A Phi whose zero-initialised parts were filled, so that every path counts.
fn phi(cfg: &MeanFlowConfig, dtype: DType) -> (Params, Phi) {
    let dims = PhiDims { side: 4, d: 8, latent: 6, patch_nums: vec![1, 2, 3, 4] };
    let mut params = Params::new(2);
    let phi = Phi::new(cfg, &dims, &mut params);
    for (i, p) in params.iter().enumerate() {
        let value = p.value();
        let extra = normals(100 + i as u64, value.len());
        let v = value.to_f64s().iter().zip(extra).map(|(v, e)| v + 0.1 * e).collect();
        p.set(Tensor::from_f64s(DType::F32, v, value.shape()).unwrap()).unwrap();
    }
    params.cast(dtype).unwrap();
    (params, phi)
}

struct Example {
    f: Tensor,
    r_k: Var,
    z: Tensor,
    eps: Tensor,
    times: Times,
}

fn example(dtype: DType) -> Example {
    Example {
        f: noise(20, &[3, 4, 4, 8]).cast(dtype),
        r_k: noise(21, &[3, 3, 3, 8]).cast(dtype).into(),
        z: noise(22, &[3, 6]).cast(dtype),
        eps: noise(23, &[3, 4, 4, 8]).cast(dtype),
        times: Times { t: vec![0.8, 0.6, 0.9], r: vec![0.3, 0.6, 0.0] },
    }
}

/// Rows that see the null instead of z.
const SOME: [bool; 3] = [false, true, false];

fn central_difference(dtype: DType, delta: f64, tolerance: f64) {
    let (_, phi) = phi(&config(), dtype);
    let x = example(dtype);
    let (f_t, v) = meanflow::path(Formulation::A, &x.f, &x.eps, &x.times.t).unwrap();
    let vec = |t: &[f64]| Tensor::from_f64s(dtype, t.to_vec(), [3]).unwrap();
    let r: Var = vec(&x.times.r).into();
    let at = |p: &Pass, f: &Var, t: &Var| {
        let input = PhiInput { f, r_k: &x.r_k, z: (&x.z).into(), null: &SOME, t, r: &r, k: 2 };
        phi.forward(p, &input).unwrap()
    };
    let p = Pass::dual();
    let fv = p.with_tangent(f_t.clone(), v.clone());
    let tv = p.with_tangent(vec(&x.times.t), vec(&[1.0; 3]));
    let exact = at(&p, &fv, &tv).tangent().unwrap().clone().into_tensor();
    let moved = |by: f64| {
        let f = f_t.to_f64s().iter().zip(v.to_f64s()).map(|(f, v)| f + by * v).collect();
        let t: Vec<f64> = x.times.t.iter().map(|t| t + by).collect();
        let f = Tensor::from_f64s(dtype, f, f_t.shape()).unwrap();
        at(&Pass::eval(), &f.into(), &vec(&t).into()).into_value().to_f64s()
    };
    let (hi, lo) = (moved(delta), moved(-delta));
    let scale = exact.to_f64s().iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (hi, lo)) in hi.iter().zip(&lo).enumerate() {
        let numeric = (hi - lo) / (2.0 * delta);
        assert!((numeric - exact.at(i)).abs() < tolerance * scale, "{numeric} {}", exact.at(i));
    }
}

#[test]
fn oracle_g_the_jvp_of_phi_matches_central_differences_in_f64() {
    central_difference(DType::F64, 1e-5, 1e-7);
}

#[test]
fn oracle_g_the_jvp_of_phi_matches_central_differences_in_f32() {
    central_difference(DType::F32, 1e-3, 2e-2);
}

#[test]
fn formulations_a_and_b_have_the_same_loss_for_mirrored_networks() {
    // Phi is zero at the start in both, so the losses of the first step are the same numbers.
    let x = example(DType::F64);
    let losses: Vec<f64> = [Formulation::A, Formulation::B]
        .into_iter()
        .map(|formulation| {
            let cfg = MeanFlowConfig { formulation, ..config() };
            let dims = PhiDims { side: 4, d: 8, latent: 6, patch_nums: vec![1, 2, 3, 4] };
            let mut params = Params::new(2);
            let phi = Phi::new(&cfg, &dims, &mut params);
            params.cast(DType::F64).unwrap();
            let mirror = |t: &f64| if formulation == Formulation::B { 1.0 - t } else { *t };
            let times = Times {
                t: x.times.t.iter().map(mirror).collect(),
                r: x.times.r.iter().map(mirror).collect(),
            };
            let negatives = [(noise(60, &[3, 4, 4, 8]), vec![1.0; 3])];
            let batch = FlowBatch {
                k: 2,
                f: &x.f,
                r_k: &x.r_k,
                z: &x.z,
                null: &SOME,
                eps: &x.eps,
                times: &times,
                negatives: &negatives,
                alpha: 0.05,
            };
            let p = Pass::dual_tape().training(&params);
            meanflow::loss(&phi, &p, &batch).unwrap().loss.value().item().unwrap()
        })
        .collect();
    assert!((losses[0] - losses[1]).abs() < 1e-12, "{losses:?}");
}

#[test]
fn every_mode_samples_and_trains() {
    for mode in [FlowMode::Causal, FlowMode::Vanilla, FlowMode::FlowMatching, FlowMode::Vit] {
        let cfg = MeanFlowConfig { mode, euler_steps: 3, rna: true, ..config() };
        let (params, phi) = phi(&cfg, DType::F32);
        let x = example(DType::F32);
        let times = Times::draw(&cfg, 1, 0, 3);
        let negatives = [(noise(60, &[3, 4, 4, 8]).cast(DType::F32), vec![1.0; 3])];
        let batch = FlowBatch {
            k: 2,
            f: &x.f,
            r_k: &x.r_k,
            z: &x.z,
            null: &SOME,
            eps: &x.eps,
            times: &times,
            negatives: &negatives,
            alpha: 0.05,
        };
        let p = Pass::dual_tape().training(&params).checked(true);
        let l = meanflow::loss(&phi, &p, &batch).unwrap();
        let grads = p.backward(&l.loss).unwrap();
        let reached = params.iter().filter(|p| grads.param(p).is_some()).count();
        assert!(reached > params.len() / 2, "{mode:?}: {reached} of {}", params.len());
        let cond = FlowCond { z: (&x.z).into(), null: &SOME, k: 2 };
        let f = meanflow::sample(&phi, &Pass::eval(), &x.eps, &x.r_k, &cond).unwrap();
        f.value().check_finite("sample").unwrap();
        assert_eq!(f.dims(), [3, 4, 4, 8]);
        let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let sampled = |z: PhiLatent<'_>, null: [bool; 3]| {
            let cond = FlowCond { z, null: &null, k: 2 };
            let f = meanflow::sample(&phi, &Pass::eval(), &x.eps, &x.r_k, &cond).unwrap();
            bits(f.value())
        };
        let [own, other] = [x.z.clone(), noise(61, &[3, 6]).cast(DType::F32)].map(|z| {
            let settled = meanflow::settle(&phi, &z).unwrap();
            [[false; 3], SOME]
                .map(|null| sampled(PhiLatent { z: &x.z, settled: Some(&settled) }, null))
        });
        assert_eq!(own, [[false; 3], SOME].map(|null| sampled((&x.z).into(), null)), "{mode:?}");
        assert_ne!(own[0], other[0], "{mode:?}: it is read");
        assert_eq!(own[1], other[1], "{mode:?}: it is not where rows are null");
    }
}

#[test]
fn times_follow_the_configuration() {
    let cfg = MeanFlowConfig { forced_ends: 0.1, ..MeanFlowConfig::default() };
    let t = Times::draw(&cfg, 5, 3, 20_000);
    let share = |f: &dyn Fn(f64, f64) -> bool| {
        t.t.iter().zip(&t.r).filter(|(t, r)| f(**t, **r)).count() as f64 / 20_000.0
    };
    assert!((share(&|t, r| t == 1.0 && r == 0.0) - 0.1).abs() < 0.01);
    assert!((share(&|t, r| t != r) - (0.1 + 0.9 * 0.25)).abs() < 0.015);
    assert!(share(&|t, r| (0.0..=t).contains(&r) && t <= 1.0) == 1.0);
    let again = Times::draw(&cfg, 5, 3, 100);
    assert_eq!(again.t[..], t.t[..100], "a row's times do not depend on the batch");
}
