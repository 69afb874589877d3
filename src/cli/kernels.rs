//! `genevar kernels`: the CUDA kernels with their cards and resources, and their machine code.

use std::fmt::Write;
use std::process::Command;

use clap::Args;
use serde::Serialize;

use super::to_json;
use crate::device::kernel::{Entry, Image, Resources};
use crate::device::launch::{ENTRIES, NVRTC};
use crate::error::{Error, Result};

/// What to do when a name is wrong.
const LIST: &str = "`genevar kernels` lists them";

/// Arguments of `genevar kernels`.
#[derive(Args, Debug)]
pub struct KernelArgs {
    /// Shows the cards of one entry, as `layer_norm_fwd`. Default: a table of all.
    entry: Option<String>,
    /// What its template is filled with, where there are several.
    #[arg(long, requires = "entry")]
    instance: Option<String>,
    /// Prints the entry's PTX.
    #[arg(long, requires = "entry", conflicts_with = "sass")]
    ptx: bool,
    /// Prints the entry's machine code for --arch; wants cuobjdump of a CUDA toolkit.
    #[arg(long, requires = "entry")]
    sass: bool,
    /// Prints the table, or the entry's cards, as JSON.
    #[arg(long, conflicts_with_all = ["ptx", "sass"])]
    json: bool,
    /// The architecture of --sass.
    #[arg(long, default_value = "sm_90a")]
    arch: String,
}

/// Runs the command; returns what is to be printed.
///
/// # Errors
/// An entry, instance or architecture that is not there; a build without NVRTC; no cuobjdump.
pub fn run(args: &KernelArgs) -> Result<String> {
    let Some(name) = &args.entry else {
        return if args.json { json(ENTRIES.iter()) } else { Ok(table()) };
    };
    let found = chosen(name, args.instance.as_deref())?;
    if args.json {
        return json(found.into_iter());
    }
    if !args.ptx && !args.sass {
        return Ok(found.iter().map(|e| card(e)).collect());
    }
    let entry = match found.as_slice() {
        [one] => one,
        [first, ..] => {
            let all: Vec<&str> = found.iter().map(|e| e.instance).collect();
            let what = format!("{} has several instances", first.name);
            return Err(Error::config("--instance", what, format!("one of {}", all.join("; "))));
        }
        [] => return Err(Error::Internal(format!("no instance of {name}"))),
    };
    match args.ptx {
        true => ptx(entry),
        false => sass(entry, &args.arch),
    }
}

fn chosen(name: &str, instance: Option<&str>) -> Result<Vec<&'static Entry>> {
    let all: Vec<&Entry> = ENTRIES.iter().filter(|e| e.name == name).collect();
    if all.is_empty() {
        let names: Vec<&str> = ENTRIES.iter().map(|e| e.name).collect();
        let error = Error::config("kernels", format!("no entry is called {name:?}"), LIST);
        return Err(error.suggesting(name, &names));
    }
    let Some(instance) = instance else { return Ok(all) };
    let known: Vec<&str> = all.iter().map(|e| e.instance).collect();
    let found: Vec<&Entry> = all.into_iter().filter(|e| e.instance == instance).collect();
    match found.is_empty() {
        false => Ok(found),
        true => {
            let what = format!("{name} has no instance {instance:?}");
            Err(Error::config("--instance", what, format!("one of {}", known.join("; "))))
        }
    }
}

/// One row an entry and architecture.
fn table() -> String {
    let mut out = format!(
        "{:<20} {:<10} {:<28} {:<11} {:>9}  {:>5}  {:>6}  {:>6}  {:>6}  {:>5}\n",
        "entry",
        "instance",
        "where",
        "arch",
        "registers",
        "stack",
        "spills",
        "shared",
        "tensor",
        "wide"
    );
    for e in &ENTRIES {
        let place = format!("{}:{}", e.file, e.line);
        if e.resources.is_empty() {
            let _ = writeln!(out, "{:<20} {:<10} {place}", e.name, e.instance);
        }
        for r in e.resources {
            let spills = r.spill_stores + r.spill_loads;
            let _ = writeln!(
                out,
                "{:<20} {:<10} {place:<28} {:<11} {:>9}  {:>5}  {spills:>6}  {:>6}  {:>6}  {:>5}",
                e.name, e.instance, r.arch, r.registers, r.stack, r.shared, r.tensor, r.wide
            );
        }
    }
    if NVRTC.is_none() {
        out += "not compiled: run tools/setup, which fetches NVRTC, and build again\n";
    }
    out
}

