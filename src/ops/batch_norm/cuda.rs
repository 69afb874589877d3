//! Batch norm's launches: all rows of a strip of columns in one block, or chunks of rows in blocks
//! of their own with a merge in between.

use super::{BatchNormTrain, BatchNormTrainVjp};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::Grid;
use crate::device::launch::{batch_norm as launch, reduce};
use crate::error::Error;
use crate::ops::cuda::{Kernels, THREADS, block_per_job, variant};

/// Columns of a strip, as kernels/lib/strip.cuh has them.
const STRIP: usize = 32;
/// Most rows of which a strip is read once.
const HELD: usize = 128;

/// Rows of a chunk: few enough to fill the GPU, at most 64 chunks to merge.
fn step(rows: usize) -> usize {
    rows.div_ceil(64).max(64)
}

/// A block a strip of each chunk.
fn strips(q: &Queue, chunks: usize, cols: usize) -> Grid {
    block_per_job(q, chunks * cols.div_ceil(STRIP))
}

/// A thread a column.
fn columns(q: &Queue, cols: usize) -> Grid {
    block_per_job(q, cols.div_ceil(THREADS as usize))
}

fn three_outputs() -> Error {
    Error::Internal("batch norm writes three outputs".into())
}

/// The kernels of [`BatchNormTrain`].
pub const FORWARD: Kernels<BatchNormTrain> = Kernels {
    variants: &[
        variant!("strip", [f32, bf16], |op, q, x, y| {
            let (rows, cols) = x[0].shape.matrix();
            let [y, mean, var] = y else { return Err(three_outputs()) };
            let (y, mean, var) = (&mut y.get::<T>()?, &mut mean.get()?, &mut var.get()?);
            let (x, w, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let (grid, eps) = (strips(q, 1, cols), op.eps as f32);
            launch::batch_norm_train_fwd(q, grid, y, mean, var, &x, &w, &b, rows, cols, eps)
        }),
        variant!("split", [f32, bf16], |op, q, x, y| {
            let (rows, cols) = x[0].shape.matrix();
            let (n, eps) = (step(rows), op.eps as f32);
            let chunks = rows.div_ceil(n);
            let [y, mean, var] = y else { return Err(three_outputs()) };
            let (y, mean, var) = (&mut y.get::<T>()?, &mut mean.get()?, &mut var.get()?);
            let (x, w, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let mut parts = [Buffer::new(q, chunks * cols)?, Buffer::new(q, chunks * cols)?];
            let mut scale = Buffer::new(q, cols)?;
            let (grid, a) = (strips(q, chunks, cols), &mut scale.slice_mut());
            let [s, d] = &mut parts;
            let (s, d) = (&mut s.slice_mut(), &mut d.slice_mut());
            reduce::column_moments_fwd(q, grid, s, d, &x, 1, rows, cols, n)?;
            let (s, d, each) = (s.written(), d.written(), columns(q, cols));
            launch::batch_norm_merge_fwd(q, each, mean, var, a, &s, &d, &w, rows, cols, n, eps)?;
            let (mean, a) = (mean.written(), a.written());
            launch::batch_norm_apply_fwd(q, grid, y, &x, &mean, &a, &b, rows, cols, n)
        }),
    ],
    // A block that holds its strip reads it once; beyond that, chunks give more blocks work.
    fastest: |_, _, x| usize::from(x[0].matrix().0 > HELD),
};

/// The kernels of [`BatchNormTrainVjp`].
pub const BACKWARD: Kernels<BatchNormTrainVjp> = Kernels {
    variants: &[
        variant!("strip", [f32, bf16], |op, q, x, y| {
            let (rows, cols) = x[0].shape.matrix();
            let [gx, gw, gb] = y else { return Err(three_outputs()) };
            let (gx, gw) = (&mut gx.get::<T>()?, &mut gw.get::<T>()?);
            let gb = &mut gb.get::<T>()?;
            let (v, w, g) = (x[0].get::<T>()?, x[1].get::<T>()?, x[4].get::<T>()?);
            let (m, var) = (x[2].get::<f32>()?, x[3].get::<f32>()?);
            let (grid, eps) = (strips(q, 1, cols), op.eps as f32);
            launch::batch_norm_train_vjp(q, grid, gx, gw, gb, &v, &w, &m, &var, &g, rows, cols, eps)
        }),
        variant!("split", [f32, bf16], |op, q, x, y| {
            let (rows, cols) = x[0].shape.matrix();
            let (n, eps) = (step(rows), op.eps as f32);
            let chunks = rows.div_ceil(n);
            let [gx, gw, gb] = y else { return Err(three_outputs()) };
            let (gx, gw) = (&mut gx.get::<T>()?, &mut gw.get::<T>()?);
            let gb = &mut gb.get::<T>()?;
            let (v, w, g) = (x[0].get::<T>()?, x[1].get::<T>()?, x[4].get::<T>()?);
            let (m, var) = (x[2].get::<f32>()?, x[3].get::<f32>()?);
            let mut sums = Buffer::new(q, 2 * chunks * cols)?;
            let [mut even, mut tilt, mut scale] =
                [Buffer::new(q, cols)?, Buffer::new(q, cols)?, Buffer::new(q, cols)?];
            let (grid, s) = (strips(q, chunks, cols), &mut sums.slice_mut());
            launch::batch_norm_sums_vjp(q, grid, s, &v, &g, &m, rows, cols, n)?;
            let (e, t) = (&mut even.slice_mut(), &mut tilt.slice_mut());
            let (a, each, s) = (&mut scale.slice_mut(), columns(q, cols), s.written());
            launch::batch_norm_merge_vjp(
                q, each, gw, gb, e, t, a, &s, &w, &var, rows, cols, n, eps,
            )?;
            let (e, t, a) = (e.written(), t.written(), a.written());
            launch::batch_norm_apply_vjp(q, grid, gx, &v, &g, &m, &e, &t, &a, rows, cols, n)
        }),
    ],
    fastest: |_, _, x| usize::from(x[0].matrix().0 > HELD),
};
