//! Gates, which open once when a piece of work is done, and the worker of a stream, which opens
//! them.

use super::call::lock;
use super::code::{Code, Result};
use super::context::Context;
use super::op::Op;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The end of one piece of work: closed, then open for good, with the time of it.
#[derive(Default)]
pub(super) struct Gate {
    opened: Mutex<Option<Instant>>,
    bell: Condvar,
}

/// Work in a stream's queue.
pub(super) struct Task {
    pub(super) op: Arc<Op>,
    /// What has to be done first, apart from the work before it in the same queue.
    pub(super) after: Vec<Arc<Gate>>,
    pub(super) gate: Arc<Gate>,
    pub(super) context: Arc<Context>,
}

impl Gate {
    /// Opens the gate and wakes who waits.
    pub(super) fn open(&self) {
        lock(&self.opened).get_or_insert_with(Instant::now);
        self.bell.notify_all();
    }

    /// When the gate opened, if it did.
    pub(super) fn opened(&self) -> Option<Instant> {
        *lock(&self.opened)
    }

    /// Waits until the gate is open.
    pub(super) fn wait(&self) {
        let mut opened = lock(&self.opened);
        while opened.is_none() {
            opened = self.bell.wait(opened).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Starts the thread that does a stream's work in order; it ends when the sender is dropped.
pub(super) fn start_worker() -> Result<Sender<Task>> {
    let (sender, queue) = channel();
    std::thread::Builder::new()
        .name("softcuda stream".to_owned())
        .spawn(move || work(&queue))
        .map_err(|_| Code::OPERATING_SYSTEM)?;
    Ok(sender)
}

/// Every task waits only for tasks that were put into queues before it, so queues cannot lock each
/// other up.
fn work(queue: &Receiver<Task>) {
    for task in queue {
        for gate in &task.after {
            gate.wait();
        }
        let done = catch_unwind(AssertUnwindSafe(|| task.op.execute(&task.context)));
        if done.is_err() {
            task.context.fail(Code::UNKNOWN, "a bug in softcuda stopped the work of a stream");
        }
        task.gate.open();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_once_and_keeps_its_time() {
        let gate = Gate::default();
        assert_eq!(gate.opened(), None);
        gate.open();
        let first = gate.opened();
        gate.open();
        gate.wait();
        assert!(first.is_some() && gate.opened() == first);
    }
}
