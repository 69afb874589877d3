//! Phi: the network of Causal MeanFlow, f^t to an average velocity u (both [B, H, H, d]).
//!
//! Two sets of adaLN vectors (Eq. 7): one a sample from z + t + r + k, modulating self-attention
//! and the feed-forward network, and one a position from r_k + t + r + k, modulating
//! cross-attention to r_k. The generators and the last layer start at zero, so Phi is zero before
//! training and so is its gradient to r_k.

use crate::autograd::{Param, Params, Pass, Var};
use crate::config::{FlowMode, MeanFlowConfig, TimePair};
use crate::device::constant;
use crate::error::{Error, Result, Within};
use crate::nn::{
    AdaLn, CrossAttention, Init, Linear, Mlp, Onto, SelfAttention, Stack, Tables, layer_norm,
    norm_modulate,
};
use crate::ops::activation::Silu;
use crate::ops::attention::Mask;
use crate::ops::elementwise::{ADD, Affine, Mul, SUB};
use crate::ops::embed::{GatherRows, TimeEmbed};
use crate::ops::gemm::Act;
use crate::ops::layout::Reshape;
use crate::ops::resample::{Map, Resample};
use crate::tensor::{DType, Tensor};

/// Longest period of the time embedding; times are in [0, 1] and not rescaled, or du/dt would blow
/// up.
const MAX_PERIOD: f64 = 1e4;

/// Sizes that Phi takes from the tokenizer and the gene prior.
#[derive(Clone, Debug)]
pub struct PhiDims {
    /// Side H of a feature map.
    pub side: usize,
    /// Channels d of a feature map.
    pub d: usize,
    /// Width of z.
    pub latent: usize,
    /// Side of each scale.
    pub patch_nums: Vec<usize>,
}

/// SiLU network of two layers over an embedding.
struct Embedder(Linear, Linear);

impl Embedder {
    fn new(p: &mut Params, name: &str, [i, w]: [usize; 2], init: Init) -> Self {
        p.at(name, |p| {
            Self(Linear::new(p, "fc1", [i, w], init), Linear::new(p, "fc2", [w, w], init))
        })
    }
    fn forward(&self, p: &Pass, x: &Var) -> Result<Var> {
        self.1.forward(p, &self.0.forward_act(p, x, Act::Silu)?)
    }
}

struct Block {
    ada: AdaLn,
    attn: SelfAttention,
    mlp: Mlp,
    cross: Option<(AdaLn, CrossAttention)>,
}

/// z [B, latent], and what Phi made of it if it is asked more than once.
#[derive(Clone, Copy)]
pub struct PhiLatent<'a> {
    /// z itself.
    pub z: &'a Tensor,
    /// What is the same at every scale.
    pub settled: Option<&'a Settled>,
}

impl<'a> From<&'a Tensor> for PhiLatent<'a> {
    fn from(z: &'a Tensor) -> Self {
        Self { z, settled: None }
    }
}

/// What Phi reads at every scale of a sample, made once; see [`Phi::settle`].
pub struct Settled {
    /// E_z(z) [B, 1, w].
    z: Var,
    /// E_t(t) + E_r(r) [B, 1, w], where all that is asked for is at these times.
    times: Option<Var>,
}

/// What Phi looks at.
pub struct PhiInput<'a> {
    /// f^t [B, H, H, d].
    pub f: &'a Var,
    /// r_k [B, p, p, d].
    pub r_k: &'a Var,
    /// z.
    pub z: PhiLatent<'a>,
    /// Rows that see the learned null instead of z.
    pub null: &'a [bool],
    /// Current time t `[B]`.
    pub t: &'a Var,
    /// Target time r `[B]`.
    pub r: &'a Var,
    /// 0-based scale.
    pub k: usize,
}

/// The network.
pub struct Phi {
    cfg: MeanFlowConfig,
    dims: PhiDims,
    f_in: Linear,
    r_in: Linear,
    r_up: Linear,
    z_null: Param,
    e_z: Embedder,
    e_t: Embedder,
    e_r: Embedder,
    e_k: Param,
    positions: Tables,
    blocks: Vec<Block>,
    out_ada: AdaLn,
    out: Linear,
    /// Layers of all blocks that read c1, c2 and rho.
    stacks: [Stack; 3],
}

