//! From f32 to bf16 and back: where what runs in one type meets what runs in the other.

use std::ops::RangeInclusive;

use crate::device::OnGpu;
use crate::device::launch::layout as launch;
use crate::error::Result;
use crate::ops::cuda::{Kernels, kernels, over_elements};
use crate::ops::kinds::{map_cases, same_shape};
use crate::ops::{Case, Cases, Grads, In, Input, Op, Out, Precision, Real, Saved, call, run_in};
use crate::tensor::{Shape, Tensor};

/// x in the type that kernels compute in: f32, or bf16 by rounding to nearest, ties to even. See
/// [`rounded`].
#[derive(Clone, Debug)]
pub struct Round;

/// x in f32. See [`crate::autograd::Pass::wide`].
#[derive(Clone, Debug)]
pub struct Widen;

/// x in bf16, where a GPU holds it in f32; elsewhere as it is.
///
/// # Errors
/// Those of the device.
pub fn rounded(x: &Tensor) -> Result<Tensor> {
    match OnGpu::of(x) {
        Some(OnGpu::F32(_)) => run_in(Precision::Bf16, &Round, &[x]),
        _ => Ok(x.clone()),
    }
}

impl Op for Round {
    const NAME: &'static str = "round";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const F32_INPUTS: &'static [usize] = &[0];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (n, grid) = (x[0].shape.len(), over_elements(q, x[0].shape.len()));
        launch::round_fwd(q, grid, &mut y[0].get::<T>()?, &x[0].get::<f32>()?, n)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        same_shape(Self::NAME, x, 1)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        y[0].r().copy_from_slice(x[0].r());
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, _: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&Widen, &[gy])?)])
    }
    fn cases() -> Cases {
        map_cases(
            || Self,
            Input::normal,
            1,
            |d| Case::new("drawn", Self, vec![Input::normal([d.size(1, 60), d.size(1, 60)])]),
        )
    }
}

impl Op for Widen {
    const NAME: &'static str = "widen";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const F32_OUTPUTS: &'static [usize] = &[0];
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (n, grid) = (x[0].shape.len(), over_elements(q, x[0].shape.len()));
        launch::widen_fwd(q, grid, &mut y[0].get::<f32>()?, &x[0].get::<T>()?, n)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        same_shape(Self::NAME, x, 1)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        y[0].r().copy_from_slice(x[0].r());
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, _: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        // What meets bf16 further back is rounded there.
        Ok(vec![Some(gy.clone())])
    }
    fn cases() -> Cases {
        map_cases(
            || Self,
            Input::normal,
            1,
            |d| Case::new("drawn", Self, vec![Input::normal([d.size(1, 60), d.size(1, 60)])]),
        )
    }
}
