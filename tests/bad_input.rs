//! Bad input at the level of the library: one clear error each, naming the file and the place, with
//! exit code 2, and nothing written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/data_set.rs"]
mod data_set;

use std::fs;
use std::path::Path;

use data_set::{SIDE, Set, gzip, write_set};
use genevar::data::pack::{BuildSpec, Cut, GeneRule, Notice, Pack, RnaSource, build};
use genevar::data::pairs::{Join, Unit};
use genevar::data::source::RnaOptions;
use genevar::data::tiles::TileColumns;
use genevar::error::{Error, Result};
use genevar::io::images::{self, Expect, Rgb};
use genevar::io::safetensors::{TensorFile, Writer};
use genevar::io::tables::{DenseSpec, Orientation, check_file_name, read_dense};

/// The result must be an error that a person can act on and that says each of `words`.
fn refused<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("nothing was refused; expected {words:?}") };
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2, "{text}");
    assert!(!matches!(error, Error::Internal(_)), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(text.contains(';') || text.starts_with("cannot"), "{text:?} says nothing to do");
}

fn image_file(folder: &Path, name: &str, bytes: &[u8], words: &[&str]) {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    let mut all = vec![name];
    all.extend(words);
    refused(images::read(&path, Expect::tile(SIDE, SIDE)), &all);
}

#[test]
fn images_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    refused(images::read(at.join("none.png"), Expect::any()), &["none.png", "cannot read"]);
    image_file(at, "empty.png", b"", &["0 bytes"]);
    image_file(at, "text.png", b"tile\tsection\n", &["not a PNG, JPEG or TIFF"]);
    let image = Rgb::filled(SIDE, SIDE, [200, 100, 150]);
    let png = images::encode_png(&image).unwrap();
    image_file(at, "cut.png", &png[..png.len() / 2], &["not a readable image"]);
    let mut bent = png.clone();
    bent[20] ^= 0xFF;
    image_file(at, "bent.png", &bent, &[]);
    let jpeg = images::encode_jpeg(&image, 90).unwrap();
    image_file(at, "cut.jpg", &jpeg[..jpeg.len() - 9], &["cut off"]);
    image_file(at, "head.jpg", &jpeg[..40], &["header"]);
    let small = images::encode_png(&Rgb::filled(9, SIDE, [9; 3])).unwrap();
    image_file(at, "small.png", &small, &["9x64", "expected 64x64"]);
    image_file(at, "cmyk.jpg", &cmyk_jpeg(), &["CMYK", "RGB"]);
    image_file(at, "cmyk.tif", &cmyk_tiff(), &["CMYK", "RGB"]);
    image_file(at, "deep.png", &png_of(image::ColorType::Rgb16), &["16 bits"]);
    image_file(at, "glass.png", &png_of(image::ColorType::Rgba8), &["transparent"]);
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.png");
    fs::write(&path, png_header(60_000, 50_000)).unwrap();
    for expect in [Expect::any(), Expect::section()] {
        refused(images::read(&path, expect), &["bomb.png", "60000x50000 pixels"]);
    }
}

#[test]
fn no_cut_or_bent_image_panics() {
    let image = Rgb::filled(16, 16, [200, 100, 150]);
    let path = Path::new("x");
    for whole in [images::encode_png(&image).unwrap(), images::encode_jpeg(&image, 80).unwrap()] {
        for n in 0..whole.len() {
            let mut bent = whole.clone();
            bent[n] ^= 0x5A;
            drop(images::decode(&bent, path, Expect::any()));
            let cut = images::decode(&whole[..n], path, Expect::tile(16, 16));
            assert!(cut.is_err() || n + 12 >= whole.len(), "{n} of {} bytes pass", whole.len());
        }
    }
}

fn table_file(folder: &Path, name: &str, bytes: &[u8], words: &[&str]) {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    let mut all = vec![name];
    all.extend(words);
    refused(read_dense(&path, &DenseSpec::default()), &all);
}

