//! The op table: every operation of the system, one row each in [`OPS`].
//!
//! Tests, benches and the docs' table are derived from it. An op that no row names is dead code.

pub mod activation;
pub mod ada_block;
pub mod attention;
pub mod augment;
pub mod batch_norm;
mod broadcast;
pub mod cases;
pub mod composed;
pub mod conv;
pub mod cuda;
pub mod depthwise;
pub mod elementwise;
pub mod embed;
pub mod fast;
pub mod flow;
pub mod gemm;
pub mod group_norm;
pub mod kinds;
mod lanes;
pub mod layout;
mod listen;
pub mod loss;
pub mod mask;
pub mod norm;
pub mod op;
pub mod optim;
pub mod pyramid;
pub mod quantize;
pub mod random;
pub mod real;
pub mod reduce;
pub mod resample;
pub mod sample;
mod saved;
mod table;
pub mod usage;
mod verify;
pub mod watch;

use cuda::Goes;
use half::bf16;

use crate::device::mmap::Halves;
use crate::device::{Device, OnGpu, shared};
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Tensor};

pub use cases::{Case, Cases, Draw, Fill, Input};
pub use cuda::{CudaIn, CudaOut, Kernels, Precision, Site, Variant, Window};
pub use listen::{Ran, Timed, heard, timed};
pub use op::{CpuFace, Diff, DynOp, FIRST_ORDER, Grads, In, Op, Out};
pub use real::{Dual, Real, Running};
pub use saved::{Saved, Saves};
pub use table::{CHECKS, COMPOSED_CHECKS, CUDA_CHECKS, RULE_CHECKS, Told, table, table_markdown};

/// A row of the table.
pub struct Row {
    /// [`Op::NAME`].
    pub name: &'static str,
    /// The family: the file's name in this folder and in `kernels/`.
    pub family: &'static str,
    /// [`Op::cases`].
    pub cases: fn() -> Cases,
}

macro_rules! table {
    ($($family:ident: $($op:ident),+ $(,)?;)*) => {
        /// Every op.
        pub static OPS: &[Row] = &[$($(
            Row {
                name: <$family::$op as Op>::NAME,
                family: stringify!($family),
                cases: <$family::$op as Op>::cases,
            },
        )+)*];
    };
}

table! {
    elementwise: Axpy, Mul, Affine, Modulate, GatedAdd;
    activation: Gelu, GeluVjp, Silu, SiluVjp, SiluDual, LeakyRelu, LeakyReluVjp, Tanh, TanhVjp,
        Exp, ExpVjp, Softplus, SoftplusVjp, Square, SquareVjp, Abs, AbsVjp, Clamp, ClampVjp, Power,
        PowerVjp;
    reduce: SumTo, BroadcastTo;
    gemm: MatMul, Linear, FusedLinear, PartedLinear, LinearDual;
    layout: Narrow, Place, Concat, Reshape, Part, Round, Widen;
    norm: LayerNorm, LayerNormVjp, RmsNorm, RmsNormVjp, L2Normalize, L2NormalizeVjp,
        AdaNorm, AdaNormJvp, AdaNormVjp, AdaNormDual, UnitHeads;
    batch_norm: BatchNormTrain, BatchNormTrainVjp;
    ada_block: AdaBlock;
    attention: Attention, AttentionJvp, AttentionVjp, AttentionDual;
    depthwise: DepthwiseConv;
    conv: Conv2d, FusedConv, NormedConv, Conv2dDx, Conv2dDw;
    embed: GatherRows, ScatterRows, TimeEmbed, TimeEmbedSlope, TimeEmbedDual;
    loss: CrossEntropy, CrossEntropyVjp;
    flow: FlowPath, FlowLoss, FlowLossVjp;
    mask: KeepMask, KeepCoins, SelectRows, MaskRows;
    sample: SampleToken;
    random: RandomUniform, RandomNormal, DropoutMask, UniformRows, NormalRows, SwapTokens;
    optim: AdamW, GlobalNorm;
    watch: Watch, Commit;
    group_norm: GroupNorm, GroupNormJvp, GroupNormVjp;
    resample: Resample;
    quantize: NearestCode;
    pyramid: QuantisePyramid, QuantiseRests, QuantiseRestsVjp;
    usage: CodeUsage, ReviveCodes, CodeHealth, ReplaceRows;
    augment: StainHue, Contrast, Unsharp;
}

