//! Reading PTX: the text that NVRTC emits, checked whole before anything runs.

pub(crate) mod ast;
mod body;
mod lexer;
mod operand;
mod parser;

use crate::exec::{Code, decode_entry};
use ast::{Place, Unit};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// A module's text, read and checked.
#[derive(Debug, Default)]
pub struct Module {
    unit: Unit,
    kernels: Vec<(Entry, Code)>,
    text: Arc<Vec<String>>,
}

/// A kernel of a module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The symbol, mangled as in the text.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Bytes of the parameter buffer.
    pub param_bytes: u32,
    /// Bytes of shared memory the text itself declares.
    pub static_shared_bytes: u32,
    /// Bytes of local memory a thread needs.
    pub local_bytes: u32,
    /// Most threads in a block, from `.maxntid` or the architecture's 1024.
    pub max_threads: u32,
    /// Registers live at once, in 32-bit words: a stand-in for what ptxas would report.
    pub registers: u32,
}

/// One parameter of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Param {
    /// The symbol.
    pub name: String,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// Offset in the parameter buffer.
    pub offset: u32,
}

/// Why a module was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The instruction or directive as written.
    pub instruction: String,
    /// What is wrong with it.
    pub what: String,
    /// `file:line` of the CUDA source, from `.loc`.
    pub source: Option<String>,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}", self.line)?;
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        write!(f, ": {}", self.what)?;
        if !self.instruction.is_empty() {
            write!(f, ": `{}`", self.instruction)?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}

/// `file:line` of a place, if the text says so.
pub(crate) fn source(files: &HashMap<u32, String>, place: Place) -> Option<String> {
    let file = files.get(&place.file)?;
    (place.source_line > 0).then(|| format!("{file}:{}", place.source_line))
}

impl Module {
    /// Reads a module. Every instruction of every kernel is checked: what the interpreter cannot
    /// run is refused here and not at the launch.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unit = parser::parse(text)?;
        let lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
        let mut kernels = Vec::new();
        for (at, function) in unit.functions.iter().enumerate() {
            if !function.entry || !function.has_body {
                continue;
            }
            let code = decode_entry(&unit, at).map_err(|mut error| {
                let line = error.line.wrapping_sub(1) as usize;
                error.instruction = lines.get(line).cloned().unwrap_or_default();
                error
            })?;
            kernels.push((describe(&unit, at, &code), code));
        }
        Ok(Self { unit, kernels, text: Arc::new(lines) })
    }

    /// The module's kernels.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.kernels.iter().map(|(entry, _)| entry)
    }

    /// One kernel by name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries().find(|e| e.name == name)
    }

    pub(crate) fn unit(&self) -> &Unit {
        &self.unit
    }

    pub(crate) fn codes(&self) -> &[(Entry, Code)] {
        &self.kernels
    }

    pub(crate) fn text(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.text)
    }
}

/// What a driver tells about a kernel.
fn describe(unit: &Unit, function: usize, code: &Code) -> Entry {
    let function = &unit.functions[function];
    let mut params = Vec::new();
    let mut end = 0u32;
    for &id in &function.params {
        let var = &unit.vars[id as usize];
        let offset = end.next_multiple_of(var.align.max(1));
        end = offset + var.bytes;
        let name = var.name.clone();
        params.push(Param { name, bytes: var.bytes, align: var.align, offset });
    }
    Entry {
        name: function.name.clone(),
        params,
        param_bytes: end,
        static_shared_bytes: code.shared_bytes,
        local_bytes: code.frame_bytes,
        max_threads: function.max_threads.unwrap_or(1024),
        registers: (code.slots32 + 2 * code.slots64).min(255),
    }
}
