//! What rounding may do to a whole computation.
//!
//! A tensor made by [`exact`] carries a bound of its rounding error beside each value. Ops on such
//! tensors run their references on [`Running`], so whatever is made of them, a model's loss among
//! it, knows how far two sound implementations may lie from its exact value.

use std::any::Any;

use super::{DynOp, In, Out, Running};
use crate::error::{Error, Result};
use crate::tensor::{DType, Remote, Shape, Tensor};

/// Values and bounds.
#[derive(Debug)]
struct Bounded(Vec<Running>);

impl Remote for Bounded {
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn fetch(&self) -> Result<Tensor> {
        Tensor::from_f64s(DType::F32, self.0.iter().map(|x| x.v).collect(), [self.0.len()])
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn of(t: &Tensor) -> Option<&[Running]> {
    t.remote()?.as_any().downcast_ref::<Bounded>().map(|b| b.0.as_slice())
}

/// The same f32 values, each without an error of its own.
///
/// # Errors
/// Elements of another type.
pub fn exact(t: &Tensor) -> Result<Tensor> {
    let values = t.f32s()?.iter().map(|&x| Running::exact(f64::from(x)));
    Tensor::away(Bounded(values.collect()), t.shape())
}

/// Each element's exact value and the bound of its error in f32; `None` for other tensors.
pub fn bounds(t: &Tensor) -> Option<Vec<(f64, f64)>> {
    Some(of(t)?.iter().map(|x| (x.v, x.e)).collect())
}

/// Runs an op's reference with bounds, if one of its inputs has them; the others are exact.
pub(super) fn run(op: &dyn DynOp, x: &[&Tensor], outs: &[Shape]) -> Option<Result<Vec<Tensor>>> {
    x.iter().any(|t| of(t).is_some()).then(|| reference(op, x, outs))
}

fn reference(op: &dyn DynOp, x: &[&Tensor], outs: &[Shape]) -> Result<Vec<Tensor>> {
    let lift = |t: &&Tensor| match (of(t), t.dtype()) {
        (Some(values), _) => Ok(values.to_vec()),
        (None, DType::I32) => Ok(Vec::new()),
        (None, _) => Ok(t.f32s()?.iter().map(|&x| Running::exact(f64::from(x))).collect()),
    };
    let reals = x.iter().map(lift).collect::<Result<Vec<Vec<Running>>>>()?;
    let view = |(t, real)| match Tensor::dtype(t) {
        DType::I32 => Ok(In::int(t.shape(), t.i32s()?)),
        _ => Ok(In::real(t.shape(), real)),
    };
    let ins = x.iter().copied().zip(reals.iter().map(Vec::as_slice)).map(view);
    let ins = ins.collect::<Result<Vec<_>>>()?;
    if let Some(i) = (0..outs.len()).find(|i| op.int_outputs().contains(i)) {
        return Err(Error::shape(op.name(), format!("output {i} is a choice, it has no bound")));
    }
    let mut made: Vec<Vec<Running>> =
        outs.iter().map(|s| vec![Running::exact(0.0); s.len()]).collect();
    let mut views: Vec<Out<'_, Running>> = made.iter_mut().map(|v| Out::Real(v)).collect();
    op.reference_running(&ins, &mut views);
    drop(views);
    made.into_iter().zip(outs).map(|(v, s)| Tensor::away(Bounded(v), s)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::call;
    use crate::ops::elementwise::{ADD, Mul};

    #[test]
    fn a_chain_of_ops_knows_its_rounding() {
        let t = |v: Vec<f32>| Tensor::new(v, [2]).unwrap();
        let (a, b) = (t(vec![0.1, 3.0]), t(vec![0.7, -2.0]));
        let chain = |a: &Tensor| call(&ADD, &[&call(&Mul, &[a, &b]).unwrap(), a]).unwrap();
        let plain = chain(&a);
        assert!(bounds(&plain).is_none());
        let held = chain(&exact(&a).unwrap());
        let all = bounds(&held).unwrap();
        for (i, (value, bound)) in all.into_iter().enumerate() {
            // The products of these f32 values are exact in f64, their sums nearly so.
            let b = f64::from(b.f32s().unwrap()[i]);
            let x = f64::from(a.f32s().unwrap()[i]);
            assert!((value - (x * b + x)).abs() < 1e-15 && bound > 0.0 && bound < 1e-6);
            assert!((plain.at(i) - value).abs() <= bound);
            assert!((held.at(i) - value).abs() <= bound);
        }
    }
}
