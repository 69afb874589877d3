//! Elementwise ops: sums and products with broadcasting, adaLN's modulate and gate.
//!
//! Broadcasting is one-sided: extents are aligned at the last axis, and the smaller operand has
//! each extent equal to the larger one's or 1 (missing axes count as 1). The result has the larger
//! one's shape.

use std::ops::RangeInclusive;

use super::broadcast::{
    Rows, broadcast_cases, drawn_pair, each_row, pair, rows_of, zip_cpu, zip_reference,
};
use super::cuda::{Kernels, kernels, over_elements, spread as spread_of};
use super::reduce::{broadcast_into, sum_into};
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::device::cpu;
use crate::device::launch::elementwise as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// y = a + alpha b, with b broadcast to a.
#[derive(Clone, Debug)]
pub struct Axpy {
    /// Factor of b.
    pub alpha: f64,
}

/// y = a + b.
pub const ADD: Axpy = Axpy { alpha: 1.0 };
/// y = a - b.
pub const SUB: Axpy = Axpy { alpha: -1.0 };

/// y = a b, with b broadcast to a.
#[derive(Clone, Debug)]
pub struct Mul;

/// y = scale x + shift, with constants.
#[derive(Clone, Debug)]
pub struct Affine {
    /// Factor.
    pub scale: f64,
    /// Addend.
    pub shift: f64,
}

/// adaLN's modulation y = x (1 + a) + b, with a and b of one shape, broadcast to x.
#[derive(Clone, Debug)]
pub struct Modulate;

/// A gated residual z = x + g y, with g broadcast to x and y.
#[derive(Clone, Debug)]
pub struct GatedAdd;

/// A tangent of a broadcast operand, spread over the result's shape.
fn spread(dx: &Tensor, shape: &Shape) -> Result<Tensor> {
    broadcast_into(dx, shape)
}

fn add_tangents(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Some(call(&ADD, &[&a, &b])?),
        (a, b) => a.or(b),
    })
}

impl Op for Axpy {
    const NAME: &'static str = "axpy";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let alpha = op.alpha as f32;
        zip_cpu(
            x,
            y,
            #[inline(always)]
            move |a, b| a + alpha * b,
        );
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread_of(Self::NAME, x[0].shape, x[1].shape)?;
        let grid = over_elements(q, x[0].shape.len());
        let mut y = y[0].get::<T>()?;
        let (a, b, alpha) = (x[0].get::<T>()?, x[1].get::<T>()?, op.alpha as f32);
        launch::axpy_fwd(q, grid, &mut y, &a, &b, k0, r0, k1, r1, k2, alpha)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        rows_of(Self::NAME, x[0], x[1])?;
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        zip_reference(x, y, |a, b| a + R::of(self.alpha) * b);
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        match (dx[0], dx[1]) {
            (Some(da), Some(db)) => Ok(Some(call(self, &[da, db])?)),
            (Some(da), None) => Ok(Some(da.clone())),
            (None, Some(db)) => {
                let db = call(&Affine { scale: self.alpha, shift: 0.0 }, &[db])?;
                Ok(Some(spread(&db, at.y_shape())?))
            }
            (None, None) => Ok(None),
        }
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let gb = || {
            let g = sum_into(gy, at.shape(1))?;
            match self.alpha == 1.0 {
                true => Ok(g),
                false => call(&Affine { scale: self.alpha, shift: 0.0 }, &[&g]),
            }
        };
        Ok(vec![want[0].then(|| gy.clone()), want[1].then(gb).transpose()?])
    }
    fn cases() -> Cases {
        Cases {
            named: broadcast_cases(|b, s| (Axpy { alpha: -0.75 }, pair(b, s))),
            draw: |d| {
                let (b, s) = drawn_pair(d);
                Case::new("drawn", Axpy { alpha: 1.25 }, pair(&b, &s))
            },
            bench: vec![Case::new("tokens", ADD, pair(&[16, 130, 256].into(), &[256].into()))],
        }
    }
}

