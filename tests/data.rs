//! Data end to end on a made-up data set: tables, joins, normalisation, the pack and its builder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/data_set.rs"]
mod data_set;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_set::{SIDE, Set, gzip, write_set};
use genevar::data::genes::GeneMap;
use genevar::data::pack::{BuildSpec, Cut, FreeSource, GeneRule, Notice, Pack, RnaSource, build};
use genevar::data::pairs::{Join, Unit};
use genevar::data::rna::{Expression, RnaNorm, Scaling};
use genevar::data::source::RnaOptions;
use genevar::data::tiles::TileColumns;
use genevar::io::images::{self, Expect, Rgb};
use genevar::io::safetensors::{Store, TensorFile, Writer};
use genevar::io::tables::{DenseSpec, Orientation, read_dense};

fn spec(folder: &Path, set: &Set) -> BuildSpec {
    BuildSpec {
        out: folder.join("out.safetensors"),
        table: Some(set.table.clone()),
        folder: folder.to_path_buf(),
        columns: TileColumns { class: "class".into(), row: "row".into(), ..Default::default() },
        rna: RnaSource {
            files: vec![(String::new(), set.counts.clone())],
            options: RnaOptions { genes_table: Some(set.genes.clone()), ..Default::default() },
        },
        join: Join::Row,
        unit: Unit::Section,
        free: Vec::new(),
        cut: Cut::exact(SIDE, 1),
        quality: None,
        genes: None,
        rule: GeneRule::Detected,
        max_bytes: u64::MAX,
        notice: Notice { licence: "CC0".into(), text: "made up \"here\"\nfor a test".into() },
        skip_bad: false,
    }
}

#[test]
fn a_raw_pack_gives_back_every_pixel_count_and_name() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let report = build(&spec(folder.path(), &set)).unwrap();
    assert_eq!(
        report.paired,
        BTreeMap::from([("test".into(), 2), ("train".into(), 3), ("val".into(), 1)])
    );
    let pack = Pack::open(folder.path().join("out.safetensors")).unwrap();
    assert_eq!((pack.len(), pack.tile_size(), report.tile_size), (6, SIDE, SIDE));
    assert_eq!(pack.split("train").unwrap(), [0, 1, 4]);
    assert_eq!(pack.split("val").unwrap(), [2]);
    assert_eq!(pack.genes(), ["G0", "G1", "G2", "G3", "G4"]);
    assert_eq!(pack.classes(), ["cancer", "immune"]);
    assert_eq!((pack.class(1), pack.class_index(1)), (Some("immune"), Some(1)));
    assert_eq!((pack.class(5), pack.section(3), pack.patient(4)), (None, "S3", "P1"));
    assert_eq!(pack.notice(), "made up \"here\"\nfor a test");
    for i in 0..6 {
        assert_eq!(pack.tile(i).unwrap(), set.images[i], "tile {i}");
        assert_eq!(pack.rna_counts(i).unwrap(), set.dense[i], "tile {i}");
    }
    let x = pack.expression(&[3, 0]).unwrap();
    assert_eq!(x.totals[1], set.dense[0].iter().map(|&v| f64::from(v)).sum::<f64>());
    assert_eq!(x.row(0), set.dense[3]);
}

#[test]
fn genes_are_chosen_on_training_samples_and_totals_stay_those_of_all_genes() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let chosen = |rule| {
        let out = folder.path().join(format!("{rule:?}.safetensors"));
        let spec =
            BuildSpec { genes: Some(2), rule, out: out.clone(), ..spec(folder.path(), &set) };
        build(&spec).unwrap();
        Pack::open(out).unwrap()
    };
    // G3 is seen in test tiles alone and G2 in one training tile; G4 is seen in all of them but
    // hardly varies, while G1 varies most.
    let detected = chosen(GeneRule::Detected);
    assert_eq!(detected.genes(), ["G0", "G4"]);
    assert_eq!(chosen(GeneRule::Variance).genes(), ["G0", "G1"]);
    assert_eq!(detected.rna_counts(1).unwrap(), [set.dense[1][0], set.dense[1][4]]);
    let all: f64 = set.dense[1].iter().map(|&v| f64::from(v)).sum();
    assert_eq!(detected.expression(&[1]).unwrap().totals, [all]);
}

