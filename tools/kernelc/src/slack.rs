//! Slack: by what factor counted bytes and operations may exceed the floor.
//!
//! `1.02 for cols <= 4096; 1.55 beyond (second read)`: cases from left to right, the last without a
//! condition. Parentheses at the end of a case explain it.

use crate::error::Fault;
use crate::formula::Formula;

/// What holds where a card says nothing.
pub const DEFAULT: f64 = 1.05;

const FORM: &str = "a slack reads `1.02`, or `1.02 for cols <= 4096; 1.55 beyond (why)`, with \
                    factors of at least 1 and comparisons <= < >= > joined by `and`";

const SIGNS: [&str; 4] = ["<=", ">=", "<", ">"];

/// One comparison of a condition.
#[derive(Clone, Debug, PartialEq)]
struct Comparison {
    left: Formula,
    sign: &'static str,
    right: Formula,
}

/// The factor, by case.
#[derive(Clone, Debug, PartialEq)]
pub struct Slack {
    cases: Vec<(f64, Vec<Comparison>)>,
    rest: f64,
}

impl Default for Slack {
    fn default() -> Self {
        Self { cases: Vec::new(), rest: DEFAULT }
    }
}

impl Slack {
    /// Reads what follows `slack` in a card.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let mut slack = Self::default();
        let parts: Vec<&str> = text.split(';').collect();
        for (i, part) in parts.iter().enumerate() {
            let (factor, conditions) = case(part)?;
            match conditions {
                Some(conditions) => slack.cases.push((factor, conditions)),
                None if i + 1 == parts.len() => slack.rest = factor,
                None => {
                    let what = format!("`{}` holds always, yet more follows", part.trim());
                    return Err(Fault::new(what, FORM));
                }
            }
        }
        Ok(slack)
    }

    /// Adds the names it uses to `names`, each once.
    pub(crate) fn names(&self, names: &mut Vec<String>) {
        for c in self.cases.iter().flat_map(|(_, conditions)| conditions) {
            c.left.names(names);
            c.right.names(names);
        }
    }

    /// The factor as a Rust expression.
    pub(crate) fn rust(&self) -> String {
        let mut rust = String::new();
        for (factor, conditions) in &self.cases {
            let all: Vec<String> = conditions
                .iter()
                .map(|c| format!("{} {} {}", c.left.rust(&[]), c.sign, c.right.rust(&[])))
                .collect();
            rust += &format!("if {} {{ {factor:?} }} else ", all.join(" && "));
        }
        if rust.is_empty() {
            return format!("{:?}", self.rest);
        }
        format!("{rust}{{ {:?} }}", self.rest)
    }
}

/// One case: its factor, and its conditions unless it holds always.
fn case(text: &str) -> Result<(f64, Option<Vec<Comparison>>), Fault> {
    let trimmed = text.trim();
    let text = match trimmed.rfind(" (") {
        Some(at) if trimmed.ends_with(')') => trimmed[..at].trim(),
        _ => trimmed,
    };
    let (number, rest) = text.split_once(' ').unwrap_or((text, ""));
    let factor: f64 = number
        .parse()
        .ok()
        .filter(|f: &f64| f.is_finite() && *f >= 1.0)
        .ok_or_else(|| Fault::new(format!("`{number}` is no slack"), FORM))?;
    match rest.trim() {
        "" | "beyond" => Ok((factor, None)),
        rest => match rest.strip_prefix("for ") {
            Some(conditions) => {
                let all: Result<_, _> = conditions.split(" and ").map(comparison).collect();
                Ok((factor, Some(all?)))
            }
            None => Err(Fault::new(format!("cannot read `{rest}` after the slack"), FORM)),
        },
    }
}

fn comparison(text: &str) -> Result<Comparison, Fault> {
    let found = SIGNS.iter().find_map(|&sign| Some((sign, text.split_once(sign)?)));
    let Some((sign, (left, right))) = found else {
        return Err(Fault::new(format!("`{}` compares nothing", text.trim()), FORM));
    };
    Ok(Comparison { left: Formula::parse(left)?, sign, right: Formula::parse(right)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_become_a_chain_of_conditions() {
        let rust = |text| Slack::parse(text).unwrap().rust();
        assert_eq!(rust("1.02"), "1.02");
        assert_eq!(
            rust("1.02 for cols <= 4096 and rows > 1; 1.55 beyond (second read)"),
            "if cols <= 4096_i128 && rows > 1_i128 { 1.02 } else { 1.55 }"
        );
        assert_eq!(rust("2 for n < 8"), "if n < 8_i128 { 2.0 } else { 1.05 }");
        assert_eq!(Slack::default().rust(), "1.05");
    }

    #[test]
    fn what_is_no_slack_is_refused_with_a_reason() {
        let what = |text: &str| Slack::parse(text).unwrap_err().what;
        assert_eq!(what("some"), "`some` is no slack");
        assert_eq!(what("0.9"), "`0.9` is no slack");
        assert_eq!(what("1.1; 1.2"), "`1.1` holds always, yet more follows");
        assert_eq!(what("1.1 for cols"), "`cols` compares nothing");
        assert_eq!(what("1.1 where n"), "cannot read `where n` after the slack");
    }
}
