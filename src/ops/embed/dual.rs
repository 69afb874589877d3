//! The embedding of a time and its tangent in one pass: an angle's sine and cosine serve both.

use std::ops::RangeInclusive;

use super::TimeEmbed;
use crate::device::launch::embed as launch;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, block_per_job, kernels};
use crate::ops::{Case, Cases, Diff, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// [`TimeEmbed`] and its tangent, from (t, dt).
#[derive(Clone, Debug)]
pub struct TimeEmbedDual(pub TimeEmbed);

impl Op for TimeEmbedDual {
    const NAME: &'static str = "time_embed_dual";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = FIRST_ORDER;
    const COMPOSED: Option<Composed<Self>> =
        Some(|op, x| composed::apart(&op.0, &x[..1], &[Some(x[1])]));
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, t, y| {
        let (n, half) = (t[0].shape.len(), op.0.dim / 2);
        let [y, dy] = y else {
            return Err(Error::Internal("value and tangent are two outputs".into()));
        };
        let (y, dy, fall) = (&mut y.get::<T>()?, &mut dy.get::<T>()?, op.0.fall());
        let (t, dt, grid) =
            (t[0].get::<T>()?, t[1].get::<T>()?, block_per_job(q, (n * half).div_ceil(128)));
        launch::time_embed_dual_fwd(q, grid, y, dy, &t, &dt, n, half, fall)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let one = self.0.check(Self::NAME, &x[..1])?;
        if x.len() != 2 || x[1] != x[0] {
            return Err(Error::shape(Self::NAME, "wants t [B] and its tangent"));
        }
        Ok([one.clone(), one].concat())
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (dim, t, dt) = (self.0.dim, x[0].r(), x[1].r());
        self.0.fill(t, y[0].r(), |c, s, _| (c, s));
        self.0.fill(t, y[1].r(), |c, s, w| (-(s * w), c * w));
        for (row, &dt) in y[1].r().chunks_mut(dim.max(1)).zip(dt) {
            row.iter_mut().for_each(|d| *d = *d * dt);
        }
    }
    fn cases() -> Cases {
        let case = |name: &str, n: usize, dim: usize, max_period: f64| {
            let inputs = vec![Input::uniform([n], 0.0, 1.0), Input::normal([n])];
            Case::new(name, Self(TimeEmbed { dim, max_period }), inputs)
        };
        Cases {
            named: vec![
                case("two", 1, 2, 1e4),
                case("odd_batch", 5, 14, 1e4),
                case("none", 0, 8, 1e4),
            ],
            draw: |d| {
                let (n, dim) = (d.size(1, 9), 2 * d.size(1, 20));
                let inputs = vec![Input::uniform([n], 0.0, 1.0), Input::normal([n])];
                Case::new("drawn", Self(TimeEmbed { dim, max_period: 100.0 }), inputs)
            },
            bench: vec![case("batch", 16, 256, 1e4)],
        }
    }
}
