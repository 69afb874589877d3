//! Pass and Var: how model code runs.

use std::cell::RefCell;

use super::param::{Param, Params};
use super::segment::{Again, Made, Source};
use super::tape::{Gradients, Node, Tape};
use crate::device::{Device, OnGpu, span};
use crate::error::{Error, Result, Within};
use crate::ops::layout::Widen;
use crate::ops::{Diff, DynOp, Saved, run};
use crate::tensor::{DType, Tensor};

/// A tangent carried beside a value. Deliberately not a [`Var`].
#[derive(Clone, Debug)]
pub struct Tangent(Tensor);

impl Tangent {
    /// The numbers, for targets that are constants by construction.
    pub fn into_tensor(self) -> Tensor {
        self.0
    }
}

/// A value in a pass, with its tangent and its place on the tape where the pass keeps them.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    tangent: Option<Tangent>,
    node: Option<usize>,
}

impl Var {
    /// A constant: no tangent, no gradient.
    pub fn constant(value: Tensor) -> Self {
        Self { value, tangent: None, node: None }
    }
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
    /// The value alone.
    pub fn into_value(self) -> Tensor {
        self.value
    }
    /// The tangent; `None` is zero.
    pub fn tangent(&self) -> Option<&Tangent> {
        self.tangent.as_ref()
    }
    /// The value as a constant: the stop-gradient of the papers.
    pub fn detach(&self) -> Self {
        Self::constant(self.value.clone())
    }
    /// The same value and gradient without the tangent.
    pub fn without_tangent(&self) -> Self {
        Self { tangent: None, ..self.clone() }
    }
    /// The extents.
    pub fn dims(&self) -> &[usize] {
        self.value.shape().dims()
    }
    pub(super) fn node(&self) -> Option<usize> {
        self.node
    }
}

impl From<Tensor> for Var {
    fn from(value: Tensor) -> Self {
        Self::constant(value)
    }
}

/// Outputs and tangent that one op gave, that op, and which inputs had tangents.
type AtOnce = (Vec<Tensor>, Tangent, Dual);
type Dual = (Box<dyn DynOp>, Vec<bool>);

/// One run of model code.
pub struct Pass {
    tape: Option<RefCell<Tape>>,
    dual: bool,
    tracked: Vec<u64>,
    check: bool,
    apart: bool,
    recomputes: bool,
}

impl Pass {
    /// Values only.
    pub fn eval() -> Self {
        let (tape, tracked) = (None, Vec::new());
        Self { tape, dual: false, tracked, check: false, apart: false, recomputes: false }
    }

    /// Values and a tape; gradients reach tracked leaves and the parameters of [`Pass::training`].
    pub fn tape() -> Self {
        Self { tape: Some(RefCell::default()), ..Self::eval() }
    }

    /// Values and tangents.
    pub fn dual() -> Self {
        Self { dual: true, ..Self::eval() }
    }

    /// Values, tangents, and a tape of the values.
    pub fn dual_tape() -> Self {
        Self { dual: true, ..Self::tape() }
    }

    /// Tracks these parameters on the tape; all others are constants.
    pub fn training(mut self, params: &Params) -> Self {
        self.tracked.push(params.group());
        self
    }

    /// Checks every op's results and fails, naming the op, at the first value that is not finite.
    pub fn checked(mut self, on: bool) -> Self {
        self.check = on;
        self
    }

    /// Runs values and tangents by ops of their own, which one op for both is checked against.
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Keeps of each [`Pass::segment`] what it was given, and runs it again for the reverse pass.
    pub fn recomputing(mut self, on: bool) -> Self {
        self.recomputes = on;
        self
    }

    /// Whether tangents or gradients may be asked of its ops.
    pub fn differentiates(&self) -> bool {
        self.dual || self.tape.is_some()
    }

    /// Whether gradients are being recorded.
    pub fn records(&self) -> bool {
        self.tape.is_some()
    }

    /// Whether a parameter's gradient will be asked for.
    pub fn tracks(&self, p: &Param) -> bool {
        self.records() && self.tracked.contains(&p.key().0)
    }

    /// A leaf whose gradient will be asked for.
    pub fn leaf(&self, value: Tensor) -> Var {
        let node = self.tape.as_ref().map(|t| t.borrow_mut().leaf());
        Var { value, tangent: None, node }
    }

    /// A constant with a tangent; outside a dual pass the tangent is dropped.
    pub fn with_tangent(&self, value: Tensor, tangent: Tensor) -> Var {
        let tangent = self.dual.then_some(Tangent(tangent));
        Var { value, tangent, node: None }
    }

    /// A parameter as a variable.
    pub fn param(&self, p: &Param) -> Var {
        let value = p.value();
        let node = self.tape.as_ref().filter(|_| self.tracks(p)).map(|t| {
            let tape = &mut *t.borrow_mut();
            match tape.params.get(&p.key()) {
                Some(&i) => i,
                None => {
                    let i = tape.leaf();
                    tape.params.insert(p.key(), i);
                    i
                }
            }
        });
        Var { value, tangent: None, node }
    }