/// What all blocks read.
struct Read {
    /// adaLN's vectors of each block and, last, of the output.
    m: Vec<Vec<Var>>,
    /// adaLN's vectors of cross-attention, and its keys and values, of each block that has it.
    cross: Option<[Vec<Vec<Var>>; 2]>,
}

impl Phi {
    /// Makes the parameters.
    pub fn new(cfg: &MeanFlowConfig, dims: &PhiDims, params: &mut Params) -> Self {
        let w = cfg.width;
        let x = Init::Xavier;
        // The published time embedder's deviation (MeanFlow, DiT).
        let n = Init::Normal(0.02);
        let heads = w / cfg.head_width;
        let cross = cfg.mode != FlowMode::Vanilla;
        Self {
            f_in: Linear::new(params, "f_in", [dims.d, w], x),
            r_in: Linear::new(params, "r_in", [dims.d, w], x),
            r_up: Linear::new(params, "r_up", [dims.d, w], x),
            z_null: params.normal("z_null", [1, dims.latent], 0.02, false),
            e_z: Embedder::new(params, "e_z", [dims.latent, w], x),
            e_t: Embedder::new(params, "e_t", [cfg.time_dims, w], n),
            e_r: Embedder::new(params, "e_r", [cfg.time_dims, w], n),
            e_k: params.normal("e_k", [dims.patch_nums.len(), w], 0.02, false),
            positions: Tables::default(),
            blocks: (0..cfg.blocks)
                .map(|i| {
                    params.at(format_args!("blocks.{i}"), |p| Block {
                        ada: AdaLn::new(p, "ada", [w, 6], Init::Zero),
                        attn: SelfAttention::new(p, "attn", [w, heads], false, [x, x]),
                        mlp: Mlp::new(p, "mlp", w, [x, x]),
                        cross: cross.then(|| {
                            let ada = AdaLn::new(p, "ada_r", [w, 3], Init::Zero);
                            (ada, CrossAttention::new(p, "cross", [w, heads], x))
                        }),
                    })
                })
                .collect(),
            out_ada: AdaLn::new(params, "out_ada", [w, 2], Init::Zero),
            out: Linear::new(params, "out", [w, dims.d], Init::Zero),
            stacks: Default::default(),
            cfg: cfg.clone(),
            dims: dims.clone(),
        }
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &MeanFlowConfig {
        &self.cfg
    }

    /// The sizes it was made with.
    pub fn dims(&self) -> &PhiDims {
        &self.dims
    }

    /// What [`Phi::forward`] makes of z [B, latent], none of its rows null, and of the times (t, r)
    /// of all rows, if there is one such pair.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn settle(&self, p: &Pass, z: &Tensor, times: Option<[f64; 2]>) -> Result<Settled> {
        let null = vec![false; z.shape().matrix().0];
        let at = |[t, r]: [f64; 2]| {
            let time = |x: f64| {
                let all = Tensor::full(z.dtype(), [null.len()], x);
                Ok::<_, Error>(Var::constant(constant(z, &all)?))
            };
            self.waves(p, &time(t)?, &time(r)?)
        };
        let times = times.map(at).transpose()?.flatten();
        Ok(Settled { z: self.z(p, z, &null)?, times })
    }

    /// u [B, H, H, d].
    pub fn forward(&self, p: &Pass, x: &PhiInput<'_>) -> Result<Var> {
        self.velocity(p, x).within(format_args!("Phi at scale {}", x.k + 1))
    }

