//! Image operators: flips and rotations, free crops, area downscaling, and the three
//! counterfactual operators of algorithm.md 5.3 (colour anomaly, contrast, sharpening).
//!
//! Images stay 8-bit RGB between operators; inside one they are f32 in 0..255. Every random number
//! comes from a [`Stream`], so a variant is a function of its name.

use crate::error::{Error, Result};
use crate::io::images::Rgb;
use crate::tensor::{Purpose, Stream};

/// One of the eight symmetries of the square: bit 0 mirrors left-right, bit 1 top-bottom, bit 2
/// transposes (last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct D4(u8);

impl D4 {
    /// Symmetry `i` of 0..8; 0 leaves the image as it is.
    pub fn new(i: usize) -> Self {
        Self((i % 8) as u8)
    }

    /// The image under this symmetry. Transposing swaps width and height.
    pub fn apply(self, image: &Rgb) -> Rgb {
        let (w, h) = (image.width, image.height);
        let (wide, high) = if self.0 & 4 == 0 { (w, h) } else { (h, w) };
        let mut data = Vec::with_capacity(image.data.len());
        for y in 0..high {
            for x in 0..wide {
                let (mut sx, mut sy) = if self.0 & 4 == 0 { (x, y) } else { (y, x) };
                if self.0 & 1 != 0 {
                    sx = w - 1 - sx;
                }
                if self.0 & 2 != 0 {
                    sy = h - 1 - sy;
                }
                data.extend_from_slice(&image.pixel(sx, sy));
            }
        }
        Rgb { width: wide, height: high, data }
    }
}

/// A `size` x `size` window at a random place under a random symmetry; example `example` of a run
/// always gets the same one.
pub fn window(image: &Rgb, size: usize, seed: u64, example: u64) -> Result<Rgb> {
    if image.width < size || image.height < size {
        let what = format!("a {size}-pixel window of a {}x{} image", image.width, image.height);
        return Err(Error::shape("window", what));
    }
    let draw = Stream::new(seed, example, 0, Purpose::Augment);
    let x = draw.below(0, image.width - size + 1);
    let y = draw.below(1, image.height - size + 1);
    Ok(D4::new(draw.below(2, 8)).apply(&image.crop(x, y, size, size)?))
}

/// The window in the middle: what evaluation looks at.
pub fn centre(image: &Rgb, size: usize) -> Result<Rgb> {
    let x = image.width.saturating_sub(size) / 2;
    let y = image.height.saturating_sub(size) / 2;
    image.crop(x, y, size, size)
}

/// Shrinks by a whole factor, each pixel the mean of the `factor` x `factor` it covers. Rows and
/// columns left over at the right and bottom are dropped.
pub fn downscale(image: &Rgb, factor: usize) -> Result<Rgb> {
    if factor == 0 || image.width < factor || image.height < factor {
        let what = format!("factor {factor} for a {}x{} image", image.width, image.height);
        return Err(Error::shape("downscale", what));
    }
    if factor == 1 {
        return Ok(image.clone());
    }
    let (w, h) = (image.width / factor, image.height / factor);
    let area = (factor * factor) as u32;
    let mut data = Vec::with_capacity(3 * w * h);
    for y in 0..h {
        for x in 0..w {
            let mut sum = [0u32; 3];
            for dy in 0..factor {
                for dx in 0..factor {
                    let p = image.pixel(x * factor + dx, y * factor + dy);
                    (0..3).for_each(|c| sum[c] += u32::from(p[c]));
                }
            }
            data.extend(sum.map(|s| ((s + area / 2) / area) as u8));
        }
    }
    Rgb::new(w, h, data)
}

