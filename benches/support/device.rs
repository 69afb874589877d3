//! The kernels' column: every op's bench cases on a GPU, each variant at each precision and, where
//! an op spares the passes of others, those others too, beside what the cards of the launches say
//! must move. On softcuda there is no time to take: the counts
//! stand there, and what the memory and the units of an H100 would need for them at best.

use std::fmt::Write;
use std::time::Duration;

use genevar::device::cuda::{Buffer, Event, Launch, Queue};
use genevar::device::kernel::Grid;
use genevar::device::launch::reduce;
use genevar::device::{Device, OnGpu};
use genevar::ops::{Case, CudaIn, CudaOut, DynOp, In, Out, Precision, Site};
use genevar::profile::cards::work;
use genevar::profile::model::{Known, Model, Side, Work};
use genevar::tensor::{Shape, Tensor};
use half::bf16;
use serde_json::{Value, json};

use crate::bound;
use crate::data::{Data, fill, seed};
use crate::support::{gpu, soft};

/// Samples of each time; the median counts.
const SAMPLES: usize = 11;
/// A warm sample repeats the op for at least so long, so that launches overlap as in a model.
const WARM: Duration = Duration::from_millis(4);
/// Elements that are overwritten before each cold sample: more than the L2 cache of any GPU.
const FLUSH: usize = 64 << 20;
/// Ops of more operations are not held against the bound that rounding has, which takes an
/// evaluation of the mathematics in another arithmetic.
const EXACT: u64 = 20_000_000;
/// By what share of its largest value an output may differ from the CPU's: a bf16 rounding twice,
/// and the order of long sums. The tests have the real bounds; this is against timing nonsense.
const NEAR: [f32; 2] = [1e-4, 2e-2];

/// How an op's results come about.
enum Way {
    /// By a variant of its kernels.
    Variant(&'static str),
    /// By other ops, from these inputs; their results are what is checked.
    Composed(Vec<Tensor>, Vec<Tensor>),
}

/// The name of the other ops' row.
const COMPOSED: &str = "composed";

/// One op with inputs and outputs on the GPU.
struct Bench<'a> {
    queue: &'a Queue,
    op: &'a dyn DynOp,
    precision: Precision,
    way: Way,
    data: &'a [Data],
    inputs: Vec<OnGpu>,
    outs: Vec<CudaOut>,
}

type Outcome<T> = Result<T, String>;

fn told(e: genevar::Error) -> String {
    e.to_string()
}

/// Runs all cases whose op's name contains `filter`, or one of several with commas between them,
/// at the ops' own shapes or at those of a tier's models; one JSON object a row.
pub fn run(tier: Option<&str>, filter: &str) -> Outcome<Vec<Value>> {
    if !gpu::has_kernels() {
        return Err("built without NVRTC: run tools/setup, which fetches it".into());
    }
    let queue = gpu::queue()?;
    let mut rows = Vec::new();
    let wanted = |name: &str| filter.split(',').any(|part| name.contains(part));
    for (name, case) in crate::cases(tier, filter).into_iter().filter(|(name, _)| wanted(name)) {
        let data = fill(&*case.op, &case.inputs, seed(&format!("{name}/{}", case.name)));
        let shapes: Vec<&Shape> = data.iter().map(|d| &d.shape).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            for variant in case.op.variants(Site::on(precision, queue.gpu()), &shapes) {
                let bench = Bench::new(&queue, &*case.op, (precision, variant), &data)?;
                rows.push(measure(bench, &case)?);
            }
            if precision == Precision::F32
                && let Some(bench) = Bench::composed(&queue, &*case.op, &data)?
            {
                rows.push(measure(bench, &case)?);
            }
        }
    }
    Ok(rows)
}

