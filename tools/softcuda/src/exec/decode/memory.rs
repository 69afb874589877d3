//! Loads, stores, atomics and copies.

use super::Refused;
use super::builder::{Builder, File, file};
use super::mods::Mods;
use super::moves::exactly;
use crate::exec::code::{ALWAYS, Access, AtomOp, Cmp, CmpType, IntOp, Op};
use crate::exec::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::ptx::ast::{Operand, Space, Type};

/// Cache hints and scopes change no value here; memory orders make an access strong.
fn orders(mods: &mut Mods<'_>) -> bool {
    let strong = mods.any(&["volatile", "relaxed", "acquire", "release", "acq_rel"]).is_some();
    mods.drop_all(|w| {
        matches!(
            w,
            "weak" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "cta" | "gpu" | "sys"
        ) || w.starts_with("L1::")
            || w.starts_with("L2::")
    });
    strong
}

fn space(mods: &mut Mods<'_>) -> Space {
    let found = mods.any(&[
        "global",
        "shared",
        "shared::cta",
        "local",
        "const",
        "param",
        "param::entry",
        "param::func",
    ]);
    match found {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("local") => Space::Local,
        Some("const") => Space::Const,
        Some("param::entry") => Space::Param,
        Some("param" | "param::func") => Space::Frame,
        _ => Space::Generic,
    }
}

fn atomic(name: &str, ty: Type) -> Refused<AtomOp> {
    let signed = ty.is_signed();
    Ok(match (name, ty) {
        ("add", Type::F32) => AtomOp::AddF32,
        ("add", Type::F64) => AtomOp::AddF64,
        ("add", Type::F16) => AtomOp::AddF16,
        ("add", Type::F16x2) => AtomOp::AddF16x2,
        ("add", Type::Bf16) => AtomOp::AddBf16,
        ("add", Type::Bf16x2) => AtomOp::AddBf16x2,
        ("exch", _) => AtomOp::Exch,
        ("cas", _) => AtomOp::Cas,
        (_, t) if t.is_float() => return Err(format!("atomic {name} on {ty:?} is not supported")),
        ("add", _) => AtomOp::Add,
        ("min", _) if signed => AtomOp::MinS,
        ("min", _) => AtomOp::MinU,
        ("max", _) if signed => AtomOp::MaxS,
        ("max", _) => AtomOp::MaxU,
        ("and", _) => AtomOp::And,
        ("or", _) => AtomOp::Or,
        ("xor", _) => AtomOp::Xor,
        ("inc", Type::U32) => AtomOp::Inc,
        ("dec", Type::U32) => AtomOp::Dec,
        _ => return Err(format!("atomic {name} on {ty:?} is not supported")),
    })
}

const ATOMICS: [&str; 10] = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];

