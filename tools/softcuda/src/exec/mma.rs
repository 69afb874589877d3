//! `mma.sync`: D = A B + C over the fragments of a warp.
//!
//! The rule for f16, bf16 and tf32: products are exact, each sum starts at the element of C and
//! adds the products in ascending k in f64, and is rounded once to the accumulator's format, to
//! nearest. The hardware adds in groups, aligned and truncated, so it may differ in the last bits;
//! this result is the one that any such order approximates. tf32 operands lose their lower 13 bits
//! first. f64 is fused multiply-add in ascending k.

use super::code::{Mma, MmaType, Round};
use super::half::widen;
use super::lanes::{LANES, Row};
use super::round::{F16, narrow};
use super::warp::Warp;
use pulp::{Simd, WithSimd};

/// A matrix instruction on its way into vector code.
pub(super) struct Multiply<'a> {
    pub(super) warp: &'a mut Warp,
    pub(super) mma: &'a Mma,
}

/// Largest k of a supported shape.
pub(super) const K: usize = 32;

/// Elements in one register.
fn per_register(ty: MmaType) -> usize {
    match ty {
        MmaType::F16 | MmaType::Bf16 => 2,
        MmaType::S8 | MmaType::U8 => 4,
        MmaType::Tf32 | MmaType::F64 => 1,
    }
}

/// The values of element `e` of a register in all lanes.
#[inline(always)]
fn elements(w: &Warp, slot: u32, ty: MmaType, e: usize) -> Row<f64> {
    let shift = e as u32 * (32 / per_register(ty) as u32);
    if ty == MmaType::F64 {
        return each(&w.w[slot as usize], f64::from_bits);
    }
    let row = each(&w.r[slot as usize], |x| x >> (shift & 31));
    match ty {
        MmaType::F16 => each(&row, |x| f64::from(widen(x as u16))),
        MmaType::Bf16 => each(&row, |x| f64::from(f32::from_bits(x << 16))),
        MmaType::Tf32 => each(&row, |x| f64::from(f32::from_bits(x & 0xffff_e000))),
        MmaType::S8 => each(&row, |x| f64::from(x as i8)),
        _ => each(&row, |x| f64::from(x as u8)),
    }
}

/// f of every lane. A loop, since `map` of an array may stay a call, which is not vector code.
#[inline(always)]
fn each<T: Copy, U: Copy + Default>(row: &Row<T>, f: impl Fn(T) -> U) -> Row<U> {
    let mut out = [U::default(); LANES];
    for l in 0..LANES {
        out[l] = f(row[l]);
    }
    out
}

/// A as rows: the register decides between the upper and lower eight rows and the part of k.
#[inline(always)]
fn gather_a<const PER: usize>(w: &Warp, mma: &Mma, a: &mut [[f64; K]; 16]) {
    for (i, &slot) in mma.a.iter().enumerate() {
        let (down, part) = if mma.m == 16 { (i % 2 * 8, i / 2) } else { (0, i) };
        for e in 0..PER {
            let values = elements(w, slot, mma.a_type, e);
            for row in 0..8 {
                for q in 0..4 {
                    a[down + row][(part * 4 * PER + q * PER + e) & (K - 1)] = values[row * 4 + q];
                }
            }
        }
    }
}

/// B as rows of k.
#[inline(always)]
fn gather_b<const PER: usize>(w: &Warp, mma: &Mma, b: &mut [[f64; 8]; K]) {
    for (i, &slot) in mma.b.iter().enumerate() {
        for e in 0..PER {
            let values = elements(w, slot, mma.b_type, e);
            for column in 0..8 {
                for q in 0..4 {
                    b[(i * 4 * PER + q * PER + e) & (K - 1)][column] = values[column * 4 + q];
                }
            }
        }
    }
}

/// Row and column of element `e` of an accumulator: two a row, eight rows apart.
#[inline(always)]
fn place(lane: usize, e: usize) -> (usize, usize) {
    (lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2)
}

/// Whether the accumulators are f32, the common case.
fn single(mma: &Mma) -> bool {
    !mma.half && matches!(mma.a_type, MmaType::F16 | MmaType::Bf16 | MmaType::Tf32)
}

/// C in f32, a register at a time.
#[inline(always)]
pub(super) fn gather_single(w: &Warp, slots: &[u32], c: &mut [[f64; 8]; 16]) {
    for (i, &slot) in slots.iter().enumerate().take(4) {
        let values = each(&w.r[slot as usize], |x| f64::from(f32::from_bits(x)));
        for row in 0..8 {
            for q in 0..4 {
                c[(row + i / 2 * 8) & 15][q * 2 + i % 2] = values[row * 4 + q];
            }
        }
    }
}

