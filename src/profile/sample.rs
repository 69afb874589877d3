//! Profiles of drawing tiles: with the models of a checkpoint, or made-up weights at the shapes of
//! a preset.

use std::path::PathBuf;

use clap::Args;

use super::CommonArgs;
use super::format::{Clock, Profile};
use super::measure::measure;
use super::record::Recording;
use crate::config::draw::DrawOptions;
use crate::config::{Config, RnaEncoding, SampleConfig};
use crate::device::Device;
use crate::device::cuda::Queue;
use crate::error::{Error, Result};
use crate::sample::{Graphs, Sampler, Subject};
use crate::tensor::{Purpose, Stream, Tensor};
use crate::train::system::System;
use crate::train::untrained;

/// Tiles that may be drawn together.
const MOST: usize = 1024;
/// Batches until a size is recorded as a graph.
const UNTIL_RECORDED: usize = 3;

/// Arguments of `genevar profile sample`.
#[derive(Args, Clone, Debug)]
pub struct SampleArgs {
    /// Trained system: the folder of `genevar train`, or a bundle file.
    #[arg(long, conflicts_with = "tier")]
    checkpoint: Option<PathBuf>,
    /// Made-up weights at the shapes of a preset: t0, demo, t1, t2; t3 has the paper's.
    #[arg(long, default_value = "t0")]
    tier: String,
    /// Tiles that are drawn side by side.
    #[arg(long, default_value_t = 1)]
    tiles: usize,
    #[command(flatten)]
    draw: DrawOptions,
    /// What all profiles have in common.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Takes the profile.
///
/// # Errors
/// Arguments that do not fit, those of the device.
pub fn run(args: &SampleArgs) -> Result<(Profile, Recording)> {
    if args.tiles == 0 || args.tiles > MOST {
        let what = format!("{} tiles together", args.tiles);
        return Err(Error::config("--tiles", what, format!("give 1 to {MOST}")));
    }
    let place = args.common.place(true)?;
    let (mut system, shapes) = match &args.checkpoint {
        None => {
            let config = Config::tier(&args.tier)?;
            let made_up = untrained::bundle(&config, config.seed)?;
            (System::of(&made_up)?, format!("made-up weights of tier {}", args.tier))
        }
        Some(path) => (System::load(path)?, path.display().to_string()),
    };
    let settings = args.draw.over(&system.config.sample)?;
    system.place(&place.device, place.precision)?;
    let subjects = subjects(&system.config, args.tiles)?;
    let sampler = sampler(&system, &settings);
    let (mut profile, recording) = measure(&place, ("sample".into(), shapes, args.tiles), || {
        sampler.eagerly(&subjects).map(drop)
    })?;
    if let (Device::Cuda(queue), Clock::Gpu) = (&place.device, place.clock) {
        profile.replay_seconds = replays(&sampler, queue, &subjects, place.repeats)?;
    }
    Ok((profile, recording))
}

/// Conditions of noise.
fn subjects(c: &Config, tiles: usize) -> Result<Vec<Subject>> {
    let row = |id: usize, width: usize| {
        let draws = Stream::new(c.seed, id as u64, 0, Purpose::Test).normals(width);
        Tensor::new(draws, [1, width])
    };
    let subject = |id: usize| {
        let other = match c.ar.rna {
            RnaEncoding::BetaVae => None,
            RnaEncoding::Linear => Some(row(id, c.beta_vae.genes)?),
            RnaEncoding::ClassLabel => Some(Tensor::new_i32(vec![0], [1])?),
        };
        Ok(Subject { id: id as u64, z: row(id, c.beta_vae.latent)?, other })
    };
    (0..tiles).map(subject).collect()
}

fn sampler<'a>(system: &'a System, settings: &'a SampleConfig) -> Sampler<'a> {
    let (refiner, device) = (system.refiner(system.config.seed), system.device.clone());
    Sampler { refiner, ar: &system.ar, settings, device, graphs: Graphs::default() }
}

/// Seconds of batches that are one graph; none where they are not recorded.
fn replays(
    sampler: &Sampler<'_>,
    queue: &Queue,
    subjects: &[Subject],
    repeats: usize,
) -> Result<Vec<f64>> {
    for _ in 0..UNTIL_RECORDED {
        sampler.batch(subjects)?;
    }
    if sampler.graphs.cost(subjects.len()).is_none() {
        return Ok(Vec::new());
    }
    let one = |_| {
        let before = queue.event()?;
        sampler.batch(subjects)?;
        Ok(queue.event()?.since(&before)?.as_secs_f64())
    };
    (0..repeats).map(one).collect()
}
