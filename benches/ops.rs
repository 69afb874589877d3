//! Times every bench case of every op, as the models call it: `run` with its checks and fresh
//! outputs, and beside it the reference, where that takes no more than a moment, the other ops
//! whose passes it spares, and the direct way of convolutions. What comes out is held against these
//! before anything is timed.
//!
//! `cargo bench [-- FILTER]`; a table ends the run, GENEVAR_LEDGER=1 adds it to benches/LEDGER.md.
//! `--bench ops -- --real t3 FILTER,..` takes the shapes that a tier's models run ops at,
//! `-- --device [--real t3] [FILTER,..]` times the kernels, on softcuda or on the GPU that
//! GENEVAR_TEST_DEVICE names. GENEVAR_BENCH_JSON names a file for the kernels' rows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a bench")]

#[path = "support/bound.rs"]
mod bound;
#[path = "../tests/support/ops/data.rs"]
mod data;
#[path = "support/device.rs"]
mod device;
#[path = "support/direct.rs"]
mod direct;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/real.rs"]
mod real;
/// What the tests know of GPUs.
mod support {
    #[path = "../../tests/support/ops/gpu.rs"]
    pub mod gpu;
    #[path = "../../tests/support/ops/soft.rs"]
    pub mod soft;
}

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use criterion::{BenchmarkId, Criterion, Throughput};
use genevar::device::cpu::join_pool;
use genevar::device::kernel::Floor;
use genevar::ops::{Case, DynOp, In, OPS, Out, Precision, run, timed};
use genevar::profile::cards::Cards;
use genevar::profile::model::{Model, Work, measured_cpu};
use genevar::tensor::{DType, Shape, Tensor};

use data::{Data, fill, seed};

/// The product's allocator, since fresh outputs are part of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A reference slower than this is not timed.
const PATIENCE: Duration = Duration::from_millis(40);

/// By what share of its largest value the composition may differ from the op: another order of
/// long sums. The tests have the real bounds; this is against timing nonsense.
const NEAR: f64 = 1e-3;

/// A line of the table: where criterion leaves its results, and what was timed.
struct Line {
    op: &'static str,
    face: &'static str,
    case: String,
    /// What it must move and compute.
    floor: Floor,
    /// The largest error over what rounding allows, where the mathematics were at hand.
    error: Option<f64>,
}

/// Criterion's results of a line, in seconds.
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

fn bytes(t: &Tensor) -> usize {
    t.len() * if t.dtype() == DType::F64 { 8 } else { 4 }
}

/// Runs the f32 reference on outputs of these shapes.
fn reference(op: &dyn DynOp, data: &[Data], outs: &[Tensor]) {
    let x: Vec<In<'_, f32>> = data.iter().map(In::from).collect();
    let mut reals: Vec<Vec<f32>> = outs.iter().map(|t| vec![0.0; t.len()]).collect();
    let mut ints: Vec<Vec<i32>> = outs.iter().map(|t| vec![0; t.len()]).collect();
    let pairs = reals.iter_mut().zip(&mut ints).zip(outs);
    let mut y: Vec<Out<'_, f32>> = pairs
        .map(|((r, n), t)| if t.dtype() == DType::I32 { Out::Int(n) } else { Out::Real(r) })
        .collect();
    op.reference_f32(&x, &mut y);
    std::hint::black_box(&mut y);
}

/// The largest error of real outputs over the bound that rounding has.
fn error(op: &dyn DynOp, data: &[Data], outs: &[Tensor]) -> f64 {
    let shapes: Vec<Shape> = outs.iter().map(|t| t.shape().clone()).collect();
    let real = |t: &Tensor| (t.dtype() != DType::I32).then(|| t.f32s().unwrap().to_vec());
    bound::error((op, Precision::F32), data, &shapes, &outs.iter().map(real).collect::<Vec<_>>())
}

/// Fails where another way's outputs are others than the op's.
fn compare(name: &str, own: &[Tensor], other: &[Tensor]) {
    let real = |t: &&Tensor| t.dtype() != DType::I32;
    for (own, other) in own.iter().zip(other).filter(|(t, _)| real(t)) {
        let (own, other) = (own.f32s().unwrap(), other.f32s().unwrap());
        let size = own.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        let far = own.iter().zip(other).map(|(a, b)| f64::from((a - b).abs()));
        let far = far.fold(0.0, f64::max);
        assert!(far <= NEAR * size, "{name}: the other way is {far:e} off, of {size:e}");
    }
}

