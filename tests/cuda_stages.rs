//! The stages after the gene prior, trained on a GPU: softcuda's unless GENEVAR_TEST_DEVICE names
//! another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;
#[path = "support/models.rs"]
mod models;
#[path = "support/stages.rs"]
mod stages;

use std::collections::BTreeMap;
use std::ops::Range;

use genevar::autograd::{Pass, Var};
use genevar::device::Device;
use genevar::ops::{Precision, heard};
use genevar::tensor::Tensor;
use genevar::train::Stage;
use genevar::train::memory::rehearse;
use stages::{Data, Made};

/// Steps of a run.
const STEPS: u64 = 20;
/// Steps of one that is stopped, and after how many.
const RESUMED: u64 = 7;
const STOP: u64 = 3;
/// Steps of one whose every op is held against its reference.
const VERIFIED: u64 = 3;
/// Steps of one that never waits; the tokenizer moves codes in one of them.
const UNWAITED: u64 = 6;
/// Steps on one batch.
const BY_HEART: u64 = 40;

/// The device that tests run kernels on; `None` in a build without kernels.
fn cuda() -> Option<Device> {
    gpu::has_kernels().then(|| Device::Cuda(gpu::queue().unwrap()))
}

fn on(make: Made, device: &Device) -> Box<dyn Stage> {
    let mut stage = make(Data::Many);
    stage.place(device).unwrap();
    stage
}

/// Steps of a stage: the losses.
fn train(stage: &mut dyn Stage, range: Range<u64>) -> Vec<f64> {
    range.map(|step| stage.step(step).unwrap().read().unwrap().loss).collect()
}

fn bits(state: &BTreeMap<String, Tensor>) -> BTreeMap<&str, Vec<u32>> {
    let one = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
    state.iter().map(|(name, t)| (name.as_str(), one(t))).collect()
}

/// Forwards, backwards and in the optimiser, each op of a run lies within its rounding of the
/// reference on the very values of training, and none runs on the CPU.
fn is_computed_there(make: Made) {
    let Some(device) = cuda() else { return };
    let queue = gpu::gpu().unwrap().queue().unwrap().verified(true);
    let (seen, ran) = heard(|| train(&mut *on(make, &Device::Cuda(queue)), 0..VERIFIED));
    assert_eq!(seen, train(&mut *on(make, &device), 0..VERIFIED));
    let fallen: Vec<_> = ran.iter().filter(|r| r.on_cpu).map(|r| r.op).collect();
    assert!(ran.len() > 100, "{} ops", ran.len());
    assert!(fallen.is_empty(), "on the CPU: {fallen:?}");
}

fn repeats_and_resumes(make: Made) {
    let Some(device) = cuda() else { return };
    let mut whole = on(make, &device);
    let losses = train(&mut *whole, 0..RESUMED);
    let mut first = on(make, &device);
    assert_eq!(train(&mut *first, 0..STOP), losses[..STOP as usize]);
    let state = first.state().unwrap();
    // Through a file a state comes back in the CPU's memory.
    let read = state.iter().map(|(name, t)| (name.clone(), t.here().unwrap())).collect();
    let mut rest = on(make, &device);
    rest.restore(read).unwrap();
    assert_eq!(train(&mut *rest, STOP..RESUMED), losses[STOP as usize..]);
    assert!(bits(&whole.state().unwrap()) == bits(&rest.state().unwrap()));
}

/// The GPU's losses stay as near to the CPU's as a run on the CPU does whose weights were moved by
/// one unit in the last place at the start.
fn follows_the_cpu(make: Made) {
    let Some(device) = cuda() else { return };
    let here = train(&mut *make(Data::Many), 0..STEPS);
    let there = train(&mut *on(make, &device), 0..STEPS);
    let mut moved = make(Data::Many);
    let nudge = |(name, t): (String, Tensor)| {
        let up = |x: &f32| f32::from_bits(x.to_bits() + u32::from(*x != 0.0));
        let weight = name.starts_with("param.");
        let next = || t.f32s().unwrap().iter().map(up).collect();
        (name, if weight { Tensor::new(next(), t.shape()).unwrap() } else { t })
    };
    let state = moved.state().unwrap().into_iter().map(nudge).collect();
    moved.restore(state).unwrap();
    let moved = train(&mut *moved, 0..STEPS);
    let apart = |other: &[f64]| {
        here.iter().zip(other).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max)
    };
    // Rounding happens at every op of every step, the nudge once.
    let (rounding, nudged) = (apart(&there), apart(&moved));
    assert!(rounding > 0.0 && rounding <= 16.0 * nudged.max(1e-7), "{rounding:e}, {nudged:e}");
}

/// A rehearsal counts the step's memory and leaves no trace.
fn is_rehearsed(make: Made) {
    let Some(device) = cuda() else { return };
    let mut stage = make(Data::Many);
    let before = stage.state().unwrap();
    let plan = rehearse(&mut *stage).unwrap();
    assert!(bits(&before) == bits(&stage.state().unwrap()), "the rehearsal moved the weights");
    let weights: usize = before.values().map(|t| 4 * t.len()).sum();
    assert!(plan > weights as u64, "{plan} bytes, the state alone has {weights}");
    stage.place(&device).unwrap();
    assert_eq!(train(&mut *stage, 0..2), train(&mut *on(make, &device), 0..2));
}

