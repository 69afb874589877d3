//! VAR's key names for our tensors, and the layouts that differ.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// How VAR shares phi over the scales: its three classes have keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One for all scales.
    All,
    /// Some, each for neighbouring scales.
    Part,
    /// One a scale.
    None,
}

impl Sharing {
    /// What VAR is told for so many phi.
    pub fn of(phis: usize) -> Self {
        if phis == 1 { Self::All } else { Self::Part }
    }

    /// What the keys of a file say.
    pub fn found(has: impl Fn(&str) -> bool) -> Self {
        match [Self::All, Self::Part].into_iter().find(|s| has(&s.key("0", "weight"))) {
            Some(sharing) => sharing,
            None => Self::None,
        }
    }

    /// The key of part `end` of phi number `j`.
    pub fn key(self, j: &str, end: &str) -> String {
        match self {
            Self::All => format!("quantize.quant_resi.qresi.{end}"),
            Self::Part => format!("quantize.quant_resi.qresi_ls.{j}.{end}"),
            Self::None => format!("quantize.quant_resi.{j}.{end}"),
        }
    }
}

/// The rest of a key below a block.
fn layer(rest: &[&str]) -> String {
    let mut names = Vec::with_capacity(rest.len());
    for part in rest {
        names.push(match *part {
            "shortcut" => "nin_shortcut",
            "proj" => "proj_out",
            other => other,
        });
    }
    names.join(".")
}

/// The key of a tensor of the tokenizer.
pub fn tokenizer(ours: &str, sharing: Sharing) -> String {
    let parts: Vec<&str> = ours.split('.').collect();
    match parts.as_slice() {
        ["quantiser", "book"] => "quantize.embedding.weight".into(),
        ["quantiser", "phi", j, end] => sharing.key(j, end),
        [side, way, i, "halve", end] => format!("{side}.{way}.{i}.downsample.conv.{end}"),
        [side, way, i, "double", end] => format!("{side}.{way}.{i}.upsample.conv.{end}"),
        [side, "mid", "0", "res", rest @ ..] => format!("{side}.mid.block_1.{}", layer(rest)),
        [side, "mid", "0", "attn", rest @ ..] => format!("{side}.mid.attn_1.{}", layer(rest)),
        [side, "mid", "1", rest @ ..] => format!("{side}.mid.block_2.{}", layer(rest)),
        [side, way @ ("down" | "up"), i, j, "res", rest @ ..] => {
            format!("{side}.{way}.{i}.block.{j}.{}", layer(rest))
        }
        [side, way @ ("down" | "up"), i, j, "attn", rest @ ..] => {
            format!("{side}.{way}.{i}.attn.{j}.{}", layer(rest))
        }
        _ => ours.to_string(),
    }
}

/// The key of a tensor of the transformer; None where VAR has no such tensor, or has it as part of
/// another.
pub fn transformer(ours: &str) -> Option<String> {
    let parts: Vec<&str> = ours.split('.').collect();
    Some(match parts.as_slice() {
        ["mask_token" | "null" | "classes"] => return None,
        ["pos"] => "pos_1LC".into(),
        ["level"] => "lvl_embed.weight".into(),
        ["word", end] => format!("word_embed.{end}"),
        ["head_ada", end] => format!("head_nm.ada_lin.1.{end}"),
        ["blocks", i, "ada", end] => format!("blocks.{i}.ada_lin.1.{end}"),
        ["blocks", i, "mlp", layer, end] => format!("blocks.{i}.ffn.{layer}.{end}"),
        ["blocks", i, "attn", "qkv", end] => format!("blocks.{i}.attn.mat_qkv.{end}"),
        ["blocks", i, "attn", "ln_scale"] => format!("blocks.{i}.attn.scale_mul_1H11"),
        _ => ours.to_string(),
    })
}

/// Filters [out, in, rows, columns] as [out, rows, columns, in], the layout of maps here.
///
/// # Errors
/// None for four axes; other tensors are handed back as they are.
pub fn channels_last(t: &Tensor) -> Result<Tensor> {
    permuted(t, |[o, i, h, w], at| {
        let [a, b, c, d] = at;
        ([o, h, w, i], ((a * i + d) * h + b) * w + c)
    })
}

