//! RNA to tile: K scales, each a step of the transformer, a refinement by Phi and its mask.
//!
//! A tile is a function of (seed, tile number, condition, settings): on the CPU tiles are drawn one
//! by one, spread over the cores, on a GPU some at a time, by kernels that sum the numbers of a
//! sample in an order of its own. So neither the batch nor the number of threads changes a bit of
//! any of them.

pub mod classes;
pub mod command;
mod edit;
mod job;
mod output;
pub mod profiles;
mod replay;

pub use replay::{Cost, Graphs};

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::autograd::{Pass, Var};
use crate::config::SampleConfig;
use crate::device::Device;
use crate::device::cpu::{each, threads};
use crate::device::span;
use crate::error::{Error, Result, Within};
use crate::models::genevar::Refiner;
use crate::models::masked_ar::{Cond, Inputs, MaskedAr};
use crate::models::phi::PhiLatent;
use crate::ops::call;
use crate::ops::random::{Rows, names, uniform_rows};
use crate::ops::sample::SampleToken;
use crate::tensor::{DType, Purpose, Tensor};

/// Tiles that a GPU draws at a time, at most.
const MOST: usize = 64;
/// Tiles of a first batch, which tells what memory a tile takes.
const FIRST: usize = 8;
/// Threads that take tiles while a GPU draws.
const TAKERS: usize = 4;

/// What becomes of tiles: called with a tile's index and the tile.
pub type Take<'a> = &'a (dyn Fn(usize, Tile) -> Result<()> + Sync);

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
    /// What was recorded on a GPU, for these models and settings.
    pub graphs: Graphs,
}

/// What tiles are drawn for, as tensors.
struct Given {
    /// Names of their random numbers [B, 4], the seed among them.
    names: Tensor,
    /// z [B, latent].
    z: Tensor,
    /// What the transformer reads [B, C] or `[B]`; guided, twice.
    what: Tensor,
}

/// What was drawn.
struct Drawn {
    /// Tokens of each scale [B, n].
    tokens: Vec<Tensor>,
    /// f_K [B, H, H, d].
    latent: Tensor,
    /// Pixels [B, S, S, 3].
    pixels: Tensor,
}

impl Given {
    fn tiles(&self) -> usize {
        self.names.shape().dims().first().copied().unwrap_or(0)
    }

