//! Bit fields, permutations, funnel shifts and the small dot products.

use super::code::{BitOp, Inst, Prmt};
use super::lanes::{LANES, across, one, put, three, two};
use super::warp::Warp;
use pulp::{Simd, WithSimd};

/// A bit instruction on its way into vector code.
pub(super) struct Bits<'a> {
    pub(super) warp: &'a mut Warp,
    pub(super) inst: &'a Inst,
    pub(super) mask: u32,
    pub(super) op: BitOp,
}

/// Position of the highest bit that differs from the sign, or all ones.
#[inline(always)]
fn find32(a: u32, signed: bool, shift: bool) -> u32 {
    let a = if signed && a >> 31 == 1 { !a } else { a };
    match a {
        0 => u32::MAX,
        a if shift => a.leading_zeros(),
        a => 31 - a.leading_zeros(),
    }
}

#[inline(always)]
fn find64(a: u64, signed: bool, shift: bool) -> u32 {
    let a = if signed && a >> 63 == 1 { !a } else { a };
    match a {
        0 => u32::MAX,
        a if shift => a.leading_zeros(),
        a => 63 - a.leading_zeros(),
    }
}

/// `length` bits from `from` on; beyond the top the sign goes on.
#[inline(always)]
pub(super) fn extract(a: u64, from: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (from, length) = (from & 0xff, length & 0xff);
    let top = (from + length).min(width).saturating_sub(1);
    let sign = signed && length > 0 && a >> top.min(width - 1) & 1 == 1;
    let value = if from < 64 { a >> from } else { 0 };
    let have = length.min(width.saturating_sub(from));
    let keep = if have >= 64 { u64::MAX } else { (1 << have) - 1 };
    let value = value & keep;
    if sign { value | !keep } else { value }
}

#[inline(always)]
fn insert(a: u64, b: u64, at: u32, length: u32, width: u32) -> u64 {
    let (at, length) = (at & 0xff, (length & 0xff).min(width));
    if at >= width {
        return b;
    }
    let field = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    (b & !(field << at)) | (a & field) << at
}

/// Bit `i` of a truth table in all bits.
#[inline(always)]
fn whole(table: u8, i: u32) -> u32 {
    u32::from(table >> i & 1).wrapping_neg()
}

#[inline(always)]
fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let by_c = |low: u32| (whole(table, low) & !c) | (whole(table, low + 1) & c);
    let by_b = |low: u32| (by_c(low) & !b) | (by_c(low + 2) & b);
    (by_b(0) & !a) | (by_b(4) & a)
}

/// The four selectors of a mode of `prmt`.
#[inline(always)]
fn selectors(mode: Prmt, c: u32) -> u32 {
    let k = c & 3;
    let pick = |table: [u32; 4]| table[k as usize];
    match mode {
        Prmt::Index => c,
        Prmt::F4e => pick([0x3210, 0x4321, 0x5432, 0x6543]),
        Prmt::B4e => pick([0x5670, 0x6701, 0x7012, 0x0123]),
        Prmt::Rc8 => k * 0x1111,
        Prmt::Ecl => pick([0x3210, 0x3211, 0x3222, 0x3333]),
        Prmt::Ecr => pick([0x0000, 0x1110, 0x2210, 0x3210]),
        Prmt::Rc16 => pick([0x1010, 0x3232, 0x1010, 0x3232]),
    }
}

#[inline(always)]
fn permute(a: u32, b: u32, selectors: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for i in 0..4 {
        let s = selectors >> (4 * i) & 0xf;
        let byte = (bytes >> ((s & 7) * 8)) as u8;
        let sign = if byte >> 7 == 1 { 0xff } else { 0 };
        let byte = if s >> 3 == 1 { sign } else { byte };
        out |= u32::from(byte) << (8 * i);
    }
    out
}

#[inline(always)]
fn part(x: u32, index: u32, bits: u32, signed: bool) -> i32 {
    let up = x << (32 - bits - index * bits);
    if signed { up as i32 >> (32 - bits) } else { (up >> (32 - bits)) as i32 }
}

#[inline(always)]
fn product24(a: u32, b: u32, signed: bool, high: bool) -> u32 {
    let cut = |x: u32| {
        if signed { i64::from((x << 8) as i32 >> 8) } else { i64::from(x & 0xff_ffff) }
    };
    let p = cut(a).wrapping_mul(cut(b));
    if high { (p >> 16) as u32 } else { p as u32 }
}

