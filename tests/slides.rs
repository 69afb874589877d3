//! Whole slides: tissue found, tiles cut at the scale that was asked for.
//!
//! The cutting is shown on a made-up pyramid in every run; reading a real .svs needs OpenSlide, and
//! says that it was skipped where there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use genevar::data::slide::{Flat, Pyramid, SlideCut, plan};
use genevar::device::openslide::{self, Level};
use genevar::error::Result;
use genevar::io::images::{self, Expect, Rgb};

const GLASS: [u8; 3] = [243, 242, 245];
const STAIN: [u8; 3] = [205, 140, 190];

/// A slide of 1024 x 512 pixels of 0.25 um whose left half is stained, in three levels. What was
/// read of a level is told by its blue.
struct Fake {
    levels: [Level; 3],
}

fn fake() -> Fake {
    let level = |by: u64| Level { width: 1024 / by, height: 512 / by, downsample: by as f64 };
    Fake { levels: [1, 2, 8].map(level) }
}

impl Pyramid for Fake {
    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn um_per_px(&self) -> Option<f64> {
        Some(0.25)
    }

    fn read(&self, level: usize, at: (u64, u64), (width, height): (usize, usize)) -> Result<Rgb> {
        let by = self.levels[level].downsample;
        let pixel = |i: usize| {
            let x = at.0 as f64 + (i % width) as f64 * by;
            let [r, g, b] = if x < 512.0 { STAIN } else { GLASS };
            [r, g, b - level as u8]
        };
        Rgb::new(width, height, (0..width * height).flat_map(pixel).collect())
    }
}

fn cut(tile_px: usize, mpp: f64, min_tissue: f64) -> SlideCut {
    SlideCut { tile_px, mpp, slide_mpp: None, min_tissue }
}

#[test]
fn tiles_are_cut_where_tissue_is_at_the_scale_that_is_wanted() {
    // 64 pixels at 0.5 um are 128 of the slide's: 8 x 4 tiles, half of them stained.
    let how = cut(64, 0.5, 0.2);
    let tiles = plan(&fake(), &how).unwrap();
    assert_eq!((tiles.all, tiles.places.len(), tiles.side()), (32, 16, 128.0));
    assert_eq!(tiles.places[5].corner, (128, 128));
    assert!(tiles.places.iter().all(|p| p.corner.0 < 512 && p.tissue == 1.0));
    let tile = tiles.tile(&fake(), &tiles.places[0], 64).unwrap();
    let [r, g, b] = STAIN;
    assert_eq!(tile, Rgb::filled(64, 64, [r, g, b - 1]), "level 1 is just fine enough");
    // Between the levels, the finer one is read and shrunk.
    let tiles = plan(&fake(), &cut(64, 0.75, 0.2)).unwrap();
    let tile = tiles.tile(&fake(), &tiles.places[0], 64).unwrap();
    assert_eq!((tile.width, tile.pixel(3, 3)), (64, [r, g, b - 1]));
    assert_eq!(tiles.side(), 192.0);
}

#[test]
fn the_least_share_of_tissue_decides_at_the_edge() {
    // 100 pixels at 1 um are 400 of the slide's: the second tile holds 112 stained columns, 28 %.
    let kept = |least: f64| plan(&fake(), &cut(100, 1.0, least)).unwrap().places.len();
    assert_eq!((kept(0.2), kept(0.35), kept(0.0)), (2, 1, 2));
}

#[test]
fn a_slide_of_one_level_or_without_a_scale() {
    let mut image = Rgb::filled(300, 200, GLASS);
    image.paste(&Rgb::filled(100, 200, STAIN), 0, 0).unwrap();
    let flat = Flat::new(image);
    let e = plan(&flat, &cut(50, 0.5, 0.2)).err().unwrap();
    assert!(e.to_string().contains("--slide-mpp") && e.exit_code() == 2, "{e}");
    let how = SlideCut { slide_mpp: Some(0.5), ..cut(50, 0.5, 0.2) };
    let tiles = plan(&flat, &how).unwrap();
    assert_eq!((tiles.all, tiles.places.len()), (24, 8));
    for mpp in [0.0, -1.0, f64::NAN, 1e9] {
        let e = plan(&flat, &SlideCut { mpp, ..how }).err().unwrap();
        assert!(e.to_string().contains("--mpp"), "{e}");
    }
}

fn genevar(args: &[&Path]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_genevar")).args(args).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(told).unwrap())
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slides/small.svs")
}

#[test]
fn openslide_reads_a_slide_or_is_named_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiles");
    let flags: Vec<&Path> = ["data", "cut", "--tile-px", "64"].map(Path::new).to_vec();
    let slide = fixture();
    let args = [&flags[..], &[&slide, Path::new("--out"), &out]].concat();
    let (done, told) = genevar(&args);
    if let Err(e) = openslide::version() {
        assert!(!done && told.contains("OpenSlide") && told.contains("install"), "{told}");
        eprintln!("skipped: reading a slide needs OpenSlide ({e})");
        return;
    }
    assert!(done, "{told}");
    // 64 pixels at 0.5 um are 128 of the slide: 4 x 3 places, the disc touches the left nine.
    assert!(told.contains("of 12 tiles hold tissue"), "{told}");
    let table = std::fs::read_to_string(out.join("tiles.tsv")).unwrap();
    assert!(
        table.contains("small_x128_y128.png\tsmall\tsmall\ttrain\t128\t128\t0.5\t1.000"),
        "{table}"
    );
    assert!(!table.contains("_x384_"), "glass was taken: {table}");
    let tile = images::read(out.join("small_x128_y128.png"), Expect::tile(64, 64)).unwrap();
    let stained = tile.data.as_chunks::<3>().0.iter().filter(|p| **p == STAIN).count();
    assert!(stained > 2000, "{stained} of 4096 pixels have the colour of the stain");
}

#[test]
fn a_library_that_is_not_there_is_said_and_doctor_says_what_is() {
    let run = |library: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_genevar"));
        let output = command.arg("doctor").env("GENEVAR_OPENSLIDE", library).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = run("no-such-library.so");
    assert!(told.contains("OpenSlide") && told.contains("no-such-library.so"), "{told}");
    let folder = tempfile::tempdir().unwrap();
    let slide = folder.path().join("x.svs");
    std::fs::write(&slide, "no slide").unwrap();
    let out = folder.path().join("out");
    let args = ["data", "cut", "--out"].map(Path::new);
    let (done, told) = genevar(&[&args[..], &[&out, &slide]].concat());
    assert!(!done && told.contains("genevar: "), "{told}");
}
