//! SiLU and its tangent in one pass.

use std::ops::RangeInclusive;

use super::Silu;
use crate::device::launch::activation as launch;
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{Kernels, kernels, over_elements};
use crate::ops::kinds::{Pointwise, map_cases, same_shape};
use crate::ops::{Case, Cases, Diff, FIRST_ORDER, In, Input, Op, Out, Real};
use crate::tensor::Shape;

/// [`Silu`] and its tangent, from (x, dx).
#[derive(Clone, Debug)]
pub struct SiluDual;

impl Op for SiluDual {
    const NAME: &'static str = "silu_dual";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const DIFF: Diff = FIRST_ORDER;
    const COMPOSED: Option<Composed<Self>> =
        Some(|_, x| composed::apart(&Silu, &x[..1], &[Some(x[1])]));
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (n, x, dx) = (x[0].shape.len(), x[0].get::<T>()?, x[1].get::<T>()?);
        let [y, dy] = y else {
            return Err(Error::Internal("value and tangent are two outputs".into()));
        };
        let (y, dy) = (&mut y.get::<T>()?, &mut dy.get::<T>()?);
        launch::silu_dual_fwd(q, over_elements(q, n), y, dy, &x, &dx, n)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let one = same_shape(Self::NAME, x, 2)?;
        Ok([one.clone(), one].concat())
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        for (i, (&x, &dx)) in x[0].r().iter().zip(x[1].r()).enumerate() {
            y[0].r()[i] = Silu.f(x);
            y[1].r()[i] = dx * Silu.df(x);
        }
    }
    fn cases() -> Cases {
        map_cases(
            || Self,
            Input::normal,
            2,
            |d| {
                let n = d.size(1, 40);
                Case::new("drawn", Self, vec![Input::normal([n]), Input::normal([n])])
            },
        )
    }
}
