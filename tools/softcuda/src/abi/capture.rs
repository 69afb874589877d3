//! Stream capture: streams put their work into a graph instead of a queue.
//!
//! A capture begins in one stream and spreads to others through events, and all of them have to
//! join again before it ends. What would mix captured with real work, or wait for what does not
//! run, is refused with the driver's codes and loses the capture. `prohibited` is asked by every
//! call that the driver holds for unsafe during one.

use super::call::{abi, capture_mode, current, lock};
use super::code::{Code, Result};
use super::driver::{Driver, new_serial};
use super::event::{Event, State};
use super::graph::{Graph, Node};
use super::op::Op;
use super::order::{Kind, LEGACY, Line};
use super::raw::Out;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: no thread may do what is unsafe.
const GLOBAL: u32 = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: everything is allowed.
pub(super) const RELAXED: u32 = 2;

/// A capture under way.
pub(super) struct Capture {
    pub(super) id: u64,
    mode: u32,
    thread: ThreadId,
    pub(super) context: usize,
    pub(super) origin: u64,
    body: Mutex<Body>,
}

#[derive(Default)]
struct Body {
    invalid: bool,
    ended: bool,
    nodes: Vec<Node>,
    memory: Vec<u64>,
}

/// A stream's part in a capture: the nodes that its next work comes after.
pub(super) struct Joined {
    pub(super) capture: Arc<Capture>,
    pub(super) last: Vec<usize>,
}

impl Joined {
    /// Adds a node after the stream's latest.
    pub(super) fn add(&mut self, op: Arc<Op>) -> Result {
        let mut body = lock(&self.capture.body);
        if body.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let after = std::mem::replace(&mut self.last, vec![body.nodes.len()]);
        body.nodes.push(Node::new(op, after));
        Ok(())
    }

    /// Makes the stream's next work also come after these nodes.
    fn join(&mut self, nodes: &[usize]) {
        self.last.extend(nodes);
        self.last.sort_unstable();
        self.last.dedup();
    }
}

impl Capture {
    /// Loses the capture: all that is left to do is to end it.
    pub(super) fn invalidate(&self) {
        lock(&self.body).invalid = true;
    }

    /// `CU_STREAM_CAPTURE_STATUS_...` of a stream that takes part.
    pub(super) fn status(&self) -> u32 {
        if lock(&self.body).invalid { 2 } else { 1 }
    }

    /// Remembers device memory that the graph will own.
    pub(super) fn own(&self, address: u64) {
        lock(&self.body).memory.push(address);
    }

    /// Whether the graph will own this memory.
    pub(super) fn owns(&self, address: u64) -> bool {
        lock(&self.body).memory.contains(&address)
    }
}

