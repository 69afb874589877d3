//! What a program can ask about captures, and how a thread takes part in them.

use super::call::{abi, current, exchange_capture_mode, lock};
use super::capture::RELAXED;
use super::code::{Code, Result};
use super::order::{Kind, LEGACY, Line};
use super::raw::Out;

/// Status and id of the capture that a stream takes part in: 0 and 0 if none.
fn info(stream: usize) -> Result<(u32, u64)> {
    let (driver, context) = current()?;
    let line = Line::of(driver, &context, stream)?;
    if line.lane == LEGACY {
        let order = lock(&line.context.order);
        let mut others = order.lanes.values();
        if others.any(|lane| lane.kind == Kind::Blocking && lane.joined.is_some()) {
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
    }
    Ok(line.capture()?.map_or((0, 0), |capture| (capture.status(), capture.id)))
}

/// Status and id of a stream's capture; the graph under construction is not given out.
fn capture_info(stream: usize, status: Out<u32>, id: Out<u64>, wants_graph: bool) -> Result<()> {
    let (now, number) = info(stream)?;
    if now == 1 && wants_graph {
        return Err(Code::NOT_SUPPORTED);
    }
    status.set(now)?;
    id.offer(number);
    Ok(())
}

abi! {
    /// Whether a stream's work goes into a graph.
    fn cuStreamIsCapturing(stream: usize, status: Out<u32>) also cuStreamIsCapturing_ptsz {
        status.set(info(stream)?.0)
    }

    /// Status and id of a stream's capture; the graph under construction is not given out.
    fn cuStreamGetCaptureInfo_v2(
        stream: usize,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        count: Out<usize>,
    ) also cuStreamGetCaptureInfo_v2_ptsz {
        let wants_graph = !(graph.is_null() && dependencies.is_null() && count.is_null());
        capture_info(stream, status, id, wants_graph)
    }

    /// Status and id of a stream's capture; the graph under construction is not given out.
    fn cuStreamGetCaptureInfo_v3(
        stream: usize,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        _edges: Out<usize>,
        count: Out<usize>,
    ) also cuStreamGetCaptureInfo_v3_ptsz {
        let wants_graph = !(graph.is_null() && dependencies.is_null() && count.is_null());
        capture_info(stream, status, id, wants_graph)
    }

    /// Swaps the thread's way of taking part in captures with the one given.
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let wanted = mode.get()?;
        if wanted > RELAXED {
            return Err(Code::INVALID_VALUE);
        }
        mode.set(exchange_capture_mode(wanted))
    }
}
