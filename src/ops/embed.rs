//! Embeddings: rows of a table by index, their adjoint, and the sinusoidal embedding of a time.
//!
//! An index outside the table cannot be refused by shape: its row becomes NaN, which every check of
//! finiteness names, and its gradient goes nowhere. [`check_indices`] refuses it beforehand, where
//! indices enter.

mod dual;

use std::ops::RangeInclusive;

use super::cuda::{Kernels, THREADS, block_per_job, kernels, over_elements};
use super::elementwise::Mul;
use super::reduce::SumTo;
use super::{
    Case, Cases, CpuFace, Diff, DynOp, FIRST_ORDER, Grads, In, Input, Op, Out, Real, Saved, Saves,
    call,
};
use crate::device::cpu;
use crate::device::cuda::Buffer;
use crate::device::kernel::Grid;
use crate::device::launch::embed as launch;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use dual::TimeEmbedDual;

/// y[..] = table[idx[..]]: table [V, C] and integers idx [..] to [.., C].
#[derive(Clone, Debug)]
pub struct GatherRows;

/// Adjoint of [`GatherRows`]: g [.., C] and integers idx [..] to [rows, C], rows of equal index
/// added up in the order in which they stand.
#[derive(Clone, Debug)]
pub struct ScatterRows {
    /// Rows of the table.
    pub rows: usize,
}

/// cos(t f_i) | sin(t f_i) with f_i = max_period^(-i / half) for i in 0..half: t `[B]` to [B, 2
/// half].
///
/// MeanFlow feeds t in [0, 1] as it is: a factor of 1000 would blow up the derivative by t.
#[derive(Clone, Debug)]
pub struct TimeEmbed {
    /// Width of the embedding, an even number.
    pub dim: usize,
    /// The longest period over 2 pi; 1e4 everywhere in this project.
    pub max_period: f64,
}

/// Derivative of [`TimeEmbed`] by t, [B, dim].
#[derive(Clone, Debug)]
pub struct TimeEmbedSlope(pub TimeEmbed);

/// Fails unless every index is below `rows`, naming the first that is not.
pub fn check_indices(op: &'static str, idx: &Tensor, rows: usize) -> Result<()> {
    let outside = |&i: &i32| usize::try_from(i).map_or(true, |i| i >= rows);
    match idx.i32s()?.iter().position(outside) {
        None => Ok(()),
        Some(at) => {
            let what = format!("index {} at {at} is outside 0..{rows}", idx.at(at));
            Err(Error::shape(op, what))
        }
    }
}

/// The row an index names, if the table has it.
fn row_of(i: i32, rows: usize) -> Option<usize> {
    usize::try_from(i).ok().filter(|&i| i < rows)
}

