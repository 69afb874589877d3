//! The CUDA faces of ops: inputs and outputs as buffers on a GPU, and how a launch is shaped.

use super::DynOp;
use crate::device::cuda::{Buffer, Gpu, Queue};
use crate::device::kernel::{Entry, Grid, Slice, SliceMut};
use crate::device::launch::layout as launch;
use crate::device::{Held, OnGpu};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// What the real elements of an op are on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// binary32.
    F32,
    /// bfloat16, computed with in f32; what [`super::Op::F32_INPUTS`] and
    /// [`super::Op::F32_OUTPUTS`] name stays in f32.
    Bf16,
}

/// The CUDA face of an op at one precision: launches into the queue, nothing else. Outputs are of
/// the op's shapes.
pub type CudaFace<O> = fn(&O, &Queue, &[CudaIn<'_>], &mut [CudaOut]) -> Result<()>;

/// In what an op is to run, and on which GPU; without one, on any that there is.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// What the real elements are.
    pub precision: Precision,
    /// The GPU.
    pub gpu: Option<&'a Gpu>,
}

impl<'a> Site<'a> {
    /// On this GPU.
    pub fn on(precision: Precision, gpu: &'a Gpu) -> Self {
        Self { precision, gpu: Some(gpu) }
    }

    /// On any.
    pub fn any(precision: Precision) -> Self {
        Self { precision, gpu: None }
    }

    /// Whether a kernel runs here.
    pub fn serves(&self, entry: &'static Entry) -> bool {
        self.gpu.is_none_or(|gpu| gpu.serves(entry.module))
    }
}

/// One way to run an op on the GPU.
pub struct Variant<O> {
    /// What sets it apart.
    pub name: &'static str,
    /// With elements in f32.
    pub f32: Option<CudaFace<O>>,
    /// With elements in bf16.
    pub bf16: Option<CudaFace<O>>,
    /// Whether it takes these shapes.
    pub takes: fn(&O, &[&Shape]) -> bool,
    /// A kernel without which it cannot run, where not every GPU has it.
    pub needs: Option<&'static Entry>,
}

/// All ways to run an op on the GPU. They pass the same tests.
pub struct Kernels<O: 'static> {
    /// The ways; none where the op has no kernels.
    pub variants: &'static [Variant<O>],
    /// The index of the fastest for these shapes, found by `cargo bench`. It must take them, and
    /// run there.
    pub fastest: fn(&O, Site<'_>, &[&Shape]) -> usize,
}

impl<O> Kernels<O> {
    /// No kernels yet.
    pub const NONE: Self = Self { variants: &[], fastest: |_, _, _| 0 };
}

impl<O> Variant<O> {
    /// Whether it takes these shapes there.
    pub(super) fn fits(&self, op: &O, site: Site<'_>, x: &[&Shape]) -> bool {
        let runs = self.needs.is_none_or(|entry| site.serves(entry));
        runs && self.at(site.precision).is_some() && (self.takes)(op, x)
    }

    pub(super) fn at(&self, precision: Precision) -> Option<CudaFace<O>> {
        match precision {
            Precision::F32 => self.f32,
            Precision::Bf16 => self.bf16,
        }
    }
}

/// A [`Variant`] that takes all shapes: its name, its precisions, and the launch, in which `T` is
/// the type of the elements.
macro_rules! variant {
    ($name:literal, [f32, bf16], $face:expr) => {
        $crate::ops::cuda::Variant {
            bf16: Some({
                type T = $crate::device::kernel::Bf16;
                $face
            }),
            ..$crate::ops::cuda::variant!($name, [f32], $face)
        }
    };
    ($name:literal, [f32], $face:expr) => {
        $crate::ops::cuda::Variant {
            name: $name,
            f32: Some({
                type T = f32;
                $face
            }),
            bf16: None,
            takes: |_, _| true,
            needs: None,
        }
    };
}
pub(crate) use variant;

/// The [`Kernels`] of an op with one variant.
macro_rules! kernels {
    ([$($precision:ident),+], $face:expr) => {
        $crate::ops::cuda::Kernels {
            variants: &[$crate::ops::cuda::variant!("only", [$($precision),+], $face)],
            fastest: |_, _, _| 0,
        }
    };
}
pub(crate) use kernels;

/// Threads of a block, unless a kernel says otherwise.
pub const THREADS: u32 = 256;
/// Multiprocessors that a launch of tiles should fill: those of an H100. A constant, so that the
/// same shapes give the same bits on every card that runs the same variant.
pub(super) const PROCESSORS: usize = 132;
/// Blocks that a multiprocessor is given when the grid strides.
const BLOCKS_EACH: usize = 8;

/// An input as a CUDA face sees it.
#[derive(Clone, Copy)]
pub struct CudaIn<'a> {
    /// Extents.
    pub shape: &'a Shape,
    held: &'a OnGpu,
}

