//! Conversions between integer and floating-point formats.

use super::code::{Cvt, Format, Half, Inst, Mode, Round};
use super::float::flush;
use super::half;
use super::lanes::{LANES, across, one, put, two};
use super::round::{F32, TF32, integral, narrow, odd_sum};
use super::warp::Warp;
use pulp::{Simd, WithSimd};

/// A conversion on its way into vector code.
pub(super) struct Convert<'a> {
    pub(super) warp: &'a mut Warp,
    pub(super) inst: &'a Inst,
    pub(super) mask: u32,
    pub(super) cvt: Cvt,
}

/// A value between formats.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

fn read(from: Format, bits: u64) -> Value {
    match from {
        Format::U(8) => Value::Int(i128::from(bits as u8)),
        Format::U(16) => Value::Int(i128::from(bits as u16)),
        Format::U(32) => Value::Int(i128::from(bits as u32)),
        Format::U(_) => Value::Int(i128::from(bits)),
        Format::S(8) => Value::Int(i128::from(bits as i8)),
        Format::S(16) => Value::Int(i128::from(bits as i16)),
        Format::S(32) => Value::Int(i128::from(bits as i32)),
        Format::S(_) => Value::Int(i128::from(bits as i64)),
        Format::F16 => Value::Float(f64::from(half::to_f32(Half::F16, bits as u16))),
        Format::Bf16 => Value::Float(f64::from(half::to_f32(Half::Bf16, bits as u16))),
        Format::F32 | Format::Tf32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        Format::F64 => Value::Float(f64::from_bits(bits)),
    }
}

/// An integer as an f64 rounded to odd, so that any smaller format rounds right.
fn as_float(x: i128) -> f64 {
    let high = (x >> 32) as f64 * 4_294_967_296.0;
    odd_sum(high, (x & 0xffff_ffff) as f64)
}

/// An integer as an f64 in a given rounding.
fn as_double(x: i128, round: Round) -> f64 {
    let near = x as f64;
    let err = x - near as i128;
    super::round::direct(near, err as f64, round)
}

fn limits(to: Format) -> (i128, i128) {
    match to {
        Format::U(bits) => (0, (1 << bits) - 1),
        Format::S(bits) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ => (0, 0),
    }
}

/// A float as an integer, clamped; NaN becomes 0, but the top bit alone for 64-bit results.
fn to_int(x: f64, to: Format, round: Round) -> u64 {
    if x.is_nan() {
        return match to {
            Format::U(64) | Format::S(64) => 1 << 63,
            _ => 0,
        };
    }
    let (low, high) = limits(to);
    (integral(x, round) as i128).clamp(low, high) as u64
}

