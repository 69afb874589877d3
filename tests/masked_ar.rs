//! The transformer, the mask and the sampler: cached decoding equals teacher forcing, guidance of
//! zero is no guidance, masks keep what they should, and a tile depends on its own name only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use genevar::autograd::{Params, Pass};
use genevar::config::{ArConfig, Config, Gamma, MaskConfig, MaskKind, MaskTarget, MeanFlowConfig};
use genevar::config::{Guidance, Normalise, SampleConfig};
use genevar::device::Device;
use genevar::models::genevar::{FeatureStats, Refiner};
use genevar::models::mask::{MaskInput, gradient, refine, threshold};
use genevar::models::masked_ar::{Cond, Dims, Inputs, MaskedAr};
use genevar::models::meanflow::{FlowCond, sample};
use genevar::models::msvq::Msvq;
use genevar::models::phi::{Phi, PhiDims};
use genevar::ops::random::names;
use genevar::sample::{Graphs, Sampler, Subject};
use genevar::tensor::{DType, Purpose, Stream, Tensor};

const SCALES: [usize; 4] = [1, 2, 3, 4];

fn noise(n: u64, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(Stream::new(29, n, 0, Purpose::Test).normals(len), shape).unwrap()
}

/// Adds noise to all parameters, so that nothing is zero by initialisation.
fn stir(params: &Params, by: f64) {
    for (i, p) in params.iter().enumerate() {
        let v = p.value();
        let e = noise(1000 + i as u64, v.shape().dims());
        let moved = (0..v.len()).map(|i| v.at(i) + by * e.at(i)).collect();
        p.set(Tensor::from_f64s(v.dtype(), moved, v.shape()).unwrap()).unwrap();
    }
}

fn ar_config() -> ArConfig {
    ArConfig { depth: 3, width: 32, heads: 2, add_rk: true, ..ArConfig::default() }
}

fn dims() -> Dims {
    Dims { latent: 6, genes: 9, d: 8, vocab: 40, patch_nums: SCALES.to_vec() }
}

fn ar() -> (Params, MaskedAr) {
    let mut params = Params::new(4);
    let model = MaskedAr::new(&ar_config(), &dims(), &mut params).unwrap();
    stir(&params, 0.1);
    (params, model)
}

#[test]
fn cached_stepwise_logits_equal_block_causal_training_logits() {
    let (_, model) = ar();
    let z = noise(1, &[2, 6]);
    let (features, r) = (noise(2, &[2, 29, 8]), noise(3, &[2, 29, 8]));
    let keep: Vec<f32> = (0..58).map(|i| f32::from(u8::from(i % 3 != 0))).collect();
    let keep = Tensor::new(keep, [2, 29, 1]).unwrap();
    let p = Pass::eval();
    let cond = model.condition(&p, &Cond::Vector(&z), &[false, true]).unwrap();
    let all = Inputs { features: &features, r: &r, keep: Some(&keep) };
    let full = model.forward(&p, &cond, &all, None).unwrap().into_value();
    let modulation = model.modulation(&p, &cond).unwrap();
    let mut caches = model.caches(0);
    let mut at = 0;
    for (k, side) in SCALES.iter().enumerate() {
        let n = side * side;
        let cut = |t: &Tensor| {
            let c = t.shape().last();
            let rows = (0..2).flat_map(|b| {
                let from = (b * 29 + at - 1) * c;
                t.f32s().unwrap()[from..from + n * c].to_vec()
            });
            Tensor::new(rows.collect(), [2, n, c]).unwrap()
        };
        let parts = (k > 0).then(|| (cut(&features), cut(&r), cut(&keep)));
        let inputs = parts.as_ref().map(|(f, r, m)| Inputs { features: f, r, keep: Some(m) });
        let state = (&modulation, &mut caches[..]);
        let step = model.step(&p, k, &cond, state, inputs.as_ref()).unwrap().into_value();
        for b in 0..2 {
            for i in 0..n * 40 {
                let (x, y) = (step.at(b * n * 40 + i), full.at((b * 30 + at) * 40 + i));
                assert!((x - y).abs() < 1e-4 * (1.0 + y.abs()), "scale {k}: {x} {y}");
            }
        }
        at += n;
    }
}

