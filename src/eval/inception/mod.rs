//! FID's Inception-v3 up to the 2048 features before its classifier, with weights that a person
//! brings.
//!
//! The network is the one that pytorch-fid runs: that of the FID paper, whose mean pools leave the
//! padding out and whose last block has a largest pool instead. Weights are read under the names of
//! its state dict; batch norms (eps 1e-3) are folded into them when loading. An image comes as 299
//! x 299 pixels and is brought to [-1, 1].

mod blocks;

use std::path::Path;

use crate::error::{Error, Result, Within};
use crate::io::safetensors::TensorFile;
use crate::ops::activation::Clamp;
use crate::ops::call;
use crate::ops::conv::Conv2d;
use crate::ops::layout::Concat;
use crate::tensor::Tensor;
use blocks::{Branch, IN_WRAPPER, Layer, Pool, network};

/// Features an image.
pub const FEATURES: usize = 2048;
/// The side of the images that the network sees.
pub const SIDE: usize = 299;

/// Batch norm's epsilon.
const EPS: f32 = 1e-3;
const RELU: Clamp = Clamp { lo: 0.0, hi: f64::INFINITY };

/// A convolution with its batch norm folded in.
struct Conv {
    op: Conv2d,
    w: Tensor,
    b: Tensor,
}

/// One branch of a block.
struct Track {
    pool: Option<Pool>,
    convs: Vec<Conv>,
    fork: Vec<Conv>,
}

/// The network.
pub struct Inception {
    blocks: Vec<(&'static str, Vec<Track>)>,
}

impl Inception {
    /// Loads the weights: a state dict of pytorch-fid's network, or of the wrapper around it, saved
    /// as safetensors. The classifier may be in it and is not read.
    ///
    /// # Errors
    /// `Io` or `File` when the file cannot be read, is damaged, or a tensor is missing or has
    /// another shape, which is named.
    pub fn load(path: &Path) -> Result<Self> {
        let from = Weights::open(path)?;
        let mut channels = 3;
        let mut blocks = Vec::new();
        for block in network() {
            let tracks: Vec<(Track, usize)> = (block.branches.iter())
                .map(|branch| from.track(block.name, branch, channels))
                .collect::<Result<_>>()?;
            channels = tracks.iter().map(|(_, outs)| outs).sum();
            blocks.push((block.name, tracks.into_iter().map(|(track, _)| track).collect()));
        }
        Ok(Self { blocks })
    }

    /// Features of one image: `rgb` is `[299, 299, 3]` in 0..=255.
    ///
    /// # Errors
    /// `Shape` when the image does not fit.
    pub fn features(&self, rgb: &[f32]) -> Result<Vec<f64>> {
        let scaled = rgb.iter().map(|v| 2.0 * (v / 255.0) - 1.0).collect();
        let mut x = Tensor::new(scaled, [1, SIDE, SIDE, 3])?;
        for (name, tracks) in &self.blocks {
            let joined = tracks.iter().map(|t| t.run(&x)).collect::<Result<Vec<_>>>();
            let joined = joined.within(if name.is_empty() { "stem" } else { name })?;
            x = join(joined.concat())?;
        }
        let mut mean = vec![0f64; FEATURES];
        for row in x.f32s()?.chunks(FEATURES) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
        }
        let positions = (x.len() / FEATURES) as f64;
        mean.iter_mut().for_each(|m| *m /= positions);
        Ok(mean)
    }
}

impl Track {
    /// Its maps: two after a fork.
    fn run(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = match self.pool {
            Some(kind) => pool(x, kind)?,
            None => x.clone(),
        };
        for conv in &self.convs {
            x = conv.apply(&x)?;
        }
        match self.fork.is_empty() {
            true => Ok(vec![x]),
            false => self.fork.iter().map(|conv| conv.apply(&x)).collect(),
        }
    }
}

impl Conv {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        call(&RELU, &[&call(&self.op, &[x, &self.w, &self.b])?])
    }
}

/// Maps of one size, channel after channel.
fn join(mut maps: Vec<Tensor>) -> Result<Tensor> {
    match (maps.len(), maps.pop()) {
        (1, Some(map)) => Ok(map),
        (_, last) => {
            maps.extend(last);
            call(&Concat { axis: 3 }, &maps.iter().collect::<Vec<_>>())
        }
    }
}

