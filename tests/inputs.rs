//! RNA in the formats that labs and repositories ship, and what is said of it.
//!
//! The AnnData files were written by anndata and h5py (fixtures/h5ad/make.py); the others are
//! written here in the shape of GDC's and UCSC Xena's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/data_set.rs"]
mod data_set;

use std::fs;
use std::path::{Path, PathBuf};

use data_set::gzip;
use genevar::data::augment::resize;
use genevar::data::expression::Missing;
use genevar::data::inspect::{self, InspectArgs};
use genevar::data::pack::{BuildSpec, Crop, Cut, GeneRule, Notice, Pack, Report, RnaSource, build};
use genevar::data::pairs::{Join, Unit};
use genevar::data::source::{GdcColumn, Rna, RnaOptions, Wanted};
use genevar::data::tiles::TileColumns;
use genevar::data::units::Units;
use genevar::error::Result;
use genevar::io::images::{Rgb, encode_png};
use genevar::io::safetensors::{Store, Writer};
use genevar::tensor::Tensor;

const COUNTS: [[f32; 5]; 6] = [
    [3., 0., 0., 9., 30000.],
    [254., 0., 0., 0., 300.],
    [1., 0., 0., 255., 300.],
    [70., 0., 1., 0., 301.],
    [1., 65000., 0., 0., 299.],
    [255., 0., 7., 0., 300.],
];
const SYMBOLS: [&str; 5] = ["ACTB", "ERBB2", "CD3E", "KRT8", "TP53"];
const ENSEMBL: [&str; 5] =
    ["ENSG00000075624", "ENSG00000141736", "ENSG00000198851", "ENSG00000170421", "ENSG00000141510"];

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/h5ad").join(name)
}

fn read(path: &Path, options: RnaOptions) -> Result<Rna> {
    Rna::read(path, &options, Wanted::default())
}

fn units(name: &str) -> Option<Units> {
    Some(name.parse().unwrap())
}

fn refused<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("nothing was refused; expected {words:?}") };
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

fn says(rna: &Rna, words: &[&str]) {
    let said = rna.said.join("\n");
    for word in words {
        assert!(said.contains(word), "{said:?} does not say {word:?}");
    }
}

/// The rows are those of `COUNTS`.
fn holds_counts(rna: &Rna) {
    assert_eq!(rna.x.len(), 6);
    for (i, row) in COUNTS.iter().enumerate() {
        assert_eq!(rna.x.row(i), row, "{:?} row {i}", rna.path);
        assert_eq!(rna.x.totals[i], row.iter().map(|&v| f64::from(v)).sum::<f64>());
    }
}

#[test]
fn anndata_of_every_layout_gives_one_matrix() {
    let raw = RnaOptions { layer: Some("raw".into()), ..Default::default() };
    let files = [
        ("dense.h5ad", RnaOptions::default(), SYMBOLS),
        ("csr.h5ad", RnaOptions::default(), ENSEMBL),
        ("csc.h5ad", raw, ENSEMBL),
        ("latest.h5ad", RnaOptions::default(), SYMBOLS),
    ];
    for (name, options, genes) in files {
        let rna = read(&fixture(name), options).unwrap();
        holds_counts(&rna);
        assert_eq!(rna.x.genes, list(&genes), "{name}");
        assert_eq!((&*rna.x.samples[0], &*rna.x.samples[5]), ("sample0", "sample5"), "{name}");
        assert_eq!(rna.units, units("counts"), "{name}");
    }
}