impl Op for Mul {
    const NAME: &'static str = "mul";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        zip_cpu(
            x,
            y,
            #[inline(always)]
            |a, b| a * b,
        )
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread_of(Self::NAME, x[0].shape, x[1].shape)?;
        let grid = over_elements(q, x[0].shape.len());
        let mut y = y[0].get::<T>()?;
        launch::mul_fwd(q, grid, &mut y, &x[0].get::<T>()?, &x[1].get::<T>()?, k0, r0, k1, r1, k2)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        rows_of(Self::NAME, x[0], x[1])?;
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        zip_reference(x, y, |a, b| a * b);
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let da = dx[0].map(|da| call(self, &[da, at.x(1)?])).transpose()?;
        let db = dx[1].map(|db| call(self, &[at.x(0)?, db])).transpose()?;
        add_tangents(da, db)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let ga = || call(self, &[gy, at.x(1)?]);
        let gb = || sum_into(&call(self, &[gy, at.x(0)?])?, at.shape(1));
        Ok(vec![want[0].then(ga).transpose()?, want[1].then(gb).transpose()?])
    }
    fn cases() -> Cases {
        Cases {
            named: broadcast_cases(|b, s| (Mul, pair(b, s))),
            draw: |d| {
                let (b, s) = drawn_pair(d);
                Case::new("drawn", Mul, pair(&b, &s))
            },
            bench: vec![Case::new("tokens", Mul, pair(&[16, 130, 256].into(), &[256].into()))],
        }
    }
}

impl Op for Affine {
    const NAME: &'static str = "affine";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (scale, shift) = (op.scale as f32, op.shift as f32);
        zip_cpu(
            &[x[0], x[0]],
            y,
            #[inline(always)]
            move |x, _| scale * x + shift,
        );
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (n, scale, shift) = (x[0].shape.len(), op.scale as f32, op.shift as f32);
        let grid = over_elements(q, n);
        launch::affine_fwd(q, grid, &mut y[0].get::<T>()?, &x[0].get::<T>()?, n, scale, shift)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        for (y, &x) in y[0].r().iter_mut().zip(x[0].r()) {
            *y = R::of(self.scale) * x + R::of(self.shift);
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let op = Affine { scale: self.scale, shift: 0.0 };
        dx[0].map(|dx| call(&op, &[dx])).transpose()
    }
    fn vjp(&self, _: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&Affine { scale: self.scale, shift: 0.0 }, &[gy])?)])
    }
    fn cases() -> Cases {
        let op = || Affine { scale: -1.5, shift: 0.25 };
        super::kinds::map_cases(op, Input::normal, 1, |d| {
            let shape = [d.size(1, 9), d.size(1, 40)];
            Case::new("drawn", Affine { scale: 0.3, shift: -2.0 }, vec![Input::normal(shape)])
        })
    }
}

