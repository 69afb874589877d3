//! Reading PTX: the text that NVRTC emits, checked whole before anything runs.

use std::fmt;

/// A module's text, read and checked.
#[derive(Debug, Default)]
pub struct Module {
    entries: Vec<Entry>,
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

impl Module {
    /// Reads a module. Every instruction is checked: what the interpreter cannot run is refused
    /// here and not at the launch.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let first = text.lines().next().unwrap_or_default();
        Err(ParseError {
            line: 1,
            instruction: first.to_owned(),
            what: "unsupported as yet".to_owned(),
            source: None,
        })
    }

    /// The module's kernels.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// One kernel by name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
}
