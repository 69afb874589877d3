//! `wgmma.mma_async`: a warp's sixteen rows of D = A B + D, with B and maybe A in shared memory
//! where a descriptor says. The arithmetic is that of `mma.sync` (`mma`), and is done at once.
//!
//! A descriptor holds, in units of 16 bytes, where a matrix begins and two strides, and how its
//! 16-byte pieces are permuted. Rows of eight pieces or fewer lie together; `lead` and `stride` are
//! the distances that PTX calls leading and stride byte offset.

use super::code::{ALWAYS, Matrix, MmaType, Wgmma};
use super::fault::FaultKind;
use super::half::widen;
use super::mma::{K, gather_single, multiply, scatter_single};
use super::space::Way;
use super::tensor::permuted;
use super::warp::{Machine, Step, Warp, trouble_at};
use pulp::{Simd, WithSimd};

/// Where a matrix lies in shared memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    begin: u64,
    lead: u64,
    stride: u64,
    /// Bytes of a row of permuted pieces; 16 where nothing is permuted.
    row: u64,
    /// The elements along k are not the neighbours.
    transposed: bool,
}

impl Layout {
    fn new(bits: u64, transposed: bool) -> Option<Self> {
        let field = |from: u32| (bits >> from & 0x3fff) << 4;
        let row = [16, 128, 64, 32][(bits >> 62) as usize & 3];
        // An offset of the permutation's pattern is not supported.
        let plain = bits >> 49 & 7 == 0;
        plain.then_some(Self {
            begin: field(0),
            lead: field(16),
            stride: field(32),
            row,
            transposed,
        })
    }

    /// Address of the element in row (or column) `i` of A (or B) and at `k`.
    fn at(&self, i: u64, k: u64) -> u64 {
        let Self { begin, lead, stride, row, transposed } = *self;
        let elements = row / 2;
        let plain = match (transposed, row) {
            (false, 16) => i / 8 * stride + k / 8 * lead + i % 8 * 16 + k % 8 * 2,
            (false, _) => i / 8 * stride + i % 8 * row + k * 2,
            (true, 16) => i / 8 * stride + k / 8 * lead + k % 8 * 16 + i % 8 * 2,
            (true, _) => i / elements * lead + i % elements * 2 + k / 8 * stride + k % 8 * row,
        };
        permuted(begin + plain, row)
    }
}

fn element(bits: u16, ty: MmaType) -> f64 {
    match ty {
        MmaType::Bf16 => f64::from(f32::from_bits(u32::from(bits) << 16)),
        _ => f64::from(widen(bits)),
    }
}

impl Machine<'_> {
    /// One element of a matrix in shared memory.
    fn matrix_element(&mut self, w: &Warp, at: u64, ty: MmaType) -> Step<f64> {
        let from = self.shared_range(0, at, 2)?;
        if self.sanitize() {
            let stamp = self.stamp(w, false);
            self.check_shared(&stamp, Way::Read, 0, from, (2, false))?;
        }
        let bits = super::space::value_of(&self.shared[from..from + 2]) as u16;
        Ok(element(bits, ty))
    }
}

type A = [[f64; K]; 16];

fn layout(w: &Warp, slot: u32, transposed: bool) -> Step<Layout> {
    let bits = w.w[slot as usize][0];
    match Layout::new(bits, transposed) {
        Some(layout) => Ok(layout),
        None => {
            let text = "a matrix descriptor with a base offset is not supported";
            trouble_at(FaultKind::IllegalInstruction, 0, bits & 0x3fff, None, text)
        }
    }
}

/// The sixteen rows of A that are this warp's.
fn rows(m: &mut Machine<'_>, w: &Warp, op: &Wgmma) -> Step<A> {
    let mut a = [[0.0; K]; 16];
    let sign = if op.negates[0] { -1.0 } else { 1.0 };
    match &op.a {
        Matrix::Registers(slots) => {
            for (i, &slot) in slots.iter().enumerate() {
                for (lane, &bits) in w.r[slot as usize].iter().enumerate() {
                    let (row, k) = (lane / 4 + i % 2 * 8, i / 2 * 8 + lane % 4 * 2);
                    a[row & 15][k & 15] = sign * element(bits as u16, op.ty);
                    a[row & 15][(k + 1) & 15] = sign * element((bits >> 16) as u16, op.ty);
                }
            }
        }
        Matrix::Shared(slot) => {
            let layout = layout(w, *slot, op.transposed[0])?;
            let first = u64::from(w.index % 4) * 16;
            for (i, row) in (first..).zip(a.iter_mut()) {
                for (k, cell) in (0..16).zip(row.iter_mut()) {
                    *cell = sign * m.matrix_element(w, layout.at(i, k), op.ty)?;
                }
            }
        }
    }
    Ok(a)
}

/// Runs the part of one warp.
pub(super) fn run<S: Simd>(simd: S, m: &mut Machine<'_>, w: &mut Warp, op: &Wgmma) -> Step {
    let a = rows(m, w, op)?;
    let sign = if op.negates[1] { -1.0 } else { 1.0 };
    let layout = layout(w, op.b, op.transposed[1])?;
    let keeps = match op.keeps {
        ALWAYS => true,
        slot => (w.p[(slot >> 1) as usize] & 1 == 1) != (slot & 1 == 1),
    };
    for (tile, slots) in op.d.chunks(4).enumerate() {
        let mut b = [[0.0; 8]; K];
        for (k, row) in (0..16).zip(b.iter_mut()) {
            for (j, cell) in (tile as u64 * 8..).zip(row.iter_mut()) {
                *cell = sign * m.matrix_element(w, layout.at(j, k), op.ty)?;
            }
        }
        simd.vectorize(Tile { warp: w, slots, a: &a, b: &b, keeps });
    }
    Ok(())
}

/// Sixteen rows and eight columns, on their way into vector code.
struct Tile<'a> {
    warp: &'a mut Warp,
    slots: &'a [u32],
    a: &'a A,
    b: &'a [[f64; 8]; K],
    keeps: bool,
}

impl WithSimd for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { warp, slots, a, b, keeps } = self;
        let mut c = [[0.0; 8]; 16];
        if keeps {
            gather_single(warp, slots, &mut c);
        }
        for part in 0..8 / S::F64_LANES {
            multiply(simd, (a, b, &mut c), 16, part);
        }
        scatter_single(warp, slots, &c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of a matrix has an address of its own.
    #[test]
    fn layouts_are_permutations() {
        for (mode, row) in [(0u64, 16u64), (1, 128), (2, 64), (3, 32)] {
            for transposed in [false, true] {
                let (lead, stride) = match (transposed, row) {
                    (_, 16) => (128, 256),
                    (false, _) => (16, 8 * row),
                    (true, _) => (16 * row, 8 * row),
                };
                let bits = mode << 62 | (stride >> 4) << 32 | (lead >> 4) << 16;
                let layout = Layout::new(bits, transposed).unwrap();
                let mut all: Vec<u64> = (0..64)
                    .flat_map(|i| (0..16).map(move |k| (i, k)))
                    .map(|(i, k)| layout.at(i, k))
                    .collect();
                all.sort_unstable();
                all.dedup();
                assert_eq!(all.len(), 64 * 16, "{mode} {transposed}");
            }
        }
    }
}
