//! A whole system that nothing trained, at any configuration: what timings, profiles and
//! comparisons with other implementations run on.
//!
//! Weights are as they are initialised, but nothing is left at zero, as a fresh Phi's generators
//! and last layer are, and codes have the size of features: so every path of the models carries
//! numbers that depend on the input. Its genes are called G0, G1, ...

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Map;

use super::beta_vae;
use super::bundle::{Bundle, Trained};
use super::pipeline::{ar_dims, phi_dims};
use crate::autograd::Params;
use crate::config::Config;
use crate::error::Result;
use crate::models::masked_ar::MaskedAr;
use crate::models::msvq::Msvq;
use crate::models::phi::Phi;
use crate::tensor::{DType, Purpose, Stream, Tensor};

/// Deviation of what is zero by initialisation: that of the published time embedder (DiT).
const SMALL: f32 = 0.02;

/// The four models at `config`, with weights that `seed` names.
///
/// # Errors
/// A configuration that no model fits.
pub fn bundle(config: &Config, seed: u64) -> Result<Bundle> {
    config.validate()?;
    let fresh = || Params::new(seed);
    let (mut msvq, mut phi, mut ar) = (fresh(), fresh(), fresh());
    Msvq::new(&config.msvq, &mut msvq);
    Phi::new(&config.meanflow, &phi_dims(config), &mut phi);
    MaskedAr::new(&config.ar, &ar_dims(config), &mut ar)?;
    let mut stages = BTreeMap::from([("beta_vae".to_string(), beta_vae::untrained(config, seed)?)]);
    for (name, params) in [("msvq", msvq), ("meanflow", phi), ("ar", ar)] {
        let mut tensors = weights(&params, seed)?;
        if name != "msvq" {
            let of = |value| Tensor::full(DType::F32, [config.msvq.d], value);
            tensors.extend([("feature.mean".into(), of(0.0)), ("feature.std".into(), of(1.0))]);
        }
        stages.insert(name.into(), Trained { step: 0, tensors, notes: Map::new() });
    }
    Ok(Bundle { path: PathBuf::from("an untrained system"), config: config.clone(), stages })
}

/// Parameters as a bundle names them, none of them all zero.
///
/// # Errors
/// None for parameters on the CPU.
pub(super) fn weights(params: &Params, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let one = |(i, (name, value)): (usize, (String, Tensor))| {
        let scale = match name.as_str() {
            "quantiser.book" => 1.0,
            _ if value.f32s()?.iter().all(|v| *v == 0.0) => SMALL,
            _ => return Ok((format!("param.{name}"), value)),
        };
        let mut draws = Stream::new(seed, i as u64, 1, Purpose::Init).normals(value.len());
        draws.iter_mut().for_each(|x| *x *= scale);
        Ok((format!("param.{name}"), Tensor::new(draws, value.shape())?))
    };
    params.values().into_iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::system::System;

    #[test]
    fn it_is_whole_and_every_path_carries_numbers() {
        let config = Config::tier("t0").unwrap();
        let made = bundle(&config, 3).unwrap();
        for (stage, trained) in &made.stages {
            for (name, tensor) in trained.tensors.iter().filter(|t| t.0.starts_with("param.")) {
                assert!(tensor.to_f64s().iter().any(|v| *v != 0.0), "{stage}/{name} is zero");
            }
        }
        let system = System::of(&made).unwrap();
        assert_eq!(system.prior().unwrap().norm.genes[2], "G2");
        let other = bundle(&config, 4).unwrap();
        let book = |b: &Bundle| b.stages["msvq"].tensors["param.quantiser.book"].to_f64s();
        assert!(book(&made) == book(&bundle(&config, 3).unwrap()) && book(&made) != book(&other));
    }
}
