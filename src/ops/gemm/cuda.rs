//! The launches of matrix products: operands and epilogue as kernels/gemm.cu takes them, and which
//! shape takes which way.

use super::wgmma;
use crate::device::Held;
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Grid, Slice, SliceMut};
use crate::device::launch::gemm as launch;
use crate::error::{Error, Result};
use crate::ops::cuda::{CudaIn, CudaOut, Kernels, PROCESSORS, Variant, over_elements, variant};
use crate::ops::{Op, Precision, Site};
use crate::tensor::Shape;

/// How tiles of one kind are laid on the card.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// Side of a tile.
    pub(super) side: usize,
    /// Blocks that a multiprocessor holds.
    pub(super) resident: usize,
    /// Nanoseconds that a tile takes for one of k, as predicted: not measured on a card yet.
    pub(super) pace: f64,
}

/// Nanoseconds that joining takes beside the sums' way through memory: a launch, as the models of
/// `profile` assume it. And bytes a nanosecond of that way.
const JOIN: f64 = 2000.0;
const MEMORY: f64 = 3000.0;
/// The least of k that is worth a block of its own, and the most parts that are worth joining.
const LEAST_PART: usize = 256;
const MOST_PARTS: usize = 32;

/// The most rows that are few, and what k must be a multiple of: in f32 and in bf16.
const FEW: (usize, usize) = (16, 1);
const FEW_MMA: (usize, usize) = (32, 8);
/// Warps of a block that streams.
const WARPS: usize = 8;

/// Extents of a batch of products y [m, n] = a [m, k] b [k, n].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) batch: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Rows of m that belong to one sample. They alone decide in which order k is summed, so that a
    /// sample's bits do not depend on the batch that it is in.
    pub(super) own: usize,
}

impl Size {
    /// Rows of the result, all pairs together.
    pub(super) fn rows(&self) -> usize {
        self.batch * self.m
    }

    pub(super) fn tiles(&self, side: usize) -> usize {
        self.batch * self.m.div_ceil(side) * self.n.div_ceil(side)
    }

    /// Into how many parts k is best cut where a sample's tiles leave processors idle, as
    /// predicted: each is done so much sooner, but then they are written, read and joined by
    /// another launch.
    pub(super) fn parts(&self, by: Tiling) -> usize {
        let tiles = self.own.div_ceil(by.side) * self.n.div_ceil(by.side);
        let room = PROCESSORS * by.resident / tiles.max(1);
        let most = room.min(self.k / LEAST_PART).clamp(1, MOST_PARTS);
        let through = 2.0 * (self.own * self.n * size_of::<f32>()) as f64 / MEMORY;
        let time = |parts: usize| {
            let joined = if parts > 1 { JOIN + through * parts as f64 } else { 0.0 };
            self.k.div_ceil(parts) as f64 * by.pace + joined
        };
        (1..=most).min_by(|&a, &b| time(a).total_cmp(&time(b))).unwrap_or(1)
    }

    /// How these parts are summed, as predicted: by blocks of their own while tiles of the whole
    /// batch leave processors idle, else by each tile, one after the other. The bits are the same.
    pub(super) fn cut(&self, by: Tiling, parts: usize) -> Cut {
        let (tiles, slots) = (self.tiles(by.side), PROCESSORS * by.resident);
        let time = |splits: usize| {
            let turns = (tiles * splits).div_ceil(slots) * self.k.div_ceil(splits);
            turns as f64 * by.pace
        };
        let joined = 2.0 * (parts * self.rows() * self.n * size_of::<f32>()) as f64 / MEMORY;
        match parts > 1 && time(parts) + JOIN + joined < time(1) {
            true => Cut { splits: parts, folds: 1 },
            false => Cut { splits: 1, folds: parts },
        }
    }
}

/// Into how many parts k goes: among blocks, whose sums are then joined, and by each tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) splits: usize,
    pub(super) folds: usize,
}

impl Cut {
    /// Not at all.
    const WHOLE: Self = Self { splits: 1, folds: 1 };
}

/// A way to launch a product; the order is that of an op's variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Tiles of 128 x 128.
    Tiles128,
    /// Tiles of 64 x 64: more blocks where there are few tiles, each for all parts of k.
    Tiles64,
    /// Tiles of 64 x 64, each by several blocks with a part of k, joined in order.
    Parts,
    /// Few rows, past which the other operand streams, in f32.
    Few,
    /// The same in bf16.
    FewMma,
    /// Tiles of 128 x 128 in bf16, as Hopper multiplies them, in parts of k where there are few.
    Wgmma,
}

