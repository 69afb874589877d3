//! The launches of convolutions: extents as kernels/conv.cu takes them, how their sums are cut, and
//! which shape takes which tiles.
//!
//! A sample's results have the same bits whatever else is in its batch: tiles of all sides add
//! along k in the same order, and where k is cut is a matter of one sample's extents.

use super::extents::{Cut, Extents};
use super::{Conv2d, Conv2dDw, Conv2dDx, FusedConv, dims};
use crate::device::Held;
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Grid, Slice, SliceMut};
use crate::device::launch::conv as launch;
use crate::device::launch::gemm::matmul_join_fwd;
use crate::error::Result;
use crate::ops::Op;
use crate::ops::cuda::{
    CudaIn, CudaOut, Kernels, PROCESSORS, Precision, Variant, over_elements, variant,
};
use crate::tensor::Shape;

/// A way to launch a convolution or its gradient to the map; the order is that of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Tiles of 128 x 128.
    Tiles128,
    /// Tiles of 64 x 64, which join the parts of their sums themselves.
    Tiles64,
    /// Tiles of 64 x 64, a block for each part of k.
    Parts,
    /// Tiles of 128 x 32, on the tensor cores.
    Narrow,
}

impl Way {
    /// How it cuts the work.
    fn cut(self, e: &Extents) -> Cut {
        let parts = e.parts();
        match self {
            Self::Tiles128 => Cut { tile: [128; 2], parts: 1, splits: 1 },
            Self::Tiles64 => Cut { tile: [64; 2], parts, splits: 1 },
            // Two at least, so that a test of this way runs it.
            Self::Parts => Cut { tile: [64; 2], parts: parts.max(2), splits: parts.max(2) },
            Self::Narrow => Cut { tile: [128, 32], parts: 1, splits: 1 },
        }
    }

    /// The fastest way, as predicted: not measured on a card yet. Where one sample's sums are cut
    /// the way must cut them too, by blocks while the batch leaves processors idle. Elsewhere the
    /// widest tile wins that has no empty half and gives every processor one: a tile's traffic to
    /// shared memory grows with its sides, its work with their product.
    fn fastest(e: &Extents, precision: Precision) -> Self {
        let (cols, tiles) = (e.cols(), |tile| e.tiles(e.images, tile));
        if e.parts() > 1 {
            return if tiles([64; 2]) < PROCESSORS { Self::Parts } else { Self::Tiles64 };
        }
        if precision == Precision::Bf16 && cols <= 32 {
            Self::Narrow
        } else if cols.div_ceil(64) % 2 == 0 && tiles([128; 2]) >= PROCESSORS {
            Self::Tiles128
        } else {
            Self::Tiles64
        }
    }
}

/// One launch of windows by weights.
struct Convolution<'a, T> {
    e: Extents,
    y: SliceMut<'a, T>,
    map: Slice<'a, T>,
    w: Slice<'a, T>,
    /// No elements where there is none.
    bias: Slice<'a, T>,
    /// The same.
    residual: Slice<'a, T>,
}

impl<T: Elements> Convolution<'_, T> {
    fn run(mut self, q: &Queue, way: Way) -> Result<()> {
        let cut = way.cut(&self.e);
        if cut.splits == 1 {
            return T::convolve(&mut self, q, &mut SliceMut::none(q), cut);
        }
        let (rows, cols) = (self.e.rows(), self.e.cols());
        let mut sums = Buffer::new(q, cut.splits * rows * cols)?;
        T::convolve(&mut self, q, &mut sums.slice_mut(), cut)?;
        join(q, &mut self.y, &sums.slice(), [&self.bias, &self.residual], [rows, cols, cut.splits])
    }
}

/// Adds the parts of sums in their order, and bias and residual where they have elements.
fn join<T: Elements>(
    q: &Queue,
    y: &mut SliceMut<'_, T>,
    sums: &Slice<'_, f32>,
    [bias, residual]: [&Slice<'_, T>; 2],
    [rows, cols, parts]: [usize; 3],
) -> Result<()> {
    let (mut kept, none) = (SliceMut::none(q), Slice::none(q));
    let (grid, [b, r]) = (over_elements(q, rows * cols), has([bias, residual]));
    matmul_join_fwd(
        q, grid, y, &mut kept, sums, bias, residual, &none, rows, cols, parts, 0, b, r, 0, 0, 0,
    )
}

/// Which have elements.
fn has<T: Held>(parts: [&Slice<'_, T>; 2]) -> [usize; 2] {
    parts.map(|part| usize::from(!part.is_empty()))
}

/// One launch of gradients by windows.
struct Outer<'a, T> {
    e: Extents,
    gw: SliceMut<'a, T>,
    gy: Slice<'a, T>,
    x: Slice<'a, T>,
}

impl<T: Elements> Outer<'_, T> {
    fn run(mut self, q: &Queue, side: usize, parts: usize) -> Result<()> {
        if parts == 1 {
            return T::outer(&mut self, q, &mut SliceMut::none(q), side, 1);
        }
        let [rows, cols, _] = self.e.outer();
        let mut sums = Buffer::new(q, parts * rows * cols)?;
        T::outer(&mut self, q, &mut sums.slice_mut(), side, parts)?;
        join(q, &mut self.gw, &sums.slice(), [&Slice::none(q); 2], [rows, cols, parts])
    }
}

