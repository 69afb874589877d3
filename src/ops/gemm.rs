//! Matrix products: the plain one and the linear layer.

use std::ops::RangeInclusive;

use super::elementwise::ADD;
use super::reduce::SumTo;
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::device::cpu::{Mat, gemm, par_rows, simd};
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// c = op(a) op(b) with op(x) = x or its transpose; leading axes of a and b count as rows.
#[derive(Clone, Debug)]
pub struct MatMul {
    /// Whether a is used transposed.
    pub ta: bool,
    /// Whether b is used transposed.
    pub tb: bool,
}

/// y = x w^T + b over the last axis: x [.., I], w [O, I], b `[O]` (optional) to [.., O].
#[derive(Clone, Debug)]
pub struct Linear;

/// (rows, cols, stride of a row, stride of a column) of a possibly transposed matrix.
fn strides(s: &Shape, t: bool) -> (usize, usize, usize, usize) {
    let (r, c) = s.matrix();
    if t { (c, r, 1, c) } else { (r, c, c, 1) }
}

fn view<'a>(x: &In<'a, f32>, t: bool) -> Mat<'a> {
    let (r, c) = x.shape.matrix();
    let m = Mat::new(x.r(), r, c, c);
    if t { m.t() } else { m }
}

impl Op for MatMul {
    const NAME: &'static str = "matmul";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (a, b) = (view(&x[0], op.ta), view(&x[1], op.tb));
        let n = strides(x[1].shape, op.tb).1;
        gemm(y[0].r(), n, a, b, false);
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let (m, k, ..) = strides(x[0], self.ta);
        let (l, n, ..) = strides(x[1], self.tb);
        if k != l {
            let what = format!("inner extents {k} and {l} differ (a is {}, b is {})", x[0], x[1]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![Shape::from([m, n])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (m, k, ar, ac) = strides(x[0].shape, self.ta);
        let (_, n, br, bc) = strides(x[1].shape, self.tb);
        let (a, b, y) = (x[0].r(), x[1].r(), y[0].r());
        for i in 0..m {
            for j in 0..n {
                y[i * n + j] = R::sum((0..k).map(|l| a[i * ar + l * ac] * b[l * br + j * bc]));
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let da = dx[0].map(|da| call(self, &[da, at.x(1)?])).transpose()?;
        let db = dx[1].map(|db| call(self, &[at.x(0)?, db])).transpose()?;
        Ok(match (da, db) {
            (Some(a), Some(b)) => Some(call(&ADD, &[&a, &b])?),
            (a, b) => a.or(b),
        })
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let mm = |ta, tb, a: &Tensor, b: &Tensor| call(&MatMul { ta, tb }, &[a, b]);
        let (ta, tb) = (self.ta, self.tb);
        let ga = || {
            let b = at.x(1)?;
            let g = if ta { mm(tb, true, b, gy) } else { mm(false, !tb, gy, b) }?;
            g.reshape(at.shape(0))
        };
        let gb = || {
            let a = at.x(0)?;
            let g = if tb { mm(true, ta, gy, a) } else { mm(!ta, false, a, gy) }?;
            g.reshape(at.shape(1))
        };
        Ok(vec![want[0].then(ga).transpose()?, want[1].then(gb).transpose()?])
    }
    fn cases() -> Cases {
        let case = |name: &str, ta, tb, a: [usize; 2], b: [usize; 2]| {
            Case::new(name, MatMul { ta, tb }, vec![Input::normal(a), Input::normal(b)])
        };
        Cases {
            named: vec![
                case("nn", false, false, [5, 7], [7, 3]),
                case("nt", false, true, [17, 33], [9, 33]),
                case("tn", true, false, [33, 17], [33, 9]),
                case("tt", true, true, [7, 5], [3, 7]),
                case("one_row", false, true, [1, 65], [31, 65]),
                case("one_column", false, false, [40, 65], [65, 1]),
                case("no_rows", false, false, [0, 5], [5, 2]),
                case("no_inner", false, false, [3, 0], [0, 2]),
                case("blocked", false, true, [70, 130], [66, 130]),
            ],
            draw: |d| {
                let (m, n, k) = (d.size(1, 40), d.size(1, 40), d.size(1, 70));
                let (ta, tb) = (d.coin(), d.coin());
                let a = if ta { [k, m] } else { [m, k] };
                let b = if tb { [n, k] } else { [k, n] };
                Case::new("drawn", MatMul { ta, tb }, vec![Input::normal(a), Input::normal(b)])
            },
            bench: vec![case("square", false, false, [1024, 1024], [1024, 1024])],
        }
    }
}

impl Op for Linear {
    const NAME: &'static str = "linear";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let cols = x[1].shape.dims()[0];
        let y = y[0].r();
        match x.get(2) {
            Some(b) => {
                let b = b.r();
                par_rows(y, cols, |_, part| {
                    simd(
                        #[inline(always)]
                        || {
                            part.chunks_exact_mut(cols.max(1))
                                .for_each(|row| row.copy_from_slice(b))
                        },
                    );
                });
                gemm(y, cols, view(&x[0], false), view(&x[1], true), true);
            }
            None => gemm(y, cols, view(&x[0], false), view(&x[1], true), false),
        }
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let fits = x[1].rank() == 2
            && x[0].rank() >= 1
            && x[1].last() == x[0].last()
            && x.get(2).is_none_or(|b| b.dims() == [x[1].dims()[0]]);
        if !fits {
            let found: Vec<String> = x.iter().map(ToString::to_string).collect();
            let what = format!("wants x [.., I], w [O, I], b [O]; found {}", found.join(", "));
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![x[0].with_last(x[1].dims()[0])])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (rows, k) = x[0].shape.matrix();
        let n = x[1].shape.dims()[0];
        let (a, w, y) = (x[0].r(), x[1].r(), y[0].r());
        for i in 0..rows {
            for j in 0..n {
                let products = (0..k).map(|l| a[i * k + l] * w[j * k + l]);
                y[i * n + j] = match x.get(2) {
                    Some(b) => R::sum(products.chain([b.r()[j]])),
                    None => R::sum(products),
                };
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let bias = dx.get(2).copied().flatten();
        let mut total = match (dx[0], bias) {
            (Some(d), Some(b)) => Some(call(self, &[d, at.x(1)?, b])?),
            (Some(d), None) => Some(call(self, &[d, at.x(1)?])?),
            (None, Some(b)) => Some(super::reduce::broadcast_into(b, at.y_shape())?),
            (None, None) => None,
        };
        if let Some(dw) = dx[1] {
            let d = call(self, &[at.x(0)?, dw])?;
            total = Some(match total {
                Some(t) => call(&ADD, &[&t, &d])?,
                None => d,
            });
        }
        Ok(total)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let gx = || call(&MatMul { ta: false, tb: false }, &[gy, at.x(1)?])?.reshape(at.shape(0));
        let gw = || call(&MatMul { ta: true, tb: false }, &[gy, at.x(0)?]);
        let mut grads = vec![want[0].then(gx).transpose()?, want[1].then(gw).transpose()?];
        if at.arity() == 3 {
            let gb = || call(&SumTo { to: at.shape(2).clone() }, &[gy]);
            grads.push(want[2].then(gb).transpose()?);
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        let case = |name: &str, x: &[usize], o: usize, bias: bool| {
            let i = x[x.len() - 1];
            let mut inputs = vec![Input::normal(x), Input::normal([o, i])];
            if bias {
                inputs.push(Input::normal([o]));
            }
            Case::new(name, Linear, inputs)
        };
        Cases {
            named: vec![
                case("bias", &[3, 5, 20], 7, true),
                case("plain", &[33, 18], 65, false),
                case("one_row", &[1, 64], 130, true),
                case("no_rows", &[0, 4], 3, true),
            ],
            draw: |d| {
                let (n, i, o) = (d.size(1, 40), d.size(1, 70), d.size(1, 40));
                let inputs = vec![Input::normal([n, i]), Input::normal([o, i]), Input::normal([o])];
                Case::new("drawn", Linear, inputs)
            },
            bench: vec![
                case("demo_ffn", &[16, 130, 256], 1024, true),
                case("d16_qkv_last_scale", &[512, 1024], 3072, false),
            ],
        }
    }
}