fn clamp_float(x: f64, mode: Mode) -> f64 {
    if mode.sat {
        return if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if mode.relu && x <= 0.0 { 0.0 } else { x }
}

/// One lane of any conversion.
fn convert(cvt: Cvt, bits: u64) -> u64 {
    let Cvt { to, from, mode, .. } = cvt;
    let bits = match from {
        Format::F32 if mode.ftz => u64::from(flush(bits as u32)),
        _ => bits,
    };
    let value = match (read(from, bits), to) {
        (Value::Int(x), Format::U(_) | Format::S(_)) => {
            let (low, high) = limits(to);
            let x = if mode.sat { x.clamp(low, high) } else { x };
            return cut(x as u64, to, cvt.wide);
        }
        (Value::Int(x), Format::F64) => {
            return clamp_float(as_double(x, mode.round), mode).to_bits();
        }
        (Value::Int(x), _) => as_float(x),
        (Value::Float(x), Format::U(_) | Format::S(_)) => {
            return cut(to_int(x, to, mode.round), to, cvt.wide);
        }
        (Value::Float(x), _) => x,
    };
    let value = if cvt.integral { integral(value, mode.round) } else { value };
    let value = clamp_float(value, mode);
    match to {
        Format::F64 if value.is_nan() => 0x7fff_ffff_ffff_ffff,
        Format::F64 => value.to_bits(),
        Format::F32 => {
            let out = narrow(value, F32, mode.round);
            u64::from(if mode.ftz { flush(out) } else { out })
        }
        // Rounded to 11 bits at the place of an f32.
        Format::Tf32 => u64::from(narrow(value, TF32, mode.round)) << 13,
        Format::F16 => u64::from(narrow(value, half::layout(Half::F16), mode.round)),
        _ => u64::from(narrow(value, half::layout(Half::Bf16), mode.round)),
    }
}

/// The low bits of an integer result, sign-extended to a wider register.
fn cut(x: u64, to: Format, register: u8) -> u64 {
    let (bits, signed) = match to {
        Format::S(bits) => (u32::from(bits), true),
        Format::U(bits) => (u32::from(bits), false),
        _ => (64, false),
    };
    let up = 64 - bits;
    let x = if signed { ((x << up) as i64 >> up) as u64 } else { x << up >> up };
    if register >= 64 { x } else { x & ((1 << register) - 1) }
}

fn is_wide(format: Format) -> bool {
    matches!(format, Format::U(64) | Format::S(64) | Format::F64)
}

impl WithSimd for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { warp: w, inst: i, mask: m, cvt } = self;
        let plain = !cvt.mode.ftz && !cvt.mode.sat && !cvt.mode.relu && !cvt.integral;
        let near = plain && cvt.mode.round == Round::Near;
        let (d, a) = (i.d as usize, i.a as usize);
        match (cvt.to, cvt.from) {
            (Format::F16, Format::F32) if cvt.packed && near => two(&mut w.r, i, m, |hi, lo| {
                let f = |x| u32::from(half::to_f16(f32::from_bits(x)));
                f(hi) << 16 | f(lo)
            }),
            (Format::Bf16, Format::F32) if cvt.packed && near => two(&mut w.r, i, m, |hi, lo| {
                let f = |x| u32::from(half::to_bf16(f32::from_bits(x)));
                f(hi) << 16 | f(lo)
            }),
            _ if cvt.packed => {
                let half = Cvt { packed: false, wide: 16, ..cvt };
                two(&mut w.r, i, m, |hi, lo| {
                    (convert(half, u64::from(hi)) << 16 | convert(half, u64::from(lo))) as u32
                });
            }
            (Format::S(64) | Format::U(64), Format::S(32)) if plain => {
                across(&w.r[a], &mut w.w[d], m, |x| x as i32 as i64 as u64);
            }
            (Format::S(64) | Format::U(64), Format::U(32)) if plain => {
                across(&w.r[a], &mut w.w[d], m, u64::from);
            }
            (Format::S(32) | Format::U(32), Format::S(64) | Format::U(64)) if plain => {
                across(&w.w[a], &mut w.r[d], m, |x| x as u32);
            }
            (Format::F32, Format::S(32)) if near => {
                one(&mut w.r, i, m, |x| (x as i32 as f32).to_bits());
            }
            (Format::F32, Format::U(32)) if near => one(&mut w.r, i, m, |x| (x as f32).to_bits()),
            (Format::F32, Format::F16) if plain => one(&mut w.r, i, m, |x| {
                let f = half::widen(x as u16);
                if f.is_nan() { 0x7fff_ffff } else { f.to_bits() }
            }),
            (Format::F16, Format::F32) if near => {
                one(&mut w.r, i, m, |x| u32::from(half::to_f16(f32::from_bits(x))));
            }
            (Format::Bf16, Format::F32) if near => {
                one(&mut w.r, i, m, |x| u32::from(half::to_bf16(f32::from_bits(x))));
            }
            _ => general(w, i, m, cvt),
        }
    }
}

/// Any conversion, a lane at a time.
fn general(w: &mut Warp, i: &Inst, m: u32, cvt: Cvt) {
    let mut out = [0u64; LANES];
    for (l, out) in out.iter_mut().enumerate() {
        let bits =
            if is_wide(cvt.from) { w.w[i.a as usize][l] } else { u64::from(w.r[i.a as usize][l]) };
        *out = convert(cvt, bits);
    }
    if is_wide(cvt.to) {
        put(&mut w.w[i.d as usize], m, out);
    } else {
        put(&mut w.r[i.d as usize], m, out.map(|x| x as u32));
    }
}
