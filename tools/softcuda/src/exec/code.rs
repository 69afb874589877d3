//! Decoded instructions: what the lane loops run.
//!
//! Every operand is a slot of a register file. Constants, addresses and special registers have
//! slots of their own that are filled before the first instruction, so an instruction never asks
//! what kind of operand it has.

pub(crate) use super::ops::{
    AtomOp, BitOp, Class, Cmp, CmpType, Cvt, FloatOp, Format, Half, IntOp, Mode, PredOp, Prmt,
    Round, Shuffle, Vote, WideOp,
};
use crate::ptx::ast::{Place, Space, Special, VarId};

/// Index into one of the register files: 32-bit (narrower values too), 64-bit, predicates.
pub(crate) type Slot = u32;

/// A guard that is always true.
pub(crate) const ALWAYS: u32 = u32::MAX;
/// Where a branch reconverges when only the end of the thread follows.
pub(crate) const NEVER: u32 = u32::MAX;

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
    Wgmma(u32),
    /// An operation on a barrier in shared memory.
    Phase(u32),
    Bulk(u32),
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
    /// Waits for the launches before.
    Await,
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

/// Where an operand of `wgmma` is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Matrix {
    Registers(Vec<Slot>),
    /// In shared memory, where the descriptor in this 64-bit slot says.
    Shared(Slot),
}

/// A matrix multiply-accumulate of four warps, 64 x n x 16, f32 sums.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wgmma {
    pub(crate) ty: MmaType,
    /// Sums and results.
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Matrix,
    /// Descriptor of B.
    pub(crate) b: Slot,
    /// Predicate slot times two plus negation, or [`ALWAYS`]: whether D is added to.
    pub(crate) keeps: u32,
    /// Whether the elements of A and B change sign.
    pub(crate) negates: [bool; 2],
    /// Whether the neighbours in A and B are not along k.
    pub(crate) transposed: [bool; 2],
}

/// What is done to a barrier in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PhaseKind {
    Init,
    Inval,
    Arrive,
    /// Arrives and says how many bytes will come.
    ArriveExpect,
    Expect,
    Complete,
    Wait,
}

/// An operation on a barrier in shared memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Phase {
    pub(crate) kind: PhaseKind,
    pub(crate) at: Access,
    /// Slot of a count, of bytes or of a parity; [`ALWAYS`] where there is none.
    pub(crate) value: Slot,
    /// 64-bit slot of the state to wait for, where `value` is none.
    pub(crate) state: Slot,
}

/// Which way a bulk copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BulkKind {
    ToShared,
    ToGlobal,
    /// A box of a tensor, whose map is at the other address.
    TensorToShared,
    TensorToGlobal,
}

/// A bulk copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bulk {
    pub(crate) kind: BulkKind,
    pub(crate) to: Access,
    pub(crate) from: Access,
    /// Slot of the number of bytes.
    pub(crate) size: Slot,
    /// The barrier that counts the bytes of a copy to shared memory.
    pub(crate) barrier: Access,
    /// Slots of the coordinates of a box, and how many there are.
    pub(crate) coordinates: [Slot; 5],
    pub(crate) axes: u8,
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
    pub(crate) wgmmas: Vec<Wgmma>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) bulks: Vec<Bulk>,
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
