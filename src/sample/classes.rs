//! What a class-conditional transformer draws: its own in place of RNA.

use super::profiles::Profiles;
use crate::config::RnaEncoding;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use crate::train::system::System;

/// A class by number and by the name of its tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// From 0.
    pub number: usize,
    /// Its own name, or `class` and its number.
    pub name: String,
}

/// The classes that `wanted` names, by number or by name, each once.
///
/// # Errors
/// A transformer that is not conditioned on classes; a class it does not have.
pub fn pick(system: &System, wanted: &[String]) -> Result<Vec<Class>> {
    let ar = &system.config.ar;
    if !wanted.is_empty() && ar.rna != RnaEncoding::ClassLabel {
        let fix = "give --rna alone, or a class-conditional system";
        return Err(Error::config("--class", "this system is conditioned on RNA", fix));
    }
    let mut found: Vec<Class> = Vec::new();
    for word in wanted.iter().map(|w| w.trim()) {
        let named = system.classes.iter().position(|name| name == word);
        let number = named.or_else(|| word.parse().ok()).filter(|&n| n < ar.classes);
        let number = number.ok_or_else(|| {
            let fix = match system.classes.is_empty() {
                true => format!("give numbers from 0 to {}", ar.classes.saturating_sub(1)),
                false => format!("give {}, or numbers from 0", system.classes.join(", ")),
            };
            Error::config("--class", format!("{word:?} is no class"), fix)
        })?;
        let name = system.classes.get(number).cloned().unwrap_or(format!("class{number}"));
        if found.iter().all(|class| class.number != number) {
            found.push(Class { number, name });
        }
    }
    Ok(found)
}

/// Classes in the place of profiles, for a system in which nothing reads z.
///
/// # Errors
/// A system with a Phi, which reads z.
pub fn profiles(system: &System, classes: &[Class]) -> Result<Profiles> {
    if system.phi.is_some() {
        let what = "is missing: this system's Phi reads RNA beside the class";
        return Err(Error::config("--rna", what, "give a table, and one class with --class"));
    }
    let n = classes.len();
    Ok(Profiles {
        names: classes.iter().map(|class| class.name.clone()).collect(),
        z: Tensor::zeros(DType::F32, [n, system.config.beta_vae.latent]),
        inputs: Tensor::zeros(DType::F32, [n, 0]),
        labels: classes.iter().map(|class| class.number as i32).collect(),
    })
}

/// What is drawn, for people.
pub fn report(system: &System, classes: &[Class]) -> String {
    format!("{} of {} classes", classes.len(), system.config.ar.classes)
}

/// One class for all profiles of a table, where the system wants a class.
///
/// # Errors
/// None or several were given.
pub fn one_for_all(system: &System, classes: &[Class], rows: usize) -> Result<Vec<i32>> {
    match (system.config.ar.rna, classes) {
        (RnaEncoding::ClassLabel, [class]) => Ok(vec![class.number as i32; rows]),
        (RnaEncoding::ClassLabel, _) => {
            let what = format!("names {} classes beside a table of RNA", classes.len());
            Err(Error::config("--class", what, "give one, which all rows are drawn as"))
        }
        _ => Ok(Vec::new()),
    }
}
