//! Kernels as the host sees them: what an entry is, buffers and arguments of a launch, and why a
//! launch is refused.
//!
//! The launchers that `build.rs` writes are made of these ([`super::launch`]). An argument that is
//! a buffer can be made from a live buffer only, so launching is safe.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::error::Error;

pub use super::cuda::Queue;
pub use crate::error::Result;
pub use half::bf16 as Bf16;

/// What a buffer on a device may hold.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The name that cards give the type.
    const NAME: &'static str;
}

macro_rules! elements {
    ($($t:ty: $name:literal),*) => {
        $(impl Element for $t { const NAME: &'static str = $name; })*
    };
}
elements!(f32: "f32", f64: "f64", i32: "i32", u32: "u32", i64: "i64", u64: "u64", u16: "u16",
    u8: "u8", Bf16: "bf16");

/// A stretch of device memory that is borrowed from its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    address: u64,
    len: usize,
    element: &'static str,
    /// Bytes of an element.
    size: usize,
    /// The queue whose order it lives in.
    queue: u64,
}

impl Span {
    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The name of the elements' type.
    pub fn element(&self) -> &'static str {
        self.element
    }
    /// The queue whose order it lives in.
    pub(super) fn queue(&self) -> u64 {
        self.queue
    }
}

/// A buffer that is read.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, T> {
    span: Span,
    owner: PhantomData<&'a [T]>,
}

/// A buffer that is written.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    span: Span,
    owner: PhantomData<&'a mut [T]>,
}

impl Span {
    /// The elements of `range` alone.
    fn part(self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.len {
            let what = format!("elements {range:?} of a buffer of {}", self.len);
            return Err(Error::Shape { op: "buffer", what });
        }
        let address = self.address + (range.start * self.size) as u64;
        Ok(Self { address, len: range.len(), ..self })
    }
}

impl<T: Element> Slice<'_, T> {
    /// The elements of `range` alone.
    ///
    /// # Errors
    /// A range that leaves the buffer.
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        Ok(Self { span: self.span.part(range)?, owner: PhantomData })
    }
    /// Only buffers make slices: the address must be theirs.
    pub(super) fn new(address: u64, len: usize, queue: u64) -> Self {
        let (element, size) = (T::NAME, size_of::<T>());
        Self { span: Span { address, len, element, size, queue }, owner: PhantomData }
    }
    /// No elements: for a kernel that can do without this buffer.
    pub fn none(queue: &Queue) -> Self {
        Self::new(0, 0, queue.id())
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.span.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.span.len == 0
    }
    /// Device address of the first element, for a table of addresses: who makes one holds the
    /// buffers until the launch that reads it is made.
    pub fn address(&self) -> u64 {
        self.span.address
    }
    /// Whether it begins where the copy engine can ([`Boxes::GRAIN`]).
    pub fn is_aligned(&self) -> bool {
        self.span.address.is_multiple_of(Boxes::GRAIN)
    }
}

impl<T: Element> SliceMut<'_, T> {
    /// The elements of `range` alone.
    ///
    /// # Errors
    /// A range that leaves the buffer.
    pub fn part(&mut self, range: Range<usize>) -> Result<SliceMut<'_, T>> {
        Ok(SliceMut { span: self.span.part(range)?, owner: PhantomData })
    }
    /// Only buffers make slices: the address must be theirs.
    pub(super) fn new(address: u64, len: usize, queue: u64) -> Self {
        let (element, size) = (T::NAME, size_of::<T>());
        Self { span: Span { address, len, element, size, queue }, owner: PhantomData }
    }
    /// The same elements, for a later kernel to read.
    pub fn written(&self) -> Slice<'_, T> {
        Slice { span: self.span, owner: PhantomData }
    }
    /// No elements: for a kernel that can do without this buffer.
    pub fn none(queue: &Queue) -> Self {
        Self::new(0, 0, queue.id())
    }
    /// Device address of the first element, as [`Slice::address`].
    pub fn address(&self) -> u64 {
        self.span.address
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.span.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.span.len == 0
    }
}

