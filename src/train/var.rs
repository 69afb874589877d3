//! State dicts of FoundationVision/VAR (Tian et al., 2024), saved as safetensors, as stages of
//! ours, and back: any depth, width, number of levels and scales.
//!
//! A tokenizer becomes the stage `msvq`, a class-conditional transformer the stage `ar` of a plain
//! VAR. The variant with one adaLN generator for all blocks (512 px, d36) is refused.

pub mod command;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::names::{Sharing, channels_first, channels_last, shaped};
use super::bundle::{Bundle, Trained};
use super::pipeline::ar_dims;
use crate::autograd::Params;
use crate::config::{ArConfig, Config, Lookup, MsvqConfig, MsvqLossConfig, RnaEncoding};
use crate::error::{Error, Result, Within};
use crate::io::safetensors::{Store, TensorFile, Writer};
use crate::models::masked_ar::MaskedAr;
use crate::models::msvq::Msvq;
use crate::tensor::{DType, Tensor};

/// Groups of every norm of VAR's tokenizer.
const GROUPS: usize = 32;
/// The note of a stage that was not trained here.
pub const IMPORTED: &str = "imported";
/// Sides of the scales of the released models, 256 and 512 px.
const RELEASED: [&[usize]; 2] =
    [&[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32]];
/// Ends of the keys of buffers, which say nothing that the weights do not.
const BUFFERS: [&str; 4] = ["ema_vocab_hit_SV", "zero_k_bias", "lvl_1L", "attn_bias_for_masking"];

/// A state dict: a file whose tensors are looked up by key, and which were.
struct Dict<'a> {
    file: &'a TensorFile,
    taken: BTreeSet<String>,
}

impl<'a> Dict<'a> {
    fn new(file: &'a TensorFile) -> Self {
        Self { file, taken: BTreeSet::new() }
    }

    fn dims(&self, key: &str) -> Result<&[usize]> {
        match self.file.contains(key) {
            true => self.file.shape(key),
            false => {
                let fix = "give a state dict of FoundationVision/VAR, saved as safetensors; a \
                           checkpoint of its trainer holds it under another key";
                Err(Error::file(self.file.path(), format!("has no tensor {key}"), fix))
            }
        }
    }

    /// An extent of a tensor.
    fn extent(&self, key: &str, axis: usize) -> Result<usize> {
        let dims = self.dims(key)?;
        dims.get(axis).copied().ok_or_else(|| {
            let what = format!("tensor {key} has {} axes", dims.len());
            Error::file(self.file.path(), what, "the file is of another model")
        })
    }

    /// How many numbers i from 0 there is such a key for.
    fn count(&self, key: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.file.contains(&key(i))).count()
    }

    fn take(&mut self, key: &str) -> Result<Tensor> {
        self.dims(key)?;
        self.taken.insert(key.to_string());
        match self.file.tensor(key)? {
            t if t.dtype() == DType::F32 => Ok(t),
            t => {
                let what = format!("tensor {key} holds {:?}", t.dtype());
                Err(Error::file(self.file.path(), what, "save it in f32, f16 or bf16"))
            }
        }
    }

    /// Fails when there is something that no model here has a place for.
    fn finish(&self) -> Result<()> {
        let known = |name: &&str| BUFFERS.iter().any(|end| name.ends_with(end));
        let rest = self.file.names().filter(|n| !self.taken.contains(*n) && !known(n));
        let rest: Vec<&str> = rest.collect();
        let Some(first) = rest.first() else { return Ok(()) };
        let what = format!("has {} tensors that VAR does not have, {first} first", rest.len());
        Err(Error::file(self.file.path(), what, "give state dicts of FoundationVision/VAR"))
    }
}

/// What a file does not say about itself.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Sides of the scales; None for those of the released models.
    pub patch_nums: Option<Vec<usize>>,
    /// Codes are found by angle (`using_znorm`).
    pub cosine: bool,
}

