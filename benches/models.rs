//! Time and memory of a training step of each stage and of a drawn tile, on made-up data, by tier;
//! then what the measured rates predict for the tiers of the paper's size.
//!
//! `cargo bench --bench models [-- t0 demo t1]`, the first two by default; `-- --tile t3` draws a
//! tile of a large tier instead, by an untrained system in bf16 (GENEVAR_TILE_FOLDER keeps their
//! file). GENEVAR_LEDGER=1 adds the table to benches/LEDGER.md. A step's time is the mean over a
//! few steps and includes a share of the checkpoint at their end (the CPU time also of the stage's
//! preparation); memory is the peak resident set during them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a bench")]

#[path = "support/flops.rs"]
mod flops;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/made_up.rs"]
mod made_up;
#[path = "support/tile.rs"]
mod tile;

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use genevar::Result;
use genevar::config::{Config, TIERS};
use genevar::data::pack::Pack;
use genevar::device::Device;
use genevar::device::cpu::{join_pool, keep_memory};
use genevar::sample::{Graphs, Sampler, Subject};
use genevar::tensor::{DType, Tensor};
use genevar::train::bundle::STAGES;
use genevar::train::interrupt::Interrupt;
use genevar::train::pipeline::Work;
use genevar::train::system::System;

/// The product's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Steps before the clock starts: the second fills the code book.
const BEFORE: u64 = 2;
/// Steps that are timed.
const TIMED: u64 = 5;
/// Tiles that are drawn together.
const TILES: u64 = 16;
/// Tiers that are too large to run here.
const PREDICTED: [&str; 2] = ["t2", "t3"];

/// One measurement.
struct Line {
    tier: String,
    what: String,
    count: usize,
    seconds: f64,
    /// Processor seconds over all threads: what is left of a measurement on a busy machine.
    cpu: Option<f64>,
    flops: f64,
    peak: Option<f64>,
}

/// The tier with just enough training to be timed.
fn settings(tier: &str) -> Result<Config> {
    let mut c = Config::tier(tier)?;
    c.data.unpaired = 0.0;
    c.msvq.warmup_steps = BEFORE - 1;
    c.msvq.kmeans_vectors = c.msvq.kmeans_vectors.min(4 * c.msvq.vocab);
    Ok(c)
}

fn with_steps(config: &Config, steps: u64) -> Config {
    let mut c = config.clone();
    for stage in c.train.stages_mut() {
        stage.steps = steps;
        stage.checkpoint_every = steps;
    }
    c
}

/// Lets the kernel count the peak resident set from now on, where it can.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Processor seconds of this process so far, where the system tells (in hundredths, as Linux does).
fn cpu() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in brackets, may hold spaces; user and system time are fields 14 and 15.
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// Processor seconds since `start`, for each of `n`.
fn cpu_since(start: Option<f64>, n: u64) -> Option<f64> {
    Some((cpu()? - start?) / n as f64)
}

/// Peak resident set in MiB, where the system tells.
fn peak() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// Trains every stage for a few steps, then draws tiles.
fn measure(tier: &str, folder: &Path) -> Result<Vec<Line>> {
    let config = settings(tier)?;
    let pack = made_up::pack(folder, &config)?;
    let out = folder.join("run");
    let mut lines = Vec::new();
    for name in STAGES {
        stage(&config, &pack, &out, name, BEFORE)?;
        forget_peak();
        let before = cpu();
        let seconds = stage(&config, &pack, &out, name, BEFORE + TIMED)? / TIMED as f64;
        let batch = config.train.stages()[STAGES.iter().position(|s| *s == name).unwrap()].batch;
        lines.push(Line {
            tier: tier.into(),
            what: format!("{name}, a step"),
            count: batch,
            seconds,
            cpu: cpu_since(before, TIMED),
            flops: flops::step(&config, name),
            peak: peak(),
        });
        eprintln!("{}", row(lines.last().unwrap()));
    }
    lines.extend(draw(tier, &config, &out)?);
    Ok(lines)
}

/// Trains one stage up to `steps`; seconds of this part of it.
fn stage(config: &Config, pack: &Pack, out: &Path, name: &str, steps: u64) -> Result<f64> {
    let config = &with_steps(config, steps);
    let (interrupt, device, resume) = (Interrupt::default(), Device::Cpu, steps > BEFORE);
    let work = Work { config, pack, out, resume, warm: None, interrupt, device };
    Ok(work.stage(name)?.seconds)
}

