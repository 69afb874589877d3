//! The modifiers of an opcode. Each must be asked for; one that nobody asked for is unknown, and
//! an unknown modifier refuses the module.

use super::Refused;
use crate::exec::code::{Mode, Round};
use crate::ptx::ast::Type;

pub(super) struct Mods<'a> {
    words: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub(super) fn new(op: &'a [String]) -> Self {
        Self { words: op.iter().skip(1).map(String::as_str).collect() }
    }

    /// Takes a modifier if it is there.
    pub(super) fn takes(&mut self, word: &str) -> bool {
        let found = self.words.iter().position(|w| *w == word);
        if let Some(at) = found {
            self.words.remove(at);
        }
        found.is_some()
    }

    /// Whether a modifier is there.
    pub(super) fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// Takes the first of several modifiers that is there.
    pub(super) fn any(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().copied().find(|w| self.takes(w))
    }

    /// Takes the next type.
    pub(super) fn ty(&mut self) -> Refused<Type> {
        self.maybe_ty().ok_or_else(|| "a type is missing".to_owned())
    }

    pub(super) fn maybe_ty(&mut self) -> Option<Type> {
        let at = self.words.iter().position(|w| Type::named(w).is_some())?;
        Type::named(self.words.remove(at))
    }

    /// The next type, left in place.
    pub(super) fn peek_ty(&self) -> Option<Type> {
        self.words.iter().find_map(|w| Type::named(w))
    }

    /// Takes every modifier for which `what` holds.
    pub(super) fn drop_all(&mut self, what: impl Fn(&str) -> bool) {
        self.words.retain(|w| !what(w));
    }

    /// Takes the next word whatever it is.
    pub(super) fn next(&mut self) -> Option<&'a str> {
        if self.words.is_empty() { None } else { Some(self.words.remove(0)) }
    }

    /// Takes rounding, flushing and saturation.
    pub(super) fn mode(&mut self) -> Mode {
        let round = match self.any(&["rn", "rz", "rm", "rp", "rna"]) {
            Some("rz") => Round::Zero,
            Some("rm") => Round::Down,
            Some("rp") => Round::Up,
            Some("rna") => Round::Away,
            _ => Round::Near,
        };
        let (ftz, sat, relu) = (self.takes("ftz"), self.takes("sat"), self.takes("relu"));
        Mode { round, ftz, sat, relu }
    }

    /// Refuses what is left over.
    pub(super) fn done(&self) -> Refused<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!("modifier `.{word}` is not supported here")),
        }
    }
}
