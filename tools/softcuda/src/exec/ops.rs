//! The operations of decoded instructions, by group, with their modifiers.

use super::code::Slot;

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