fn measure(mut bench: Bench<'_>, case: &Case) -> Outcome<Value> {
    let (precision, data) = (bench.precision, bench.data);
    let variant = match bench.way {
        Way::Variant(name) => name,
        Way::Composed(..) => COMPOSED,
    };
    let name = format!("{}/{} {precision:?} {variant}", case.op.name(), case.name);
    let (launches, counts) = bench.once().map_err(|e| format!("{name}: {e}"))?;
    let floors = launches.iter().map(|l| (l.entry.floor)(&l.args));
    let (bytes, flops) = floors.fold((0, 0), |(b, f), x| (b + x.bytes, f + x.flops));
    let error = bench.validate(flops <= EXACT).map_err(|e| format!("{name}: {e}"))?;
    let facts = bench.queue.gpu().facts();
    let model = Known::like(facts).model();
    let (side, least) = binds(&model, &launches);
    let kernels: Vec<&str> = launches.iter().map(|l| l.entry.name).collect();
    let shapes: Vec<String> = data.iter().map(|d| d.shape.to_string()).collect();
    let [registers, spills, shared] = resources(&launches, facts.capability);
    let mut row = json!({
        "op": case.op.name(), "case": case.name, "inputs": shapes.join(" "),
        "precision": format!("{precision:?}").to_lowercase(), "variant": variant,
        "kernels": kernels.join(" "), "launches": launches.len(), "floor_bytes": bytes,
        "floor_flops": flops, "model": model.name, "floor_us": least * 1e6,
        "binds": side.name(), "registers": registers, "spill_bytes": spills,
        "shared_bytes": shared, "error_over_bound": error,
    });
    match counts {
        Some(counts) => {
            let sum = |f: fn(&soft::Counts) -> u64| counts.iter().map(f).sum::<u64>();
            let touched = 32 * sum(|c| c.unique_read_sectors + c.unique_write_sectors);
            let (scalar, tensor) = (sum(|c| c.scalar_flops), sum(|c| c.tensor_flops));
            let asked = 32 * sum(|c| c.global_read_sectors + c.global_write_sectors);
            let least: f64 = counts.iter().map(|c| model.binds(&done(c)).1).sum();
            row["bytes"] = json!(touched);
            row["asked_bytes"] = json!(asked);
            row["accesses"] = json!(sum(|c| c.global_reads + c.global_writes));
            row["flops"] = json!(scalar + tensor);
            row["bank_conflicts"] = json!(sum(|c| c.shared_bank_conflicts));
            row["predicted_us"] = json!(least * 1e6);
        }
        None => {
            for (key, times) in [("warm", bench.warm()?), ("cold", bench.cold()?)] {
                for (part, at) in [("us", 0.5), ("low_us", 0.1), ("high_us", 0.9)] {
                    row[format!("{key}_{part}")] = json!(share_of(&times, at) * 1e6);
                }
            }
        }
    }
    Ok(row)
}

/// The least seconds of launches one after the other, each of which waits for what binds it, and
/// what binds for the longest.
fn binds(model: &Model, launches: &[Launch]) -> (Side, f64) {
    let mut sides = Side::ALL.map(|side| (side, 0.0));
    for launch in launches {
        let (side, seconds) = model.binds(&work(launch));
        sides.iter_mut().filter(|(s, _)| *s == side).for_each(|(_, sum)| *sum += seconds);
    }
    let whole = sides.iter().map(|(_, seconds)| seconds).sum();
    let longest = sides.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    (longest.map_or(Side::Launch, |(side, _)| *side), whole)
}

/// What was counted, as work.
fn done(counts: &soft::Counts) -> Work {
    let bytes = 32 * (counts.unique_read_sectors + counts.unique_write_sectors);
    let [bytes, scalar, tensor] =
        [bytes, counts.scalar_flops, counts.tensor_flops].map(|n| n as f64);
    Work { bytes, scalar, tensor, beside: false }
}

/// The most registers and bytes of spills of a thread, and of shared memory of a block, of any of
/// these kernels in the machine code that a GPU of this capability takes.
fn resources(launches: &[Launch], capability: (i32, i32)) -> [u32; 3] {
    let newest = if capability >= (9, 0) { "sm_90a" } else { "sm_80" };
    let of = |l: &Launch| {
        let all = l.entry.resources.iter();
        let r = all.max_by_key(|r| r.arch == newest)?;
        let shared = r.shared + l.entry.dynamic_shared;
        Some([r.registers, r.spill_stores + r.spill_loads, shared])
    };
    let most = |a: [u32; 3], b: [u32; 3]| [0, 1, 2].map(|i| a[i].max(b[i]));
    launches.iter().filter_map(of).fold([0; 3], most)
}

