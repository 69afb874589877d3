//! Phi and its tangent on a GPU, softcuda's unless GENEVAR_TEST_DEVICE names another: value and
//! tangent come of one op each, and are what two ops give.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;
#[path = "support/ops/soft.rs"]
mod soft;

use std::collections::BTreeMap;

use genevar::autograd::{Params, Pass, Var};
use genevar::config::MeanFlowConfig;
use genevar::device::Device;
use genevar::device::cuda::Launch;
use genevar::models::phi::{Phi, PhiDims, PhiInput};
use genevar::ops::{Ran, heard};
use genevar::tensor::{Purpose, Stream, Tensor};

/// A batch that Phi looks at, and the directions it moves in.
struct Example {
    phi: Phi,
    _params: Params,
    f: [Tensor; 2],
    t: [Tensor; 2],
    r: Var,
    r_k: Var,
    z: Tensor,
    k: usize,
}

fn normals(seed: u64, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(Stream::new(5, seed, 0, Purpose::Test).normals(n), shape).unwrap()
}

impl Example {
    /// With its zeros filled, so that every path counts.
    fn new(cfg: &MeanFlowConfig, dims: &PhiDims, batch: usize, device: &Device) -> Self {
        let mut params = Params::new(2);
        let phi = Phi::new(cfg, dims, &mut params);
        for (i, p) in params.iter().enumerate() {
            let value = p.value();
            let (shape, extra) = (value.shape(), normals(100 + i as u64, value.shape().dims()));
            let (value, extra) = (value.f32s().unwrap(), extra.f32s().unwrap());
            let sums = value.iter().zip(extra).map(|(v, e)| v + 0.03 * e).collect();
            p.set(Tensor::new(sums, shape).unwrap()).unwrap();
        }
        params.place(device).unwrap();
        let put = |t: Tensor| device.put(&t).unwrap();
        let times = |at: f32| (0..batch).map(|i| at / (1.0 + i as f32)).collect();
        let vec = |values: Vec<f32>| put(Tensor::new(values, [batch]).unwrap());
        let (side, d, k) = (dims.side, dims.d, dims.patch_nums.len() - 2);
        let map = |seed, side| put(normals(seed, &[batch, side, side, d]));
        Self {
            f: [map(1, side), map(2, side)],
            t: [vec(times(0.9)), vec(vec![1.0; batch])],
            r: vec(times(0.3)).into(),
            r_k: map(3, dims.patch_nums[k]).into(),
            z: put(normals(4, &[batch, dims.latent])),
            phi,
            _params: params,
            k,
        }
    }

    /// u and du/dt.
    fn run(&self, p: &Pass) -> [Vec<f32>; 2] {
        let moving = |[x, dx]: &[Tensor; 2]| p.with_tangent(x.clone(), dx.clone());
        let (f, t, null) =
            (moving(&self.f), moving(&self.t), vec![false; self.z.shape().dims()[0]]);
        let Self { r_k, z, r, k, .. } = self;
        let input = PhiInput { f: &f, r_k, z: z.into(), null: &null, t: &t, r, k: *k };
        let u = self.phi.forward(p, &input).unwrap();
        let du = u.tangent().unwrap().clone().into_tensor();
        [u.value(), &du].map(|t| t.f32s().unwrap().to_vec())
    }
}

fn cuda() -> Option<Device> {
    gpu::has_kernels().then(|| Device::Cuda(gpu::queue().unwrap()))
}

fn small() -> (MeanFlowConfig, PhiDims) {
    let cfg = MeanFlowConfig {
        width: 32,
        blocks: 2,
        head_width: 16,
        time_dims: 16,
        ..MeanFlowConfig::default()
    };
    (cfg, PhiDims { side: 4, d: 8, latent: 6, patch_nums: vec![1, 2, 3, 4] })
}

fn near(a: &[f32], b: &[f32]) -> bool {
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * scale)
}