/// The same for programs, with cards.
fn json(entries: impl Iterator<Item = &'static Entry>) -> Result<String> {
    let one = |e: &'static Entry| Told {
        entry: e.name,
        instance: e.instance,
        file: e.file,
        line: e.line,
        card: e.card,
        resources: e.resources,
    };
    to_json(&entries.map(one).collect::<Vec<_>>())
}

/// An entry.
#[derive(Serialize)]
struct Told {
    entry: &'static str,
    instance: &'static str,
    file: &'static str,
    line: u32,
    card: &'static str,
    resources: &'static [Resources],
}

fn card(e: &Entry) -> String {
    let mut out = format!("{e}\n{}\n", e.card);
    for r in e.resources {
        let _ = writeln!(
            out,
            "  {}: {} registers, {} bytes of stack, {} of spills, {} of shared memory; \
             {} instructions of tensor cores, {} loads of 16 bytes",
            r.arch,
            r.registers,
            r.stack,
            r.spill_stores + r.spill_loads,
            r.shared,
            r.tensor,
            r.wide
        );
    }
    out
}

fn image(entry: &Entry, wanted: impl Fn(&Image) -> bool, name: &str) -> Result<&'static Image> {
    entry.module.images.iter().find(|i| wanted(i)).ok_or_else(|| {
        let known: Vec<&str> = entry.module.images.iter().map(|i| i.arch).collect();
        let fix = match known.is_empty() {
            true => "run tools/setup, which fetches NVRTC, and build again".to_string(),
            false => format!("one of {}, or build with GENEVAR_ARCHS", known.join(", ")),
        };
        Error::config("--arch", format!("{} was not compiled for {name}", entry.file), fix)
    })
}

/// The entry's part of its file's PTX.
fn ptx(entry: &Entry) -> Result<String> {
    let image = image(entry, Image::is_ptx, "PTX")?;
    let text = String::from_utf8_lossy(image.bytes);
    let start = text.find(&format!(".entry {}(", entry.symbol));
    let begin = start.map(|at| text[..at].rfind('\n').map_or(0, |n| n + 1));
    let part = begin.and_then(|from| {
        let length = text[from..].find("\n}")?;
        text.get(from..from + length + 2)
    });
    match part {
        Some(part) => Ok(format!("{part}\n")),
        None => Err(Error::Internal(format!("{entry} is not in its own PTX"))),
    }
}

fn sass(entry: &Entry, arch: &str) -> Result<String> {
    let image = image(entry, |i| i.arch == arch && !i.is_ptx(), arch)?;
    let file = std::env::temp_dir().join(format!("genevar-{}.cubin", std::process::id()));
    std::fs::write(&file, image.bytes).map_err(|e| Error::io("write", &file, e))?;
    let told =
        Command::new("cuobjdump").arg("-sass").arg("-fun").arg(entry.symbol).arg(&file).output();
    let removed = std::fs::remove_file(&file);
    let told = told.map_err(|e| {
        let what = format!("cannot run cuobjdump: {e}");
        Error::config("--sass", what, "install a CUDA toolkit, or look at --ptx")
    })?;
    removed.map_err(|e| Error::io("remove", &file, e))?;
    if !told.status.success() {
        let what = format!("cuobjdump: {}", String::from_utf8_lossy(&told.stderr).trim());
        return Err(Error::config("--sass", what, "look at --ptx"));
    }
    Ok(String::from_utf8_lossy(&told.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(entry: Option<&str>, instance: Option<&str>, ptx: bool) -> KernelArgs {
        let own = |s: Option<&str>| s.map(str::to_string);
        let arch = "sm_90a".to_string();
        KernelArgs {
            entry: own(entry),
            instance: own(instance),
            ptx,
            sass: false,
            json: false,
            arch,
        }
    }

    #[test]
    fn every_entry_is_listed_and_shown() {
        let all = table();
        for e in &ENTRIES {
            assert!(all.contains(&format!("{}:{}", e.file, e.line)), "{e}");
            let shown = run(&args(Some(e.name), Some(e.instance), false)).unwrap();
            assert!(shown.contains("floor"), "{shown}");
            if NVRTC.is_some() {
                let ptx = run(&args(Some(e.name), Some(e.instance), true)).unwrap();
                assert!(ptx.contains(e.symbol) && ptx.trim_end().ends_with('}'), "{ptx}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_a_suggestion() {
        let told = |a| run(&a).unwrap_err().to_string();
        assert!(told(args(Some("layer_norm_fw"), None, false)).contains("layer_norm_fwd"));
        assert!(told(args(Some("gelu_fwd"), Some("f8"), false)).contains("f32"));
        assert!(told(args(Some("gelu_fwd"), None, true)).contains("several instances"));
    }
}
