//! Batches of one size as one graph: the eager run, recorded once and replayed for other seeds and
//! conditions.
//!
//! The first batch of a size runs eagerly and places the constants; the second runs eagerly too and
//! its memory is learnt; the third is recorded into one piece of memory, and from then on a batch
//! is three uploads, one command and the copies back. Nothing is allocated after that. The tiles
//! are the same to the last bit.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Drawn, Given, MOST, Sampler, Tile};
use crate::device::cuda::{Graph, MemoryPlan, Queue};
use crate::device::{OnGpu, span};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The graphs of a sampler, by the number of tiles.
#[derive(Default)]
pub struct Graphs {
    stages: Mutex<BTreeMap<usize, Stage>>,
    /// Tiles to draw side by side; chosen once, so that their graphs are used again.
    abreast: OnceLock<usize>,
}

impl Clone for Graphs {
    /// None: a graph belongs to the sampler that recorded it.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// How far a batch size has come.
enum Stage {
    /// It ran once, in so many bytes.
    Seen(usize),
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
        match self.stages().get(&tiles) {
            Some(Stage::Recorded(r)) => Some(Cost {
                kernels: r.graph.launches(),
                buffers: r.plan.buffers(),
                bytes: r.plan.bytes(),
            }),
            _ => None,
        }
    }

    fn stages(&self) -> MutexGuard<'_, BTreeMap<usize, Stage>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tiles to draw side by side, for that much spare memory; `None` before any were.
    pub(super) fn abreast(&self, spare: impl FnOnce() -> Result<usize>) -> Result<Option<usize>> {
        if let Some(chosen) = self.abreast.get() {
            return Ok(Some(*chosen));
        }
        let bytes = |stage: &Stage| match stage {
            Stage::Seen(bytes) => *bytes,
            Stage::Learnt(plan) => plan.bytes(),
            Stage::Recorded(r) => r.plan.bytes(),
        };
        let largest = self.stages().iter().next_back().map(|(tiles, s)| bytes(s) / tiles.max(&1));
        let Some(each) = largest else { return Ok(None) };
        let chosen = fitting(spare()?, each);
        Ok(Some(*self.abreast.get_or_init(|| chosen)))
    }

    /// Draws a batch, by its graph where it has one.
    pub(super) fn draw(&self, of: &Sampler<'_>, queue: &Queue, given: &Given) -> Result<Vec<Tile>> {
        let tiles = given.tiles();
        let mut all = self.stages();
        let (drawn, next) = match all.remove(&tiles) {
            None => {
                let given = given.on(&of.device)?;
                let (drawn, plan) = queue.learn(|| of.queue_up(&given))?;
                (drawn.fetched()?, Stage::Seen(plan.bytes()))
            }
            Some(Stage::Seen(_)) => {
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

/// How many tiles of so many bytes fit into spare memory: once as they are drawn, and once more as
/// what a graph keeps.
fn fitting(spare: usize, each: usize) -> usize {
    (spare / 2 / each.max(1)).clamp(1, MOST)
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
    let held = to.remote_mut().and_then(|r| r.downcast_mut::<OnGpu>());
    let shared = || Error::Internal("an input of a graph is held elsewhere".into());
    held.ok_or_else(shared)?.write(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tiles_are_drawn_side_by_side_as_fit_twice() {
        assert_eq!([(1000, 100), (250, 100), (10, 100)].map(|(s, e)| fitting(s, e)), [5, 1, 1]);
        assert_eq!((fitting(usize::MAX, 1), fitting(1 << 40, 0)), (MOST, MOST));
        let graphs = Graphs::default();
        assert_eq!(graphs.abreast(|| Ok(1000)).unwrap(), None);
        graphs.stages().insert(8, Stage::Seen(800));
        assert_eq!(graphs.abreast(|| Ok(2000)).unwrap(), Some(10));
        // It stays: graphs are of one size.
        assert_eq!(graphs.abreast(|| Ok(100)).unwrap(), Some(10));
    }
}