#[test]
fn a_jpeg_pack_is_close_small_and_shrinks_by_area() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let spec =
        BuildSpec { quality: Some(95), cut: Cut::exact(SIDE, 2), ..spec(folder.path(), &set) };
    let report = build(&spec).unwrap();
    assert_eq!(report.bytes, std::fs::metadata(&spec.out).unwrap().len());
    let pack = Pack::open(&spec.out).unwrap();
    let tiles = pack.tiles(&[5, 0]).unwrap();
    assert_eq!((tiles[0].width, tiles[0].height), (SIDE / 2, SIDE / 2));
    let want = genevar::data::augment::downscale(&set.images[5], 2).unwrap();
    let off = tiles[0].data.iter().zip(&want.data).map(|(a, b)| f64::from(a.abs_diff(*b)));
    assert!(off.sum::<f64>() / (want.data.len() as f64) < 6.0);
    // The tables of a JPEG are about 600 bytes: a tile must cost less than that here.
    let file = TensorFile::open(&spec.out).unwrap();
    assert!(file.shape("image.head").unwrap()[0] > 500);
    assert!(file.shape("image.bytes").unwrap()[0] < 6 * 4000);
}

#[test]
fn free_crops_are_tissue_of_the_section_s_split_and_respect_the_size_limit() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    // A section of 4 x 2 blocks: glass on the left, noise (tissue) on the right half.
    let mut section = Rgb::filled(4 * SIDE, 2 * SIDE, [240, 220, 235]);
    for (i, at) in [(2, 0), (3, 0), (2, 1), (3, 1)].iter().enumerate() {
        section.paste(&set.images[i], at.0 * SIDE, at.1 * SIDE).unwrap();
    }
    let path = folder.path().join("S1.png");
    images::write_png(&path, &section).unwrap();
    let free = vec![FreeSource { section: "S1".into(), path }];
    let spec = BuildSpec { free, ..spec(folder.path(), &set) };
    let report = build(&spec).unwrap();
    assert_eq!((report.free["S1"], report.left_out), (4, 0));
    let pack = Pack::open(&spec.out).unwrap();
    assert_eq!(pack.split("train").unwrap().len(), 3);
    assert_eq!(pack.images("train").unwrap().len(), 7);
    assert_eq!((pack.section(8), pack.split_of(8), pack.class(8)), ("S1", "train", None));
    assert!(pack.rna_counts(8).unwrap_err().to_string().contains("no RNA"));
    // The first training tile lies at (2 * SIDE, 0): its block comes last.
    assert_eq!(pack.id(9), format!("S1@{}x0", 2 * SIDE));
    let tight = BuildSpec { max_bytes: report.bytes - 1, ..spec };
    let smaller = build(&tight).unwrap();
    assert!(smaller.left_out >= 1 && smaller.bytes <= tight.max_bytes, "{smaller:?}");
    let error = build(&BuildSpec { max_bytes: 5000, ..tight }).unwrap_err().to_string();
    assert!(error.contains("max-bytes"), "{error}");
}

#[test]
fn tiles_of_a_patient_share_one_profile_of_a_gzipped_table() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let table = folder.path().join("bulk.tsv.gz");
    gzip(&table, "id\tcohort\tA\tB\nP2\tx\t-1.5\t2\nP1\ty\t0.25\t4\nP9\ty\t1\t1\n");
    let options = RnaOptions {
        annotations: vec!["cohort".into()],
        orientation: Some(Orientation::SamplesByGenes),
        units: Some("log".parse().unwrap()),
        ..Default::default()
    };
    let rna = RnaSource { files: vec![(String::new(), table)], options };
    let spec = BuildSpec { rna, join: Join::Patient, ..spec(folder.path(), &set) };
    let report = build(&spec).unwrap();
    assert_eq!((report.samples, report.genes), (2, 2));
    let pack = Pack::open(&spec.out).unwrap();
    assert_eq!(pack.rna_counts(0).unwrap(), [0.25, 4.0]);
    assert_eq!(pack.rna_row(0), pack.rna_row(2));
    assert_eq!(pack.rna_counts(3).unwrap(), [-1.5, 2.0]);
}

