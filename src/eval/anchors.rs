//! Anchors: real tiles made worse in ways everyone can picture, so that a distance can be read.
//!
//! "91" says nothing; "between real tiles blurred by 1 and by 2 pixels" does.

use super::tiles::Tiles;

/// Standard deviations, in pixels, of the blur anchors.
pub const BLURS: [f64; 3] = [0.5, 1.0, 2.0];

/// Every tile blurred by a Gaussian of standard deviation `sigma` pixels.
pub fn blurred(tiles: &Tiles, sigma: f64) -> Tiles {
    let (w, h) = (tiles.width(), tiles.height());
    tiles.map(format!("{}, blurred by {sigma} px", tiles.name()), |p| blur(p, w, h, sigma))
}

/// Every tile replaced by its own mean colour: all structure gone, stain kept.
pub fn mean_colour(tiles: &Tiles) -> Tiles {
    tiles.map(format!("{}, mean colour only", tiles.name()), |p| {
        let n = (p.len() / 3) as u64;
        let mean = |c: usize| {
            let sum: u64 = p.iter().skip(c).step_by(3).map(|&v| u64::from(v)).sum();
            ((sum + n / 2) / n) as u8
        };
        [mean(0), mean(1), mean(2)].repeat(n as usize)
    })
}

/// Separable Gaussian blur of an RGB tile `[h, w, 3]`, cut at three deviations; beyond the border the
/// border pixel repeats. One rounding, at the end. `sigma` of 0 or less returns the tile.
pub fn blur(rgb: &[u8], w: usize, h: usize, sigma: f64) -> Vec<u8> {
    if sigma.is_nan() || sigma <= 0.0 {
        return rgb.to_vec();
    }
    let reach = (3.0 * sigma).ceil() as isize;
    let bell = |i: isize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(bell).sum();
    let taps: Vec<f32> = (-reach..=reach).map(|i| (bell(i) / total) as f32).collect();
    let near = |at: usize, tap: usize, len: usize| {
        (at as isize + tap as isize - reach).clamp(0, len as isize - 1) as usize
    };
    let mut rows = vec![0f32; rgb.len()];
    for y in 0..h {
        for x in 0..w {
            for (tap, weight) in taps.iter().enumerate() {
                let from = (y * w + near(x, tap, w)) * 3;
                for c in 0..3 {
                    rows[(y * w + x) * 3 + c] += weight * f32::from(rgb[from + c]);
                }
            }
        }
    }
    let mut line = vec![0f32; w * 3];
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..h {
        line.fill(0.0);
        for (tap, weight) in taps.iter().enumerate() {
            let from = near(y, tap, h) * w * 3;
            let source = &rows[from..from + w * 3];
            line.iter_mut().zip(source).for_each(|(o, s)| *o += weight * s);
        }
        out.extend(line.iter().map(|v| v.round().clamp(0.0, 255.0) as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_tile_stays_flat_up_to_its_border() {
        let flat = [10, 200, 77].repeat(35);
        assert_eq!(blur(&flat, 7, 5, 2.0), flat);
        assert_eq!(blur(&flat, 7, 5, 0.0), flat);
    }

    #[test]
    fn a_point_becomes_the_bell() {
        let (w, h, sigma) = (21, 21, 1.5);
        let mut point = vec![0u8; w * h * 3];
        point[(10 * w + 10) * 3 + 1] = 255;
        let b = blur(&point, w, h, sigma);
        for (dx, dy) in [(0usize, 0usize), (1, 0), (2, 1), (0, 3)] {
            let r2 = (dx * dx + dy * dy) as f64;
            let want =
                255.0 * (-0.5 * r2 / sigma / sigma).exp() / (std::f64::consts::TAU * sigma * sigma);
            let got = f64::from(b[((10 + dy) * w + 10 + dx) * 3 + 1]);
            // Half a unit of rounding, and the tail cut at three deviations.
            assert!((got - want).abs() <= 0.5 + 0.006 * want, "{dx} {dy}: {got} {want}");
        }
        assert!(b.iter().step_by(3).all(|&r| r == 0), "channels do not mix");
    }

    #[test]
    fn mean_colour_is_the_mean() {
        let t = Tiles::new("t", 2, 1, vec![vec![0, 10, 255, 1, 20, 255]]).unwrap();
        assert_eq!(mean_colour(&t).pixels()[0], [1, 15, 255, 1, 15, 255]);
        assert_eq!(mean_colour(&t).name(), "t, mean colour only");
    }
}
