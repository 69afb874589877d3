//! Formulas of extents, floors and slacks: whole numbers, names, `+ - * / ( )`, `ceil(a, b)`,
//! `min(a, b)` and `max(a, b)`.
//!
//! They become Rust over `i128` that saturates, so that no size can overflow a check.

use crate::error::Fault;

/// Parentheses and calls inside each other; far above what a person writes.
const DEPTH: usize = 32;

const FORM: &str = "a formula has whole numbers, names of integer parameters, + - * / ( ), \
                    ceil(a, b), min(a, b) and max(a, b), as in 2*rows*cols*s";

/// A formula.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formula {
    /// A whole number.
    Number(u64),
    /// The value of a parameter.
    Name(String),
    /// Two formulas joined by one of `+ - * /`; division rounds towards zero.
    Binary(char, Box<Formula>, Box<Formula>),
    /// `ceil`, `min` or `max` of two formulas; `ceil(a, b)` is a / b rounded up.
    Call(&'static str, Box<Formula>, Box<Formula>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Number(u64),
    Word(String),
    Sign(char),
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Formula {
    /// Reads a whole formula.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let mut reader = Reader { tokens: tokens(text)?, at: 0, depth: 0 };
        let formula = reader.sum(text)?;
        match reader.tokens.get(reader.at) {
            None => Ok(formula),
            Some(_) => Err(Fault::new(format!("cannot read the formula `{}`", text.trim()), FORM)),
        }
    }

    /// Adds the names it uses to `names`, each once.
    pub(crate) fn names(&self, names: &mut Vec<String>) {
        match self {
            Self::Number(_) => {}
            Self::Name(name) if names.contains(name) => {}
            Self::Name(name) => names.push(name.clone()),
            Self::Binary(_, a, b) | Self::Call(_, a, b) => {
                a.names(names);
                b.names(names);
            }
        }
    }

    /// The formula as Rust; each name is an `i128` in scope there, but for `constants`, which are
    /// constants of a smaller type.
    pub(crate) fn rust(&self, constants: &[&str]) -> String {
        match self {
            Self::Number(n) => format!("{n}_i128"),
            Self::Name(name) if constants.contains(&name.as_str()) => format!("({name} as i128)"),
            Self::Name(name) => name.clone(),
            Self::Binary(sign, a, b) => {
                let (a, b) = (a.rust(constants), b.rust(constants));
                match sign {
                    '+' => format!("{a}.saturating_add({b})"),
                    '-' => format!("{a}.saturating_sub({b})"),
                    '*' => format!("{a}.saturating_mul({b})"),
                    _ => format!("{a}.checked_div({b}).unwrap_or(0)"),
                }
            }
            Self::Call("ceil", a, b) => {
                let (a, b) = (a.rust(constants), b.rust(constants));
                format!("{a}.saturating_add({b}).saturating_sub(1).checked_div({b}).unwrap_or(0)")
            }
            Self::Call(name, a, b) => {
                format!("{}.{name}({})", a.rust(constants), b.rust(constants))
            }
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        let word = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut word = String::new();
            while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                word.push(c);
            }
            word
        };
        if c.is_ascii_digit() {
            let digits = word(&mut chars);
            let number = digits.parse().map_err(|_| {
                Fault::new(format!("`{digits}` in a formula is no whole number"), FORM)
            })?;
            tokens.push(Token::Number(number));
        } else if c.is_ascii_alphabetic() || c == '_' {
            tokens.push(Token::Word(word(&mut chars)));
        } else if "+-*/(),".contains(c) {
            tokens.push(Token::Sign(c));
            chars.next();
        } else if c.is_whitespace() {
            chars.next();
        } else {
            return Err(Fault::new(format!("`{c}` does not belong in a formula"), FORM));
        }
    }
    Ok(tokens)
}