impl Op for Modulate {
    const NAME: &'static str = "modulate";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
        let (v, a, b) = (x[0].r(), x[1].r(), x[2].r());
        each_row(y[0].r(), &rows, |y, i, j| {
            cpu::simd(
                #[inline(always)]
                || {
                    let v = &v[i..i + y.len()];
                    if rows.step == 1 {
                        let (a, b) = (&a[j..j + y.len()], &b[j..j + y.len()]);
                        for (c, y) in y.iter_mut().enumerate() {
                            *y = v[c] * (1.0 + a[c]) + b[c];
                        }
                    } else {
                        for (y, &v) in y.iter_mut().zip(v) {
                            *y = v * (1.0 + a[j]) + b[j];
                        }
                    }
                },
            );
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread_of(Self::NAME, x[0].shape, x[1].shape)?;
        let grid = over_elements(q, x[0].shape.len());
        let mut y = y[0].get::<T>()?;
        let (v, a, b) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
        launch::modulate_fwd(q, grid, &mut y, &v, &a, &b, k0, r0, k1, r1, k2)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        rows_of(Self::NAME, x[0], x[1])?;
        if x[1] != x[2] {
            return Err(Error::shape(Self::NAME, format!("a is {}, b is {}", x[1], x[2])));
        }
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
        for (r, y) in y[0].r().chunks_mut(rows.cols.max(1)).enumerate() {
            let at = rows.at(r);
            for (c, y) in y.iter_mut().enumerate() {
                let j = rows.index(at, c);
                *y = x[0].r()[r * rows.cols + c] * (R::of(1.0) + x[1].r()[j]) + x[2].r()[j];
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let zero =
            || Tensor::zeros(at.x(1).map_or(crate::tensor::DType::F32, Tensor::dtype), at.shape(1));
        let dv = match (dx[0], dx[2]) {
            (Some(dv), Some(db)) => Some(call(self, &[dv, at.x(1)?, db])?),
            (Some(dv), None) => Some(call(self, &[dv, at.x(1)?, &zero()])?),
            (None, Some(db)) => Some(spread(db, at.y_shape())?),
            (None, None) => None,
        };
        let da = dx[1].map(|da| call(&Mul, &[at.x(0)?, da])).transpose()?;
        add_tangents(dv, da)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let gx = || {
            let a = at.x(1)?;
            call(self, &[gy, a, &Tensor::zeros(a.dtype(), a.shape())])
        };
        let ga = || sum_into(&call(&Mul, &[gy, at.x(0)?])?, at.shape(1));
        let gb = || sum_into(gy, at.shape(2));
        Ok(vec![
            want[0].then(gx).transpose()?,
            want[1].then(ga).transpose()?,
            want[2].then(gb).transpose()?,
        ])
    }
    fn cases() -> Cases {
        let inputs =
            |b: &Shape, s: &Shape| vec![Input::normal(b), Input::normal(s), Input::normal(s)];
        Cases {
            named: broadcast_cases(|b, s| {
                (Modulate, vec![Input::normal(b), Input::normal(s), Input::normal(s)])
            }),
            draw: |d| {
                let (b, s) = drawn_pair(d);
                let inputs = vec![Input::normal(b), Input::normal(&s), Input::normal(&s)];
                Case::new("drawn", Modulate, inputs)
            },
            bench: vec![Case::new(
                "tokens",
                Modulate,
                inputs(&[16, 130, 256].into(), &[16, 1, 256].into()),
            )],
        }
    }
}

impl Op for GatedAdd {
    const NAME: &'static str = "gated_add";
    const INPUTS: RangeInclusive<usize> = 3..=3;
    const SAVES: Saves = Saves::inputs(&[1, 2]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, z| {
        let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
        let (v, g, w) = (x[0].r(), x[1].r(), x[2].r());
        each_row(z[0].r(), &rows, |z, i, j| {
            cpu::simd(
                #[inline(always)]
                || {
                    let (v, w) = (&v[i..i + z.len()], &w[i..i + z.len()]);
                    if rows.step == 1 {
                        let g = &g[j..j + z.len()];
                        for (c, z) in z.iter_mut().enumerate() {
                            *z = v[c] + g[c] * w[c];
                        }
                    } else {
                        for (c, z) in z.iter_mut().enumerate() {
                            *z = v[c] + g[j] * w[c];
                        }
                    }
                },
            );
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let [k0, r0, k1, r1, k2] = spread_of(Self::NAME, x[0].shape, x[1].shape)?;
        let grid = over_elements(q, x[0].shape.len());
        let mut y = y[0].get::<T>()?;
        let (v, g, w) = (x[0].get::<T>()?, x[1].get::<T>()?, x[2].get::<T>()?);
        launch::gated_add_fwd(q, grid, &mut y, &v, &g, &w, k0, r0, k1, r1, k2)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        rows_of(Self::NAME, x[0], x[1])?;
        if x[0] != x[2] {
            return Err(Error::shape(Self::NAME, format!("x is {}, y is {}", x[0], x[2])));
        }
        Ok(vec![x[0].clone()])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], z: &mut [Out<'_, R>]) {
        let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
        for (r, z) in z[0].r().chunks_mut(rows.cols.max(1)).enumerate() {
            let at = rows.at(r);
            for (c, z) in z.iter_mut().enumerate() {
                let i = r * rows.cols + c;
                *z = x[0].r()[i] + x[1].r()[rows.index(at, c)] * x[2].r()[i];
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let dg = dx[1].map(|dg| call(&Mul, &[at.x(2)?, dg])).transpose()?;
        let dy = match (dx[0], dx[2]) {
            (Some(da), Some(dy)) => Some(call(self, &[da, at.x(1)?, dy])?),
            (Some(da), None) => Some(da.clone()),
            (None, Some(dy)) => Some(call(&Mul, &[dy, at.x(1)?])?),
            (None, None) => None,
        };
        add_tangents(dy, dg)
    }
    fn vjp(&self, at: &Saved, gz: &Tensor, want: &[bool]) -> Result<Grads> {
        let gg = || sum_into(&call(&Mul, &[gz, at.x(2)?])?, at.shape(1));
        let gy = || call(&Mul, &[gz, at.x(1)?]);
        Ok(vec![
            want[0].then(|| gz.clone()),
            want[1].then(gg).transpose()?,
            want[2].then(gy).transpose()?,
        ])
    }
    fn cases() -> Cases {
        Cases {
            named: broadcast_cases(|b, s| {
                (GatedAdd, vec![Input::normal(b), Input::normal(s), Input::normal(b)])
            }),
            draw: |d| {
                let (b, s) = drawn_pair(d);
                let inputs = vec![Input::normal(&b), Input::normal(s), Input::normal(&b)];
                Case::new("drawn", GatedAdd, inputs)
            },
            bench: vec![Case::new(
                "tokens",
                GatedAdd,
                vec![
                    Input::normal([16, 130, 256]),
                    Input::normal([16, 1, 256]),
                    Input::normal([16, 130, 256]),
                ],
            )],
        }
    }
}