    fn on(&self, device: &Device) -> Result<Self> {
        let put = |t: &Tensor| device.put(t);
        Ok(Self { names: put(&self.names)?, z: put(&self.z)?, what: put(&self.what)? })
    }
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
#[derive(Clone)]
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
        let all: Mutex<Vec<Option<Tile>>> = Mutex::new(subjects.iter().map(|_| None).collect());
        self.stream(subjects, &|i, tile| {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = all.get_mut(i) {
                *place = Some(tile);
            }
            done();
            Ok(())
        })?;
        let all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = || Error::Internal("a tile was not drawn".into());
        all.into_iter().map(|tile| tile.ok_or_else(missing)).collect()
    }

    /// Draws a tile for each subject and hands it to `take` with its index, from any thread and in
    /// any order. On a GPU other threads take tiles while it draws the next ones.
    ///
    /// # Errors
    /// Those of drawing, and the first of `take`, after which no more is drawn.
    pub fn stream(&self, subjects: &[Subject], take: Take<'_>) -> Result<()> {
        if let Device::Cpu = self.device {
            let all: Vec<usize> = (0..subjects.len()).collect();
            let one = |&i: &usize| {
                let s = &subjects[i];
                take(i, self.tile(s).within(format_args!("tile {}", s.id))?)
            };
            // Fewer tiles than cores would leave some idle: then each is drawn by all of them.
            return match subjects.len() < threads() {
                true => all.iter().try_for_each(one),
                false => each(&all, one).map(drop),
            };
        }
        let (send, receive) = sync_channel(2 * MOST);
        let (receive, failed) = (Mutex::new(receive), Mutex::new(None));
        let failed = &failed;
        std::thread::scope(|scope| {
            for _ in 0..TAKERS {
                scope.spawn(|| taken(&receive, take, failed));
            }
            let drawn = self.send(subjects, failed, &send);
            // The takers end when there is nothing left to come.
            drop(send);
            drawn
        })?;
        failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Draws batch after batch, until a taker has failed.
    fn send(
        &self,
        subjects: &[Subject],
        failed: &Mutex<Option<Error>>,
        to: &SyncSender<(usize, Tile)>,
    ) -> Result<()> {
        let mut drawn = 0;
        while let Some(left) = subjects.get(drawn..).filter(|left| !left.is_empty()) {
            if failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                return Ok(());
            }
            let (part, _) = left.split_at(left.len().min(self.abreast()?));
            let ids = part.first().zip(part.last()).map_or((0, 0), |(a, b)| (a.id, b.id));
            let place = format_args!("tiles {} to {}", ids.0, ids.1);
            for (i, tile) in self.batch(part).within(place)?.into_iter().enumerate() {
                let gone = |_| Error::Internal("nobody takes tiles any more".into());
                to.send((drawn + i, tile)).map_err(gone)?;
            }
            drawn += part.len();
        }
        Ok(())
    }

    /// How many tiles to draw side by side: as many as fit, once it is known what one takes.
    fn abreast(&self) -> Result<usize> {
        match &self.device {
            Device::Cuda(queue) => {
                Ok(self.graphs.abreast(|| queue.gpu().spare())?.unwrap_or(FIRST))
            }
            _ => Ok(FIRST),
        }
    }

    /// Draws one tile.
    pub fn tile(&self, s: &Subject) -> Result<Tile> {
        let none = || Error::Internal("no tile was drawn".into());
        self.batch(std::slice::from_ref(s))?.pop().ok_or_else(none)
    }

    /// Draws tiles side by side. On a GPU nothing is waited for until all of it is queued, and from
    /// the third batch of a size on it is one command.
    pub fn batch(&self, subjects: &[Subject]) -> Result<Vec<Tile>> {
        let given = self.given(subjects)?;
        match &self.device {
            Device::Cuda(queue) if !queue.checks() && !queue.verifies() => {
                self.graphs.draw(self, queue, &given)
            }
            _ => self.draw_eagerly(&given),
        }
    }

    /// [`Sampler::batch`] op by op, whatever was recorded: what a profile looks at.
    ///
    /// # Errors
    /// Those of drawing.
    pub fn eagerly(&self, subjects: &[Subject]) -> Result<Vec<Tile>> {
        self.draw_eagerly(&self.given(subjects)?)
    }

    fn draw_eagerly(&self, given: &Given) -> Result<Vec<Tile>> {
        let drawn = self.queue_up(&given.on(&self.device)?)?;
        let _part = span::part("fetch");
        drawn.fetched()?.tiles()
    }

    fn given(&self, subjects: &[Subject]) -> Result<Given> {
        let ids: Vec<u64> = subjects.iter().map(|s| s.id).collect();
        let what = side_by_side(subjects.iter().map(|s| s.other.as_ref().unwrap_or(&s.z)))?;
        let what = if self.guided() { side_by_side([&what, &what])? } else { what };
        let z = side_by_side(subjects.iter().map(|s| &s.z))?;
        Ok(Given { names: names(self.refiner.seed, &ids)?, z, what })
    }

    fn guided(&self) -> bool {
        self.settings.cfg != 0.0
    }

    /// Draws without looking at what is drawn.
    fn queue_up(&self, given: &Given) -> Result<Drawn> {
        let p = Pass::eval();
        let msvq = self.refiner.msvq;
        let part = span::part("condition");
        let cond = self.condition(&p, given)?;
        let modulation = self.ar.modulation(&p, &cond)?;
        let settled = self.refiner.settle(&given.z)?;
        let z = PhiLatent { z: &given.z, settled: settled.as_ref() };
        drop(part);
        let mut caches = self.ar.caches(self.settings.few);
        let scales = self.ar.scales();
        let mut f: Option<Tensor> = None;
        let mut tokens = Vec::with_capacity(scales);
        for k in 0..scales {
            let _scale = span::scale(k + 1);
            let names = &given.names;
            let part = span::part("input");
            let seen = f.as_ref().map(|f| self.refiner.inputs_of(k, f, None, z, names));
            let seen = seen.transpose()?;
            let inputs = seen.as_ref().map(|i| Inputs {
                features: &i.features,
                r: &i.r,
                keep: i.keep.as_ref(),
            });
            drop(part);
            let part = span::part("transformer");
            let state = (&modulation, &mut caches[..]);
            let logits = self.ar.step(&p, k, &cond, state, inputs.as_ref())?.into_value();
            drop(part);
            let part = span::part("token draw");
            let s_k = self.draw(&logits, (k, scales), names)?;
            drop(part);
            let _part = span::part("feature map");
            f = Some(match &f {
                Some(f) => msvq.quantiser().add_scale(f, k, &s_k)?,
                None => msvq.quantiser().first_scale(&s_k)?,
            });
            tokens.push(s_k);
        }
        let latent = f.ok_or_else(|| Error::Internal("there are no scales".into()))?;
        let _part = span::part("decoder");
        let pixels = msvq.paint_latent(&latent)?;
        Ok(Drawn { tokens, latent, pixels })
    }

    /// The conditions of the tiles and, when guided, the null below them [B or 2 B, C].
    fn condition(&self, p: &Pass, given: &Given) -> Result<Var> {
        let cond = match given.what.dtype() {
            DType::I32 => Cond::Class(&given.what),
            _ => Cond::Vector(&given.what),
        };
        let mut null = vec![false; given.tiles()];
        if self.guided() {
            null.resize(2 * given.tiles(), true);
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

/// Hands tiles on as they come, and keeps the first error.
fn taken(from: &Mutex<Receiver<(usize, Tile)>>, take: Take<'_>, failed: &Mutex<Option<Error>>) {
    let next = || from.lock().unwrap_or_else(PoisonError::into_inner).recv();
    while let Ok((i, tile)) = next() {
        if let Err(e) = take(i, tile) {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
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

impl Drawn {
    /// Copies in the CPU's memory. What is on a GPU is read again each time: a graph writes there.
    fn fetched(&self) -> Result<Self> {
        let here = |t: &Tensor| match t.remote() {
            Some(elements) => elements.fetch()?.reshape(t.shape()),
            None => Ok(t.clone()),
        };
        let tokens = self.tokens.iter().map(here).collect::<Result<_>>()?;
        Ok(Self { tokens, latent: here(&self.latent)?, pixels: here(&self.pixels)? })
    }

    /// The tiles, one by one.
    fn tiles(&self) -> Result<Vec<Tile>> {
        let rows = self.pixels.shape().dims()[0];
        let mut tokens = vec![Vec::new(); rows];
        for (k, scale) in self.tokens.iter().enumerate() {
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
            let (latent, pixels) = (self.latent.rows(i, 1)?, self.pixels.rows(i, 1)?);
            Ok(Tile { tokens: Tensor::new_i32(tokens, [1, l])?, latent, pixels })
        };
        tokens.into_iter().enumerate().map(one).collect()
    }
}
