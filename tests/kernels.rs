//! The CUDA device, on softcuda or a card (`GENEVAR_TEST_DEVICE=cuda:0`): launches that are
//! refused, graphs, faults that are named, memory, and the bf16 instances of kernels.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;

use genevar::device::OnGpu;
use genevar::device::cuda::{Buffer, Queue};
use genevar::device::kernel::{Bf16, Element, Grid, Slice, SliceMut};
use genevar::device::launch::{self, activation, elementwise, gemm, gemm_wgmma, norm};
use genevar::ops::conv::{Conv2d, Conv2dDx};
use genevar::ops::gemm::Linear;
use genevar::ops::{CudaIn, CudaOut, DynOp, Precision, Site};
use genevar::tensor::{Purpose, Shape, Stream};

/// A queue, or nothing to test: the build found no NVRTC.
fn queue() -> Option<Queue> {
    if !gpu::has_kernels() {
        eprintln!("left out: built without NVRTC (tools/setup)");
        return None;
    }
    // A queue of the test's own, whatever ran on this thread before.
    Some(gpu::queue().unwrap().gpu().queue().unwrap())
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    Stream::new(seed, 0, 0, Purpose::Test).normals(n)
}

fn grid() -> Grid {
    Grid::line(2, 256)
}

#[test]
fn what_is_written_is_read_back() {
    let Some(q) = queue() else { return };
    for n in [0, 1, 5, 70_000] {
        let data = noise(n, 1);
        assert_eq!(Buffer::from_slice(&q, &data).unwrap().read().unwrap(), data, "{n}");
    }
    let mut short = Buffer::<f32>::new(&q, 3).unwrap();
    let told = short.write(&[0.0; 4]).unwrap_err().to_string();
    assert!(told.contains("4 elements do not fit into 3"), "{told}");
}

#[test]
fn long_copies_go_through_pinned_blocks_and_leave_the_caller_alone() {
    let Some(q) = queue() else { return };
    // Longer than all blocks together, and no multiple of one.
    let n = (5 << 20) / 4 + 3;
    let mut data: Vec<u32> = (0..n).collect();
    let mut buffer = Buffer::<u32>::new(&q, data.len()).unwrap();
    buffer.write(&data).unwrap();
    data.fill(0);
    let mut other = Buffer::<u32>::new(&q, 7).unwrap();
    other.write(&[7; 7]).unwrap();
    assert!(buffer.read().unwrap().into_iter().eq(0..n));
    assert_eq!(other.read().unwrap(), [7; 7]);
    // A queue may be dropped with a copy under way.
    let gone = q.gpu().queue().unwrap();
    drop(Buffer::from_slice(&gone, &data).unwrap());
    drop(gone);
    assert_eq!(other.read().unwrap(), [7; 7]);
}

#[test]
fn a_queue_that_is_recorded_refuses_copies_and_goes_on() {
    let Some(q) = queue() else { return };
    let x = Buffer::from_slice(&q, &[1.0f32, 2.0]).unwrap();
    let mut y = Buffer::from_slice(&q, &[0.0f32; 2]).unwrap();
    let mut told = Vec::new();
    let graph = q
        .record(|q| {
            told.extend(y.write(&[5.0]).err().map(|e| e.to_string()));
            told.extend(x.read().err().map(|e| e.to_string()));
            elementwise::affine_fwd(q, grid(), &mut y.slice_mut(), &x.slice(), 2, 3.0, 0.0)
        })
        .unwrap();
    assert!(told.len() == 2 && told.iter().all(|t| t.contains("being recorded")), "{told:?}");
    graph.replay().unwrap();
    assert_eq!(y.read().unwrap(), [3.0, 6.0]);
}