/// Standard deviation of the grey values of a window: near 0 on glass, above 10 on tissue.
///
/// Grey is Rec. 601 luma. A saturation test fails on these sections, whose background is pink.
pub fn grey_sd(image: &Rgb, x: usize, y: usize, width: usize, height: usize) -> f64 {
    let (mut sum, mut square) = (0f64, 0f64);
    for row in y..y + height {
        for column in x..x + width {
            let [r, g, b] = image.pixel(column, row).map(f64::from);
            let grey = 0.299 * r + 0.587 * g + 0.114 * b;
            sum += grey;
            square += grey * grey;
        }
    }
    let n = (width * height) as f64;
    (square / n - (sum / n) * (sum / n)).max(0.0).sqrt()
}

/// A counterfactual operator: what it destroys carries no biology that RNA could explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counterfactual {
    /// X_a: stain and hue.
    Colour,
    /// X_c: contrast about the tile's mean.
    Contrast,
    /// X_s: unsharp mask.
    Sharpen,
}

impl Counterfactual {
    /// All three, in the paper's order a, c, s.
    pub const ALL: [Self; 3] = [Self::Colour, Self::Contrast, Self::Sharpen];

    /// The variant of `image` named by (seed, example): strengths as in algorithm.md 5.3.
    pub fn apply(self, image: &Rgb, seed: u64, example: u64) -> Rgb {
        let draw = Stream::new(seed, example, self as u16, Purpose::Counterfactual);
        let between = |i: usize, low: f32, high: f32| low + (high - low) * draw.uniform(i);
        match self {
            Self::Colour => {
                let gain = [0, 1, 2].map(|s| stain_gain(draw.uniform(s)));
                let offset = [3, 4, 5].map(|s| between(s, -0.1, 0.1));
                let turn = between(6, -25.0, 25.0);
                hue_turn(&stain_jitter(image, gain, offset), turn)
            }
            Self::Contrast => {
                // U(0.4, 0.7) and U(1.4, 2.0), weighted by their lengths.
                let u = 0.9 * draw.uniform(0);
                contrast(image, if u < 0.3 { 0.4 + u } else { 1.1 + u })
            }
            Self::Sharpen => unsharp(image, 1.5, between(0, 1.5, 3.0)),
        }
    }
}

/// U(0.5, 1.5) without the middle: |gain - 1| is at least 0.2.
fn stain_gain(u: f32) -> f32 {
    let u = 0.6 * u;
    if u < 0.3 { 0.5 + u } else { 0.9 + u }
}

/// Optical densities of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001), rows
/// of unit length.
const STAINS: [[f32; 3]; 3] = [
    [0.650_032, 0.704_031, 0.286_013],
    [0.070_377, 0.990_425, 0.118_573],
    [0.268_148, 0.570_312, 0.776_427],
];

/// Unmixes the stains, scales each by `gain` and shifts it by `offset`, and mixes them again.
pub fn stain_jitter(image: &Rgb, gain: [f32; 3], offset: [f32; 3]) -> Rgb {
    let unmix = inverse(STAINS);
    let mut data = widen(image);
    for pixel in data.as_chunks_mut::<3>().0 {
        let density = pixel.map(|v| -((v + 1.0) / 256.0).ln());
        let mut stain = product(density, unmix);
        (0..3).for_each(|s| stain[s] = stain[s] * gain[s] + offset[s]);
        *pixel = product(stain, STAINS).map(|d| 256.0 * (-d).exp() - 1.0);
    }
    narrow(image, data)
}

/// Turns the hue by `degrees`: the chroma plane of YIQ rotates, luma stays.
pub fn hue_turn(image: &Rgb, degrees: f32) -> Rgb {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let mut data = widen(image);
    for pixel in data.as_chunks_mut::<3>().0 {
        let [r, g, b] = *pixel;
        let y = 0.299 * r + 0.587 * g + 0.114 * b;
        let i = 0.596 * r - 0.274 * g - 0.322 * b;
        let q = 0.211 * r - 0.523 * g + 0.312 * b;
        let (i, q) = (cos * i - sin * q, sin * i + cos * q);
        *pixel = [y + 0.956 * i + 0.621 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q];
    }
    narrow(image, data)
}

