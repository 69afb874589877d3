//! `genevar profile` from outside: tables, files and exit codes, on the CPU, as a plan and on
//! softcuda; ranges that reach a tool.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use genevar::device::launch;
use genevar::profile::format::{Clock, Profile};
use serde_json::Value;

/// What begins a colour.
const ESCAPE: char = '\u{1b}';

/// The driver in software, beside the test's own program.
fn softcuda() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libsoftcuda.so")
}

/// The command in `dir`, with softcuda as the driver where the arguments want a GPU.
fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genevar"));
    command.args(args).current_dir(dir).env_remove("NO_COLOR").env("SOFTCUDA_SANITIZE", "0");
    if args.contains(&"cuda") {
        command.env("LD_PRELOAD", softcuda());
    }
    command
}

fn told(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Takes a profile: what was printed, and the file.
fn profile(dir: &Path, name: &str, args: &[&str]) -> (String, Profile) {
    let mut all = vec!["profile"];
    all.extend(args);
    all.extend(["--json", name]);
    let page = told(&command(dir, &all).output().unwrap());
    let wide: Vec<&str> = page.lines().filter(|l| l.chars().count() > 120).collect();
    assert!(!page.contains(ESCAPE) && wide.is_empty(), "{wide:?} of {page}");
    (page, Profile::read(&dir.join(name)).unwrap())
}

/// Calls of each kernel at each scale.
fn calls(profile: &Profile) -> BTreeMap<(Option<usize>, String, String), u64> {
    let key = |r: &genevar::profile::format::Row| (r.scale, r.part.clone(), r.name().to_string());
    profile.by(key).into_iter().map(|(key, row)| (key, row.calls)).collect()
}

/// What the trace-event format asks of a file: fields, lengths, named lanes; and that what is on a
/// lane does not overlap. The names on each lane.
fn lanes(path: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let trace: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let lane = |e: &Value| (e["pid"].as_u64().unwrap(), e["tid"].as_u64().unwrap());
    let (mut named, mut processes) = (BTreeMap::new(), BTreeMap::new());
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut ends: BTreeMap<(u64, u64), f64> = BTreeMap::new();
    for e in events.iter().filter(|e| e["ph"] == "M") {
        let name = e["args"]["name"].as_str().map(str::to_string);
        match e["name"].as_str().unwrap() {
            "process_name" => drop(processes.insert(lane(e).0, name.unwrap())),
            "thread_name" => drop(named.insert(lane(e), name.unwrap())),
            _ => {}
        }
    }
    for e in events {
        for field in ["ph", "ts", "pid", "tid", "name"] {
            assert!(e.get(field).is_some(), "{field} is missing in {e}");
        }
        if e["ph"] == "M" {
            continue;
        }
        assert_eq!(e["ph"], "X", "{e}");
        let (ts, dur) = (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
        let end = ends.entry(lane(e)).or_insert(0.0);
        // Times are rounded to a nanosecond.
        assert!(dur >= 0.0 && ts >= *end - 0.0021, "{e} begins before {end}");
        *end = ts + dur;
        let place = format!("{}/{}", processes[&lane(e).0], named[&lane(e)]);
        found.entry(place).or_default().insert(e["name"].as_str().unwrap().into());
    }
    found
}

#[test]
fn a_tile_on_the_cpu_is_explained_op_by_op() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["sample", "--repeats", "3", "--trace", "t.json"];
    let (page, p) = profile(dir.path(), "p.json", &args);
    for part in ["by scale", "time by part and scale", "by op", "outside", "decoder", "linear"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert_eq!((p.clock, p.seconds.len(), p.model.name.as_str()), (Clock::Cpu, 3, "cpu"));
    let total = p.total();
    let (inside, all): (f64, f64) = (total.seconds.iter().sum(), p.seconds.iter().sum());
    assert!(inside > 0.5 * all && inside <= all, "{inside} of {all} s are in ops");
    // t0 has four scales; a tile is some 2.7 GFLOP of products and convolutions.
    let scales: BTreeSet<_> = p.rows.iter().filter_map(|r| r.scale).collect();
    assert_eq!(scales, (1..=4).collect());
    assert!(total.flops > 1 << 30 && total.floor > 0.0, "{total:?}");
    assert!(p.rows.iter().all(|r| r.calls > 0 && r.kernel.is_none() && r.gaps.len() == 3));
    // The file says the same when it is written again, but for the last bit of a time.
    let twice = dir.path().join("twice.json");
    p.write(&twice).unwrap();
    let (twice, total) = (Profile::read(&twice).unwrap(), p.total());
    assert_eq!((calls(&twice), twice.total().bytes), (calls(&p), total.bytes));
    assert!((twice.total().floor / total.floor - 1.0).abs() < 1e-12);
    let lanes = lanes(&dir.path().join("t.json"));
    assert_eq!(lanes.keys().collect::<Vec<_>>(), ["CPU/ops", "CPU/parts", "CPU/scales"]);
    assert!(lanes["CPU/scales"].contains("scale 4") && lanes["CPU/ops"].contains("attention"));
}

#[test]
fn softcuda_counts_what_a_plan_says_must_move() {
    if launch::NVRTC.is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let on = |name: &str, device: &str| {
        profile(dir.path(), name, &["sample", "--device", device, "--trace", "t.json"])
    };
    let (page, counted) = on("c.json", "cuda");
    for part in ["counts are exact", "predicted for h100", "conflicts", "touched"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let lanes_of_it = lanes(&dir.path().join("t.json"));
    let has = |what: &str| lanes_of_it.keys().any(|lane| lane.contains(what));
    assert!(has("CPU/ops") && has("not a GPU's)/kernels") && has("predicted for h100/kernels"));
    let (page, plan) = on("p.json", "plan");
    assert!(page.contains("a plan: launches are exact"), "{page}");
    assert_eq!((counted.clock, plan.clock), (Clock::Software, Clock::Plan));
    // The same launches with the same floors; what they did is at least that, and not much more.
    assert_eq!(calls(&counted), calls(&plan));
    let (did, must) = (counted.total(), plan.total());
    assert_eq!((did.bytes, did.flops), (must.bytes, must.flops));
    let counts = did.counts.unwrap();
    assert!(counts.touched() >= did.bytes - did.bytes / 50, "{counts:?} of {}", did.bytes);
    assert!(counts.touched() < 2 * did.bytes, "{counts:?} of {}", did.bytes);
    assert!(counts.scalar_flops + counts.tensor_flops >= did.flops && counts.tensor_flops > 0);
    // Counts are the same on every run.
    let (_, again) = on("again.json", "cuda");
    assert_eq!(again.total().counts, Some(counts));
    assert_eq!(again.total().predicted, did.predicted);
}

/// The ranges that a tool heard of a profile: their depth is 0 in the end, and never below.
fn ranges(dir: &Path, args: &[&str]) -> Vec<Vec<String>> {
    let file = dir.join("ranges");
    let mut command = command(dir, args);
    command.env("NVTX_INJECTION64_PATH", softcuda()).env("SOFTCUDA_RANGES", &file);
    told(&command.output().unwrap());
    let text = std::fs::read_to_string(&file).unwrap();
    let (mut open, mut stacks) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("push", name)) => {
                open.push(name.to_string());
                stacks.push(open.clone());
            }
            Some(("launch", kernel)) => {
                stacks.push(open.iter().cloned().chain([format!("launch {kernel}")]).collect());
            }
            _ => drop(open.pop().expect("a range ends that was not begun")),
        }
    }
    assert!(open.is_empty(), "{open:?} did not end");
    stacks
}

