//! Devices as ceilings: bytes and operations a second, and what a launch costs at least.
//!
//! Those of GPUs are published numbers; those of the CPU are measured when a profile begins.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::device::cpu::{self, Mat, par_chunks};
use crate::device::cuda::Facts;
use crate::error::{Error, Result};
use crate::ops::call;
use crate::ops::elementwise::Affine;
use crate::tensor::{DType, Tensor};

/// What a device can do at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Bytes a second to and from memory.
    pub memory: f64,
    /// Bytes a second where all that a call moves fits the cache of a core; 0 where that is not
    /// looked at.
    pub cache: f64,
    /// Floating-point operations a second of its ordinary units.
    pub scalar: f64,
    /// Floating-point operations a second of its matrix units.
    pub tensor: f64,
    /// Seconds that a launch, or an op on the CPU, takes if it does nothing.
    pub launch: f64,
    /// The same of a launch that may begin beside the one before; 0 where there are none.
    #[serde(default)]
    pub beside: f64,
    /// Where the numbers are from.
    pub source: String,
}

/// What a call moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes.
    pub bytes: f64,
    /// Operations of ordinary units.
    pub scalar: f64,
    /// Operations of matrix units.
    pub tensor: f64,
    /// Whether it may begin beside the call before.
    pub beside: bool,
}

/// What keeps a call from being faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Bytes.
    Memory,
    /// Operations.
    Compute,
    /// That it is a call at all.
    Launch,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Compute, Self::Launch];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
            Self::Launch => "launch",
        }
    }
}

/// Bytes that a core's cache holds, roughly.
const CACHE: f64 = 1e6;

impl Model {
    /// The least seconds for this work, without its launch: the slower of the two, bytes or
    /// operations.
    pub fn floor(&self, work: &Work) -> f64 {
        let [memory, compute] = self.both(work);
        memory.max(compute)
    }

    /// What binds a call, and the least seconds that it takes with its launch.
    pub fn binds(&self, work: &Work) -> (Side, f64) {
        let [memory, compute] = self.both(work);
        let launch = if work.beside { self.beside } else { self.launch };
        match memory.max(compute) {
            floor if floor < launch => (Side::Launch, launch),
            floor if memory >= compute => (Side::Memory, floor),
            floor => (Side::Compute, floor),
        }
    }

    fn both(&self, work: &Work) -> [f64; 2] {
        let near = self.cache > 0.0 && work.bytes < CACHE;
        let compute = (work.scalar / self.scalar).max(work.tensor / self.tensor);
        [work.bytes / if near { self.cache } else { self.memory }, compute]
    }
}

/// A GPU that is known by its published numbers.
pub struct Known {
    /// What it is called here.
    pub name: &'static str,
    /// Compute capability.
    pub capability: (i32, i32),
    multiprocessors: i32,
    gigabytes: usize,
    terabytes: f64,
    scalar: f64,
    tensor: f64,
    source: &'static str,
}

/// Seconds that a launch takes from the one before, at least: an assumption for all of them.
const LAUNCH: f64 = 2e-6;
/// The same where its blocks come before the launch before has ended: what is left is that this one
/// ends, its writes are seen and the pipeline of the next fills. An assumption too.
const BESIDE: f64 = 1.2e-6;

/// All that are known.
pub const KNOWN: [Known; 2] = [
    Known {
        name: "h100",
        capability: (9, 0),
        multiprocessors: 132,
        gigabytes: 80,
        terabytes: 3.0,
        scalar: 67e12,
        tensor: 795e12,
        source: "H100 SXM, published: 3.0 TB/s of device copies, 795 TFLOP/s of the best bf16 \
                 products (989 on paper), 67 TFLOP/s f32 on paper; 2 us a launch, 1.2 us of one \
                 that begins beside the one before, are assumed",
    },
    Known {
        name: "a100",
        capability: (8, 0),
        multiprocessors: 108,
        gigabytes: 80,
        terabytes: 2.039,
        scalar: 19.5e12,
        tensor: 312e12,
        source: "A100 SXM 80 GB, on paper: 2.04 TB/s, 312 TFLOP/s bf16, 19.5 TFLOP/s f32; 2 us \
                 a launch is assumed",
    },
];

