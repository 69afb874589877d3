//! Times every bench case of every op, as the models call it: `run` with its checks and fresh
//! outputs, and beside it the reference, where that takes no more than a moment, and the other ops
//! whose passes it spares.
//!
//! `cargo bench --bench ops [-- FILTER]`; GENEVAR_LEDGER=1 adds the medians to benches/LEDGER.md.
//! With `-- --device [FILTER,..]` it is the kernels' turn, on softcuda or on the GPU that
//! GENEVAR_TEST_DEVICE names; GENEVAR_BENCH_JSON names a file for the rows, a JSON object each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a bench")]

#[path = "../tests/support/ops/data.rs"]
mod data;
#[path = "support/device.rs"]
mod device;
#[path = "support/ledger.rs"]
mod ledger;
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
use genevar::ops::{Case, DynOp, In, OPS, Out, run};
use genevar::tensor::{DType, Tensor};

use data::{Data, fill, seed};

/// The product's allocator, since fresh outputs are part of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A reference slower than this is not timed.
const PATIENCE: Duration = Duration::from_millis(40);

/// A line of the ledger: where criterion leaves the estimate, and what was timed.
struct Timed {
    op: &'static str,
    face: &'static str,
    case: String,
    shapes: String,
    bytes: usize,
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

fn time(c: &mut Criterion, name: &'static str, case: &Case) -> Vec<Timed> {
    let op = &*case.op;
    let data = fill(op, &case.inputs, seed(&format!("{name}/{}", case.name)));
    let tensors: Vec<Tensor> = data.iter().map(Data::tensor).collect();
    let x: Vec<&Tensor> = tensors.iter().collect();
    let outs = run(op, &x).unwrap();
    let moved = tensors.iter().chain(&outs).map(bytes).sum();
    let shapes: Vec<String> = case.inputs.iter().map(|i| i.shape.to_string()).collect();
    let line = |face| Timed {
        op: name,
        face,
        case: case.name.clone(),
        shapes: shapes.join(" "),
        bytes: moved,
    };
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(moved as u64));
    group.bench_function(BenchmarkId::new("cpu", &case.name), |b| b.iter(|| run(op, &x)));
    let mut timed = vec![line("cpu")];
    let start = Instant::now();
    if op.has_cpu() {
        reference(op, &data, &outs);
        if start.elapsed() < PATIENCE {
            let id = BenchmarkId::new("reference", &case.name);
            group.bench_function(id, |b| b.iter(|| reference(op, &data, &outs)));
            timed.push(line("reference"));
        }
    }
    if op.composed(&x).unwrap().is_some() {
        let id = BenchmarkId::new("composed", &case.name);
        group.bench_function(id, |b| b.iter(|| op.composed(&x)));
        timed.push(line("composed"));
    }
    group.finish();
    timed
}

/// Criterion's median in seconds, if it was measured after `start`: a filter leaves old results be.
fn median(results: &Path, start: SystemTime, t: &Timed) -> Option<f64> {
    let path = results.join(t.op).join(t.face).join(&t.case).join("new/estimates.json");
    if std::fs::metadata(&path).ok()?.modified().ok()? < start {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(json["median"]["point_estimate"].as_f64()? * 1e-9)
}

fn table(results: &Path, start: SystemTime, timed: &[Timed]) -> String {
    let mut page = String::from(
        "| op | case | inputs | face | median ms | GB/s |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for t in timed {
        let Some(s) = median(results, start, t) else { continue };
        let (ms, rate) = (s * 1e3, t.bytes as f64 * 1e-9 / s);
        let Timed { op, case, shapes, face, .. } = t;
        writeln!(page, "| {op} | {case} | {shapes} | {face} | {ms:.3} | {rate:.2} |").unwrap();
    }
    page
}

/// Where criterion keeps its results: beside the build.
fn results() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(3).unwrap().join("criterion")
}

/// The kernels' column: a table, JSON where asked for, and the ledger.
fn on_device(filter: &str) {
    let rows = device::run(filter).unwrap();
    let table = device::table(&rows);
    println!("{table}");
    if let Some(path) = std::env::var_os("GENEVAR_BENCH_JSON") {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(path, lines).unwrap();
    }
    if ledger::wanted() {
        let title = format!("kernels on {}", support::gpu::gpu().unwrap().facts().name);
        let command = format!("GENEVAR_LEDGER=1 cargo bench --bench ops -- --device {filter}");
        ledger::append(&title, command.trim_end(), &table).unwrap();
    }
}

fn main() {
    join_pool();
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    if words.any(|a| a == "--device") {
        return on_device(&words.next().unwrap_or_default());
    }
    let (results, start) = (results(), SystemTime::now());
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots()
        .output_directory(&results)
        .configure_from_args();
    let mut timed = Vec::new();
    for row in OPS {
        for case in (row.cases)().bench {
            timed.extend(time(&mut c, row.name, &case));
        }
    }
    c.final_summary();
    if ledger::wanted() {
        let command = "GENEVAR_LEDGER=1 cargo bench --bench ops";
        ledger::append("ops", command, &table(&results, start, &timed)).unwrap();
    }
}
