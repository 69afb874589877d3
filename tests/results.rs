//! Results people can read, from outside: edited and interpolated profiles, grids, archives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::path::Path;

use genevar::io::images::{Expect, Rgb, read};
use genevar::io::safetensors::TensorFile;
use serde_json::Value;

use small_run::{STAGES, fails, genevar, prepared, succeeds};

/// A system of random weights for the genes of the data set.
fn untrained() -> tempfile::TempDir {
    let dir = prepared();
    succeeds(dir.path(), "export --untrained 1 --config c.toml --out s.safetensors");
    let shown = genevar(dir.path(), "checkpoint show s.safetensors").stdout;
    let shown = String::from_utf8_lossy(&shown);
    assert!(STAGES.iter().all(|stage| shown.contains(stage)), "{shown}");
    dir
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Draws for rows t16 and t17 unless `more` says otherwise.
fn sample(dir: &Path, more: &str, out: &str) {
    let line = "sample --checkpoint s.safetensors --rna rna.tsv --n 2 --seed 3 --cfg 8";
    succeeds(dir, &format!("{line} --out {out} {more}"));
}

fn tokens(record: &Value, file: &str) -> Value {
    let tiles = record["tiles"].as_array().unwrap();
    tiles.iter().find(|t| t["file"] == file).unwrap()["tokens"].clone()
}

#[test]
fn an_edited_gene_is_drawn_beside_the_tile_as_it_is() {
    let dir = untrained();
    let dir = dir.path();
    sample(dir, "--rows t16,t17", "plain");
    sample(dir, "--rows t16,t17 --set G3=+2sd --set G5=0 --tensors e.safetensors", "edit");
    let bytes = |file: &str| std::fs::read(dir.join(file)).unwrap();
    let (plain, edit) = (json(dir.join("plain/samples.json")), json(dir.join("edit/samples.json")));
    let mut differ = 0;
    for tile in ["t16_0", "t16_1", "t17_0", "t17_1"] {
        let (file, edited) = (format!("{tile}.png"), format!("{tile}_edited.png"));
        assert!(bytes(&format!("plain/{file}")) == bytes(&format!("edit/{file}")), "{file}");
        differ += usize::from(bytes(&format!("edit/{edited}")) != bytes(&format!("edit/{file}")));
        assert_eq!(tokens(&plain, &file), tokens(&edit, &file));
    }
    // Tokens of random weights follow z little: some tiles may stay.
    assert!(differ > 0, "no tile changed");
    let drawn = edit["tiles"].as_array().unwrap();
    assert_eq!((drawn.len(), &drawn[1]["edited"]), (8, &Value::Bool(true)));
    assert!(plain["tiles"][0].get("edited").is_none() && drawn[0].get("edited").is_none());
    assert_eq!(drawn[0]["tile"], drawn[1]["tile"], "the same random numbers");
    the_record_tells_what_changed(dir);
    sample(dir, "--rows t16,t17 --set G3=+2sd --set G5=0 --shard 2/3", "part");
    for file in ["t16_1.png", "t16_1_edited.png"] {
        assert!(bytes(&format!("part/{file}")) == bytes(&format!("edit/{file}")), "{file}");
    }
    assert!(bytes("part/edits.json") == bytes("edit/edits.json"));
}

/// The numbers of edits.json, taken again from the table and from z as it was drawn with.
fn the_record_tells_what_changed(dir: &Path) {
    let edits = json(dir.join("edit/edits.json"));
    assert_eq!(edits["unit"], "counts");
    assert!(edits["deviations"].as_str().unwrap().contains("rna.sd"), "{edits}");
    let sample = &edits["samples"][1];
    assert_eq!((&sample["sample"], &sample["row"]), (&"t17".into(), &17.into()));
    let table = std::fs::read_to_string(dir.join("rna.tsv")).unwrap();
    let row = table.lines().find(|l| l.starts_with("t17\t")).unwrap();
    let counts: Vec<f64> = row.split('\t').skip(1).map(|v| v.parse().unwrap()).collect();
    // A system that nothing trained has a deviation of 1 for every gene.
    let level = |v: f64| (1e4 * v / counts.iter().sum::<f64>()).ln_1p();
    let number = |v: &Value| v.as_f64().unwrap();
    let [up, zero] = [&sample["genes"][0], &sample["genes"][1]];
    assert_eq!((number(&up["before"]), number(&zero["before"])), (counts[3], counts[5]));
    assert!((level(number(&up["after"])) - level(counts[3]) - 2.0).abs() < 1e-5, "{up}");
    assert_eq!((number(&zero["after"]), &zero["asked"]), (0.0, &"0".into()));
    let z = TensorFile::open(dir.join("e.safetensors")).unwrap().tensor("z").unwrap();
    let of = |i: usize| z.rows(i, 1).unwrap().f32s().unwrap().to_vec();
    let (before, after) = (of(4), of(5));
    let moved: Vec<f64> = (0..4).map(|i| f64::from(after[i]) - f64::from(before[i])).collect();
    let length = moved.iter().map(|m| m * m).sum::<f64>().sqrt();
    assert!(length > 0.0 && (number(&sample["z"]["change"]) - length).abs() < 1e-9, "{sample}");
    let top = &sample["z"]["top"][0];
    let most = moved.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let at = top["latent"].as_u64().unwrap() as usize;
    assert_eq!((moved[at].abs(), number(&top["after"]) as f32), (most, after[at]));
}

#[test]
fn a_gene_that_cannot_be_changed_is_an_error_and_nothing_is_written() {
    let dir = untrained();
    let line = "sample --checkpoint s.safetensors --rna rna.tsv --out x --set";
    let cases: [(&str, &[&str]); 6] = [
        ("G33=+2sd", &["\"G33\" is none of the model's 12 genes", "nearest names are G3"]),
        ("G3=+2sd --set G3=0", &["names G3 twice"]),
        ("G3=2sd", &["+2sd or -2sd"]),
        ("G3", &["GENE=VALUE"]),
        ("G3=-4", &["G3=-4", "below zero"]),
        ("G3=+2sd --between 0 1", &["cannot be used with"]),
    ];
    for (how, parts) in cases {
        fails(dir.path(), &format!("{line} {how}"), 2, parts);
    }
    let line = "sample --checkpoint s.safetensors --rna rna.tsv --out x --between";
    fails(dir.path(), &format!("{line} 0 99"), 2, &["--between: \"99\" is no row"]);
    fails(dir.path(), &format!("{line} 0 1 --steps 1"), 2, &["--steps", "2 to 512"]);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_strip_begins_with_the_plain_tile_and_is_linear_in_z() {
    let dir = untrained();
    let dir = dir.path();
    sample(dir, "--rows t16,t17", "plain");
    sample(dir, "--between t16 t17 --steps 5 --tensors s5.safetensors", "strip");
    let bytes = |file: &str| std::fs::read(dir.join(file)).unwrap();
    let mut differ = 0;
    for j in 0..2 {
        let strip = bytes(&format!("strip/t16_to_t17_{j}_000.png"));
        assert!(strip == bytes(&format!("plain/t16_{j}.png")), "strip {j}");
        differ += usize::from(strip != bytes(&format!("strip/t16_to_t17_{j}_004.png")));
    }
    assert!(differ > 0, "no strip changes on its way");
    let record = json(dir.join("strip/samples.json"));
    let at: Vec<f64> =
        record["tiles"].as_array().unwrap().iter().map(|t| t["at"].as_f64().unwrap()).collect();
    assert_eq!(at, [0.0, 0.25, 0.5, 0.75, 1.0].repeat(2));
    let z = TensorFile::open(dir.join("s5.safetensors")).unwrap().tensor("z").unwrap();
    let z = z.f32s().unwrap();
    for i in 0..4 {
        assert_eq!(z[2 * 4 + i], 0.5 * z[i] + 0.5 * z[4 * 4 + i]);
    }
}

/// Whether `part`, each pixel repeated, is somewhere in `page`.
fn shows(page: &Rgb, part: &Rgb, times: usize) -> bool {
    let (w, h) = (part.width * times, part.height * times);
    let same = |x: usize, y: usize| {
        (0..w * h)
            .all(|i| page.pixel(x + i % w, y + i / w) == part.pixel(i % w / times, i / w / times))
    };
    (0..page.height - h).any(|y| (0..page.width - w).any(|x| same(x, y)))
}

#[test]
fn a_grid_has_words_and_the_real_tiles_of_a_pack_beside_the_drawn_ones() {
    let dir = untrained();
    let dir = dir.path();
    let image = |file: &str| read(dir.join(file), Expect::any()).unwrap();
    sample(dir, "--rows t16,t17", "table");
    succeeds(
        dir,
        "sample --checkpoint s.safetensors --rna pack.safetensors --rows 16,17 --n 2 --out pack",
    );
    let (table, pack) = (image("table/grid.png"), image("pack/grid.png"));
    assert!(pack.width > table.width + 64, "a column more");
    let ink = |page: &Rgb| page.data.chunks(3).filter(|p| *p == [50; 3]).count();
    assert!(ink(&table) > 200 && ink(&pack) > ink(&table), "words");
    let real = image("tiles/t17.png").crop(4, 4, 16, 16).unwrap();
    assert!(shows(&pack, &real, 4) && !shows(&table, &real, 4));
    assert!(shows(&table, &image("table/t17_1.png"), 4));
}

/// The sum of zip files, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |c: u32| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 };
    let byte = |c: u32, b: &u8| (0..8).fold(c ^ u32::from(*b), |c, _| step(c));
    !bytes.iter().fold(!0, byte)
}

/// The array of an archive and its shape, found as readers do: from the end of the file back to the
/// directory, and from there to the entry, all of whose sums and sizes have to agree.
fn unzip(path: &Path) -> (String, Vec<u8>) {
    let all = std::fs::read(path).unwrap();
    let number = |at: usize, n: usize| {
        all[at..at + n].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b)) as usize
    };
    let end = all.len() - 22;
    assert_eq!((number(end, 4), number(end - 20, 4)), (0x0605_4b50, 0x0706_4b50));
    let end64 = number(end - 12, 8);
    assert_eq!((number(end64, 4), number(end64 + 32, 8)), (0x0606_4b50, 1));
    let central = number(end64 + 48, 8);
    assert_eq!(central + number(end64 + 40, 8), end64);
    assert_eq!((number(central, 4), number(central + 10, 2)), (0x0201_4b50, 0), "stored");
    let name = number(central + 28, 2);
    assert_eq!(&all[central + 46..central + 46 + name], b"arr_0.npy");
    let (sum, size) = (number(central + 16, 4), number(central + 46 + name + 4, 8));
    let local = number(central + 42, 4);
    let start = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    assert_eq!((number(local, 4), number(local + 14, 4)), (0x0403_4b50, sum));
    assert_eq!(start + size, central);
    let array = &all[start..start + size];
    assert_eq!(crc32(array) as usize, sum);
    assert_eq!(&array[..8], b"\x93NUMPY\x01\x00");
    let head = 10 + number(start + 8, 2);
    let said = String::from_utf8(array[10..head].to_vec()).unwrap();
    (said.trim_end().to_string(), array[head..].to_vec())
}

#[test]
fn an_archive_holds_the_tiles_in_the_order_of_the_record() {
    let dir = untrained();
    let dir = dir.path();
    sample(dir, "--rows t16,t17 --npz all.npz", "all");
    let tiles = |record: &str| {
        let all = json(dir.join(record))["tiles"].as_array().unwrap().clone();
        let pixels = |tile: &Value| {
            let file = dir.join("all").join(tile["file"].as_str().unwrap());
            read(file, Expect::any()).unwrap().data
        };
        all.iter().flat_map(pixels).collect::<Vec<u8>>()
    };
    let (said, bytes) = unzip(&dir.join("all.npz"));
    assert_eq!(said, "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 16, 16, 3), }");
    assert!(bytes == tiles("all/samples.json"));
    sample(dir, "--rows t16,t17 --npz part.npz --shard 2/3", "part");
    let (said, bytes) = unzip(&dir.join("part-2-of-3.npz"));
    assert!(said.contains("(1, 16, 16, 3)") && bytes == tiles("part/samples-2-of-3.json"));
    let line = "sample --checkpoint s.safetensors --rna rna.tsv --out all --npz no/x.npz";
    fails(dir, line, 2, &["cannot create no/x.npz"]);
}