/// Types of elements and the kernels that take them.
trait Elements: Held + matmul_join_fwd::Instance {
    /// How far a tile with so many rows goes along k at once.
    fn depth(rows: usize) -> usize;

    fn convolve(
        c: &mut Convolution<'_, Self>,
        q: &Queue,
        sums: &mut SliceMut<'_, f32>,
        cut: Cut,
    ) -> Result<()>;

    fn outer(
        o: &mut Outer<'_, Self>,
        q: &Queue,
        sums: &mut SliceMut<'_, f32>,
        side: usize,
        parts: usize,
    ) -> Result<()>;
}

macro_rules! elements {
    (
        $t:ty, $depth:expr, $threads:literal, $fwd:ident, $dx:ident, $dw:ident,
        [$($cols:literal),*]
    ) => {
        impl Elements for $t {
            fn depth(rows: usize) -> usize {
                $depth(rows)
            }

            fn convolve(
                c: &mut Convolution<'_, Self>,
                q: &Queue,
                sums: &mut SliceMut<'_, f32>,
                cut: Cut,
            ) -> Result<()> {
                let (e, (chunks, merges)) = (c.e, c.e.steps(cut, Self::depth(cut.tile[0])));
                let ([stride, top, left], parts) = e.numbers(cut.parts)?;
                let ([h, w], [kh, kw], [down, across]) = (e.held(), e.kernel, e.count);
                let grid = Grid::line(e.launched(cut.tile) * cut.splits, $threads);
                let (b, i, o) = (e.images, e.ins, e.outs);
                let splits = cut.splits;
                let [rows, cols] = [0, 1].map(|axis| e.met(axis));
                if e.gradient {
                    let launch = match cut.tile[1] {
                        $($cols => launch::$dx::<$t, $cols>,)*
                        _ => launch::$dx::<$t, 128>,
                    };
                    let taps = e.taps_met(0) * e.taps_met(1);
                    return launch(
                        q, grid, &mut c.y, sums, &c.map, &c.w, b, h, w, i, o, kh, kw, down,
                        across, stride, top, left, parts, splits, taps, rows, cols, chunks,
                        merges,
                    );
                }
                let launch = match cut.tile[1] {
                    $($cols => launch::$fwd::<$t, $cols>,)*
                    _ => launch::$fwd::<$t, 128>,
                };
                let [biased, added] = has([&c.bias, &c.residual]);
                let double = u32::from(e.double);
                launch(
                    q, grid, &mut c.y, sums, &c.map, &c.w, &c.bias, &c.residual, b, h, w, i, o, kh,
                    kw, down, across, stride, top, left, double, parts, splits, biased, added,
                    rows, cols, chunks, merges,
                )
            }

            fn outer(
                c: &mut Outer<'_, Self>,
                q: &Queue,
                sums: &mut SliceMut<'_, f32>,
                side: usize,
                parts: usize,
            ) -> Result<()> {
                let e = c.e;
                let ([stride, top, left], _) = e.numbers(parts)?;
                let ([h, w], [kh, kw], [down, across]) = (e.size, e.kernel, e.count);
                let launch = match side {
                    64 => launch::$dw::<$t, 64>,
                    _ => launch::$dw::<$t, 128>,
                };
                let tiles = e.outer_tiles(side);
                let chunks = tiles * e.outer()[2].div_ceil(Self::depth(side));
                let (grid, [rows, cols]) =
                    (Grid::line(tiles * parts, $threads), [0, 1].map(|axis| e.met(axis)));
                launch(
                    q, grid, &mut c.gw, sums, &c.gy, &c.x, e.images, h, w, e.ins, e.outs, kh, kw,
                    down, across, stride, top, left, parts, rows, cols, chunks,
                )
            }
        }
    };
}
elements!(f32, |_| 16, 256, conv2d_fma_fwd, conv2d_dx_fma_fwd, conv2d_dw_fma_fwd, [64]);
elements!(
    Bf16,
    |rows| 4096 / rows,
    128,
    conv2d_mma_fwd,
    conv2d_dx_mma_fwd,
    conv2d_dw_mma_fwd,
    [32, 64]
);

/// An op of windows by weights.
trait Gather: Op {
    fn convolution<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Convolution<'a, T>>;

    fn extents(&self, x: &[&Shape]) -> Extents;

