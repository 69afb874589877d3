//! The four stages in order, each made from the pack and from what was trained before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ar::{ArStage, Before};
use super::beta_vae::{BetaVaeStage, Prior};
use super::bundle::{Bundle, STAGES};
use super::checkpoint;
use super::frozen::Frozen;
use super::interrupt::Interrupt;
use super::meanflow::MeanFlowStage;
use super::memory;
use super::msvq::{MsvqStage, UM_PER_PX};
use super::run::{Plan, Stage, Summary, run};
use super::tissue::{BatchRule, Batches, Latents, Tissue};
use super::var::IMPORTED;
use crate::autograd::Params;
use crate::config::{Config, RnaEncoding, StageConfig};
use crate::data::ahead::Workers;
use crate::data::augment;
use crate::data::gallery::Gallery;
use crate::data::genes::GeneMap;
use crate::data::loader::to_tensor;
use crate::data::pack::Pack;
use crate::device::Device;
use crate::error::{Error, Result, Within};
use crate::io::images::Rgb;
use crate::models::genevar::FeatureStats;
use crate::models::masked_ar::{Dims, MaskedAr};
use crate::models::msvq::Msvq;
use crate::models::phi::{Phi, PhiDims};
use crate::ops::call;
use crate::ops::elementwise::SUB;
use crate::ops::layout::Concat;
use crate::tensor::{DType, Tensor};

/// Most training tiles that the channel statistics of f_K are taken over.
const STATISTICS_TILES: usize = 1024;

/// Tiles that are encoded at a time.
const ROWS: usize = 16;

/// How far micrometres a pixel may differ.
const SAME_SCALE: f64 = 0.05;

/// Rows of the held-out batch of the transformer.
const HELD_ROWS: usize = 192;

/// What a training works on.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    /// The settings.
    pub config: &'a Config,
    /// Tiles and RNA.
    pub pack: &'a Pack,
    /// The run's folder; each stage has a sub-folder of its name.
    pub out: &'a Path,
    /// Whether stages go on from their newest checkpoints.
    pub resume: bool,
    /// Where a stage takes its first weights from instead of drawing them.
    pub warm: Option<&'a Bundle>,
    /// Raised by Ctrl-C.
    pub interrupt: Interrupt,
    /// Where the steps run.
    pub device: Device,
}

