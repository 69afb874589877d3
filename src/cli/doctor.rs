//! `genevar doctor`: what this machine has for genevar, and what to do about what it lacks.

use std::fmt::Write;

use crate::device::Device;
use crate::device::cuda::{self, Facts, Gpu};
use crate::device::launch;
use crate::device::openslide;
use crate::error::Result;
use crate::ops::elementwise::Affine;
use crate::ops::run_on;
use crate::tensor::Tensor;

/// Looks at processor, kernels, driver and GPUs. What is missing is part of the answer, not an
/// error: the CPU needs none of it.
pub fn examine() -> String {
    let mut out = format!("genevar {}\n", env!("CARGO_PKG_VERSION"));
    let threads = rayon::current_num_threads();
    let plural = if threads == 1 { "" } else { "s" };
    line(&mut out, "processor", &format!("{threads} thread{plural}, {}", vectors()));
    line(&mut out, "kernels", &kernels());
    line(&mut out, "OpenSlide", &slides());
    match cuda::survey() {
        Err(e) => line(&mut out, "driver", &e.to_string()),
        Ok((version, gpus)) => {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            line(&mut out, "driver", &format!("speaks CUDA {major}.{minor}"));
            if gpus.is_empty() {
                let text = "none; `nvidia-smi` may tell why, the CPU works without";
                line(&mut out, "GPU", text);
            }
            for facts in gpus {
                line(&mut out, &format!("GPU {}", facts.ordinal), &gpu(&facts));
            }
        }
    }
    out
}

fn line(out: &mut String, name: &str, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{name:<10} {text}");
}

fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
    }
    "the baseline vectors of its architecture"
}

fn kernels() -> String {
    let (entries, files) = (launch::ENTRIES.len(), launch::FILES.len());
    match launch::NVRTC {
        Some(version) => {
            let mut archs: Vec<&str> =
                launch::ENTRIES.iter().flat_map(|e| e.module.images).map(|i| i.arch).collect();
            archs.sort_unstable();
            archs.dedup();
            format!("{entries} in {files} files, by NVRTC {version}, for {}", archs.join(", "))
        }
        None => format!(
            "{entries} in {files} files, not compiled: run tools/setup, which fetches NVRTC, and \
             build again; the CPU works without"
        ),
    }
}

/// Whether whole-slide images can be read.
fn slides() -> String {
    match openslide::version() {
        Ok(version) => format!("{version}: whole-slide images can be cut into tiles"),
        Err(e) => format!("{e}; only whole-slide images (.svs ...) need it"),
    }
}

/// What a GPU is, and whether a kernel runs on it.
fn gpu(facts: &Facts) -> String {
    let (major, minor) = facts.capability;
    let is = format!(
        "{}, capability {major}.{minor}, {:.1} GiB, {} multiprocessors",
        facts.name,
        facts.memory as f64 / f64::from(1 << 30),
        facts.multiprocessors
    );
    match trial(facts.ordinal) {
        Ok(arch) => format!("{is}; a kernel ran from {arch} and gave the right numbers"),
        Err(e) => format!("{is}; not usable: {e}"),
    }
}

/// Runs a kernel whose result is known; returns the image it ran from.
fn trial(ordinal: usize) -> Result<&'static str> {
    let gpu = Gpu::open(ordinal)?;
    let queue = gpu.queue()?;
    let x = Tensor::new((0..1000).map(|i| i as f32).collect(), [1000])?;
    let op = Affine { scale: 2.0, shift: 1.0 };
    let y = run_on(&Device::Cuda(queue), &op, &[&x])?;
    let right = |(i, &y): (usize, &f32)| y == 2.0 * i as f32 + 1.0;
    let Some(y) = y.first() else { return Ok("nothing") };
    if let Some(at) = y.f32s()?.iter().enumerate().position(|p| !right(p)) {
        let what = format!("a kernel's result {at} is {}", y.f32s()?[at]);
        return Err(crate::error::Error::data(what, "the GPU or its driver is faulty"));
    }
    match launch::ENTRIES.iter().find(|e| e.name == "affine_fwd") {
        Some(entry) => gpu.image_of(entry.module),
        None => Ok("nothing"),
    }
}
