//! Convolutions of 3 x 3 and stride 1 by Winograd's F(4 x 4, 3 x 3): a tile of 4 x 4 results takes
//! 36 multiplications a pair of channels in place of 144.
//!
//! y = A' [(G w G') * (B' x B)] A, where B' x B is made of a patch of 6 x 6, of each channel alone;
//! sums over channels are 36 products of matrices. The points are 0, +-3/4, +-3/2 and infinity: in
//! f32 the error is 1.5 to 2.3 times that of the direct sum, with +-1 and +-2 it is 3.3 to 4.6
//! times. A result depends on its own patch alone, in a fixed order of sums, whatever the batch,
//! the strip or the threads.

mod transform;

use std::cell::RefCell;
use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use super::cpu::{may_spread, par_map};
use super::pack::{Matrix, NARROW, PANEL};
use super::panel::{Columns, Rows, Start, multiply};
use super::window::{self, Panels, Windows};
use transform::{Results, Seen, Weighed};

/// Rows and columns of a tile of results.
const SIDE: usize = 4;
/// Rows and columns of the patch that it sees.
const PATCH: usize = SIDE + 2;
/// Products that a tile is made of.
const SPOTS: usize = PATCH * PATCH;
/// Tiles whose transforms are held at once: enough that the weights' way through the caches does
/// not show.
const STRIP: usize = 64;

/// Least channels of a pixel for which it is faster: with fewer, transforms cost what products
/// spare. The error shrinks beside its bound, too, as channels are added.
const CHANNELS: usize = 32;
/// Least tiles of an image: fewer do not pay for the transform of the weights. It is a matter of
/// one image, so that its bits are the same in any batch.
const TILES: usize = 16;

thread_local! {
    /// Transforms of a strip, and its products with a panel.
    static OWN: RefCell<(Patches, Vec<f32>)> = const { RefCell::new((Patches::NONE, Vec::new())) };
}

/// Transformed patches of some tiles.
struct Patches {
    /// [tiles, 36, channels], and beyond them whatever there was.
    v: Vec<f32>,
    /// Whether the pixels of a patch are of one scale.
    alike: Vec<bool>,
}

/// Tiles of 4 x 4 windows over images.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    at: &'a Windows,
    x: &'a [f32],
    /// Tiles down and across.
    count: [usize; 2],
}

impl<'a> Tiles<'a> {
    fn new(at: &'a Windows, x: &'a [f32]) -> Self {
        Self { at, x, count: at.count.map(|n| n.div_ceil(SIDE)) }
    }

    /// Tiles of an image.
    fn each(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// Image, first row and first column of the results of a tile.
    fn corner(&self, tile: usize) -> [usize; 3] {
        let [_, across] = self.count;
        let (image, i) = (tile / self.each(), tile % self.each());
        [image, i / across * SIDE, i % across * SIDE]
    }

    /// Four pixels of a tile's patch, of which each window that is there sees one.
    fn centres(&self, tile: usize) -> [usize; 4] {
        let [_, row, col] = self.corner(tile);
        let axis = |first: usize, axis: usize| match (self.at.count[axis] - first).min(SIDE) {
            SIDE => [2, 3],
            n => [n.min(2); 2],
        };
        let (rows, cols) = (axis(row, 0), axis(col, 1));
        std::array::from_fn(|i| rows[i / 2] * PATCH + cols[i % 2])
    }

    /// The pixels of a tile's patch, `zeros` where there is none.
    fn patch(&self, tile: usize, zeros: &'a [f32]) -> [&'a [f32]; SPOTS] {
        let [_, h, w, c] = self.at.image;
        let [image, row, col] = self.corner(tile);
        let first = [row, col].map(|n| n as isize);
        std::array::from_fn(|i| {
            let y = first[0] + self.at.origin[0] + (i / PATCH) as isize;
            let x = first[1] + self.at.origin[1] + (i % PATCH) as isize;
            match y >= 0 && y < h as isize && x >= 0 && x < w as isize {
                true => &self.x[((image * h + y as usize) * w + x as usize) * c..][..c],
                false => zeros,
            }
        })
    }
}

impl Patches {
    const NONE: Self = Self { v: Vec::new(), alike: Vec::new() };

