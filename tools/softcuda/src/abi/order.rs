//! The order of work: the queues of a context and what each piece of work has to wait for.
//!
//! Work in one stream runs in order. The legacy default stream waits for all blocking streams and
//! they for it; streams made with `CU_STREAM_NON_BLOCKING` know only themselves and the events they
//! wait for. A stream that is being captured puts its work into the graph instead of its queue.

use super::call::{lock, own_lane, own_stream};
use super::capture::{Capture, Joined};
use super::code::{Code, Result};
use super::context::Context;
use super::driver::{Driver, new_serial};
use super::gate::{Gate, Task, start_worker};
use super::op::Op;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// The number of the legacy default stream.
pub(super) const LEGACY: u64 = 0;

/// How a stream stands to the legacy default stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Legacy,
    Blocking,
    NonBlocking,
}

/// All queues of a context.
pub(super) struct Order {
    pub(super) lanes: BTreeMap<u64, Lane>,
    /// The ends of blocking streams that were destroyed with work in them.
    orphans: Vec<Arc<Gate>>,
}

/// One queue.
pub(super) struct Lane {
    pub(super) kind: Kind,
    /// The end of the latest work.
    tail: Option<Arc<Gate>>,
    /// The worker, started at the first work.
    worker: Option<Sender<Task>>,
    /// The capture that takes this stream's work, if one does.
    pub(super) joined: Option<Joined>,
}

/// A stream as the calling thread means it.
pub(super) struct Line {
    pub(super) context: Arc<Context>,
    pub(super) lane: u64,
}

impl Default for Order {
    fn default() -> Self {
        Self { lanes: BTreeMap::from([(LEGACY, Lane::new(Kind::Legacy))]), orphans: Vec::new() }
    }
}

impl Lane {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, tail: None, worker: None, joined: None }
    }

    /// The end of the latest work, if it is still under way.
    fn pending(&self) -> Option<Arc<Gate>> {
        self.tail.clone().filter(|gate| gate.opened().is_none())
    }
}

impl Order {
    /// The queue with this number; a destroyed stream has none.
    pub(super) fn lane(&mut self, lane: u64) -> Result<&mut Lane> {
        self.lanes.get_mut(&lane).ok_or(Code::INVALID_HANDLE)
    }

    /// Removes the queue of a destroyed stream; its work goes on to its end.
    pub(super) fn remove(&mut self, lane: u64) -> Option<Lane> {
        let gone = self.lanes.remove(&lane)?;
        self.orphans.retain(|gate| gate.opened().is_none());
        self.orphans.extend(gone.pending());
        Some(gone)
    }

    /// The ends of all work under way.
    pub(super) fn tails(&self) -> Vec<Arc<Gate>> {
        let orphans = self.orphans.iter().cloned();
        self.lanes.values().filter_map(Lane::pending).chain(orphans).collect()
    }

    /// What work in this queue has to wait for, beside what is before it in the queue.
    fn implied(&self, lane: u64, kind: Kind) -> Vec<Arc<Gate>> {
        match kind {
            Kind::Legacy => {
                let blocking = self
                    .lanes
                    .iter()
                    .filter(|(id, other)| **id != lane && other.kind == Kind::Blocking);
                let tails = blocking.filter_map(|(_, other)| other.pending());
                tails.chain(self.orphans.iter().cloned()).collect()
            }
            Kind::Blocking => self.lanes.get(&LEGACY).and_then(Lane::pending).into_iter().collect(),
            Kind::NonBlocking => Vec::new(),
        }
    }

    /// Refuses work of the legacy stream while a blocking stream is captured: the legacy stream
    /// would depend on work that does not run. The capture is lost.
    fn refuse_implicit(&self) -> Result {
        let captures = self.lanes.values().filter(|lane| lane.kind == Kind::Blocking);
        let mut refused = Ok(());
        for joined in captures.filter_map(|lane| lane.joined.as_ref()) {
            joined.capture.invalidate();
            refused = Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        refused
    }
}

impl Line {
    /// The stream behind a handle: 0, 1 and 2 are default streams of the current context.
    pub(super) fn of(driver: &Driver, current: &Arc<Context>, handle: usize) -> Result<Self> {
        let context = current.clone();
        match handle {
            0 if !own_stream() => Ok(Self { context, lane: LEGACY }),
            1 => Ok(Self { context, lane: LEGACY }),
            0 | 2 => Ok(Self { lane: own(&context), context }),
            handle => {
                let stream = driver.streams.get(handle)?;
                let context = driver.contexts.get(stream.context);
                let context = context.map_err(|_| Code::CONTEXT_IS_DESTROYED)?;
                context.check()?;
                Ok(Self { context, lane: stream.lane })
            }
        }
    }

    /// Puts work into the stream. The gate opens when it is done; there is none if a capture took
    /// the work.
    pub(super) fn submit(&self, op: Op) -> Result<Option<Arc<Gate>>> {
        self.submit_after(Arc::new(op), Vec::new())
    }

    /// Puts work into the stream that also waits for other gates.
    pub(super) fn submit_after(
        &self,
        op: Arc<Op>,
        mut after: Vec<Arc<Gate>>,
    ) -> Result<Option<Arc<Gate>>> {
        let mut order = lock(&self.context.order);
        let lane = order.lane(self.lane)?;
        let kind = lane.kind;
        if let Some(joined) = &mut lane.joined {
            joined.add(op)?;
            return Ok(None);
        }
        if kind == Kind::Legacy {
            order.refuse_implicit()?;
        }
        after.extend(order.implied(self.lane, kind));
        let lane = order.lane(self.lane)?;
        let gate = Arc::new(Gate::default());
        let task = Task { op, after, gate: gate.clone(), context: self.context.clone() };
        let worker = match &lane.worker {
            Some(worker) => worker,
            None => lane.worker.insert(start_worker()?),
        };
        worker.send(task).map_err(|_| Code::OPERATING_SYSTEM)?;
        lane.tail = Some(gate.clone());
        Ok(Some(gate))
    }

    /// Puts work into the stream and waits for it; the context's fault, if the work brought one, is
    /// the error.
    pub(super) fn run(&self, op: Op) -> Result {
        if let Some(gate) = self.submit(op)? {
            gate.wait();
        }
        self.context.check()
    }

    /// The ends of what a wait for this stream waits for; error if the stream is being captured.
    pub(super) fn pending(&self) -> Result<Vec<Arc<Gate>>> {
        let mut order = lock(&self.context.order);
        let lane = order.lane(self.lane)?;
        if let Some(joined) = &lane.joined {
            joined.capture.invalidate();
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        let mut gates: Vec<_> = lane.pending().into_iter().collect();
        if lane.kind == Kind::Legacy {
            // The legacy stream is not done before the blocking streams that it waits for are.
            order.refuse_implicit()?;
            gates.extend(order.implied(self.lane, Kind::Legacy));
        }
        Ok(gates)
    }

    /// The capture that takes this stream's work.
    pub(super) fn capture(&self) -> Result<Option<Arc<Capture>>> {
        let mut order = lock(&self.context.order);
        let lane = order.lane(self.lane)?;
        Ok(lane.joined.as_ref().map(|joined| joined.capture.clone()))
    }
}

/// The number of the calling thread's own default stream in a context.
fn own(context: &Arc<Context>) -> u64 {
    own_lane(context.generation, || {
        let lane = new_serial();
        lock(&context.order).lanes.insert(lane, Lane::new(Kind::Blocking));
        lane
    })
}