impl<'a> CudaIn<'a> {
    /// An input of this shape.
    pub fn new(shape: &'a Shape, held: &'a OnGpu) -> Self {
        Self { shape, held }
    }

    /// The elements.
    ///
    /// # Errors
    /// Elements of another type.
    pub fn get<T: Held>(&self) -> Result<Slice<'a, T>> {
        T::held(self.held).map(Buffer::slice).ok_or_else(|| mistaken::<T>("input", self.held))
    }
}

/// An output as a CUDA face sees it.
pub struct CudaOut {
    shape: Shape,
    held: OnGpu,
    /// Where it lies in what is held, if that is more than the output.
    window: Option<Window>,
    /// Whether a face asked for it.
    written: bool,
}

/// Where an output [B, n, ..] lies in what holds it: from position `at` on of each sample's `room`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Positions of each sample.
    pub room: usize,
    /// The first that is written.
    pub at: usize,
}

impl CudaOut {
    /// An output of this shape.
    pub fn new(shape: Shape, held: OnGpu) -> Self {
        Self { shape, held, window: None, written: false }
    }

    /// An output that is written into a part of what is held.
    fn within(self, window: Window) -> Self {
        Self { window: Some(window), ..self }
    }

    /// Where it lies in what [`CudaOut::get_within`] gives.
    pub fn window(&self) -> Window {
        let own = Window { room: self.shape.dims().get(1).copied().unwrap_or(1), at: 0 };
        self.window.unwrap_or(own)
    }

    /// The elements.
    pub fn held(&self) -> &OnGpu {
        &self.held
    }

    /// The elements, to be written.
    ///
    /// # Errors
    /// Elements of another type; an output that is a part of what is held.
    pub fn get<T: Held>(&mut self) -> Result<SliceMut<'_, T>> {
        match self.window {
            None => self.get_within(),
            Some(_) => Err(Error::Internal("this output cannot be a part of a larger one".into())),
        }
    }

    /// What holds the output, of which the [`Window`] is to be written and the rest left as it is.
    ///
    /// # Errors
    /// Elements of another type.
    pub fn get_within<T: Held>(&mut self) -> Result<SliceMut<'_, T>> {
        self.written = true;
        match T::held(&self.held).is_some() {
            false => Err(mistaken::<T>("output", &self.held)),
            true => T::held_mut(&mut self.held)
                .map(Buffer::slice_mut)
                .ok_or_else(|| Error::Internal("an output changed its type".into())),
        }
    }
}

fn mistaken<T: Held>(what: &str, held: &OnGpu) -> Error {
    Error::Internal(format!("an {what} of {} taken for {}", held.element(), T::NAME))
}

/// Runs an op's fastest variant: in bf16 where one of its inputs is, unless it has no such kernels,
/// else in f32. Inputs of another type are rounded or widened, those in the CPU's memory are copied
/// to the GPU first; outputs stay there.
///
/// # Errors
/// An op without kernels, inputs in f64, and those of the driver.
pub(super) fn run(
    queue: &Queue,
    op: &dyn DynOp,
    x: &[&Tensor],
    outs: Vec<Shape>,
) -> Result<Vec<Tensor>> {
    run_in(queue, precision(queue, op, x), op, x, outs.into_iter().map(Goes::New).collect())
}