impl<'a> Bench<'a> {
    fn new(
        queue: &'a Queue,
        op: &'a dyn DynOp,
        (precision, variant): (Precision, &'static str),
        data: &'a [Data],
    ) -> Outcome<Self> {
        let half = precision == Precision::Bf16;
        let upload = |(i, d): (usize, &Data)| match d.is_int {
            true => Ok(OnGpu::I32(Buffer::from_slice(queue, &d.int)?)),
            false if half && !op.f32_inputs().contains(&i) => {
                let narrow: Vec<bf16> = d.real.iter().map(|&x| bf16::from_f32(x)).collect();
                Ok(OnGpu::Bf16(Buffer::from_slice(queue, &narrow)?))
            }
            false => Ok(OnGpu::F32(Buffer::from_slice(queue, &d.real)?)),
        };
        let inputs: genevar::Result<Vec<_>> = data.iter().enumerate().map(upload).collect();
        let shapes: Vec<&Shape> = data.iter().map(|d| &d.shape).collect();
        let blank = |(i, shape): (usize, Shape)| {
            let n = shape.len();
            let held = match op.int_outputs().contains(&i) {
                true => OnGpu::I32(Buffer::new(queue, n)?),
                false if half && !op.f32_outputs().contains(&i) => {
                    OnGpu::Bf16(Buffer::new(queue, n)?)
                }
                false => OnGpu::F32(Buffer::new(queue, n)?),
            };
            Ok(CudaOut::new(shape, held))
        };
        let outs = op.shapes(&shapes).map_err(told)?.into_iter().enumerate().map(blank);
        let outs = outs.collect::<genevar::Result<Vec<_>>>().map_err(told)?;
        let (way, inputs) = (Way::Variant(variant), inputs.map_err(told)?);
        Ok(Self { queue, op, precision, way, data, inputs, outs })
    }

    /// The other ops in f32; none where the op spares nothing.
    fn composed(queue: &'a Queue, op: &'a dyn DynOp, data: &'a [Data]) -> Outcome<Option<Self>> {
        let device = Device::Cuda(queue.clone());
        let x = data.iter().map(|d| device.put(&d.tensor())).collect::<genevar::Result<Vec<_>>>();
        let way = Way::Composed(x.map_err(told)?, Vec::new());
        let (precision, inputs, outs) = (Precision::F32, Vec::new(), Vec::new());
        let mut bench = Self { queue, op, precision, way, data, inputs, outs };
        bench.launch()?;
        let some = matches!(&bench.way, Way::Composed(_, made) if !made.is_empty());
        Ok(some.then_some(bench))
    }

    fn launch(&mut self) -> Outcome<()> {
        let variant = match &mut self.way {
            Way::Variant(name) => Some(*name),
            Way::Composed(x, made) => {
                let outs = self.op.composed(&x.iter().collect::<Vec<_>>()).map_err(told)?;
                *made = outs.unwrap_or_default();
                return Ok(());
            }
        };
        let x: Vec<CudaIn<'_>> = self
            .data
            .iter()
            .zip(&self.inputs)
            .map(|(d, held)| CudaIn::new(&d.shape, held))
            .collect();
        self.op.cuda(self.queue, self.precision, variant, &x, &mut self.outs).map_err(told)
    }

    /// Runs it; returns what was launched, and counts where the driver counts.
    fn once(&mut self) -> Outcome<(Vec<Launch>, Option<Vec<soft::Counts>>)> {
        let queue = self.queue.clone();
        let ((done, launches), counts) = soft::launched(0, || {
            queue.trace(|| self.launch().and_then(|()| queue.synchronize().map_err(told)))
        });
        done.map(|()| (launches, counts))
    }

    /// That what came out is what the CPU computes from the same values; and where that is asked
    /// for, the largest error over what rounding allows.
    fn validate(&self, exactly: bool) -> Outcome<Option<f64>> {
        let half = self.precision == Precision::Bf16;
        let rounded = |(i, d): (usize, &Data)| {
            let mut d = d.clone();
            if half && !self.op.f32_inputs().contains(&i) {
                d.real.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            d
        };
        let data: Vec<Data> = self.data.iter().enumerate().map(rounded).collect();
        let x: Vec<In<'_, f32>> = data.iter().map(In::from).collect();
        let shapes: Vec<&Shape> = data.iter().map(|d| &d.shape).collect();
        let shapes = self.op.shapes(&shapes).map_err(told)?;
        let mut reals: Vec<Vec<f32>> = shapes.iter().map(|s| vec![0.0; s.len()]).collect();
        let mut ints: Vec<Vec<i32>> = shapes.iter().map(|s| vec![0; s.len()]).collect();
        let pairs = reals.iter_mut().zip(&mut ints).enumerate();
        let mut y: Vec<Out<'_, f32>> = pairs
            .map(|(i, (r, n))| match self.op.int_outputs().contains(&i) {
                true => Out::Int(n),
                false => Out::Real(r),
            })
            .collect();
        self.op.cpu(&x, &mut y);
        drop(y);
        let got = (0..shapes.len()).map(|i| self.got(i)).collect::<Outcome<Vec<_>>>()?;
        for (i, wanted) in reals.iter().enumerate() {
            let Some(got) = &got[i] else { continue };
            let scale = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let near = NEAR[usize::from(half)] * scale;
            let far = |(got, want): (&f32, &f32)| (got - want).abs() > near || got.is_nan();
            if let Some(j) = got.iter().zip(wanted).position(far) {
                let (got, want) = (got[j], wanted[j]);
                return Err(format!("output {i}[{j}] is {got:e}, on the CPU {want:e}"));
            }
        }
        let kind = (self.op, self.precision);
        Ok(exactly.then(|| bound::error(kind, &data, &shapes, &got)))
    }

    /// Output `i`, if it was computed and is of real numbers.
    fn got(&self, i: usize) -> Outcome<Option<Vec<f32>>> {
        if self.op.int_outputs().contains(&i) {
            return Ok(None);
        }
        if let Way::Composed(_, made) = &self.way {
            let values = made.get(i).map(|t| t.f32s().map(<[f32]>::to_vec));
            return values.transpose().map_err(told);
        }
        match self.outs[i].held() {
            OnGpu::I32(_) => Ok(None),
            OnGpu::F32(b) => b.read().map(Some).map_err(told),
            OnGpu::Bf16(b) => {
                let values = b.read().map_err(told)?.into_iter().map(bf16::to_f32);
                Ok(Some(values.collect()))
            }
        }
    }

    /// Times of one run after the other, by the GPU's clock.
    fn warm(&mut self) -> Outcome<Vec<Duration>> {
        let first = self.batch(3)?;
        let runs = (WARM.as_secs_f64() / first.as_secs_f64().max(1e-7)).ceil() as usize;
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            times.push(self.batch(runs.clamp(3, 10_000))?);
        }
        Ok(times)
    }

    /// Time of each of some runs in a row.
    fn batch(&mut self, runs: usize) -> Outcome<Duration> {
        let before = self.queue.event().map_err(told)?;
        for _ in 0..runs {
            self.launch()?;
        }
        let after = self.queue.event().map_err(told)?;
        Ok(between(&before, &after)? / u32::try_from(runs).unwrap_or(1))
    }

    /// Times of a run whose inputs are in no cache.
    fn cold(&mut self) -> Outcome<Vec<Duration>> {
        let mut flush = Buffer::<f32>::from_slice(self.queue, &vec![0.0; FLUSH]).map_err(told)?;
        let small = Buffer::<f32>::from_slice(self.queue, &[0.0]).map_err(told)?;
        let grid = Grid::line(1024, 256);
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            let over = &mut flush.slice_mut();
            reduce::broadcast_to_fwd(self.queue, grid, over, &small.slice(), 1, FLUSH, 1, 1, 1)
                .map_err(told)?;
            times.push(self.batch(1)?);
        }
        Ok(times)
    }
}

