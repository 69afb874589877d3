//! The CUDA driver in software: device memory, a PTX parser and an interpreter that runs kernels
//! bit for bit, with sanitizers and exact counts.
//!
//! [`mem`] is the device's memory, [`ptx`] reads a module's text, [`exec`] loads and launches it,
//! [`check`] finds the errors that hardware lets pass and [`count`] says what a launch did. [`abi`]
//! is the driver API that programs load as `libcuda.so`.

pub mod abi;
pub mod check;
pub mod count;
pub mod exec;
pub mod mem;
pub mod ptx;
