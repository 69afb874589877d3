//! The CPU device: run-time SIMD dispatch, fixed work splitting and the matrix product.
//!
//! Work is split by the problem alone, never by the number of threads, so results are the same bits
//! on one core and on sixty-four. Whoever splits work at an outer level, a tile each, does so with
//! [`each`], and gets sequential kernels inside.

#![allow(unsafe_code)]

use std::cell::Cell;

use rayon::prelude::*;

use super::pack::{Matrix, Weights};
use super::panel::{Factor, Start, product};
use crate::error::Result;

/// Elements below which a parallel loop is not worth its start.
const SMALL: usize = 1 << 14;

thread_local! {
    /// Whether this thread is inside [`each`].
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether a kernel may spread over the thread pool.
pub fn may_spread() -> bool {
    !INSIDE.get() && rayon::current_num_threads() > 1
}

/// Threads of the pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// How long freed memory is kept for what comes next, in milliseconds: longer than a tile, or a
/// step of training, leaves anything unused.
const KEPT: std::ffi::c_long = 10_000;
/// The allocator's number of that option, which its crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Has the allocator keep freed memory for some seconds, once, at the start of a program.
///
/// By default it is back with the system before the next op wants it, whose pages are then faulted
/// in one by one: a tenth of a tile's time at the paper's shapes.
pub fn keep_memory() {
    // SAFETY: the option is a number that the allocator may read at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT) };
}

/// Makes the calling thread a worker of the global pool, once, at the start of a program.
///
/// A thread outside the pool sleeps at every parallel loop until the pool wakes it, which costs
/// more than the loop when kernels are short.
pub fn join_pool() {
    // An error says that a pool exists already: then loops run there, as they would without this.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
}

/// Runs `f` on every item, each whole on one thread, and collects the results in order.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    f: impl Fn(&T) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    items.par_iter().map(|item| alone(|| f(item))).collect()
}

/// Runs `f` whole on this thread.
fn alone<R>(f: impl FnOnce() -> R) -> R {
    // Other work may run on this thread before `f` returns, if it waits for the pool: that finds
    // the flag set and leaves it set.
    let before = INSIDE.replace(true);
    let result = f();
    INSIDE.set(before);
    result
}

/// Runs a loop compiled for the widest vectors this processor has. The closure must inline.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Body<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(f))
}

/// Splits `y` into chunks of `chunk` elements and runs `f(index of the chunk's first element,
/// chunk)`.
pub fn par_chunks<T: Send>(y: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let chunk = chunk.max(1);
    if y.len() <= SMALL || !may_spread() {
        y.chunks_mut(chunk).enumerate().for_each(|(i, part)| f(i * chunk, part));
    } else {
        y.par_chunks_mut(chunk).enumerate().for_each(|(i, part)| f(i * chunk, part));
    }
}

/// Splits a row-major matrix into groups of rows (about 16 Ki elements each) and runs `f(first row,
/// rows)`.
pub fn par_rows<T: Send>(y: &mut [T], cols: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let cols = cols.max(1);
    let rows = (SMALL / cols).max(1);
    par_chunks(y, rows * cols, |start, part| f(start / cols, part));
}

/// [`par_rows`] over two outputs at once: `f(first row, rows of y, rows of z)`, with `per_row`
/// elements of z to a row of y.
pub fn par_rows_and<T: Send>(
    y: &mut [T],
    cols: usize,
    z: &mut [T],
    per_row: usize,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    let rows = (SMALL / cols.max(1)).max(1);
    let (ys, zs) = ((rows * cols).max(1), (rows * per_row).max(1));
    if y.len() <= SMALL || !may_spread() {
        let parts = y.chunks_mut(ys).zip(z.chunks_mut(zs));
        parts.enumerate().for_each(|(i, (y, z))| f(i * rows, y, z));
    } else {
        let parts = y.par_chunks_mut(ys).zip(z.par_chunks_mut(zs));
        parts.enumerate().for_each(|(i, (y, z))| f(i * rows, y, z));
    }
}

/// Splits outputs of one length alike and runs `f(first element, parts)`.
pub fn par_parts<T: Send, const N: usize>(
    y: [&mut [T]; N],
    f: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let count = y.iter().map(|y| y.len().div_ceil(SMALL)).max().unwrap_or(0);
    let mut chunks = y.map(|y| y.chunks_mut(SMALL));
    let parts = (0..count).map(|_| chunks.each_mut().map(|c| c.next().unwrap_or_default()));
    if count <= 1 || !may_spread() {
        parts.enumerate().for_each(|(i, part)| f(i * SMALL, part));
    } else {
        let parts: Vec<_> = parts.collect();
        parts.into_par_iter().enumerate().for_each(|(i, part)| f(i * SMALL, part));
    }
}

