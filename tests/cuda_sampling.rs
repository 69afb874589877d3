//! Tiles drawn on a GPU: softcuda's unless GENEVAR_TEST_DEVICE names another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;
#[path = "support/models.rs"]
mod models;

use genevar::autograd::Pass;
use genevar::config::{Config, SampleConfig};
use genevar::device::Device;
use genevar::models::genevar::{FeatureStats, Refiner};
use genevar::models::masked_ar::{Cond, Inputs, MaskedAr};
use genevar::models::msvq::Msvq;
use genevar::models::phi::Phi;
use genevar::ops::ada_block::AdaBlock;
use genevar::ops::gemm::{Linear, MatMul};
use genevar::ops::layout::rounded;
use genevar::ops::sample::SampleToken;
use genevar::ops::{DynOp, Op, Precision, Site, call, heard};
use genevar::sample::{Graphs, Sampler, Subject, Tile};
use genevar::tensor::{Purpose, Shape, Stream, Tensor};
use genevar::train::frozen::Frozen;
use models::noise;

const SEED: u64 = 3;

/// The device that tests run kernels on; `None` in a build without kernels.
fn cuda() -> Option<Device> {
    gpu::has_kernels().then(|| Device::Cuda(gpu::queue().unwrap()))
}

/// Four models with made-up weights, on a device.
struct System {
    config: Config,
    msvq: Frozen<Msvq>,
    phi: Frozen<Phi>,
    ar: Frozen<MaskedAr>,
    stats: FeatureStats,
    device: Device,
    /// Tokens of a scale whose blocks are one launch each.
    few: usize,
}

fn system(device: &Device) -> System {
    system_in(device, Precision::F32)
}

fn system_in(device: &Device, precision: Precision) -> System {
    let config = models::config();
    let (params, phi) = models::fresh_phi(&config);
    let phi = Frozen::new(phi, &params);
    let (params, ar) = models::fresh_ar(&config);
    models::stir(&params, 0.1);
    let ar = Frozen::new(ar, &params);
    let msvq = models::tokenizer(&config);
    msvq.place_in(device, precision).unwrap();
    phi.place_in(device, precision).unwrap();
    ar.place_in(device, precision).unwrap();
    let stats = FeatureStats::of(&noise(50, &[100, config.msvq.d])).unwrap().on(device).unwrap();
    System { config, msvq, phi, ar, stats, device: device.clone(), few: 0 }
}

fn settings() -> SampleConfig {
    SampleConfig { cfg: 1.5, top_k: 0, top_p: 1.0, ..SampleConfig::default() }
}

impl System {
    fn subject(&self, id: u64) -> Subject {
        let z = noise(70 + id, &[1, self.config.beta_vae.latent]);
        Subject { id, z, other: None }
    }

