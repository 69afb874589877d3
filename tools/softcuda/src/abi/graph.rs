//! Graphs: captured work, and its instantiated form that can be launched again and again.

use super::call::{abi, current, lock};
use super::code::{Code, Result};
use super::driver::{Driver, driver, new_handle};
use super::gate::Gate;
use super::memory::release;
use super::op::Op;
use super::order::Line;
use super::raw::{Host, Out};
use std::sync::{Arc, Mutex};

/// One node: its work, and the nodes it comes after.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) op: Arc<Op>,
    pub(super) after: Vec<usize>,
    pub(super) handle: usize,
}

/// What a caller can ask about a node.
pub(super) struct NodeInfo {
    pub(super) kind: u32,
}

/// A graph.
pub(super) struct Graph {
    pub(super) context: usize,
    pub(super) nodes: Mutex<Vec<Node>>,
    memory: Arc<GraphMemory>,
}

/// Device memory that lives as long as a graph or an instance of it.
pub(super) struct GraphMemory(Vec<u64>);

/// An instantiated graph.
pub(super) struct Executable {
    pub(super) context: usize,
    flags: u64,
    nodes: Mutex<Vec<Node>>,
    /// The end of the latest launch: launches of one instance never overlap.
    tail: Mutex<Option<Arc<Gate>>>,
    memory: Arc<GraphMemory>,
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        for address in &self.0 {
            if let Ok(driver) = driver() {
                // The context may have gone first and taken the memory along.
                let _ = release(driver, *address);
            }
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        for node in lock(&self.nodes).iter() {
            // A graph whose nodes were never filed is one that was refused.
            let _ = driver().and_then(|driver| driver.nodes.remove(node.handle));
        }
    }
}

impl Node {
    pub(super) fn new(op: Arc<Op>, after: Vec<usize>) -> Self {
        Self { op, after, handle: new_handle() }
    }
}

impl Graph {
    /// An empty graph that owns this device memory.
    pub(super) fn new(context: usize, memory: Vec<u64>) -> Self {
        let memory = Arc::new(GraphMemory(memory));
        Self { context, nodes: Mutex::default(), memory }
    }

    /// Puts nodes into an empty graph.
    pub(super) fn fill(&self, driver: &Driver, nodes: Vec<Node>) {
        for node in &nodes {
            let info = NodeInfo { kind: node.op.node_type() };
            driver.nodes.put(node.handle, Arc::new(info));
        }
        *lock(&self.nodes) = nodes;
    }

    /// A graph of the same work, with nodes of its own.
    fn copy(&self, driver: &Driver) -> Self {
        let nodes = lock(&self.nodes).clone();
        let nodes = nodes.into_iter().map(|node| Node::new(node.op, node.after)).collect();
        let memory = self.memory.clone();
        let copy = Self { context: self.context, nodes: Mutex::default(), memory };
        copy.fill(driver, nodes);
        copy
    }
}

fn instantiate(out: Out<usize>, graph: usize, flags: u64) -> Result {
    let (driver, _context) = current()?;
    let graph = driver.graphs.get(graph)?;
    // Freeing on launch, uploading and node priorities change nothing here; launches from the
    // device do not exist.
    if flags & !(1 | 2 | 8) != 0 {
        return Err(if flags & 4 != 0 { Code::NOT_SUPPORTED } else { Code::INVALID_VALUE });
    }
    let nodes = Mutex::new(lock(&graph.nodes).clone());
    let (handle, _) = driver.executables.insert(|_| Executable {
        context: graph.context,
        flags,
        nodes,
        tail: Mutex::default(),
        memory: graph.memory.clone(),
    });
    out.set(handle)
}

fn launch(executable: usize, stream: usize) -> Result {
    let (driver, context) = current()?;
    let executable = driver.executables.get(executable)?;
    let line = Line::of(driver, &context, stream)?;
    let ops = lock(&executable.nodes).iter().map(|node| node.op.clone()).collect();
    let mut tail = lock(&executable.tail);
    let after = tail.iter().cloned().collect();
    // The launch keeps the graph's memory, should graph and instance go before it is done.
    let op = Op::Graph { ops, _memory: executable.memory.clone() };
    if let Some(gate) = line.submit_after(Arc::new(op), after)? {
        *tail = Some(gate);
    }
    Ok(())
}

