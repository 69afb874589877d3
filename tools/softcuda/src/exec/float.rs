//! f32 and f64 arithmetic and comparisons.
//!
//! Round to nearest runs in the processor's own arithmetic, lane by lane in vectors; the other
//! modes are computed exactly and rounded in integers. An f32 result that is not a number is the
//! hardware's 0x7fffffff. The approximate functions are the f64 function rounded to f32: closer
//! than the hardware's tables, and the same on every machine's arithmetic.

use super::code::{Class, Cmp, CmpType, FloatOp, Inst, Mode, Op, Round};
use super::double::arithmetic64;
use super::half;
use super::int::compare;
use super::lanes::{LANES, Row, one, put_bits, test, three, two};
use super::round::{odd_quotient, odd_root, odd_sum, to_f32};
use super::warp::Warp;
use pulp::{Simd, WithSimd};

/// A floating-point instruction on its way into vector code.
pub(super) struct Float<'a> {
    pub(super) warp: &'a mut Warp,
    pub(super) inst: &'a Inst,
    pub(super) mask: u32,
}

const NAN: u32 = 0x7fff_ffff;

/// The bits of a result, with the hardware's NaN.
#[inline(always)]
fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

#[inline(always)]
fn value(x: u32) -> f32 {
    f32::from_bits(x)
}

/// Zero with the sign, if `x` is subnormal.
#[inline(always)]
pub(super) fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// Clamps to [0, 1]; NaN becomes 0.
#[inline(always)]
fn saturate(x: u32) -> u32 {
    let x = value(x);
    if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
}

/// The smaller of two values; -0 is below +0.
#[inline(always)]
fn min(a: u32, b: u32, nan: bool) -> u32 {
    let (x, y) = (value(a), value(b));
    let less = x < y || (x == y && a >> 31 == 1);
    let out = if less || y.is_nan() { a } else { b };
    if (nan && (x.is_nan() || y.is_nan())) || value(out).is_nan() { NAN } else { out }
}

#[inline(always)]
fn max(a: u32, b: u32, nan: bool) -> u32 {
    let (x, y) = (value(a), value(b));
    let more = x > y || (x == y && a >> 31 == 0);
    let out = if more || y.is_nan() { a } else { b };
    if (nan && (x.is_nan() || y.is_nan())) || value(out).is_nan() { NAN } else { out }
}

/// Any operation in any mode, one lane at a time.
fn slow(op: FloatOp, mode: Mode, [a, b, c]: [u32; 3]) -> u32 {
    let keep = |x: u32| if mode.ftz { flush(x) } else { x };
    let (a, b, c) = (keep(a), keep(b), keep(c));
    let [x, y, z] = [a, b, c].map(|v| f64::from(value(v)));
    let rounded = |v: f64| bits(to_f32(v, mode.round));
    // A zero sum of nonzero values is -0 when rounding down.
    let sum = |a: f64, b: f64| {
        let s = odd_sum(a, b);
        let negative =
            s == 0.0 && mode.round == Round::Down && (a != 0.0 || a.to_bits() != b.to_bits());
        rounded(if negative { -0.0 } else { s })
    };
    let out = match op {
        FloatOp::Add => sum(x, y),
        FloatOp::Sub => sum(x, -y),
        FloatOp::Mul => rounded(x * y),
        FloatOp::Fma => sum(x * y, z),
        FloatOp::Div => rounded(odd_quotient(x, y)),
        FloatOp::Rcp => rounded(odd_quotient(1.0, x)),
        FloatOp::Sqrt => rounded(odd_root(x)),
        FloatOp::Min => min(a, b, false),
        FloatOp::Max => max(a, b, false),
        FloatOp::MinNan => min(a, b, true),
        FloatOp::MaxNan => max(a, b, true),
        FloatOp::Neg => a ^ 0x8000_0000,
        FloatOp::Abs => a & 0x7fff_ffff,
        // The sign of the first, the magnitude of the second.
        FloatOp::Copysign => (a & 0x8000_0000) | (b & 0x7fff_ffff),
        FloatOp::Ex2 => rounded(x.exp2()),
        FloatOp::Lg2 => rounded(x.log2()),
        FloatOp::Rsqrt => rounded(1.0 / x.sqrt()),
        FloatOp::Sin => rounded(x.sin()),
        FloatOp::Cos => rounded(x.cos()),
        FloatOp::Tanh => rounded(x.tanh()),
    };
    let out = keep(out);
    if mode.sat { saturate(out) } else { out }
}

#[inline(always)]
fn slow_lanes(w: &mut Warp, i: &Inst, m: u32, op: FloatOp, mode: Mode) {
    three(&mut w.r, i, m, |a, b, c| slow(op, mode, [a, b, c]));
}

#[inline(always)]
fn fast32(w: &mut Warp, i: &Inst, m: u32, op: FloatOp, mode: Mode) {
    let r = w.r.as_mut_slice();
    match op {
        FloatOp::Add => two(r, i, m, |a, b| bits(value(a) + value(b))),
        FloatOp::Sub => two(r, i, m, |a, b| bits(value(a) - value(b))),
        FloatOp::Mul => two(r, i, m, |a, b| bits(value(a) * value(b))),
        FloatOp::Fma => three(r, i, m, |a, b, c| bits(value(a).mul_add(value(b), value(c)))),
        FloatOp::Div => two(r, i, m, |a, b| bits(value(a) / value(b))),
        FloatOp::Sqrt => one(r, i, m, |a| bits(value(a).sqrt())),
        FloatOp::Rcp => one(r, i, m, |a| bits(1.0 / value(a))),
        FloatOp::Min => two(r, i, m, |a, b| min(a, b, false)),
        FloatOp::Max => two(r, i, m, |a, b| max(a, b, false)),
        FloatOp::MinNan => two(r, i, m, |a, b| min(a, b, true)),
        FloatOp::MaxNan => two(r, i, m, |a, b| max(a, b, true)),
        FloatOp::Neg => one(r, i, m, |a| a ^ 0x8000_0000),
        FloatOp::Abs => one(r, i, m, |a| a & 0x7fff_ffff),
        _ => slow_lanes(w, i, m, op, mode),
    }
}