#[test]
fn a_later_scale_cannot_be_seen_by_an_earlier_one() {
    let (_, model) = ar();
    let z = noise(1, &[1, 6]);
    let (features, r) = (noise(2, &[1, 29, 8]), noise(3, &[1, 29, 8]));
    let p = Pass::eval();
    let cond = model.condition(&p, &Cond::Vector(&z), &[false]).unwrap();
    let logits = |f: &Tensor| {
        let inputs = Inputs { features: f, r: &r, keep: None };
        model.forward(&p, &cond, &inputs, None).unwrap().into_value()
    };
    // The last scale's inputs begin at token 14, input 13.
    let mut changed = features.f32s().unwrap().to_vec();
    changed[13 * 8..].iter_mut().for_each(|v| *v += 1.0);
    let (a, b) = (logits(&features), logits(&Tensor::new(changed, [1, 29, 8]).unwrap()));
    assert_eq!(a.f32s().unwrap()[..14 * 40], b.f32s().unwrap()[..14 * 40]);
    assert_ne!(a.f32s().unwrap()[14 * 40..], b.f32s().unwrap()[14 * 40..]);
}

#[test]
fn parameter_counts_are_those_of_var_with_z() {
    let sizes = [(8, 40.9), (12, 132.6), (16, 309.5), (20, 599.9), (24, 1032.0), (30, 2008.0)];
    let dims = Dims {
        latent: 200,
        genes: 17_655,
        d: 32,
        vocab: 4096,
        patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    };
    for (depth, millions) in sizes {
        let cfg = ArConfig { depth, width: 64 * depth, heads: depth, ..ArConfig::default() };
        let mut params = Params::dry();
        MaskedAr::new(&cfg, &dims, &mut params).unwrap();
        let n = params.elements() as f64 / 1e6;
        let digit = if millions < 1000.0 { 0.06 } else { 0.6 };
        assert!((n - millions).abs() < digit, "d{depth}: {n} M, wanted {millions} M");
    }
}