/// The n-th set bit from a base, up or down; all ones when there is none.
fn nth_set(mask: u32, base: u32, offset: u32) -> u32 {
    let n = offset as i32;
    if n == 0 {
        return if base < 32 && mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut left = n.unsigned_abs();
    let mut at = i64::from(base);
    while (0..32).contains(&at) {
        if mask >> at & 1 == 1 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += i64::from(n.signum());
    }
    u32::MAX
}

impl WithSimd for Bits<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { warp: w, inst: i, mask: m, op } = self;
        let r = w.r.as_mut_slice();
        let d = i.d as usize;
        let a64 = i.a as usize;
        match op {
            BitOp::Popc32 => one(r, i, m, u32::count_ones),
            BitOp::Clz32 => one(r, i, m, u32::leading_zeros),
            BitOp::Popc64 => across(&w.w[a64], &mut r[d], m, u64::count_ones),
            BitOp::Clz64 => across(&w.w[a64], &mut r[d], m, u64::leading_zeros),
            BitOp::Bfind32 { signed, shift } => one(r, i, m, |a| find32(a, signed, shift)),
            BitOp::Bfind64 { signed, shift } => {
                across(&w.w[a64], &mut r[d], m, |a| find64(a, signed, shift));
            }
            BitOp::Bfe32 { signed } => {
                three(r, i, m, |a, b, c| extract(u64::from(a), b, c, 32, signed) as u32)
            }
            BitOp::Lop3(table) => three(r, i, m, |a, b, c| lop3(a, b, c, table)),
            BitOp::Prmt(mode) => three(r, i, m, |a, b, c| permute(a, b, selectors(mode, c))),
            BitOp::ShfL { wrap } => three(r, i, m, |a, b, c| {
                let c = if wrap { c & 31 } else { c.min(32) };
                ((u64::from(b) << 32 | u64::from(a)) << c >> 32) as u32
            }),
            BitOp::ShfR { wrap } => three(r, i, m, |a, b, c| {
                let c = if wrap { c & 31 } else { c.min(32) };
                ((u64::from(b) << 32 | u64::from(a)) >> c) as u32
            }),
            BitOp::Dp4a { a_signed, b_signed } => three(r, i, m, |a, b, c| {
                (0..4).fold(c, |sum, k| {
                    let p = part(a, k, 8, a_signed).wrapping_mul(part(b, k, 8, b_signed));
                    sum.wrapping_add(p as u32)
                })
            }),
            BitOp::Dp2a { a_signed, b_signed, high } => three(r, i, m, |a, b, c| {
                (0..2).fold(c, |sum, k| {
                    let from = k + 2 * u32::from(high);
                    let p = part(a, k, 16, a_signed).wrapping_mul(part(b, from, 8, b_signed));
                    sum.wrapping_add(p as u32)
                })
            }),
            BitOp::Mul24 { signed, high } => {
                two(r, i, m, |a, b| product24(a, b, signed, high));
            }
            BitOp::Mad24 { signed, high } => {
                three(r, i, m, |a, b, c| product24(a, b, signed, high).wrapping_add(c));
            }
            BitOp::Fns => three(r, i, m, nth_set),
            BitOp::Bfe64 { .. } | BitOp::Bfi32(_) | BitOp::Bfi64(_) => fields(w, i, m, op),
        }
    }
}

/// The field operations whose operands come from both files or have a fifth slot.
fn fields(w: &mut Warp, i: &Inst, m: u32, op: BitOp) {
    let (d, a, b, c) = (i.d as usize, i.a as usize, i.b as usize, i.c as usize);
    let (mut narrow, mut wide) = ([0u32; LANES], [0u64; LANES]);
    for l in 0..LANES {
        match op {
            BitOp::Bfe64 { signed } => {
                wide[l] = extract(w.w[a][l], w.r[b][l], w.r[c][l], 64, signed);
            }
            BitOp::Bfi32(len) => {
                let (x, y) = (u64::from(w.r[a][l]), u64::from(w.r[b][l]));
                narrow[l] = insert(x, y, w.r[c][l], w.r[len as usize][l], 32) as u32;
            }
            BitOp::Bfi64(len) => {
                wide[l] = insert(w.w[a][l], w.w[b][l], w.r[c][l], w.r[len as usize][l], 64);
            }
            _ => {}
        }
    }
    match op {
        BitOp::Bfi32(_) => put(&mut w.r[d], m, narrow),
        _ => put(&mut w.w[d], m, wide),
    }
}
