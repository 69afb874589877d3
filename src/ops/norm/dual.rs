//! Adaptive layer norm and its tangent in one pass over the rows.
//!
//! With h = (x - mean) rstd and h' = rstd (x' - mean(x') - h mean(h x')):
//!   y = h (1 + a) + b,  y' = h' (1 + a) + h a' + b'

use std::ops::RangeInclusive;

use super::ada::{AdaNorm, SHAPES, check, drawn, serving, sizes, stats};
use super::mean;
use crate::device::kernel::Slice;
use crate::device::launch::norm as launch;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, kernels, warp_per_row};
use crate::ops::{Case, Cases, Diff, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// [`AdaNorm`] and its tangent: from (x, a, b, dx) and those of (da, db) that are not zero, to y,
/// mean and rstd, and dy.
#[derive(Clone, Debug)]
pub struct AdaNormDual {
    /// Added to the variance.
    pub eps: f64,
    /// Which of da and db are given.
    pub given: [bool; 2],
}

impl AdaNormDual {
    /// Which input is da (0) or db (1).
    fn place(&self, t: usize) -> Option<usize> {
        self.given[t].then(|| 4 + usize::from(t == 1 && self.given[0]))
    }
}

fn outputs() -> Error {
    Error::Internal("the norm and its tangent are three outputs".into())
}

impl Op for AdaNormDual {
    const NAME: &'static str = "ada_norm_dual";
    const INPUTS: RangeInclusive<usize> = 4..=6;
    const DIFF: Diff = FIRST_ORDER;
    const F32_OUTPUTS: &'static [usize] = &[1];
    const COMPOSED: Option<Composed<Self>> = Some(|op, x| {
        let part = |t: usize| op.place(t).and_then(|at| x.get(at)).copied();
        let norm = AdaNorm { eps: op.eps };
        composed::apart(&norm, &x[..3], &[Some(x[3]), part(0), part(1)])
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols, groups) = sizes(x[0].shape, x[1].shape);
        let [y, stats, dy] = y else { return Err(outputs()) };
        let (y, dy, stats) = (&mut y.get::<T>()?, &mut dy.get::<T>()?, &mut stats.get::<f32>()?);
        let part = |t: usize| op.place(t).map_or(Ok(Slice::none(q)), |at| x[at].get::<T>());
        let (da, db, [of_a, of_b]) = (part(0)?, part(1)?, op.given.map(usize::from));
        let (x, a, b, dx) =
            (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?, x[3].get::<T>()?);
        let (grid, eps) = (warp_per_row(q, rows), op.eps as f32);
        launch::ada_norm_dual_fwd(
            q, grid, y, stats, dy, &x, &a, &b, &dx, &da, &db, rows, cols, groups, of_a, of_b, eps,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check(Self::NAME, x[0], &x[1..3])?;
        let wanted = 4 + self.given.iter().filter(|g| **g).count();
        if x.len() != wanted || x[3] != x[0] || x[4..].iter().any(|d| *d != x[1]) {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what = format!("{:?} does not fit {}", self.given, found.join(", "));
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![x[0].clone(), stats(x[0]), x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (n, serving) = (x[0].shape.last(), serving(x[0].shape, x[1].shape));
        let part = |t: usize| self.place(t).map(|i| x[i].r());
        let (da, db) = (part(0), part(1));
        for (r, row) in x[0].r().chunks(n).enumerate() {
            let (g, dx) = (serving(r), &x[3].r()[r * n..(r + 1) * n]);
            let m = mean(n, row.iter().copied());
            let variance = mean(n, row.iter().map(|&x| (x - m) * (x - m)));
            let rstd = R::of(1.0) / (variance + R::of(self.eps)).sqrt();
            let h: Vec<R> = row.iter().map(|&v| (v - m) * rstd).collect();
            let md = mean(n, dx.iter().copied());
            let mhd = mean(n, h.iter().zip(dx).map(|(&h, &d)| h * d));
            for c in 0..n {
                let scale = R::of(1.0) + x[1].r()[g + c];
                let mut dy = rstd * (dx[c] - md - h[c] * mhd) * scale;
                if let Some(da) = da {
                    dy = dy + h[c] * da[g + c];
                }
                if let Some(db) = db {
                    dy = dy + db[g + c];
                }
                y[0].r()[r * n + c] = h[c] * scale + x[2].r()[g + c];
                y[2].r()[r * n + c] = dy;
            }
            y[1].r()[2 * r] = m;
            y[1].r()[2 * r + 1] = rstd;
        }
    }
    fn cases() -> Cases {
        let given = [[true; 2], [false; 2], [true, false], [false, true]].into_iter().cycle();
        Cases {
            named: SHAPES.iter().zip(given).map(|((name, x, a), g)| case(name, x, a, g)).collect(),
            draw: |d| {
                let (x, a) = drawn(d);
                case("drawn", &x, &a, [d.coin(), d.coin()])
            },
            bench: vec![
                case("phi_m", &[32, 256, 512], &[32, 1, 512], [true; 2]),
                case("phi_m_places", &[32, 256, 512], &[32, 256, 512], [true; 2]),
            ],
        }
    }
}

fn case(name: &str, x: &[usize], a: &[usize], given: [bool; 2]) -> Case {
    let mut inputs = vec![Input::normal(x), Input::normal(a), Input::normal(a), Input::normal(x)];
    inputs.extend(given.into_iter().filter(|g| *g).map(|_| Input::normal(a)));
    Case::new(name, AdaNormDual { eps: 1e-6, given }, inputs)
}
