//! Decoded instructions: what the lane loops run.
//!
//! Every operand is a slot of a register file. Constants, addresses and special registers have
//! slots of their own that are filled before the first instruction, so an instruction never asks
//! what kind of operand it has.

use crate::ptx::ast::{Place, Space, Special, VarId};

/// Index into one of the register files: 32-bit (narrower values too), 64-bit, predicates.
pub(crate) type Slot = u32;

/// A guard that is always true.
pub(crate) const ALWAYS: u32 = u32::MAX;
/// Where a branch reconverges when only the end of the thread follows.
pub(crate) const NEVER: u32 = u32::MAX;

/// How a result is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Round {
    #[default]
    Near,
    /// To nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

/// Modifiers of a floating-point operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mode {
    pub(crate) round: Round,
    pub(crate) ftz: bool,
    pub(crate) sat: bool,
    pub(crate) relu: bool,
}

/// Integer operations of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    AddSat,
    SubSat,
    MulLo,
    MulHiS,
    MulHiU,
    MadLo,
    MadHiS,
    MadHiU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Neg,
    Abs,
    DivS,
    DivU,
    RemS,
    RemU,
    Shl,
    ShrS,
    ShrU,
    SadS,
    SadU,
    Brev,
}

/// Bit operations with shapes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitOp {
    Popc32,
    Popc64,
    Clz32,
    Clz64,
    Bfind32 {
        signed: bool,
        shift: bool,
    },
    Bfind64 {
        signed: bool,
        shift: bool,
    },
    Bfe32 {
        signed: bool,
    },
    Bfe64 {
        signed: bool,
    },
    /// `a` into `b`, position in `c`, length in the extra slot.
    Bfi32(Slot),
    Bfi64(Slot),
    Lop3(u8),
    Prmt(Prmt),
    ShfL {
        wrap: bool,
    },
    ShfR {
        wrap: bool,
    },
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    Mul24 {
        signed: bool,
        high: bool,
    },
    Mad24 {
        signed: bool,
        high: bool,
    },
    Fns,
}

/// Modes of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prmt {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// Multiplications to twice the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WideOp {
    Mul16S,
    Mul16U,
    Mad16S,
    Mad16U,
    Mul32S,
    Mul32U,
    Mad32S,
    Mad32U,
}

/// Operations on predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PredOp {
    Mov,
    Not,
    And,
    Or,
    Xor,
}

/// Floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Sqrt,
    Rcp,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Copysign,
    Ex2,
    Lg2,
    Rsqrt,
    Sin,
    Cos,
    Tanh,
}

/// Comparisons; the `u` ones hold when an operand is a NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CmpType {
    U32,
    S32,
    S16,
    U64,
    S64,
    F32 {
        ftz: bool,
    },
    F64,
    F16,
    Bf16,
    /// Infinite, finite and so on; the class is in the slot `b`.
    Testp32(Class),
    Testp64(Class),
}

/// Classes of `testp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Formats that `cvt` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    U(u8),
    S(u8),
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
}

/// A conversion; `to_int` says that a float result is an integral value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cvt {
    pub(crate) to: Format,
    pub(crate) from: Format,
    pub(crate) mode: Mode,
    pub(crate) integral: bool,
    /// Two sources packed, `a` high and `b` low.
    pub(crate) packed: bool,
    /// Bits of the destination register.
    pub(crate) wide: u8,
}

/// Half formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

