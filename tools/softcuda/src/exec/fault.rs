//! What stopped a launch, said so that a person can find the line.

use crate::ptx::ast::Place;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// What happened. The driver API maps each kind to one CUDA error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside every live allocation or state space.
    IllegalAddress,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An address that is not a multiple of the access's width.
    MisalignedAddress,
    /// A read of bytes that nothing wrote. A sanitizer's finding.
    Uninitialised,
    /// Two threads touch a word without order, at least one writing. A sanitizer's finding.
    Race,
    /// A barrier that only some threads of a warp reach.
    BarrierDivergence,
    /// A shuffle, vote or match whose mask names lanes that do not take part.
    InvalidShuffle,
    /// An instruction with operands that it does not allow.
    IllegalInstruction,
    /// A failed `assert` in the kernel.
    Assert,
    /// `trap`, or anything else that stops a kernel.
    LaunchFailure,
    /// No thread of a block can go on.
    Deadlock,
    /// A warp ran far longer than any kernel should.
    Timeout,
    /// Grid, block, shared memory or parameters that the device does not allow.
    InvalidLaunch,
    /// No such entry.
    NotFound,
}

/// A stopped launch: a boxed [`Report`], whose fields it shows as its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(Box<Report>);

/// All that is known about a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// What happened, in words, with address and buffer.
    pub what: String,
    /// `file:line` of the CUDA source, from `.loc`.
    pub source: Option<String>,
    /// Line of the PTX text, or 0.
    pub ptx_line: u32,
    /// Where the instruction stands.
    pub(crate) place: Place,
    /// The instruction as written.
    pub instruction: String,
    /// The block.
    pub block: Option<[u32; 3]>,
    /// The thread.
    pub thread: Option<[u32; 3]>,
    /// The address.
    pub address: Option<u64>,
    /// The buffer concerned, in words.
    pub buffer: Option<String>,
}

impl Fault {
    /// A fault of a launch as a whole.
    pub fn new(kind: FaultKind, kernel: &str, what: impl Into<String>) -> Self {
        Self(Box::new(Report {
            kind,
            kernel: kernel.to_owned(),
            what: what.into(),
            source: None,
            ptx_line: 0,
            place: Place::default(),
            instruction: String::new(),
            block: None,
            thread: None,
            address: None,
            buffer: None,
        }))
    }
}

impl Deref for Fault {
    type Target = Report;

    fn deref(&self) -> &Report {
        &self.0
    }
}

impl DerefMut for Fault {
    fn deref_mut(&mut self) -> &mut Report {
        &mut self.0
    }
}

impl FaultKind {
    /// The kind as a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::IllegalAddress => "illegal address",
            Self::UseAfterFree => "use after free",
            Self::MisalignedAddress => "misaligned address",
            Self::Uninitialised => "uninitialised read",
            Self::Race => "race",
            Self::BarrierDivergence => "barrier divergence",
            Self::InvalidShuffle => "invalid shuffle",
            Self::IllegalInstruction => "illegal instruction",
            Self::Assert => "assertion failed",
            Self::LaunchFailure => "launch failure",
            Self::Deadlock => "deadlock",
            Self::Timeout => "timeout",
            Self::InvalidLaunch => "invalid launch",
            Self::NotFound => "entry not found",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.title(), self.what)?;
        write!(f, "\n  kernel {}", self.kernel)?;
        if let Some(source) = &self.source {
            write!(f, " at {source}")?;
        }
        if self.ptx_line > 0 {
            write!(f, "\n  PTX line {}: {}", self.ptx_line, self.instruction)?;
        }
        if let Some([x, y, z]) = self.block {
            write!(f, "\n  block ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, " thread ({x}, {y}, {z})")?;
        }
        if let Some(address) = self.address {
            write!(f, "\n  address {address:#x}")?;
        }
        if let Some(buffer) = &self.buffer {
            write!(f, " in {buffer}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
