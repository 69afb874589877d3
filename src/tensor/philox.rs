//! Philox4x32-10 (Salmon et al., SC 2011): random numbers that are a function of their name.
//!
//! A [`Stream`] is named by (seed, sample, scale, purpose); element `i` of a stream depends on
//! nothing else, so the same numbers come out whatever the thread, the batch or the order. Normals
//! are Box-Muller over polynomials in single-precision `+ - * /` and `sqrt` alone, which IEEE 754
//! fixes to the last bit: no library's `sin` or `ln`, so every machine and, with contraction off,
//! every device agrees.

use rayon::prelude::*;

const ROUNDS: usize = 10;
const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// One block: four random words for a 128-bit counter and a 64-bit key.
#[inline]
pub fn philox4x32(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
        }
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ key[1],
            p0 as u32,
        ];
    }
    c
}

/// What a stream of random numbers is for. The numbers are part of the file format of a run: never
/// reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Purpose {
    /// Weight initialisation (sample = parameter number).
    Init = 1,
    /// Which training examples make a batch (sample = step).
    Batch = 2,
    /// Crops, flips, jitter (sample = example number).
    Augment = 3,
    /// Dropout, drop path, condition dropout.
    Dropout = 4,
    /// The noise epsilon_k that Phi starts from.
    Noise = 5,
    /// Times t and r, and lambda, of a MeanFlow step.
    Time = 6,
    /// The Gaussian threshold gamma of the mask, and the random mask.
    Mask = 7,
    /// Drawing tokens.
    Token = 8,
    /// Posterior samples of the beta-VAE.
    Posterior = 9,
    /// k-means and dead-code restarts.
    Codebook = 10,
    /// Counterfactual image operators.
    Counterfactual = 11,
    /// Bootstrap and other resampling in evaluation.
    Bootstrap = 12,
    /// Everything a test draws.
    Test = 13,
}

/// A named, random-access sequence of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    tail: [u32; 3],
}

impl Stream {
    /// The stream of (seed, sample, scale, purpose).
    pub fn new(seed: u64, sample: u64, scale: u16, purpose: Purpose) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            tail: [sample as u32, (sample >> 32) as u32, u32::from(scale) << 16 | purpose as u32],
        }
    }

    /// The words that name it, as kernels/lib/philox.cuh takes them: a key and the tail of the
    /// counter.
    pub fn name(&self) -> ([u32; 2], [u32; 3]) {
        (self.key, self.tail)
    }

    #[inline]
    fn block(&self, i: u32) -> [u32; 4] {
        philox4x32([i, self.tail[0], self.tail[1], self.tail[2]], self.key)
    }

    /// Word `i`.
    #[inline]
    pub fn word(&self, i: usize) -> u32 {
        self.block((i / 4) as u32)[i % 4]
    }

    /// Uniform `i` in [0, 1), a multiple of 2^-24.
    #[inline]
    pub fn uniform(&self, i: usize) -> f32 {
        unit(self.word(i))
    }

    /// Standard normal `i`.
    #[inline]
    pub fn normal(&self, i: usize) -> f32 {
        normals(self.block((i / 4) as u32))[i % 4]
    }

    /// Integer `i` in 0..n, without bias worth naming (n is far below 2^32).
    #[inline]
    pub fn below(&self, i: usize, n: usize) -> usize {
        ((u64::from(self.word(i)) * n as u64) >> 32) as usize
    }

    /// Normals 0..n.
    pub fn normals(&self, n: usize) -> Vec<f32> {
        self.fill(n, normals)
    }

    /// Uniforms 0..n.
    pub fn uniforms(&self, n: usize) -> Vec<f32> {
        self.fill(n, |w| w.map(unit))
    }

    fn fill(&self, n: usize, f: impl Fn([u32; 4]) -> [f32; 4] + Sync) -> Vec<f32> {
        let mut out = vec![0.0; n];
        out.par_chunks_mut(4096).enumerate().for_each(|(chunk, part)| {
            for (j, four) in part.chunks_mut(4).enumerate() {
                let values = f(self.block((chunk * 1024 + j) as u32));
                four.copy_from_slice(&values[..four.len()]);
            }
        });
        out
    }

    /// A permutation of 0..n (Fisher-Yates over words 0..n).
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut p: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            p.swap(i, self.below(i, i + 1));
        }
        p
    }
}

