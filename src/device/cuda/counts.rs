//! Exact counts of launches, where a driver offers them beyond the driver API.
//!
//! A driver that runs kernels in software can say what each of them did. It exports two functions
//! for that, which a card's driver does not have: `cuxCountLaunches(on)` begins to count the
//! calling thread's launches, with none so far, or stops; `cuxLaunchCounts(to, room)` copies what
//! was counted, a JSON object with the fields of [`Counts`] a launch, and returns how many bytes
//! there are.

use std::sync::OnceLock;

use libloading::Library;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a launch did. A sector is 32 bytes of global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sectors that were read, each once: what any cache must fetch.
    pub unique_read_sectors: u64,
    /// Sectors that were written, each once.
    pub unique_write_sectors: u64,
    /// Sectors of all warps' reads.
    pub global_read_sectors: u64,
    /// Sectors of all warps' writes.
    pub global_write_sectors: u64,
    /// Passes over the banks of shared memory beyond what the widths of the accesses need.
    pub shared_bank_conflicts: u64,
    /// Floating-point operations of scalar instructions.
    pub scalar_flops: u64,
    /// Floating-point operations of tensor cores.
    pub tensor_flops: u64,
    /// Instructions issued by warps.
    pub warp_instructions: u64,
    /// Atomic operations.
    pub atomics: u64,
}

impl Counts {
    /// Bytes of a sector.
    const SECTOR: u64 = 32;

    /// Bytes of the sectors that were touched, each once a way.
    pub fn touched(&self) -> u64 {
        Self::SECTOR * (self.unique_read_sectors + self.unique_write_sectors)
    }

    /// Bytes of all sectors that warps asked for.
    pub fn asked(&self) -> u64 {
        Self::SECTOR * (self.global_read_sectors + self.global_write_sectors)
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        let both = [
            (&mut self.unique_read_sectors, other.unique_read_sectors),
            (&mut self.unique_write_sectors, other.unique_write_sectors),
            (&mut self.global_read_sectors, other.global_read_sectors),
            (&mut self.global_write_sectors, other.global_write_sectors),
            (&mut self.shared_bank_conflicts, other.shared_bank_conflicts),
            (&mut self.scalar_flops, other.scalar_flops),
            (&mut self.tensor_flops, other.tensor_flops),
            (&mut self.warp_instructions, other.warp_instructions),
            (&mut self.atomics, other.atomics),
        ];
        both.into_iter().for_each(|(own, other)| *own = own.saturating_add(other));
    }
}

struct Offered {
    count: extern "C" fn(bool),
    counts: unsafe extern "C" fn(*mut u8, usize) -> usize,
}

/// The functions, where the driver that was loaded has them.
fn offered() -> Option<&'static Offered> {
    static OFFERED: OnceLock<Option<Offered>> = OnceLock::new();
    let look = || {
        // SAFETY: the driver is loaded by then, so nothing of it runs now; it is never unloaded,
        // and whoever exports these names gives them the types that the head of this file says.
        unsafe {
            let names = ["libcuda.so", "libcuda.so.1"];
            let driver = names.into_iter().find_map(|name| Library::new(name).ok())?;
            let found = Offered {
                count: *driver.get(b"cuxCountLaunches\0").ok()?,
                counts: *driver.get(b"cuxLaunchCounts\0").ok()?,
            };
            std::mem::forget(driver);
            Some(found)
        }
    };
    OFFERED.get_or_init(look).as_ref()
}

/// Whether the driver counts what launches do: then they ran in software, and times are its own.
pub fn is_counting() -> bool {
    super::is_present() && offered().is_some()
}

/// The calling thread's launches, counted until [`Counting::end`].
pub(super) struct Counting(Option<&'static Offered>);

impl Counting {
    pub(super) fn begin() -> Self {
        let offered = if super::is_present() { offered() } else { None };
        if let Some(offered) = offered {
            (offered.count)(true);
        }
        Self(offered)
    }

    /// The counts in the order of the launches; wait for these before. `None` from a driver that
    /// does not count.
    pub(super) fn end(self) -> Result<Option<Vec<Counts>>> {
        let Some(offered) = self.0 else { return Ok(None) };
        // SAFETY: null asks how much there is, and the text has room for that.
        let text = unsafe {
            let mut text = vec![0; (offered.counts)(std::ptr::null_mut(), 0)];
            (offered.counts)(text.as_mut_ptr(), text.len());
            text
        };
        let counts = serde_json::Deserializer::from_slice(&text).into_iter::<Counts>();
        let unread = |e| Error::Internal(format!("the driver's counts of launches: {e}"));
        counts.collect::<Result<Vec<_>, _>>().map(Some).map_err(unread)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(offered) = self.0 {
            (offered.count)(false);
        }
    }
}
