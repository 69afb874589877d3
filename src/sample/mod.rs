//! RNA to tile: K scales, each a step of the transformer, a refinement by Phi and its mask.
//!
//! A tile is a function of (seed, tile number, condition, settings): on the CPU tiles are drawn one
//! by one, spread over the cores, on a GPU some at a time, by kernels that sum the numbers of a
//! sample in an order of its own. So neither the batch nor the number of threads changes a bit of
//! any of them.
pub mod command;

use crate::autograd::{Pass, Var};
use crate::config::SampleConfig;
use crate::device::Device;
use crate::device::cpu::each;
use crate::error::{Error, Result, Within};
use crate::models::genevar::{Refiner, ScaleInputs};
use crate::models::masked_ar::{Cond, Inputs, MaskedAr};
use crate::ops::call;
use crate::ops::layout::Concat;
use crate::ops::random::{Rows, names, uniform_rows};
use crate::ops::sample::SampleToken;
use crate::tensor::{DType, Purpose, Tensor};

/// Tiles that a GPU draws at a time.
const BATCH: usize = 32;

/// Everything a tile is drawn with.
#[derive(Clone)]
pub struct Sampler<'a> {
    /// Tokenizer, Phi, mask and seed.
    pub refiner: Refiner<'a>,
    /// The transformer.
    pub ar: &'a MaskedAr,
    /// Guidance and truncation.
    pub settings: &'a SampleConfig,
    /// Where the models are and tiles are drawn.
    pub device: Device,
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
        if let Device::Cpu = self.device {
            return each(subjects, |s| {
                let tile = self.tile(s).within(format_args!("tile {}", s.id));
                done();
                tile
            });
        }
        let mut tiles = Vec::with_capacity(subjects.len());
        for part in subjects.chunks(BATCH) {
            let ids = part.first().zip(part.last()).map_or((0, 0), |(a, b)| (a.id, b.id));
            let place = format_args!("tiles {} to {}", ids.0, ids.1);
            tiles.extend(self.batch(part).within(place)?);
            part.iter().for_each(|_| done());
        }
        Ok(tiles)
    }

    /// Draws one tile.
    pub fn tile(&self, s: &Subject) -> Result<Tile> {
        let none = || Error::Internal("no tile was drawn".into());
        self.batch(std::slice::from_ref(s))?.pop().ok_or_else(none)
    }

    /// Draws tiles side by side. On a GPU nothing is waited for until all of it is queued.
    pub fn batch(&self, subjects: &[Subject]) -> Result<Vec<Tile>> {
        let p = Pass::eval();
        let msvq = self.refiner.msvq;
        let guided = self.settings.cfg != 0.0;
        let cond = self.condition(&p, subjects, guided)?;
        let modulation = self.ar.modulation(&p, &cond)?;
        let mut caches = self.ar.caches(self.settings.few);
        let ids: Vec<u64> = subjects.iter().map(|s| s.id).collect();
        let names = self.device.put(&names(self.refiner.seed, &ids)?)?;
        let z = self.device.put(&side_by_side(subjects.iter().map(|s| &s.z))?)?;
        let scales = self.ar.scales();
        let mut f: Option<Tensor> = None;
        let mut drawn = Vec::with_capacity(scales);
        for k in 0..scales {
            let seen = f.as_ref().map(|f| self.refiner.inputs_named(k, f, None, &z, &names));
            let seen = seen.transpose()?;
            let seen = seen.map(|i| if guided { twice(&i) } else { Ok(i) }).transpose()?;
            let inputs = seen.as_ref().map(|i| Inputs {
                features: &i.features,
                r: &i.r,
                keep: i.keep.as_ref(),
            });
            let state = (&modulation, &mut caches[..]);
            let logits = self.ar.step(&p, k, &cond, state, inputs.as_ref())?.into_value();
            let s_k = self.draw(&logits, (k, scales), &names)?;
            f = Some(match &f {
                Some(f) => msvq.quantiser().add_scale(f, k, &s_k)?,
                None => msvq.quantiser().first_scale(&s_k)?,
            });
            drawn.push(s_k);
        }
        let f = f.ok_or_else(|| Error::Internal("there are no scales".into()))?;
        let pixels = msvq.paint_latent(&f)?;
        finished(&drawn, &f, &pixels)
    }

    /// The conditions of the tiles and, when guided, the null below them [B or 2 B, C].
    fn condition(&self, p: &Pass, subjects: &[Subject], guided: bool) -> Result<Var> {
        let what = side_by_side(subjects.iter().map(|s| s.other.as_ref().unwrap_or(&s.z)))?;
        let what = if guided { side_by_side([&what, &what])? } else { what };
        let what = self.device.put(&what)?;
        let cond = match what.dtype() {
            DType::I32 => Cond::Class(&what),
            _ => Cond::Vector(&what),
        };
        let mut null = vec![false; subjects.len()];
        if guided {
            null.resize(2 * subjects.len(), true);
        }
        self.ar.condition(p, &cond, &null)
    }

    /// Guided mix, top-k, top-p and draw: logits [B or 2 B, n, V] to tokens [B, n].
    fn draw(&self, logits: &Tensor, (k, scales): (usize, usize), names: &Tensor) -> Result<Tensor> {
        let d = logits.shape().dims();
        if let Device::Cpu = self.device {
            logits.check_finite(&format!("logits of scale {}", k + 1))?;
        }
        let rows = Rows { scale: k as u16, purpose: Purpose::Token, row: [d[1]].into() };
        let u = uniform_rows(&self.device, rows, names)?;
        let guidance = (d[0] > u.shape().dims()[0]).then(|| self.settings.guidance_at(k, scales));
        let (top_k, top_p) = (self.settings.kept(d[2]), self.settings.top_p);
        call(&SampleToken { top_k, top_p, guidance }, &[logits, &u])
    }
}

