//! Integer arithmetic and logic of 16, 32 and 64 bits.
//!
//! Division by zero gives all ones and its remainder the dividend, as the hardware does.

use super::code::{Inst, IntOp, Op, WideOp};
use super::lanes::{LANES, Row, one, put, put_bits, test, three, two};
use super::warp::Warp;
use pulp::{Simd, WithSimd};

/// An integer instruction on its way into vector code.
pub(super) struct Integer<'a> {
    pub(super) warp: &'a mut Warp,
    pub(super) inst: &'a Inst,
    pub(super) mask: u32,
}

macro_rules! shifts {
    ($to:expr, $a:expr, $by:expr, $mask:expr, $f:expr) => {{
        let (a, by) = ($a, $by);
        let f = $f;
        let mut out = [0; LANES];
        for l in 0..LANES {
            out[l] = f(a[l], by[l]);
        }
        put($to, $mask, out);
    }};
}

/// One width: `$u` and `$s` are the types, `$lane` what a register holds.
macro_rules! width {
    ($name:ident, $file:ident, $lane:ty, $u:ty, $s:ty, $double_u:ty, $double_s:ty) => {
        #[inline(always)]
        fn $name(w: &mut Warp, i: &Inst, m: u32, op: IntOp) {
            const BITS: u32 = <$u>::BITS;
            type L = $lane;
            let r = w.$file.as_mut_slice();
            let hi_s = |a: L, b: L| {
                ((a as $s as $double_s).wrapping_mul(b as $s as $double_s) >> BITS) as $u
            };
            let hi_u = |a: L, b: L| {
                ((a as $u as $double_u).wrapping_mul(b as $u as $double_u) >> BITS) as $u
            };
            let lo = |a: L, b: L| (a as $u).wrapping_mul(b as $u);
            match op {
                IntOp::Add => two(r, i, m, |a, b| (a as $u).wrapping_add(b as $u) as L),
                IntOp::Sub => two(r, i, m, |a, b| (a as $u).wrapping_sub(b as $u) as L),
                IntOp::AddSat => {
                    two(r, i, m, |a, b| (a as $s).saturating_add(b as $s) as $u as L);
                }
                IntOp::SubSat => {
                    two(r, i, m, |a, b| (a as $s).saturating_sub(b as $s) as $u as L);
                }
                IntOp::MulLo => two(r, i, m, |a, b| lo(a, b) as L),
                IntOp::MulHiS => two(r, i, m, |a, b| hi_s(a, b) as L),
                IntOp::MulHiU => two(r, i, m, |a, b| hi_u(a, b) as L),
                IntOp::MadLo => three(r, i, m, |a, b, c| lo(a, b).wrapping_add(c as $u) as L),
                IntOp::MadHiS => three(r, i, m, |a, b, c| hi_s(a, b).wrapping_add(c as $u) as L),
                IntOp::MadHiU => three(r, i, m, |a, b, c| hi_u(a, b).wrapping_add(c as $u) as L),
                IntOp::MinS => two(r, i, m, |a, b| (a as $s).min(b as $s) as $u as L),
                IntOp::MinU => two(r, i, m, |a, b| (a as $u).min(b as $u) as L),
                IntOp::MaxS => two(r, i, m, |a, b| (a as $s).max(b as $s) as $u as L),
                IntOp::MaxU => two(r, i, m, |a, b| (a as $u).max(b as $u) as L),
                IntOp::And => two(r, i, m, |a, b| a & b),
                IntOp::Or => two(r, i, m, |a, b| a | b),
                IntOp::Xor => two(r, i, m, |a, b| a ^ b),
                IntOp::Not => one(r, i, m, |a| !(a as $u) as L),
                IntOp::Cnot => one(r, i, m, |a| L::from(a == 0)),
                IntOp::Neg => one(r, i, m, |a| (a as $u).wrapping_neg() as L),
                IntOp::Abs => one(r, i, m, |a| (a as $s).wrapping_abs() as $u as L),
                IntOp::DivS => two(r, i, m, |a, b| match b as $s {
                    0 => <$u>::MAX as L,
                    b => (a as $s).wrapping_div(b) as $u as L,
                }),
                IntOp::DivU => two(r, i, m, |a, b| match b as $u {
                    0 => <$u>::MAX as L,
                    b => ((a as $u) / b) as L,
                }),
                IntOp::RemS => two(r, i, m, |a, b| match b as $s {
                    0 => a as $u as L,
                    b => (a as $s).wrapping_rem(b) as $u as L,
                }),
                IntOp::RemU => two(r, i, m, |a, b| match b as $u {
                    0 => a as $u as L,
                    b => ((a as $u) % b) as L,
                }),
                IntOp::SadS => {
                    three(r, i, m, |a, b, c| (a as $s).abs_diff(b as $s).wrapping_add(c as $u) as L)
                }
                IntOp::SadU => {
                    three(r, i, m, |a, b, c| (a as $u).abs_diff(b as $u).wrapping_add(c as $u) as L)
                }
                IntOp::Brev => one(r, i, m, |a| (a as $u).reverse_bits() as L),
                // Shift counts come from the 32-bit file and are handled by the caller.
                IntOp::Shl | IntOp::ShrS | IntOp::ShrU => {}
            }
        }
    };
}

