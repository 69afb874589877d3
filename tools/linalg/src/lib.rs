//! The pieces of dense f64 linear algebra that evaluation needs, over faer.
//!
//! All run on one thread: callers are parallel over repetitions, and results then cannot depend on
//! the number of threads. Matrices are row-major slices outside and faer's column-major `Mat`
//! inside.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::{Accum, Mat, MatRef, Par, Spec};

/// An iteration that did not converge, with what it was after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotConverged(pub &'static str);

impl std::fmt::Display for NotConverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the {} did not converge", self.0)
    }
}

impl std::error::Error for NotConverged {}

type Result<T> = std::result::Result<T, NotConverged>;

/// A row-major slice as a matrix; the caller promises that the length is `rows * cols`.
pub fn view(data: &[f64], rows: usize, cols: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(data, rows, cols)
}

/// `a * b`.
pub fn times(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// `a * b^T`.
pub fn times_transposed(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    times(a, b.transpose())
}

/// The triangular factor R of `a = Q R`, `[min(rows, cols), cols]`.
pub fn triangle(a: MatRef<'_, f64>) -> Mat<f64> {
    let (rows, cols) = a.shape();
    let size = rows.min(cols);
    let mut work = a.to_owned();
    let block = qr::recommended_block_size::<f64>(rows, cols);
    let mut coefficients = Mat::zeros(block, size);
    let scratch = qr::qr_in_place_scratch::<f64>(rows, cols, block, Par::Seq, Spec::default());
    qr::qr_in_place(
        work.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Spec::default(),
    );
    Mat::from_fn(size, cols, |i, j| if i <= j { work[(i, j)] } else { 0.0 })
}

/// Singular values of `a`, largest first.
pub fn singular_values(a: MatRef<'_, f64>) -> Result<Vec<f64>> {
    let (rows, cols) = a.shape();
    let mut s = Diag::zeros(rows.min(cols));
    let no = ComputeSvdVectors::No;
    let scratch = svd::svd_scratch::<f64>(rows, cols, no, no, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    svd::svd(a, s.as_mut(), None, None, Par::Seq, stack, Spec::default())
        .map_err(|_| NotConverged("singular values"))?;
    Ok(s.column_vector().iter().copied().collect())
}

/// Right singular vectors of `a` as columns, `[cols, min(rows, cols)]`, with the singular values.
pub fn right_vectors(a: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let (rows, cols) = a.shape();
    let size = rows.min(cols);
    let mut s = Diag::zeros(size);
    let mut v = Mat::zeros(cols, size);
    let (no, thin) = (ComputeSvdVectors::No, ComputeSvdVectors::Thin);
    let scratch = svd::svd_scratch::<f64>(rows, cols, no, thin, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    svd::svd(a, s.as_mut(), None, Some(v.as_mut()), Par::Seq, stack, Spec::default())
        .map_err(|_| NotConverged("principal components"))?;
    Ok((s.column_vector().iter().copied().collect(), v))
}

/// Solves `a x = b` for a symmetric positive definite `a` by Cholesky, overwriting both; `None`
/// when
/// `a` is not positive definite. Row-major `[n, n]` and `[n]`; n is a few dozen, so plain loops do.
pub fn solve_spd(a: &mut [f64], b: &mut [f64]) -> Option<()> {
    let n = b.len();
    for j in 0..n {
        for k in 0..j {
            let ajk = a[j * n + k];
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * ajk;
            }
        }
        let pivot = a[j * n + j];
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        let root = pivot.sqrt();
        for i in j..n {
            a[i * n + j] /= root;
        }
    }
    for i in 0..n {
        for k in 0..i {
            b[i] -= a[i * n + k] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    for i in (0..n).rev() {
        for k in i + 1..n {
            b[i] -= a[k * n + i] * b[k];
        }
        b[i] /= a[i * n + i];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cholesky_solves_and_refuses() {
        let mut a = vec![4.0, 2.0, 0.6, 2.0, 5.0, 1.0, 0.6, 1.0, 3.0];
        let x = [1.0, -2.0, 0.5];
        let mut b: Vec<f64> = (0..3).map(|i| (0..3).map(|j| a[i * 3 + j] * x[j]).sum()).collect();
        solve_spd(&mut a, &mut b).unwrap();
        b.iter().zip(x).for_each(|(b, x)| assert!((b - x).abs() < 1e-14));
        assert!(solve_spd(&mut [1.0, 2.0, 2.0, 1.0], &mut [1.0, 1.0]).is_none());
        assert!(solve_spd(&mut [f64::NAN], &mut [1.0]).is_none());
    }

    #[test]
    fn triangle_keeps_the_gram_matrix() {
        let a: Vec<f64> = (0..21).map(|i| ((i * i * 7 % 13) as f64).sin()).collect();
        let a = view(&a, 7, 3);
        let r = triangle(a);
        let want = a.transpose() * a;
        let got = r.transpose() * &r;
        for i in 0..3 {
            for j in 0..3 {
                assert!((want[(i, j)] - got[(i, j)]).abs() < 1e-13);
            }
        }
    }
}
