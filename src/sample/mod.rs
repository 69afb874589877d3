//! RNA to tile: K scales, each a step of the transformer, a refinement by Phi and its mask.
//!
//! A tile is a function of (seed, tile number, condition, settings): tiles are drawn one by one,
//! spread over the cores, so neither the batch nor the number of threads changes a bit of any of
//! them.

pub mod command;

use crate::autograd::{Pass, Var};
use crate::config::SampleConfig;
use crate::device::cpu::each;
use crate::error::{Result, Within};
use crate::models::genevar::{Refiner, ScaleInputs};
use crate::models::masked_ar::{Cond, Inputs, MaskedAr};
use crate::ops::call;
use crate::ops::elementwise::{Affine, Axpy};
use crate::ops::layout::Concat;
use crate::ops::sample::SampleToken;
use crate::tensor::{DType, Purpose, Stream, Tensor};

/// Everything a tile is drawn with.
#[derive(Clone)]
pub struct Sampler<'a> {
    /// Tokenizer, Phi, mask and seed.
    pub refiner: Refiner<'a>,
    /// The transformer.
    pub ar: &'a MaskedAr,
    /// Guidance and truncation.
    pub settings: &'a SampleConfig,
}

/// What a tile is drawn for.
#[derive(Clone)]
pub struct Subject {
    /// The tile's number: with the seed it names all its random draws.
    pub id: u64,
    /// z [1, latent], read by Phi and, under the beta-VAE encoding, by the transformer.
    pub z: Tensor,
    /// What the transformer reads instead of z in the ablations: genes [1, G] or a class number
    /// `[1]`.
    pub other: Option<Tensor>,
}

/// One drawn tile.
pub struct Tile {
    /// Tokens [1, L].
    pub tokens: Tensor,
    /// f_K [1, H, H, d].
    pub latent: Tensor,
    /// Pixels [1, S, S, 3] in [-1, 1].
    pub pixels: Tensor,
}

impl Sampler<'_> {
    /// Draws a tile for each subject; `done` is called after each, from any thread.
    pub fn tiles(&self, subjects: &[Subject], done: &(dyn Fn() + Sync)) -> Result<Vec<Tile>> {
        let one = |s: &Subject| {
            let tile = self.tile(s).within(format_args!("tile {}", s.id));
            done();
            tile
        };
        each(subjects, one)
    }

    /// Draws one tile.
    pub fn tile(&self, s: &Subject) -> Result<Tile> {
        let p = Pass::eval();
        let quantiser = self.refiner.msvq.quantiser();
        let guided = self.settings.cfg != 0.0;
        let cond = self.condition(&p, s, guided)?;
        let modulation = self.ar.modulation(&p, &cond)?;
        let mut caches = self.ar.caches();
        let config = self.refiner.msvq.config();
        let (side, scales) = (config.latent_side(), self.ar.scales());
        let mut f = Tensor::zeros(DType::F32, [1, side, side, config.d]);
        let mut drawn = Vec::with_capacity(config.tokens());
        for k in 0..scales {
            let seen = match k {
                0 => None,
                _ => Some(self.refiner.inputs(k, &f, None, &s.z, &[s.id])?),
            };
            let seen = seen.map(|i| if guided { twice(&i) } else { Ok(i) }).transpose()?;
            let inputs = seen.as_ref().map(|i| Inputs {
                features: &i.features,
                r: &i.r,
                keep: i.keep.as_ref(),
            });
            let state = (&modulation, &mut caches[..]);
            let logits = self.ar.step(&p, k, &cond, state, inputs.as_ref())?.into_value();
            let s_k = self.draw(&logits, (k, scales), s.id)?;
            f = quantiser.add_scale(&f, k, &s_k)?;
            drawn.extend_from_slice(s_k.i32s()?);
        }
        let l = drawn.len();
        let pixels = self.refiner.msvq.paint_latent(&f)?;
        Ok(Tile { tokens: Tensor::new_i32(drawn, [1, l])?, latent: f, pixels })
    }

    /// The condition of the tile and, when guided, the null below it [1 or 2, C].
    fn condition(&self, p: &Pass, s: &Subject, guided: bool) -> Result<Var> {
        let what = s.other.as_ref().unwrap_or(&s.z);
        let n = if guided { 2 } else { 1 };
        let rows = match what.dtype() {
            DType::I32 => Tensor::new_i32(what.i32s()?.repeat(n), [n])?,
            _ => Tensor::new(what.f32s()?.repeat(n), [n, what.len()])?,
        };
        let cond = match rows.dtype() {
            DType::I32 => Cond::Class(&rows),
            _ => Cond::Vector(&rows),
        };
        let null: &[bool] = if guided { &[false, true] } else { &[false] };
        self.ar.condition(p, &cond, null)
    }

    /// Guided mix, top-k, top-p and draw: logits [1 or 2, n, V] to tokens [1, n].
    fn draw(&self, logits: &Tensor, (k, scales): (usize, usize), id: u64) -> Result<Tensor> {
        let d = logits.shape().dims().to_vec();
        let (n, vocab) = (d[1], d[2]);
        let row = |i: usize| logits.rows(i, 1)?.reshape([n, vocab]);
        let tau = self.settings.guidance_at(k, scales);
        let mixed = match d[0] {
            1 => row(0)?,
            _ => {
                let own = call(&Affine { scale: 1.0 + tau, shift: 0.0 }, &[&row(0)?])?;
                call(&Axpy { alpha: -tau }, &[&own, &row(1)?])?
            }
        };
        mixed.check_finite(&format!("logits of scale {}", k + 1))?;
        let u = Stream::new(self.refiner.seed, id, k as u16, Purpose::Token).uniforms(n);
        let op = SampleToken { top_k: self.settings.kept(vocab), top_p: self.settings.top_p };
        call(&op, &[&mixed, &Tensor::new(u, [n])?])?.reshape([1, n])
    }
}

/// The same inputs for the conditional and the null stream.
fn twice(x: &ScaleInputs) -> Result<ScaleInputs> {
    let double = |t: &Tensor| call(&Concat { axis: 0 }, &[t, t]);
    Ok(ScaleInputs {
        features: double(&x.features)?,
        r: double(&x.r)?,
        keep: x.keep.as_ref().map(double).transpose()?,
        f_hat: x.f_hat.clone(),
    })
}
