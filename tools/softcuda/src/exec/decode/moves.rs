//! Moves, packing, selections and comparisons.

use super::Refused;
use super::builder::{Builder, File, file};
use super::mods::Mods;
use crate::exec::code::{Class, Cmp, CmpType, IntOp, Op, PredOp, Slot};
use crate::exec::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::{Operand, Type};

/// Exactly `N` operands.
pub(super) fn exactly<const N: usize>(o: &[Operand]) -> Refused<&[Operand; N]> {
    o.try_into().map_err(|_| format!("{N} operands expected, {} found", o.len()))
}

fn comparison(mods: &mut Mods<'_>) -> Refused<Cmp> {
    const NAMES: [(&str, Cmp); 18] = [
        ("eq", Cmp::Eq),
        ("ne", Cmp::Ne),
        ("lt", Cmp::Lt),
        ("le", Cmp::Le),
        ("gt", Cmp::Gt),
        ("ge", Cmp::Ge),
        ("lo", Cmp::Lt),
        ("ls", Cmp::Le),
        ("hi", Cmp::Gt),
        ("hs", Cmp::Ge),
        ("equ", Cmp::Equ),
        ("neu", Cmp::Neu),
        ("ltu", Cmp::Ltu),
        ("leu", Cmp::Leu),
        ("gtu", Cmp::Gtu),
        ("geu", Cmp::Geu),
        ("num", Cmp::Num),
        ("nan", Cmp::Nan),
    ];
    let found = NAMES.iter().find(|(name, _)| mods.takes(name));
    found.map(|(_, cmp)| *cmp).ok_or_else(|| "a comparison is missing".to_owned())
}

/// What a comparison of `ty` compares.
fn compared(ty: Type, ftz: bool) -> Refused<CmpType> {
    Ok(match ty {
        // The upper half of a 16-bit slot is zero: unsigned comparison works as it is.
        Type::U16 | Type::B16 | Type::U32 | Type::B32 => CmpType::U32,
        Type::S16 => CmpType::S16,
        Type::S32 => CmpType::S32,
        Type::U64 | Type::B64 => CmpType::U64,
        Type::S64 => CmpType::S64,
        Type::F32 => CmpType::F32 { ftz },
        Type::F64 => CmpType::F64,
        Type::F16 => CmpType::F16,
        Type::Bf16 => CmpType::Bf16,
        _ => return Err(format!("comparison of {ty:?} is not supported")),
    })
}