    fn velocity(&self, p: &Pass, x: &PhiInput<'_>) -> Result<Var> {
        let (b, w) = (x.f.dims()[0], self.cfg.width);
        let (n, side) = (self.dims.side * self.dims.side, self.dims.patch_nums[x.k]);
        let flat = |v: &Var, n: usize| p.op(Reshape { to: [b, n, self.dims.d].into() }, &[v]);
        let place = |v: &Var, side: usize| {
            let table = |dtype| positions(dtype, side, self.dims.side, w);
            p.op(ADD, &[v, &self.positions.get(side, v.value(), table)?.into()])
        };
        let mut h = place(&self.f_in.forward(p, &flat(x.f, n)?)?, self.dims.side)?;
        let times = self.times(p, x)?;
        let z = match x.z.settled.filter(|_| !x.null.contains(&true)) {
            Some(settled) => settled.z.clone(),
            None => self.z(p, x.z.z, x.null)?,
        };
        let c1 = p.op(Silu, &[&p.op(ADD, &[&z, &times])?])?;
        let context = match self.cfg.mode {
            FlowMode::Vanilla => None,
            _ => {
                let rho = self.r_in.forward(p, &flat(x.r_k, side * side)?)?;
                let rho = layer_norm(p, &place(&rho, side)?)?;
                let up = Resample::new(Map::Bicubic, [side; 2], [self.dims.side; 2]);
                let up = flat(&p.op(up, &[x.r_k])?, n)?;
                let c2 = p.op(ADD, &[&self.r_up.forward(p, &up)?, &times])?;
                Some((rho, p.op(Silu, &[&c2])?))
            }
        };
        let read = self.read(p, &c1, context.as_ref())?;
        for (i, (block, m)) in self.blocks.iter().zip(&read.m).enumerate() {
            let cross = read.cross.as_ref().map(|[m, kv]| [&m[i][..], &kv[i][..]]);
            h = p.segment(|| block.forward(p, h, m, cross)).within(format_args!("block {i}"))?;
        }
        let o = &read.m[self.blocks.len()];
        let u = p.wide(&self.out.forward(p, &norm_modulate(p, &h, &o[0], &o[1])?)?)?;
        p.op(Reshape { to: x.f.value().shape().clone() }, &[&u])
    }

    /// What the blocks read of c1 and of (rho, c2), made side by side.
    fn read(&self, p: &Pass, c1: &Var, context: Option<&(Var, Var)>) -> Result<Read> {
        let [of_c1, of_c2, of_rho] = &self.stacks;
        let own = self.blocks.iter().map(|b| b.ada.layer()).chain([self.out_ada.layer()]);
        let m = of_c1.pieces(p, c1, &own.collect::<Vec<_>>()).within("adaLN of c1")?;
        let crosses: Option<Vec<_>> = self.blocks.iter().map(|b| b.cross.as_ref()).collect();
        let (Some(crosses), Some((rho, c2))) = (crosses, context) else {
            return Ok(Read { m, cross: None });
        };
        let (ada, kv): (Vec<_>, Vec<_>) =
            crosses.iter().map(|(ada, cross)| (ada.layer(), cross.layer())).unzip();
        let ada = of_c2.pieces(p, c2, &ada).within("adaLN of c2")?;
        let kv = of_rho.pieces(p, rho, &kv).within("keys and values of r_k")?;
        Ok(Read { m, cross: Some([ada, kv]) })
    }

    /// E_t(t) + E_r(r or t - r) + E_k(k) [B, 1, w].
    fn times(&self, p: &Pass, x: &PhiInput<'_>) -> Result<Var> {
        let b = x.f.dims()[0];
        let rows = constant(x.f.value(), &Tensor::new_i32(vec![x.k as i32; b], [b])?)?;
        let level = each_alone(p, &p.op(GatherRows, &[&p.param(&self.e_k), &rows.into()])?)?;
        let settled = x.z.settled.and_then(|s| s.times.clone());
        match settled.map_or_else(|| self.waves(p, x.t, x.r), |times| Ok(Some(times)))? {
            Some(times) => p.op(ADD, &[&times, &level]),
            None => Ok(level),
        }
    }

