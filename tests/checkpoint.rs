//! Kills a process that writes checkpoints, at many different moments, and reads what is left.
//!
//! The child is this test binary again, running [`writer`] until it is killed. It tells on its
//! standard output when a save begins and ends; the parent then kills it at once, or as soon as it
//! sees a given file of the save.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use genevar::tensor::Tensor;
use genevar::train::checkpoint::{self, Keep, Meta};

const FOLDER: &str = "GENEVAR_TEST_CHECKPOINT_FOLDER";
const ROUNDS: usize = 36;

/// A state in which every value tells the step, large enough that writing it takes a while.
fn state(step: u64) -> BTreeMap<String, Tensor> {
    let tensor = |n: usize| Tensor::new(vec![step as f32; n], [n]).unwrap();
    let parts = [("a", 1_000_000), ("b", 7), ("c", 300_000)];
    parts.into_iter().map(|(name, n)| (name.to_string(), tensor(n))).collect()
}

fn newest(dir: &Path) -> u64 {
    match checkpoint::find(dir).unwrap() {
        Some(path) => checkpoint::read_meta(&path).unwrap().step,
        None => 0,
    }
}

#[test]
#[ignore = "the child of the test below; it runs until it is killed"]
fn writer() {
    let Ok(dir) = std::env::var(FOLDER) else { return };
    let say = |line: &str| {
        let mut out = std::io::stdout();
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    for step in newest(Path::new(&dir)) + 1.. {
        say(&format!("\nbegin {step}\n"));
        let keep = Keep { newest: 2, best: "" };
        let meta = Meta::new("toy", step, "");
        checkpoint::save(Path::new(&dir), keep, &meta, &state(step)).unwrap();
        say(&format!("\nend {step}\n"));
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads the child's lines up to the `n`th that begins a save: its step, and the last step ended.
fn watch(child: &mut Child, n: usize) -> (u64, u64) {
    let mut ended = 0;
    let mut begun = 0;
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        match (words.next(), words.next().and_then(|w| w.parse::<u64>().ok())) {
            (Some("end"), Some(step)) => ended = step,
            (Some("begin"), Some(step)) => {
                begun += 1;
                if begun == n {
                    return (step, ended);
                }
            }
            _ => {}
        }
    }
    panic!("the child ended by itself");
}

/// Polls, a bounded number of times, until the save of `step` has got as far as `stage`.
fn until(dir: &Path, step: u64, stage: usize) {
    let partial = dir.join(format!("step-{step:08}.partial"));
    let reached = || match stage {
        0 => true,
        1 => partial.is_dir(),
        2 => partial.join("state.safetensors").is_file(),
        3 => partial.join("meta.json").is_file(),
        4 => dir.join(format!("step-{step:08}")).is_dir(),
        _ => newest_named(dir) == Some(step),
    };
    for _ in 0..200_000 {
        if reached() {
            return;
        }
    }
}

fn newest_named(dir: &Path) -> Option<u64> {
    let name = std::fs::read_to_string(dir.join("LATEST")).ok()?;
    name.trim().strip_prefix("step-")?.parse().ok()
}

#[test]
fn a_killed_writer_always_leaves_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut safe = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        let (begun, ended) = watch(&mut child, 1 + round % 2);
        until(dir.path(), begun, round % 6);
        child.kill().unwrap();
        child.wait().unwrap();
        safe = safe.max(ended);
        if safe == 0 && checkpoint::find(dir.path()).unwrap().is_none() {
            continue;
        }
        let found = checkpoint::load(dir.path()).unwrap();
        let step = found.meta.step;
        assert!(step >= safe, "round {round}: step {safe} was finished, {step} is the newest");
        found.check("toy", &state(step)).unwrap();
        for (name, tensor) in &found.tensors {
            let whole = tensor.f32s().unwrap().iter().all(|v| *v == step as f32);
            assert!(whole, "round {round}: {name} of step {step} is torn");
        }
        safe = step;
    }
    assert!(safe > 0, "no checkpoint was ever finished");
}
