//! The nearest code of a codebook.
//!
//! The fast path ranks codes by x e - |e|^2 / 2 (or x e / |e|), which is one product of a block of
//! rows with the packed codebook; the whole table of distances never exists. A row's answer depends
//! on that row alone.

use std::ops::RangeInclusive;

use super::composed::{self, Composed};
use super::cuda::{Kernels, block_per_job, kernels};
use super::real::U;
use super::{Case, Cases, CpuFace, Diff, In, Input, Op, Out, Real, Running};
use crate::device::cpu::{par_map, simd};
use crate::device::launch::quantize as launch;
use crate::device::window::{Panels, Windows, product};
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// x [.., d] and a codebook [V, d] to the index [..] of the code nearest to each row of x; the
/// lowest one on a tie. A row that meets a score that is not finite (it holds NaN or infinity, or a
/// code does) gets -1: the caller turns that into an error.
#[derive(Clone, Debug)]
pub struct NearestCode {
    /// Whether nearness is the angle to the code instead of the distance.
    pub cosine: bool,
}

/// Length below which a code counts as having no direction, and scores 0.
pub(super) const SHORT: f64 = 1e-12;
/// Scores held at once.
const BLOCK: usize = 1 << 15;
/// Lanes of the search.
const LANES: usize = 16;

impl NearestCode {
    /// What is smallest at the nearest code, straight from the definition.
    fn cost<R: Real>(&self, x: &[R], code: &[R]) -> R {
        let pairs = || x.iter().zip(code);
        if !self.cosine {
            return R::sum(pairs().map(|(&x, &e)| (x - e) * (x - e)));
        }
        let norm = R::sum(code.iter().map(|&e| e * e)).sqrt();
        -(R::sum(pairs().map(|(&x, &e)| x * e)) / norm.max(R::of(SHORT)))
    }

    /// How far a binary32 evaluation of the cost may be from it, by either formula.
    fn room(&self, x: &[f64], code: &[f64]) -> f64 {
        let sum =
            |f: fn(f64, f64) -> f64| -> f64 { x.iter().zip(code).map(|(&x, &e)| f(x, e)).sum() };
        let roundings = 2.0 * x.len() as f64 + 8.0;
        let products = sum(|x, e| (x * e).abs());
        let terms = match self.cosine {
            true => products / sum(|_, e| e * e).sqrt().max(SHORT),
            false => 2.0 * products + sum(|_, e| e * e) + sum(|x, e| (x - e) * (x - e)),
        };
        roundings * U * terms
    }
}

impl NearestCode {
    /// The code nearest to `x`, the first of equals; -1 where a cost is not finite.
    pub(super) fn search<R: Real>(&self, x: &[R], book: &[R]) -> i32 {
        let mut best: Option<(i32, R)> = None;
        for (i, code) in (0..).zip(book.chunks_exact(x.len())) {
            let cost = self.cost(x, code);
            if !cost.val().is_finite() {
                return -1;
            }
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((i, cost));
            }
        }
        best.map_or(-1, |(i, _)| i)
    }

    /// Why `index` is not acceptable for `x`, which is known within its own errors.
    pub(super) fn refusal(&self, x: &[Running], book: &[f64], index: i32) -> Option<String> {
        let (d, values) = (x.len(), x.iter().map(|x| x.v).collect::<Vec<_>>());
        let codes = book.len() / d;
        let code = |i: usize| &book[i * d..(i + 1) * d];
        let cost = |i: usize| {
            let exact: Vec<Running> = code(i).iter().map(|&e| Running::exact(e)).collect();
            let cost = self.cost(x, &exact);
            // Errors of x alone: those of the evaluation are `room`.
            let moved = values.iter().zip(code(i)).zip(x);
            let moved = moved.map(|((v, e), x)| match self.cosine {
                true => x.e,
                false => x.e * (2.0 * (v - e).abs() + x.e),
            });
            (cost.v, moved.sum::<f64>() + self.room(&values, code(i)))
        };
        let costs: Vec<(f64, f64)> = (0..codes).map(cost).collect();
        let finite = costs.iter().all(|c| c.0.is_finite());
        let chosen = usize::try_from(index).ok().filter(|&i| finite && i < codes);
        let Some(chosen) = chosen else {
            return (finite || index != -1).then(|| format!("index {index} of {codes} codes"));
        };
        // The first code that is nearer by more than rounding can hide, or as near and before.
        let better = (0..codes).find(|&i| {
            let gap = costs[chosen].0 - costs[i].0;
            gap > costs[chosen].1 + costs[i].1 || i < chosen && code(i) == code(chosen)
        })?;
        let costs = (costs[chosen].0, costs[better].0);
        Some(format!("chose code {chosen} at {}, but {better} is at {}", costs.0, costs.1))
    }
}