    fn refiner(&self) -> Refiner<'_> {
        Refiner {
            msvq: &self.msvq,
            phi: Some(&self.phi),
            stats: self.stats.clone(),
            mask: &self.config.mask,
            ar: &self.config.ar,
            seed: SEED,
        }
    }

    /// Tiles drawn in one call.
    fn draw(&self, ids: &[u64], settings: &SampleConfig) -> Vec<Tile> {
        let (refiner, device) = (self.refiner(), self.device.clone());
        let settings = &SampleConfig { few: self.few, ..settings.clone() };
        let graphs = Graphs::default();
        let sampler = Sampler { refiner, ar: &self.ar, settings, device, graphs };
        let subjects: Vec<Subject> = ids.iter().map(|&id| self.subject(id)).collect();
        sampler.tiles(&subjects, &|| ()).unwrap()
    }

    /// Guided logits [n, V] of 0-based scale `last` behind these tokens.
    fn logits(&self, id: u64, tokens: &[i32], last: usize) -> Vec<f64> {
        self.forced(id, tokens, last).swap_remove(last).0
    }

    /// Guided logits [n, V] and masks of the scales up to 0-based `last` behind these tokens.
    fn forced(&self, id: u64, tokens: &[i32], last: usize) -> Vec<(Vec<f64>, Vec<f64>)> {
        let p = Pass::eval();
        let Subject { z, .. } = self.subject(id);
        let twice = Tensor::new(z.f32s().unwrap().repeat(2), [2, z.len()]).unwrap();
        let cond = self.ar.condition(&p, &Cond::Vector(&twice), &[false, true]).unwrap();
        let modulation = self.ar.modulation(&p, &cond).unwrap();
        let mut caches = self.ar.caches(self.few);
        let (side, d) = (self.config.msvq.latent_side(), self.config.msvq.d);
        let mut f = Tensor::zeros(genevar::tensor::DType::F32, [1, side, side, d]);
        let (mut at, mut all) = (0, Vec::new());
        for k in 0..=last {
            let seen = (k > 0).then(|| {
                let f = self.device.put(&f).unwrap();
                self.refiner().inputs(k, &f, None, &z, &[id]).unwrap()
            });
            let two = |t: &Tensor| {
                let mut dims = t.shape().dims().to_vec();
                dims[0] = 2;
                Tensor::new(t.f32s().unwrap().repeat(2), dims).unwrap()
            };
            let two = seen.map(|s| (two(&s.features), two(&s.r), s.keep.as_ref().map(two)));
            let inputs = two.as_ref().map(|(f, r, m)| Inputs { features: f, r, keep: m.as_ref() });
            let state = (&modulation, &mut caches[..]);
            let logits = self.ar.step(&p, k, &cond, state, inputs.as_ref()).unwrap().into_value();
            let tau = settings().guidance_at(k, self.ar.scales());
            let n = logits.len() / 2;
            let mix = |i| (1.0 + tau) * logits.at(i) - tau * logits.at(n + i);
            let keep = inputs.as_ref().and_then(|i| i.keep).map(Tensor::to_f64s);
            all.push(((0..n).map(mix).collect(), keep.unwrap_or_default()));
            let n = self.config.msvq.patch_nums[k].pow(2);
            let part = Tensor::new_i32(tokens[at..at + n].to_vec(), [1, n]).unwrap();
            f = self.msvq.quantiser().add_scale(&self.device.put(&f).unwrap(), k, &part).unwrap();
            at += n;
        }
        all
    }
}

/// Why a token may differ behind equal ones: with logits that lie as near to each other as rounding
/// lets them, a draw as near to the boundary of its token as that moves it.
fn lies_at_a_boundary(here: &System, there: &System, id: u64, tokens: [&[i32]; 2], at: usize) {
    let sides = &here.config.msvq.patch_nums;
    let ends: Vec<usize> =
        sides.iter().scan(0, |end, p| Some(*end + p * p).inspect(|e| *end = *e)).collect();
    let k = ends.partition_point(|&end| end <= at);
    let place = at - if k == 0 { 0 } else { ends[k - 1] };
    let (a, b) = (here.logits(id, tokens[0], k), there.logits(id, tokens[0], k));
    let vocab = here.config.msvq.vocab;
    let row = place * vocab..(place + 1) * vocab;
    let apart = a[row.clone()].iter().zip(&b[row.clone()]).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f64::max);
    assert!(apart < 1e-3, "tile {id}, token {at}: logits {apart} apart");
    let u = f64::from(Stream::new(SEED, id, k as u16, Purpose::Token).uniform(place));
    let drawn = |u: f64| {
        let x = Tensor::from_f64s(genevar::tensor::DType::F32, a[row.clone()].to_vec(), [1, vocab]);
        let u = Tensor::new(vec![u.clamp(0.0, 0.999_999_9) as f32], [1]).unwrap();
        let op = SampleToken { top_k: 0, top_p: 1.0, guidance: None };
        call(&op, &[&x.unwrap(), &u]).unwrap().i32s().unwrap()[0]
    };
    // Weights move by a factor of at most e^(2 apart), so shares of the whole by 4 apart.
    let room = 4.0 * apart + 1e-6;
    let token = tokens[1][at];
    let fits = drawn(u - room) <= token && token <= drawn(u + room);
    assert!(fits, "tile {id}, token {at}: {} became {token}, u = {u}", tokens[0][at]);
    eprintln!("tile {id}, token {at}: {} and {token}, u = {u} at a boundary", tokens[0][at]);
}

#[test]
fn tokens_are_those_of_the_cpu() {
    tokens_are_the_cpus(0);
}

#[test]
fn tokens_are_those_of_the_cpu_where_blocks_are_one_launch() {
    tokens_are_the_cpus(36);
}