impl Work<'_> {
    /// Trains every stage that the configuration needs, in order; when resuming, those that are
    /// finished are passed over.
    pub fn all(&self) -> Result<Vec<(&'static str, Summary)>> {
        let needed = |name: &&'static str| !(self.config.ar.plain_var && *name == "meanflow");
        STAGES.into_iter().filter(needed).map(|name| Ok((name, self.stage(name)?))).collect()
    }

    /// Trains the stage called `name`, one of [`STAGES`]; those before it must be trained. One that
    /// was imported stays as it is.
    pub fn stage(&self, name: &str) -> Result<Summary> {
        let settings = self.settings(name)?;
        if self.is_imported(name)? || self.resume && self.is_finished(name, settings)? {
            return Ok(Summary { taken: 0, seconds: 0.0, last: None });
        }
        match name {
            "beta_vae" => self.drive(&mut BetaVaeStage::new(self.config, self.pack)?, settings),
            "msvq" => self.msvq(settings),
            "meanflow" => self.meanflow(settings),
            _ => self.ar(settings),
        }
    }

    fn settings(&self, name: &str) -> Result<&StageConfig> {
        let place = STAGES.iter().position(|s| *s == name);
        let unknown = || Error::config("stage", format!("no stage is called {name:?}"), "");
        place.and_then(|i| self.config.train.stages().get(i).copied()).ok_or_else(unknown)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    fn is_imported(&self, name: &str) -> Result<bool> {
        match checkpoint::find(&self.folder(name))? {
            Some(path) => Ok(checkpoint::read_meta(&path)?.notes.contains_key(IMPORTED)),
            None => Ok(false),
        }
    }

    fn is_finished(&self, name: &str, settings: &StageConfig) -> Result<bool> {
        match checkpoint::find(&self.folder(name))? {
            Some(path) => Ok(checkpoint::read_meta(&path)?.step >= settings.steps),
            None => Ok(false),
        }
    }

    fn drive(&self, stage: &mut dyn Stage, settings: &StageConfig) -> Result<Summary> {
        let dir = self.folder(stage.name());
        let interrupt = self.interrupt.clone();
        let plan = Plan {
            config: self.config,
            stage: settings,
            dir: &dir,
            resume: self.resume,
            interrupt,
            device: &self.device,
        };
        if matches!(self.device, Device::Cpu) {
            memory::check_here(stage, settings)?;
        }
        run(stage, &plan)
    }

    /// Gives `params` the weights of the warm start, where there is one.
    fn warmed(&self, name: &str, params: &Params) -> Result<()> {
        match self.warm {
            Some(bundle) => params.load(&bundle.stage(name)?.tensors, "param."),
            None => Ok(()),
        }
    }

    fn msvq(&self, settings: &StageConfig) -> Result<Summary> {
        let mut stage = MsvqStage::new(self.config, self.pack)?;
        match self.warm {
            Some(bundle) => {
                self.same_scale(bundle)?;
                stage.begin_from(&bundle.stage("msvq")?.tensors)?;
            }
            None if self.config.msvq.decoder_only && !self.resume => {
                let fix = "give the run whose tokenizer it belongs to with --warm";
                return Err(Error::config("msvq.decoder_only", "has no encoder to rest on", fix));
            }
            None => {}
        }
        self.drive(&mut stage, settings)
    }

    fn meanflow(&self, settings: &StageConfig) -> Result<Summary> {
        let trained = Bundle::load(self.out)?;
        let (msvq, prior) = self.frozen(&trained)?;
        let tissue = self.tissue(&prior, "train")?;
        let stats = self.feature_stats(&msvq)?;
        // Phi's own dropout of z is the configuration's, not the transformer's.
        let drop = self.config.meanflow.z_dropout;
        let batches = Batches::new(tissue, self.rule(settings.batch, drop))?.by(self.workers());
        let mut params = Params::new(self.config.seed);
        let phi = Phi::new(&self.config.meanflow, &phi_dims(self.config), &mut params);
        self.warmed("meanflow", &params)?;
        let stage = MeanFlowStage::new(self.config, &msvq, stats, batches, (params, phi))?;
        self.drive(&mut stage.with_notes(self.notes()), settings)
    }

    fn ar(&self, settings: &StageConfig) -> Result<Summary> {
        let trained = Bundle::load(self.out)?;
        let (msvq, prior) = self.frozen(&trained)?;
        let (phi, stats) = match self.config.ar.plain_var {
            true => (None, self.feature_stats(&msvq)?),
            false => {
                let (phi, stats) = load_phi(self.config, &trained)?;
                (Some(phi), stats)
            }
        };
        let before = Before { msvq, phi, stats };
        let rule = self.rule(settings.batch, self.config.ar.cond_drop);
        let batches = Batches::new(self.tissue(&prior, "train")?, rule)?.by(self.workers());
        let mut params = Params::new(self.config.seed);
        let model = MaskedAr::new(&self.config.ar, &ar_dims(self.config), &mut params)?;
        self.warmed("ar", &params)?;
        let mut stage = ArStage::new(self.config, &before, batches, (params, model))?;
        if self.pack.split("val").is_ok() {
            let held = self.tissue(&prior, "val")?;
            let rule = BatchRule { unpaired: 0.0, posterior: false, ..self.rule(HELD_ROWS, 0.0) };
            let held = Batches::new(held, rule)?;
            stage = stage.with_held_out(held, settings.checkpoint_every)?;
        }
        self.drive(&mut stage.with_notes(self.notes()), settings)
    }

    /// The tokenizer and the gene prior, where the stage after them runs.
    fn frozen(&self, trained: &Bundle) -> Result<(Frozen<Msvq>, Prior)> {
        self.same_scale(trained)?;
        let msvq = load_msvq(self.config, trained)?;
        msvq.place(&self.device)?;
        let mut prior = load_prior(self.config, trained)?;
        prior.place(&self.device)?;
        Ok((msvq, prior))
    }

    /// Refuses tiles of another scale than those that the tokenizer was trained on, where both are
    /// known.
    fn same_scale(&self, trained: &Bundle) -> Result<()> {
        let known = trained.stage("msvq")?.notes.get(UM_PER_PX).and_then(Value::as_f64);
        let (Some(model), Some(pack)) = (known, self.pack.um_per_px()) else { return Ok(()) };
        if (pack / model - 1.0).abs() <= SAME_SCALE {
            return Ok(());
        }
        let what = format!("its tiles have {pack} um a pixel, the tokenizer's had {model}");
        let fix = format!("pack them again with --mpp {model}");
        Err(Error::config("--data", what, fix))
    }

    fn workers(&self) -> Workers {
        Workers::of(&self.config.data)
    }

    fn rule(&self, batch: usize, drop: f64) -> BatchRule {
        BatchRule {
            seed: self.config.seed,
            batch,
            crop: self.config.msvq.image,
            unpaired: self.config.data.unpaired,
            drop,
            posterior: self.config.ar.posterior_z,
        }
    }

    fn notes(&self) -> Map<String, Value> {
        let classes = Value::from(self.pack.classes().to_vec());
        Map::from_iter([("classes".to_string(), classes)])
    }

    /// The tiles of a split with their z, then (for training) its tissue without RNA.
    fn tissue(&self, prior: &Prior, split: &str) -> Result<Tissue> {
        let mut images = self.pack.split(split)?;
        let paired = images.clone();
        if self.config.data.unpaired > 0.0 && split == "train" {
            let free = self.pack.images(split)?;
            images.extend(free.into_iter().filter(|&i| self.pack.rna_row(i).is_none()));
        }
        let mut slides = BTreeMap::new();
        let mut slide = |i: &usize| {
            let next = slides.len();
            *slides.entry(self.pack.section(*i).to_string()).or_insert(next)
        };
        let inputs = prior_inputs(prior, self.pack, &paired, self.config)?;
        let linear = self.config.ar.rna == RnaEncoding::Linear;
        Ok(Tissue {
            slides: images.iter().map(&mut slide).collect(),
            images: Gallery::of(self.pack, &images, &self.config.data)?,
            latents: latents(prior, &inputs)?,
            genes: linear.then_some(inputs),
            classes: self.classes(&paired)?,
        })
    }

    /// Class numbers of the paired tiles, where the transformer is conditioned on them.
    fn classes(&self, paired: &[usize]) -> Result<Vec<i32>> {
        if self.config.ar.rna != RnaEncoding::ClassLabel {
            return Ok(Vec::new());
        }
        let (have, want) = (self.pack.classes().len(), self.config.ar.classes);
        if have == 0 || have > want {
            let what = format!("is {want}, the pack has {have} classes");
            let fix = "set it to the pack's number; pack with --class-column";
            return Err(Error::config("ar.classes", what, fix));
        }
        let class = |&i: &usize| {
            let name = || Error::data(format!("{} has no class", self.pack.id(i)), "label it");
            self.pack.class_index(i).map(|c| c as i32).ok_or_else(name)
        };
        paired.iter().map(class).collect()
    }

    /// Channel statistics of f_K over centre crops of the training tiles.
    fn feature_stats(&self, msvq: &Msvq) -> Result<FeatureStats> {
        let all = self.pack.images("train")?;
        let stride = all.len().div_ceil(STATISTICS_TILES).max(1);
        let chosen: Vec<usize> = all.into_iter().step_by(stride).collect();
        let mut maps = Vec::new();
        let tiles = Gallery::of(self.pack, &chosen, &self.config.data)?.all()?;
        for part in tiles.chunks(ROWS) {
            let crop = |tile: &Rgb| augment::centre(tile, self.config.msvq.image);
            let crops = part.iter().map(crop).collect::<Result<Vec<_>>>()?;
            let tokens = msvq.tokenize(&to_tensor(&crops)?)?;
            maps.extend(msvq.quantiser().pyramid(&tokens)?.pop());
        }
        let maps: Vec<&Tensor> = maps.iter().collect();
        FeatureStats::of(&call(&Concat { axis: 0 }, &maps)?)
    }
}