fn between(before: &Event, after: &Event) -> Outcome<Duration> {
    after.since(before).map_err(told)
}

/// The time, in seconds, that a share of the samples does not exceed.
fn share_of(times: &[Duration], share: f64) -> f64 {
    let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    let at = (share * times.len().saturating_sub(1) as f64).round() as usize;
    times.get(at).copied().unwrap_or_default()
}

/// The rows as a table. Ratios are of times, predicted where nothing was timed.
pub fn table(rows: &[Value]) -> String {
    let counted = rows.iter().any(|row| row.get("bytes").is_some());
    let model = rows.first().and_then(|row| row["model"].as_str()).unwrap_or_default();
    let middle = match counted {
        true => format!(
            "launches | floor bytes | touched | asked | floor FLOP | counted | bank conflicts | \
             predicted us ({model})"
        ),
        false => format!("warm us (p10-p90) | cold us | GFLOP/s | GB/s | % of floor ({model})"),
    };
    let heads = format!(
        "| op | case | type | variant | {middle} | binds | composed / this | registers | spills | \
         shared bytes | error / bound |\n"
    );
    let mut page = format!("{heads}{}|\n", "| --- ".repeat(heads.matches('|').count() - 1));
    let time = if counted { "predicted_us" } else { "warm_us" };
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let start = ["op", "case", "precision", "variant"].map(text).join(" | ");
        let bytes = number("floor_bytes");
        let same = |other: &&Value| ["op", "case"].iter().all(|key| other[*key] == row[*key]);
        let composed = rows.iter().filter(same).find(|other| other["variant"] == COMPOSED);
        let composed = composed.and_then(|other| Some(other[time].as_f64()? / number(time)));
        let ratio = composed.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let middle = match counted {
            true => format!(
                "{} | {bytes} | {} | {} | {} | {} | {} | {:.2}",
                number("launches"),
                number("bytes"),
                number("asked_bytes"),
                number("floor_flops"),
                number("flops"),
                number("bank_conflicts"),
                number("predicted_us")
            ),
            false => format!(
                "{:.2} ({:.2}-{:.2}) | {:.2} | {:.0} | {:.0} | {:.0}",
                number("warm_us"),
                number("warm_low_us"),
                number("warm_high_us"),
                number("cold_us"),
                number("floor_flops") / number("warm_us") * 1e-3,
                bytes / number("warm_us") * 1e-3,
                100.0 * number("floor_us") / number("warm_us")
            ),
        };
        let [registers, spills, shared] =
            ["registers", "spill_bytes", "shared_bytes"].map(|key| number(key) as u64);
        let error = row["error_over_bound"].as_f64().map_or(String::new(), |e| format!("{e:.2}"));
        let binds = text("binds");
        writeln!(
            page,
            "| {start} | {middle} | {binds} | {ratio} | {registers} | {spills} | {shared} | \
             {error} |"
        )
        .unwrap();
    }
    page
}