    /// Those of these tiles, by this thread or by all.
    fn see(&mut self, tiles: &Tiles<'_>, range: Range<usize>, spread: bool) {
        let depth = tiles.at.image[3];
        let (held, zeros) = (SPOTS * depth, vec![0.0; depth]);
        self.v.resize((held * range.len()).max(self.v.len()), 0.0);
        self.alike.resize(range.len(), false);
        let see = |(i, (to, alike)): (usize, (&mut [f32], &mut bool))| {
            let tile = range.start + i;
            let (patch, centres) = (tiles.patch(tile, &zeros), tiles.centres(tile));
            *alike = Arch::new().dispatch(Seen { patch, centres, to });
        };
        let (v, alike) = (&mut self.v[..held * range.len()], &mut self.alike);
        match spread {
            true => v.par_chunks_mut(held).zip(alike).enumerate().for_each(see),
            false => v.chunks_mut(held).zip(alike).enumerate().for_each(see),
        }
    }
}

/// The weights and biases of a convolution.
#[derive(Clone, Copy)]
struct Kernel<'a> {
    w: &'a Matrix<'a>,
    bias: Option<&'a [f32]>,
}

impl Kernel<'_> {
    /// Channels of a pixel.
    fn depth(&self) -> usize {
        self.w.depth / 9
    }

    /// The transformed weights of the panel that begins at `first`: [36, channels, width].
    fn panel(&self, first: usize, to: &mut [f32]) {
        let mut panel = vec![0.0; self.w.depth * self.w.width(first)];
        self.w.pack(&mut panel, first);
        Arch::new().dispatch(Weighed { panel: &panel, to });
    }

    fn bias(&self, first: usize, width: usize) -> [f32; PANEL] {
        let mut all = [0.0; PANEL];
        if let Some(bias) = self.bias {
            let own = width.min(bias.len() - first);
            all[..own].copy_from_slice(&bias[first..first + own]);
        }
        all
    }

    /// The results of some tiles for a panel: `write(tile, [16, width])`.
    ///
    /// A tile that Winograd's way makes infinite or NaN, or whose pixels are of other scales, is
    /// computed anew directly: what is not finite shows in the results that see it and nowhere
    /// else, sums overflow where they would, and a huge pixel does not drown its neighbours.
    fn results(
        &self,
        (tiles, patches, range): (&Tiles<'_>, &Patches, Range<usize>),
        (panel, first): (&[f32], usize),
        m: &mut Vec<f32>,
        mut write: impl FnMut(usize, &[f32]),
    ) {
        let (depth, width) = (self.depth(), self.w.width(first));
        let pitch = SPOTS * width;
        m.resize((STRIP * SPOTS * PANEL).max(range.len() * pitch), 0.0);
        let m = &mut m[..range.len() * pitch];
        let starts: Vec<usize> = (0..range.len()).map(|t| t * SPOTS * depth).collect();
        for (spot, panel) in panel.chunks_exact(depth * width).enumerate() {
            let data = &patches.v[spot * depth..];
            let rows = Rows { data, starts: &starts, taps: 1, pitch: 0, run: depth };
            multiply(Columns::new(m, pitch, spot * width, width), rows, panel, Start::Zero);
        }
        let (bias, mut done) = (self.bias(first, width), [0.0; SIDE * SIDE * PANEL]);
        let done = &mut done[..SIDE * SIDE * width];
        let mut direct = Vec::new();
        for ((tile, m), alike) in range.zip(m.chunks_exact(pitch)).zip(&patches.alike) {
            let finite = Arch::new().dispatch(Results { m, bias: &bias[..width], to: done });
            if !(finite && *alike) {
                if direct.is_empty() {
                    direct.resize(self.w.depth * width, 0.0);
                    self.w.pack(&mut direct, first);
                }
                self.directly(tiles, tile, (&direct, &bias[..width]), done);
            }
            write(tile, done);
        }
    }

    /// A tile's results by the sums of the direct way.
    fn directly(
        &self,
        tiles: &Tiles<'_>,
        tile: usize,
        (panel, bias): (&[f32], &[f32]),
        to: &mut [f32],
    ) {
        let (depth, width) = (self.depth(), bias.len());
        let zeros = vec![0.0; depth];
        let data = tiles.patch(tile, &zeros).concat();
        let starts: [usize; SIDE * SIDE] =
            std::array::from_fn(|i| (i / SIDE * PATCH + i % SIDE) * depth);
        let pitch = PATCH * depth;
        let rows = Rows { data: &data, starts: &starts, taps: 3, pitch, run: 3 * depth };
        let start = if self.bias.is_some() { Start::Bias(bias) } else { Start::Zero };
        multiply(Columns::new(to, width, 0, width), rows, panel, start);
    }
}