/// What Phi takes from the other models.
pub fn phi_dims(config: &Config) -> PhiDims {
    PhiDims {
        side: config.msvq.latent_side(),
        d: config.msvq.d,
        latent: config.beta_vae.latent,
        patch_nums: config.msvq.patch_nums.clone(),
    }
}

/// What the transformer takes from the other models.
pub fn ar_dims(config: &Config) -> Dims {
    Dims {
        latent: config.beta_vae.latent,
        genes: config.beta_vae.genes,
        d: config.msvq.d,
        vocab: config.msvq.vocab,
        patch_nums: config.msvq.patch_nums.clone(),
    }
}

/// The prior's inputs [n, genes] for images of a pack that have RNA.
pub fn prior_inputs(
    prior: &Prior,
    pack: &Pack,
    images: &[usize],
    config: &Config,
) -> Result<Tensor> {
    let map = GeneMap::new(&prior.norm.genes, pack.genes(), config.data.min_gene_match)?;
    let rows: Vec<usize> = (0..images.len()).collect();
    prior.norm.apply(&pack.expression(images)?, &rows, &map)
}

/// Posterior means and deviations of inputs [n, genes], in units of the training statistics.
pub fn latents(prior: &Prior, inputs: &Tensor) -> Result<Latents> {
    let (mean, logvar) = prior.model.posterior(inputs)?;
    let deviation = |i: usize| (0.5 * logvar.at(i)).exp();
    let above = (0..mean.len()).map(|i| mean.at(i) + deviation(i)).collect();
    let above = Tensor::from_f64s(DType::F32, above, mean.shape())?;
    let mean = prior.model.standardise(&mean)?;
    // Standardising is an affine map, so the difference of two images of it is the scaled
    // deviation.
    let std = call(&SUB, &[&prior.model.standardise(&above)?, &mean])?;
    Ok(Latents { mean, std })
}

