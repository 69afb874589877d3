//! Instructions between the lanes of a warp.

use super::Refused;
use super::builder::{Builder, File, file};
use super::mods::Mods;
use super::moves::exactly;
use crate::exec::code::{AtomOp, Op, Shuffle, Vote};
use crate::ptx::ast::{Operand, Type};

impl Builder<'_> {
    pub(super) fn warp(&mut self, name: &str, mods: &mut Mods<'_>, o: &[Operand]) -> Refused<bool> {
        if matches!(name, "shfl" | "vote" | "match" | "redux" | "elect") && !mods.takes("sync") {
            return Err("only the .sync form is supported".to_owned());
        }
        match name {
            "shfl" => self.shuffle(mods, exactly(o)?)?,
            "vote" => self.vote(mods, exactly(o)?)?,
            "match" => self.matches(mods, exactly(o)?)?,
            "redux" => self.redux(mods, exactly(o)?)?,
            "activemask" => {
                mods.ty()?;
                let [d] = exactly::<1>(o)?;
                let d = self.dst(d, Type::B32)?;
                self.emit(Op::ActiveMask, [d, 0, 0, 0]);
            }
            "elect" => {
                let [d, mask] = exactly::<2>(o)?;
                let (d, p) = self.pair(d)?;
                let mask = self.src(mask, Type::B32)?;
                self.emit_with(Op::Elect, [d, p, 0, 0], mask);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `d|p`, or `d` alone.
    fn pair(&mut self, o: &Operand) -> Refused<(u32, u32)> {
        match o {
            Operand::Pair(d, p) => Ok((self.dst(d, Type::B32)?, self.dst(p, Type::Pred)?)),
            d => Ok((self.dst(d, Type::B32)?, self.sink(File::P))),
        }
    }

    fn shuffle(&mut self, mods: &mut Mods<'_>, [d, a, b, c, mask]: &[Operand; 5]) -> Refused<()> {
        let way = match mods.any(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            Some(_) => Shuffle::Index,
            None => return Err("the way of the shuffle is missing".to_owned()),
        };
        mods.ty()?;
        let (d, p) = self.pair(d)?;
        let slots = [d, self.src(a, Type::B32)?, self.src(b, Type::U32)?, self.src(c, Type::U32)?];
        let mask = self.src(mask, Type::B32)?;
        self.emit_with(Op::Shfl(way, p), slots, mask);
        Ok(())
    }

    fn vote(&mut self, mods: &mut Mods<'_>, [d, a, mask]: &[Operand; 3]) -> Refused<()> {
        let vote = match mods.any(&["all", "any", "uni", "ballot"]) {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uniform,
            Some(_) => Vote::Ballot,
            None => return Err("the kind of vote is missing".to_owned()),
        };
        mods.ty()?;
        let ty = if vote == Vote::Ballot { Type::B32 } else { Type::Pred };
        let slots = [self.dst(d, ty)?, self.src(a, Type::Pred)?, 0, 0];
        let mask = self.src(mask, Type::B32)?;
        self.emit_with(Op::Vote(vote), slots, mask);
        Ok(())
    }

    fn matches(&mut self, mods: &mut Mods<'_>, [d, a, mask]: &[Operand; 3]) -> Refused<()> {
        let all = mods.any(&["any", "all"]) == Some("all");
        let ty = mods.ty()?;
        let (d, pred) = self.pair(d)?;
        let slots = [d, self.src(a, ty)?, 0, 0];
        let mask = self.src(mask, Type::B32)?;
        self.emit_with(Op::Match { all, wide: file(ty) == File::W, pred }, slots, mask);
        Ok(())
    }

    fn redux(&mut self, mods: &mut Mods<'_>, [d, a, mask]: &[Operand; 3]) -> Refused<()> {
        let op = mods.any(&["add", "min", "max", "and", "or", "xor"]);
        let ty = mods.ty()?;
        let op = match (op, ty.is_signed()) {
            (Some("add"), _) => AtomOp::Add,
            (Some("min"), true) => AtomOp::MinS,
            (Some("min"), false) => AtomOp::MinU,
            (Some("max"), true) => AtomOp::MaxS,
            (Some("max"), false) => AtomOp::MaxU,
            (Some("and"), _) => AtomOp::And,
            (Some("or"), _) => AtomOp::Or,
            (Some("xor"), _) => AtomOp::Xor,
            _ => return Err("the reduction is missing".to_owned()),
        };
        if ty.is_float() {
            return Err("redux of floating-point values is not supported".to_owned());
        }
        let slots = [self.dst(d, ty)?, self.src(a, ty)?, 0, 0];
        let mask = self.src(mask, Type::B32)?;
        self.emit_with(Op::Redux(op), slots, mask);
        Ok(())
    }
}
