//! Decodes a kernel with the functions it calls into one flat list of instructions.

use super::Refused;
use super::mods::Mods;
use crate::exec::code::{ALWAYS, Code, Init, Inst, NEVER, Op, PredOp, Slot};
use crate::ptx::ParseError;
use crate::ptx::ast::{
    Function, Operand, Place, Raw, RegId, Space, Special, Stmt, Type, Unit, VarId,
};
use std::collections::HashMap;

/// Which register file an operand lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum File {
    P,
    /// 32-bit and narrower.
    R,
    /// 64-bit.
    W,
}

/// The register file of a type.
pub(super) fn file(ty: Type) -> File {
    match ty.bytes() {
        0 => File::P,
        8 => File::W,
        _ => File::R,
    }
}

pub(super) struct Builder<'a> {
    pub(super) unit: &'a Unit,
    pub(super) code: Code,
    pub(super) function: usize,
    /// Functions whose code is wanted, in order of first call.
    wanted: Vec<usize>,
    regs: HashMap<(usize, RegId), Slot>,
    constants: HashMap<(File, u64), Slot>,
    specials: HashMap<Special, Slot>,
    addresses: HashMap<(File, VarId, i64), Slot>,
    offsets: HashMap<VarId, u32>,
    labels: HashMap<(usize, String), u32>,
    /// Instructions whose target is a label.
    branches: Vec<(usize, usize, String)>,
    /// Calls, with the function they go to.
    calls: Vec<(usize, usize)>,
    /// Entries of jump tables.
    jumps: Vec<(usize, usize, Vec<String>)>,
    sinks: HashMap<File, Slot>,
    carry: Option<Slot>,
    guard: u32,
    place: Place,
    fresh: bool,
}

fn align_up(n: u32, align: u32) -> u32 {
    n.next_multiple_of(align.max(1))
}

/// Decodes one kernel.
pub(crate) fn decode_entry(unit: &Unit, entry: usize) -> Result<Code, ParseError> {
    let mut b = Builder {
        unit,
        code: Code::default(),
        function: entry,
        wanted: vec![entry],
        regs: HashMap::new(),
        constants: HashMap::new(),
        specials: HashMap::new(),
        addresses: HashMap::new(),
        offsets: HashMap::new(),
        labels: HashMap::new(),
        branches: Vec::new(),
        calls: Vec::new(),
        jumps: Vec::new(),
        sinks: HashMap::new(),
        carry: None,
        guard: ALWAYS,
        place: Place::default(),
        fresh: true,
    };
    let whole = |what: String, line| ParseError { line, what, ..ParseError::default() };
    let line = unit.functions[entry].line;
    no_recursion(unit, entry).map_err(|what| whole(what, line))?;
    b.lay_out_params(entry);
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(&function) = b.wanted.get(at) {
        let start = b.code.insts.len() as u32;
        b.function_body(function)?;
        ranges.push((function, start, b.code.insts.len() as u32));
        at += 1;
    }
    b.resolve(&ranges).map_err(|what| whole(what, line))?;
    for &(_, start, end) in &ranges {
        super::cfg::joins(&mut b.code, start, end);
    }
    b.finish();
    Ok(b.code)
}

/// Refuses functions that call themselves: registers have one place each.
fn no_recursion(unit: &Unit, from: usize) -> Refused<()> {
    fn visit(unit: &Unit, at: usize, path: &mut Vec<usize>, done: &mut Vec<usize>) -> Refused<()> {
        if path.contains(&at) {
            return Err(format!("`{}` calls itself: not supported", unit.functions[at].name));
        }
        if done.contains(&at) {
            return Ok(());
        }
        path.push(at);
        for stmt in &unit.functions[at].body {
            let Stmt::Inst(raw) = stmt else { continue };
            if raw.op.first().is_none_or(|op| op != "call") {
                continue;
            }
            for operand in &raw.operands {
                let Operand::Name(name) = operand else { continue };
                if let Some(next) = unit.functions.iter().position(|f| f.name == *name) {
                    visit(unit, next, path, done)?;
                }
            }
        }
        path.pop();
        done.push(at);
        Ok(())
    }
    visit(unit, from, &mut Vec::new(), &mut Vec::new())
}

