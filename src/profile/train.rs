//! Profiles of a training step of each stage, on made-up tissue or on a pack's; the stages before
//! have made-up weights.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::format::Profile;
use super::{CommonArgs, measure};
use crate::autograd::Params;
use crate::config::{Config, RnaEncoding};
use crate::data::pack::Pack;
use crate::data::rna::RnaNorm;
use crate::device::span;
use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::models::masked_ar::MaskedAr;
use crate::models::phi::Phi;
use crate::tensor::{Purpose, Stream, Tensor};
use crate::train::Stage;
use crate::train::ar::{ArStage, Before};
use crate::train::beta_vae::{BetaVaeStage, scaling};
use crate::train::meanflow::MeanFlowStage;
use crate::train::memory;
use crate::train::msvq::MsvqStage;
use crate::train::pipeline::{ar_dims, phi_dims};
use crate::train::place::Numbers;
use crate::train::system::System;
use crate::train::tissue::{BatchRule, Batches, Latents, Tissue};
use crate::train::untrained;

/// Rows of a batch that there may be.
const MOST: usize = 1 << 16;

/// The stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    BetaVae,
    Msvq,
    Meanflow,
    Ar,
}

/// Arguments of `genevar profile train`.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// The stage whose step is taken.
    #[arg(long, value_enum)]
    stage: Which,
    /// Shapes of a preset: t0, demo, t1, t2; t3 has the paper's.
    #[arg(long, default_value = "t0")]
    tier: String,
    /// Rows of a batch. Default: the preset's.
    #[arg(long)]
    batch: Option<usize>,
    /// Parts that a batch is taken in.
    #[arg(long)]
    accumulate: Option<usize>,
    /// Computes the values of blocks again for the backward pass instead of keeping them.
    #[arg(long)]
    recompute: bool,
    /// The step, from 0: what it does may depend on its number. Default: the last.
    #[arg(long)]
    step: Option<u64>,
    /// Tiles and RNA of this pack in place of made-up ones.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What all profiles have in common.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Takes the profile.
///
/// # Errors
/// Arguments that do not fit, those of the stage and of the device.
pub fn run(args: &TrainArgs) -> Result<(Profile, super::record::Recording)> {
    if args.common.precision == Some(Numbers::Bf16) {
        let what = "training is in f32";
        return Err(Error::config("--precision", what, "leave it out"));
    }
    let mut config = Config::tier(&args.tier)?;
    config.data.unpaired = 0.0;
    if let Some(batch) = args.batch {
        if batch == 0 || batch > MOST {
            let what = format!("{batch} rows");
            return Err(Error::config("--batch", what, format!("give 1 to {MOST}")));
        }
        config.train.stages_mut().into_iter().for_each(|stage| stage.batch = batch);
    }
    if let Some(stage) = config.train.stages_mut().into_iter().nth(args.stage as usize) {
        stage.accumulate = args.accumulate.unwrap_or(stage.accumulate);
        stage.recompute |= args.recompute;
    }
    config.validate()?;
    let place = args.common.place(false)?;
    let data = Data::of(args.data.as_deref(), &config)?;
    let settings = config.train.stages()[args.stage as usize];
    let (last, batch) = (settings.steps.saturating_sub(1), settings.batch);
    let step = args.step.unwrap_or(last);
    if step > last {
        let what = format!("step {step} of {}", settings.steps);
        return Err(Error::config("--step", what, format!("give 0 to {last}")));
    }
    let before = before(&config, args.stage)?;
    let mut stage = stage(args.stage, &config, before.as_ref(), &data)?;
    for model in before.iter() {
        model.msvq.place(&place.device)?;
        model.phi.iter().try_for_each(|phi| phi.place(&place.device))?;
    }
    eprintln!("a step holds {} at most", memory::amount(memory::rehearse(&mut *stage)?));
    stage.place(&place.device)?;
    let work = format!("train {}", stage.name());
    let source = if args.data.is_some() { "a pack" } else { "made-up tissue" };
    let shapes = format!("{source} at tier {}, step {step}", args.tier);
    measure::measure(&place, (work, shapes, batch), || {
        let _part = span::part("forward");
        stage.step(step)?.read().map(drop)
    })
}

/// What stages are trained on.
struct Data {
    images: Vec<Rgb>,
    slides: Vec<usize>,
    pack: Option<Pack>,
}

/// Made-up tiles.
const TILES: usize = 8;

impl Data {
    fn of(path: Option<&Path>, config: &Config) -> Result<Self> {
        let Some(path) = path else {
            let images = (0..TILES).map(|i| tissue(i, config.msvq.image)).collect::<Result<_>>()?;
            return Ok(Self { images, slides: (0..TILES).map(|i| i % 2).collect(), pack: None });
        };
        let pack = Pack::open(path)?;
        if pack.tile_size() < config.msvq.image {
            let what = format!("has tiles of {} pixels", pack.tile_size());
            let fix = format!("the tier wants {} or more", config.msvq.image);
            return Err(Error::file(path, what, fix));
        }
        let all = pack.split("train")?;
        let images = pack.tiles(&all)?;
        let names: Vec<&str> = all.iter().map(|&i| pack.section(i)).collect();
        let number = |name: &&str| names.iter().position(|n| n == name).unwrap_or(0);
        let slides = names.iter().map(number).collect();
        Ok(Self { images, slides, pack: Some(pack) })
    }

