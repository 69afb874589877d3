//! Tiles from a trained system: through the tokenizer and back, and from RNA.

use std::time::Instant;

use super::protocol::{Windows, derangement};
use super::tiles::Tiles;
use crate::data::loader::{from_tensor, to_tensor};
use crate::data::pack::Pack;
use crate::device::cpu::each;
use crate::error::{Error, Result, Within};
use crate::io::images::Rgb;
use crate::models::msvq::Msvq;
use crate::sample::profiles::Profiles;
use crate::sample::{Graphs, Sampler, Subject};
use crate::tensor::Tensor;
use crate::train::interrupt::Interrupt;
use crate::train::system::System;

/// Tiles drawn between two looks at the keyboard.
const CHUNK: usize = 32;
/// Tiles of one profile: their numbers are image * this + which.
const TILES_AN_IMAGE: u64 = 1 << 20;

/// A trained system about to paint.
#[derive(Clone, Copy)]
pub struct Painter<'a> {
    /// The system.
    pub system: &'a System,
    /// Where the RNA is.
    pub pack: &'a Pack,
    /// Seed of every draw.
    pub seed: u64,
    /// Raised by Ctrl-C.
    pub interrupt: &'a Interrupt,
    /// Called after each tile, from any thread.
    pub done: &'a (dyn Fn() + Sync),
}

/// Tiles for the windows of a reference set, one each.
pub struct Painted {
    /// From the RNA of the window's own tile.
    pub own: Tiles,
    /// From another tile's RNA, with the same random numbers.
    pub shuffled: Tiles,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Painter<'_> {
    /// Paints for each window of `like` a tile from its own and one from another tile's RNA.
    ///
    /// # Errors
    /// RNA that the system cannot read; Ctrl-C.
    pub fn paint(&self, like: &Windows, split: &str) -> Result<Painted> {
        let mut images = like.images.clone();
        images.sort_unstable();
        images.dedup();
        let expression = self.pack.expression(&images)?;
        let rows: Vec<usize> = (0..images.len()).collect();
        let profiles = Profiles::encode(self.system, &expression, &rows)?;
        let other = derangement(images.len(), self.seed)?;
        let (mut own, mut shuffled) = (Vec::new(), Vec::new());
        let mut before = None;
        let mut which = 0;
        for &image in &like.images {
            let row = images.partition_point(|&i| i < image);
            which = if before == Some(image) { which + 1 } else { 0 };
            before = Some(image);
            let id = image as u64 * TILES_AN_IMAGE + which;
            own.push(profiles.subject(self.system, row, id)?);
            shuffled.push(profiles.subject(self.system, other[row], id)?);
        }
        let started = Instant::now();
        let own = Tiles::new(format!("tiles from own RNA, {split}"), self.draw(&own)?)?;
        let name = format!("tiles from shuffled RNA, {split}");
        let shuffled = Tiles::new(name, self.draw(&shuffled)?)?;
        Ok(Painted { own, shuffled, seconds: started.elapsed().as_secs_f64() })
    }

    /// Paints one tile for each image of the pack from its RNA; images follow each other in the
    /// pack's order or not, each once.
    ///
    /// # Errors
    /// RNA that the system cannot read.
    pub fn from_rna(&self, images: &[usize]) -> Result<Vec<Rgb>> {
        let expression = self.pack.expression(images)?;
        let rows: Vec<usize> = (0..images.len()).collect();
        let profiles = Profiles::encode(self.system, &expression, &rows)?;
        let one = |(row, &image): (usize, &usize)| {
            profiles.subject(self.system, row, image as u64 * TILES_AN_IMAGE)
        };
        self.draw(&images.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?)
    }

    fn draw(&self, subjects: &[Subject]) -> Result<Vec<Rgb>> {
        let settings = &self.system.config.sample;
        let refiner = self.system.refiner(self.seed);
        let device = self.system.device.clone();
        let graphs = Graphs::default();
        let sampler = Sampler { refiner, ar: &self.system.ar, settings, device, graphs };
        let mut images = Vec::with_capacity(subjects.len());
        for part in subjects.chunks(CHUNK) {
            self.interrupt.check()?;
            for tile in sampler.tiles(part, self.done)? {
                images.extend(from_tensor(&tile.pixels)?);
            }
        }
        Ok(images)
    }

    /// Real windows through the tokenizer and back: (all scales, last scale predicted by Phi).
    ///
    /// The second is the decoder's picture of f_hat_K, which Phi makes from f_{K-1} and z; a system
    /// without Phi has none.
    ///
    /// # Errors
    /// As the models.
    pub fn reconstruct(&self, real: &Windows) -> Result<(Tiles, Option<Tiles>)> {
        let expression = self.pack.expression(&real.images)?;
        let rows: Vec<usize> = (0..real.images.len()).collect();
        let z = Profiles::encode(self.system, &expression, &rows)?.z;
        self.interrupt.check()?;
        let one = |&i: &usize| self.reconstruct_one(&*real.tiles.tile(i)?, &z.rows(i, 1)?, i);
        let pairs = each(&rows, one)?;
        let name = |how: &str| format!("{}, {how}", real.tiles.name());
        let whole = pairs.iter().map(|p| p.0.clone()).collect();
        let whole = Tiles::new(name("through the tokenizer"), whole)?;
        let predicted: Option<Vec<Rgb>> = pairs.into_iter().map(|p| p.1).collect();
        let name = name("last scale predicted by Phi");
        Ok((whole, predicted.map(|p| Tiles::new(name, p)).transpose()?))
    }

    fn reconstruct_one(&self, tile: &Rgb, z: &Tensor, i: usize) -> Result<(Rgb, Option<Rgb>)> {
        let msvq = &self.system.msvq;
        let pyramid = pyramid(msvq, tile).within(format_args!("window {i}"))?;
        let picture =
            |f: &Tensor| -> Result<Option<Rgb>> { Ok(from_tensor(&msvq.paint_latent(f)?)?.pop()) };
        let last = pyramid.len() - 1;
        let whole = picture(&pyramid[last])?.unwrap_or_else(|| tile.clone());
        let predicted = match last.checked_sub(1) {
            Some(before) => {
                let refiner = self.system.refiner(self.seed);
                let truth = Some(&pyramid[last]);
                refiner.inputs(last, &pyramid[before], truth, z, &[i as u64])?.f_hat
            }
            None => None,
        };
        let predicted = predicted.map(|f| picture(&f)).transpose()?.flatten();
        (self.done)();
        Ok((whole, predicted))
    }
}

/// A tile through the tokenizer and back.
///
/// # Errors
/// A tile of another size.
pub fn through(msvq: &Msvq, tile: &Rgb) -> Result<Rgb> {
    let none = || Error::Internal("there are no scales".into());
    let latent = pyramid(msvq, tile)?.pop().ok_or_else(none)?;
    from_tensor(&msvq.paint_latent(&latent)?)?.pop().ok_or_else(none)
}

/// f_1 .. f_K of a tile.
fn pyramid(msvq: &Msvq, tile: &Rgb) -> Result<Vec<Tensor>> {
    let pixels = to_tensor(std::slice::from_ref(tile))?;
    let f = msvq.encode(&crate::autograd::Pass::eval(), &pixels.into())?;
    Ok(msvq.quantiser().walk(f.value())?.1)
}