#[test]
fn anndata_layers_columns_and_symbols_are_found() {
    let layer = |name: &str| RnaOptions { layer: Some(name.into()), ..Default::default() };
    let tpm = read(&fixture("csr.h5ad"), layer("tpm")).unwrap();
    assert!((tpm.x.row(1)[0] - 254e6 / 554.0).abs() < 0.1);
    says(&tpm, &["layers/tpm", "sums to a million"]);
    let log = read(&fixture("csc.h5ad"), RnaOptions::default()).unwrap();
    assert_eq!(log.x.row(1)[0], 255f32.log2());
    let named = RnaOptions { gene_column: Some("feature_name".into()), ..layer("raw") };
    assert_eq!(read(&fixture("csc.h5ad"), named).unwrap().x.genes, list(&SYMBOLS));
    // A model of symbols finds its genes by the file's own other names.
    let genes = list(&["TP53", "ACTB"]);
    let wanted = Wanted { genes: &genes, units: units("counts"), ..Wanted::default() };
    let rna = Rna::read(&fixture("csr.h5ad"), &RnaOptions::default(), wanted).unwrap();
    let (x, map, said) = rna.fit(wanted, 1.0).unwrap();
    assert_eq!(map.pick(&x.row(0)), [30000.0, 3.0]);
    assert!(said.join("\n").contains("found by the file's gene symbols"), "{said:?}");
    refused(read(&fixture("csr.h5ad"), layer("fpkm")), &["csr.h5ad", "layers/fpkm", "tpm"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.h5ad");
    fs::write(&path, "no HDF5 at all").unwrap();
    refused(read(&path, RnaOptions::default()), &["x.h5ad", "HDF5"]);
}

/// The table the other way round, of log2(x + 1), as UCSC Xena ships it.
fn xena() -> String {
    let mut text = String::from("Ensembl_ID\tTCGA-A1-01A\tTCGA-A2-01A\n");
    for (g, id) in ENSEMBL.iter().enumerate() {
        let v = |s: usize| (COUNTS[s][g] + 1.0).log2();
        text += &format!("{id}.{}\t{}\t{}\n", g + 3, v(0), v(1));
    }
    text
}

#[test]
fn a_xena_matrix_is_turned_and_its_versions_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("xena.tsv.gz");
    gzip(&path, &xena());
    let options = RnaOptions { units: units("log2-counts"), ..Default::default() };
    let rna = read(&path, options.clone()).unwrap();
    assert_eq!(rna.x.genes, list(&ENSEMBL));
    assert_eq!(rna.x.samples, list(&["TCGA-A1-01A", "TCGA-A2-01A"]));
    assert_eq!(rna.x.row(0)[0], 2.0);
    says(&rna, &["a row a gene", "5 Ensembl", "units: log2-counts"]);
    // A model of counts gets counts back.
    let genes = list(&ENSEMBL);
    let wanted = Wanted { genes: &genes, units: units("counts"), ..Wanted::default() };
    let (x, _, said) = Rna::read(&path, &options, wanted).unwrap().fit(wanted, 1.0).unwrap();
    for (got, want) in x.row(0).iter().zip(COUNTS[0]) {
        assert!((got - want).abs() <= 1e-4 * want, "{got} {want}");
    }
    assert!(said.join("\n").contains("log2-counts, turned into counts"), "{said:?}");
    let wanted = Wanted { genes: &genes, units: units("tpm"), ..Wanted::default() };
    let rna = Rna::read(&path, &options, wanted).unwrap();
    refused(rna.fit(wanted, 1.0), &["log2-counts", "trained on tpm", "--units"]);
}

/// Counts as GDC's STAR workflow writes them.
fn star(values: [f32; 5]) -> String {
    let mut text = String::from(
        "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\tstranded_first\t\
         stranded_second\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n\
         N_unmapped\t\t\t9000\t1\t1\t\t\t\nN_noFeature\t\t\t800\t1\t1\n",
    );
    for (g, v) in values.iter().enumerate() {
        let (id, name) = (ENSEMBL[g], SYMBOLS[g]);
        text +=
            &format!("{id}.9\t{name}\tprotein_coding\t{v}\t0\t{v}\t{}\t{}\t1\n", v / 2., v / 4.);
    }
    text
}

#[test]
fn a_folder_of_star_counts_is_a_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let name = |s: &str| format!("{s}.rna_seq.augmented_star_gene_counts.tsv");
    fs::create_dir(at.join("aa-uuid")).unwrap();
    fs::write(at.join("aa-uuid").join(name("one")), star(COUNTS[0])).unwrap();
    gzip(&at.join(name("two") + ".gz"), &star(COUNTS[1]));
    fs::write(at.join("MANIFEST.txt"), "id\tfilename\nx\ty\n").unwrap();
    let rna = read(at, RnaOptions::default()).unwrap();
    assert_eq!(
        (rna.x.len(), rna.x.row(0), rna.x.row(1)),
        (2, COUNTS[0].to_vec(), COUNTS[1].to_vec())
    );
    assert_eq!((&rna.x.samples, &rna.x.genes), (&list(&["one", "two"]), &list(&ENSEMBL)));
    assert_eq!((rna.units, rna.stated), (units("counts"), true));
    let tpm = read(at, RnaOptions { gdc: Some(GdcColumn::Tpm), ..Default::default() }).unwrap();
    assert_eq!((tpm.x.row(0)[4], tpm.units), (15000.0, units("tpm")));
    // A model chooses the column that it was trained on, and genes by the names it knows.
    let genes = list(&["KRT8", "TP53", "ABSENT"]);
    let wanted = Wanted { genes: &genes, units: units("log2-fpkm"), ..Wanted::default() };
    let rna = Rna::read(at, &RnaOptions::default(), wanted).unwrap();
    let (x, map, said) = rna.fit(wanted, 0.6).unwrap();
    for (got, counts) in map.pick(&x.row(0)).iter().zip([9f32, 30000.]) {
        assert!((got - (counts / 4. + 1.).log2()).abs() < 1e-5, "{got}");
    }
    let said = said.join("\n");
    assert!(said.contains("2 of 3 genes matched, 1 missing (ABSENT): read as their"), "{said}");
    // Named by the portal's sheet.
    let sheet = at.join("gdc_sample_sheet.csv");
    let rows = format!("File Name,Sample ID\n{},S-1\n{},S-2\n", name("one"), name("two"));
    fs::write(&sheet, &rows).unwrap();
    let options = RnaOptions { sample_sheet: Some(sheet.clone()), ..Default::default() };
    assert_eq!(read(at, options.clone()).unwrap().x.samples, list(&["S-1", "S-2"]));
    fs::write(&sheet, rows.replace("S-2", "S-1")).unwrap();
    refused(read(at, options.clone()), &["two files", "S-1"]);
    fs::write(&sheet, rows.replace("two", "tow")).unwrap();
    refused(read(at, options), &["does not list", "two.rna_seq"]);
    let other = star(COUNTS[1]).replace("ENSG00000198851", "ENSG00000999999");
    fs::write(at.join(name("zzz")), other).unwrap();
    refused(read(at, RnaOptions::default()), &["zzz", "gene 2 is ENSG00000999999"]);
    fs::write(at.join(name("zzz")), star(COUNTS[1]).replace("\t254\t", "\tx\t")).unwrap();
    refused(read(at, RnaOptions::default()), &["zzz", "ENSG00000075624", "\"x\""]);
}

