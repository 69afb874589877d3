//! Reductions: the sum that undoes a broadcast, and the broadcast that undoes a sum. Each is the
//! other's adjoint.

use std::ops::RangeInclusive;

use super::broadcast::Rows;
use super::cuda::{Kernels, block_per_job, kernels, over_elements, spread, warp_per_row};
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, call};
use crate::device::cpu;
use crate::device::launch::reduce as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// Sums x over the axes that `to` lacks or has as 1 (aligned at the last axis). The result has the
/// shape `to`.
#[derive(Clone, Debug)]
pub struct SumTo {
    /// The result's shape.
    pub to: Shape,
}

/// Repeats x along the axes it lacks or has as 1 (aligned at the last axis). The result has the
/// shape `to`.
#[derive(Clone, Debug)]
pub struct BroadcastTo {
    /// The result's shape.
    pub to: Shape,
}

/// `x` broadcast to `to`, without a copy when it has that shape already.
pub fn broadcast_into(x: &Tensor, to: &Shape) -> Result<Tensor> {
    if x.shape() == to { Ok(x.clone()) } else { call(&BroadcastTo { to: to.clone() }, &[x]) }
}

/// `x` summed to `to`, without a copy when it has that shape already.
pub fn sum_into(x: &Tensor, to: &Shape) -> Result<Tensor> {
    if x.shape() == to { Ok(x.clone()) } else { call(&SumTo { to: to.clone() }, &[x]) }
}

/// (outer, summed, inner) extents when the summed axes are neighbours; `None` when they are not.
fn block(from: &Shape, to: &Shape) -> Option<(usize, usize, usize)> {
    let f = from.dims();
    let kept = |i: usize| {
        let skip = f.len() - to.rank();
        i >= skip && to.dims()[i - skip] == f[i]
    };
    let first = (0..f.len()).find(|&i| !kept(i) && f[i] != 1)?;
    let end = (first..f.len()).rev().find(|&i| !kept(i) && f[i] != 1)? + 1;
    let between = (first..end).all(|i| !kept(i) || f[i] == 1);
    let product = |r: std::ops::Range<usize>| f[r].iter().product();
    between.then(|| (product(0..first), product(first..end), product(end..f.len())))
}

/// Sums rows of `inner` elements into `y`, in order.
fn add_rows(y: &mut [f32], x: &[f32]) {
    cpu::simd(
        #[inline(always)]
        || {
            y.fill(0.0);
            for row in x.chunks_exact(y.len()) {
                for (y, &x) in y.iter_mut().zip(row) {
                    *y += x;
                }
            }
        },
    );
}

/// Sum of a run, in sixteen lanes.
fn sum_run(x: &[f32]) -> f32 {
    cpu::simd(
        #[inline(always)]
        || {
            let mut lanes = [0.0f32; 16];
            let mut parts = x.chunks_exact(16);
            for part in &mut parts {
                for (l, &x) in lanes.iter_mut().zip(part) {
                    *l += x;
                }
            }
            let tail: f32 = parts.remainder().iter().sum();
            lanes.iter().sum::<f32>() + tail
        },
    )
}

/// Elements of a partial sum; fixed, so that the tree does not depend on the machine.
const PART: usize = 1 << 14;

fn sum_block(x: &[f32], inner: usize) -> Vec<f32> {
    // At least sixteen rows a part, so that each round leaves fewer rows even where one row fills a
    // part.
    let rows = (PART / inner).max(16);
    let parts = x.len().div_ceil(rows * inner).max(1);
    let part = |i: usize| {
        let x = &x[i * rows * inner..((i + 1) * rows * inner).min(x.len())];
        if inner == 1 {
            return vec![sum_run(x)];
        }
        let mut y = vec![0.0; inner];
        add_rows(&mut y, x);
        y
    };
    if parts == 1 {
        return part(0);
    }
    let partials = cpu::par_map(parts, part).concat();
    sum_block(&partials, inner)
}

