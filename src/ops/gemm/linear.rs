//! The linear layer.

use std::ops::RangeInclusive;

use super::cuda::{Elements, Finish, Multiply, Product, Size};
use super::{Act, LinearDual, MatMul};
use crate::device::cuda::Queue;
use crate::device::pack::Matrix;
use crate::device::panel::{Factor, Start, product};
use crate::error::{Error, Result};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels};
use crate::ops::elementwise::ADD;
use crate::ops::reduce::{broadcast_into, sum_into};
use crate::ops::{
    Case, Cases, CpuFace, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
};
use crate::tensor::{Shape, Tensor};

/// y = x w^T + b over the last axis: x [.., I], w [O, I], b `[O]` (optional) to [.., O].
#[derive(Clone, Debug)]
pub struct Linear;

/// Sides of VAR's ten token maps; each is a batch of two with guidance.
const SIDES: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];

/// The extents of a linear layer.
pub(super) fn layer(x: &[&Shape]) -> Size {
    let (m, k) = x[0].matrix();
    Size { batch: 1, m, n: x[1].dims().first().copied().unwrap_or(0), k, own: own_rows(x[0]) }
}

/// Rows of each sample of x: of [B, n, .., I] those of one B, of a matrix all.
pub(super) fn own_rows(x: &Shape) -> usize {
    match x.dims() {
        [_, between @ .., _] if !between.is_empty() => between.iter().product(),
        _ => x.matrix().0,
    }
}

/// The shape of a linear layer's result, or what does not fit.
pub(super) fn layer_shape(op: &'static str, x: &[&Shape]) -> Result<Shape> {
    let fits = x[1].rank() == 2
        && x[0].rank() >= 1
        && x[1].last() == x[0].last()
        && x.get(2).is_none_or(|b| b.dims() == [x[1].dims()[0]]);
    if !fits {
        let found: Vec<String> = x.iter().map(ToString::to_string).collect();
        let what = format!("wants x [.., I], w [O, I], b [O]; found {}", found.join(", "));
        return Err(Error::shape(op, what));
    }
    Ok(x[0].with_last(x[1].dims()[0]))
}

/// x w^T + b into y; `finish` sees each stretch of a row when it is done: `finish(row, first
/// column, stretch)`.
pub(super) fn layer_cpu(
    x: &[In<'_, f32>],
    y: &mut [f32],
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let Size { m: rows, n: cols, k, .. } = layer(&[x[0].shape, x[1].shape]);
    let factor = Factor { data: x[0].r(), count: rows, stride: k };
    let w = Matrix::of_outputs(x[1].weights(), cols, k);
    let start = x.get(2).map_or(Start::Zero, |b| Start::Bias(b.r()));
    product((y, cols), factor, &w, start, finish);
}

/// Gradients of x, w and b, of which as many as `want` says, for that of the sums.
pub(super) fn layer_vjp(at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
    let gx = || call(&MatMul::of(false, false), &[gy, at.x(1)?])?.reshape(at.shape(0));
    let gw = || call(&MatMul::of(true, false), &[gy, at.x(0)?]);
    let mut grads = vec![want[0].then(gx).transpose()?, want[1].then(gw).transpose()?];
    if let Some(wanted) = want.get(2) {
        let gb = || sum_into(gy, at.shape(2));
        grads.push(wanted.then(gb).transpose()?);
    }
    Ok(grads)
}

impl Multiply for Linear {
    fn size(&self, x: &[&Shape]) -> Size {
        layer(x)
    }
    fn product<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Product<'a, T>> {
        let bias = x.get(2).map(CudaIn::get).transpose()?;
        Ok(Product {
            size: layer(&[x[0].shape, x[1].shape]),
            ta: false,
            tb: true,
            y: y[0].get()?,
            a: x[0].get()?,
            b: x[1].get()?,
            finish: Finish::bias(q, bias),
        })
    }
}