#[test]
fn events_order_queues_and_keep_time() {
    let Some(q) = queue() else { return };
    let before = q.event().unwrap();
    let x = Buffer::from_slice(&q, &[1.0f32; 1000]).unwrap();
    let mut y = Buffer::<f32>::new(&q, 1000).unwrap();
    elementwise::affine_fwd(&q, grid(), &mut y.slice_mut(), &x.slice(), 1000, 3.0, 0.0).unwrap();
    let after = q.event().unwrap();
    let other = q.gpu().queue().unwrap();
    other.wait_for(&after).unwrap();
    other.synchronize().unwrap();
    let spent = after.since(&before).unwrap();
    assert!(spent > std::time::Duration::ZERO, "{spent:?}");
    assert_eq!(before.since(&after).unwrap(), std::time::Duration::ZERO);
}

#[test]
fn a_trace_tells_the_launches_with_their_arguments() {
    let Some(q) = queue() else { return };
    let x = Buffer::from_slice(&q, &[1.0f32; 100]).unwrap();
    let mut y = Buffer::<f32>::new(&q, 100).unwrap();
    let mut scale =
        |n: usize| elementwise::affine_fwd(&q, grid(), &mut y.slice_mut(), &x.slice(), n, 3.0, 0.0);
    let (inner, outer) = q.trace(|| {
        scale(100).unwrap();
        q.trace(|| scale(50)).1
    });
    scale(10).unwrap();
    assert_eq!((inner.len(), outer.len()), (1, 2));
    let floors: Vec<u64> = outer.iter().map(|l| (l.entry.floor)(&l.args).bytes).collect();
    assert_eq!(floors, [800, 400]);
    let told = inner[0].to_string();
    for part in ["affine_fwd<f32>", "2x1x1 blocks", "y f32[100]", "n 50"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}

#[test]
fn a_buffer_that_is_too_short_is_refused_before_the_launch() {
    let Some(q) = queue() else { return };
    let x = Buffer::from_slice(&q, &noise(8, 2)).unwrap();
    let mut y = Buffer::<f32>::new(&q, 7).unwrap();
    let told = activation::gelu_fwd(&q, grid(), &mut y.slice_mut(), &x.slice(), 8);
    let told = told.unwrap_err().to_string();
    for part in ["gelu_fwd<f32>", "kernels/activation.cu:", "`y` has 7", "reaches 8"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let mut y = Buffer::<f32>::new(&q, 8).unwrap();
    let large = Grid::line(1, 1024);
    let told = activation::gelu_fwd(&q, large, &mut y.slice_mut(), &x.slice(), 8);
    assert!(told.unwrap_err().to_string().contains("1024 threads"));
    let other = q.gpu().queue().unwrap();
    let told = activation::gelu_fwd(&other, grid(), &mut y.slice_mut(), &x.slice(), 8);
    assert!(told.unwrap_err().to_string().contains("another queue"));
    assert_eq!(q.launches() + other.launches(), 0);
}

#[test]
fn a_recording_runs_only_when_it_is_replayed() {
    let Some(q) = queue() else { return };
    let x = Buffer::from_slice(&q, &[1.0f32, 2.0, 3.0]).unwrap();
    let [mut a, mut b] = [0, 1].map(|_| Buffer::from_slice(&q, &[0.0f32; 3]).unwrap());
    let graph = q
        .record(|q| {
            elementwise::affine_fwd(q, grid(), &mut a.slice_mut(), &x.slice(), 3, 2.0, 1.0)?;
            elementwise::affine_fwd(q, grid(), &mut b.slice_mut(), &a.slice(), 3, 10.0, 0.0)
        })
        .unwrap();
    assert_eq!(graph.launches(), 2);
    assert_eq!(b.read().unwrap(), [0.0; 3]);
    graph.replay().unwrap();
    assert_eq!(b.read().unwrap(), [30.0, 50.0, 70.0]);
    // An eager twin has the same bits.
    let mut c = Buffer::<f32>::new(&q, 3).unwrap();
    elementwise::affine_fwd(&q, grid(), &mut c.slice_mut(), &a.slice(), 3, 10.0, 0.0).unwrap();
    assert_eq!(c.read().unwrap(), b.read().unwrap());
    let failed = q.record(|_| Err(genevar::Error::data("no", "never")));
    assert!(failed.is_err());
    let told = q.record(|_| Ok(())).err().map(|e| e.to_string());
    graph.replay().unwrap();
    assert_eq!(b.read().unwrap(), [30.0, 50.0, 70.0], "after {told:?}");
}

/// Each launch reads all that the one before wrote, in another order of blocks.
#[test]
fn launches_that_overlap_wait_for_those_before() {
    let Some(q) = queue() else { return };
    let able = q.gpu().facts().capability.0 >= 9;
    let start = noise(1 << 16, 3);
    let chain = |on: bool, recorded: bool| {
        let q = q.gpu().queue().unwrap().overlapped(on);
        let mut one = Buffer::from_slice(&q, &start).unwrap();
        let mut two = Buffer::<f32>::new(&q, start.len()).unwrap();
        let mut run = |q: &Queue| {
            for i in 0..20 {
                let (blocks, few) = (if i % 3 == 0 { 64 } else { 3 }, i % 5 == 4);
                let (grid, n) = (Grid::line(blocks, 256), if few { 4096 } else { 65536 });
                let (to, from) = (&mut two.slice_mut(), &one.slice());
                elementwise::affine_fwd(q, grid, to, from, n, -1.01, 0.25)?;
                let (to, from) = (&mut one.slice_mut(), &two.slice());
                elementwise::affine_fwd(q, grid, to, from, n, 0.99, 0.5)?;
            }
            Ok(())
        };
        let (done, launches) = q.trace(|| match recorded {
            true => q.record(run).unwrap().replay(),
            false => run(&q),
        });
        done.unwrap();
        assert!(launches.len() == 40 && launches.iter().all(|l| l.overlaps == (on && able)));
        one.read().unwrap()
    };
    let want = chain(false, false);
    assert!(chain(true, false) == want && chain(true, true) == want && chain(false, true) == want);
}

#[test]
fn the_first_kernel_whose_result_is_not_finite_is_named() {
    let Some(q) = queue() else { return };
    let q = q.checked(true);
    let x = Buffer::from_slice(&q, &[1.0f32, 1e30, 2.0]).unwrap();
    let mut y = Buffer::<f32>::new(&q, 3).unwrap();
    activation::abs_fwd(&q, grid(), &mut y.slice_mut(), &x.slice(), 3).unwrap();
    let told = activation::square_fwd(&q, grid(), &mut y.slice_mut(), &x.slice(), 3);
    let told = told.unwrap_err().to_string();
    for part in ["square_fwd<f32>", "`y`", "1 of 3", "index 1"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}

#[test]
fn too_large_a_buffer_says_what_is_free() {
    let Some(q) = queue() else { return };
    let (_, all) = q.gpu().memory().unwrap();
    let told = Buffer::<f32>::new(&q, all).err().unwrap().to_string();
    for part in
        ["allocating", "are free", "MiB at most", "CUDA_ERROR_OUT_OF_MEMORY", "smaller batch"]
    {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let before = q.gpu().high_water().unwrap();
    let held = Buffer::<f32>::new(&q, 1 << 20).unwrap();
    q.synchronize().unwrap();
    let after = q.gpu().high_water().unwrap();
    assert!(after >= before && after >= 4 << 20, "{before} {after}");
    drop(held);
}

/// The nearest bf16.
fn narrow(x: &[f32]) -> Vec<Bf16> {
    x.iter().map(|&x| Bf16::from_f32(x)).collect()
}

/// A bf16 kernel computes in f32 and rounds once: on the same inputs it gives the f32 kernel's
/// results to the nearest bf16.
fn rounds_once(wide: &[f32], got: &[Bf16], what: &str) {
    for (i, (w, g)) in wide.iter().zip(got).enumerate() {
        assert_eq!(Bf16::from_f32(*w).to_bits(), g.to_bits(), "{what}[{i}]: {w} and {g}");
    }
}

#[test]
fn bf16_kernels_round_once() {
    let Some(q) = queue() else { return };
    for (rows, cols) in [(1, 1), (3, 17), (5, 64), (2, 700)] {
        let n = rows * cols;
        let x = narrow(&noise(n, 3));
        let x32: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let (x, x32) = (Buffer::from_slice(&q, &x).unwrap(), Buffer::from_slice(&q, &x32).unwrap());
        let (x, x32) = (x.slice(), x32.slice());
        let mut y = Buffer::<Bf16>::new(&q, n).unwrap();
        let mut y32 = Buffer::<f32>::new(&q, n).unwrap();
        let mut stat = Buffer::<f32>::new(&q, rows).unwrap();
        macro_rules! both {
            ($module:ident, $entry:ident $(, $more:expr)*) => {
                $module::$entry(&q, grid(), &mut y.slice_mut(), &x, n $(, $more)*).unwrap();
                $module::$entry(&q, grid(), &mut y32.slice_mut(), &x32, n $(, $more)*).unwrap();
                rounds_once(&y32.read().unwrap(), &y.read().unwrap(), stringify!($entry));
            };
        }
        both!(activation, gelu_fwd);
        both!(activation, silu_fwd);
        both!(activation, tanh_fwd);
        both!(activation, exp_fwd);
        both!(activation, softplus_fwd);
        both!(activation, square_fwd);
        both!(activation, abs_fwd);
        both!(activation, leaky_relu_fwd, 0.2);
        both!(activation, clamp_fwd, -0.5, 0.5);
        both!(elementwise, affine_fwd, 1.5, -0.25);
        macro_rules! rows {
            ($entry:ident) => {
                let (y, y32) = (&mut y, &mut y32);
                let mut at = stat.slice_mut();
                norm::$entry(&q, grid(), &mut y.slice_mut(), &mut at, &x, rows, cols, 1e-6)
                    .unwrap();
                norm::$entry(&q, grid(), &mut y32.slice_mut(), &mut at, &x32, rows, cols, 1e-6)
                    .unwrap();
                rounds_once(&y32.read().unwrap(), &y.read().unwrap(), stringify!($entry));
            };
        }
        rows!(layer_norm_fwd);
        rows!(l2_normalize_fwd);
    }
}

/// Extents of a product a w^T.
const SIZES: [usize; 3] = [5, 72, 40];

/// Small whole numbers: sums of their products are exact in bf16, in any order.
fn whole(n: usize, seed: u64) -> Vec<f32> {
    noise(n, seed).iter().map(|x| x.clamp(-1.0, 1.0).round()).collect()
}

/// To a type of elements and back.
type Types<T> = (fn(&f32) -> T, fn(&T) -> f32);

/// A launch of a product, on buffers that begin one to three elements into theirs.
fn begins_anywhere<T: Element>(
    q: &Queue,
    what: &str,
    (narrow, wide): Types<T>,
    launch: impl Fn(&mut SliceMut<'_, T>, &Slice<'_, T>, &Slice<'_, T>) -> genevar::Result<()>,
) {
    let [m, n, k] = SIZES;
    let (a, w) = (whole(m * k, 5), whole(n * k, 6));
    let dot = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * w[j * k + l]).sum::<f32>();
    let want: Vec<f32> = (0..m * n).map(|at| dot(at / n, at % n)).collect();
    for by in 1..=3 {
        let shifted = |x: &[f32]| -> Vec<T> { x[..by].iter().chain(x).map(narrow).collect() };
        let a = Buffer::from_slice(q, &shifted(&a)).unwrap();
        let w = Buffer::from_slice(q, &shifted(&w)).unwrap();
        let mut y = Buffer::from_slice(q, &vec![narrow(&7.0); by + m * n]).unwrap();
        let (a, w) = (a.slice(), w.slice());
        let (a, w) = (a.part(by..a.len()).unwrap(), w.part(by..w.len()).unwrap());
        launch(&mut y.slice_mut().part(by..by + m * n).unwrap(), &a, &w).unwrap();
        let got: Vec<f32> = y.read().unwrap().iter().map(wide).collect();
        assert_eq!(got[by..], want, "{what}, {by}");
        assert_eq!(got[..by], [7.0; 3][..by], "{what}, {by}");
    }
}

#[test]
fn products_begin_at_any_address() {
    let Some(q) = queue() else { return };
    let [m, n, k] = SIZES;
    let narrow: Types<Bf16> = (|x| Bf16::from_f32(*x), |x| x.to_f32());
    macro_rules! tiles {
        ($entry:ident, $t:ty, $side:literal, $threads:literal, $types:expr) => {
            begins_anywhere::<$t>(&q, stringify!($entry $side), $types, |y, a, w| {
                let (grid, no) = (Grid::line(2, $threads), Slice::none(&q));
                let (mut kept, mut part) = (SliceMut::none(&q), SliceMut::none(&q));
                gemm::$entry::<$t, $side, false, true>(
                    &q, grid, y, &mut kept, &mut part, a, w, &no, &no, &no, 1, m, n, k, 1, 1, 0,
                    0, 0, 0, 0, 0,
                )
            });
        };
    }
    tiles!(matmul_fma_fwd, f32, 64, 256, (|x| *x, |x| *x));
    tiles!(matmul_fma_fwd, f32, 128, 256, (|x| *x, |x| *x));
    tiles!(matmul_mma_fwd, Bf16, 64, 128, narrow);
    tiles!(matmul_mma_fwd, Bf16, 128, 128, narrow);
    macro_rules! few {
        ($entry:ident, $t:ty, $types:expr) => {
            begins_anywhere::<$t>(&q, stringify!($entry), $types, |y, a, w| {
                let (grid, no) = (Grid::line(2, 256), Slice::none(&q));
                let mut kept = SliceMut::none(&q);
                gemm::$entry::<$t, 8>(
                    &q, grid, y, &mut kept, a, w, &no, &no, &no, 1, m, m, n, k, 2, 0, 0, 0, 0, 0,
                    0, 0, 0,
                )
            });
        };
    }
    few!(matmul_dot_fwd, f32, (|x| *x, |x| *x));
    few!(matmul_dot_mma_fwd, Bf16, narrow);
}

/// The bits that a variant of an op gives, or the fastest, for a batch of maps beside weights.
fn bits(
    q: &Queue,
    (op, precision, variant): (&dyn DynOp, Precision, Option<&str>),
    x: &[(Shape, Vec<f32>); 2],
) -> Vec<u32> {
    let held = x.each_ref().map(|(_, x)| match precision {
        Precision::F32 => OnGpu::F32(Buffer::from_slice(q, x).unwrap()),
        Precision::Bf16 => OnGpu::Bf16(Buffer::from_slice(q, &narrow(x)).unwrap()),
    });
    let shape = op.shapes(&[&x[0].0, &x[1].0]).unwrap().swap_remove(0);
    let y = match precision {
        Precision::F32 => OnGpu::F32(Buffer::new(q, shape.len()).unwrap()),
        Precision::Bf16 => OnGpu::Bf16(Buffer::new(q, shape.len()).unwrap()),
    };
    let mut y = [CudaOut::new(shape, y)];
    let x = [0, 1].map(|i| CudaIn::new(&x[i].0, &held[i]));
    op.cuda(q, precision, variant, &x, &mut y).unwrap();
    match y[0].held() {
        OnGpu::F32(y) => y.read().unwrap().iter().map(|y| y.to_bits()).collect(),
        OnGpu::Bf16(y) => y.read().unwrap().iter().map(|y| u32::from(y.to_bits())).collect(),
        OnGpu::I32(_) => panic!("a convolution of whole numbers"),
    }
}

#[test]
fn a_sample_has_the_same_convolution_in_every_batch() {
    let Some(q) = queue() else { return };
    // Variants that batches of other sizes take: sums in parts, and sums in one piece.
    let parts = ["parts of k", "tiles 64"];
    let whole = ["tiles 128", "tiles 64", "tiles 128 x 32"];
    for (channels, side, variants) in [(256, 4usize, &parts[..]), (16, 9, &whole[..])] {
        for stride in [1, 2] {
            let conv = Conv2d { stride, ..Conv2d::same(3) };
            let down = side.div_ceil(stride);
            let weights = conv.weights(channels, channels);
            let weights = (weights.clone(), noise(weights.len(), 7));
            let dx = Conv2dDx { conv: conv.clone(), size: [side; 2] };
            for (op, side) in [(&conv as &dyn DynOp, side), (&dx, down)] {
                let each = side * side * channels;
                let maps = noise(3 * each, 8);
                let of = |n: usize, maps: &[f32]| {
                    [(Shape::from([n, side, side, channels]), maps.to_vec()), weights.clone()]
                };
                for precision in [Precision::F32, Precision::Bf16] {
                    let own = &maps[each..2 * each];
                    let alone = bits(&q, (op, precision, None), &of(1, own));
                    for &name in variants {
                        if precision == Precision::F32 && name == "tiles 128 x 32" {
                            continue;
                        }
                        let all = bits(&q, (op, precision, Some(name)), &of(3, &maps));
                        let same = all[alone.len()..2 * alone.len()] == alone[..];
                        assert!(same, "{}, {name}, {precision:?}, stride {stride}", op.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_sample_has_the_same_product_by_wgmma_in_every_batch() {
    let Some(q) = queue() else { return };
    let site = Site::on(Precision::Bf16, q.gpu());
    // Sums in parts, and in one piece.
    for [rows, k, outs] in [[130, 520, 72], [128, 64, 2200]] {
        let weights = (Shape::from([outs, k]), noise(outs * k, 7));
        let x = noise(3 * rows * k, 8);
        let of = |n: usize, x: &[f32]| [(Shape::from([n, rows, k]), x.to_vec()), weights.clone()];
        let chosen = Linear.fastest(site, &[&Shape::from([1, rows, k]), &weights.0]);
        if chosen != Some("tiles by wgmma") {
            return eprintln!("left out: the GPU is no Hopper, its choice is {chosen:?}");
        }
        let alone = bits(&q, (&Linear, Precision::Bf16, None), &of(1, &x[rows * k..2 * rows * k]));
        let all = bits(&q, (&Linear, Precision::Bf16, None), &of(3, &x));
        assert!(all[alone.len()..2 * alone.len()] == alone[..], "{rows} rows");
    }
}

/// One block that goes from tile to tile fills and empties its stages as many do.
#[test]
fn a_product_by_wgmma_does_not_depend_on_the_number_of_blocks() {
    let Some(q) = queue() else { return };
    let [m, n, k] = [200, 264, 136];
    let entry = <Bf16 as gemm_wgmma::matmul_wgmma_fwd::Instance<false, true>>::ENTRY;
    if !q.gpu().serves(entry.module) {
        return eprintln!("left out: the GPU is no Hopper");
    }
    let upload = |len, seed| Buffer::<Bf16>::from_slice(&q, &narrow(&noise(len, seed))).unwrap();
    let (a, b, bias) = (upload(m * k, 1), upload(n * k, 2), upload(n, 3));
    let [one, all] = [1, 6].map(|blocks| {
        let mut y = Buffer::<Bf16>::new(&q, m * n).unwrap();
        gemm_wgmma::matmul_wgmma_fwd::<Bf16, false, true>(
            &q,
            Grid::line(blocks, 288),
            &mut y.slice_mut(),
            &mut SliceMut::none(&q),
            &mut SliceMut::none(&q),
            &a.slice(),
            &b.slice(),
            &bias.slice(),
            &Slice::none(&q),
            &Slice::none(&q),
            1,
            m,
            n,
            k,
            1,
            1,
            0,
            1,
            0,
            0,
            0,
            0,
        )
        .unwrap();
        y.read().unwrap()
    });
    assert!(one.iter().any(|y| y.to_f32() != 0.0) && one == all);
}

#[test]
fn no_kernel_spills_and_every_one_has_a_floor() {
    if !gpu::has_kernels() {
        return;
    }
    for e in &launch::ENTRIES {
        assert!(!e.symbol.is_empty() && !e.resources.is_empty() && e.awaits, "{e}");
        for r in e.resources {
            assert_eq!((r.spill_stores, r.spill_loads, r.stack), (0, 0, 0), "{e} on {}", r.arch);
        }
        assert!(e.card.contains("floor") && e.card.contains("bits"), "{e}");
    }
}
