//! The launch of products on Hopper: which operands its copy engine takes, and when it pays.

use super::cuda::{Cut, Multiply, Product, Size, Tiling, Way};
use crate::device::cuda::{Buffer, Queue};
use crate::device::kernel::{Bf16, Boxes, Entry, Grid, SliceMut};
use crate::device::launch::gemm_wgmma::{self as launch, matmul_wgmma_fwd};
use crate::error::Result;
use crate::tensor::Shape;

/// The kernel, which Hopper alone has; one of its instances.
pub(super) const ENTRY: &Entry = <Bf16 as matmul_wgmma_fwd::Instance<false, true>>::ENTRY;

/// Side of a block's tile.
const SIDE: usize = 128;
/// One block to a multiprocessor; 128 of either operand at the 80 GB/s that it can ask for.
const TILING: Tiling = Tiling { side: SIDE, resident: 1, pace: 6.4 };
/// Threads of a block: eight warps with sums, and one that copies.
const THREADS: u32 = 288;

/// Whether the copy engine takes both operands: their lines begin at multiples of 16 bytes.
pub(super) fn takes(op: &impl Multiply, x: &[&Shape]) -> bool {
    let (Size { batch, m, n, k, .. }, (ta, tb)) = (op.size(x), op.turned());
    let whole = |run: usize| (run * size_of::<Bf16>()).is_multiple_of(Boxes::GRAIN as usize);
    let runs = [if ta { m } else { k }, if tb { k } else { n }];
    [batch, m, n, k].iter().all(|&extent| extent > 0) && runs.into_iter().all(whole)
}

/// Whether it is faster than tiles by mma.sync, as predicted: not measured on a card yet. It is
/// where a sample fills a tile's rows; fewer would leave a part of every product idle. The rows of
/// one sample decide, since parts of k change how sums are rounded.
pub(super) fn pays(size: &Size) -> bool {
    size.own >= SIDE
}

impl Product<'_, Bf16> {
    /// Launches it. Operands that begin at odd places go by tiles that take them.
    ///
    /// # Errors
    /// Those of the launch, and too little memory for the sums over parts.
    pub(super) fn by_wgmma(mut self, q: &Queue) -> Result<()> {
        if !self.a.is_aligned() || !self.b.is_aligned() {
            return self.run(q, Way::Tiles128);
        }
        let cut = self.size.cut(TILING, self.size.parts(TILING));
        if cut.splits == 1 {
            return self.tiles(q, &mut SliceMut::none(q), cut);
        }
        let mut sums = Buffer::new(q, cut.splits * self.size.rows() * self.size.n)?;
        self.tiles(q, &mut sums.slice_mut(), cut)?;
        self.join(q, &sums.slice(), cut.splits)
    }

    fn tiles(&mut self, q: &Queue, sums: &mut SliceMut<'_, f32>, cut: Cut) -> Result<()> {
        let launch = match (self.ta, self.tb) {
            (false, false) => launch::matmul_wgmma_fwd::<Bf16, false, false>,
            (false, true) => launch::matmul_wgmma_fwd::<Bf16, false, true>,
            (true, false) => launch::matmul_wgmma_fwd::<Bf16, true, false>,
            (true, true) => launch::matmul_wgmma_fwd::<Bf16, true, true>,
        };
        let processors = usize::try_from(q.gpu().facts().multiprocessors).unwrap_or(1).max(1);
        let (Size { batch, m, n, k, .. }, f) = (self.size, &mut self.finish);
        let [keep, biased, added] = f.flags();
        launch(
            q,
            Grid::line((self.size.tiles(SIDE) * cut.splits).min(processors), THREADS),
            &mut self.y,
            &mut f.kept,
            sums,
            &self.a,
            &self.b,
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