impl Op for NearestCode {
    const NAME: &'static str = "nearest_code";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const COMPOSED: Option<Composed<Self>> = Some(composed::nearest_code);
    const INT_OUTPUTS: &'static [usize] = &[0];
    const DIFF: Diff = Diff::No("an index has no derivative; straight-through is the caller's");
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let ((_, d), codes) = (x[0].shape.matrix(), x[1].shape.dims()[0]);
        let book = Book::new(op.cosine, x[1].r(), codes, d);
        let rows = (BLOCK / codes).clamp(8, 256);
        let x = x[0].r();
        let y = y[0].i();
        let block = |i: usize| {
            let own = i * rows..y.len().min((i + 1) * rows);
            book.search(&x[own.start * d..own.end * d], own.len())
        };
        let found = par_map(y.len().div_ceil(rows), block);
        y.copy_from_slice(&found.concat());
    });
    const CUDA: Kernels<Self> = kernels!([f32, bf16], |op, q, x, y| {
        let ((rows, width), codes) = (x[0].shape.matrix(), x[1].shape.dims()[0]);
        let (x, book) = (x[0].get::<T>()?, x[1].get::<T>()?);
        // Rows of a block, as kernels/quantize.cu has them.
        let (y, grid) = (&mut y[0].get::<i32>()?, block_per_job(q, rows.div_ceil(32)));
        launch::nearest_code_fwd(q, grid, y, &x, &book, rows, codes, width, op.cosine)
    });

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match x {
            [x, book] if book.rank() == 2 && x.rank() > 0 && x.last() == book.last() => {
                if book.is_empty() {
                    return Err(Error::shape(Self::NAME, format!("the codebook {book} is empty")));
                }
                Ok(vec![Shape::from(&x.dims()[..x.rank() - 1])])
            }
            _ => {
                let found: Vec<String> = x.iter().map(ToString::to_string).collect();
                let what = format!("wants x [.., d], codebook [V, d]; found {}", found.join(", "));
                Err(Error::shape(Self::NAME, what))
            }
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let d = x[0].shape.last();
        for (x_row, y) in x[0].r().chunks_exact(d).zip(y[0].i()) {
            *y = self.search(x_row, x[1].r());
        }
    }
    fn refuses(&self, x: &[In<'_, f64>], got: &[Vec<i32>]) -> Option<String> {
        let rows = x[0].r().chunks_exact(x[0].shape.last()).zip(got.first()?);
        rows.into_iter().find_map(|(row, &index)| {
            let exact: Vec<Running> = row.iter().map(|&x| Running::exact(x)).collect();
            self.refusal(&exact, x[1].r(), index)
        })
    }
    fn cases() -> Cases {
        let case = |name: &str, cosine, x: &[usize], codes: usize| {
            let inputs = vec![Input::normal(x), Input::normal([codes, x[x.len() - 1]])];
            Case::new(name, NearestCode { cosine }, inputs)
        };
        Cases {
            named: vec![
                case("distance", false, &[2, 3, 3, 5], 7),
                case("cosine", true, &[2, 3, 3, 5], 7),
                case("one_code", false, &[9, 4], 1),
                case("panels", false, &[5, 16], 50),
                case("one_number", false, &[40, 1], 33),
                case("past_a_block", false, &[300, 8], 512),
                case("no_rows", false, &[0, 4], 3),
            ],
            draw: |d| {
                let (rows, width, codes) = (d.size(1, 40), d.size(1, 20), d.size(1, 70));
                let inputs = vec![Input::normal([rows, width]), Input::normal([codes, width])];
                Case::new("drawn", NearestCode { cosine: d.coin() }, inputs)
            },
            bench: vec![
                case("demo_last_scale", false, &[8, 8, 8, 16], 512),
                case("reference_last_scale", false, &[8, 16, 16, 32], 4096),
            ],
        }
    }
}

/// A codebook packed for products, with what is added to each code's score.
struct Book {
    panels: Panels,
    offset: Vec<f32>,
    codes: usize,
    width: usize,
}

impl Book {
    fn new(cosine: bool, book: &[f32], codes: usize, width: usize) -> Self {
        let rows = || book.chunks_exact(width);
        let square = |e: &[f32]| e.iter().map(|e| e * e).sum::<f32>();
        let (offset, factor): (Vec<f32>, Vec<f32>) = match cosine {
            true => rows().map(|e| (0.0, 1.0 / square(e).sqrt().max(SHORT as f32))).unzip(),
            false => rows().map(|e| (-0.5 * square(e), 1.0)).unzip(),
        };
        let panels = Panels::new(width, codes, |k, first, row| {
            for (i, row) in row.iter_mut().enumerate() {
                *row = book[(first + i) * width + k] * factor[first + i];
            }
        });
        Self { panels, offset, codes, width }
    }

