//! The one driver of the process: device memory, and every handle that was given out.

use super::call::lock;
use super::capture::Capture;
use super::code::{Code, Result};
use super::context::Context;
use super::event::Event;
use super::function::Function;
use super::graph::{Executable, Graph, NodeInfo};
use super::host::HostBlock;
use super::module::Loaded;
use super::pool::Pool;
use super::stream::Stream;
use crate::mem::Memory;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

static DRIVER: OnceLock<Driver> = OnceLock::new();
static HANDLE: AtomicUsize = AtomicUsize::new(0x5cd0_0000);
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// The fraction of the host's memory that the device pretends to have, as a divisor.
const HOST_SHARE: u64 = 2;
/// What the device has where the host's memory is not known.
const FALLBACK_BYTES: u64 = 4 << 30;

/// Everything that outlives a call.
pub(super) struct Driver {
    pub(super) memory: Memory,
    pub(super) total: u64,
    pub(super) contexts: Handles<Context>,
    pub(super) streams: Handles<Stream>,
    pub(super) events: Handles<Event>,
    pub(super) modules: Handles<Loaded>,
    pub(super) functions: Handles<Function>,
    pub(super) graphs: Handles<Graph>,
    pub(super) executables: Handles<Executable>,
    pub(super) nodes: Handles<NodeInfo>,
    pub(super) pools: Handles<Pool>,
    /// Captures under way, in any context.
    pub(super) captures: Mutex<HashMap<u64, Arc<Capture>>>,
    /// The primary context: its handle stays the same from one life to the next.
    pub(super) primary: Mutex<Primary>,
    /// Pinned host memory, by address.
    pub(super) host: Mutex<BTreeMap<usize, HostBlock>>,
    /// Device memory that callers own, by address.
    pub(super) owned: Mutex<BTreeMap<u64, Owned>>,
    pub(super) default_pool: usize,
    pub(super) current_pool: AtomicUsize,
}

/// The state of the device's primary context.
pub(super) struct Primary {
    pub(super) handle: usize,
    pub(super) references: u32,
    pub(super) flags: u32,
}

/// One allocation of device memory.
#[derive(Clone)]
pub(super) struct Owned {
    pub(super) bytes: u64,
    /// The handle of the context it was made in.
    pub(super) context: usize,
    /// The pool it came from, if it is stream ordered.
    pub(super) pool: Option<Arc<Pool>>,
    /// A free was put into a stream and has not run yet.
    pub(super) doomed: bool,
    pub(super) serial: u64,
}

/// Objects by the handle that the caller knows them by; no handle is used twice, or for two kinds.
pub(super) struct Handles<T>(Mutex<HashMap<usize, Arc<T>>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<T> Handles<T> {
    /// Gives the object that `make` builds a handle of its own.
    pub(super) fn insert(&self, make: impl FnOnce(usize) -> T) -> (usize, Arc<T>) {
        let handle = new_handle();
        let object = Arc::new(make(handle));
        self.put(handle, object.clone());
        (handle, object)
    }

    /// Files an object under a handle that is already known.
    pub(super) fn put(&self, handle: usize, object: Arc<T>) {
        lock(&self.0).insert(handle, object);
    }

    /// The object, or `CUDA_ERROR_INVALID_HANDLE`.
    pub(super) fn get(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0).get(&handle).cloned().ok_or(Code::INVALID_HANDLE)
    }

    /// Takes the object out, or `CUDA_ERROR_INVALID_HANDLE`.
    pub(super) fn remove(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0).remove(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// All objects there are.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).values().cloned().collect()
    }

    /// Forgets the objects of which `keep` is false.
    pub(super) fn retain(&self, keep: impl Fn(&T) -> bool) {
        // What is dropped may take other locks, so it is dropped after this one is open again.
        let mut map = lock(&self.0);
        let gone: Vec<_> =
            map.iter().filter(|(_, object)| !keep(object)).map(|(handle, _)| *handle).collect();
        let gone: Vec<_> = gone.iter().filter_map(|handle| map.remove(handle)).collect();
        drop(map);
        drop(gone);
    }
}

/// A handle that was never used before.
pub(super) fn new_handle() -> usize {
    HANDLE.fetch_add(16, Ordering::Relaxed)
}

/// A number that was never used before, for what has an id but no handle.
pub(super) fn new_serial() -> u64 {
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// The driver, once `cuInit` made it.
pub(super) fn driver() -> Result<&'static Driver> {
    DRIVER.get().ok_or(Code::NOT_INITIALIZED)
}

/// Makes the driver unless it is there.
pub(super) fn init() {
    DRIVER.get_or_init(|| Driver::new(device_bytes()));
}

/// The size of the device's memory: `SOFTCUDA_MEMORY`, else a share of the host's.
fn device_bytes() -> u64 {
    let asked = std::env::var("SOFTCUDA_MEMORY").ok();
    if let Some(text) = asked.as_deref() {
        match bytes_of(text) {
            Some(bytes) => return bytes,
            None => super::report::say(&format!(
                "SOFTCUDA_MEMORY={text} is not a size; write bytes, or a number with K, M or G"
            )),
        }
    }
    let host = std::fs::read_to_string("/proc/meminfo").ok();
    let kib = host.as_deref().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kib.map_or(FALLBACK_BYTES, |kib| kib * 1024 / HOST_SHARE)
}

/// `4096`, `64K`, `512M` or `8G` in bytes; 0 and what does not fit are no sizes.
fn bytes_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB") {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

impl Driver {
    fn new(total: u64) -> Self {
        let pools = Handles::default();
        let (default_pool, _) = pools.insert(|handle| Pool::new(handle, 0));
        Self {
            memory: Memory::new(total),
            total,
            contexts: Handles::default(),
            streams: Handles::default(),
            events: Handles::default(),
            modules: Handles::default(),
            functions: Handles::default(),
            graphs: Handles::default(),
            executables: Handles::default(),
            nodes: Handles::default(),
            pools,
            captures: Mutex::default(),
            primary: Mutex::new(Primary { handle: new_handle(), references: 0, flags: 0 }),
            host: Mutex::default(),
            owned: Mutex::default(),
            default_pool,
            current_pool: AtomicUsize::new(default_pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes_of("4096"), Some(4096));
        assert_eq!(bytes_of(" 64k "), Some(64 << 10));
        assert_eq!(bytes_of("512MiB"), Some(512 << 20));
        assert_eq!(bytes_of("8G"), Some(8 << 30));
        for bad in ["", "0", "G", "1.5G", "-1", "3X", "99999999999999999G"] {
            assert_eq!(bytes_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_handle_of_one_kind_is_none_of_another() {
        let (one, two) = (Handles::<u8>::default(), Handles::<u8>::default());
        let (handle, _) = one.insert(|_| 7);
        assert_eq!(two.get(handle), Err(Code::INVALID_HANDLE));
        assert_eq!(one.remove(handle).map(|x| *x), Ok(7));
        assert_eq!(one.get(handle), Err(Code::INVALID_HANDLE));
    }
}
