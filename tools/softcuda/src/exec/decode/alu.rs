//! Integer arithmetic and bits.

use super::Refused;
use super::builder::{Builder, File, file};
use super::mods::Mods;
use super::moves::exactly;
use crate::exec::code::{BitOp, IntOp, Op, Prmt, WideOp};
use crate::ptx::ast::{Operand, Type};

fn pick(signed: bool, s: IntOp, u: IntOp) -> IntOp {
    if signed { s } else { u }
}

/// Operations with one result of the sources' type: operation, sources.
fn plain(name: &str, mods: &mut Mods<'_>, signed: bool) -> Option<(IntOp, usize)> {
    Some(match name {
        "add" if mods.takes("sat") => (IntOp::AddSat, 2),
        "sub" if mods.takes("sat") => (IntOp::SubSat, 2),
        "add" => (IntOp::Add, 2),
        "sub" => (IntOp::Sub, 2),
        "mul" if mods.takes("hi") => (pick(signed, IntOp::MulHiS, IntOp::MulHiU), 2),
        "mad" if mods.takes("hi") => (pick(signed, IntOp::MadHiS, IntOp::MadHiU), 3),
        "mul" if mods.takes("lo") => (IntOp::MulLo, 2),
        "mad" if mods.takes("lo") => (IntOp::MadLo, 3),
        "min" => (pick(signed, IntOp::MinS, IntOp::MinU), 2),
        "max" => (pick(signed, IntOp::MaxS, IntOp::MaxU), 2),
        "div" => (pick(signed, IntOp::DivS, IntOp::DivU), 2),
        "rem" => (pick(signed, IntOp::RemS, IntOp::RemU), 2),
        "and" => (IntOp::And, 2),
        "or" => (IntOp::Or, 2),
        "xor" => (IntOp::Xor, 2),
        "not" => (IntOp::Not, 1),
        "cnot" => (IntOp::Cnot, 1),
        "neg" => (IntOp::Neg, 1),
        "abs" => (IntOp::Abs, 1),
        "sad" => (pick(signed, IntOp::SadS, IntOp::SadU), 3),
        "brev" => (IntOp::Brev, 1),
        "shl" => (IntOp::Shl, 2),
        "shr" => (pick(signed, IntOp::ShrS, IntOp::ShrU), 2),
        _ => return None,
    })
}

