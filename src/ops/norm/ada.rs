//! Adaptive layer norm: layer norm without weights, then a scale and a shift that the condition
//! gives (DiT, VAR), in one pass over the rows.
//!
//! With h = (x - mean) rstd: y = h (1 + a) + b. A row of a and b serves rows that follow each
//! other: [B, 1, C] beside x [B, n, C] is one for each sample, [B, n, C] one for each position.

use std::ops::RangeInclusive;

use super::{AdaNormDual, mean, two_outputs};
use crate::device::cpu;
use crate::device::kernel::{Slice, SliceMut};
use crate::device::launch::norm as launch;
use crate::error::{Error, Result};
use crate::ops::broadcast::groups;
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, kernels, warp_per_row};
use crate::ops::reduce::sum_into;
use crate::ops::{
    Case, Cases, CpuFace, Diff, DynOp, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves,
    call, lanes, run,
};
use crate::tensor::{Shape, Tensor};

/// x [.., C], a and b of the same lesser shape, to y [.., C]. Second output: mean and rstd [.., 2].
#[derive(Clone, Debug)]
pub struct AdaNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// Tangent of [`AdaNorm`], from (x, mean and rstd, a) and those of (dx, da, db) that are not zero.
#[derive(Clone, Debug)]
pub struct AdaNormJvp {
    /// Which tangents are given.
    pub given: [bool; 3],
}

/// Gradient of [`AdaNorm`] to x, from (x, mean and rstd, a, gy); with `scaled` also gy h, whose
/// sums are the gradient to a.
#[derive(Clone, Debug)]
pub struct AdaNormVjp {
    /// Whether gy h is wanted.
    pub scaled: bool,
}

/// Checks x [.., C] against a and those of its shape.
pub(super) fn check(op: &'static str, x: &Shape, a: &[&Shape]) -> Result<()> {
    let alike = a.iter().all(|other| *other == a[0]);
    match alike && x.rank() > 0 && x.last() > 0 && groups(x, a[0]).is_some() {
        true => Ok(()),
        false => {
            let found: Vec<String> = a.iter().map(ToString::to_string).collect();
            let what = format!(
                "wants x [.., C] and rows for rows that follow each other; found {x}, {}",
                found.join(", ")
            );
            Err(Error::shape(op, what))
        }
    }
}

/// The shape of the statistics.
pub(super) fn stats(x: &Shape) -> Shape {
    x.with_last(2)
}

/// Rows and columns of x and rows of a.
pub(super) fn sizes(x: &Shape, a: &Shape) -> (usize, usize, usize) {
    let (rows, cols) = x.matrix();
    (rows, cols, groups(x, a).unwrap_or(1))
}

/// Where the row of a begins that serves each row of x.
pub(super) fn serving(x: &Shape, a: &Shape) -> impl Fn(usize) -> usize + Sync {
    let (rows, cols, groups) = sizes(x, a);
    let each = (rows / groups.max(1)).max(1);
    move |r| r / each * cols
}

