//! `atom` and `red` on global and shared memory.

use super::code::{Access, AtomOp, FloatOp, Half, Inst, Mode};
use super::fault::FaultKind;
use super::half;
use super::lanes::lanes;
use super::space::{Way, addresses, peek, poke, value_of, window};
use super::warp::{Machine, Step, Warp, trouble_at};
use crate::ptx::ast::Space;
use std::sync::atomic::Ordering::SeqCst;

/// The new value of an integer operation on `bits` bits.
pub(super) fn combine(op: AtomOp, old: u64, b: u64, c: u64, bits: u32) -> u64 {
    let signed = |x: u64| (x << (64 - bits)) as i64 >> (64 - bits);
    let float = |f: fn(f32, f32) -> f32| {
        let x = f(f32::from_bits(old as u32), f32::from_bits(b as u32));
        u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
    };
    let halves = |kind, packed| {
        let sources = [old as u32, b as u32, 0];
        u64::from(half::operate(FloatOp::Add, kind, Mode::default(), packed, sources))
    };
    let out = match op {
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::MinU => old.min(b),
        AtomOp::MaxU => old.max(b),
        AtomOp::MinS => signed(old).min(signed(b)) as u64,
        AtomOp::MaxS => signed(old).max(signed(b)) as u64,
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomOp::AddF32 => float(|x, y| x + y),
        AtomOp::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomOp::AddF16x2 => halves(Half::F16, true),
        AtomOp::AddBf16x2 => halves(Half::Bf16, true),
        AtomOp::AddF16 => halves(Half::F16, false),
        AtomOp::AddBf16 => halves(Half::Bf16, false),
    };
    if bits == 64 { out } else { out & ((1 << bits) - 1) }
}

/// Runs an atomic, lane after lane.
pub(super) fn atomic(
    m: &mut Machine<'_>,
    w: &mut Warp,
    inst: &Inst,
    access: &Access,
    mask: u32,
) -> Step {
    let at = addresses(w, access);
    let bytes = u64::from(access.bytes);
    let slot = |w: &Warp, s: u32, lane: usize| match bytes {
        8 => w.w[s as usize][lane],
        _ => u64::from(w.r[s as usize][lane]),
    };
    let cut = if bytes == 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 };
    for lane in lanes(mask) {
        let (space, address) = window(access.space, at[lane]);
        m.aligned(lane, address, bytes)?;
        let (b, c) = (slot(w, inst.b, lane) & cut, slot(w, inst.c, lane) & cut);
        let new = |old: u64| combine(access.atom, old, b, c, bytes as u32 * 8);
        let old = match space {
            Space::Shared => shared(m, w, lane, (address, bytes), new)?,
            Space::Global => global(m, w, lane, (address, bytes), new)?,
            _ => {
                let text = "atomics work on global and shared memory";
                return trouble_at(FaultKind::IllegalAddress, lane, address, None, text);
            }
        };
        match bytes {
            8 => w.w[inst.d as usize][lane] = old,
            _ => w.r[inst.d as usize][lane] = old as u32,
        }
    }
    if m.fenced {
        m.acquired = true;
    }
    if m.env.options.count {
        super::tally::access(m, access.space, &at, mask, (bytes, Way::Write));
    }
    Ok(())
}

fn shared(
    m: &mut Machine<'_>,
    w: &Warp,
    lane: usize,
    (address, bytes): (u64, u64),
    new: impl Fn(u64) -> u64,
) -> Step<u64> {
    let at = m.shared_range(lane, address, bytes)?;
    let range = at..at + bytes as usize;
    if m.sanitize() {
        let stamp = m.stamp(w, true);
        m.check_shared(&stamp, Way::Read, lane, at, (bytes as usize, false))?;
        m.check_shared(&stamp, Way::Write, lane, at, (bytes as usize, false))?;
    }
    let old = value_of(&m.shared[range.clone()]);
    m.shared[range].copy_from_slice(&new(old).to_le_bytes()[..bytes as usize]);
    Ok(old)
}

fn global(
    m: &mut Machine<'_>,
    w: &Warp,
    lane: usize,
    (address, bytes): (u64, u64),
    new: impl Fn(u64) -> u64,
) -> Step<u64> {
    let alloc = m.locate(lane, address, bytes)?;
    let offset = address - alloc.base;
    if m.sanitize() {
        let stamp = m.stamp(w, true);
        m.check_global(&stamp, Way::Read, lane, (alloc, address), (bytes, false))?;
        m.check_global(&stamp, Way::Write, lane, (alloc, address), (bytes, false))?;
    }
    if bytes == 8 {
        return Ok(m.env.memory.exclusive(|| {
            let old = peek(alloc, offset, 8);
            poke(alloc, offset, 8, new(old));
            old
        }));
    }
    let Some(word) = alloc.words.get((offset / 4) as usize) else { return Ok(0) };
    let (shift, cut) = (offset % 4 * 8, if bytes == 4 { u64::from(u32::MAX) } else { 0xffff });
    let part = |word: u32| u64::from(word) >> shift & cut;
    let merge =
        |old: u32| (old & !((cut << shift) as u32)) | ((new(part(old)) & cut) << shift) as u32;
    let mut old = word.load(SeqCst);
    while let Err(now) = word.compare_exchange_weak(old, merge(old), SeqCst, SeqCst) {
        old = now;
    }
    Ok(part(old))
}
