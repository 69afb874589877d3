//! Broadcasting: where a row of the result begins in a smaller operand, loops over such pairs, and
//! the shapes that meet every path of them.

use super::{Case, In, Input, Op, Out, Real};
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Rows of a result and where each begins in a broadcast operand.
pub(super) struct Rows {
    pub(super) cols: usize,
    /// 0 where the operand's last extent is 1, else 1.
    pub(super) step: usize,
    /// (extent of the result, stride in the operand) of the leading axes, innermost first.
    lead: Vec<(usize, usize)>,
}

impl Rows {
    pub(super) fn new(big: &Shape, small: &Shape) -> Option<Self> {
        let (b, s) = (big.dims(), small.dims());
        if s.len() > b.len() {
            return None;
        }
        let cols = big.last();
        let last = small.last();
        if last != cols && last != 1 {
            return None;
        }
        let mut lead = Vec::new();
        let mut stride = last;
        for i in 1..b.len() {
            let extent = b[b.len() - 1 - i];
            let own = if i < s.len() { s[s.len() - 1 - i] } else { 1 };
            if own != extent && own != 1 {
                return None;
            }
            lead.push((extent, if own == 1 { 0 } else { stride }));
            stride *= own;
        }
        Some(Self { cols, step: usize::from(last == cols && cols != 1), lead })
    }

    /// Offset in the operand of the result's row `r`.
    #[inline]
    pub(super) fn at(&self, mut r: usize) -> usize {
        let mut offset = 0;
        for &(extent, stride) in &self.lead {
            offset += r % extent * stride;
            r /= extent;
        }
        offset
    }

    /// Index in the operand of element (row offset, column).
    #[inline(always)]
    pub(super) fn index(&self, offset: usize, col: usize) -> usize {
        offset + col * self.step
    }
}

pub(super) fn rows_of(op: &'static str, big: &Shape, small: &Shape) -> Result<Rows> {
    Rows::new(big, small)
        .ok_or_else(|| Error::shape(op, format!("{small} does not broadcast to {big}")))
}

/// Rows of an operand [G, .., C] beside y [.., C] where each serves rows that follow each other:
/// axes of y as far as they are kept, then ones.
pub(super) fn groups(y: &Shape, small: &Shape) -> Option<usize> {
    let missing = y.rank().checked_sub(small.rank())?;
    let (rows, own) = (y.dims(), small.dims());
    let lead = |i: usize| if i < missing { 1 } else { own[i - missing] };
    let last = y.rank() - 1;
    let kept = (0..last).take_while(|&i| lead(i) == rows[i]).count();
    let fits = own.last() == rows.last() && (kept..last).all(|i| lead(i) == 1);
    fits.then(|| rows[..kept].iter().product())
}

/// Applies `f(y row, first element of the row in the big operands, row offset in the small ones)`.
pub(super) fn each_row(y: &mut [f32], rows: &Rows, f: impl Fn(&mut [f32], usize, usize) + Sync) {
    let cols = rows.cols;
    cpu::par_rows(y, cols, |first, part| {
        for (i, row) in part.chunks_mut(cols.max(1)).enumerate() {
            f(row, (first + i) * cols, rows.at(first + i));
        }
    });
}

/// `y[i]` = f(`a[i]`, b[i']) over a broadcast b.
#[inline(always)]
pub(super) fn zip_cpu(
    x: &[In<'_, f32>],
    y: &mut [Out<'_, f32>],
    f: impl Fn(f32, f32) -> f32 + Sync + Copy,
) {
    let (a, b) = (x[0].r(), x[1].r());
    let flat = |y: &mut [f32], a: &[f32], b: &[f32]| {
        cpu::simd(
            #[inline(always)]
            || {
                for (y, (&a, &b)) in y.iter_mut().zip(a.iter().zip(b)) {
                    *y = f(a, b);
                }
            },
        );
    };
    if x[0].shape == x[1].shape {
        cpu::par_rows(y[0].r(), 1, |i, y| flat(y, &a[i..i + y.len()], &b[i..i + y.len()]));
        return;
    }
    let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
    each_row(y[0].r(), &rows, |y, i, j| match rows.step {
        1 => flat(y, &a[i..i + y.len()], &b[j..j + y.len()]),
        _ => {
            let b = b[j];
            for (y, &a) in y.iter_mut().zip(&a[i..]) {
                *y = f(a, b);
            }
        }
    });
}

pub(super) fn zip_reference<R: Real>(x: &[In<'_, R>], y: &mut [Out<'_, R>], f: impl Fn(R, R) -> R) {
    let Some(rows) = Rows::new(x[0].shape, x[1].shape) else { return };
    for (r, y) in y[0].r().chunks_mut(rows.cols.max(1)).enumerate() {
        let at = rows.at(r);
        for (c, y) in y.iter_mut().enumerate() {
            *y = f(x[0].r()[r * rows.cols + c], x[1].r()[rows.index(at, c)]);
        }
    }
}

/// Shapes that meet every broadcasting path, for a big operand and `small` ones.
pub(super) fn broadcast_cases<O: Op>(make: fn(&Shape, &Shape) -> (O, Vec<Input>)) -> Vec<Case> {
    let pairs: &[(&str, &[usize], &[usize])] = &[
        ("empty", &[0, 4], &[4]),
        ("same", &[3, 5], &[3, 5]),
        ("suffix", &[2, 3, 5], &[5]),
        ("per_sample", &[3, 4, 17], &[3, 1, 17]),
        ("per_row", &[2, 3, 5], &[2, 3, 1]),
        ("scalar", &[4, 5], &[1]),
        ("past_a_chunk", &[130, 150], &[150]),
    ];
    pairs
        .iter()
        .map(|(name, big, small)| {
            let (op, inputs) = make(&Shape::from(*big), &Shape::from(*small));
            Case::new(*name, op, inputs)
        })
        .collect()
}

pub(super) fn drawn_pair(d: &mut super::Draw<'_>) -> (Shape, Shape) {
    let big = [d.size(1, 4), d.size(1, 5), d.size(1, 20)];
    let small: Vec<usize> = big.iter().map(|&n| if d.coin() { n } else { 1 }).collect();
    let skip = d.size(0, 2);
    (Shape::from(big), Shape::from(&small[skip..]))
}

pub(super) fn pair(big: &Shape, small: &Shape) -> Vec<Input> {
    vec![Input::normal(big), Input::normal(small)]
}