fn time(c: &mut Criterion, cards: &Cards, name: &'static str, case: &Case) -> Vec<Line> {
    let op = &*case.op;
    let data = fill(op, &case.inputs, seed(&format!("{name}/{}", case.name)));
    let tensors: Vec<Tensor> = data.iter().map(Data::tensor).collect();
    let x: Vec<&Tensor> = tensors.iter().collect();
    let (outs, ran) = timed(|| run(op, &x).unwrap());
    let moved: usize = tensors.iter().chain(&outs).map(bytes).sum();
    let whole = Floor { bytes: moved as u64, flops: 0 };
    let floor = ran.first().map_or(whole, |ran| cards.of(ran));
    let start = Instant::now();
    let quick = op.has_cpu() && {
        reference(op, &data, &outs);
        start.elapsed() < PATIENCE
    };
    let error = quick.then(|| error(op, &data, &outs));
    if let Some(error) = error {
        assert!(error <= 1.0, "{name}/{}: {error} times what rounding allows", case.name);
    }
    let line = |face, error| Line { op: name, face, case: case.name.clone(), floor, error };
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(moved as u64));
    group.bench_function(BenchmarkId::new("cpu", &case.name), |b| b.iter(|| run(op, &x)));
    let mut lines = vec![line("cpu", error)];
    if quick {
        let id = BenchmarkId::new("reference", &case.name);
        group.bench_function(id, |b| b.iter(|| reference(op, &data, &outs)));
        lines.push(line("reference", None));
    }
    if let Some(other) = op.composed(&x).unwrap() {
        compare(&format!("{name}/{}", case.name), &outs, &other);
        let id = BenchmarkId::new("composed", &case.name);
        group.bench_function(id, |b| b.iter(|| op.composed(&x)));
        lines.push(line("composed", None));
    }
    if let Some(mut direct) = outs.first().and_then(|y| direct::Direct::of(name, &x, y.shape())) {
        if x.len() == 3 {
            let y = Tensor::new(direct.run().to_vec(), outs[0].shape()).unwrap();
            compare(&format!("{name}/{}", case.name), &outs, &[y]);
        }
        let id = BenchmarkId::new("direct", &case.name);
        group.bench_function(id, |b| b.iter(|| std::hint::black_box(direct.run()).len()));
        lines.push(line("direct", None));
    }
    group.finish();
    lines
}

/// What criterion measured, if that was after `start`: a filter leaves old results be.
fn spread(results: &Path, start: SystemTime, line: &Line) -> Option<Spread> {
    // Criterion's own rule for the names of its folders.
    let plain = |name: &str| name.replace(['?', '"', '/', '\\', '*', '<', '>', ':', '|', '^'], "_");
    let folder = results.join(plain(line.op)).join(plain(line.face)).join(plain(&line.case));
    let path = folder.join("new/sample.json");
    if std::fs::metadata(&path).ok()?.modified().ok()? < start {
        return None;
    }
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let numbers = |key: &str| -> Option<Vec<f64>> {
        json[key].as_array()?.iter().map(serde_json::Value::as_f64).collect()
    };
    let pairs = numbers("times")?.into_iter().zip(numbers("iters")?);
    let mut each: Vec<f64> = pairs.map(|(time, n)| time / n * 1e-9).collect();
    each.sort_by(f64::total_cmp);
    let at = |share: f64| each.get((share * (each.len() - 1) as f64).round() as usize).copied();
    Some(Spread { low: at(0.1)?, median: at(0.5)?, high: at(0.9)? })
}

