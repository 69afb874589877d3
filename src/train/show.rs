//! `genevar checkpoint`: what a trained file or run is, and whether its bytes are what was written.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::bundle::{Bundle, STAGES};
use super::checkpoint::{self, Meta};
use crate::config::Config;
use crate::error::{Error, Result, Within};
use crate::io::safetensors::TensorFile;

/// What is asked of checkpoints.
#[derive(Subcommand)]
pub enum CheckpointCommand {
    /// Says what is in a run, a checkpoint or a bundle: stages, steps, sizes, numbers, settings.
    Show(CheckpointArgs),
    /// Reads every byte and holds it against the checksums; exit code 2 names what is damaged.
    Verify(CheckpointArgs),
}

/// Arguments of both.
#[derive(Args)]
pub struct CheckpointArgs {
    /// Folder of a run, of one of its stages or of a checkpoint, or a bundle file.
    path: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// One checkpoint, or a stage of a bundle.
#[derive(Serialize)]
struct Shown {
    stage: String,
    path: String,
    step: u64,
    /// Whether it is the newest and the best of its run.
    newest: bool,
    best: bool,
    program: String,
    tensors: usize,
    /// Elements of the weights.
    weights: usize,
    bytes: u64,
    /// Whether moments of the optimiser are there, so that training can go on.
    resumable: bool,
    numbers: std::collections::BTreeMap<String, f64>,
    notes: Vec<String>,
    /// The preset, and what differs from it.
    tier: String,
    settings: Vec<String>,
    seed: u64,
}

/// Runs the command; what to say on standard output.
///
/// # Errors
/// Nothing there; a damaged file, naming the tensor.
pub fn run(command: &CheckpointCommand) -> Result<String> {
    match command {
        CheckpointCommand::Show(args) => {
            let shown = shown(&args.path)?;
            if args.json { json(&shown) } else { Ok(page(&shown)) }
        }
        CheckpointCommand::Verify(args) => {
            let files = files(&args.path)?;
            let verified: Vec<Verified> = files.iter().map(|f| verify(f)).collect::<Result<_>>()?;
            if args.json {
                return json(&verified);
            }
            let line = |v: &Verified| {
                let said = if v.checksums { "whole" } else { "has no checksums, but can be read" };
                format!("{}: {said}, {} tensors, {} bytes\n", v.file, v.tensors, v.bytes)
            };
            Ok(verified.iter().map(line).collect())
        }
    }
}

fn json(what: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(what);
    text.map(|text| text + "\n").map_err(|e| Error::Internal(e.to_string()))
}

/// A file that was read.
#[derive(Serialize)]
struct Verified {
    file: String,
    checksums: bool,
    tensors: usize,
    bytes: usize,
}

fn verify(path: &Path) -> Result<Verified> {
    let file = TensorFile::open(path)?;
    let checksums = file.verify()?;
    let mut verified =
        Verified { file: path.display().to_string(), checksums, tensors: 0, bytes: 0 };
    for name in file.names() {
        // Without checksums at least every tensor has to be readable.
        if !checksums {
            file.tensor(name)?;
        }
        verified.tensors += 1;
        verified.bytes += file.bytes(name)?.len();
    }
    Ok(verified)
}

/// The checkpoints of a run, of a stage, or the one itself.
fn checkpoints(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = checkpoint::all(path)?;
    for stage in STAGES {
        found.extend(checkpoint::all(&path.join(stage))?);
    }
    match found.is_empty() {
        true => {
            let fix = "give the folder of a run, a checkpoint's folder or a bundle file";
            Err(Error::file(path, "holds no checkpoint", fix))
        }
        false => Ok(found),
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    match path.is_dir() {
        true => {
            Ok(checkpoints(path)?.iter().map(|folder| checkpoint::state_file(folder)).collect())
        }
        false => Ok(vec![path.to_path_buf()]),
    }
}

fn shown(path: &Path) -> Result<Vec<Shown>> {
    if path.is_dir() {
        return checkpoints(path)?.iter().map(|folder| of_checkpoint(folder)).collect();
    }
    let file = TensorFile::open(path)?;
    let bundle = Bundle::load(path)?;
    let one = |(name, trained): (&String, &super::bundle::Trained)| {
        let start = format!("{name}/");
        let own: Vec<&str> = file.names().filter(|n| n.starts_with(&start)).collect();
        let mut shown = Shown::of(&bundle.config)?;
        shown.stage = name.clone();
        shown.path = path.display().to_string();
        shown.step = trained.step;
        shown.newest = true;
        shown.notes = trained.notes.keys().cloned().collect();
        shown.count(&file, &own, &format!("{start}param."))?;
        Ok(shown)
    };
    bundle.stages.iter().map(one).collect()
}

fn of_checkpoint(folder: &Path) -> Result<Shown> {
    let meta: Meta = checkpoint::read_meta(folder)?;
    let file = TensorFile::open(checkpoint::state_file(folder))?;
    let config = Config::recorded(&meta.config).within(folder.display())?;
    let mut shown = Shown::of(&config)?;
    let run = folder.parent().unwrap_or(folder);
    shown.newest = checkpoint::find(run)?.as_deref() == Some(folder);
    shown.best = checkpoint::best(run)?.as_deref() == Some(folder);
    shown.stage = meta.stage;
    shown.path = folder.display().to_string();
    shown.step = meta.step;
    shown.program = meta.program;
    shown.numbers = meta.numbers;
    shown.notes = meta.notes.keys().cloned().collect();
    let own: Vec<&str> = file.names().collect();
    shown.count(&file, &own, "param.")?;
    Ok(shown)
}

impl Shown {
    fn of(config: &Config) -> Result<Self> {
        let preset = Config::tier(&config.tier).unwrap_or_default();
        Ok(Self {
            stage: String::new(),
            path: String::new(),
            step: 0,
            newest: false,
            best: false,
            program: String::new(),
            tensors: 0,
            weights: 0,
            bytes: 0,
            resumable: false,
            numbers: std::collections::BTreeMap::new(),
            notes: Vec::new(),
            tier: config.tier.clone(),
            settings: config.differences(&preset)?,
            seed: config.seed,
        })
    }

    /// Takes in the tensors of a file that are this stage's; its weights begin with `weights`.
    fn count(&mut self, file: &TensorFile, own: &[&str], weights: &str) -> Result<()> {
        for name in own {
            self.tensors += 1;
            self.bytes += file.bytes(name)?.len() as u64;
            self.resumable |= name.starts_with("adam_m.");
            if name.starts_with(weights) {
                self.weights += file.shape(name)?.iter().product::<usize>();
            }
        }
        Ok(())
    }
}

/// For people.
fn page(all: &[Shown]) -> String {
    let mut text = String::new();
    for s in all {
        let marks = [(s.newest, "newest"), (s.best, "best"), (s.resumable, "training can go on")];
        let marks: Vec<&str> = marks.iter().filter(|m| m.0).map(|m| m.1).collect();
        let _ = writeln!(text, "{} after {} steps ({})", s.stage, s.step, marks.join(", "));
        let _ = writeln!(text, "  {}", s.path);
        let (weights, mb) = (s.weights as f64 / 1e6, s.bytes as f64 / 1e6);
        let _ = writeln!(text, "  {weights:.2} M weights, {} tensors, {mb:.2} MB", s.tensors);
        if !s.program.is_empty() {
            let _ = writeln!(text, "  written by {}", s.program);
        }
        if !s.numbers.is_empty() {
            let numbers = s.numbers.iter().map(|(name, x)| format!("{name} {x:.4}"));
            let _ = writeln!(text, "  {}", numbers.collect::<Vec<_>>().join(", "));
        }
        if !s.notes.is_empty() {
            let _ = writeln!(text, "  with {}", s.notes.join(", "));
        }
        let settings = match s.settings.is_empty() {
            true => "as it is".to_string(),
            false => format!("but for {}", s.settings.join(", ")),
        };
        let _ = writeln!(text, "  preset {} {settings}; seed {}", s.tier, s.seed);
    }
    text
}
