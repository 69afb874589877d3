//! Group norm's fast faces: an image to a worker, or a part of a large one, in three sweeps.
//!
//! Tables of the channels are repeated to a stretch of at least 256 elements, so that the loops are
//! long and straight whatever the number of channels.

use super::{GroupNorm, act, slope};
use crate::device::cpu;
use crate::ops::{In, Out};
use crate::tensor::Shape;

/// Least elements of a part of an image.
const PART: usize = 1 << 16;

/// Elements of an image.
fn area(x: &Shape) -> usize {
    x.dims()[1..].iter().product()
}

/// Channel tables repeated to a length that fills vectors, and sums over such stretches.
struct Tile {
    channels: usize,
    groups: usize,
    len: usize,
}

impl Tile {
    fn new(op: &GroupNorm, x: &Shape) -> Self {
        let channels = x.last();
        Self { channels, groups: op.groups, len: 256usize.div_ceil(channels) * channels }
    }

    /// A function of the channel.
    fn table(&self, f: impl Fn(usize) -> f32) -> Vec<f32> {
        (0..self.len).map(|i| f(i % self.channels)).collect()
    }

    /// A value of each group.
    fn spread(&self, of: &[f32]) -> Vec<f32> {
        let width = self.channels / self.groups;
        self.table(|c| of[c / width])
    }

    /// Sums of each channel from sums of a stretch.
    fn fold(&self, sums: &[f32]) -> Vec<f32> {
        let mut by_channel = vec![0.0; self.channels];
        for row in sums.chunks_exact(self.channels) {
            by_channel.iter_mut().zip(row).for_each(|(a, b)| *a += b);
        }
        by_channel
    }

    /// Mean over each group of per-channel sums over `area` elements of an image.
    fn means(&self, by_channel: &[f32], area: usize) -> Vec<f32> {
        let inv = 1.0 / (area / self.groups) as f32;
        let width = self.channels / self.groups;
        by_channel.chunks_exact(width).map(|c| c.iter().sum::<f32>() * inv).collect()
    }

    /// Elements that a worker takes at a time: whole stretches, by the number of channels alone.
    fn part(&self) -> usize {
        PART.div_ceil(self.len) * self.len
    }

    /// Sums of each channel of f(element, entry of the table), part by part, added in order.
    fn sums(&self, x: &[f32], table: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
        let part = self.part();
        let parts = cpu::par_map(x.len().div_ceil(part), |i| {
            let mut sums = vec![0.0; self.len];
            cpu::simd(
                #[inline(always)]
                || {
                    for x in x[i * part..x.len().min((i + 1) * part)].chunks(self.len) {
                        for (s, (&x, &t)) in sums.iter_mut().zip(x.iter().zip(table)) {
                            *s += f(x, t);
                        }
                    }
                },
            );
            self.fold(&sums)
        });
        let mut by_channel = vec![0.0; self.channels];
        for part in parts {
            by_channel.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        by_channel
    }

    /// Mean and rstd of an image's groups.
    fn normalise(&self, op: &GroupNorm, x: &[f32], [mean, rstd]: [&mut [f32]; 2]) {
        let zeros = vec![0.0; self.len];
        mean.copy_from_slice(&self.means(&self.sums(x, &zeros, |x, _| x), x.len()));
        let squares = self.sums(x, &self.spread(mean), |x, m| (x - m) * (x - m));
        for (rstd, var) in rstd.iter_mut().zip(self.means(&squares, x.len())) {
            *rstd = 1.0 / (var + op.eps as f32).sqrt();
        }
    }
}

/// y = act((x - m) a + b) with repeated tables.
fn affine<const SILU: bool>(x: &[f32], y: &mut [f32], [m, a, b]: [&[f32]; 3]) {
    cpu::simd(
        #[inline(always)]
        || {
            for (x, y) in x.chunks(m.len()).zip(y.chunks_mut(m.len())) {
                let n = y.len();
                let (x, m, a, b) = (&x[..n], &m[..n], &a[..n], &b[..n]);
                for i in 0..n {
                    y[i] = act(SILU, (x[i] - m[i]) * a[i] + b[i]);
                }
            }
        },
    );
}

/// One image's derivative: tables of mean, rstd, w and b, and the sums over the image of s, h s, v
/// and h v, where s is the gradient behind the activation and v = w s.
struct Sums {
    tables: [Vec<f32>; 4],
    sums: [Vec<f32>; 4],
}

impl Sums {
    fn new(tile: &Tile, stats: &[f32], w: &[f32], b: &[f32]) -> Self {
        let (mean, rstd) = stats.split_at(tile.groups);
        let tables =
            [tile.spread(mean), tile.spread(rstd), tile.table(|c| w[c]), tile.table(|c| b[c])];
        Self { tables, sums: [(); 4].map(|()| vec![0.0; tile.len]) }
    }