/// The rows, Markdown: how fast, of what is possible how much, and how much faster than the other
/// ops. Cards count whole tiles of a kernel: what is smaller than one may be above its floor.
fn table(results: &Path, start: SystemTime, model: &Model, lines: &[Line]) -> String {
    let mut page = String::from(
        "| op | case | face | ms (p10-p90) | GFLOP/s | GB/s | % of floor | binds | \
         composed / this | error / bound |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for line in lines {
        let Some(Spread { low, median, high }) = spread(results, start, line) else { continue };
        let Line { op, case, face, floor, error } = line;
        let (moved, flops) = (floor.bytes as f64, floor.flops as f64);
        let (side, least) = model.binds(&Work { bytes: moved, scalar: flops, ..Work::default() });
        let same = |other: &&Line| other.op == *op && other.case == *case;
        let composed = lines.iter().filter(same).find(|other| other.face == "composed");
        let composed = composed.and_then(|other| spread(results, start, other));
        let ratio = composed.map_or(String::new(), |c| format!("{:.2}", c.median / median));
        let error = error.map_or(String::new(), |e| format!("{e:.2}"));
        writeln!(
            page,
            "| {op} | {case} | {face} | {:.4} ({:.4}-{:.4}) | {:.1} | {:.1} | {:.0} | {} | \
             {ratio} | {error} |",
            median * 1e3,
            low * 1e3,
            high * 1e3,
            flops / median * 1e-9,
            moved / median * 1e-9,
            100.0 * least / median,
            side.name(),
        )
        .unwrap();
    }
    page
}

/// Where criterion keeps its results: beside the build.
fn results() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(3).unwrap().join("criterion")
}

/// The kernels' column: a table, JSON where asked for, and the ledger.
fn on_device(tier: Option<&str>, filter: &str) {
    let rows = device::run(tier, filter).unwrap();
    assert!(!rows.is_empty(), "no op with shapes to time is called like {filter:?}");
    let table = device::table(&rows);
    println!("{table}");
    if let Some(path) = std::env::var_os("GENEVAR_BENCH_JSON") {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(path, lines).unwrap();
    }
    if ledger::wanted() {
        let title = format!("kernels on {}", support::gpu::gpu().unwrap().facts().name);
        let real = tier.map_or(String::new(), |tier| format!("--real {tier} "));
        let command =
            format!("GENEVAR_LEDGER=1 cargo bench --bench ops -- --device {real}{filter}");
        ledger::append(&title, command.trim_end(), &table).unwrap();
    }
}

/// The cases to time: those of the ops, or those of a tier's models.
fn cases(tier: Option<&str>, filter: &str) -> Vec<(&'static str, Case)> {
    match tier {
        Some(tier) => {
            let found = real::all(tier, filter).unwrap();
            let calls: usize = found.iter().map(|real| real.calls).sum();
            eprintln!(
                "{} shapes, which a tile and a step of each stage run {calls} times",
                found.len()
            );
            found.into_iter().map(|real| (real.op, real.case)).collect()
        }
        None => OPS
            .iter()
            .flat_map(|row| (row.cases)().bench.into_iter().map(|case| (row.name, case)))
            .collect(),
    }
}

/// Takes an option with its value out of the arguments.
fn option(words: &mut Vec<String>, name: &str) -> Option<String> {
    let at = words.iter().position(|word| word == name)?;
    words.remove(at);
    (at < words.len()).then(|| words.remove(at))
}

fn main() {
    join_pool();
    let mut words: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    let tier = option(&mut words, "--real");
    if let Some(at) = words.iter().position(|a| a == "--device") {
        let filter = words.get(at + 1).cloned().unwrap_or_default();
        return on_device(tier.as_deref(), &filter);
    }
    // Of a tier's ops only those that are wanted are made; criterion filters the rest.
    let filter = match tier {
        Some(_) if words.len() > 1 => words.pop().unwrap_or_default(),
        _ => String::new(),
    };
    let (results, start) = (results(), SystemTime::now());
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots()
        .output_directory(&results);
    if tier.is_none() {
        c = c.configure_from_args();
    }
    let (cards, model) = (Cards::new().unwrap(), measured_cpu().unwrap());
    let mut lines = Vec::new();
    for (name, case) in cases(tier.as_deref(), &filter) {
        lines.extend(time(&mut c, &cards, name, &case));
    }
    c.final_summary();
    let table = table(&results, start, &model, &lines);
    println!("{table}");
    if ledger::wanted() {
        let real = tier.map_or(String::new(), |tier| format!(" -- --real {tier} {filter}"));
        let command = format!("GENEVAR_LEDGER=1 cargo bench --bench ops{real}");
        ledger::append("ops", command.trim_end(), &table).unwrap();
    }
}
