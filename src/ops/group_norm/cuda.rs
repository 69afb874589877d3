//! Group norm's launches: a group to a block where it is small, else sums down columns of chunks of
//! rows, a merge for each group and a pass over the elements.

use super::{GroupNorm, GroupNormJvp, GroupNormVjp};
use crate::device::Held;
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Grid, Slice};
use crate::device::launch::{group_norm as launch, reduce};
use crate::error::{Error, Result};
use crate::ops::cuda::{Kernels, block_per_job, kernels, variant, warp_per_row};
use crate::tensor::Shape;

/// Columns of a strip, as kernels/lib/strip.cuh has them.
const STRIP: usize = 32;
/// Elements of a group up to which one block does it faster than a chain of launches.
const SMALL: usize = 4096;

/// A map as the kernels see it: images of rows of `cols` numbers in chunks of `step` rows.
struct Plan {
    images: usize,
    rows: usize,
    cols: usize,
    step: usize,
    chunks: usize,
    channels: usize,
    groups: usize,
}

impl Plan {
    /// Rows are joined until they fill a strip.
    fn new(op: &GroupNorm, x: &Shape) -> Self {
        let (images, area, channels) = match *x.dims() {
            [b, h, w, c] => (b, h * w, c),
            _ => (0, 0, 1),
        };
        let mut joined = 1;
        while area.is_multiple_of(2 * joined) && 2 * joined * channels <= STRIP && area > 0 {
            joined *= 2;
        }
        let (rows, cols) = (area / joined, joined * channels);
        let step = rows.div_ceil(64).clamp(64, 128);
        let chunks = rows.div_ceil(step);
        Self { images, rows, cols, step, chunks, channels, groups: op.groups }
    }

    /// Elements of one sum of every column of every chunk.
    fn sums(&self) -> usize {
        self.images * self.chunks * self.cols
    }

    /// A block a strip of each chunk.
    fn strips(&self, q: &Queue) -> Grid {
        block_per_job(q, self.images * self.chunks * self.cols.div_ceil(STRIP))
    }

    /// A warp a group of each image.
    fn each_group(&self, q: &Queue) -> Grid {
        warp_per_row(q, self.images * self.groups)
    }
}

fn two_outputs() -> Error {
    Error::Internal("group_norm writes two outputs".into())
}

/// Mean and rstd of the groups of x, [B, 2, groups], alone.
pub(in crate::ops) fn statistics<T: Held + reduce::column_moments_fwd::Instance>(
    op: &GroupNorm,
    q: &Queue,
    shape: &Shape,
    x: &Slice<'_, T>,
) -> Result<Buffer<f32>> {
    let plan = Plan::new(op, shape);
    let Plan { images: i, rows: r, cols: k, step: n, channels: c, groups: g, .. } = plan;
    let mut stats = Buffer::new(q, 2 * i * g)?;
    let mut sums = Buffer::new(q, plan.sums())?;
    let mut squares = Buffer::new(q, plan.sums())?;
    let (s, d) = (&mut sums.slice_mut(), &mut squares.slice_mut());
    reduce::column_moments_fwd(q, plan.strips(q), s, d, x, i, r, k, n)?;
    let (s, d, eps, merge) = (s.written(), d.written(), op.eps as f32, plan.each_group(q));
    let to = &mut stats.slice_mut();
    launch::group_norm_merge_fwd(q, merge, to, &s, &d, i, r, k, n, c, g, eps)?;
    Ok(stats)
}