/// Reads a tokenizer and, where there is one, a transformer.
///
/// # Errors
/// A tensor that is missing, left over or of another shape, naming it.
pub fn import(tokenizer: &Path, transformer: Option<&Path>, hints: &Hints) -> Result<Bundle> {
    let vae = TensorFile::open(tokenizer)?;
    let var = transformer.map(TensorFile::open).transpose()?;
    let msvq = tokenizer_config(&Dict::new(&vae), var.as_ref(), hints)?;
    let mut config = Config { msvq, ..Config::default() };
    config.mask.k_m = config.mask.k_m.min(config.msvq.scales());
    config.ar = ArConfig { rna: RnaEncoding::ClassLabel, plain_var: true, ..config.ar };
    let mut stages = BTreeMap::new();
    let note = |path: &Path| Map::from_iter([(IMPORTED.to_string(), Value::from(shown(path)))]);
    let tensors = read_tokenizer(&config.msvq, &vae).within(tokenizer.display())?;
    stages.insert("msvq".into(), Trained { step: 0, tensors, notes: note(tokenizer) });
    if let (Some(var), Some(path)) = (&var, transformer) {
        config.ar = transformer_config(&Dict::new(var), config.ar)?;
        let tensors = read_transformer(&config, var).within(path.display())?;
        stages.insert("ar".into(), Trained { step: 0, tensors, notes: note(path) });
    }
    config.validate()?;
    Ok(Bundle { path: tokenizer.to_path_buf(), config, stages })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The tokenizer's sizes, from the shapes of its tensors.
fn tokenizer_config(d: &Dict<'_>, var: Option<&TensorFile>, hints: &Hints) -> Result<MsvqConfig> {
    let ch = d.extent("encoder.conv_in.weight", 0)?;
    let levels = d.count(|i| format!("encoder.down.{i}.block.0.conv2.weight"));
    let mult = |i: usize| {
        let width = d.extent(&format!("encoder.down.{i}.block.0.conv2.weight"), 0)?;
        match width % ch.max(1) {
            0 => Ok(width / ch),
            _ => {
                let what = format!("level {i} is {width} wide, no multiple of {ch}");
                Err(Error::file(d.file.path(), what, "the file is of another model"))
            }
        }
    };
    let sharing = Sharing::found(|key| d.file.contains(key));
    let phi = match sharing {
        Sharing::All => 1,
        _ => d.count(|j| sharing.key(&j.to_string(), "weight")),
    };
    let patch_nums = scales(var, hints)?;
    let Some(last) = patch_nums.last() else {
        return Err(Error::config("--patch-nums", "names no scale", "give sides, as 1,2,3,4"));
    };
    let image = last << levels.saturating_sub(1);
    // Whoever trains on at a small size needs fewer of the loss's scales: windows have 11 taps.
    let windows = (1..=5).rev().find(|s| image >> (s - 1) > 10).unwrap_or(1);
    Ok(MsvqConfig {
        image,
        loss: MsvqLossConfig { ms_ssim_scales: windows, ..MsvqLossConfig::default() },
        ch,
        ch_mult: (0..levels).map(mult).collect::<Result<_>>()?,
        res_blocks_enc: d.count(|j| format!("encoder.down.0.block.{j}.conv1.weight")),
        res_blocks_dec: d.count(|j| format!("decoder.up.0.block.{j}.conv1.weight")),
        attention: d.file.contains("encoder.mid.attn_1.qkv.weight"),
        norm_groups: GROUPS,
        d: d.extent("quant_conv.weight", 0)?,
        vocab: d.extent("quantize.embedding.weight", 0)?,
        phi,
        lookup: if hints.cosine { Lookup::Cosine } else { Lookup::L2 },
        patch_nums,
        ..MsvqConfig::default()
    })
}

/// The sides of the scales: as told, or those of the released model with so many positions.
fn scales(var: Option<&TensorFile>, hints: &Hints) -> Result<Vec<usize>> {
    if let Some(told) = &hints.patch_nums {
        return Ok(told.clone());
    }
    let Some(var) = var else { return Ok(RELEASED[0].to_vec()) };
    let positions = Dict::new(var).extent("pos_1LC", 1)?;
    let fits = |sides: &&&[usize]| sides.iter().map(|p| p * p).sum::<usize>() == positions;
    RELEASED.iter().find(fits).map(|sides| sides.to_vec()).ok_or_else(|| {
        let what = format!("has {positions} positions, as no released model");
        Error::file(var.path(), what, "give the sides of its scales with --patch-nums")
    })
}

/// The transformer's sizes.
fn transformer_config(d: &Dict<'_>, ar: ArConfig) -> Result<ArConfig> {
    if d.file.contains("shared_ada_lin.1.weight") {
        let what = "has one adaLN generator for all blocks, which is not read";
        return Err(Error::file(d.file.path(), what, "give a model with generators of its own"));
    }
    let depth = d.count(|i| format!("blocks.{i}.attn.proj.weight"));
    Ok(ArConfig {
        depth,
        width: d.extent("pos_1LC", 2)?,
        heads: d.extent("blocks.0.attn.scale_mul_1H11", 1)?,
        drop_path: 0.1 * depth as f64 / 24.0,
        classes: d.extent("class_emb.weight", 0)?.saturating_sub(1),
        ..ar
    })
}

/// Our tensors, by our names, of a tokenizer.
fn read_tokenizer(c: &MsvqConfig, file: &TensorFile) -> Result<BTreeMap<String, Tensor>> {
    let mut params = Params::new(0);
    Msvq::new(c, &mut params);
    let sharing = Sharing::found(|key| file.contains(key));
    let mut dict = Dict::new(file);
    let one = |(name, own): (String, Tensor)| {
        let key = names::tokenizer(&name, sharing);
        let given = channels_last(&dict.take(&key)?)?;
        if given.shape() != own.shape() {
            let what = format!("tensor {key} is {}, not {}", given.shape(), own.shape());
            return Err(Error::data(what, "give a tokenizer of FoundationVision/VAR"));
        }
        Ok((format!("param.{name}"), given))
    };
    let tensors = params.values().into_iter().map(one).collect::<Result<_>>()?;
    dict.finish()?;
    Ok(tensors)
}

/// Our tensors, by our names, of a transformer, and the channel statistics that it has no use for.
fn read_transformer(c: &Config, file: &TensorFile) -> Result<BTreeMap<String, Tensor>> {
    let mut params = Params::new(0);
    MaskedAr::new(&c.ar, &ar_dims(c), &mut params)?;
    let mut dict = Dict::new(file);
    let classes = dict.take("class_emb.weight")?;
    let one = |(name, own): (String, Tensor)| {
        let shape = own.shape().dims();
        let given = match (names::transformer(&name), name.as_str()) {
            (Some(key), _) => shaped(&key, &dict.take(&key)?, shape)?,
            (None, "classes") => classes.rows(0, c.ar.classes)?,
            // VAR's last class is the one of guidance.
            (None, "null") => classes.rows(c.ar.classes, 1)?,
            // Nothing is masked in a plain VAR.
            (None, _) => Tensor::zeros(DType::F32, shape),
        };
        Ok((format!("param.{name}"), shaped(&name, &given, shape)?))
    };
    let mut tensors = params.values().into_iter().map(one).collect::<Result<BTreeMap<_, _>>>()?;
    dict.finish()?;
    let of = |value| Tensor::full(DType::F32, [c.msvq.d], value);
    tensors.extend([("feature.mean".into(), of(0.0)), ("feature.std".into(), of(1.0))]);
    Ok(tensors)
}

/// Writes a bundle's tokenizer and, of a class-conditional plain VAR, its transformer with VAR's
/// keys into a folder: `vae.safetensors`, `var.safetensors`. Their paths.
///
/// # Errors
/// A tokenizer that VAR's classes cannot hold, naming the setting.
pub fn export(bundle: &Bundle, folder: &Path) -> Result<Vec<PathBuf>> {
    let c = &bundle.config;
    fits(&c.msvq)?;
    let stage = bundle.stage("msvq")?;
    crate::io::atomic::create_folder(folder)?;
    let sharing = Sharing::of(c.msvq.phi);
    let mut writer = Writer::new();
    for (name, tensor) in weights(stage) {
        writer.tensor(&names::tokenizer(name, sharing), &channels_first(tensor)?, Store::Full)?;
    }
    let hits = Tensor::zeros(DType::F32, [c.msvq.scales(), c.msvq.vocab]);
    writer.tensor("quantize.ema_vocab_hit_SV", &hits, Store::Full)?;
    let mut written = vec![folder.join("vae.safetensors")];
    writer.save(&written[0])?;
    let classes = c.ar.rna == RnaEncoding::ClassLabel && c.ar.plain_var && !c.ar.add_rk;
    if let (true, Some(stage)) = (classes && !c.ar.standardise, bundle.stages.get("ar")) {
        written.push(folder.join("var.safetensors"));
        write_transformer(c, stage)?.save(&written[1])?;
    }
    Ok(written)
}

fn weights(stage: &Trained) -> impl Iterator<Item = (&str, &Tensor)> {
    stage.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("param.")?, t)))
}