impl Op for AdaNorm {
    const NAME: &'static str = "ada_norm";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const COMPOSED: Option<Composed<Self>> = Some(composed::ada_norm);
    const SAVES: Saves = Saves::inputs(&[0, 1]).and_extras();
    const F32_OUTPUTS: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (cols, serving) = (x[0].shape.last(), serving(x[0].shape, x[1].shape));
        let (inv, eps) = (1.0 / cols as f32, op.eps as f32);
        let (x, a, b) = (x[0].r(), x[1].r(), x[2].r());
        let [y, stats] = y else { return };
        cpu::par_rows_and(y.r(), cols, stats.r(), 2, |first, y, stats| {
            let rows = y.chunks_exact_mut(cols).zip(stats.chunks_exact_mut(2)).enumerate();
            for (i, (y, stats)) in rows {
                let (x, g) = (&x[(first + i) * cols..][..cols], serving(first + i));
                cpu::simd(
                    #[inline(always)]
                    || {
                        let mean = lanes::sum(x, |x| x) * inv;
                        let variance = lanes::sum(x, |x| (x - mean) * (x - mean)) * inv;
                        let rstd = 1.0 / (variance + eps).sqrt();
                        let (a, b) = (&a[g..g + cols], &b[g..g + cols]);
                        for (c, y) in y.iter_mut().enumerate() {
                            *y = (x[c] - mean) * rstd * (1.0 + a[c]) + b[c];
                        }
                        stats.copy_from_slice(&[mean, rstd]);
                    },
                );
            }
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols, groups) = sizes(x[0].shape, x[1].shape);
        let [y, stats] = y else { return Err(two_outputs(Self::NAME)) };
        let (y, stats, eps) = (&mut y.get::<T>()?, &mut stats.get::<f32>()?, op.eps as f32);
        let (x, a, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
        let grid = warp_per_row(q, rows);
        launch::ada_norm_fwd(q, grid, y, stats, &x, &a, &b, rows, cols, groups, eps)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check(Self::NAME, x[0], &x[1..])?;
        Ok(vec![x[0].clone(), stats(x[0])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (n, serving) = (x[0].shape.last(), serving(x[0].shape, x[1].shape));
        for (r, row) in x[0].r().chunks(n).enumerate() {
            let m = mean(n, row.iter().copied());
            let variance = mean(n, row.iter().map(|&x| (x - m) * (x - m)));
            let rstd = R::of(1.0) / (variance + R::of(self.eps)).sqrt();
            let g = serving(r);
            for (c, &v) in row.iter().enumerate() {
                let scale = R::of(1.0) + x[1].r()[g + c];
                y[0].r()[r * n + c] = (v - m) * rstd * scale + x[2].r()[g + c];
            }
            y[1].r()[2 * r] = m;
            y[1].r()[2 * r + 1] = rstd;
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let given = [0, 1, 2].map(|i| dx[i].is_some());
        if given == [false; 3] {
            return Ok(None);
        }
        let mut x = vec![at.x(0)?, at.extra(0)?, at.x(1)?];
        x.extend(dx.iter().flatten());
        call(&AdaNormJvp { given }, &x).map(Some)
    }
    fn dual(&self, _: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        let dual = AdaNormDual { eps: self.eps, given: [given[1], given[2]] };
        given[0].then(|| Box::new(dual) as Box<dyn DynOp>)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let sum = |g: &Tensor| sum_into(g, at.shape(1));
        let mut grads = vec![None, None, want[2].then(|| sum(gy)).transpose()?];
        if want[0] || want[1] {
            let op = AdaNormVjp { scaled: want[1] };
            let mut outs = run(&op, &[at.x(0)?, at.extra(0)?, at.x(1)?, gy])?.into_iter();
            grads[0] = outs.next().filter(|_| want[0]);
            grads[1] = outs.next().map(|gs| sum(&gs)).transpose()?;
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        let case = |name: &str, x: &[usize], a: &[usize]| {
            let inputs = vec![Input::normal(x), Input::normal(a), Input::normal(a)];
            Case::new(name, AdaNorm { eps: 1e-6 }, inputs)
        };
        Cases {
            named: SHAPES.iter().map(|(name, x, a)| case(name, x, a)).collect(),
            draw: |d| {
                let (x, a) = drawn(d);
                let inputs = vec![Input::normal(x), Input::normal(a), Input::normal(a)];
                Case::new("drawn", AdaNorm { eps: 1e-6 }, inputs)
            },
            bench: vec![
                case("d16", &[16, 680, 1024], &[16, 1, 1024]),
                case("phi_m_places", &[32, 256, 512], &[32, 256, 512]),
            ],
        }
    }
}

/// Shapes of x and a: one row for a sample, for a position, for all, and lengths round a vector.
pub(super) const SHAPES: [(&str, &[usize], &[usize]); 6] = [
    ("per_sample", &[2, 5, 16], &[2, 1, 16]),
    ("per_place", &[2, 3, 17], &[2, 3, 17]),
    ("for_all", &[3, 4, 20], &[20]),
    ("two", &[4, 2], &[4, 2]),
    ("no_rows", &[0, 3, 8], &[0, 1, 8]),
    ("past_a_warp", &[2, 3, 1300], &[2, 1, 1300]),
];

pub(super) fn drawn(d: &mut crate::ops::Draw<'_>) -> ([usize; 3], [usize; 3]) {
    let (b, n, c) = (d.size(1, 4), d.size(1, 6), d.size(2, 70));
    ([b, n, c], [b, d.pick(&[1, n]), c])
}

impl Op for AdaNormJvp {
    const NAME: &'static str = "ada_norm_jvp";
    const INPUTS: RangeInclusive<usize> = 4..=6;
    const COMPOSED: Option<Composed<Self>> = Some(composed::ada_norm_jvp);
    const DIFF: Diff = FIRST_ORDER;
    const F32_INPUTS: &'static [usize] = &[1];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, dy| {
        let (rows, cols, groups) = sizes(x[0].shape, x[2].shape);
        let [of_x, of_a, of_b] = op.given.map(usize::from);
        let part = |i: usize| match op.place(i) {
            Some(at) => x[at].get::<T>(),
            None => Ok(Slice::none(q)),
        };
        let (dx, da, db) = (part(0)?, part(1)?, part(2)?);
        let (x, stats, a) = (x[0].get::<T>()?, x[1].get::<f32>()?, x[2].get::<T>()?);
        let (dy, grid) = (&mut dy[0].get::<T>()?, warp_per_row(q, rows));
        launch::ada_norm_jvp(
            q, grid, dy, &x, &stats, &a, &dx, &da, &db, rows, cols, groups, of_x, of_a, of_b,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let wanted = 3 + self.given.iter().filter(|g| **g).count();
        let fits = x.len() == wanted
            && *x[1] == stats(x[0])
            && self.place(0).is_none_or(|i| x[i] == x[0])
            && [1, 2].iter().all(|&t| self.place(t).is_none_or(|i| x[i] == x[2]));
        if !fits {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what = format!("{:?} does not fit {}", self.given, found.join(", "));
            return Err(Error::shape(Self::NAME, what));
        }
        check(Self::NAME, x[0], &x[2..3])?;
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], dy: &mut [Out<'_, R>]) {
        let (n, serving) = (x[0].shape.last(), serving(x[0].shape, x[2].shape));
        let part = |t: usize| self.place(t).map(|i| x[i].r());
        let (dx, da, db) = (part(0), part(1), part(2));
        for (r, row) in x[0].r().chunks(n).enumerate() {
            let (m, rstd, g) = (x[1].r()[2 * r], x[1].r()[2 * r + 1], serving(r));
            let h: Vec<R> = row.iter().map(|&v| (v - m) * rstd).collect();
            let dx = dx.map(|dx| &dx[r * n..(r + 1) * n]);
            let means = dx.map(|dx| {
                let along = h.iter().zip(dx).map(|(&h, &d)| h * d);
                (mean(n, dx.iter().copied()), mean(n, along))
            });
            for c in 0..n {
                let mut y = R::of(0.0);
                if let (Some(dx), Some((md, mhd))) = (dx, means) {
                    let dh = rstd * (dx[c] - md - h[c] * mhd);
                    y = y + dh * (R::of(1.0) + x[2].r()[g + c]);
                }
                if let Some(da) = da {
                    y = y + h[c] * da[g + c];
                }
                if let Some(db) = db {
                    y = y + db[g + c];
                }
                dy[0].r()[r * n + c] = y;
            }
        }
    }
    fn cases() -> Cases {
        let given = [[true; 3], [true, false, false], [false, true, false], [true, false, true]];
        let rest = [[false, false, true], [true, true, false]];
        let given = given.into_iter().chain(rest);
        Cases {
            named: SHAPES
                .iter()
                .zip(given)
                .map(|((name, x, a), g)| tangents(name, x, a, g))
                .collect(),
            draw: |d| {
                let (x, a) = drawn(d);
                tangents("drawn", &x, &a, [true, d.coin(), d.coin()])
            },
            bench: vec![tangents("phi_m", &[32, 256, 512], &[32, 1, 512], [true; 3])],
        }
    }
}

impl AdaNormJvp {
    /// Which input is the tangent of (x, a, b) number `t`.
    fn place(&self, t: usize) -> Option<usize> {
        self.given[t].then(|| 3 + self.given[..t].iter().filter(|g| **g).count())
    }
}

fn tangents(name: &str, x: &[usize], a: &[usize], given: [bool; 3]) -> Case {
    let stat = Input::uniform(stats(&x.into()), 0.5, 1.5);
    let mut inputs = vec![Input::normal(x), stat, Input::normal(a)];
    let shapes = [x, a, a].into_iter().zip(given).filter(|(_, given)| *given);
    inputs.extend(shapes.map(|(s, _)| Input::normal(s)));
    Case::new(name, AdaNormJvp { given }, inputs)
}

impl Op for AdaNormVjp {
    const NAME: &'static str = "ada_norm_vjp";
    const INPUTS: RangeInclusive<usize> = 4..=4;
    const COMPOSED: Option<Composed<Self>> = Some(composed::ada_norm_vjp);
    const DIFF: Diff = FIRST_ORDER;
    const F32_INPUTS: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let (cols, serving) = (x[0].shape.last(), serving(x[0].shape, x[2].shape));
        let (x, stats, a, gy) = (x[0].r(), x[1].r(), x[2].r(), x[3].r());
        let row = |r: usize, gx: &mut [f32], gs: &mut [f32]| {
            let (at, g) = (r * cols..(r + 1) * cols, serving(r));
            let x = (&x[at.clone()], stats[2 * r], stats[2 * r + 1]);
            gradient_row(x, &a[g..g + cols], &gy[at], gx, gs);
        };
        match y {
            [gx, gs] => cpu::par_rows_and(gx.r(), cols, gs.r(), cols, |first, gx, gs| {
                let rows = gx.chunks_exact_mut(cols).zip(gs.chunks_exact_mut(cols));
                rows.enumerate().for_each(|(i, (gx, gs))| row(first + i, gx, gs));
            }),
            [gx] => cpu::par_rows(gx.r(), cols, |first, gx| {
                let rows = gx.chunks_exact_mut(cols).enumerate();
                rows.for_each(|(i, gx)| row(first + i, gx, &mut []));
            }),
            _ => {}
        }
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols, groups) = sizes(x[0].shape, x[2].shape);
        let (gx, gs) = match y {
            [gx, gs] => (gx.get::<T>()?, gs.get::<T>()?),
            [gx] => (gx.get::<T>()?, SliceMut::none(q)),
            _ => return Err(two_outputs(Self::NAME)),
        };
        let (mut gx, mut gs, scaled) = (gx, gs, usize::from(op.scaled));
        let (x, stats, a, gy) =
            (x[0].get::<T>()?, x[1].get::<f32>()?, x[2].get::<T>()?, x[3].get::<T>()?);
        let (gx, gs, grid) = (&mut gx, &mut gs, warp_per_row(q, rows));
        launch::ada_norm_vjp(q, grid, gx, gs, &x, &stats, &a, &gy, rows, cols, groups, scaled)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if *x[1] != stats(x[0]) || x[3] != x[0] {
            let what = format!("x {} does not fit statistics {} and gy {}", x[0], x[1], x[3]);
            return Err(Error::shape(Self::NAME, what));
        }
        check(Self::NAME, x[0], &x[2..3])?;
        Ok(vec![x[0].clone(); 1 + usize::from(self.scaled)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (n, serving) = (x[0].shape.last(), serving(x[0].shape, x[2].shape));
        for (r, row) in x[0].r().chunks(n).enumerate() {
            let (m, rstd, at) = (x[1].r()[2 * r], x[1].r()[2 * r + 1], serving(r));
            let gy = &x[3].r()[r * n..(r + 1) * n];
            let h: Vec<R> = row.iter().map(|&v| (v - m) * rstd).collect();
            let scaled = |c: usize| gy[c] * (R::of(1.0) + x[2].r()[at + c]);
            let (mg, mhg) =
                (mean(n, (0..n).map(scaled)), mean(n, (0..n).map(|c| h[c] * scaled(c))));
            for c in 0..n {
                y[0].r()[r * n + c] = rstd * (scaled(c) - mg - h[c] * mhg);
                if self.scaled {
                    y[1].r()[r * n + c] = gy[c] * h[c];
                }
            }
        }
    }
    fn cases() -> Cases {
        Cases {
            named: SHAPES
                .iter()
                .zip([true, false].into_iter().cycle())
                .map(|((name, x, a), scaled)| gradients(name, x, a, scaled))
                .collect(),
            draw: |d| {
                let (x, a) = drawn(d);
                gradients("drawn", &x, &a, d.coin())
            },
            bench: vec![gradients("d16", &[16, 680, 1024], &[16, 1, 1024], true)],
        }
    }
}

fn gradients(name: &str, x: &[usize], a: &[usize], scaled: bool) -> Case {
    let stat = Input::uniform(stats(&x.into()), 0.5, 1.5);
    let inputs = vec![Input::normal(x), stat, Input::normal(a), Input::normal(x)];
    Case::new(name, AdaNormVjp { scaled }, inputs)
}

/// A row of both gradients, the second where there is room for it; x comes with its mean and rstd.
fn gradient_row(
    (x, m, rstd): (&[f32], f32, f32),
    a: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    gs: &mut [f32],
) {
    let inv = 1.0 / x.len() as f32;
    cpu::simd(
        #[inline(always)]
        || {
            // gx holds gy (1 + a) until its means are known.
            for (gx, (&gy, &a)) in gx.iter_mut().zip(gy.iter().zip(a)) {
                *gx = gy * (1.0 + a);
            }
            let mg = lanes::sum(gx, |g| g) * inv;
            let mhg = lanes::sum2(x, gx, |x, g| (x - m) * rstd * g) * inv;
            for (gx, &x) in gx.iter_mut().zip(x) {
                *gx = rstd * (*gx - mg - (x - m) * rstd * mhg);
            }
            for (gs, (&gy, &x)) in gs.iter_mut().zip(gy.iter().zip(x)) {
                *gs = gy * ((x - m) * rstd);
            }
        },
    );
}
