//! The trained system: four models from a run folder or a bundle, ready to draw tiles.

use std::path::Path;

use super::beta_vae::Prior;
use super::bundle::Bundle;
use super::frozen::Frozen;
use super::pipeline::{load_ar, load_msvq, load_phi, load_prior};
use crate::config::Config;
use crate::device::Device;
use crate::error::Result;
use crate::models::genevar::{FeatureStats, Refiner};
use crate::models::masked_ar::MaskedAr;
use crate::models::msvq::Msvq;
use crate::models::phi::Phi;
use crate::ops::Precision;

/// The four trained models.
pub struct System {
    /// The settings they were trained with.
    pub config: Config,
    /// The gene prior with its RNA statistics.
    pub prior: Prior,
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
        let phi = match config.ar.plain_var {
            true => None,
            false => Some(load_phi(&config, bundle)?.0),
        };
        Ok(Self {
            prior: load_prior(&config, bundle)?,
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
        self.prior.place(device)?;
        self.msvq.place_in(device, precision)?;
        self.phi.iter().try_for_each(|phi| phi.place_in(device, precision))?;
        self.ar.place_in(device, precision)?;
        self.stats = self.stats.on(device)?;
        self.device = device.clone();
        Ok(())
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
