//! EfficientNet-Lite0 up to its 1280 features, from our own ops; the network behind FD-EffNet.
//!
//! Sixteen inverted-residual blocks, each `1x1 expand, k x k depthwise, 1x1 project`, ReLU6 after
//! the first two, a skip where shapes allow. Batch norms (eps 1e-3) are folded into the weights
//! when loading. Padding is TensorFlow's SAME for even inputs: stride 2 puts the odd row below and
//! to the right. Weights are read under their PyTorch names, f32 or f16.

use std::path::Path;

use crate::error::{Error, Result, Within};
use crate::io::safetensors::TensorFile;
use crate::ops::activation::Clamp;
use crate::ops::call;
use crate::ops::depthwise::DepthwiseConv;
use crate::ops::elementwise::ADD;
use crate::ops::gemm::Linear;
use crate::tensor::Tensor;

/// Features a tile.
pub const FEATURES: usize = 1280;

/// Channels after the stem.
const STEM: usize = 32;
/// Kernel of the stem.
const STEM_K: usize = 3;
/// Batch norm's epsilon.
const EPS: f32 = 1e-3;
const RELU6: Clamp = Clamp { lo: 0.0, hi: 6.0 };
/// What a pixel value becomes: (v - 127) / 128.
const CENTRE: f32 = 127.0;
const SPREAD: f32 = 128.0;

/// (expansion, kernel, stride, channels in, channels out) of each block.
const BLOCKS: [(usize, usize, usize, usize, usize); 16] = [
    (1, 3, 1, 32, 16),
    (6, 3, 2, 16, 24),
    (6, 3, 1, 24, 24),
    (6, 5, 2, 24, 40),
    (6, 5, 1, 40, 40),
    (6, 3, 2, 40, 80),
    (6, 3, 1, 80, 80),
    (6, 3, 1, 80, 80),
    (6, 5, 1, 80, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 2, 112, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 3, 1, 192, 320),
];

/// A convolution with its batch norm folded in: weights and bias.
struct Folded {
    w: Tensor,
    b: Tensor,
}

struct Block {
    expand: Option<Folded>,
    filter: Folded,
    conv: DepthwiseConv,
    project: Folded,
    skip: bool,
}

/// The network.
pub struct EfficientNet {
    stem: Folded,
    blocks: Vec<Block>,
    head: Folded,
}

impl EfficientNet {
    /// Loads the weights.
    ///
    /// # Errors
    /// `Io` or `File` when the file cannot be read, is damaged or lacks a tensor.
    pub fn load(path: &Path) -> Result<Self> {
        let from = Weights(TensorFile::open(path)?);
        let block = |(i, &(expansion, k, stride, cin, cout)): (usize, &_)| {
            let wide = cin * expansion;
            let name = |part: &str| format!("_blocks.{i}.{part}");
            let expand = (expansion > 1)
                .then(|| from.dense(&name("_expand_conv"), &name("_bn0"), [wide, cin, 1, 1]))
                .transpose()?;
            let around = k - stride;
            Ok(Block {
                expand,
                filter: from.depthwise(&name("_depthwise_conv"), &name("_bn1"), wide, k)?,
                conv: DepthwiseConv { stride, before: around / 2, after: around.div_ceil(2) },
                project: from.dense(&name("_project_conv"), &name("_bn2"), [cout, wide, 1, 1])?,
                skip: stride == 1 && cin == cout,
            })
        };
        Ok(Self {
            stem: from.dense("_conv_stem", "_bn0", [STEM, 3, STEM_K, STEM_K])?,
            blocks: BLOCKS.iter().enumerate().map(block).collect::<Result<_>>()?,
            head: from.dense("_conv_head", "_bn1", [FEATURES, 320, 1, 1])?,
        })
    }

