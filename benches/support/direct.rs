//! The direct way of convolutions that the CPU may do by Winograd's, for the race between them.

use genevar::device::pack::{Matrix, Weights};
use genevar::device::window::{Panels, Windows, product};
use genevar::tensor::{Shape, Tensor};

/// A convolution of 3 x 3 that keeps the size of its map, by direct sums.
pub struct Direct {
    at: Windows,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    y: Vec<f32>,
}

impl Direct {
    /// That of an op's inputs x, w and bias; `None` where it is another op, or doubles its map.
    pub fn of(name: &str, inputs: &[&Tensor], y: &Shape) -> Option<Self> {
        let ("conv2d" | "fused_conv", [x, w, bias, ..]) = (name, inputs) else { return None };
        let (&[b, h, wide, c], &[outs, 3, 3, _]) = (x.shape().dims(), w.shape().dims()) else {
            return None;
        };
        if y.dims() != [b, h, wide, outs] || bias.len() != outs {
            return None;
        }
        let at = Windows {
            image: [b, h, wide, c],
            kernel: [3, 3],
            step: 1,
            origin: [-1, -1],
            count: [h, wide],
        };
        let of = |t: &Tensor| t.f32s().map(<[f32]>::to_vec).ok();
        Some(Self { at, x: of(x)?, w: of(w)?, bias: of(bias)?, y: vec![0.0; y.len()] })
    }

    /// The sums, without a residual.
    pub fn run(&mut self) -> &[f32] {
        let depth = 9 * self.at.image[3];
        let w = Matrix::of_outputs(Weights::F32(&self.w), self.bias.len(), depth);
        let (of, bias) = ((&self.at, &self.x[..]), Some(&self.bias[..]));
        product(&mut self.y, of, &Panels::of(&w), bias, |_, _| ());
        &self.y
    }
}
