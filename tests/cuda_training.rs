//! The gene prior trained on a GPU, softcuda's unless GENEVAR_TEST_DEVICE names another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;

use genevar::config::{Config, StageConfig};
use genevar::data::rna::RnaNorm;
use genevar::device::kernel::Grid;
use genevar::device::{Device, launch};
use genevar::ops::activation::Silu;
use genevar::ops::{Cases, In, Kernels, Op, Out, Real, Variant, run_on};
use genevar::tensor::{Purpose, Shape, Stream, Tensor};
use genevar::train::Stage;
use genevar::train::beta_vae::{BetaVaeStage, scaling};
use genevar::train::memory::rehearse;

const GENES: usize = 37;
const STEPS: u64 = 20;

/// A prior with odd widths, so that no kernel meets whole packets alone.
fn config() -> Config {
    let mut config = Config::tier("t0").unwrap();
    config.beta_vae.genes = GENES;
    config.beta_vae.hidden = vec![24, 17];
    config.beta_vae.latent = 5;
    let stage =
        StageConfig { steps: STEPS, batch: 16, ema: 0.9, clip: 1.0, ..StageConfig::default() };
    config.train.beta_vae = StageConfig { lr: 3e-3, warmup: 0.0, ..stage };
    config
}

/// Profiles of three kinds of sample with noise on top.
fn profiles(n: usize) -> Tensor {
    let noise = Stream::new(3, 0, 0, Purpose::Test).normals(n * GENES);
    let value = |(i, e): (usize, f32)| {
        let (row, gene) = (i / GENES, i % GENES);
        ((row % 3 * 7 + gene) as f32).sin() + 0.3 * e
    };
    Tensor::new(noise.into_iter().enumerate().map(value).collect(), [n, GENES]).unwrap()
}

/// The device that tests run kernels on; `None` in a build without kernels.
fn cuda() -> Option<Device> {
    gpu::has_kernels().then(|| Device::Cuda(gpu::queue().unwrap()))
}

fn stage(device: &Device) -> BetaVaeStage {
    let config = config();
    let genes = (0..GENES).map(|g| format!("G{g}")).collect();
    let (mean, sd) = (vec![0.0; GENES], vec![1.0; GENES]);
    let norm = RnaNorm { genes, scaling: scaling(&config.data), units: None, mean, sd };
    let mut stage =
        BetaVaeStage::with_inputs(&config, norm, profiles(48), Some(profiles(9))).unwrap();
    stage.place(device).unwrap();
    stage
}

/// Steps `range` of a stage: the losses.
fn train(stage: &mut BetaVaeStage, range: std::ops::Range<u64>) -> Vec<f64> {
    range.map(|step| stage.step(step).unwrap().read().unwrap().loss).collect()
}

fn bits(state: &BTreeMap<String, Tensor>) -> BTreeMap<&str, Vec<u32>> {
    let one = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
    state.iter().map(|(name, t)| (name.as_str(), one(t))).collect()
}

/// Forwards, backwards and in the optimiser, each op of a run lies within its rounding of the
/// reference on the very values of training. Looking changes nothing.
#[test]
fn every_op_of_a_run_is_within_its_rounding() {
    let Some(device) = cuda() else { return };
    let queue = gpu::gpu().unwrap().queue().unwrap().verified(true);
    let seen = train(&mut stage(&Device::Cuda(queue)), 0..STEPS);
    assert_eq!(seen, train(&mut stage(&device), 0..STEPS));
}

/// The sigmoid linear unit whose kernel is that of another activation.
#[derive(Clone)]
struct Mistaken;

impl Op for Mistaken {
    const NAME: &'static str = "mistaken";
    const INPUTS: std::ops::RangeInclusive<usize> = 1..=1;
    const CUDA: Kernels<Self> = Kernels {
        variants: &[Variant {
            name: "only",
            f32: Some(|_, q, x, y| {
                let (n, x) = (x[0].shape.len(), x[0].get::<f32>()?);
                launch::activation::gelu_fwd(q, Grid::line(1, 64), &mut y[0].get()?, &x, n)
            }),
            bf16: None,
            takes: |_, _| true,
            needs: None,
        }],
        fastest: |_, _, _| 0,
    };

    fn shapes(&self, x: &[&Shape]) -> genevar::Result<Vec<Shape>> {
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        Silu.reference(x, y);
    }
    fn cases() -> Cases {
        Silu::cases()
    }
}

