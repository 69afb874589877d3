//! Every op of the table, every case, every check, each a test of its own: `op/case/check`.
//!
//! `op/drawn` runs the checks on random shapes: proptest draws and shrinks the words behind them,
//! and a failure is kept in tests/regressions/OP.txt and replayed. The draws are the same in every
//! run; PROPTEST_RNG_SEED gives others, PROPTEST_CASES more. `planted/...` are tests of the checks
//! themselves, `table/...` of the table.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/mod.rs"]
mod support;

use std::cell::Cell;
use std::process::ExitCode;

use genevar::ops::{
    CHECKS, COMPOSED_CHECKS, CUDA_CHECKS, Case, Diff, Draw, DynOp, OPS, RULE_CHECKS, Row,
};
use libtest_mimic::{Arguments, Trial};
use proptest::collection::vec;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner,
};

use support::data::{fill, seed};
use support::faces::Verdict;
use support::inputs::Inputs;
use support::planted::{Fault, NOTICED, notices, planted};
use support::{composed, coverage, derivative, floor, special, value};

type Check = fn(&dyn DynOp, &Inputs) -> Verdict;

/// Checks of the faces of every case, at f32 and where there are such kernels at bf16.
const FACES: &[(&str, Check)] = &[
    ("value", value::value),
    ("guards", value::guards),
    ("repeat", value::repeat),
    ("floor", floor::floor),
    ("special", special::special),
    ("sizes", special::sizes),
];
/// Checks of what every case refuses.
const EDGES: &[(&str, Check)] = &[("refuses", special::refuses)];
/// Further checks of ops with derivative rules.
const RULES: &[(&str, Check)] = &[("jvp", derivative::jvp), ("adjoint", derivative::adjoint)];

/// Checks of ops that spare the passes of others.
const COMPOSED: &[(&str, Check)] = &[("composed", composed::composed)];

/// Random cases of an op, unless PROPTEST_CASES says otherwise.
const DRAWS: u32 = 24;
/// Words behind a random case; what an op draws beyond them is zero.
const WORDS: usize = 16;

fn checks(op: &dyn DynOp) -> impl Iterator<Item = &'static (&'static str, Check)> + use<> {
    let rules: &[_] = if op.diff() == Diff::Yes { RULES } else { &[] };
    let composed: &[_] = if op.has_composed() { COMPOSED } else { &[] };
    FACES.iter().chain(EDGES).chain(rules).chain(composed)
}

fn check_case(op: &'static str, case: &Case, check: &(&str, Check)) -> Verdict {
    let data = fill(&*case.op, &case.inputs, seed(&format!("{op}/{}", case.name)));
    let data = Inputs::f32(data);
    check.1(&*case.op, &data)?;
    match data.bf16(&*case.op) {
        Some(half) if FACES.iter().any(|face| face.0 == check.0) => {
            check.1(&*case.op, &half).map_err(|e| format!("at bf16: {e}"))
        }
        _ => Ok(()),
    }
}

/// One test for each check of each named case.
fn named(row: &'static Row) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (i, case) in (row.cases)().named.iter().enumerate() {
        for check in checks(&*case.op) {
            let name = check.0;
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
    let file = format!("{}/tests/regressions/{}.txt", env!("CARGO_MANIFEST_DIR"), row.name);
    let draw = (row.cases)().draw;
    let property = |words: Vec<u32>| {
        let case = draw(&mut Draw::new(&words));
        let sizes: Vec<String> = case.inputs.iter().map(|i| i.shape.to_string()).collect();
        for check in checks(&*case.op) {
            check_case(row.name, &case, check).map_err(|e| {
                TestCaseError::fail(format!("{} on {}: {e}", check.0, sizes.join(", ")))
            })?;
        }
        Ok(())
    };
    match hunt(row.name, file, property) {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, words)) => Err(format!("{why}; words {words:?}")),
        Err(TestError::Abort(why)) => Err(format!("gave up: {why}")),
    }
}