    /// Runs a stretch of a model, such as a block, that may be run again for the reverse pass. One
    /// inside another is part of it.
    ///
    /// # Errors
    /// Those of the stretch.
    pub fn segment<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let outermost = |tape: &&RefCell<Tape>| tape.borrow().segment.is_none();
        let Some(tape) = self.tape.as_ref().filter(|_| self.recomputes).filter(outermost) else {
            return run();
        };
        let first = tape.borrow().nodes.len();
        tape.borrow_mut().segment = Some(first);
        let result = run();
        tape.borrow_mut().segment = None;
        result
    }

    /// Runs one op; its result.
    pub fn op(&self, op: impl DynOp, x: &[&Var]) -> Result<Var> {
        Ok(self.op_with_extras(op, x)?.0)
    }

    /// The same in f32, where a GPU holds it in bf16: what is summed over scales is kept in f32.
    pub fn wide(&self, x: &Var) -> Result<Var> {
        match OnGpu::is_bf16(&x.value) {
            true => self.op(Widen, &[x]),
            false => Ok(x.clone()),
        }
    }

    /// Runs one op; its result and its extra outputs, which are constants.
    pub fn op_with_extras(&self, op: impl DynOp, x: &[&Var]) -> Result<(Var, Vec<Tensor>)> {
        let values: Vec<&Tensor> = x.iter().map(|v| &v.value).collect();
        let (outs, tangent, dual) = match self.at_once(&op, x, &values)? {
            Some((outs, tangent, dual)) => (outs, Some(tangent), Some(dual)),
            None => (run(&op, &values)?, None, None),
        };
        let y = outs.first().cloned().ok_or_else(|| Error::Internal("no output".into()))?;
        if self.check {
            y.check_finite(op.name())?;
        }
        let tangent = match tangent {
            Some(dy) => Some(dy),
            None => self.tangent_of(&op, x, &values, &outs)?,
        };
        if let (true, Some(Tangent(dy))) = (self.check, &tangent) {
            dy.check_finite(&format!("tangent of {}", op.name()))?;
        }
        let node = match &self.tape {
            Some(tape) if x.iter().any(|v| v.node.is_some()) => {
                differentiable(&op)?;
                let saved = Saved::declared(&op, &values, &outs);
                let parents = x.iter().map(|v| v.node).collect();
                let tape = &mut *tape.borrow_mut();
                let again = tape.again(x, dual);
                let saved = if again.is_some() { saved.bare() } else { saved };
                let made_by = Some(Made { op: op.boxed(), saved, again });
                Some(tape.push(Node { made_by, parents }))
            }
            _ => None,
        };
        let extras = outs.into_iter().skip(1).collect();
        Ok((Var { value: y, tangent, node }, extras))
    }

    fn tangent_of(
        &self,
        op: &dyn DynOp,
        x: &[&Var],
        values: &[&Tensor],
        outs: &[Tensor],
    ) -> Result<Option<Tangent>> {
        if x.iter().all(|v| v.tangent.is_none()) {
            return Ok(None);
        }
        differentiable(op)?;
        let dx: Vec<Option<&Tensor>> = x.iter().map(|v| v.tangent.as_ref().map(|t| &t.0)).collect();
        let dy = op
            .jvp(&Saved::all(op, values, outs), &dx)
            .within(format_args!("tangent of {}", op.name()))?;
        Ok(dy.map(Tangent))
    }

    /// Outputs and tangent by one op, where there is one for these tangents. On the CPU they are
    /// two: its faces are fast for each alone.
    fn at_once(&self, op: &dyn DynOp, x: &[&Var], values: &[&Tensor]) -> Result<Option<AtOnce>> {
        let moving = x.iter().filter_map(|v| v.tangent.as_ref().map(|t| &t.0));
        let inputs: Vec<&Tensor> = values.iter().copied().chain(moving).collect();
        if self.apart
            || inputs.len() == x.len()
            || matches!(Device::of(values.iter().copied()), Device::Cpu)
        {
            return Ok(None);
        }
        let given: Vec<bool> = x.iter().map(|v| v.tangent.is_some()).collect();
        let shapes: Vec<_> = values.iter().map(|t| t.shape()).collect();
        let Some(dual) = op.dual(&shapes, &given) else { return Ok(None) };
        let mut outs = run(&*dual, &inputs)?;
        Ok(outs.pop().map(|dy| (outs, Tangent(dy), (dual, given))))
    }

    /// Gradients of a one-element loss. The tape is used up.
    pub fn backward(self, loss: &Var) -> Result<Gradients> {
        let dtype = loss.value.dtype();
        if loss.value.len() != 1 || dtype == DType::I32 {
            let what = format!("a loss is one real number, not {}", loss.value.shape());
            return Err(Error::shape("backward", what));
        }
        let _part = span::part("backward");
        self.backward_from(loss, Tensor::full(dtype, loss.value.shape(), 1.0))
    }

    /// Gradients for a given gradient of `y`. The tape is used up.
    pub fn backward_from(self, y: &Var, gy: Tensor) -> Result<Gradients> {
        // Put where y is: rules that look at the gradient alone would run on the CPU else.
        let gy = Device::of([&y.value]).put(&gy)?;
        match (self.tape, y.node) {
            (Some(tape), Some(node)) => tape.into_inner().backward(node, gy),
            _ => Err(Error::Internal("nothing was recorded for this value".into())),
        }
    }
}

impl Tape {
    /// How an op of these inputs is run again, while a segment is recorded.
    fn again(&self, x: &[&Var], dual: Option<Dual>) -> Option<Again> {
        let first = self.segment?;
        let made = |node: &usize| *node >= first && self.nodes[*node].made_by.is_some();
        let source = |v: &&Var| match v.node.filter(made) {
            Some(node) => Source::Node(node),
            None => Source::Held(v.value.clone()),
        };
        Some(Again { first, inputs: x.iter().map(source).collect(), dual })
    }
}

fn differentiable(op: &dyn DynOp) -> Result<()> {
    match op.diff() {
        Diff::Yes => Ok(()),
        Diff::No(reason) => Err(Error::NotDifferentiable { op: op.name(), reason }),
    }
}
