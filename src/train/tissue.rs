//! Batches for the stages that follow the tokenizer: crops of tissue, each with its z or without
//! one.
//!
//! Crop `i` of step `s` is a function of (seed, s, i). Paired crops come from tiles with RNA; a
//! share of each batch may come from unpaired tissue, which is seen under the null condition.

use std::ops::Range;
use std::sync::Arc;

use crate::data::ahead::{Ahead, Source, Workers};
use crate::data::augment::window;
use crate::data::gallery::Gallery;
use crate::data::loader::{Sampler, to_tensor};
use crate::error::{Error, Result};
use crate::tensor::{Purpose, Stream, Tensor};

/// Tiles with their RNA in latent form, and tissue without.
pub struct Tissue {
    /// Images with RNA, then images without; all at least as large as a crop.
    pub images: Gallery,
    /// Slide or section of each image.
    pub slides: Vec<usize>,
    /// What the transformer is conditioned on, for each image with RNA.
    pub latents: Latents,
    /// Standardised expression of each image with RNA [N, genes], for the linear RNA encoding
    /// alone.
    pub genes: Option<Tensor>,
    /// Class number of each image with RNA; empty when the classes are not used.
    pub classes: Vec<i32>,
}

/// The gene prior's answer for a set of profiles, in units of its training statistics.
#[derive(Clone, Debug)]
pub struct Latents {
    /// Posterior means [N, latent].
    pub mean: Tensor,
    /// Posterior deviations [N, latent].
    pub std: Tensor,
}

