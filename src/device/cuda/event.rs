//! Events: moments in a queue that can be waited for and timed.

use std::time::Duration;

use cudarc::driver::{DriverError, result, sys};

use super::{Gpu, Queue, failed};
use crate::error::Result;

/// A moment in a queue, reached when the commands before it are done.
pub struct Event {
    mark: Mark,
    queue: Queue,
}

impl Queue {
    /// The moment after everything that is in this queue so far.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn event(&self) -> Result<Event> {
        self.cuda_stream()?;
        self.bind()?;
        let tried = |e| failed(e, "recording an event".into(), self.advice());
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let mark = Mark::new(self.gpu(), flags).map_err(tried)?;
        mark.record(self.stream()).map_err(tried)?;
        Ok(Event { mark, queue: self.clone() })
    }

    /// Lets what is put into this queue from now on wait for an event of another.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are live.
        let put = unsafe { result::stream::wait_event(self.stream(), event.mark.raw, flags) };
        put.map_err(|e| failed(e, "waiting for an event".into(), self.advice()))
    }
}

impl Event {
    /// Waits on the host until the moment is reached.
    ///
    /// # Errors
    /// What went wrong before it.
    pub fn wait(&self) -> Result<()> {
        self.queue.bind()?;
        self.mark.wait().map_err(|e| self.queue.late(e))
    }

    /// Time between an earlier event and this one, by the GPU's clock; waits for both.
    ///
    /// # Errors
    /// What went wrong before them.
    pub fn since(&self, earlier: &Event) -> Result<Duration> {
        earlier.wait()?;
        self.wait()?;
        // SAFETY: both events are live, keep time and were recorded.
        let asked = unsafe { result::event::elapsed(earlier.mark.raw, self.mark.raw) };
        let ms = asked.map_err(|e| failed(e, "timing events".into(), self.queue.advice()))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) * 1e-3))
    }
}

/// The driver's event.
pub(super) struct Mark {
    raw: sys::CUevent,
    gpu: Gpu,
}

// SAFETY: an event may be used from any thread that has its context bound.
unsafe impl Send for Mark {}
// SAFETY: as above; the driver guards its own state.
unsafe impl Sync for Mark {}

impl Mark {
    pub(super) fn new(gpu: &Gpu, flags: sys::CUevent_flags) -> Result<Self, DriverError> {
        Ok(Self { raw: result::event::create(flags)?, gpu: gpu.clone() })
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: event and stream are live and of one context.
        unsafe { result::event::record(self.raw, stream) }
    }

    /// Waits for the newest record.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.raw) }
    }

    /// Whether the newest record is reached, or cannot be any more.
    pub(super) fn is_done(&self) -> bool {
        // SAFETY: the event is live.
        let asked = unsafe { result::event::query(self.raw) };
        asked != Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: made by `new`, destroyed once; the driver ends pending records first.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