fn tokens_are_the_cpus(few: usize) {
    let Some(device) = cuda() else { return };
    let (here, there) = (system(&Device::Cpu), System { few, ..system(&device) });
    let ids = [0, 1, 2, 5];
    let mut differ = 0;
    for (a, b) in here.draw(&ids, &settings()).iter().zip(&there.draw(&ids, &settings())).zip(ids) {
        let ((a, b), id) = ((a.0, a.1), b);
        let tokens = [a.tokens.i32s().unwrap(), b.tokens.i32s().unwrap()];
        match tokens[0].iter().zip(tokens[1]).position(|(a, b)| a != b) {
            Some(at) => {
                differ += 1;
                lies_at_a_boundary(&here, &there, id, tokens, at);
            }
            None => {
                let pairs = (0..a.pixels.len()).map(|i| (a.pixels.at(i), b.pixels.at(i)));
                let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(apart < 1e-3, "tile {id}: pixels {apart} apart");
            }
        }
    }
    assert!(differ <= 1, "{differ} of {} tiles", ids.len());
    // The predicate can fail: the draw is not at the boundary of every token.
    let tokens = here.draw(&[0], &settings())[0].tokens.i32s().unwrap().to_vec();
    let mut other = tokens.clone();
    other[0] = (other[0] + 7) % here.config.msvq.vocab as i32;
    let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        lies_at_a_boundary(&here, &there, 0, [&tokens, &other], 0);
    }));
    assert!(wrong.is_err());
}

/// All bits of a tile.
fn bits(t: &Tile) -> (Vec<i32>, Vec<u32>, Vec<u32>) {
    let of = |t: &Tensor| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect();
    (t.tokens.i32s().unwrap().to_vec(), of(&t.latent), of(&t.pixels))
}

#[test]
fn a_tile_has_the_same_bits_alone_and_in_a_batch_of_seven() {
    same_bits_alone_and_in_seven(0);
}

#[test]
fn bits_are_the_same_in_any_batch_where_blocks_are_one_launch() {
    same_bits_alone_and_in_seven(36);
}

fn same_bits_alone_and_in_seven(few: usize) {
    let Some(device) = cuda() else { return };
    let s = System { few, ..system(&device) };
    let settings = SampleConfig { cfg: 1.5, ..SampleConfig::default() };
    let Device::Cuda(queue) = &device else { panic!("not a GPU") };
    let before = queue.fetches();
    let (batch, ran) = heard(|| s.draw(&[0, 1, 2, 3, 4, 5, 6], &settings));
    // Tokens of three scales, latents and pixels, when all is done.
    assert_eq!(queue.fetches() - before, 5);
    // From now on: names, conditions and z go up, nothing else; none of it within the scales.
    let (before, fetched) = (queue.uploads(), queue.fetches());
    s.draw(&[7, 8, 9, 10, 11, 12, 13], &settings);
    assert_eq!((queue.uploads() - before, queue.fetches() - fetched), (3, 5));
    let fallen: Vec<_> = ran.iter().filter(|r| r.on_cpu).map(|r| r.op).collect();
    assert!(fallen.is_empty() && ran.len() > 100, "on the CPU: {fallen:?}");
    assert_eq!(ran.iter().any(|r| r.op == AdaBlock::NAME), few > 0);
    for id in [3, 6] {
        assert!(bits(&s.draw(&[id], &settings)[0]) == bits(&batch[id as usize]), "tile {id}");
    }
    assert_ne!(bits(&batch[0]).0, bits(&batch[1]).0);
}

