//! The stages after the gene prior, trained on a GPU: softcuda's unless GENEVAR_TEST_DEVICE names
//! another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;
#[path = "support/stages.rs"]
mod stages;

use std::collections::BTreeMap;
use std::ops::Range;

use genevar::device::Device;
use genevar::ops::{Ran, heard};
use genevar::tensor::Tensor;
use genevar::train::Stage;
use genevar::train::memory::rehearse;
use stages::Made;

/// Steps of a run.
const STEPS: u64 = 20;
/// Steps of one that is stopped, and after how many.
const RESUMED: u64 = 7;
const STOP: u64 = 3;
/// Steps of one whose every op is held against its reference.
const VERIFIED: u64 = 3;
/// What the frozen tokenizer runs, which has no kernels of convolution yet.
const TOKENIZER: &[&str] = &[
    "affine",
    "attention",
    "axpy",
    "conv2d",
    "gather_rows",
    "group_norm",
    "narrow",
    "nearest_code",
    "reshape",
    "resample",
];

/// The device that tests run kernels on; `None` in a build without kernels.
fn cuda() -> Option<Device> {
    gpu::has_kernels().then(|| Device::Cuda(gpu::queue().unwrap()))
}

fn on(make: Made, device: &Device) -> Box<dyn Stage> {
    let mut stage = make();
    stage.place(device).unwrap();
    stage
}

/// Steps of a stage: the losses.
fn train(stage: &mut dyn Stage, range: Range<u64>) -> Vec<f64> {
    range.map(|step| stage.step(step).unwrap().loss).collect()
}

fn bits(state: &BTreeMap<String, Tensor>) -> BTreeMap<&str, Vec<u32>> {
    let one = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
    state.iter().map(|(name, t)| (name.as_str(), one(t))).collect()
}

/// Forwards, backwards and in the optimiser, each op of a run lies within its rounding of the
/// reference on the very values of training, and none but `here` runs on the CPU.
fn is_computed_there(make: Made, here: &[&str]) {
    let Some(device) = cuda() else { return };
    let queue = gpu::gpu().unwrap().queue().unwrap().verified(true);
    let (seen, ran) = heard(|| train(&mut *on(make, &Device::Cuda(queue)), 0..VERIFIED));
    assert_eq!(seen, train(&mut *on(make, &device), 0..VERIFIED));
    let fell = |r: &&Ran| r.on_cpu && !here.contains(&r.op);
    assert!(ran.len() > 100, "{} ops", ran.len());
    let fallen: Vec<_> = ran.iter().filter(fell).map(|r| r.op).collect();
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
    let here = train(&mut *make(), 0..STEPS);
    let there = train(&mut *on(make, &device), 0..STEPS);
    let mut moved = make();
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
    let mut stage = make();
    let before = stage.state().unwrap();
    let plan = rehearse(&mut *stage).unwrap();
    assert!(bits(&before) == bits(&stage.state().unwrap()), "the rehearsal moved the weights");
    let weights: usize = before.values().map(|t| 4 * t.len()).sum();
    assert!(plan > weights as u64, "{plan} bytes, the state alone has {weights}");
    stage.place(&device).unwrap();
    assert_eq!(train(&mut *stage, 0..2), train(&mut *on(make, &device), 0..2));
}

macro_rules! stages {
    ($($stage:ident: $here:expr;)*) => {
        $(mod $stage {
            #[test]
            fn is_computed_there() {
                super::is_computed_there(super::stages::$stage, $here);
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
            fn is_rehearsed() {
                super::is_rehearsed(super::stages::$stage);
            }
        })*
    };
}
stages! {
    meanflow: super::TOKENIZER;
    ar: super::TOKENIZER;
}