/// Blocks, threads of a block, bytes of dynamic shared memory, and whether all blocks run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Whether all blocks are on the GPU at once, so that they may wait for each other. A launch
    /// of more than fit is refused.
    pub together: bool,
}

impl Grid {
    /// A row of blocks.
    pub fn line(blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks.max(1)).unwrap_or(u32::MAX).min(i32::MAX as u32);
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0, together: false }
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([a, b, c], [x, y, z]) = (self.blocks, self.threads);
        write!(f, "{a}x{b}x{c} blocks of {x}x{y}x{z} threads")?;
        if self.together {
            write!(f, " at once")?;
        }
        match self.shared {
            0 => Ok(()),
            n => write!(f, " with {n} bytes of shared memory"),
        }
    }
}

/// A tensor and the boxes that it is read in, the contiguous axis last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boxes {
    span: Span,
    extents: [u64; 3],
    part: [u32; 3],
}

impl Boxes {
    /// What the copy engine asks of an address and of the distance between lines, in bytes.
    pub const GRAIN: u64 = 16;

    /// The elements.
    pub fn span(&self) -> &Span {
        &self.span
    }
    /// Extents of the tensor.
    pub fn extents(&self) -> [u64; 3] {
        self.extents
    }
    /// Extents of a box.
    pub fn part(&self) -> [u32; 3] {
        self.part
    }
    /// Bytes of an element.
    pub(super) fn element(&self) -> u64 {
        self.span.size as u64
    }
}

/// One argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A buffer that is read.
    Input(Span),
    /// A buffer that is written.
    Output(Span),
    /// A tensor that the copy engine reads box by box.
    Map(Boxes),
    /// A value.
    F32(f32),
    /// A value.
    F64(f64),
    /// A value.
    I32(i32),
    /// A value.
    U32(u32),
    /// A value.
    I64(i64),
    /// A value.
    U64(u64),
    /// A value.
    Bool(bool),
}

impl Arg {
    /// A buffer that is read.
    pub fn input<T: Element>(s: &Slice<'_, T>) -> Self {
        Self::Input(s.span)
    }
    /// A buffer that is written.
    pub fn output<T: Element>(s: &mut SliceMut<'_, T>) -> Self {
        Self::Output(s.span)
    }
    /// A tensor that the copy engine reads box by box.
    pub fn map<T: Element>(s: &Slice<'_, T>, extents: [u64; 3], part: [u32; 3]) -> Self {
        Self::Map(Boxes { span: s.span, extents, part })
    }
    /// The buffer, if it is one.
    pub fn span(&self) -> Option<&Span> {
        match self {
            Self::Input(s) | Self::Output(s) => Some(s),
            Self::Map(boxes) => Some(&boxes.span),
            _ => None,
        }
    }
}

/// The whole number at place `at` of a launch's arguments; 0 for anything else.
pub fn size_at(args: &[Arg], at: usize) -> usize {
    match args.get(at) {
        Some(Arg::I32(n)) => usize::try_from(*n).unwrap_or(0),
        Some(Arg::U32(n)) => usize::try_from(*n).unwrap_or(0),
        Some(Arg::I64(n)) => usize::try_from(*n).unwrap_or(0),
        Some(Arg::U64(n)) => usize::try_from(*n).unwrap_or(0),
        _ => 0,
    }
}

/// The least bytes that a launch must move and operations that it must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Bytes.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// A compiled image of a kernel file.
#[derive(Debug)]
pub struct Image {
    /// Its architecture: `compute_80` for PTX, `sm_80` for machine code.
    pub arch: &'static str,
    /// PTX without a final zero, or a cubin.
    pub bytes: &'static [u8],
}