/// A batch in parts has the loss and the gradients of the whole, but for the order of sums, and
/// takes less memory.
#[test]
fn a_batch_may_be_taken_in_parts() {
    for make in [stages::msvq as Made, stages::meanflow, stages::ar] {
        for device in [Some(Device::Cpu), cuda()].into_iter().flatten() {
            let [mut whole, mut parts] = [make(Data::Alone), make(Data::Alone)];
            assert!(parts.divide(2));
            let plans = [&mut whole, &mut parts].map(|stage| rehearse(&mut **stage).unwrap());
            assert!(plans[1] < plans[0], "{plans:?} bytes");
            let [own, cut] = [&mut whole, &mut parts].map(|stage| {
                stage.place(&device).unwrap();
                (train(&mut **stage, 0..1)[0], stage.state().unwrap())
            });
            assert!((own.0 - cut.0).abs() <= 1e-5 * own.0.abs(), "{} and {}", own.0, cut.0);
            // After one step the first moment is a tenth of the gradient.
            let moments = own.1.iter().filter(|(name, _)| name.starts_with("adam_m."));
            for (name, m) in moments {
                let (m, n) = (m.to_f64s(), cut.1[name].to_f64s());
                let top = m.iter().fold(1e-6f64, |top, x| top.max(x.abs()));
                let far = m.iter().zip(&n).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far <= 1e-4 * top, "{}: {name}: {far:e} of {top:e}", whole.name());
            }
        }
    }
}

/// A tokenizer's batch in parts, which differ in size, with codes, scales left out and an adversary
/// whose weight is one of the whole batch: from the same state the same step, but for the order of
/// sums, and the same codes, drawn and moved.
#[test]
fn a_tokenizer_s_batch_may_be_taken_in_parts() {
    for device in [Some(Device::Cpu), cuda()].into_iter().flatten() {
        let new = || {
            let mut stage = stages::msvq(Data::Deep);
            stage.place(&device).unwrap();
            stage
        };
        let mut whole = new();
        for step in 0..8 {
            let here = |(name, t): (&String, &Tensor)| (name.clone(), t.here().unwrap());
            let before = whole.state().unwrap().iter().map(here).collect();
            let mut parts = new();
            assert!(parts.divide(2));
            parts.restore(before).unwrap();
            let [own, cut] = [&mut whole, &mut parts].map(|stage| {
                let log = stage.step(step).unwrap().read().unwrap();
                (log, stage.state().unwrap())
            });
            assert_eq!(own.0.more.len(), cut.0.more.len());
            for ((name, a), (_, b)) in own.0.more.iter().zip(&cut.0.more) {
                assert!((a - b).abs() <= 1e-3 * a.abs().max(0.1), "{step}: {name}: {a} and {b}");
            }
            assert_eq!(own.1["usage"].to_f64s(), cut.1["usage"].to_f64s(), "step {step}");
            let moments = own.1.iter().filter(|(name, _)| name.contains("adam_m."));
            for (name, m) in moments {
                let (m, n) = (m.to_f64s(), cut.1[name].to_f64s());
                let top = m.iter().fold(1e-6f64, |top, x| top.max(x.abs()));
                let far = m.iter().zip(&n).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far <= 1e-3 * top, "{step}: {name}: {far:e} of {top:e}");
            }
        }
    }
}

/// Blocks whose values are computed again in the backward pass give the same bits, whole or in
/// parts, and go on where one that kept them stopped; they take less memory.
fn is_recomputed(make: Made) {
    let plan = |again: bool| {
        let mut stage = make(Data::Tall);
        assert!(stage.recompute(again));
        rehearse(&mut *stage).unwrap()
    };
    let [kept, again] = [false, true].map(plan);
    assert!(10 * again < 7 * kept, "{again} bytes of {kept}");
    for device in [Some(Device::Cpu), cuda()].into_iter().flatten() {
        let (mut kept, mut again) = (make(Data::Deep), make(Data::Deep));
        for parts in [1, 2] {
            if parts > 1 && !(kept.divide(parts) && again.divide(parts)) {
                continue;
            }
            assert!(again.recompute(true));
            for stage in [&mut kept, &mut again] {
                stage.place(&device).unwrap();
            }
            let losses = train(&mut *kept, 0..RESUMED);
            assert_eq!(train(&mut *again, 0..STOP), losses[..STOP as usize]);
            let state = again.state().unwrap();
            let read = state.iter().map(|(name, t)| (name.clone(), t.here().unwrap())).collect();
            again = make(Data::Deep);
            again.recompute(true);
            again.divide(parts);
            again.place(&device).unwrap();
            again.restore(read).unwrap();
            assert_eq!(train(&mut *again, STOP..RESUMED), losses[STOP as usize..]);
            assert!(bits(&kept.state().unwrap()) == bits(&again.state().unwrap()));
            (kept, again) = (make(Data::Deep), make(Data::Deep));
        }
    }
}