width!(ops16, r, u32, u16, i16, u32, i32);
width!(ops32, r, u32, u32, i32, u64, i64);
width!(ops64, w, u64, u64, i64, u128, i128);

#[inline(always)]
fn shift16(w: &mut Warp, i: &Inst, m: u32, op: IntOp) {
    let (a, by) = (w.r[i.a as usize], w.r[i.b as usize]);
    let d = &mut w.r[i.d as usize];
    match op {
        IntOp::Shl => shifts!(d, a, by, m, |a: u32, s: u32| (a << s.min(31)) & 0xffff),
        IntOp::ShrU => shifts!(d, a, by, m, |a: u32, s: u32| (a & 0xffff) >> s.min(31)),
        _ => shifts!(d, a, by, m, |a: u32, s: u32| (i32::from(a as i16) >> s.min(31)) as u32
            & 0xffff),
    }
}

#[inline(always)]
fn shift32(w: &mut Warp, i: &Inst, m: u32, op: IntOp) {
    let (a, by) = (w.r[i.a as usize], w.r[i.b as usize]);
    let d = &mut w.r[i.d as usize];
    match op {
        IntOp::Shl => {
            shifts!(d, a, by, m, |a: u32, s: u32| if s > 31 { 0 } else { a << (s & 31) });
        }
        IntOp::ShrU => {
            shifts!(d, a, by, m, |a: u32, s: u32| if s > 31 { 0 } else { a >> (s & 31) });
        }
        _ => shifts!(d, a, by, m, |a: u32, s: u32| (a as i32 >> s.min(31)) as u32),
    }
}

#[inline(always)]
fn shift64(w: &mut Warp, i: &Inst, m: u32, op: IntOp) {
    let (a, by) = (w.w[i.a as usize], w.r[i.b as usize]);
    let d = &mut w.w[i.d as usize];
    match op {
        IntOp::Shl => {
            shifts!(d, a, by, m, |a: u64, s: u32| if s > 63 { 0 } else { a << (s & 63) });
        }
        IntOp::ShrU => {
            shifts!(d, a, by, m, |a: u64, s: u32| if s > 63 { 0 } else { a >> (s & 63) });
        }
        _ => shifts!(d, a, by, m, |a: u64, s: u32| (a as i64 >> s.min(63)) as u64),
    }
}

#[inline(always)]
fn wide(w: &mut Warp, i: &Inst, m: u32, op: WideOp) {
    let s16 = |a: u32, b: u32| (i32::from(a as i16) * i32::from(b as i16)) as u32;
    let u16 = |a: u32, b: u32| u32::from(a as u16) * u32::from(b as u16);
    let s32 = |a: u32, b: u32| (i64::from(a as i32) * i64::from(b as i32)) as u64;
    let u32 = |a: u32, b: u32| u64::from(a) * u64::from(b);
    match op {
        WideOp::Mul16S => two(&mut w.r, i, m, s16),
        WideOp::Mul16U => two(&mut w.r, i, m, u16),
        WideOp::Mad16S => three(&mut w.r, i, m, |a, b, c| s16(a, b).wrapping_add(c)),
        WideOp::Mad16U => three(&mut w.r, i, m, |a, b, c| u16(a, b).wrapping_add(c)),
        WideOp::Mul32S => products(w, i, m, false, s32),
        WideOp::Mul32U => products(w, i, m, false, u32),
        WideOp::Mad32S => products(w, i, m, true, s32),
        WideOp::Mad32U => products(w, i, m, true, u32),
    }
}

#[inline(always)]
fn products(w: &mut Warp, i: &Inst, m: u32, adds: bool, f: impl Fn(u32, u32) -> u64) {
    let (a, b) = (&w.r[i.a as usize], &w.r[i.b as usize]);
    let mut out: Row<u64> = if adds { w.w[i.c as usize] } else { [0; LANES] };
    for l in 0..LANES {
        out[l] = out[l].wrapping_add(f(a[l], b[l]));
    }
    put(&mut w.w[i.d as usize], m, out);
}

