//! Occupancy: how many blocks of a kernel a multiprocessor of the pretended card holds.
//!
//! Threads, blocks and shared memory are counted. Registers are not, since nothing here allocates
//! them: on a real card a kernel that needs many may hold fewer blocks than this says.

use super::attribute::{BLOCKS_SM, SHARED_RESERVED, THREADS_SM, WARP, model};
use super::call::abi;
use super::code::{Code, Result};
use super::function::{Function, function};
use super::raw::{Out, SharedOf};

/// Blocks that a multiprocessor holds at once.
pub(super) fn resident_blocks(function: &Function, threads: u32, dynamic: u32) -> u32 {
    if threads == 0 || threads > function.max_threads() {
        return 0;
    }
    let shared = u64::from(function.entry.static_shared_bytes)
        + u64::from(dynamic)
        + u64::from(SHARED_RESERVED);
    let by_threads = THREADS_SM / threads.next_multiple_of(WARP);
    let by_shared = u64::from(model().shared) / shared;
    by_threads.min(BLOCKS_SM).min(by_shared as u32)
}

fn blocks(out: Out<i32>, kernel: usize, threads: i32, dynamic: usize, flags: u32) -> Result {
    let function = function(kernel)?;
    if threads <= 0 || flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    let dynamic = u32::try_from(dynamic).map_err(|_| Code::INVALID_VALUE)?;
    out.set(resident_blocks(&function, threads as u32, dynamic) as i32)
}

/// The block size that fills a multiprocessor best, the larger one of two that do, and the grid
/// that fills the card.
fn best(
    grid: Out<i32>,
    block: Out<i32>,
    kernel: usize,
    shared: (SharedOf, usize),
    limit: i32,
) -> Result {
    let function = function(kernel)?;
    let most = function.max_threads() as i32;
    let limit = if limit <= 0 { most } else { limit.min(most) };
    let (mut best, mut found) = (0, (0, 0));
    let mut threads = limit;
    while threads > 0 {
        let dynamic = shared.0.bytes(threads, shared.1);
        let resident = u32::try_from(dynamic)
            .map_or(0, |dynamic| resident_blocks(&function, threads as u32, dynamic));
        if resident * threads as u32 > best {
            best = resident * threads as u32;
            found = (resident * model().multiprocessors, threads);
        }
        threads = (threads - 1) / WARP as i32 * WARP as i32;
    }
    grid.set(found.0 as i32)?;
    block.set(found.1)
}

abi! {
    /// Blocks of a kernel that a multiprocessor holds at once.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        out: Out<i32>,
        kernel: usize,
        threads: i32,
        dynamic: usize,
    ) {
        blocks(out, kernel, threads, dynamic, 0)
    }

    /// Blocks of a kernel that a multiprocessor holds at once.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<i32>,
        kernel: usize,
        threads: i32,
        dynamic: usize,
        flags: u32,
    ) {
        blocks(out, kernel, threads, dynamic, flags)
    }

    /// A good block size and the grid that fills the card with it.
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>,
        block: Out<i32>,
        kernel: usize,
        shared: SharedOf,
        dynamic: usize,
        limit: i32,
    ) {
        best(grid, block, kernel, (shared, dynamic), limit)
    }

    /// A good block size and the grid that fills the card with it.
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>,
        block: Out<i32>,
        kernel: usize,
        shared: SharedOf,
        dynamic: usize,
        limit: i32,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        best(grid, block, kernel, (shared, dynamic), limit)
    }

    /// Dynamic shared memory that each of a number of blocks can have on one multiprocessor.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        out: Out<usize>,
        kernel: usize,
        count: i32,
        threads: i32,
    ) {
        let function = function(kernel)?;
        let (count, threads) = (u32::try_from(count).ok(), u32::try_from(threads).ok());
        let (Some(count @ 1..), Some(threads @ 1..)) = (count, threads) else {
            return Err(Code::INVALID_VALUE);
        };
        if resident_blocks(&function, threads, 0) < count {
            return Err(Code::INVALID_VALUE);
        }
        let share = model().shared / count - SHARED_RESERVED;
        let left = share.saturating_sub(function.entry.static_shared_bytes);
        out.set(left.min(model().shared_opt_in) as usize)
    }
}
