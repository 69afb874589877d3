//! The scale-wise masked autoregressive transformer: VAR's blocks, conditioned on z, reading masked
//! f_hat.
//!
//! The sequence is [x_1; x_2; ..; x_K] with n_k = p_k^2 tokens each; the input at scale k predicts
//! the tokens of scale k. x_1 is the condition; for k >= 2, x_k = M_k (W_e D(f_hat_k)) + (1 - M_k)
//! e, plus level and position tables. Attention is full inside a scale and sees all scales before
//! it.

use crate::autograd::{Param, Params, Pass, Var};
use crate::config::{ArConfig, RnaEncoding};
use crate::device::constant;
use crate::error::{Error, Result, Within};
use crate::nn::{AdaLn, Init, Joined, KvCache, Linear, Mlp, Onto, SelfAttention, norm_modulate};
use crate::ops::activation::Silu;
use crate::ops::attention::Mask;
use crate::ops::elementwise::{ADD, Affine, Mul};
use crate::ops::embed::GatherRows;
use crate::ops::layout::{Concat, Reshape};
use crate::ops::mask::SelectRows;
use crate::ops::reduce::BroadcastTo;
use crate::tensor::{DType, Purpose, Stream, Tensor};

/// What the transformer must know of the other models.
#[derive(Clone, Debug)]
pub struct Dims {
    /// Width of z.
    pub latent: usize,
    /// Number of genes (linear RNA encoding).
    pub genes: usize,
    /// Channels of a feature map.
    pub d: usize,
    /// Codes.
    pub vocab: usize,
    /// Side of each scale.
    pub patch_nums: Vec<usize>,
}

/// Where z enters: the paper's condition or one of its ablations.
enum Condition {
    /// W_z z + b.
    Prior(Linear),
    /// One trained linear map of the genes, then W_z.
    Genes(Linear, Linear),
    /// A row of a table.
    Class(Param),
}

