//! A convolution of what group norm and SiLU make of its map: what the tokenizer's blocks are made
//! of, without the map between norm and convolution.
//!
//! In bf16 that map would be rounded on its way through memory; here its elements are rounded on
//! their way to the tensor cores, so the reference says where.

use std::ops::RangeInclusive;

use super::{Conv2d, Conv2dDw, Conv2dDx, FusedConv, dims};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Grid, Slice};
use crate::device::launch::conv_norm as launch;
use crate::device::{Held, OnGpu};
use crate::error::{Error, Result};
use crate::ops::composed::{self, Composed};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels, Precision, Variant, block_per_job};
use crate::ops::elementwise::ADD;
use crate::ops::group_norm::{GroupNorm, GroupNormVjp, statistics};
use crate::ops::reduce::{broadcast_into, sum_into};
use crate::ops::{Case, Cases, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call, run};
use crate::tensor::{Shape, Tensor};

/// y = residual + conv(silu(norm(x)), w) + b, the convolution 3 x 3 with zeros round its map.
///
/// Inputs x [B, H, W, I], the norm's weights and biases `[I]`, w [O, 3, 3, I], b `[O]`, then a
/// residual [B, H, W, O], which may be left out. The backward pass makes the map between again.
#[derive(Clone, Debug)]
pub struct NormedConv {
    /// Groups of the norm.
    pub groups: usize,
    /// Added to its variances.
    pub eps: f64,
}

/// Pixels of a map from which tiles of it are worth a block each: a matter of one sample, so that a
/// sample's bits are the same in any batch. Predicted, not measured on a card yet.
const LARGE: usize = 32 * 32;

/// The convolution.
fn conv() -> Conv2d {
    Conv2d::same(3)
}

impl NormedConv {
    /// The norm, with SiLU.
    pub(in crate::ops) fn norm(&self) -> GroupNorm {
        GroupNorm { groups: self.groups, eps: self.eps, silu: true }
    }

    /// The map that the convolution sees, and the norm's statistics.
    fn normed(&self, at: &Saved) -> Result<[Tensor; 2]> {
        <[Tensor; 2]>::try_from(run(&self.norm(), &[at.x(0)?, at.x(1)?, at.x(2)?])?)
            .map_err(|_| Error::Internal("group_norm has two outputs".into()))
    }

