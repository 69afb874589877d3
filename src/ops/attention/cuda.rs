//! The kernels of attention: tiles of queries or keys that never cross a scale.

use super::{Attention, AttentionJvp, AttentionVjp, Dims, Mask, wide};
use crate::device::Held;
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Grid, Slice};
use crate::device::launch::attention as launch;
use crate::device::launch::{attention, attention_mma};
use crate::error::{Error, Result};
use crate::ops::cuda::{CudaFace, Kernels, Variant, block_per_job, warp_per_row};
use crate::ops::{CudaIn, CudaOut, Precision, Site};
use crate::tensor::Shape;

/// The widest head whose scores stay on chip.
pub(super) const WIDEST: usize = 128;
/// The narrowest head for the tensor cores, where weights have 16 digits. Scores are sums of as
/// many products as a head is wide, and what those may lose counts for more in a weight, unless the
/// head is narrower than this.
pub(super) const LEAST_MMA: usize = 32;
/// Scales that a launch can tell the kernel of.
const SCALES: usize = 16;

/// What every launch is given of extents and mask.
pub(super) struct Job {
    pub(super) d: Dims,
    pub(super) scale: f32,
    /// Ends of the scales among the queries, four to a word.
    pub(super) ends: [u64; 4],
    spans: Vec<(usize, usize, usize)>,
    /// Keys that take part; the others are room in a cache.
    seen: usize,
}

