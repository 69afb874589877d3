//! The device's attributes: those of an H100, or of an A100 with `SOFTCUDA_MODEL=a100`.
//!
//! Programs choose grids and tiles by these numbers, so they are a real card's and do not depend on
//! the host. What softcuda cannot do (textures, managed memory, sharing between processes) says 0.

use super::code::{Code, Result};
use std::sync::OnceLock;

/// What the device calls itself.
pub(super) const NAME: &str = "softcuda (PTX on the CPU)";
/// The driver's version, as `1000 * major + 10 * minor`.
pub(super) const VERSION: i32 = 13000;
/// Threads of a block, at most.
pub(super) const MAX_THREADS: u32 = 1024;
/// Threads of a block, at most, along x, y and z.
pub(super) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Blocks of a grid, at most, along x, y and z.
pub(super) const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
/// Shared memory of a block in bytes without asking for more.
pub(super) const SHARED: u32 = 48 << 10;
/// Shared memory that the system takes for each block, in bytes.
pub(super) const SHARED_RESERVED: u32 = 1 << 10;
/// Threads of a multiprocessor, at most.
pub(super) const THREADS_SM: u32 = 2048;
/// Blocks of a multiprocessor, at most.
pub(super) const BLOCKS_SM: u32 = 32;
/// Threads of a warp.
pub(super) const WARP: u32 = 32;
/// One past the last attribute that drivers of this version know.
const END: u32 = 148;

/// What sets one card apart from another.
pub(super) struct Model {
    /// Compute capability.
    pub(super) capability: [u32; 2],
    /// Multiprocessors.
    pub(super) multiprocessors: u32,
    /// Shared memory of a block in bytes after `cuFuncSetAttribute`.
    pub(super) shared_opt_in: u32,
    /// Shared memory of a multiprocessor in bytes.
    pub(super) shared: u32,
    /// kHz of the multiprocessors and of the memory.
    clocks: [u32; 2],
    /// Bytes of L2.
    l2: u32,
}

const A100: Model = Model {
    capability: [8, 0],
    multiprocessors: 108,
    shared_opt_in: 163 << 10,
    shared: 164 << 10,
    clocks: [1_410_000, 1_215_000],
    l2: 40 << 20,
};

const H100: Model = Model {
    capability: [9, 0],
    multiprocessors: 132,
    shared_opt_in: 227 << 10,
    shared: 228 << 10,
    clocks: [1_980_000, 2_619_000],
    l2: 50 << 20,
};

/// The card that this process sees.
pub(super) fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| match std::env::var("SOFTCUDA_MODEL").as_deref() {
        Ok("a100") => A100,
        _ => H100,
    })
}

/// The value of attribute `CU_DEVICE_ATTRIBUTE_...` number `attribute`.
pub(super) fn value(attribute: u32) -> Result<i32> {
    if attribute == 0 || attribute >= END {
        return Err(Code::INVALID_VALUE);
    }
    let value = match attribute {
        1 => MAX_THREADS,
        2 => MAX_BLOCK[0],
        3 => MAX_BLOCK[1],
        4 => MAX_BLOCK[2],
        5 => MAX_GRID[0],
        6 => MAX_GRID[1],
        7 => MAX_GRID[2],
        8 => SHARED,
        9 => 64 << 10, // constant memory
        10 => WARP,
        11 => i32::MAX as u32, // pitch
        12 | 82 => 65536,      // registers of a block, of a multiprocessor
        13 => model().clocks[0],
        14 | 30 => 512, // alignment of textures, surfaces
        15 | 31 => 1,   // copies beside kernels, kernels beside kernels
        16 => model().multiprocessors,
        36 => model().clocks[1],
        37 => 5120, // bits of the memory bus
        38 => model().l2,
        39 => THREADS_SM,
        40 => 3,  // copy engines
        41 => 1,  // one address space
        51 => 32, // alignment of a texture's pitch
        75 => model().capability[0],
        76 => model().capability[1],
        78..=80 => 1, // stream priorities, L1 for globals and locals
        81 => model().shared,
        87 => 2, // speed of f32 against f64
        90 => 1, // preemption
        95 => 1, // cooperative launch
        97 => model().shared_opt_in,
        99 => 1, // registering host memory
        106 => BLOCKS_SM,
        111 => SHARED_RESERVED,
        115 => 1, // pools
        _ => 0,
    };
    Ok(value as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_the_most_shared_memory_fits_a_multiprocessor() {
        for model in [A100, H100] {
            assert!(model.shared_opt_in + SHARED_RESERVED <= model.shared);
        }
    }

    #[test]
    fn the_card_is_one_of_compute_capability_9_0() {
        assert_eq!((value(75), value(76)), (Ok(9), Ok(0)));
        assert_eq!(value(10), Ok(32));
        assert_eq!(value(0), Err(Code::INVALID_VALUE));
        assert_eq!(value(END), Err(Code::INVALID_VALUE));
        assert!((1..END).all(|attribute| value(attribute).is_ok()));
    }
}
