//! Bodies of functions: scopes, registers, labels, instructions.

use super::ast::{Place, Raw, RegId, Stmt};
use super::lexer::Kind;
use super::parser::{Parsed, Parser, Scope};

/// Most registers one family `%r<n>` may declare.
const MOST_REGISTERS: u64 = 1 << 20;

impl Parser<'_> {
    pub(super) fn body(&mut self) -> Parsed<()> {
        self.scopes.push(Scope::default());
        let floor = self.scopes.len();
        loop {
            if self.anywhere()? || self.takes(b';') {
                continue;
            }
            let token = self.peek();
            match (token.kind, token.text) {
                (Kind::Mark(b'{'), _) => {
                    self.at += 1;
                    let first = self.function.body.len();
                    self.scopes.push(Scope { first, ..Scope::default() });
                }
                (Kind::Mark(b'}'), _) => {
                    self.at += 1;
                    if self.scopes.len() == floor {
                        return Ok(());
                    }
                    let first = self.scopes.pop().map_or(0, |s| s.first);
                    self.rename_labels(first);
                }
                (Kind::Word, ".reg") => self.registers()?,
                (Kind::Word, ".shared" | ".local" | ".param" | ".global" | ".const") => {
                    let space = self.space()?;
                    let made = self.variables(space)?;
                    self.function.vars.extend(made);
                }
                (Kind::Word, text)
                    if self.list.get(self.at + 1).map(|t| t.kind) == Some(Kind::Mark(b':')) =>
                {
                    self.at += 2;
                    self.label(text)?;
                }
                (Kind::Word, text) if text.starts_with('.') => {
                    self.at += 1;
                    return self.fail(format!("directive `{text}` is not supported"));
                }
                (Kind::Word | Kind::Mark(b'@'), _) => self.instruction()?,
                _ => {
                    self.at += 1;
                    return self.fail("a statement expected");
                }
            }
        }
    }

    fn label(&mut self, name: &str) -> Parsed<()> {
        if self.takes_word(".branchtargets") {
            let mut targets = vec![self.word()?.to_owned()];
            while self.takes(b',') {
                targets.push(self.word()?.to_owned());
            }
            self.function.tables.insert(name.to_owned(), targets);
            return self.expect(b';');
        }
        self.function.body.push(Stmt::Label(name.to_owned()));
        Ok(())
    }

    /// Labels inside braces are invisible outside: gives them names of their own.
    fn rename_labels(&mut self, first: usize) {
        self.serial += 1;
        let serial = self.serial;
        super::operand::rename(&mut self.function.body[first..], serial);
    }

    fn registers(&mut self) -> Parsed<()> {
        self.at += 1;
        let (ty, vector, _) = self.type_words()?;
        if vector != 1 {
            return self.fail("vector registers are not supported");
        }
        loop {
            let name = self.word()?.to_owned();
            let family = if self.takes(b'<') {
                let count = self.integer()?;
                self.expect(b'>')?;
                Some(count.min(MOST_REGISTERS))
            } else {
                None
            };
            let id = self.function.regs.len() as RegId;
            if family.is_none() {
                self.function.regs.push(ty);
            }
            if let Some(scope) = self.scopes.last_mut() {
                match family {
                    Some(count) => drop(scope.families.insert(name, (ty, count))),
                    None => drop(scope.regs.insert(name, id)),
                }
            }
            if !self.takes(b',') {
                return self.expect(b';');
            }
        }
    }

    fn instruction(&mut self) -> Parsed<()> {
        let mut guard = None;
        if self.takes(b'@') {
            let not = self.takes(b'!');
            let name = self.word()?;
            match self.find_register(name) {
                Some(reg) => guard = Some((reg, not)),
                None => return self.fail(format!("`{name}` is not a declared register")),
            }
        }
        let place = Place { line: self.peek().line, ..self.place };
        let op: Vec<String> = self.word()?.split('.').map(str::to_owned).collect();
        let operands = self.operands()?;
        self.function.body.push(Stmt::Inst(Raw { guard, op, operands, place }));
        Ok(())
    }
}
