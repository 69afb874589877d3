//! The three transforms of Winograd's F(4 x 4, 3 x 3), by vectors of channels.
//!
//! Along an axis y = A' [(G w) * (B' x)]. At a point p, G has 1, p, p^2 over the product of p less
//! the other points, A' the powers of p up to the third, and B' the coefficients of the polynomial
//! that is 0 at the other points; infinity takes the last of each. Opposite points share their even
//! and odd parts. All of A' and B' is exact in binary.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};

use super::{PATCH, SIDE, SPOTS};

/// How far pixels of a patch may be apart. The error is that of the largest, while results that do
/// not see it may only have that of their own: with 32 channels of normal numbers it is a fiftieth
/// of what rounding of the direct sum allows.
const SCALE: f32 = 64.0;

/// The points beside 0 and infinity are +-P and +-Q.
const P: f32 = 0.75;
const Q: f32 = 1.5;
const PP: f32 = P * P;
const QQ: f32 = Q * Q;

/// B' of a column: sums at the six points.
#[inline(always)]
fn spread<S: Simd>(simd: S, d: [S::f32s; PATCH]) -> [S::f32s; PATCH] {
    let of = |k: f32, a, b| simd.mul_add_f32s(simd.splat_f32s(k), a, b);
    let [p, q] = [of(-QQ, d[2], d[4]), of(-PP, d[2], d[4])];
    let [odd_p, odd_q] = [of(-QQ, d[1], d[3]), of(-PP, d[1], d[3])];
    [
        of(PP * QQ, d[0], of(-(PP + QQ), d[2], d[4])),
        of(P, odd_p, p),
        of(-P, odd_p, p),
        of(Q, odd_q, q),
        of(-Q, odd_q, q),
        of(PP * QQ, d[1], of(-(PP + QQ), d[3], d[5])),
    ]
}

/// G of a column of weights.
#[inline(always)]
fn weigh<S: Simd>(simd: S, w: [S::f32s; 3]) -> [S::f32s; PATCH] {
    const ZERO: f32 = 1.0 / (PP * QQ);
    const AT_P: f32 = 1.0 / (2.0 * PP * (PP - QQ));
    const AT_Q: f32 = 1.0 / (2.0 * QQ * (QQ - PP));
    let by = |k: f32, a| simd.mul_f32s(simd.splat_f32s(k), a);
    let of = |k: f32, a, b| simd.mul_add_f32s(simd.splat_f32s(k), a, b);
    let [p, q] = [of(AT_P * PP, w[2], by(AT_P, w[0])), of(AT_Q * QQ, w[2], by(AT_Q, w[0]))];
    [
        by(ZERO, w[0]),
        of(AT_P * P, w[1], p),
        of(-AT_P * P, w[1], p),
        of(AT_Q * Q, w[1], q),
        of(-AT_Q * Q, w[1], q),
        w[2],
    ]
}

/// A' of a column: four results of six products.
#[inline(always)]
fn gather<S: Simd>(simd: S, m: [S::f32s; PATCH]) -> [S::f32s; SIDE] {
    let by = |k: f32, a| simd.mul_f32s(simd.splat_f32s(k), a);
    let of = |k: f32, a, b| simd.mul_add_f32s(simd.splat_f32s(k), a, b);
    let [p, q] = [simd.add_f32s(m[1], m[2]), simd.add_f32s(m[3], m[4])];
    let [odd_p, odd_q] = [simd.sub_f32s(m[1], m[2]), simd.sub_f32s(m[3], m[4])];
    [
        simd.add_f32s(m[0], simd.add_f32s(p, q)),
        of(Q, odd_q, by(P, odd_p)),
        of(QQ, q, by(PP, p)),
        of(QQ * Q, odd_q, of(PP * P, odd_p, m[5])),
    ]
}

/// B' x B of a tile, [36, channels], and whether its pixels are of one scale: whether the largest
/// element is at most [`SCALE`] times that of each window, which sees one of four pixels.
pub struct Seen<'a> {
    /// The pixels of its patch.
    pub patch: [&'a [f32]; SPOTS],
    /// Of these pixels each of its windows sees one.
    pub centres: [usize; 4],
    /// Where it goes.
    pub to: &'a mut [f32],
}

