//! Pieces of device work: what waits in a stream's queue, and what the nodes of a graph are.

use super::code::{Code, Result};
use super::context::Context;
use super::driver::{Driver, driver};
use super::event::Event;
use super::gate::Gate;
use super::graph::GraphMemory;
use super::launch::KernelCall;
use super::memory::release;
use super::raw::{Host, HostCall, StreamCall};
use crate::mem::MemError;
use std::sync::Arc;

/// How much of a copy between host and device is in hand at once.
const CHUNK: usize = 1 << 20;

/// One piece of work. It can be run any number of times, as a graph's nodes are.
pub(super) enum Op {
    /// Only its place in the order counts: event records and waits.
    Nothing,
    /// A kernel.
    Kernel(KernelCall),
    /// Bytes from one place to another.
    Copy(Copy),
    /// A pattern over rows of memory.
    Fill(Fill),
    /// A function of the caller.
    Host(HostCall),
    /// A function of the caller, in the older form.
    Callback(StreamCall),
    /// Memory that a graph owns begins its life; there is nothing to do when it runs.
    Alloc,
    /// The end of a stream-ordered allocation; in a graph, memory that stays until the graph is
    /// gone.
    Free(Option<u64>),
    /// A whole graph, node by node; the order in which they were captured respects every
    /// dependency.
    Graph { ops: Vec<Arc<Op>>, _memory: Arc<GraphMemory> },
    /// The record of an event as a node of a graph.
    Record(Arc<Event>),
}

/// One end of a copy.
#[derive(Clone)]
pub(super) enum Place {
    Device(u64),
    Host(Host),
    /// Bytes that were taken from pageable memory when the copy was asked for.
    Staged(Arc<Vec<u8>>),
}

/// A copy of `rows` rows of `bytes` bytes.
pub(super) struct Copy {
    pub(super) to: Place,
    pub(super) from: Place,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) to_pitch: u64,
    pub(super) from_pitch: u64,
}

/// A pattern of 1, 2 or 4 bytes, `count` times in each of `rows` rows.
pub(super) struct Fill {
    pub(super) address: u64,
    pub(super) pattern: Vec<u8>,
    pub(super) count: u64,
    pub(super) rows: u64,
    pub(super) pitch: u64,
}

/// Why a piece of work failed, with the text for people.
pub(super) type Failure = (Code, String);

impl Op {
    /// The number of a graph node of this kind, `CU_GRAPH_NODE_TYPE_...`.
    pub(super) fn node_type(&self) -> u32 {
        match self {
            Op::Kernel(_) => 0,
            Op::Copy(_) => 1,
            Op::Fill(_) => 2,
            Op::Host(_) | Op::Callback(_) => 3,
            Op::Graph { .. } => 4,
            Op::Nothing => 5,
            Op::Record(_) => 7,
            Op::Alloc => 10,
            Op::Free(_) => 11,
        }
    }

    /// Runs the work, unless an earlier fault already stopped the context; a failure becomes the
    /// context's.
    pub(super) fn execute(&self, context: &Arc<Context>) {
        if let Op::Callback(call) = self {
            // The older callbacks are told of an error, where the newer are left out.
            return call.call(context.check().map_or_else(|code| code.0, |()| 0));
        }
        if context.check().is_err() {
            return;
        }
        let done = driver()
            .map_err(|code| (code, "the driver is gone".to_owned()))
            .and_then(|driver| self.run(driver, context));
        if let Err((code, text)) = done {
            context.fail(code, &text);
        }
    }

    fn run(
        &self,
        driver: &'static Driver,
        context: &Arc<Context>,
    ) -> std::result::Result<(), Failure> {
        match self {
            Op::Nothing | Op::Alloc | Op::Callback(_) | Op::Free(None) => Ok(()),
            Op::Kernel(call) => call.run(driver),
            Op::Copy(copy) => copy.run(driver),
            Op::Fill(fill) => fill.run(driver),
            Op::Host(call) => {
                call.call();
                Ok(())
            }
            Op::Free(Some(address)) => release(driver, *address)
                .map_err(|code| (code, format!("the free of {address:#x} in stream order failed"))),
            Op::Graph { ops, .. } => {
                for op in ops {
                    op.execute(context);
                }
                Ok(())
            }
            Op::Record(event) => {
                let gate = Arc::new(Gate::default());
                gate.open();
                event.recorded(gate);
                Ok(())
            }
        }
    }
}

