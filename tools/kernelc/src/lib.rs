//! Kernelc: what genevar's build script calls to turn `kernels/*.cu` into typed Rust launchers.
//!
//! [`build()`] reads every `__global__` signature and the card above it, compiles each file through
//! NVRTC (no GPU, no toolkit), keeps ptxas's report under the resource lock, and writes safe Rust
//! round the images: launchers that check their buffers, the cards' floors as functions, tables of
//! entries and resources. Where NVRTC is missing the launchers are written all the same, without
//! images.

mod build;
mod cache;
mod card;
mod compile;
mod error;
mod formula;
mod generate;
mod headers;
mod kernel;
pub mod lock;
mod nvrtc;
mod parse;
mod ptxas;
mod sass;
mod slack;
mod source;
mod types;

pub use build::{ARCHS, Config, Report, archs, build, run};
pub use card::Card;
pub use error::{Error, Result};
pub use formula::Formula;
pub use kernel::{Element, Instance, Kernel, Param, ParamKind, Template, TemplateKind};
pub use nvrtc::{Nvrtc, VARIABLE, find};
pub use parse::kernels;
pub use ptxas::{Resources, resources};
pub use sass::{Claim, Code};
pub use slack::Slack;
pub use types::{TYPES, Type};