/// The condition of a batch.
pub enum Cond<'a> {
    /// z [B, latent], the genes [B, genes], or nothing beside the null.
    Vector(&'a Tensor),
    /// Class numbers `[B]`.
    Class(&'a Tensor),
}

struct Block {
    ada: AdaLn,
    attn: SelfAttention,
    mlp: Mlp,
    drop_path: f64,
}

/// adaLN vectors of every block and of the head. The condition is constant over an image, so they
/// are made once.
pub struct Modulation {
    blocks: Vec<Vec<Var>>,
    head: Vec<Var>,
}

/// Randomness of a training step: (seed, step) name every draw.
#[derive(Clone, Copy)]
pub struct TrainNoise {
    /// The run's seed.
    pub seed: u64,
    /// The step.
    pub step: u64,
}

/// The model.
pub struct MaskedAr {
    cfg: ArConfig,
    dims: Dims,
    condition: Condition,
    null: Param,
    pos_start: Param,
    pos: Param,
    level: Param,
    mask_token: Param,
    word: Linear,
    word_r: Option<Linear>,
    blocks: Vec<Block>,
    head_ada: AdaLn,
    head: Linear,
    /// The tables of each scale.
    joined: Vec<Joined>,
}

impl MaskedAr {
    /// Makes the parameters. Initialisation is VAR's: normal with sigma = sqrt(1 / 3C), then gains.
    pub fn new(cfg: &ArConfig, dims: &Dims, params: &mut Params) -> Result<Self> {
        let c = cfg.width;
        let sigma = (1.0 / (3.0 * c as f64)).sqrt();
        let init = Init::Normal(sigma);
        let out = Init::Normal(sigma / (2.0 * cfg.depth as f64).sqrt());
        let table =
            |p: &mut Params, name: &str, rows: usize| p.normal(name, [rows, c], sigma, false);
        let tokens = dims.patch_nums.iter().map(|p| p * p).sum();
        let condition = match cfg.rna {
            RnaEncoding::BetaVae => {
                Condition::Prior(Linear::new(params, "cond", [dims.latent, c], init))
            }
            RnaEncoding::Linear => {
                let genes = Linear::new(params, "genes", [dims.genes, dims.latent], Init::Xavier);
                Condition::Genes(genes, Linear::new(params, "cond", [dims.latent, c], init))
            }
            RnaEncoding::ClassLabel => Condition::Class(table(params, "classes", cfg.classes)),
        };
        let model = Self {
            condition,
            null: params.normal("null", [1, c], sigma, false),
            pos_start: table(params, "pos_start", 1),
            pos: table(params, "pos", tokens),
            level: table(params, "level", dims.patch_nums.len()),
            mask_token: params.normal("mask_token", [c], sigma, false),
            word: Linear::new(params, "word", [dims.d, c], init),
            word_r: cfg.add_rk.then(|| Linear::new(params, "word_r", [dims.d, c], init)),
            blocks: (0..cfg.depth)
                .map(|i| {
                    params.at(format_args!("blocks.{i}"), |p| Block {
                        ada: AdaLn::new(p, "ada", [c, 6], Init::Normal(sigma * cfg.adaln_gain)),
                        attn: SelfAttention::new(p, "attn", [c, cfg.heads], true, [init, out]),
                        mlp: Mlp::new(p, "mlp", c, [init, out]),
                        drop_path: cfg.drop_path * i as f64 / (cfg.depth.max(2) - 1) as f64,
                    })
                })
                .collect(),
            head_ada: AdaLn::new(params, "head_ada", [c, 2], Init::Normal(sigma * cfg.adaln_gain)),
            head: Linear::new(params, "head", [c, dims.vocab], Init::Normal(sigma * cfg.head_gain)),
            joined: dims.patch_nums.iter().map(|_| Joined::default()).collect(),
            cfg: cfg.clone(),
            dims: dims.clone(),
        };
        for b in &model.blocks {
            scale_rows(b.ada.linear().weight(), 2 * c, cfg.gate_gain / cfg.adaln_gain)?;
        }
        Ok(model)
    }

    /// Number of scales K.
    pub fn scales(&self) -> usize {
        self.dims.patch_nums.len()
    }

    /// The condition vectors [B, C]. Rows where `null` is true get the learned null vector.
    pub fn condition(&self, p: &Pass, cond: &Cond<'_>, null: &[bool]) -> Result<Var> {
        let c = self.cfg.width;
        let b = null.len();
        // As samples of one row each, so that none sees how many the others are.
        let each_alone = |x: &Tensor| Ok::<_, Error>(x.reshape([b, 1, x.shape().last()])?.into());
        let flat = |x: &Var| p.op(Reshape { to: [b, c].into() }, &[x]);
        let made = match (&self.condition, cond) {
            (Condition::Prior(w), Cond::Vector(z)) => flat(&w.forward(p, &each_alone(z)?)?)?,
            (Condition::Genes(genes, w), Cond::Vector(g)) => {
                flat(&w.forward(p, &genes.forward(p, &each_alone(g)?)?)?)?
            }
            (Condition::Class(table), Cond::Class(labels)) => {
                p.op(GatherRows, &[&p.param(table), &(*labels).clone().into()])?
            }
            _ => {
                let fix = "give class labels to a class-label model and vectors to the others";
                return Err(Error::config("ar.rna", "the condition is of another kind", fix));
            }
        };
        let keep: Vec<f64> = null.iter().map(|&n| f64::from(u8::from(!n))).collect();
        let keep = Tensor::from_f64s(made.value().dtype(), keep, [b, 1])?;
        let keep = constant(made.value(), &keep)?;
        let spread = p.op(BroadcastTo { to: [b, c].into() }, &[&p.param(&self.null)])?;
        blend(p, &made, &spread, &keep)
    }

    /// adaLN vectors for cond [B, C].
    pub fn modulation(&self, p: &Pass, cond: &Var) -> Result<Modulation> {
        let d = cond.dims();
        let cond = p.op(Silu, &[&p.op(Reshape { to: [d[0], 1, d[1]].into() }, &[cond])?])?;
        let blocks = self.blocks.iter().map(|b| b.ada.forward(p, &cond));
        Ok(Modulation {
            blocks: blocks.collect::<Result<_>>()?,
            head: self.head_ada.forward(p, &cond)?,
        })
    }

    /// The start token x_1 [B, 1, C] without tables.
    fn start(&self, p: &Pass, cond: &Var) -> Result<Var> {
        let d = cond.dims();
        let start = p.op(ADD, &[cond, &p.param(&self.pos_start)])?;
        p.op(Reshape { to: [d[0], 1, d[1]].into() }, &[&start])
    }

    /// Embeds what the transformer reads at neighbouring scales, with their `tables` [n, C].
    fn words(&self, p: &Pass, x: &Inputs<'_>, tables: &Var) -> Result<Var> {
        let words = self.word.forward(p, &x.features.clone().into())?;
        let words = match x.keep {
            Some(keep) => {
                let keep = keep.clone().into();
                p.op(SelectRows, &[&words, &keep, &p.param(&self.mask_token), tables])?
            }
            None => p.op(ADD, &[&words, tables])?,
        };
        match &self.word_r {
            Some(w) => p.op(ADD, &[&words, &w.forward(p, &x.r.clone().into())?]),
            None => Ok(words),
        }
    }

    /// Level and position tables for tokens `start..start + n` of scale indices `levels` (one a
    /// token).
    fn tables(&self, p: &Pass, start: usize, levels: Vec<i32>) -> Result<Var> {
        let n = levels.len();
        let rows = (start as i32..(start + n) as i32).collect();
        let pick = |table: &Param, rows: Vec<i32>| {
            let table = p.param(table);
            let rows = constant(table.value(), &Tensor::new_i32(rows, [n])?)?;
            p.op(GatherRows, &[&table, &rows.into()])
        };
        p.op(ADD, &[&pick(&self.pos, rows)?, &pick(&self.level, levels)?])
    }

    /// The tables of one scale, added once while they are not trained.
    fn tables_of(&self, p: &Pass, k: usize) -> Result<Var> {
        let before = self.dims.patch_nums[..k].iter().map(|p| p * p).sum();
        let levels = vec![k as i32; self.dims.patch_nums[k].pow(2)];
        if p.tracks(&self.pos) || p.tracks(&self.level) {
            return self.tables(p, before, levels);
        }
        let make = |_: &[Tensor]| Ok(self.tables(&Pass::eval(), before, levels)?.into_value());
        let of = [&self.pos, &self.level].map(Param::value);
        self.joined[k].get(of.into(), make).map(Var::constant)
    }

    /// Teacher forcing: logits [B, L, V] for all scales in one pass.
    ///
    /// `features`, `r` [B, L - 1, d] and `keep` [B, L - 1, 1] hold scales 2..K side by side.
    pub fn forward(
        &self,
        p: &Pass,
        cond: &Var,
        inputs: &Inputs<'_>,
        noise: Option<TrainNoise>,
    ) -> Result<Var> {
        let first = self.dims.patch_nums.first().map_or(0, |n| n * n);
        let start = p.op(ADD, &[&self.start(p, cond)?, &self.tables(p, 0, vec![0; first])?])?;
        let later = self.dims.patch_nums.iter().enumerate().skip(1);
        let levels = later.flat_map(|(k, n)| vec![k as i32; n * n]).collect();
        let words = self.words(p, inputs, &self.tables(p, first, levels)?)?;
        let mut x = p.op(Concat { axis: 1 }, &[&start, &words])?;
        let modulation = self.modulation(p, cond)?;
        let ends = Mask::Blocks(self.ends());
        for (i, (block, m)) in self.blocks.iter().zip(&modulation.blocks).enumerate() {
            let drop = noise.map(|n| (n, i));
            x = p
                .segment(|| block.forward(p, x, m, (ends.clone(), None), drop))
                .within(format_args!("block {i}"))?;
        }
        self.logits(p, &x, &modulation)
    }

    /// One decoding step: logits [B, n_k, V] of 0-based scale `k`, extending the caches (one a
    /// block). `inputs` are None for the first scale, whose input is the condition; where it has
    /// several streams of the same tiles, they are those of one.
    pub fn step(
        &self,
        p: &Pass,
        k: usize,
        cond: &Var,
        (modulation, caches): (&Modulation, &mut [KvCache]),
        inputs: Option<&Inputs<'_>>,
    ) -> Result<Var> {
        let tables = self.tables_of(p, k)?;
        let mut x = match inputs {
            None => p.op(ADD, &[&self.start(p, cond)?, &tables])?,
            Some(i) => streams(p, &self.words(p, i, &tables)?, cond.dims()[0])?,
        };
        for ((block, m), cache) in self.blocks.iter().zip(&modulation.blocks).zip(caches) {
            x = block.forward(p, x, m, (Mask::Full, Some(cache)), None)?;
        }
        self.logits(p, &x, modulation).within(format_args!("scale {}", k + 1))
    }

    /// An empty cache for each block. On a GPU scales of at most `few` tokens take a block in one
    /// launch: other sums, hence other last bits.
    pub fn caches(&self, few: usize) -> Vec<KvCache> {
        let room = self.dims.patch_nums.iter().map(|p| p * p).sum();
        self.blocks.iter().map(|_| KvCache::of(room, few)).collect()
    }

    fn ends(&self) -> Vec<usize> {
        let squares = self.dims.patch_nums.iter().map(|p| p * p);
        squares
            .scan(0, |end, n| {
                *end += n;
                Some(*end)
            })
            .collect()
    }

    fn logits(&self, p: &Pass, x: &Var, m: &Modulation) -> Result<Var> {
        self.head.forward(p, &norm_modulate(p, x, &m.head[0], &m.head[1])?)
    }
}

/// What the transformer reads besides the condition.
pub struct Inputs<'a> {
    /// Pooled f_hat (or r, for plain VAR) [B, n, d].
    pub features: &'a Tensor,
    /// Pooled f_{k-1} [B, n, d], read by the `add_rk` arm.
    pub r: &'a Tensor,
    /// The mask M [B, n, 1]: 1 keeps, 0 puts the learned token e; None keeps all.
    pub keep: Option<&'a Tensor>,
}