#[test]
fn tables_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    refused(read_dense(at.join("none.tsv"), &DenseSpec::default()), &["none.tsv", "cannot read"]);
    table_file(at, "empty.tsv", b"", &["empty"]);
    table_file(at, "head.tsv", b"id\tA\tB\n", &["no rows"]);
    table_file(at, "one.tsv", b"id\ns1\n", &["one column"]);
    table_file(at, "nan.tsv", b"id\tA\tB\ns1\t1\tNaN\n", &[":2:", "\"s1\"", "\"B\"", "NaN"]);
    table_file(at, "inf.tsv", b"id\tA\ns1\t1\ns2\t-inf\n", &[":3:", "\"s2\"", "infinite"]);
    table_file(at, "huge.tsv", b"id\tA\ns1\t1e39\n", &[":2:", "infinite"]);
    table_file(at, "minus.tsv", b"id\tA\ns1\t-3\n", &[":2:", "\"A\"", "negative (-3)"]);
    table_file(at, "na.tsv", b"id\tA\ns1\tNA\n", &[":2:", "missing"]);
    table_file(at, "word.tsv", b"id\tA\ns1\tLUAD\n", &[":2:", "not a number", "annotation"]);
    table_file(at, "ragged.tsv", b"id\tA\tB\ns1\t1\t2\ns2\t1\n", &[":3:", "2 columns", "has 3"]);
    table_file(at, "binary.tsv", b"id\tA\ns1\t\xFF\x00\n", &[":2:", "not text"]);
    table_file(at, "gene2.tsv", b"id\tA\tA\ns1\t1\t2\n", &[":1:", "gene \"A\"", "twice"]);
    table_file(at, "twice.tsv", b"id\tA\ns1\t1\ns1\t2\n", &[":3:", "sample \"s1\"", "line 2"]);
    table_file(at, "zip.tsv.gz", b"\x1F\x8B\x08\x00garbage", &["zip.tsv.gz"]);
    gzip(&at.join("whole.gz"), "id\tA\ns\t1\n");
    let gz = fs::read(at.join("whole.gz")).unwrap();
    table_file(at, "cut.tsv.gz", &gz[..gz.len() - 6], &["cannot be read to its end"]);
    let turned = DenseSpec { orientation: Orientation::GenesBySamples, ..DenseSpec::default() };
    fs::write(at.join("dup.tsv"), "id\ts1\nA\t1\nA\t2\n").unwrap();
    refused(read_dense(at.join("dup.tsv"), &turned), &["dup.tsv:3", "gene \"A\"", "twice"]);
}

#[test]
fn sample_names_with_path_parts() {
    for name in ["../x", "a/b", "a\\b", "", ".hidden", "a\nb", "C:x", &"n".repeat(300)] {
        refused(check_file_name(name), &["cannot be part of a file name"]);
    }
    assert!(check_file_name("TCGA-02-0047-01_s1.v2").is_ok());
}

fn spec(folder: &Path, set: &Set) -> BuildSpec {
    BuildSpec {
        out: folder.join("out.safetensors"),
        table: Some(set.table.clone()),
        folder: folder.to_path_buf(),
        columns: TileColumns { row: "row".into(), ..TileColumns::default() },
        rna: RnaSource {
            files: vec![(String::new(), set.counts.clone())],
            options: RnaOptions { genes_table: Some(set.genes.clone()), ..Default::default() },
        },
        join: Join::Row,
        unit: Unit::Section,
        free: Vec::new(),
        cut: Cut::exact(SIDE, 1),
        quality: Some(90),
        genes: None,
        rule: GeneRule::Detected,
        max_bytes: u64::MAX,
        notice: Notice::default(),
        skip_bad: false,
    }
}

