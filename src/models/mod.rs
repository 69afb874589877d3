//! Models: parameters and forward passes, written once against [`Pass`](crate::autograd::Pass).
//! They read no files and no clock.

pub mod beta_vae;
pub mod blocks;
pub mod discriminator;
pub mod genevar;
pub mod mask;
pub mod masked_ar;
pub mod meanflow;
pub mod ms_ssim;
pub mod msvq;
pub mod phi;
pub mod quantiser;
