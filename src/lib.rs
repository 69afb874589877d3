#![doc = include_str!("ARCHITECTURE.md")]

pub mod autograd;
pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod eval;
pub mod io;
pub mod models;
pub mod nn;
pub mod ops;
pub mod profile;
pub mod report;
pub mod runs;
pub mod sample;
pub mod tensor;
pub mod train;

pub use error::{Error, Result};