/// Changes one file of the good set, which must then be refused with nothing written.
fn spoilt(words: &[&str], spoil: impl Fn(&Path, &Set, &mut BuildSpec)) {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let mut spec = spec(folder.path(), &set);
    spoil(folder.path(), &set, &mut spec);
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    refused(build(&spec), words);
    assert_eq!(names(), before, "something was left behind");
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_set_is_good_before_it_is_spoilt() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let spec = spec(folder.path(), &set);
    assert_eq!(build(&spec).unwrap().samples, set.dense.len());
    assert_eq!(Pack::open(&spec.out).unwrap().len(), set.images.len());
}

#[test]
fn tile_tables_that_do_not_fit_their_data() {
    spoilt(&["c.png", "cannot read"], |at, _, _| fs::remove_file(at.join("c.png")).unwrap());
    spoilt(&["b.png", "0 bytes"], |at, _, _| fs::write(at.join("b.png"), b"").unwrap());
    spoilt(&["a.png", "64x64", "expected 32x32"], |_, _, s| s.cut.tile_px = 32);
    spoilt(&["tiles.tsv:1:", "no column \"splat\"", "did you mean \"split\""], |_, _, s| {
        s.columns.split = "splat".into();
    });
    spoilt(&["tiles.tsv:7:", "no RNA", "f.png"], |_, set, _| {
        replace(&set.table, "P2\t0\ttest", "P2\t6\ttest");
    });
    spoilt(&["tiles.tsv:3:", "row \"four\""], |_, set, _| {
        replace(&set.table, "P1\t4", "P1\tfour");
    });
    spoilt(&["tiles.tsv:2:", "no RNA", "Patient", "6 of 6"], |_, _, s| s.join = Join::Patient);
    spoilt(&["tiles.tsv:3:", "\"a.png\" is also in line 2"], |_, set, _| {
        replace(&set.table, "b.png", "a.png");
    });
    spoilt(&["tiles.tsv:2:", "file name"], |_, set, _| replace(&set.table, "a.png", "../a.png"));
    spoilt(&["tiles.tsv:4:", "3 columns"], |_, set, _| {
        replace(&set.table, "c.png\tS2\tP1\t3\tval\tcancer\t0\t0\t0.5", "c.png\tS2\tP1");
    });
    spoilt(&["um_per_px", "different"], |_, set, _| replace(&set.table, "0.502", "0.25"));
}

#[test]
fn splits_that_leak_or_are_empty() {
    spoilt(&["leakage", "patient \"P1\"", "val", "line 2"], |_, _, s| s.unit = Unit::Patient);
    spoilt(&["leakage", "section \"S1\"", "\"val\"", "line 2"], |_, set, _| {
        replace(&set.table, "P1\t4\ttrain", "P1\t4\tval");
    });
    // The test patient in train, though in a section of its own.
    spoilt(&["leakage", "patient \"P1\"", "\"test\"", "line 2"], |_, set, _| {
        replace(&set.table, "S4\tP1\t1\ttrain", "S4\tP1\t1\ttest");
    });
    // Val first, so that the patient's first split is not the one that matters.
    spoilt(&["leakage", "patient \"P1\"", "\"test\""], |_, set, _| {
        replace(&set.table, "S3\tP2\t0\ttest", "S9\tP1\t0\ttest");
    });
    spoilt(&["split \"train\" has no tiles", "test (2)"], |_, set, _| {
        let text = fs::read_to_string(&set.table).unwrap();
        fs::write(&set.table, text.replace("train", "trian")).unwrap();
    });
    spoilt(&["tiles.tsv:3:", "no split"], |_, set, _| {
        replace(&set.table, "P1\t4\ttrain", "P1\t4\t");
    });
}

