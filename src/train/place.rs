//! Where a command runs its models, and in what numbers: options of `genevar sample` and `eval fd`.

use clap::{Args, ValueEnum};

use super::system::System;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::Precision;

/// Numbers of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Numbers {
    /// binary32: for checking.
    F32,
    /// bfloat16, computed with in f32; sums over scales are kept in f32.
    Bf16,
}

/// Where models run.
#[derive(Args, Clone, Debug)]
pub struct PlaceOptions {
    /// Where to draw: cpu, cuda, or cuda:1 for the second GPU.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// What weights and activations are on a GPU. Default: bf16 there, f32 on the CPU.
    #[arg(long, value_enum)]
    pub precision: Option<Numbers>,
}

impl PlaceOptions {
    /// Puts a system there.
    ///
    /// # Errors
    /// No such device, bf16 on the CPU, too little memory.
    pub fn place(&self, system: &mut System) -> Result<()> {
        let device = Device::named(&self.device)?;
        let precision = match (&device, self.precision) {
            (Device::Cpu, Some(Numbers::Bf16)) => {
                let fix = "give --precision f32, or --device cuda";
                return Err(Error::config("--precision", "the CPU has no bf16 path", fix));
            }
            (Device::Cpu, _) | (_, Some(Numbers::F32)) => Precision::F32,
            _ => Precision::Bf16,
        };
        system.place(&device, precision)
    }
}
