//! Events: marks in the order of work that can be waited for and timed.

use super::call::{abi, current, lock};
use super::capture::{self, Capture, prohibited};
use super::code::{Code, Result};
use super::gate::Gate;
use super::op::Op;
use super::order::Line;
use super::raw::Out;
use std::sync::{Arc, Mutex};

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`.
const INTERPROCESS: u32 = 4;
/// `CU_EVENT_RECORD_EXTERNAL`: in a capture, the record becomes a node that runs with the graph.
const EXTERNAL: u32 = 1;

/// An event.
pub(super) struct Event {
    pub(super) context: usize,
    flags: u32,
    state: Mutex<State>,
}

/// Where an event was last recorded.
#[derive(Clone)]
pub(super) enum State {
    Never,
    Recorded(Arc<Gate>),
    Captured { capture: Arc<Capture>, last: Vec<usize> },
}

impl Event {
    pub(super) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    pub(super) fn set(&self, state: State) {
        *lock(&self.state) = state;
    }

    /// The event now stands for what opens this gate.
    pub(super) fn recorded(&self, gate: Arc<Gate>) {
        self.set(State::Recorded(gate));
    }

    /// The gate to look at; none if the event was never recorded. A captured event has none and
    /// loses its capture.
    fn gate(&self) -> Result<Option<Arc<Gate>>> {
        match self.state() {
            State::Never => Ok(None),
            State::Recorded(gate) => Ok(Some(gate)),
            State::Captured { capture, .. } => {
                capture.invalidate();
                Err(Code::CAPTURED_EVENT)
            }
        }
    }

    /// The gate of an event that keeps time and was recorded.
    fn timed(&self) -> Result<Arc<Gate>> {
        if self.flags & DISABLE_TIMING != 0 {
            return Err(Code::INVALID_HANDLE);
        }
        self.gate()?.ok_or(Code::INVALID_HANDLE)
    }
}

fn event_record(event: usize, stream: usize, flags: u32) -> Result {
    let (driver, context) = current()?;
    let event = driver.events.get(event)?;
    let line = Line::of(driver, &context, stream)?;
    if event.context != line.context.handle {
        return Err(Code::INVALID_HANDLE);
    }
    if line.capture()?.is_some() {
        return match flags {
            EXTERNAL => line.submit(Op::Record(event)).map(drop),
            _ => capture::record(&line, &event).map(drop),
        };
    }
    if let Some(gate) = line.submit(Op::Nothing)? {
        event.recorded(gate);
    }
    Ok(())
}

fn elapsed(milliseconds: Out<f32>, start: usize, end: usize) -> Result {
    let (driver, _context) = current()?;
    let (start, end) = (driver.events.get(start)?.timed()?, driver.events.get(end)?.timed()?);
    let (start, end) = (start.opened().ok_or(Code::NOT_READY)?, end.opened());
    let end = end.ok_or(Code::NOT_READY)?;
    let forward = end.saturating_duration_since(start).as_secs_f64();
    let back = start.saturating_duration_since(end).as_secs_f64();
    milliseconds.set(((forward - back) * 1e3) as f32)
}

abi! {
    /// Makes an event.
    fn cuEventCreate(event: Out<usize>, flags: u32) {
        let (driver, context) = current()?;
        if flags & !(1 | DISABLE_TIMING | INTERPROCESS) != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let (handle, _) = driver.events.insert(|_| Event {
            context: context.handle,
            flags,
            state: Mutex::new(State::Never),
        });
        event.set(handle)
    }

    /// Forgets an event; work that waits for it still does.
    fn cuEventDestroy_v2(event: usize) {
        let (driver, context) = super::call::bound()?;
        driver.events.remove(event)?;
        context.check()
    }

    /// Marks the present end of a stream.
    fn cuEventRecord(event: usize, stream: usize) also cuEventRecord_ptsz {
        event_record(event, stream, 0)
    }

    /// Marks the present end of a stream.
    fn cuEventRecordWithFlags(event: usize, stream: usize, flags: u32)
    also cuEventRecordWithFlags_ptsz {
        if flags > EXTERNAL {
            return Err(Code::INVALID_VALUE);
        }
        event_record(event, stream, flags)
    }

    /// Whether the marked work is done.
    fn cuEventQuery(event: usize) {
        let (driver, context) = current()?;
        let gate = driver.events.get(event)?.gate()?;
        prohibited(driver)?;
        if gate.is_some_and(|gate| gate.opened().is_none()) {
            return Err(Code::NOT_READY);
        }
        context.check()
    }

    /// Waits until the marked work is done.
    fn cuEventSynchronize(event: usize) {
        let (driver, context) = current()?;
        let gate = driver.events.get(event)?.gate()?;
        prohibited(driver)?;
        if let Some(gate) = gate {
            gate.wait();
        }
        super::pool::settle(driver);
        context.check()
    }

    /// The time between two events in milliseconds.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) {
        elapsed(milliseconds, start, end)
    }

    /// The time between two events in milliseconds.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) {
        elapsed(milliseconds, start, end)
    }

    /// Makes a stream's next work wait for an event of this or another stream.
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) also cuStreamWaitEvent_ptsz {
        let (driver, context) = current()?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let event = driver.events.get(event)?;
        capture::wait(&Line::of(driver, &context, stream)?, &event)
    }
}
