//! Batches of one size as one graph: the eager run, recorded once and replayed for other seeds and
//! conditions.
//!
//! The first batch of a size runs eagerly and places the constants; the second runs eagerly too and
//! its memory is learnt; the third is recorded into one piece of memory, and from then on a batch
//! is three uploads, one command and the copies back. Nothing is allocated after that. The tiles
//! are the same to the last bit.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Drawn, Given, Sampler, Tile};
use crate::device::cuda::{Graph, MemoryPlan, Queue};
use crate::device::{OnGpu, span};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The graphs of a sampler, by the number of tiles.
#[derive(Default)]
pub struct Graphs(Mutex<BTreeMap<usize, Stage>>);

impl Clone for Graphs {
    /// None: a graph belongs to the sampler that recorded it.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// How far a batch size has come.
enum Stage {
    /// It ran once.
    Seen,
    /// Its memory is known.
    Learnt(MemoryPlan),
    /// It is recorded.
    Recorded(Box<Recorded>),
}

/// A batch as one command: it reads the inputs, and leaves its results where they were recorded.
struct Recorded {
    given: Given,
    drawn: Drawn,
    graph: Graph,
    plan: MemoryPlan,
}

/// What a recorded batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Kernels in the graph.
    pub kernels: usize,
    /// Buffers that share its memory.
    pub buffers: usize,
    /// Bytes of that.
    pub bytes: usize,
}

impl Graphs {
    /// What a recorded batch of so many tiles takes; `None` before it is recorded.
    pub fn cost(&self, tiles: usize) -> Option<Cost> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&tiles) {
            Some(Stage::Recorded(r)) => Some(Cost {
                kernels: r.graph.launches(),
                buffers: r.plan.buffers(),
                bytes: r.plan.bytes(),
            }),
            _ => None,
        }
    }

    /// Draws a batch, by its graph where it has one.
    pub(super) fn draw(&self, of: &Sampler<'_>, queue: &Queue, given: &Given) -> Result<Vec<Tile>> {
        let tiles = given.tiles();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (drawn, next) = match all.remove(&tiles) {
            None => (of.queue_up(&given.on(&of.device)?)?.fetched()?, Stage::Seen),
            Some(Stage::Seen) => {
                let given = given.on(&of.device)?;
                let (drawn, plan) = queue.learn(|| of.queue_up(&given))?;
                (drawn.fetched()?, Stage::Learnt(plan))
            }
            Some(Stage::Learnt(plan)) => {
                let mut recorded = Box::new(Recorded::new(of, queue, given, plan)?);
                (recorded.draw(given)?, Stage::Recorded(recorded))
            }
            Some(Stage::Recorded(mut recorded)) => {
                (recorded.draw(given)?, Stage::Recorded(recorded))
            }
        };
        all.insert(tiles, next);
        drawn.tiles()
    }
}

impl Recorded {
    fn new(of: &Sampler<'_>, queue: &Queue, given: &Given, plan: MemoryPlan) -> Result<Self> {
        let given = given.on(&of.device)?;
        let mut drawn = None;
        let graph = queue.planned(&plan, || {
            queue.record(|_| {
                drawn = Some(of.queue_up(&given)?);
                Ok(())
            })
        })?;
        let drawn = drawn.ok_or_else(|| Error::Internal("nothing was recorded".into()))?;
        Ok(Self { given, drawn, graph, plan })
    }

    fn draw(&mut self, given: &Given) -> Result<Drawn> {
        overwrite(&mut self.given.names, &given.names)?;
        overwrite(&mut self.given.z, &given.z)?;
        overwrite(&mut self.given.what, &given.what)?;
        let part = span::part("replay");
        self.graph.replay()?;
        drop(part);
        self.drawn.fetched()
    }
}

/// Writes other elements where those of a tensor are that nobody else holds.
fn overwrite(to: &mut Tensor, from: &Tensor) -> Result<()> {
    let held = to.remote_mut().and_then(|r| r.as_any_mut().downcast_mut::<OnGpu>());
    let shared = || Error::Internal("an input of a graph is held elsewhere".into());
    held.ok_or_else(shared)?.write(from)
}
