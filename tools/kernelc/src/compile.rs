//! Compiles every file for every architecture, a few at a time, and keeps what has not changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, panic, thread};

use crate::cache::{Hash, Slot};
use crate::error::{Error, Result};
use crate::headers::{self, ROOT};
use crate::kernel::Kernel;
use crate::nvrtc::{Job, Nvrtc, Output};
use crate::ptxas::{self, Resources};
use crate::sass;

/// One `.cu` file, read.
pub(crate) struct File {
    /// Its name without `.cu`.
    pub(crate) stem: String,
    /// As `kernels/x.cu`.
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) kernels: Vec<Kernel>,
}

impl File {
    /// What it is compiled for, of the architectures of a build: all, or the one that its entries
    /// are for, and PTX for that one.
    fn archs<'a>(&self, all: &'a [String]) -> Vec<Cow<'a, str>> {
        match self.kernels.iter().find_map(|k| k.card.arch.as_ref()) {
            None => all.iter().map(|a| Cow::Borrowed(a.as_str())).collect(),
            Some(own) => {
                let code = all.iter().find(|a| *a == own);
                let both = |a: &'a String| [a.replacen("sm_", "compute_", 1).into(), a.into()];
                code.into_iter().flat_map(both).collect()
            }
        }
    }
}

/// One entry of an image: the instance asked for, its symbol and, in a cubin, what it uses.
pub(crate) struct Symbol {
    pub(crate) expression: String,
    pub(crate) symbol: String,
    pub(crate) resources: Option<Resources>,
    /// In a cubin, whether it waits for the launches before it touches memory.
    pub(crate) waits: Option<bool>,
}

/// One file compiled for one architecture.
pub(crate) struct Image {
    pub(crate) stem: String,
    pub(crate) file: String,
    pub(crate) arch: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) symbols: Vec<Symbol>,
    /// The compiler's warnings, a line each, places as `kernels/x.cu:12`.
    pub(crate) warnings: Vec<String>,
    /// Whether it came from the cache.
    pub(crate) reused: bool,
}

impl Image {
    /// The file it is written to.
    pub(crate) fn file_name(&self) -> String {
        let end = if is_cubin(&self.arch) { "cubin" } else { "ptx" };
        format!("{}.{}.{end}", self.stem, self.arch)
    }
}

/// `sm_80` names machine code, `compute_80` PTX.
fn is_cubin(arch: &str) -> bool {
    arch.starts_with("sm_")
}

/// The `80` of `sm_80` and `compute_80`.
fn number(arch: &str) -> &str {
    arch.split_once('_').map_or(arch, |(_, number)| number)
}

/// All files for all architectures, in their order. At most `workers` compile at once; the PTX that
/// machine code is made from is an image too, so that one compilation serves both.
pub(crate) fn all(
    nvrtc: &Nvrtc,
    files: &[File],
    archs: &[String],
    cache: &Path,
) -> Result<Vec<Image>> {
    let together = |file: &'_ File| {
        let mut groups: Vec<Vec<String>> = Vec::new();
        for arch in file.archs(archs) {
            let own = |group: &&mut Vec<String>| number(&group[0]) == number(&arch);
            match groups.iter_mut().find(own) {
                Some(group) => group.push(arch.into()),
                None => groups.push(vec![arch.into()]),
            }
        }
        groups
    };
    let jobs: Vec<(&File, Vec<String>)> =
        files.iter().flat_map(|f| together(f).into_iter().map(move |g| (f, g))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((i, (file, archs))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?)))
        {
            done.push((i, images(nvrtc, file, archs, cache)));
        }
        done
    };
    let mut done: Vec<(usize, Result<Vec<Image>>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers()).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.flat_map(|r| r.unwrap_or_else(|broken| panic::resume_unwind(broken))).collect()
    });
    // By place in the list: the same fault is told first whichever thread met one first.
    done.sort_by_key(|(i, _)| *i);
    let found: Result<Vec<Vec<Image>>> = done.into_iter().map(|(_, images)| images).collect();
    let mut images: Vec<Image> = found?.into_iter().flatten().collect();
    let place = |image: &Image| {
        let file = files.iter().position(|f| f.stem == image.stem);
        (file, archs.iter().position(|a| *a == image.arch))
    };
    images.sort_by_key(place);
    Ok(images)
}

/// How many compile at once: as many as cargo would run, at most 8, for NVRTC takes 100 MB each.
fn workers() -> usize {
    let asked = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or_else(cores).clamp(1, 8)
}

/// Whether launches overlap on this architecture: Hopper and later.
pub(crate) fn overlaps(arch: &str) -> bool {
    let digits = arch.trim_matches(|c: char| !c.is_ascii_digit());
    digits.parse().is_ok_and(|number: u32| number >= 90)
}

/// The text as an architecture's compiler gets it. Where launches overlap, what an entry reads may
/// still be written when it begins: `__restrict__` would let a load move up before the wait, and
/// go by a cache that does not see the writes. So pointers to const lose it there.
fn text_for<'a>(text: &'a str, arch: &str) -> Cow<'a, str> {
    const WORD: &str = "__restrict__";
    if !overlaps(arch) || !text.contains(WORD) {
        return Cow::Borrowed(text);
    }
    let mut left = text.to_string();
    for (at, _) in text.match_indices(WORD) {
        let before = &text[..at];
        let first = before.rfind(['(', ',', '\n']).map_or(0, |i| i + 1);
        if before[first..].trim_start().starts_with("const ") {
            left.replace_range(at..at + WORD.len(), &" ".repeat(WORD.len()));
        }
    }
    Cow::Owned(left)
}

