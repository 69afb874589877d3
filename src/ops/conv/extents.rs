//! The extents of a convolution, and what its launches are told of them: tiles, parts of sums, and
//! what kernels/conv.cu has on its cards.

use super::Conv2d;
use crate::error::{Error, Result};
use crate::ops::cuda::PROCESSORS;

/// The least of k that is worth a block of its own, and the most parts of one sample's sums.
const LEAST_PART: usize = 512;
const MOST_PARTS: usize = 8;
/// The same for gradients to the weights, whose k counts windows: few sums, each very long.
const LEAST_WINDOWS: usize = 256;
const MOST_WINDOW_PARTS: usize = 64;

/// How a launch cuts its work: its tile, and into how many parts k goes, in all and by blocks of
/// their own.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) tile: [usize; 2],
    pub(super) parts: usize,
    pub(super) splits: usize,
}

/// A convolution of maps [images, size, ins] to [images, count, outs].
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub(super) images: usize,
    pub(super) size: [usize; 2],
    pub(super) ins: usize,
    pub(super) outs: usize,
    pub(super) kernel: [usize; 2],
    pub(super) count: [usize; 2],
    pub(super) stride: usize,
    /// Zeros at the top and on the left.
    pub(super) before: [usize; 2],
    /// Whether it is the gradient to the map: its windows lie over the result.
    pub(super) gradient: bool,
    /// Whether each pixel in memory is 2 x 2 of the map.
    pub(super) double: bool,
}

impl Extents {
    pub(super) fn new(
        conv: &Conv2d,
        images: usize,
        size: [usize; 2],
        ins: usize,
        outs: usize,
    ) -> Self {
        let [top, _, left, _] = conv.pad;
        Self {
            images,
            size,
            ins,
            outs,
            kernel: conv.kernel,
            count: conv.out_size(size).unwrap_or_default(),
            stride: conv.stride,
            before: [top, left],
            gradient: false,
            double: false,
        }
    }

    /// Rows and columns in memory.
    pub(super) fn held(&self) -> [usize; 2] {
        self.size.map(|n| if self.double { n / 2 } else { n })
    }

    /// Windows and taps along an axis, for each phase of it.
    pub(super) fn phases(&self, axis: usize) -> Vec<(usize, usize)> {
        let (size, kernel, s) = (self.size[axis], self.kernel[axis], self.stride);
        if !self.gradient {
            return vec![(self.count[axis], kernel)];
        }
        let phase = |first: usize| {
            let tap = (first + self.before[axis]) % s;
            ((size - first).div_ceil(s), kernel.saturating_sub(tap).div_ceil(s))
        };
        (0..s.min(size)).map(phase).collect()
    }

    /// Pixels of the result, of all images.
    pub(super) fn rows(&self) -> usize {
        let [h, w] = if self.gradient { self.size } else { self.count };
        self.images * h * w
    }

    /// Adds `f(windows of an image, k)` of all phases.
    pub(super) fn sum(&self, f: impl Fn(usize, usize) -> usize) -> usize {
        let [down, across] = [0, 1].map(|axis| self.phases(axis));
        let depth = if self.gradient { self.outs } else { self.ins };
        let each = |v: &(usize, usize)| -> usize {
            across.iter().map(|u| f(v.0 * u.0, v.1 * u.1 * depth)).sum()
        };
        down.iter().map(each).sum()
    }

    /// Channels of the result.
    pub(super) fn cols(&self) -> usize {
        if self.gradient { self.ins } else { self.outs }
    }

    /// Tiles of [rows, columns], for so many images.
    pub(super) fn tiles(&self, images: usize, [r, c]: [usize; 2]) -> usize {
        let across = self.cols().div_ceil(c);
        self.sum(|windows, _| (images * windows).div_ceil(r) * across)
    }

    /// Blocks for tiles of [rows, columns]. Phases are launched as if all had as many windows as
    /// the first, which has the most.
    pub(super) fn launched(&self, [r, c]: [usize; 2]) -> usize {
        let [down, across] = [0, 1].map(|axis| self.phases(axis));
        let most = |phases: &[(usize, usize)]| phases.first().map_or(0, |p| p.0);
        let windows = self.images * most(&down) * most(&across);
        windows.div_ceil(r) * self.cols().div_ceil(c) * down.len() * across.len()
    }