/// The sums of a sample's product do not depend on how many samples there are, whichever kernel
/// takes it.
#[test]
fn a_samples_products_have_the_same_bits_in_any_batch() {
    let Some(device) = cuda() else { return };
    let mut ways = std::collections::BTreeSet::new();
    let mut compare = |op: &dyn DynOp, [n, k]: [usize; 2], w: [usize; 2], batch: usize| {
        let x = noise(1, &[batch, n, k]);
        let w = device.put(&noise(2, &w)).unwrap();
        let all = call(op, &[&x, &w]).unwrap().reshape([batch, n, w_out(op, &w)]).unwrap();
        let last = x.rows(batch - 1, 1).unwrap();
        let one = call(op, &[&last, &w]).unwrap();
        let shapes = [x.shape(), w.shape()];
        ways.insert(op.fastest(Site::any(Precision::F32), &shapes).unwrap());
        let alone = one.f32s().unwrap();
        let beside = all.f32s().unwrap();
        let same = alone.iter().zip(&beside[beside.len() - alone.len()..]);
        let same = same.filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, alone.len(), "{} of {batch} x [{n}, {k}]", op.name());
    };
    for n in [1, 4, 9, 16, 25, 70] {
        for (k, outs) in [(36, 108), (130, 24), (600, 40), (64, 6)] {
            compare(&Linear, [n, k], [outs, k], 7);
            compare(&MatMul::of(false, false), [n, k], [k, outs], 7);
        }
    }
    compare(&Linear, [680, 24], [512, 24], 8);
    // Alone its parts have blocks of their own; beside many others each tile takes them all.
    let (site, w) = (Site::any(Precision::F32), Shape::from([40, 600]));
    let way = |n: usize| Linear.fastest(site, &[&[n, 70, 600].into(), &w]).unwrap();
    assert_eq!([way(1), way(200)], ["parts of k", "tiles 64"]);
    compare(&Linear, [70, 600], [40, 600], 200);
    assert!(ways.into_iter().eq(["few rows", "parts of k", "tiles 128", "tiles 64"]));
}

/// The same in bf16, where Hopper's tiles of 128 rows take parts of k in turn or have a block each.
#[test]
fn a_samples_products_have_the_same_bits_in_any_batch_on_hopper() {
    let Some(device @ Device::Cuda(queue)) = &cuda() else { return };
    let put = |t: &Tensor| rounded(&device.put(t).unwrap()).unwrap();
    let (x, w) = (noise(1, &[40, 130, 2048]), put(&noise(2, &[64, 2048])));
    let product = |x: &Tensor| {
        let (y, launches) = queue.trace(|| call(&Linear, &[&put(x), &w]).unwrap());
        (y.to_f64s(), launches.iter().map(|l| l.entry.name).collect::<Vec<_>>())
    };
    let ((all, once), (alone, parts)) = (product(&x), product(&x.rows(39, 1).unwrap()));
    assert!(alone[..] == all[all.len() - alone.len()..], "other bits in a batch");
    assert_eq!(once[1..], ["matmul_wgmma_fwd"]);
    assert_eq!(parts[1..], ["matmul_wgmma_fwd", "matmul_join_fwd"]);
}

/// Columns of a product with w.
fn w_out(op: &dyn DynOp, w: &Tensor) -> usize {
    w.shape().dims()[usize::from(op.name() == "matmul")]
}

/// Draws from all tokens.
fn untruncated() -> SampleConfig {
    SampleConfig { top_k: 30, ..settings() }
}

/// Where [`SampleToken`] draws from, without top-k and top-p: sums of the shares of tokens 0 to i.
fn cumulative(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    let mut sum = 0.0;
    let share = |x: &f64| {
        sum += (x - top).exp() / total;
        sum
    };
    logits.iter().map(share).collect()
}

/// How likely one u draws different tokens from two distributions: 1 less what the two intervals of
/// each token share.
fn chance_to_differ(a: &[f64], b: &[f64]) -> f64 {
    let ends = |f: &[f64], i: usize| (if i == 0 { 0.0 } else { f[i - 1] }, f[i]);
    let shared = |i: usize| {
        let ((a0, a1), (b0, b1)) = (ends(a, i), ends(b, i));
        (a1.min(b1) - a0.max(b0)).max(0.0)
    };
    1.0 - (0..a.len()).map(shared).sum::<f64>()
}

/// What bf16 changes of the draws of some tiles.
#[derive(Default)]
struct Agreement {
    tokens: usize,
    forced: usize,
    free: usize,
    /// Tokens that were drawn before anything differed.
    before: usize,
    /// Expected number of tokens that differ behind equal ones, and its variance.
    expected: f64,
    variance: f64,
    /// Positions whose mask differs.
    flipped: usize,
    /// Sums of squares, of tiles whose masks agree so far: of the logits about their mean, and of
    /// how far they moved.
    spread: f64,
    moved: f64,
}

