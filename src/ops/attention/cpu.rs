//! Fast attention faces: one job a (sample, head), tiles of queries whose scores stay in the cache.
//!
//! A tile never crosses a scale, so the keys its queries see are a prefix and masked scores are not
//! computed. Each job writes its own dense [rows, D] block; the blocks are then laid between the
//! other heads'.

use super::{Attention, AttentionJvp, AttentionVjp, Dims};
use crate::device::cpu::{Mat, gemm, par_jobs, par_rows, simd};
use crate::ops::{In, Out, fast, lanes};

/// Scores of a tile: 384 KiB, which stay in a second-level cache; keys and values are packed anew
/// for each.
const SCORES: usize = 96 * 1024;
/// Bounds on the queries of a tile.
const TILE: (usize, usize) = (16, 256);

/// (first query, end, keys seen) of the tiles. They depend on the extents and the mask alone.
fn tiles(op: &Attention, d: Dims) -> Vec<(usize, usize, usize)> {
    let mut tiles = Vec::new();
    for (first, end, keys) in op.mask.spans(d.queries, d.keys) {
        let step = (SCORES / keys.max(1)).clamp(TILE.0, TILE.1);
        let starts = (first..end).step_by(step);
        tiles.extend(starts.map(|start| (start, (start + step).min(end), keys)));
    }
    tiles
}

/// One head of one sample: rows `first..end` of an input, a row being `heads * width` elements from
/// the next.
struct Head {
    d: Dims,
    b: usize,
    h: usize,
}

impl Head {
    fn new(d: Dims, job: usize) -> Self {
        Self { d, b: job / d.heads, h: job % d.heads }
    }
    /// Queries (or what has their shape).
    fn queries<'a>(&self, x: &'a [f32], first: usize, end: usize) -> Mat<'a> {
        self.rows(x, self.d.queries, first, end)
    }
    /// The first keys (or what has their shape).
    fn keys<'a>(&self, x: &'a [f32], keys: usize) -> Mat<'a> {
        self.rows(x, self.d.keys, 0, keys)
    }
    fn rows<'a>(&self, x: &'a [f32], total: usize, first: usize, end: usize) -> Mat<'a> {
        let at = self.d.at(total, self.b, first, self.h).min(x.len());
        Mat::new(&x[at..], end - first, self.d.width, self.d.heads * self.d.width)
    }
    /// Products of the queries' rows of two inputs.
    fn dots(&self, x: &[f32], y: &[f32], first: usize, end: usize) -> Vec<f32> {
        let mut dots = vec![0.0; end - first];
        simd(
            #[inline(always)]
            || {
                for (dot, row) in dots.iter_mut().zip(first..end) {
                    let at = self.d.at(self.d.queries, self.b, row, self.h);
                    let at = at..at + self.d.width;
                    *dot = lanes::sum2(&x[at.clone()], &y[at], |x, y| x * y);
                }
            },
        );
        dots
    }
    /// The log-sum-exp of a query.
    fn lse(&self, lse: &[f32], query: usize) -> f32 {
        lse[(self.b * self.d.queries + query) * self.d.heads + self.h]
    }
}

/// Lays the jobs' blocks [rows, D] between the heads of y [B, rows, H, D].
fn interleave<'a>(y: &mut [f32], d: Dims, rows: usize, block: impl Fn(usize) -> &'a [f32] + Sync) {
    let row = d.heads * d.width;
    par_rows(y, row, |first, part| {
        for (i, y) in part.chunks_exact_mut(row.max(1)).enumerate() {
            let (b, r) = ((first + i) / rows, (first + i) % rows);
            for (h, y) in y.chunks_exact_mut(d.width).enumerate() {
                y.copy_from_slice(&block(b * d.heads + h)[r * d.width..(r + 1) * d.width]);
            }
        }
    });
}

/// A buffer for the scores of the largest tile.
fn score_block(tiles: &[(usize, usize, usize)]) -> Vec<f32> {
    vec![0.0; tiles.iter().map(|&(first, end, keys)| (end - first) * keys).max().unwrap_or(0)]
}

pub(super) fn forward(op: &Attention, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let d = Dims::of(x[0].shape, x[1].shape);
    let [out, lse] = y else { return };
    let tiles = tiles(op, d);
    let jobs = par_jobs(d.batch * d.heads, |job| forward_head(op, x, &tiles, &Head::new(d, job)));
    interleave(out.r(), d, d.queries, |job| &jobs[job].0);
    for (i, lse) in lse.r().iter_mut().enumerate() {
        let (row, h) = (i / d.heads, i % d.heads);
        *lse = jobs[row / d.queries * d.heads + h].1[row % d.queries];
    }
}

