//! Device memory: taking it, giving it back, and what is left.

use super::call::{abi, current, lock};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::context::Context;
use super::driver::{Driver, Owned, new_serial};
use super::pool::{Pool, idle};
use super::raw::{Host, Out};
use std::sync::Arc;

/// Rows of pitched memory begin at multiples of this many bytes.
const PITCH: usize = 512;

/// Takes device memory for a context. If there is none left, what streams are about to free is
/// waited for first.
pub(super) fn allocate(
    driver: &Driver,
    context: &Context,
    bytes: u64,
    pool: Option<Arc<Pool>>,
) -> Result<u64> {
    let address = match driver.memory.alloc(bytes, None) {
        Ok(address) => address,
        Err(_) => {
            context.drain();
            driver.memory.alloc(bytes, None).map_err(|_| Code::OUT_OF_MEMORY)?
        }
    };
    let owned = Owned { bytes, context: context.handle, pool, doomed: false, serial: new_serial() };
    lock(&driver.owned).insert(address, owned);
    Ok(address)
}

/// Gives device memory back at once.
pub(super) fn release(driver: &Driver, address: u64) -> Result {
    let owned = lock(&driver.owned).remove(&address).ok_or(Code::INVALID_VALUE)?;
    if let Some(pool) = owned.pool {
        pool.give(owned.bytes);
    }
    driver.memory.free(address).map_err(|_| Code::INVALID_VALUE)
}

/// Notes that a stream will free this memory; it cannot be freed a second time.
pub(super) fn doom(driver: &Driver, address: u64) -> Result {
    let mut owned = lock(&driver.owned);
    match owned.get_mut(&address) {
        Some(owned) if !owned.doomed => {
            owned.doomed = true;
            Ok(())
        }
        _ => Err(Code::INVALID_VALUE),
    }
}

/// The allocation around an address that a caller may still use, with its first byte.
pub(super) fn around(driver: &Driver, address: u64) -> Option<(u64, Owned)> {
    let owned = lock(&driver.owned);
    let (base, found) = owned.range(..=address).next_back()?;
    (address - base < found.bytes && !found.doomed).then(|| (*base, found.clone()))
}

abi! {
    /// Takes device memory.
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let (driver, context) = current()?;
        if bytes == 0 || address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        prohibited(driver)?;
        address.set(allocate(driver, &context, bytes as u64, None)?)
    }

    /// Takes device memory for rows, each beginning at a multiple of the pitch.
    fn cuMemAllocPitch_v2(
        address: Out<u64>,
        pitch: Out<usize>,
        width: usize,
        height: usize,
        element: u32,
    ) {
        let (driver, context) = current()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) || address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        prohibited(driver)?;
        let row = width.checked_next_multiple_of(PITCH).ok_or(Code::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(Code::OUT_OF_MEMORY)?;
        pitch.set(row)?;
        address.set(allocate(driver, &context, bytes as u64, None)?)
    }

    /// Gives device memory back, after all work of the context; null is nothing to free.
    fn cuMemFree_v2(address: u64) {
        let (driver, context) = current()?;
        if address == 0 {
            return Ok(());
        }
        prohibited(driver)?;
        doom(driver, address)?;
        context.drain();
        release(driver, address)?;
        context.check()
    }

    /// Free and total device memory; what pools hold unused is not free.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (driver, _context) = current()?;
        let (left, all) = driver.memory.info();
        free.offer(left.saturating_sub(idle(driver)) as usize);
        total.offer(all as usize);
        Ok(())
    }

    /// The allocation around an address.
    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let (driver, _context) = current()?;
        let found = driver.memory.find(address).ok_or(Code::NOT_FOUND)?;
        base.offer(found.0);
        bytes.offer(found.1 as usize);
        Ok(())
    }

    /// Memory that both sides share: not supported.
    fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: u32) {
        current()?;
        Err(Code::NOT_SUPPORTED)
    }

    /// Where a pinned host range is for kernels: they cannot reach host memory here.
    fn cuMemHostGetDevicePointer_v2(_address: Out<u64>, _host: Host, _flags: u32) {
        current()?;
        Err(Code::NOT_SUPPORTED)
    }
}