#[test]
fn ranges_by_scale_part_and_op_reach_a_tool() {
    let dir = tempfile::tempdir().unwrap();
    let stacks = ranges(dir.path(), &["profile", "sample", "--repeats", "1", "--warmup", "0"]);
    let has = |want: &[&str]| stacks.iter().any(|s| s == want);
    assert!(has(&["scale 2", "transformer", "layer_norm"]) || has(&["scale 2", "transformer"]));
    assert!(has(&["decoder", "conv2d"]) || has(&["decoder", "fused_conv"]), "{stacks:?}");
    if launch::NVRTC.is_none() {
        return;
    }
    std::fs::remove_file(dir.path().join("ranges")).unwrap();
    let stacks = ranges(dir.path(), &["profile", "sample", "--device", "cuda"]);
    let inside = |s: &&Vec<String>| s.last().is_some_and(|l| l.starts_with("launch "));
    let launches: Vec<_> = stacks.iter().filter(inside).collect();
    let named = launches.iter().filter(|s| s.len() >= 3).count();
    assert!(named > 100, "{named} of {} launches lie in ranges", launches.len());
    let deep = |s: &&&Vec<String>| s[0] == "scale 4" && s[1] == "transformer" && s.len() == 4;
    assert!(launches.iter().any(|s| deep(&s)), "no launch in an op of a part of a scale");
}