/// Scales the distance of every channel from its mean over the tile.
pub fn contrast(image: &Rgb, factor: f32) -> Rgb {
    let mut data = widen(image);
    let mean = means(&data);
    for pixel in data.as_chunks_mut::<3>().0 {
        (0..3).for_each(|c| pixel[c] = mean[c] + factor * (pixel[c] - mean[c]));
    }
    narrow(image, data)
}

/// Adds `amount` times the difference between the image and its blur of radius `sigma`.
pub fn unsharp(image: &Rgb, sigma: f32, amount: f32) -> Rgb {
    let sharp = widen(image);
    let soft = blur_f32(&sharp, image.width, image.height, sigma);
    narrow(image, sharp.iter().zip(&soft).map(|(x, s)| x + amount * (x - s)).collect())
}

/// Gaussian blur of standard deviation `sigma` pixels, which must be positive.
pub fn blur(image: &Rgb, sigma: f32) -> Rgb {
    narrow(image, blur_f32(&widen(image), image.width, image.height, sigma))
}

/// Gaussian blur of standard deviation `radius` pixels, edges repeated, cut at 3 deviations.
fn blur_f32(data: &[f32], width: usize, height: usize, radius: f32) -> Vec<f32> {
    let reach = (3.0 * radius).ceil() as usize;
    let bell = |i: usize| (-0.5 * (i as f32 / radius).powi(2)).exp();
    let sum = bell(0) + 2.0 * (1..=reach).map(bell).sum::<f32>();
    let taps: Vec<f32> = (0..=2 * reach).map(|i| bell(i.abs_diff(reach)) / sum).collect();
    let across = blur_lines(data, &taps, width, height, 1, width);
    blur_lines(&across, &taps, height, width, width, 1)
}

/// Blurs `lines` lines of `length` pixels, `step` apart along and `stride` apart across.
fn blur_lines(
    data: &[f32],
    taps: &[f32],
    length: usize,
    lines: usize,
    step: usize,
    stride: usize,
) -> Vec<f32> {
    let reach = (taps.len() / 2) as isize;
    let mut out = vec![0.0; data.len()];
    for line in 0..lines {
        for i in 0..length {
            let mut sum = [0f32; 3];
            for (t, weight) in taps.iter().enumerate() {
                let from = (i as isize + t as isize - reach).clamp(0, length as isize - 1) as usize;
                let at = 3 * (line * stride + from * step);
                (0..3).for_each(|c| sum[c] += weight * data[at + c]);
            }
            let at = 3 * (line * stride + i * step);
            out[at..at + 3].copy_from_slice(&sum);
        }
    }
    out
}

fn widen(image: &Rgb) -> Vec<f32> {
    image.data.iter().map(|&v| f32::from(v)).collect()
}

/// Rounds and clips to 0..=255, in the shape of `like`.
fn narrow(like: &Rgb, data: Vec<f32>) -> Rgb {
    let data = data.into_iter().map(|v| (v + 0.5).clamp(0.0, 255.0) as u8).collect();
    Rgb { width: like.width, height: like.height, data }
}

fn means(data: &[f32]) -> [f32; 3] {
    let n = (data.len() / 3).max(1) as f64;
    [0, 1, 2].map(|c| {
        let sum: f64 = data.iter().skip(c).step_by(3).map(|&v| f64::from(v)).sum();
        (sum / n) as f32
    })
}

/// Row vector times matrix.
fn product(v: [f32; 3], m: [[f32; 3]; 3]) -> [f32; 3] {
    [0, 1, 2].map(|c| v[0] * m[0][c] + v[1] * m[1][c] + v[2] * m[2][c])
}

