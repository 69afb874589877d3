//! A made-up data set: six tiles in four sections of two patients, written as a lab would ship it.

use std::io::Write;
use std::path::{Path, PathBuf};

use genevar::io::images::{self, Rgb};
use genevar::io::safetensors::Writer;
use genevar::tensor::{Purpose, Stream};

/// Side of every tile in pixels.
pub const SIDE: usize = 64;

/// The files, and what is in them.
pub struct Set {
    /// The tile table.
    pub table: PathBuf,
    /// The sparse counts.
    pub counts: PathBuf,
    /// Their gene list.
    pub genes: PathBuf,
    /// The tiles, in table order.
    pub images: Vec<Rgb>,
    /// The counts of each tile.
    pub dense: Vec<Vec<f32>>,
}

/// Tile, section, patient, row, split, class, left edge of the crop.
const TABLE: &str = "tile\tsection\tpatient\trow\tsplit\tclass\tcrop_x0\tcrop_y0\tum_per_px
a.png\tS1\tP1\t5\ttrain\tcancer\t128\t0\t0.5
b.png\tS1\tP1\t4\ttrain\timmune\t900\t900\t0.5
c.png\tS2\tP1\t3\tval\tcancer\t0\t0\t0.5
d.png\tS3\tP2\t2\ttest\timmune\t0\t0\t0.502
e.png\tS4\tP1\t1\ttrain\tcancer\t0\t0\t0.5
f.png\tS3\tP2\t0\ttest\t\t64\t64\t0.5
";

/// Rows of the count matrix; tile i uses row 5 - i. 254, 255 and 70,000 lie round the limits of a
/// byte and of 16 bits.
const COUNTS: [[u32; 5]; 6] = [
    [3, 0, 0, 9, 30_000],
    [254, 0, 0, 0, 300],
    [1, 0, 0, 255, 300],
    [70, 0, 1, 0, 301],
    [1, 65_000, 0, 0, 299],
    [255, 0, 7, 0, 300],
];

/// Writes the set into `folder`.
pub fn write_set(folder: &Path) -> Set {
    let table = folder.join("tiles.tsv");
    std::fs::write(&table, TABLE).unwrap();
    let genes = folder.join("genes.tsv");
    std::fs::write(&genes, "gene_index\tsymbol\n0\tG0\n1\tG1\n2\tG2\n3\tG3\n4\tG4\n").unwrap();
    let counts = folder.join("counts.safetensors");
    write_counts(&counts);
    let images: Vec<Rgb> = (0..6).map(tissue).collect();
    for (image, name) in images.iter().zip(["a", "b", "c", "d", "e", "f"]) {
        images::write_png(folder.join(format!("{name}.png")), image).unwrap();
    }
    let row = |i: usize| COUNTS[5 - i].map(|v| v as f32).to_vec();
    Set { table, counts, genes, images, dense: (0..6).map(row).collect() }
}

fn write_counts(path: &Path) {
    let mut starts = vec![0u32];
    let (mut columns, mut values) = (Vec::new(), Vec::new());
    for row in COUNTS {
        for (c, v) in row.into_iter().enumerate().filter(|(_, v)| *v > 0) {
            columns.push(c as u16);
            values.push(v as u16);
        }
        starts.push(columns.len() as u32);
    }
    let mut writer = Writer::new();
    writer.u32s("indptr", &[7], &starts).unwrap();
    writer.u16s("indices", &[columns.len()], &columns).unwrap();
    writer.u16s("counts", &[values.len()], &values).unwrap();
    writer.u32s("shape", &[2], &[6, 5]).unwrap();
    writer.save(path).unwrap();
}

/// Pink ground with dark blobs: above the tissue threshold everywhere, and smooth enough for JPEG.
fn tissue(i: usize) -> Rgb {
    let draw = Stream::new(4, i as u64, 0, Purpose::Test);
    let blobs: Vec<[usize; 2]> =
        (0..40).map(|b| [draw.below(2 * b, SIDE), draw.below(2 * b + 1, SIDE)]).collect();
    let mut image = Rgb::filled(SIDE, SIDE, [0; 3]);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let near = |b: &[usize; 2]| x.abs_diff(b[0]).pow(2) + y.abs_diff(b[1]).pow(2);
            let d = blobs.iter().map(near).min().unwrap().min(60) as u8;
            let at = 3 * (y * SIDE + x);
            image.data[at..at + 3].copy_from_slice(&[100 + 2 * d, 60 + 2 * d, 140 + d]);
        }
    }
    image
}

/// Writes `text` as a gzip file.
pub fn gzip(path: &Path, text: &str) {
    let file = std::fs::File::create(path).unwrap();
    let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap();
}
