//! Conversions between formats.

use super::Refused;
use super::builder::{Builder, File, file};
use super::mods::Mods;
use crate::exec::code::{Cvt, Format, Mode, Op, Round};
use crate::ptx::ast::{Operand, Type};

fn format(ty: Type) -> Refused<Format> {
    Ok(match ty {
        Type::U8 | Type::B8 => Format::U(8),
        Type::U16 | Type::B16 => Format::U(16),
        Type::U32 | Type::B32 => Format::U(32),
        Type::U64 | Type::B64 => Format::U(64),
        Type::S8 => Format::S(8),
        Type::S16 => Format::S(16),
        Type::S32 => Format::S(32),
        Type::S64 => Format::S(64),
        Type::F16 | Type::F16x2 => Format::F16,
        Type::Bf16 | Type::Bf16x2 => Format::Bf16,
        Type::Tf32 => Format::Tf32,
        Type::F32 => Format::F32,
        Type::F64 => Format::F64,
        _ => return Err(format!("conversion of {ty:?} is not supported")),
    })
}

fn is_int(format: Format) -> bool {
    matches!(format, Format::U(_) | Format::S(_))
}

impl Builder<'_> {
    pub(super) fn convert(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        if name != "cvt" {
            return Ok(false);
        }
        let integral = mods.any(&["rni", "rzi", "rmi", "rpi"]);
        let mut mode = mods.mode();
        if let Some(word) = integral {
            let round = match word {
                "rzi" => Round::Zero,
                "rmi" => Round::Down,
                "rpi" => Round::Up,
                _ => Round::Near,
            };
            mode = Mode { round, ..mode };
        }
        let (to_type, from_type) = (mods.ty()?, mods.ty()?);
        let (to, from) = (format(to_type)?, format(from_type)?);
        let packed = matches!(to_type, Type::F16x2 | Type::Bf16x2);
        if integral.is_none() && is_int(to) && !is_int(from) {
            return Err("a conversion to an integer needs a rounding".to_owned());
        }
        let [d, a, rest @ ..] = o else { return Err("operands are missing".to_owned()) };
        let d_slot = self.wide_destination(d, to_type)?;
        let (a, b) = match rest {
            [] if !packed => (self.wide_source(a, from_type)?, 0),
            [b] if packed && from == Format::F32 => {
                (self.src(a, from_type)?, self.src(b, from_type)?)
            }
            _ => return Err("wrong number of operands".to_owned()),
        };
        let wide = match d {
            Operand::Reg(reg) => self.reg_type(*reg).bytes() * 8,
            _ => to_type.bytes() * 8,
        };
        let integral = integral.is_some();
        let cvt = Cvt { to, from, mode, integral, packed, wide: wide as u8 };
        self.emit(Op::Convert(cvt), [d_slot, a, b, 0]);
        Ok(true)
    }

    /// The destination may be wider than the type; the file follows the register.
    fn wide_destination(&mut self, o: &Operand, ty: Type) -> Refused<u32> {
        match o {
            Operand::Reg(reg) if file(self.reg_type(*reg)) == File::W && file(ty) == File::R => {
                Err("conversions into a wider register than the type are not supported".to_owned())
            }
            _ => self.dst(o, ty),
        }
    }

    /// A source may be wider than the type: its low part counts.
    fn wide_source(&mut self, o: &Operand, ty: Type) -> Refused<u32> {
        match o {
            Operand::Reg(reg) if file(self.reg_type(*reg)) == File::W && file(ty) == File::R => {
                let from = self.reg(*reg, File::W)?;
                let (lo, hi) = (self.temp(File::R), self.sink(File::R));
                self.emit(Op::Unpack64, [lo, from, hi, 0]);
                Ok(lo)
            }
            _ => self.src(o, ty),
        }
    }
}
