//! Looking into graphs: their nodes and edges.

use super::call::{abi, bound, lock};
use super::code::{Code, Result};
use super::driver::driver;
use super::raw::Out;

/// Gives handles the way the interface does: with no array, their number; else as many as there is
/// room for.
fn list(handles: &[usize], out: Out<usize>, count: Out<usize>) -> Result {
    if out.is_null() {
        return count.set(handles.len());
    }
    let room = count.get()?;
    for index in 0..room {
        out.set_at(index, handles.get(index).copied().unwrap_or(0))?;
    }
    count.set(room.min(handles.len()))
}

fn edges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) -> Result {
    let graph = driver()?.graphs.get(graph)?;
    let nodes = lock(&graph.nodes);
    let pairs = nodes.iter().flat_map(|node| {
        node.after.iter().filter_map(|before| Some((nodes.get(*before)?.handle, node.handle)))
    });
    let (starts, ends): (Vec<_>, Vec<_>) = pairs.unzip();
    if from.is_null() != to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    if from.is_null() {
        return count.set(starts.len());
    }
    let room = count.get()?;
    list(&starts, from, count)?;
    count.set(room)?;
    list(&ends, to, count)
}

abi! {
    /// A graph's nodes, or how many there are.
    fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) {
        let graph = driver()?.graphs.get(graph)?;
        let handles: Vec<_> = lock(&graph.nodes).iter().map(|node| node.handle).collect();
        list(&handles, nodes, count)
    }

    /// The nodes that come after no other, or how many there are.
    fn cuGraphGetRootNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) {
        let graph = driver()?.graphs.get(graph)?;
        let all = lock(&graph.nodes);
        let roots = all.iter().filter(|node| node.after.is_empty());
        list(&roots.map(|node| node.handle).collect::<Vec<_>>(), nodes, count)
    }

    /// A graph's edges, or how many there are.
    fn cuGraphGetEdges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) {
        edges(graph, from, to, count)
    }

    /// A graph's edges, or how many there are; none carries data.
    fn cuGraphGetEdges_v2(
        graph: usize,
        from: Out<usize>,
        to: Out<usize>,
        data: Out<u64>,
        count: Out<usize>,
    ) {
        edges(graph, from, to, count)?;
        if !data.is_null() && !from.is_null() {
            for index in 0..count.get()? {
                data.set_at(index, 0)?;
            }
        }
        Ok(())
    }

    /// What kind of work a node is.
    fn cuGraphNodeGetType(node: usize, kind: Out<u32>) {
        let (driver, _context) = bound()?;
        kind.set(driver.nodes.get(node)?.kind)
    }
}
