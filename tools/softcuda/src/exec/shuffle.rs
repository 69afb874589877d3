//! Exchange between the lanes of a warp: shfl, vote, match, redux, elect.

use super::atomic::combine;
use super::code::{AtomOp, Inst, Op, Shuffle, Vote};
use super::fault::FaultKind;
use super::lanes::{LANES, lanes, put, put_bits};
use super::warp::{Machine, Step, Warp, trouble};

/// Every lane's member mask must name the lane itself and no live lane that does not take part.
fn members(m: &Machine<'_>, w: &Warp, inst: &Inst, mask: u32) -> Step {
    if !m.sanitize() {
        return Ok(());
    }
    let named = &w.r[inst.e as usize];
    for lane in lanes(mask) {
        if named[lane] >> lane & 1 == 0 {
            let text =
                format!("the member mask {:#010x} does not name the lane itself", named[lane]);
            return trouble(FaultKind::InvalidShuffle, lane, text);
        }
        let absent = named[lane] & w.live & !mask;
        if absent != 0 {
            let text = format!(
                "the member mask {:#010x} names lanes {absent:#010x}, which are elsewhere",
                named[lane]
            );
            return trouble(FaultKind::InvalidShuffle, lane, text);
        }
    }
    Ok(())
}

/// Source lane of a shuffle, and whether it is in range.
fn source(way: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let b = b & 31;
    let first = lane & segment;
    let last = first | (clamp & !segment);
    let (j, good) = match way {
        Shuffle::Up => {
            let j = lane.wrapping_sub(b) as i32;
            return if j >= last as i32 { (j as u32, true) } else { (lane, false) };
        }
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, (lane ^ b) <= last),
        Shuffle::Index => {
            let j = first | (b & !segment);
            (j, j <= last)
        }
    };
    if good { (j & 31, true) } else { (lane, false) }
}

fn shfl(m: &Machine<'_>, w: &mut Warp, inst: &Inst, mask: u32, (way, p): (Shuffle, u32)) -> Step {
    let (a, b, c) = (w.r[inst.a as usize], w.r[inst.b as usize], w.r[inst.c as usize]);
    let (mut out, mut good) = ([0; LANES], 0);
    for lane in lanes(mask) {
        let (from, inside) = source(way, lane as u32, b[lane], c[lane]);
        if m.sanitize() && inside && mask >> from & 1 == 0 {
            let text = format!("the source lane {from} does not take part");
            return trouble(FaultKind::InvalidShuffle, lane, text);
        }
        out[lane] = a[from as usize];
        good |= u32::from(inside) << lane;
    }
    put(&mut w.r[inst.d as usize], mask, out);
    put_bits(&mut w.p[p as usize], mask, good);
    Ok(())
}

fn vote(w: &mut Warp, inst: &Inst, mask: u32, vote: Vote) {
    let p = w.p[inst.a as usize];
    let named = w.r[inst.e as usize];
    let (mut ballots, mut answer) = ([0; LANES], 0u32);
    for lane in lanes(mask) {
        let group = named[lane] & mask;
        let yes = p & group;
        ballots[lane] = yes;
        let holds = match vote {
            Vote::All => yes == group,
            Vote::Any => yes != 0,
            Vote::Uniform => yes == 0 || yes == group,
            Vote::Ballot => false,
        };
        answer |= u32::from(holds) << lane;
    }
    match vote {
        Vote::Ballot => put(&mut w.r[inst.d as usize], mask, ballots),
        _ => put_bits(&mut w.p[inst.d as usize], mask, answer),
    }
}

fn matches(w: &mut Warp, inst: &Inst, mask: u32, (all, wide, pred): (bool, bool, u32)) {
    let values: [u64; LANES] = match wide {
        true => w.w[inst.a as usize],
        false => w.r[inst.a as usize].map(u64::from),
    };
    let named = w.r[inst.e as usize];
    let (mut out, mut same) = ([0; LANES], 0u32);
    for lane in lanes(mask) {
        let group = named[lane] & mask;
        let equal = lanes(group)
            .filter(|&other| values[other] == values[lane])
            .fold(0, |bits, other| bits | 1u32 << other);
        let full = equal == group;
        out[lane] = if !all || full { equal } else { 0 };
        same |= u32::from(full) << lane;
    }
    put(&mut w.r[inst.d as usize], mask, out);
    if all {
        put_bits(&mut w.p[pred as usize], mask, same);
    }
}

fn redux(w: &mut Warp, inst: &Inst, mask: u32, op: AtomOp) {
    let (values, named) = (w.r[inst.a as usize], w.r[inst.e as usize]);
    let mut out = [0; LANES];
    for lane in lanes(mask) {
        let all = lanes(named[lane] & mask).map(|other| u64::from(values[other]));
        let sum = all.reduce(|x, y| combine(op, x, y, 0, 32));
        out[lane] = sum.unwrap_or(0) as u32;
    }
    put(&mut w.r[inst.d as usize], mask, out);
}

/// Runs one of these instructions.
pub(super) fn exchange(m: &mut Machine<'_>, w: &mut Warp, inst: &Inst, mask: u32) -> Step {
    if inst.op == Op::ActiveMask {
        put(&mut w.r[inst.d as usize], mask, [mask; LANES]);
        return Ok(());
    }
    members(m, w, inst, mask)?;
    match inst.op {
        Op::Shfl(way, p) => shfl(m, w, inst, mask, (way, p))?,
        Op::Vote(kind) => vote(w, inst, mask, kind),
        Op::Match { all, wide, pred } => matches(w, inst, mask, (all, wide, pred)),
        Op::Redux(op) => redux(w, inst, mask, op),
        Op::Elect => {
            let leader = mask.trailing_zeros() & 31;
            put(&mut w.r[inst.d as usize], mask, [leader; LANES]);
            put_bits(&mut w.p[inst.a as usize], mask, 1 << leader);
        }
        // bar.warp.sync orders the lanes' memory accesses.
        _ => w.turn += 1,
    }
    Ok(())
}
