//! Sums and maxima over a run in sixteen lanes: what rows of norms, softmax and losses are reduced
//! with.
//!
//! The tree depends on the run's length alone. Everything inlines into
//! [`crate::device::cpu::simd`]. Call them from plain loops: an iterator's `collect` is a function
//! of its own, compiled for the baseline processor.

/// Lanes of a reduction: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

/// Sum of f(x).
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut parts = x.chunks_exact(LANES);
    for part in &mut parts {
        for (l, &x) in lanes.iter_mut().zip(part) {
            *l += f(x);
        }
    }
    for (l, &x) in lanes.iter_mut().zip(parts.remainder()) {
        *l += f(x);
    }
    fold(lanes)
}

/// Sum of f(x, y) over two runs of one length.
#[inline(always)]
pub fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut xs = x.chunks_exact(LANES);
    let mut ys = y.chunks_exact(LANES);
    for (x, y) in (&mut xs).zip(&mut ys) {
        for (l, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *l += f(x, y);
        }
    }
    for (l, (&x, &y)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ys.remainder())) {
        *l += f(x, y);
    }
    fold(lanes)
}

/// The largest f(x); minus infinity for an empty run. NaN is passed over: the sums that follow
/// meet it.
#[inline(always)]
pub fn max(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut parts = x.chunks_exact(LANES);
    for part in &mut parts {
        for (l, &x) in lanes.iter_mut().zip(part) {
            let x = f(x);
            *l = if x > *l { x } else { *l };
        }
    }
    for (l, &x) in lanes.iter_mut().zip(parts.remainder()) {
        let x = f(x);
        *l = if x > *l { x } else { *l };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut eight = [0.0f32; LANES / 2];
    for (i, e) in eight.iter_mut().enumerate() {
        *e = lanes[i] + lanes[i + LANES / 2];
    }
    let four = [eight[0] + eight[4], eight[1] + eight[5], eight[2] + eight[6], eight[3] + eight[7]];
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_met_once_at_every_length() {
        for n in 0..70usize {
            let x: Vec<f32> = (0..n).map(|i| (i + 1) as f32).collect();
            let want = (n * (n + 1) / 2) as f32;
            assert_eq!(sum(&x, |x| x), want);
            assert_eq!(sum2(&x, &x, |x, y| x + y), 2.0 * want);
            assert_eq!(max(&x, |x| x), if n == 0 { f32::NEG_INFINITY } else { n as f32 });
            assert_eq!(max(&x, |x| -x), if n == 0 { f32::NEG_INFINITY } else { -1.0 });
        }
    }
}
