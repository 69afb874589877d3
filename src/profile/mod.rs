//! `genevar profile`: where the time of a tile goes, or of a training step, down to each kernel.
//!
//! On the CPU ops are timed; on a GPU launches, by its own events, run one by one (a graph has no
//! moments between them, so its total stands beside). A driver in software counts what launches
//! do, and `--device plan` makes them for a GPU that is not there: both give predicted times, and
//! say so. What must move at least is on the kernels' cards; what a device can, in [`model`].

pub mod cards;
mod compare;
pub mod format;
mod measure;
pub mod model;
mod record;
pub mod sample;
mod show;
mod table;
mod trace;
pub mod train;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::device::Device;
use crate::device::cuda::{Facts, Gpu, is_counting};
use crate::error::{Error, Result, Within};
use crate::ops::Precision;
use crate::train::place::Numbers;
use format::{Clock, Profile};
use model::{Known, Model, measured_cpu};

/// Arguments of `genevar profile`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct ProfileArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// Says what changed between two profiles that --json wrote, and what of it is noise. Exit
    /// code: 3 where the second is slower beyond the noise, else 0.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    compare: Vec<PathBuf>,
    /// Kernels in the table of --compare.
    #[arg(long, default_value_t = 20)]
    top: usize,
}

/// What a command has to say, and whether it found something that scripts want to know.
pub struct Told {
    /// For standard output.
    pub page: String,
    /// Whether the second profile is slower than the first.
    pub is_slower: bool,
}

#[derive(Subcommand)]
enum What {
    /// Draws a tile, or some side by side, and says where the time goes.
    Sample(Box<sample::SampleArgs>),
    /// Takes a training step of one stage, and says where the time goes.
    Train(Box<train::TrainArgs>),
}

/// What all profiles have in common.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Where to run: cpu, cuda, cuda:1; or plan (plan:a100), which makes the launches of a GPU that
    /// is not there, and runs nothing.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// What weights and activations are on a GPU. Default: bf16 there for tiles, else f32.
    #[arg(long, value_enum)]
    precision: Option<Numbers>,
    /// The GPU whose ceilings floors and predictions are made of: h100 or a100. Default: the one
    /// that the device resembles.
    #[arg(long)]
    model: Option<String>,
    /// Runs that are measured. Default: 5, where a driver counts or nothing runs 1.
    #[arg(long)]
    repeats: Option<usize>,
    /// Runs before them. Default: 1, where a driver counts or nothing runs 0.
    #[arg(long)]
    warmup: Option<usize>,
    /// Writes the profile to this file as JSON: what --compare reads.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the last run to this file as a trace, for ui.perfetto.dev or chrome://tracing.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Kernels in the table.
    #[arg(long, default_value_t = 20)]
    top: usize,
}

/// Runs the command; returns what is to be printed.
///
/// # Errors
/// Arguments that do not fit; a file that is no profile; those of what is run.
pub fn run(args: &ProfileArgs) -> Result<Told> {
    let ((profile, recording), common) = match (&args.what, args.compare.as_slice()) {
        (Some(What::Sample(args)), _) => (sample::run(args)?, &args.common),
        (Some(What::Train(args)), _) => (train::run(args)?, &args.common),
        (None, [before, after]) => {
            let (before, after) = (Profile::read(before)?, Profile::read(after)?);
            let found = compare::compare(&before, &after, args.top, table::colours())?;
            let is_slower = found.verdict == compare::Verdict::Slower;
            return Ok(Told { page: found.page, is_slower });
        }
        _ => {
            let fix = "give `sample`, `train` or --compare BEFORE AFTER";
            return Err(Error::config("profile", "of what?", fix));
        }
    };
    if let Some(path) = &common.json {
        profile.write(path)?;
    }
    if let Some(path) = &common.trace {
        trace::write(path, &profile, &recording)?;
    }
    Ok(Told { page: show::page(&profile, common.top, table::colours()), is_slower: false })
}

/// Where a profile is taken.
struct Place {
    device: Device,
    clock: Clock,
    model: Model,
    precision: Precision,
    repeats: usize,
    warmup: usize,
}

impl CommonArgs {
    /// Opens the device; `half` says that bf16 is the custom of this work on a GPU.
    fn place(&self, half: bool) -> Result<Place> {
        let (device, clock) = self.open()?;
        let precision = match (&device, self.precision) {
            (Device::Cpu, Some(Numbers::Bf16)) => {
                let fix = "give --precision f32, or --device cuda";
                return Err(Error::config("--precision", "the CPU has no bf16 path", fix));
            }
            (Device::Cpu, _) | (_, Some(Numbers::F32)) => Precision::F32,
            (_, None) if !half => Precision::F32,
            _ => Precision::Bf16,
        };
        let known = self.model.as_deref().map(Known::named).transpose()?;
        let model = match (&device, known) {
            (Device::Cpu, Some(_)) => {
                let fix = "leave it out: the CPU is measured";
                return Err(Error::config("--model", "is for GPUs", fix));
            }
            (Device::Cuda(queue), None) => Known::like(queue.gpu().facts()).model(),
            (_, Some(known)) => known.model(),
            _ => measured_cpu()?,
        };
        let many = if clock.is_real() { 5 } else { 1 };
        let repeats = self.repeats.unwrap_or(many);
        if repeats == 0 || (clock == Clock::Plan && repeats > 1) {
            let fix = if repeats == 0 { "give 1 or more" } else { "a plan is made once" };
            return Err(Error::config("--repeats", format!("{repeats} runs"), fix));
        }
        let warmup = self.warmup.unwrap_or(usize::from(clock.is_real()));
        Ok(Place { device, clock, model, precision, repeats, warmup })
    }

    fn open(&self) -> Result<(Device, Clock)> {
        if let Some(rest) = self.device.strip_prefix("plan") {
            let name = match rest.strip_prefix(':') {
                Some(name) => name,
                None if rest.is_empty() => self.model.as_deref().unwrap_or("h100"),
                None => return Err(self.no_device()),
            };
            let facts: Facts = Known::named(name).within("--device plan")?.facts();
            return Ok((Device::Cuda(Gpu::imagined(facts).queue()?), Clock::Plan));
        }
        let device = Device::named(&self.device)?;
        let clock = match &device {
            Device::Cuda(_) if is_counting() => Clock::Software,
            Device::Cuda(_) => Clock::Gpu,
            _ => Clock::Cpu,
        };
        Ok((device, clock))
    }

    fn no_device(&self) -> Error {
        let what = format!("there is no device {:?}", self.device);
        Error::config("--device", what, "name cpu, cuda, cuda:1, plan or plan:a100")
    }
}

/// What the processor calls itself, and its threads.
fn cpu_name() -> String {
    let text = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let model = text.lines().find_map(|l| l.strip_prefix("model name")?.split(':').nth(1));
    let name = model.map_or(std::env::consts::ARCH, str::trim);
    let threads = rayon::current_num_threads();
    format!("the CPU ({name}, {threads} thread{})", if threads == 1 { "" } else { "s" })
}
