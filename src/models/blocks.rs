//! The two blocks of the tokenizer's encoder and decoder (VAR, after VQGAN).

use crate::autograd::{Params, Pass, Var};
use crate::config::MsvqConfig;
use crate::error::{Error, Result, Within};
use crate::nn::conv::Conv;
use crate::nn::norm::GroupNorm;
use crate::ops::attention::{Attention, Mask};
use crate::ops::layout::Reshape;

/// y = shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))), the shortcut being 1x1 where widths
/// differ.
pub struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl ResBlock {
    /// `[B, H, W, io[0]]` to `[B, H, W, io[1]]`.
    pub fn new(params: &mut Params, name: &str, c: &MsvqConfig, io: [usize; 2]) -> Self {
        let [from, to] = io;
        params.at(name, |p| Self {
            norm1: GroupNorm::new(p, "norm1", from, c.groups(from)).silu(),
            conv1: Conv::same(p, "conv1", io, 3),
            norm2: GroupNorm::new(p, "norm2", to, c.groups(to)).silu(),
            conv2: Conv::same(p, "conv2", [to, to], 3),
            shortcut: (from != to).then(|| Conv::same(p, "shortcut", io, 1)),
        })
    }

    /// Runs the block.
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        let h = self.conv1.of_normed(p, &self.norm1, x, None)?;
        let shortcut = self.shortcut.as_ref().map(|conv| conv.forward(p, x)).transpose()?;
        self.conv2.of_normed(p, &self.norm2, &h, Some(shortcut.as_ref().unwrap_or(x)))
    }
}

/// y = x + proj(attention(norm(x))), one head over all positions of the map.
pub struct AttnBlock {
    norm: GroupNorm,
    qkv: Conv,
    proj: Conv,
    channels: usize,
}

impl AttnBlock {
    /// [B, H, W, channels] to the same.
    pub fn new(params: &mut Params, name: &str, c: &MsvqConfig, channels: usize) -> Self {
        params.at(name, |p| Self {
            norm: GroupNorm::new(p, "norm", channels, c.groups(channels)),
            qkv: Conv::same(p, "qkv", [channels, 3 * channels], 1),
            proj: Conv::same(p, "proj", [channels, channels], 1),
            channels,
        })
    }

    /// Runs the block.
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        let &[b, h, w, c] = x.dims() else {
            return Err(Error::shape(
                "attention block",
                format!("{} is not a map", x.value().shape()),
            ));
        };
        let qkv = self.qkv.forward_parts(p, &self.norm.forward(p, x)?, 3)?;
        let head = |x: &Var| p.op(Reshape { to: [b, h * w, 1, c].into() }, &[x]);
        let qkv = qkv.iter().map(head).collect::<Result<Vec<_>>>()?;
        let op = Attention { scale: (self.channels as f64).powf(-0.5), mask: Mask::Full };
        let qkv: Vec<&Var> = qkv.iter().collect();
        let y = p.op(op, &qkv).within("attention block")?;
        let y = p.op(Reshape { to: [b, h, w, c].into() }, &[&y])?;
        self.proj.add_to(p, x, &y)
    }
}

/// A residual block, and the attention block after it where there is one.
pub struct Block {
    res: ResBlock,
    attn: Option<AttnBlock>,
}

impl Block {
    /// `[B, H, W, io[0]]` to `[B, H, W, io[1]]`.
    pub fn new(
        params: &mut Params,
        name: &str,
        c: &MsvqConfig,
        io: [usize; 2],
        attends: bool,
    ) -> Self {
        params.at(name, |p| Self {
            res: ResBlock::new(p, "res", c, io),
            attn: attends.then(|| AttnBlock::new(p, "attn", c, io[1])),
        })
    }

    /// Runs one or both.
    pub fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        let y = p.segment(|| self.res.forward(p, x))?;
        match &self.attn {
            Some(attn) => p.segment(|| attn.forward(p, &y)),
            None => Ok(y),
        }
    }
}