/// A 3x3 pool of one map.
fn pool(x: &Tensor, kind: Pool) -> Result<Tensor> {
    let &[1, h, w, c] = x.shape().dims() else {
        return Err(Error::shape("pool", format!("wants one map, found {}", x.shape())));
    };
    let (step, pad) = if kind == Pool::Halving { (2, 0) } else { (1, 1) };
    let count = |n: usize| (n + 2 * pad).checked_sub(3).map_or(0, |n| n / step + 1);
    let (rows, cols, from) = (count(h), count(w), x.f32s()?);
    // The pixels of a window along one axis, without those outside of the map.
    let seen = |i: usize, n: usize| (i * step).max(pad) - pad..(i * step + 3 - pad).min(n);
    let mut out = vec![if kind == Pool::Mean { 0.0 } else { f32::NEG_INFINITY }; rows * cols * c];
    for (at, to) in out.chunks_exact_mut(c).enumerate() {
        let (down, across) = (seen(at / cols, h), seen(at % cols, w));
        let n = (down.len() * across.len()) as f32;
        for y in down {
            for pixel in from[(y * w + across.start) * c..(y * w + across.end) * c].chunks(c) {
                match kind {
                    Pool::Mean => to.iter_mut().zip(pixel).for_each(|(t, v)| *t += v),
                    _ => to.iter_mut().zip(pixel).for_each(|(t, v)| *t = larger(*t, *v)),
                }
            }
        }
        if kind == Pool::Mean {
            to.iter_mut().for_each(|t| *t /= n);
        }
    }
    Tensor::new(out, [1, rows, cols, c])
}

/// The larger of two; NaN if either is.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

/// The weight file.
struct Weights {
    file: TensorFile,
    /// Whether its names are those of the wrapper.
    wrapped: bool,
}

impl Weights {
    fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let wrapped = file.contains(&format!("{}.conv.weight", IN_WRAPPER[0].1));
        Ok(Self { file, wrapped })
    }

    fn track(&self, block: &str, branch: &Branch, ins: usize) -> Result<(Track, usize)> {
        let mut outs = ins;
        let mut convs = Vec::new();
        for layer in &branch.layers {
            convs.push(self.conv(block, layer, outs)?);
            outs = layer.outs;
        }
        let fork = branch.fork.iter().map(|layer| self.conv(block, layer, outs));
        let fork = fork.collect::<Result<Vec<_>>>()?;
        if !fork.is_empty() {
            outs = branch.fork.iter().map(|layer| layer.outs).sum();
        }
        Ok((Track { pool: branch.pool, convs, fork }, outs))
    }

    /// A layer's name in the file.
    fn name(&self, block: &str, layer: &str) -> String {
        let (top, rest) = match block {
            "" => (layer, String::new()),
            _ => (block, format!(".{layer}")),
        };
        let inside = IN_WRAPPER.iter().find(|(name, _)| self.wrapped && *name == top);
        format!("{}{rest}", inside.map_or(top, |(_, there)| there))
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.file.shaped(name, shape)?;
        tensor.check_finite(name).within(self.file.path().display())?;
        tensor.into_f32s()
    }

    fn conv(&self, block: &str, layer: &Layer, ins: usize) -> Result<Conv> {
        let (name, &Layer { outs, kernel: [kh, kw], stride, pad: [v, u], .. }) =
            (self.name(block, layer.name), layer);
        let w = self.get(&format!("{name}.conv.weight"), &[outs, ins, kh, kw])?;
        let part = |part: &str| self.get(&format!("{name}.bn.{part}"), &[outs]);
        let (gamma, beta) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        let scale: Vec<f32> =
            gamma.iter().zip(&var).map(|(g, v)| g / (v.max(0.0) + EPS).sqrt()).collect();
        let shift = (0..outs).map(|o| beta[o] - mean[o] * scale[o]).collect();
        let taps = kh * kw;
        let mut folded = vec![0.0; w.len()];
        for (i, to) in folded.iter_mut().enumerate() {
            let (o, tap, c) = (i / (taps * ins), i / ins % taps, i % ins);
            *to = w[(o * ins + c) * taps + tap] * scale[o];
        }
        Ok(Conv {
            op: Conv2d { kernel: [kh, kw], stride, pad: [v, v, u, u] },
            w: Tensor::new(folded, [outs, kh, kw, ins])?,
            b: Tensor::new(shift, [outs])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_join_to_the_channels_that_the_paper_names() {
        let outs = |b: &Branch, ins: usize| match b.fork.is_empty() {
            false => b.fork.iter().map(|l| l.outs).sum(),
            true => b.layers.last().map_or(ins, |l| l.outs),
        };
        let mut channels = 3;
        let mut seen = Vec::new();
        for block in network() {
            channels = block.branches.iter().map(|b| outs(b, channels)).sum();
            seen.push(channels);
        }
        let mixed = [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, FEATURES];
        assert_eq!(seen, [&[64, 192, 192][..], &mixed].concat());
    }

    #[test]
    fn pools_count_what_is_inside() {
        let x = Tensor::new((0..9).map(|v| v as f32 - 20.0).collect(), [1, 3, 3, 1]).unwrap();
        let pooled = |kind| pool(&x, kind).unwrap().f32s().unwrap().to_vec();
        // The corner's window has four pixels: 0, 1, 3, 4.
        assert_eq!(pooled(Pool::Mean)[..2], [-18.0, -17.5]);
        assert_eq!(pooled(Pool::Mean)[4], -16.0);
        assert_eq!(pooled(Pool::Largest)[..3], [-16.0, -15.0, -15.0]);
        assert_eq!(pooled(Pool::Halving), [-12.0]);
    }
}
