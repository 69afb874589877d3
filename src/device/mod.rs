//! Devices: where tensors live and kernels run. The only home of `unsafe` in this crate.

pub mod cpu;
pub mod mmap;
pub mod window;
