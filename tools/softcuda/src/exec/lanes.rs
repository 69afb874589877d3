//! Loops over the 32 lanes of a warp, written so that the compiler turns them into vector code.
//!
//! Callers run inside a `vectorize` of the SIMD level found at run time; everything here is
//! inlined into it and so compiled for that level.

use super::code::Inst;

/// Lanes of a warp.
pub(super) const LANES: usize = 32;
/// All lanes.
pub(super) const FULL: u32 = u32::MAX;

/// One register of all lanes.
pub(super) type Row<T> = [T; LANES];

/// Writes the lanes of `mask`.
#[inline(always)]
pub(super) fn put<T: Copy>(to: &mut Row<T>, mask: u32, from: Row<T>) {
    if mask == FULL {
        *to = from;
        return;
    }
    // Every lane is stored, so that the loop needs no branch.
    for l in 0..LANES {
        to[l] = if mask >> l & 1 != 0 { from[l] } else { to[l] };
    }
}

/// d = f(a).
#[inline(always)]
pub(super) fn one<T: Copy + Default>(r: &mut [Row<T>], i: &Inst, mask: u32, f: impl Fn(T) -> T) {
    let a = &r[i.a as usize];
    let mut out = [T::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l]);
    }
    put(&mut r[i.d as usize], mask, out);
}

/// d = f(a, b).
#[inline(always)]
pub(super) fn two<T: Copy + Default>(r: &mut [Row<T>], i: &Inst, mask: u32, f: impl Fn(T, T) -> T) {
    let (a, b) = (&r[i.a as usize], &r[i.b as usize]);
    let mut out = [T::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l]);
    }
    put(&mut r[i.d as usize], mask, out);
}

/// d = f(a, b, c).
#[inline(always)]
pub(super) fn three<T: Copy + Default>(
    r: &mut [Row<T>],
    i: &Inst,
    mask: u32,
    f: impl Fn(T, T, T) -> T,
) {
    let (a, b, c) = (&r[i.a as usize], &r[i.b as usize], &r[i.c as usize]);
    let mut out = [T::default(); LANES];
    for l in 0..LANES {
        out[l] = f(a[l], b[l], c[l]);
    }
    put(&mut r[i.d as usize], mask, out);
}

/// d = f(a) from one file into another.
#[inline(always)]
pub(super) fn across<T: Copy, U: Copy + Default>(
    from: &Row<T>,
    to: &mut Row<U>,
    mask: u32,
    f: impl Fn(T) -> U,
) {
    let mut out = [U::default(); LANES];
    for l in 0..LANES {
        out[l] = f(from[l]);
    }
    put(to, mask, out);
}

/// The lanes for which f(a, b) holds.
#[inline(always)]
pub(super) fn test<T: Copy>(a: &Row<T>, b: &Row<T>, f: impl Fn(T, T) -> bool) -> u32 {
    let mut out = 0;
    for l in 0..LANES {
        out |= u32::from(f(a[l], b[l])) << l;
    }
    out
}

/// Replaces the bits of `mask` in a predicate.
#[inline(always)]
pub(super) fn put_bits(to: &mut u32, mask: u32, from: u32) {
    *to = (*to & !mask) | (from & mask);
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