    /// Every [`Way`], in its order.
    const KERNELS: Kernels<Self> = Kernels {
        variants: &[
            variant!("tiles 128", [f32, bf16], |op, q, x, y| {
                op.convolution::<T>(q, x, y)?.run(q, Way::Tiles128)
            }),
            variant!("tiles 64", [f32, bf16], |op, q, x, y| {
                op.convolution::<T>(q, x, y)?.run(q, Way::Tiles64)
            }),
            variant!("parts of k", [f32, bf16], |op, q, x, y| {
                op.convolution::<T>(q, x, y)?.run(q, Way::Parts)
            }),
            Variant {
                name: "tiles 128 x 32",
                f32: None,
                bf16: Some(|op, q, x, y| op.convolution::<Bf16>(q, x, y)?.run(q, Way::Narrow)),
                takes: |_, _| true,
                needs: None,
            },
        ],
        fastest: |op, site, x| Way::fastest(&op.extents(x), site.precision) as usize,
    };
}

impl Gather for Conv2d {
    fn convolution<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Convolution<'a, T>> {
        Ok(Convolution {
            e: self.extents(&[x[0].shape, x[1].shape]),
            y: y[0].get()?,
            map: x[0].get()?,
            w: x[1].get()?,
            bias: x.get(2).map_or(Ok(Slice::none(q)), CudaIn::get)?,
            residual: Slice::none(q),
        })
    }
    fn extents(&self, x: &[&Shape]) -> Extents {
        let ([b, h, w, ins], [outs, ..]) = (dims(x[0]), dims(x[1]));
        Extents::new(self, b, [h, w], ins, outs)
    }
}

impl Gather for FusedConv {
    fn convolution<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Convolution<'a, T>> {
        let e = self.extents(&[x[0].shape, x[1].shape]);
        let residual = x.get(3).map_or(Ok(Slice::none(q)), CudaIn::get)?;
        Ok(Convolution { e, residual, ..self.conv.convolution(q, &x[..3], y)? })
    }
    fn extents(&self, x: &[&Shape]) -> Extents {
        let e = self.conv.extents(&[&self.seen(x[0]), x[1]]);
        Extents { double: self.double, ..e }
    }
}

impl Gather for Conv2dDx {
    fn convolution<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Convolution<'a, T>> {
        Ok(Convolution {
            e: self.extents(&[x[0].shape, x[1].shape]),
            y: y[0].get()?,
            map: x[0].get()?,
            w: x[1].get()?,
            bias: Slice::none(q),
            residual: Slice::none(q),
        })
    }
    fn extents(&self, x: &[&Shape]) -> Extents {
        let ([b, ..], [outs, _, _, ins]) = (dims(x[0]), dims(x[1]));
        Extents { gradient: true, ..Extents::new(&self.conv, b, self.size, ins, outs) }
    }
}

impl Conv2dDw {
    fn extents(&self, x: &[&Shape]) -> Extents {
        let ([b, h, w, ins], [.., outs]) = (dims(x[1]), dims(x[0]));
        Extents::new(&self.conv, b, [h, w], ins, outs)
    }

    fn outer<'a, T: Elements>(
        &self,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Outer<'a, T>> {
        let e = self.extents(&[x[0].shape, x[1].shape]);
        Ok(Outer { e, gw: y[0].get()?, gy: x[0].get()?, x: x[1].get()? })
    }
}

/// The ways of [`Conv2d`].
pub(super) const CONV2D: Kernels<Conv2d> = Conv2d::KERNELS;
/// The ways of [`FusedConv`].
pub(super) const FUSED_CONV: Kernels<FusedConv> = FusedConv::KERNELS;
/// The ways of [`Conv2dDx`].
pub(super) const CONV2D_DX: Kernels<Conv2dDx> = Conv2dDx::KERNELS;
/// The ways of [`Conv2dDw`]. Sums over all windows are few and long: parts of them fill the card.
/// The wide tile is predicted to win where it has no empty half and there are parts enough.
pub(super) const CONV2D_DW: Kernels<Conv2dDw> = Kernels {
    variants: &[
        variant!("parts, tiles 128", [f32, bf16], |op, q, x, y| {
            let outer = op.outer::<T>(x, y)?;
            let parts = outer.e.window_parts(128);
            outer.run(q, 128, parts)
        }),
        variant!("parts, tiles 64", [f32, bf16], |op, q, x, y| {
            // Two at least, so that a test of this way joins.
            let outer = op.outer::<T>(x, y)?;
            let parts = outer.e.window_parts(64).max(2);
            outer.run(q, 64, parts)
        }),
        variant!("tiles 64", [f32, bf16], |op, q, x, y| op.outer::<T>(x, y)?.run(q, 64, 1)),
    ],
    fastest: |op, _, x| {
        let e = op.extents(x);
        let fills = e.outer_tiles(128) * e.window_parts(128) >= PROCESSORS;
        match e.outs > 64 && fills {
            true => 0,
            false => 1 + usize::from(e.window_parts(64) == 1),
        }
    },
};
