//! Anchors: real tiles made worse in ways everyone can picture, so that a distance can be read.
//!
//! "91" says nothing; "between real tiles blurred by 1 and by 2 pixels" does.

use super::tiles::Tiles;
use crate::data::augment;
use crate::io::images::Rgb;

/// Standard deviations, in pixels, of the blur anchors.
pub const BLURS: [f32; 3] = [0.5, 1.0, 2.0];

/// Every tile blurred by a Gaussian of standard deviation `sigma` pixels.
pub fn blurred(tiles: &Tiles, sigma: f32) -> Tiles {
    let name = format!("{}, blurred by {sigma} px", tiles.name());
    tiles.map(name, move |tile| augment::blur(tile, sigma))
}

/// Every tile replaced by its own mean colour: all structure gone, stain kept.
pub fn mean_colour(tiles: &Tiles) -> Tiles {
    tiles.map(format!("{}, mean colour only", tiles.name()), |tile| {
        let pixels = (tile.data.len() / 3) as u64;
        let mean = |c: usize| {
            let sum: u64 = tile.data.iter().skip(c).step_by(3).map(|&v| u64::from(v)).sum();
            ((sum + pixels / 2) / pixels) as u8
        };
        Rgb::filled(tile.width, tile.height, [mean(0), mean(1), mean(2)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_destroy_what_they_say_and_keep_the_rest() {
        let stripes = (0..32 * 32).flat_map(|i| [if i % 2 == 0 { 40 } else { 200 }, 90, 10]);
        let tile = Rgb::new(32, 32, stripes.collect()).unwrap();
        let tiles = Tiles::new("real", vec![tile; 3]).unwrap();
        let contrast = |t: &Tiles| {
            let tile = t.tile(1).unwrap();
            let red = || tile.data.iter().step_by(3);
            i32::from(*red().max().unwrap()) - i32::from(*red().min().unwrap())
        };
        let left: Vec<i32> = BLURS.iter().map(|&s| contrast(&blurred(&tiles, s))).collect();
        assert!(160 > left[0] && left[0] > left[1] && left[1] > left[2], "{left:?}");
        let flat = mean_colour(&tiles);
        assert_eq!((flat.n(), flat.tile(2).unwrap().pixel(5, 7)), (3, [120, 90, 10]));
        assert_eq!(flat.name(), "real, mean colour only");
    }
}