#[test]
fn both_orientations_both_delimiters_and_r_s_headers_give_one_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str, orientation| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_dense(&path, &DenseSpec { orientation, ..DenseSpec::default() }).unwrap()
    };
    let a = read("a.tsv", "\tg1\tg2\ns1\t1\t2\ns2\t3\t4\n", Orientation::SamplesByGenes);
    let b = read("b.csv", "gene,s1,\"s2\"\r\ng1,1,3\r\ng2,2,4\r\n", Orientation::GenesBySamples);
    let c = read("c.tsv", "g1\tg2\ns1\t1\t2\ns2\t3\t4e0\n", Orientation::SamplesByGenes);
    for x in [&a, &b, &c] {
        assert_eq!((&x.samples, &x.genes), (&a.samples, &a.genes));
        assert_eq!(x.values, [1.0, 2.0, 3.0, 4.0]);
    }
}

#[test]
fn normalisation_follows_the_formula_and_survives_a_checkpoint() {
    let names = |n: usize, p: &str| (0..n).map(|i| format!("{p}{i}")).collect::<Vec<String>>();
    let values = vec![1., 0., 9., 5., 0., 5., 2., 0., 98.];
    let x = Expression::new(names(3, "s"), names(3, "g"), values, None).unwrap();
    let norm = RnaNorm::fit(&x, &[0, 1], Scaling::COUNTS).unwrap();
    let l = |count: f64, total: f64| (count * 1e4 / total).ln_1p();
    let (a, b) = (l(1., 10.), l(5., 10.));
    assert!((f64::from(norm.mean[0]) - (a + b) / 2.0).abs() < 1e-5);
    assert!((f64::from(norm.sd[0]) - (b - a) / 2.0).abs() < 1e-5);
    assert_eq!(norm.sd[1], 1e-3, "a constant gene is divided by the floor");
    // g1 is missing from this table and g2 comes first; the third sample is not in the statistics.
    let map = GeneMap::new(&norm.genes, &["g2".into(), "g0".into()], 0.5).unwrap();
    let other = x.select(&[2, 0]).unwrap();
    let z = norm.apply(&other, &[0, 2], &map).unwrap();
    let z = z.f32s().unwrap();
    assert!((z[0] + 1.0).abs() < 1e-4, "the smaller of two values is one deviation below: {z:?}");
    assert_eq!((z[1], z[4]), (0.0, 0.0), "a missing gene is the training mean");
    let wanted = (l(2., 100.) - f64::from(norm.mean[0])) / f64::from(norm.sd[0]);
    assert!((f64::from(z[3]) - wanted).abs() < 1e-4);
    assert!(z.iter().all(|v| v.abs() <= 10.0));

    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("c.safetensors");
    let mut writer = Writer::new();
    let (tensors, json) = norm.to_parts().unwrap();
    for (name, tensor) in &tensors {
        writer.tensor(name, tensor, Store::Full).unwrap();
    }
    writer.meta("rna.norm", json);
    writer.save(&path).unwrap();
    assert_eq!(RnaNorm::from_file(&TensorFile::open(&path).unwrap()).unwrap(), norm);
}

#[test]
fn the_same_build_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let set = write_set(folder.path());
    let one = BuildSpec { quality: Some(90), ..spec(folder.path(), &set) };
    let two = BuildSpec { out: folder.path().join("again.safetensors"), ..one.clone() };
    build(&one).unwrap();
    build(&two).unwrap();
    assert_eq!(std::fs::read(&one.out).unwrap(), std::fs::read(&two.out).unwrap());
    let decoded = Pack::open(&one.out).unwrap().tile(0).unwrap();
    let png = images::encode_png(&decoded).unwrap();
    assert_eq!(images::decode(&png, Path::new("x"), Expect::tile(SIDE, SIDE)).unwrap(), decoded);
}
