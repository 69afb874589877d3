//! Pages about runs: whole, half-way, several, damaged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::path::Path;

use genevar::train::log;

use small_run::{STAGES, fails, genevar, prepared, succeeds};

/// The page of `genevar report` with these arguments.
fn page(dir: &Path, line: &str) -> String {
    let output = genevar(dir, &format!("report {line} --out page.html"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {told}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "page.html\n");
    let page = std::fs::read_to_string(dir.join("page.html")).unwrap();
    for word in ["NaN", "http://", "https://", "src=\"/", "<link", "<script"] {
        assert!(!page.contains(word), "{line}: {word}");
    }
    page
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_page_tells_what_a_run_has_and_what_it_lacks() {
    let dir = prepared();
    let dir = dir.path();
    succeeds(dir, "train all --config c.toml --out whole");
    a_whole_run_is_told(dir);
    a_run_half_way_is_told(dir);
    runs_stand_over_each_other(dir);
    damage_is_said_and_the_rest_is_shown(dir);
    what_is_no_run_is_refused(dir);
    tensorboard_reads_the_log(dir);
}

fn a_whole_run_is_told(dir: &Path) {
    let fd = r#"{"distance": "FD-EffNet", "reference": "one half", "n": 9, "level": 0.95,
        "reps": 7, "rows": [{"key": "fd", "set": "mine", "fd": 31.25,
        "interval": [30.0, 33.5]}]}"#;
    std::fs::write(dir.join("whole/fd.json"), fd).unwrap();
    std::fs::write(dir.join("whole/other.json"), "[1, 2]").unwrap();
    let html = page(dir, "whole");
    for word in [
        "Gene prior (beta-VAE)",
        "Tokenizer (MSVQ)",
        "Causal MeanFlow",
        "Transformer",
        "val_own",
        "Gradient norm",
        "Learning rate",
        "31.2",
        "30.0–33.5",
        "95 % bootstrap intervals, 7 repetitions",
        "genevar train all --config run.toml --data pack.safetensors --out whole",
        "with seed 5",
        "width = 32",
    ] {
        assert!(html.contains(word), "{word}");
    }
    assert!(!html.contains("has not begun") && !html.contains("is at step"));
    assert!(html.matches("<svg").count() >= 18, "{}", html.matches("<svg").count());
    assert_eq!(html.matches("data:image/png").count(), 1, "two classes on one sheet");
    assert!(html.contains("a tile drawn from its RNA"));
    let entries = log::read(&dir.join("whole/ar/log.jsonl")).unwrap();
    let newest = |name: &str| {
        let find =
            |(_, e): &(u64, log::StepLog)| e.more.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        entries.iter().rev().find_map(find).unwrap()
    };
    // Cross-entropies of the scales, weighted by their tokens, are that of the tile.
    let scales = [1.0, 4.0, 16.0].iter().zip(1..);
    let mean = scales.map(|(n, k)| n * newest(&format!("val_own_{k}"))).sum::<f64>() / 21.0;
    assert!((mean - newest("val_own")).abs() < 1e-5, "{mean}");
    let own = newest("val_own_3");
    let cells =
        format!("<td class=\"number\">{own:.3}</td><td class=\"number\">{:.1}</td>", own.exp());
    assert!(html.contains(&cells), "{cells}");
    // The clock was kept: steps of all stages, at some rate.
    let time = html.split("<h2>Time</h2>").nth(1).unwrap();
    for (stage, steps) in STAGES.iter().zip([12, 14, 10, 10]) {
        let row = format!("<td>{stage}</td><td class=\"number\">{steps}</td>");
        assert!(time.contains(&row), "{row}");
    }
}

/// The prior is there, the tokenizer has begun and has no checkpoint.
fn a_run_half_way_is_told(dir: &Path) {
    let half = dir.join("half");
    copy(&dir.join("whole/beta_vae"), &half.join("beta_vae"));
    std::fs::create_dir(half.join("msvq")).unwrap();
    let whole = std::fs::read_to_string(dir.join("whole/msvq/log.jsonl")).unwrap();
    std::fs::write(half.join("msvq/log.jsonl"), &whole[..whole.len() - 30]).unwrap();
    let html = page(dir, "half");
    for word in [
        "The tokenizer (MSVQ) has no checkpoint yet.",
        "Causal MeanFlow has not begun.",
        "The transformer has not begun.",
        "None were measured",
        "Tokenizer (MSVQ)",
        "PSNR, dB",
    ] {
        assert!(html.contains(word), "{word}");
    }
    copy(&dir.join("whole/msvq"), &half.join("msvq"));
    let html = page(dir, "half");
    assert!(html.contains("through the tokenizer and back. ") || html.contains("and back.<"));
    assert!(html.contains("no tiles are drawn from RNA yet"), "the rest is shown");
}

fn runs_stand_over_each_other(dir: &Path) {
    let html = page(dir, "whole half --tiles 0");
    assert!(html.contains("<h1>genevar: 2 runs</h1>") && !html.contains("data:image/png"));
    let loss = html.split("<svg").find(|svg| svg.contains(">Learning rate<")).unwrap();
    assert!(loss.contains(">whole</text>") && loss.contains(">half</text>"), "{loss}");
    assert!(loss.contains("--s0") && loss.contains("--s1"));
    let stage = page(dir, "whole/ar --tiles 0");
    assert!(stage.contains("Held-out cross-entropy by scale") && !stage.contains("has not begun"));
}

fn damage_is_said_and_the_rest_is_shown(dir: &Path) {
    let bad = dir.join("bad");
    copy(&dir.join("whole"), &bad);
    let latest = std::fs::read_to_string(bad.join("ar/LATEST")).unwrap();
    std::fs::write(bad.join("ar").join(latest.trim()).join("meta.json"), "{").unwrap();
    std::fs::write(bad.join("meanflow/log.jsonl"), [0xff, 0xfe, 0x00]).unwrap();
    std::fs::write(bad.join("beta_vae/clock.jsonl"), "no clock\n").unwrap();
    std::fs::write(bad.join("fd.json"), "{\"fd_intervals\": 3}").unwrap();
    let html = page(dir, "bad");
    for word in [
        "The newest checkpoint of ar cannot be read",
        "The log of meanflow cannot be read",
        "Tokenizer (MSVQ)",
        "No tiles of bad are shown",
    ] {
        assert!(html.contains(word), "{word}");
    }
    copy(&dir.join("whole/ar"), &bad.join("ar"));
    assert!(page(dir, "bad").contains("a tile drawn from its RNA"));
    let latest = std::fs::read_to_string(bad.join("msvq/LATEST")).unwrap();
    let state = bad.join("msvq").join(latest.trim()).join("state.safetensors");
    std::fs::write(state, "short").unwrap();
    assert!(page(dir, "bad").contains("No tiles of bad are shown"));
}

fn what_is_no_run_is_refused(dir: &Path) {
    std::fs::create_dir(dir.join("empty")).unwrap();
    fails(dir, "report empty --out x.html", 2, &["empty", "no log and no checkpoint"]);
    fails(dir, "report none --out x.html", 2, &["none", "is not there"]);
    fails(dir, "report rna.tsv --out x.html", 2, &["no folder of a run"]);
    fails(dir, "report whole --eval rna.tsv --out x.html", 2, &["rna.tsv", "is no JSON"]);
    let line = "report whole --eval whole/other.json --out x.html";
    fails(dir, line, 2, &["holds no distances"]);
    assert!(!dir.join("x.html").exists());
}

/// Castagnoli's checksum, bit by bit, as records store it.
fn stored_sum(data: &[u8]) -> u32 {
    let step = |c: u32| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 };
    let sum = !data.iter().fold(!0u32, |c, b| (0..8).fold(c ^ u32::from(*b), |c, _| step(c)));
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The fields of a message: number, kind, and either a number's bits or bytes.
fn fields(mut data: &[u8]) -> Vec<(u64, u64, u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let n = data.iter().position(|b| b & 0x80 == 0).unwrap();
        let value = (0..=n).map(|i| u64::from(data[i] & 0x7f) << (7 * i)).sum();
        *data = &data[n + 1..];
        value
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let (mut number, mut bytes) = (0, Vec::new());
        let size = match key & 7 {
            0 => {
                number = varint(&mut data);
                0
            }
            1 => 8,
            2 => varint(&mut data) as usize,
            5 => 4,
            kind => panic!("kind {kind}"),
        };
        bytes.extend(&data[..size]);
        data = &data[size..];
        if [1, 5].contains(&(key & 7)) {
            number = bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        }
        found.push((key >> 3, key & 7, number, bytes));
    }
    found
}