/// One tile alone, then several spread over the cores.
fn draw(tier: &str, config: &Config, out: &Path) -> Result<Vec<Line>> {
    let system = System::load(out)?;
    let (refiner, settings, device) = (system.refiner(0), &system.config.sample, Device::Cpu);
    let graphs = Graphs::default();
    let sampler = Sampler { refiner, ar: &system.ar, settings, device, graphs };
    let subject = |id: u64| Subject {
        id,
        z: Tensor::zeros(DType::F32, [1, config.beta_vae.latent]),
        other: None,
    };
    let mut lines = Vec::new();
    for (what, n) in [("one tile", 1), ("a tile of sixteen", TILES)] {
        let subjects: Vec<Subject> = (0..n).map(subject).collect();
        forget_peak();
        let (start, before) = (Instant::now(), cpu());
        match n {
            1 => drop(sampler.tile(&subjects[0])?),
            _ => drop(sampler.tiles(&subjects, &|| ())?),
        }
        lines.push(Line {
            tier: tier.into(),
            what: what.into(),
            count: 1,
            seconds: start.elapsed().as_secs_f64() / n as f64,
            cpu: cpu_since(before, n),
            flops: flops::sample(config),
            peak: peak(),
        });
        eprintln!("{}", row(lines.last().unwrap()));
    }
    Ok(lines)
}

/// What the rates of the last measured tier give for a larger one.
fn predict(tier: &str, measured: &[Line]) -> Result<Vec<Line>> {
    let config = Config::tier(tier)?;
    let last = &measured[measured.len() - STAGES.len() - 2..];
    let scaled = last.iter().enumerate().map(|(i, line)| {
        let (flops, count) = match STAGES.get(i) {
            Some(name) => (flops::step(&config, name), config.train.stages()[i].batch),
            None => (flops::sample(&config), 1),
        };
        Line {
            tier: format!("{tier}, predicted from {}", line.tier),
            what: line.what.clone(),
            count,
            seconds: line.seconds * flops / line.flops,
            cpu: line.cpu.map(|cpu| cpu * flops / line.flops),
            flops,
            peak: None,
        }
    });
    Ok(scaled.collect())
}

const HEAD: &str = "| tier | what | batch | s | CPU s | GFLOP | GFLOP/s | peak MiB |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- |\n";

fn row(l: &Line) -> String {
    let Line { tier, what, count, seconds, flops, .. } = l;
    let number = |x: Option<f64>, digits: usize| x.map_or("".into(), |x| format!("{x:.digits$}"));
    let (cpu, peak, giga) = (number(l.cpu, 3), number(l.peak, 0), flops * 1e-9);
    let rate = giga / seconds;
    format!("| {tier} | {what} | {count} | {seconds:.3} | {cpu} | {giga:.2} | {rate:.1} | {peak} |")
}

const TILE_HEAD: &str = "| tier | s | GFLOP | GFLOP/s | GEMM GFLOP/s | share of it | \
                         start to scale 1, s | weights MiB | peak MiB | beyond weights |\n\
                         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";

/// Draws a tile of each tier that is named, at their shapes.
fn tiles() -> Result<()> {
    let kept = std::env::var_os("GENEVAR_TILE_FOLDER");
    let own = tempfile::tempdir().unwrap();
    let folder = kept.as_ref().map_or(own.path(), Path::new);
    let mut table = String::from(TILE_HEAD);
    for tier in named() {
        let m = tile::measure(&Config::tier(&tier)?, folder)?;
        let (rate, weights) = (m.flops / m.tile, m.weights as f64 / 1048576.0);
        let peak = m.peak.map_or("".into(), |p| format!("{p:.0} | {:.0}", p - weights));
        writeln!(
            table,
            "| {tier} | {:.2} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {weights:.0} | {peak} |",
            m.tile,
            m.flops * 1e-9,
            rate * 1e-9,
            m.gemm * 1e-9,
            rate / m.gemm,
            m.start,
        )
        .unwrap();
    }
    println!("{table}");
    if ledger::wanted() {
        let command = "GENEVAR_LEDGER=1 cargo bench --bench models -- --tile";
        ledger::append("a tile", &format!("{command} {}", named().join(" ")), &table).unwrap();
    }
    Ok(())
}

/// The tiers that the command line names: cargo adds `--bench`, whatever else does not begin with
/// a dash is one.
fn named() -> Vec<String> {
    std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect()
}

fn main() -> Result<()> {
    keep_memory();
    join_pool();
    if std::env::args().any(|a| a == "--tile") {
        return tiles();
    }
    let mut tiers = named();
    if tiers.iter().any(|name| !TIERS.contains(&name.as_str())) {
        // What `cargo bench -- NAME` asks of all benches and another has.
        println!("models: no tier is called {}", tiers.join(", "));
        return Ok(());
    }
    if tiers.is_empty() {
        tiers = vec!["t0".into(), "demo".into()];
    }
    let mut lines = Vec::new();
    for tier in &tiers {
        let folder = tempfile::tempdir().unwrap();
        lines.extend(measure(tier, folder.path())?);
    }
    let predicted: Vec<Vec<Line>> =
        PREDICTED.iter().map(|tier| predict(tier, &lines)).collect::<Result<_>>()?;
    lines.extend(predicted.into_iter().flatten());
    let mut table = String::from(HEAD);
    lines.iter().for_each(|l| writeln!(table, "{}", row(l)).unwrap());
    println!("{table}");
    if ledger::wanted() {
        let command = format!("GENEVAR_LEDGER=1 cargo bench --bench models -- {}", tiers.join(" "));
        ledger::append("models", &command, &table).unwrap();
    }
    Ok(())
}
