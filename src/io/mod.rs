//! Files: tables, images, safetensors, HDF5, and the one way anything is written.
//!
//! Every reader turns bad input into an error that names the file, the line or tensor, and what to
//! do; every writer goes through [`atomic`], so nothing is ever left half-written.

pub mod atomic;
pub mod hdf5;
pub mod images;
pub mod lettering;
pub mod npz;
pub mod safetensors;
pub mod sheet;
pub mod tables;
