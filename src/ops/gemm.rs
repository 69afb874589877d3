//! Matrix products: the plain one, the linear layer, the layer with what follows it, and the one
//! whose result comes in pieces.

mod cuda;
mod dual;
mod fused;
mod linear;
mod parted;
mod wgmma;

use std::ops::RangeInclusive;

use self::cuda::{Elements, Finish, Multiply, Product, Size};
use super::cuda::{CudaIn, CudaOut, Kernels};
use super::elementwise::ADD;
use super::{Case, Cases, CpuFace, Grads, In, Input, Op, Out, Real, Saved, Saves, call};
use crate::device::cpu::{Mat, gemm, par_chunks};
use crate::device::cuda::Queue;
use crate::device::pack::Weights;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

pub use dual::LinearDual;
pub use fused::{Act, FusedLinear};
pub use linear::Linear;
pub use parted::PartedLinear;

/// c = op(a) op(b) with op(x) = x or its transpose. Leading axes count as rows, unless the product
/// is batched: then [B, .., ..] times [B, .., ..] are B products.
#[derive(Clone, Debug)]
pub struct MatMul {
    /// Whether a is used transposed.
    pub ta: bool,
    /// Whether b is used transposed.
    pub tb: bool,
    /// Whether the first axis of both counts products.
    pub batched: bool,
}

impl MatMul {
    /// One product.
    pub const fn of(ta: bool, tb: bool) -> Self {
        Self { ta, tb, batched: false }
    }

    /// A product for each index of the first axis.
    pub const fn batched(ta: bool, tb: bool) -> Self {
        Self { ta, tb, batched: true }
    }

    /// Rows and columns of each matrix of an operand, and how many there are; `None` where a batch
    /// has not three axes.
    fn matrices(&self, s: &Shape) -> Option<(usize, usize, usize)> {
        match (self.batched, s.dims()) {
            (true, &[batch, rows, cols]) => Some((batch, rows, cols)),
            (true, _) => None,
            (false, _) => {
                let (rows, cols) = s.matrix();
                Some((1, rows, cols))
            }
        }
    }

    fn sized(&self, a: &Shape, b: &Shape) -> Option<Size> {
        let (batch, rows, cols) = self.matrices(a)?;
        let (m, k) = if self.ta { (cols, rows) } else { (rows, cols) };
        let (others, rows, cols) = self.matrices(b)?;
        let (l, n) = if self.tb { (cols, rows) } else { (rows, cols) };
        let own = if self.ta || self.batched { m } else { linear::own_rows(a) };
        (batch == others && k == l).then_some(Size { batch, m, n, k, own })
    }
}

impl Multiply for MatMul {
    fn size(&self, x: &[&Shape]) -> Size {
        self.sized(x[0], x[1]).unwrap_or_default()
    }
    fn turned(&self) -> (bool, bool) {
        (self.ta, self.tb)
    }
    fn product<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Product<'a, T>> {
        Ok(Product {
            size: self.size(&[x[0].shape, x[1].shape]),
            ta: self.ta,
            tb: self.tb,
            y: y[0].get()?,
            a: x[0].get()?,
            b: x[1].get()?,
            finish: Finish::bias(q, None),
        })
    }
}

/// The extents that a matrix of m x n is stored with.
fn turned(m: usize, n: usize, t: bool) -> (usize, usize) {
    if t { (n, m) } else { (m, n) }
}

/// The matrix [rows, cols] at the begin of `x`, or its transpose.
fn view(x: Weights<'_>, rows: usize, cols: usize, t: bool) -> Mat<'_> {
    let m = Mat::of(x, rows, cols, cols);
    if t { m.t() } else { m }
}

impl Op for MatMul {
    const NAME: &'static str = "matmul";
    const INPUTS: RangeInclusive<usize> = 2..=2;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const HALVES: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| {
        let Size { m, n, k, .. } = op.size(&[x[0].shape, x[1].shape]);
        let (a, b) = (x[0].weights(), x[1].weights());
        let ((ar, ac), (br, bc)) = (turned(m, k, op.ta), turned(k, n, op.tb));
        par_chunks(y[0].r(), m * n, |first, y| {
            let i = first / (m * n);
            let (a, b) = (a.from(i * m * k), b.from(i * k * n));
            gemm(y, n, view(a, ar, ac, op.ta), view(b, br, bc, op.tb), false);
        });
    });
    const CUDA: Kernels<Self> = Self::KERNELS;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let refused =
            |what: &str| Error::shape(Self::NAME, format!("{what} (a is {}, b is {})", x[0], x[1]));
        if self.batched && (x[0].rank() != 3 || x[1].rank() != 3) {
            return Err(refused("a batch wants [B, .., ..] twice"));
        }
        let Some(Size { batch, m, n, .. }) = self.sized(x[0], x[1]) else {
            return Err(refused("inner extents or numbers of products differ"));
        };
        Ok(vec![if self.batched { Shape::from([batch, m, n]) } else { Shape::from([m, n]) }])
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let Size { m, n, k, .. } = self.size(&[x[0].shape, x[1].shape]);
        let (ai, al) = if self.ta { (1, m) } else { (k, 1) };
        let (bl, bj) = if self.tb { (1, k) } else { (n, 1) };
        for (p, y) in y[0].r().chunks_mut((m * n).max(1)).enumerate() {
            let (a, b) = (&x[0].r()[p * m * k..], &x[1].r()[p * k * n..]);
            for i in 0..m {
                for j in 0..n {
                    let products = (0..k).map(|l| a[i * ai + l * al] * b[l * bl + j * bj]);
                    y[i * n + j] = R::sum(products);
                }
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
        let mm = |ta, tb, a: &Tensor, b: &Tensor| call(&MatMul { ta, tb, ..*self }, &[a, b]);
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
            Case::new(name, MatMul::of(ta, tb), vec![Input::normal(a), Input::normal(b)])
        };
        let batch = |name: &str, ta, tb, a: [usize; 3], b: [usize; 3]| {
            Case::new(name, MatMul::batched(ta, tb), vec![Input::normal(a), Input::normal(b)])
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
                case("rounds_of_stages", true, false, [600, 136], [600, 72]),
                case("packets", true, false, [72, 136], [72, 72]),
                batch("batch_nn", false, false, [3, 5, 7], [3, 7, 4]),
                batch("batch_nt", false, true, [2, 66, 24], [2, 8, 24]),
                batch("batch_tn", true, false, [2, 9, 5], [2, 9, 3]),
                batch("batch_tt", true, true, [5, 8, 1], [5, 6, 8]),
            ],
            draw: |d| {
                let (m, n, k) = (d.size(1, 40), d.size(1, 40), d.size(1, 70));
                let (ta, tb, batched) = (d.coin(), d.coin(), d.coin());
                let a = if ta { [k, m] } else { [m, k] };
                let b = if tb { [n, k] } else { [k, n] };
                let batch: &[usize] = if batched { &[2] } else { &[] };
                let inputs = [a, b].map(|s| Input::normal([batch, &s].concat()));
                Case::new("drawn", MatMul { ta, tb, batched }, inputs.to_vec())
            },
            bench: vec![
                case("square", false, false, [1024, 1024], [1024, 1024]),
                case("d16_qkv_gx", false, false, [512, 3072], [3072, 1024]),
                case("d16_qkv_gw", true, false, [512, 3072], [512, 1024]),
                case("beta_vae_gw", true, false, [256, 6000], [256, 17_655]),
                batch("heads", false, true, [32, 256, 64], [32, 256, 64]),
            ],
        }
    }
}
