//! From tiles to features: resize, network, one row a tile.
//!
//! The network is EfficientNet-Lite0, which comes with the repository, or FID's Inception-v3 with
//! weights that a person brings.

use std::path::{Path, PathBuf};

use super::Features;
use super::effnet::{self, EfficientNet};
use super::inception::{self, Inception};
use super::tiles::Tiles;
use crate::device::cpu::each;
use crate::error::{Error, Result, Within};

/// The side the network was trained at, and to which tiles are resized.
pub const INPUT: usize = 224;

/// Where the weights lie in the repository.
const WEIGHTS: &str = "tools/demo/efficientnet_lite0_f16.safetensors";

/// The weights that come with the repository: below the working directory, else where it was built.
pub fn default_weights() -> PathBuf {
    let here = PathBuf::from(WEIGHTS);
    match here.exists() {
        true => here,
        false => Path::new(env!("CARGO_MANIFEST_DIR")).join(WEIGHTS),
    }
}

/// Turns tiles into features.
pub struct Extractor {
    net: Net,
    name: String,
    side: usize,
}

enum Net {
    EffNet(EfficientNet),
    Inception(Inception),
}

impl Extractor {
    /// EfficientNet-Lite0; tiles are resized to [`INPUT`].
    ///
    /// # Errors
    /// As [`EfficientNet::load`].
    pub fn load(weights: &Path) -> Result<Self> {
        let net = Net::EffNet(EfficientNet::load(weights)?);
        Ok(Self { net, name: "FD-EffNet (EfficientNet-Lite0".into(), side: INPUT })
    }

    /// FID's Inception-v3; tiles are resized to 299 pixels, as pytorch-fid does.
    ///
    /// # Errors
    /// As [`Inception::load`].
    pub fn inception(weights: &Path) -> Result<Self> {
        let net = Net::Inception(Inception::load(weights)?);
        let file = weights.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("FD-Inception (Inception-v3 of {file}, pool3");
        Ok(Self { net, name, side: inception::SIDE })
    }

    /// Works at another side, a multiple of 32; distances at different sides do not compare.
    ///
    /// # Errors
    /// `Config` for another side, or for Inception, which has one.
    pub fn at(mut self, side: usize) -> Result<Self> {
        let what = format!("is {side}");
        if matches!(self.net, Net::Inception(_)) {
            return Err(Error::config(
                "eval.input",
                what,
                "leave it out: Inception has 299 pixels",
            ));
        }
        if side == 0 || !side.is_multiple_of(32) {
            return Err(Error::config("eval.input", what, "give a multiple of 32, such as 224"));
        }
        self.side = side;
        Ok(self)
    }

    /// What a distance in these features is called.
    pub fn name(&self) -> String {
        format!("{} at {} px)", self.name, self.side)
    }

    /// Features a tile.
    pub fn features(&self) -> usize {
        match self.net {
            Net::EffNet(_) => effnet::FEATURES,
            Net::Inception(_) => inception::FEATURES,
        }
    }

    /// The features of every tile, in order. Tiles are spread over threads, each whole on one, so
    /// the result does not depend on how many there are.
    ///
    /// # Errors
    /// `NotFinite` or `Shape` from a network that does not fit, naming the set and the tile.
    pub fn extract(&self, tiles: &Tiles) -> Result<Features> {
        self.extract_each(tiles, &|| ())
    }

    /// As [`Extractor::extract`], calling `done` after each tile, from any thread.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub fn extract_each(&self, tiles: &Tiles, done: &(dyn Fn() + Sync)) -> Result<Features> {
        let (w, h) = tiles.size();
        let all: Vec<usize> = (0..tiles.n()).collect();
        let rows = each(&all, |&i| {
            let image = resize(&tiles.tile(i)?.data, w, h, self.side);
            let row = match &self.net {
                Net::EffNet(net) => net.features(&image, self.side),
                Net::Inception(net) => net.features(&image),
            };
            let row = row.within(format_args!("{}: tile {i}", tiles.name()))?;
            done();
            Ok(row)
        })?;
        Features::new(tiles.name(), tiles.n(), self.features(), rows.concat())
    }
}