/// Runs an op on the device that its inputs are on, the CPU if none is elsewhere: [`run_on`].
pub fn run(op: &dyn DynOp, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    run_on(&Device::of(x.iter().copied()), op, x)
}

/// Runs an op on tensors: checks number, types and shapes, then the kernels, the fast path of the
/// CPU, or the reference in f64. Inputs in the CPU's memory are copied to where they are needed.
///
/// # Errors
/// Inputs that do not fit, an op that the device has no kernels for, and those of the device.
pub fn run_on(device: &Device, op: &dyn DynOp, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    let outs = checked_shapes(op, x)?;
    let on_cpu = matches!(device, Device::Cpu);
    listen::around(op, x, on_cpu, || run_there(device, op, x, outs))
}

fn run_there(
    device: &Device,
    op: &dyn DynOp,
    x: &[&Tensor],
    outs: Vec<Shape>,
) -> Result<Vec<Tensor>> {
    let dtype = float_type(op, x)?;
    if op.shares() {
        // The same elements: nothing is run, wherever they are.
        return outs.iter().map(|shape| x[0].reshape(shape)).collect();
    }
    if let (Some(index), [shape]) = (op.part(), &outs[..])
        && let Some(part) = shared(x[0], index * shape.len(), shape)?
    {
        return Ok(vec![part]);
    }
    match (device, dtype) {
        (Device::Cuda(queue), _) => cuda::run(queue, op, x, outs),
        (Device::Plan(meter), dtype) => {
            let one = |(i, shape): (usize, &Shape)| {
                let int = op.int_outputs().contains(&i);
                meter.tensor(if int { DType::I32 } else { dtype }, shape)
            };
            outs.iter().enumerate().map(one).collect()
        }
        (Device::Cpu, DType::F64) => {
            let ins = views(op, x, Tensor::f64s, |_, _| None)?;
            fill(op, outs, |y| op.reference_f64(&ins, y), Tensor::new_f64)
        }
        (Device::Cpu, _) => {
            let ins = views(op, x, Tensor::f32s, |shape, halves| Some(In::half(shape, halves)))?;
            fill(op, outs, |y| op.cpu(&ins, y), Tensor::new)
        }
    }
}

/// A tensor [B, room, ..] on a GPU, with no other handle, and the position from which on an output
/// [B, n, ..] is written into it.
pub struct Room {
    /// The tensor.
    pub tensor: Tensor,
    /// The position.
    pub at: usize,
}

/// Runs an op on a GPU, writing those outputs for which there is a room into that, in place: what
/// comes back for them is the whole tensor, the rest of it as it was.
///
/// # Errors
/// As [`run_on`]; a room that does not fit the output, or that others hold.
pub fn run_into(op: &dyn DynOp, x: &[&Tensor], rooms: Vec<Option<Room>>) -> Result<Vec<Tensor>> {
    let shapes = checked_shapes(op, x)?;
    let Device::Cuda(queue) = Device::of(x.iter().copied()) else {
        return Err(Error::Internal(format!("{} has room on a GPU alone", op.name())));
    };
    let precision = cuda::precision(&queue, op, x);
    let mut rooms = rooms.into_iter();
    let place = |shape: Shape| match rooms.next().flatten() {
        None => Ok(Goes::New(shape)),
        Some(room) => fitted(op, &shape, room),
    };
    let outs = shapes.into_iter().map(place).collect::<Result<Vec<_>>>()?;
    listen::around(op, x, false, || cuda::run_in(&queue, precision, op, x, outs))
}

/// An output of this shape in a room.
fn fitted(op: &dyn DynOp, shape: &Shape, room: Room) -> Result<Goes> {
    let (whole, at) = (room.tensor.shape().clone(), room.at);
    let (out, of) = (shape.dims(), whole.dims());
    let fits = out.len() >= 2
        && out.len() == of.len()
        && out[0] == of[0]
        && out[2..] == of[2..]
        && at + out[1] <= of[1];
    if !fits {
        return Err(Error::shape(op.name(), format!("{shape} at {at} does not fit into {whole}")));
    }
    let window = Window { room: of[1], at };
    let held = room.tensor.into_remote().and_then(|r| r.downcast::<OnGpu>());
    let shared = || Error::Internal(format!("{}: others hold what is written into", op.name()));
    Ok(Goes::Into(whole, *held.ok_or_else(shared)?, window))
}

