//! Which part of a slide is tissue.

use crate::io::images::Rgb;

/// Saturation below which nothing is tissue, whatever Otsu's threshold says of an empty slide.
const LEAST: u8 = 12;
/// Above it everything stained is: a slide full of tissue has no glass to be told from.
const MOST: u8 = 60;
/// Darker than this is ink, a shadow or the edge of the glass.
const DARK: u8 = 40;

/// Tissue or not, for each pixel of a small picture of a slide.
pub struct Mask {
    width: usize,
    height: usize,
    /// Number of tissue pixels above and left of each corner, (width + 1) x (height + 1).
    sums: Vec<u32>,
}

impl Mask {
    /// Finds the tissue of a picture: saturated beyond Otsu's threshold, in the hues of
    /// haematoxylin and eosin, and not black.
    pub fn of(image: &Rgb) -> Self {
        let pixels = image.data.as_chunks::<3>().0;
        let mut histogram = [0u64; 256];
        pixels.iter().for_each(|p| histogram[usize::from(saturation(*p))] += 1);
        let threshold = otsu(&histogram).clamp(LEAST, MOST);
        let tissue = |p: [u8; 3]| {
            let bright = p.iter().max().is_some_and(|&v| v >= DARK);
            // Red and blue are above green in stained tissue; pen marks of green are not.
            let stained = p[1] < p[0].max(p[2]);
            saturation(p) > threshold && bright && stained
        };
        let (width, height) = (image.width, image.height);
        let mut sums = vec![0u32; (width + 1) * (height + 1)];
        for y in 0..height {
            let mut line = 0;
            for x in 0..width {
                line += u32::from(tissue(pixels[y * width + x]));
                sums[(y + 1) * (width + 1) + x + 1] = sums[y * (width + 1) + x + 1] + line;
            }
        }
        Self { width, height, sums }
    }

    /// Share of tissue in a window; corner and size are shares of the slide's width and height.
    pub fn share(&self, (x, y): (f64, f64), (w, h): (f64, f64)) -> f64 {
        let at = |v: f64, n: usize| ((v * n as f64).round() as usize).min(n);
        let (x0, y0) = (at(x, self.width), at(y, self.height));
        let x1 = at(x + w, self.width).max(x0 + 1).min(self.width);
        let y1 = at(y + h, self.height).max(y0 + 1).min(self.height);
        let sum = |x: usize, y: usize| u64::from(self.sums[y * (self.width + 1) + x]);
        let area = (x1.saturating_sub(x0) * y1.saturating_sub(y0)).max(1);
        let tissue = sum(x1, y1) + sum(x0, y0) - sum(x0, y1) - sum(x1, y0);
        tissue as f64 / area as f64
    }
}

/// How much colour a pixel has beside grey: the spread of its channels.
fn saturation(p: [u8; 3]) -> u8 {
    let [r, g, b] = p;
    r.max(g).max(b) - r.min(g).min(b)
}

/// Otsu's threshold: values above it and not above it differ most from each other.
pub fn otsu(histogram: &[u64; 256]) -> u8 {
    let all: u64 = histogram.iter().sum();
    let moment: f64 = histogram.iter().enumerate().map(|(v, &n)| v as f64 * n as f64).sum();
    let (mut below, mut part) = (0u64, 0f64);
    let (mut best, mut threshold) = (-1.0, 0);
    for (v, &n) in histogram.iter().enumerate() {
        below += n;
        part += v as f64 * n as f64;
        let above = all - below;
        if below == 0 || above == 0 {
            continue;
        }
        let apart = part / below as f64 - (moment - part) / above as f64;
        let between = below as f64 * above as f64 * apart * apart;
        if between > best {
            (best, threshold) = (between, v as u8);
        }
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otsu_parts_two_heaps() {
        let mut histogram = [0; 256];
        (3..9).for_each(|v| histogram[v] = 100);
        (80..120).for_each(|v| histogram[v] = 7);
        assert_eq!(otsu(&histogram), 8);
        assert_eq!(otsu(&[0; 256]), 0);
    }

    #[test]
    fn stained_pixels_are_tissue_and_glass_ink_and_green_are_not() {
        let mut image = Rgb::filled(40, 20, [243, 242, 245]);
        let paint = |image: &mut Rgb, x0: usize, colour: [u8; 3]| {
            let patch = Rgb::filled(10, 10, colour);
            image.paste(&patch, x0, 0).unwrap();
        };
        paint(&mut image, 0, [190, 110, 170]);
        paint(&mut image, 10, [20, 20, 25]);
        paint(&mut image, 20, [30, 160, 60]);
        let mask = Mask::of(&image);
        assert_eq!(mask.share((0.0, 0.0), (0.25, 0.5)), 1.0);
        assert_eq!(mask.share((0.25, 0.0), (0.75, 0.5)), 0.0);
        assert_eq!(mask.share((0.0, 0.0), (1.0, 1.0)), 0.125);
        let glass = Mask::of(&Rgb::filled(8, 8, [240, 241, 239]));
        assert_eq!(glass.share((0.0, 0.0), (1.0, 1.0)), 0.0, "Otsu finds a threshold in noise");
        let full = Mask::of(&Rgb::filled(8, 8, [200, 110, 170]));
        assert_eq!(full.share((0.0, 0.0), (1.0, 1.0)), 1.0, "no glass to compare with");
    }
}