/// Refuses a call that is unsafe during capture, if the modes of thread and captures say so.
pub(super) fn prohibited(driver: &Driver) -> Result {
    let mode = capture_mode();
    if mode == RELAXED {
        return Ok(());
    }
    let thread = std::thread::current().id();
    let mut answer = Ok(());
    for capture in lock(&driver.captures).values() {
        let own = capture.thread == thread && capture.mode != RELAXED;
        if own || (mode == GLOBAL && capture.mode == GLOBAL) {
            capture.invalidate();
            answer = Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    answer
}

/// Marks the event with the stream's place in its capture; `false` if the stream is not being
/// captured.
pub(super) fn record(line: &Line, event: &Event) -> Result<bool> {
    let mut order = lock(&line.context.order);
    let Some(joined) = &order.lane(line.lane)?.joined else { return Ok(false) };
    if joined.capture.status() == 2 {
        return Err(Code::STREAM_CAPTURE_INVALIDATED);
    }
    event.set(State::Captured { capture: joined.capture.clone(), last: joined.last.clone() });
    Ok(true)
}

/// Makes the stream's next work wait for the event, in whatever way the two allow.
pub(super) fn wait(line: &Line, event: &Event) -> Result {
    match event.state() {
        State::Never => Ok(()),
        State::Recorded(gate) => {
            if let Some(capture) = line.capture()? {
                capture.invalidate();
                return Err(Code::STREAM_CAPTURE_ISOLATION);
            }
            line.submit_after(Arc::new(Op::Nothing), vec![gate]).map(drop)
        }
        State::Captured { capture, last } => fork(line, &capture, &last),
    }
}

/// Draws a stream into a capture, or makes it wait for more of its nodes.
fn fork(line: &Line, capture: &Arc<Capture>, last: &[usize]) -> Result {
    if lock(&capture.body).ended || capture.context != line.context.handle {
        return Err(Code::STREAM_CAPTURE_ISOLATION);
    }
    if capture.status() == 2 {
        return Err(Code::STREAM_CAPTURE_INVALIDATED);
    }
    let mut order = lock(&line.context.order);
    let lane = order.lane(line.lane)?;
    match &mut lane.joined {
        Some(joined) if joined.capture.id == capture.id => joined.join(last),
        Some(joined) => {
            joined.capture.invalidate();
            capture.invalidate();
            return Err(Code::STREAM_CAPTURE_MERGE);
        }
        None if lane.kind == Kind::Legacy => {
            capture.invalidate();
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        None => {
            lane.joined = Some(Joined { capture: capture.clone(), last: last.to_vec() });
        }
    }
    Ok(())
}

fn begin(driver: &Driver, line: &Line, mode: u32) -> Result {
    if mode > RELAXED {
        return Err(Code::INVALID_VALUE);
    }
    if line.lane == LEGACY {
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    let mut order = lock(&line.context.order);
    let lane = order.lane(line.lane)?;
    if lane.joined.is_some() {
        return Err(Code::ILLEGAL_STATE);
    }
    let capture = Arc::new(Capture {
        id: new_serial(),
        mode,
        thread: std::thread::current().id(),
        context: line.context.handle,
        origin: line.lane,
        body: Mutex::default(),
    });
    lane.joined = Some(Joined { capture: capture.clone(), last: Vec::new() });
    lock(&driver.captures).insert(capture.id, capture);
    Ok(())
}

/// Ends a capture; every stream that took part does real work again. The graph is made if nothing
/// went wrong.
fn end(driver: &Driver, line: &Line) -> Result<usize> {
    let mut order = lock(&line.context.order);
    let Some(joined) = &order.lane(line.lane)?.joined else { return Err(Code::ILLEGAL_STATE) };
    let capture = joined.capture.clone();
    if capture.origin != line.lane {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
        return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
    }
    let (mut home, mut forked) = (Vec::new(), Vec::new());
    for (id, lane) in &mut order.lanes {
        if let Some(joined) = lane.joined.take_if(|joined| joined.capture.id == capture.id) {
            let last = if *id == capture.origin { &mut home } else { &mut forked };
            last.extend(joined.last);
        }
    }
    drop(order);
    lock(&driver.captures).remove(&capture.id);
    let mut body = lock(&capture.body);
    body.ended = true;
    let (nodes, memory) = (std::mem::take(&mut body.nodes), std::mem::take(&mut body.memory));
    let graph = Graph::new(line.context.handle, memory);
    if body.invalid {
        return Err(Code::STREAM_CAPTURE_INVALIDATED);
    }
    let reached = ancestors(&nodes, &home);
    if forked.iter().any(|node| !reached[*node]) {
        return Err(Code::STREAM_CAPTURE_UNJOINED);
    }
    graph.fill(driver, nodes);
    Ok(driver.graphs.insert(|_| graph).0)
}

/// Which nodes lie before these or are among them.
fn ancestors(nodes: &[Node], from: &[usize]) -> Vec<bool> {
    let mut reached = vec![false; nodes.len()];
    let mut left = from.to_vec();
    while let Some(node) = left.pop() {
        if !std::mem::replace(&mut reached[node], true) {
            left.extend(&nodes[node].after);
        }
    }
    reached
}

abi! {
    /// Begins to put a stream's work into a graph.
    fn cuStreamBeginCapture_v2(stream: usize, mode: u32) also cuStreamBeginCapture_v2_ptsz {
        let (driver, context) = current()?;
        begin(driver, &Line::of(driver, &context, stream)?, mode)
    }

    /// Ends a capture and gives its graph.
    fn cuStreamEndCapture(stream: usize, graph: Out<usize>) also cuStreamEndCapture_ptsz {
        let (driver, context) = current()?;
        let ended = end(driver, &Line::of(driver, &context, stream)?);
        graph.set(*ended.as_ref().unwrap_or(&0))?;
        ended.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_joined_when_its_end_lies_before_the_end_of_the_origin() {
        let node = |after: &[usize]| Node::new(Arc::new(Op::Nothing), after.to_vec());
        let nodes = [node(&[]), node(&[0]), node(&[0]), node(&[1, 2]), node(&[2])];
        assert_eq!(ancestors(&nodes, &[3]), [true, true, true, true, false]);
        assert_eq!(ancestors(&nodes, &[]), [false; 5]);
    }
}