/// Runs an op on the GPU that holds its input, in a precision; its first output.
fn run_in(precision: Precision, op: &dyn DynOp, x: &[&Tensor]) -> Result<Tensor> {
    let outs = checked_shapes(op, x)?;
    let none = || Error::Internal(format!("{} has no output on a GPU", op.name()));
    let Device::Cuda(queue) = Device::of(x.iter().copied()) else { return Err(none()) };
    let outs = outs.into_iter().map(Goes::New).collect();
    let outs = listen::around(op, x, false, || cuda::run_in(&queue, precision, op, x, outs))?;
    outs.into_iter().next().ok_or_else(none)
}

/// The shapes of an op's outputs for these inputs.
fn checked_shapes(op: &dyn DynOp, x: &[&Tensor]) -> Result<Vec<Shape>> {
    let wanted = op.inputs();
    if !wanted.contains(&x.len()) {
        let what = format!("wants {wanted:?} inputs, found {}", x.len());
        return Err(Error::shape(op.name(), what));
    }
    let shapes: Vec<&Shape> = x.iter().map(|t| t.shape()).collect();
    op.shapes(&shapes)
}

/// Runs an op and hands back its first output.
pub fn call(op: &dyn DynOp, x: &[&Tensor]) -> Result<Tensor> {
    let mut outs = run(op, x)?;
    match outs.is_empty() {
        false => Ok(outs.swap_remove(0)),
        true => Err(Error::Internal(format!("{} has no output", op.name()))),
    }
}

/// The inputs as a face sees them; those in bf16 as `halves` makes them, where the op takes such.
fn views<'a, R>(
    op: &dyn DynOp,
    x: &[&'a Tensor],
    reals: impl Fn(&'a Tensor) -> Result<&'a [R]>,
    halves: impl Fn(&'a Shape, &'a [bf16]) -> Option<In<'a, R>>,
) -> Result<Vec<In<'a, R>>> {
    let stays = |i: usize, t: &'a Tensor| match op.halves().contains(&i) {
        true => Halves::of(t).and_then(|h| halves(t.shape(), h.elements())),
        false => None,
    };
    let one = |(i, &t): (usize, &&'a Tensor)| match (t.dtype(), stays(i, t)) {
        (DType::I32, _) => Ok(In::int(t.shape(), t.i32s()?)),
        (_, Some(kept)) => Ok(kept),
        _ => Ok(In::real(t.shape(), reals(t)?)),
    };
    x.iter().enumerate().map(one).collect()
}

/// The float type of the inputs; they must agree, and integers must be where the op wants them.
fn float_type(op: &dyn DynOp, x: &[&Tensor]) -> Result<DType> {
    let mut found = None;
    for (i, t) in x.iter().enumerate() {
        let int = t.dtype() == DType::I32;
        if int != op.int_inputs().contains(&i) {
            let want = if int { "real numbers" } else { "integers" };
            return Err(Error::shape(op.name(), format!("input {i} must hold {want}")));
        }
        if !int && *found.get_or_insert(t.dtype()) != t.dtype() {
            return Err(Error::shape(op.name(), "inputs mix F32 and F64"));
        }
    }
    Ok(found.unwrap_or(DType::F32))
}

fn fill<R: Real>(
    op: &dyn DynOp,
    shapes: Vec<Shape>,
    face: impl FnOnce(&mut [Out<'_, R>]),
    wrap: impl Fn(Vec<R>, Shape) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let is_int = |i: usize| op.int_outputs().contains(&i);
    let len = |i: usize, int: bool| if is_int(i) == int { shapes[i].len() } else { 0 };
    let mut reals: Vec<Vec<R>> =
        (0..shapes.len()).map(|i| vec![R::of(0.0); len(i, false)]).collect();
    let mut ints: Vec<Vec<i32>> = (0..shapes.len()).map(|i| vec![0; len(i, true)]).collect();
    let mut views: Vec<Out<'_, R>> = (0..)
        .zip(reals.iter_mut().zip(&mut ints))
        .map(|(i, (r, n))| if is_int(i) { Out::Int(n) } else { Out::Real(r) })
        .collect();
    face(&mut views);
    drop(views);
    (0..)
        .zip(shapes.iter().cloned().zip(reals.into_iter().zip(ints)))
        .map(|(i, (s, (r, n)))| if is_int(i) { Tensor::new_i32(n, s) } else { wrap(r, s) })
        .collect()
}