impl Block {
    /// adaLN order: gate_attn, gate_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn.
    fn forward(
        &self,
        p: &Pass,
        x: Var,
        m: &[Var],
        (mask, cache): (Mask, Option<&mut KvCache>),
        drop: Option<(TrainNoise, usize)>,
    ) -> Result<Var> {
        let gate = |g: &Var, site: usize| match drop {
            Some((noise, layer)) if self.drop_path > 0.0 => {
                let kept = drop_rows(noise, 2 * layer + site, x.dims()[0], self.drop_path)?;
                p.op(Mul, &[g, &kept.cast(g.value().dtype()).into()])
            }
            _ => Ok(g.clone()),
        };
        let (mask, cache) = match (mask, cache) {
            (Mask::Full, Some(cache)) if drop.is_none() && cache.is_few(p, &x) => {
                return self.attn.whole_block(p, &x, m, (&self.mlp, cache));
            }
            other => other,
        };
        let (g1, g2) = (gate(&m[0], 0)?, gate(&m[1], 1)?);
        let h = norm_modulate(p, &x, &m[2], &m[4])?;
        let onto = Onto { stream: &x, gate: &g1 };
        let x = self.attn.forward(p, &h, (mask, cache), &onto)?;
        let h = norm_modulate(p, &x, &m[3], &m[5])?;
        self.mlp.forward(p, &h, &Onto { stream: &x, gate: &g2 })
    }
}

