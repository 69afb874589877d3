//! What compute capability 9.0 brought: barriers in shared memory, bulk copies, and matrix products
//! of four warps.

use super::Refused;
use super::builder::{Builder, File, file};
use super::matrix::element;
use super::mods::Mods;
use crate::exec::code::{
    ALWAYS, Access, Bulk, BulkKind, Matrix, MmaType, Op, Phase, PhaseKind, Wgmma,
};
use crate::ptx::ast::{Operand, Space, Type};

/// Scopes, orders and hints, of which none changes a value here.
fn hints(mods: &mut Mods<'_>) {
    mods.drop_all(|w| {
        matches!(w, "cta" | "cluster" | "acquire" | "release" | "relaxed" | "weak")
            || w.starts_with("L2::")
    });
}

impl Builder<'_> {
    pub(super) fn hopper(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        match name {
            "mbarrier" => self.phase(mods, o)?,
            "cp" if mods.has("bulk") => self.bulk(mods, o)?,
            "wgmma" => self.wgmma(mods, o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn phase(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        hints(mods);
        let parity = mods.takes("parity");
        let expects = mods.takes("expect_tx");
        let verb = mods.any(&["init", "inval", "arrive", "complete_tx", "test_wait", "try_wait"]);
        if !(mods.takes("shared") || mods.takes("shared::cta") || mods.takes("shared::cluster")) {
            return Err("only mbarriers in .shared are supported".to_owned());
        }
        if mods.ty()? != Type::B64 {
            return Err("an mbarrier is a .b64".to_owned());
        }
        let (kind, d, rest) = match (verb, o) {
            (Some("init"), rest) => (PhaseKind::Init, None, rest),
            (Some("inval"), rest) => (PhaseKind::Inval, None, rest),
            (Some("complete_tx"), rest) => (PhaseKind::Complete, None, rest),
            (None, rest) if expects => (PhaseKind::Expect, None, rest),
            (Some("arrive"), [d, rest @ ..]) => {
                let kind = if expects { PhaseKind::ArriveExpect } else { PhaseKind::Arrive };
                (kind, Some((d, Type::B64)), rest)
            }
            // The limit of time that may follow changes nothing.
            (Some("test_wait" | "try_wait"), [d, at, value, ..]) => {
                let rest = [at.clone(), value.clone()];
                return self.put_phase(PhaseKind::Wait, Some((d, Type::Pred)), &rest, parity);
            }
            _ => return Err("this operation on an mbarrier is not supported".to_owned()),
        };
        self.put_phase(kind, d, rest, parity)
    }

    fn put_phase(
        &mut self,
        kind: PhaseKind,
        d: Option<(&Operand, Type)>,
        rest: &[Operand],
        parity: bool,
    ) -> Refused<()> {
        let (at, value) = match rest {
            [at] => (at, None),
            [at, value] => (at, Some(value)),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let at = self.access(at, Space::Shared, Type::B64)?;
        let mut phase = Phase { kind, at, value: ALWAYS, state: 0 };
        match value {
            Some(value) if kind == PhaseKind::Wait && !parity => {
                phase.state = self.src(value, Type::B64)?;
            }
            Some(value) => phase.value = self.src(value, Type::U32)?,
            None if matches!(kind, PhaseKind::Arrive | PhaseKind::Inval) => {}
            None => return Err("a count is missing".to_owned()),
        }
        let d = d.map_or(Ok(0), |(d, ty)| self.dst(d, ty))?;
        let number = self.code.phases.len() as u32;
        self.code.phases.push(phase);
        self.emit(Op::Phase(number), [d, 0, 0, 0]);
        Ok(())
    }

    fn bulk(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        hints(mods);
        if !mods.takes("async") || !mods.takes("bulk") {
            return Err("only cp.async.bulk is supported".to_owned());
        }
        if mods.takes("prefetch") {
            // Brings lines nearer, and changes nothing.
            mods.drop_all(|_| true);
            self.emit(Op::Nop, [0; 4]);
            return Ok(());
        }
        if mods.takes("commit_group") || mods.takes("wait_group") {
            // Copies to global memory are done at once.
            mods.takes("read");
            self.emit(Op::Nop, [0; 4]);
            return Ok(());
        }
        if mods.takes("tensor") {
            return self.tensor(mods, o);
        }
        let loads = mods.takes("mbarrier::complete_tx::bytes");
        let spaces = (mods.next().unwrap_or(""), mods.next().unwrap_or(""));
        let (kind, [to, from]) = match spaces {
            ("shared::cluster" | "shared::cta", "global") if loads => {
                (BulkKind::ToShared, [Space::Shared, Space::Global])
            }
            ("global", "shared::cta") if mods.takes("bulk_group") => {
                (BulkKind::ToGlobal, [Space::Global, Space::Shared])
            }
            _ => return Err("this form of cp.async.bulk is not supported".to_owned()),
        };
        // A cache policy may follow.
        let (to, from, size, barrier) = match (kind, o) {
            (BulkKind::ToShared, [d, a, size, barrier, ..]) => {
                let barrier = self.access(barrier, Space::Shared, Type::B64)?;
                (self.run_at(d, to)?, self.run_at(a, from)?, size, barrier)
            }
            (BulkKind::ToGlobal, [d, a, size, ..]) => {
                let (to, from) = (self.run_at(d, to)?, self.run_at(a, from)?);
                (to, from, size, from)
            }
            _ => return Err("wrong number of operands".to_owned()),
        };
        let size = self.src(size, Type::U32)?;
        let number = self.code.bulks.len() as u32;
        let (coordinates, axes) = ([0; 5], 0);
        self.code.bulks.push(Bulk { kind, to, from, size, barrier, coordinates, axes });
        self.emit(Op::Bulk(number), [0; 4]);
        Ok(())
    }

    /// A box of a tensor; the number of axes is that of the coordinates.
    fn tensor(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let loads = mods.takes("mbarrier::complete_tx::bytes");
        let axes = mods.any(&["1d", "2d", "3d", "4d", "5d"]).ok_or("the axes are missing")?;
        mods.takes("tile");
        let spaces = (mods.next().unwrap_or(""), mods.next().unwrap_or(""));
        let (kind, map, at, shared, barrier) = match (spaces, o) {
            (
                ("shared::cluster" | "shared::cta", "global"),
                [to, Operand::Tensor(map, at), barrier, ..],
            ) if loads => (BulkKind::TensorToShared, map, at, to, barrier),
            (("global", "shared::cta"), [Operand::Tensor(map, at), from, ..])
                if mods.takes("bulk_group") =>
            {
                (BulkKind::TensorToGlobal, map, at, from, from)
            }
            _ => return Err("this form of cp.async.bulk.tensor is not supported".to_owned()),
        };
        if axes.as_bytes().first().map(|digit| usize::from(digit - b'0')) != Some(at.len()) {
            return Err(format!("{} coordinates for {axes}", at.len()));
        }
        let mut coordinates = [0; 5];
        for (slot, at) in coordinates.iter_mut().zip(at) {
            *slot = self.src(at, Type::S32)?;
        }
        let map = self.access(map, Space::Generic, Type::B64)?;
        let shared = self.run_at(shared, Space::Shared)?;
        let barrier = self.access(barrier, Space::Shared, Type::B64)?;
        let (to, from) = if loads { (shared, map) } else { (map, shared) };
        let (size, axes) = (0, at.len() as u8);
        let number = self.code.bulks.len() as u32;
        self.code.bulks.push(Bulk { kind, to, from, size, barrier, coordinates, axes });
        self.emit(Op::Bulk(number), [0; 4]);
        Ok(())
    }

    fn run_at(&mut self, o: &Operand, space: Space) -> Refused<Access> {
        self.access(o, space, Type::B32)
    }

    fn wgmma(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let verb = mods.any(&["mma_async", "fence", "commit_group", "wait_group"]);
        if !mods.takes("sync") || !mods.takes("aligned") {
            return Err("only wgmma.*.sync.aligned is there".to_owned());
        }
        if verb != Some("mma_async") {
            // Products are done at once.
            self.emit(Op::Nop, [0; 4]);
            return Ok(());
        }
        let shape = mods.next().unwrap_or("");
        let n = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix("k16"));
        let n: Option<u32> = n.and_then(|n| n.parse().ok());
        let Some(n) = n.filter(|n| *n % 8 == 0 && (8..=256).contains(n)) else {
            return Err(format!("the shape {shape} is not supported"));
        };
        let types = [mods.ty()?, mods.ty()?, mods.ty()?];
        let (ty, _) = element(types[1])?;
        let known = matches!(ty, MmaType::F16 | MmaType::Bf16);
        if types[0] != Type::F32 || types[1] != types[2] || !known {
            return Err("this combination of types is not supported".to_owned());
        }
        let [d, a, b, keeps, signs @ ..] = o else {
            return Err("operands are missing".to_owned());
        };
        let d = self.fragment(d, Type::B32, 16 * n * 32, true)?;
        let a = match a {
            Operand::Vector(_) => Matrix::Registers(self.fragment(a, Type::B32, 4096, false)?),
            one => Matrix::Shared(self.src(one, Type::B64)?),
        };
        let b = self.src(b, Type::B64)?;
        let keeps = match keeps {
            Operand::Not(reg) => self.reg(*reg, File::P)? * 2 + 1,
            Operand::Reg(reg) if file(self.reg_type(*reg)) == File::P => {
                self.reg(*reg, File::P)? * 2
            }
            _ => return Err("scale-d is a predicate".to_owned()),
        };
        let signs: Vec<i64> = signs.iter().map(number).collect::<Refused<_>>()?;
        let (negates, transposed) = match (&a, signs.as_slice()) {
            (_, [x, y]) => ([*x < 0, *y < 0], [false; 2]),
            (Matrix::Shared(_), [x, y, s, t]) => ([*x < 0, *y < 0], [*s == 1, *t == 1]),
            (Matrix::Registers(_), [x, y, t]) => ([*x < 0, *y < 0], [false, *t == 1]),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let at = self.code.wgmmas.len() as u32;
        self.code.wgmmas.push(Wgmma { ty, d, a, b, keeps, negates, transposed });
        self.emit(Op::Wgmma(at), [0; 4]);
        Ok(())
    }
}

fn number(o: &Operand) -> Refused<i64> {
    match o {
        Operand::Int(value) => Ok(*value as i64),
        _ => Err("a constant expected".to_owned()),
    }
}
