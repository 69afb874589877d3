//! The matrix product of the CPU: rows that go past panels of weights.
//!
//! A register tile of 12 rows by a panel's 32 columns takes both FMA units of an AVX-512 core to
//! nine tenths of what they can do; with AVX2 it is 6 rows by 16 columns. An output element is one
//! chain of fused multiply-adds in the order of depth, whatever the number of rows, the tile, the
//! vectors or the threads: so a row has the same bits in any product.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::may_spread;
use super::pack::{Matrix, NARROW, PANEL};

/// Multiply-adds below which a product stays on one thread.
const ALONE: usize = 1 << 17;
/// Rows of a task: a multiple of the tile's, and enough that making the panel does not show.
const ROWS: usize = 384;

/// The block for each i below n, which is at most 12, written out: sums that a loop's variable
/// picks stay in registers only where the compiler unrolls it, which it does not in debug builds.
macro_rules! unrolled {
    ($n:ident, $i:ident, $body:block) => {
        unrolled!($n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($n:ident, $i:ident, $body:block, $($at:literal)*) => {
        $(if $at < $n {
            let $i = $at;
            $body
        })*
    };
}

thread_local!(static OWN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });

/// Rows that are multiplied: each is `taps` runs of `run` elements, `pitch` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// What they lie in.
    pub data: &'a [f32],
    /// Where each begins.
    pub starts: &'a [usize],
    /// Runs of a row.
    pub taps: usize,
    /// Elements from run to run.
    pub pitch: usize,
    /// Elements of a run.
    pub run: usize,
}

/// What a sum begins with.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Zero.
    Zero,
    /// A value of each output.
    Bias(&'a [f32]),
    /// What is there.
    Kept,
}

impl<'a> Start<'a> {
    /// Of the outputs from `first` on.
    fn from(self, first: usize) -> Self {
        match self {
            Self::Bias(b) => Self::Bias(&b[first..]),
            other => other,
        }
    }
}

/// Some columns of a row-major matrix, to be written.
pub struct Columns<'a> {
    first: *mut f32,
    rows: usize,
    stride: usize,
    own: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Columns<'a> {
    /// Columns `first..first + own` of rows of `stride`; all there are.
    pub fn new(y: &'a mut [f32], stride: usize, first: usize, own: usize) -> Self {
        assert!(first + own <= stride);
        let rows = y.len() / stride.max(1);
        // SAFETY: `first` is at most the length of a row, and there is one unless there are none.
        let at = unsafe { y.as_mut_ptr().add(if rows == 0 { 0 } else { first }) };
        Self { first: at, rows, stride, own, life: PhantomData }
    }

    /// Its part of a row.
    fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: row i < rows of the columns that this value alone writes.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.stride), self.own) }
    }
}

/// y = start + rows panel, for a panel [depth, width] of 16 or 32 columns, of which y has its own.
pub fn multiply(y: Columns<'_>, rows: Rows<'_>, panel: &[f32], start: Start<'_>) {
    let depth = rows.taps * rows.run;
    let width = y.own.next_multiple_of(NARROW);
    assert!(width <= PANEL && panel.len() == depth * width, "the panel has another size");
    assert_eq!(y.rows, rows.starts.len(), "the result has other rows");
    if y.own > 0 {
        Arch::new().dispatch(Job { y, rows, panel, width, start });
    }
}

struct Job<'a> {
    y: Columns<'a>,
    rows: Rows<'a>,
    panel: &'a [f32],
    width: usize,
    start: Start<'a>,
}

impl WithSimd for Job<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut col = 0;
        while col < self.width.min(self.y.own) {
            if col + 2 * S::F32_LANES <= self.width {
                self.columns::<S, 2>(simd, col);
                col += 2 * S::F32_LANES;
            } else {
                self.columns::<S, 1>(simd, col);
                col += S::F32_LANES;
            }
        }
    }
}