/// Per-sample stochastic depth [B, 1, 1]: 0 with probability `rate`, else 1 / (1 - rate).
fn drop_rows(noise: TrainNoise, site: usize, rows: usize, rate: f64) -> Result<Tensor> {
    let s = Stream::new(noise.seed, noise.step, site as u16, Purpose::Dropout);
    let kept = (1.0 / (1.0 - rate)) as f32;
    let draw = |i| if f64::from(s.uniform(i)) < rate { 0.0 } else { kept };
    Tensor::new((0..rows).map(draw).collect(), [rows, 1, 1])
}

/// keep x + (1 - keep) y, with keep of one column broadcast over both.
fn blend(p: &Pass, x: &Var, y: &Var, keep: &Tensor) -> Result<Var> {
    let keep = Var::constant(keep.clone());
    let rest = p.op(Affine { scale: -1.0, shift: 1.0 }, &[&keep])?;
    p.op(ADD, &[&p.op(Mul, &[x, &keep])?, &p.op(Mul, &[y, &rest])?])
}

/// x [B, n, C] for each stream of the same tiles, `rows` samples in all.
fn streams(p: &Pass, x: &Var, rows: usize) -> Result<Var> {
    match *x.dims() {
        [b, n, c] if b != rows && b > 0 && rows.is_multiple_of(b) => {
            let one = p.op(Reshape { to: [1, b, n, c].into() }, &[x])?;
            let all = p.op(BroadcastTo { to: [rows / b, b, n, c].into() }, &[&one])?;
            p.op(Reshape { to: [rows, n, c].into() }, &[&all])
        }
        _ => Ok(x.clone()),
    }
}

/// Multiplies the first `rows` rows of a matrix by `gain`.
fn scale_rows(w: &Param, rows: usize, gain: f64) -> Result<()> {
    let value = w.value();
    if value.remote().is_some() {
        // It waits for the weights that were trained.
        return Ok(());
    }
    let cols = value.shape().last();
    let scaled = (0..value.len())
        .map(|i| if i / cols < rows { value.at(i) * gain } else { value.at(i) })
        .collect();
    w.set(Tensor::from_f64s(DType::F32, scaled, value.shape())?)
}
