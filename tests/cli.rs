//! The `genevar` command from outside: what it prints, what it leaves, its exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::path::Path;
use std::process::{Command, Output};

fn genevar(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_genevar")).args(args).current_dir(dir).output().unwrap()
}

/// Runs a command that must be refused: exit code 2, one line that says all of `parts`, and nothing
/// written. Returns the line.
fn refused(dir: &Path, args: &[&str], parts: &[&str]) -> String {
    let names = || {
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    let output = genevar(dir, args);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
    assert_eq!(told.trim_end().lines().count(), 1, "{args:?}: {told}");
    for part in parts {
        assert!(told.contains(part), "{args:?}: {part:?} is not in {told}");
    }
    assert_eq!(before, names(), "{args:?} left something behind");
    told
}

#[test]
fn the_printed_configuration_is_read_back_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    let first = genevar(dir.path(), &["config", "--tier", "demo"]);
    assert!(first.status.success());
    std::fs::write(dir.path().join("demo.toml"), &first.stdout).unwrap();
    let second = genevar(dir.path(), &["config", "--config", "demo.toml"]);
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn a_bad_configuration_names_file_key_and_cure() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 6] = [
        ("[train.ar]\nlr_peak = 1.0\n", &["train.ar.lr_peak", "did you mean `lr`"]),
        ("tier = 't7'\n", &["tier", "t7", "t0"]),
        ("[meanflow]\nalpha = 0.5\n", &["meanflow.alpha", "0.5"]),
        ("[msvq]\npatch_nums = [1, 2]\n", &["msvq.patch_nums", "16 x 16"]),
        ("[mask]\nkind = 3\n", &["mask.kind", "wants string"]),
        ("[mask\n", &["line 1"]),
    ];
    let file = dir.path().join("c.toml");
    for (text, parts) in cases {
        std::fs::write(&file, text).unwrap();
        let told = refused(dir.path(), &["config", "--config", "c.toml"], parts);
        assert!(told.contains("c.toml"), "{told}");
    }
    std::fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    refused(dir.path(), &["config", "--config", "c.toml"], &["c.toml"]);
    refused(dir.path(), &["config", "--config", "none.toml"], &["cannot read none.toml"]);
    refused(dir.path(), &["config"], &["--config", "--tier"]);
}

#[test]
fn usage_errors_have_code_2_and_help_has_code_0() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(genevar(dir.path(), &["paint"]).status.code(), Some(2));
    assert_eq!(genevar(dir.path(), &["--version"]).status.code(), Some(0));
    let help = genevar(dir.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("data"));
}

#[test]
fn every_command_has_examples_a_manual_page_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    let text = |args: &[&str]| {
        let output = genevar(dir.path(), args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text(&["--help"]).contains("Exit codes:"));
    for verb in [
        "config",
        "data",
        "train",
        "export",
        "import",
        "sample",
        "eval",
        "checkpoint",
        "profile",
        "report",
        "log",
        "demo",
        "ops",
        "kernels",
        "doctor",
        "completions",
        "man",
    ] {
        let help = text(&[verb, "--help"]);
        assert!(help.contains("Examples:"), "{verb}");
        // The commands below it have theirs, too.
        let below = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        let names = below.lines().take_while(|l| l.starts_with("  "));
        for name in names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help") {
            let own = text(&[verb, name, "--help"]);
            let example = format!("Examples:\n  genevar {verb} {name} ");
            assert!(own.contains(&example), "{verb} {name}: {own}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&["completions", shell]).contains("checkpoint"), "{shell}");
    }
    text(&["man", "--out", "man"]);
    let page = std::fs::read_to_string(dir.path().join("man/genevar-sample.1")).unwrap();
    assert!(page.contains("checkpoint") && page.contains("seed"), "{page}");
    assert!(text(&["config", "--explain", "mask.k_m"]).contains("mask.k_m = 8\n    integer:"));
    let all = text(&["config", "--explain", "--tier", "t0", "--json"]);
    assert!(
        serde_json::from_str::<serde_json::Value>(&all).unwrap().as_array().unwrap().len() > 90
    );
    refused(dir.path(), &["config", "--explain", "nothing"], &["no key contains"]);
}

#[test]
fn what_scripts_read_is_json() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.tsv"), "gene\ts1\ts2\nACTB\t3\t\nCD3E\t1\t2\n").unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let output = genevar(dir.path(), args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let doctor = json(&["doctor", "--json"]);
    for part in ["processor", "memory", "disks", "kernels", "openslide", "driver", "gpus"] {
        assert!(doctor.get(part).is_some(), "{part}: {doctor}");
    }
    assert_eq!(doctor["disks"].as_array().unwrap().len(), 2);
    let ops = json(&["ops", "--json"]);
    let linear = ops.as_array().unwrap().iter().find(|o| o["op"] == "linear").unwrap();
    assert_eq!((&linear["differentiable"], &linear["family"]), (&true.into(), &"gemm".into()));
    let kernels = json(&["kernels", "--json"]);
    assert!(kernels.as_array().unwrap().iter().any(|k| k["entry"] == "layer_norm_fwd"));
    let seen = json(&["data", "inspect", "--json", "t.tsv"]);
    assert_eq!((&seen[0]["path"], &seen[0]["values"]["missing"]), (&"t.tsv".into(), &1.into()));
}