#[test]
fn tables_are_read_however_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.txt");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        read(&path, RnaOptions::default())
    };
    let good = [
        "id\tcohort\tACTB\tERBB2\ns1\tLUAD\t1\t2\ns2\tCOAD\t3\t4\n",
        "\u{feff}id,ACTB,ERBB2\r\n\"s1\",1,2\r\ns2,3,4\r\n",
        "# made by a program\nid;ACTB;ERBB2\ns1;1;2\ns2;3;4\n",
        "\"ACTB\"\t\"ERBB2\"\n\"s1\"\t1\t2\n\"s2\"\t3\t4\n",
        "gene\ts1\ts2\nACTB\t1\t3\nERBB2\t2\t4\n",
        "gene\tdescription\ts1\ts2\nACTB\tactin\t1\t3\nERBB2\treceptor\t2\t4\n",
    ];
    for text in good {
        let rna = read(text).unwrap();
        assert_eq!(rna.x.samples, ["s1", "s2"], "{text:?}");
        assert_eq!((rna.x.genes.clone(), rna.x.row(1)), (list(&["ACTB", "ERBB2"]), vec![3., 4.]));
        assert_eq!(rna.units, units("counts"));
    }
    refused(read("id\tg1\tg2\ns1\t1\t2\n"), &["t.txt", "--orientation"]);
    refused(read("id\tACTB\ns1\t1\ns1\t2\n"), &[":3:", "sample \"s1\" appears twice"]);
    refused(read("id\ts1\ts1\nACTB\t1\t2\n"), &["sample \"s1\" appears twice"]);
    refused(read("id\tACTB\tERBB2\ns1\tx\t2\ns2\t1\t2\ns3\t1\t2\n"), &[":2:", "ACTB", "\"x\""]);
    refused(read("id\tACTB\ns1\t-1\n"), &["negative", "logs"]);
    let wide = "id\tACTB\ns1\t".to_string() + &"1".repeat(70 << 20);
    refused(read(&wide), &["t.txt", "64 MiB"]);
    fs::write(&path, [0xFF, 0xFE, b'i', 0, b'd', 0]).unwrap();
    refused(Rna::read(&path, &RnaOptions::default(), Wanted::default()), &["UTF-16"]);
}

