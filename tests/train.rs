//! Training from outside: `genevar train all` on a made-up data set, killed and resumed, then used.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use genevar::io::safetensors::TensorFile;

use small_run::{CONFIG, STAGES, command, fails, prepared, succeeds};

/// Bytes of all logs of a run: they grow with every step.
fn logged(run: &Path) -> u64 {
    let size = |s: &str| std::fs::metadata(run.join(s).join("log.jsonl")).map_or(0, |m| m.len());
    STAGES.iter().map(|s| size(s)).sum()
}

/// Starts the run and kills it as soon as its logs have grown by `bytes`. Whether it was killed.
fn killed(mut command: Command, run: &Path, bytes: u64) -> bool {
    let before = logged(run);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        // A resumed log begins by forgetting the steps after its checkpoint.
        if logged(run) > before.saturating_sub(400) + bytes {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::yield_now();
    }
}

fn last_state(run: &Path, stage: &str) -> PathBuf {
    let latest = std::fs::read_to_string(run.join(stage).join("LATEST")).unwrap();
    run.join(stage).join(latest.trim()).join("state.safetensors")
}

#[test]
fn a_run_killed_many_times_ends_with_the_bits_of_one_that_was_not() {
    let dir = prepared();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let mut one_thread = command(dir.path(), "train all --config c.toml --out whole");
    assert!(one_thread.env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());

    let line = "train all --config c.toml --out broken --resume";
    let go = || command(dir.path(), line);
    let kills = (0..40).take_while(|i| killed(go(), &broken, 300 + 170 * (i % 5)));
    let kills = kills.count();
    assert!(kills >= 5, "the run was over after {kills} kills");
    succeeds(dir.path(), line);
    for stage in STAGES {
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let log = |run: &Path| read(run.join(stage).join("log.jsonl"));
        assert!(log(&whole) == log(&broken), "{stage}: the logs differ");
        let same = read(last_state(&whole, stage)) == read(last_state(&broken, stage));
        assert!(same, "{stage}: the weights differ");
    }
    a_trained_system_paints(dir.path());
    parts_are_the_job(dir.path());
    the_decoder_is_tuned_alone(dir.path());
    what_does_not_fit_is_refused(dir.path());
}

/// Samples depend on seed, row and number alone, not on what else is drawn or on the threads.
fn a_trained_system_paints(dir: &Path) {
    let sample = |from: &str, more: &str, out: &str| {
        succeeds(dir, &format!("sample --checkpoint {from} --rna rna.tsv --out {out} {more}"));
    };
    sample("whole", "--rows t16,t17 --n 2 --seed 3", "a");
    sample("broken", "--rows 17 --n 1 --seed 3", "b");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert_eq!(read("a/t17_0.png"), read("b/t17_0.png"));
    assert_ne!(read("a/t17_0.png"), read("a/t17_1.png"));
    assert!(dir.join("a/grid.png").is_file());
    let record: serde_json::Value = serde_json::from_slice(&read("a/samples.json")).unwrap();
    assert_eq!(record["seed"], 3);
    assert_eq!(record["tiles"].as_array().unwrap().len(), 4);
    succeeds(dir, "export --run whole --out bundle.safetensors");
    sample("bundle.safetensors", "--rows 17 --n 1 --seed 3", "c");
    assert_eq!(read("a/t17_0.png"), read("c/t17_0.png"));
    sample("bundle.safetensors", "--rows 16,17 --n 1 --seed 3 --tensors drawn.safetensors", "e");
    let drawn = TensorFile::open(dir.join("drawn.safetensors")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&read("e/samples.json")).unwrap();
    let tokens = drawn.tensor("tokens").unwrap();
    let row = tokens.rows(1, 1).unwrap().i32s().unwrap().to_vec();
    assert_eq!(serde_json::json!(row), record["tiles"][1]["tokens"]);
    assert_eq!(drawn.tensor("pixels").unwrap().shape().dims()[0], 2);
    succeeds(dir, "export --run whole --out guided.safetensors --cfg 2.5 --guidance flat");
    sample("guided.safetensors", "--rows 17 --n 1", "d");
    let record: serde_json::Value = serde_json::from_slice(&read("d/samples.json")).unwrap();
    assert_eq!((record["cfg"].as_f64(), record["guidance"].as_str()), (Some(2.5), Some("flat")));
}