#[inline]
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two Box-Muller pairs from four words.
#[inline]
fn normals(w: [u32; 4]) -> [f32; 4] {
    let [a, b] = box_muller(w[0], w[1]);
    let [c, d] = box_muller(w[2], w[3]);
    [a, b, c, d]
}

#[inline]
fn box_muller(w0: u32, w1: u32) -> [f32; 2] {
    // (0, 1]: the logarithm is finite, and the largest normal is sqrt(2 * 24 ln 2) = 5.77.
    let u = ((w0 >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
    let radius = (-2.0 * ln(u)).sqrt();
    let [c, s] = cos_sin_turn(unit(w1));
    [radius * c, radius * s]
}

/// ln x for x in (0, 1], to about 2 units in the last place: x = m 2^e with m in [sqrt(1/2), sqrt
/// 2), then the odd series of 2 atanh((m - 1) / (m + 1)).
#[inline]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits().wrapping_sub(0x3F35_04F3);
    let e = (bits as i32) >> 23;
    let m = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(0x3F35_04F3));
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let p = 2.0 + q * (0.666_666_7 + q * (0.4 + q * (0.285_714_3 + q * 0.222_222_22)));
    e as f32 * std::f32::consts::LN_2 + s * p
}

/// (cos, sin) of 2 pi u for u in [0, 1): the turn is folded to an eighth, then Taylor polynomials.
#[inline]
fn cos_sin_turn(u: f32) -> [f32; 2] {
    let octant = (u * 4.0 + 0.5) as i32;
    let x = (u - octant as f32 * 0.25) * std::f32::consts::TAU;
    let q = x * x;
    let s = x * (1.0 - q * (1.0 / 6.0 - q * (1.0 / 120.0 - q * (1.0 / 5040.0 - q / 362_880.0))));
    let c = 1.0 - q * (0.5 - q * (1.0 / 24.0 - q * (1.0 / 720.0 - q / 40320.0)));
    match octant & 3 {
        0 => [c, s],
        1 => [-s, c],
        2 => [-c, -s],
        _ => [s, -c],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_paper() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn normals_are_normal_and_do_not_depend_on_how_many_are_asked_for() {
        let s = Stream::new(7, 3, 2, Purpose::Test);
        let n = 200_000;
        let x = s.normals(n);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let var = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / n as f64;
        let kurt = x.iter().map(|&v| f64::from(v).powi(4)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((var - 1.0).abs() < 0.015, "{var}");
        assert!((kurt - 3.0).abs() < 0.1, "{kurt}");
        assert_eq!(x[..777], s.normals(777)[..]);
        assert_eq!(x[4321].to_bits(), s.normal(4321).to_bits());
    }

    #[test]
    fn names_give_different_streams() {
        let base = Stream::new(1, 2, 3, Purpose::Noise).word(0);
        assert_ne!(base, Stream::new(2, 2, 3, Purpose::Noise).word(0));
        assert_ne!(base, Stream::new(1, 3, 3, Purpose::Noise).word(0));
        assert_ne!(base, Stream::new(1, 2, 4, Purpose::Noise).word(0));
        assert_ne!(base, Stream::new(1, 2, 3, Purpose::Mask).word(0));
    }

    #[test]
    fn polynomials_match_the_library() {
        for i in 1..=10_000u32 {
            let u = i as f32 / 10_000.0;
            assert!((ln(u) - u.ln()).abs() <= 1e-6 * (1.0 + u.ln().abs()), "ln {u}");
            let [c, s] = cos_sin_turn((i - 1) as f32 / 10_000.0);
            let a = f64::from((i - 1) as f32 / 10_000.0) * std::f64::consts::TAU;
            assert!((f64::from(c) - a.cos()).abs() < 5e-7 && (f64::from(s) - a.sin()).abs() < 5e-7);
        }
    }
}
