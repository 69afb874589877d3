//! `cp.async.bulk`: runs of bytes between global and shared memory, whose end an mbarrier counts.
//!
//! Bytes on their way to shared memory are read when the copy is asked for and land when somebody
//! looks at its mbarrier, so who does not wait reads what was there before. Copies to global memory
//! are done at once.

use super::code::{Bulk, BulkKind};
use super::fault::FaultKind;
use super::lanes::lanes;
use super::space::{Way, addresses};
use super::warp::{Machine, Step, Warp, trouble_at};
use crate::check::Stamp;
use crate::ptx::ast::Space;

/// Bytes on their way to shared memory.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) barrier: u64,
    pub(super) to: u64,
    pub(super) data: Vec<u8>,
    pub(super) lane: usize,
    pub(super) warp: u64,
    pub(super) turn: u64,
    pub(super) seen: [u32; 32],
    pub(super) acquired: bool,
}

/// Starts a copy for each lane of `mask`.
pub(super) fn start(m: &mut Machine<'_>, w: &mut Warp, bulk: &Bulk, mask: u32) -> Step {
    if matches!(bulk.kind, BulkKind::TensorToShared | BulkKind::TensorToGlobal) {
        return super::tensor::start(m, w, bulk, mask);
    }
    let (to, from) = (addresses(w, &bulk.to), addresses(w, &bulk.from));
    let barrier = addresses(w, &bulk.barrier);
    for lane in lanes(mask) {
        let bytes = u64::from(w.r[bulk.size as usize][lane]);
        for address in [to[lane], from[lane], bytes] {
            m.aligned(lane, address, 16)?;
        }
        let run = (to[lane], from[lane], bytes);
        match bulk.kind {
            BulkKind::ToShared => load(m, w, lane, run, barrier[lane])?,
            _ => store(m, w, lane, run)?,
        }
    }
    Ok(())
}

fn load(
    m: &mut Machine<'_>,
    w: &Warp,
    lane: usize,
    (to, from, bytes): (u64, u64, u64),
    barrier: u64,
) -> Step {
    m.shared_range(lane, to, bytes)?;
    let mut data = Vec::with_capacity(bytes as usize);
    for at in (0..bytes).step_by(4) {
        let word = m.read(w, lane, (Space::Global, from + at), 4, false)?;
        data.extend((word as u32).to_le_bytes());
    }
    tally(m, from, bytes, Way::Read);
    let (warp, turn) = (u64::from(w.index), w.turn);
    let (seen, acquired) = (w.seen, m.acquired);
    m.loads.push(Load { barrier, to, data, lane, warp, turn, seen, acquired });
    Ok(())
}

fn store(
    m: &mut Machine<'_>,
    w: &mut Warp,
    lane: usize,
    (to, from, bytes): (u64, u64, u64),
) -> Step {
    m.shared_range(lane, from, bytes)?;
    for at in (0..bytes).step_by(4) {
        let word = m.read(w, lane, (Space::Shared, from + at), 4, false)?;
        m.write(w, lane, (Space::Global, to + at), (4, word), false)?;
    }
    tally(m, to, bytes, Way::Write);
    Ok(())
}

/// Counts a run of global bytes as a warp would move it, 16 bytes a lane.
pub(super) fn tally(m: &mut Machine<'_>, from: u64, bytes: u64, way: Way) {
    if !m.env.options.count || bytes == 0 {
        return;
    }
    let width = bytes.min(16);
    let pieces: Vec<u64> = (0..bytes / width).map(|i| from + i * width).collect();
    for row in pieces.chunks(32) {
        super::tally::sectors(m, row, width, way);
    }
}

/// Lands what an mbarrier waits for.
pub(super) fn land(m: &mut Machine<'_>, barrier: u64) -> Step {
    while let Some(at) = m.loads.iter().position(|load| load.barrier == barrier) {
        let load = m.loads.remove(at);
        land_one(m, &load)?;
    }
    Ok(())
}

/// Lands everything.
pub(super) fn land_all(m: &mut Machine<'_>) -> Step {
    for load in std::mem::take(&mut m.loads) {
        land_one(m, &load)?;
    }
    Ok(())
}

fn land_one(m: &mut Machine<'_>, load: &Load) -> Step {
    let stamp = Stamp {
        launch: m.env.tag,
        block: m.block_number,
        warp: load.warp,
        turn: load.turn,
        seen: &load.seen,
        strong: false,
        acquired: load.acquired,
    };
    let start = load.to as usize;
    let Some(room) = m.shared.get(start..start + load.data.len()) else {
        let text = "a copy lands outside shared memory";
        return trouble_at(FaultKind::IllegalAddress, load.lane, load.to, None, text);
    };
    if m.sanitize() {
        let same: Vec<bool> =
            room.chunks(4).zip(load.data.chunks(4)).map(|(old, new)| old == new).collect();
        for (i, same) in same.into_iter().enumerate() {
            m.check_shared(&stamp, Way::Write, load.lane, start + 4 * i, (4, same))?;
        }
    }
    if let Some(room) = m.shared.get_mut(start..start + load.data.len()) {
        room.copy_from_slice(&load.data);
    }
    m.complete(load.lane, load.barrier, load.data.len() as u64, &load.seen)
}