/// bf16 where an input is that kernels do not want in f32, if there are such kernels.
pub(super) fn precision(queue: &Queue, op: &dyn DynOp, x: &[&Tensor]) -> Precision {
    let halved = |(i, t): (usize, &&Tensor)| !op.f32_inputs().contains(&i) && OnGpu::is_bf16(t);
    let shapes: Vec<&Shape> = x.iter().map(|t| t.shape()).collect();
    let bf16 = x.iter().enumerate().any(halved);
    match bf16 && !op.variants(Site::on(Precision::Bf16, queue.gpu()), &shapes).is_empty() {
        true => Precision::Bf16,
        false => Precision::F32,
    }
}

/// Where an output goes.
pub(super) enum Goes {
    /// Into memory of its own.
    New(Shape),
    /// Into a part of a tensor of this shape: [B, room, ..].
    Into(Shape, OnGpu, Window),
}

/// What the kernels take as input `i`, if that is not the tensor itself.
fn taken(
    queue: &Queue,
    (op, precision): (&dyn DynOp, Precision),
    (i, t): (usize, &Tensor),
) -> Result<Option<OnGpu>> {
    let sent = match OnGpu::of(t) {
        Some(_) => None,
        None => Some(OnGpu::upload(queue, t)?),
    };
    let bf16 = precision == Precision::Bf16 && !op.f32_inputs().contains(&i);
    let grid = over_elements(queue, t.len());
    match (sent.as_ref().or_else(|| OnGpu::of(t)), bf16) {
        (Some(OnGpu::F32(x)), true) => {
            let mut y = Buffer::new(queue, x.len())?;
            launch::round_fwd(queue, grid, &mut y.slice_mut(), &x.slice(), x.len())?;
            Ok(Some(OnGpu::Bf16(y)))
        }
        (Some(OnGpu::Bf16(x)), false) => {
            let mut y = Buffer::new(queue, x.len())?;
            launch::widen_fwd(queue, grid, &mut y.slice_mut(), &x.slice(), x.len())?;
            Ok(Some(OnGpu::F32(y)))
        }
        _ => Ok(sent),
    }
}

/// [`run`] in this precision.
pub(super) fn run_in(
    queue: &Queue,
    precision: Precision,
    op: &dyn DynOp,
    x: &[&Tensor],
    outs: Vec<Goes>,
) -> Result<Vec<Tensor>> {
    let put = |(i, t): (usize, &&Tensor)| taken(queue, (op, precision), (i, t));
    let copied = x.iter().enumerate().map(put).collect::<Result<Vec<_>>>()?;
    let mut ins = Vec::with_capacity(x.len());
    for (t, copy) in x.iter().zip(&copied) {
        let held = copy.as_ref().or_else(|| OnGpu::of(t));
        let held = held.ok_or_else(|| Error::Internal("an input that is nowhere".into()))?;
        ins.push(CudaIn::new(t.shape(), held));
    }
    let out = |(i, goes): (usize, Goes)| -> Result<CudaOut> {
        let shape = match goes {
            Goes::New(shape) => shape,
            Goes::Into(whole, held, at) => return Ok(CudaOut::new(whole, held).within(at)),
        };
        let wide = precision == Precision::F32 || op.f32_outputs().contains(&i);
        let held = match (op.int_outputs().contains(&i), wide) {
            (true, _) => OnGpu::I32(Buffer::new(queue, shape.len())?),
            (_, true) => OnGpu::F32(Buffer::new(queue, shape.len())?),
            _ => OnGpu::Bf16(Buffer::new(queue, shape.len())?),
        };
        Ok(CudaOut::new(shape, held))
    };
    let mut outs = outs.into_iter().enumerate().map(out).collect::<Result<Vec<_>>>()?;
    op.cuda(queue, precision, None, &ins, &mut outs)?;
    if let Some(i) = outs.iter().position(|o| !o.written) {
        return Err(Error::Internal(format!("{}: its kernels leave output {i} out", op.name())));
    }
    let outs = outs.into_iter().map(|o| Tensor::away(o.held, o.shape));
    let outs = outs.collect::<Result<Vec<_>>>()?;
    if queue.verifies() {
        let seen = |(t, copy): (&&Tensor, Option<OnGpu>)| match copy {
            Some(held) => Tensor::away(held, t.shape()),
            None => Ok((*t).clone()),
        };
        let seen = x.iter().zip(copied).map(seen).collect::<Result<Vec<_>>>()?;
        super::verify::outputs(op, &seen.iter().collect::<Vec<_>>(), &outs)?;
    }
    Ok(outs)
}