fn tensorboard_reads_the_log(dir: &Path) {
    succeeds(dir, "log tensorboard whole half --out tb");
    let file = "events.out.tfevents.0000000000.genevar";
    let data = std::fs::read(dir.join("tb/whole/ar").join(file)).unwrap();
    let number = |at: usize, n: usize| {
        data[at..at + n].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b))
    };
    let (mut at, mut events) = (0, Vec::new());
    while at < data.len() {
        let size = number(at, 8) as usize;
        assert_eq!(number(at + 8, 4) as u32, stored_sum(&data[at..at + 8]));
        let event = &data[at + 12..at + 12 + size];
        assert_eq!(number(at + 12 + size, 4) as u32, stored_sum(event));
        events.push(fields(event));
        at += size + 16;
    }
    assert_eq!(events[0][1].3, b"brain.Event:2");
    let log = log::read(&dir.join("whole/ar/log.jsonl")).unwrap();
    assert_eq!(events.len(), log.len() + 1);
    let mut before = 0.0;
    for (event, (step, entry)) in events[1..].iter().zip(&log) {
        let time = f64::from_bits(event[0].2);
        assert!(time > 1.7e9 && time >= before, "{time}");
        before = time;
        assert_eq!((event[1].0, event[1].2), (2, *step));
        let mut told = Vec::new();
        for (_, _, _, value) in fields(&event[2].3) {
            let parts = fields(&value);
            let tag = String::from_utf8(parts[0].3.clone()).unwrap();
            told.push((tag.replace('/', "_"), f32::from_bits(parts[1].2 as u32)));
        }
        let mut want =
            vec![("loss".to_string(), entry.loss as f32), ("lr".into(), entry.lr as f32)];
        want.extend(entry.more.iter().map(|(name, v)| (name.clone(), *v as f32)));
        assert_eq!(told, want);
    }
    assert!(dir.join("tb/half/beta_vae").join(file).is_file());
    fails(dir, "log tensorboard empty --out tb", 2, &["no log and no checkpoint"]);
}