/// (output [n, D], log-sum-exp `[n]`) of one head.
fn forward_head(
    op: &Attention,
    x: &[In<'_, f32>],
    tiles: &[(usize, usize, usize)],
    head: &Head,
) -> (Vec<f32>, Vec<f32>) {
    let (q, k, v) = (x[0].r(), x[1].r(), x[2].r());
    let (n, width, scale) = (head.d.queries, head.d.width, op.scale as f32);
    let (mut out, mut lse) = (vec![0.0; n * width], vec![0.0; n]);
    let mut s = score_block(tiles);
    for &(first, end, keys) in tiles {
        let s = &mut s[..(end - first) * keys];
        gemm(s, keys, head.queries(q, first, end), head.keys(k, keys).t(), false);
        let totals = softmax_rows(s, keys, scale, &mut lse[first..end]);
        let out = &mut out[first * width..end * width];
        gemm(out, width, Mat::new(s, end - first, keys, keys), head.keys(v, keys), false);
        simd(
            #[inline(always)]
            || {
                for (row, total) in out.chunks_exact_mut(width.max(1)).zip(&totals) {
                    let factor = 1.0 / total;
                    for o in row {
                        *o *= factor;
                    }
                }
            },
        );
    }
    (out, lse)
}

/// Replaces scores by e^(scale s - max), writes the log-sum-exp and hands back each row's total.
fn softmax_rows(s: &mut [f32], keys: usize, scale: f32, lse: &mut [f32]) -> Vec<f32> {
    let mut totals = vec![0.0; lse.len()];
    simd(
        #[inline(always)]
        || {
            let rows = s.chunks_exact_mut(keys.max(1));
            for (row, (lse, total)) in rows.zip(lse.iter_mut().zip(&mut totals)) {
                let top = lanes::max(row, |s| scale * s);
                for s in row.iter_mut() {
                    *s = fast::exp(scale * *s - top);
                }
                *total = lanes::sum(row, |e| e);
                *lse = top + total.ln();
            }
        },
    );
    totals
}

/// Replaces scores by weights e^(scale s - lse).
fn weigh_rows(p: &mut [f32], keys: usize, scale: f32, head: &Head, lse: &[f32], first: usize) {
    simd(
        #[inline(always)]
        || {
            for (i, row) in p.chunks_exact_mut(keys.max(1)).enumerate() {
                let lse = head.lse(lse, first + i);
                for s in row {
                    *s = fast::exp(scale * *s - lse);
                }
            }
        },
    );
}

/// The means of s under p, row by row.
fn means(s: &[f32], p: &[f32], keys: usize) -> Vec<f32> {
    let keys = keys.max(1);
    let mut means = vec![0.0; s.len() / keys];
    simd(
        #[inline(always)]
        || {
            let rows = s.chunks_exact(keys).zip(p.chunks_exact(keys));
            for (mean, (s, p)) in means.iter_mut().zip(rows) {
                *mean = lanes::sum2(s, p, |s, p| s * p);
            }
        },
    );
    means
}

/// s := scale p (s - mean), row by row: the softmax's Jacobian times s.
fn centre_rows(s: &mut [f32], p: &[f32], means: &[f32], keys: usize, scale: f32) {
    simd(
        #[inline(always)]
        || {
            let keys = keys.max(1);
            let rows = s.chunks_exact_mut(keys).zip(p.chunks_exact(keys));
            for ((s, p), &mean) in rows.zip(means) {
                for (s, &p) in s.iter_mut().zip(p) {
                    *s = scale * p * (*s - mean);
                }
            }
        },
    );
}

pub(super) fn tangent(op: &AttentionJvp, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let d = Dims::of(x[0].shape, x[1].shape);
    let tiles = tiles(&op.of, d);
    let jobs = par_jobs(d.batch * d.heads, |job| tangent_head(op, x, &tiles, &Head::new(d, job)));
    interleave(y[0].r(), d, d.queries, |job| &jobs[job]);
}

fn tangent_head(
    op: &AttentionJvp,
    x: &[In<'_, f32>],
    tiles: &[(usize, usize, usize)],
    head: &Head,
) -> Vec<f32> {
    let (q, k, v, lse) = (x[0].r(), x[1].r(), x[2].r(), x[3].r());
    let [dq, dk, dv] = op.tangents(x);
    let (width, scale) = (head.d.width, op.of.scale as f32);
    let mut out = vec![0.0; head.d.queries * width];
    let (mut p, mut ds) = (score_block(tiles), score_block(tiles));
    for &(first, end, keys) in tiles {
        let n = end - first;
        let (p, ds) = (&mut p[..n * keys], &mut ds[..n * keys]);
        let out = &mut out[first * width..end * width];
        gemm(p, keys, head.queries(q, first, end), head.keys(k, keys).t(), false);
        weigh_rows(p, keys, scale, head, lse, first);
        if let Some(dq) = dq {
            gemm(ds, keys, head.queries(dq.r(), first, end), head.keys(k, keys).t(), false);
        }
        if let Some(dk) = dk {
            let dk = head.keys(dk.r(), keys).t();
            gemm(ds, keys, head.queries(q, first, end), dk, dq.is_some());
        }
        let scores_move = dq.is_some() || dk.is_some();
        if scores_move {
            let means = means(ds, p, keys);
            centre_rows(ds, p, &means, keys, scale);
            gemm(out, width, Mat::new(ds, n, keys, keys), head.keys(v, keys), false);
        }
        if let Some(dv) = dv {
            let dv = head.keys(dv.r(), keys);
            gemm(out, width, Mat::new(p, n, keys, keys), dv, scores_move);
        }
    }
    out
}

pub(super) fn gradients(op: &AttentionVjp, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let d = Dims::of(x[0].shape, x[1].shape);
    let tiles = tiles(&op.of, d);
    let jobs =
        par_jobs(d.batch * d.heads, |job| gradients_head(&op.of, x, &tiles, &Head::new(d, job)));
    for (i, (out, rows)) in y.iter_mut().zip([d.queries, d.keys, d.keys]).enumerate() {
        interleave(out.r(), d, rows, |job| &jobs[job][i]);
    }
}

/// (gq, gk, gv) of one head.
fn gradients_head(
    op: &Attention,
    x: &[In<'_, f32>],
    tiles: &[(usize, usize, usize)],
    head: &Head,
) -> [Vec<f32>; 3] {
    let (q, k, v, lse) = (x[0].r(), x[1].r(), x[2].r(), x[3].r());
    let (o, go) = (x[4].r(), x[5].r());
    let (width, scale) = (head.d.width, op.scale as f32);
    let mut gq = vec![0.0; head.d.queries * width];
    let (mut gk, mut gv) = (vec![0.0; head.d.keys * width], vec![0.0; head.d.keys * width]);
    let (mut p, mut gs) = (score_block(tiles), score_block(tiles));
    for &(first, end, keys) in tiles {
        let n = end - first;
        let (p, gs) = (&mut p[..n * keys], &mut gs[..n * keys]);
        let means = head.dots(o, go, first, end);
        let (q, go) = (head.queries(q, first, end), head.queries(go, first, end));
        gemm(p, keys, q, head.keys(k, keys).t(), false);
        weigh_rows(p, keys, scale, head, lse, first);
        gemm(&mut gv, width, Mat::new(p, n, keys, keys).t(), go, true);
        gemm(gs, keys, go, head.keys(v, keys).t(), false);
        centre_rows(gs, p, &means, keys, scale);
        let gq = &mut gq[first * width..end * width];
        gemm(gq, width, Mat::new(gs, n, keys, keys), head.keys(k, keys), false);
        gemm(&mut gk, width, Mat::new(gs, n, keys, keys).t(), q, true);
    }
    [gq, gk, gv]
}

#[cfg(test)]
mod tests {
    use super::super::{Attention, Mask};
    use crate::ops::run;
    use crate::tensor::{Purpose, Stream, Tensor};

    const ENDS: [usize; 4] = [1, 5, 14, 130];

    fn random(sample: u64, shape: [usize; 4]) -> Tensor {
        let n = shape.iter().product();
        Tensor::new(Stream::new(9, sample, 0, Purpose::Test).normals(n), shape).unwrap()
    }

    fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f32> {
        let op = Attention { scale: 0.125, mask: Mask::Blocks(ENDS.to_vec()) };
        run(&op, &[q, k, v]).unwrap().swap_remove(0).into_f32s().unwrap()
    }

    #[test]
    fn a_sample_has_the_same_bits_alone_and_in_a_batch() {
        let x: Vec<Tensor> = (0..3).map(|i| random(i, [3, 130, 2, 32])).collect();
        let one: Vec<Tensor> = x.iter().map(|t| t.rows(1, 1).unwrap()).collect();
        let (all, alone) = (attend(&x[0], &x[1], &x[2]), attend(&one[0], &one[1], &one[2]));
        assert_eq!(all[alone.len()..2 * alone.len()], alone);
    }

    #[test]
    fn the_last_scale_with_a_cache_has_the_bits_of_the_whole_sequence() {
        let x: Vec<Tensor> = (0..3).map(|i| random(i, [1, 130, 2, 32])).collect();
        let all = attend(&x[0], &x[1], &x[2]);
        let row = 2 * 32;
        let q = x[0].f32s().unwrap()[14 * row..].to_vec();
        let last = attend(&Tensor::new(q, [1, 116, 2, 32]).unwrap(), &x[1], &x[2]);
        assert_eq!(all[14 * row..], last);
    }

    #[test]
    fn what_does_not_fit_the_scales_is_refused() {
        let x = random(0, [1, 13, 1, 4]);
        let op = Attention { scale: 1.0, mask: Mask::Blocks(ENDS.to_vec()) };
        let message = run(&op, &[&x, &x, &x]).unwrap_err().to_string();
        assert!(message.contains("13 queries and 13 keys do not fit the scales"), "{message}");
    }
}
