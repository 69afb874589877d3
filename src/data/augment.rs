//! Image operators: flips and rotations, free crops, resampling, blur. The counterfactual
//! ones are ops (`ops::augment`).
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

/// Resamples to `width` x `height` pixels, which must not be 0: linear between pixels where it
/// grows, and where it shrinks the mean of what a pixel covers, weighted by a triangle twice as
/// wide.
pub fn resize(image: &Rgb, width: usize, height: usize) -> Result<Rgb> {
    if [width, height, image.width, image.height].contains(&0) {
        let what = format!("{}x{} pixels to {width}x{height}", image.width, image.height);
        return Err(Error::shape("resize", what));
    }
    if (width, height) == (image.width, image.height) {
        return Ok(image.clone());
    }
    let across = taps(image.width, width);
    let mut rows = Vec::with_capacity(3 * width * image.height);
    for line in image.data.chunks(3 * image.width) {
        for (first, weights) in &across {
            let mut sum = [0f32; 3];
            for (k, weight) in weights.iter().enumerate() {
                let at = 3 * (first + k);
                (0..3).for_each(|c| sum[c] += weight * f32::from(line[at + c]));
            }
            rows.extend(sum);
        }
    }
    let mut data = Vec::with_capacity(3 * width * height);
    for (first, weights) in taps(image.height, height) {
        for i in 0..3 * width {
            let line = |(k, weight): (usize, &f32)| weight * rows[(first + k) * 3 * width + i];
            let sum: f32 = weights.iter().enumerate().map(line).sum();
            data.push((sum + 0.5).clamp(0.0, 255.0) as u8);
        }
    }
    Rgb::new(width, height, data)
}

/// For each of `to` pixels, the first of the `from` pixels it is made of and their weights.
fn taps(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let step = from as f64 / to as f64;
    let reach = step.max(1.0);
    let one = |i: usize| {
        let middle = (i as f64 + 0.5) * step;
        let first = (middle - reach).floor().max(0.0) as usize;
        let last = ((middle + reach).ceil() as usize).min(from);
        let weight = |p: usize| (1.0 - ((p as f64 + 0.5 - middle) / reach).abs()).max(0.0);
        let sum: f64 = (first..last).map(weight).sum();
        (first, (first..last).map(|p| (weight(p) / sum) as f32).collect())
    };
    (0..to).map(one).collect()
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
    fn downscaling_takes_means_and_blurring_keeps_a_flat_image() {
        let image = Rgb::new(2, 2, vec![0, 10, 1, 2, 20, 1, 4, 30, 1, 6, 40, 2]).unwrap();
        assert_eq!(downscale(&image, 2).unwrap().data, [3, 25, 1]);
        let flat = Rgb::filled(9, 7, [10, 200, 33]);
        assert_eq!(blur(&flat, 2.0), flat);
        let sharp = noise(16, 16);
        let sd = |x: &Rgb| grey_sd(x, 0, 0, 16, 16);
        assert!(sd(&blur(&sharp, 1.0)) < 0.5 * sd(&sharp));
    }

    #[test]
    fn resizing_keeps_flat_images_means_and_ramps() {
        let flat = Rgb::filled(7, 5, [10, 200, 33]);
        assert_eq!(resize(&flat, 13, 3).unwrap(), Rgb::filled(13, 3, [10, 200, 33]));
        let image = noise(40, 40);
        let mean =
            |x: &Rgb| x.data.iter().map(|&v| f64::from(v)).sum::<f64>() / x.data.len() as f64;
        assert!((mean(&resize(&image, 13, 17).unwrap()) - mean(&image)).abs() < 4.0);
        assert_eq!(resize(&image, 40, 40).unwrap(), image);
        let ramp = Rgb::new(4, 1, [0u8, 40, 80, 120].iter().flat_map(|&v| [v; 3]).collect());
        let wide = resize(&ramp.unwrap(), 8, 1).unwrap();
        let first: Vec<u8> = wide.data.iter().step_by(3).copied().collect();
        assert_eq!(first, [0, 10, 30, 50, 70, 90, 110, 120]);
        assert!(resize(&image, 0, 3).is_err());
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