/// Whether Winograd's way is the faster one for these windows.
fn pays(at: &Windows) -> bool {
    let (c, tiles) = (at.image[3], at.count.map(|n| n.div_ceil(SIDE)));
    let whole = at.kernel == [3, 3] && at.step == 1 && c.is_multiple_of(NARROW);
    whole && c >= CHANNELS && tiles[0] * tiles[1] >= TILES
}

/// y = windows * weights + bias, by the faster way; the weights are [outs, rows, columns,
/// channels], and the rest is as in [`window::product`].
pub fn convolution(
    y: &mut [f32],
    (at, x): (&Windows, &[f32]),
    w: &Matrix<'_>,
    bias: Option<&[f32]>,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    match pays(at) {
        true => product(y, (at, x), w, bias, finish),
        false => window::product(y, (at, x), &Panels::of(w), bias, finish),
    }
}

/// [`convolution`] by Winograd's way, of 3 x 3 windows with step 1 whose channels are a multiple
/// of 16.
fn product(
    y: &mut [f32],
    (at, x): (&Windows, &[f32]),
    w: &Matrix<'_>,
    bias: Option<&[f32]>,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let ([images, h, wide, c], [down, across]) = (at.image, at.count);
    assert!(
        at.kernel == [3, 3] && at.step == 1 && c.is_multiple_of(NARROW),
        "windows of another kind"
    );
    assert_eq!(y.len(), images * down * across * w.outs, "the product's buffer has another size");
    assert_eq!(x.len(), images * h * wide * c, "the images have another size");
    assert_eq!(w.depth, 9 * c, "the weights have another depth");
    if y.is_empty() {
        return;
    }
    let (tiles, kernel) = (Tiles::new(at, x), Kernel { w, bias });
    match images * tiles.each() > STRIP {
        true => by_strips(y, &tiles, kernel, finish),
        false => by_panels(y, &tiles, kernel, finish),
    }
}