/// Nothing of Phi that has a tangent is computed apart from it, but what is linear in the one input
/// that moves; and both are what ops of their own give, there and on the CPU.
#[test]
fn phi_and_its_tangent_are_one_pass() {
    let Some(device) = cuda() else { return };
    let (cfg, dims) = small();
    let on = Example::new(&cfg, &dims, 3, &device);
    let (at_once, ran) = heard(|| on.run(&Pass::dual()));
    let (apart, ran_apart) = heard(|| on.run(&Pass::dual().apart()));
    let here = Example::new(&cfg, &dims, 3, &Device::Cpu).run(&Pass::dual());
    for i in 0..2 {
        assert!(near(&at_once[i], &apart[i]), "apart, {i}");
        assert!(near(&at_once[i], &here[i]), "on the CPU, {i}");
    }
    let count = |ran: &[Ran], name: &str| ran.iter().filter(|r| r.op == name).count();
    // Two norms and attentions a block and one more norm before each network, and the last norm.
    let each = [("attention_dual", 2), ("ada_norm_dual", 3)];
    for (name, each) in each {
        assert!(count(&ran, name) >= each * cfg.blocks, "{name}: {}", count(&ran, name));
    }
    for name in ["linear_dual", "silu_dual", "time_embed_dual"] {
        assert!(count(&ran, name) > 0, "{name}");
    }
    let tangents = ["attention_jvp", "ada_norm_jvp", "silu_vjp", "time_embed_slope"];
    for name in tangents {
        assert_eq!((count(&ran, name), count(&ran_apart, name) > 0), (0, true), "{name}");
    }
    assert!(ran.iter().chain(&ran_apart).all(|r| !r.on_cpu));
}

/// Bytes and operations that cards say the launches need, and how many there are.
fn floors(launches: &[Launch]) -> (usize, u64, u64) {
    let each = launches.iter().map(|l| (l.entry.floor)(&l.args));
    each.fold((launches.len(), 0, 0), |(n, b, f), x| (n, b + x.bytes, f + x.flops))
}

/// What value and tangent at once spare at the reference's sizes. Prints it; on softcuda the bytes
/// are counted.
#[test]
#[ignore = "takes minutes on softcuda: cargo test --test cuda_jvp -- --ignored --nocapture"]
fn what_one_pass_spares_at_the_reference_sizes() {
    let Some(device) = cuda() else { return };
    let Device::Cuda(queue) = &device else { return };
    let patch_nums = vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
    let dims = PhiDims { side: 16, d: 32, latent: 200, patch_nums };
    let x = Example::new(&MeanFlowConfig::default(), &dims, 1, &device);
    for (name, pass) in [("apart", Pass::dual().apart()), ("at once", Pass::dual())] {
        let ((_, launches), counts) = soft::launched(0, || queue.trace(|| x.run(&pass)));
        let (count, bytes, flops) = floors(&launches);
        let mut entries = BTreeMap::<&str, usize>::new();
        launches.iter().for_each(|l| *entries.entry(l.entry.name).or_default() += 1);
        println!("{name}: {count} launches, cards: {bytes} bytes, {flops} operations");
        if let Some(counts) = counts {
            let sum = |f: fn(&soft::Counts) -> u64| counts.iter().map(f).sum::<u64>();
            let touched = 32 * sum(|c| c.unique_read_sectors + c.unique_write_sectors);
            let asked = 32 * sum(|c| c.global_read_sectors + c.global_write_sectors);
            let accesses = sum(|c| c.global_reads + c.global_writes);
            let done = sum(|c| c.scalar_flops + c.tensor_flops);
            let clashes = sum(|c| c.shared_bank_conflicts);
            println!(
                "  counted: {touched} bytes touched, {asked} asked for by {accesses} accesses"
            );
            println!("  {done} operations, {clashes} bank conflicts");
        }
        println!("  {entries:?}");
    }
}