    /// Steps of all tiles along k, `depth` at once, and the parts that tiles join themselves.
    pub(super) fn steps(&self, cut: Cut, depth: usize) -> (usize, usize) {
        let [r, c] = cut.tile;
        let across = self.cols().div_ceil(c);
        let steps = |windows: usize, k: usize| {
            (self.images * windows).div_ceil(r) * across * k.div_ceil(depth)
        };
        // Tiles of other sides have no room for a second sum.
        let merges = usize::from(cut.tile == [64; 2]) * cut.parts;
        (self.sum(steps), self.tiles(self.images, cut.tile) * merges)
    }

    /// How many parts of k let one image fill the card with tiles of 64 x 64.
    pub(super) fn parts(&self) -> usize {
        let longest = self.phases(0).iter().map(|p| p.1).max().unwrap_or(0)
            * self.phases(1).iter().map(|p| p.1).max().unwrap_or(0)
            * if self.gradient { self.outs } else { self.ins };
        let wanted = PROCESSORS / self.tiles(1, [64; 2]).max(1);
        wanted.min(longest / LEAST_PART).clamp(1, MOST_PARTS)
    }

    /// Rows, or columns, in memory that windows meet: of the map, or of the result for the
    /// gradient.
    pub(super) fn met(&self, axis: usize) -> usize {
        let (s, k, pad) = (self.stride, self.kernel[axis], self.before[axis]);
        let meets = |&i: &usize| {
            let at = i + pad;
            let tap = at % s;
            // The last tap that can reach it belongs to the earliest window that does.
            tap < k && (at - tap - ((k - 1).min(at) - tap) / s * s) / s < self.count[axis]
        };
        let meets_back = |&i: &usize| {
            let last = (self.size[axis] + pad).saturating_sub(i * s).min(k);
            pad.saturating_sub(i * s) < last
        };
        match self.gradient {
            false if self.double => {
                let met = |i: &usize| meets(&(2 * i)) || meets(&(2 * i + 1));
                (0..self.held()[axis]).filter(met).count()
            }
            false => (0..self.size[axis]).filter(meets).count(),
            true => (0..self.count[axis]).filter(meets_back).count(),
        }
    }

    /// Taps along an axis that some pixel of the map meets.
    pub(super) fn taps_met(&self, axis: usize) -> usize {
        let (s, pad) = (self.stride, self.before[axis]);
        let meets = |&p: &usize| (p % s + s - pad % s) % s < self.size[axis];
        (0..self.kernel[axis]).filter(meets).count()
    }

    /// Numbers of a launch that are no extents: the stride, zeros at the top and on the left, and
    /// parts.
    pub(super) fn numbers(&self, parts: usize) -> Result<([u32; 3], i32)> {
        let [top, left] = self.before;
        let whole = |n: usize| u32::try_from(n);
        match (whole(self.stride), whole(top), whole(left), i32::try_from(parts)) {
            (Ok(stride), Ok(top), Ok(left), Ok(parts)) => Ok(([stride, top, left], parts)),
            _ => Err(Error::shape("conv2d", format!("{self:?} is too large for a GPU"))),
        }
    }

    /// Rows, columns and k of the gradient to the weights.
    pub(super) fn outer(&self) -> [usize; 3] {
        let windows = self.images * self.count[0] * self.count[1];
        [self.outs, self.kernel[0] * self.kernel[1] * self.ins, windows]
    }

    pub(super) fn outer_tiles(&self, side: usize) -> usize {
        let [m, n, _] = self.outer();
        m.div_ceil(side) * n.div_ceil(side)
    }

    /// How many parts of the windows fill the card twice with tiles of this side.
    pub(super) fn window_parts(&self, side: usize) -> usize {
        let wanted = 2 * PROCESSORS / self.outer_tiles(side).max(1);
        wanted.min(self.outer()[2] / LEAST_WINDOWS).clamp(1, MOST_WINDOW_PARTS)
    }
}