/// Many tiles: all weights are transformed at once, tiles strip by strip.
fn by_strips(
    y: &mut [f32],
    tiles: &Tiles<'_>,
    kernel: Kernel<'_>,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (outs, depth, [down, across]) = (kernel.w.outs, kernel.depth(), tiles.at.count);
    let mut panels = vec![0.0; SPOTS * depth * outs.next_multiple_of(NARROW)];
    let panel = SPOTS * depth * PANEL;
    let make = |(i, to): (usize, &mut [f32])| kernel.panel(i * PANEL, to);
    match may_spread() {
        true => panels.par_chunks_mut(panel).enumerate().for_each(make),
        false => panels.chunks_mut(panel).enumerate().for_each(make),
    }
    // Rows of tiles that a task takes: an image alone is work for eight threads at least.
    let rows = (STRIP / tiles.count[1]).clamp(1, tiles.count[0].div_ceil(8));
    let (line, area) = (across * outs, down * across * outs);
    let strip = |image: usize, i: usize, y: &mut [f32]| {
        let first = (image * tiles.count[0] + i * rows) * tiles.count[1];
        let last = first + (y.len() / line).div_ceil(SIDE) * tiles.count[1];
        OWN.with_borrow_mut(|(patches, m)| {
            for first in (first..last).step_by(STRIP) {
                let range = first..last.min(first + STRIP);
                patches.see(tiles, range.clone(), false);
                for (p, panel) in panels.chunks(panel).enumerate() {
                    let of = (tiles, &*patches, range.clone());
                    kernel.results(of, (panel, p * PANEL), m, |tile, done| {
                        let [_, row, col] = tiles.corner(tile);
                        let top = row - i * rows * SIDE;
                        place(&mut y[top * line..], [across, outs], [col, p * PANEL], done);
                    });
                }
            }
        });
        finish(image * area + i * rows * SIDE * line, y);
    };
    let chunk = rows * SIDE * line;
    match may_spread() {
        true => y.par_chunks_mut(area).enumerate().for_each(|(n, y)| {
            y.par_chunks_mut(chunk).enumerate().for_each(|(i, y)| strip(n, i, y));
        }),
        false => y.chunks_mut(area).enumerate().for_each(|(n, y)| {
            y.chunks_mut(chunk).enumerate().for_each(|(i, y)| strip(n, i, y));
        }),
    }
}

/// Writes a tile's results [16, width] into rows of [across, outs], from the first one on, at this
/// column and output.
fn place(y: &mut [f32], [across, outs]: [usize; 2], [col, first]: [usize; 2], done: &[f32]) {
    let width = done.len() / (SIDE * SIDE);
    let own = width.min(outs - first);
    for (row, done) in y.chunks_mut(across * outs).zip(done.chunks_exact(SIDE * width)) {
        let pixels = row[col * outs..].chunks_mut(outs).zip(done.chunks_exact(width));
        for (y, done) in pixels {
            let y = &mut y[first..first + own];
            match (y.first_chunk_mut::<PANEL>(), done.first_chunk::<PANEL>()) {
                (Some(y), Some(done)) => *y = *done,
                _ => y.copy_from_slice(&done[..own]),
            }
        }
    }
}

/// Few tiles: they are transformed at once, and a task takes a panel of outputs, whose weights
/// nobody else needs.
fn by_panels(
    y: &mut [f32],
    tiles: &Tiles<'_>,
    kernel: Kernel<'_>,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (outs, depth, [down, across]) = (kernel.w.outs, kernel.depth(), tiles.at.count);
    let all = tiles.at.image[0] * tiles.each();
    let mut patches = Patches::NONE;
    patches.see(tiles, 0..all, may_spread());
    let parts = par_map(outs.div_ceil(PANEL), |p| {
        let width = kernel.w.width(p * PANEL);
        let mut panel = vec![0.0; SPOTS * depth * width];
        kernel.panel(p * PANEL, &mut panel);
        let mut part = Vec::with_capacity(all * SIDE * SIDE * width);
        OWN.with_borrow_mut(|(_, m)| {
            kernel.results((tiles, &patches, 0..all), (&panel, p * PANEL), m, |_, done| {
                part.extend_from_slice(done);
            });
        });
        part
    });
    for (p, part) in parts.iter().enumerate() {
        let width = kernel.w.width(p * PANEL);
        for (tile, done) in part.chunks_exact(SIDE * SIDE * width).enumerate() {
            let [image, row, col] = tiles.corner(tile);
            let image = &mut y[image * down * across * outs..][..down * across * outs];
            place(&mut image[row * across * outs..], [across, outs], [col, p * PANEL], done);
        }
    }
    finish(0, y);
}

#[cfg(test)]
mod tests;