/// Parts of a job are the job.
fn parts_are_the_job(dir: &Path) {
    let of = |out: &str| {
        let line = "sample --checkpoint whole --rna rna.tsv --rows t16,t17 --n 2 --seed 3";
        succeeds(dir, &format!("{line} --out {out}"));
    };
    of("job");
    for part in ["1/3", "2/3", "3/3"] {
        of(&format!("parts --shard {part}"));
    }
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    for file in ["t16_0.png", "t16_1.png", "t17_0.png", "t17_1.png"] {
        assert!(read(&format!("parts/{file}")) == read(&format!("job/{file}")), "{file}");
    }
    let tiles = |name: &str| {
        let record: serde_json::Value = serde_json::from_slice(&read(name)).unwrap();
        record["tiles"].as_array().unwrap().clone()
    };
    let parts = (1..=3).flat_map(|i| tiles(&format!("parts/samples-{i}-of-3.json")));
    assert_eq!(parts.collect::<Vec<_>>(), tiles("job/samples.json"));
}

/// A decoder trained on its own, put in the tokenizer's place: the other stages go on working.
fn the_decoder_is_tuned_alone(dir: &Path) {
    let alone = CONFIG.replace("[msvq]\n", "[msvq]\ndecoder_only = true\n");
    assert_ne!(alone, CONFIG);
    std::fs::write(dir.join("alone.toml"), alone).unwrap();
    let line = "train msvq --config alone.toml --out alone";
    fails(dir, line, 2, &["msvq.decoder_only", "--warm"]);
    succeeds(dir, &format!("{line} --warm whole"));
    let swapped = dir.join("swapped");
    for (stage, from) in
        [("beta_vae", "whole"), ("msvq", "alone"), ("meanflow", "whole"), ("ar", "whole")]
    {
        copy(&dir.join(from).join(stage), &swapped.join(stage));
    }
    succeeds(
        dir,
        "sample --checkpoint swapped --rna rna.tsv --out e --rows t16,t17 --n 2 --seed 3",
    );
    let tokens = |out: &str| {
        let record = std::fs::read(dir.join(out).join("samples.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let tiles = record["tiles"].as_array().unwrap().clone();
        tiles.iter().map(|t| t["tokens"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(tokens("a"), tokens("e"));
    let png = |out: &str| std::fs::read(dir.join(out).join("t17_0.png")).unwrap();
    assert_ne!(png("a"), png("e"));
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

fn what_does_not_fit_is_refused(dir: &Path) {
    fails(dir, "train msvq --config c.toml --out whole", 2, &["holds a run already", "--resume"]);
    let wider = CONFIG.replace("ch = 8\n", "ch = 16\n").replace("steps = 14", "steps = 20");
    std::fs::write(dir.join("wider.toml"), wider).unwrap();
    let parts = ["tensor \"adam_m.", "architecture"];
    fails(dir, "train msvq --config wider.toml --out whole --resume", 2, &parts);
    fails(dir, "train ar --config c.toml --out empty", 2, &["empty", "is not there"]);
    let line = "sample --checkpoint whole --rna rna.tsv --out x --rows t99";
    fails(dir, line, 2, &["--rows", "t99"]);
    assert!(!dir.join("x").exists());
    let state = last_state(&dir.join("whole"), "ar");
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    fails(dir, "sample --checkpoint whole --rna rna.tsv --out x", 2, &["truncated", "state"]);
    assert!(!dir.join("x").exists());
}

/// The program on softcuda, which stands in for the driver's library.
fn on_softcuda(dir: &Path, line: &str) -> Command {
    let library = std::env::current_exe().unwrap().with_file_name("libsoftcuda.so");
    let mut command = command(dir, line);
    command.env("LD_PRELOAD", library);
    command
}

#[test]
fn the_gene_prior_trains_on_a_gpu() {
    let dir = prepared();
    let dir = dir.path();
    fails(dir, "train beta-vae --config c.toml --out x --device gpu", 2, &["cpu, cuda"]);
    if genevar::device::launch::NVRTC.is_none() {
        return;
    }
    let run = |line: &str, memory: &str| {
        let output = on_softcuda(dir, line).env("SOFTCUDA_MEMORY", memory).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let line = "train beta-vae --config c.toml --device cuda --out";
    let (code, told) = run(&format!("{line} x"), "4K");
    assert!(code == Some(2) && told.contains("a step of beta_vae takes"), "{code:?}: {told}");
    let (code, told) = run(&format!("{line} whole"), "1G");
    assert!(code == Some(0) && told.contains("are free"), "{code:?}: {told}");
    let (go, parts) = (format!("{line} parts --resume"), dir.join("parts"));
    let kills = (0..9).take_while(|_| killed(on_softcuda(dir, &go), &parts, 500)).count();
    assert!(kills >= 1, "the run was over before it could be killed");
    let (code, told) = run(&go, "1G");
    assert_eq!(code, Some(0), "{told}");
    let state = |run: &str| std::fs::read(last_state(&dir.join(run), "beta_vae")).unwrap();
    assert!(state("whole") == state("parts"), "the resumed run has other weights");
    // The CPU's first step starts from the same weights and sees the same batch.
    succeeds(dir, "train beta-vae --config c.toml --out cpu");
    let first = |run: &str| {
        let log = std::fs::read_to_string(dir.join(run).join("beta_vae/log.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let (cpu, gpu) = (first("cpu"), first("whole"));
    assert!((cpu - gpu).abs() < 1e-5 * cpu, "{cpu} and {gpu}");
}

/// All stages on a GPU, killed and resumed; then tiles, whose tokens are those that the CPU draws.
#[test]
fn the_whole_system_trains_and_paints_on_a_gpu() {
    if genevar::device::launch::NVRTC.is_none() {
        return;
    }
    let dir = prepared();
    let dir = dir.path();
    let mut short = CONFIG.replace("steps = 12", "steps = 6").replace("steps = 14", "steps = 8");
    short = short.replace("steps = 10", "steps = 5");
    std::fs::write(dir.join("short.toml"), short).unwrap();
    let gpu = |line: &str| {
        let output = on_softcuda(dir, line).env("SOFTCUDA_MEMORY", "1G").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {told}");
    };
    let line = "train all --config short.toml --device cuda --resume --out";
    gpu(&format!("{line} whole"));
    let parts = dir.join("parts");
    let go = || on_softcuda(dir, &format!("{line} parts"));
    let kills = (0..2).take_while(|i| killed(go(), &parts, 900 + 900 * i)).count();
    assert!(kills >= 2, "the run was over after {kills} kills");
    gpu(&format!("{line} parts"));
    for stage in STAGES {
        let state = |run: &str| std::fs::read(last_state(&dir.join(run), stage)).unwrap();
        assert!(state("whole") == state("parts"), "{stage}: the resumed run has other weights");
    }
    let sample = "sample --checkpoint whole --rna rna.tsv --rows t16,t17 --n 2 --seed 3 --out";
    gpu(&format!("{sample} gpu --device cuda --precision f32"));
    succeeds(dir, &format!("{sample} cpu"));
    let tokens = |out: &str| {
        let record = std::fs::read(dir.join(out).join("samples.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let tiles = record["tiles"].as_array().unwrap().clone();
        tiles.iter().map(|t| t["tokens"].clone()).collect::<Vec<_>>()
    };
    // Draws at the boundary of a token may differ; tests/cuda_sampling.rs says when.
    let (cpu, gpu) = (tokens("cpu"), tokens("gpu"));
    let differ = cpu.iter().zip(&gpu).filter(|(a, b)| a != b).count();
    assert!(gpu.len() == 4 && differ <= 1, "{differ} of 4 tiles differ");
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_op() {
    let dir = prepared();
    let wild = CONFIG.replace("[train.msvq]", "[train.msvq]\nlr = 1e30\nwarmup = 0.0");
    std::fs::write(dir.path().join("wild.toml"), wild).unwrap();
    let line = "train msvq --config wild.toml --out wild";
    fails(dir.path(), line, 1, &["msvq: step ", "NaN or infinite"]);
}

/// The same run with norms that must not grow by a tenth, whole, resumed and on a GPU.
#[test]
fn steps_whose_gradient_leaps_are_left_out_and_the_run_goes_on() {
    let dir = prepared();
    let dir = dir.path();
    let of_it = "spike = 1.1\non_bad = \"skip\"\nmax_skips = 40\nsteps = 60\ncheckpoint_every = 30";
    let spiky = CONFIG.replacen("steps = 12\ncheckpoint_every = 3", of_it, 1);
    assert!(spiky != CONFIG, "no stage was changed");
    std::fs::write(dir.join("spiky.toml"), &spiky).unwrap();
    let line = "train beta-vae --config spiky.toml --out";
    succeeds(dir, &format!("{line} whole"));
    let log =
        |run: &str| std::fs::read_to_string(dir.join(run).join("beta_vae/log.jsonl")).unwrap();
    let skipped = |run: &str| log(run).lines().filter(|l| l.contains("skipped")).count();
    let some = skipped("whole");
    assert!((1..40).contains(&some), "{some} steps were left out");
    // A resumed run knows the mean.
    succeeds(dir, &format!("{line} parts"));
    let of_parts = dir.join("parts/beta_vae");
    std::fs::remove_dir_all(of_parts.join("step-00000060")).unwrap();
    std::fs::write(of_parts.join("LATEST"), "step-00000030\n").unwrap();
    succeeds(dir, &format!("{line} parts --resume"));
    let state = |run: &str| std::fs::read(last_state(&dir.join(run), "beta_vae")).unwrap();
    assert!(state("whole") == state("parts") && log("whole") == log("parts"));
    if genevar::device::launch::NVRTC.is_some() {
        let output = on_softcuda(dir, &format!("{line} gpu --device cuda")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(skipped("gpu").abs_diff(some) <= 2, "{} and {some}", skipped("gpu"));
    }
}
