//! The trained system: four models from a run folder or a bundle, ready to draw tiles.

use std::path::Path;

use super::beta_vae::Prior;
use super::bundle::Bundle;
use super::frozen::Frozen;
use super::pipeline::{load_ar, load_msvq, load_phi, load_prior};
use crate::config::{Config, RnaEncoding};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::genevar::{FeatureStats, Refiner};
use crate::models::masked_ar::MaskedAr;
use crate::models::msvq::Msvq;
use crate::models::phi::Phi;
use crate::ops::Precision;

/// The four trained models.
pub struct System {
    /// The settings they were trained with.
    pub config: Config,
    /// The gene prior with its RNA statistics; absent where nothing reads RNA.
    prior: Option<Prior>,
    /// Names of the classes of a class-conditional transformer, where they have names.
    pub classes: Vec<String>,
    /// The tokenizer.
    pub msvq: Frozen<Msvq>,
    /// Phi; absent for plain VAR.
    pub phi: Option<Frozen<Phi>>,
    /// Channel statistics of feature maps.
    pub stats: FeatureStats,
    /// The transformer.
    pub ar: Frozen<MaskedAr>,
    /// Where they are.
    pub device: Device,
}

impl System {
    /// From a run folder or a bundle file.
    ///
    /// # Errors
    /// A stage that is missing, a truncated file, a tensor of another shape than its configuration
    /// says.
    pub fn load(path: &Path) -> Result<Self> {
        Self::of(&Bundle::load(path)?)
    }

    /// From a bundle in memory.
    pub fn of(bundle: &Bundle) -> Result<Self> {
        let config = bundle.config.clone();
        let (ar, stats) = load_ar(&config, bundle)?;
        let by_class = config.ar.rna == RnaEncoding::ClassLabel;
        let phi = match config.ar.plain_var {
            true => None,
            false => Some(load_phi(&config, bundle)?.0),
        };
        Ok(Self {
            prior: (!by_class || bundle.stages.contains_key("beta_vae"))
                .then(|| load_prior(&config, bundle))
                .transpose()?,
            classes: class_names(bundle),
            msvq: load_msvq(&config, bundle)?,
            phi,
            stats,
            ar,
            config,
            device: Device::Cpu,
        })
    }

    /// Puts all models on a device, where they then run, the tokenizer, Phi and the transformer in
    /// this precision.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&mut self, device: &Device, precision: Precision) -> Result<()> {
        self.prior.iter_mut().try_for_each(|prior| prior.place(device))?;
        self.msvq.place_in(device, precision)?;
        self.phi.iter().try_for_each(|phi| phi.place_in(device, precision))?;
        self.ar.place_in(device, precision)?;
        self.stats = self.stats.on(device)?;
        self.device = device.clone();
        Ok(())
    }

    /// The gene prior.
    ///
    /// # Errors
    /// A system without one: it was imported.
    pub fn prior(&self) -> Result<&Prior> {
        self.prior.as_ref().ok_or_else(|| {
            let what = "this system has no gene prior, so it reads no RNA";
            Error::data(what, "draw with `genevar sample --class`")
        })
    }

    /// What makes the transformer's inputs, with random numbers of `seed`.
    pub fn refiner(&self, seed: u64) -> Refiner<'_> {
        Refiner {
            msvq: &self.msvq,
            phi: self.phi.as_deref(),
            stats: self.stats.clone(),
            mask: &self.config.mask,
            ar: &self.config.ar,
            seed,
        }
    }
}

/// The names that the classes had when the transformer was trained.
fn class_names(bundle: &Bundle) -> Vec<String> {
    let notes = bundle.stages.get("ar").and_then(|ar| ar.notes.get("classes")?.as_array());
    let text = |name: &serde_json::Value| name.as_str().map(String::from);
    notes.into_iter().flatten().filter_map(text).collect()
}