impl Way {
    /// The fastest way, as predicted: not measured on a card yet. Tiles of either side sum k in one
    /// order, and so do parts, whoever joins them.
    pub(super) fn fastest(op: &impl Multiply, site: Site<'_>, x: &[&Shape]) -> Self {
        let (size, precision) = (op.size(x), site.precision);
        let small = match precision {
            Precision::F32 => <f32 as Elements>::SMALL,
            Precision::Bf16 => Bf16::SMALL,
        };
        let by_wgmma = precision == Precision::Bf16 && wgmma::pays(&size) && wgmma::takes(op, x);
        if by_wgmma && site.serves(wgmma::ENTRY) {
            Self::Wgmma
        } else if precision == Precision::F32 && op.has_few(x, FEW) {
            Self::Few
        } else if precision == Precision::Bf16 && op.has_few(x, FEW_MMA) {
            Self::FewMma
        } else if size.parts(small) > 1 {
            let cut = size.cut(small, size.parts(small));
            if cut.splits > 1 { Self::Parts } else { Self::Tiles64 }
        } else if size.tiles(128) >= PROCESSORS {
            Self::Tiles128
        } else {
            Self::Tiles64
        }
    }
}

/// What becomes of a sum: y = residual + gate act(sum + bias). Absent parts have no elements.
pub(super) struct Finish<'a, T> {
    pub(super) kept: SliceMut<'a, T>,
    pub(super) bias: Slice<'a, T>,
    pub(super) residual: Slice<'a, T>,
    pub(super) gate: Slice<'a, T>,
    /// Rows of the gate; 0 without one.
    pub(super) gates: usize,
    /// As kernels/lib/finish.cuh counts activations.
    pub(super) act: usize,
    /// Columns of y that lie together, all rows of them before those of the next ones; 0: all.
    pub(super) piece: usize,
}

impl<'a, T: Held> Finish<'a, T> {
    /// y = sum + bias.
    pub(super) fn bias(q: &Queue, bias: Option<Slice<'a, T>>) -> Self {
        let none = || Slice::none(q);
        Self {
            kept: SliceMut::none(q),
            bias: bias.unwrap_or_else(none),
            residual: none(),
            gate: none(),
            gates: 0,
            act: 0,
            piece: 0,
        }
    }
}

impl<T: Held> Finish<'_, T> {
    /// Whether the argument of the activation is kept, a bias is added, a residual is added.
    pub(super) fn flags(&self) -> [usize; 3] {
        [self.kept.is_empty(), self.bias.is_empty(), self.residual.is_empty()]
            .map(|absent| usize::from(!absent))
    }
}

/// One launch.
pub(super) struct Product<'a, T> {
    pub(super) size: Size,
    /// Whether a is [k, m].
    pub(super) ta: bool,
    /// Whether b is [n, k].
    pub(super) tb: bool,
    pub(super) y: SliceMut<'a, T>,
    pub(super) a: Slice<'a, T>,
    pub(super) b: Slice<'a, T>,
    pub(super) finish: Finish<'a, T>,
}

