//! Holding what kernels gave against what the mathematics says, while a program runs.
//!
//! On a queue that is [`Queue::verified`](crate::device::cuda::Queue::verified), each op's
//! reference runs beside its kernels, on the same inputs, with the bound that rounding has
//! ([`Running`]). The first element that leaves its bound ends the run, naming the op.

use super::{DynOp, In, Out, Running};
use crate::device::OnGpu;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// That `got`, an op's outputs for inputs `x`, are what rounding allows.
///
/// # Errors
/// [`Error::Rounding`] at the first element that is not; those of reading the device.
pub(super) fn outputs(op: &dyn DynOp, x: &[&Tensor], got: &[Tensor]) -> Result<()> {
    let lift = |t: &&Tensor| match t.dtype() {
        DType::I32 => Ok(Vec::new()),
        _ => Ok(t.f32s()?.iter().map(|&x| Running::exact(f64::from(x))).collect()),
    };
    let reals = x.iter().map(lift).collect::<Result<Vec<Vec<Running>>>>()?;
    let view = |(t, real)| match Tensor::dtype(t) {
        DType::I32 => Ok(In::int(t.shape(), t.i32s()?)),
        _ => Ok(In::real(t.shape(), real)),
    };
    let ins = x.iter().copied().zip(reals.iter().map(Vec::as_slice)).map(view);
    let ins = ins.collect::<Result<Vec<_>>>()?;
    let len = |t: &Tensor, int: bool| if (t.dtype() == DType::I32) == int { t.len() } else { 0 };
    let mut made: Vec<(Vec<Running>, Vec<i32>)> = got
        .iter()
        .map(|t| (vec![Running::exact(0.0); len(t, false)], vec![0; len(t, true)]))
        .collect();
    let mut views: Vec<Out<'_, Running>> = made
        .iter_mut()
        .zip(got)
        .map(|((real, int), t)| match t.dtype() {
            DType::I32 => Out::Int(int),
            _ => Out::Real(real),
        })
        .collect();
    op.reference_running(&ins, &mut views);
    drop(views);
    for (i, ((real, _), got)) in made.iter().zip(got).enumerate() {
        let values: &[f32] = if got.dtype() == DType::I32 { &[] } else { got.f32s()? };
        let halved = OnGpu::is_bf16(got);
        let real = |at: usize| if halved { rounded(real[at]) } else { real[at] };
        if let Some(at) = (0..values.len()).find(|&at| !allowed(real(at), values[at])) {
            let Running { v: exact, e: bound } = real(at);
            let (op, got) = (op.name(), f64::from(values[at]));
            return Err(Error::Rounding { op, output: i, at, got, exact, bound });
        }
    }
    choices(op, x, got)
}

/// A value that was rounded to bf16: half a unit of its 8 digits more, or of the least subnormal.
fn rounded(x: Running) -> Running {
    Running { e: x.e + ((x.v.abs() + x.e) * 2f64.powi(-8)).max(2f64.powi(-134)), ..x }
}

/// Whether rounding explains a value. A bound that is not finite says nothing.
fn allowed(exact: Running, got: f32) -> bool {
    let got = f64::from(got);
    match exact.v.is_finite() && exact.e.is_finite() {
        true => (got - exact.v).abs() <= exact.e,
        false => exact.v.is_finite() || !got.is_finite(),
    }
}

/// That the op accepts its integer answers.
fn choices(op: &dyn DynOp, x: &[&Tensor], got: &[Tensor]) -> Result<()> {
    let ints = got.iter().filter(|t| t.dtype() == DType::I32);
    let ints = ints.map(|t| Ok(t.i32s()?.to_vec())).collect::<Result<Vec<_>>>()?;
    if ints.is_empty() {
        return Ok(());
    }
    let wide: Vec<Tensor> = x
        .iter()
        .map(|t| if t.dtype() == DType::I32 { (*t).clone() } else { t.cast(DType::F64) })
        .collect();
    let refs: Vec<&Tensor> = wide.iter().collect();
    match op.refuses(&super::views(op, &refs, Tensor::f64s, |_, _| None)?, &ints) {
        Some(why) => Err(Error::shape(op.name(), format!("its kernels chose wrongly: {why}"))),
        None => Ok(()),
    }
}