/// The kernels of [`GroupNorm`].
pub const FORWARD: Kernels<GroupNorm> = Kernels {
    variants: &[
        variant!("block", [f32, bf16], |op, q, x, y| {
            let Plan { images: i, channels: c, groups: g, .. } = Plan::new(op, x[0].shape);
            let area = x[0].shape.dims()[1..3].iter().product();
            let [y, stats] = y else { return Err(two_outputs()) };
            let (y, stats) = (&mut y.get::<T>()?, &mut stats.get()?);
            let (x, w, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let (grid, eps) = (block_per_job(q, i * g), op.eps as f32);
            let run = match op.silu {
                true => launch::group_norm_fwd::<T, 1>,
                false => launch::group_norm_fwd::<T, 0>,
            };
            run(q, grid, y, stats, &x, &w, &b, i, area, c, g, eps)
        }),
        variant!("split", [f32, bf16], |op, q, x, y| {
            let plan = Plan::new(op, x[0].shape);
            let Plan { images: i, rows: r, cols: k, step: n, channels: c, groups: g, .. } = plan;
            let [y, stats] = y else { return Err(two_outputs()) };
            let (y, stats) = (&mut y.get::<T>()?, &mut stats.get()?);
            let (x, w, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let mut sums = Buffer::new(q, plan.sums())?;
            let mut squares = Buffer::new(q, plan.sums())?;
            let (s, d) = (&mut sums.slice_mut(), &mut squares.slice_mut());
            reduce::column_moments_fwd(q, plan.strips(q), s, d, &x, i, r, k, n)?;
            let (s, d, eps) = (s.written(), d.written(), op.eps as f32);
            let merge = plan.each_group(q);
            launch::group_norm_merge_fwd(q, merge, stats, &s, &d, i, r, k, n, c, g, eps)?;
            let (stats, grid) = (stats.written(), plan.strips(q));
            let run = match op.silu {
                true => launch::group_norm_apply_fwd::<T, 1>,
                false => launch::group_norm_apply_fwd::<T, 0>,
            };
            run(q, grid, y, &x, &stats, &w, &b, i, r, k, n, c, g)
        }),
    ],
    fastest: |op, _, x| match *x[0].dims() {
        [_, h, w, c] => usize::from(h * w * (c / op.groups.max(1)) > SMALL),
        _ => 0,
    },
};

/// The kernels of [`GroupNormVjp`].
pub const BACKWARD: Kernels<GroupNormVjp> = kernels!([f32, bf16], |op, q, x, y| {
    let plan = Plan::new(&op.0, x[0].shape);
    let Plan { images: i, rows: r, cols: k, step: n, channels: c, groups: g, .. } = plan;
    let [gx, gw, gb] = y else {
        return Err(Error::Internal("group_norm_vjp writes three outputs".into()));
    };
    let (gx, gw, gb) = (&mut gx.get::<T>()?, &mut gw.get::<T>()?, &mut gb.get::<T>()?);
    let (v, w, b, gy) = (x[0].get::<T>()?, x[2].get::<T>()?, x[3].get::<T>()?, x[4].get::<T>()?);
    let stats = x[1].get::<f32>()?;
    let mut sums = Buffer::new(q, 4 * plan.sums())?;
    let mut means = Buffer::new(q, 2 * i * g)?;
    let (s, m) = (&mut sums.slice_mut(), &mut means.slice_mut());
    let add = match op.0.silu {
        true => launch::group_norm_sums_vjp::<T, 1>,
        false => launch::group_norm_sums_vjp::<T, 0>,
    };
    add(q, plan.strips(q), s, &v, &gy, &stats, &w, &b, i, r, k, n, c, g)?;
    let (s, merge) = (s.written(), plan.each_group(q));
    launch::group_norm_merge_vjp(q, merge, m, &s, i, r, k, n, c, g)?;
    let (terms, strips) = (plan.sums() / c.max(1), block_per_job(q, c.div_ceil(STRIP)));
    launch::group_norm_params_vjp(q, strips, gw, gb, &s, terms, c)?;
    let m = m.written();
    let apply = match op.0.silu {
        true => launch::group_norm_apply_vjp::<T, 1>,
        false => launch::group_norm_apply_vjp::<T, 0>,
    };
    apply(q, plan.strips(q), gx, &v, &gy, &stats, &m, &w, &b, i, r, k, n, c, g)
});

/// The kernels of [`GroupNormJvp`].
pub const TANGENT: Kernels<GroupNormJvp> = kernels!([f32, bf16], |op, q, x, y| {
    let plan = Plan::new(&op.0, x[0].shape);
    let Plan { images: i, rows: r, cols: k, step: n, channels: c, groups: g, .. } = plan;
    let (v, stats, dy) = (x[0].get::<T>()?, x[1].get::<f32>()?, &mut y[0].get::<T>()?);
    let (w, b, dx) = (x[2].get::<T>()?, x[3].get::<T>()?, x[4].get::<T>()?);
    let (dw, db) = (x[5].get::<T>()?, x[6].get::<T>()?);
    let mut sums = Buffer::new(q, 2 * plan.sums())?;
    let mut means = Buffer::new(q, 2 * i * g)?;
    let (s, m) = (&mut sums.slice_mut(), &mut means.slice_mut());
    let grid = plan.strips(q);
    launch::group_norm_sums_jvp(q, grid, s, &v, &dx, &stats, i, r, k / c.max(1), n, c, g)?;
    let (s, merge) = (s.written(), plan.each_group(q));
    launch::group_norm_merge_vjp(q, merge, m, &s, i, r, k, n, c, g)?;
    let m = m.written();
    let apply = match op.0.silu {
        true => launch::group_norm_apply_jvp::<T, 1>,
        false => launch::group_norm_apply_jvp::<T, 0>,
    };
    apply(q, grid, dy, &v, &dx, &stats, &m, &w, &b, &dw, &db, i, r, k, n, c, g)
});
