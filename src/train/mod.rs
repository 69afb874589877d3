//! Training: one loop for every stage, and what a long run needs around it.
//!
//! A stage implements [`Stage`]: take a step, say its state, take a state back. [`run()`] does the
//! rest: checkpoints, log, progress bar, the stop on NaN, Ctrl-C, and a resume that gives the bits
//! of an uninterrupted run.

pub mod accumulate;
pub mod ar;
pub mod beta_vae;
pub mod bundle;
pub mod checkpoint;
pub mod claim;
pub mod clock;
pub mod command;
pub mod counterfactual;
pub mod frozen;
pub mod guard;
pub mod interrupt;
pub mod kmeans;
pub mod learner;
pub mod log;
pub mod meanflow;
pub mod memory;
pub mod msvq;
pub mod numbers;
pub mod pipeline;
pub mod place;
pub mod progress;
mod run;
pub mod schedule;
pub mod show;
pub mod system;
pub mod tissue;
pub mod untrained;
pub mod var;

pub use run::{Plan, Stage, Summary, run};