/// The other way round.
///
/// # Errors
/// As [`channels_last`].
pub fn channels_first(t: &Tensor) -> Result<Tensor> {
    permuted(t, |[o, h, w, i], at| {
        let [a, b, c, d] = at;
        ([o, i, h, w], ((a * h + c) * w + d) * i + b)
    })
}

/// A tensor of four axes with others in front: `of` gives the new extents and, for a place in them,
/// where its element is now.
fn permuted(
    t: &Tensor,
    of: impl Fn([usize; 4], [usize; 4]) -> ([usize; 4], usize),
) -> Result<Tensor> {
    let &[a, b, c, d] = t.shape().dims() else { return Ok(t.clone()) };
    let old = [a, b, c, d];
    let (new, _) = of(old, [0; 4]);
    let values = t.f32s()?;
    let value = |i: usize| {
        let (i, w) = (i / new[3], i % new[3]);
        let (i, z) = (i / new[2], i % new[2]);
        values[of(old, [i / new[1], i % new[1], z, w]).1]
    };
    Tensor::new((0..values.len()).map(value).collect(), new)
}

/// The same elements under another shape, which must hold as many.
///
/// # Errors
/// It does not, naming the tensor.
pub fn shaped(name: &str, t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    t.reshape(shape).map_err(|_| {
        let what = format!("tensor {name} is {}, the model wants {shape:?}", t.shape());
        Error::data(what, "give files that belong together")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_released_files() {
        let part = |ours: &str| tokenizer(ours, Sharing::of(4));
        for (ours, theirs) in [
            ("encoder.conv_in.bias", "encoder.conv_in.bias"),
            ("encoder.down.4.1.attn.proj.weight", "encoder.down.4.attn.1.proj_out.weight"),
            ("encoder.down.2.0.res.shortcut.bias", "encoder.down.2.block.0.nin_shortcut.bias"),
            ("encoder.down.0.halve.weight", "encoder.down.0.downsample.conv.weight"),
            ("decoder.up.3.double.weight", "decoder.up.3.upsample.conv.weight"),
            ("decoder.mid.0.attn.norm.bias", "decoder.mid.attn_1.norm.bias"),
            ("decoder.mid.1.norm2.weight", "decoder.mid.block_2.norm2.weight"),
            ("quantiser.phi.3.weight", "quantize.quant_resi.qresi_ls.3.weight"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(part(ours), theirs);
        }
        let phi = |sharing| tokenizer("quantiser.phi.0.bias", sharing);
        assert_eq!(phi(Sharing::of(1)), "quantize.quant_resi.qresi.bias");
        assert_eq!(phi(Sharing::None), "quantize.quant_resi.0.bias");
        assert_eq!(Sharing::found(|key| key.contains("qresi_ls.0")), Sharing::Part);
        assert_eq!(Sharing::found(|_| false), Sharing::None);
        let ar = |ours: &str| transformer(ours).unwrap();
        assert_eq!(ar("blocks.11.attn.ln_scale"), "blocks.11.attn.scale_mul_1H11");
        assert_eq!(ar("blocks.0.ada.weight"), "blocks.0.ada_lin.1.weight");
        assert_eq!(ar("blocks.0.attn.q_bias"), "blocks.0.attn.q_bias");
        assert_eq!(transformer("null"), None);
    }

    #[test]
    fn layouts_go_there_and_back() {
        let t = Tensor::new((0..120).map(|i| i as f32).collect(), [2, 3, 4, 5]).unwrap();
        let last = channels_last(&t).unwrap();
        assert_eq!(last.shape().dims(), [2, 4, 5, 3]);
        // Output 1, row 2, column 3, input 1.
        assert_eq!(last.at(((4 + 2) * 5 + 3) * 3 + 1), (((3 + 1) * 4 + 2) * 5 + 3) as f64);
        assert_eq!(channels_first(&last).unwrap().f32s().unwrap(), t.f32s().unwrap());
    }
}
