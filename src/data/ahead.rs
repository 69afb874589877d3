//! Work done before it is asked for: threads make the next batches while a step runs.
//!
//! A batch is a function of its step alone, whoever makes it. So any number of threads gives the
//! same batches in the same order, and a run that goes on in the middle gets those of one that was
//! never stopped. What waits is bounded; errors and panics of a thread come out where their batch
//! would.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::config::DataConfig;
use crate::error::{Error, Result};

/// What makes the batch of any step. Clones make the same ones.
pub trait Source: Clone + Send + 'static {
    /// A batch.
    type Batch: Send + 'static;

    /// The batch of a step.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn make(&mut self, step: u64) -> Result<Self::Batch>;
}

/// How many threads work ahead, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Threads; without any, a batch is made when it is asked for.
    pub threads: usize,
    /// Batches that are made or being made and not taken yet, at most.
    pub room: usize,
}

impl Workers {
    /// No threads.
    pub const NONE: Self = Self { threads: 0, room: 1 };

    /// Those of a configuration.
    pub fn of(config: &DataConfig) -> Self {
        Self { threads: config.workers, room: config.ahead.max(1) }
    }
}

/// A source whose next batches are made ahead, from the second of two steps in a row on: a look at
/// a step elsewhere costs that batch alone.
pub struct Ahead<S: Source> {
    own: S,
    workers: Workers,
    last: Option<u64>,
    crew: Option<Crew<S::Batch>>,
}

impl<S: Source> Ahead<S> {
    /// No thread runs yet.
    pub fn new(own: S, workers: Workers) -> Self {
        Self { own, workers, last: None, crew: None }
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.own
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// Those of the source; a panic of a thread that made it.
    pub fn at(&mut self, step: u64) -> Result<S::Batch> {
        let follows = self.last.is_some_and(|last| last.checked_add(1) == Some(step));
        self.last = Some(step);
        if !follows {
            self.crew = None;
        } else if self.crew.is_none() {
            self.crew = Crew::begin(&self.own, self.workers, step);
        }
        match &self.crew {
            Some(crew) => crew.take(step),
            None => self.own.make(step),
        }
    }
}

/// Threads that make batches from some step on. Dropping it ends them.
struct Crew<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A batch is ready, or there is room for another, or the end has come.
    moved: Condvar,
    room: u64,
}

struct State<T> {
    /// The step that the next free thread begins.
    next: u64,
    /// The step that is handed out next.
    wanted: u64,
    ready: BTreeMap<u64, Result<T>>,
    ends: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next step to make a batch for; `None` at the end.
    fn begin(&self) -> Option<u64> {
        let mut state = self.state();
        while !state.ends && state.next >= state.wanted.saturating_add(self.room) {
            state = self.wait(state);
        }
        if state.ends {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }

    fn put(&self, step: u64, batch: Result<T>) {
        self.state().ready.insert(step, batch);
        self.moved.notify_all();
    }
}

impl<T: Send + 'static> Crew<T> {
    /// As many threads as the system grants; `None` without any.
    fn begin<S: Source<Batch = T>>(source: &S, workers: Workers, first: u64) -> Option<Self> {
        let state = State { next: first, wanted: first, ready: BTreeMap::new(), ends: false };
        let (state, moved, room) = (Mutex::new(state), Condvar::new(), workers.room.max(1) as u64);
        let shared = Arc::new(Shared { state, moved, room });
        let mut threads = Vec::new();
        for i in 0..workers.threads.min(workers.room.max(1)) {
            let (shared, mut source) = (Arc::clone(&shared), source.clone());
            let work = move || {
                while let Some(step) = shared.begin() {
                    let made = catch_unwind(AssertUnwindSafe(|| source.make(step)));
                    shared.put(step, made.unwrap_or_else(|cause| Err(panicked(&*cause))));
                }
            };
            threads.extend(Builder::new().name(format!("data-{i}")).spawn(work));
        }
        if threads.is_empty() { None } else { Some(Self { shared, threads }) }
    }

    /// Waits for the batch of `step`, which is the next in order.
    fn take(&self, step: u64) -> Result<T> {
        let mut state = self.shared.state();
        loop {
            if let Some(batch) = state.ready.remove(&step) {
                state.wanted = step + 1;
                self.shared.moved.notify_all();
                return batch;
            }
            state = self.shared.wait(state);
        }
    }
}

impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        self.shared.state().ends = true;
        self.shared.moved.notify_all();
        for thread in self.threads.drain(..) {
            // It has caught its panics.
            let _ = thread.join();
        }
    }
}

fn panicked(cause: &(dyn std::any::Any + Send)) -> Error {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::Internal(format!("a thread that makes batches panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Batches that know their step; counts those that were begun, and goes wrong where told.
    #[derive(Clone)]
    struct Counted {
        begun: Arc<AtomicUsize>,
        fails: u64,
        panics: u64,
    }

    impl Source for Counted {
        type Batch = u64;
        fn make(&mut self, step: u64) -> Result<u64> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            assert!(step != self.panics, "step {step} is cursed");
            match step == self.fails {
                true => Err(Error::data(format!("step {step} is bad"), "take another")),
                false => Ok(step.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            }
        }
    }

    fn counted() -> Counted {
        Counted { begun: Arc::default(), fails: u64::MAX, panics: u64::MAX }
    }

    /// In the order of the steps, wherever they begin and jump to, by any number of threads.
    #[test]
    fn batches_are_those_of_one_thread() {
        let steps: Vec<u64> = (0..40).chain([7, 7, 90, 91, 92]).chain(20..60).collect();
        let run = |threads, room| {
            let mut ahead = Ahead::new(counted(), Workers { threads, room });
            steps.iter().map(|&s| ahead.at(s).unwrap()).collect::<Vec<_>>()
        };
        let alone = run(0, 1);
        for (threads, room) in [(1, 1), (1, 3), (2, 2), (5, 4), (5, 9), (9, 2)] {
            assert!(run(threads, room) == alone, "{threads} threads, room for {room}");
        }
    }

    #[test]
    fn what_waits_is_bounded_and_the_threads_end() {
        let source = counted();
        let begun = Arc::clone(&source.begun);
        let mut ahead = Ahead::new(source, Workers { threads: 3, room: 4 });
        for step in 0..50 {
            ahead.at(step).unwrap();
            // Those taken, and what there is room for.
            let (ahead, most) = (begun.load(Ordering::SeqCst), step as usize + 1 + 4);
            assert!(ahead <= most, "{ahead} of {most} at step {step}");
        }
        let held = Arc::strong_count(&begun);
        assert!(held > 2, "no thread works");
        // Full, with nobody who takes: the threads wait, and end all the same.
        drop(ahead);
        assert_eq!(Arc::strong_count(&begun), 1, "a thread outlives what it works for");
    }

    /// What goes wrong in a thread is told at the step whose batch it is, and not before.
    #[test]
    fn errors_and_panics_come_out_at_their_step() {
        let source = Counted { fails: 5, panics: 8, ..counted() };
        let mut ahead = Ahead::new(source, Workers { threads: 2, room: 6 });
        for step in 0..12 {
            let told = ahead.at(step).map_err(|e| e.to_string());
            match step {
                5 => assert!(told.unwrap_err().contains("step 5 is bad")),
                8 => assert!(told.unwrap_err().contains("panicked: step 8 is cursed")),
                _ => assert!(told.is_ok(), "{told:?}"),
            }
        }
    }
}
