//! Barriers of a block: who waits, who may go on, what a reduction gives.

use super::code::{Bar, BarKind, Inst, Op};
use super::fault::FaultKind;
use super::lanes::{LANES, put, put_bits};
use super::warp::{Gate, Machine, State, Step, Waiting, Warp, trouble};

/// A warp arrives; it waits unless it only announces itself.
pub(super) fn arrive(m: &mut Machine<'_>, w: &mut Warp, bar: &Bar, mask: u32) -> Step {
    let lane = mask.trailing_zeros() as usize & 31;
    if mask != w.live && mask == w.mask && defer(w) {
        return Ok(());
    }
    if mask != w.live {
        let text = format!(
            "lanes {mask:#010x} are at the barrier, lanes {:#010x} of their warp are not",
            w.live & !mask
        );
        return trouble(FaultKind::BarrierDivergence, lane, text);
    }
    let id = w.r[bar.id as usize][lane];
    let all = u32::MAX;
    let threads = if bar.threads == all { 0 } else { w.r[bar.threads as usize][lane] };
    if id > 15 || threads % 32 != 0 {
        let text = format!("barrier {id} for {threads} threads: there are 16, for whole warps");
        return trouble(FaultKind::IllegalInstruction, lane, text);
    }
    let gate = &mut m.gates[id as usize];
    if gate.arrived > 0 && gate.needed != threads {
        let text = format!("barrier {id} is waited for by different numbers of threads");
        return trouble(FaultKind::BarrierDivergence, lane, text);
    }
    if gate.arrived == 0 {
        *gate = Gate { all: true, ..Gate::default() };
    }
    gate.needed = threads;
    // A partial warp counts whole, as on the hardware.
    gate.arrived += 32;
    for (seen, own) in gate.seen.iter_mut().zip(&w.seen) {
        *seen = (*seen).max(*own);
    }
    if bar.pred != all {
        let p = w.pred(bar.pred >> 1) ^ if bar.pred & 1 == 1 { u32::MAX } else { 0 };
        gate.count += (p & mask).count_ones();
        gate.all &= p & mask == mask;
        gate.any |= p & mask != 0;
    }
    if bar.kind == BarKind::Arrive {
        w.seen[w.index as usize & 31] += 1;
    } else {
        gate.waiting.push(w.index);
        w.state = State::Waits(id);
    }
    Ok(())
}

/// How often a warp's parts may step aside for each other at one barrier.
const MOST_DEFERRED: u32 = 64;

/// Lanes at a barrier let those parts of their warp go first that will not meet them before it:
/// they may exit, or come to the same barrier. Says whether there were any.
fn defer(w: &mut Warp) -> bool {
    if w.stack.last().is_none_or(|top| top.join != w.join) || w.deferred >= MOST_DEFERRED {
        return false;
    }
    let here = Waiting { pc: w.at, join: w.join, mask: w.mask };
    let first = w.stack.iter().rposition(|s| s.join != w.join).map_or(0, |i| i + 1);
    match w.stack[first..].iter_mut().find(|s| s.pc == here.pc) {
        Some(same) => same.mask |= here.mask,
        None => w.stack.insert(first, here),
    }
    w.deferred += 1;
    w.pop()
}

/// Opens every gate whose threads are there. `live` is the number of warps that have not ended.
pub(super) fn open(m: &mut Machine<'_>, warps: &mut [Warp]) -> bool {
    let live = warps.iter().filter(|w| w.state != State::Done).count() as u32 * 32;
    let mut opened = false;
    for id in 0..m.gates.len() {
        let needed = match m.gates[id].needed {
            0 => live,
            n => n,
        };
        if m.gates[id].arrived == 0 || m.gates[id].arrived < needed {
            continue;
        }
        let gate = std::mem::take(&mut m.gates[id]);
        for &index in &gate.waiting {
            if let Some(w) = warps.get_mut(index as usize) {
                pass(m, w, &gate);
                opened = true;
            }
        }
    }
    opened
}

/// Lets a warp go on, knowing what all who arrived knew.
fn pass(m: &Machine<'_>, w: &mut Warp, gate: &Gate) {
    w.state = State::Ready;
    w.deferred = 0;
    w.turn += 1;
    for (own, seen) in w.seen.iter_mut().zip(&gate.seen) {
        *own = (*own).max(*seen);
    }
    w.seen[w.index as usize & 31] += 1;
    let inst: Inst = m.env.code.insts[w.at as usize];
    let Op::Bar(at) = inst.op else { return };
    let mask = w.mask;
    match m.env.code.bars[at as usize].kind {
        BarKind::Popc => put(&mut w.r[inst.d as usize], mask, [gate.count; LANES]),
        BarKind::And => put_bits(&mut w.p[inst.d as usize], mask, if gate.all { mask } else { 0 }),
        BarKind::Or => put_bits(&mut w.p[inst.d as usize], mask, if gate.any { mask } else { 0 }),
        BarKind::Sync | BarKind::Arrive => {}
    }
}