    /// Replaces v, which arrives as the gradient before the activation, and fills the sums. Without
    /// `WEIGH`, v is left as s.
    fn gather<const SILU: bool, const WEIGH: bool>(&mut self, x: &[f32], v: &mut [f32]) {
        let ([m, r, w, b], [s, hs, wv, hv]) = (&self.tables, &mut self.sums);
        let len = m.len();
        cpu::simd(
            #[inline(always)]
            || {
                for (x, v) in x.chunks(len).zip(v.chunks_mut(len)) {
                    let n = v.len();
                    let (x, m, r, w, b) = (&x[..n], &m[..n], &r[..n], &w[..n], &b[..n]);
                    let (s, hs, wv, hv) = (&mut s[..n], &mut hs[..n], &mut wv[..n], &mut hv[..n]);
                    for i in 0..n {
                        let h = (x[i] - m[i]) * r[i];
                        let g = v[i] * slope(SILU, h * w[i] + b[i]);
                        let own = if WEIGH { g * w[i] } else { g };
                        v[i] = own;
                        s[i] += g;
                        hs[i] += h * g;
                        wv[i] += own;
                        hv[i] += h * own;
                    }
                }
            },
        );
    }

    /// The means of v and of h v over the groups, as tables.
    fn moments(&self, tile: &Tile, area: usize) -> [Vec<f32>; 2] {
        [2, 3].map(|i| tile.spread(&tile.means(&tile.fold(&self.sums[i]), area)))
    }
}

/// y and the statistics.
pub fn forward(op: &GroupNorm, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let (tile, area) = (Tile::new(op, x[0].shape), area(x[0].shape));
    let [y, stats] = y else { return };
    let (w, b) = (tile.table(|c| x[1].r()[c]), tile.table(|c| x[2].r()[c]));
    let (x, groups) = (x[0].r(), 2 * op.groups);
    cpu::par_rows_and(y.r(), area, stats.r(), groups, |first, y, stats| {
        let images = y.chunks_exact_mut(area.max(1)).zip(stats.chunks_exact_mut(groups));
        for (i, (y, stats)) in images.enumerate() {
            let x = &x[(first + i) * area..(first + i + 1) * area];
            let (mean, rstd) = stats.split_at_mut(op.groups);
            tile.normalise(op, x, [mean, rstd]);
            let m = tile.spread(mean);
            let a: Vec<f32> = tile.spread(rstd).iter().zip(&w).map(|(r, w)| r * w).collect();
            cpu::par_chunks(y, tile.part(), |first, y| {
                let x = &x[first..first + y.len()];
                match op.silu {
                    true => affine::<true>(x, y, [&m, &a, &b]),
                    false => affine::<false>(x, y, [&m, &a, &b]),
                }
            });
        }
    });
    if area == 0 {
        stats.r().fill(f32::NAN);
    }
}

/// gx, gw and gb.
pub fn vjp<const SILU: bool>(op: &GroupNorm, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let (tile, area) = (Tile::new(op, x[0].shape), area(x[0].shape));
    let (c, groups) = (tile.channels, 2 * op.groups);
    let [gx, gw, gb] = y else { return };
    let (w, b) = (x[2].r(), x[3].r());
    // Per image: the terms of gw, then of gb.
    let mut partial = vec![0.0; x[0].shape.dims()[0] * 2 * c];
    cpu::par_rows_and(gx.r(), area, &mut partial, 2 * c, |first, gx, partial| {
        let images = gx.chunks_exact_mut(area.max(1)).zip(partial.chunks_exact_mut(2 * c));
        for (i, (gx, partial)) in images.enumerate() {
            let at = (first + i) * area..(first + i + 1) * area;
            let stats = &x[1].r()[(first + i) * groups..(first + i + 1) * groups];
            let (gy, x) = (&x[4].r()[at.clone()], &x[0].r()[at]);
            gx.copy_from_slice(gy);
            let mut sums = Sums::new(&tile, stats, w, b);
            sums.gather::<SILU, true>(x, gx);
            let (gb, gw) = (tile.fold(&sums.sums[0]), tile.fold(&sums.sums[1]));
            pull_back(x, gx, &sums.tables, &sums.moments(&tile, area));
            partial[..c].copy_from_slice(&gw);
            partial[c..].copy_from_slice(&gb);
        }
    });
    let (gw, gb) = (gw.r(), gb.r());
    gw.fill(0.0);
    gb.fill(0.0);
    for image in partial.chunks_exact(2 * c) {
        gw.iter_mut().zip(&image[..c]).for_each(|(a, b)| *a += b);
        gb.iter_mut().zip(&image[c..]).for_each(|(a, b)| *a += b);
    }
}

/// v becomes S(v), given the means of v and of h v.
fn pull_back(x: &[f32], v: &mut [f32], [m, r, ..]: &[Vec<f32>; 4], [mv, mhv]: &[Vec<f32>; 2]) {
    cpu::simd(
        #[inline(always)]
        || {
            for (x, v) in x.chunks(m.len()).zip(v.chunks_mut(m.len())) {
                let n = v.len();
                let (x, m, r, mv, mhv) = (&x[..n], &m[..n], &r[..n], &mv[..n], &mhv[..n]);
                for i in 0..n {
                    let h = (x[i] - m[i]) * r[i];
                    v[i] = r[i] * (v[i] - mv[i] - h * mhv[i]);
                }
            }
        },
    );
}

/// The tangent.
pub fn jvp<const SILU: bool>(op: &GroupNorm, x: &[In<'_, f32>], dy: &mut [f32]) {
    let (tile, area) = (Tile::new(op, x[0].shape), area(x[0].shape));
    let groups = 2 * op.groups;
    let [v, stats, w, b, dx, dw, db] = x else { return };
    let (dw, db) = (tile.table(|c| dw.r()[c]), tile.table(|c| db.r()[c]));
    cpu::par_chunks(dy, area, |first, dy| {
        let image = first / area;
        let (x, dx) = (&v.r()[first..first + area], &dx.r()[first..first + area]);
        let stats = &stats.r()[image * groups..(image + 1) * groups];
        dy.copy_from_slice(dx);
        let mut sums = Sums::new(&tile, stats, w.r(), b.r());
        sums.gather::<false, false>(x, dy);
        pull_back(x, dy, &sums.tables, &sums.moments(&tile, area));
        let [m, r, w, b] = &sums.tables;
        cpu::simd(
            #[inline(always)]
            || {
                for (x, v) in x.chunks(tile.len).zip(dy.chunks_mut(tile.len)) {
                    let n = v.len();
                    let (x, m, r, w, b) = (&x[..n], &m[..n], &r[..n], &w[..n], &b[..n]);
                    let (dw, db) = (&dw[..n], &db[..n]);
                    for i in 0..n {
                        let h = (x[i] - m[i]) * r[i];
                        let du = w[i] * v[i] + h * dw[i] + db[i];
                        v[i] = slope(SILU, h * w[i] + b[i]) * du;
                    }
                }
            },
        );
    });
}
