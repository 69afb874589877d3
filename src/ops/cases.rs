//! Cases: where the tests and benches of an op come from, and nowhere else.

use super::op::DynOp;
use crate::tensor::Shape;

/// How an input is filled.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Standard normal.
    Normal,
    /// Uniform in [lo, hi).
    Uniform(f64, f64),
    /// Standard normal pushed at least this far from zero: for ops with a kink there.
    Away(f64),
    /// Integers in 0..n.
    Below(usize),
    /// Zeros and ones.
    Coins,
}

/// One input of a case.
#[derive(Clone, Debug)]
pub struct Input {
    /// Extents.
    pub shape: Shape,
    /// Contents.
    pub fill: Fill,
}

impl Input {
    /// Standard normal.
    pub fn normal(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), fill: Fill::Normal }
    }
    /// Uniform in [lo, hi).
    pub fn uniform(shape: impl Into<Shape>, lo: f64, hi: f64) -> Self {
        Self { shape: shape.into(), fill: Fill::Uniform(lo, hi) }
    }
    /// Normal, at least `gap` from zero.
    pub fn away(shape: impl Into<Shape>, gap: f64) -> Self {
        Self { shape: shape.into(), fill: Fill::Away(gap) }
    }
    /// Zeros and ones.
    pub fn coins(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), fill: Fill::Coins }
    }
    /// Integers in 0..n.
    pub fn below(shape: impl Into<Shape>, n: usize) -> Self {
        Self { shape: shape.into(), fill: Fill::Below(n) }
    }
}

/// An op with inputs to run it on.
pub struct Case {
    /// Short name, part of the test's name.
    pub name: String,
    /// The op with its attributes.
    pub op: Box<dyn DynOp>,
    /// Its inputs.
    pub inputs: Vec<Input>,
}

impl Case {
    /// A case.
    pub fn new(name: impl Into<String>, op: impl DynOp + 'static, inputs: Vec<Input>) -> Self {
        Self { name: name.into(), op: Box::new(op), inputs }
    }
}

/// A source of small numbers for a random case: proptest draws the words and shrinks them towards
/// zero, which shrinks the shapes towards their lower ends.
pub struct Draw<'a> {
    words: &'a [u32],
    next: usize,
}

impl<'a> Draw<'a> {
    /// From these words; past their end, zeros.
    pub fn new(words: &'a [u32]) -> Self {
        Self { words, next: 0 }
    }
    /// An extent in lo..=hi.
    pub fn size(&mut self, lo: usize, hi: usize) -> usize {
        let word = self.words.get(self.next).copied().unwrap_or(0) as usize;
        self.next += 1;
        lo + word % (hi - lo + 1)
    }
    /// A coin.
    pub fn coin(&mut self) -> bool {
        self.size(0, 1) == 1
    }
    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.size(0, from.len() - 1)]
    }
}

/// All cases of an op.
pub struct Cases {
    /// Named shapes, run by every check.
    pub named: Vec<Case>,
    /// A random case.
    pub draw: fn(&mut Draw<'_>) -> Case,
    /// Shapes worth timing.
    pub bench: Vec<Case>,
}