fn options(arch: &str) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_string(),
        // Lambdas that take `auto` count as host functions otherwise.
        "--device-as-default-execution-space".to_string(),
        "--generate-line-info".to_string(),
    ];
    if is_cubin(arch) {
        options.push("--ptxas-options=-v".to_string());
    }
    options
}

/// A file's images for architectures of one number.
fn images(nvrtc: &Nvrtc, file: &File, archs: &[String], cache: &Path) -> Result<Vec<Image>> {
    let arch = archs.iter().find(|a| is_cubin(a)).unwrap_or(&archs[0]).as_str();
    let options = options(arch);
    let expressions: Vec<String> =
        file.kernels.iter().flat_map(|k| &k.instances).map(|i| i.expression.clone()).collect();
    let mut hash = Hash::new();
    let version = nvrtc.version();
    [&version, &file.name].into_iter().for_each(|p| hash.add(p));
    hash.add(&text_for(&file.text, arch));
    for (name, text) in &file.headers {
        hash.add(name);
        hash.add(&text_for(text, arch));
    }
    options.iter().chain(&expressions).for_each(|p| hash.add(p));
    let slot = Slot::new(cache, &format!("{}.{arch}", file.stem), &hash);
    let found = slot.load(&expressions);
    let reused = found.is_some();
    let output = match found {
        Some(output) => output,
        None => {
            let output = compile(nvrtc, file, arch, &options, &expressions)?;
            slot.store(&output)?;
            output
        }
    };
    let report = ptxas::resources(&output.log);
    let code_of = |symbol: &str| {
        let (_, resources) = report.iter().find(|(s, _)| s == symbol)?;
        let code = sass::code(&output.cubin, symbol).unwrap_or_default();
        Some(Resources { code, ..*resources })
    };
    let symbols = |cubin: bool| {
        let one = |(expression, symbol): (&String, &String)| Symbol {
            expression: expression.clone(),
            resources: code_of(symbol).filter(|_| cubin),
            waits: sass::waits(&output.cubin, symbol).filter(|_| cubin),
            symbol: symbol.clone(),
        };
        expressions.iter().zip(&output.symbols).map(one).collect()
    };
    let image = |arch: &String| Image {
        stem: file.stem.clone(),
        file: file.name.clone(),
        arch: arch.clone(),
        bytes: if is_cubin(arch) { output.cubin.clone() } else { output.ptx.clone() },
        symbols: symbols(is_cubin(arch)),
        warnings: messages(&output.log),
        reused,
    };
    Ok(archs.iter().map(image).collect())
}

fn compile(
    nvrtc: &Nvrtc,
    file: &File,
    arch: &str,
    options: &[String],
    expressions: &[String],
) -> Result<Output> {
    let rooted = |(name, text): (&String, &String)| {
        (format!("{ROOT}{name}"), headers::rooted(&text_for(text, arch)))
    };
    let headers: Vec<(String, String)> = file.headers.iter().map(rooted).collect();
    let job = Job {
        name: &format!("/{}", file.name),
        source: &headers::rooted(&text_for(&file.text, arch)),
        headers: &headers,
        expressions,
        options,
        cubin: is_cubin(arch),
    };
    let mut output = nvrtc.compile(&job).map_err(|failure| Error::Compile {
        file: file.name.clone(),
        arch: arch.to_string(),
        log: match headers::places(&failure.log) {
            log if log.trim().is_empty() => failure.what,
            log => log,
        },
    })?;
    output.log = headers::places(&output.log);
    let text = String::from_utf8_lossy(&output.ptx);
    output.ptx = text.replace(&format!("\"{ROOT}"), "\"kernels/").into_bytes();
    Ok(output)
}

/// The lines of a log that are for people: all but ptxas's numbers. Lost performance is news.
fn messages(log: &str) -> Vec<String> {
    let report = |l: &&str| {
        let numbers = l.starts_with("ptxas info") || l.starts_with("ptxas   ");
        numbers && !l.contains("Performance Loss")
    };
    let hint = |l: &&str| l.starts_with("Remark: The warnings can be suppressed");
    let lines = log.lines().map(str::trim_end).filter(|l| !l.is_empty());
    lines.filter(|l| !report(l) && !hint(l)).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_may_alias_where_launches_overlap() {
        let text = "void f(\n    T*       __restrict__ y,\n    const T* __restrict__ x,\n    \
                    int n, const float* __restrict__ w) {}";
        let blank = " ".repeat(12);
        let want = text.replace("const T* __restrict__", &format!("const T* {blank}"));
        let want = want.replace("const float* __restrict__", &format!("const float* {blank}"));
        for arch in ["sm_90a", "compute_90", "sm_120"] {
            assert_eq!(text_for(text, arch), want, "{arch}");
        }
        assert_eq!(text_for(text, "sm_80"), text);
        assert_eq!(text_for(text, "compute_80"), text);
    }

    #[test]
    fn messages_leave_out_numbers_and_keep_what_costs() {
        let log = "kernels/x.cu:2: warning #177-D: unused\n  int n;\n      ^\n\n\
                   Remark: The warnings can be suppressed with \"-diag-suppress <n>\"\n\
                   ptxas info    : 0 bytes gmem\n\
                   ptxas         .     0 bytes stack frame, 0 bytes spill stores\n\
                   ptxas info    : (C7510) Potential Performance Loss: wgmma is serialized\n";
        let want = [
            "kernels/x.cu:2: warning #177-D: unused",
            "  int n;",
            "      ^",
            "ptxas info    : (C7510) Potential Performance Loss: wgmma is serialized",
        ];
        assert_eq!(messages(log), want);
    }
}