impl Reader {
    fn take(&mut self, sign: char) -> bool {
        let found = self.tokens.get(self.at) == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn sum(&mut self, text: &str) -> Result<Formula, Fault> {
        self.chain(text, ['+', '-'], Self::product)
    }

    fn product(&mut self, text: &str) -> Result<Formula, Fault> {
        self.chain(text, ['*', '/'], Self::atom)
    }

    fn chain(
        &mut self,
        text: &str,
        signs: [char; 2],
        next: fn(&mut Self, &str) -> Result<Formula, Fault>,
    ) -> Result<Formula, Fault> {
        let mut left = next(self, text)?;
        while let Some(sign) = signs.into_iter().find(|&s| self.take(s)) {
            left = Formula::Binary(sign, Box::new(left), Box::new(next(self, text)?));
        }
        Ok(left)
    }

    fn atom(&mut self, text: &str) -> Result<Formula, Fault> {
        let bad = || Fault::new(format!("cannot read the formula `{}`", text.trim()), FORM);
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        match token {
            Some(Token::Number(n)) => Ok(Formula::Number(n)),
            Some(Token::Word(word)) if self.take('(') => {
                let known = ["ceil", "min", "max"].into_iter().find(|k| *k == word);
                let name = known.ok_or_else(|| {
                    Fault::new(format!("`{word}` is no function of formulas"), FORM)
                })?;
                let a = self.inner(text, ',')?;
                let b = self.inner(text, ')')?;
                Ok(Formula::Call(name, Box::new(a), Box::new(b)))
            }
            Some(Token::Word(word)) => Ok(Formula::Name(word)),
            Some(Token::Sign('(')) => self.inner(text, ')'),
            _ => Err(bad()),
        }
    }

    /// A formula that ends in `end`.
    fn inner(&mut self, text: &str, end: char) -> Result<Formula, Fault> {
        self.depth += 1;
        let inner = match self.depth {
            0..=DEPTH => self.sum(text)?,
            _ => return Err(Fault::new(format!("parentheses lie over {DEPTH} deep"), FORM)),
        };
        self.depth -= 1;
        match self.take(end) {
            true => Ok(inner),
            false => Err(Fault::new(format!("`{}` lacks a `{end}`", text.trim()), FORM)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_bind_before_sums_and_both_from_the_left() {
        let rust = |text| Formula::parse(text).unwrap().rust(&["N"]);
        assert_eq!(rust("8 - n*s"), "8_i128.saturating_sub(n.saturating_mul(s))");
        assert_eq!(rust("a-b-c"), "a.saturating_sub(b).saturating_sub(c)");
        assert_eq!(rust("(a+b)/2"), "a.saturating_add(b).checked_div(2_i128).unwrap_or(0)");
        assert_eq!(rust("max(a, 1)"), "a.max(1_i128)");
        assert_eq!(rust("N-n"), "(N as i128).saturating_sub(n)");
        let mut names = Vec::new();
        Formula::parse("ceil(n, 4) * rows + n").unwrap().names(&mut names);
        assert_eq!(names, ["n", "rows"]);
    }

    #[test]
    fn what_is_no_formula_is_refused_with_a_reason() {
        let what = |text: &str| Formula::parse(text).unwrap_err().what;
        assert_eq!(what("2 rows"), "cannot read the formula `2 rows`");
        assert_eq!(what(""), "cannot read the formula ``");
        assert_eq!(what("2*"), "cannot read the formula `2*`");
        assert_eq!(what("1.5*n"), "`.` does not belong in a formula");
        assert_eq!(what("4k*n"), "`4k` in a formula is no whole number");
        assert_eq!(what("sqrt(n)"), "`sqrt` is no function of formulas");
        assert_eq!(what("ceil(n)"), "`ceil(n)` lacks a `,`");
        assert_eq!(what("(n"), "`(n` lacks a `)`");
        assert_eq!(what(&"(".repeat(100_000)), "parentheses lie over 32 deep");
    }
}