#[test]
fn genes_are_translated_merged_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let map = folder.path().join("map.tsv");
    fs::write(&map, "entrez_gene_id\tsymbol\n60\tACTB\n2064\tERBB2\n7157\tTP53\n70\tTP53\n")
        .unwrap();
    let path = folder.path().join("t.tsv");
    let numbers: String = (100..130).map(|g| format!("\t{g}")).collect();
    let ones = "\t1".repeat(30);
    fs::write(&path, format!("id\t60\t7157\t70{numbers}\ns1\t5\t7\t11{ones}\n")).unwrap();
    let options = RnaOptions { gene_map: Some(map.clone()), ..Default::default() };
    let packed = read(&path, options.clone()).unwrap();
    assert_eq!(packed.x.genes[..3], list(&["ACTB", "TP53", "100"]));
    assert_eq!(packed.x.row(0)[..3], [5., 18., 1.]);
    says(&packed, &["Entrez numbers", "3 of 33 translated", "1 genes stood", "TP53", "summed"]);
    let genes = list(&["TP53", "ACTB", "ERBB2", "KRT8"]);
    let wanted = Wanted { genes: &genes, units: units("counts"), ..Wanted::default() };
    let (x, found, said) = Rna::read(&path, &options, wanted).unwrap().fit(wanted, 0.5).unwrap();
    assert_eq!(found.pick(&x.row(0))[..2], [18., 5.]);
    let text = said.join("\n");
    assert!(text.contains("2 of 4 genes matched, 2 missing (ERBB2, KRT8)"), "{text}");
    assert!(text.contains("30 of the table unused"), "{text}");
    refused(Rna::read(&path, &options, wanted).unwrap().fit(wanted, 0.8), &["50.0 %", "80.0 %"]);
    let plain = Rna::read(&path, &RnaOptions::default(), wanted).unwrap();
    refused(plain.fit(wanted, 0.5), &["t.tsv", "Entrez numbers", "--gene-map"]);
}

