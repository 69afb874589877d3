//! The class of each instruction and the floating-point operations it stands for.

use super::code::{Code, FloatOp, IntOp, MmaType, Op};
use crate::ptx::ast::Space;

/// What counting needs to know about an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classified {
    pub(crate) name: &'static str,
    /// Not one of the parts that a PTX instruction was taken apart into.
    pub(crate) counts: bool,
    pub(crate) lane_flops: u64,
    pub(crate) warp_flops: u64,
}

fn float_flops(op: FloatOp) -> u64 {
    match op {
        FloatOp::Fma => 2,
        FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Div | FloatOp::Sqrt => 1,
        FloatOp::Neg | FloatOp::Abs | FloatOp::Copysign => 0,
        FloatOp::Min | FloatOp::Max | FloatOp::MinNan | FloatOp::MaxNan => 0,
        _ => 1,
    }
}

fn is_special(op: FloatOp) -> bool {
    matches!(
        op,
        FloatOp::Ex2
            | FloatOp::Lg2
            | FloatOp::Rsqrt
            | FloatOp::Rcp
            | FloatOp::Sqrt
            | FloatOp::Div
            | FloatOp::Sin
            | FloatOp::Cos
            | FloatOp::Tanh
    )
}

fn name(code: &Code, op: Op) -> &'static str {
    let space = |at: u32| match code.accesses[at as usize].space {
        Space::Shared => "shared",
        Space::Local => "local",
        Space::Param | Space::Frame => "param",
        Space::Const => "const",
        Space::Global | Space::Generic => "global",
    };
    match op {
        Op::F32(f, _) | Op::F64(f, _) | Op::Half(f, ..) if is_special(f) => "special",
        Op::F32(..) => "f32",
        Op::F64(..) => "f64",
        Op::Half(..) => "half",
        Op::I16(IntOp::And | IntOp::Or | IntOp::Xor | IntOp::Not)
        | Op::I32(IntOp::And | IntOp::Or | IntOp::Xor | IntOp::Not)
        | Op::I64(IntOp::And | IntOp::Or | IntOp::Xor | IntOp::Not)
        | Op::Bits(_) => "logic",
        Op::I16(_) | Op::I32(_) | Op::I64(_) | Op::Wide(_) | Op::Carry { .. } => "int",
        Op::Convert(_) => "convert",
        Op::Compare(..) | Op::Pred(_) => "predicate",
        Op::Load(at) | Op::Store(at) => space(at),
        Op::CopyAsync(_) => "copy",
        Op::CopyCommit | Op::CopyWait(_) => "sync",
        Op::LdMatrix(_) | Op::StMatrix(_) => "shared",
        Op::Atom(_) => "atomic",
        Op::Mma(_) | Op::Wgmma(_) => "tensor",
        Op::Phase(_) => "sync",
        Op::Bulk(_) => "copy",
        Op::Shfl(..) | Op::Vote(_) | Op::Match { .. } | Op::Redux(_) => "shuffle",
        Op::ActiveMask | Op::Elect => "shuffle",
        Op::Bar(_) | Op::WarpBar | Op::Fence | Op::Await => "sync",
        Op::Bra(_) | Op::Brx(_) | Op::Call(_) | Op::Exit | Op::Trap => "control",
        Op::Assert { .. } | Op::Printf { .. } | Op::FrameCopy { .. } => "control",
        Op::Nop | Op::Mov32 | Op::Mov64 | Op::Pack64 | Op::Unpack64 => "move",
        Op::Pack32 | Op::Unpack32 | Op::Selp32 | Op::Selp64 | Op::Special(_) => "move",
    }
}

/// Classes of all instructions of a kernel.
pub(crate) fn classes(code: &Code) -> Vec<Classified> {
    let flops = |op: Op| match op {
        Op::F32(f, _) | Op::F64(f, _) => float_flops(f),
        Op::Half(f, _, _, packed) => float_flops(f) * (1 + u64::from(packed)),
        _ => 0,
    };
    let products = |op: Op| match op {
        Op::Mma(at) => {
            let mma = &code.mmas[at as usize];
            let whole = matches!(mma.a_type, MmaType::S8 | MmaType::U8);
            let [m, n, k] = [mma.m, mma.n, mma.k].map(u64::from);
            if whole { 0 } else { 2 * m * n * k }
        }
        // Sixteen rows a warp; four registers hold eight columns of them.
        Op::Wgmma(at) => 2 * 16 * 16 * 2 * code.wgmmas[at as usize].d.len() as u64,
        _ => 0,
    };
    code.insts
        .iter()
        .zip(&code.first)
        .map(|(inst, &first)| Classified {
            name: name(code, inst.op),
            counts: first,
            lane_flops: flops(inst.op),
            warp_flops: products(inst.op),
        })
        .collect()
}
