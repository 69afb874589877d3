//! One tile at the shapes of a tier too large to train here: an untrained system with its weights
//! in bf16, drawn from as `genevar sample` does on the CPU.

use std::path::Path;
use std::time::Instant;

use genevar::Result;
use genevar::autograd::Pass;
use genevar::config::Config;
use genevar::device::Device;
use genevar::device::cpu::{Mat, gemm};
use genevar::io::safetensors::Store;
use genevar::models::masked_ar::Cond;
use genevar::sample::{Graphs, Sampler, Subject};
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::system::System;
use genevar::train::untrained;

use crate::{flops, forget_peak, peak};

/// Side of the square product whose rate the tile's is held against.
const SQUARE: usize = 3072;
/// Tiles that are timed; the fastest counts.
const TILES: u64 = 3;

/// What was measured.
pub struct Measured {
    /// Multiplications and additions a second of a large square product.
    pub gemm: f64,
    /// Seconds from the file to the logits of the first scale.
    pub start: f64,
    /// Seconds of a tile.
    pub tile: f64,
    /// Operations of a tile.
    pub flops: f64,
    /// Bytes of the weights' file.
    pub weights: u64,
    /// Peak resident memory in MiB, the mapped file in it.
    pub peak: Option<f64>,
}

/// Operations a second of a square product in f32.
fn rate() -> f64 {
    let n = SQUARE;
    let a = Stream::new(2, 0, 0, Purpose::Test).normals(n * n);
    let mut c = vec![0.0; n * n];
    let mut once = || {
        let start = Instant::now();
        gemm(&mut c, n, Mat::new(&a, n, n, n), Mat::new(&a, n, n, n), false);
        start.elapsed().as_secs_f64()
    };
    let seconds = (0..4).map(|_| once()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) / seconds
}

/// Seconds from the file to the logits of the first scale, with guidance.
fn start(path: &Path) -> Result<(f64, System)> {
    let began = Instant::now();
    let system = System::load(path)?;
    let z =
        system.prior()?.condition(&Tensor::zeros(DType::F32, [1, system.config.beta_vae.genes]))?;
    let p = Pass::eval();
    let both = Tensor::new([z.f32s()?, z.f32s()?].concat(), [2, z.shape().last()])?;
    let cond = system.ar.condition(&p, &Cond::Vector(&both), &[false, true])?;
    let modulation = system.ar.modulation(&p, &cond)?;
    let mut caches = system.ar.caches(0);
    system.ar.step(&p, 0, &cond, (&modulation, &mut caches), None)?;
    Ok((began.elapsed().as_secs_f64(), system))
}

/// Measures a tile of a tier; the file goes into `folder`, unless one is there already.
pub fn measure(config: &Config, folder: &Path) -> Result<Measured> {
    let path = folder.join(format!("{}.safetensors", config.tier));
    if !path.is_file() {
        untrained::bundle(config, 1)?.save(&path, Store::Bf16)?;
    }
    let weights = std::fs::metadata(&path).map_or(0, |m| m.len());
    let gemm = rate();
    let (start, system) = start(&path)?;
    let (refiner, settings, device) = (system.refiner(0), &system.config.sample, Device::Cpu);
    let graphs = Graphs::default();
    let sampler = Sampler { refiner, ar: &system.ar, settings, device, graphs };
    forget_peak();
    let mut tile = f64::INFINITY;
    for id in 0..TILES {
        let z = Tensor::zeros(DType::F32, [1, config.beta_vae.latent]);
        let began = Instant::now();
        sampler.stream(&[Subject { id, z, other: None }], &|_, _| Ok(()))?;
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("tile {id}: {seconds:.3} s");
        tile = tile.min(seconds);
    }
    Ok(Measured { gemm, start, tile, flops: flops::sample(config), weights, peak: peak() })
}
