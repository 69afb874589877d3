//! Every reader of data on input that is cut, bent or made up: an answer or an error, never a
//! panic, and memory in bounds. `PROPTEST_CASES` says how many inputs (default 256 a reader).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/bend.rs"]
mod bend;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use genevar::config::Config;
use genevar::data::expression::Missing;
use genevar::data::ids::IdMap;
use genevar::data::inspect;
use genevar::data::source::{Rna, RnaOptions, Wanted};
use genevar::io::images::{self, Expect, Rgb};
use genevar::io::npz::{Npz, NpzWriter};
use genevar::io::safetensors::{Store, TensorFile, Writer};
use genevar::io::tables::Table;
use genevar::tensor::Tensor;
use genevar::train::checkpoint::{self, Keep, Meta};
use proptest::prelude::*;

use bend::{bend, bent, memory_is_in_bounds};

fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// Writes bytes to a file of its own for each reader.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// What a person would be told; an internal error is a fault of ours.
fn judged<T>(result: genevar::error::Result<T>) -> Result<(), TestCaseError> {
    if let Err(e) = result {
        prop_assert_eq!(e.exit_code(), 2, "{}", e);
        prop_assert!(!e.to_string().is_empty());
    }
    Ok(())
}

/// Reads it in every way that data are read.
fn read(path: &Path) -> Result<(), TestCaseError> {
    let missing = Missing::Mean;
    let options = RnaOptions { allow_negative: true, missing, ..RnaOptions::default() };
    let genes = ["ACTB".to_string(), "ERBB2".to_string()];
    let wanted = Wanted { genes: &genes, ..Wanted::default() };
    let rna = Rna::read(path, &options, wanted);
    if let Ok(rna) = &rna {
        (0..rna.x.len()).for_each(|i| assert_eq!(rna.x.row(i).len(), rna.x.genes.len()));
    }
    judged(rna.and_then(|rna| rna.fit(wanted, 0.5)))?;
    let args = inspect::InspectArgs::of(path);
    judged(inspect::run(&args))?;
    memory_is_in_bounds()
}

/// A checkpoint of one tensor: the files that hold it.
fn checkpoint() -> &'static [(PathBuf, Vec<u8>)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let run = folder().join("run");
        let config = Config::tier("t0").unwrap().to_toml().unwrap();
        let state = [("w".to_string(), Tensor::new(vec![1.0; 6], [2, 3]).unwrap())].into();
        let keep = Keep { newest: 1, best: "" };
        let step = checkpoint::save(&run, keep, &Meta::new("ar", 3, config), &state).unwrap();
        let names = [run.join("LATEST"), step.join("meta.json"), step.join("state.safetensors")];
        names.map(|path| (path.clone(), fs::read(&path).unwrap())).to_vec()
    })
}

fn fixture(name: &str) -> Vec<u8> {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/h5ad").join(name);
    fs::read(at).unwrap()
}

