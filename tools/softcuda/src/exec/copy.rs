//! `cp.async`: bytes are read when the copy is issued and land in shared memory when its group is
//! waited for, so a forgotten wait reads what was there before. And the 8x8 tiles of `ldmatrix`.

use super::code::{ALWAYS, Access};
use super::fault::FaultKind;
use super::lanes::lanes;
use super::space::{Way, addresses};
use super::warp::{Flight, Machine, Step, Warp, trouble_at};
use crate::ptx::ast::Space;

/// Starts a copy in every lane of `mask`.
pub(super) fn start(m: &mut Machine<'_>, w: &mut Warp, access: &Access, mask: u32) -> Step {
    let to = addresses(w, access);
    let (base, offset) = access.from;
    let from = w.w[base as usize].map(|a| a.wrapping_add(offset as u64));
    let bytes = u64::from(access.bytes);
    for lane in lanes(mask) {
        m.aligned(lane, to[lane], bytes)?;
        m.aligned(lane, from[lane], bytes)?;
        m.shared_range(lane, to[lane], bytes)?;
        let wanted = match access.size {
            ALWAYS => bytes,
            slot => u64::from(w.r[slot as usize][lane]),
        };
        if wanted > bytes {
            let text = format!("a copy of {bytes} bytes reads {wanted}");
            return trouble_at(FaultKind::IllegalInstruction, lane, from[lane], None, text);
        }
        let mut data = [0; 16];
        let whole = wanted / 4 * 4;
        for at in (0..whole).step_by(4) {
            let word = m.read(w, lane, (Space::Global, from[lane] + at), 4, false)?;
            data[at as usize..at as usize + 4].copy_from_slice(&(word as u32).to_le_bytes());
        }
        // Not a byte more than asked for: a buffer may end there.
        for at in whole..wanted {
            data[at as usize] = m.read(w, lane, (Space::Global, from[lane] + at), 1, false)? as u8;
        }
        w.flights.push(Flight {
            lane: lane as u8,
            bytes: access.bytes,
            to: to[lane] as u32,
            data,
            group: w.groups[lane],
        });
    }
    if m.env.options.count {
        super::tally::access(m, Space::Shared, &to, mask, (bytes, Way::Write));
        let read = lanes(mask)
            .filter(|&l| access.size == ALWAYS || w.r[access.size as usize][l] > 0)
            .fold(0, |bits, l| bits | 1u32 << l);
        super::tally::access(m, Space::Global, &from, read, (bytes, Way::Read));
    }
    Ok(())
}

/// Closes the group of every lane of `mask`.
pub(super) fn commit(w: &mut Warp, mask: u32) {
    for lane in lanes(mask) {
        w.groups[lane] += 1;
    }
}

/// Lands every copy of the lanes of `mask` but those of the latest `pending` groups.
pub(super) fn wait(m: &mut Machine<'_>, w: &mut Warp, mask: u32, pending: u32) -> Step {
    let flights = std::mem::take(&mut w.flights);
    let mut kept = Vec::new();
    for flight in flights {
        let lane = flight.lane as usize;
        let late = flight.group.saturating_add(pending) >= w.groups[lane];
        if mask >> lane & 1 == 0 || late {
            kept.push(flight);
            continue;
        }
        land(m, w, &flight)?;
    }
    w.flights = kept;
    Ok(())
}

/// Lands what is still under way when a thread ends.
pub(super) fn finish(m: &mut Machine<'_>, w: &mut Warp, mask: u32) -> Step {
    if w.flights.is_empty() {
        return Ok(());
    }
    commit(w, mask);
    wait(m, w, mask, 0)
}

fn land(m: &mut Machine<'_>, w: &mut Warp, flight: &Flight) -> Step {
    for at in (0..u64::from(flight.bytes)).step_by(4) {
        let bytes = &flight.data[at as usize..at as usize + 4];
        let value = super::space::value_of(bytes);
        let to = (Space::Shared, u64::from(flight.to) + at);
        m.write(w, flight.lane as usize, to, (4, value), false)?;
    }
    Ok(())
}

/// `ldmatrix`: lane 8*t + r gives the address of row r of tile t; lane l receives two elements of
/// row l / 4, or of column l / 4 when transposed.
pub(super) fn load_tiles(m: &mut Machine<'_>, w: &mut Warp, access: &Access) -> Step {
    let at = addresses(w, access);
    for tile in 0..access.count as usize {
        let mut rows = [[0u16; 8]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            let lane = tile * 8 + r;
            m.aligned(lane, at[lane], 16)?;
            for (c, cells) in row.chunks_exact_mut(2).enumerate() {
                let from = (Space::Shared, at[lane] + c as u64 * 4);
                let word = m.read(w, lane, from, 4, false)?;
                cells.copy_from_slice(&[word as u16, (word >> 16) as u16]);
            }
        }
        let reg = access.regs[tile] as usize;
        for lane in 0..32 {
            let (r, c) = (lane / 4, lane % 4 * 2);
            let (lo, hi) = match access.transpose {
                true => (rows[c][r], rows[c + 1][r]),
                false => (rows[r][c], rows[r][c + 1]),
            };
            w.r[reg][lane] = u32::from(lo) | u32::from(hi) << 16;
        }
    }
    tally(m, access, &at, Way::Read);
    Ok(())
}

/// `stmatrix`, the same the other way round.
pub(super) fn store_tiles(m: &mut Machine<'_>, w: &mut Warp, access: &Access) -> Step {
    let at = addresses(w, access);
    for tile in 0..access.count as usize {
        let reg = access.regs[tile] as usize;
        for lane in 0..32 {
            let (r, c) = (lane / 4, lane % 4 * 2);
            let value = w.r[reg][lane];
            for (half, k) in [(value & 0xffff, c), (value >> 16, c + 1)] {
                let (row, column) = if access.transpose { (k, r) } else { (r, k) };
                let from = tile * 8 + row;
                m.aligned(from, at[from], 16)?;
                let to = (Space::Shared, at[from] + column as u64 * 2);
                m.write(w, lane, to, (2, u64::from(half)), false)?;
            }
        }
    }
    tally(m, access, &at, Way::Write);
    Ok(())
}

/// Each tile is one pass over eight rows of 16 bytes.
fn tally(m: &mut Machine<'_>, access: &Access, at: &[u64; 32], way: Way) {
    if !m.env.options.count {
        return;
    }
    for tile in 0..u32::from(access.count) {
        super::tally::access(m, Space::Shared, at, 0xff << (tile * 8), (16, way));
    }
}
