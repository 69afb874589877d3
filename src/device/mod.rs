//! Devices: where tensors live and kernels run. The only home of `unsafe` in this crate.

pub mod cpu;
pub mod cuda;
pub mod host;
pub mod kernel;
pub mod mmap;
pub mod nvtx;
pub mod openslide;
pub mod pack;
pub mod panel;
mod place;
pub mod span;
pub mod window;
pub mod winograd;

pub use place::{Device, Held, Meter, OnGpu, constant, shared};

/// Typed launchers of the CUDA kernels, written by `build.rs` from `kernels/*.cu`: a module a file,
/// and the table of all entries.
pub mod launch {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
