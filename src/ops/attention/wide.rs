//! Attention of wide heads on a GPU, as products: scores to memory, weights of them, sums by those.
//!
//! `kernels/attention_wide.cu` says why. Scales go one after the other: the queries of one see the
//! same keys.

use super::cuda::{means, outputs};
use super::{Attention, AttentionJvp, AttentionVjp, Dims};
use crate::device::Held;
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Grid, Slice, SliceMut};
use crate::device::launch::attention as narrow;
use crate::device::launch::attention_wide as launch;
use crate::error::Result;
use crate::ops::cuda::{CudaIn, CudaOut, warp_per_row};

/// Rows and columns of a tile.
const SIDE: usize = 64;
/// What rows of scores are multiples of: a packet of either type, and a sector.
const RUN: usize = 16;

/// Rows `first..end` of one side, and `from..to` of the other.
#[derive(Clone, Copy)]
pub(super) struct Part {
    first: usize,
    end: usize,
    from: usize,
    to: usize,
}

/// Extents of all launches.
pub(super) struct Wide {
    d: Dims,
    /// From one row of scores to the next.
    pitch: usize,
    scale: f32,
    /// Queries by the keys that they see.
    parts: Vec<Part>,
}

impl Wide {
    fn new(op: &Attention, x: &[CudaIn<'_>]) -> Self {
        let d = Dims::of(x[0].shape, x[1].shape);
        let part = |(first, end, to)| Part { first, end, from: 0, to };
        let parts = op.mask.spans(d.queries, d.keys).into_iter().map(part).collect();
        Self { d, pitch: d.keys.next_multiple_of(RUN), scale: op.scale as f32, parts }
    }

    /// Keys by the queries that see them; without queries, keys that none sees.
    fn by_keys(&self) -> Vec<Part> {
        let mut first = 0;
        let of = |part: &Part| {
            let keys = Part { first, end: part.to, from: part.first, to: self.d.queries };
            first = part.to;
            keys
        };
        let parts: Vec<Part> = self.parts.iter().map(of).collect();
        match parts.is_empty() {
            true => vec![Part { first: 0, end: self.d.keys, from: 0, to: 0 }],
            false => parts,
        }
    }

    /// Elements of all scores.
    fn size(&self) -> usize {
        self.d.batch * self.d.heads * self.d.queries * self.pitch
    }

    fn grid<T: Products>(&self, rows: usize, cols: usize) -> Grid {
        let tiles = rows.div_ceil(SIDE) * cols.div_ceil(SIDE);
        Grid::line(self.d.batch * self.d.heads * tiles, T::THREADS)
    }

    fn by_warps(&self, q: &Queue, part: Part) -> Grid {
        warp_per_row(q, self.d.batch * self.d.heads * (part.end - part.first))
    }

    /// Scores of two inputs' rows, or sums of those of two pairs.
    fn scores<T: Products>(&self, q: &Queue, pairs: &[[Slice<'_, T>; 2]]) -> Result<Buffer<f32>> {
        let mut to = Buffer::new(q, self.size())?;
        for &part in &self.parts {
            T::scores(q, self, &mut to.slice_mut(), pairs, part)?;
        }
        Ok(to)
    }

    /// Room for weights, if they are wanted.
    fn weights<T: Products>(&self, q: &Queue, wanted: bool) -> Result<Buffer<T>> {
        Buffer::new(q, usize::from(wanted) * T::WORDS * self.size())
    }
}

/// Types of elements and the products that take them.
pub(super) trait Products:
    Held
    + narrow::attention_means_vjp::Instance
    + launch::attention_weights_fwd::Instance
    + launch::attention_weights_jvp::Instance
    + launch::attention_weights_vjp::Instance
{
    /// Elements that hold a weight.
    const WORDS: usize;
    /// Threads of a block.
    const THREADS: u32;

    /// Scores of a pair of inputs' rows, or the sums of two pairs'.
    fn scores(
        q: &Queue,
        job: &Wide,
        to: &mut SliceMut<'_, f32>,
        pairs: &[[Slice<'_, Self>; 2]],
        part: Part,
    ) -> Result<()>;

    /// Weights by rows, or the sums of two such; queries by keys, or `turned`.
    fn sums(
        q: &Queue,
        job: &Wide,
        to: &mut SliceMut<'_, Self>,
        pairs: &[[Slice<'_, Self>; 2]],
        turned: bool,
        part: Part,
    ) -> Result<()>;
}

macro_rules! products {
    ($t:ty, $words:literal, $threads:literal, $scores:ident, $sums:ident) => {
        impl Products for $t {
            const WORDS: usize = $words;
            const THREADS: u32 = $threads;

            fn scores(
                q: &Queue,
                job: &Wide,
                to: &mut SliceMut<'_, f32>,
                pairs: &[[Slice<'_, Self>; 2]],
                part: Part,
            ) -> Result<()> {
                let (Dims { batch, queries, keys, heads, width }, [a, b]) = (job.d, pairs[0]);
                let [c, d] = pairs[pairs.len() - 1];
                let Part { first, end, to: seen, .. } = part;
                let grid = job.grid::<Self>(end - first, seen);
                launch::$scores(
                    q,
                    grid,
                    to,
                    &a,
                    &b,
                    &c,
                    &d,
                    batch,
                    queries,
                    keys,
                    heads,
                    width,
                    job.pitch,
                    first,
                    end,
                    seen,
                    pairs.len(),
                )
            }

            fn sums(
                q: &Queue,
                job: &Wide,
                to: &mut SliceMut<'_, Self>,
                pairs: &[[Slice<'_, Self>; 2]],
                turned: bool,
                part: Part,
            ) -> Result<()> {
                let (Dims { batch, queries, keys, heads, width }, [w, x]) = (job.d, pairs[0]);
                let launch = match turned {
                    false => launch::$sums::<Self, false>,
                    true => launch::$sums::<Self, true>,
                };
                let (rows, inner) = if turned { (keys, queries) } else { (queries, keys) };
                let [v, z] = pairs[pairs.len() - 1];
                launch(
                    q,
                    job.grid::<Self>(part.end - part.first, width),
                    to,
                    &w,
                    &x,
                    &v,
                    &z,
                    batch,
                    queries,
                    rows,
                    inner,
                    heads,
                    width,
                    job.pitch,
                    part.first,
                    part.end,
                    part.from,
                    part.to,
                    pairs.len(),
                )
            }
        }
    };
}
products!(f32, 1, 256, attention_scores_fma_fwd, attention_sums_fma_fwd);
products!(Bf16, 2, 128, attention_scores_mma_fwd, attention_sums_mma_fwd);

pub(super) fn forward<T: Products>(
    op: &Attention,
    q: &Queue,
    x: &[CudaIn<'_>],
    out: &mut [CudaOut],
) -> Result<()> {
    let job = Wide::new(op, x);
    let [y, lse] = out else { return Err(outputs()) };
    let (mut y, mut lse) = (y.get::<T>()?, lse.get::<f32>()?);
    let scores = job.scores(q, &[[x[0].get::<T>()?, x[1].get::<T>()?]])?;
    let mut w = job.weights::<T>(q, true)?;
    for &part in &job.parts {
        launch::attention_weights_fwd(
            q,
            job.by_warps(q, part),
            &mut w.slice_mut(),
            &mut lse,
            &scores.slice(),
            T::WORDS * job.size(),
            job.d.batch,
            job.d.queries,
            job.d.heads,
            job.pitch,
            part.first,
            part.end,
            part.to,
            job.scale,
        )?;
        T::sums(q, &job, &mut y, &[[w.slice(), x[2].get::<T>()?]], false, part)?;
    }
    Ok(())
}

pub(super) fn tangent<T: Products>(
    op: &AttentionJvp,
    queue: &Queue,
    x: &[CudaIn<'_>],
    out: &mut [CudaOut],
) -> Result<()> {
    let job = Wide::new(&op.of, x);
    let [dy] = out else { return Err(outputs()) };
    let mut dy = dy.get::<T>()?;
    let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
    let [dq, dk, dv] = op.tangents(x).map(|d| d.map(CudaIn::get::<T>).transpose());
    let (dv, lse) = (dv?, x[3].get::<f32>()?);
    let moving = [dq?.map(|dq| [dq, k]), dk?.map(|dk| [q, dk])];
    let moving: Vec<_> = moving.into_iter().flatten().collect();
    let moved = !moving.is_empty();
    let scores = job.scores(queue, &[[q, k]])?;
    let tangents = match moved {
        true => job.scores(queue, &moving)?,
        false => Buffer::new(queue, 0)?,
    };
    let mut p = job.weights::<T>(queue, dv.is_some())?;
    let mut w = job.weights::<T>(queue, moved)?;
    for &part in &job.parts {
        launch::attention_weights_jvp(
            queue,
            job.by_warps(queue, part),
            &mut p.slice_mut(),
            &mut w.slice_mut(),
            &scores.slice(),
            &tangents.slice(),
            &lse,
            T::WORDS * job.size(),
            job.d.batch,
            job.d.queries,
            job.d.heads,
            job.pitch,
            part.first,
            part.end,
            part.to,
            usize::from(moved),
            usize::from(dv.is_some()),
            job.scale,
        )?;
        let moving = moved.then(|| [w.slice(), v]);
        let carried = dv.map(|dv| [p.slice(), dv]);
        let pairs: Vec<_> = moving.into_iter().chain(carried).collect();
        T::sums(queue, &job, &mut dy, &pairs, false, part)?;
    }
    Ok(())
}

pub(super) fn gradients<T: Products>(
    op: &AttentionVjp,
    queue: &Queue,
    x: &[CudaIn<'_>],
    out: &mut [CudaOut],
) -> Result<()> {
    let job = Wide::new(&op.of, x);
    let [gq, gk, gv] = out else { return Err(outputs()) };
    let (mut gq, mut gk, mut gv) = (gq.get::<T>()?, gk.get::<T>()?, gv.get::<T>()?);
    let (q, k, v) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
    let (lse, y, gy) = (x[3].get::<f32>()?, x[4].get::<T>()?, x[5].get::<T>()?);
    let means = means(queue, job.d, &gy, &y)?;
    let scores = job.scores(queue, &[[q, k]])?;
    let slopes = job.scores(queue, &[[gy, v]])?;
    let (mut p, mut w) = (job.weights::<T>(queue, true)?, job.weights::<T>(queue, true)?);
    for &part in &job.parts {
        launch::attention_weights_vjp(
            queue,
            job.by_warps(queue, part),
            &mut p.slice_mut(),
            &mut w.slice_mut(),
            &scores.slice(),
            &slopes.slice(),
            &lse,
            &means.slice(),
            T::WORDS * job.size(),
            job.d.batch,
            job.d.queries,
            job.d.heads,
            job.pitch,
            part.first,
            part.end,
            part.to,
            job.scale,
        )?;
        T::sums(queue, &job, &mut gq, &[[w.slice(), k]], false, part)?;
    }
    for part in job.by_keys() {
        T::sums(queue, &job, &mut gk, &[[w.slice(), q]], true, part)?;
        T::sums(queue, &job, &mut gv, &[[p.slice(), gy]], true, part)?;
    }
    Ok(())
}
