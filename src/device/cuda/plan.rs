//! Memory of work that is repeated: learnt from one run of it, then taken from one piece.
//!
//! A run takes and gives back buffers in an order that depends on shapes alone. [`Queue::learn`]
//! notes it; [`Queue::planned`] allocates one piece of memory and serves the next run from it, each
//! buffer where it overlaps none that is alive beside it. Nothing is allocated then, so the run can
//! be recorded as a graph, and what is recorded keeps its piece.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::ThreadId;

use super::Queue;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Alignment of buffers, that of the driver's own.
const GRAIN: usize = 512;

/// A step of a run: a buffer is taken, or the buffer of that step is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Taken(usize),
    Given(usize),
}

/// The buffers of a run: what it takes and gives back, in order, and where each lies.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    steps: Vec<Step>,
    offsets: BTreeMap<usize, usize>,
    bytes: usize,
}

impl MemoryPlan {
    fn of(steps: Vec<Step>) -> Self {
        let mut plan = Self { steps, offsets: BTreeMap::new(), bytes: 0 };
        let mut free: BTreeMap<usize, usize> = BTreeMap::new();
        for (i, step) in plan.steps.iter().enumerate() {
            match *step {
                Step::Taken(size) => {
                    let fits = free.iter().filter(|(_, len)| **len >= size);
                    let best =
                        fits.min_by_key(|(at, len)| (**len, **at)).map(|(at, len)| (*at, *len));
                    let at = match best {
                        Some((at, len)) => {
                            free.remove(&at);
                            if len > size {
                                free.insert(at + size, len - size);
                            }
                            at
                        }
                        None => {
                            plan.bytes += size;
                            plan.bytes - size
                        }
                    };
                    plan.offsets.insert(i, at);
                }
                Step::Given(of) => {
                    let (Some(&at), Some(Step::Taken(len))) =
                        (plan.offsets.get(&of), plan.steps.get(of))
                    else {
                        continue;
                    };
                    give(&mut free, at, *len);
                }
            }
        }
        plan
    }

    /// Bytes of the piece.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Buffers that share it.
    pub fn buffers(&self) -> usize {
        self.offsets.len()
    }
}

/// Adds a stretch to the free ones, joined with its neighbours.
fn give(free: &mut BTreeMap<usize, usize>, mut at: usize, mut len: usize) {
    if let Some(after) = free.remove(&(at + len)) {
        len += after;
    }
    if let Some((&before, &own)) = free.range(..at).next_back().filter(|(b, l)| **b + **l == at) {
        free.remove(&before);
        at = before;
        len += own;
    }
    free.insert(at, len);
}

/// One piece of memory, which lives as long as a buffer in it.
#[derive(Debug)]
pub(super) struct Arena {
    queue: Queue,
    address: u64,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.queue.release(self.address);
    }
}

/// Where a buffer's memory comes from.
#[derive(Debug)]
pub(super) enum Memory {
    /// The driver's pool; noted as a step of a run, both by number, that is being learnt.
    Own(Option<(u64, usize)>),
    /// The queue, which keeps it: a constant.
    Kept,
    /// A tensor's, of which it is a part and which it only keeps.
    Shared { _of: Tensor },
    /// A piece that is planned, as this step's buffer.
    Part(Arc<Arena>, usize),
}

/// What a queue does about the memory of one thread's buffers.
#[derive(Debug, Default)]
pub(super) enum Planning {
    #[default]
    Off,
    Learning {
        thread: ThreadId,
        run: u64,
        steps: Vec<Step>,
    },
    Serving {
        thread: ThreadId,
        plan: MemoryPlan,
        arena: Arc<Arena>,
        next: usize,
        strayed: bool,
    },
}

