//! Layout: ops that move elements and compute nothing. Each is linear, so forward mode is the op
//! itself.
//!
//! An axis splits a shape into (outer, extent, inner): the op copies runs of `extent * inner`
//! elements.

mod cast;

use std::ops::RangeInclusive;

use super::cuda::{Kernels, kernels, over_elements};
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, call};
use crate::device::cpu;
use crate::device::kernel::Slice;
use crate::device::launch::layout as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use cast::{Round, Widen, rounded};

/// Positions start..start + len of one axis.
#[derive(Clone, Debug)]
pub struct Narrow {
    /// The axis, counted from the outermost.
    pub axis: usize,
    /// First position kept.
    pub start: usize,
    /// How many are kept.
    pub len: usize,
}

/// Adjoint of [`Narrow`]: x at positions start.. of an axis of length `extent`, zeros elsewhere.
#[derive(Clone, Debug)]
pub struct Place {
    /// The axis, counted from the outermost.
    pub axis: usize,
    /// Where x begins.
    pub start: usize,
    /// The result's extent along the axis.
    pub extent: usize,
}

/// The inputs, any number of them, one after the other along an axis.
#[derive(Clone, Debug)]
pub struct Concat {
    /// The axis, counted from the outermost.
    pub axis: usize,
}

/// Entry `index` of the outermost axis: x [P, ..] to [..]. On a GPU its elements are shared with x,
/// not copied, by [`super::run`].
#[derive(Clone, Debug)]
pub struct Part {
    /// Which entry.
    pub index: usize,
}

/// The same elements under another shape; shared, not copied, by [`super::run`].
#[derive(Clone, Debug)]
pub struct Reshape {
    /// The result's shape.
    pub to: Shape,
}

/// Tensors of one shape as the entries of a new outermost axis.
///
/// # Errors
/// Other shapes; those of the device.
pub fn stacked(parts: &[Tensor]) -> Result<Tensor> {
    let alone = |t: &Tensor| t.reshape([&[1], t.shape().dims()].concat());
    let all = parts.iter().map(alone).collect::<Result<Vec<_>>>()?;
    call(&Concat { axis: 0 }, &all.iter().collect::<Vec<_>>())
}

/// (outer, extent, inner) of an axis.
fn split(s: &Shape, axis: usize) -> (usize, usize, usize) {
    let d = s.dims();
    (d[..axis].iter().product(), d[axis], d[axis + 1..].iter().product())
}

fn check_axis(op: &'static str, s: &Shape, axis: usize) -> Result<()> {
    match axis < s.rank() {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{s} has no axis {axis}"))),
    }
}

fn with_extent(s: &Shape, axis: usize, extent: usize) -> Shape {
    let mut d = s.dims().to_vec();
    d[axis] = extent;
    Shape::from(d)
}

/// Runs `f(row, y)` on each run of `row` elements of y, groups of rows in parallel.
fn each_run(y: &mut [f32], row: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    cpu::par_rows(y, row, |first, part| {
        for (i, y) in part.chunks_mut(row.max(1)).enumerate() {
            f(first + i, y);
        }
    });
}

/// Shapes and axes that meet the first, a middle and the last axis.
fn axis_cases<O: Op>(make: fn(axis: usize, extent: usize) -> O) -> Vec<Case> {
    let shapes: &[(&str, &[usize], usize)] = &[
        ("rows", &[5, 7], 0),
        ("middle", &[3, 6, 4], 1),
        ("last", &[4, 3, 33], 2),
        ("vector", &[19], 0),
        ("no_rows", &[0, 6], 1),
        ("past_a_chunk", &[90, 260], 1),
    ];
    shapes
        .iter()
        .map(|(name, s, axis)| Case::new(*name, make(*axis, s[*axis]), vec![Input::normal(*s)]))
        .collect()
}

