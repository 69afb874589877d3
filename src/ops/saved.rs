//! What the tape keeps of an op that ran, for its derivative rules.

use super::op::DynOp;
use crate::error::{Error, Result};
use crate::tensor::{Shape, Tensor};

/// What the tape must keep for the backward pass. Asking [`Saved`] for anything else is an internal
/// error.
#[derive(Clone, Copy, Debug)]
pub struct Saves {
    /// Indices of inputs.
    pub inputs: &'static [usize],
    /// Whether the result itself is kept.
    pub output: bool,
    /// Whether the extra outputs (statistics) are kept.
    pub extras: bool,
}

impl Saves {
    /// Nothing: linear maps.
    pub const NOTHING: Self = Self { inputs: &[], output: false, extras: false };
    /// Some inputs.
    pub const fn inputs(inputs: &'static [usize]) -> Self {
        Self { inputs, output: false, extras: false }
    }
    /// Also the extra outputs.
    pub const fn and_extras(self) -> Self {
        Self { extras: true, ..self }
    }
    /// Also the result.
    pub const fn and_output(self) -> Self {
        Self { output: true, ..self }
    }
}

/// What an op's derivative rules may look at.
#[derive(Clone)]
pub struct Saved {
    op: &'static str,
    inputs: Vec<Option<Tensor>>,
    shapes: Vec<Shape>,
    output: Option<Tensor>,
    extras: Vec<Tensor>,
    out_shape: Shape,
}

impl Saved {
    /// Everything: what `jvp` sees.
    pub fn all(op: &dyn DynOp, x: &[&Tensor], y: &[Tensor]) -> Self {
        Self {
            op: op.name(),
            inputs: x.iter().map(|&t| Some(t.clone())).collect(),
            shapes: x.iter().map(|t| t.shape().clone()).collect(),
            output: y.first().cloned(),
            extras: y.iter().skip(1).cloned().collect(),
            out_shape: y.first().map(|t| t.shape().clone()).unwrap_or_default(),
        }
    }

    /// Only what the op declares: what `vjp` sees.
    pub fn declared(op: &dyn DynOp, x: &[&Tensor], y: &[Tensor]) -> Self {
        let mut all = Self::all(op, x, y);
        let saves = op.saves();
        keep(&mut all.inputs, saves);
        if !saves.output {
            all.output = None;
        }
        if !saves.extras {
            all.extras.clear();
        }
        all
    }

    /// Without any tensor: its shapes.
    pub fn bare(mut self) -> Self {
        self.inputs.fill(None);
        self.output = None;
        self.extras.clear();
        self
    }

    /// Takes back what the op declares, of inputs and outputs that are there.
    pub fn fill(&mut self, op: &dyn DynOp, x: Vec<Option<Tensor>>, y: Option<Vec<Tensor>>) {
        let saves = op.saves();
        self.inputs = x;
        keep(&mut self.inputs, saves);
        let mut y = y.unwrap_or_default().into_iter();
        self.output = y.next().filter(|_| saves.output);
        self.extras = if saves.extras { y.collect() } else { Vec::new() };
    }

    /// Input `i`.
    pub fn x(&self, i: usize) -> Result<&Tensor> {
        self.inputs.get(i).and_then(Option::as_ref).ok_or_else(|| self.missing("input", i))
    }
    /// The result.
    pub fn y(&self) -> Result<&Tensor> {
        self.output.as_ref().ok_or_else(|| self.missing("output", 0))
    }
    /// Extra output `i`.
    pub fn extra(&self, i: usize) -> Result<&Tensor> {
        self.extras.get(i).ok_or_else(|| self.missing("extra", i))
    }
    /// Shape of input `i`; always known.
    pub fn shape(&self, i: usize) -> &Shape {
        &self.shapes[i]
    }
    /// How many inputs there were.
    pub fn arity(&self) -> usize {
        self.shapes.len()
    }
    /// Shape of the result; always known.
    pub fn y_shape(&self) -> &Shape {
        &self.out_shape
    }

    fn missing(&self, what: &str, i: usize) -> Error {
        let op = self.op;
        Error::Internal(format!("{op} asks for {what} {i}, which it does not declare in SAVES"))
    }
}

fn keep(inputs: &mut [Option<Tensor>], saves: Saves) {
    for (i, kept) in inputs.iter_mut().enumerate() {
        if !saves.inputs.contains(&i) {
            *kept = None;
        }
    }
}