impl Job<'_> {
    /// N vectors of columns, from `col` on, of all rows.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, col: usize) {
        let mut at = 0;
        while let left @ 1.. = self.rows.starts.len() - at {
            // As many rows as leave registers for a vector of the panel.
            at += match (left, S::F32_LANES) {
                (12.., 16) => self.tile::<S, 12, N>(simd, at, col),
                (8.., 4 | 16) => self.tile::<S, 8, N>(simd, at, col),
                (6.., 8) => self.tile::<S, 6, N>(simd, at, col),
                (4.., _) => self.tile::<S, 4, N>(simd, at, col),
                (2.., _) => self.tile::<S, 2, N>(simd, at, col),
                _ => self.tile::<S, 1, N>(simd, at, col),
            };
        }
    }

    /// One register tile: rows at..at + T, which it returns the number of.
    #[inline(always)]
    fn tile<S: Simd, const T: usize, const N: usize>(
        &mut self,
        simd: S,
        at: usize,
        col: usize,
    ) -> usize {
        let mut acc = [[simd.splat_f32s(0.0); N]; T];
        let own = (self.y.own - col).min(N * S::F32_LANES);
        for (t, acc) in acc.iter_mut().enumerate() {
            let acc: &mut [f32] = bytemuck::cast_slice_mut(acc);
            match self.start {
                Start::Zero => {}
                Start::Bias(b) => acc[..own].copy_from_slice(&b[col..col + own]),
                Start::Kept => acc[..own].copy_from_slice(&self.y.row(at + t)[col..col + own]),
            }
        }
        let acc = self.sums::<S, T, N>(simd, at, col, acc);
        for (t, acc) in acc.iter().enumerate() {
            let acc: &[f32] = bytemuck::cast_slice(acc);
            self.y.row(at + t)[col..col + own].copy_from_slice(&acc[..own]);
        }
        T
    }

    /// Adds all products to a tile. The sums come and go by value: were they borrowed, each step
    /// would store them.
    #[inline(always)]
    fn sums<S: Simd, const T: usize, const N: usize>(
        &self,
        simd: S,
        at: usize,
        col: usize,
        mut acc: [[S::f32s; N]; T],
    ) -> [[S::f32s; N]; T] {
        let Rows { data, starts, taps, pitch, run } = self.rows;
        let (panel, stride) = (S::as_simd_f32s(self.panel).0, self.width / S::F32_LANES);
        let col = col / S::F32_LANES;
        for tap in 0..taps {
            let mut x = [data; T];
            for (x, s) in x.iter_mut().zip(&starts[at..at + T]) {
                *x = &data[s + tap * pitch..][..run];
            }
            let w = &panel[tap * run * stride..(tap + 1) * run * stride];
            for (k, w) in w.chunks_exact(stride).enumerate().take(run) {
                let Some(w) = w[col..].first_chunk::<N>() else { continue };
                unrolled!(T, t, {
                    let x = simd.splat_f32s(x[t][k]);
                    acc[t][0] = simd.mul_add_f32s(x, w[0], acc[t][0]);
                    if N > 1 {
                        acc[t][1 % N] = simd.mul_add_f32s(x, w[1 % N], acc[t][1 % N]);
                    }
                });
            }
        }
        acc
    }
}

/// A matrix of rows that are multiplied: `count` rows of the weights' depth, `stride` apart.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Rows.
    pub count: usize,
    /// Elements from row to row.
    pub stride: usize,
}

/// Where the whole result is, for tasks that write columns of their own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint elements, and the result is borrowed for as long as they run.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The element at `i`.
    ///
    /// # Safety
    /// There is one.
    unsafe fn at(self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

/// y = start + x w, y having `stride` elements from row to row; `finish` sees each stretch of a
/// row when it is done: `finish(row, first column, stretch)`.
pub fn product(
    (y, stride): (&mut [f32], usize),
    x: Factor<'_>,
    w: &Matrix<'_>,
    start: Start<'_>,
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (m, n, depth) = (x.count, w.outs, w.depth);
    if m * n == 0 {
        return;
    }
    assert!((m - 1) * stride + n <= y.len() && n <= stride, "product outside its buffer");
    assert!((m - 1) * x.stride + depth <= x.data.len(), "factor outside its buffer");
    let starts: Vec<usize> = (0..m).map(|i| i * x.stride).collect();
    let (panels, y) = (n.div_ceil(PANEL), Shared(y.as_mut_ptr()));
    let task = |i: usize| {
        let (first, row) = (i % panels * PANEL, i / panels * ROWS);
        let (own, rows) = (PANEL.min(n - first), ROWS.min(m - row));
        // SAFETY: row + rows <= m and first + own <= n lie in y, and no other task has these.
        let corner = unsafe { y.at(row * stride + first) };
        let columns = || Columns { first: corner, rows, stride, own, life: PhantomData };
        let starts = &starts[row..row + rows];
        let rows = Rows { data: x.data, starts, taps: 1, pitch: 0, run: depth };
        OWN.with_borrow_mut(|panel| {
            panel.resize(depth * w.width(first), 0.0);
            w.pack(panel, first);
            multiply(columns(), rows, panel, start.from(first));
        });
        let mut done = columns();
        (0..done.rows).for_each(|i| finish(row + i, first, done.row(i)));
    };
    let tasks = panels * m.div_ceil(ROWS);
    match m * n * depth > ALONE && may_spread() {
        true => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
        false => (0..tasks).for_each(task),
    }
}
