//! An op with a fault to choose, and which check must notice: tests that cannot fail are worth
//! nothing.
//!
//! The sound op is y = a tanh(b), with rules made of other ops.

use std::sync::atomic::{AtomicU32, Ordering};

use genevar::Result;
use genevar::ops::activation::{Tanh, TanhVjp};
use genevar::ops::composed::Composed;
use genevar::ops::elementwise::{ADD, Affine, Mul};
use genevar::ops::kinds::same_shape;
use genevar::ops::{
    Case, Cases, CpuFace, DynOp, Grads, In, Input, Op, Out, Real, Saved, Saves, call,
};
use genevar::tensor::{DType, Shape, Tensor};

use super::data::{fill, seed};
use super::faces::Verdict;
use super::inputs::Inputs;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Sound,
    WrongDigit,
    WrongDigitInReference,
    IllConditioned,
    LastElementMissing,
    AddsToItsOutput,
    CountsItsRuns,
    CountsThreads,
    LosesNan,
    PanicsOnEmpty,
    PanicsOnRank,
    AcceptsAnyShape,
    JvpFactor,
    JvpDropsATerm,
    JvpRefusesPartialTangents,
    VjpFactor,
    VjpSwapped,
    VjpLooksAtUndeclared,
    VjpIgnoresWant,
    VjpWrongShape,
    RuleOnlyInF64,
    ComposedFactor,
    ComposedElsewhere,
}

/// Each fault, the check that must notice, and a word its message must hold.
pub const NOTICED: &[(Fault, &str, &str)] = &[
    (Fault::WrongDigit, "value", "cpu face"),
    (Fault::WrongDigitInReference, "value", "reference in f32"),
    (Fault::IllConditioned, "value", "change the case"),
    (Fault::LastElementMissing, "guards", "not written"),
    (Fault::AddsToItsOutput, "guards", "not written"),
    (Fault::CountsItsRuns, "repeat", "run to run"),
    (Fault::CountsThreads, "repeat", "one thread"),
    (Fault::LosesNan, "special", "NaN"),
    (Fault::PanicsOnEmpty, "sizes", "panicked"),
    (Fault::PanicsOnRank, "refuses", "panicked"),
    (Fault::AcceptsAnyShape, "refuses", "every combination"),
    (Fault::JvpFactor, "jvp", "wanted"),
    (Fault::JvpDropsATerm, "jvp", "inputs 0, 1"),
    (Fault::JvpRefusesPartialTangents, "jvp", "inputs 0:"),
    (Fault::VjpFactor, "adjoint", "input 1"),
    (Fault::VjpSwapped, "adjoint", "input 0"),
    (Fault::VjpLooksAtUndeclared, "adjoint", "SAVES"),
    (Fault::VjpIgnoresWant, "adjoint", "nobody wants"),
    (Fault::VjpWrongShape, "adjoint", "wanted F64"),
    (Fault::RuleOnlyInF64, "jvp", "at f32"),
    (Fault::ComposedFactor, "composed", "of the other ops"),
    (Fault::ComposedElsewhere, "composed", "elements, not"),
];

static RUNS: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Debug)]
pub struct Planted(pub Fault);

fn times(x: &Tensor, scale: f64) -> Result<Tensor> {
    call(&Affine { scale, shift: 0.0 }, &[x])
}

impl Planted {
    fn cpu(&self, x: &[In<'_, f32>], out: &mut [Out<'_, f32>]) {
        let y = out[0].r();
        for (i, y) in y.iter_mut().enumerate() {
            let old = *y;
            *y = x[0].r()[i] * Real::tanh(x[1].r()[i]);
            match self.0 {
                Fault::WrongDigit => *y *= 1.0 + 1e-5,
                Fault::LosesNan if y.is_nan() => *y = 0.0,
                Fault::AddsToItsOutput => *y += old,
                Fault::LastElementMissing if i + 1 == x[0].r().len() => *y = old,
                _ => {}
            }
        }
        let flip = match self.0 {
            Fault::CountsItsRuns => RUNS.fetch_add(1, Ordering::Relaxed) & 1 == 1,
            Fault::CountsThreads => rayon::current_num_threads() == 1,
            _ => false,
        };
        if let (true, Some(y)) = (flip, y.first_mut()) {
            *y = f32::from_bits(y.to_bits() ^ 1);
        }
        assert!(self.0 != Fault::PanicsOnEmpty || !y.is_empty(), "planted");
    }
}

impl Op for Planted {
    const NAME: &'static str = "planted";
    const INPUTS: std::ops::RangeInclusive<usize> = 2..=2;
    const SAVES: Saves = Saves::inputs(&[0, 1]);
    const COMPOSED: Option<Composed<Self>> = Some(|op, x| {
        let y = call(&Mul, &[x[0], &call(&Tanh, &x[1..])?])?;
        let y = match op.0 {
            Fault::ComposedFactor => times(&y, 1.0 + 1e-12)?,
            Fault::ComposedElsewhere => Tensor::zeros(DType::F64, [0]),
            _ => y,
        };
        Ok(Some(vec![y]))
    });
    const CPU: Option<CpuFace<Self>> = Some(|op, x, y| op.cpu(x, y));

