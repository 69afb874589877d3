//! The loop that runs a warp: fetch, mask, dispatch, diverge, reconverge.

use super::bits::Bits;
use super::code::{ALWAYS, Inst, NEVER, Op, PredOp};
use super::cvt::Convert;
use super::fault::FaultKind;
use super::float::Float;
use super::int::Integer;
use super::lanes::{FULL, LANES, lanes, put, put_bits};
use super::mma::Multiply;
use super::warp::{Machine, State, Step, Waiting, Warp, trouble};
use super::{barrier, bulk, copy, phase, shuffle, space, wgmma};
use crate::ptx::ast::Special;
use pulp::Simd;

/// Instructions after which a warp is taken to hang.
const MOST_STEPS: u64 = 1 << 36;

/// Runs a warp until it waits, ends or has run `budget` instructions.
pub(super) fn run<S: Simd>(simd: S, m: &mut Machine<'_>, w: &mut Warp, budget: u64) -> Step {
    let code = m.env.code;
    m.set_early(w);
    let mut left = budget;
    while w.state == State::Ready {
        if w.pc == w.join {
            if !w.pop() {
                w.state = State::Done;
            }
            continue;
        }
        if left == 0 {
            break;
        }
        left -= 1;
        let at = w.pc as usize;
        let inst = &code.insts[at];
        let mask = w.mask & guard(w, inst.guard);
        w.at = w.pc;
        w.pc += 1;
        m.tally.lanes[at] += u64::from(mask.count_ones());
        if mask == 0 {
            continue;
        }
        m.tally.warps[at] += 1;
        one(simd, m, w, inst, mask)?;
    }
    w.steps += budget - left;
    if w.steps > MOST_STEPS {
        return trouble(FaultKind::Timeout, 0, "the warp has run 2^36 instructions");
    }
    Ok(())
}

#[inline(always)]
fn guard(w: &Warp, guard: u32) -> u32 {
    match guard {
        ALWAYS => FULL,
        slot if slot & 1 == 1 => !w.p[(slot >> 1) as usize],
        slot => w.p[(slot >> 1) as usize],
    }
}

#[inline(always)]
fn one<S: Simd>(simd: S, m: &mut Machine<'_>, w: &mut Warp, inst: &Inst, mask: u32) -> Step {
    match inst.op {
        Op::I32(_)
        | Op::I64(_)
        | Op::I16(_)
        | Op::Wide(_)
        | Op::Mov32
        | Op::Mov64
        | Op::Pack32
        | Op::Pack64
        | Op::Unpack32
        | Op::Unpack64
        | Op::Selp32
        | Op::Selp64
        | Op::Carry { .. } => simd.vectorize(Integer { warp: w, inst, mask }),
        Op::F32(..) | Op::F64(..) | Op::Half(..) | Op::Compare(..) => {
            simd.vectorize(Float { warp: w, inst, mask });
        }
        Op::Bits(op) => simd.vectorize(Bits { warp: w, inst, mask, op }),
        Op::Convert(cvt) => simd.vectorize(Convert { warp: w, inst, mask, cvt }),
        Op::Mma(at) => {
            whole(w, mask)?;
            simd.vectorize(Multiply { warp: w, mma: &m.env.code.mmas[at as usize] });
        }
        Op::Wgmma(at) => {
            whole(w, mask)?;
            let op = &m.env.code.wgmmas[at as usize];
            wgmma::run(simd, m, w, op)?;
        }
        Op::Bra(to) => branch(w, inst, mask, to),
        Op::Pred(op) => predicate(w, inst, mask, op),
        Op::Load(at) => {
            let access = &m.env.code.accesses[at as usize];
            space::load(m, w, access, mask)?;
        }
        Op::Store(at) => {
            let access = &m.env.code.accesses[at as usize];
            space::store(m, w, access, mask)?;
        }
        _ => rare(m, w, inst, mask)?,
    }
    Ok(())
}

