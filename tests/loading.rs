//! Tiles on their way to a step: threads that work ahead change no bit and no order, wherever a run
//! began; bad tiles end a run, or are named once and stand back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::path::Path;
use std::process::{Command, Stdio};

use genevar::config::Config;
use genevar::data::ahead::Workers;
use genevar::io::images::Rgb;
use genevar::io::safetensors::TensorFile;
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::Stage;
use genevar::train::msvq::MsvqStage;
use genevar::train::tissue::{BatchRule, Batches, Latents, Tissue};
use small_run::{CONFIG, STAGES, command, fails, genevar, prepared, succeeds};

const THREADS: [usize; 4] = [0, 1, 2, 5];

fn images() -> Vec<Rgb> {
    let pixel = |i: u64, p: usize| Stream::new(8, i, 0, Purpose::Test).below(p, 256) as u8;
    let one = |i| Rgb::new(20, 20, (0..3 * 20 * 20).map(|p| pixel(i, p)).collect()).unwrap();
    (0..11).map(one).collect()
}

/// Eight tiles with RNA and three without, in batches of three and one.
fn batches(threads: usize) -> Batches {
    let draws = |n| Stream::new(9, n, 0, Purpose::Test).normals(40);
    let latents = Latents {
        mean: Tensor::new(draws(0), [8, 5]).unwrap(),
        std: Tensor::full(DType::F32, [8, 5], 0.3),
    };
    let (images, slides) = (images().into(), (0..11).collect());
    let tissue = Tissue { images, slides, latents, genes: None, classes: (0..8).collect() };
    let (unpaired, drop, posterior) = (0.25, 0.3, true);
    let rule = BatchRule { seed: 3, batch: 4, crop: 16, unpaired, drop, posterior };
    Batches::new(tissue, rule).unwrap().by(Workers { threads, room: 3 })
}

#[test]
fn batches_have_the_bits_of_one_thread_wherever_they_begin() {
    let told = |batches: &mut Batches, steps: std::ops::Range<u64>| {
        let one = |step| {
            let b = batches.at(step).unwrap();
            let bits = |t: &Tensor| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect();
            let [pixels, z]: [Vec<u32>; 2] = [bits(&b.pixels), bits(&b.z)];
            (pixels, z, b.ids, b.slides, b.null, b.classes.i32s().unwrap().to_vec())
        };
        steps.map(one).collect::<Vec<_>>()
    };
    let whole = told(&mut batches(0), 0..14);
    for threads in THREADS {
        assert!(told(&mut batches(threads), 0..14) == whole, "{threads} threads");
        // Three steps are no whole epoch of eight tiles.
        let mut batches = batches(threads);
        assert!(told(&mut batches, 3..9) == whole[3..9], "{threads} threads from the middle");
        assert!(told(&mut batches, 4..6) == whole[4..6], "{threads} threads, back again");
    }
}

#[test]
fn a_run_has_the_bits_of_one_thread_also_when_it_goes_on_in_an_epoch() {
    let stage = |threads| {
        let mut config = Config::parse(CONFIG).unwrap();
        config.data.workers = threads;
        MsvqStage::with_images(&config, images(), &images()[..2]).unwrap()
    };
    let train = |stage: &mut MsvqStage, steps: std::ops::Range<u64>| {
        steps.for_each(|step| drop(stage.step(step).unwrap().read().unwrap()));
        stage.state().unwrap()
    };
    let bits = |state: &std::collections::BTreeMap<String, Tensor>| {
        let one = |t: &Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
        state.values().map(one).collect::<Vec<Vec<u32>>>()
    };
    let whole = bits(&train(&mut stage(0), 0..7));
    for (before, after) in [(1, 5), (5, 0), (2, 2)] {
        let state = train(&mut stage(before), 0..4);
        let mut rest = stage(after);
        rest.restore(state).unwrap();
        assert!(bits(&train(&mut rest, 4..7)) == whole, "{before} threads, then {after}");
    }
}

/// The configuration with these lines in its table `data`.
fn configured(dir: &Path, name: &str, lines: &str) {
    std::fs::write(dir.join(name), CONFIG.replace("[data]\n", &format!("[data]\n{lines}\n")))
        .unwrap();
}