impl<'a> Builder<'a> {
    fn lay_out_params(&mut self, entry: usize) {
        let mut at = 0;
        for &id in &self.unit.functions[entry].params {
            let var = &self.unit.vars[id as usize];
            at = align_up(at, var.align);
            self.offsets.insert(id, at);
            at += var.bytes;
        }
    }

    pub(super) fn current(&self) -> &'a Function {
        &self.unit.functions[self.function]
    }

    fn function_body(&mut self, function: usize) -> Result<(), ParseError> {
        self.function = function;
        let unit = self.unit;
        let start = self.code.insts.len() as u32;
        self.labels.insert((function, String::new()), start);
        for stmt in &unit.functions[function].body {
            match stmt {
                Stmt::Label(name) => {
                    let at = self.code.insts.len() as u32;
                    self.labels.insert((function, name.clone()), at);
                }
                Stmt::Inst(raw) => self.one(raw)?,
            }
        }
        self.guard = ALWAYS;
        self.fresh = false;
        // Where a call's lanes meet before they return; a kernel's lanes end here.
        let last = if self.current().entry { Op::Exit } else { Op::Nop };
        self.labels.insert((function, "@end".to_owned()), self.code.insts.len() as u32);
        self.emit(last, [0; 4]);
        Ok(())
    }

    fn one(&mut self, raw: &Raw) -> Result<(), ParseError> {
        self.place = raw.place;
        self.fresh = true;
        self.guard = match raw.guard {
            None => ALWAYS,
            Some((reg, not)) => self.register(reg) * 2 + u32::from(not),
        };
        self.dispatch(raw).map_err(|what| ParseError {
            line: raw.place.line,
            instruction: raw.op.join("."),
            what,
            source: crate::ptx::source(&self.unit.files, raw.place),
        })
    }

    fn dispatch(&mut self, raw: &Raw) -> Refused<()> {
        let mut mods = Mods::new(&raw.op);
        let o = raw.operands.as_slice();
        let name = raw.op.first().map_or("", String::as_str);
        let done = self.moves(name, &mut mods, o)?
            || self.float(name, &mut mods, o)?
            || self.alu(name, &mut mods, o)?
            || self.hopper(name, &mut mods, o)?
            || self.memory(name, &mut mods, o)?
            || self.convert(name, &mut mods, o)?
            || self.control(name, &mut mods, o)?
            || self.warp(name, &mut mods, o)?
            || self.matrix(name, &mut mods, o)?;
        if !done {
            return Err("instruction is not supported".to_owned());
        }
        mods.done()
    }

    /// Adds an instruction with slots d, a, b, c under the current guard.
    pub(super) fn emit(&mut self, op: Op, slots: [Slot; 4]) {
        let [d, a, b, c] = slots;
        self.code.insts.push(Inst { op, guard: self.guard, d, a, b, c, e: NEVER });
        self.code.places.push(self.place);
        self.code.first.push(self.fresh);
        self.fresh = false;
    }

    /// The same with one more slot.
    pub(super) fn emit_with(&mut self, op: Op, slots: [Slot; 4], e: Slot) {
        self.emit(op, slots);
        if let Some(inst) = self.code.insts.last_mut() {
            inst.e = e;
        }
    }

    /// A new slot that nothing else uses.
    pub(super) fn temp(&mut self, file: File) -> Slot {
        let count = match file {
            File::P => &mut self.code.preds,
            File::R => &mut self.code.slots32,
            File::W => &mut self.code.slots64,
        };
        *count += 1;
        *count - 1
    }

    pub(super) fn reg_type(&self, reg: RegId) -> Type {
        self.current().regs.get(reg as usize).copied().unwrap_or(Type::B32)
    }

    fn register(&mut self, reg: RegId) -> Slot {
        if let Some(&slot) = self.regs.get(&(self.function, reg)) {
            return slot;
        }
        let slot = self.temp(file(self.reg_type(reg)));
        self.regs.insert((self.function, reg), slot);
        slot
    }

    /// The slot of a register that must lie in `want`.
    pub(super) fn reg(&mut self, reg: RegId, want: File) -> Refused<Slot> {
        let ty = self.reg_type(reg);
        if ty == Type::B128 {
            return Err("128-bit registers are not supported".to_owned());
        }
        if file(ty) != want {
            return Err(format!("a register of type {ty:?} does not fit here"));
        }
        Ok(self.register(reg))
    }

    /// A slot that holds `value` in every lane.
    pub(super) fn constant(&mut self, file: File, value: u64) -> Slot {
        if let Some(&slot) = self.constants.get(&(file, value)) {
            return slot;
        }
        let slot = self.temp(file);
        self.constants.insert((file, value), slot);
        self.init(file, slot, Init::Value(value));
        slot
    }

    fn init(&mut self, file: File, slot: Slot, init: Init) {
        match file {
            File::W => self.code.init64.push((slot, init)),
            _ => self.code.init32.push((slot, init)),
        }
    }

    /// A source operand of a type.
    pub(super) fn src(&mut self, operand: &Operand, ty: Type) -> Refused<Slot> {
        let want = file(ty);
        let narrow = |value: u64| match ty.bytes() {
            1 | 2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        match operand {
            Operand::Reg(reg) => self.reg(*reg, want),
            Operand::Not(reg) => {
                let from = self.reg(*reg, File::P)?;
                let to = self.temp(File::P);
                let guard = std::mem::replace(&mut self.guard, ALWAYS);
                self.emit(Op::Pred(PredOp::Not), [to, from, 0, 0]);
                self.guard = guard;
                Ok(to)
            }
            Operand::Int(value) if want == File::P => Ok(self.constant_pred(*value != 0)),
            Operand::Int(value) if ty == Type::F32 => {
                Ok(self.constant(want, u64::from((*value as i64 as f32).to_bits())))
            }
            Operand::Int(value) => Ok(self.constant(want, narrow(*value))),
            Operand::F32(bits) if ty == Type::F64 => {
                Ok(self.constant(want, f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::F32(bits) => Ok(self.constant(want, u64::from(*bits))),
            Operand::F64(bits) if want == File::R => {
                Ok(self.constant(want, u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::F64(bits) => Ok(self.constant(want, *bits)),
            Operand::Special(special) => self.special(*special, want),
            Operand::Var(id, add) => self.address(*id, *add, want),
            _ => Err("an operand of this form is not supported here".to_owned()),
        }
    }

    fn constant_pred(&mut self, value: bool) -> Slot {
        // A compare of a constant with itself is always true or always false.
        let zero = self.constant(File::R, 0);
        let to = self.temp(File::P);
        let cmp = if value { crate::exec::code::Cmp::Eq } else { crate::exec::code::Cmp::Ne };
        let guard = std::mem::replace(&mut self.guard, ALWAYS);
        self.emit(Op::Compare(cmp, crate::exec::code::CmpType::U32), [to, zero, zero, 0]);
        self.guard = guard;
        to
    }

    /// A destination operand.
    pub(super) fn dst(&mut self, operand: &Operand, ty: Type) -> Refused<Slot> {
        match operand {
            Operand::Reg(reg) => self.reg(*reg, file(ty)),
            Operand::Sink => Ok(self.sink(file(ty))),
            _ => Err("the destination must be a register".to_owned()),
        }
    }

    /// A slot whose value nobody reads.
    pub(super) fn sink(&mut self, file: File) -> Slot {
        if let Some(&slot) = self.sinks.get(&file) {
            return slot;
        }
        let slot = self.temp(file);
        self.sinks.insert(file, slot);
        slot
    }

    /// The thread's carry, made on first use.
    pub(super) fn carry_slot(&mut self) -> Slot {
        if let Some(slot) = self.carry {
            return slot;
        }
        let slot = self.temp(File::P);
        self.carry = Some(slot);
        slot
    }

    fn special(&mut self, special: Special, want: File) -> Refused<Slot> {
        let moving = match special {
            Special::Clock64 | Special::Timer => Some(File::W),
            Special::Clock | Special::ClockHi | Special::TimerLo | Special::TimerHi => {
                Some(File::R)
            }
            _ => None,
        };
        if let Some(has) = moving {
            if has != want {
                return Err("the register has another width".to_owned());
            }
            let to = self.temp(has);
            self.emit(Op::Special(special), [to, 0, 0, 0]);
            return Ok(to);
        }
        let slot = match self.specials.get(&special) {
            Some(&slot) => slot,
            None => {
                let slot = self.temp(File::R);
                self.specials.insert(special, slot);
                self.init(File::R, slot, Init::Special(special));
                slot
            }
        };
        if want == File::R {
            return Ok(slot);
        }
        let zero = self.constant(File::R, 0);
        let to = self.temp(File::W);
        self.emit(Op::Pack64, [to, slot, zero, 0]);
        Ok(to)
    }

    /// A slot with the address of a variable in its own space.
    pub(super) fn address(&mut self, id: VarId, add: i64, want: File) -> Refused<Slot> {
        if let Some(&slot) = self.addresses.get(&(want, id, add)) {
            return Ok(slot);
        }
        if want == File::P {
            return Err("an address is not a predicate".to_owned());
        }
        let slot = self.temp(want);
        self.addresses.insert((want, id, add), slot);
        let var = &self.unit.vars[id as usize];
        if matches!(var.space, Space::Global | Space::Const | Space::Generic) {
            self.init(want, slot, Init::Global(id, add));
        } else if !var.open {
            let offset = self.offset_of(id);
            self.init(want, slot, Init::Value((i64::from(offset) + add) as u64));
        }
        Ok(slot)
    }

    /// The place of a variable in shared memory or in the frame, given at its first use.
    pub(super) fn offset_of(&mut self, id: VarId) -> u32 {
        if let Some(&at) = self.offsets.get(&id) {
            return at;
        }
        let var = &self.unit.vars[id as usize];
        let end = match var.space {
            Space::Shared => &mut self.code.shared_bytes,
            _ => &mut self.code.frame_bytes,
        };
        let at = align_up(*end, var.align);
        *end = at + var.bytes;
        self.offsets.insert(id, at);
        at
    }

    /// Marks the last instruction as a jump to a label of the current function.
    pub(super) fn goes_to(&mut self, label: &str) {
        self.branches.push((self.code.insts.len() - 1, self.function, label.to_owned()));
    }

    pub(super) fn goes_by(&mut self, table: usize, labels: Vec<String>) {
        self.jumps.push((table, self.function, labels));
    }

    /// Marks the last instruction as a call.
    pub(super) fn goes_into(&mut self, function: usize) {
        self.calls.push((self.code.insts.len() - 1, function));
        if !self.wanted.contains(&function) {
            self.wanted.push(function);
        }
    }

    fn resolve(&mut self, ranges: &[(usize, u32, u32)]) -> Refused<()> {
        let labels = std::mem::take(&mut self.labels);
        let find = |function: usize, label: &String| {
            let found = labels.get(&(function, label.clone())).copied();
            found.ok_or_else(|| format!("label `{label}` is not defined"))
        };
        for (at, function, label) in std::mem::take(&mut self.branches) {
            self.code.insts[at].op = Op::Bra(find(function, &label)?);
        }
        for (table, function, list) in std::mem::take(&mut self.jumps) {
            let targets = list.iter().map(|l| find(function, l)).collect::<Refused<_>>()?;
            self.code.tables[table] = targets;
        }
        for (at, function) in std::mem::take(&mut self.calls) {
            let range = ranges.iter().find(|r| r.0 == function);
            let (_, start, end) = *range.ok_or("a called function has no code")?;
            self.code.insts[at].op = Op::Call(start);
            self.code.insts[at].e = end - 1;
        }
        Ok(())
    }

    /// Dynamic shared memory starts where the static variables end.
    fn finish(&mut self) {
        let end = align_up(self.code.shared_bytes, 16);
        let addresses = std::mem::take(&mut self.addresses);
        let mut open: Vec<_> = addresses
            .into_iter()
            .filter(|((_, id, _), _)| {
                let var = &self.unit.vars[*id as usize];
                var.open && var.space == Space::Shared
            })
            .collect();
        open.sort_by_key(|(_, slot)| *slot);
        for ((file, id, add), slot) in open {
            let base = align_up(end, self.unit.vars[id as usize].align);
            self.code.shared_bytes = self.code.shared_bytes.max(base);
            self.init(file, slot, Init::Value((i64::from(base) + add) as u64));
        }
        self.code.frame_bytes = align_up(self.code.frame_bytes, 16);
    }
}