impl Queue {
    /// Runs `f` and notes which buffers it takes and gives back.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn learn<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<(T, MemoryPlan)> {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let (thread, run) = (std::thread::current().id(), RUNS.fetch_add(1, Ordering::Relaxed));
        self.plan(Planning::Learning { thread, run, steps: Vec::new() });
        let done = f();
        match (done, self.plan(Planning::Off)) {
            (Ok(done), Planning::Learning { steps, .. }) => Ok((done, MemoryPlan::of(steps))),
            (Err(e), _) => Err(e),
            _ => Err(Error::Internal("two runs were learnt at a time".into())),
        }
    }

    /// Runs `f` with its buffers in one piece of memory.
    ///
    /// # Errors
    /// Those of `f`; too little memory; a run that takes or gives back other buffers than planned.
    pub fn planned<T>(&self, plan: &MemoryPlan, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let address = self.allocate(plan.bytes.max(1))?;
        let arena = Arc::new(Arena { queue: self.clone(), address });
        let thread = std::thread::current().id();
        let (plan, strayed) = (plan.clone(), false);
        self.plan(Planning::Serving { thread, plan, arena, next: 0, strayed });
        let done = f();
        match self.plan(Planning::Off) {
            Planning::Serving { strayed: false, next, plan, .. } if next == plan.steps.len() => {
                done
            }
            _ => Err(done.err().unwrap_or_else(|| {
                Error::Internal("a run took other memory than the one it was planned by".into())
            })),
        }
    }

    fn plan(&self, new: Planning) -> Planning {
        std::mem::replace(&mut *self.planning().lock().unwrap_or_else(PoisonError::into_inner), new)
    }

    /// Memory for a buffer.
    pub(super) fn take(&self, bytes: usize) -> Result<(u64, Memory)> {
        let size = bytes.next_multiple_of(GRAIN);
        let own = std::thread::current().id();
        let mut planning = self.planning().lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *planning {
            Planning::Learning { thread, run, steps } if *thread == own => {
                let address = self.allocate(bytes)?;
                steps.push(Step::Taken(size));
                Ok((address, Memory::Own(Some((*run, steps.len() - 1)))))
            }
            Planning::Serving { thread, plan, arena, next, strayed } if *thread == own => {
                let step = *next;
                *next += 1;
                match (plan.steps.get(step), plan.offsets.get(&step)) {
                    (Some(Step::Taken(planned)), Some(at)) if *planned == size => {
                        Ok((arena.address + *at as u64, Memory::Part(arena.clone(), step)))
                    }
                    _ => {
                        *strayed = true;
                        let what = "a run takes other memory than the one it was planned by";
                        Err(Error::Internal(what.into()))
                    }
                }
            }
            _ => Ok((self.allocate(bytes)?, Memory::Own(None))),
        }
    }

    /// Gives back what [`Queue::take`] gave.
    pub(super) fn give_back(&self, address: u64, memory: &Memory) {
        let own = std::thread::current().id();
        let mut planning = self.planning().lock().unwrap_or_else(PoisonError::into_inner);
        match (memory, &mut *planning) {
            (Memory::Own(Some((of, step))), Planning::Learning { thread, run, steps })
                if *thread == own && of == run =>
            {
                steps.push(Step::Given(*step));
            }
            (Memory::Part(of, step), Planning::Serving { thread, plan, arena, next, strayed })
                if *thread == own && Arc::ptr_eq(of, arena) =>
            {
                *strayed |= plan.steps.get(*next) != Some(&Step::Given(*step));
                *next += 1;
            }
            _ => {}
        }
        drop(planning);
        if let Memory::Own(_) = memory {
            self.release(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_beside_each_other_do_not_overlap() {
        use Step::{Given, Taken};
        let plan = MemoryPlan::of(vec![
            Taken(1024),
            Taken(512),
            Given(0),
            Taken(512),
            Taken(512),
            Given(1),
            Given(3),
            Taken(2048),
            Given(4),
            Taken(1536),
        ]);
        // The first place is cut in two; the last fits where three were.
        let at = |i: usize| plan.offsets[&i];
        assert_eq!((at(0), at(1), at(3), at(4), at(7)), (0, 1024, 0, 512, 1536));
        assert_eq!((at(9), plan.bytes(), plan.buffers()), (0, 3584, 6));
    }
}
