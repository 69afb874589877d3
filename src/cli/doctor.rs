//! `genevar doctor`: what this machine has for genevar, and what to do about what it lacks.

use std::fmt::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::device::Device;
use crate::device::cuda::{self, Facts, Gpu};
use crate::device::host::{self, Room};
use crate::device::launch;
use crate::device::openslide;
use crate::error::Result;
use crate::ops::elementwise::Affine;
use crate::ops::run_on;
use crate::tensor::Tensor;

/// Arguments of `genevar doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was found. What is missing is part of the answer, not an error: the CPU needs none of it.
#[derive(Serialize)]
pub struct Findings {
    version: &'static str,
    processor: Processor,
    memory: Option<Room>,
    disks: Vec<Disk>,
    kernels: Kernels,
    openslide: Found,
    driver: Found,
    gpus: Vec<Card>,
}

#[derive(Serialize)]
struct Processor {
    name: Option<String>,
    threads: usize,
    features: Vec<&'static str>,
}

/// A folder that is written to.
#[derive(Serialize)]
struct Disk {
    what: &'static str,
    folder: PathBuf,
    room: Option<Room>,
}

#[derive(Serialize)]
struct Kernels {
    entries: usize,
    files: usize,
    nvrtc: Option<&'static str>,
    architectures: Vec<&'static str>,
}

/// A library: its version, or why there is none.
#[derive(Serialize)]
struct Found {
    version: Option<String>,
    problem: Option<String>,
}

impl Found {
    fn of(version: Result<String>) -> Self {
        match version {
            Ok(version) => Self { version: Some(version), problem: None },
            Err(e) => Self { version: None, problem: Some(e.to_string()) },
        }
    }
}

/// A GPU, and the image that a kernel ran from or why none did.
#[derive(Serialize)]
struct Card {
    ordinal: usize,
    name: String,
    capability: String,
    multiprocessors: i32,
    memory: Room,
    ran: Option<&'static str>,
    problem: Option<String>,
}

/// Looks at processor, memory, disks, kernels, OpenSlide, driver and GPUs.
pub fn examine() -> Findings {
    let (driver, gpus) = match cuda::survey() {
        Err(e) => (Found::of(Err(e)), Vec::new()),
        Ok((version, gpus)) => {
            let version = format!("{}.{}", version / 1000, version % 1000 / 10);
            (Found::of(Ok(version)), gpus.iter().map(card).collect())
        }
    };
    let disk = |what, folder: PathBuf| Disk { what, room: host::disk(&folder), folder };
    let here = std::env::current_dir().unwrap_or_else(|_| ".".into());
    let mut architectures: Vec<&str> =
        launch::ENTRIES.iter().flat_map(|e| e.module.images).map(|image| image.arch).collect();
    architectures.sort_unstable();
    architectures.dedup();
    Findings {
        version: env!("CARGO_PKG_VERSION"),
        processor: Processor {
            name: host::processor(),
            threads: rayon::current_num_threads(),
            features: host::features(),
        },
        memory: host::memory(),
        disks: vec![disk("this folder", here), disk("temporary files", std::env::temp_dir())],
        kernels: Kernels {
            entries: launch::ENTRIES.len(),
            files: launch::FILES.len(),
            nvrtc: launch::NVRTC,
            architectures,
        },
        openslide: Found::of(openslide::version()),
        driver,
        gpus,
    }
}

fn card(facts: &Facts) -> Card {
    let (major, minor) = facts.capability;
    let all = facts.memory as u64;
    let mut card = Card {
        ordinal: facts.ordinal,
        name: facts.name.clone(),
        capability: format!("{major}.{minor}"),
        multiprocessors: facts.multiprocessors,
        memory: Room { total: all, free: all },
        ran: None,
        problem: None,
    };
    let tried = Gpu::open(facts.ordinal).and_then(|gpu| {
        // Before anything of ours is there.
        card.memory.free = gpu.memory()?.0 as u64;
        trial(&gpu)
    });
    match tried {
        Ok(arch) => card.ran = Some(arch),
        Err(e) => card.problem = Some(e.to_string()),
    }
    card
}

