//! Operands of instructions, with their names resolved.

use super::ast::{Operand, RegId, Special, Stmt};
use super::lexer::{Kind, Number};
use super::parser::{Parsed, Parser};

/// Deepest nesting of brackets in an operand.
const DEEPEST: u32 = 4;

impl Parser<'_> {
    /// The register of that name, made on first use when it is one of a family.
    pub(super) fn find_register(&mut self, name: &str) -> Option<RegId> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let index = name[stem.len()..].parse::<u64>().ok();
        for depth in (0..self.scopes.len()).rev() {
            let scope = &self.scopes[depth];
            if let Some(&id) = scope.regs.get(name) {
                return Some(id);
            }
            let Some(&(ty, count)) = scope.families.get(stem) else { continue };
            if index.is_some_and(|i| i < count) {
                let id = self.function.regs.len() as RegId;
                self.function.regs.push(ty);
                self.scopes[depth].regs.insert(name.to_owned(), id);
                return Some(id);
            }
        }
        None
    }

    /// Operands up to the semicolon.
    pub(super) fn operands(&mut self) -> Parsed<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.takes(b';') {
            list.push(self.operand(0)?);
            if !self.takes(b',') {
                self.expect(b';')?;
                break;
            }
        }
        Ok(list)
    }

    fn group(&mut self, close: u8, depth: u32) -> Parsed<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.takes(close) {
            list.push(self.operand(depth + 1)?);
            self.takes(b',');
        }
        Ok(list)
    }

    fn operand(&mut self, depth: u32) -> Parsed<Operand> {
        if depth > DEEPEST {
            return self.fail("operands nested too deeply");
        }
        if self.takes(b'[') {
            let base = self.operand(depth + 1)?;
            let (base, offset) = match base {
                Operand::Var(id, add) => (Operand::Var(id, 0), add),
                other => {
                    let add = self.offset()?;
                    (other, add)
                }
            };
            let address = Operand::Addr(Box::new(base), offset);
            if self.takes(b',') {
                let Operand::Vector(at) = self.operand(depth + 1)? else {
                    return self.fail("coordinates in braces expected");
                };
                self.expect(b']')?;
                return Ok(Operand::Tensor(Box::new(address), at));
            }
            self.expect(b']')?;
            return Ok(address);
        }
        if self.takes(b'{') {
            return Ok(Operand::Vector(self.group(b'}', depth)?));
        }
        if self.takes(b'(') {
            return Ok(Operand::List(self.group(b')', depth)?));
        }
        if self.takes(b'!') {
            let name = self.word()?;
            return match self.find_register(name) {
                Some(reg) => Ok(Operand::Not(reg)),
                None => self.fail(format!("`{name}` is not a declared register")),
            };
        }
        if self.peek().kind == Kind::Word {
            let first = self.named()?;
            if self.takes(b'|') {
                let second = self.named()?;
                return Ok(Operand::Pair(Box::new(first), Box::new(second)));
            }
            return Ok(first);
        }
        let minus = self.takes(b'-');
        Ok(match self.number()? {
            Number::Int(n) if minus => Operand::Int(n.wrapping_neg()),
            Number::Int(n) => Operand::Int(n),
            Number::F32(n) => Operand::F32(n ^ (u32::from(minus) << 31)),
            Number::F64(n) => Operand::F64(n ^ (u64::from(minus) << 63)),
        })
    }

    /// `+ 4`, `- 4`, `+-4`, or nothing.
    fn offset(&mut self) -> Parsed<i64> {
        if self.takes(b'+') {
            return Ok(self.integer()? as i64);
        }
        if self.takes(b'-') {
            return Ok((self.integer()? as i64).wrapping_neg());
        }
        Ok(0)
    }

    fn named(&mut self) -> Parsed<Operand> {
        let name = self.word()?;
        if name == "_" {
            return Ok(Operand::Sink);
        }
        if name == "WARP_SZ" {
            return Ok(Operand::Int(32));
        }
        if let Some(reg) = self.find_register(name) {
            return Ok(Operand::Reg(reg));
        }
        if let Some(special) = special(name) {
            return Ok(Operand::Special(special));
        }
        if name.starts_with('%') {
            return self.fail(format!("register `{name}` is unknown or not supported"));
        }
        match self.find_var(name) {
            Some(id) => Ok(Operand::Var(id, self.offset()?)),
            None => Ok(Operand::Name(name.to_owned())),
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |of: &str| {
        let rest = name.strip_prefix(of)?.strip_prefix('.')?;
        ["x", "y", "z"].iter().position(|a| *a == rest).map(|a| a as u8)
    };
    let on_axis = None
        .or_else(|| axis("%tid").map(Special::Tid))
        .or_else(|| axis("%ntid").map(Special::Ntid))
        .or_else(|| axis("%ctaid").map(Special::Ctaid))
        .or_else(|| axis("%nctaid").map(Special::Nctaid));
    if on_axis.is_some() {
        return on_axis;
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_ge" => Special::MaskGe,
        "%lanemask_gt" => Special::MaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%clock" => Special::Clock,
        "%clock_hi" => Special::ClockHi,
        "%clock64" => Special::Clock64,
        "%globaltimer" => Special::Timer,
        "%globaltimer_lo" => Special::TimerLo,
        "%globaltimer_hi" => Special::TimerHi,
        _ => return None,
    })
}

/// Gives the labels of `body` a suffix, where they are set and where they are used.
pub(super) fn rename(body: &mut [Stmt], serial: u32) {
    let own: Vec<String> = body
        .iter()
        .filter_map(|s| match s {
            Stmt::Label(name) if !name.contains('@') => Some(name.clone()),
            _ => None,
        })
        .collect();
    let renamed = |name: &mut String| {
        if own.contains(name) {
            *name = format!("{name}@{serial}");
        }
    };
    for stmt in body {
        match stmt {
            Stmt::Label(name) => renamed(name),
            Stmt::Inst(raw) => raw.operands.iter_mut().for_each(|operand| {
                if let Operand::Name(name) = operand {
                    renamed(name);
                }
            }),
        }
    }
}
