//! A module as read: variables, functions, instructions with names resolved to numbers.

use std::collections::HashMap;

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    /// Parameters of a call, in a thread's frame.
    Frame,
    /// Parameters of the kernel.
    Param,
}

/// A fundamental type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
}

impl Type {
    /// The type named by a modifier without its dot.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "tf32" => Self::Tf32,
            _ => return None,
        })
    }

    /// Bytes of a value; a predicate has none.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
            Self::B128 => 16,
            _ => 4,
        }
    }

    /// Whether the type is a signed integer.
    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Whether the type is a floating-point one, packed or not.
    pub(crate) fn is_float(self) -> bool {
        matches!(
            self,
            Self::F16
                | Self::F16x2
                | Self::Bf16
                | Self::Bf16x2
                | Self::F32
                | Self::F64
                | Self::Tf32
        )
    }
}

/// A variable of any space.
#[derive(Debug, Clone)]
pub(crate) struct Var {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    pub(crate) align: u32,
    /// Declared without a size: dynamic shared memory.
    pub(crate) open: bool,
    pub(crate) init: Vec<u8>,
    /// Addresses to write into `init` at load: offset, variable, addend, generic or not.
    pub(crate) relocations: Vec<(u32, VarId, i64)>,
}

pub(crate) type VarId = u32;
pub(crate) type RegId = u32;

/// A special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    MaskEq,
    MaskLe,
    MaskLt,
    MaskGe,
    MaskGt,
    DynamicShared,
    TotalShared,
    Clock,
    ClockHi,
    Clock64,
    Timer,
    TimerLo,
    TimerHi,
}

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Reg(RegId),
    /// `!%p`.
    Not(RegId),
    Int(u64),
    F32(u32),
    F64(u64),
    Special(Special),
    /// The address of a variable, plus bytes.
    Var(VarId, i64),
    /// A label or function.
    Name(String),
    /// `[base + bytes]`.
    Addr(Box<Operand>, i64),
    /// `[base, {a, b}]`: a place in a tensor.
    Tensor(Box<Operand>, Vec<Operand>),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `_`.
    Sink,
}

/// One instruction as read.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    /// Guard register and whether it is negated.
    pub(crate) guard: Option<(RegId, bool)>,
    /// The opcode, cut at its dots.
    pub(crate) op: Vec<String>,
    pub(crate) operands: Vec<Operand>,
    pub(crate) place: Place,
}

/// Where an instruction stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Line of the PTX text.
    pub(crate) line: u32,
    /// Number of the source file and its line; 0 where unknown.
    pub(crate) file: u32,
    pub(crate) source_line: u32,
}

/// A statement of a body.
#[derive(Debug, Clone)]
pub(crate) enum Stmt {
    Label(String),
    Inst(Raw),
}

/// A function or kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) entry: bool,
    pub(crate) rets: Vec<VarId>,
    pub(crate) params: Vec<VarId>,
    /// Variables declared in the body.
    pub(crate) vars: Vec<VarId>,
    pub(crate) regs: Vec<Type>,
    pub(crate) body: Vec<Stmt>,
    /// Jump tables of `.branchtargets`.
    pub(crate) tables: HashMap<String, Vec<String>>,
    pub(crate) max_threads: Option<u32>,
    pub(crate) has_body: bool,
    pub(crate) line: u32,
}

/// The whole text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unit {
    pub(crate) vars: Vec<Var>,
    pub(crate) functions: Vec<Function>,
    pub(crate) files: HashMap<u32, String>,
}
