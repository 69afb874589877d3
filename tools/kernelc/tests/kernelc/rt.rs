//! The runtime that generated code is written against, at its smallest: a queue that notes its
//! launches. The engine's own has the same items round real buffers.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;

/// A number of 16 bits; the engine's is `half::bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bf16(pub u16);

/// What a buffer may hold.
pub trait Element: Copy + 'static {
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

/// A buffer that is read.
pub struct Slice<'a, T> {
    /// Where it lies.
    pub address: u64,
    /// Its elements.
    pub len: usize,
    /// What it borrows.
    pub owner: PhantomData<&'a [T]>,
}

/// A buffer that is written.
pub struct SliceMut<'a, T> {
    /// Where it lies.
    pub address: u64,
    /// Its elements.
    pub len: usize,
    /// What it borrows.
    pub owner: PhantomData<&'a mut [T]>,
}

impl<T> Slice<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl<T> SliceMut<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Blocks, threads of a block and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// One argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named like the types they hold")]
pub enum Arg {
    Input { address: u64, len: usize, element: &'static str },
    Output { address: u64, len: usize, element: &'static str },
    Map { address: u64, len: usize, extents: [u64; 3], part: [u32; 3] },
    F32(f32),
    F64(f64),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Bool(bool),
}

impl Arg {
    /// A buffer that is read.
    pub fn input<T: Element>(s: &Slice<'_, T>) -> Self {
        Self::Input { address: s.address, len: s.len, element: T::NAME }
    }
    /// A buffer that is written.
    pub fn output<T: Element>(s: &mut SliceMut<'_, T>) -> Self {
        Self::Output { address: s.address, len: s.len, element: T::NAME }
    }
    /// A tensor that is copied box by box; the contiguous axis comes last.
    pub fn map<T: Element>(s: &Slice<'_, T>, extents: [u64; 3], part: [u32; 3]) -> Self {
        Self::Map { address: s.address, len: s.len, extents, part }
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

/// The least bytes and operations of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Bytes.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// A compiled image.
pub struct Image {
    /// Its architecture.
    pub arch: &'static str,
    /// PTX or cubin.
    pub bytes: &'static [u8],
}

/// A kernel file.
pub struct Module {
    /// Its name without `.cu`.
    pub name: &'static str,
    /// Its images.
    pub images: &'static [Image],
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named like what they are")]
pub enum Kind {
    Input,
    Output,
    Value,
}

/// A parameter.
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
#[allow(missing_docs, reason = "named like the columns of the lock")]
pub struct Resources {
    pub arch: &'static str,
    pub registers: u32,
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    pub shared: u32,
    pub tensor: u32,
    pub wide: u32,
}

/// One instance of a kernel entry.
#[allow(missing_docs, reason = "named like what they are")]
pub struct Entry {
    pub name: &'static str,
    pub instance: &'static str,
    pub symbol: &'static str,
    pub module: &'static Module,
    pub file: &'static str,
    pub line: u32,
    pub max_threads: Option<u32>,
    pub dynamic_shared: u32,
    /// Whether it waits by itself for the launches before it.
    pub awaits: bool,
    pub card: &'static str,
    pub params: &'static [Param],
    pub resources: &'static [Resources],
    pub floor: fn(&[Arg]) -> Floor,
    pub slack: fn(&[Arg]) -> f64,
}

/// Why a launcher does not launch.
#[derive(Debug, PartialEq)]
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
    /// A buffer has more elements than the kernel can count.
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

/// The runtime's error; here the message.
pub type Result<T> = std::result::Result<T, String>;

/// The error of a launcher that does not launch.
pub fn refuse(entry: &'static Entry, fault: Fault) -> String {
    format!("{}<{}> ({}:{}): {fault}", entry.name, entry.instance, entry.file, entry.line)
}

/// A queue that notes what it is given.
#[derive(Default)]
pub struct Queue {
    /// Entry, grid and arguments of every launch.
    pub launched: RefCell<Vec<(&'static Entry, Grid, Vec<Arg>)>>,
}

impl Queue {
    /// Puts a kernel into the queue. Only generated launchers call it: they have checked `args`.
    pub fn launch(&self, entry: &'static Entry, grid: Grid, args: &[Arg]) -> Result<()> {
        self.launched.borrow_mut().push((entry, grid, args.to_vec()));
        Ok(())
    }
}
