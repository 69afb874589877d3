//! Running kernels: programs, launches, faults.

mod atomic;
mod barrier;
mod bits;
mod block;
mod bulk;
mod class;
mod code;
mod copy;
mod cvt;
mod decode;
mod double;
mod fault;
mod float;
mod half;
mod int;
mod lanes;
mod mma;
mod ops;
mod phase;
mod print;
mod program;
mod round;
mod run;
mod shuffle;
mod space;
mod step;
mod tally;
mod tensor;
mod warp;
mod wgmma;
mod words;

pub(crate) use class::Classified;
pub(crate) use code::Code;
pub(crate) use decode::decode_entry;
pub use fault::{Fault, FaultKind, Report};
pub use program::Program;
pub use run::{MOST_SHARED, run};
pub(crate) use tensor::{AXES, Map};

/// Generic addresses from here on may lie in a window and not in global memory.
pub(crate) const FIRST_WINDOW: u64 = 0x7fff_0000_0000;
/// Where a thread's parameters appear among generic addresses.
pub(crate) const PARAM_WINDOW: u64 = FIRST_WINDOW;
/// Where a thread's local memory appears.
pub(crate) const LOCAL_WINDOW: u64 = 0x7fff_1000_0000;
/// Where a block's shared memory appears.
pub(crate) const SHARED_WINDOW: u64 = 0x7fff_2000_0000;
/// Size of each window.
pub(crate) const WINDOW_BYTES: u64 = 0x100_0000;

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel's symbol.
    pub entry: &'a str,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameter buffer, laid out as [`crate::ptx::Entry::params`] says.
    pub params: &'a [u8],
    /// All blocks are resident at once and may wait for each other.
    pub cooperative: bool,
    /// It may begin before the launch before it has ended (programmatic dependent launch), and
    /// waits for that by itself.
    pub overlaps: bool,
}

/// How launches run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Look for out of bounds, uninitialised, racing and divergent accesses.
    pub sanitize: bool,
    /// Picks the order of blocks and warps; results must not depend on it.
    pub schedule_seed: u64,
    /// Count what the launch does.
    pub count: bool,
    /// Host threads; 0 takes them all.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { sanitize: true, schedule_seed: 0, count: false, threads: 0 }
    }
}

impl Options {
    /// Options from `SOFTCUDA_SANITIZE` (0 turns the sanitizers off), `SOFTCUDA_SEED`,
    /// `SOFTCUDA_THREADS` and `SOFTCUDA_COUNTS` (a path: counting is on; the caller appends
    /// [`crate::count::Counts::to_json`] to that file).
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        Self {
            sanitize: number("SOFTCUDA_SANITIZE") != Some(0),
            schedule_seed: number("SOFTCUDA_SEED").unwrap_or(0),
            count: std::env::var_os("SOFTCUDA_COUNTS").is_some_and(|v| !v.is_empty()),
            threads: number("SOFTCUDA_THREADS").unwrap_or(0) as usize,
        }
    }
}