impl Op for GatherRows {
    const NAME: &'static str = "gather_rows";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_INPUTS: &'static [usize] = &[1];
    const SAVES: Saves = Saves::inputs(&[1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let (rows, cols) = x[0].shape.matrix();
        let (table, idx) = (x[0].r(), x[1].i());
        cpu::par_rows(y[0].r(), cols, |first, part| {
            for (y, &i) in part.chunks_mut(cols.max(1)).zip(&idx[first..]) {
                match row_of(i, rows) {
                    Some(i) => y.copy_from_slice(&table[i * cols..(i + 1) * cols]),
                    None => y.fill(f32::NAN),
                }
            }
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |_, q, x, y| {
        let ((rows, cols), count) = (x[0].shape.matrix(), x[1].shape.len());
        let (table, idx) = (x[0].get::<T>()?, x[1].get::<i32>()?);
        let (y, grid) = (&mut y[0].get::<T>()?, over_elements(q, count * cols));
        launch::gather_rows_fwd(q, grid, y, &table, &idx, rows, cols, count)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        if x[0].rank() != 2 {
            return Err(Error::shape(Self::NAME, format!("table is {}, not [V, C]", x[0])));
        }
        Ok(vec![Shape::from([x[1].dims(), &[x[0].last()]].concat())])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (rows, cols) = x[0].shape.matrix();
        for (j, &i) in x[1].i().iter().enumerate() {
            for c in 0..cols {
                y[0].r()[j * cols + c] =
                    row_of(i, rows).map_or(R::of(f64::NAN), |i| x[0].r()[i * cols + c]);
            }
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx, at.x(1)?])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let rows = at.shape(0).matrix().0;
        Ok(vec![Some(call(&ScatterRows { rows }, &[gy, at.x(1)?])?), None])
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: usize, cols: usize, idx: &[usize]| {
            let inputs = vec![Input::normal([rows, cols]), Input::below(idx, rows)];
            Case::new(name, GatherRows, inputs)
        };
        Cases {
            named: vec![
                case("one", 1, 3, &[1]),
                case("repeats", 3, 7, &[2, 5]),
                case("no_indices", 4, 5, &[0]),
                case("past_a_chunk", 60, 33, &[5, 120]),
            ],
            draw: |d| {
                let (rows, cols) = (d.size(1, 9), d.size(1, 20));
                let idx = Input::below([d.size(1, 4), d.size(1, 9)], rows);
                Case::new("drawn", GatherRows, vec![Input::normal([rows, cols]), idx])
            },
            bench: vec![case("codes", 4096, 32, &[16, 680])],
        }
    }
}

impl Op for ScatterRows {
    const NAME: &'static str = "scatter_rows";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const INT_INPUTS: &'static [usize] = &[1];
    const SAVES: Saves = Saves::inputs(&[1]);
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| {
        let (cols, g, idx) = (x[0].shape.last(), x[0].r(), x[1].i());
        // Each piece of the table walks all indices, so the order of additions is that of the
        // indices.
        cpu::par_rows(y[0].r(), cols, |first, part| {
            part.fill(0.0);
            let rows = part.len() / cols.max(1);
            for (j, &i) in idx.iter().enumerate() {
                let inside = usize::try_from(i).ok().and_then(|i| i.checked_sub(first));
                let Some(i) = inside.filter(|&i| i < rows) else { continue };
                let g = &g[j * cols..(j + 1) * cols];
                for (y, &g) in part[i * cols..(i + 1) * cols].iter_mut().zip(g) {
                    *y += g;
                }
            }
        });
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let (rows, cols, count) = (op.rows, x[0].shape.last(), x[1].shape.len());
        let (g, idx) = (x[0].get::<T>()?, x[1].get::<i32>()?);
        let chunks = count.div_ceil(THREADS as usize);
        let mut counts = Buffer::<i32>::new(q, chunks * rows)?;
        let mut places = Buffer::<i32>::new(q, chunks * rows)?;
        let [mut ranks, mut order] = [Buffer::<i32>::new(q, count)?, Buffer::<i32>::new(q, count)?];
        let mut begins = Buffer::<i32>::new(q, rows + 1)?;
        let (c, r) = (&mut counts.slice_mut(), &mut ranks.slice_mut());
        let a_chunk = block_per_job(q, chunks);
        launch::scatter_rows_rank_fwd(q, a_chunk, c, r, &idx, rows, count)?;
        let (p, b) = (&mut places.slice_mut(), &mut begins.slice_mut());
        launch::scatter_rows_begin_fwd(q, Grid::line(1, 1024), p, b, &c.written(), rows, count)?;
        let (o, p, b) = (&mut order.slice_mut(), p.written(), b.written());
        launch::scatter_rows_order_fwd(q, a_chunk, o, &p, &b, &r.written(), &idx, rows, count)?;
        let strips = (cols * size_of::<T>()).div_ceil(512);
        let (y, grid) = (&mut y[0].get::<T>()?, block_per_job(q, rows * strips));
        launch::scatter_rows_sum_fwd(q, grid, y, &g, &o.written(), &b, rows, cols, count)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let fits = x[0].rank() == x[1].rank() + 1 && x[0].dims().starts_with(x[1].dims());
        match fits {
            true => Ok(vec![Shape::from([self.rows, x[0].last()])]),
            false => {
                let what = format!("wants g [.., C] and idx [..]; found {}, {}", x[0], x[1]);
                Err(Error::shape(Self::NAME, what))
            }
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let cols = x[0].shape.last();
        let mut terms: Vec<Vec<R>> = vec![Vec::new(); self.rows * cols];
        for (j, &i) in x[1].i().iter().enumerate() {
            let Some(i) = row_of(i, self.rows) else { continue };
            for c in 0..cols {
                terms[i * cols + c].push(x[0].r()[j * cols + c]);
            }
        }
        for (y, t) in y[0].r().iter_mut().zip(terms) {
            *y = R::sum(t.into_iter());
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        dx[0].map(|dx| call(self, &[dx, at.x(1)?])).transpose()
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        Ok(vec![Some(call(&GatherRows, &[gy, at.x(1)?])?), None])
    }
    fn cases() -> Cases {
        let case = |name: &str, rows: usize, cols: usize, idx: &[usize]| {
            let g = Input::normal([idx, &[cols]].concat());
            Case::new(name, ScatterRows { rows }, vec![g, Input::below(idx, rows)])
        };
        Cases {
            named: vec![
                case("one", 1, 3, &[1]),
                case("repeats", 3, 7, &[2, 15]),
                case("no_indices", 4, 5, &[0]),
                case("past_a_chunk", 600, 33, &[5, 120]),
            ],
            draw: |d| {
                let (rows, cols) = (d.size(1, 9), d.size(1, 20));
                let idx = [d.size(1, 4), d.size(1, 9)];
                let g = Input::normal([idx[0], idx[1], cols]);
                Case::new("drawn", ScatterRows { rows }, vec![g, Input::below(idx, rows)])
            },
            bench: vec![case("codes", 4096, 32, &[16, 680])],
        }
    }
}

impl TimeEmbed {
    fn frequencies<R: Real>(&self) -> Vec<R> {
        let half = self.dim / 2;
        (0..half).map(|i| R::of(self.max_period.powf(-(i as f64) / half as f64))).collect()
    }

    /// Fills y [B, dim] from `f(cos, sin, frequency) -> (left half, right half)`.
    fn fill<R: Real>(&self, t: &[R], y: &mut [R], f: impl Fn(R, R, R) -> (R, R)) {
        let frequencies = self.frequencies::<R>();
        for (&t, y) in t.iter().zip(y.chunks_mut(self.dim.max(1))) {
            let (left, right) = y.split_at_mut(self.dim / 2);
            for ((l, r), &w) in left.iter_mut().zip(right).zip(&frequencies) {
                let (s, c) = (t * w).sin_cos();
                (*l, *r) = f(c, s, w);
            }
        }
    }

    fn check(&self, op: &'static str, x: &[&Shape]) -> Result<Vec<Shape>> {
        match x {
            [t] if t.rank() == 1 && self.dim.is_multiple_of(2) => {
                Ok(vec![Shape::from([t.last(), self.dim])])
            }
            _ => {
                let what = format!("wants t [B] and an even width; the width is {}", self.dim);
                Err(Error::shape(op, what))
            }
        }
    }

    /// f_i = e^(-fall i).
    fn fall(&self) -> f64 {
        self.max_period.ln() / (self.dim / 2) as f64
    }

    /// The slope at the saved times.
    fn slope(&self, at: &Saved) -> Result<Tensor> {
        call(&TimeEmbedSlope(self.clone()), &[at.x(0)?])
    }
}

/// Cases of a function of t `[B]`.
fn time_cases<O: Op>(make: fn(TimeEmbed) -> O, draw: fn(&mut super::Draw<'_>) -> Case) -> Cases {
    let case = |name: &str, n: usize, dim: usize| {
        let op = make(TimeEmbed { dim, max_period: 1e4 });
        Case::new(name, op, vec![Input::uniform([n], 0.0, 1.0)])
    };
    Cases {
        named: vec![case("two", 1, 2), case("odd_batch", 5, 14), case("none", 0, 8)],
        draw,
        bench: vec![case("batch", 16, 256)],
    }
}

impl Op for TimeEmbed {
    const NAME: &'static str = "time_embed";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const SAVES: Saves = Saves::inputs(&[0]);
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, t, y| {
        let (n, half) = (t[0].shape.len(), op.dim / 2);
        let (t, y, fall) = (t[0].get::<T>()?, &mut y[0].get::<T>()?, op.fall());
        launch::time_embed_fwd(q, block_per_job(q, (n * half).div_ceil(128)), y, &t, n, half, fall)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        self.check(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        self.fill(x[0].r(), y[0].r(), |c, s, _| (c, s));
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let Some(dt) = dx[0] else { return Ok(None) };
        let dt = dt.reshape([dt.len(), 1])?;
        call(&Mul, &[&self.slope(at)?, &dt]).map(Some)
    }
    fn dual(&self, _: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        given[0].then(|| Box::new(TimeEmbedDual(self.clone())) as Box<dyn DynOp>)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, _: &[bool]) -> Result<Grads> {
        let product = call(&Mul, &[&self.slope(at)?, gy])?;
        let rows = at.shape(0).len();
        let gt = call(&SumTo { to: [rows, 1].into() }, &[&product])?;
        Ok(vec![Some(gt.reshape(at.shape(0))?)])
    }
    fn cases() -> Cases {
        time_cases(
            |op| op,
            |d| {
                let (n, dim) = (d.size(1, 9), 2 * d.size(1, 20));
                let op = TimeEmbed { dim, max_period: 100.0 };
                Case::new("drawn", op, vec![Input::uniform([n], 0.0, 1.0)])
            },
        )
    }
}

impl Op for TimeEmbedSlope {
    const NAME: &'static str = "time_embed_slope";
    const INPUTS: RangeInclusive<usize> = 1..=1;
    const DIFF: Diff = FIRST_ORDER;
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, t, y| {
        let (n, half) = (t[0].shape.len(), op.0.dim / 2);
        let (t, y, fall) = (t[0].get::<T>()?, &mut y[0].get::<T>()?, op.0.fall());
        launch::time_embed_slope_fwd(
            q,
            block_per_job(q, (n * half).div_ceil(128)),
            y,
            &t,
            n,
            half,
            fall,
        )
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        self.0.check(Self::NAME, x)
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        self.0.fill(x[0].r(), y[0].r(), |c, s, w| (-(s * w), c * w));
    }
    fn cases() -> Cases {
        time_cases(TimeEmbedSlope, |d| {
            let (n, dim) = (d.size(1, 9), 2 * d.size(1, 20));
            let op = TimeEmbedSlope(TimeEmbed { dim, max_period: 100.0 });
            Case::new("drawn", op, vec![Input::uniform([n], 0.0, 1.0)])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_outside_the_table_is_named_and_its_row_is_nan() {
        let idx = Tensor::new_i32(vec![1, 0, 3, -1], [4]).unwrap();
        let message = check_indices("codes", &idx, 3).unwrap_err().to_string();
        assert_eq!(message, "codes: index 3 at 2 is outside 0..3");
        assert!(check_indices("codes", &idx.rows(0, 2).unwrap(), 2).is_ok());

        let table = Tensor::new(vec![1.0, 2.0, 3.0], [3, 1]).unwrap();
        let y = call(&GatherRows, &[&table, &idx]).unwrap();
        let y = y.f32s().unwrap();
        assert!(y[0] == 2.0 && y[1] == 1.0 && y[2].is_nan() && y[3].is_nan());
    }
}