/// Inverse by cofactors; the stain matrix is far from singular.
fn inverse(m: [[f32; 3]; 3]) -> [[f32; 3]; 3] {
    let minor = |r: usize, c: usize| {
        let (a, b) = ((r + 1) % 3, (r + 2) % 3);
        let (x, y) = ((c + 1) % 3, (c + 2) % 3);
        m[a][x] * m[b][y] - m[a][y] * m[b][x]
    };
    let determinant: f32 = (0..3).map(|c| m[0][c] * minor(0, c)).sum();
    [0, 1, 2].map(|r| [0, 1, 2].map(|c| minor(c, r) / determinant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(w: usize, h: usize) -> Rgb {
        let s = Stream::new(1, 0, 0, Purpose::Test);
        let data = (0..3 * w * h).map(|i| 60 + (s.word(i) % 140) as u8).collect();
        Rgb::new(w, h, data).unwrap()
    }

    #[test]
    fn the_eight_symmetries_are_distinct_and_keep_the_pixels() {
        let image = noise(4, 4);
        let all: Vec<Rgb> = (0..8).map(|i| D4::new(i).apply(&image)).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{i}");
            let sorted = |x: &Rgb| {
                let mut v = x.data.clone();
                v.sort_unstable();
                v
            };
            assert_eq!(sorted(a), sorted(&image));
        }
        assert_eq!(D4::new(4).apply(&noise(3, 5)).pixel(4, 2), noise(3, 5).pixel(2, 4));
    }

    #[test]
    fn downscaling_takes_means_and_sharpening_keeps_a_flat_image() {
        let image = Rgb::new(2, 2, vec![0, 10, 1, 2, 20, 1, 4, 30, 1, 6, 40, 2]).unwrap();
        assert_eq!(downscale(&image, 2).unwrap().data, [3, 25, 1]);
        let flat = Rgb::filled(9, 7, [10, 200, 33]);
        assert_eq!(unsharp(&flat, 2.0, 3.0), flat);
        let sharp = noise(16, 16);
        let sd = |x: &Rgb| grey_sd(x, 0, 0, 16, 16);
        assert!(sd(&unsharp(&sharp, 1.0, -1.0)) < 0.5 * sd(&sharp));
        assert!(sd(&unsharp(&sharp, 1.5, 2.0)) > 1.2 * sd(&sharp));
    }

    #[test]
    fn neutral_parameters_change_nothing_and_others_do() {
        let image = noise(8, 8);
        let near = |a: &Rgb, b: &Rgb| a.data.iter().zip(&b.data).all(|(x, y)| x.abs_diff(*y) <= 1);
        assert!(near(&stain_jitter(&image, [1.0; 3], [0.0; 3]), &image));
        assert!(near(&hue_turn(&image, 0.0), &image));
        assert!(near(&contrast(&image, 1.0), &image));
        for kind in Counterfactual::ALL {
            let a = kind.apply(&image, 3, 9);
            assert_eq!(a, kind.apply(&image, 3, 9), "{kind:?} is not repeatable");
            assert_ne!(a, kind.apply(&image, 3, 10), "{kind:?} ignores the example");
            assert!(!near(&a, &image), "{kind:?} does nothing");
        }
    }

    #[test]
    fn strengths_stay_in_their_ranges() {
        for i in 0..=100 {
            let g = stain_gain(i as f32 / 100.0);
            assert!((0.5..=1.5).contains(&g) && (g - 1.0).abs() >= 0.2 - 1e-6, "{g}");
        }
    }

    #[test]
    fn windows_are_repeatable_and_inside() {
        let image = noise(12, 10);
        let a = window(&image, 6, 1, 5).unwrap();
        assert_eq!(a, window(&image, 6, 1, 5).unwrap());
        assert!((0..20).any(|e| window(&image, 6, 1, e).unwrap() != a));
        assert!(window(&image, 11, 1, 0).is_err());
        assert_eq!(centre(&image, 4).unwrap().pixel(0, 0), image.pixel(4, 3));
    }
}
