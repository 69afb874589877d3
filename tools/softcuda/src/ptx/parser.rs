//! From tokens to a [`Unit`]: the grammar of modules, directives and functions.

use super::ParseError;
use super::ast::{Function, Place, RegId, Space, Type, Unit, Var, VarId};
use super::lexer::{Kind, Number, Token, number, tokens};
use std::collections::HashMap;

/// Most bytes one variable may have.
const MOST_BYTES: u64 = 1 << 31;

pub(super) type Parsed<T> = Result<T, ParseError>;

/// Names of one pair of braces.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) regs: HashMap<String, RegId>,
    pub(super) families: HashMap<String, (Type, u64)>,
    pub(super) vars: HashMap<String, VarId>,
    /// Index of the first statement inside.
    pub(super) first: usize,
}

pub(super) struct Parser<'a> {
    pub(super) list: Vec<Token<'a>>,
    pub(super) at: usize,
    lines: Vec<&'a str>,
    pub(super) unit: Unit,
    pub(super) scopes: Vec<Scope>,
    pub(super) function: Function,
    pub(super) place: Place,
    pub(super) serial: u32,
}

/// Reads a module's text.
pub(super) fn parse(text: &str) -> Parsed<Unit> {
    let mut parser = Parser {
        list: tokens(text)?,
        at: 0,
        lines: text.lines().collect(),
        unit: Unit::default(),
        scopes: vec![Scope::default()],
        function: Function::default(),
        place: Place::default(),
        serial: 0,
    };
    while parser.peek().kind != Kind::End {
        parser.top_level()?;
    }
    Ok(parser.unit)
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token<'a> {
        self.list[self.at.min(self.list.len() - 1)]
    }

    pub(super) fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Takes the mark if it comes next.
    pub(super) fn takes(&mut self, mark: u8) -> bool {
        let found = self.peek().kind == Kind::Mark(mark);
        self.at += usize::from(found);
        found
    }

    pub(super) fn takes_word(&mut self, word: &str) -> bool {
        let next = self.peek();
        let found = next.kind == Kind::Word && next.text == word;
        self.at += usize::from(found);
        found
    }

    pub(super) fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        let line = self.list[self.at.saturating_sub(1).min(self.list.len() - 1)].line;
        let text = self.lines.get(line.saturating_sub(1) as usize).unwrap_or(&"");
        Err(ParseError {
            line,
            instruction: text.trim().to_owned(),
            what: what.into(),
            source: super::source(&self.unit.files, self.place),
        })
    }

    pub(super) fn expect(&mut self, mark: u8) -> Parsed<()> {
        if self.takes(mark) {
            return Ok(());
        }
        let found = self.next();
        self.fail(format!("`{}` expected, `{}` found", char::from(mark), found.text))
    }

    pub(super) fn word(&mut self) -> Parsed<&'a str> {
        let token = self.next();
        match token.kind {
            Kind::Word => Ok(token.text),
            _ => self.fail(format!("a name expected, `{}` found", token.text)),
        }
    }

    pub(super) fn number(&mut self) -> Parsed<Number> {
        let token = self.next();
        match number(token.text).filter(|_| token.kind == Kind::Number) {
            Some(number) => Ok(number),
            None => self.fail(format!("a number expected, `{}` found", token.text)),
        }
    }

    /// An integer with an optional minus sign, in two's complement.
    pub(super) fn integer(&mut self) -> Parsed<u64> {
        let minus = self.takes(b'-');
        match self.number()? {
            Number::Int(n) if minus => Ok(n.wrapping_neg()),
            Number::Int(n) => Ok(n),
            _ => self.fail("an integer expected"),
        }
    }

    fn small(&mut self, most: u64) -> Parsed<u32> {
        match self.integer()? {
            n if n <= most => Ok(n as u32),
            n => self.fail(format!("{n} is more than the {most} that are supported")),
        }
    }

    /// Skips to the end of the statement or block that starts here.
    fn skip_statement(&mut self) {
        let mut depth = 0;
        loop {
            match self.next().kind {
                Kind::End => return,
                Kind::Mark(b'{') => depth += 1,
                Kind::Mark(b'}') if depth <= 1 => return,
                Kind::Mark(b'}') => depth -= 1,
                Kind::Mark(b';') if depth == 0 => return,
                _ => {}
            }
        }
    }

    /// Directives that may stand anywhere; says whether there was one.
    pub(super) fn anywhere(&mut self) -> Parsed<bool> {
        match self.peek().text {
            ".loc" => {
                self.at += 1;
                self.place.file = self.small(1 << 30)?;
                self.place.source_line = self.small(1 << 30)?;
                self.small(1 << 30)?;
                while self.takes(b',') {
                    match self.word()? {
                        "function_name" => {
                            self.word()?;
                            if self.takes(b'+') {
                                self.integer()?;
                            }
                        }
                        "inlined_at" => {
                            for _ in 0..3 {
                                self.integer()?;
                            }
                        }
                        other => return self.fail(format!("`{other}` after .loc is unknown")),
                    }
                }
            }
            ".file" => {
                self.at += 1;
                let n = self.small(1 << 30)?;
                let name = self.next().text.to_owned();
                self.unit.files.insert(n, name);
                while self.takes(b',') {
                    self.integer()?;
                }
            }
            ".section" => self.skip_statement(),
            ".pragma" => self.skip_statement(),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn top_level(&mut self) -> Parsed<()> {
        if self.anywhere()? || self.takes(b';') {
            return Ok(());
        }
        match self.peek().text {
            ".version" => {
                self.at += 1;
                self.number()?;
            }
            ".target" => {
                self.at += 1;
                self.word()?;
                while self.takes(b',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                self.at += 1;
                if self.integer()? != 64 {
                    return self.fail("only 64-bit addresses are supported");
                }
            }
            ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
            ".entry" | ".func" => self.function()?,
            _ => {
                let space = self.space()?;
                self.variables(space)?;
            }
        }
        Ok(())
    }

    pub(super) fn space(&mut self) -> Parsed<Space> {
        let found = self.word()?;
        Ok(match found {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" | ".shared::cta" => Space::Shared,
            ".local" => Space::Local,
            ".param" => Space::Frame,
            _ => return self.fail(format!("directive `{found}` is not supported")),
        })
    }

    /// Type words and alignment of a declaration: type, elements of a vector, alignment.
    pub(super) fn type_words(&mut self) -> Parsed<(Type, u32, u32)> {
        let (mut vector, mut align, mut ty) = (1, 0, None);
        while self.peek().kind == Kind::Word && self.peek().text.starts_with('.') {
            match self.word()? {
                ".align" => align = self.small(1 << 20)?,
                ".attribute" => self.skip_parens()?,
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                word => ty = Some(Type::named(&word[1..])),
            }
        }
        match ty {
            Some(Some(ty)) => Ok((ty, vector, align.max(ty.bytes().max(1) * vector))),
            _ => self.fail("a type expected"),
        }
    }

    fn skip_parens(&mut self) -> Parsed<()> {
        self.expect(b'(')?;
        while !self.takes(b')') {
            if self.next().kind == Kind::End {
                return self.fail("`)` expected");
            }
        }
        Ok(())
    }

    /// Declares one variable whose type was read; returns its number.
    fn variable(&mut self, space: Space, kind: (Type, u32, u32)) -> Parsed<VarId> {
        let (ty, vector, align) = kind;
        let name = self.word()?.to_owned();
        let (mut count, mut open) = (1u64, false);
        while self.takes(b'[') {
            if self.takes(b']') {
                open = true;
                continue;
            }
            count = count.saturating_mul(self.integer()?);
            self.expect(b']')?;
        }
        let bytes = count.saturating_mul(u64::from(ty.bytes() * vector));
        if bytes > MOST_BYTES {
            return self.fail(format!("`{name}` has {bytes} bytes"));
        }
        let mut var = Var {
            name: name.clone(),
            space,
            bytes: if open { 0 } else { bytes as u32 },
            align,
            open,
            init: Vec::new(),
            relocations: Vec::new(),
        };
        if self.takes(b'=') {
            self.initial(&mut var, ty)?;
        }
        let id = self.unit.vars.len() as VarId;
        self.unit.vars.push(var);
        if let Some(scope) = self.scopes.last_mut() {
            scope.vars.insert(name, id);
        }
        Ok(id)
    }

    pub(super) fn variables(&mut self, space: Space) -> Parsed<Vec<VarId>> {
        let kind = self.type_words()?;
        let mut made = vec![self.variable(space, kind)?];
        while self.takes(b',') {
            made.push(self.variable(space, kind)?);
        }
        self.expect(b';')?;
        Ok(made)
    }

    /// An initialiser, nested braces flattened.
    fn initial(&mut self, var: &mut Var, ty: Type) -> Parsed<()> {
        if self.takes(b'{') {
            while !self.takes(b'}') {
                self.initial(var, ty)?;
                self.takes(b',');
            }
            return Ok(());
        }
        let bytes = ty.bytes() as usize;
        if self.peek().kind == Kind::Word {
            let generic = self.takes_word("generic") && self.takes(b'(');
            let name = self.word()?;
            let add = if self.takes(b'+') { self.integer()? as i64 } else { 0 };
            if generic {
                self.expect(b')')?;
            }
            let Some(id) = self.find_var(name) else {
                return self.fail(format!("`{name}` as initialiser is not supported"));
            };
            if bytes != 8 {
                return self.fail("an address needs a 64-bit variable");
            }
            var.relocations.push((var.init.len() as u32, id, add));
            var.init.extend([0; 8]);
            return Ok(());
        }
        let minus = self.takes(b'-');
        let bits = match (self.number()?, ty) {
            (Number::Int(n), _) => {
                if minus {
                    n.wrapping_neg()
                } else {
                    n
                }
            }
            (Number::F32(bits), _) => u64::from(bits),
            (Number::F64(bits), Type::F32) => u64::from((f64::from_bits(bits) as f32).to_bits()),
            (Number::F64(bits), _) => bits,
        };
        var.init.extend(&bits.to_le_bytes()[..bytes.min(8)]);
        Ok(())
    }

    pub(super) fn find_var(&self, name: &str) -> Option<VarId> {
        self.scopes.iter().rev().find_map(|s| s.vars.get(name).copied())
    }

    fn parameters(&mut self, space: Space) -> Parsed<Vec<VarId>> {
        let mut made = Vec::new();
        if !self.takes(b'(') {
            return Ok(made);
        }
        while !self.takes(b')') {
            let word = self.word()?;
            if word != ".param" {
                return self.fail(format!("parameters in `{word}` are not supported"));
            }
            let kind = self.type_words()?;
            made.push(self.variable(space, kind)?);
            self.takes(b',');
        }
        Ok(made)
    }

    fn function(&mut self) -> Parsed<()> {
        let entry = self.word()? == ".entry";
        let line = self.peek().line;
        self.scopes.push(Scope::default());
        let rets = self.parameters(Space::Frame)?;
        let name = self.word()?.to_owned();
        let params = self.parameters(if entry { Space::Param } else { Space::Frame })?;
        self.function = Function { name, entry, rets, params, line, ..Function::default() };
        loop {
            if self.takes(b';') {
                break;
            }
            if self.takes(b'{') {
                self.function.has_body = true;
                self.body()?;
                break;
            }
            if !self.anywhere()? {
                self.tuning()?;
            }
        }
        self.scopes.truncate(1);
        self.place = Place::default();
        let done = std::mem::take(&mut self.function);
        self.unit.functions.retain(|f| f.name != done.name || f.has_body);
        self.unit.functions.push(done);
        Ok(())
    }

    /// A performance directive of a kernel.
    fn tuning(&mut self) -> Parsed<()> {
        let word = self.word()?;
        let mut values = Vec::new();
        while self.peek().kind == Kind::Number {
            values.push(self.integer()?);
            self.takes(b',');
        }
        match word {
            ".maxntid" | ".reqntid" => {
                let threads = values.iter().fold(1u64, |a, &b| a.saturating_mul(b));
                self.function.max_threads = Some(threads.min(1024) as u32);
            }
            ".minnctapersm" | ".maxnreg" | ".maxnctapersm" | ".noreturn" | ".unique" => {}
            _ => return self.fail(format!("directive `{word}` is not supported")),
        }
        Ok(())
    }
}