#[test]
fn matrices_in_safetensors_name_their_genes_themselves_or_by_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let x = Tensor::new(COUNTS.concat(), [6, 5]).unwrap();
    let mut writer = Writer::new();
    writer.tensor("X", &x, Store::Full).unwrap();
    writer.tensor("other", &x, Store::Full).unwrap();
    writer.meta("genes", serde_json::to_string(&SYMBOLS).unwrap());
    writer.save(&path).unwrap();
    let rna = read(&path, RnaOptions::default()).unwrap();
    holds_counts(&rna);
    assert_eq!((rna.x.samples[3].as_str(), rna.x.genes[4].as_str()), ("3", "TP53"));
    let zipped = folder.path().join("m.safetensors.gz");
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut out, &fs::read(&path).unwrap()).unwrap();
    fs::write(&zipped, out.finish().unwrap()).unwrap();
    holds_counts(&read(&zipped, RnaOptions::default()).unwrap());
    let mut writer = Writer::new();
    writer.tensor("m", &x, Store::Full).unwrap();
    writer.save(&path).unwrap();
    refused(read(&path, RnaOptions::default()), &["--genes-table", "symbol"]);
    let table = folder.path().join("genes.tsv");
    fs::write(&table, "symbol\tn\n".to_string() + &SYMBOLS.map(|s| format!("{s}\t1\n")).concat())
        .unwrap();
    let options = RnaOptions { genes_table: Some(table), ..Default::default() };
    holds_counts(&read(&path, options).unwrap());
}

#[test]
fn stated_units_are_held_against_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let name = "one.rna_seq.augmented_star_gene_counts.tsv";
    fs::write(at.join(name), star(COUNTS[0])).unwrap();
    let options = RnaOptions { units: units("tpm"), ..Default::default() };
    refused(read(at, options), &["--units", "says tpm", "holds counts"]);
}

#[test]
fn inspect_says_what_every_kind_of_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let set = data_set::write_set(at);
    assert_eq!((set.images.len(), set.dense.len()), (6, 6));
    gzip(&at.join("xena.tsv.gz"), &xena());
    let look = |name: &str, words: &[&str]| {
        let text = inspect::run(&InspectArgs::of(&at.join(name))).unwrap();
        for word in words {
            assert!(text.contains(word), "{name}: {text} does not say {word:?}");
        }
    };
    look("", &["folder of 6 images", "64 x 64 pixels: 6", "unreadable     0"]);
    look("a.png", &["image of 64 x 64 pixels", "mean RGB"]);
    look("tiles.tsv", &["6 rows x 9 columns", "patient", "2 different: P1, P2", "1 missing"]);
    look("xena.tsv.gz", &["a row a gene", "Ensembl", "fractions", "0 missing"]);
    look("counts.safetensors", &["indptr", "[7] U32", "--genes-table"]);
    fs::copy(fixture("csr.h5ad"), at.join("a.h5ad")).unwrap();
    look("a.h5ad", &["AnnData", "6 samples x 5 genes", "also named by", "ACTB", "all whole"]);
    let mut args = InspectArgs::of(&at.join("a.png"));
    args.out = Some(at.join("look.png"));
    assert!(inspect::run(&args).unwrap().contains("1 thumbnails"));
    assert!(at.join("look.png").is_file());
    let mut args = InspectArgs::of(&at.join("tiles.tsv"));
    args.out = Some(at.join("no.png"));
    refused(inspect::run(&args), &["--out", "no images"]);
    refused(inspect::run(&InspectArgs::of(&at.join("absent"))), &["absent", "cannot read"]);
}

