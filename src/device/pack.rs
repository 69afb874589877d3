//! Weight matrices as they are stored, and the panels that products make of them.
//!
//! A panel holds up to 32 outputs of a matrix, depth by depth, in f32 whatever the weights are
//! stored in. Making one costs about a tenth of a nanosecond an element, so that nothing packed is
//! kept: weights in bf16 stay where they are, in a mapped file, at half the bytes.

#![allow(unsafe_code)]

use std::borrow::Cow;

use half::bf16;

/// Columns of a full panel: two of the widest vectors.
pub const PANEL: usize = 32;
/// Outputs of a narrow panel, and the side of the blocks that are turned at once.
pub const NARROW: usize = 16;

/// Elements of a weight matrix.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// As they are computed with.
    F32(&'a [f32]),
    /// The upper halves of that.
    Bf16(&'a [bf16]),
}

impl<'a> Weights<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(w) => w.len(),
            Self::Bf16(w) => w.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those from `first` on.
    pub fn from(self, first: usize) -> Self {
        match self {
            Self::F32(w) => Self::F32(w.get(first..).unwrap_or_default()),
            Self::Bf16(w) => Self::Bf16(w.get(first..).unwrap_or_default()),
        }
    }

    /// All of them, a copy where they are in bf16.
    pub fn to_f32s(&self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(w) => Cow::Borrowed(w),
            Self::Bf16(w) => Cow::Owned(w.iter().map(|x| x.to_f32()).collect()),
        }
    }

    fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(w) => w[i],
            Self::Bf16(w) => w[i].to_f32(),
        }
    }
}

/// A weight matrix of `depth` by `outs`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: Weights<'a>,
    /// Terms of a sum.
    pub depth: usize,
    /// Sums of a row.
    pub outs: usize,
    /// Whether the weights of an output follow each other; else those of a depth do.
    pub by_output: bool,
    /// Elements from one such run to the next.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// Weights [outs, depth], as layers and convolutions keep them.
    pub fn of_outputs(data: Weights<'a>, outs: usize, depth: usize) -> Self {
        Self { data, depth, outs, by_output: true, stride: depth }
    }

    /// Elements of a panel that begins at output `first`.
    pub fn width(&self, first: usize) -> usize {
        PANEL.min((self.outs - first).next_multiple_of(NARROW))
    }

    /// Fills a panel [depth, width] with the outputs from `first` on, and zeros beyond the last.
    pub fn pack(&self, to: &mut [f32], first: usize) {
        let width = self.width(first);
        let own = width.min(self.outs - first);
        assert_eq!(to.len(), self.depth * width, "the panel has another size");
        if self.depth == 0 {
            return;
        }
        let runs = if self.by_output { self.outs } else { self.depth };
        let run = if self.by_output { self.depth } else { self.outs };
        assert!((runs - 1) * self.stride + run <= self.data.len(), "weights outside their buffer");
        match self.by_output {
            true => self.turn(to, width, first, own),
            false => self.copy(to, width, first, own),
        }
    }

    /// The weights of a depth follow each other: rows are copied.
    fn copy(&self, to: &mut [f32], width: usize, first: usize, own: usize) {
        for (k, row) in to.chunks_exact_mut(width).enumerate() {
            let at = k * self.stride + first;
            row[own..].fill(0.0);
            match self.data {
                Weights::F32(w) => row[..own].copy_from_slice(&w[at..at + own]),
                Weights::Bf16(w) => {
                    row[..own].iter_mut().zip(&w[at..]).for_each(|(y, w)| *y = w.to_f32());
                }
            }
        }
    }

    /// The weights of an output follow each other: they are turned, sixteen outputs at a time.
    fn turn(&self, to: &mut [f32], width: usize, first: usize, own: usize) {
        for col in (0..width).step_by(NARROW) {
            let outs = own.saturating_sub(col).min(NARROW);
            let w = self.data.from((first + col) * self.stride);
            let done = if outs == NARROW { turned(to, (width, col), w, self) } else { 0 };
            for (k, row) in to.chunks_exact_mut(width).enumerate().skip(done) {
                for (i, y) in row[col..col + NARROW].iter_mut().enumerate() {
                    *y = if i < outs { w.get(i * self.stride + k) } else { 0.0 };
                }
            }
        }
    }
}

/// Writes sixteen outputs into columns `col..` of a panel by vectors; how many depths it did.
#[cfg(target_arch = "x86_64")]
fn turned(to: &mut [f32], at: (usize, usize), w: Weights<'_>, of: &Matrix<'_>) -> usize {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        return 0;
    }
    match w {
        // SAFETY: the processor has AVX-512. `Matrix::pack` checked that sixteen outputs of `depth`
        // elements, `stride` apart, and a panel of `depth` rows are there.
        Weights::F32(w) => unsafe { wide::turn_f32(to, at, w, (of.depth, of.stride)) },
        // SAFETY: as above.
        Weights::Bf16(w) => unsafe { wide::turn_bf16(to, at, w, (of.depth, of.stride)) },
    }
}

