//! Counting what memory accesses cost: sectors of global memory, banks of shared memory.

use super::lanes::lanes;
use super::space::{Way, window};
use super::warp::Machine;
use crate::mem::lookup;
use crate::ptx::ast::Space;

/// Counts one warp-wide access of `width` bytes a lane.
pub(super) fn access(
    m: &mut Machine<'_>,
    space: Space,
    at: &[u64; 32],
    mask: u32,
    (width, way): (u64, Way),
) {
    let (mut global, mut shared) = ([0; 32], [0; 32]);
    let (mut globals, mut shareds) = (0, 0);
    for lane in lanes(mask) {
        match window(space, at[lane]) {
            (Space::Global, address) => {
                global[globals] = address;
                globals += 1;
            }
            (Space::Shared, address) => {
                shared[shareds] = address;
                shareds += 1;
            }
            _ => {}
        }
    }
    if globals > 0 {
        sectors(m, &global[..globals], width, way);
    }
    if shareds > 0 {
        let bytes = shareds as u64 * width;
        match way {
            Way::Read => m.tally.shared_read_bytes += bytes,
            Way::Write => m.tally.shared_write_bytes += bytes,
        }
        m.tally.bank_conflicts += conflicts(&shared[..shareds], width);
    }
}

/// Bytes and 32-byte sectors of a warp's access to global memory.
pub(super) fn sectors(m: &mut Machine<'_>, addresses: &[u64], width: u64, way: Way) {
    let mut list = [0; 64];
    let mut count = 0;
    for address in addresses {
        for sector in [address / 32, (address + width - 1) / 32] {
            if !list[..count].iter().rev().any(|s| *s == sector) {
                list[count] = sector;
                count += 1;
            }
        }
    }
    let bytes = addresses.len() as u64 * width;
    match way {
        Way::Read => {
            m.tally.global_reads += 1;
            m.tally.global_read_bytes += bytes;
            m.tally.global_read_sectors += count as u64;
        }
        Way::Write => {
            m.tally.global_writes += 1;
            m.tally.global_write_bytes += bytes;
            m.tally.global_write_sectors += count as u64;
        }
    }
    let env = m.env;
    for sector in &list[..count] {
        // An access may start after the first byte of its sector, but allocations do not.
        if let Some(alloc) = lookup(&env.table, sector * 32) {
            let index = env.table.partition_point(|a| a.base <= sector * 32) - 1;
            let at = (sector * 32 - alloc.base) / 32;
            env.footprint.touch(index, alloc.bytes, at, way == Way::Write);
        }
    }
}

/// Passes over the banks beyond the least that the width needs. Accesses of 8 and 16 bytes go in
/// halves and quarters of a warp, as the hardware's; lanes that share a word share a pass.
pub(super) fn conflicts(addresses: &[u64], width: u64) -> u64 {
    let together = (128 / width.max(4)).max(1) as usize;
    let mut extra = 0;
    for group in addresses.chunks(together) {
        let mut words = [0; 32];
        let mut count = 0;
        let mut banks = [0u64; 32];
        for address in group {
            for word in address / 4..=(address + width - 1) / 4 {
                if count < 32 && !words[..count].contains(&word) {
                    words[count] = word;
                    count += 1;
                    banks[word as usize % 32] += 1;
                }
            }
        }
        extra += banks.iter().max().map_or(0, |most| most.saturating_sub(1));
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks() {
        let row: Vec<u64> = (0..32).map(|i| i * 4).collect();
        assert_eq!(conflicts(&row, 4), 0);
        let column: Vec<u64> = (0..32).map(|i| i * 128).collect();
        assert_eq!(conflicts(&column, 4), 31);
        let two: Vec<u64> = (0..32).map(|i| i * 8).collect();
        assert_eq!(conflicts(&two, 4), 1);
        assert_eq!(conflicts(&two, 8), 0);
        assert_eq!(conflicts(&[64; 32], 4), 0);
        let quads: Vec<u64> = (0..32).map(|i| i * 16).collect();
        assert_eq!(conflicts(&quads, 16), 0);
        let apart: Vec<u64> = (0..32).map(|i| i * 128).collect();
        assert_eq!(conflicts(&apart, 16), 4 * 7);
    }
}