/// Whether VAR's classes can be made with these sizes.
fn fits(c: &MsvqConfig) -> Result<()> {
    let widths = c.ch_mult.iter().map(|m| m * c.ch);
    if let Some(width) = widths.into_iter().find(|&w| c.groups(w) != GROUPS) {
        let what = format!("gives {} groups to {width} channels", c.groups(width));
        return Err(Error::config("msvq.norm_groups", what, "VAR's norms have 32 groups"));
    }
    if c.res_blocks_dec != c.res_blocks_enc + 1 {
        let what = format!("is {}, with {} in the encoder", c.res_blocks_dec, c.res_blocks_enc);
        return Err(Error::config("msvq.res_blocks_dec", what, "VAR's decoder has one more"));
    }
    Ok(())
}

/// The transformer under VAR's keys, its buffers too, so that a strict loader takes it.
fn write_transformer(c: &Config, stage: &Trained) -> Result<Writer> {
    let mut writer = Writer::new();
    for (name, tensor) in weights(stage) {
        let Some(key) = names::transformer(name) else { continue };
        let d = tensor.shape().dims();
        let shape: Vec<usize> = match name {
            "pos" | "pos_start" => [&[1], d].concat(),
            _ if name.ends_with("ln_scale") => vec![1, d[0], 1, 1],
            _ => d.to_vec(),
        };
        writer.tensor(&key, &tensor.reshape(shape)?, Store::Full)?;
    }
    let rows = ["classes", "null"].map(|name| stage.tensor(&format!("param.{name}")));
    let [classes, null] = rows;
    let rows = [classes?.f32s()?, null?.f32s()?].concat();
    let classes = Tensor::new(rows, [c.ar.classes + 1, c.ar.width])?;
    writer.tensor("class_emb.weight", &classes, Store::Full)?;
    for i in 0..c.ar.depth {
        let zeros = Tensor::zeros(DType::F32, [c.ar.width]);
        writer.tensor(&format!("blocks.{i}.attn.zero_k_bias"), &zeros, Store::Full)?;
    }
    let sides = c.msvq.patch_nums.iter().enumerate();
    let level: Vec<i32> = sides.flat_map(|(k, p)| vec![k as i32; p * p]).collect();
    let n = level.len();
    let seen = |i: usize| if level[i / n] >= level[i % n] { 0.0 } else { f32::NEG_INFINITY };
    let bias = Tensor::new((0..n * n).map(seen).collect(), [1, 1, n, n])?;
    writer.tensor("attn_bias_for_masking", &bias, Store::Full)?;
    writer.tensor("lvl_1L", &Tensor::new_i32(level, [1, n])?, Store::Full)?;
    Ok(writer)
}