/// Instructions that are not worth a place in the hot loop.
#[inline(never)]
fn rare(m: &mut Machine<'_>, w: &mut Warp, inst: &Inst, mask: u32) -> Step {
    let code = m.env.code;
    let access = |at: u32| &code.accesses[at as usize];
    match inst.op {
        Op::Atom(at) => super::atomic::atomic(m, w, inst, access(at), mask),
        Op::CopyAsync(at) => copy::start(m, w, access(at), mask),
        Op::Phase(at) => phase::run(m, w, inst, &code.phases[at as usize], mask),
        Op::Bulk(at) => bulk::start(m, w, &code.bulks[at as usize], mask),
        Op::CopyCommit => {
            copy::commit(w, mask);
            Ok(())
        }
        Op::CopyWait(pending) => copy::wait(m, w, mask, pending),
        Op::LdMatrix(at) => {
            whole(w, mask)?;
            copy::load_tiles(m, w, access(at))
        }
        Op::StMatrix(at) => {
            whole(w, mask)?;
            copy::store_tiles(m, w, access(at))
        }
        Op::Shfl(..)
        | Op::Vote(_)
        | Op::Match { .. }
        | Op::Redux(_)
        | Op::ActiveMask
        | Op::Elect
        | Op::WarpBar => shuffle::exchange(m, w, inst, mask),
        Op::Brx(table) => jump(m, w, inst, mask, table),
        Op::Call(to) => {
            w.stack.push(Waiting { pc: w.pc, join: w.join, mask: w.mask });
            (w.pc, w.join, w.mask) = (to, inst.e, mask);
            Ok(())
        }
        Op::Exit => {
            copy::finish(m, w, mask)?;
            w.live &= !mask;
            w.mask &= !mask;
            if w.mask == 0 && !w.pop() {
                w.state = State::Done;
            }
            Ok(())
        }
        Op::Trap => {
            let lane = mask.trailing_zeros() as usize;
            trouble(FaultKind::LaunchFailure, lane, "the kernel executed `trap`")
        }
        Op::Assert { message, file, line } => {
            super::print::assertion(m, w, mask, [message, file, line])
        }
        Op::Printf { format, args } => super::print::printf(m, w, mask, format, args),
        Op::Bar(at) => {
            let bar = code.bars[at as usize];
            barrier::arrive(m, w, &bar, mask)
        }
        Op::Fence => {
            m.fenced = true;
            Ok(())
        }
        Op::Await => {
            w.awaited |= mask;
            m.set_early(w);
            Ok(())
        }
        Op::FrameCopy { to, from, bytes } => {
            frame_copy(w, code.frame_bytes as usize, mask, [to, from, bytes]);
            Ok(())
        }
        Op::Special(special) => {
            moving(w, inst, mask, special);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Instructions of a whole warp need the whole warp.
fn whole(w: &Warp, mask: u32) -> Step {
    if mask == FULL {
        return Ok(());
    }
    let lane = mask.trailing_zeros() as usize & 31;
    let text =
        format!("lanes {:#010x} of the warp do not take part (live: {:#010x})", !mask, w.live);
    trouble(FaultKind::IllegalInstruction, lane, text)
}

#[inline(always)]
fn predicate(w: &mut Warp, inst: &Inst, mask: u32, op: PredOp) {
    let (a, b) = (w.p[inst.a as usize], w.p[inst.b as usize]);
    let out = match op {
        PredOp::Mov => a,
        PredOp::Not => !a,
        PredOp::And => a & b,
        PredOp::Or => a | b,
        PredOp::Xor => a ^ b,
    };
    put_bits(&mut w.p[inst.d as usize], mask, out);
}

/// The lanes of `mask` go to `to`, the others on; both meet at the branch's join.
#[inline(always)]
fn branch(w: &mut Warp, inst: &Inst, mask: u32, to: u32) {
    if mask == w.mask {
        w.pc = to;
        return;
    }
    diverge(w, inst.e, [(w.pc, w.mask & !mask), (to, mask)].into_iter());
}

/// Splits the lanes; the last group runs first.
fn diverge(w: &mut Warp, join: u32, groups: impl Iterator<Item = (u32, u32)>) {
    // Who waits at the join of an enclosing branch need not wait twice.
    if join != w.join && join != NEVER {
        w.stack.push(Waiting { pc: join, join: w.join, mask: w.mask });
    }
    // Without a join the groups never meet again before they end or leave the function.
    let until = if join == NEVER { w.join } else { join };
    for (pc, mask) in groups {
        if pc != until && mask != 0 {
            w.stack.push(Waiting { pc, join: until, mask });
        }
    }
    if !w.pop() {
        w.state = State::Done;
    }
}

fn jump(m: &mut Machine<'_>, w: &mut Warp, inst: &Inst, mask: u32, table: u32) -> Step {
    let targets = &m.env.code.tables[table as usize];
    let index = w.r[inst.a as usize];
    let mut groups: Vec<(u32, u32)> = Vec::new();
    if w.mask != mask {
        groups.push((w.pc, w.mask & !mask));
    }
    for lane in lanes(mask) {
        let Some(&to) = targets.get(index[lane] as usize) else {
            let text = format!("branch {} of a table of {}", index[lane], targets.len());
            return trouble(FaultKind::IllegalInstruction, lane, text);
        };
        match groups.iter_mut().find(|g| g.0 == to) {
            Some(group) => group.1 |= 1 << lane,
            None => groups.push((to, 1 << lane)),
        }
    }
    match groups.as_slice() {
        [(to, _)] => w.pc = *to,
        _ => diverge(w, inst.e, groups.into_iter()),
    }
    Ok(())
}

fn frame_copy(w: &mut Warp, size: usize, mask: u32, [to, from, bytes]: [u32; 3]) {
    for lane in lanes(mask) {
        let start = lane * size + from as usize;
        let range = start..start + bytes as usize;
        w.frame.copy_within(range.clone(), lane * size + to as usize);
        w.frame_written.copy_within(range, lane * size + to as usize);
    }
}

/// Clocks count the instructions of the warp: repeatable, and they grow.
fn moving(w: &mut Warp, inst: &Inst, mask: u32, special: Special) {
    let now = w.steps + u64::from(w.at);
    let d = inst.d as usize;
    match special {
        Special::Clock64 | Special::Timer => put(&mut w.w[d], mask, [now; LANES]),
        Special::ClockHi | Special::TimerHi => put(&mut w.r[d], mask, [(now >> 32) as u32; LANES]),
        _ => put(&mut w.r[d], mask, [now as u32; LANES]),
    }
}
