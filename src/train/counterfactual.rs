//! The three counterfactual operators with the strengths of a tile: colour, contrast, sharpness
//! (algorithm.md 5.3). What they destroy carries no biology that RNA could explain.

use crate::device::Device;
use crate::error::Result;
use crate::ops::augment::{Contrast, StainHue, Unsharp};
use crate::ops::call;
use crate::tensor::{Purpose, Stream, Tensor};

/// A counterfactual operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counterfactual {
    /// X_a: stain and hue.
    Colour,
    /// X_c: contrast about the tile's mean.
    Contrast,
    /// X_s: unsharp mask.
    Sharpen,
}

type Matrix = [[f64; 3]; 3];

/// Optical densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001), rows
/// of unit length.
const STAINS: Matrix = [
    [0.650_032, 0.704_031, 0.286_013],
    [0.070_377, 0.990_425, 0.118_573],
    [0.268_148, 0.570_312, 0.776_427],
];

/// R, G, B to luma and the two chromas of YIQ, as columns.
const TO_YIQ: Matrix = [[0.299, 0.596, 0.211], [0.587, -0.274, -0.523], [0.114, -0.322, 0.312]];

/// And back.
const FROM_YIQ: Matrix = [[1.0, 1.0, 1.0], [0.956, -0.272, -1.106], [0.621, -0.647, 1.703]];

impl Counterfactual {
    /// All three, in the paper's order a, c, s.
    pub const ALL: [Self; 3] = [Self::Colour, Self::Contrast, Self::Sharpen];

    /// Variants of tiles [B, H, W, 3] in [-1, 1], each named by (seed, id), made where the tiles
    /// are.
    pub fn apply(self, tiles: &Tensor, seed: u64, ids: &[u64]) -> Result<Tensor> {
        let draw = |&id: &u64| Stream::new(seed, id, self as u16, Purpose::Counterfactual);
        let rows: Vec<Vec<f64>> = ids.iter().map(|id| self.strength(&draw(id))).collect();
        let strengths: Vec<f32> = rows.concat().into_iter().map(|v| v as f32).collect();
        let put =
            |shape: &[usize]| Device::of([tiles]).put(&Tensor::new(strengths.clone(), shape)?);
        let n = ids.len();
        match self {
            Self::Colour => call(&StainHue, &[tiles, &put(&[n, StainHue::WIDTH])?]),
            Self::Contrast => call(&Contrast, &[tiles, &put(&[n])?]),
            Self::Sharpen => call(&Unsharp, &[tiles, &put(&[n])?]),
        }
    }

    /// What the op is told of one tile.
    fn strength(self, draw: &Stream) -> Vec<f64> {
        let uniform = |i: usize| f64::from(draw.uniform(i));
        let between = |i: usize, low: f64, high: f64| low + (high - low) * uniform(i);
        match self {
            Self::Colour => {
                let gain = [0, 1, 2].map(|s| stain_gain(uniform(s)));
                let offset = [3, 4, 5].map(|s| between(s, -0.1, 0.1));
                colour(gain, offset, between(6, -25.0, 25.0))
            }
            Self::Contrast => {
                // U(0.4, 0.7) and U(1.4, 2.0), weighted by their lengths.
                let u = 0.9 * uniform(0);
                vec![if u < 0.3 { 0.4 + u } else { 1.1 + u }]
            }
            Self::Sharpen => vec![between(0, 1.5, 3.0)],
        }
    }
}

/// U(0.5, 1.5) without the middle: |gain - 1| is at least 0.2.
fn stain_gain(u: f64) -> f64 {
    let u = 0.6 * u;
    if u < 0.3 { 0.5 + u } else { 0.9 + u }
}

