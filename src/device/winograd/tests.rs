//! Winograd's way beside the direct one.

use super::*;
use crate::device::pack::Weights;
use crate::tensor::{Purpose, Stream};

/// A convolution: images, the origin of the windows, outputs.
struct Made {
    at: Windows,
    outs: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

impl Made {
    /// With so many zeros at the top and on the left, and as many windows as the map has pixels
    /// or fewer.
    fn new(image: [usize; 4], pad: isize, count: [usize; 2], outs: usize) -> Self {
        let at = Windows { image, kernel: [3, 3], step: 1, origin: [-pad; 2], count };
        let draw = |i, n| Stream::new(8, i, 0, Purpose::Test).normals(n);
        let (len, depth) = (image.iter().product(), 9 * image[3]);
        Self { at, outs, x: draw(0, len), w: draw(1, outs * depth), bias: draw(2, outs) }
    }

    fn same(image: [usize; 4], outs: usize) -> Self {
        Self::new(image, 1, [image[1], image[2]], outs)
    }

    fn run(&self, winograd: bool) -> Vec<f32> {
        let w = Matrix::of_outputs(Weights::F32(&self.w), self.outs, 9 * self.at.image[3]);
        let [images, down, across] = [self.at.image[0], self.at.count[0], self.at.count[1]];
        let mut y = vec![f32::NAN; images * down * across * self.outs];
        let (of, bias) = ((&self.at, &self.x[..]), Some(&self.bias[..]));
        match winograd {
            true => product(&mut y, of, &w, bias, |_, _| ()),
            false => window::product(&mut y, of, &Panels::of(&w), bias, |_, _| ()),
        }
        y
    }

    /// The result at `i`, the magnitudes that it is the sum of, and the pixels that it sees.
    fn exact(&self, i: usize) -> (f64, f64, Vec<f32>) {
        let ([_, h, w, c], [down, across]) = (self.at.image, self.at.count);
        let (o, col, row) = (i % self.outs, i / self.outs % across, i / self.outs / across);
        let (image, row) = (row / down, row % down);
        let (mut sum, mut size, mut seen) = (f64::from(self.bias[o]), 0.0, Vec::new());
        for k in 0..9 * c {
            let y = (row + k / c / 3) as isize + self.at.origin[0];
            let x = (col + k / c % 3) as isize + self.at.origin[1];
            if y >= 0 && y < h as isize && x >= 0 && x < w as isize {
                let x = self.x[((image * h + y as usize) * w + x as usize) * c + k % c];
                let term = f64::from(x) * f64::from(self.w[o * 9 * c + k]);
                (sum, size) = (sum + term, size + term.abs());
                seen.push(x);
            }
        }
        (sum, size + f64::from(self.bias[o].abs()), seen)
    }
}

#[test]
fn maps_of_any_side_are_within_what_rounding_of_the_direct_sum_allows() {
    let mut all: Vec<Made> = [[1, 1], [2, 3], [5, 7], [4, 4], [8, 5], [17, 6], [1, 13]]
        .into_iter()
        .flat_map(|[h, w]| {
            [(32, 3), (48, 33), (64, 16)].map(|(c, outs)| Made::same([2, h, w, c], outs))
        })
        .collect();
    // More tiles in a row than a strip holds.
    all.push(Made::same([1, 5, 300, 32], 3));
    // Windows that begin inside the map, and far outside of it.
    all.push(Made::new([1, 9, 7, 32], 0, [7, 5], 8));
    all.push(Made::new([3, 4, 5, 32], 2, [6, 7], 40));
    all.push(Made::new([1, 9, 9, 32], -1, [3, 6], 8));
    for made in all {
        let terms = (9 * made.at.image[3] + 1) as f64;
        for (i, got) in made.run(true).into_iter().enumerate() {
            let (want, size, _) = made.exact(i);
            let bound = terms * size * f64::from(f32::EPSILON) / 2.0;
            let near = (f64::from(got) - want).abs() <= bound;
            assert!(near, "{:?}[{i}]: {got}, not {want} within {bound:e}", made.at);
        }
    }
}

#[test]
fn an_image_has_the_same_bits_in_any_batch_on_any_threads() {
    let all = Made::same([5, 17, 13, 32], 40);
    let batch = all.run(true);
    // 100 tiles go strip by strip, 20 panel by panel.
    for (i, batch) in batch.chunks(batch.len() / 5).enumerate() {
        let mut one = Made::same([1, 17, 13, 32], 40);
        let len = one.x.len();
        one.x.copy_from_slice(&all.x[i * len..(i + 1) * len]);
        assert!(one.run(true).iter().zip(batch).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let again = alone.install(|| all.run(true));
    assert!(again.iter().zip(&batch).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn what_is_not_finite_or_too_large_stays_where_the_direct_way_leaves_it() {
    // One pixel of many, in the middle of a tile and at the edge of one.
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e38, -1e38] {
        for at in [[5, 6], [3, 4], [0, 0], [12, 14]] {
            for outs in [5, 40] {
                let mut made = Made::same([1, 13, 15, 32], outs);
                made.w.iter_mut().for_each(|w| *w *= 1e-2);
                made.x[(at[0] * 15 + at[1]) * 32 + 7] = value;
                let (got, direct) = (made.run(true), made.run(false));
                for (i, (got, direct)) in got.iter().zip(&direct).enumerate() {
                    let (want, size, seen) = made.exact(i);
                    if seen.iter().any(|x| x.to_bits() == value.to_bits()) {
                        assert_eq!(got.to_bits(), direct.to_bits(), "{value} at {at:?}: {i}");
                    } else {
                        let near = (f64::from(*got) - want).abs() <= size * 1e-5;
                        assert!(near, "{value} at {at:?}: [{i}] is {got}, not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_show_as_by_the_direct_way() {
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for k in [0, 4, 8] {
            let mut made = Made::same([1, 9, 9, 32], 40);
            made.w[35 * 9 * 32 + k * 32 + 3] = value;
            let (got, direct) = (made.run(true), made.run(false));
            for (i, (got, direct)) in got.iter().zip(&direct).enumerate() {
                let same = match i % 40 {
                    35 => got.to_bits() == direct.to_bits(),
                    _ => (got - direct).abs() <= 1e-3,
                };
                assert!(same, "{value}: [{i}] {got}, {direct}");
            }
        }
    }
}

#[test]
fn the_rule_looks_at_one_image() {
    let pays = |image| pays(&Made::same(image, 1).at);
    assert!(pays([1, 16, 16, 640]) && pays([1, 256, 256, 160]) && pays([9, 13, 13, 32]));
    assert!(!pays([99, 8, 8, 640]) && !pays([9, 12, 16, 64]));
    assert!(!pays([1, 64, 64, 16]) && !pays([1, 64, 64, 40]));
    let down = Windows { step: 2, ..Made::same([1, 64, 64, 64], 1).at };
    let point = Windows { kernel: [1, 1], ..Made::same([1, 64, 64, 64], 1).at };
    assert!(!super::pays(&down) && !super::pays(&point));
}