/// Ways of `shfl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// Ways of `vote`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What `atom`, `red` and `redux` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    AddF32,
    AddF64,
    AddF16x2,
    AddBf16x2,
    AddF16,
    AddBf16,
}

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Op {
    Nop,
    Mov32,
    Mov64,
    Pred(PredOp),
    I16(IntOp),
    I32(IntOp),
    I64(IntOp),
    Bits(BitOp),
    Wide(WideOp),
    /// Addition or subtraction with the carry predicate in slot `c`.
    Carry {
        wide: bool,
        sub: bool,
        uses: bool,
        sets: bool,
    },
    Compare(Cmp, CmpType),
    Selp32,
    Selp64,
    F32(FloatOp, Mode),
    F64(FloatOp, Mode),
    Half(FloatOp, Half, Mode, bool),
    Convert(Cvt),
    /// `d` (64) = `a` low, `b` high.
    Pack64,
    /// `d` low, `b` high = `a` (64).
    Unpack64,
    Pack32,
    Unpack32,
    Load(u32),
    Store(u32),
    Atom(u32),
    FrameCopy {
        to: u32,
        from: u32,
        bytes: u32,
    },
    CopyAsync(u32),
    CopyCommit,
    /// All groups but the latest this many are done.
    CopyWait(u32),
    LdMatrix(u32),
    StMatrix(u32),
    Mma(u32),
    /// Predicate destination; the member mask is in the slot `e`, as it is for the next ones.
    Shfl(Shuffle, Slot),
    Vote(Vote),
    Match {
        all: bool,
        wide: bool,
        pred: Slot,
    },
    Redux(AtomOp),
    ActiveMask,
    Elect,
    Bra(u32),
    /// Jump through a table, index in `a`.
    Brx(u32),
    Call(u32),
    Exit,
    Trap,
    /// Places of the arguments in the frame.
    Assert {
        message: u32,
        file: u32,
        line: u32,
    },
    Printf {
        format: u32,
        args: u32,
    },
    Bar(u32),
    WarpBar,
    Fence,
    Special(Special),
}

/// An operation with its guard and slots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Predicate slot times two, plus one when negated; or [`ALWAYS`].
    pub(crate) guard: u32,
    pub(crate) d: Slot,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
    /// Reconvergence point of a branch, or one more slot.
    pub(crate) e: u32,
}

/// A load, store, atomic or copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of one element.
    pub(crate) bytes: u8,
    /// Elements.
    pub(crate) count: u8,
    pub(crate) base: Slot,
    /// The base slot is a 32-bit one.
    pub(crate) narrow: bool,
    pub(crate) offset: i64,
    pub(crate) regs: [Slot; 8],
    /// The registers are 64-bit ones.
    pub(crate) wide: bool,
    /// Sign extension to this many bits; 0 for none.
    pub(crate) extend: u8,
    /// Volatile or with a memory order: may meet other threads' accesses.
    pub(crate) strong: bool,
    pub(crate) atom: AtomOp,
    /// A second address: the source of a copy.
    pub(crate) from: (Slot, i64),
    /// Slot of the bytes that a copy reads, or [`ALWAYS`].
    pub(crate) size: Slot,
    pub(crate) transpose: bool,
}

/// What a barrier does besides waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A block-wide barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// Slot of the barrier's number.
    pub(crate) id: Slot,
    /// Slot of the number of threads, or [`ALWAYS`] for all.
    pub(crate) threads: Slot,
    /// Predicate of a reduction: slot times two plus negation.
    pub(crate) pred: u32,
}

/// Element types of a matrix operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
    F64,
    S8,
    U8,
}

/// A matrix multiply-accumulate of m x n x k.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mma {
    pub(crate) m: u8,
    pub(crate) n: u8,
    pub(crate) k: u8,
    pub(crate) a_type: MmaType,
    pub(crate) b_type: MmaType,
    /// The accumulator is f16 and not f32 (or s32, f64).
    pub(crate) half: bool,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: Vec<Slot>,
}

/// What a slot holds before the first instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    Value(u64),
    Special(Special),
    /// Address of a variable of global memory plus bytes; known when the module is loaded.
    Global(VarId, i64),
}

/// A kernel ready to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Code {
    pub(crate) insts: Vec<Inst>,
    /// One a line of `insts`.
    pub(crate) places: Vec<Place>,
    /// Whether the instruction is the first of those that one PTX instruction became.
    pub(crate) first: Vec<bool>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) bars: Vec<Bar>,
    pub(crate) mmas: Vec<Mma>,
    pub(crate) tables: Vec<Vec<u32>>,
    pub(crate) init32: Vec<(Slot, Init)>,
    pub(crate) init64: Vec<(Slot, Init)>,
    pub(crate) slots32: u32,
    pub(crate) slots64: u32,
    pub(crate) preds: u32,
    /// Bytes of a thread's local variables and call parameters.
    pub(crate) frame_bytes: u32,
    /// The first part of the frame is call parameters.
    pub(crate) shared_bytes: u32,
}
