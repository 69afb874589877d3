//! Memory pools: the bytes a pool holds, uses, and ever did.
//!
//! A pool takes memory from the device in steps and keeps what is freed up to its release
//! threshold, which is looked at when the program waits for work. Here only the numbers follow that
//! rule; the bytes themselves go back at once, so that a use after free is found.

use super::call::{abi, lock};
use super::code::{Code, Result};
use super::device::known;
use super::driver::{Driver, driver};
use super::raw::{In, Out};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What a pool takes from the device at a time, in bytes.
const STEP: u64 = 32 << 20;
/// Allocations are counted in units of this many bytes.
const UNIT: u64 = 512;

/// A pool.
pub(super) struct Pool {
    pub(super) handle: usize,
    /// What the pool may hold at most in bytes, 0 for no bound.
    limit: u64,
    numbers: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    used: u64,
    used_high: u64,
    reserved: u64,
    reserved_high: u64,
    threshold: u64,
    reuse: [u32; 3],
}

fn units(bytes: u64) -> u64 {
    bytes.next_multiple_of(UNIT)
}

impl Pool {
    pub(super) fn new(handle: usize, limit: u64) -> Self {
        let numbers = Numbers { reuse: [1; 3], ..Numbers::default() };
        Self { handle, limit, numbers: Mutex::new(numbers) }
    }