fn state(dir: &Path, out: &str) -> Vec<u8> {
    let run = dir.join(out).join(STAGES[1]);
    let latest = std::fs::read_to_string(run.join("LATEST")).unwrap();
    std::fs::read(run.join(latest.trim()).join("state.safetensors")).unwrap()
}

/// Spoils the JPEG of tile `i` in a pack.
fn spoil(pack: &Path, i: usize) {
    let file = TensorFile::open(pack).unwrap();
    let ends = file.u32s("image.offsets").unwrap();
    let tile = file.bytes("image.bytes").unwrap()[ends[i] as usize..ends[i + 1] as usize].to_vec();
    drop(file);
    let mut bytes = std::fs::read(pack).unwrap();
    let at = bytes.windows(tile.len()).position(|part| part == tile).unwrap();
    bytes[at..at + tile.len()].fill(0);
    std::fs::write(pack, bytes).unwrap();
}

const PACK: &str = "data pack --tiles tiles --table tiles.tsv --rna rna.tsv --tile-px 24 \
                    --class-column class --unit section";

#[test]
fn a_bad_tile_ends_a_run_or_is_named_once_and_stands_back() {
    let dir = prepared();
    let dir = dir.path();
    succeeds(dir, &format!("{PACK} --quality 90 --out jpeg.safetensors"));
    spoil(&dir.join("jpeg.safetensors"), 3);
    let bad = "jpeg.safetensors (image 3, t3.png)";
    let train = |config: &str, out: &str| {
        format!("train msvq --config {config} --data jpeg.safetensors --out {out}")
    };
    for (name, lines) in [("stop.toml", ""), ("stop-later.toml", "decoded = 0")] {
        configured(dir, name, lines);
        fails(dir, &train(name, name.trim_end_matches(".toml")), 2, &[bad]);
    }
    // Decoded at the start or when drawn, by any number of threads.
    let mut states = Vec::new();
    for (threads, mib) in [(0, 4096), (5, 4096), (0, 0), (3, 0)] {
        let (name, out) = (format!("{threads}-{mib}.toml"), format!("skip-{threads}-{mib}"));
        let lines = format!("on_bad = \"skip\"\nworkers = {threads}\ndecoded = {mib}");
        configured(dir, &name, &lines);
        let output = genevar(dir, &train(&name, &out));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        let named = told.lines().filter(|line| line.contains("skipped:")).count();
        assert!(named == 1 && told.contains(bad), "{threads}, {mib}: {told}");
        states.push(state(dir, &out));
    }
    assert!(states.iter().all(|state| *state == states[0]));
}

#[test]
fn a_bad_file_ends_a_pack_or_is_left_out() {
    let dir = prepared();
    let dir = dir.path();
    std::fs::write(dir.join("tiles/t3.png"), "no image").unwrap();
    let pack = format!("{PACK} --quality 0 --out some.safetensors");
    fails(dir, &pack, 2, &["t3.png"]);
    assert!(!dir.join("some.safetensors").exists());
    let output = genevar(dir, &format!("{pack} --skip-bad"));
    let told = String::from_utf8_lossy(&output.stdout);
    let named = told.lines().filter(|line| line.starts_with("skipped:")).collect::<Vec<_>>();
    assert!(matches!(named[..], [one] if one.contains("t3.png")), "{told}");
    let pack = genevar::data::pack::Pack::open(dir.join("some.safetensors")).unwrap();
    assert_eq!((pack.len(), pack.id(3)), (19, "t4.png"));
}

/// Threads that wait for room end with their run.
#[test]
fn an_interrupt_ends_the_threads() {
    let dir = prepared();
    let dir = dir.path();
    configured(dir, "long.toml", "workers = 5");
    let long = std::fs::read_to_string(dir.join("long.toml")).unwrap();
    let long =
        long.replace("[train.msvq]\nsteps = 14", "[train.msvq]\nlog_every = 1\nsteps = 99999");
    std::fs::write(dir.join("long.toml"), long).unwrap();
    let mut run = command(dir, "train msvq --config long.toml --out long");
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let log = dir.join("long").join(STAGES[1]).join("log.jsonl");
    let begun = || std::fs::read(&log).is_ok_and(|log| log.contains(&b'\n'));
    while !begun() && run.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(run.wait().unwrap().code(), Some(130));
}
