//! Who listens hears which ops a thread runs, on what shapes, where and for how long. While nobody
//! does, that costs a look at a flag.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::DynOp;
use crate::device::span::{self, Listening, Place, Span};
use crate::error::Result;
use crate::tensor::{Shape, Tensor};

/// An op that was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// [`super::Op::NAME`].
    pub op: &'static str,
    /// Whether it was the CPU that computed it.
    pub on_cpu: bool,
}

/// An op that was run, with all that a profile wants of it.
pub struct Timed {
    /// The op.
    pub op: Box<dyn DynOp>,
    /// Shapes of its inputs.
    pub inputs: Vec<Shape>,
    /// Shapes of its outputs.
    pub outputs: Vec<Shape>,
    /// Whether it was the CPU that computed it.
    pub on_cpu: bool,
    /// Where the thread was.
    pub place: Place,
    /// When it began.
    pub began: Instant,
    /// How long the calling thread was in it: on a GPU, until it was queued.
    pub took: Duration,
}

thread_local! {
    static HEARD: RefCell<Option<Vec<Ran>>> = const { RefCell::new(None) };
    static TIMED: RefCell<Option<Vec<Timed>>> = const { RefCell::new(None) };
    /// Whether one of them is.
    static LISTENS: Cell<bool> = const { Cell::new(false) };
}

fn look() {
    LISTENS.set(HEARD.with_borrow(Option::is_some) || TIMED.with_borrow(Option::is_some));
}

/// Runs `f` and returns with its result the ops that this thread ran meanwhile, in order: how a
/// test knows that nothing of a model fell back to the CPU.
pub fn heard<T>(f: impl FnOnce() -> T) -> (T, Vec<Ran>) {
    let before = HEARD.replace(Some(Vec::new()));
    look();
    let done = f();
    let heard = HEARD.replace(before).unwrap_or_default();
    look();
    (done, heard)
}

/// Runs `f` and returns with its result the ops that this thread ran meanwhile, in order, with
/// their times and [places](crate::device::span).
pub fn timed<T>(f: impl FnOnce() -> T) -> (T, Vec<Timed>) {
    let listening = Listening::begin();
    let before = TIMED.replace(Some(Vec::new()));
    look();
    let done = f();
    let timed = TIMED.replace(before).unwrap_or_default();
    look();
    drop(listening);
    (done, timed)
}

/// Runs an op's face by `f` for whoever listens.
pub(super) fn around(
    op: &dyn DynOp,
    x: &[&Tensor],
    on_cpu: bool,
    f: impl FnOnce() -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let span = span::op(op.name());
    if !LISTENS.get() {
        return f();
    }
    let ran = Ran { op: op.name(), on_cpu };
    HEARD.with_borrow_mut(|heard| heard.iter_mut().for_each(|all| all.push(ran)));
    let began = Instant::now();
    let outs = f()?;
    let took = began.elapsed();
    note(op, x, &outs, (on_cpu, began, took));
    drop::<Span>(span);
    Ok(outs)
}

fn note(op: &dyn DynOp, x: &[&Tensor], outs: &[Tensor], when: (bool, Instant, Duration)) {
    TIMED.with_borrow_mut(|timed| {
        let Some(all) = timed else { return };
        // The same elements under another shape: nothing was run.
        if op.shares() {
            return;
        }
        let (on_cpu, began, took) = when;
        all.push(Timed {
            op: op.boxed(),
            inputs: x.iter().map(|t| t.shape().clone()).collect(),
            outputs: outs.iter().map(|t| t.shape().clone()).collect(),
            on_cpu,
            place: span::here(),
            began,
            took,
        });
    });
}