impl Builder<'_> {
    pub(super) fn moves(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        match name {
            "mov" => self.mov(mods, exactly(o)?)?,
            "cvta" => self.cvta(mods, exactly(o)?)?,
            "setp" => self.setp(mods, o)?,
            "set" => self.set(mods, o)?,
            "testp" => self.testp(mods, exactly(o)?)?,
            "selp" => {
                let ty = mods.ty()?;
                let [d, a, b, p] = exactly(o)?;
                let slots = [
                    self.dst(d, ty)?,
                    self.src(a, ty)?,
                    self.src(b, ty)?,
                    self.src(p, Type::Pred)?,
                ];
                self.emit(select(ty), slots);
            }
            "slct" => {
                mods.takes("ftz");
                let (ty, by) = (mods.ty()?, mods.ty()?);
                let [d, a, b, c] = exactly(o)?;
                let (c, zero) = (self.src(c, by)?, self.constant(File::R, 0));
                let p = self.temp(File::P);
                self.emit(Op::Compare(Cmp::Ge, compared(by, false)?), [p, c, zero, 0]);
                let slots = [self.dst(d, ty)?, self.src(a, ty)?, self.src(b, ty)?, p];
                self.emit(select(ty), slots);
            }
            "and" | "or" | "xor" | "not" if mods.peek_ty() == Some(Type::Pred) => {
                mods.ty()?;
                let op = match name {
                    "and" => PredOp::And,
                    "or" => PredOp::Or,
                    "xor" => PredOp::Xor,
                    _ => PredOp::Not,
                };
                let d = self.dst(o.first().ok_or("operands are missing")?, Type::Pred)?;
                let a = self.src(o.get(1).ok_or("operands are missing")?, Type::Pred)?;
                let b = match (op, o.get(2)) {
                    (PredOp::Not, None) => a,
                    (_, Some(b)) => self.src(b, Type::Pred)?,
                    _ => return Err("operands are missing".to_owned()),
                };
                self.emit(Op::Pred(op), [d, a, b, 0]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn mov(&mut self, mods: &mut Mods<'_>, [d, a]: &[Operand; 2]) -> Refused<()> {
        let ty = mods.ty()?;
        match (d, a) {
            (Operand::Vector(parts), _) => self.unpack(ty, parts, a),
            (_, Operand::Vector(parts)) => self.pack(ty, d, parts),
            _ => {
                let slots = [self.dst(d, ty)?, self.src(a, ty)?, 0, 0];
                let op = match file(ty) {
                    File::P => Op::Pred(PredOp::Mov),
                    File::R => Op::Mov32,
                    File::W => Op::Mov64,
                };
                self.emit(op, slots);
                Ok(())
            }
        }
    }

    fn pack(&mut self, ty: Type, d: &Operand, parts: &[Operand]) -> Refused<()> {
        match (ty.bytes(), parts) {
            (8, [lo, hi]) => {
                let slots =
                    [self.dst(d, ty)?, self.src(lo, Type::B32)?, self.src(hi, Type::B32)?, 0];
                self.emit(Op::Pack64, slots);
            }
            (4, [lo, hi]) => {
                let slots =
                    [self.dst(d, ty)?, self.src(lo, Type::B16)?, self.src(hi, Type::B16)?, 0];
                self.emit(Op::Pack32, slots);
            }
            (8, [_, _, _, _]) => {
                let mut halves = [0; 2];
                for (half, pair) in halves.iter_mut().zip(parts.chunks_exact(2)) {
                    *half = self.temp(File::R);
                    let (lo, hi) = (self.src(&pair[0], Type::B16)?, self.src(&pair[1], Type::B16)?);
                    self.emit(Op::Pack32, [*half, lo, hi, 0]);
                }
                let d = self.dst(d, ty)?;
                self.emit(Op::Pack64, [d, halves[0], halves[1], 0]);
            }
            _ => return Err("packing of this shape is not supported".to_owned()),
        }
        Ok(())
    }

    fn unpack(&mut self, ty: Type, parts: &[Operand], a: &Operand) -> Refused<()> {
        let from = self.src(a, ty)?;
        match (ty.bytes(), parts) {
            (8, [lo, hi]) => {
                let (lo, hi) = (self.dst(lo, Type::B32)?, self.dst(hi, Type::B32)?);
                self.emit(Op::Unpack64, [lo, from, hi, 0]);
            }
            (4, [lo, hi]) => {
                let (lo, hi) = (self.dst(lo, Type::B16)?, self.dst(hi, Type::B16)?);
                self.emit(Op::Unpack32, [lo, from, hi, 0]);
            }
            (8, [_, _, _, _]) => {
                let halves = [self.temp(File::R), self.temp(File::R)];
                self.emit(Op::Unpack64, [halves[0], from, halves[1], 0]);
                for (half, pair) in halves.iter().zip(parts.chunks_exact(2)) {
                    let (lo, hi) = (self.dst(&pair[0], Type::B16)?, self.dst(&pair[1], Type::B16)?);
                    self.emit(Op::Unpack32, [lo, *half, hi, 0]);
                }
            }
            _ => return Err("unpacking of this shape is not supported".to_owned()),
        }
        Ok(())
    }

    fn cvta(&mut self, mods: &mut Mods<'_>, [d, a]: &[Operand; 2]) -> Refused<()> {
        let back = mods.takes("to");
        let space = mods.any(&[
            "global",
            "shared",
            "shared::cta",
            "local",
            "const",
            "param",
            "param::entry",
        ]);
        let ty = mods.ty()?;
        if file(ty) != File::W {
            return Err("only 64-bit addresses are supported".to_owned());
        }
        let base = match space {
            Some("shared" | "shared::cta") => SHARED_WINDOW,
            Some("local") => LOCAL_WINDOW,
            Some("param" | "param::entry") => PARAM_WINDOW,
            _ => 0,
        };
        let (d, a) = (self.dst(d, ty)?, self.src(a, ty)?);
        let base = self.constant(File::W, base);
        self.emit(Op::I64(if back { IntOp::Sub } else { IntOp::Add }), [d, a, base, 0]);
        Ok(())
    }

    /// Compares and combines; returns the result and, when asked, the combined complement.
    fn compare(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<(Slot, Slot)> {
        let cmp = comparison(mods)?;
        let combine = mods.any(&["and", "or", "xor"]);
        let ftz = mods.takes("ftz");
        let ty = mods.ty()?;
        let [a, b, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        let (a, b) = (self.src(a, ty)?, self.src(b, ty)?);
        let (p, q) = (self.temp(File::P), self.temp(File::P));
        match ty {
            Type::F16x2 | Type::Bf16x2 => {
                let part = if ty == Type::F16x2 { CmpType::F16 } else { CmpType::Bf16 };
                let [al, ah, bl, bh] = [(); 4].map(|()| self.temp(File::R));
                self.emit(Op::Unpack32, [al, a, ah, 0]);
                self.emit(Op::Unpack32, [bl, b, bh, 0]);
                self.emit(Op::Compare(cmp, part), [p, al, bl, 0]);
                self.emit(Op::Compare(cmp, part), [q, ah, bh, 0]);
            }
            _ => {
                self.emit(Op::Compare(cmp, compared(ty, ftz)?), [p, a, b, 0]);
                self.emit(Op::Pred(PredOp::Not), [q, p, 0, 0]);
            }
        }
        let op = match (combine, rest) {
            (None, []) => return Ok((p, q)),
            (Some("and"), [_]) => PredOp::And,
            (Some("or"), [_]) => PredOp::Or,
            (Some(_), [_]) => PredOp::Xor,
            _ => return Err("a third source needs .and, .or or .xor".to_owned()),
        };
        let c = self.src(&rest[0], Type::Pred)?;
        self.emit(Op::Pred(op), [p, p, c, 0]);
        self.emit(Op::Pred(op), [q, q, c, 0]);
        Ok((p, q))
    }

    fn setp(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let [d, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        // The common form is one instruction.
        if let (Operand::Reg(_), [a, b]) = (d, rest)
            && !matches!(mods.peek_ty(), Some(Type::F16x2 | Type::Bf16x2))
        {
            let cmp = comparison(mods)?;
            let ftz = mods.takes("ftz");
            let ty = mods.ty()?;
            let slots = [self.dst(d, Type::Pred)?, self.src(a, ty)?, self.src(b, ty)?, 0];
            self.emit(Op::Compare(cmp, compared(ty, ftz)?), slots);
            return Ok(());
        }
        let (p, q) = self.compare(mods, rest)?;
        let (to_p, to_q) = match d {
            Operand::Pair(p, q) => (p.as_ref(), q.as_ref()),
            other => (other, &Operand::Sink),
        };
        let (to_p, to_q) = (self.dst(to_p, Type::Pred)?, self.dst(to_q, Type::Pred)?);
        self.emit(Op::Pred(PredOp::Mov), [to_p, p, 0, 0]);
        self.emit(Op::Pred(PredOp::Mov), [to_q, q, 0, 0]);
        Ok(())
    }

    fn set(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let [d, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        let cmp_mods = mods.peek_ty().ok_or("a type is missing")?;
        let to = cmp_mods;
        mods.ty()?;
        let from = mods.peek_ty().ok_or("a source type is missing")?;
        let (p, q) = self.compare(mods, rest)?;
        if matches!(from, Type::F16x2 | Type::Bf16x2) {
            return self.set_packed(to, d, p, q);
        }
        let yes = match to {
            Type::F32 => u64::from(1f32.to_bits()),
            Type::F16 => 0x3c00,
            Type::Bf16 => 0x3f80,
            Type::U16 | Type::S16 => 0xffff,
            _ => 0xffff_ffff,
        };
        let (yes, no) = (self.constant(File::R, yes), self.constant(File::R, 0));
        let d = self.dst(d, to)?;
        self.emit(Op::Selp32, [d, yes, no, p]);
        Ok(())
    }

    fn set_packed(&mut self, to: Type, d: &Operand, p: Slot, q: Slot) -> Refused<()> {
        let one = match to {
            Type::F16x2 => 0x3c00,
            Type::Bf16x2 => 0x3f80,
            _ => 0xffff,
        };
        let (one, no) = (self.constant(File::R, one), self.constant(File::R, 0));
        let (lo, hi) = (self.temp(File::R), self.temp(File::R));
        self.emit(Op::Selp32, [lo, one, no, p]);
        self.emit(Op::Selp32, [hi, one, no, q]);
        let d = self.dst(d, Type::B32)?;
        self.emit(Op::Pack32, [d, lo, hi, 0]);
        Ok(())
    }

    fn testp(&mut self, mods: &mut Mods<'_>, [d, a]: &[Operand; 2]) -> Refused<()> {
        const NAMES: [(&str, Class); 6] = [
            ("finite", Class::Finite),
            ("infinite", Class::Infinite),
            ("number", Class::Number),
            ("notanumber", Class::NotANumber),
            ("normal", Class::Normal),
            ("subnormal", Class::Subnormal),
        ];
        let found = NAMES.iter().find(|(name, _)| mods.takes(name));
        let class = found.ok_or("a class is missing")?.1;
        let ty = mods.ty()?;
        let what = match ty {
            Type::F32 => CmpType::Testp32(class),
            Type::F64 => CmpType::Testp64(class),
            _ => return Err("testp takes f32 or f64".to_owned()),
        };
        let slots = [self.dst(d, Type::Pred)?, self.src(a, ty)?, 0, 0];
        self.emit(Op::Compare(Cmp::Eq, what), slots);
        Ok(())
    }
}

fn select(ty: Type) -> Op {
    if file(ty) == File::W { Op::Selp64 } else { Op::Selp32 }
}
