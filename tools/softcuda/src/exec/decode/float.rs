//! Floating-point arithmetic of every width.

use super::Refused;
use super::builder::Builder;
use super::mods::Mods;
use crate::exec::code::{FloatOp, Half, Mode, Op, Round};
use crate::ptx::ast::{Operand, Type};

fn operation(name: &str, nan: bool) -> Option<(FloatOp, usize)> {
    Some(match name {
        "add" => (FloatOp::Add, 2),
        "sub" => (FloatOp::Sub, 2),
        "mul" => (FloatOp::Mul, 2),
        "fma" | "mad" => (FloatOp::Fma, 3),
        "div" => (FloatOp::Div, 2),
        "min" if nan => (FloatOp::MinNan, 2),
        "max" if nan => (FloatOp::MaxNan, 2),
        "min" => (FloatOp::Min, 2),
        "max" => (FloatOp::Max, 2),
        "neg" => (FloatOp::Neg, 1),
        "abs" => (FloatOp::Abs, 1),
        "copysign" => (FloatOp::Copysign, 2),
        "sqrt" => (FloatOp::Sqrt, 1),
        "rcp" => (FloatOp::Rcp, 1),
        "rsqrt" => (FloatOp::Rsqrt, 1),
        "ex2" => (FloatOp::Ex2, 1),
        "lg2" => (FloatOp::Lg2, 1),
        "sin" => (FloatOp::Sin, 1),
        "cos" => (FloatOp::Cos, 1),
        "tanh" => (FloatOp::Tanh, 1),
        _ => return None,
    })
}

impl Builder<'_> {
    pub(super) fn float(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        let Some(ty) = mods.peek_ty().filter(|t| t.is_float()) else { return Ok(false) };
        if operation(name, false).is_none() {
            return Ok(false);
        }
        let nan = mods.takes("NaN");
        let Some((op, sources)) = operation(name, nan) else { return Ok(false) };
        mods.ty()?;
        let mode = mods.mode();
        let approximate = mods.takes("approx") || mods.takes("full");
        // fma.rn.f32 with a mixed-precision type list is not part of sm_80.
        if mods.maybe_ty().is_some() {
            return Err("mixed precision is not supported".to_owned());
        }
        let op = operation_code(op, ty, mode, approximate)?;
        let [d, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        if rest.len() != sources {
            return Err(format!("{sources} sources expected, {} found", rest.len()));
        }
        let mut slots = [self.dst(d, ty)?, 0, 0, 0];
        for (slot, operand) in slots[1..].iter_mut().zip(rest) {
            *slot = self.src(operand, ty)?;
        }
        self.emit(op, slots);
        Ok(true)
    }
}

fn operation_code(op: FloatOp, ty: Type, mode: Mode, approximate: bool) -> Refused<Op> {
    let transcendental = matches!(
        op,
        FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Rsqrt | FloatOp::Sin | FloatOp::Cos | FloatOp::Tanh
    );
    let unfit = || Err(format!("this operation on {ty:?} is not supported"));
    if mode.round == Round::Away || (mode.relu && op != FloatOp::Fma) {
        return unfit();
    }
    match ty {
        Type::F32 => Ok(Op::F32(op, mode)),
        // The approximate f64 instructions keep the upper half alone; see the README.
        Type::F64 if transcendental && op != FloatOp::Rsqrt => unfit(),
        Type::F64 => Ok(Op::F64(op, Mode { relu: approximate, ..mode })),
        Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => {
            let known = !transcendental || matches!(op, FloatOp::Ex2 | FloatOp::Tanh);
            let divides = matches!(op, FloatOp::Div | FloatOp::Sqrt | FloatOp::Rcp);
            if !known || divides || mode.round != Round::Near {
                return unfit();
            }
            let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
            let half = if matches!(ty, Type::F16 | Type::F16x2) { Half::F16 } else { Half::Bf16 };
            Ok(Op::Half(op, half, mode, packed))
        }
        _ => unfit(),
    }
}