impl<T: Elements> Product<'_, T> {
    /// Launches it.
    ///
    /// # Errors
    /// Those of the launch, and too little memory for the sums over parts.
    pub(super) fn run(mut self, q: &Queue, way: Way) -> Result<()> {
        match way {
            // Those of a Hopper go through `wgmma`, unless operands begin at odd places.
            Way::Tiles128 | Way::Wgmma => {
                T::tiles(&mut self, q, &mut SliceMut::none(q), (128, Cut::WHOLE))
            }
            Way::Tiles64 => {
                let cut = Cut { splits: 1, folds: self.size.parts(T::SMALL) };
                T::tiles(&mut self, q, &mut SliceMut::none(q), (64, cut))
            }
            Way::Parts => {
                // Two at least, so that a test of this way runs it.
                let parts = self.size.parts(T::SMALL).max(2);
                let mut sums = Buffer::new(q, parts * self.size.rows() * self.size.n)?;
                let cut = Cut { splits: parts, folds: 1 };
                T::tiles(&mut self, q, &mut sums.slice_mut(), (64, cut))?;
                self.join(q, &sums.slice(), parts)
            }
            Way::Few | Way::FewMma => self.few(q),
        }
    }

    /// Streams one operand past the few rows of the other, or past groups of them. Both must lie
    /// along k.
    fn few(mut self, q: &Queue) -> Result<()> {
        let Size { batch, m, n, k, .. } = self.size;
        let swapped = n < m && n <= T::MOST;
        let (total, cols) = if swapped { (n, m) } else { (m, n) };
        let (rows, groups) = (total.min(T::MOST), total.div_ceil(T::MOST).max(1));
        if groups > 1 && batch > 1 {
            return Err(Error::Internal(format!("{batch} products of {total} rows are not few")));
        }
        // Twice a warp's step at least, or its start would be most of its time.
        let worth = |slices: &usize| k >= slices * T::STEP * 2;
        let slices = [8, 4, 2].into_iter().find(worth).unwrap_or(1);
        let per_block = T::columns(rows) * WARPS / slices;
        let grid = Grid::line(batch * groups * cols.div_ceil(per_block), 32 * WARPS as u32);
        T::few(&mut self, q, grid, (swapped, slices))
    }

    pub(super) fn join(self, q: &Queue, sums: &Slice<'_, f32>, parts: usize) -> Result<()> {
        let Self { size, mut y, mut finish, .. } = self;
        let (rows, cols) = (size.rows(), size.n);
        let [keep, biased, added] = finish.flags();
        launch::matmul_join_fwd(
            q,
            over_elements(q, rows * cols),
            &mut y,
            &mut finish.kept,
            sums,
            &finish.bias,
            &finish.residual,
            &finish.gate,
            rows,
            cols,
            parts,
            keep,
            biased,
            added,
            finish.gates,
            finish.act,
            finish.piece,
        )
    }
}

/// Types of elements and the kernels that take them.
pub(super) trait Elements: Held + launch::matmul_join_fwd::Instance {
    /// Launches tiles of a side; parts of blocks of their own go to `sums`.
    fn tiles(
        p: &mut Product<'_, Self>,
        q: &Queue,
        sums: &mut SliceMut<'_, f32>,
        side_and_cut: (usize, Cut),
    ) -> Result<()>;

    /// Tiles of 64 x 64.
    const SMALL: Tiling;
    /// The most rows that are few.
    const MOST: usize;
    /// How far a warp gets along k at once.
    const STEP: usize;
    /// Columns that a warp takes at once beside so many rows.
    fn columns(rows: usize) -> usize;
    /// Launches the stream, of b past a or swapped, with so many slices of k in a block.
    fn few(
        p: &mut Product<'_, Self>,
        q: &Queue,
        grid: Grid,
        swapped_and_slices: (bool, usize),
    ) -> Result<()>;
}