    /// Features of one image: `rgb` is `[size, size, 3]` in 0..=255, `size` a multiple of 32.
    ///
    /// # Errors
    /// `Shape` when the image does not fit.
    pub fn features(&self, rgb: &[f32], size: usize) -> Result<Vec<f64>> {
        if size == 0 || !size.is_multiple_of(32) || rgb.len() != size * size * 3 {
            let what = format!("{} values are not a square RGB image of {size}", rgb.len());
            return Err(Error::shape("efficientnet", format!("{what}, a multiple of 32")));
        }
        let mut x = relu6(&self.stem.apply(&windows(rgb, size)?).within("stem")?)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.apply(x).within(format!("block {i}"))?;
        }
        let x = relu6(&self.head.apply(&x).within("head")?)?;
        let mut mean = vec![0f64; FEATURES];
        for row in x.f32s()?.chunks(FEATURES) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v));
        }
        let positions = (x.len() / FEATURES) as f64;
        mean.iter_mut().for_each(|m| *m /= positions);
        Ok(mean)
    }
}

impl Folded {
    /// A 1x1 convolution is a linear layer over channels.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        call(&Linear, &[x, &self.w, &self.b])
    }
}

impl Block {
    fn apply(&self, x: Tensor) -> Result<Tensor> {
        let wide = match &self.expand {
            Some(expand) => relu6(&expand.apply(&x)?)?,
            None => x.clone(),
        };
        let filtered = relu6(&call(&self.conv, &[&wide, &self.filter.w, &self.filter.b])?)?;
        let narrow = self.project.apply(&filtered)?;
        if self.skip { call(&ADD, &[&x, &narrow]) } else { Ok(narrow) }
    }
}

fn relu6(x: &Tensor) -> Result<Tensor> {
    call(&RELU6, &[x])
}

/// The stem's 3x3 windows at stride 2 with a zero row below and a zero column to the right,
/// normalised:
/// `[1, size/2, size/2, 27]`, ordered (channel, row, column) as the weights are.
fn windows(rgb: &[f32], size: usize) -> Result<Tensor> {
    let half = size / 2;
    let mut out = Vec::with_capacity(half * half * 27);
    for i in 0..half {
        for j in 0..half {
            for c in 0..3 {
                for t in 0..STEM_K * STEM_K {
                    let (y, x) = (2 * i + t / STEM_K, 2 * j + t % STEM_K);
                    let inside = y < size && x < size;
                    let value = || (rgb[(y * size + x) * 3 + c] - CENTRE) / SPREAD;
                    out.push(if inside { value() } else { 0.0 });
                }
            }
        }
    }
    Tensor::new(out, [1, half, half, 3 * STEM_K * STEM_K])
}

/// The weight file.
struct Weights(TensorFile);

impl Weights {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.0.shaped(name, shape)?;
        tensor.check_finite(name).within(self.0.path().display())?;
        tensor.into_f32s()
    }

    /// Scale and shift of the batch norm `bn` over `n` channels.
    fn norm(&self, bn: &str, n: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let part = |part: &str| self.get(&format!("{bn}.{part}"), &[n]);
        let (weight, bias) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        let scale: Vec<f32> =
            weight.iter().zip(&var).map(|(w, v)| w / (v.max(0.0) + EPS).sqrt()).collect();
        let shift = (0..n).map(|i| bias[i] - mean[i] * scale[i]).collect();
        Ok((scale, shift))
    }

    /// A full convolution `[O, I, k, k]` as a linear map `[O, I k k]`.
    fn dense(&self, conv: &str, bn: &str, shape: [usize; 4]) -> Result<Folded> {
        let (scale, shift) = self.norm(bn, shape[0])?;
        let mut w = self.get(&format!("{conv}.weight"), &shape)?;
        let inner = shape[1] * shape[2] * shape[3];
        for (row, s) in w.chunks_mut(inner).zip(&scale) {
            row.iter_mut().for_each(|v| *v *= s);
        }
        Ok(Folded { w: Tensor::new(w, [shape[0], inner])?, b: Tensor::new(shift, [shape[0]])? })
    }

    /// A depthwise convolution `[C, 1, k, k]` as `[k, k, C]`.
    fn depthwise(&self, conv: &str, bn: &str, c: usize, k: usize) -> Result<Folded> {
        let (scale, shift) = self.norm(bn, c)?;
        let w = self.get(&format!("{conv}.weight"), &[c, 1, k, k])?;
        let turned = (0..k * k * c).map(|i| w[i % c * k * k + i / c] * scale[i % c]).collect();
        Ok(Folded { w: Tensor::new(turned, [k, k, c])?, b: Tensor::new(shift, [c])? })
    }
}
