//! Running kernels: programs, launches, faults.

mod fault;

pub use fault::{Fault, FaultKind, Report};

use crate::count::Counts;
use crate::mem::{MemError, Memory};
use crate::ptx::Module;

/// A module whose variables have addresses.
#[derive(Debug, Default)]
pub struct Program {
    variables: Vec<(String, u64, u64)>,
}

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
    /// [`Counts::to_json`] to that file).
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

impl Program {
    /// Places the module's variables in device memory.
    ///
    /// # Errors
    /// No memory left for them.
    pub fn load(module: &Module, memory: &Memory) -> Result<Self, MemError> {
        let _ = (module, memory);
        Ok(Self::default())
    }

    /// Address and size of a module variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.iter().find(|v| v.0 == name).map(|v| (v.1, v.2))
    }

    /// Frees the module's variables.
    ///
    /// # Errors
    /// One of them was freed already.
    pub fn unload(self, memory: &Memory) -> Result<(), MemError> {
        self.variables.iter().try_for_each(|v| memory.free(v.1))
    }
}

/// Runs a launch to its end.
///
/// # Errors
/// The first fault in block order.
pub fn run(
    program: &Program,
    memory: &Memory,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Counts, Fault> {
    let _ = (program, memory, options);
    Err(Fault::new(FaultKind::NotFound, launch.entry, "unsupported as yet"))
}
