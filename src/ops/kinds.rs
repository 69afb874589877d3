//! Kinds: ops whose rules follow from what they are, so that a new one is a formula and a name.
//!
//! A pointwise op is a function and its derivative; forward and reverse mode are then the same
//! kernel,
//! `gx = gy * f'(x)`, which is itself an op with its own row in the table.

use super::{Case, Cases, Draw, DynOp, In, Input, Out, Real};
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// A function of one real variable, applied to each element.
pub trait Pointwise: Clone + Send + Sync + 'static {
    /// The function.
    fn f<R: Real>(&self, x: R) -> R;
    /// Its derivative.
    fn df<R: Real>(&self, x: R) -> R;
    /// Both times a tangent, as one op from (x, dx), where there is one.
    fn at_once(&self) -> Option<Box<dyn DynOp>> {
        None
    }
}

/// y = f(x) on the CPU.
pub fn map_cpu<P: Pointwise>(p: &P, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let x = x[0].r();
    cpu::par_rows(y[0].r(), 1, |at, y| {
        let x = &x[at..at + y.len()];
        cpu::simd(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = p.f(x);
                }
            },
        );
    });
}

/// gx = gy f'(x) on the CPU.
pub fn map_vjp_cpu<P: Pointwise>(p: &P, x: &[In<'_, f32>], y: &mut [Out<'_, f32>]) {
    let (x, g) = (x[0].r(), x[1].r());
    cpu::par_rows(y[0].r(), 1, |at, y| {
        let (x, g) = (&x[at..at + y.len()], &g[at..at + y.len()]);
        cpu::simd(
            #[inline(always)]
            || {
                for (y, (&x, &g)) in y.iter_mut().zip(x.iter().zip(g)) {
                    *y = g * p.df(x);
                }
            },
        );
    });
}

/// Cases of a pointwise op with `arity` inputs of one shape.
pub fn map_cases<O: super::Op>(
    op: fn() -> O,
    input: fn(Shape) -> Input,
    arity: usize,
    draw: fn(&mut Draw<'_>) -> Case,
) -> Cases {
    let case = |name: &str, shape: Vec<usize>| {
        let inputs = (0..arity).map(|_| input(Shape::from(shape.clone()))).collect();
        Case::new(name, op(), inputs)
    };
    Cases {
        named: vec![
            case("empty", vec![0]),
            case("one", vec![1]),
            case("odd", vec![3, 5, 7]),
            case("past_a_chunk", vec![16_385]),
        ],
        draw,
        bench: vec![case("tokens", vec![16, 130, 256])],
    }
}

/// All inputs must have one shape, which is the result's.
pub fn same_shape(op: &'static str, x: &[&Shape], arity: usize) -> Result<Vec<Shape>> {
    if x.len() != arity || x.iter().any(|s| *s != x[0]) {
        let found: Vec<String> = x.iter().map(ToString::to_string).collect();
        let what = format!("wants {arity} inputs of one shape, found {}", found.join(", "));
        return Err(Error::shape(op, what));
    }
    Ok(vec![x[0].clone()])
}

/// Gives a [`Pointwise`] type its op and the op of its derivative. The last arguments name the
/// launchers of both and the fields that the kernels take.
macro_rules! pointwise {
    (
        $op:ident, $vjp:ident, $name:literal, $vjp_name:literal, $input:expr, $sample:expr,
        $launch:ident, $launch_vjp:ident $(, $field:ident)*
    ) => {
        #[doc = concat!("Derivative of [`", stringify!($op), "`]: gx = gy f'(x), from (x, gy).")]
        #[derive(Clone, Debug)]
        pub struct $vjp(pub $op);

        impl $crate::ops::Op for $op {
            const NAME: &'static str = $name;
            const INPUTS: ::std::ops::RangeInclusive<usize> = 1..=1;
            const SAVES: $crate::ops::Saves = $crate::ops::Saves::inputs(&[0]);
            const CPU: Option<$crate::ops::CpuFace<Self>> =
                Some($crate::ops::kinds::map_cpu::<Self>);
            const CUDA: $crate::ops::Kernels<Self> =
                $crate::ops::cuda::kernels!([f32, bf16], |_op, q, x, y| {
                let (n, x) = (x[0].shape.len(), x[0].get::<T>()?);
                let grid = $crate::ops::cuda::over_elements(q, n);
                $crate::device::launch::activation::$launch(
                    q, grid, &mut y[0].get::<T>()?, &x, n $(, _op.$field as f32)*
                )
            });

            fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
                $crate::ops::kinds::same_shape($name, x, 1)
            }
            fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
                for (y, &x) in y[0].r().iter_mut().zip(x[0].r()) {
                    *y = self.f(x);
                }
            }
            fn dual(
                &self,
                _: &[&Shape],
                given: &[bool],
            ) -> Option<Box<dyn $crate::ops::DynOp>> {
                $crate::ops::kinds::Pointwise::at_once(self).filter(|_| given[0])
            }
            fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
                dx[0].map(|dx| call(&$vjp(self.clone()), &[at.x(0)?, dx])).transpose()
            }
            fn vjp(&self, at: &Saved, gy: &Tensor, _want: &[bool]) -> Result<Grads> {
                Ok(vec![Some(call(&$vjp(self.clone()), &[at.x(0)?, gy])?)])
            }
            fn cases() -> Cases {
                $crate::ops::kinds::map_cases(
                    || $sample,
                    $input,
                    1,
                    |d| {
                        let shape = Shape::from([d.size(1, 9), d.size(1, 40)]);
                        Case::new("drawn", $sample, vec![$input(shape)])
                    },
                )
            }
        }

        impl $crate::ops::Op for $vjp {
            const NAME: &'static str = $vjp_name;
            const INPUTS: ::std::ops::RangeInclusive<usize> = 2..=2;
            const DIFF: $crate::ops::Diff = $crate::ops::FIRST_ORDER;
            const CPU: Option<$crate::ops::CpuFace<Self>> =
                Some(|op, x, y| $crate::ops::kinds::map_vjp_cpu(&op.0, x, y));
            const CUDA: $crate::ops::Kernels<Self> =
                $crate::ops::cuda::kernels!([f32, bf16], |_op, q, x, gx| {
                let (n, x, gy) = (x[0].shape.len(), x[0].get::<T>()?, x[1].get::<T>()?);
                let grid = $crate::ops::cuda::over_elements(q, n);
                $crate::device::launch::activation::$launch_vjp(
                    q, grid, &mut gx[0].get::<T>()?, &x, &gy, n $(, _op.0.$field as f32)*
                )
            });

            fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
                $crate::ops::kinds::same_shape($vjp_name, x, 2)
            }
            fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
                for (y, (&x, &g)) in y[0].r().iter_mut().zip(x[0].r().iter().zip(x[1].r())) {
                    *y = g * self.0.df(x);
                }
            }
            fn cases() -> Cases {
                $crate::ops::kinds::map_cases(
                    || $vjp($sample),
                    $input,
                    2,
                    |d| {
                        let shape = Shape::from([d.size(1, 9), d.size(1, 40)]);
                        Case::new(
                            "drawn",
                            $vjp($sample),
                            vec![$input(shape.clone()), $input(shape)],
                        )
                    },
                )
            }
        }
    };
}
pub(crate) use pointwise;