/// Runs a property of drawn words; failures are kept in `file` and tried first the next time.
fn hunt(
    name: &str,
    file: String,
    property: impl Fn(Vec<u32>) -> Result<(), TestCaseError>,
) -> Result<(), TestError<Vec<u32>>> {
    let given = Config::default();
    let set = |variable| std::env::var_os(variable).is_some();
    let config = Config {
        cases: if set("PROPTEST_CASES") { given.cases } else { DRAWS },
        rng_seed: match set("PROPTEST_RNG_SEED") {
            true => given.rng_seed,
            false => RngSeed::Fixed(seed(name)),
        },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file.leak()))),
        // Enough to halve every word to its least.
        max_shrink_iters: 1024,
        ..given
    };
    TestRunner::new(config).run(&vec(0u32..1 << 16, WORDS), property)
}

/// A fault of extents above 5 is shrunk to a case of extent 6, and the next run meets it at once.
fn shrinking() -> Verdict {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = || dir.path().join("planted.txt").to_string_lossy().into_owned();
    let fails = |words: Vec<u32>| match Draw::new(&words).size(1, 40) {
        n if n > 5 => Err(TestCaseError::fail(format!("extent {n}"))),
        _ => Ok(()),
    };
    match hunt("planted", file(), fails) {
        Err(TestError::Fail(why, words)) if why.message() == "extent 6" && words[0] == 5 => {}
        other => return Err(format!("wanted a failure at extent 6, found {other:?}")),
    }
    let calls = Cell::new(0);
    let at_once = Cell::new(false);
    let replayed = hunt("another seed", file(), |words: Vec<u32>| {
        let verdict = fails(words);
        at_once.set(at_once.get() || calls.get() == 0 && verdict.is_err());
        calls.set(calls.get() + 1);
        verdict
    });
    match (replayed, at_once.get()) {
        (Err(_), true) => Ok(()),
        (other, _) => Err(format!("the stored failure was not tried first: {other:?}")),
    }
}

/// The sound op passes every check, and each planted fault is noticed.
fn faults() -> Vec<Trial> {
    let all = || FACES.iter().chain(EDGES).chain(RULES).chain(COMPOSED);
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
    let shrunk = Trial::test("planted/shrinking", || shrinking().map_err(Into::into));
    let cards = floor::PLANTED.iter().map(|plant| {
        Trial::test(format!("planted/{}/floor", plant.0), || {
            floor::notices(plant).map_err(Into::into)
        })
    });
    sound.chain(noticed).chain([shrunk]).chain(cards).collect()
}

/// The op table names the checks that are run.
fn told() -> Verdict {
    let names = |checks: &[(&'static str, Check)]| checks.iter().map(|c| c.0).collect::<Vec<_>>();
    let mut run = [names(FACES), names(EDGES)].concat();
    let mut told = [&CHECKS[..], &CUDA_CHECKS].concat();
    run.sort_unstable();
    told.sort_unstable();
    let further = names(RULES) == RULE_CHECKS && names(COMPOSED) == COMPOSED_CHECKS;
    match run == told && further {
        true => Ok(()),
        false => Err(format!("the table names {told:?} and {RULE_CHECKS:?}")),
    }
}

fn main() -> ExitCode {
    // Panics are part of what is tested; those that count come back as the message of a failed
    // test.
    std::panic::set_hook(Box::new(|_| {}));
    let mut trials = faults();
    for &(name, check) in coverage::CHECKS {
        trials.push(Trial::test(format!("table/{name}"), move || check().map_err(Into::into)));
    }
    trials.push(Trial::test("table/checks", || told().map_err(Into::into)));
    for row in OPS {
        trials.extend(named(row));
        let test = move || drawn(row).map_err(Into::into);
        trials.push(Trial::test(format!("{}/drawn", row.name), test));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
