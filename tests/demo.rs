//! The demo from outside: what it refuses, and that a killed training goes on to the same bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use genevar::config::Config;
use genevar::demo::scratch::{self, Scratch};
use genevar::train::bundle::STAGES;
use genevar::train::interrupt::Interrupt;

#[path = "support/data_set.rs"]
mod data_set;

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_genevar"))
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/demo")
}

fn demo(args: &[&Path]) -> Output {
    let flags = ["--assets", "--out"];
    let pairs = flags.iter().zip(args).flat_map(|(f, p)| [Path::new(f).as_os_str(), p.as_os_str()]);
    Command::new(program()).arg("demo").args(pairs).output().unwrap()
}

/// A pack of the made-up tissue of `data_set`.
fn pack(folder: &Path) -> PathBuf {
    let data_set::Set { table, counts, genes, images, dense } = data_set::write_set(folder);
    assert_eq!((images.len(), dense.len()), (6, 6));
    let zipped = folder.join("tiles.tsv.gz");
    data_set::gzip(&zipped, &fs::read_to_string(table).unwrap());
    let out = folder.join("pack.safetensors");
    let status = Command::new(program())
        .args(["data", "pack", "--join", "row", "--class-column", "class", "--unit", "section"])
        .args(["--tile-px", "64", "--quality", "0"])
        .args([Path::new("--tiles"), folder, Path::new("--table"), &zipped])
        .args([Path::new("--rna"), &counts, Path::new("--genes-table"), &genes])
        .args([Path::new("--out"), &out])
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    out
}

/// The demo's settings, cut down to what a kill and a resume need.
fn few_steps(genes: usize) -> Config {
    let mut c = scratch::config(genes, 1).unwrap();
    c.data.counts_per = 0.0;
    c.msvq.vocab = 16;
    c.msvq.warmup_steps = 8;
    c.msvq.kmeans_vectors = 128;
    for (stage, steps) in c.train.stages_mut().into_iter().zip([6, 60, 2, 2]) {
        stage.steps = steps;
        stage.batch = 2;
        stage.checkpoint_every = 10;
    }
    c
}

#[test]
fn a_killed_training_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = pack(dir.path());
    let config = few_steps(5);
    let out = dir.path().join("training");
    let scratch = Scratch {
        program: program(),
        pack: &data,
        dir: &out,
        config: &config,
        interrupt: &Interrupt::default(),
    };
    let curves = scratch::train(&scratch).unwrap();
    assert!(curves.kill.identical, "{:?}", curves.kill);
    assert!(curves.kill.logged > curves.kill.resumed_at, "{:?}", curves.kill);
    let steps: Vec<usize> = curves.stages.iter().map(|(_, log)| log.len()).collect();
    assert_eq!(steps, [6, 60, 2, 2]);
    // The same once more, in the same place and without a kill: the whole logs agree.
    let logs = || STAGES.map(|s| fs::read(out.join(s).join("log.jsonl")).unwrap());
    let killed = logs();
    let whole = dir.path().join("whole");
    let status = Command::new(program())
        .args(["train", "all", "--config"])
        .arg(out.join("demo-training.toml"))
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(&whole)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    for (stage, log) in STAGES.iter().zip(killed) {
        let uninterrupted = fs::read(whole.join(stage).join("log.jsonl")).unwrap();
        assert_eq!(log, uninterrupted, "{stage}");
    }
}

#[test]
fn a_training_that_fails_is_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let data = pack(dir.path());
    let config = few_steps(9);
    let scratch = Scratch {
        program: program(),
        pack: &data,
        dir: &dir.path().join("training"),
        config: &config,
        interrupt: &Interrupt::default(),
    };
    let error = scratch::train(&scratch).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("the training ended with"), "{error}");
}

#[test]
fn missing_and_damaged_files_are_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (files, out) = (dir.path().join("assets"), dir.path().join("out"));
    fs::create_dir(&files).unwrap();
    let refused = |word: &str| {
        let run = demo(&[&files, &out]);
        let text = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{text}");
        assert!(text.contains(word), "{word}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!out.exists());
    };
    refused("her2st-demo.safetensors");
    let pack = fs::read(assets().join("her2st-demo.safetensors")).unwrap();
    let network = "efficientnet_lite0_f16.safetensors";
    fs::copy(assets().join(network), files.join(network)).unwrap();
    fs::write(files.join("her2st-demo.safetensors"), &pack[..pack.len() / 2]).unwrap();
    refused("genevar-demo.safetensors");
    fs::write(files.join("genevar-demo.safetensors"), b"").unwrap();
    refused("her2st-demo.safetensors");
    fs::write(files.join("her2st-demo.safetensors"), &pack).unwrap();
    refused("genevar-demo.safetensors");
}

#[test]
fn a_trial_needs_a_system_and_a_pack() {
    let run = |args: &[&str]| {
        let out = Command::new(program()).args(["eval", "fd"]).args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(run(&[]).contains("--checkpoint"));
    assert!(run(&["--checkpoint", "c"]).contains("--pack"));
    assert!(run(&["--checkpoint", "c", "--pack", "p", "--n", "1"]).contains("--n"));
    let missing = run(&["--checkpoint", "no-such-run", "--pack", "p"]);
    assert!(missing.contains("no-such-run"), "{missing}");
}