impl Builder<'_> {
    pub(super) fn memory(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        match name {
            "ld" | "ldu" => {
                let [d, a] = exactly(o)?;
                self.load_store(mods, d, a, true)?;
            }
            "st" => {
                let [a, d] = exactly(o)?;
                self.load_store(mods, d, a, false)?;
            }
            "atom" | "red" => self.atom(mods, o, name == "red")?,
            "isspacep" => self.is_space(mods, exactly(o)?)?,
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                mods.drop_all(|_| true);
                self.emit(Op::Nop, [0; 4]);
            }
            "cp" => self.copy(mods, o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The address of a memory operand in an otherwise plain access.
    pub(super) fn access(&mut self, o: &Operand, space: Space, ty: Type) -> Refused<Access> {
        let Operand::Addr(base, offset) = o else {
            return Err("an address in brackets expected".to_owned());
        };
        let mut space = space;
        let (slot, narrow) = match base.as_ref() {
            Operand::Reg(reg) => {
                let narrow = file(self.reg_type(*reg)) == File::R;
                if space == Space::Frame && self.current().entry {
                    space = Space::Param;
                }
                (self.reg(*reg, if narrow { File::R } else { File::W })?, narrow)
            }
            Operand::Var(id, _) => {
                let of = self.unit.vars[*id as usize].space;
                if matches!(space, Space::Frame | Space::Param) {
                    space = of;
                }
                if space == Space::Generic {
                    space = of;
                }
                (self.address(*id, 0, File::W)?, false)
            }
            Operand::Int(value) => (self.constant(File::W, *value), false),
            _ => return Err("an address of this form is not supported".to_owned()),
        };
        Ok(Access {
            space,
            bytes: ty.bytes() as u8,
            count: 1,
            base: slot,
            narrow,
            offset: *offset,
            regs: [0; 8],
            wide: ty.bytes() == 8,
            extend: 0,
            strong: false,
            atom: AtomOp::Add,
            from: (0, 0),
            size: ALWAYS,
            transpose: false,
        })
    }

    /// Adds an access to the table; returns its number.
    pub(super) fn keep(&mut self, access: Access) -> u32 {
        self.code.accesses.push(access);
        self.code.accesses.len() as u32 - 1
    }

    fn load_store(
        &mut self,
        mods: &mut Mods<'_>,
        data: &Operand,
        address: &Operand,
        load: bool,
    ) -> Refused<()> {
        let strong = orders(mods);
        let space = space(mods);
        let count = match mods.any(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        };
        let ty = mods.ty()?;
        if matches!(ty, Type::Pred | Type::B128) {
            return Err(format!("loads and stores of {ty:?} are not supported"));
        }
        let mut access = self.access(address, space, ty)?;
        let parts = match data {
            Operand::Vector(parts) => parts.as_slice(),
            one => std::slice::from_ref(one),
        };
        if parts.len() != count {
            return Err(format!("{count} registers expected, {} found", parts.len()));
        }
        let file_of = |b: &Self, o: &Operand| match o {
            Operand::Reg(reg) => file(b.reg_type(*reg)),
            _ => file(ty),
        };
        let first = file_of(self, &parts[0]);
        access.wide = first == File::W;
        if !access.wide && ty.bytes() == 8 {
            return Err("64-bit values need 64-bit registers".to_owned());
        }
        for (slot, part) in access.regs.iter_mut().zip(parts) {
            let as_type = if file_of(self, part) == File::W { Type::B64 } else { Type::B32 };
            if (as_type == Type::B64) != access.wide {
                return Err("the registers differ in width".to_owned());
            }
            *slot = match part {
                Operand::Sink => self.sink(first),
                Operand::Reg(_) if load => self.dst(part, as_type)?,
                Operand::Reg(_) => self.src(part, as_type)?,
                _ if load => return Err("the destination must be a register".to_owned()),
                value => self.src(value, ty)?,
            };
            if let (true, Operand::Reg(reg)) = (ty.is_signed(), part) {
                access.extend = (self.reg_type(*reg).bytes() * 8) as u8;
            }
        }
        (access.count, access.strong) = (count as u8, strong);
        let at = self.keep(access);
        self.emit(if load { Op::Load(at) } else { Op::Store(at) }, [0; 4]);
        Ok(())
    }

    fn atom(&mut self, mods: &mut Mods<'_>, o: &[Operand], red: bool) -> Refused<()> {
        orders(mods);
        let space = space(mods);
        mods.takes("noftz");
        let op = mods.any(&ATOMICS).ok_or("an atomic operation is missing")?;
        let ty = mods.ty()?;
        let (d, rest) = match o {
            rest if red => (&Operand::Sink, rest),
            [d, rest @ ..] => (d, rest),
            [] => return Err("operands are missing".to_owned()),
        };
        let (address, values) = rest.split_first().ok_or("operands are missing")?;
        let mut access = self.access(address, space, ty)?;
        access.atom = atomic(op, ty)?;
        let d = self.dst(d, ty)?;
        let (b, c) = match values {
            [b] if op != "cas" => (self.src(b, ty)?, 0),
            [b, c] if op == "cas" => (self.src(b, ty)?, self.src(c, ty)?),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let at = self.keep(access);
        self.emit(Op::Atom(at), [d, 0, b, c]);
        Ok(())
    }

    /// `isspacep`: whether a generic address lies in a window.
    fn is_space(&mut self, mods: &mut Mods<'_>, [p, a]: &[Operand; 2]) -> Refused<()> {
        let (a, p) = (self.src(a, Type::U64)?, self.dst(p, Type::Pred)?);
        let (low, high) = match space(mods) {
            Space::Shared => (SHARED_WINDOW, SHARED_WINDOW + WINDOW_BYTES),
            Space::Local => (LOCAL_WINDOW, LOCAL_WINDOW + WINDOW_BYTES),
            Space::Global => (1, crate::exec::FIRST_WINDOW),
            _ => return Err("isspacep of this space is not supported".to_owned()),
        };
        let (t, width) = (self.temp(File::W), self.constant(File::W, high - low));
        let low = self.constant(File::W, low);
        self.emit(Op::I64(IntOp::Sub), [t, a, low, 0]);
        self.emit(Op::Compare(Cmp::Lt, CmpType::U64), [p, t, width, 0]);
        Ok(())
    }

    fn copy(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        if !mods.takes("async") {
            return Err("only cp.async is supported".to_owned());
        }
        if mods.takes("commit_group") {
            self.emit(Op::CopyCommit, [0; 4]);
            return Ok(());
        }
        if mods.takes("wait_all") {
            self.emit(Op::CopyCommit, [0; 4]);
            self.emit(Op::CopyWait(0), [0; 4]);
            return Ok(());
        }
        if mods.takes("wait_group") {
            let [Operand::Int(n)] = o else {
                return Err("a constant number of groups expected".to_owned());
            };
            self.emit(Op::CopyWait((*n).min(1 << 20) as u32), [0; 4]);
            return Ok(());
        }
        orders(mods);
        if !(mods.takes("shared") || mods.takes("shared::cta")) || !mods.takes("global") {
            return Err("this form of cp.async is not supported".to_owned());
        }
        let [to, from, Operand::Int(bytes @ (4 | 8 | 16)), rest @ ..] = o else {
            return Err("cp.async copies 4, 8 or 16 bytes between two addresses".to_owned());
        };
        let source = self.access(from, Space::Global, Type::B32)?;
        let mut access = self.access(to, Space::Shared, Type::B32)?;
        if source.narrow {
            return Err("the source must be a 64-bit address".to_owned());
        }
        (access.bytes, access.from) = (*bytes as u8, (source.base, source.offset));
        match rest {
            [] => {}
            [Operand::Reg(reg)] if file(self.reg_type(*reg)) == File::P => {
                let ignore = self.reg(*reg, File::P)?;
                let (none, all) = (self.constant(File::R, 0), self.constant(File::R, *bytes));
                access.size = self.temp(File::R);
                self.emit(Op::Selp32, [access.size, none, all, ignore]);
            }
            [size] => access.size = self.src(size, Type::U32)?,
            _ => return Err("wrong number of operands".to_owned()),
        }
        let at = self.keep(access);
        self.emit(Op::CopyAsync(at), [0; 4]);
        Ok(())
    }
}