/// Unmixing the stains, scaling each by `gain`, shifting it by `offset` and mixing them again is a
/// linear map of densities and a shift; turning the chroma plane by `degrees` one of colours.
fn colour(gain: [f64; 3], offset: [f64; 3], degrees: f64) -> Vec<f64> {
    let diagonal = [0, 1, 2].map(|r| [0, 1, 2].map(|c| if r == c { gain[r] } else { 0.0 }));
    let stains = product(product(inverse(STAINS), diagonal), STAINS);
    let shift = [0, 1, 2].map(|c| (0..3).map(|s| offset[s] * STAINS[s][c]).sum::<f64>());
    let (sin, cos) = degrees.to_radians().sin_cos();
    let turn = [[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]];
    let hue = product(product(TO_YIQ, turn), FROM_YIQ);
    [stains.concat(), shift.to_vec(), hue.concat()].concat()
}

fn product(a: Matrix, b: Matrix) -> Matrix {
    a.map(|row| [0, 1, 2].map(|c| (0..3).map(|k| row[k] * b[k][c]).sum()))
}

/// Inverse by cofactors; the stain matrix is far from singular.
fn inverse(m: Matrix) -> Matrix {
    let minor = |r: usize, c: usize| {
        let (a, b) = ((r + 1) % 3, (r + 2) % 3);
        let (x, y) = ((c + 1) % 3, (c + 2) % 3);
        m[a][x] * m[b][y] - m[a][y] * m[b][x]
    };
    let determinant: f64 = (0..3).map(|c| m[0][c] * minor(0, c)).sum();
    [0, 1, 2].map(|r| [0, 1, 2].map(|c| minor(c, r) / determinant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles() -> Tensor {
        let draw = Stream::new(1, 0, 0, Purpose::Test).uniforms(2 * 8 * 8 * 3);
        Tensor::new(draw.iter().map(|u| 1.2 * u - 0.5).collect(), [2, 8, 8, 3]).unwrap()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f64 {
        (0..a.len()).map(|i| (a.at(i) - b.at(i)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn neutral_strengths_change_nothing() {
        let how: Vec<f32> = colour([1.0; 3], [0.0; 3], 0.0).iter().map(|&v| v as f32).collect();
        let how = Tensor::new(how.repeat(2), [2, StainHue::WIDTH]).unwrap();
        let x = tiles();
        // YIQ's two matrices are inverse to three digits.
        assert!(apart(&call(&StainHue, &[&x, &how]).unwrap(), &x) < 5e-3);
        let one = Tensor::full(x.dtype(), [2], 1.0);
        assert!(apart(&call(&Contrast, &[&x, &one]).unwrap(), &x) < 1e-6);
        let none = Tensor::zeros(x.dtype(), [2]);
        assert!(apart(&call(&Unsharp, &[&x, &none]).unwrap(), &x) < 1e-6);
    }

    #[test]
    fn every_operator_is_named_by_the_tile_and_does_something() {
        let x = tiles();
        for kind in Counterfactual::ALL {
            let a = kind.apply(&x, 3, &[9, 10]).unwrap();
            assert_eq!(apart(&a, &kind.apply(&x, 3, &[9, 10]).unwrap()), 0.0, "{kind:?}");
            assert!(apart(&a, &kind.apply(&x, 3, &[9, 11]).unwrap()) > 0.0, "{kind:?}");
            assert!(apart(&a, &x) > 0.02, "{kind:?} does nothing");
            let alone = kind.apply(&x.rows(1, 1).unwrap(), 3, &[10]).unwrap();
            assert_eq!(apart(&alone, &a.rows(1, 1).unwrap()), 0.0, "{kind:?} knows its batch");
        }
    }

    #[test]
    fn strengths_stay_in_their_ranges() {
        for i in 0..=100 {
            let g = stain_gain(f64::from(i) / 100.0);
            assert!((0.5..=1.5).contains(&g) && (g - 1.0).abs() >= 0.2 - 1e-6, "{g}");
        }
        for (r, row) in product(inverse(STAINS), STAINS).iter().enumerate() {
            for (c, v) in row.iter().enumerate() {
                assert!((v - f64::from(u8::from(r == c))).abs() < 1e-9);
            }
        }
    }
}