/// The trained gene prior.
pub fn load_prior(config: &Config, trained: &Bundle) -> Result<Prior> {
    Prior::load(&config.beta_vae, trained.stage("beta_vae")?).within(trained.path.display())
}

/// The trained tokenizer.
pub fn load_msvq(config: &Config, trained: &Bundle) -> Result<Frozen<Msvq>> {
    let stage = trained.stage("msvq")?;
    let mut params = Params::unset();
    let model = Msvq::new(&config.msvq, &mut params);
    params.load(&stage.tensors, "param.").within(trained.path.display())?;
    Ok(Frozen::new(model, &params))
}

/// Phi and the channel statistics it was trained under.
pub fn load_phi(config: &Config, trained: &Bundle) -> Result<(Frozen<Phi>, FeatureStats)> {
    let stage = trained.stage("meanflow")?;
    let mut params = Params::unset();
    let model = Phi::new(&config.meanflow, &phi_dims(config), &mut params);
    params.load(&stage.tensors, "param.").within(trained.path.display())?;
    let stats = FeatureStats::from_state(&stage.tensors).within(trained.path.display())?;
    Ok((Frozen::new(model, &params), stats))
}

/// The transformer and the channel statistics it was trained under.
pub fn load_ar(config: &Config, trained: &Bundle) -> Result<(Frozen<MaskedAr>, FeatureStats)> {
    let stage = trained.stage("ar")?;
    let mut params = Params::unset();
    let model = MaskedAr::new(&config.ar, &ar_dims(config), &mut params)?;
    params.load(&stage.tensors, "param.").within(trained.path.display())?;
    let stats = FeatureStats::from_state(&stage.tensors).within(trained.path.display())?;
    Ok((Frozen::new(model, &params), stats))
}