impl Op for SumTo {
    const NAME: &'static str = "sum_to";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let y = y[0].r();
        if y.len() == x[0].r().len() {
            // Nothing is summed.
            return y.copy_from_slice(x[0].r());
        }
        match block(x[0].shape, &op.to) {
            Some((outer, mid, inner)) if outer * mid * inner > 0 => {
                let run = mid * inner;
                if outer == 1 {
                    y.copy_from_slice(&sum_block(x[0].r(), inner));
                    return;
                }
                let x = x[0].r();
                cpu::par_rows(y, inner, |first, part| {
                    for (i, y) in part.chunks_mut(inner).enumerate() {
                        let x = &x[(first + i) * run..(first + i + 1) * run];
                        y.copy_from_slice(&sum_block(x, inner));
                    }
                });
            }
            _ => op.reference(x, &mut [Out::Real(y)]),
        }
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread(Self::NAME, x[0].shape, &op.to)?;
        let (x, mut y) = (x[0].get::<T>()?, y[0].get::<T>()?);
        match k2 {
            1 => {
                let grid = warp_per_row(q, k0 * k1);
                launch::sum_rows_fwd(q, grid, &mut y, &x, k0, r0, k1, r1)
            }
            _ => {
                let grid = block_per_job(q, k0 * k1 * k2.div_ceil(32));
                launch::sum_columns_fwd(q, grid, &mut y, &x, k0, r0, k1, r1, k2)
            }
        }
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if Rows::new(x[0], &self.to).is_none() {
            return Err(Error::shape(Self::NAME, format!("{} does not sum to {}", x[0], self.to)));
        }
        Ok(vec![self.to.clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Some(rows) = Rows::new(x[0].shape, &self.to) else { return };
        let cols = x[0].shape.last().max(1);
        let spread = usize::from(self.to.last() == cols && cols != 1);
        let mut terms: Vec<Vec<R>> = vec![Vec::new(); self.to.len()];
        for (r, row) in x[0].r().chunks(cols).enumerate() {
            let at = rows.at(r);
            for (c, &x) in row.iter().enumerate() {
                terms[at + c * spread].push(x);
            }
        }
        for (y, t) in y[0].r().iter_mut().zip(terms) {
            *y = R::sum(t.into_iter());
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&BroadcastTo { to: at.shape(0).clone() }, &[gy])?)])
    }
    fn cases() -> Cases {
        let case = |name: &str, from: &[usize], to: &[usize]| {
            Case::new(name, SumTo { to: to.into() }, vec![Input::normal(from)])
        };
        Cases {
            named: vec![
                case("all", &[3, 5, 7], &[1]),
                case("rows", &[2000, 17], &[17]),
                case("per_sample", &[3, 300, 65], &[3, 1, 65]),
                case("last", &[4, 5, 33], &[4, 5, 1]),
                case("apart", &[3, 4, 5], &[1, 4, 1]),
                case("nothing", &[3, 4], &[3, 4]),
                case("wider_than_a_part", &[17, 16_500], &[16_500]),
                case("empty", &[0, 4], &[4]),
            ],
            draw: |d| {
                let from = [d.size(1, 5), d.size(1, 6), d.size(1, 20)];
                let to: Vec<usize> = from.iter().map(|&n| if d.coin() { n } else { 1 }).collect();
                Case::new("drawn", SumTo { to: to.into() }, vec![Input::normal(from)])
            },
            bench: vec![case("bias", &[16, 64, 64, 16], &[16])],
        }
    }
}

impl Op for BroadcastTo {
    const NAME: &'static str = "broadcast_to";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread(Self::NAME, &op.to, x[0].shape)?;
        let grid = over_elements(q, op.to.len());
        launch::broadcast_to_fwd(
            q,
            grid,
            &mut y[0].get::<T>()?,
            &x[0].get::<T>()?,
            k0,
            r0,
            k1,
            r1,
            k2,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if Rows::new(&self.to, x[0]).is_none() {
            let what = format!("{} does not broadcast to {}", x[0], self.to);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![self.to.clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Some(rows) = Rows::new(&self.to, x[0].shape) else { return };
        let cols = self.to.last().max(1);
        let step = usize::from(x[0].shape.last() == cols && cols != 1);
        for (r, y) in y[0].r().chunks_mut(cols).enumerate() {
            let at = rows.at(r);
            for (c, y) in y.iter_mut().enumerate() {
                *y = x[0].r()[at + c * step];
            }
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(sum_into(gy, at.shape(0))?)])
    }
    fn cases() -> Cases {
        let case = |name: &str, from: &[usize], to: &[usize]| {
            Case::new(name, BroadcastTo { to: to.into() }, vec![Input::normal(from)])
        };
        Cases {
            named: vec![
                case("scalar", &[1], &[3, 4]),
                case("rows", &[17], &[5, 17]),
                case("per_sample", &[3, 1, 6], &[3, 5, 6]),
                case("last", &[4, 1], &[4, 9]),
            ],
            draw: |d| {
                let to = [d.size(1, 5), d.size(1, 6), d.size(1, 20)];
                let from: Vec<usize> = to.iter().map(|&n| if d.coin() { n } else { 1 }).collect();
                Case::new("drawn", BroadcastTo { to: to.into() }, vec![Input::normal(from)])
            },
            bench: vec![],
        }
    }
}
