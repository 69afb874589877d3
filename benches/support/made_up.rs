//! A made-up data set of any size: tissue-like tiles of two slides and a profile for each.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use genevar::Result;
use genevar::config::Config;
use genevar::data::pack::{BuildSpec, Cut, GeneRule, Notice, Pack, RnaSource, build};
use genevar::data::pairs::{Join, Unit};
use genevar::data::source::RnaOptions;
use genevar::data::tiles::TileColumns;
use genevar::io::images::{self, Rgb};
use genevar::tensor::{Purpose, Stream};

/// Tiles with a profile.
const TILES: usize = 24;

/// Writes the set into `folder` and packs it: tiles and genes as the configuration wants them.
pub fn pack(folder: &Path, config: &Config) -> Result<Pack> {
    let (side, genes) = (config.msvq.image, config.beta_vae.genes);
    let mut tiles = String::from("tile\tsection\tpatient\tsplit\n");
    let mut rna = String::from("sample");
    (0..genes).for_each(|g| write!(rna, "\tG{g}").unwrap());
    for i in 0..TILES {
        writeln!(tiles, "t{i}.png\tS{}\tP{}\ttrain", i % 2, i % 2).unwrap();
        images::write_png(folder.join(format!("t{i}.png")), &tissue(i, side))?;
        let draw = Stream::new(9, i as u64, 0, Purpose::Test);
        write!(rna, "\nt{i}").unwrap();
        (0..genes).for_each(|g| write!(rna, "\t{}", draw.below(g, 40)).unwrap());
    }
    let file = |name: &str, text: &str| -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let out = folder.join("pack.safetensors");
    build(&BuildSpec {
        out: out.clone(),
        table: Some(file("tiles.tsv", &tiles)),
        folder: folder.to_path_buf(),
        columns: TileColumns::default(),
        rna: RnaSource {
            files: vec![(String::new(), file("rna.tsv", &rna))],
            options: RnaOptions::default(),
        },
        join: Join::Tile,
        unit: Unit::Section,
        free: Vec::new(),
        cut: Cut::exact(side, 1),
        quality: None,
        genes: None,
        rule: GeneRule::Detected,
        max_bytes: u64::MAX,
        notice: Notice { licence: "CC0".into(), text: "made up for a measurement".into() },
        skip_bad: false,
    })?;
    Pack::open(out)
}

/// Pink ground with dark round nuclei.
fn tissue(i: usize, side: usize) -> Rgb {
    let draw = Stream::new(4, i as u64, 0, Purpose::Test);
    let nuclei: Vec<[usize; 2]> =
        (0..40).map(|b| [draw.below(2 * b, side), draw.below(2 * b + 1, side)]).collect();
    let mut image = Rgb::filled(side, side, [0; 3]);
    for (at, pixel) in image.data.chunks_exact_mut(3).enumerate() {
        let (x, y) = (at % side, at / side);
        let near = |n: &[usize; 2]| x.abs_diff(n[0]).pow(2) + y.abs_diff(n[1]).pow(2);
        let d = nuclei.iter().map(near).min().unwrap_or(60).min(60) as u8;
        pixel.copy_from_slice(&[100 + 2 * d, 60 + 2 * d, 140 + d]);
    }
    image
}