fn tensors() -> Vec<u8> {
    let mut writer = Writer::new();
    let x = Tensor::new((0..12).map(|v| v as f32).collect(), [4, 3]).unwrap();
    writer.tensor("X", &x, Store::Full).unwrap();
    writer.meta("genes", r#"["ACTB","ERBB2","TP53"]"#);
    let path = folder().join("whole.safetensors");
    writer.save(&path).unwrap();
    fs::read(path).unwrap()
}

/// Cells that tables are made of: numbers, words, nothing, quotes, marks, huge and odd numbers.
fn cell() -> impl Strategy<Value = String> {
    let odd = [
        "",
        "NA",
        "NaN",
        "inf",
        "-inf",
        "1e999",
        "-0",
        "1,5",
        "\"",
        "\"a\tb\"",
        "'",
        "\u{feff}",
        "ACTB",
        "ERBB2",
        "ENSG00000141510.18",
        "7157",
        "x\"y",
        "  3 ",
        "0x10",
        "1e-400",
        "gene_id",
        "unstranded",
        "gene_name",
        "symbol",
        "#",
        "é\u{0301}",
    ];
    prop_oneof![
        4 => (0u32..100_000).prop_map(|v| v.to_string()),
        1 => any::<f32>().prop_map(|v| v.to_string()),
        3 => prop::sample::select(odd.to_vec()).prop_map(String::from),
        1 => "[a-zA-Z0-9 .-]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for name in ["r.tsv", "r.csv.gz", "r.h5ad", "r.safetensors", "r.png", "r.jpg", "r.tiff"] {
            read(&file(name, &bytes))?;
        }
        let starts: [&[u8]; 5] =
            [b"\x1f\x8b\x08", b"\x89HDF\r\n\x1a\n", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8"];
        for start in starts {
            read(&file("start.bin", &[start, &bytes].concat()))?;
        }
    }

    #[test]
    fn odd_tables_are_answered(
        rows in prop::collection::vec(prop::collection::vec(cell(), 0..6), 0..7),
        tab in prop::sample::select(vec!["\t", ",", ";"]),
        end in prop::sample::select(vec!["\n", "\r\n"]),
    ) {
        let text: Vec<String> = rows.iter().map(|r| r.join(tab)).collect();
        let path = file("odd.tsv", text.join(end).as_bytes());
        read(&path)?;
        judged(Table::read(&path))?;
        judged(IdMap::read(&path))?;
        let star = folder().join("star");
        fs::create_dir_all(&star).unwrap();
        fs::write(star.join("a.star_gene_counts.tsv"), text.join(end)).unwrap();
        read(&star)?;
    }

    #[test]
    fn bent_anndata_is_answered(
        which in prop::sample::select(vec!["dense", "csr", "csc", "latest"]),
        bends in prop::collection::vec(bend(), 1..6),
    ) {
        let good = fixture(&format!("{which}.h5ad"));
        read(&file("bent.h5ad", &bent(&good, &bends)))?;
    }

    #[test]
    fn bent_tensors_are_answered(
        bends in prop::collection::vec(bend(), 1..5),
        zip in any::<bool>(),
    ) {
        let mut bytes = bent(&tensors(), &bends);
        if zip {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut out, &bytes).unwrap();
            bytes = out.finish().unwrap();
        }
        let path = file("bent.safetensors", &bytes);
        judged(TensorFile::open(&path))?;
        read(&path)?;
    }

    #[test]
    fn bent_images_are_answered(
        kind in prop::sample::select(vec![0, 1, 2]),
        bends in prop::collection::vec(bend(), 1..5),
    ) {
        let image = Rgb::filled(16, 16, [200, 100, 150]);
        let good = match kind {
            0 => images::encode_png(&image).unwrap(),
            1 => images::encode_jpeg(&image, 80).unwrap(),
            _ => {
                let mut out = std::io::Cursor::new(Vec::new());
                let to = image::codecs::tiff::TiffEncoder::new(&mut out);
                let colour = image::ExtendedColorType::Rgb8;
                image::ImageEncoder::write_image(to, &image.data, 16, 16, colour).unwrap();
                out.into_inner()
            }
        };
        let bytes = bent(&good, &bends);
        judged(images::decode(&bytes, Path::new("x"), Expect::any()))?;
        read(&file(["b.png", "b.jpg", "b.tiff"][kind], &bytes))?;
    }

    #[test]
    fn bent_archives_are_answered(bends in prop::collection::vec(bend(), 1..5)) {
        static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
        let good = GOOD.get_or_init(|| {
            let path = folder().join("whole.npz");
            let writer = NpzWriter::create(&path, 2, (5, 3)).unwrap();
            (0..2).for_each(|i| writer.put(i, &Rgb::filled(5, 3, [i as u8; 3])).unwrap());
            writer.finish().unwrap();
            fs::read(path).unwrap()
        });
        let npz = Npz::open(&file("bent.npz", &bent(good, &bends)));
        judged(npz.and_then(|npz| (0..npz.n()).try_for_each(|i| npz.image(i).map(drop))))?;
        memory_is_in_bounds()?;
    }

    #[test]
    fn bent_configurations_are_answered(bends in prop::collection::vec(bend(), 1..6)) {
        static GOOD: OnceLock<String> = OnceLock::new();
        let good = GOOD.get_or_init(|| Config::tier("t0").unwrap().to_toml().unwrap());
        let text = bent(good.as_bytes(), &bends);
        let text = String::from_utf8_lossy(&text);
        judged(Config::parse(&text).and_then(|c| c.to_toml()))?;
        judged(Config::recorded(&text))?;
        memory_is_in_bounds()?;
    }

    #[test]
    fn bent_checkpoints_are_answered(
        which in 0..3usize,
        bends in prop::collection::vec(bend(), 1..5),
    ) {
        let (path, good) = &checkpoint()[which];
        fs::write(path, bent(good, &bends)).unwrap();
        let run = folder().join("run");
        let loaded = checkpoint::load(&run);
        fs::write(path, good).unwrap();
        judged(loaded)?;
        memory_is_in_bounds()?;
        prop_assert!(checkpoint::load(&run).is_ok());
    }
}