impl Agreement {
    fn look_at(&mut self, [wide, half]: [&System; 2], id: u64) {
        let draw = |s: &System| s.draw(&[id], &untruncated())[0].tokens.i32s().unwrap().to_vec();
        let (a, b) = (draw(wide), draw(half));
        let last = wide.ar.scales() - 1;
        let logits = [wide.forced(id, &a, last), half.forced(id, &a, last)];
        let vocab = wide.config.msvq.vocab;
        let (mut at, mut same, mut masks_agree) = (0, true, true);
        for (k, ((x, keep), (y, kept))) in logits[0].iter().zip(&logits[1]).enumerate() {
            // Both streams have the mask.
            let flipped = keep.iter().zip(kept).filter(|(a, b)| a != b).count() / 2;
            self.flipped += flipped;
            masks_agree &= flipped == 0;
            let (start, undisturbed) = (at, same);
            let stream = Stream::new(SEED, id, k as u16, Purpose::Token);
            for (place, (x, y)) in x.chunks(vocab).zip(y.chunks(vocab)).enumerate() {
                if masks_agree {
                    let mean = x.iter().sum::<f64>() / vocab as f64;
                    self.spread += x.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                    self.moved += x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
                }
                let (x, y) = (cumulative(x), cumulative(y));
                let p = chance_to_differ(&x, &y);
                self.expected += p;
                self.variance += p * (1.0 - p);
                let u = f64::from(stream.uniform(place));
                let token = y.partition_point(|&end| end <= u).min(vocab - 1) as i32;
                // Until a scale differs, bf16 left to itself has the same tokens behind it.
                assert!(!undisturbed || near(&y, u) || b[at] == token, "tile {id}, token {at}");
                same &= token == a[at] && b[at] == a[at];
                self.forced += usize::from(token == a[at]);
                self.free += usize::from(b[at] == a[at]);
                at += 1;
            }
            self.before += if same { at - start } else { 0 };
        }
        self.tokens += at;
    }
}

/// Whether u is so near to the boundary of a token that rounding to binary32 decides.
fn near(ends: &[f64], u: f64) -> bool {
    ends.iter().any(|end| (end - u).abs() < 1e-5)
}

/// Tokens in bf16 against those in f32, on one device: behind equal tokens, and left to itself.
///
/// The bound on the logits: each of R roundings to bf16 on the way moves its value by at most 2^-9
/// of itself; independent, and with gains near 1 between norms, that adds up to sqrt(R) 2^-9 of a
/// logit. R is under 16 for each of the blocks (Phi's, the transformer's) and the layers round
/// them, and guidance mixes two streams by 1 + tau and tau. That holds while the masks agree: a
/// saliency at its threshold is a coin that rounding turns. The bound on the tokens follows from
/// the logits that were found: each token has its chance to differ for a uniform u, and their sum
/// stays within 4 deviations.
#[test]
fn in_bf16_tokens_are_those_of_f32_but_near_a_boundary() {
    let Some(device) = cuda() else { return };
    let (wide, half) = (system(&device), system_in(&device, Precision::Bf16));
    let mut seen = Agreement::default();
    (0..6).for_each(|id| seen.look_at([&wide, &half], id));
    let Agreement { tokens, forced, free, before, expected, variance, flipped, .. } = seen;
    let moved = (seen.moved / seen.spread).sqrt();
    eprintln!(
        "bf16: {forced} of {tokens} tokens behind equal ones, {free} left to itself ({before} \
         before any differed); expected to differ {expected:.2}; {flipped} masks differ; logits \
         moved by {moved:.5} of their spread"
    );
    let roundings = 16.0 * (wide.config.ar.depth + wide.config.meanflow.blocks + 1) as f64;
    let tau = settings().guidance_at(wide.ar.scales() - 1, wide.ar.scales());
    let mixed = (1.0 + tau).hypot(tau);
    let most = roundings.sqrt() * 2f64.powi(-9) * mixed;
    assert!(moved > 1e-4, "nothing was rounded");
    assert!(moved < most, "logits moved by {moved} of their spread, {most} allowed");
    let differ = (tokens - forced) as f64;
    assert!(differ <= expected + 4.0 * variance.sqrt(), "{differ} differ, {expected} expected");
    assert!(expected < 0.1 * tokens as f64, "{expected} of {tokens} expected to differ");
    assert!(free >= before && flipped < tokens / 20);
}