    fn batches(&self, config: &Config, batch: usize) -> Result<Batches> {
        let n = self.images.len();
        let latent = config.beta_vae.latent;
        let genes = match config.ar.rna {
            RnaEncoding::Linear => Some(noise(2, n, config.beta_vae.genes)?),
            _ => None,
        };
        let classes = match config.ar.rna {
            RnaEncoding::ClassLabel => vec![0; n],
            _ => Vec::new(),
        };
        let latents = Latents { mean: noise(3, n, latent)?, std: noise(4, n, latent)? };
        let (images, slides) = (self.images.clone().into(), self.slides.clone());
        let tissue = Tissue { images, slides, latents, genes, classes };
        let (seed, crop, drop) = (config.seed, config.msvq.image, config.ar.cond_drop);
        let posterior = config.ar.posterior_z;
        Batches::new(tissue, BatchRule { seed, batch, crop, unpaired: 0.0, drop, posterior })
    }
}

/// Pink ground with dark spots: a tile that is neither flat nor noise.
fn tissue(i: usize, side: usize) -> Result<Rgb> {
    let draw = Stream::new(4, i as u64, 0, Purpose::Test);
    let spots: Vec<[usize; 2]> =
        (0..24).map(|b| [draw.below(2 * b, side), draw.below(2 * b + 1, side)]).collect();
    let pixel = |at: usize| {
        let (x, y) = (at % side, at / side);
        let far = |s: &[usize; 2]| x.abs_diff(s[0]).pow(2) + y.abs_diff(s[1]).pow(2);
        let d = spots.iter().map(far).min().unwrap_or(60).min(60) as u8;
        [100 + 2 * d, 60 + 2 * d, 140 + d]
    };
    Rgb::new(side, side, (0..side * side).flat_map(pixel).collect())
}

fn noise(name: u64, rows: usize, width: usize) -> Result<Tensor> {
    Tensor::new(Stream::new(5, name, 0, Purpose::Test).normals(rows * width), [rows, width])
}

/// The models before a stage; none before those that come first.
fn before(config: &Config, stage: Which) -> Result<Option<Before>> {
    if matches!(stage, Which::BetaVae | Which::Msvq) {
        return Ok(None);
    }
    let System { msvq, phi, stats, .. } = System::of(&untrained::bundle(config, config.seed)?)?;
    Ok(Some(Before { msvq, phi, stats }))
}

fn stage<'a>(
    which: Which,
    config: &'a Config,
    before: Option<&'a Before>,
    data: &Data,
) -> Result<Box<dyn Stage + 'a>> {
    let none = || Error::Internal("the models before this stage are missing".into());
    Ok(match which {
        Which::BetaVae => Box::new(prior(config, data)?),
        Which::Msvq => Box::new(MsvqStage::with_images(config, data.images.clone(), &[])?),
        Which::Meanflow => {
            let before = before.ok_or_else(none)?;
            let mut params = Params::new(config.seed);
            let phi = Phi::new(&config.meanflow, &phi_dims(config), &mut params);
            let batches = data.batches(config, config.train.meanflow.batch)?;
            let (msvq, stats) = (&before.msvq, before.stats.clone());
            Box::new(MeanFlowStage::new(config, msvq, stats, batches, (params, phi))?)
        }
        Which::Ar => {
            let before = before.ok_or_else(none)?;
            let mut params = Params::new(config.seed);
            let model = MaskedAr::new(&config.ar, &ar_dims(config), &mut params)?;
            let batches = data.batches(config, config.train.ar.batch)?;
            Box::new(ArStage::new(config, before, batches, (params, model))?)
        }
    })
}

/// The gene prior on a pack's profiles, or on noise.
fn prior(config: &Config, data: &Data) -> Result<BetaVaeStage> {
    if let Some(pack) = &data.pack {
        return BetaVaeStage::new(config, pack);
    }
    let (genes, rows) = (config.beta_vae.genes, config.train.beta_vae.batch.max(TILES));
    let norm = RnaNorm {
        genes: (0..genes).map(|g| format!("G{g}")).collect(),
        scaling: scaling(&config.data),
        units: None,
        mean: vec![0.0; genes],
        sd: vec![1.0; genes],
    };
    BetaVaeStage::with_inputs(config, norm, noise(6, rows, genes)?, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_in_the_order_of_their_settings() {
        let names = ["beta_vae", "msvq", "meanflow", "ar"];
        assert_eq!(crate::train::bundle::STAGES, names);
        let at = [Which::BetaVae, Which::Msvq, Which::Meanflow, Which::Ar].map(|w| w as usize);
        assert_eq!(at, [0, 1, 2, 3]);
    }
}