impl Image {
    /// Whether this is PTX.
    pub fn is_ptx(&self) -> bool {
        self.arch.starts_with("compute_")
    }
    /// The number of an architecture: 90 of `sm_90a`; the largest where there is none.
    pub fn number(arch: &str) -> i32 {
        arch.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(i32::MAX)
    }
}

/// A kernel file.
#[derive(Debug)]
pub struct Module {
    /// Its name without `.cu`.
    pub name: &'static str,
    /// Its images; none where NVRTC was missing.
    pub images: &'static [Image],
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A buffer that is read.
    Input,
    /// A buffer that is written.
    Output,
    /// A value.
    Value,
}

/// A parameter of an entry.
#[derive(Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Its type, as cards name it.
    pub element: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its extent as written.
    pub extent: &'static str,
}

/// What an entry uses on an architecture.
#[derive(Debug, serde::Serialize)]
pub struct Resources {
    /// The architecture.
    pub arch: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of stack of a thread.
    pub stack: u32,
    /// Bytes that a thread spills.
    pub spill_stores: u32,
    /// Bytes that a thread loads back.
    pub spill_loads: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Tensor-core instructions in its machine code.
    pub tensor: u32,
    /// Loads of 16 bytes a thread from global memory in its machine code, and bulk copies.
    pub wide: u32,
}

/// One instance of a kernel entry.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What its template is filled with.
    pub instance: &'static str,
    /// Its mangled name; empty where NVRTC was missing.
    pub symbol: &'static str,
    /// The file it is in.
    pub module: &'static Module,
    /// The file's path from the root.
    pub file: &'static str,
    /// Its line there.
    pub line: u32,
    /// Threads of a block that it is compiled for.
    pub max_threads: Option<u32>,
    /// Whether it waits by itself for the launches before it, and may be launched beside them.
    pub awaits: bool,
    /// Bytes of dynamic shared memory of a block; the launcher asks for them.
    pub dynamic_shared: u32,
    /// The card above it.
    pub card: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// What it uses, by architecture.
    pub resources: &'static [Resources],
    /// The card's floor for a launch with these arguments.
    pub floor: fn(&[Arg]) -> Floor,
    /// By what factor a count may exceed the floor.
    pub slack: fn(&[Arg]) -> f64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.instance.is_empty() {
            write!(f, "<{}>", self.instance)?;
        }
        write!(f, " ({}:{})", self.file, self.line)
    }
}

/// Why a launcher does not launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A buffer holds less than the kernel reaches.
    Short {
        /// The parameter.
        name: &'static str,
        /// Elements that the kernel reaches.
        wanted: i128,
        /// Elements that there are.
        found: usize,
    },
    /// A buffer would have more elements than the kernel can count.
    TooMany {
        /// The parameter.
        name: &'static str,
        /// Elements that the kernel would have to reach.
        wanted: i128,
        /// Elements that it can count.
        most: i128,
    },
    /// The block is larger than the kernel was compiled for.
    Block {
        /// Threads asked for.
        threads: u64,
        /// Threads that there may be.
        most: u32,
    },
    /// A size does not fit the type in which the kernel takes it.
    TooLarge {
        /// The parameter.
        name: &'static str,
        /// The size.
        value: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { name, wanted, found } => {
                write!(f, "`{name}` has {found} elements, the kernel reaches {wanted}")
            }
            Self::TooMany { name, wanted, most } => {
                write!(f, "`{name}` would have {wanted} elements, the kernel counts to {most}")
            }
            Self::Block { threads, most } => {
                write!(f, "a block of {threads} threads, it is compiled for {most}")
            }
            Self::TooLarge { name, value } => {
                write!(f, "`{name}` is {value}, more than the kernel's type holds")
            }
        }
    }
}

/// The error of a launcher that does not launch.
pub fn refuse(entry: &'static Entry, fault: Fault) -> Error {
    Error::Shape { op: entry.name, what: format!("{entry}: {fault}") }
}
