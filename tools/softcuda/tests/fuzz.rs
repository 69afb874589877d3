//! The parser of PTX on text that is cut, bent or shuffled: a module or an error that names a line,
//! never a panic, and memory in bounds. `PROPTEST_CASES` says how many texts (default 256).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "../../../tests/support/bend.rs"]
mod bend;

use std::sync::OnceLock;

use bend::{bend, bent, memory_is_in_bounds};
use proptest::prelude::*;
use softcuda::exec::Program;
use softcuda::mem::Memory;
use softcuda::ptx::Module;

/// The texts of `ptx/`, which have every instruction.
fn texts() -> &'static [String] {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ptx");
        let mut paths: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    })
}

/// Numbers that a text may not expect.
const NUMBERS: [&str; 8] =
    ["0", "-1", "4294967296", "18446744073709551615", "99999999999999999999", "0x", "0d", "1e9"];

/// Parses it, and loads what was parsed.
fn read(text: &str) -> Result<(), TestCaseError> {
    match Module::parse(text) {
        Ok(module) => drop(Program::load(&module, &Memory::new(1 << 20))),
        Err(e) => prop_assert!(!e.to_string().is_empty()),
    }
    memory_is_in_bounds()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bent_text_is_answered(
        which in any::<prop::sample::Index>(),
        bends in prop::collection::vec(bend(), 1..6),
    ) {
        let good = which.get(texts());
        read(&String::from_utf8_lossy(&bent(good.as_bytes(), &bends)))?;
    }

    #[test]
    fn shuffled_lines_are_answered(
        which in any::<prop::sample::Index>(),
        moves in prop::collection::vec((any::<prop::sample::Index>(), 0..4usize), 1..8),
    ) {
        let mut lines: Vec<&str> = which.get(texts()).lines().collect();
        for (at, how) in moves {
            if lines.is_empty() {
                break;
            }
            let i = at.index(lines.len());
            match how {
                0 => drop(lines.remove(i)),
                1 => lines.insert(i, lines[i]),
                2 => lines.swap(i, 0),
                _ => lines.truncate(i),
            }
        }
        read(&lines.join("\n"))?;
    }

    #[test]
    fn odd_numbers_are_answered(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        number in prop::sample::select(NUMBERS.to_vec()),
    ) {
        let good = which.get(texts());
        let is_digit = |c: char| c.is_ascii_digit();
        let begins = |i: &usize| !good[..*i].ends_with(is_digit);
        let digits = good.match_indices(is_digit).map(|(i, _)| i);
        let digits: Vec<usize> = digits.filter(begins).collect();
        if !digits.is_empty() {
            let first = digits[at.index(digits.len())];
            let len = good[first..].bytes().take_while(u8::is_ascii_digit).count();
            read(&format!("{}{number}{}", &good[..first], &good[first + len..]))?;
        }
    }
}