/// Bilinear resize to a square, sampling at pixel centres, borders repeated; no rounding to bytes.
///
/// Shrinking does not widen the filter: from 256 to 224 pixels, the usual case, that is invisible.
fn resize(rgb: &[u8], w: usize, h: usize, side: usize) -> Vec<f32> {
    if w == side && h == side {
        return rgb.iter().map(|&v| f32::from(v)).collect();
    }
    let (xs, ys) = (taps(w, side), taps(h, side));
    let mut out = Vec::with_capacity(side * side * 3);
    for &(y0, y1, fy) in &ys {
        for &(x0, x1, fx) in &xs {
            for c in 0..3 {
                let at = |y: usize, x: usize| f32::from(rgb[(y * w + x) * 3 + c]);
                let top = at(y0, x0) + fx * (at(y0, x1) - at(y0, x0));
                let low = at(y1, x0) + fx * (at(y1, x1) - at(y1, x0));
                out.push(top + fy * (low - top));
            }
        }
    }
    out
}

/// For each place on the new axis its two neighbours on the old one and the share of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let step = from as f64 / to as f64;
    let one = |i: usize| {
        let at = ((i as f64 + 0.5) * step - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), (at - low as f64) as f32)
    };
    (0..to).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::images::Rgb;
    use crate::io::safetensors::TensorFile;

    /// Largest difference between our features and the reference's, on its own images.
    fn parity(weights: &Path, reference: &Path, side: usize) -> f64 {
        let file = TensorFile::open(reference).unwrap();
        let &[n, h, w, _] = file.shape("rgb_u8").unwrap() else { panic!("not images") };
        let images = file.bytes("rgb_u8").unwrap().chunks(h * w * 3);
        let images = images.map(|rgb| Rgb::new(w, h, rgb.to_vec()).unwrap()).collect();
        let tiles = Tiles::new("reference", images).unwrap();
        let got = Extractor::load(weights).unwrap().at(side).unwrap().extract(&tiles).unwrap();
        assert_eq!((got.n(), got.d()), (n, effnet::FEATURES));
        let want = file.tensor("features").unwrap().to_f64s();
        got.data().iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn resizing_keeps_flat_tiles_and_ramps() {
        let flat = [9u8, 80, 200].repeat(64 * 64);
        assert!(resize(&flat, 64, 64, 224).chunks(3).all(|p| p == [9.0, 80.0, 200.0]));
        let ramp: Vec<u8> = (0..64 * 64).flat_map(|i| [(i % 64 * 4) as u8; 3]).collect();
        let big = resize(&ramp, 64, 64, 128);
        // Away from the border a ramp stays a ramp: half the slope, and half a pixel's offset.
        for x in 1..127 {
            let want = ((x as f32 + 0.5) / 2.0 - 0.5) * 4.0;
            assert!((big[x * 3] - want).abs() < 1e-4, "{x}");
        }
        assert_eq!(resize(&ramp, 64, 64, 64)[3], 4.0);
    }

    /// The weights in the repository are f16 (7 MB, not 19), normalisation excepted. That moves a
    /// feature by 0.017 at most on these tiles, and the distance between two sets of real tiles by
    /// 0.3 %.
    #[test]
    fn agrees_with_the_reference_network_up_to_f16_weights() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/demo");
        let reference = demo.join("feature_reference.safetensors");
        let worst = parity(&default_weights(), &reference, 256);
        assert!(worst < 0.03, "{worst}");
    }

    /// With the original f32 weights nothing but rounding is left. They are too large for the
    /// repository; where a checkout has them beside it (`shared/data`), this runs.
    #[test]
    fn agrees_with_the_reference_network_exactly_given_its_f32_weights() {
        let at = |root: &Path| root.join("shared/data/feature_extractor");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Some(folder) = root.ancestors().map(at).find(|f| f.exists()) else { return };
        let weights = folder.join("efficientnet_lite0_imagenet_f32.safetensors");
        let worst = parity(&weights, &folder.join("reference_io.safetensors"), 256);
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn a_damaged_or_foreign_weight_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let load = || EfficientNet::load(&path).err().unwrap().to_string();
        assert!(load().contains("w.safetensors"), "{}", load());
        let whole = std::fs::read(default_weights()).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(load().contains("w.safetensors"), "{}", load());
        let reference = default_weights().with_file_name("feature_reference.safetensors");
        std::fs::copy(reference, &path).unwrap();
        assert!(load().contains("_bn0.weight"), "{}", load());
    }
}