    /// Whether the pool's own bound allows this many more bytes.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.limit == 0 || lock(&self.numbers).used.saturating_add(bytes) <= self.limit
    }

    /// Counts an allocation in.
    pub(super) fn take(&self, bytes: u64) {
        let mut now = lock(&self.numbers);
        let used = now.used + units(bytes);
        now.used = used;
        now.used_high = now.used_high.max(used);
        now.reserved = now.reserved.max(used.next_multiple_of(STEP));
        now.reserved_high = now.reserved_high.max(now.reserved);
    }

    /// Counts an allocation out.
    pub(super) fn give(&self, bytes: u64) {
        let mut now = lock(&self.numbers);
        now.used = now.used.saturating_sub(units(bytes));
    }

    /// Gives back what is held beyond `keep` bytes and beyond what is used.
    fn trim(&self, keep: Option<u64>) {
        let mut now = lock(&self.numbers);
        let keep = keep.unwrap_or(now.threshold).min(now.reserved);
        now.reserved = now.used.next_multiple_of(STEP).max(keep);
    }

    /// Bytes that the pool holds without using them.
    pub(super) fn idle(&self) -> u64 {
        let now = lock(&self.numbers);
        now.reserved.saturating_sub(now.used)
    }

    fn attribute(&self, attribute: u32, value: Out<u64>) -> Result {
        let now = lock(&self.numbers);
        match attribute {
            1..=3 => value.cast::<u32>().set(now.reuse[attribute as usize - 1]),
            4 => value.set(now.threshold),
            5 => value.set(now.reserved),
            6 => value.set(now.reserved_high),
            7 => value.set(now.used),
            8 => value.set(now.used_high),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn set_attribute(&self, attribute: u32, value: Out<u64>) -> Result {
        let mut now = lock(&self.numbers);
        match attribute {
            1..=3 => now.reuse[attribute as usize - 1] = value.cast::<u32>().get()?,
            4 => now.threshold = value.get()?,
            6 if value.get()? == 0 => now.reserved_high = now.reserved,
            8 if value.get()? == 0 => now.used_high = now.used,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }
}

/// What the driver does when a program has waited for work: pools shrink to their thresholds.
pub(super) fn settle(driver: &Driver) {
    for pool in driver.pools.all() {
        pool.trim(None);
    }
}

/// Bytes that pools hold without using them.
pub(super) fn idle(driver: &Driver) -> u64 {
    driver.pools.all().iter().map(|pool| pool.idle()).sum()
}

/// The pool that `cuMemAllocAsync` takes from.
pub(super) fn current_pool(driver: &Driver) -> Result<Arc<Pool>> {
    let pool = driver.pools.get(driver.current_pool.load(Ordering::Relaxed));
    pool.or_else(|_| driver.pools.get(driver.default_pool))
}

abi! {
    /// The pool that the device began with.
    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) {
        known(device)?;
        pool.set(driver()?.default_pool)
    }

    /// The pool that `cuMemAllocAsync` takes from.
    fn cuDeviceGetMemPool(pool: Out<usize>, device: i32) {
        known(device)?;
        pool.set(current_pool(driver()?)?.handle)
    }

    /// Sets the pool that `cuMemAllocAsync` takes from.
    fn cuDeviceSetMemPool(device: i32, pool: usize) {
        known(device)?;
        let driver = driver()?;
        driver.pools.get(pool)?;
        driver.current_pool.store(pool, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a pool of device memory that is not shared with other processes.
    fn cuMemPoolCreate(pool: Out<usize>, properties: In<PoolProperties>) {
        let driver = driver()?;
        let properties = properties.get()?;
        // 1 is pinned memory, and 1 as a location is a device.
        if (properties.kind, properties.location) != (1, 1) || properties.device != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if properties.shared != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let limit = properties.max_bytes as u64;
        pool.set(driver.pools.insert(|handle| Pool::new(handle, limit)).0)
    }

    /// Forgets a pool; its allocations live on until they are freed.
    fn cuMemPoolDestroy(pool: usize) {
        let driver = driver()?;
        if pool == driver.default_pool {
            return Err(Code::NOT_SUPPORTED);
        }
        driver.pools.remove(pool).map(drop)
    }

    /// Gives back what a pool holds beyond a number of bytes.
    fn cuMemPoolTrimTo(pool: usize, keep: usize) {
        driver()?.pools.get(pool)?.trim(Some(keep as u64));
        Ok(())
    }

    /// One of a pool's numbers.
    fn cuMemPoolGetAttribute(pool: usize, attribute: u32, value: Out<u64>) {
        driver()?.pools.get(pool)?.attribute(attribute, value)
    }

    /// Sets a pool's threshold or rules; high-water marks can only be set to 0, which starts them
    /// anew.
    fn cuMemPoolSetAttribute(pool: usize, attribute: u32, value: Out<u64>) {
        driver()?.pools.get(pool)?.set_attribute(attribute, value)
    }

    /// Says who may read a pool's memory: the one device always may.
    fn cuMemPoolSetAccess(pool: usize, map: In<[i32; 3]>, count: usize) {
        driver()?.pools.get(pool)?;
        for index in 0..count {
            let [kind, device, flags] = map.at(index)?;
            if (kind, device, flags) != (1, 0, 3) {
                return Err(Code::INVALID_DEVICE);
            }
        }
        Ok(())
    }

    /// Who may read a pool's memory: the one device, both ways.
    fn cuMemPoolGetAccess(flags: Out<u32>, pool: usize, location: In<[i32; 2]>) {
        driver()?.pools.get(pool)?;
        flags.set(if location.get()? == [1, 0] { 3 } else { 0 })
    }
}

/// The part of `CUmemPoolProps` that is looked at, field by field.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PoolProperties {
    kind: u32,
    shared: u32,
    location: i32,
    device: i32,
    _security: usize,
    max_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_up_to_its_threshold() {
        let pool = Pool::new(0, 0);
        pool.take(100 << 20);
        pool.give(100 << 20);
        assert_eq!(pool.idle(), 128 << 20);
        lock(&pool.numbers).threshold = 64 << 20;
        pool.trim(None);
        assert_eq!(pool.idle(), 64 << 20);
        pool.trim(Some(0));
        assert_eq!(pool.idle(), 0);
        let now = lock(&pool.numbers);
        assert_eq!((now.used, now.used_high, now.reserved_high), (0, 100 << 20, 128 << 20));
    }

    #[test]
    fn a_bounded_pool_refuses_more() {
        let pool = Pool::new(0, 1 << 20);
        assert!(pool.has_room(1 << 20));
        pool.take(1 << 20);
        assert!(!pool.has_room(1));
    }
}