    /// The nearest codes of some rows.
    fn search(&self, x: &[f32], rows: usize) -> Vec<i32> {
        let at = Windows {
            image: [1, 1, rows, self.width],
            kernel: [1, 1],
            step: 1,
            origin: [0, 0],
            count: [1, rows],
        };
        let mut scores = vec![0.0; rows * self.codes];
        product(&mut scores, (&at, x), &self.panels, Some(&self.offset), |_, _| ());
        let highest = |scores: &[f32]| {
            simd(
                #[inline(always)]
                || first_highest(scores),
            )
        };
        scores.chunks_exact(self.codes).map(highest).collect()
    }
}

/// Index of the first of the highest scores, -1 when one of them is not finite.
#[inline(always)]
fn first_highest(scores: &[f32]) -> i32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut at = [0i32; LANES];
    let mut taint = [0.0f32; LANES];
    for (i, part) in (0i32..).zip(scores.chunks(LANES)) {
        for (l, &s) in part.iter().enumerate() {
            // Zero, or NaN if the score is not finite.
            taint[l] += s * 0.0;
            let higher = s > best[l];
            best[l] = if higher { s } else { best[l] };
            at[l] = if higher { i } else { at[l] };
        }
    }
    if taint.iter().sum::<f32>().is_nan() {
        return -1;
    }
    let mut winner = (f32::NEG_INFINITY, i32::MAX);
    for (l, (&s, &i)) in (0i32..).zip(best.iter().zip(&at)) {
        let index = i * LANES as i32 + l;
        if s > winner.0 || s == winner.0 && index < winner.1 {
            winner = (s, index);
        }
    }
    winner.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::call;
    use crate::tensor::{Purpose, Stream, Tensor};

    fn nearest(cosine: bool, x: &[f32], book: &[f32], d: usize) -> Vec<i32> {
        let x = Tensor::new(x.to_vec(), [x.len() / d, d]).unwrap();
        let book = Tensor::new(book.to_vec(), [book.len() / d, d]).unwrap();
        call(&NearestCode { cosine }, &[&x, &book]).unwrap().i32s().unwrap().to_vec()
    }

    #[test]
    fn the_first_of_equal_codes_wins_and_what_is_not_finite_is_minus_one() {
        let book: Vec<f32> = (0..40).flat_map(|i| [(i % 20) as f32, 1.0]).collect();
        assert_eq!(nearest(false, &[17.1, 0.0, 3.0, 9.0, 0.5, 1.0], &book, 2), [17, 3, 0]);
        assert_eq!(nearest(false, &[f32::NAN, 0.0, 3.0, 9.0], &book, 2), [-1, 3]);
        assert_eq!(nearest(false, &[1.0, f32::INFINITY], &book, 2), [-1]);
        assert_eq!(nearest(false, &[1.0, 1.0], &[1.0, 1.0, f32::NAN, 1.0], 2), [-1]);
        assert_eq!(
            nearest(true, &[0.0, 9.0, 5.0, 5.0], &[3.0, 3.0, 0.0, 1.0, 0.0, 0.0], 2),
            [1, 0]
        );
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let s = Stream::new(1, 0, 0, Purpose::Test);
        let (x, book) = (s.normals(300 * 8), Stream::new(2, 0, 0, Purpose::Test).normals(500 * 8));
        let all = nearest(false, &x, &book, 8);
        let alone: Vec<i32> =
            x.chunks_exact(8).flat_map(|row| nearest(false, row, &book, 8)).collect();
        assert_eq!(all, alone);
    }

    #[test]
    fn a_code_that_is_clearly_worse_is_refused() {
        let op = NearestCode { cosine: false };
        let (xs, bs) = (Shape::from([1, 1]), Shape::from([2, 1]));
        let x = [In::real(&xs, &[0.4]), In::real(&bs, &[0.0, 1.0])];
        assert!(op.refuses(&x, &[vec![0]]).is_none());
        for wrong in [1, -1, 2] {
            assert!(op.refuses(&x, &[vec![wrong]]).is_some());
        }
        let tie = [In::real(&xs, &[0.5]), In::real(&bs, &[1.0, 1.0])];
        assert!(op.refuses(&tie, &[vec![1]]).is_some());
    }
}