#[test]
fn counts_that_do_not_fit_their_genes() {
    spoilt(&["genes.tsv", "lists 4 genes", "has 5"], |_, set, _| {
        replace(&set.genes, "4\tG4\n", "");
    });
    spoilt(&["genes.tsv:4:", "\"G0\" is also in line 2"], |_, set, _| {
        replace(&set.genes, "2\tG2", "2\tG0");
    });
    spoilt(&["counts.safetensors", "truncated"], |_, set, _| {
        let bytes = fs::read(&set.counts).unwrap();
        fs::write(&set.counts, &bytes[..bytes.len() - 3]).unwrap();
    });
    spoilt(&["counts.safetensors", "no tensor \"indptr\""], |_, set, _| {
        let mut writer = Writer::new();
        writer.u32s("shape", &[2], &[6, 5]).unwrap();
        writer.save(&set.counts).unwrap();
    });
    spoilt(&["genes", "9 genes of 5"], |_, _, s| s.genes = Some(9));
}

#[test]
fn packs_that_are_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let spec = spec(folder.path(), &set);
    build(&spec).unwrap();
    let whole = fs::read(&spec.out).unwrap();
    let path = folder.path().join("bad.safetensors");
    for n in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..n]).unwrap();
        refused(Pack::open(&path), &["bad.safetensors"]);
    }
    refused(Pack::open(&set.counts), &["counts.safetensors", "not a pack"]);
    // Any key or tensor that is renamed is missed by name.
    for (from, to) in [
        ("\"image.bytes\"", "\"image.bytez\""),
        ("\"rna.over_index\"", "\"rna.over_indax\""),
        ("\"genes\"", "\"genez\""),
        ("\"image.split\"", "\"image.splat\""),
    ] {
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bent = whole.clone();
        bent[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, &bent).unwrap();
        refused(Pack::open(&path), &["bad.safetensors", from]);
    }
    let bytes = TensorFile::open(&spec.out).unwrap().shape("image.bytes").unwrap()[0];
    let mut bent = whole;
    let end = bent.len();
    bent[end - bytes..].fill(0);
    fs::write(&path, &bent).unwrap();
    refused(Pack::open(&path).unwrap().tile(3), &["bad.safetensors", "image 3", "d.png"]);
}

/// The header of a PNG that claims `width` x `height` RGB pixels, and no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut head = b"IHDR".to_vec();
    head.extend(width.to_be_bytes());
    head.extend(height.to_be_bytes());
    head.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1A\n".to_vec();
    for chunk in [head, b"IDAT\x78\x9C".to_vec(), b"IEND".to_vec()] {
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}

fn png_of(colour: image::ColorType) -> Vec<u8> {
    let bytes = vec![7; SIDE * SIDE * usize::from(colour.bytes_per_pixel())];
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    let side = SIDE as u32;
    image::ImageEncoder::write_image(encoder, &bytes, side, side, colour.into()).unwrap();
    png
}

/// A JPEG of four components, up to the start of its scan.
fn cmyk_jpeg() -> Vec<u8> {
    let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 20, 8, 0, 64, 0, 64, 4];
    (1..=4).for_each(|c| jpeg.extend([c, 0x11, 0]));
    jpeg.extend([0xFF, 0xDA, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0, 1, 2, 3, 0xFF, 0xD9]);
    jpeg
}

/// An uncompressed little-endian TIFF of CMYK pixels.
fn cmyk_tiff() -> Vec<u8> {
    let pixels = SIDE * SIDE * 4;
    let mut tiff = b"II\x2A\x00\x08\x00\x00\x00".to_vec();
    let entries: [(u16, u16, u32, u32); 9] = [
        (256, 4, 1, SIDE as u32),
        (257, 4, 1, SIDE as u32),
        (258, 3, 4, 122),
        (259, 3, 1, 1),
        (262, 3, 1, 5),
        (273, 4, 1, 130),
        (277, 3, 1, 4),
        (278, 4, 1, SIDE as u32),
        (279, 4, 1, pixels as u32),
    ];
    tiff.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(count.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend([0; 4]);
    assert_eq!(tiff.len(), 122);
    [8u16; 4].iter().for_each(|b| tiff.extend(b.to_le_bytes()));
    tiff.extend(vec![50; pixels]);
    tiff
}
