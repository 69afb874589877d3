//! Commands of a queue, recorded once and replayed with one call.

use cudarc::driver::{CudaGraph, sys};

use super::{Queue, failed};
use crate::error::{Error, Result};

/// Launches that run again, in their order, whenever the graph is replayed. They read and write the
/// buffers they were recorded with: keep those alive.
pub struct Graph {
    graph: CudaGraph,
    queue: Queue,
    launches: usize,
}

// SAFETY: the driver lets any thread use a graph, one at a time; it is used through its owner
// alone, and each use binds the context first.
unsafe impl Send for Graph {}

impl Queue {
    /// Records what `f` puts into this queue; nothing of it runs. Buffers must be there before:
    /// waiting for the queue, as reading and writing do, cannot be recorded.
    ///
    /// # Errors
    /// Those of `f`; a command that cannot be recorded; a recording without commands.
    pub fn record(&self, f: impl FnOnce(&Queue) -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let tried = |e, what: &str| failed(e, what.into(), self.advice());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let stream = self.cuda_stream()?;
        stream.begin_capture(mode).map_err(|e| tried(e, "beginning a recording"))?;
        let before = self.launches();
        let done = f(self);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let ended = stream.end_capture(flags);
        done?;
        let graph = ended.map_err(|e| tried(e, "ending a recording"))?;
        let empty = || Error::Internal("a recording without commands".into());
        let launches = self.launches() - before;
        Ok(Graph { graph: graph.ok_or_else(empty)?, queue: self.clone(), launches })
    }
}

impl Graph {
    /// Kernels in it.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// Puts all of it into its queue.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn replay(&self) -> Result<()> {
        self.queue.bind()?;
        let tried = |e| failed(e, "replaying a graph".into(), self.queue.advice());
        self.graph.launch().map_err(tried)
    }
}