impl WithSimd for Seen<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let depth = self.patch[0].len();
        assert!(self.patch.iter().all(|p| p.len() == depth) && depth.is_multiple_of(S::F32_LANES));
        assert_eq!(self.to.len(), SPOTS * depth, "the transform has another size");
        let zero = simd.splat_f32s(0.0);
        let (mut most, mut of_centres) = (zero, [zero; 4]);
        for c in (0..depth).step_by(S::F32_LANES) {
            let mut d = [[zero; PATCH]; PATCH];
            // SAFETY: c + a vector's lanes <= depth, the length of each pixel; any alignment is
            // read.
            let load = |p: &[f32]| unsafe { p.as_ptr().add(c).cast::<S::f32s>().read_unaligned() };
            for (j, d) in d.iter_mut().enumerate() {
                let column = std::array::from_fn(|i| load(self.patch[i * PATCH + j]));
                for v in column {
                    most = simd.max_f32s(most, simd.abs_f32s(v));
                }
                *d = spread(simd, column);
            }
            for (of, &i) in of_centres.iter_mut().zip(&self.centres) {
                *of = simd.max_f32s(*of, simd.abs_f32s(load(self.patch[i])));
            }
            let row = |i: usize| spread(simd, std::array::from_fn(|j| d[j][i]));
            for i in 0..PATCH {
                for (j, v) in row(i).into_iter().enumerate() {
                    let at = (i * PATCH + j) * depth + c;
                    // SAFETY: at + a vector's lanes <= 36 depth = to.len(); any alignment is
                    // written.
                    unsafe { self.to.as_mut_ptr().add(at).cast::<S::f32s>().write_unaligned(v) };
                }
            }
        }
        let least = of_centres.map(|v| simd.reduce_max_f32s(v));
        let least = least.into_iter().fold(f32::INFINITY, f32::min);
        simd.reduce_max_f32s(most) <= SCALE * least
    }
}

/// G w G' of a panel: from [9, channels, width] to [36, channels, width].
pub struct Weighed<'a> {
    /// The weights.
    pub panel: &'a [f32],
    /// Where they go.
    pub to: &'a mut [f32],
}

impl WithSimd for Weighed<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (from, to) = (S::as_simd_f32s(self.panel).0, S::as_mut_simd_f32s(self.to).0);
        let (taps, spots) = (from.len() / 9, to.len() / SPOTS);
        assert_eq!(taps, spots, "the transform has another size");
        for k in 0..taps {
            let mut g = [[simd.splat_f32s(0.0); PATCH]; 3];
            for (j, g) in g.iter_mut().enumerate() {
                *g = weigh(simd, std::array::from_fn(|i| from[(3 * i + j) * taps + k]));
            }
            for i in 0..PATCH {
                let row = weigh(simd, std::array::from_fn(|j| g[j][i]));
                for (j, v) in row.into_iter().enumerate() {
                    to[(i * PATCH + j) * taps + k] = v;
                }
            }
        }
    }
}

/// A' m A of a tile, m being [36, width]: [16, width], plus a bias; whether all are finite without
/// it.
pub struct Results<'a> {
    /// The products.
    pub m: &'a [f32],
    /// What is added.
    pub bias: &'a [f32],
    /// Where they go.
    pub to: &'a mut [f32],
}

impl WithSimd for Results<'_> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let (m, to) = (S::as_simd_f32s(self.m).0, S::as_mut_simd_f32s(self.to).0);
        let bias = S::as_simd_f32s(self.bias).0;
        let width = m.len() / SPOTS;
        assert!(m.len() == SPOTS * width && to.len() == SIDE * SIDE * width);
        let zero = simd.splat_f32s(0.0);
        let mut nothing = zero;
        for (c, &bias) in bias.iter().enumerate().take(width) {
            let mut s = [[zero; SIDE]; PATCH];
            for (j, s) in s.iter_mut().enumerate() {
                *s = gather(simd, std::array::from_fn(|i| m[(i * PATCH + j) * width + c]));
            }
            for i in 0..SIDE {
                let row = gather(simd, std::array::from_fn(|j| s[j][i]));
                for (j, v) in row.into_iter().enumerate() {
                    // Zero times what is not finite is NaN, and stays.
                    nothing = simd.mul_add_f32s(v, zero, nothing);
                    to[(i * SIDE + j) * width + c] = simd.add_f32s(v, bias);
                }
            }
        }
        !simd.reduce_sum_f32s(nothing).is_nan()
    }
}