/// What a memory error of running work becomes.
fn lost(what: &str) -> impl Fn(MemError) -> Failure {
    move |error| (Code::ILLEGAL_ADDRESS, format!("{what}: {error}"))
}

/// What an unusable host range becomes.
fn unreadable(code: Code) -> Failure {
    (code, "a copy met a null host address".to_owned())
}

impl Copy {
    /// A copy of one run of bytes.
    pub(super) fn flat(to: Place, from: Place, bytes: u64) -> Self {
        Self { to, from, bytes, rows: 1, to_pitch: bytes, from_pitch: bytes }
    }

    fn run(&self, driver: &Driver) -> std::result::Result<(), Failure> {
        let whole = self.bytes == self.to_pitch && self.bytes == self.from_pitch;
        let (rows, bytes) =
            if whole { (1, self.bytes * self.rows) } else { (self.rows, self.bytes) };
        if bytes == 0 {
            return Ok(());
        }
        for row in 0..rows {
            let to = self.to.at(row * self.to_pitch);
            let from = self.from.at(row * self.from_pitch);
            copy_run(driver, &to, &from, bytes)?;
        }
        Ok(())
    }
}

/// Copies one run of bytes, a chunk at a time.
fn copy_run(
    driver: &Driver,
    to: &(Place, u64),
    from: &(Place, u64),
    bytes: u64,
) -> std::result::Result<(), Failure> {
    if let ((Place::Device(to), _), (Place::Device(from), _)) = (to, from) {
        return driver.memory.copy(*to, *from, bytes).map_err(lost("device to device copy"));
    }
    let mut done = 0;
    let mut hold = vec![0; CHUNK.min(bytes as usize)];
    while done < bytes {
        let part = &mut hold[..CHUNK.min((bytes - done) as usize)];
        match from {
            (Place::Device(address), _) => {
                driver.memory.read(address + done, part).map_err(lost("copy from the device"))?
            }
            (Place::Host(host), _) => {
                host.offset(done as usize).read_into(part).map_err(unreadable)?;
            }
            (Place::Staged(kept), skip) => {
                let start = (skip + done) as usize;
                let kept = kept.get(start..start + part.len());
                part.copy_from_slice(kept.ok_or_else(|| unreadable(Code::INVALID_VALUE))?);
            }
        }
        match to {
            (Place::Device(address), _) => {
                driver.memory.write(address + done, part).map_err(lost("copy to the device"))?;
            }
            (Place::Host(host), _) => host.offset(done as usize).write(part).map_err(unreadable)?,
            (Place::Staged(_), _) => return Err(unreadable(Code::INVALID_VALUE)),
        }
        done += part.len() as u64;
    }
    Ok(())
}

impl Place {
    /// The place `bytes` on, with the offset beside it for staged bytes.
    fn at(&self, bytes: u64) -> (Place, u64) {
        match self {
            Place::Device(address) => (Place::Device(address + bytes), 0),
            Place::Host(host) => (Place::Host(host.offset(bytes as usize)), 0),
            Place::Staged(kept) => (Place::Staged(kept.clone()), bytes),
        }
    }

    /// Refuses a device range that lies in no live allocation, as the driver does when a copy is
    /// asked for.
    pub(super) fn check(&self, driver: &Driver, bytes: u64) -> Result {
        match self {
            Place::Device(address) => check_range(driver, *address, bytes),
            Place::Host(host) if host.is_null() && bytes > 0 => Err(Code::INVALID_VALUE),
            _ => Ok(()),
        }
    }
}

/// Refuses a device range that lies in no live allocation.
pub(super) fn check_range(driver: &Driver, address: u64, bytes: u64) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    let (base, size) = driver.memory.find(address).ok_or(Code::INVALID_VALUE)?;
    let end = (address - base).checked_add(bytes);
    if end.is_some_and(|end| end <= size) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

impl Fill {
    fn run(&self, driver: &Driver) -> std::result::Result<(), Failure> {
        for row in 0..self.rows {
            let address = self.address + row * self.pitch;
            driver.memory.fill(address, &self.pattern, self.count).map_err(lost("memset"))?;
        }
        Ok(())
    }
}