impl Op for Linear {
    const NAME: &'static str = "linear";
    const INPUTS: RangeInclusive<usize> = 2..=3;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const HALVES: &'static [usize] = &[1];
    const CPU: Option<CpuFace<Self>> = Some(|_, x, y| layer_cpu(x, y[0].r(), |_, _, _| ()));
    const CUDA: Kernels<Self> = Self::KERNELS;

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![layer_shape(Self::NAME, x)?])
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
            (None, Some(b)) => Some(broadcast_into(b, at.y_shape())?),
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
    fn dual(&self, _: &[&Shape], given: &[bool]) -> Option<Box<dyn DynOp>> {
        LinearDual::of(Act::None, false, 1, given)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        layer_vjp(at, gy, want)
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
                case("few_rows", &[2, 4, 136], 24, true),
                case("few_rows_a_sample", &[13, 3, 136], 24, true),
                case("one_output", &[35, 40], 1, true),
                case("no_rows", &[0, 4], 3, true),
            ],
            draw: |d| {
                let (n, i, o) = (d.size(1, 40), d.size(1, 70), d.size(1, 40));
                let inputs = vec![Input::normal([n, i]), Input::normal([o, i]), Input::normal([o])];
                Case::new("drawn", Linear, inputs)
            },
            bench: SIDES
                .iter()
                .map(|side| {
                    let name = format!("d16_qkv_side_{side}");
                    case(&name, &[2, side * side, 1024], 3072, true)
                })
                .chain([
                    case("demo_ffn", &[16, 130, 256], 1024, true),
                    case("d16_fc1", &[2, 256, 1024], 4096, true),
                    case("beta_vae_in", &[256, 17_655], 6000, true),
                    case("beta_vae_out", &[256, 6000], 17_655, true),
                ])
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use half::bf16;

    use super::*;
    use crate::device::mmap::{Halves, Mapped};
    use crate::ops::conv::{Conv2d, FusedConv};
    use crate::ops::gemm::FusedLinear;
    use crate::ops::run;
    use crate::tensor::{Purpose, Stream};

    fn random(sample: u64, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::new(Stream::new(5, sample, 0, Purpose::Test).normals(n), shape).unwrap()
    }

    /// The same weights in bf16, where a file holds them and in f32.
    fn stored(w: &Tensor) -> [Tensor; 2] {
        let halves: Vec<bf16> = w.f32s().unwrap().iter().map(|&x| bf16::from_f32(x)).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytemuck::cast_slice(&halves)).unwrap();
        let map = Arc::new(Mapped::open(file.path()).unwrap());
        let there = Halves::new(&map, 0..2 * halves.len()).unwrap();
        let wide = halves.iter().map(|x| x.to_f32()).collect();
        [Tensor::away(there, w.shape()).unwrap(), Tensor::new(wide, w.shape()).unwrap()]
    }

    #[test]
    fn weights_that_stay_in_their_file_give_the_same_bits() {
        let conv = Conv2d::same(3);
        let fused = FusedConv { conv: conv.clone(), double: true };
        let layer = FusedLinear { act: Act::Gelu, keep: true };
        type Tried<'a> = (&'a dyn DynOp, &'a [usize], &'a [usize], Option<usize>);
        let cases: [Tried<'_>; 5] = [
            (&Linear, &[2, 9, 70], &[50, 70], Some(50)),
            (&layer, &[37, 64], &[48, 64], Some(48)),
            (&MatMul::of(false, false), &[20, 33], &[33, 70], None),
            (&conv, &[1, 7, 5, 20], &[40, 3, 3, 20], None),
            (&fused, &[2, 3, 5, 16], &[17, 3, 3, 16], Some(17)),
        ];
        for (op, x, w, bias) in cases {
            let (x, b) = (random(1, x), bias.map(|n| random(2, &[n])));
            let drawn = |w: &Tensor| {
                let all: Vec<&Tensor> = [&x, w].into_iter().chain(&b).collect();
                run(op, &all).unwrap()
            };
            let [there, wide] = stored(&random(3, w));
            for (a, b) in drawn(&there).iter().zip(&drawn(&wide)) {
                let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
                let (a, b): (Vec<u32>, Vec<u32>) = (bits(a), bits(b));
                assert!(a == b, "{}", op.name());
            }
        }
    }
}
