//! What softcuda offers tests beyond the driver's interface. The product does not know of it; on a
//! card these functions are absent.

#![allow(unsafe_code)]

use std::sync::OnceLock;

use libloading::os::unix::Library;
use serde::Deserialize;

/// What a launch did, as softcuda counts: see `Counts` in tools/softcuda/src/count.rs.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Counts {
    pub global_reads: u64,
    pub global_writes: u64,
    pub global_read_sectors: u64,
    pub global_write_sectors: u64,
    pub unique_read_sectors: u64,
    pub unique_write_sectors: u64,
    pub shared_bank_conflicts: u64,
    pub scalar_flops: u64,
    pub tensor_flops: u64,
}

struct Hooks {
    schedule: extern "C" fn(u64),
    count: extern "C" fn(bool),
    counts: unsafe extern "C" fn(*mut u8, usize) -> usize,
}

/// The functions, where the driver that was loaded is softcuda.
fn hooks() -> Option<&'static Hooks> {
    static HOOKS: OnceLock<Option<Hooks>> = OnceLock::new();
    let look = || {
        // A driver is loaded by then, for all to see.
        super::gpu::gpu().ok()?;
        let all = Library::this();
        // SAFETY: the types are those of tools/softcuda/src/abi/watch.rs, and no other library has
        // these names; softcuda is never unloaded.
        unsafe {
            Some(Hooks {
                schedule: *all.get(b"softcudaSchedule\0").ok()?,
                count: *all.get(b"cuxCountLaunches\0").ok()?,
                counts: *all.get(b"cuxLaunchCounts\0").ok()?,
            })
        }
    };
    HOOKS.get_or_init(look).as_ref()
}

/// Runs `f`, which must wait for what it launches, with the calling thread's launches in the order
/// of blocks and warps that `seed` picks (0 is the plain one), and returns with its result their
/// counts in order. A card has its own order and does not count.
pub fn launched<T>(seed: u64, f: impl FnOnce() -> T) -> (T, Option<Vec<Counts>>) {
    let Some(hooks) = hooks() else { return (f(), None) };
    (hooks.schedule)(seed);
    (hooks.count)(true);
    let done = f();
    // SAFETY: null is for asking how much there is, and the text has room for that.
    let text = unsafe {
        let mut text = vec![0; (hooks.counts)(std::ptr::null_mut(), 0)];
        (hooks.counts)(text.as_mut_ptr(), text.len());
        text
    };
    (hooks.count)(false);
    (hooks.schedule)(0);
    let lines = serde_json::Deserializer::from_slice(&text).into_iter::<Counts>();
    (done, Some(lines.map(|line| line.unwrap()).collect()))
}
