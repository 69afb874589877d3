//! Rounding done exactly in integers, for the modes that the processor's own arithmetic lacks.
//!
//! The way to any rounding of a sum, product, quotient or root is the f64 result rounded to odd:
//! truncated, with its last bit set when something was cut off. Rounding it again to a format of
//! at most 51 bits gives what rounding the exact value would have given.

use super::code::Round;

/// A binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) exponent: u32,
    pub(super) mantissa: u32,
}

pub(super) const F16: Layout = Layout { exponent: 5, mantissa: 10 };
pub(super) const BF16: Layout = Layout { exponent: 8, mantissa: 7 };
pub(super) const F32: Layout = Layout { exponent: 8, mantissa: 23 };
/// Kept in 32 bits; the lower 13 are zero.
pub(super) const TF32: Layout = Layout { exponent: 8, mantissa: 10 };

/// Truncates `s` toward zero when the exact value is `s + err`, and marks what is cut off.
fn odd(s: f64, err: f64) -> f64 {
    if err == 0.0 || !s.is_finite() || !err.is_finite() {
        return s;
    }
    let bits = s.to_bits();
    let bits = if (err < 0.0) == (s < 0.0) { bits } else { bits - 1 };
    f64::from_bits(bits | 1)
}

/// a + b rounded to odd.
pub(super) fn odd_sum(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    odd(s, (a - (s - t)) + (b - t))
}

/// a / b rounded to odd.
pub(super) fn odd_quotient(a: f64, b: f64) -> f64 {
    let q = a / b;
    let rest = (-q).mul_add(b, a);
    odd(q, if b < 0.0 { -rest } else { rest })
}

/// The root of `a` rounded to odd.
pub(super) fn odd_root(a: f64) -> f64 {
    let r = a.sqrt();
    odd(r, (-r).mul_add(r, a))
}

/// Whether a magnitude with the cut-off part `rest` of `unit` goes up.
fn goes_up(round: Round, negative: bool, last: u64, rest: u64, half: u64) -> bool {
    match round {
        Round::Near => rest > half || (rest == half && last & 1 == 1),
        Round::Away => rest >= half,
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    }
}

/// The bits of `x` in a smaller format. NaN becomes the format's positive NaN with all bits set,
/// as the hardware's.
pub(super) fn narrow(x: f64, to: Layout, round: Round) -> u32 {
    let (sign_at, m) = (to.exponent + to.mantissa, to.mantissa);
    let infinity = ((1u32 << to.exponent) - 1) << m;
    if x.is_nan() {
        return (1 << sign_at) - 1;
    }
    let bits = x.to_bits();
    let negative = bits >> 63 == 1;
    let sign = u32::from(negative) << sign_at;
    if x.is_infinite() {
        return sign | infinity;
    }
    let raw = (bits >> 52 & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (exponent, value) =
        if raw == 0 { (-1022, fraction) } else { (raw - 1023, fraction | 1 << 52) };
    let bias = (1 << (to.exponent - 1)) - 1;
    let below = (1 - bias - exponent).max(0) as u32;
    let shift = (52 - m).saturating_add(below);
    let (kept, rest, half) = if shift > 62 {
        (0, u64::from(value != 0), 2)
    } else {
        (value >> shift, value & ((1 << shift) - 1), 1u64 << (shift - 1))
    };
    let kept = kept + u64::from(goes_up(round, negative, kept, rest, half));
    let biased = (exponent.max(1 - bias) + bias - 1) as u64;
    let out = (biased << m) + kept;
    if out < u64::from(infinity) {
        return sign | out as u32;
    }
    let stops = match round {
        Round::Near | Round::Away => false,
        Round::Zero => true,
        Round::Down => !negative,
        Round::Up => negative,
    };
    sign | if stops { infinity - 1 } else { infinity }
}

/// `x` rounded to f32.
pub(super) fn to_f32(x: f64, round: Round) -> f32 {
    f32::from_bits(narrow(x, F32, round))
}

/// Moves an f64 result that was rounded to nearest where another mode would have put it; `err`
/// has the sign of the exact value minus the result.
pub(super) fn direct(s: f64, err: f64, round: Round) -> f64 {
    if err == 0.0 || !s.is_finite() || err.is_nan() {
        return s;
    }
    match round {
        Round::Near | Round::Away => s,
        Round::Down if err < 0.0 => s.next_down(),
        Round::Up if err > 0.0 => s.next_up(),
        Round::Zero if s > 0.0 && err < 0.0 => s.next_down(),
        Round::Zero if s < 0.0 && err > 0.0 => s.next_up(),
        _ => s,
    }
}

/// An integral value by a rounding.
pub(super) fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Away => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_agrees_with_the_processor() {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..200_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let exponent = 1023 - 160 + (x >> 7) % 320;
            let value = f64::from_bits((x & 0x800f_ffff_ffff_ffff) | exponent << 52);
            let got = to_f32(value, Round::Near);
            assert_eq!(got.to_bits(), (value as f32).to_bits(), "{value:e}");
            let (down, up) = (to_f32(value, Round::Down), to_f32(value, Round::Up));
            assert!(f64::from(down) <= value && value <= f64::from(up));
            assert!(down == up || down.next_up() == up, "{value:e}");
        }
    }

    #[test]
    fn halves_of_every_pattern_survive() {
        for bits in 0..0x7c00u32 {
            let m = bits & 0x3ff;
            let e = (bits >> 10) as i32;
            let value = if e == 0 {
                f64::from(m) * 2f64.powi(-24)
            } else {
                f64::from(m | 0x400) * 2f64.powi(e - 25)
            };
            assert_eq!(narrow(value, F16, Round::Near), bits);
            assert_eq!(narrow(-value, F16, Round::Zero), bits | 0x8000);
        }
        assert_eq!(narrow(65520.0, F16, Round::Near), 0x7c00);
        assert_eq!(narrow(65519.99, F16, Round::Near), 0x7bff);
        assert_eq!(narrow(1e9, F16, Round::Zero), 0x7bff);
        assert_eq!(narrow(f64::NAN, F16, Round::Near), 0x7fff);
        assert_eq!(narrow(2f64.powi(-25), F16, Round::Near), 0);
        assert_eq!(narrow(2f64.powi(-25), F16, Round::Up), 1);
        assert_eq!(narrow(1e-300, F16, Round::Up), 1);
    }

    #[test]
    fn odd_rounding_remembers_what_was_lost() {
        let tiny = 2f64.powi(-200);
        assert!(odd_sum(1.0, tiny) > 1.0);
        assert!(odd_sum(1.0, -tiny) < 1.0);
        assert_eq!(odd_sum(1.0, 2.0), 3.0);
        assert_eq!(narrow(odd_sum(1.0 + 2f64.powi(-8), tiny), BF16, Round::Near), 0x3f81);
        assert_eq!(narrow(odd_sum(1.0 + 2f64.powi(-8), -tiny), BF16, Round::Near), 0x3f80);
        assert_eq!(to_f32(odd_quotient(1.0, 3.0), Round::Up), 0.333_333_34);
        assert_eq!(to_f32(odd_root(2.0), Round::Up).to_bits(), 2f32.sqrt().to_bits() + 1);
    }
}