impl Op for Narrow {
    const NAME: &'static str = "narrow";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (_, extent, inner) = split(x[0].shape, op.axis);
        let x = x[0].r();
        each_run(y[0].r(), op.len * inner, |o, y| {
            let at = (o * extent + op.start) * inner;
            y.copy_from_slice(&x[at..at + y.len()]);
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (outer, extent, inner) = split(x[0].shape, op.axis);
        let (run, from, take) = (op.len * inner, extent * inner, op.start * inner);
        let (x, mut y) = (x[0].get::<T>()?, y[0].get::<T>()?);
        let grid = over_elements(q, outer * run);
        launch::copy_runs_fwd(q, grid, &mut y, &x, outer, run, run, 0, from, take)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check_axis(Self::NAME, x[0], self.axis)?;
        let extent = x[0].dims()[self.axis];
        if self.start + self.len > extent {
            let end = self.start + self.len;
            let what = format!("{}..{end} of axis {} of {}", self.start, self.axis, x[0]);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![with_extent(x[0], self.axis, self.len)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (outer, extent, inner) = split(x[0].shape, self.axis);
        let run = self.len * inner;
        for o in 0..outer {
            for i in 0..run {
                y[0].r()[o * run + i] = x[0].r()[(o * extent + self.start) * inner + i];
            }
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let extent = at.shape(0).dims()[self.axis];
        Ok(vec![Some(call(&Place { axis: self.axis, start: self.start, extent }, &[gy])?)])
    }
    fn cases() -> Cases {
        Cases {
            named: axis_cases(|axis, n| Narrow { axis, start: n / 3, len: n / 2 }),
            draw: |d| {
                let s = [d.size(1, 5), d.size(1, 6), d.size(1, 20)];
                let axis = d.size(0, 2);
                let start = d.size(0, s[axis] - 1);
                let len = d.size(0, s[axis] - start);
                Case::new("drawn", Narrow { axis, start, len }, vec![Input::normal(s)])
            },
            bench: vec![Case::new(
                "query_of_qkv",
                Narrow { axis: 2, start: 0, len: 256 },
                vec![Input::normal([16, 130, 768])],
            )],
        }
    }
}

impl Op for Place {
    const NAME: &'static str = "place";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (_, len, inner) = split(x[0].shape, op.axis);
        let (x, before, run) = (x[0].r(), op.start * inner, len * inner);
        each_run(y[0].r(), op.extent * inner, |o, y| {
            y[..before].fill(0.0);
            y[before..before + run].copy_from_slice(&x[o * run..(o + 1) * run]);
            y[before + run..].fill(0.0);
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (outer, len, inner) = split(x[0].shape, op.axis);
        let (run, to, put) = (len * inner, op.extent * inner, op.start * inner);
        let (x, mut y) = (x[0].get::<T>()?, y[0].get::<T>()?);
        let grid = over_elements(q, outer * to);
        launch::place_fwd(q, grid, &mut y, &x, outer, run, to, put)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        check_axis(Self::NAME, x[0], self.axis)?;
        if self.start + x[0].dims()[self.axis] > self.extent {
            let what = format!("{} at {} leaves an axis of {}", x[0], self.start, self.extent);
            return Err(Error::shape(Self::NAME, what));
        }
        Ok(vec![with_extent(x[0], self.axis, self.extent)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (outer, len, inner) = split(x[0].shape, self.axis);
        let y = y[0].r();
        y.fill(R::of(0.0));
        for o in 0..outer {
            for i in 0..len * inner {
                y[(o * self.extent + self.start) * inner + i] = x[0].r()[o * len * inner + i];
            }
        }
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let len = at.shape(0).dims()[self.axis];
        Ok(vec![Some(call(&Narrow { axis: self.axis, start: self.start, len }, &[gy])?)])
    }
    fn cases() -> Cases {
        Cases {
            named: axis_cases(|axis, n| Place { axis, start: n / 2, extent: 2 * n + 1 }),
            draw: |d| {
                let s = [d.size(1, 5), d.size(1, 6), d.size(1, 20)];
                let axis = d.size(0, 2);
                let start = d.size(0, 4);
                let extent = start + s[axis] + d.size(0, 4);
                Case::new("drawn", Place { axis, start, extent }, vec![Input::normal(s)])
            },
            bench: vec![],
        }
    }
}

impl Concat {
    /// Where each input begins along the axis, and the extent of all of them.
    fn starts<'a>(&self, shapes: impl Iterator<Item = &'a Shape>) -> (Vec<usize>, usize) {
        let mut total = 0;
        let starts = shapes
            .map(|s| {
                total += s.dims()[self.axis];
                total - s.dims()[self.axis]
            })
            .collect();
        (starts, total)
    }
}

impl Op for Concat {
    const NAME: &'static str = "concat";
    const INPUTS: RangeInclusive<usize> = 1..=usize::MAX;
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let (_, total) = op.starts(x.iter().map(|x| x.shape));
        let runs: Vec<(&[f32], usize)> = x
            .iter()
            .map(|x| {
                let (_, len, inner) = split(x.shape, op.axis);
                (x.r(), len * inner)
            })
            .collect();
        let (_, _, inner) = split(x[0].shape, op.axis);
        each_run(y[0].r(), total * inner, |o, mut y| {
            for (x, run) in &runs {
                let (part, rest) = y.split_at_mut(*run);
                part.copy_from_slice(&x[o * run..(o + 1) * run]);
                y = rest;
            }
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (starts, total) = op.starts(x.iter().map(|x| x.shape));
        let (outer, _, inner) = split(x[0].shape, op.axis);
        let mut y = y[0].get::<T>()?;
        // Four a launch.
        for (x, starts) in x.chunks(4).zip(starts.chunks(4)) {
            let mut from = [const { None }; 4];
            for (from, x) in from.iter_mut().zip(x) {
                *from = Some(x.get::<T>()?);
            }
            let from = from.map(|x| x.unwrap_or_else(|| Slice::none(q)));
            let run = |i: usize| x.get(i).map_or(0, |x| x.shape.dims()[op.axis] * inner);
            let [a, b, c, d] = [0, 1, 2, 3].map(run);
            let grid = over_elements(q, outer * (a + b + c + d));
            let (to, put) = (total * inner, starts[0] * inner);
            let [x0, x1, x2, x3] = &from;
            launch::concat_fwd(q, grid, &mut y, x0, x1, x2, x3, outer, a, b, c, d, to, put)?;
        }
        Ok(())
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let Some(first) = x.first() else {
            return Err(Error::shape(Self::NAME, "no inputs"));
        };
        check_axis(Self::NAME, first, self.axis)?;
        for s in x {
            if s.rank() != first.rank()
                || with_extent(s, self.axis, 0) != with_extent(first, self.axis, 0)
            {
                let what = format!("{s} does not continue {first} along axis {}", self.axis);
                return Err(Error::shape(Self::NAME, what));
            }
        }
        Ok(vec![with_extent(first, self.axis, self.starts(x.iter().copied()).1)])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (starts, total) = self.starts(x.iter().map(|x| x.shape));
        for (x, start) in x.iter().zip(starts) {
            let (outer, len, inner) = split(x.shape, self.axis);
            for o in 0..outer {
                for i in 0..len * inner {
                    y[0].r()[(o * total + start) * inner + i] = x.r()[o * len * inner + i];
                }
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let Some(dtype) = dx.iter().flatten().map(|t| t.dtype()).next() else { return Ok(None) };
        let zeros: Vec<Tensor> = (0..dx.len()).map(|i| Tensor::zeros(dtype, at.shape(i))).collect();
        let all: Vec<&Tensor> = dx.iter().zip(&zeros).map(|(d, z)| d.unwrap_or(z)).collect();
        call(self, &all).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let (starts, _) = self.starts((0..at.arity()).map(|i| at.shape(i)));
        let part = |(i, start): (usize, usize)| {
            let len = at.shape(i).dims()[self.axis];
            want[i].then(|| call(&Narrow { axis: self.axis, start, len }, &[gy])).transpose()
        };
        starts.into_iter().enumerate().map(part).collect()
    }
    fn cases() -> Cases {
        let case = |name: &str, axis: usize, shapes: &[&[usize]]| {
            Case::new(name, Concat { axis }, shapes.iter().map(|s| Input::normal(*s)).collect())
        };
        Cases {
            named: vec![
                case("one", 0, &[&[3, 4]]),
                case("rows", 0, &[&[3, 4], &[0, 4], &[2, 4]]),
                case("tokens", 1, &[&[2, 1, 5], &[2, 4, 5], &[2, 9, 5]]),
                case("channels", 2, &[&[3, 4, 7], &[3, 4, 16]]),
                case("past_a_chunk", 1, &[&[3, 100, 40], &[3, 99, 40]]),
                case("six", 1, &[&[2, 8], &[2, 16], &[2, 8], &[2, 24], &[2, 8], &[2, 8]]),
            ],
            draw: |d| {
                let mut s = [d.size(1, 5), d.size(1, 6), d.size(1, 20)];
                let axis = d.size(0, 2);
                let inputs = (0..d.size(1, 4))
                    .map(|_| {
                        s[axis] = d.size(0, 7);
                        Input::normal(s)
                    })
                    .collect();
                Case::new("drawn", Concat { axis }, inputs)
            },
            bench: vec![case("cache", 1, &[&[16, 66, 256], &[16, 64, 256]])],
        }
    }
}

impl Op for Reshape {
    const NAME: &'static str = "reshape";
    const SHARES: bool = true;
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let x = x[0].r();
        cpu::par_rows(y[0].r(), 1, |at, y| y.copy_from_slice(&x[at..at + y.len()]));
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let (n, x, mut y) = (x[0].shape.len(), x[0].get::<T>()?, y[0].get::<T>()?);
        let grid = over_elements(q, n);
        launch::copy_runs_fwd(q, grid, &mut y, &x, 1, n, n, 0, n, 0)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match x[0].len() == self.to.len() {
            true => Ok(vec![self.to.clone()]),
            false => Err(Error::shape(Self::NAME, format!("{} does not become {}", x[0], self.to))),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        y[0].r().copy_from_slice(x[0].r());
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| dx.reshape(&self.to)).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(gy.reshape(at.shape(0))?)])
    }
    fn cases() -> Cases {
        let case = |name: &str, from: &[usize], to: &[usize]| {
            Case::new(name, Reshape { to: to.into() }, vec![Input::normal(from)])
        };
        Cases {
            named: vec![
                case("heads", &[2, 5, 12], &[2, 5, 3, 4]),
                case("scalar", &[1], &[]),
                case("empty", &[0, 4], &[2, 0]),
                case("past_a_chunk", &[130, 150], &[150, 130]),
            ],
            draw: |d| {
                let [a, b] = [d.size(1, 9), d.size(1, 40)];
                let op = Reshape { to: Shape::from([b, a]) };
                Case::new("drawn", op, vec![Input::normal([a, b])])
            },
            bench: vec![],
        }
    }
}

impl Op for Part {
    const NAME: &'static str = "part";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (whole, parts) = (x[0].shape.len(), x[0].shape.dims()[0]);
        let (n, x, mut y) = (whole / parts.max(1), x[0].get::<T>()?, y[0].get::<T>()?);
        let grid = over_elements(q, n);
        launch::copy_runs_fwd(q, grid, &mut y, &x, 1, n, n, 0, whole, op.index * n)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match x[0].dims() {
            [parts, one @ ..] if self.index < *parts => Ok(vec![one.into()]),
            _ => Err(Error::shape(Self::NAME, format!("{} has no entry {}", x[0], self.index))),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let n = y[0].r().len();
        y[0].r().copy_from_slice(&x[0].r()[self.index * n..][..n]);
    }
    fn part(&self) -> Option<usize> {
        Some(self.index)
    }
    fn jvp(&self, _: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let gy = gy.reshape([&[1], gy.shape().dims()].concat())?;
        let extent = at.shape(0).dims()[0];
        Ok(vec![Some(call(&Place { axis: 0, start: self.index, extent }, &[&gy])?)])
    }
    fn cases() -> Cases {
        let case = |name: &str, index: usize, from: &[usize]| {
            Case::new(name, Part { index }, vec![Input::normal(from)])
        };
        Cases {
            named: vec![
                case("first", 0, &[3, 2, 5]),
                case("last", 2, &[3, 4, 8]),
                case("numbers", 1, &[7]),
                case("nothing", 1, &[2, 0]),
                case("past_a_chunk", 1, &[2, 130, 150]),
            ],
            draw: |d| {
                let parts = d.size(1, 6);
                let from = [parts, d.size(1, 9), d.size(1, 20)];
                let op = Part { index: d.size(0, parts - 1) };
                Case::new("drawn", op, vec![Input::normal(from)])
            },
            bench: vec![],
        }
    }
}