#[test]
fn a_kernel_of_another_function_is_named() {
    let Some(device) = cuda() else { return };
    let x = Tensor::new(vec![0.0, 0.5, 1.0], [3]).unwrap();
    assert!(run_on(&device, &Mistaken, &[&x]).is_ok());
    let queue = gpu::gpu().unwrap().queue().unwrap().verified(true);
    let told = run_on(&Device::Cuda(queue.clone()), &Mistaken, &[&x]).unwrap_err().to_string();
    assert!(told.starts_with("mistaken: its kernels give 3.457"), "{told}");
    assert!(told.contains("element 1 of output 0"), "{told}");
    assert!(run_on(&Device::Cuda(queue), &Silu, &[&x]).is_ok());
}

#[test]
fn a_run_has_the_same_bits_twice_and_when_it_is_resumed() {
    let Some(device) = cuda() else { return };
    let (mut once, mut twice) = (stage(&device), stage(&device));
    let losses = train(&mut once, 0..STEPS);
    assert_eq!(losses, train(&mut twice, 0..STEPS));
    assert!(losses[STEPS as usize - 1] < 0.8 * losses[0], "{losses:?}");
    let (a, b) = (once.state().unwrap(), twice.state().unwrap());
    assert!(bits(&a) == bits(&b));
    let mut first = stage(&device);
    train(&mut first, 0..7);
    let state = first.state().unwrap();
    // Through a file a state comes back in the CPU's memory.
    let read = state.iter().map(|(name, t)| (name.clone(), t.here().unwrap())).collect();
    let mut rest = stage(&device);
    rest.restore(read).unwrap();
    assert_eq!(train(&mut rest, 7..STEPS), losses[7..]);
    assert!(bits(&a) == bits(&rest.state().unwrap()));
}

/// The GPU's losses stay as near to the CPU's as a run on the CPU does whose weights were moved by
/// one unit in the last place at the start.
#[test]
fn a_whole_run_follows_the_cpu() {
    let Some(device) = cuda() else { return };
    let here = train(&mut stage(&Device::Cpu), 0..STEPS);
    let there = train(&mut stage(&device), 0..STEPS);
    let mut moved = stage(&Device::Cpu);
    let nudge = |(name, t): (String, Tensor)| {
        let up = |x: &f32| f32::from_bits(x.to_bits() + u32::from(*x != 0.0));
        let next = t.f32s().unwrap().iter().map(up).collect();
        let weight = name.starts_with("param.");
        (name, if weight { Tensor::new(next, t.shape()).unwrap() } else { t })
    };
    let state = moved.state().unwrap().into_iter().map(nudge).collect();
    moved.restore(state).unwrap();
    let moved = train(&mut moved, 0..STEPS);
    let apart = |other: &[f64]| {
        here.iter().zip(other).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f64::max)
    };
    // Rounding happens at every op of every step, the nudge once.
    let (rounding, nudged) = (apart(&there), apart(&moved));
    assert!(rounding > 0.0 && rounding <= 16.0 * nudged.max(1e-7), "{rounding:e}, {nudged:e}");
}

/// No step waits for the GPU; a log is one copy, read when the next step is under way.
#[test]
fn no_step_waits() {
    let Some(device) = cuda() else { return };
    let Device::Cuda(queue) = &device else { panic!("not a GPU") };
    let mut stage = stage(&device);
    let before = queue.fetches();
    let logs: Vec<_> = (0..3).map(|step| stage.step(step).unwrap()).collect();
    assert_eq!(queue.fetches() - before, 0);
    let losses: Vec<f64> = logs.into_iter().map(|log| log.read().unwrap().loss).collect();
    assert_eq!(queue.fetches() - before, 3);
    assert_eq!(losses, train(&mut self::stage(&device), 0..3));
}

/// The plan of a step's memory is what the driver then hands out, workspaces aside.
#[test]
fn the_plan_of_a_step_is_what_it_takes() {
    let Some(device) = cuda() else { return };
    let mut planned = stage(&Device::Cpu);
    let before = planned.state().unwrap();
    let plan = rehearse(&mut planned).unwrap();
    assert!(bits(&before) == bits(&planned.state().unwrap()), "the rehearsal moved the weights");
    let weights: usize = before.values().map(|t| 4 * t.len()).sum();
    assert!(plan > weights as u64, "{plan} bytes, the state alone has {weights}");
    let Device::Cuda(queue) = &device else { panic!("not a GPU") };
    let mut real = stage(&device);
    train(&mut real, 0..1);
    queue.synchronize().unwrap();
    let used = queue.gpu().high_water().unwrap();
    // Other tests of this program may hold memory of the same pool meanwhile.
    assert!(plan <= used + used / 10, "planned {plan}, used {used}");
}