    /// Norm and convolution one after the other, by the fastest kernels of each.
    fn composed<T: Element>(
        &self,
        q: &Queue,
        precision: Precision,
        x: &[CudaIn<'_>],
        y: &mut [CudaOut],
    ) -> Result<()> {
        let shape = x[0].shape;
        let sums = Shape::from([shape.dims()[0], 2, self.groups]);
        let map = CudaOut::new(shape.clone(), T::empty(q, shape.len())?);
        let mut normed = [map, CudaOut::new(sums.clone(), f32::empty(q, sums.len())?)];
        self.norm().cuda(q, precision, None, &x[..3], &mut normed)?;
        let seen: Vec<CudaIn<'_>> =
            [CudaIn::new(shape, normed[0].held())].iter().chain(&x[3..]).copied().collect();
        FusedConv { conv: conv(), double: false }.cuda(q, precision, None, &seen, y)
    }
}

/// Types of elements, and how a buffer of them is held.
trait Element: Held {
    fn empty(q: &Queue, len: usize) -> Result<OnGpu>;
}

impl Element for f32 {
    fn empty(q: &Queue, len: usize) -> Result<OnGpu> {
        Ok(OnGpu::F32(Buffer::new(q, len)?))
    }
}

impl Element for Bf16 {
    fn empty(q: &Queue, len: usize) -> Result<OnGpu> {
        Ok(OnGpu::Bf16(Buffer::new(q, len)?))
    }
}

/// The launch of an entry of kernels/conv_norm.cu: `threads` a block, a tile of rows x columns by
/// results each.
macro_rules! launch {
    (
        $t:ty, $launch:expr, $threads:literal, [$rows:literal, $cols:literal, $wide:expr],
        $op:ident, $q:ident, $x:ident, $y:ident
    ) => {{
        let stats = statistics::<$t>(&$op.norm(), $q, $x[0].shape, &$x[0].get()?)?;
        let residual = $x.get(5).map_or(Ok(Slice::none($q)), CudaIn::get)?;
        let ([b, h, w, ins], [outs, ..]) = (dims($x[0].shape), dims($x[3].shape));
        let tiles = b * h.div_ceil($rows) * w.div_ceil($cols) * outs.div_ceil($wide);
        let grid = Grid { threads: [$threads, 1, 1], ..block_per_job($q, tiles) };
        let [v, gamma, beta, weights, bias] = [0, 1, 2, 3, 4].map(|i| $x[i].get::<$t>());
        let added = usize::from(!residual.is_empty());
        $launch(
            $q,
            grid,
            &mut $y[0].get::<$t>()?,
            &v?,
            &stats.slice(),
            &gamma?,
            &beta?,
            &weights?,
            &bias?,
            &residual,
            b,
            h,
            w,
            ins,
            outs,
            $op.groups,
            added,
        )
    }};
}

impl Op for NormedConv {
    const NAME: &'static str = "normed_conv";
    const INPUTS: RangeInclusive<usize> = 5..=6;
    const COMPOSED: Option<Composed<Self>> = Some(composed::normed_conv);
    const SAVES: Saves = Saves::inputs(&[0, 1, 2, 3]);
    const CUDA: Kernels<Self> = Kernels {
        variants: &[
            Variant {
                name: "tiles",
                f32: Some(|op, q, x, y| {
                    launch!(f32, launch::normed_conv_fma_fwd, 256, [8, 8, 64], op, q, x, y)
                }),
                bf16: Some(|op, q, x, y| match x[4].shape.len() <= 32 {
                    true => {
                        let run = launch::normed_conv_mma_fwd::<Bf16, 32>;
                        launch!(Bf16, run, 128, [8, 16, 32], op, q, x, y)
                    }
                    false => {
                        let run = launch::normed_conv_mma_fwd::<Bf16, 64>;
                        launch!(Bf16, run, 128, [8, 16, 64], op, q, x, y)
                    }
                }),
                takes: |_, _| true,
                needs: None,
            },
            Variant {
                name: "norm, then windows",
                f32: Some(|op, q, x, y| op.composed::<f32>(q, Precision::F32, x, y)),
                bf16: Some(|op, q, x, y| op.composed::<Bf16>(q, Precision::Bf16, x, y)),
                takes: |_, _| true,
                needs: None,
            },
        ],
        fastest: |_, _, x| usize::from(x[0].dims()[1..3].iter().product::<usize>() < LARGE),
    };

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        let seen = Op::shapes(&self.norm(), &x[..3])?.swap_remove(0);
        let y = Op::shapes(&conv(), &[&seen, x[3], x[4]])?;
        match x.get(5).filter(|r| ***r != y[0]) {
            Some(r) => {
                Err(Error::shape(Self::NAME, format!("the residual is {r}, the result {}", y[0])))
            }
            None => Ok(y),
        }
    }
    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let shape = x[0].shape;
        let mut map = vec![R::of(0.0); shape.len()];
        let mut stats = vec![R::of(0.0); 2 * shape.dims()[0] * self.groups];
        let outs = &mut [Out::Real(&mut map), Out::Real(&mut stats)];
        self.norm().reference(&x[..3], outs);
        map.iter_mut().for_each(|v| *v = v.stored());
        conv().reference(&[In::real(shape, &map), x[3], x[4]], y);
        if let Some(residual) = x.get(5) {
            y[0].r().iter_mut().zip(residual.r()).for_each(|(y, &r)| *y = r + *y);
        }
    }
    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let of = |i: usize| dx.get(i).copied().flatten();
        let normed = self.normed(at)?;
        let norm = Saved::all(&self.norm(), &[at.x(0)?, at.x(1)?, at.x(2)?], &normed);
        let dmap = Op::jvp(&self.norm(), &norm, &dx[..3])?;
        let terms = [
            dmap.map(|d| call(&conv(), &[&d, at.x(3)?])).transpose()?,
            of(3).map(|d| call(&conv(), &[&normed[0], d])).transpose()?,
            of(4).map(|d| broadcast_into(d, at.y_shape())).transpose()?,
            of(5).cloned(),
        ];
        let mut terms = terms.into_iter().flatten();
        let Some(first) = terms.next() else { return Ok(None) };
        terms.try_fold(first, |a, b| call(&ADD, &[&a, &b])).map(Some)
    }
    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let [_, h, w, _] = dims(at.shape(0));
        let [map, stats] = self.normed(at)?;
        let mut grads = vec![None; at.arity()];
        if want[..3].contains(&true) {
            let back = Conv2dDx { conv: conv(), size: [h, w] };
            let g = call(&back, &[gy, at.x(3)?])?;
            let x = [at.x(0)?, &stats, at.x(1)?, at.x(2)?, &g];
            let own = run(&GroupNormVjp(self.norm()), &x)?;
            for ((to, g), &want) in grads.iter_mut().zip(own).zip(want) {
                *to = want.then_some(g);
            }
        }
        if want[3] {
            grads[3] = Some(call(&Conv2dDw { conv: conv() }, &[gy, &map])?);
        }
        if want[4] {
            grads[4] = Some(sum_into(gy, at.shape(4))?);
        }
        if want.get(5) == Some(&true) {
            grads[5] = Some(gy.clone());
        }
        Ok(grads)
    }
    fn cases() -> Cases {
        Cases {
            named: vec![
                case("odd", 3, [2, 5, 7, 6], 5, false),
                case("residual", 2, [2, 6, 5, 4], 4, true),
                case("packets", 2, [1, 9, 17, 16], 40, true),
                case("past_a_chunk", 4, [1, 8, 9, 40], 72, false),
                case("past_a_tile", 2, [2, 10, 18, 8], 34, true),
                case("one_channel", 1, [1, 3, 4, 1], 1, true),
                case("no_images", 2, [0, 4, 4, 2], 3, true),
            ],
            draw: |d| {
                let (groups, channels) = (d.size(1, 4), d.size(1, 9));
                let x = [d.size(1, 2), d.size(2, 9), d.size(2, 18), groups * channels];
                case("drawn", groups, x, d.size(1, 70), d.coin())
            },
            bench: vec![
                case("demo_64", 2, [8, 64, 64, 16], 16, false),
                case("paper_256", 32, [1, 256, 256, 160], 160, true),
            ],
        }
    }
}

fn case(name: &str, groups: usize, x: [usize; 4], outs: usize, residual: bool) -> Case {
    let ins = x[3];
    let mut inputs = vec![
        Input::normal(x),
        Input::normal([ins]),
        Input::normal([ins]),
        Input::normal([outs, 3, 3, ins]),
        Input::normal([outs]),
    ];
    if residual {
        inputs.push(Input::normal([x[0], x[1], x[2], outs]));
    }
    Case::new(name, NormedConv { groups, eps: 1e-6 }, inputs)
}