/// Runs a kernel whose result is known; returns the image it ran from.
fn trial(gpu: &Gpu) -> Result<&'static str> {
    let queue = gpu.queue()?;
    let x = Tensor::new((0..1000).map(|i| i as f32).collect(), [1000])?;
    let op = Affine { scale: 2.0, shift: 1.0 };
    let y = run_on(&Device::Cuda(queue), &op, &[&x])?;
    let right = |(i, &y): (usize, &f32)| y == 2.0 * i as f32 + 1.0;
    let Some(y) = y.first() else { return Ok("nothing") };
    if let Some(at) = y.f32s()?.iter().enumerate().position(|p| !right(p)) {
        let what = format!("a kernel's result {at} is {}", y.f32s()?[at]);
        return Err(crate::error::Error::data(what, "the GPU or its driver is faulty"));
    }
    match launch::ENTRIES.iter().find(|e| e.name == "affine_fwd") {
        Some(entry) => gpu.image_of(entry.module),
        None => Ok("nothing"),
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn free_of(room: &Room) -> String {
    format!("{:.1} of {:.1} GiB free", gib(room.free), gib(room.total))
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "genevar {}", self.version)?;
        let mut line = |name: &str, text: &str| writeln!(f, "{name:<10} {text}");
        line("processor", &self.processor.to_string())?;
        let unknown = || "the system does not tell".to_string();
        line("memory", &self.memory.as_ref().map_or_else(unknown, free_of))?;
        for disk in &self.disks {
            let room = disk.room.as_ref().map_or_else(unknown, free_of);
            line("disk", &format!("{room} for {} ({})", disk.what, disk.folder.display()))?;
        }
        line("kernels", &self.kernels.to_string())?;
        line(
            "OpenSlide",
            &match (&self.openslide.version, &self.openslide.problem) {
                (Some(version), _) => {
                    format!("{version}: whole-slide images can be cut into tiles")
                }
                (None, why) => {
                    let why = why.as_deref().unwrap_or_default();
                    format!("{why}; only whole-slide images (.svs ...) need it")
                }
            },
        )?;
        match (&self.driver.version, &self.driver.problem) {
            (Some(version), _) => {
                line("driver", &format!("speaks CUDA {version}"))?;
                if self.gpus.is_empty() {
                    line("GPU", "none; `nvidia-smi` may tell why, the CPU works without")?;
                }
            }
            (None, why) => line("driver", why.as_deref().unwrap_or_default())?,
        }
        for card in &self.gpus {
            line(&format!("GPU {}", card.ordinal), &card.to_string())?;
        }
        Ok(())
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}, ")?;
        }
        let plural = if self.threads == 1 { "" } else { "s" };
        write!(f, "{} thread{plural}; {}", self.threads, self.features.join(" "))
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, files, .. } = self;
        match self.nvrtc {
            Some(version) => {
                let archs = self.architectures.join(", ");
                write!(f, "{entries} in {files} files, by NVRTC {version}, for {archs}")
            }
            None => write!(
                f,
                "{entries} in {files} files, not compiled: run tools/setup, which fetches NVRTC, \
                 and build again; the CPU works without"
            ),
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, capability, multiprocessors, .. } = self;
        let memory = free_of(&self.memory);
        let mut is = String::new();
        write!(is, "{name}, capability {capability}, {memory}, {multiprocessors} multiprocessors")?;
        match (self.ran, &self.problem) {
            (Some(arch), _) => {
                write!(f, "{is}; a kernel ran from {arch} and gave the right numbers")
            }
            (None, why) => write!(f, "{is}; not usable: {}", why.as_deref().unwrap_or_default()),
        }
    }
}