impl Known {
    /// The one of this name.
    ///
    /// # Errors
    /// No such one, listing those there are.
    pub fn named(name: &str) -> Result<&'static Self> {
        let names = KNOWN.each_ref().map(|k| k.name);
        KNOWN.iter().find(|k| k.name == name).ok_or_else(|| {
            let what = format!("no device model is called {name:?}");
            Error::config("--model", what, format!("one of {}", names.join(", ")))
                .suggesting(name, &names)
        })
    }

    /// The one that a GPU resembles: by name, else the newest that is no newer.
    pub fn like(facts: &Facts) -> &'static Self {
        let called = facts.name.to_lowercase();
        let by_name = KNOWN.iter().find(|k| called.contains(k.name));
        let older = KNOWN.iter().find(|k| k.capability <= facts.capability);
        by_name.or(older).unwrap_or(&KNOWN[KNOWN.len() - 1])
    }

    /// As if a driver had told.
    pub fn facts(&self) -> Facts {
        Facts {
            ordinal: 0,
            name: format!("plan of {}", self.name),
            capability: self.capability,
            memory: self.gigabytes << 30,
            multiprocessors: self.multiprocessors,
        }
    }

    /// Its ceilings.
    pub fn model(&self) -> Model {
        Model {
            name: self.name.into(),
            memory: self.terabytes * 1e12,
            cache: 0.0,
            scalar: self.scalar,
            tensor: self.tensor,
            launch: LAUNCH,
            beside: BESIDE,
            source: self.source.into(),
        }
    }
}

/// Side of the matrices whose product is timed, elements of a copy in memory and in the cache.
const SIDE: usize = 1024;
const FAR: usize = 16 << 20;
const NEAR: usize = 1 << 15;

/// The CPU: the best of a few matrix products, copies and ops of one element, in a quarter of a
/// second.
///
/// # Errors
/// Those of the op.
pub fn measured_cpu() -> Result<Model> {
    let values = |n: usize| (0..n).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<f32>>();
    let (a, b, mut c) = (values(SIDE * SIDE), values(SIDE * SIDE), vec![0.0; SIDE * SIDE]);
    let product = best(6, || {
        let (a, b) = (Mat::new(&a, SIDE, SIDE, SIDE), Mat::new(&b, SIDE, SIDE, SIDE));
        cpu::gemm(&mut c, SIDE, a, b, false);
    });
    let copy = |n: usize, rounds: usize| {
        let (from, mut to) = (values(n), vec![0.0f32; n]);
        let seconds = best(5, || {
            for _ in 0..rounds {
                par_chunks(&mut to, NEAR / 2, |at, part| {
                    part.copy_from_slice(&from[at..at + part.len()]);
                });
            }
        });
        (2 * 4 * n * rounds) as f64 / seconds
    };
    let (memory, cache) = (copy(FAR, 1), copy(NEAR, 200));
    let one = Tensor::full(DType::F32, [1], 1.0);
    let mut failed = None;
    let launch = best(200, || {
        let done = call(&Affine { scale: 2.0, shift: 0.0 }, &[&one]);
        failed = done.err().or(failed.take());
    });
    let rate = 2.0 * (SIDE * SIDE * SIDE) as f64 / product;
    let source = "measured when the profile began: the best matrix product, copies in memory and \
                  in the cache, an op of one element";
    match failed {
        Some(e) => Err(e),
        None => Ok(Model {
            name: "cpu".into(),
            memory,
            cache: cache.max(memory),
            scalar: rate,
            tensor: rate,
            launch,
            beside: 0.0,
            source: source.into(),
        }),
    }
}

/// The least seconds of some runs.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_side_binds_unless_both_are_less_than_a_launch() {
        let h100 = Known::named("h100").unwrap().model();
        let work = |bytes: f64, tensor: f64| Work { bytes, tensor, ..Work::default() };
        // 3 MB take 1 us, 300 MB 100 us; 795 GFLOP take 1 ms.
        assert_eq!(h100.binds(&work(3e6, 0.0)), (Side::Launch, LAUNCH));
        let beside = Work { beside: true, ..work(3e6, 0.0) };
        assert_eq!(h100.binds(&beside), (Side::Launch, BESIDE));
        let (side, seconds) = h100.binds(&work(3e8, 7.95e9));
        assert!(side == Side::Memory && (seconds - 1e-4).abs() < 1e-12, "{seconds}");
        let (side, seconds) = h100.binds(&work(3e8, 7.95e11));
        assert!(side == Side::Compute && (seconds - 1e-3).abs() < 1e-12, "{seconds}");
    }

    #[test]
    fn a_gpu_is_known_by_its_name_else_by_its_capability() {
        let like = |name: &str, capability| {
            let facts = Known::named("h100").unwrap().facts();
            Known::like(&Facts { name: name.into(), capability, ..facts }).name
        };
        assert_eq!(like("NVIDIA A100-SXM4-80GB", (8, 0)), "a100");
        assert_eq!(like("NVIDIA H100 80GB HBM3", (9, 0)), "h100");
        assert_eq!(like("something newer", (10, 0)), "h100");
        assert_eq!(like("something between", (8, 9)), "a100");
        assert_eq!(like("something older", (7, 0)), "a100");
        assert!(Known::named("h10").err().unwrap().to_string().contains("h100"));
    }
}