#[test]
fn images_are_brought_to_one_scale_and_cut() {
    let folder = tempfile::tempdir().unwrap();
    let set = data_set::write_set(folder.path());
    let with = |crop, crops, tile_px, mpp| {
        let cut = Cut { crop, crops, mpp, ..Cut::exact(tile_px, 1) };
        let spec = BuildSpec {
            out: folder.path().join("out.safetensors"),
            table: Some(set.table.clone()),
            folder: folder.path().to_path_buf(),
            columns: TileColumns { row: "row".into(), ..Default::default() },
            rna: RnaSource {
                files: vec![(String::new(), set.counts.clone())],
                options: RnaOptions { genes_table: Some(set.genes.clone()), ..Default::default() },
            },
            join: Join::Row,
            unit: Unit::Section,
            free: Vec::new(),
            cut,
            quality: None,
            genes: None,
            rule: GeneRule::Detected,
            max_bytes: u64::MAX,
            notice: Notice::default(),
            skip_bad: false,
        };
        build(&spec)?;
        Pack::open(&spec.out)
    };
    refused(with(Crop::Exact, 1, 32, None), &["64x64", "expected 32x32"]);
    refused(with(Crop::Center, 1, 128, None), &["64x64", "--tile-px"]);
    refused(with(Crop::Random, 0, 32, None), &["--crops"]);
    let centre = with(Crop::Center, 1, 32, None).unwrap();
    assert_eq!(centre.tile(2).unwrap(), set.images[2].crop(16, 16, 32, 32).unwrap());
    let grid = with(Crop::Grid, 1, 24, None).unwrap();
    assert_eq!((grid.len(), grid.id(1)), (24, "a.png@32x8"));
    assert_eq!(grid.tile(1).unwrap(), set.images[0].crop(32, 8, 24, 24).unwrap());
    assert_eq!((grid.rna_row(0), grid.rna_row(4)), (grid.rna_row(3), grid.rna_row(7)));
    let random = with(Crop::Random, 3, 20, None).unwrap();
    let again = with(Crop::Random, 3, 20, None).unwrap();
    assert_eq!((random.len(), random.tile(7).unwrap()), (18, again.tile(7).unwrap()));
    // Half of the pixels: 0.5 um become 1 um; two files say 0.502, and give 32 as well.
    let half = with(Crop::Exact, 1, 32, Some(1.0)).unwrap();
    assert_eq!((half.tile_size(), half.um_per_px()), (32, Some(1.0)));
    assert_eq!(half.tile(0).unwrap(), resize(&set.images[0], 32, 32).unwrap());
}

#[test]
fn missing_values_are_told_by_gene_and_sample_and_settled_as_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holes.tsv");
    let table = "gene\ts1\ts2\ts3\nACTB\t3\t\t5\nERBB2\t1\tNA\tNaN\nCD3E\t0\t2\t4\nKRT8\t1\t1\t1\n";
    fs::write(&path, table).unwrap();
    let with = |missing| read(&path, RnaOptions { missing, ..Default::default() });
    let told = ["3 values are missing", "2 of 4 genes (ERBB2 2, ACTB 1)", "2 of 3 samples (s2 2"];
    refused(with(Missing::Refuse), &[&told[..], &["holes.tsv", "--missing"]].concat());
    let rna = with(Missing::Genes).unwrap();
    says(&rna, &[&told[..], &["left out"]].concat());
    assert_eq!(rna.x.genes, list(&["CD3E", "KRT8"]));
    assert_eq!((rna.x.row(2), rna.x.totals[2]), (vec![4.0, 1.0], 5.0));
    assert_eq!(with(Missing::Samples).unwrap().x.samples, list(&["s1"]));
    assert_eq!(with(Missing::Zero).unwrap().x.row(1), [0.0, 0.0, 2.0, 1.0]);
    let mean = with(Missing::Mean).unwrap();
    says(&mean, &["the mean of the gene's other samples"]);
    assert_eq!((mean.x.row(1), mean.x.totals[1]), (vec![4.0, 1.0, 2.0, 1.0], 8.0));
    // Who only looks is told, and sees the rest.
    let seen = inspect::run(&InspectArgs::of(&path)).unwrap();
    for word in ["3 missing", "2 of 4 genes (ERBB2 2", "3 NaN", "all whole"] {
        assert!(seen.contains(word), "{word} is not in\n{seen}");
    }
}