/// A grid that strides over `n` elements, four to a thread at a time.
pub fn over_elements(queue: &Queue, n: usize) -> Grid {
    strided(queue, n.div_ceil(4 * THREADS as usize))
}

/// A grid that strides over `rows` rows, one warp a row.
pub fn warp_per_row(queue: &Queue, rows: usize) -> Grid {
    strided(queue, rows.div_ceil(THREADS as usize / 32))
}

/// A grid that strides over `jobs` jobs, one block a job.
pub fn block_per_job(queue: &Queue, jobs: usize) -> Grid {
    strided(queue, jobs)
}

fn strided(queue: &Queue, blocks: usize) -> Grid {
    let processors = usize::try_from(queue.gpu().facts().multiprocessors).unwrap_or(1);
    Grid::line(blocks.min(BLOCKS_EACH * processors.max(1)), THREADS)
}

/// How a small operand spreads over a large one: axes kept (k) and repeated (r) in turn, as
/// kernels/lib/broadcast.cuh reads them: large [k0, r0, k1, r1, k2], small [k0, k1, k2].
///
/// # Errors
/// A spread with more turns, which takes more than four axes.
pub fn spread(op: &'static str, large: &Shape, small: &Shape) -> Result<[usize; 5]> {
    let (l, s) = (large.dims(), small.dims());
    let missing = l.len().saturating_sub(s.len());
    let mut groups = [1; 5];
    let mut at = 0;
    for (i, &extent) in l.iter().enumerate().filter(|(_, extent)| **extent != 1) {
        let own = if i < missing { 1 } else { s[i - missing] };
        // Even places are kept, odd ones repeated.
        if (own == 1) != (at % 2 == 1) {
            at += 1;
        }
        match groups.get_mut(at) {
            Some(group) => *group *= extent,
            None => {
                let what = format!("kernels cannot spread {small} over {large}: merge some axes");
                return Err(Error::shape(op, what));
            }
        }
    }
    // What is kept last is the row that packets run along.
    if let [_, _, k1, 1, k2 @ 1] = &mut groups {
        std::mem::swap(k1, k2);
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_merged_into_turns() {
        let of = |l: &[usize], s: &[usize]| spread("axpy", &l.into(), &s.into());
        assert_eq!(of(&[4, 5], &[4, 5]).unwrap(), [20, 1, 1, 1, 1]);
        assert_eq!(of(&[4, 5], &[5]).unwrap(), [1, 4, 1, 1, 5]);
        assert_eq!(of(&[4, 5], &[]).unwrap(), [1, 20, 1, 1, 1]);
        assert_eq!(of(&[2, 3, 5], &[2, 1, 5]).unwrap(), [2, 3, 1, 1, 5]);
        assert_eq!(of(&[2, 3, 5, 7], &[3, 1, 7]).unwrap(), [1, 2, 3, 5, 7]);
        assert_eq!(of(&[2, 3, 5, 7], &[2, 1, 5, 1]).unwrap(), [2, 3, 5, 7, 1]);
        assert_eq!(of(&[1, 1], &[1]).unwrap(), [1; 5]);
        assert_eq!(of(&[0, 4], &[1, 4]).unwrap(), [1, 0, 1, 1, 4]);
        assert!(of(&[2, 3, 5, 7, 9], &[1, 3, 1, 7, 1]).is_err());
    }
}
