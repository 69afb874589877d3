//! The Rust file: typed launchers, one module a kernel file, and the tables behind them.
//!
//! The code calls a runtime module for its types (`rt`); `tests/kernelc/rt.rs` of this crate is the
//! smallest one, and says what each item has to do. Nothing here is unsafe.

mod launcher;
mod tables;

use crate::compile::{File, Image};

/// Text with indentation.
#[derive(Default)]
pub(crate) struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    /// A line at the present depth; an empty one stays empty. A line that ends in an opening
    /// bracket goes a step in, one that begins with a closing bracket a step out.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        if line.starts_with(['}', ')', ']']) {
            self.depth = self.depth.saturating_sub(1);
        }
        if !line.is_empty() {
            self.text += &"    ".repeat(self.depth);
            self.text += line;
        }
        self.text.push('\n');
        if line.ends_with(['{', '(', '[']) && !line.starts_with("//") {
            self.depth += 1;
        }
    }

    /// Several lines.
    pub(crate) fn lines(&mut self, text: &str) {
        text.lines().for_each(|line| self.line(line));
    }
}

/// What checks a size and a buffer; the launchers call it from one module further in.
const CHECKS: &str = "\
/// A size as the kernel takes it.
fn size<N: TryFrom<usize>>(
entry: &'static rt::Entry,
name: &'static str,
value: usize,
) -> rt::Result<N> {
N::try_from(value).map_err(|_| rt::refuse(entry, rt::Fault::TooLarge { name, value }))
}

/// Whether the kernel was compiled for blocks as large as these.
fn block(entry: &'static rt::Entry, grid: &rt::Grid) -> rt::Result<()> {
let threads = grid.threads.iter().fold(1u64, |all, &n| all.saturating_mul(u64::from(n)));
match entry.max_threads {
Some(most) if threads > u64::from(most) => {
Err(rt::refuse(entry, rt::Fault::Block { threads, most }))
}
_ => Ok(()),
}
}

/// Whether a buffer holds what the kernel reaches, and the kernel's indices reach that far.
fn fits(
entry: &'static rt::Entry,
name: &'static str,
wanted: i128,
most: i128,
found: usize,
) -> rt::Result<()> {
if wanted > most {
return Err(rt::refuse(entry, rt::Fault::TooMany { name, wanted, most }));
}
if wanted > found as i128 {
return Err(rt::refuse(entry, rt::Fault::Short { name, wanted, found }));
}
Ok(())
}
";

/// The whole file.
pub(crate) fn rust(files: &[File], images: &[Image], nvrtc: Option<&str>, runtime: &str) -> String {
    let mut w = Writer::default();
    w.line("// Written by kernelc from kernels/*.cu. Changes belong there.");
    w.line("");
    w.line(format!("use {runtime} as rt;"));
    w.line("");
    let list: Vec<String> = files.iter().map(|f| format!("{:?}", f.name)).collect();
    w.line("/// The kernel files.");
    w.line(format!("pub static FILES: [&str; {}] = [{}];", files.len(), list.join(", ")));
    w.line("");
    w.line("/// The version of the NVRTC that compiled the kernels; `None` where none was found.");
    w.line(format!("pub const NVRTC: Option<&str> = {nvrtc:?};"));
    w.line("");
    if files.iter().any(|f| !f.kernels.is_empty()) {
        w.lines(CHECKS);
        w.line("");
    }
    let mut first = 0;
    for (index, file) in files.iter().enumerate() {
        launcher::module(&mut w, file, first);
        first += file.kernels.iter().map(|k| k.instances.len()).sum::<usize>();
        if index + 1 < files.len() {
            w.line("");
        }
    }
    w.line("");
    tables::modules(&mut w, files, images);
    w.line("");
    tables::entries(&mut w, files, images);
    w.text
}