#[test]
fn phi_has_the_published_sizes() {
    let dims =
        PhiDims { side: 16, d: 32, latent: 200, patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    for (width, blocks, millions) in [(384, 6, 23.3), (512, 8, 54.3), (768, 12, 180.6)] {
        let cfg = MeanFlowConfig { width, blocks, ..MeanFlowConfig::default() };
        let mut params = Params::dry();
        Phi::new(&cfg, &dims, &mut params);
        let n = params.elements() as f64 / 1e6;
        assert!((n - millions).abs() < 0.01 * millions, "{width} x {blocks}: {n} M");
    }
}

fn phi_config() -> MeanFlowConfig {
    MeanFlowConfig { width: 32, blocks: 2, head_width: 16, time_dims: 16, ..Default::default() }
}

fn phi(dtype: DType) -> (Params, Phi) {
    let dims = PhiDims { side: 4, d: 8, latent: 6, patch_nums: SCALES.to_vec() };
    let mut params = Params::new(6);
    let phi = Phi::new(&phi_config(), &dims, &mut params);
    stir(&params, 0.1);
    params.cast(dtype).unwrap();
    (params, phi)
}

#[test]
fn the_gradient_map_matches_finite_differences_on_r_k() {
    let (_, phi) = phi(DType::F64);
    let (r_k, z) = (noise(1, &[1, 3, 3, 8]).cast(DType::F64), noise(2, &[1, 6]).cast(DType::F64));
    let target = noise(3, &[1, 4, 4, 8]).cast(DType::F64);
    let x = MaskInput { r_k: &r_k, z: (&z).into(), k: 2, names: &names(1, &[5]).unwrap() };
    let cfg = MaskConfig { k_m: 1, ..MaskConfig::default() };
    let (f_hat, g) = gradient(&phi, &cfg, &x, &|_| Ok(target.clone())).unwrap();
    let norms = threshold(&cfg, &x, &g).unwrap().1;
    let eps = genevar::models::mask::noise(&phi, &x, 0).unwrap();
    let error = |r: &Tensor| {
        let cond = FlowCond { z: (&z).into(), null: &[false], k: 2 };
        let f = sample(&phi, &Pass::eval(), &eps, &r.clone().into(), &cond).unwrap();
        let d = f.value().to_f64s();
        let sum: f64 = d.iter().zip(target.to_f64s()).map(|(a, b)| (a - b).powi(2)).sum();
        sum / d.len() as f64
    };
    for position in 0..9 {
        let mut square = 0.0;
        for c in 0..8 {
            let moved = |by: f64| {
                let mut v = r_k.to_f64s();
                v[position * 8 + c] += by;
                error(&Tensor::new_f64(v, r_k.shape()).unwrap())
            };
            square += ((moved(1e-6) - moved(-1e-6)) / 2e-6).powi(2);
        }
        let (want, got) = (square.sqrt(), norms.at(position));
        assert!((want - got).abs() < 1e-6 * (1.0 + want), "{want} {got}");
    }
    let cond = FlowCond { z: (&z).into(), null: &[false], k: 2 };
    let again = sample(&phi, &Pass::eval(), &eps, &r_k.clone().into(), &cond).unwrap();
    assert_eq!(f_hat.to_f64s(), again.value().to_f64s());
}

/// Keep rate of a saliency map of many positions.
fn keep_rate(cfg: &MaskConfig, g: impl Fn(usize) -> f64) -> f64 {
    let n = 40_000;
    let r_k = Tensor::zeros(DType::F32, [1, 200, 200, 1]);
    let z = Tensor::zeros(DType::F32, [1, 6]);
    let x = MaskInput { r_k: &r_k, z: (&z).into(), k: 3, names: &names(2, &[9]).unwrap() };
    let saliency = Tensor::from_f64s(DType::F32, (0..n).map(g).collect(), [1, n, 1, 1]).unwrap();
    threshold(cfg, &x, &saliency).unwrap().0.to_f64s().iter().sum::<f64>() / n as f64
}

#[test]
fn keep_rates_are_those_of_the_rule() {
    let values = noise(7, &[40_000]);
    let g = |i: usize| values.at(i).abs() * 1e-3;
    let at = |normalise, gamma| MaskConfig { normalise, gamma, ..MaskConfig::default() };
    let z = keep_rate(&at(Normalise::ZScore, Gamma::Sampled), g);
    assert!((0.42..0.53).contains(&z), "z-score {z}");
    let raw = keep_rate(&at(Normalise::Raw, Gamma::Sampled), g);
    assert!((raw - 0.5).abs() < 0.01, "tiny raw gradients make a fair coin: {raw}");
    let rms = keep_rate(&at(Normalise::Rms, Gamma::Sampled), g);
    assert!((0.6..0.9).contains(&rms), "rms {rms}");
    let flat = keep_rate(&at(Normalise::ZScore, Gamma::Sampled), |_| 0.3);
    assert!((flat - 0.5).abs() < 0.01, "equal gradients make a fair coin: {flat}");
    let sharp = keep_rate(&at(Normalise::ZScore, Gamma::Zero), g);
    assert!((0.38..0.45).contains(&sharp), "above the mean of a half normal: {sharp}");
}

#[test]
fn every_mask_kind_and_target_gives_ones_and_zeros() {
    let (_, phi) = phi(DType::F32);
    let (r_k, z) = (noise(1, &[2, 3, 3, 8]), noise(2, &[2, 6]));
    let f = noise(3, &[2, 4, 4, 8]);
    let x = MaskInput { r_k: &r_k, z: (&z).into(), k: 2, names: &names(1, &[5, 6]).unwrap() };
    for kind in [MaskKind::Gradient, MaskKind::None, MaskKind::Random, MaskKind::EDistance] {
        for target in [MaskTarget::Prev, MaskTarget::True, MaskTarget::Selfq, MaskTarget::Sens] {
            let cfg = MaskConfig { kind, target, k_m: 3, draws: 2, ..MaskConfig::default() };
            let out = refine(&phi, &cfg, &x, &|_| Ok(f.clone())).unwrap();
            match out.keep {
                None => assert_eq!(kind, MaskKind::None),
                Some(keep) => {
                    assert_eq!(keep.shape().dims(), [2, 9, 1]);
                    assert!(keep.to_f64s().iter().all(|&m| m == 0.0 || m == 1.0));
                }
            }
            let late = MaskConfig { k_m: 4, ..cfg };
            assert!(refine(&phi, &late, &x, &|_| Ok(f.clone())).unwrap().keep.is_none());
        }
    }
}

struct System {
    config: Config,
    msvq: Msvq,
    phi: Phi,
    ar: MaskedAr,
    stats: FeatureStats,
}

fn system() -> System {
    let mut config = Config::tier("t0").unwrap();
    config.msvq.ch = 8;
    config.msvq.vocab = 40;
    config.msvq.d = 8;
    config.msvq.patch_nums = SCALES.to_vec();
    config.meanflow = phi_config();
    config.mask.k_m = 3;
    let mut params = Params::new(1);
    let msvq = Msvq::new(&config.msvq, &mut params);
    stir(&params, 0.02);
    let (_, phi) = phi(DType::F32);
    let (_, ar) = ar();
    let stats = FeatureStats::of(&noise(50, &[100, 8])).unwrap();
    System { config, msvq, phi, ar, stats }
}

impl System {
    fn draw(&self, settings: &SampleConfig, ids: &[u64]) -> Vec<(Vec<i32>, Vec<u32>)> {
        let ar_cfg = ar_config();
        let refiner = Refiner {
            msvq: &self.msvq,
            phi: Some(&self.phi),
            stats: self.stats.clone(),
            mask: &self.config.mask,
            ar: &ar_cfg,
            seed: 3,
        };
        let device = Device::Cpu;
        let graphs = Graphs::default();
        let sampler = Sampler { refiner, ar: &self.ar, settings, device, graphs };
        let subject = |&id: &u64| Subject { id, z: noise(70 + id, &[1, 6]), other: None };
        let subjects: Vec<Subject> = ids.iter().map(subject).collect();
        let tiles = sampler.tiles(&subjects, &|| ()).unwrap();
        let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect();
        tiles.iter().map(|t| (t.tokens.i32s().unwrap().to_vec(), bits(&t.pixels))).collect()
    }
}

#[test]
fn a_tile_does_not_depend_on_the_batch_or_the_threads() {
    let s = system();
    let settings = SampleConfig { cfg: 1.5, ..SampleConfig::default() };
    let batch = s.draw(&settings, &[0, 1, 2, 3, 4]);
    let alone = s.draw(&settings, &[3]);
    assert_eq!(batch[3], alone[0]);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one.install(|| s.draw(&settings, &[0, 1, 2, 3, 4])), batch);
    assert_ne!(batch[0].0, batch[1].0);
}