macro_rules! elements {
    (
        $t:ty, $tiles:ident, $threads:literal, $pace:literal, $few:ident, $most:expr,
        $step:literal, $columns:expr, [$($rows:literal),+]
    ) => {
        impl Elements for $t {
            const SMALL: Tiling = Tiling { side: 64, resident: 2, pace: $pace };
            const MOST: usize = $most;
            const STEP: usize = $step;

            fn columns(rows: usize) -> usize {
                $columns(rows)
            }

            fn few(
                p: &mut Product<'_, Self>,
                q: &Queue,
                grid: Grid,
                (swapped, slices): (bool, usize),
            ) -> Result<()> {
                let Size { batch, m, n, k, .. } = p.size;
                let (all, cols, few, many) = match swapped {
                    false => (m, n, &p.a, &p.b),
                    true => (n, m, &p.b, &p.a),
                };
                let (rows, groups) = (all.min($most), all.div_ceil($most).max(1));
                let launch = match rows {
                    $(..=$rows => launch::$few::<$t, $rows>,)+
                    _ => return Err(Error::Internal(format!("{rows} rows are not few"))),
                };
                let f = &mut p.finish;
                let [keep, biased, added] = f.flags();
                launch(
                    q,
                    grid,
                    &mut p.y,
                    &mut f.kept,
                    few,
                    many,
                    &f.bias,
                    &f.residual,
                    &f.gate,
                    batch * groups,
                    rows,
                    batch * all,
                    cols,
                    k,
                    slices,
                    usize::from(groups > 1),
                    usize::from(swapped),
                    keep,
                    biased,
                    added,
                    f.gates,
                    f.act,
                    f.piece,
                )
            }

            fn tiles(
                p: &mut Product<'_, Self>,
                q: &Queue,
                sums: &mut SliceMut<'_, f32>,
                (side, cut): (usize, Cut),
            ) -> Result<()> {
                let launch = match (side, p.ta, p.tb) {
                    (64, false, false) => launch::$tiles::<$t, 64, false, false>,
                    (64, false, true) => launch::$tiles::<$t, 64, false, true>,
                    (64, true, false) => launch::$tiles::<$t, 64, true, false>,
                    (64, true, true) => launch::$tiles::<$t, 64, true, true>,
                    (_, false, false) => launch::$tiles::<$t, 128, false, false>,
                    (_, false, true) => launch::$tiles::<$t, 128, false, true>,
                    (_, true, false) => launch::$tiles::<$t, 128, true, false>,
                    (_, true, true) => launch::$tiles::<$t, 128, true, true>,
                };
                let (Size { batch, m, n, k, .. }, f) = (p.size, &mut p.finish);
                let [keep, biased, added] = f.flags();
                launch(
                    q,
                    Grid::line(p.size.tiles(side) * cut.splits, $threads),
                    &mut p.y,
                    &mut f.kept,
                    sums,
                    &p.a,
                    &p.b,
                    &f.bias,
                    &f.residual,
                    &f.gate,
                    batch,
                    m,
                    n,
                    k,
                    cut.splits,
                    cut.folds,
                    keep,
                    biased,
                    added,
                    f.gates,
                    f.act,
                    f.piece,
                )
            }
        }
    };
}
elements!(
    f32,
    matmul_fma_fwd,
    256,
    // 64 x 64 fused multiply-adds at a processor's half a TFLOP/s.
    16.0,
    matmul_dot_fwd,
    FEW.0,
    128,
    |rows| if rows > 8 { 2 } else { 4 },
    [1, 4, 8, 16]
);
// 64 of either operand at the 80 GB/s that one processor can ask for.
elements!(Bf16, matmul_mma_fwd, 128, 3.2, matmul_dot_mma_fwd, FEW_MMA.0, 32, |_| 8, [8, 16, 32]);

/// An op that is a product with an epilogue.
pub(super) trait Multiply: Op {
    /// Its extents.
    fn size(&self, x: &[&Shape]) -> Size;

    /// Whether a and b are used transposed; a layer's weights are.
    fn turned(&self) -> (bool, bool) {
        (false, true)
    }

    /// Whether an operand has at most so many rows (of a sample), both lie along k, and that comes
    /// in packets.
    fn has_few(&self, x: &[&Shape], (most, packet): (usize, usize)) -> bool {
        let Size { batch, m, n, k, own } = self.size(x);
        let few = own.min(n) <= most && (batch == 1 || m.min(n) <= most);
        self.turned() == (false, true) && few && k % packet == 0
    }

    /// Its launch.
    ///
    /// # Errors
    /// Inputs or outputs of other types.
    fn product<'a, T: Elements>(
        &self,
        q: &Queue,
        x: &[CudaIn<'a>],
        y: &'a mut [CudaOut],
    ) -> Result<Product<'a, T>>;

    /// Every [`Way`], in its order.
    const KERNELS: Kernels<Self> = Kernels {
        variants: &[
            variant!("tiles 128", [f32, bf16], |op, q, x, y| {
                op.product::<T>(q, x, y)?.run(q, Way::Tiles128)
            }),
            variant!("tiles 64", [f32, bf16], |op, q, x, y| {
                op.product::<T>(q, x, y)?.run(q, Way::Tiles64)
            }),
            variant!("parts of k", [f32, bf16], |op, q, x, y| {
                op.product::<T>(q, x, y)?.run(q, Way::Parts)
            }),
            Variant {
                name: "few rows",
                f32: Some(|op, q, x, y| op.product::<f32>(q, x, y)?.run(q, Way::Few)),
                bf16: None,
                takes: |op, x| op.has_few(x, FEW),
                needs: None,
            },
            Variant {
                name: "few rows by mma",
                f32: None,
                bf16: Some(|op, q, x, y| op.product::<Bf16>(q, x, y)?.run(q, Way::FewMma)),
                takes: |op, x| op.has_few(x, FEW_MMA),
                needs: None,
            },
            Variant {
                name: "tiles by wgmma",
                f32: None,
                bf16: Some(|op, q, x, y| op.product::<Bf16>(q, x, y)?.by_wgmma(q)),
                takes: wgmma::takes,
                needs: Some(wgmma::ENTRY),
            },
        ],
        fastest: |op, site, x| Way::fastest(op, site, x) as usize,
    };
}
