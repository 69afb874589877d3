//! Launches with their times, by the GPU's clock, and what the driver counted of them.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::counts::{self, Counts};
use super::{Event, Launch, Queue};
use crate::error::Result;

/// A launch that was timed. An event before it and one after it take their own few microseconds.
#[derive(Clone, Debug)]
pub struct Clocked {
    /// What was launched, and where the thread was.
    pub launch: Launch,
    /// When it was put into the queue.
    pub queued: Instant,
    /// From the beginning of the measurement to its own, by the GPU's clock.
    pub began: Duration,
    /// How long it ran, by the GPU's clock.
    pub took: Duration,
    /// What the driver counted, where it counts.
    pub counts: Option<Counts>,
}

/// What a measurement gives beside the launches.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The launches in their order.
    pub launches: Vec<Clocked>,
    /// When the GPU began.
    pub began: Instant,
    /// From then to the end of the last command, by the GPU's clock.
    pub took: Duration,
}

/// A launch between two moments.
pub(super) struct Timing {
    queued: Instant,
    before: Event,
    after: Event,
}

impl Queue {
    /// Runs `f` with an event before and after each launch, and waits for them.
    ///
    /// # Errors
    /// Those of `f` and of the driver.
    pub fn clocked<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<(T, Clock)> {
        self.synchronize()?;
        let first = self.event()?;
        first.wait()?;
        let began = Instant::now();
        self.timings(|timings| *timings = Some(Vec::new()));
        let counting = counts::Counting::begin();
        let (done, launches) = self.trace(f);
        let last = self.event();
        let timings = self.timings(Option::take).unwrap_or_default();
        let (done, last) = (done?, last?);
        last.wait()?;
        let counts = counting.end()?;
        let mut counts = counts.filter(|c| c.len() == launches.len()).map(Vec::into_iter);
        // Moment by moment: the driver tells times in f32, so long ones are coarse.
        let (mut clocked, mut end) = (Vec::with_capacity(launches.len()), Duration::ZERO);
        let mut before = &first;
        for (launch, timing) in launches.into_iter().zip(&timings) {
            let began = end + timing.before.since(before)?;
            let took = timing.after.since(&timing.before)?;
            (before, end) = (&timing.after, began + took);
            let counts = counts.as_mut().and_then(Iterator::next);
            clocked.push(Clocked { launch, queued: timing.queued, began, took, counts });
        }
        Ok((done, Clock { launches: clocked, began, took: end + last.since(before)? }))
    }

    fn timings<T>(&self, f: impl FnOnce(&mut Option<Vec<Timing>>) -> T) -> T {
        f(&mut self.timed().lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `launch` between two events while somebody measures.
    pub(super) fn between(&self, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.timings(|timings| timings.is_some()) {
            return launch();
        }
        let (queued, before) = (Instant::now(), self.event()?);
        launch()?;
        let timing = Timing { queued, before, after: self.event()? };
        self.timings(|all| {
            if let Some(all) = all {
                all.push(timing);
            }
        });
        Ok(())
    }
}