/// Runs `f(i)` for i in 0..n, spread over the pool when allowed, and collects the results in order.
pub fn par_map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if n <= 1 || !may_spread() {
        (0..n).map(f).collect()
    } else {
        (0..n).into_par_iter().map(f).collect()
    }
}

/// [`par_map`] of large jobs: where there are enough of them for all threads, each is whole on one.
pub fn par_jobs<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    match n < threads() {
        true => par_map(n, f),
        false => par_map(n, |i| alone(|| f(i))),
    }
}

/// A strided view of a matrix; overlapping rows are allowed for reading (convolution windows).
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: Weights<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix with `stride` elements from row to row.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self::of(Weights::F32(data), rows, cols, stride)
    }

    /// The same of elements that may be stored in bf16.
    pub fn of(data: Weights<'a>, rows: usize, cols: usize, stride: usize) -> Self {
        let m = Self { data, rows, cols, row_stride: stride, col_stride: 1 };
        m.check();
        m
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    fn check(&self) {
        let reach = match self.rows * self.cols {
            0 => 0,
            _ => (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1,
        };
        assert!(reach <= self.data.len(), "matrix view outside its buffer");
    }

    /// It as the factor whose rows are multiplied, and another as the one of panels, if the terms
    /// of a sum follow each other here and something does there.
    fn by(&self, b: &Self) -> Option<(Factor<'a>, Matrix<'a>)> {
        let Weights::F32(data) = self.data else { return None };
        let x = Factor { data, count: self.rows, stride: self.row_stride };
        let (depth, outs) = (b.rows, b.cols);
        let by_output = b.row_stride == 1;
        let stride = if by_output { b.col_stride } else { b.row_stride };
        let w = Matrix { data: b.data, depth, outs, by_output, stride };
        (self.col_stride == 1 && (by_output || b.col_stride == 1)).then_some((x, w))
    }
}

/// c (+)= a b, with c row-major and `pitch` elements from row to row.
///
/// The order of additions within an element depends on the shapes only.
pub fn gemm(c: &mut [f32], pitch: usize, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner extents differ");
    if m * n == 0 {
        return;
    }
    assert!((m - 1) * pitch + n <= c.len() && n <= pitch, "product outside its buffer");
    // Where the terms of a row follow each other, nothing has to be turned but the panels.
    if let Some((x, w)) = a.by(&b) {
        let start = if accumulate { Start::Kept } else { Start::Zero };
        return product((c, pitch), x, &w, start, |_, _, _| ());
    }
    let threads = match m * n * k > (1 << 17) && may_spread() {
        true => gemm::Parallelism::Rayon(0),
        false => gemm::Parallelism::None,
    };
    let (of_a, of_b) = (a.data.to_f32s(), b.data.to_f32s());
    // SAFETY: `Mat::check` and the assertion above keep every access of the m x k, k x n and m x n
    // index ranges inside the three buffers, and `c` is exclusively borrowed with non-overlapping
    // rows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            pitch as isize,
            accumulate,
            of_a.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            of_b.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Purpose, Stream};

    #[test]
    fn product_has_the_same_bits_on_one_thread_and_on_many() {
        for (m, n, k) in
            [(1, 7, 3), (130, 256, 64), (257, 96, 1030), (2080, 1024, 256), (5, 1, 900)]
        {
            let a = Stream::new(1, m as u64, 0, Purpose::Test).normals(m * k);
            let b = Stream::new(1, n as u64, 1, Purpose::Test).normals(n * k);
            let product = || {
                let mut c = vec![f32::NAN; m * n];
                gemm(&mut c, n, Mat::new(&a, m, k, k), Mat::new(&b, n, k, k).t(), false);
                c
            };
            let many = product();
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(
                one.install(product).iter().zip(&many).all(|(x, y)| x.to_bits() == y.to_bits())
            );
            let want: f64 = (0..k).map(|i| f64::from(a[i]) * f64::from(b[i])).sum();
            assert!((f64::from(many[0]) - want).abs() < 1e-4 * (k as f64).sqrt());
        }
    }
}
