//! Matrix instructions: `mma.sync`, `ldmatrix`, `stmatrix`.

use super::Refused;
use super::builder::Builder;
use super::mods::Mods;
use super::moves::exactly;
use crate::exec::code::{Mma, MmaType, Op};
use crate::ptx::ast::{Operand, Space, Type};

/// Shapes that are supported: m, n, k and the bits of an element of A.
const SHAPES: [(&str, [u8; 3], u32); 9] = [
    ("m16n8k16", [16, 8, 16], 16),
    ("m16n8k8", [16, 8, 8], 16),
    ("m16n8k8", [16, 8, 8], 32),
    ("m16n8k4", [16, 8, 4], 32),
    ("m8n8k4", [8, 8, 4], 64),
    ("m16n8k16", [16, 8, 16], 8),
    ("m16n8k32", [16, 8, 32], 8),
    ("m8n8k16", [8, 8, 16], 8),
    ("m16n8k8", [16, 8, 8], 64),
];

pub(super) fn element(ty: Type) -> Refused<(MmaType, u32)> {
    Ok(match ty {
        Type::F16 => (MmaType::F16, 16),
        Type::Bf16 => (MmaType::Bf16, 16),
        Type::Tf32 => (MmaType::Tf32, 32),
        Type::F64 => (MmaType::F64, 64),
        Type::S8 => (MmaType::S8, 8),
        Type::U8 => (MmaType::U8, 8),
        _ => return Err(format!("matrices of {ty:?} are not supported")),
    })
}

impl Builder<'_> {
    pub(super) fn matrix(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        match name {
            "mma" => self.mma(mods, exactly(o)?)?,
            "ldmatrix" => {
                let [d, a] = exactly(o)?;
                self.tiles(mods, d, a, true)?;
            }
            "stmatrix" => {
                let [a, d] = exactly(o)?;
                self.tiles(mods, d, a, false)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Registers of a fragment; there must be `bits` of them over the 32 lanes.
    pub(super) fn fragment(
        &mut self,
        o: &Operand,
        ty: Type,
        bits: u32,
        to: bool,
    ) -> Refused<Vec<u32>> {
        let parts = match o {
            Operand::Vector(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        let expected = bits / 32 / (ty.bytes() * 8);
        if parts.len() as u32 != expected {
            return Err(format!("{expected} registers expected, {} found", parts.len()));
        }
        let mut slots = Vec::new();
        for part in parts {
            slots.push(if to { self.dst(part, ty)? } else { self.src(part, ty)? });
        }
        Ok(slots)
    }

    fn mma(&mut self, mods: &mut Mods<'_>, [d, a, b, c]: &[Operand; 4]) -> Refused<()> {
        if !mods.takes("sync") || !mods.takes("aligned") {
            return Err("only mma.sync.aligned is supported".to_owned());
        }
        if !mods.takes("row") || !mods.takes("col") {
            return Err("only A by rows and B by columns is supported".to_owned());
        }
        let saturates = mods.takes("satfinite");
        let shape = mods.next().unwrap_or("");
        let (d_type, a_type, b_type, c_type) = (mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?);
        let ((a_kind, bits), (b_kind, b_bits)) = (element(a_type)?, element(b_type)?);
        let found = SHAPES.iter().find(|s| s.0 == shape && s.2 == bits);
        let Some(&(_, [m, n, k], _)) = found else {
            return Err(format!("the shape {shape} of {a_type:?} is not supported"));
        };
        if bits != b_bits || d_type != c_type || saturates {
            return Err("this combination of types is not supported".to_owned());
        }
        let accumulates = matches!(
            (a_kind, d_type),
            (MmaType::F16, Type::F16 | Type::F32)
                | (MmaType::Bf16 | MmaType::Tf32, Type::F32)
                | (MmaType::F64, Type::F64)
                | (MmaType::S8 | MmaType::U8, Type::S32)
        );
        if !accumulates {
            return Err("this accumulator is not supported".to_owned());
        }
        let word = if bits == 64 { Type::B64 } else { Type::B32 };
        let half = d_type == Type::F16;
        let sums = if bits == 64 { Type::B64 } else { Type::B32 };
        let [m32, n32, k32] = [m, n, k].map(u32::from);
        let d_bits = m32 * n32 * if half { 16 } else { sums.bytes() * 8 };
        let mma = Mma {
            m,
            n,
            k,
            a_type: a_kind,
            b_type: b_kind,
            half,
            d: self.fragment(d, sums, d_bits, true)?,
            a: self.fragment(a, word, m32 * k32 * bits, false)?,
            b: self.fragment(b, word, n32 * k32 * bits, false)?,
            c: self.fragment(c, sums, d_bits, false)?,
        };
        let at = self.code.mmas.len() as u32;
        self.code.mmas.push(mma);
        self.emit(Op::Mma(at), [0; 4]);
        Ok(())
    }

    fn tiles(&mut self, mods: &mut Mods<'_>, d: &Operand, a: &Operand, load: bool) -> Refused<()> {
        if !mods.takes("sync") || !mods.takes("aligned") || !mods.takes("m8n8") {
            return Err("only .sync.aligned.m8n8 is supported".to_owned());
        }
        let count = match mods.any(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("the number of matrices is missing".to_owned()),
        };
        let transpose = mods.takes("trans");
        if !(mods.takes("shared") || mods.takes("shared::cta")) || mods.ty()? != Type::B16 {
            return Err("only .shared and .b16 are supported".to_owned());
        }
        let mut access = self.access(a, Space::Shared, Type::B32)?;
        (access.count, access.transpose, access.bytes) = (count, transpose, 16);
        let regs = self.fragment(d, Type::B32, u32::from(count) * 8 * 8 * 16, load)?;
        access.regs[..regs.len()].copy_from_slice(&regs);
        let at = self.keep(access);
        self.emit(if load { Op::LdMatrix(at) } else { Op::StMatrix(at) }, [0; 4]);
        Ok(())
    }
}
