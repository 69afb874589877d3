//! Elementary functions of binary32 that a compiler can vectorise: no tables, no calls, no
//! branches.

/// e^x to 2 units in the last place, overflowing to infinity and underflowing through subnormals to
/// zero.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is infinity or zero anyway; the comparisons let NaN pass.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let k = x * std::f32::consts::LOG2_E + ROUND;
    let n = k - ROUND;
    let r = x - n * LN2_HI - n * LN2_LO;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = 1.0 + (r + p * (r * r));
    // 2^n in two halves, so that neither leaves the normal range.
    let n = (k.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let a = n >> 1;
    let b = n.wrapping_sub(a);
    let two = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    if x.is_nan() { x } else { p * two(a) * two(b) }
}

/// tanh x to a few units of 1 (2^-24): exact enough for activations, not for tiny x in the relative
/// sense.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_right_at_the_ends() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000i32 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / (f64::from(f32::EPSILON) * want));
        }
        assert!(worst < 2.0, "{worst} ulp");
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-100.0) > 0.0);
    }

    #[test]
    fn tanh_saturates() {
        assert_eq!(tanh(100.0), 1.0);
        assert_eq!(tanh(-100.0), -1.0);
        assert!(tanh(f32::NAN).is_nan());
        for i in -5000..5000 {
            let x = i as f32 * 2e-3;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2.5e-7);
        }
    }
}
