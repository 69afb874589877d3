//! Tiles and RNA: reading, joining, normalising, packing, augmenting, batching.
//!
//! Nothing here knows of gradients or models. What leaves this module is 8-bit RGB, plain tensors
//! and names; what enters it is files whose faults are reported by file, row and gene.

pub mod ahead;
pub mod augment;
pub mod expression;
pub mod gallery;
pub mod genes;
pub mod ids;
pub mod inspect;
pub mod loader;
pub mod pack;
pub mod pairs;
pub mod rna;
pub mod slide;
pub mod source;
pub mod tiles;
pub mod units;
