//! f16 and bf16: conversions and arithmetic. Sums and products are exact before the one rounding.

use super::code::{FloatOp, Half, Mode, Round};
use super::round::{BF16, F16, Layout, narrow, odd_sum};

/// The value of an f16.
#[inline(always)]
pub(super) fn widen(h: u16) -> f32 {
    let magnitude = u32::from(h & 0x7fff);
    let sign = u32::from(h & 0x8000) << 16;
    // Multiplying by 2^112 moves the exponent's bias and makes subnormals normal.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = 0x7f80_0000 | magnitude << 13;
    let bits = if magnitude >= 0x7c00 { special } else { scaled.to_bits() };
    f32::from_bits(bits | sign)
}

/// An f32 to the nearest f16.
#[inline(always)]
pub(super) fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let m = bits & 0x7fff_ffff;
    // Normal: the bias changes by 112, then 13 bits are cut off to nearest even.
    let shifted = m.wrapping_sub(112 << 23);
    let normal = shifted.wrapping_add(0xfff + (shifted >> 13 & 1)) >> 13;
    // Subnormal: adding 0.5 lets the processor round at the last bit of an f16.
    let small = (f32::from_bits(m) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let finite = if m < 0x3880_0000 { small } else { normal.min(0x7c00) };
    let out = if m > 0x7f80_0000 { return 0x7fff } else { finite };
    sign | out as u16
}

/// An f32 to the nearest bf16.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded as u16 }
}

/// The value of a half.
#[inline(always)]
pub(super) fn to_f32(kind: Half, bits: u16) -> f32 {
    match kind {
        Half::F16 => widen(bits),
        Half::Bf16 => f32::from_bits(u32::from(bits) << 16),
    }
}

pub(super) fn layout(kind: Half) -> Layout {
    match kind {
        Half::F16 => F16,
        Half::Bf16 => BF16,
    }
}

fn is_subnormal(kind: Half, bits: u16) -> bool {
    let exponent = if kind == Half::F16 { 0x7c00 } else { 0x7f80 };
    bits & exponent == 0 && bits & 0x7fff != 0
}

/// One operation on one pair of halves.
fn single(op: FloatOp, kind: Half, mode: Mode, bits: [u16; 3]) -> u16 {
    let flush = |x: u16| if mode.ftz && is_subnormal(kind, x) { x & 0x8000 } else { x };
    let [a, b, c] = bits.map(flush);
    let [x, y, z] = [a, b, c].map(|h| f64::from(to_f32(kind, h)));
    let rounded = |v: f64| narrow(v, layout(kind), Round::Near) as u16;
    let pick = |first: bool, nan: bool| {
        let out = if (first || y.is_nan()) && !x.is_nan() { a } else { b };
        let none = x.is_nan() && y.is_nan();
        if none || (nan && (x.is_nan() || y.is_nan())) { 0x7fff } else { out }
    };
    let less = x < y || (x == y && a >> 15 == 1);
    let more = x > y || (x == y && a >> 15 == 0);
    let out = match op {
        FloatOp::Add => rounded(odd_sum(x, y)),
        FloatOp::Sub => rounded(odd_sum(x, -y)),
        FloatOp::Mul => rounded(x * y),
        FloatOp::Fma => rounded(odd_sum(x * y, z)),
        FloatOp::Min => pick(less, false),
        FloatOp::Max => pick(more, false),
        FloatOp::MinNan => pick(less, true),
        FloatOp::MaxNan => pick(more, true),
        FloatOp::Neg => a ^ 0x8000,
        FloatOp::Abs => a & 0x7fff,
        FloatOp::Ex2 => rounded(x.exp2()),
        FloatOp::Tanh => rounded(x.tanh()),
        _ => 0x7fff,
    };
    let out = flush(out);
    let value = to_f32(kind, out);
    if mode.sat {
        return if value > 0.0 { rounded(f64::from(value).min(1.0)) } else { 0 };
    }
    if mode.relu && value <= 0.0 { 0 } else { out }
}

/// One operation on a register of one half or two.
pub(super) fn operate(op: FloatOp, kind: Half, mode: Mode, packed: bool, sources: [u32; 3]) -> u32 {
    let low = u32::from(single(op, kind, mode, sources.map(|x| x as u16)));
    if !packed {
        return low;
    }
    low | u32::from(single(op, kind, mode, sources.map(|x| (x >> 16) as u16))) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_conversions_agree_with_the_exact_ones() {
        for h in 0..=u16::MAX {
            let x = widen(h);
            if !x.is_nan() {
                assert_eq!(to_f16(x), h);
            }
        }
        let mut x = 1u32;
        for _ in 0..400_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let f = f32::from_bits(x);
            let exact = |to| narrow(f64::from(f), to, Round::Near) as u16;
            assert_eq!(to_f16(f), exact(F16), "{f:e}");
            assert_eq!(to_bf16(f), exact(BF16), "{f:e}");
        }
    }

    #[test]
    fn a_fused_sum_rounds_once() {
        let mode = Mode::default();
        // 1 + 2^-8 is a tie in bf16; a far smaller addend decides it.
        let [a, one, tiny] = [0x3f80u16, 0x3b80, 0x0080];
        let got = single(FloatOp::Fma, Half::Bf16, mode, [one, 0x3f80, a]);
        assert_eq!(got, 0x3f80);
        let half_up = single(FloatOp::Add, Half::Bf16, mode, [0x3f81, tiny, 0]);
        assert_eq!(half_up, 0x3f81);
    }
}