impl Latents {
    /// Number of profiles.
    pub fn len(&self) -> usize {
        self.mean.shape().matrix().0
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How batches are put together.
#[derive(Clone, Copy, Debug)]
pub struct BatchRule {
    /// The run's seed.
    pub seed: u64,
    /// Rows of a batch.
    pub batch: usize,
    /// Side of a crop in pixels.
    pub crop: usize,
    /// Share of the rows from unpaired tissue.
    pub unpaired: f64,
    /// Share of the paired rows that see the null condition.
    pub drop: f64,
    /// Whether z is drawn from the posterior instead of being its mean.
    pub posterior: bool,
}

/// One batch.
pub struct TissueBatch {
    /// The crops as [B, S, S, 3] in [-1, 1].
    pub pixels: Tensor,
    /// z [B, latent]; zeros where there is none.
    pub z: Tensor,
    /// Rows under the null condition.
    pub null: Vec<bool>,
    /// Slide of each row.
    pub slides: Vec<usize>,
    /// The number that names each row's random draws.
    pub ids: Vec<u64>,
    /// Standardised expression [B, genes], where the tissue has it; zeros for unpaired rows.
    pub genes: Option<Tensor>,
    /// Class numbers `[B]`; 0 where there is none.
    pub classes: Tensor,
}

impl TissueBatch {
    /// Some of its rows.
    ///
    /// # Errors
    /// Rows that it has not.
    pub fn part(&self, rows: Range<usize>) -> Result<Self> {
        let cut = |t: &Tensor| t.rows(rows.start, rows.len());
        let lacks = || Error::Internal(format!("a batch without rows {rows:?}"));
        Ok(Self {
            pixels: cut(&self.pixels)?,
            z: cut(&self.z)?,
            null: self.null.get(rows.clone()).ok_or_else(lacks)?.to_vec(),
            slides: self.slides.get(rows.clone()).ok_or_else(lacks)?.to_vec(),
            ids: self.ids.get(rows.clone()).ok_or_else(lacks)?.to_vec(),
            genes: self.genes.as_ref().map(cut).transpose()?,
            classes: cut(&self.classes)?,
        })
    }
}

/// Draws batches of a [`Tissue`], ahead of who asks where there are threads for it.
pub struct Batches(Ahead<Draws>);

/// What makes them.
#[derive(Clone)]
struct Draws {
    tissue: Arc<Tissue>,
    rule: BatchRule,
    paired: Sampler,
    free: Option<(Sampler, usize)>,
}

impl Batches {
    /// Batches by `rule`, each made when it is asked for.
    pub fn new(tissue: Tissue, rule: BatchRule) -> Result<Self> {
        let paired = tissue.latents.len();
        if tissue.images.len() < paired || tissue.slides.len() != tissue.images.len() {
            return Err(Error::Internal("images, slides and latents differ in number".into()));
        }
        let unpaired = tissue.images.len() - paired;
        let rows = (rule.batch as f64 * rule.unpaired).round() as usize;
        let rows = if unpaired == 0 { 0 } else { rows.min(rule.batch.saturating_sub(1)) };
        // A seed of its own, so that the two orders are not the same permutation.
        let free = match rows {
            0 => None,
            n => Some((Sampler::new(unpaired, n, rule.seed ^ 0x5eed)?, n)),
        };
        let paired = Sampler::new(paired, rule.batch - rows, rule.seed)?;
        let draws = Draws { paired, tissue: Arc::new(tissue), rule, free };
        Ok(Self(Ahead::new(draws, Workers::NONE)))
    }

    /// Made ahead by these.
    pub fn by(self, workers: Workers) -> Self {
        Self(Ahead::new(self.0.source().clone(), workers))
    }

    /// The batch of `step`.
    ///
    /// # Errors
    /// A tile that cannot be decoded.
    pub fn at(&mut self, step: u64) -> Result<TissueBatch> {
        self.0.at(step)
    }
}

impl Source for Draws {
    type Batch = TissueBatch;

    fn make(&mut self, step: u64) -> Result<TissueBatch> {
        let first = step * self.rule.batch as u64;
        let mut picked: Vec<usize> = self.paired.batch(step).iter().map(|e| e.index).collect();
        let with_rna = picked.len();
        if let Some((free, _)) = &mut self.free {
            let offset = self.tissue.latents.len();
            picked.extend(free.batch(step).iter().map(|e| offset + e.index));
        }
        let ids: Vec<u64> = (first..first + picked.len() as u64).collect();
        let (paired, all) = (self.tissue.latents.len(), self.tissue.images.len());
        let crop = |(i, &id): (&mut usize, &u64)| {
            // Where a tile is bad, what belongs to it stays out with it.
            let among = if *i < paired { 0..paired } else { paired..all };
            let (found, image) = self.tissue.images.at(*i, among)?;
            *i = found;
            window(&image, self.rule.crop, self.rule.seed, id)
        };
        let crops = picked.iter_mut().zip(&ids).map(crop).collect::<Result<Vec<_>>>()?;
        let mut z = Vec::new();
        let mut null = Vec::new();
        for (row, (&i, &id)) in picked.iter().zip(&ids).enumerate() {
            let drawn = Stream::new(self.rule.seed, id, 0, Purpose::Dropout).uniform(0);
            null.push(row >= with_rna || f64::from(drawn) < self.rule.drop);
            z.extend(self.latent(if row < with_rna { Some(i) } else { None }, id));
        }
        let class = |&i: &usize| self.tissue.classes.get(i).copied().unwrap_or(0);
        Ok(TissueBatch {
            pixels: to_tensor(&crops)?,
            z: Tensor::from_f64s(crate::tensor::DType::F32, z, [picked.len(), self.width()])?,
            null,
            slides: picked.iter().map(|&i| self.tissue.slides[i]).collect(),
            ids,
            genes: self.expression(&picked)?,
            classes: Tensor::new_i32(picked.iter().map(class).collect(), [picked.len()])?,
        })
    }
}

impl Draws {
    fn expression(&self, picked: &[usize]) -> Result<Option<Tensor>> {
        let Some(genes) = &self.tissue.genes else { return Ok(None) };
        let (rows, w) = genes.shape().matrix();
        let all = genes.f32s()?;
        let mut values = vec![0.0; picked.len() * w];
        for (row, &i) in values.chunks_mut(w.max(1)).zip(picked).filter(|(_, i)| **i < rows) {
            row.copy_from_slice(&all[i * w..(i + 1) * w]);
        }
        Tensor::new(values, [picked.len(), w]).map(Some)
    }

    fn width(&self) -> usize {
        self.tissue.latents.mean.shape().last()
    }

    /// z of profile `i`: the mean, or a draw from the posterior named by the row's id.
    fn latent(&self, i: Option<usize>, id: u64) -> Vec<f64> {
        let w = self.width();
        let Some(i) = i else { return vec![0.0; w] };
        let l = &self.tissue.latents;
        let noise = Stream::new(self.rule.seed, id, 0, Purpose::Posterior).normals(w);
        (0..w)
            .map(|j| {
                let spread = if self.rule.posterior { l.std.at(i * w + j) } else { 0.0 };
                l.mean.at(i * w + j) + spread * f64::from(noise[j])
            })
            .collect()
    }
}