/// Rows [1, ..] or `[1]` of the CPU's memory one after the other.
fn side_by_side<'a>(rows: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    let rows: Vec<&Tensor> = rows.into_iter().collect();
    let first = rows.first().ok_or_else(|| Error::Internal("nothing to draw".into()))?;
    let mut dims = first.shape().dims().to_vec();
    dims[0] = rows.iter().map(|t| t.shape().dims()[0]).sum();
    match first.dtype() {
        DType::I32 => {
            let parts = rows.iter().map(|t| t.i32s()).collect::<Result<Vec<_>>>()?;
            Tensor::new_i32(parts.concat(), dims)
        }
        _ => {
            let parts = rows.iter().map(|t| t.f32s()).collect::<Result<Vec<_>>>()?;
            Tensor::new(parts.concat(), dims)
        }
    }
}

/// The tiles of a batch, fetched: tokens [B, n] of each scale, f_K and pixels.
fn finished(drawn: &[Tensor], latent: &Tensor, pixels: &Tensor) -> Result<Vec<Tile>> {
    let rows = pixels.shape().dims()[0];
    let mut tokens = vec![Vec::new(); rows];
    for (k, scale) in drawn.iter().enumerate() {
        let (all, n) = (scale.i32s()?, scale.shape().last());
        // What is no distribution draws no token.
        if let Some(first) = all.iter().position(|t| *t < 0) {
            let count = all.iter().filter(|t| **t < 0).count();
            let place = format!("logits of scale {}", k + 1);
            return Err(Error::NotFinite { place, count, len: all.len(), first });
        }
        tokens.iter_mut().zip(all.chunks(n)).for_each(|(row, part)| row.extend(part));
    }
    let one = |(i, tokens): (usize, Vec<i32>)| {
        let l = tokens.len();
        let (latent, pixels) = (latent.rows(i, 1)?, pixels.rows(i, 1)?);
        Ok(Tile { tokens: Tensor::new_i32(tokens, [1, l])?, latent, pixels })
    };
    tokens.into_iter().enumerate().map(one).collect()
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
