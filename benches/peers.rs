//! Our side of a race: the work of the models, done when told, so that another implementation
//! (tools/peers has it in PyTorch) can be held against it and take turns with it.
//!
//! `cargo bench --bench peers -- --bundle FILE [--device cuda] [--precision bf16]` reads lines and
//! answers each with one line of JSON: `list` names the work; `write NAME FILE` does a piece once
//! and writes its inputs, results and description; `time NAME RUNS` does it so many times and gives
//! the mean seconds; `tile/8` and the like are batches of tiles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a bench")]

#[path = "../tests/support/ops/data.rs"]
mod data;
#[path = "support/peers/mod.rs"]
mod peers;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use genevar::device::Device;
use genevar::device::cpu::{join_pool, keep_memory};
use genevar::io::safetensors::{Store, Writer};
use genevar::ops::Precision;
use genevar::tensor::Tensor;
use genevar::train::bundle::Bundle;
use genevar::train::system::System;
use genevar::{Error, Result};
use serde_json::{Value, json};

use peers::{Job, Named, ops, steps};

/// The product's allocator, since fresh outputs are part of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a race is about.
struct Race<'a> {
    bundle: &'a Bundle,
    system: &'a System,
    device: Device,
    precision: Precision,
    made: BTreeMap<String, Box<dyn Job + 'a>>,
}

impl<'a> Race<'a> {
    fn names(&self) -> Result<Vec<String>> {
        let fixed = ["tile/1", "jvp/1", "meanflow/1", "ar/1"].map(String::from);
        let ops = ops::all(&self.bundle.config)?.into_iter().map(|job| job.name);
        Ok(fixed.into_iter().chain(ops).collect())
    }

    /// The work of this name; a number behind the last slash of whole work is its batch.
    fn job(&mut self, name: &str) -> Result<&mut Box<dyn Job + 'a>> {
        if !self.made.contains_key(name) {
            let job = self.make(name)?;
            self.made.clear();
            self.made.insert(name.into(), job);
        }
        self.made.get_mut(name).ok_or_else(|| Error::Internal("it was just made".into()))
    }

    fn make(&self, name: &str) -> Result<Box<dyn Job + 'a>> {
        let (kind, rows) = match name.rsplit_once('/') {
            Some((kind, rows)) => (kind, rows.parse().unwrap_or(0)),
            None => (name, 0),
        };
        match (kind, rows) {
            ("tile", 1..) => return Ok(Box::new(steps::TileJob::new(self.system, rows)?)),
            ("jvp", 1..) => {
                return Ok(Box::new(steps::JvpJob::new(self.bundle, rows, &self.device)?));
            }
            ("meanflow", 1..) => {
                return Ok(Box::new(steps::FlowJob::new(self.bundle, rows, &self.device)?));
            }
            ("ar", 1..) => {
                return Ok(Box::new(steps::ArJob::new(self.bundle, rows, &self.device)?));
            }
            _ => {}
        }
        let all = ops::all(&self.bundle.config)?;
        let known = || Error::data(format!("{name:?} is no work"), "`list` names what is");
        let listed = all.into_iter().find(|job| job.name == name).ok_or_else(known)?;
        Ok(Box::new(listed.make(&self.device, self.precision)?))
    }

    fn synchronise(&self) -> Result<()> {
        match &self.device {
            Device::Cuda(queue) => queue.synchronize(),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["list"] => Ok(json!({"names": self.names()?})),
            ["write", name, file] => {
                let job = self.job(name)?;
                job.again()?;
                let (about, inputs, outputs) = (job.about(), job.inputs()?, job.run()?);
                write(Path::new(file), name, &about, [&inputs, &outputs])?;
                Ok(json!({"written": file}))
            }
            ["time", name, runs] => {
                let runs: u32 = runs.parse().unwrap_or(1).max(1);
                self.synchronise()?;
                let start = Instant::now();
                for _ in 0..runs {
                    self.job(name)?.run()?;
                }
                self.synchronise()?;
                Ok(json!({"seconds": start.elapsed().as_secs_f64() / f64::from(runs)}))
            }
            _ => Err(Error::data(format!("{line:?} is no request"), "list, write or time")),
        }
    }
}

/// Inputs as `in.`, results as `out.`.
fn write(path: &Path, name: &str, about: &Value, [inputs, outputs]: [&Named; 2]) -> Result<()> {
    let mut writer = Writer::new();
    let mut add = |kind: &str, (name, tensor): &(String, Tensor)| {
        writer.tensor(&format!("{kind}.{name}"), &tensor.here()?, Store::Full)
    };
    inputs.iter().try_for_each(|t| add("in", t))?;
    outputs.iter().try_for_each(|t| add("out", t))?;
    writer.meta("name", name);
    writer.meta("about", about.to_string());
    writer.save(path).map(drop)
}

/// The value behind an option.
fn option(name: &str) -> Option<String> {
    let words: Vec<String> = std::env::args().collect();
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).cloned()
}

fn main() -> Result<()> {
    keep_memory();
    join_pool();
    let Some(path) = option("--bundle").map(PathBuf::from) else {
        // `cargo bench` runs all benches; this one has nothing to say by itself.
        println!("peers: tools/peers/race runs this with --bundle FILE");
        return Ok(());
    };
    let bundle = Bundle::load(&path)?;
    let mut system = System::of(&bundle)?;
    let device = Device::named(&option("--device").unwrap_or_else(|| "cpu".into()))?;
    let precision = match option("--precision").as_deref() {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    if let Device::Cuda(_) = device {
        system.place(&device, precision)?;
    }
    let made = BTreeMap::new();
    let mut race = Race { bundle: &bundle, system: &system, device, precision, made };
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("read", "standard input", e))?;
        let answer = race.answer(&line).unwrap_or_else(|e| json!({"error": e.to_string()}));
        let mut out = std::io::stdout().lock();
        let told = writeln!(out, "{answer}").and_then(|()| out.flush());
        told.map_err(|e| Error::io("write", "standard output", e))?;
    }
    Ok(())
}