    fn shapes(&self, x: &[&Shape]) -> Result<Vec<Shape>> {
        match self.0 {
            Fault::PanicsOnRank => assert!(x[0].dims()[1] > 0, "planted"),
            Fault::AcceptsAnyShape => return Ok(vec![Shape::from([0])]),
            _ => {}
        }
        same_shape(Self::NAME, x, 2)
    }

    fn reference<R: Real>(&self, x: &[In<'_, R>], y: &mut [Out<'_, R>]) {
        let (a, b) = (x[0].r(), x[1].r());
        for (i, y) in y[0].r().iter_mut().enumerate() {
            *y = a[i] * b[i].tanh();
            match self.0 {
                Fault::IllConditioned => *y = (*y + R::of(1e8)) - R::of(1e8),
                // The only scalar of four bytes is f32.
                Fault::WrongDigitInReference if size_of::<R>() == 4 => *y = *y * R::of(1.0 + 1e-5),
                _ => {}
            }
        }
    }

    fn jvp(&self, at: &Saved, dx: &[Option<&Tensor>]) -> Result<Option<Tensor>> {
        let (a, b) = (at.x(0)?, at.x(1)?);
        let da = dx[0].map(|da| call(&Mul, &[da, &call(&Tanh, &[b])?])).transpose()?;
        let db = dx[1].map(|db| call(&Mul, &[a, &call(&TanhVjp(Tanh), &[b, db])?])).transpose()?;
        if self.0 == Fault::RuleOnlyInF64 {
            let zero = Tensor::zeros(DType::F64, a.shape());
            return da.or(db).map(|d| call(&ADD, &[&d, &zero])).transpose();
        }
        match (da, db) {
            (Some(da), Some(_)) if self.0 == Fault::JvpDropsATerm => Ok(Some(da)),
            (Some(da), Some(db)) => Ok(Some(call(&ADD, &[&da, &db])?)),
            (None, None) => Ok(None),
            _ if self.0 == Fault::JvpRefusesPartialTangents => at.x(9).cloned().map(Some),
            (da, db) if self.0 == Fault::JvpFactor => {
                da.or(db).map(|d| times(&d, 1.0 + 1e-9)).transpose()
            }
            (da, db) => Ok(da.or(db)),
        }
    }

    fn vjp(&self, at: &Saved, gy: &Tensor, want: &[bool]) -> Result<Grads> {
        let (a, b) = (at.x(0)?, at.x(1)?);
        let fault = self.0;
        if fault == Fault::VjpLooksAtUndeclared {
            at.y()?;
        }
        let ga = call(&Mul, &[gy, &call(&Tanh, &[b])?])?;
        let gb = call(&TanhVjp(Tanh), &[b, &call(&Mul, &[gy, a])?])?;
        let (ga, gb) = match fault {
            Fault::VjpFactor => (ga, times(&gb, 1.0 - 1e-6)?),
            Fault::VjpSwapped => (gb, ga),
            Fault::VjpWrongShape => (ga.reshape([ga.len()])?, gb),
            _ => (ga, gb),
        };
        let all = fault == Fault::VjpIgnoresWant;
        Ok(vec![(want[0] || all).then_some(ga), (want[1] || all).then_some(gb)])
    }

    fn cases() -> Cases {
        let case = || {
            let inputs = vec![Input::normal([3, 7]), Input::normal([3, 7])];
            Case::new("odd", Planted(Fault::Sound), inputs)
        };
        Cases { named: vec![case()], draw: |_| case_of_one(), bench: vec![case()] }
    }
}

fn case_of_one() -> Case {
    Case::new("one", Planted(Fault::Sound), vec![Input::normal([1]), Input::normal([1])])
}

/// The op with a fault and inputs for it.
pub fn planted(fault: Fault) -> (Planted, Inputs) {
    let op = Planted(fault);
    let inputs = Planted::cases().named.remove(0).inputs;
    let data = Inputs::f32(fill(&op, &inputs, seed("planted")));
    (op, data)
}

/// That `check` notices `fault` and says so with `word`.
pub fn notices(check: fn(&dyn DynOp, &Inputs) -> Verdict, (fault, word): (Fault, &str)) -> Verdict {
    let (op, data) = planted(fault);
    match check(&op, &data) {
        Err(message) if message.contains(word) => Ok(()),
        Err(message) => Err(format!("noticed, but without the word `{word}`: {message}")),
        Ok(()) => Err(format!("{fault:?} went unnoticed")),
    }
}
