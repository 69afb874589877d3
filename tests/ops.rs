//! Every op of the table, every case, every check, each a test of its own: `op/case/check`.
//!
//! `op/drawn` runs the checks on random shapes: proptest draws and shrinks the words behind them,
//! and a failure is kept in tests/regressions/OP.txt and replayed. The draws are the same in every
//! run; PROPTEST_RNG_SEED gives others, PROPTEST_CASES more. `planted/...` are tests of the checks
//! themselves, `table/...` of the table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/mod.rs"]
mod support;

use std::process::ExitCode;

use genevar::ops::{Case, Diff, Draw, DynOp, OPS, Row};
use libtest_mimic::{Arguments, Trial};
use proptest::collection::vec;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner,
};

use support::data::{Data, fill, seed};
use support::faces::Verdict;
use support::planted::{Fault, NOTICED, notices, planted};
use support::{coverage, derivative, special, value};

type Check = fn(&dyn DynOp, &[Data]) -> Verdict;

/// Checks of every case.
const CHECKS: &[(&str, Check)] = &[
    ("value", value::value),
    ("guards", value::guards),
    ("repeat", value::repeat),
    ("special", special::special),
    ("sizes", special::sizes),
    ("refuses", special::refuses),
];
/// Further checks of ops with derivative rules.
const RULES: &[(&str, Check)] = &[("jvp", derivative::jvp), ("adjoint", derivative::adjoint)];

/// Random cases of an op, unless PROPTEST_CASES says otherwise.
const DRAWS: u32 = 24;
/// Words behind a random case; what an op draws beyond them is zero.
const WORDS: usize = 16;

fn checks(op: &dyn DynOp) -> impl Iterator<Item = &'static (&'static str, Check)> + use<> {
    let rules: &[_] = if op.diff() == Diff::Yes { RULES } else { &[] };
    CHECKS.iter().chain(rules)
}

fn check_case(op: &'static str, case: &Case, check: Check) -> Verdict {
    let data = fill(&*case.op, &case.inputs, seed(&format!("{op}/{}", case.name)));
    check(&*case.op, &data)
}

/// One test for each check of each named case.
fn named(row: &'static Row) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (i, case) in (row.cases)().named.iter().enumerate() {
        for &(name, check) in checks(&*case.op) {
            trials.push(Trial::test(format!("{}/{}/{name}", row.name, case.name), move || {
                let case = (row.cases)().named.swap_remove(i);
                check_case(row.name, &case, check).map_err(Into::into)
            }));
        }
    }
    trials
}

/// All checks on random shapes.
fn drawn(row: &'static Row) -> Verdict {
    let mut config = Config { cases: DRAWS, rng_seed: RngSeed::Fixed(seed(row.name)), ..cheap() };
    let given = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config.cases = given.cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_some() {
        config.rng_seed = given.rng_seed;
    }
    let file = format!("{}/tests/regressions/{}.txt", env!("CARGO_MANIFEST_DIR"), row.name);
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(file.leak())));
    let draw = (row.cases)().draw;
    let property = |words: Vec<u32>| {
        let case = draw(&mut Draw::new(&words));
        let sizes: Vec<String> = case.inputs.iter().map(|i| i.shape.to_string()).collect();
        for (name, check) in checks(&*case.op) {
            check_case(row.name, &case, *check)
                .map_err(|e| TestCaseError::fail(format!("{name} on {}: {e}", sizes.join(", "))))?;
        }
        Ok(())
    };
    match TestRunner::new(config).run(&vec(0u32..1 << 16, WORDS), property) {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, words)) => Err(format!("{why}; words {words:?}")),
        Err(TestError::Abort(why)) => Err(format!("gave up: {why}")),
    }
}

/// Shrinking stops after this many steps: a small failing shape is wanted, not the smallest.
fn cheap() -> Config {
    Config { max_shrink_iters: 400, ..Config::default() }
}

/// The sound op passes every check, and each planted fault is noticed.
fn faults() -> Vec<Trial> {
    let all = || CHECKS.iter().chain(RULES);
    let sound = all().map(|&(name, check)| {
        Trial::test(format!("planted/sound/{name}"), move || {
            let (op, data) = planted(Fault::Sound);
            check(&op, &data).map_err(Into::into)
        })
    });
    let noticed = NOTICED.iter().map(move |&(fault, name, word)| {
        Trial::test(format!("planted/{fault:?}/{name}"), move || {
            let (_, check) = all().find(|(n, _)| *n == name).ok_or("no such check")?;
            notices(*check, (fault, word)).map_err(Into::into)
        })
    });
    sound.chain(noticed).collect()
}

fn main() -> ExitCode {
    // Panics are part of what is tested; those that count come back as the message of a failed
    // test.
    std::panic::set_hook(Box::new(|_| {}));
    let mut trials = faults();
    for &(name, check) in coverage::CHECKS {
        trials.push(Trial::test(format!("table/{name}"), move || check().map_err(Into::into)));
    }
    for row in OPS {
        trials.extend(named(row));
        let test = move || drawn(row).map_err(Into::into);
        trials.push(Trial::test(format!("{}/drawn", row.name), test));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
