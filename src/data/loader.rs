//! Batches: which examples make step `s`, and their pixels as a tensor.
//!
//! A step's batch is a function of (seed, step) alone, so a resumed run sees what an uninterrupted
//! one would. Epochs run into one another: no example is dropped, and a batch may be larger than
//! the data.

use crate::data::ahead::Source;
use crate::data::augment;
use crate::data::gallery::Gallery;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::tensor::{Purpose, Stream, Tensor};

/// Draws examples 0..n in a new order each epoch.
#[derive(Clone, Debug)]
pub struct Sampler {
    n: usize,
    batch: usize,
    seed: u64,
    /// The last two epochs asked for and their orders: a batch spans at most a few.
    orders: Vec<(u64, Vec<usize>)>,
}

/// One example of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example {
    /// Which of the n examples.
    pub index: usize,
    /// Its number in the run, counting every draw: the `sample` of its augmentation stream.
    pub draw: u64,
}

impl Sampler {
    /// Batches of `batch` out of `n` examples.
    pub fn new(n: usize, batch: usize, seed: u64) -> Result<Self> {
        if n == 0 || batch == 0 {
            let what = format!("batches of {batch} out of {n} examples");
            return Err(Error::data(what, "use a split that has tiles and a batch of at least 1"));
        }
        Ok(Self { n, batch, seed, orders: Vec::new() })
    }

    /// The examples of step `step`, steps counting from 0.
    pub fn batch(&mut self, step: u64) -> Vec<Example> {
        let first = step * self.batch as u64;
        (first..first + self.batch as u64).map(|draw| self.example(draw)).collect()
    }

    /// How many epochs have begun before step `step`, as a fraction.
    pub fn epochs(&self, step: u64) -> f64 {
        step as f64 * self.batch as f64 / self.n as f64
    }

    fn example(&mut self, draw: u64) -> Example {
        let (epoch, at) = (draw / self.n as u64, (draw % self.n as u64) as usize);
        let place = self.orders.iter().position(|(e, _)| *e == epoch).unwrap_or_else(|| {
            if self.orders.len() == 2 {
                self.orders.remove(0);
            }
            let order = Stream::new(self.seed, epoch, 0, Purpose::Batch).permutation(self.n);
            self.orders.push((epoch, order));
            self.orders.len() - 1
        });
        Example { index: self.orders[place].1[at], draw }
    }
}

/// Images `[B, S, S, 3]` in [-1, 1]; all must have the same size.
pub fn to_tensor(images: &[Rgb]) -> Result<Tensor> {
    let Some(first) = images.first() else {
        return Err(Error::data("an empty batch of images", "give at least one"));
    };
    let (w, h) = (first.width, first.height);
    let mut data = Vec::with_capacity(3 * w * h * images.len());
    for (i, image) in images.iter().enumerate() {
        if (image.width, image.height) != (w, h) {
            let what = format!("image {i} is {}x{}, not {w}x{h}", image.width, image.height);
            return Err(Error::shape("batch", what));
        }
        data.extend(image.data.iter().map(|&v| f32::from(v) / 127.5 - 1.0));
    }
    Tensor::new(data, [images.len(), h, w, 3])
}

/// The images of a tensor `[B, H, W, 3]`: clipped to [-1, 1], then rounded to 8 bits.
pub fn from_tensor(x: &Tensor) -> Result<Vec<Rgb>> {
    let &[_, h, w, 3] = x.shape().dims() else {
        return Err(Error::shape("images", format!("{} is not [B, H, W, 3]", x.shape())));
    };
    x.check_finite("images")?;
    let byte = |&v: &f32| ((v.clamp(-1.0, 1.0) + 1.0) * 127.5 + 0.5) as u8;
    let one = |pixels: &[f32]| Rgb::new(w, h, pixels.iter().map(byte).collect());
    x.f32s()?.chunks_exact(3 * h * w).map(one).collect()
}

/// Random windows of the examples' images under random symmetries, `[B, size, size, 3]` in [-1, 1].
/// Image `e.index` is that of example `e`.
pub fn windows(images: &Gallery, examples: &[Example], size: usize, seed: u64) -> Result<Tensor> {
    let cut = |e: &Example| {
        let (_, image) = images.at(e.index, 0..images.len())?;
        augment::window(&image, size, seed, e.draw)
    };
    to_tensor(&examples.iter().map(cut).collect::<Result<Vec<_>>>()?)
}

/// Batches of windows: the tokenizer's.
#[derive(Clone)]
pub struct Windows {
    /// The images, at least as large as a window.
    pub images: Gallery,
    /// Which of them make a step.
    pub sampler: Sampler,
    /// Side of a window.
    pub size: usize,
    /// The run's seed.
    pub seed: u64,
}

impl Source for Windows {
    type Batch = Tensor;

    fn make(&mut self, step: u64) -> Result<Tensor> {
        windows(&self.images, &self.sampler.batch(step), self.size, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_example_once_and_steps_are_random_access() {
        let mut forward = Sampler::new(10, 4, 7).unwrap();
        let all: Vec<Example> = (0..10).flat_map(|s| forward.batch(s)).collect();
        for epoch in all.chunks(10) {
            let mut seen: Vec<usize> = epoch.iter().map(|e| e.index).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        let mut fresh = Sampler::new(10, 4, 7).unwrap();
        assert_eq!(fresh.batch(6), all[24..28]);
        assert_eq!(fresh.batch(1), all[4..8]);
        assert_ne!(Sampler::new(10, 4, 8).unwrap().batch(0), all[..4]);
        assert!(Sampler::new(0, 4, 7).is_err());
    }

    #[test]
    fn pixels_survive_the_round_trip() {
        let data = (0..3 * 16 * 16).map(|i| (i % 256) as u8).collect();
        let image = Rgb::new(16, 16, data).unwrap();
        let x = to_tensor(&[image.clone(), image.clone()]).unwrap();
        assert_eq!(x.shape().dims(), [2, 16, 16, 3]);
        assert!(x.f32s().unwrap().iter().all(|v| (-1.0..=1.0).contains(v)));
        assert_eq!(from_tensor(&x).unwrap(), [image.clone(), image]);
    }

    #[test]
    fn windows_do_not_depend_on_the_batch_they_are_cut_in() {
        let images: Vec<Rgb> = (0..3).map(|i| Rgb::filled(8, 8, [i * 40, 10, 200])).collect();
        let images = images.into();
        let a = Example { index: 1, draw: 11 };
        let b = Example { index: 2, draw: 12 };
        let both = windows(&images, &[a, b], 4, 3).unwrap();
        let alone = windows(&images, &[b], 4, 3).unwrap();
        assert_eq!(both.f32s().unwrap()[48..], *alone.f32s().unwrap());
    }
}