/// One batch, seen again and again, is learnt: `what` falls to a part of what it was.
fn learns_one_batch(make: Made, (what, part): (&str, f64)) {
    let Some(device) = cuda() else { return };
    let mut stage = make(Data::OneBatch);
    stage.place(&device).unwrap();
    let seen: Vec<f64> = (0..BY_HEART)
        .map(|step| {
            let log = stage.step(step).unwrap().read().unwrap();
            let more = log.more.iter().find(|(name, _)| name == what);
            more.map_or(log.loss, |(_, value)| *value)
        })
        .collect();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (first, last) = (mean(&seen[..5]), mean(&seen[seen.len() - 5..]));
    assert!(last < part * first, "{what} was {first}, is {last}");
}

/// Nothing within a step waits for the GPU; its log is read in one piece, when the next step is
/// under way, and says what it says when it is read at once.
fn is_not_waited_for(make: Made) {
    let Some(device) = cuda() else { return };
    let Device::Cuda(queue) = &device else { panic!("not a GPU") };
    let read_at_once: Vec<_> = {
        let mut stage = on(make, &device);
        (0..UNWAITED).map(|step| stage.step(step).unwrap().read().unwrap()).collect()
    };
    let mut stage = on(make, &device);
    // k-means fills the code book of a tokenizer in its second step, on the host.
    let mut ahead: Vec<_> = (0..2).map(|step| stage.step(step).unwrap()).collect();
    let before = queue.fetches();
    ahead.extend((2..UNWAITED).map(|step| stage.step(step).unwrap()));
    assert_eq!(queue.fetches() - before, 0);
    let read: Vec<_> = ahead.into_iter().map(|log| log.read().unwrap()).collect();
    assert_eq!(queue.fetches() - before, UNWAITED as usize);
    assert_eq!(read, read_at_once);
}

#[test]
fn a_tokenizer_with_a_wide_head_trains_there() {
    let Some(device) = cuda() else { return };
    let queue = gpu::gpu().unwrap().queue().unwrap().verified(true);
    let verified = Device::Cuda(queue);
    let (seen, ran) = heard(|| train(&mut *on(stages::wide_msvq, &verified), 0..1));
    for op in ["attention", "attention_vjp"] {
        assert!(ran.iter().any(|r| r.op == op && !r.on_cpu), "{op} did not run");
    }
    let fallen: Vec<_> = ran.iter().filter(|r| r.on_cpu).map(|r| r.op).collect();
    assert!(fallen.is_empty(), "on the CPU: {fallen:?}");
    let there = train(&mut *on(stages::wide_msvq, &device), 0..2);
    assert_eq!(seen[..], there[..1]);
    let here = train(&mut *stages::wide_msvq(Data::Many), 0..2);
    let apart = here.iter().zip(&there).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-4, "{here:?}, {there:?}");
}

#[test]
fn a_tokenizer_with_a_wide_head_reads_and_paints_there() {
    let Some(device) = cuda() else { return };
    let c = stages::with_a_wide_head(models::config());
    let image = models::noise(3, &[1, 16, 16, 3]);
    let drawn = |device: &Device, precision| {
        let msvq = models::tokenizer(&c);
        msvq.place_in(device, precision).unwrap();
        let pass = Pass::eval();
        let f = msvq.encode(&pass, &Var::constant(image.clone())).unwrap().into_value();
        let pixels = msvq.paint_latent(&f).unwrap();
        [f, pixels].map(|t| t.here().unwrap())
    };
    let here = drawn(&Device::Cpu, Precision::F32);
    for (precision, room) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.05)] {
        for (a, b) in here.iter().zip(drawn(&device, precision)) {
            let size =
                |f: &dyn Fn(usize) -> f64| (0..a.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
            let (apart, all) = (size(&|i| a.at(i) - b.at(i)), size(&|i| a.at(i)));
            assert!(apart < room * all, "{precision:?}: {apart} of {all}");
        }
    }
}

macro_rules! stages {
    ($($stage:ident: $learns:expr;)*) => {
        $(mod $stage {
            #[test]
            fn is_computed_there() {
                super::is_computed_there(super::stages::$stage);
            }
            #[test]
            fn is_not_waited_for() {
                super::is_not_waited_for(super::stages::$stage);
            }
            #[test]
            fn repeats_and_resumes() {
                super::repeats_and_resumes(super::stages::$stage);
            }
            #[test]
            fn follows_the_cpu() {
                super::follows_the_cpu(super::stages::$stage);
            }
            #[test]
            fn learns_one_batch() {
                super::learns_one_batch(super::stages::$stage, $learns);
            }
            #[test]
            fn is_rehearsed() {
                super::is_rehearsed(super::stages::$stage);
            }
            #[test]
            fn is_recomputed() {
                super::is_recomputed(super::stages::$stage);
            }
        })*
    };
}
stages! {
    msvq: ("loss", 0.6);
    meanflow: ("mse", 0.7);
    ar: ("loss", 0.7);
}
