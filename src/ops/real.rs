//! Real: the scalars a reference runs at.
//!
//! | scalar | what it answers |
//! | --- | --- |
//! | `f32` | the plain CPU backend |
//! | `f64` | the oracle for values |
//! | [`Dual`] | value and derivative: the oracle for both derivative modes |
//! | [`Running`] | value and rounding bound: the permitted error of each `f32` output |
//!
//! `f32` uses [`super::fast`]'s polynomials, so loops over it vectorise; their errors are counted
//! by `Running`.

use std::cell::Cell;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::bf16;

use super::fast;

/// Half an ulp of 1 in binary32: the relative rounding error of one operation.
pub const U: f64 = 1.0 / 16_777_216.0;
/// Smallest subnormal of binary32: the absolute error where relative bounds end.
const TINY: f64 = 1.4e-45;

/// A real scalar of a reference. Branches look at the value only.
pub trait Real:
    Copy
    + Send
    + Sync
    + 'static
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant.
    fn of(x: f64) -> Self;
    /// The value, for branches and reports.
    fn val(self) -> f64;
    /// e^x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Sine and cosine (radians).
    fn sin_cos(self) -> (Self, Self);

    /// The same value as a constant: no derivative passes through it.
    #[inline(always)]
    fn fixed(self) -> Self {
        self
    }

    /// The value where an op keeps it in memory between two of its steps, as one of its elements:
    /// rounded to bf16 in kernels of bf16, and under [`stored_in_bf16`] here.
    #[inline(always)]
    fn stored(self) -> Self {
        self
    }

    /// The sum in any order: `Running` counts the worst one, so a kernel may use any tree.
    #[inline(always)]
    fn sum(terms: impl Iterator<Item = Self>) -> Self {
        let mut s = Self::of(0.0);
        for t in terms {
            s = s + t;
        }
        s
    }

    /// 1 where the value is above 0, else 0; a constant.
    #[inline(always)]
    fn step(self) -> Self {
        Self::of(if self.val() > 0.0 { 1.0 } else { 0.0 })
    }
    /// The larger.
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        if o > self { o } else { self }
    }
    /// The smaller.
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        if o < self { o } else { self }
    }
    /// Magnitude.
    #[inline(always)]
    fn abs(self) -> Self {
        if self.val() < 0.0 { -self } else { self }
    }
    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::of(1.0) / (Self::of(1.0) + (-self).exp())
    }
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn val(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        fast::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        fast::tanh(self)
    }
    #[inline(always)]
    fn sin_cos(self) -> (Self, Self) {
        f32::sin_cos(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
}

thread_local!(static STORES_BF16: Cell<bool> = const { Cell::new(false) });

/// Runs `f`, in which [`Real::stored`] rounds to bf16: the reference of kernels of bf16.
pub fn stored_in_bf16<T>(f: impl FnOnce() -> T) -> T {
    let before = STORES_BF16.replace(true);
    let done = f();
    STORES_BF16.set(before);
    done
}

/// The nearest bf16.
fn to_bf16(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

impl Real for f64 {
    fn stored(self) -> Self {
        if STORES_BF16.get() { to_bf16(self) } else { self }
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn val(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    #[inline(always)]
    fn sin_cos(self) -> (Self, Self) {
        f64::sin_cos(self)
    }
}

/// Value and derivative along one direction, in f64.
#[derive(Clone, Copy, Debug)]
pub struct Dual {
    /// The value.
    pub v: f64,
    /// The derivative.
    pub d: f64,
}

impl PartialEq for Dual {
    fn eq(&self, o: &Self) -> bool {
        self.v == o.v
    }
}
impl PartialOrd for Dual {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        self.v.partial_cmp(&o.v)
    }
}
impl Add for Dual {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self { v: self.v + o.v, d: self.d + o.d }
    }
}
impl Sub for Dual {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self { v: self.v - o.v, d: self.d - o.d }
    }
}
impl Mul for Dual {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        Self { v: self.v * o.v, d: self.d * o.v + self.v * o.d }
    }
}
impl Div for Dual {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let v = self.v / o.v;
        Self { v, d: (self.d - v * o.d) / o.v }
    }
}
impl Neg for Dual {
    type Output = Self;
    fn neg(self) -> Self {
        Self { v: -self.v, d: -self.d }
    }
}
impl Real for Dual {
    fn fixed(self) -> Self {
        Self { v: self.v, d: 0.0 }
    }
    fn of(x: f64) -> Self {
        Self { v: x, d: 0.0 }
    }
    fn val(self) -> f64 {
        self.v
    }
    fn exp(self) -> Self {
        let v = self.v.exp();
        Self { v, d: v * self.d }
    }
    fn ln(self) -> Self {
        Self { v: self.v.ln(), d: self.d / self.v }
    }
    fn sqrt(self) -> Self {
        let v = self.v.sqrt();
        Self { v, d: self.d / (2.0 * v) }
    }
    fn tanh(self) -> Self {
        let v = self.v.tanh();
        Self { v, d: (1.0 - v * v) * self.d }
    }
    fn sin_cos(self) -> (Self, Self) {
        let (s, c) = self.v.sin_cos();
        (Self { v: s, d: c * self.d }, Self { v: c, d: -s * self.d })
    }
}

