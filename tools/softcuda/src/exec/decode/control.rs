//! Branches, calls, ends and barriers.

use super::Refused;
use super::builder::{Builder, File};
use super::mods::Mods;
use super::moves::exactly;
use crate::exec::code::{ALWAYS, Bar, BarKind, Op};
use crate::ptx::ast::{Operand, Type, VarId};

fn variables(o: &Operand) -> Refused<Vec<VarId>> {
    let one = |o: &Operand| match o {
        Operand::Var(id, 0) => Ok(*id),
        _ => Err("arguments must be .param variables".to_owned()),
    };
    match o {
        Operand::List(list) => list.iter().map(one).collect(),
        _ => Err("a list in parentheses expected".to_owned()),
    }
}

impl Builder<'_> {
    pub(super) fn control(
        &mut self,
        name: &str,
        mods: &mut Mods<'_>,
        o: &[Operand],
    ) -> Refused<bool> {
        match name {
            "bra" => {
                mods.takes("uni");
                let [Operand::Name(label)] = o else {
                    return Err("a label expected".to_owned());
                };
                self.emit(Op::Bra(0), [0; 4]);
                self.goes_to(label);
            }
            "brx" => self.jump(mods, exactly(o)?)?,
            "call" => self.call(mods, o)?,
            "ret" if !self.current().entry => {
                mods.takes("uni");
                self.emit(Op::Bra(0), [0; 4]);
                self.goes_to("@end");
            }
            "ret" | "exit" => {
                mods.takes("uni");
                self.emit(Op::Exit, [0; 4]);
            }
            "trap" | "brkpt" => self.emit(Op::Trap, [0; 4]),
            "bar" | "barrier" => self.barrier(mods, o)?,
            "membar" | "fence" => {
                mods.drop_all(|w| {
                    matches!(
                        w,
                        "gl" | "cta"
                            | "sys"
                            | "gpu"
                            | "sc"
                            | "acq_rel"
                            | "acquire"
                            | "release"
                            | "cluster"
                            | "proxy"
                            | "async"
                            | "async::generic"
                            | "mbarrier_init"
                            | "global"
                            | "shared::cta"
                            | "alias"
                    )
                });
                self.emit(Op::Fence, [0; 4]);
            }
            "nanosleep" => {
                mods.ty()?;
                self.emit(Op::Nop, [0; 4]);
            }
            // That the next launch may begin is no command: it begins when this one has ended.
            "griddepcontrol" if mods.takes("wait") => {
                self.emit(Op::Await, [0; 4]);
            }
            "pmevent" | "setmaxnreg" | "griddepcontrol" => {
                mods.drop_all(|_| true);
                self.emit(Op::Nop, [0; 4]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn jump(&mut self, mods: &mut Mods<'_>, [index, table]: &[Operand; 2]) -> Refused<()> {
        mods.takes("idx");
        mods.takes("uni");
        let Operand::Name(name) = table else {
            return Err("a table of branch targets expected".to_owned());
        };
        let labels = self.current().tables.get(name).cloned();
        let labels = labels.ok_or_else(|| format!("`{name}` is not a .branchtargets list"))?;
        let index = self.src(index, Type::U32)?;
        let at = self.code.tables.len();
        self.code.tables.push(Vec::new());
        self.goes_by(at, labels);
        self.emit(Op::Brx(at as u32), [0, index, 0, 0]);
        Ok(())
    }

    fn call(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        mods.takes("uni");
        let (rets, name, args) = match o {
            [Operand::Name(name)] => (Vec::new(), name, Vec::new()),
            [Operand::Name(name), args] => (Vec::new(), name, variables(args)?),
            [rets, Operand::Name(name)] => (variables(rets)?, name, Vec::new()),
            [rets, Operand::Name(name), args] => (variables(rets)?, name, variables(args)?),
            _ => return Err("calls through a register are not supported".to_owned()),
        };
        let places: Vec<u32> = args.iter().map(|&id| self.offset_of(id)).collect();
        match (name.as_str(), places.as_slice()) {
            ("vprintf", [format, args]) => {
                self.emit(Op::Printf { format: *format, args: *args }, [0; 4]);
                return Ok(());
            }
            ("__assertfail", [message, file, line, ..]) => {
                self.emit(Op::Assert { message: *message, file: *file, line: *line }, [0; 4]);
                return Ok(());
            }
            _ => {}
        }
        let found = self.unit.functions.iter().position(|f| f.name == *name && f.has_body);
        let function = found.ok_or_else(|| format!("`{name}` has no code in this module"))?;
        let callee = &self.unit.functions[function];
        if callee.params.len() != args.len() || callee.rets.len() != rets.len() {
            return Err(format!("`{name}` takes another number of arguments"));
        }
        for (&to, &from) in callee.params.iter().zip(&args) {
            self.frame_copy(to, from);
        }
        self.emit(Op::Call(0), [0; 4]);
        self.goes_into(function);
        for (&to, &from) in rets.iter().zip(&callee.rets) {
            self.frame_copy(to, from);
        }
        Ok(())
    }

    fn frame_copy(&mut self, to: VarId, from: VarId) {
        let bytes = |id: VarId| self.unit.vars[id as usize].bytes;
        let bytes = bytes(to).min(bytes(from));
        let (to, from) = (self.offset_of(to), self.offset_of(from));
        self.emit(Op::FrameCopy { to, from, bytes }, [0; 4]);
    }

    fn barrier(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        mods.takes("cta");
        mods.takes("aligned");
        if mods.takes("warp") {
            mods.takes("sync");
            let [mask] = exactly::<1>(o)?;
            let mask = self.src(mask, Type::B32)?;
            self.emit_with(Op::WarpBar, [0; 4], mask);
            return Ok(());
        }
        if mods.takes("red") {
            return self.reduction(mods, o);
        }
        let kind = if mods.takes("arrive") { BarKind::Arrive } else { BarKind::Sync };
        mods.takes("sync");
        let (id, threads) = match o {
            [id] if kind == BarKind::Sync => (id, None),
            [id, threads] => (id, Some(threads)),
            _ => return Err("wrong number of operands".to_owned()),
        };
        self.bar(kind, id, threads, ALWAYS, 0)
    }

    fn reduction(&mut self, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<()> {
        let (kind, ty) = match mods.any(&["popc", "and", "or"]) {
            Some("popc") => (BarKind::Popc, Type::U32),
            Some("and") => (BarKind::And, Type::Pred),
            Some(_) => (BarKind::Or, Type::Pred),
            None => return Err("a reduction is missing".to_owned()),
        };
        mods.ty()?;
        let (d, id, threads, p) = match o {
            [d, id, p] => (d, id, None, p),
            [d, id, threads, p] => (d, id, Some(threads), p),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let pred = match p {
            Operand::Not(reg) => self.reg(*reg, File::P)? * 2 + 1,
            other => self.src(other, Type::Pred)? * 2,
        };
        let d = self.dst(d, ty)?;
        self.bar(kind, id, threads, pred, d)
    }

    fn bar(
        &mut self,
        kind: BarKind,
        id: &Operand,
        threads: Option<&Operand>,
        pred: u32,
        d: u32,
    ) -> Refused<()> {
        let id = self.src(id, Type::U32)?;
        let threads = match threads {
            Some(threads) => self.src(threads, Type::U32)?,
            None => ALWAYS,
        };
        let at = self.code.bars.len() as u32;
        self.code.bars.push(Bar { kind, id, threads, pred });
        self.emit(Op::Bar(at), [d, 0, 0, 0]);
        Ok(())
    }
}
