//! Stream-ordered allocation: memory that comes from a pool and goes back in the order of a stream.

use super::call::{abi, current};
use super::code::{Code, Result};
use super::memory::{allocate, doom};
use super::op::Op;
use super::order::Line;
use super::pool::current_pool;
use super::raw::Out;

/// A stream-ordered allocation; in a capture it becomes a node, and the memory is the graph's.
fn alloc_async(out: Out<u64>, bytes: usize, pool: Option<usize>, stream: usize) -> Result {
    let (driver, context) = current()?;
    let line = Line::of(driver, &context, stream)?;
    let pool = match pool {
        Some(pool) => driver.pools.get(pool)?,
        None => current_pool(driver)?,
    };
    if bytes == 0 || out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    if let Some(capture) = line.capture()? {
        line.submit(Op::Alloc)?;
        let address = allocate(driver, &line.context, bytes as u64, None)?;
        capture.own(address);
        return out.set(address);
    }
    if !pool.has_room(bytes as u64) {
        return Err(Code::OUT_OF_MEMORY);
    }
    let address = allocate(driver, &line.context, bytes as u64, Some(pool.clone()))?;
    pool.take(bytes as u64);
    out.set(address)
}

/// A stream-ordered free: from here on the address is only good for work that is already in the
/// stream.
fn free_async(address: u64, stream: usize) -> Result {
    let (driver, context) = current()?;
    let line = Line::of(driver, &context, stream)?;
    if let Some(capture) = line.capture()? {
        if !capture.owns(address) {
            return Err(Code::INVALID_VALUE);
        }
        return line.submit(Op::Free(None)).map(drop);
    }
    doom(driver, address)?;
    line.submit(Op::Free(Some(address))).map(drop)
}

abi! {
    /// Takes device memory in stream order.
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) also cuMemAllocAsync_ptsz {
        alloc_async(address, bytes, None, stream)
    }

    /// Takes device memory from a pool in stream order.
    fn cuMemAllocFromPoolAsync(
        address: Out<u64>,
        bytes: usize,
        pool: usize,
        stream: usize,
    ) also cuMemAllocFromPoolAsync_ptsz {
        alloc_async(address, bytes, Some(pool), stream)
    }

    /// Gives device memory back in stream order.
    fn cuMemFreeAsync(address: u64, stream: usize) also cuMemFreeAsync_ptsz {
        free_async(address, stream)
    }
}