/// Without wide vectors none.
#[cfg(not(target_arch = "x86_64"))]
fn turned(_: &mut [f32], _: (usize, usize), _: Weights<'_>, _: &Matrix<'_>) -> usize {
    0
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{NARROW, bf16};
    use std::arch::x86_64::*;

    /// The transpose of a block of 16 by 16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(r: [__m512i; NARROW]) -> [__m512i; NARROW] {
        let (mut pairs, mut fours, mut all) = (r, r, r);
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in (0..NARROW).step_by(4) {
            for j in 0..2 {
                let (a, b) = (pairs[i + j], pairs[i + j + 2]);
                fours[i + 2 * j] = _mm512_unpacklo_epi64(a, b);
                fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
            }
        }
        // fours[4 g + j] holds of rows 4 g .. 4 g + 3 the columns j, 4 + j, 8 + j and 12 + j.
        for j in 0..4 {
            let a = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
            let b = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
            let c = _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]);
            let d = _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]);
            all[j] = _mm512_shuffle_i32x4::<0x88>(a, c);
            all[4 + j] = _mm512_shuffle_i32x4::<0x88>(b, d);
            all[8 + j] = _mm512_shuffle_i32x4::<0xdd>(a, c);
            all[12 + j] = _mm512_shuffle_i32x4::<0xdd>(b, d);
        }
        all
    }

    /// Sixteen runs of f32, whole blocks of 16 depths.
    ///
    /// # Safety
    /// w holds 16 runs of `depth`, `stride` apart; `to` holds `depth` rows of `width`, col + 16
    /// being at most that.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn turn_f32(
        to: &mut [f32],
        (width, col): (usize, usize),
        w: &[f32],
        (depth, stride): (usize, usize),
    ) -> usize {
        let done = depth / NARROW * NARROW;
        for k in (0..done).step_by(NARROW) {
            // SAFETY: run i begins at i stride, and k + 16 <= depth.
            let load =
                |i: usize| unsafe { _mm512_loadu_si512(w.as_ptr().add(i * stride + k).cast()) };
            let block = transpose(std::array::from_fn(load));
            for (j, v) in block.into_iter().enumerate() {
                let y = &mut to[(k + j) * width + col..][..NARROW];
                // SAFETY: y has sixteen elements.
                unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_castsi512_ps(v)) };
            }
        }
        done
    }

    /// Sixteen runs of bf16, whole blocks of 32 depths, turned in pairs of depths.
    ///
    /// # Safety
    /// As [`turn_f32`].
    #[target_feature(enable = "avx512f")]
    pub unsafe fn turn_bf16(
        to: &mut [f32],
        (width, col): (usize, usize),
        w: &[bf16],
        (depth, stride): (usize, usize),
    ) -> usize {
        let done = depth / (2 * NARROW) * (2 * NARROW);
        let upper = _mm512_set1_epi32(-0x1_0000);
        for k in (0..done).step_by(2 * NARROW) {
            // SAFETY: run i begins at i stride, and k + 32 <= depth.
            let load =
                |i: usize| unsafe { _mm512_loadu_si512(w.as_ptr().add(i * stride + k).cast()) };
            let block = transpose(std::array::from_fn(load));
            for (j, v) in block.into_iter().enumerate() {
                let pair = [_mm512_slli_epi32::<16>(v), _mm512_and_si512(v, upper)];
                for (i, v) in pair.into_iter().enumerate() {
                    let y = &mut to[(k + 2 * j + i) * width + col..][..NARROW];
                    // SAFETY: y has sixteen elements.
                    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_castsi512_ps(v)) };
                }
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_holds_the_weights_whatever_they_are_stored_in() {
        for (outs, depth) in [(1, 1), (16, 16), (17, 33), (32, 64), (50, 70), (64, 31), (40, 0)] {
            let value = |o: usize, k: usize| (o * 1000 + k) as f32;
            let round = |x: f32| bf16::from_f32(x);
            let stored: Vec<f32> = (0..outs * depth).map(|i| value(i / depth, i % depth)).collect();
            let turned: Vec<f32> = (0..outs * depth).map(|i| value(i % outs, i / outs)).collect();
            let half: Vec<bf16> = stored.iter().map(|&x| round(x)).collect();
            let half_turned: Vec<bf16> = turned.iter().map(|&x| round(x)).collect();
            let all = [
                (Weights::F32(&stored), true),
                (Weights::Bf16(&half), true),
                (Weights::F32(&turned), false),
                (Weights::Bf16(&half_turned), false),
            ];
            for (data, by_output) in all {
                let stride = if by_output { depth } else { outs };
                let m = Matrix { data, depth, outs, by_output, stride };
                let is_half = matches!(data, Weights::Bf16(_));
                for first in (0..outs).step_by(PANEL) {
                    let width = m.width(first);
                    let mut panel = vec![f32::NAN; depth * width];
                    m.pack(&mut panel, first);
                    for (i, &got) in panel.iter().enumerate() {
                        let (k, o) = (i / width, first + i % width);
                        let exact = if o < outs { value(o, k) } else { 0.0 };
                        let want = if is_half { round(exact).to_f32() } else { exact };
                        assert_eq!(got, want, "{outs} x {depth}, {by_output}: {k}, {o}");
                    }
                }
            }
        }
    }
}