macro_rules! carry_of {
    ($name:ident, $file:ident, $t:ty) => {
        fn $name(w: &mut Warp, i: &Inst, m: u32, sub: bool, uses: bool, sets: bool) {
            let carries = if uses { w.p[i.c as usize] } else { 0 };
            let (a, b) = (w.$file[i.a as usize], w.$file[i.b as usize]);
            let (mut out, mut carry) = ([0; LANES], 0u32);
            for l in 0..LANES {
                let c = (carries >> l & 1) as $t;
                let ((x, p), q): (($t, bool), $t) = match sub {
                    true => (a[l].overflowing_sub(b[l]), c),
                    false => (a[l].overflowing_add(b[l]), c),
                };
                let (x, r) = if sub { x.overflowing_sub(q) } else { x.overflowing_add(q) };
                out[l] = x;
                carry |= u32::from(p || r) << l;
            }
            put(&mut w.$file[i.d as usize], m, out);
            if sets {
                put_bits(&mut w.p[i.c as usize], m, carry);
            }
        }
    };
}

carry_of!(carry32, r, u32);
carry_of!(carry64, w, u64);

impl WithSimd for Integer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { warp: w, inst: i, mask: m } = self;
        match i.op {
            Op::I32(op @ (IntOp::Shl | IntOp::ShrS | IntOp::ShrU)) => shift32(w, i, m, op),
            Op::I32(op) => ops32(w, i, m, op),
            Op::I64(op @ (IntOp::Shl | IntOp::ShrS | IntOp::ShrU)) => shift64(w, i, m, op),
            Op::I64(op) => ops64(w, i, m, op),
            Op::I16(op @ (IntOp::Shl | IntOp::ShrS | IntOp::ShrU)) => shift16(w, i, m, op),
            Op::I16(op) => ops16(w, i, m, op),
            Op::Wide(op) => wide(w, i, m, op),
            _ => moves(w, i, m),
        }
    }
}

/// Moves, packing and selection: nothing is computed.
#[inline(always)]
fn moves(w: &mut Warp, i: &Inst, m: u32) {
    let (d, a, b) = (i.d as usize, i.a as usize, i.b as usize);
    match i.op {
        Op::Mov32 => one(&mut w.r, i, m, |a| a),
        Op::Mov64 => one(&mut w.w, i, m, |a| a),
        Op::Pack32 => two(&mut w.r, i, m, |a, b| (a & 0xffff) | b << 16),
        Op::Unpack32 => {
            let from = w.r[a];
            put(&mut w.r[d], m, from.map(|x| x & 0xffff));
            put(&mut w.r[b], m, from.map(|x| x >> 16));
        }
        Op::Pack64 => {
            let (lo, hi) = (&w.r[a], &w.r[b]);
            let mut out = [0; LANES];
            for l in 0..LANES {
                out[l] = u64::from(lo[l]) | u64::from(hi[l]) << 32;
            }
            put(&mut w.w[d], m, out);
        }
        Op::Unpack64 => {
            let from = w.w[a];
            put(&mut w.r[d], m, from.map(|x| x as u32));
            put(&mut w.r[b], m, from.map(|x| (x >> 32) as u32));
        }
        Op::Selp32 => {
            let (mut out, yes) = (w.r[b], w.p[i.c as usize]);
            put(&mut out, yes, w.r[a]);
            put(&mut w.r[d], m, out);
        }
        Op::Selp64 => {
            let (mut out, yes) = (w.w[b], w.p[i.c as usize]);
            put(&mut out, yes, w.w[a]);
            put(&mut w.w[d], m, out);
        }
        Op::Carry { wide: false, sub, uses, sets } => carry32(w, i, m, sub, uses, sets),
        Op::Carry { wide: true, sub, uses, sets } => carry64(w, i, m, sub, uses, sets),
        _ => {}
    }
}

/// An integer comparison; see [`super::float`] for the others.
#[inline(always)]
pub(super) fn compare<T: Copy + PartialOrd>(a: &Row<T>, b: &Row<T>, cmp: super::code::Cmp) -> u32 {
    use super::code::Cmp;
    match cmp {
        Cmp::Eq | Cmp::Equ => test(a, b, |a, b| a == b),
        Cmp::Ne | Cmp::Neu => test(a, b, |a, b| a != b),
        Cmp::Lt | Cmp::Ltu => test(a, b, |a, b| a < b),
        Cmp::Le | Cmp::Leu => test(a, b, |a, b| a <= b),
        Cmp::Gt | Cmp::Gtu => test(a, b, |a, b| a > b),
        Cmp::Ge | Cmp::Geu => test(a, b, |a, b| a >= b),
        Cmp::Num => u32::MAX,
        Cmp::Nan => 0,
    }
}