/// D in f32, a register at a time.
#[inline(always)]
pub(super) fn scatter_single(w: &mut Warp, slots: &[u32], d: &[[f64; 8]; 16]) {
    for (i, &slot) in slots.iter().enumerate().take(4) {
        let mut values = [0.0; LANES];
        for row in 0..8 {
            for q in 0..4 {
                values[row * 4 + q] = d[(row + i / 2 * 8) & 15][q * 2 + i % 2];
            }
        }
        w.r[slot as usize] = each(&values, |x: f64| {
            let x = x as f32;
            if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
        });
    }
}

/// C of the other accumulators: f64, f16 pairs, i32.
#[inline(always)]
fn gather_c(w: &Warp, mma: &Mma, c: &mut [[f64; 8]; 16]) {
    for (i, &slot) in mma.c.iter().enumerate() {
        for l in 0..LANES {
            let mut set = |e: usize, value: f64| {
                let (row, column) = place(l, e);
                c[row & 15][column & 7] = value;
            };
            if mma.a_type == MmaType::F64 {
                set(i, f64::from_bits(w.w[slot as usize][l]));
            } else if mma.half {
                let bits = w.r[slot as usize][l];
                set(2 * i, f64::from(widen(bits as u16)));
                set(2 * i + 1, f64::from(widen((bits >> 16) as u16)));
            } else {
                set(i, f64::from(w.r[slot as usize][l] as i32));
            }
        }
    }
}

#[inline(always)]
fn scatter(w: &mut Warp, mma: &Mma, d: &[[f64; 8]; 16]) {
    for (i, &slot) in mma.d.iter().enumerate() {
        for l in 0..LANES {
            let get = |e: usize| {
                let (row, column) = place(l, e);
                d[row & 15][column & 7]
            };
            if mma.a_type == MmaType::F64 {
                w.w[slot as usize][l] = get(i).to_bits();
            } else if mma.half {
                let lo = narrow(get(2 * i), F16, Round::Near);
                w.r[slot as usize][l] = lo | narrow(get(2 * i + 1), F16, Round::Near) << 16;
            } else {
                // Sums of 32 products and an i32 are exact in f64; they wrap like the hardware's.
                w.r[slot as usize][l] = get(i) as i64 as u32;
            }
        }
    }
}

pub(super) type Matrices<'m> = (&'m [[f64; K]; 16], &'m [[f64; 8]; K], &'m mut [[f64; 8]; 16]);

/// One vector's worth of columns, all rows at once: sixteen sums that do not wait for each other.
#[inline(always)]
pub(super) fn multiply<S: Simd>(simd: S, (a, b, c): Matrices<'_>, k: usize, part: usize) {
    let mut sums = [simd.splat_f64s(0.0); 16];
    for (sum, row) in sums.iter_mut().zip(c.iter()) {
        *sum = S::as_simd_f64s(row).0[part];
    }
    for (q, column) in b.iter().enumerate().take(k) {
        let y = S::as_simd_f64s(column).0[part];
        for (sum, row) in sums.iter_mut().zip(a) {
            *sum = simd.mul_add_f64s(simd.splat_f64s(row[q]), y, *sum);
        }
    }
    for (sum, row) in sums.into_iter().zip(c.iter_mut()) {
        S::as_mut_simd_f64s(row).0[part] = sum;
    }
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { warp: w, mma } = self;
        let (mut a, mut b, mut c) = ([[0.0; K]; 16], [[0.0; 8]; K], [[0.0; 8]; 16]);
        match per_register(mma.a_type) {
            1 => {
                gather_a::<1>(w, mma, &mut a);
                gather_b::<1>(w, mma, &mut b);
            }
            2 => {
                gather_a::<2>(w, mma, &mut a);
                gather_b::<2>(w, mma, &mut b);
            }
            _ => {
                gather_a::<4>(w, mma, &mut a);
                gather_b::<4>(w, mma, &mut b);
            }
        }
        let single = single(mma);
        if single {
            gather_single(w, &mma.c, &mut c);
        } else {
            gather_c(w, mma, &mut c);
        }
        for part in 0..8 / S::F64_LANES {
            multiply(simd, (&a, &b, &mut c), mma.k as usize, part);
        }
        if single {
            scatter_single(w, &mma.d, &c);
        } else {
            scatter(w, mma, &c);
        }
    }
}