/// Round to nearest with subnormals flushed, the mode of `-use_fast_math`.
#[inline(always)]
fn flushed32(w: &mut Warp, i: &Inst, m: u32, op: FloatOp, mode: Mode) {
    let r = w.r.as_mut_slice();
    let v = |x: u32| value(flush(x));
    match op {
        FloatOp::Add => two(r, i, m, |a, b| flush(bits(v(a) + v(b)))),
        FloatOp::Sub => two(r, i, m, |a, b| flush(bits(v(a) - v(b)))),
        FloatOp::Mul => two(r, i, m, |a, b| flush(bits(v(a) * v(b)))),
        FloatOp::Fma => three(r, i, m, |a, b, c| flush(bits(v(a).mul_add(v(b), v(c))))),
        FloatOp::Div => two(r, i, m, |a, b| flush(bits(v(a) / v(b)))),
        _ => slow_lanes(w, i, m, op, mode),
    }
}

#[inline(always)]
fn ordered<T: Copy + PartialOrd>(a: &Row<T>, b: &Row<T>, cmp: Cmp, nan: impl Fn(T) -> bool) -> u32 {
    let unordered = test(a, b, |a, b| nan(a) || nan(b));
    match cmp {
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
        Cmp::Ne => compare(a, b, Cmp::Ne) & !unordered,
        Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu => {
            compare(a, b, cmp) | unordered
        }
        _ => compare(a, b, cmp),
    }
}

fn classify(class: Class, x: f64, subnormal: bool) -> bool {
    match class {
        Class::Finite => x.is_finite(),
        Class::Infinite => x.is_infinite(),
        Class::Number => !x.is_nan(),
        Class::NotANumber => x.is_nan(),
        Class::Normal => x.is_finite() && x != 0.0 && !subnormal,
        Class::Subnormal => subnormal,
    }
}

#[inline(always)]
fn comparison(w: &mut Warp, i: &Inst, m: u32, cmp: Cmp, ty: CmpType) {
    let (a, b) = (i.a as usize, i.b as usize);
    let r = &w.r;
    let float = |slot: usize, f: &dyn Fn(u32) -> f32| -> Row<f32> { r[slot].map(f) };
    let out = match ty {
        CmpType::U32 => compare(&r[a], &r[b], cmp),
        CmpType::S32 => compare(&r[a].map(|x| x as i32), &r[b].map(|x| x as i32), cmp),
        CmpType::S16 => compare(&r[a].map(|x| x as i16), &r[b].map(|x| x as i16), cmp),
        CmpType::U64 => compare(&w.w[a], &w.w[b], cmp),
        CmpType::S64 => compare(&w.w[a].map(|x| x as i64), &w.w[b].map(|x| x as i64), cmp),
        CmpType::F32 { ftz: false } => {
            ordered(&r[a].map(value), &r[b].map(value), cmp, f32::is_nan)
        }
        CmpType::F32 { ftz: true } => {
            let v = |x: u32| value(flush(x));
            ordered(&r[a].map(v), &r[b].map(v), cmp, f32::is_nan)
        }
        CmpType::F64 => {
            let v = f64::from_bits;
            ordered(&w.w[a].map(v), &w.w[b].map(v), cmp, f64::is_nan)
        }
        CmpType::F16 => {
            let v = |x: u32| half::widen(x as u16);
            ordered(&float(a, &v), &float(b, &v), cmp, f32::is_nan)
        }
        CmpType::Bf16 => {
            let v = |x: u32| value(x << 16);
            ordered(&float(a, &v), &float(b, &v), cmp, f32::is_nan)
        }
        CmpType::Testp32(class) => {
            let tiny = |x: u32| x & 0x7f80_0000 == 0 && x << 1 != 0;
            test(&r[a], &r[a], |x, _| classify(class, f64::from(value(x)), tiny(x)))
        }
        CmpType::Testp64(class) => test(&w.w[a], &w.w[a], |x, _| {
            let x = f64::from_bits(x);
            classify(class, x, x.is_subnormal())
        }),
    };
    put_bits(&mut w.p[i.d as usize], m, out);
}

impl WithSimd for Float<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { warp: w, inst: i, mask: m } = self;
        match i.op {
            Op::F32(op, mode) if mode.round != Round::Near || mode.sat => {
                slow_lanes(w, i, m, op, mode);
            }
            Op::F32(op, mode) if mode.ftz => flushed32(w, i, m, op, mode),
            Op::F32(op, mode) => fast32(w, i, m, op, mode),
            Op::F64(op, mode) => arithmetic64(w, i, m, op, mode),
            Op::Compare(cmp, ty) => comparison(w, i, m, cmp, ty),
            Op::Half(op, kind, mode, packed) => {
                three(&mut w.r, i, m, |a, b, c| half::operate(op, kind, mode, packed, [a, b, c]));
            }
            _ => {}
        }
    }
}

const _: () = assert!(LANES == 32);