/// `CU_GRAPH_EXEC_UPDATE_...`, with the node where two graphs differ: 0 if the one can take the
/// other's place.
fn difference(old: &[Node], new: &[Node]) -> (u32, usize) {
    const TOPOLOGY: u32 = 2;
    const NODE_TYPE: u32 = 3;
    if old.len() != new.len() {
        return (TOPOLOGY, 0);
    }
    for (old, new) in old.iter().zip(new) {
        if old.op.node_type() != new.op.node_type() {
            return (NODE_TYPE, new.handle);
        }
        if old.after != new.after {
            return (TOPOLOGY, new.handle);
        }
    }
    (0, 0)
}

abi! {
    /// Makes an empty graph; nodes come from capture only.
    fn cuGraphCreate(graph: Out<usize>, flags: u32) {
        let (driver, context) = current()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        graph.set(driver.graphs.insert(|_| Graph::new(context.handle, Vec::new())).0)
    }

    /// Makes a graph of the same work.
    fn cuGraphClone(clone: Out<usize>, graph: usize) {
        let driver = driver()?;
        let copy = driver.graphs.get(graph)?.copy(driver);
        clone.set(driver.graphs.insert(|_| copy).0)
    }

    /// Forgets a graph; its instances live on.
    fn cuGraphDestroy(graph: usize) {
        driver()?.graphs.remove(graph).map(drop)
    }

    /// Makes a graph ready to launch.
    fn cuGraphInstantiateWithFlags(executable: Out<usize>, graph: usize, flags: u64) {
        instantiate(executable, graph, flags)
    }

    /// Makes a graph ready to launch, in the older form with a log that stays empty.
    fn cuGraphInstantiate_v2(
        executable: Out<usize>,
        graph: usize,
        node: Out<usize>,
        log: Host,
        log_bytes: usize,
    ) {
        node.offer(0);
        if log_bytes > 0 && !log.is_null() {
            log.write(&[0])?;
        }
        instantiate(executable, graph, 0)
    }

    /// Makes a graph ready to launch; flags come first in the parameters, then stream, node and
    /// result.
    fn cuGraphInstantiateWithParams(
        executable: Out<usize>,
        graph: usize,
        parameters: Out<[u64; 4]>,
    ) also cuGraphInstantiateWithParams_ptsz {
        let [flags, stream, _, rest] = parameters.get()?;
        let done = instantiate(executable, graph, flags);
        let result = u64::from(done.is_err());
        parameters.set([flags, stream, 0, rest >> 32 << 32 | result])?;
        done
    }

    /// The flags of an instance.
    fn cuGraphExecGetFlags(executable: usize, flags: Out<u64>) {
        flags.set(driver()?.executables.get(executable)?.flags)
    }

    /// Forgets an instance; launches under way still run.
    fn cuGraphExecDestroy(executable: usize) {
        driver()?.executables.remove(executable).map(drop)
    }

    /// Gives an instance the work of another graph of the same shape.
    fn cuGraphExecUpdate_v2(executable: usize, graph: usize, result: Out<[usize; 3]>) {
        let (driver, _context) = current()?;
        let (executable, graph) = (driver.executables.get(executable)?, driver.graphs.get(graph)?);
        let nodes = lock(&graph.nodes).clone();
        let mut old = lock(&executable.nodes);
        let (difference, node) = difference(&old, &nodes);
        result.set([difference as usize, node, 0])?;
        if difference != 0 {
            return Err(Code::GRAPH_EXEC_UPDATE_FAILURE);
        }
        *old = nodes;
        Ok(())
    }

    /// Puts all work of an instance into a stream.
    fn cuGraphLaunch(executable: usize, stream: usize) also cuGraphLaunch_ptsz {
        launch(executable, stream)
    }

    /// Prepares a launch: there is nothing to prepare.
    fn cuGraphUpload(executable: usize, stream: usize) also cuGraphUpload_ptsz {
        let (driver, context) = current()?;
        driver.executables.get(executable)?;
        Line::of(driver, &context, stream).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_needs_the_same_shape() {
        let node = |op, after: &[usize]| Node::new(Arc::new(op), after.to_vec());
        let old = [node(Op::Nothing, &[]), node(Op::Alloc, &[0])];
        assert_eq!(difference(&old, &old).0, 0);
        assert_eq!(difference(&old, &old[..1]).0, 2);
        assert_eq!(difference(&old, &[node(Op::Nothing, &[]), node(Op::Nothing, &[0])]).0, 3);
        assert_eq!(difference(&old, &[node(Op::Nothing, &[]), node(Op::Alloc, &[])]).0, 2);
    }
}