impl Builder<'_> {
    pub(super) fn alu(&mut self, name: &str, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        if self.wide(name, mods, o)? || self.carry(name, mods, o)? || self.bits(name, mods, o)? {
            return Ok(true);
        }
        let Some(ty) = mods.peek_ty() else { return Ok(false) };
        let Some((op, sources)) = plain(name, mods, ty.is_signed()) else { return Ok(false) };
        mods.ty()?;
        let [d, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        if rest.len() != sources {
            return Err(format!("{sources} sources expected, {} found", rest.len()));
        }
        let shift = matches!(op, IntOp::Shl | IntOp::ShrS | IntOp::ShrU);
        let mut slots = [self.dst(d, ty)?, 0, 0, 0];
        for (i, (slot, operand)) in slots[1..].iter_mut().zip(rest).enumerate() {
            let ty = if shift && i == 1 { Type::U32 } else { ty };
            *slot = self.src(operand, ty)?;
        }
        let op = match ty.bytes() {
            8 => Op::I64(op),
            4 => Op::I32(op),
            2 => Op::I16(op),
            _ => return Err(format!("integer arithmetic on {ty:?} is not supported")),
        };
        self.emit(op, slots);
        Ok(true)
    }

    fn wide(&mut self, name: &str, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        let adds = match name {
            "mul" => false,
            "mad" => true,
            _ => return Ok(false),
        };
        if !mods.takes("wide") {
            return Ok(false);
        }
        let ty = mods.ty()?;
        let (op, to) = match (ty, adds) {
            (Type::S16, false) => (WideOp::Mul16S, Type::S32),
            (Type::U16, false) => (WideOp::Mul16U, Type::U32),
            (Type::S16, true) => (WideOp::Mad16S, Type::S32),
            (Type::U16, true) => (WideOp::Mad16U, Type::U32),
            (Type::S32, false) => (WideOp::Mul32S, Type::S64),
            (Type::U32, false) => (WideOp::Mul32U, Type::U64),
            (Type::S32, true) => (WideOp::Mad32S, Type::S64),
            (Type::U32, true) => (WideOp::Mad32U, Type::U64),
            _ => return Err(format!("wide multiplication of {ty:?} is not supported")),
        };
        let [d, a, b, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        let c = match rest {
            [c] if adds => self.src(c, to)?,
            [] if !adds => 0,
            _ => return Err("wrong number of operands".to_owned()),
        };
        let slots = [self.dst(d, to)?, self.src(a, ty)?, self.src(b, ty)?, c];
        self.emit(Op::Wide(op), slots);
        Ok(true)
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`: the carry is one predicate of the thread.
    fn carry(&mut self, name: &str, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        let (sub, uses) = match name {
            "mad" | "madc" => return self.carry_product(name == "madc", mods, o),
            "add" => (false, false),
            "addc" => (false, true),
            "sub" => (true, false),
            "subc" => (true, true),
            _ => return Ok(false),
        };
        let sets = mods.takes("cc");
        if !sets && !uses {
            return Ok(false);
        }
        let ty = mods.ty()?;
        let [d, a, b] = exactly(o)?;
        let carry = self.carry_slot();
        let slots = [self.dst(d, ty)?, self.src(a, ty)?, self.src(b, ty)?, carry];
        self.emit(Op::Carry { wide: file(ty) == File::W, sub, uses, sets }, slots);
        Ok(true)
    }

    /// `mad.cc` and `madc`: a product, then the sum with its carry.
    fn carry_product(&mut self, uses: bool, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        let sets = mods.takes("cc");
        if !sets && !uses {
            return Ok(false);
        }
        let high = mods.any(&["hi", "lo"]) == Some("hi");
        let ty = mods.ty()?;
        let [d, a, b, c] = exactly(o)?;
        let op = match high {
            true => pick(ty.is_signed(), IntOp::MulHiS, IntOp::MulHiU),
            false => IntOp::MulLo,
        };
        let (to, carry) = (file(ty), self.carry_slot());
        let product = self.temp(to);
        let slots = [product, self.src(a, ty)?, self.src(b, ty)?, 0];
        self.emit(if to == File::W { Op::I64(op) } else { Op::I32(op) }, slots);
        let slots = [self.dst(d, ty)?, product, self.src(c, ty)?, carry];
        self.emit(Op::Carry { wide: to == File::W, sub: false, uses, sets }, slots);
        Ok(true)
    }

    fn bits(&mut self, name: &str, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        let ty = mods.peek_ty().unwrap_or(Type::B32);
        let (wide, signed) = (file(ty) == File::W, ty.is_signed());
        let u32s = [Type::U32; 3];
        let (op, to, from) = match name {
            "popc" if wide => (BitOp::Popc64, Type::U32, [ty; 3]),
            "popc" => (BitOp::Popc32, Type::U32, [ty; 3]),
            "clz" if wide => (BitOp::Clz64, Type::U32, [ty; 3]),
            "clz" => (BitOp::Clz32, Type::U32, [ty; 3]),
            "bfind" => {
                let shift = mods.takes("shiftamt");
                let op = if wide {
                    BitOp::Bfind64 { signed, shift }
                } else {
                    BitOp::Bfind32 { signed, shift }
                };
                (op, Type::U32, [ty; 3])
            }
            "bfe" => {
                let op = if wide { BitOp::Bfe64 { signed } } else { BitOp::Bfe32 { signed } };
                (op, ty, [ty, Type::U32, Type::U32])
            }
            "bfi" => return self.bfi(mods, exactly(o)?).map(|()| true),
            "lop3" => return self.lop3(mods, o).map(|()| true),
            "prmt" => (BitOp::Prmt(permutation(mods)), Type::B32, [Type::B32; 3]),
            "shf" => {
                let left = mods.takes("l") || !mods.takes("r");
                let wrap = mods.any(&["wrap", "clamp"]) == Some("wrap");
                let op = if left { BitOp::ShfL { wrap } } else { BitOp::ShfR { wrap } };
                (op, Type::B32, u32s)
            }
            "mul24" | "mad24" => {
                let high = mods.any(&["hi", "lo"]) == Some("hi");
                let op = match name {
                    "mul24" => BitOp::Mul24 { signed, high },
                    _ => BitOp::Mad24 { signed, high },
                };
                (op, ty, u32s)
            }
            "dp4a" | "dp2a" => {
                let high = name == "dp2a" && mods.any(&["hi", "lo"]) == Some("hi");
                let (a_signed, b_signed) = (mods.ty()?.is_signed(), ty_signed(mods)?);
                let op = match name {
                    "dp4a" => BitOp::Dp4a { a_signed, b_signed },
                    _ => BitOp::Dp2a { a_signed, b_signed, high },
                };
                return self.bit_sources(op, Type::B32, u32s, 3, o).map(|()| true);
            }
            "fns" => (BitOp::Fns, Type::B32, u32s),
            _ => return Ok(false),
        };
        mods.maybe_ty();
        let sources = match op {
            BitOp::Popc32 | BitOp::Popc64 | BitOp::Clz32 | BitOp::Clz64 => 1,
            BitOp::Bfind32 { .. } | BitOp::Bfind64 { .. } => 1,
            BitOp::Mul24 { .. } => 2,
            _ => 3,
        };
        self.bit_sources(op, to, from, sources, o)?;
        Ok(true)
    }

    fn bit_sources(
        &mut self,
        op: BitOp,
        to: Type,
        from: [Type; 3],
        sources: usize,
        o: &[Operand],
    ) -> Refused<()> {
        let [d, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        if rest.len() != sources {
            return Err(format!("{sources} sources expected, {} found", rest.len()));
        }
        let mut slots = [self.dst(d, to)?, 0, 0, 0];
        for ((slot, operand), ty) in slots[1..].iter_mut().zip(rest).zip(from) {
            *slot = self.src(operand, ty)?;
        }
        self.emit(Op::Bits(op), slots);
        Ok(())
    }

    fn bfi(&mut self, mods: &mut Mods<'_>, [d, a, b, pos, len]: &[Operand; 5]) -> Refused<()> {
        let ty = mods.ty()?;
        let len = self.src(len, Type::U32)?;
        let slots =
            [self.dst(d, ty)?, self.src(a, ty)?, self.src(b, ty)?, self.src(pos, Type::U32)?];
        let op = if file(ty) == File::W { BitOp::Bfi64(len) } else { BitOp::Bfi32(len) };
        self.emit(Op::Bits(op), slots);
        Ok(())
    }

    fn lop3(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let ty = mods.ty()?;
        let [d, a, b, c, Operand::Int(table)] = o else {
            return Err("lop3 takes four registers and a constant".to_owned());
        };
        let slots = [self.dst(d, ty)?, self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?];
        self.emit(Op::Bits(BitOp::Lop3(*table as u8)), slots);
        Ok(())
    }
}

fn ty_signed(mods: &mut Mods<'_>) -> Refused<bool> {
    Ok(mods.ty()?.is_signed())
}

fn permutation(mods: &mut Mods<'_>) -> Prmt {
    match mods.any(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
        Some("f4e") => Prmt::F4e,
        Some("b4e") => Prmt::B4e,
        Some("rc8") => Prmt::Rc8,
        Some("ecl") => Prmt::Ecl,
        Some("ecr") => Prmt::Ecr,
        Some(_) => Prmt::Rc16,
        None => Prmt::Index,
    }
}