#[test]
fn comparisons_tell_noise_from_change_by_their_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (_, before) = profile(dir.path(), "a.json", &["sample", "--device", "plan"]);
    let mut after = before.clone();
    let slow = |p: &mut Profile, by: f64| {
        for row in &mut p.rows {
            row.predicted = row.predicted.map(|t| t * by);
        }
    };
    slow(&mut after, 1.25);
    after.write(&dir.path().join("b.json")).unwrap();
    let compare = |a: &str, b: &str| {
        let args = ["profile", "--compare", a, b];
        let output = command(dir.path(), &args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, page) = compare("a.json", "b.json");
    assert!(code == Some(3) && page.contains("slower (+25 %)"), "{code:?}: {page}");
    let (code, page) = compare("b.json", "a.json");
    assert!(code == Some(0) && page.contains("faster (-20 %)"), "{code:?}: {page}");
    let (code, page) = compare("a.json", "a.json");
    assert!(code == Some(0) && page.contains("no change beyond the noise"), "{code:?}: {page}");
    // What is no profile is named.
    let bad = [("none.json", "cannot read"), ("bad.json", "no profile"), ("old.json", "version 0")];
    std::fs::write(dir.path().join("bad.json"), "{ \"format\": 3").unwrap();
    let old = before.to_json().unwrap().replace("\"version\": 1", "\"version\": 0");
    std::fs::write(dir.path().join("old.json"), old).unwrap();
    for (name, part) in bad {
        let (code, page) = compare("a.json", name);
        assert!(code == Some(2) && page.contains(name) && page.contains(part), "{page}");
    }
}

#[test]
fn a_step_of_each_stage_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    for stage in ["beta-vae", "msvq", "meanflow", "ar"] {
        let args = ["train", "--stage", stage, "--batch", "2", "--repeats", "1", "--warmup", "0"];
        let (_, cpu) = profile(dir.path(), "cpu.json", &args);
        let planned = [&args[..5], &["--device", "plan", "--trace", "t.json"]].concat();
        let (_, plan) = profile(dir.path(), "plan.json", &planned);
        for p in [&cpu, &plan] {
            let parts: BTreeSet<&str> = p.rows.iter().map(|r| r.part.as_str()).collect();
            let want = ["forward", "backward", "optimiser"];
            assert!(want.iter().all(|part| parts.contains(part)), "{stage}: {parts:?}");
            assert!(p.total().flops > 0 && p.total().calls > 50, "{stage}: {:?}", p.total());
        }
        assert_eq!((cpu.clock, plan.clock, cpu.batch), (Clock::Cpu, Clock::Plan, 2));
        assert!(!lanes(&dir.path().join("t.json")).is_empty());
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused_with_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 8] = [
        (&["sample", "--tier", "t9"], &["t9", "t0"]),
        (&["sample", "--tiles", "0"], &["--tiles", "1 to"]),
        (&["sample", "--device", "planet"], &["planet", "plan:a100"]),
        (&["sample", "--device", "plan:h10"], &["h10", "h100"]),
        (&["sample", "--precision", "bf16"], &["--precision", "bf16"]),
        (&["sample", "--repeats", "0"], &["--repeats", "1 or more"]),
        (&["train", "--stage", "ar", "--step", "40"], &["--step", "0 to 39"]),
        (&["train", "--stage", "ar", "--data", "none.safetensors"], &["none.safetensors"]),
    ];
    for (args, parts) in cases {
        let args: Vec<&str> = ["profile"].iter().chain(args).copied().collect();
        let output = command(dir.path(), &args).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{args:?}: {told}");
    }
    let none = command(dir.path(), &["profile", "--compare", "a.json"]).output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}