/// A PNG with micrometres a pixel in its tags.
fn write_tagged(path: &Path, image: &Rgb, um: f64) {
    let mut png = encode_png(image).unwrap();
    let pixels = (1e6 / um).round() as u32;
    let mut chunk = b"pHYs".to_vec();
    chunk.extend([pixels.to_be_bytes(), pixels.to_be_bytes()].concat());
    chunk.push(1);
    let sum = crc32fast::hash(&chunk);
    let whole = [&9u32.to_be_bytes()[..], &chunk, &sum.to_be_bytes()].concat();
    // Behind the header: a signature of 8 bytes, then 25.
    png.splice(33..33, whole);
    fs::write(path, png).unwrap();
}

/// A pack of a folder of tiles, nothing else known.
fn tiles_alone(folder: &Path, cut: Cut, table: Option<PathBuf>) -> (Result<Report>, PathBuf) {
    let out = folder.join("tiles.safetensors");
    let spec = BuildSpec {
        out: out.clone(),
        table,
        folder: folder.to_path_buf(),
        columns: TileColumns { section: String::new(), ..Default::default() },
        rna: RnaSource::default(),
        join: Join::Tile,
        unit: Unit::Patient,
        free: Vec::new(),
        cut,
        quality: None,
        genes: None,
        rule: GeneRule::Detected,
        max_bytes: u64::MAX,
        notice: Notice::default(),
        skip_bad: false,
    };
    (build(&spec), out)
}

#[test]
fn tiles_need_no_table_and_tags_tell_their_scale() {
    let folder = tempfile::tempdir().unwrap();
    let tile = |i: usize| Rgb::filled(64, 64, [200, i as u8, 180]);
    for i in 0..20 {
        let name = folder.path().join(format!("t{i:02}.png"));
        write_tagged(&name, &tile(i), 0.5);
    }
    let (report, out) = tiles_alone(folder.path(), Cut::exact(64, 1), None);
    let said = report.unwrap().said.join("\n");
    for word in ["no table", "held out", "no RNA", "20 files say their micrometres"] {
        assert!(said.contains(word), "{said}");
    }
    let pack = Pack::open(&out).unwrap();
    assert_eq!((pack.len(), pack.um_per_px()), (20, Some(0.5)));
    assert_eq!(pack.images("val").unwrap(), [9, 19]);
    assert_eq!(pack.tile(12).unwrap(), tile(12));
    refused(pack.split("train"), &["tiles.safetensors", "without RNA", "tokenizer"]);
    assert!(inspect::run(&InspectArgs::of(&out)).unwrap().contains("0 tiles with RNA, 20 without"));
    let seen = inspect::run(&InspectArgs::of(folder.path())).unwrap();
    assert!(seen.contains("0.5000 um a pixel by the tags"), "{seen}");

    // Resampled by their tags; what is stated wins, and a contradiction is said.
    let to_1 = Cut { mpp: Some(1.0), ..Cut::exact(32, 1) };
    let (report, out) = tiles_alone(folder.path(), to_1, None);
    assert_eq!(report.unwrap().tile_size, 32);
    assert_eq!(Pack::open(&out).unwrap().um_per_px(), Some(1.0));
    let stated = Cut { mpp: Some(1.0), um_per_px: Some(0.25), ..Cut::exact(16, 1) };
    let (report, _) = tiles_alone(folder.path(), stated, None);
    let said = report.unwrap().said.join("\n");
    assert!(said.contains("20 files say other micrometres") && said.contains("0.25"), "{said}");

    // A table without RNA gives splits and patients.
    let table = folder.path().join("t.tsv");
    fs::write(&table, "tile\tsplit\tpatient\nt03.png\ttrain\tP\nt04.png\tval\tQ\n").unwrap();
    let (report, out) = tiles_alone(folder.path(), Cut::exact(64, 1), Some(table));
    assert_eq!(report.unwrap().paired["val"], 1);
    assert_eq!(Pack::open(&out).unwrap().patient(1), "Q");
}
