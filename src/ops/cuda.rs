//! The CUDA faces of ops: inputs and outputs as buffers on a GPU, and how a launch is shaped.

use super::{DynOp, float_type};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Grid, Slice, SliceMut};
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Tensor};

/// The CUDA face of an op: launches into the queue, nothing else. Outputs are of the op's shapes.
pub type CudaFace<O> = fn(&O, &Queue, &[CudaIn<'_>], &mut [CudaOut]) -> Result<()>;

/// Threads of a block, unless a kernel says otherwise.
pub const THREADS: u32 = 256;
/// Blocks that a multiprocessor is given when the grid strides.
const BLOCKS_EACH: usize = 8;

/// Elements on the GPU.
pub enum OnGpu {
    /// Real numbers.
    Real(Buffer<f32>),
    /// Integers.
    Int(Buffer<i32>),
}

impl OnGpu {
    fn new(queue: &Queue, len: usize, int: bool) -> Result<Self> {
        match int {
            true => Ok(Self::Int(Buffer::new(queue, len)?)),
            false => Ok(Self::Real(Buffer::new(queue, len)?)),
        }
    }

    fn upload(queue: &Queue, t: &Tensor) -> Result<Self> {
        match t.dtype() {
            DType::I32 => Ok(Self::Int(Buffer::from_slice(queue, t.i32s()?)?)),
            _ => Ok(Self::Real(Buffer::from_slice(queue, t.f32s()?)?)),
        }
    }

    fn tensor(&self, shape: &Shape) -> Result<Tensor> {
        match self {
            Self::Real(b) => Tensor::new(b.read()?, shape),
            Self::Int(b) => Tensor::new_i32(b.read()?, shape),
        }
    }
}

/// An input as a CUDA face sees it.
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

    /// The real elements.
    ///
    /// # Errors
    /// An input of integers.
    pub fn r(&self) -> Result<Slice<'a, f32>> {
        match self.held {
            OnGpu::Real(b) => Ok(b.slice()),
            OnGpu::Int(_) => Err(Error::Internal("an input of integers read as real".into())),
        }
    }
}

/// An output as a CUDA face sees it.
pub struct CudaOut {
    shape: Shape,
    held: OnGpu,
    /// Whether a face asked for it.
    written: bool,
}

impl CudaOut {
    /// An output of this shape.
    pub fn new(shape: Shape, held: OnGpu) -> Self {
        Self { shape, held, written: false }
    }

    /// The elements.
    pub fn held(&self) -> &OnGpu {
        &self.held
    }

    /// The real elements, to be written.
    ///
    /// # Errors
    /// An output of integers.
    pub fn r(&mut self) -> Result<SliceMut<'_, f32>> {
        self.written = true;
        match &mut self.held {
            OnGpu::Real(b) => Ok(b.slice_mut()),
            OnGpu::Int(_) => Err(Error::Internal("an output of integers written as real".into())),
        }
    }
}

/// Runs an op's CUDA face on tensors of the host: copies them there, launches, copies back.
///
/// # Errors
/// An op without a CUDA face, inputs in f64, and those of [`super::run`] and of the driver.
pub fn run_on(queue: &Queue, op: &dyn DynOp, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    let outs = super::checked_shapes(op, x)?;
    if float_type(op, x)? == DType::F64 {
        return Err(Error::shape(op.name(), "kernels compute in f32, found F64"));
    }
    let uploaded = x.iter().map(|t| OnGpu::upload(queue, t)).collect::<Result<Vec<_>>>()?;
    let ins: Vec<CudaIn<'_>> =
        x.iter().zip(&uploaded).map(|(t, held)| CudaIn { shape: t.shape(), held }).collect();
    let out = |(i, shape): (usize, Shape)| -> Result<CudaOut> {
        let held = OnGpu::new(queue, shape.len(), op.int_outputs().contains(&i))?;
        Ok(CudaOut::new(shape, held))
    };
    let mut outs = outs.into_iter().enumerate().map(out).collect::<Result<Vec<_>>>()?;
    op.cuda(queue, &ins, &mut outs)?;
    if let Some(i) = outs.iter().position(|o| !o.written) {
        return Err(Error::Internal(format!("{}: its kernels leave output {i} out", op.name())));
    }
    outs.iter().map(|o| o.held.tensor(&o.shape)).collect()
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