#[test]
fn a_tile_in_bf16_has_the_same_bits_alone_and_in_a_batch() {
    let Some(device) = cuda() else { return };
    let s = system_in(&device, Precision::Bf16);
    let (batch, ran) = heard(|| s.draw(&[0, 1, 2, 3, 4, 5, 6], &settings()));
    let fallen: Vec<_> = ran.iter().filter(|r| r.on_cpu).map(|r| r.op).collect();
    assert!(fallen.is_empty() && ran.len() > 100, "on the CPU: {fallen:?}");
    assert!(bits(&s.draw(&[6], &settings())[0]) == bits(&batch[6]));
    let wide = system(&device).draw(&[6], &settings());
    assert!(bits(&wide[0]).2 != bits(&batch[6]).2, "bf16 changes the pixels");
}

#[test]
fn keys_and_values_are_written_where_they_belong() {
    let Some(device) = cuda() else { return };
    let draw = |device: &Device| {
        let s = system(device);
        let Device::Cuda(queue) = device else { panic!("not a GPU") };
        let (tiles, launches) = queue.trace(|| s.draw(&[0, 1], &settings()));
        let copies = launches.iter().filter(|l| l.entry.name == "concat_fwd").count();
        (tiles.iter().map(bits).collect::<Vec<_>>(), copies)
    };
    let (in_place, copies) = draw(&device);
    // Where somebody looks at results between kernels, they are appended by a copy.
    let looked_at = gpu::gpu().unwrap().queue().unwrap().checked(true);
    let (appended, more) = draw(&Device::Cuda(looked_at));
    assert!(in_place == appended, "the cache changes bits");
    // Keys and values, in each block, at each scale but the first.
    let c = models::config();
    assert_eq!(more - copies, 2 * c.ar.depth * (c.msvq.patch_nums.len() - 1));
}

#[test]
fn a_graph_draws_the_tiles_of_its_eager_twin() {
    let Some(device) = cuda() else { return };
    let Device::Cuda(queue) = &device else { panic!("not a GPU") };
    use Precision::{Bf16, F32};
    // Blocks in one launch, whose blocks wait for each other, are recorded too.
    for (precision, few) in [(F32, 0), (Bf16, 0), (F32, 36), (Bf16, 36)] {
        let s = system_in(&device, precision);
        let subjects = |first: u64| (first..first + 3).map(|i| s.subject(i)).collect::<Vec<_>>();
        let (refiner, settings) = (s.refiner(), SampleConfig { few, ..settings() });
        let (device, graphs) = (device.clone(), Graphs::default());
        let mut sampler = Sampler { refiner, ar: &s.ar, settings: &settings, device, graphs };
        let draw = |s: &Sampler<'_>, first: u64| -> Vec<_> {
            s.batch(&subjects(first)).unwrap().iter().map(bits).collect()
        };
        // Constants are placed, then memory is learnt, then the batch is recorded.
        (0..2).for_each(|i| drop(draw(&sampler, 20 * i)));
        assert_eq!(sampler.graphs.cost(3), None);
        let first = draw(&sampler, 40);
        let cost = sampler.graphs.cost(3).unwrap();
        eprintln!("{precision:?}, few {few}: {cost:?}, {} scales", s.ar.scales());
        let counts = || [queue.launches(), queue.allocations(), queue.uploads(), queue.fetches()];
        // Another seed, other tiles and conditions: the same graph.
        sampler.refiner.seed = SEED + 1;
        let before = counts();
        let second = draw(&sampler, 60);
        let after = counts();
        let spent: Vec<usize> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(spent, [0, 0, 3, s.ar.scales() + 2]);
        sampler.refiner.seed = SEED;
        assert!(draw(&sampler, 40) == first, "a replay differs from the one before");
        // A clone has recorded nothing yet.
        let mut twin = sampler.clone();
        assert!(draw(&twin, 40) == first, "the graph's tiles are not the eager ones");
        twin.refiner.seed = SEED + 1;
        assert!(draw(&twin, 60) == second, "the graph does not follow seed and conditions");
        assert!(first != second);
    }
}