#[test]
fn guidance_grows_over_the_scales_or_is_the_same_at_all() {
    let ramp = SampleConfig { cfg: 1.5, ..SampleConfig::default() };
    let flat = SampleConfig { guidance: Guidance::Flat, ..ramp.clone() };
    let at = |s: &SampleConfig| [0, 1, 3].map(|k| s.guidance_at(k, 4));
    assert_eq!((at(&ramp), at(&flat)), ([0.0, 0.5, 1.5], [1.5; 3]));
    assert_eq!(ramp.guidance_at(0, 1), 0.0);
    // Only flat guidance can move the first token.
    let s = system();
    let tokens = |c: &SampleConfig| s.draw(c, &[0, 1, 2, 3, 4, 5]);
    let strong = |s: &SampleConfig| tokens(&SampleConfig { cfg: 1e6, ..s.clone() });
    let none = tokens(&SampleConfig { cfg: 0.0, ..ramp.clone() });
    let first = |t: &[(Vec<i32>, Vec<u32>)]| t.iter().map(|t| t.0[0]).collect::<Vec<_>>();
    assert_eq!(first(&strong(&ramp)), first(&none));
    assert_ne!(first(&strong(&flat)), first(&none));
}

#[test]
fn guidance_of_zero_is_the_conditional_stream_alone() {
    let s = system();
    let with = |cfg| SampleConfig { cfg, ..SampleConfig::default() };
    let none = s.draw(&with(0.0), &[2]);
    // So small a guidance that no draw moves, yet the null stream runs.
    let tiny = s.draw(&with(1e-9), &[2]);
    assert_eq!(none[0].0, tiny[0].0);
}