impl Job {
    pub(super) fn new(op: &Attention, x: &[CudaIn<'_>]) -> Result<Self> {
        let d = Dims::of(x[0].shape, x[1].shape);
        let mut spans = op.mask.spans(d.queries, d.keys);
        if spans.is_empty() {
            // Without queries no scale is left, but the keys' gradients are still to be written.
            spans.push((0, 0, d.keys));
        }
        let mut ends = [0; 4];
        if matches!(op.mask, Mask::Blocks(_)) {
            for (i, &(_, end, _)) in spans.iter().enumerate() {
                let too = || format!("kernels take {SCALES} scales and 65535 queries with scales");
                let end = u16::try_from(end).map_err(|_| Error::shape("attention", too()))?;
                let word = ends.get_mut(i / 4).ok_or_else(|| Error::shape("attention", too()))?;
                *word |= u64::from(end) << (16 * (i % 4));
            }
        }
        let seen = match op.mask {
            Mask::First(seen) => seen,
            _ => d.keys,
        };
        Ok(Self { d, scale: op.scale as f32, ends, spans, seen })
    }

    /// Tiles of `rows` queries, and steps over tiles of `cols` keys that they take in all.
    pub(super) fn by_queries(&self, rows: usize, cols: usize) -> (usize, usize) {
        let of = |&(first, end, keys): &(usize, usize, usize)| {
            let tiles = (end - first).div_ceil(rows);
            (tiles, tiles * keys.div_ceil(cols))
        };
        self.spans.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// Tiles of `rows` keys, and steps over tiles of `cols` queries that they take in all.
    fn by_keys(&self, rows: usize, cols: usize) -> (usize, usize) {
        let mut before = 0;
        let of = |&(first, _, keys): &(usize, usize, usize)| {
            let tiles = (keys - before).div_ceil(rows);
            before = keys;
            (tiles, tiles * (self.d.queries - first).div_ceil(cols))
        };
        self.spans.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    pub(super) fn grid(&self, q: &Queue, tiles: usize) -> Grid {
        let mut grid = block_per_job(q, self.d.batch * self.d.heads * tiles);
        // Tiles differ in work; a block each lets the device level it out.
        grid.blocks[0] = u32::try_from(self.d.batch * self.d.heads * tiles).unwrap_or(u32::MAX);
        grid.blocks[0] = grid.blocks[0].clamp(1, i32::MAX as u32);
        grid
    }
}

/// Rows of a tile where two operands of both sides are held.
pub(super) fn rows(width: i32) -> usize {
    if width <= 64 { 32 } else { 16 }
}

/// Rows of the other side that a tile on the tensor cores looks at.
fn at_once(width: i32) -> usize {
    if width <= 64 { 64 } else { 32 }
}

fn narrow(x: &[&Shape]) -> bool {
    x[0].last() <= WIDEST
}

fn for_mma(x: &[&Shape]) -> bool {
    (LEAST_MMA..=WIDEST).contains(&x[0].last())
}

/// Calls `$face::<T, D>` with the least D that holds the width.
macro_rules! by_width {
    ($face:ident, $op:expr, $q:expr, $x:expr, $y:expr) => {
        match $x[0].shape.last() {
            0..=32 => $face::<T, 32>($op, $q, $x, $y),
            33..=64 => $face::<T, 64>($op, $q, $x, $y),
            _ => $face::<T, 128>($op, $q, $x, $y),
        }
    };
}

pub(super) use by_width;

macro_rules! face {
    ($name:ident, $op:ty, $of:ident: $($entry:ident),+) => {
        fn $name<T>(op: &$op, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()>
        where
            T: Held $(+ launch::$entry::Instance<32> + launch::$entry::Instance<64>
                + launch::$entry::Instance<128>)+ + launch::attention_means_vjp::Instance,
        {
            by_width!($of, op, q, x, y)
        }
    };
}
face!(forward, Attention, forward_of: attention_fwd);
face!(tangent, AttentionJvp, tangent_of: attention_jvp);
face!(gradients, AttentionVjp, gradients_of: attention_queries_vjp, attention_keys_vjp);

const fn tiled<O>(f32: CudaFace<O>, bf16: CudaFace<O>) -> Variant<O> {
    let takes = |_: &O, x: &[&Shape]| narrow(x);
    Variant { name: "tiles", f32: Some(f32), bf16: Some(bf16), takes, needs: None }
}

const fn by_mma<O>(bf16: CudaFace<O>) -> Variant<O> {
    let takes = |_: &O, x: &[&Shape]| for_mma(x);
    Variant { name: "mma", f32: None, bf16: Some(bf16), takes, needs: None }
}

const fn by_products<O>(f32: CudaFace<O>, bf16: CudaFace<O>) -> Variant<O> {
    let takes = |_: &O, x: &[&Shape]| !narrow(x);
    Variant { name: "products", f32: Some(f32), bf16: Some(bf16), takes, needs: None }
}

/// The tensor cores where there are bf16: predicted, not measured on a card yet.
fn fastest<O>(_: &O, site: Site<'_>, x: &[&Shape]) -> usize {
    match narrow(x) {
        true => usize::from(site.precision == Precision::Bf16 && for_mma(x)),
        false => 2,
    }
}

pub(super) const FORWARD: Kernels<Attention> = Kernels {
    variants: &[
        tiled(forward::<f32>, forward::<Bf16>),
        by_mma(forward_mma),
        by_products(wide::forward::<f32>, wide::forward::<Bf16>),
    ],
    fastest,
};
pub(super) const TANGENT: Kernels<AttentionJvp> = Kernels {
    variants: &[
        tiled(tangent::<f32>, tangent::<Bf16>),
        by_mma(tangent_mma),
        by_products(wide::tangent::<f32>, wide::tangent::<Bf16>),
    ],
    fastest,
};
pub(super) const GRADIENTS: Kernels<AttentionVjp> = Kernels {
    variants: &[
        tiled(gradients::<f32>, gradients::<Bf16>),
        by_mma(gradients_mma),
        by_products(wide::gradients::<f32>, wide::gradients::<Bf16>),
    ],
    fastest,
};

type T = Bf16;

fn forward_mma(op: &Attention, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()> {
    by_width!(forward_mma_of, op, q, x, y)
}
fn tangent_mma(op: &AttentionJvp, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()> {
    by_width!(tangent_mma_of, op, q, x, y)
}
fn gradients_mma(op: &AttentionVjp, q: &Queue, x: &[CudaIn<'_>], y: &mut [CudaOut]) -> Result<()> {
    by_width!(gradients_mma_of, op, q, x, y)
}

pub(super) fn outputs() -> Error {
    Error::Internal("attention was given another number of outputs".into())
}

/// The mean of gy v^T under each query's weights, which is gy y.
pub(super) fn means<T: Held + launch::attention_means_vjp::Instance>(
    queue: &Queue,
    d: Dims,
    gy: &Slice<'_, T>,
    y: &Slice<'_, T>,
) -> Result<Buffer<f32>> {
    let rows = d.batch * d.queries * d.heads;
    let mut means = Buffer::new(queue, rows)?;
    let grid = warp_per_row(queue, rows);
    launch::attention_means_vjp(queue, grid, &mut means.slice_mut(), gy, y, rows, d.width)?;
    Ok(means)
}

fn forward_of<T: Held + launch::attention_fwd::Instance<D>, const D: i32>(
    op: &Attention,
    queue: &Queue,
    x: &[CudaIn<'_>],
    out: &mut [CudaOut],
) -> Result<()> {
    let job = Job::new(op, x)?;
    let [y, lse] = out else { return Err(outputs()) };
    let (mut y, mut lse) = (y.get::<T>()?, lse.get::<f32>()?);
    let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
    let (d, [e0, e1, e2, e3]) = (job.d, job.ends);
    let (tiles, work) = job.by_queries(32, if D <= 64 { 64 } else { 32 });
    launch::attention_fwd::<T, D>(
        queue,
        job.grid(queue, tiles),
        &mut y,
        &mut lse,
        &q,
        &k,
        &v,
        d.batch,
        d.queries,
        d.keys,
        job.seen,
        d.heads,
        d.width,
        work,
        tiles,
        job.scale,
        e0,
        e1,
        e2,
        e3,
    )
}

fn forward_mma_of<T: Held + launch::attention_mma_fwd::Instance<D>, const D: i32>(
    op: &Attention,
    queue: &Queue,
    x: &[CudaIn<'_>],
    out: &mut [CudaOut],
) -> Result<()> {
    let job = Job::new(op, x)?;
    let [y, lse] = out else { return Err(outputs()) };
    let (mut y, mut lse) = (y.get::<T>()?, lse.get::<f32>()?);
    let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
    let (d, [e0, e1, e2, e3]) = (job.d, job.ends);
    let (tiles, work) = job.by_queries(64, at_once(D));
    let grid = Grid { threads: [128, 1, 1], ..job.grid(queue, tiles) };
    launch::attention_mma_fwd::<T, D>(
        queue, grid, &mut y, &mut lse, &q, &k, &v, d.batch, d.queries, d.keys, job.seen, d.heads,
        d.width, work, tiles, job.scale, e0, e1, e2, e3,
    )
}

/// A face of the tangent at widths up to D: its entry, threads of a block, rows and columns of a
/// tile.
macro_rules! tangent {
    ($name:ident: $module:ident::$entry:ident, $threads:expr, $rows:expr, $cols:expr) => {
        fn $name<T: Held + $module::$entry::Instance<D>, const D: i32>(
            op: &AttentionJvp,
            queue: &Queue,
            x: &[CudaIn<'_>],
            out: &mut [CudaOut],
        ) -> Result<()> {
            let job = Job::new(&op.of, x)?;
            let [dy] = out else { return Err(outputs()) };
            let mut dy = dy.get::<T>()?;
            let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let lse = x[3].get::<f32>()?;
            // What is not given is not read; its place is taken by the input of the same shape.
            let [dq, dk, dv] = op.tangents(x);
            let [dqs, dks, dvs] = op.given.map(usize::from);
            let dq = dq.map_or(Ok(q), CudaIn::get::<T>)?;
            let dk = dk.map_or(Ok(k), CudaIn::get::<T>)?;
            let dv = dv.map_or(Ok(v), CudaIn::get::<T>)?;
            let (d, [e0, e1, e2, e3]) = (job.d, job.ends);
            let (tiles, work) = job.by_queries($rows, $cols);
            $module::$entry::<T, D>(
                queue,
                Grid { threads: [$threads, 1, 1], ..job.grid(queue, tiles) },
                &mut dy,
                &q,
                &k,
                &v,
                &lse,
                &dq,
                &dk,
                &dv,
                d.batch,
                d.queries,
                d.keys,
                d.heads,
                d.width,
                work,
                tiles,
                job.scale,
                dqs,
                dks,
                dvs,
                e0,
                e1,
                e2,
                e3,
            )
        }
    };
}
tangent!(tangent_of: attention::attention_jvp, 256, rows(D), rows(D));
tangent!(tangent_mma_of: attention_mma::attention_mma_jvp, 128, 64, at_once(D));

/// A face of the gradients likewise: to the queries, then to the keys.
macro_rules! gradients {
    (
        $name:ident: $module:ident::$queries:ident, $keys:ident, $threads:expr,
        $asks:expr, $told:expr
    ) => {
        fn $name<T, const D: i32>(
            op: &AttentionVjp,
            queue: &Queue,
            x: &[CudaIn<'_>],
            out: &mut [CudaOut],
        ) -> Result<()>
        where
            T: Held
                + launch::attention_means_vjp::Instance
                + $module::$queries::Instance<D>
                + $module::$keys::Instance<D>,
        {
            let job = Job::new(&op.of, x)?;
            let [gq, gk, gv] = out else { return Err(outputs()) };
            let (mut gq, mut gk, mut gv) = (gq.get::<T>()?, gk.get::<T>()?, gv.get::<T>()?);
            let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
            let (lse, y, gy) = (x[3].get::<f32>()?, x[4].get::<T>()?, x[5].get::<T>()?);
            let (d, [e0, e1, e2, e3]) = (job.d, job.ends);
            let means = means(queue, d, &gy, &y)?;
            let (rows, cols) = $asks;
            let (tiles, work) = job.by_queries(rows, cols);
            $module::$queries::<T, D>(
                queue,
                Grid { threads: [$threads, 1, 1], ..job.grid(queue, tiles) },
                &mut gq,
                &q,
                &k,
                &v,
                &lse,
                &means.slice(),
                &gy,
                d.batch,
                d.queries,
                d.keys,
                d.heads,
                d.width,
                work,
                tiles,
                job.scale,
                e0,
                e1,
                e2,
                e3,
            )?;
            let (rows, cols) = $told;
            let (tiles, work) = job.by_keys(rows, cols);
            $module::$keys::<T, D>(
                queue,
                Grid { threads: [$threads, 1, 1], ..job.grid(queue, tiles) },
                &mut gk,
                &mut gv,
                &q,
                &k,
                &v,
                &lse,
                &means.slice(),
                &gy,
                d.batch,
                d.queries,
                d.keys,
                d.heads,
                d.width,
                work,
                tiles,
                job.scale,
                e0,
                e1,
                e2,
                e3,
            )
        }
    };
}
gradients!(
    gradients_of: attention::attention_queries_vjp, attention_keys_vjp, 256,
    (rows(D), rows(D)), (rows(D), rows(D))
);
gradients!(
    gradients_mma_of: attention_mma::attention_queries_mma_vjp, attention_keys_mma_vjp, 128,
    (64, at_once(D)), (64, at_once(D) / 2)
);