/// Value in f64 and a bound on how far an f32 evaluation may be from it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The value.
    pub v: f64,
    /// The permitted absolute error.
    pub e: f64,
}

impl Running {
    /// An input: exactly representable, so without error.
    pub fn exact(v: f64) -> Self {
        Self { v, e: 0.0 }
    }

    /// After one rounding to bf16: half a unit of 8 binary digits more of error, or of the least
    /// subnormal.
    pub fn in_bf16(self) -> Self {
        let Self { v, e } = self;
        Self { v, e: e + ((v.abs() + e) * 2f64.powi(-8)).max(2f64.powi(-134)) }
    }

    /// `v` with the propagated error `e` plus `ulps` roundings of the result.
    fn rounded(v: f64, e: f64, ulps: f64) -> Self {
        Self { v, e: e + ulps * U * (v.abs() + e) + TINY }
    }
}

impl PartialEq for Running {
    fn eq(&self, o: &Self) -> bool {
        self.v == o.v
    }
}
impl PartialOrd for Running {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        self.v.partial_cmp(&o.v)
    }
}
impl Add for Running {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self::rounded(self.v + o.v, self.e + o.e, 1.0)
    }
}
impl Sub for Running {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self::rounded(self.v - o.v, self.e + o.e, 1.0)
    }
}
impl Mul for Running {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        let e = self.v.abs() * o.e + self.e * o.v.abs() + self.e * o.e;
        Self::rounded(self.v * o.v, e, 1.0)
    }
}
impl Div for Running {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        let v = self.v / o.v;
        // A divisor whose error reaches its value bounds nothing; the case is then rejected as
        // vacuous.
        let room = o.v.abs() - o.e;
        let e = if room > 0.0 { (self.e + v.abs() * o.e) / room } else { f64::INFINITY };
        // Two roundings: a reciprocal followed by a product is admitted.
        Self::rounded(v, e, 2.0)
    }
}
impl Neg for Running {
    type Output = Self;
    fn neg(self) -> Self {
        Self { v: -self.v, e: self.e }
    }
}
impl Real for Running {
    fn stored(self) -> Self {
        if !STORES_BF16.get() {
            return self;
        }
        // All of the values that it may be have one neighbour, or nearly all have.
        let v = to_bf16(self.v);
        let far = |end: f64| (to_bf16(end) - v).abs();
        Self { v, e: far(self.v + self.e).max(far(self.v - self.e)) }
    }
    /// Either answer is right where rounding may decide.
    fn step(self) -> Self {
        let v = if self.v > 0.0 { 1.0 } else { 0.0 };
        Self { v, e: if self.v.abs() <= self.e { 1.0 } else { 0.0 } }
    }
    fn of(x: f64) -> Self {
        Self { v: x, e: (x - f64::from(x as f32)).abs() }
    }
    fn val(self) -> f64 {
        self.v
    }
    fn exp(self) -> Self {
        let v = self.v.exp();
        Self::rounded(v, v * self.e.exp_m1(), 4.0)
    }
    fn ln(self) -> Self {
        let room = self.v - self.e;
        let e = if room > 0.0 { self.e / room } else { f64::INFINITY };
        Self::rounded(self.v.ln(), e, 4.0)
    }
    fn sqrt(self) -> Self {
        let v = self.v.sqrt();
        // sqrt(v + e) - sqrt(v), without cancellation and finite at zero.
        let below = (self.v - self.e).max(0.0).sqrt();
        let e = if self.e > 0.0 { self.e / (v + below) } else { 0.0 };
        Self::rounded(v, e.min(self.e.sqrt()), 2.0)
    }
    fn tanh(self) -> Self {
        let v = self.v.tanh();
        // `fast::tanh` is exact to a few units of 1, not of its result.
        Self::rounded(v, self.e + 4.0 * U, 4.0)
    }
    fn sin_cos(self) -> (Self, Self) {
        let (s, c) = self.v.sin_cos();
        (Self::rounded(s, self.e, 2.0), Self::rounded(c, self.e, 2.0))
    }
    fn sum(terms: impl Iterator<Item = Self>) -> Self {
        let (mut v, mut e, mut mag, mut n) = (0.0, 0.0, 0.0, 0.0);
        for t in terms {
            v += t.v;
            e += t.e;
            mag += t.v.abs() + t.e;
            n += 1.0;
        }
        // Any tree of n - 1 additions: at most n - 1 roundings of at most the sum of magnitudes.
        let depth: f64 = n - 1.0;
        Self { v, e: e + depth.max(0.0) * U * mag * 1.01 + TINY }
    }
    fn max(self, o: Self) -> Self {
        Self { v: if o.v > self.v { o.v } else { self.v }, e: self.e.max(o.e) }
    }
    fn min(self, o: Self) -> Self {
        Self { v: if o.v < self.v { o.v } else { self.v }, e: self.e.max(o.e) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f<R: Real>(a: R, b: R) -> R {
        (a * b).tanh() / (R::of(1.3) + b * b) - (a - b).exp() * R::of(0.1)
            + (a * a + R::of(1e-2)).sqrt().ln().sigmoid()
    }

    #[test]
    fn running_bounds_hold_for_random_expressions() {
        let s = crate::tensor::Stream::new(5, 0, 0, crate::tensor::Purpose::Test);
        for i in 0..20_000 {
            let (a, b) = (s.normal(2 * i) * 3.0, s.normal(2 * i + 1));
            let got = f64::from(f(a, b));
            let r = f(Running::exact(f64::from(a)), Running::exact(f64::from(b)));
            let want = f(f64::from(a), f64::from(b));
            assert!((got - want).abs() <= r.e, "{a} {b}: {got} {want} bound {}", r.e);
            assert!(r.e < 1e-4 * (1.0 + want.abs()), "vacuous at {a} {b}: {}", r.e);
        }
    }

    #[test]
    fn dual_matches_calculus() {
        let x = Dual { v: 0.7, d: 1.0 };
        let y = (x * x).exp() / x.sqrt() + x.tanh() * x.ln();
        let f = |v: f64| (v * v).exp() / v.sqrt() + v.tanh() * v.ln();
        let numeric = (f(0.7 + 1e-6) - f(0.7 - 1e-6)) / 2e-6;
        assert!((y.v - f(0.7)).abs() < 1e-14 && (y.d - numeric).abs() < 1e-8);
    }
}