    /// E_t(t) + E_r(r or t - r) [B, 1, w]; the deterministic network has no times.
    fn waves(&self, p: &Pass, t: &Var, r: &Var) -> Result<Option<Var>> {
        if self.cfg.mode == FlowMode::Vit {
            return Ok(None);
        }
        let wave = TimeEmbed { dim: self.cfg.time_dims, max_period: MAX_PERIOD };
        let second = match self.cfg.embed {
            TimePair::Both => r.clone(),
            TimePair::Difference => p.op(SUB, &[t, r])?,
        };
        let wave = |t: &Var| each_alone(p, &p.op(wave.clone(), &[t])?);
        let t = self.e_t.forward(p, &wave(t)?)?;
        let r = self.e_r.forward(p, &wave(&second)?)?;
        p.op(ADD, &[&t, &r]).map(Some)
    }

    /// E_z of z, or of the learned null on rows that must not see it [B, 1, w].
    fn z(&self, p: &Pass, z: &Tensor, null: &[bool]) -> Result<Var> {
        if self.cfg.rna && !null.contains(&true) && !p.tracks(&self.z_null) {
            return self.e_z.forward(p, &each_alone(p, &z.clone().into())?);
        }
        let keep = null.iter().map(|&n| f64::from(u8::from(self.cfg.rna && !n))).collect();
        let keep = constant(z, &Tensor::from_f64s(z.dtype(), keep, [null.len(), 1])?)?;
        let rest = p.op(Affine { scale: -1.0, shift: 1.0 }, &[&keep.clone().into()])?;
        let z = p.op(Mul, &[&z.clone().into(), &keep.into()])?;
        let spread = crate::ops::reduce::BroadcastTo { to: z.value().shape().clone() };
        let null = p.op(Mul, &[&p.op(spread, &[&p.param(&self.z_null)])?, &rest])?;
        self.e_z.forward(p, &each_alone(p, &p.op(ADD, &[&z, &null])?)?)
    }
}

impl Block {
    /// adaLN order of the c1 set: scale, shift, gate of attention, then of the network; of the c2
    /// set: the same of cross-attention. Both conditions come through SiLU.
    fn forward(&self, p: &Pass, h: Var, m: &[Var], context: Option<[&[Var]; 2]>) -> Result<Var> {
        let x = norm_modulate(p, &h, &m[0], &m[1])?;
        let onto = Onto { stream: &h, gate: &m[2] };
        let mut h = self.attn.forward(p, &x, (Mask::Full, None), &onto)?;
        if let (Some((_, cross)), Some([m, kv])) = (&self.cross, context) {
            let x = norm_modulate(p, &h, &m[0], &m[1])?;
            h = cross.forward(p, &x, kv, &Onto { stream: &h, gate: &m[2] })?;
        }
        let x = norm_modulate(p, &h, &m[3], &m[4])?;
        self.mlp.forward(p, &x, &Onto { stream: &h, gate: &m[5] })
    }
}

/// Rows [B, w] as samples of one row each [B, 1, w], so that none sees how many the others are.
fn each_alone(p: &Pass, x: &Var) -> Result<Var> {
    let d = x.dims();
    p.op(Reshape { to: [d[0], 1, d[1]].into() }, &[x])
}

/// Sines and cosines of the cell centres of a `side` x `side` grid [side^2, w], in units of the
/// finest grid's cells, so that all scales share one geometry: a quarter each of sin x, cos x, sin
/// y, cos y.
fn positions(dtype: DType, side: usize, finest: usize, w: usize) -> Result<Tensor> {
    let quarter = w / 4;
    let centre = |i: usize| (i as f64 + 0.5) * finest as f64 / side as f64;
    let mut values = Vec::with_capacity(side * side * w);
    for i in 0..side * side {
        for c in 0..w {
            let part = (c / quarter.max(1)).min(3);
            let rate = MAX_PERIOD.powf(-((c % quarter.max(1)) as f64) / quarter.max(1) as f64);
            let at = rate * centre(if part < 2 { i % side } else { i / side });
            values.push(if part.is_multiple_of(2) { at.sin() } else { at.cos() });
        }
    }
    Tensor::from_f64s(dtype, values, [side * side, w])
}
