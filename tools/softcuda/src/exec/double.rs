//! f64 arithmetic: round to nearest is the processor's, the other modes move its result by the
//! sign of what it lost.

use super::code::{FloatOp, Inst, Mode, Round};
use super::lanes::{three, two};
use super::round::direct;
use super::warp::Warp;

#[inline(always)]
fn nan64(x: f64) -> u64 {
    if x.is_nan() { 0xfff8_0000_0000_0000 } else { x.to_bits() }
}

/// A value with the sign of x * y - p, and its magnitude unless all are tiny.
fn product_error(x: f64, y: f64, p: f64) -> f64 {
    if p.abs() > 1e-200 || x == 0.0 || y == 0.0 {
        return x.mul_add(y, -p);
    }
    // Below, the error itself may underflow: scale until it cannot.
    let up = 2f64.powi(600);
    let (small, large) = if x.abs() < y.abs() { (x, y) } else { (y, x) };
    let twice = large.abs() < 1.0;
    let large = if twice { large * up } else { large };
    let scaled = if twice { p * up * up } else { p * up };
    let error = (small * up).mul_add(large, -scaled);
    if error == 0.0 { 0.0 } else { f64::from_bits(1).copysign(error) }
}

/// A directed rounding never goes past the largest finite value.
fn overflow(out: f64, round: Round) -> f64 {
    let back = match round {
        Round::Zero => true,
        Round::Down => out > 0.0,
        Round::Up => out < 0.0,
        Round::Near | Round::Away => false,
    };
    if out.is_infinite() && back { f64::MAX.copysign(out) } else { out }
}

/// x + y + low, where `low` is far smaller than a last bit.
fn directed_sum(x: f64, y: f64, low: f64, round: Round) -> f64 {
    let s = x + y;
    let t = s - x;
    let err = ((x - (s - t)) + (y - t)) + low;
    if s == 0.0 && err == 0.0 {
        let negative = round == Round::Down && (x != 0.0 || x.to_bits() != y.to_bits());
        return if negative { -0.0 } else { s };
    }
    if x.is_finite() && y.is_finite() { overflow(direct(s, err, round), round) } else { s }
}

/// A directed x * y + z: the sum of the rounded product and z, moved by what both lost.
fn directed_fma(x: f64, y: f64, z: f64, round: Round) -> f64 {
    let p = x * y;
    if !p.is_finite() || !z.is_finite() {
        let out = x.mul_add(y, z);
        let finite = x.is_finite() && y.is_finite() && z.is_finite();
        return if finite { overflow(out, round) } else { out };
    }
    let low = product_error(x, y, p);
    let (s, r) = (p + z, x.mul_add(y, z));
    let t = s - p;
    let lost = (p - (s - t)) + (z - t);
    let rest = if lost == 0.0 && s == r { low } else { (s - r) + (lost + low) };
    if r == 0.0 && rest == 0.0 {
        return directed_sum(p, z, 0.0, round);
    }
    overflow(direct(r, rest, round), round)
}

/// The arithmetic of the modes that the processor lacks.
fn directed(op: FloatOp, round: Round, [x, y, z]: [f64; 3]) -> f64 {
    match op {
        FloatOp::Add => directed_sum(x, y, 0.0, round),
        FloatOp::Sub => directed_sum(x, -y, 0.0, round),
        FloatOp::Mul => {
            let p = x * y;
            let finite = x.is_finite() && y.is_finite();
            let out = direct(p, product_error(x, y, p), round);
            if finite { overflow(out, round) } else { p }
        }
        FloatOp::Fma => directed_fma(x, y, z, round),
        FloatOp::Div | FloatOp::Rcp => {
            let (x, y) = if op == FloatOp::Rcp { (1.0, x) } else { (x, y) };
            let q = x / y;
            let rest = (-q).mul_add(y, x);
            let out = direct(q, if y < 0.0 { -rest } else { rest }, round);
            if x.is_finite() && y != 0.0 { overflow(out, round) } else { q }
        }
        _ => direct(x.sqrt(), (-x.sqrt()).mul_add(x.sqrt(), x), round),
    }
}

/// An f64 operation in any mode.
fn double(op: FloatOp, mode: Mode, [a, b, c]: [u64; 3]) -> u64 {
    let [x, y, z] = [a, b, c].map(f64::from_bits);
    let pick = |first: bool| {
        let out = if (first || y.is_nan()) && !x.is_nan() { a } else { b };
        if f64::from_bits(out).is_nan() { 0x7fff_ffff_ffff_ffff } else { out }
    };
    let near = mode.round == Round::Near;
    match op {
        // Approximate quotients keep the upper half of the bits.
        FloatOp::Rcp if mode.relu => nan64(1.0 / x) & !0xffff_ffff,
        FloatOp::Rsqrt => nan64(1.0 / x.sqrt()) & !0xffff_ffff,
        FloatOp::Div if near => nan64(x / y),
        FloatOp::Rcp if near => nan64(1.0 / x),
        FloatOp::Sqrt if near => nan64(x.sqrt()),
        FloatOp::Min => pick(x < y || (x == y && a >> 63 == 1)),
        FloatOp::Max => pick(x > y || (x == y && a >> 63 == 0)),
        FloatOp::Neg => a ^ (1 << 63),
        FloatOp::Abs => a & !(1 << 63),
        FloatOp::Copysign => (a & (1 << 63)) | (b & !(1 << 63)),
        _ => nan64(directed(op, mode.round, [x, y, z])),
    }
}

#[inline(always)]
pub(super) fn arithmetic64(w: &mut Warp, i: &Inst, m: u32, op: FloatOp, mode: Mode) {
    let r = w.w.as_mut_slice();
    let v = f64::from_bits;
    match (op, mode.round) {
        (FloatOp::Add, Round::Near) => two(r, i, m, |a, b| nan64(v(a) + v(b))),
        (FloatOp::Sub, Round::Near) => two(r, i, m, |a, b| nan64(v(a) - v(b))),
        (FloatOp::Mul, Round::Near) => two(r, i, m, |a, b| nan64(v(a) * v(b))),
        (FloatOp::Fma, Round::Near) => three(r, i, m, |a, b, c| nan64(v(a).mul_add(v(b), v(c)))),
        _ => three(r, i, m, |a, b, c| double(op, mode, [a, b, c])),
    }
}
