//! One launch as the driver takes it: alone, with all its blocks at once, or beside the one before.

use std::ffi::c_void;

use cudarc::driver::{DriverError, sys};

use super::Gpu;
use crate::device::kernel::{Entry, Grid, Image};

/// An entry in the driver's hands.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) handle: sys::CUfunction,
    /// Whether its launches may begin beside the one before.
    pub(super) overlaps: bool,
}

impl Function {
    /// The entry of an image for `arch`.
    pub(super) fn new(handle: sys::CUfunction, gpu: &Gpu, entry: &Entry, arch: &str) -> Self {
        Self { handle, overlaps: overlaps(gpu, entry, arch) }
    }
}

/// Whether launches of an entry may overlap on a GPU where an image for `arch` serves. Only code
/// for Hopper and later holds the wait that makes it safe; that for those before has none anywhere.
pub(super) fn overlaps(gpu: &Gpu, entry: &Entry, arch: &str) -> bool {
    entry.awaits && gpu.facts().capability.0 >= 9 && Image::number(arch) >= 90
}

/// Puts a launch into a stream. With `overlap` its blocks may come while the launch before still
/// runs (programmatic dependent launch); they wait for it by themselves. A launch whose blocks wait
/// for each other comes after it.
///
/// # Safety
/// Arguments are of the types and in the order that the function declares; buffers among them are
/// live until it has run; with `overlap` the function is one that waits.
pub(super) unsafe fn put(
    function: sys::CUfunction,
    grid: Grid,
    stream: sys::CUstream,
    overlap: bool,
    arguments: &mut [*mut c_void],
) -> Result<(), DriverError> {
    use sys::CUlaunchAttributeID as Id;
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let mut attributes = match (grid.together, overlap) {
        (true, _) => {
            let value = sys::CUlaunchAttributeValue { cooperative: 1 };
            vec![attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value)]
        }
        (false, true) => {
            let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
            vec![attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value)]
        }
        (false, false) => Vec::new(),
    };
    let ([a, b, c], [x, y, z]) = (grid.blocks, grid.threads);
    let config = sys::CUlaunchConfig {
        gridDimX: a,
        gridDimY: b,
        gridDimZ: c,
        blockDimX: x,
        blockDimY: y,
        blockDimZ: z,
        sharedMemBytes: grid.shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: u32::try_from(attributes.len()).unwrap_or(0),
    };
    let none = std::ptr::null_mut();
    // SAFETY: the caller keeps what the function asks for; the attributes live through the call.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), none) }
        .result()
}
