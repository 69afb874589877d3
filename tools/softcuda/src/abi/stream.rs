//! Streams: queues of work, each done in order by a worker of its own.

use super::call::{abi, bound, current, lock};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::driver::new_serial;
use super::op::Op;
use super::order::{Kind, LEGACY, Lane, Line};
use super::raw::{Host, HostCall, Out, StreamCall};
use std::ffi::c_void;

/// The priority of streams that do not ask for another.
pub(super) const LEAST_URGENT: i32 = 0;
/// The most urgent priority.
pub(super) const MOST_URGENT: i32 = -5;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

/// A stream that the caller made.
pub(super) struct Stream {
    pub(super) context: usize,
    /// Its queue in the context's order.
    pub(super) lane: u64,
    flags: u32,
    priority: i32,
}

fn create(out: Out<usize>, flags: u32, priority: i32) -> Result {
    let (driver, context) = current()?;
    if flags & !NON_BLOCKING != 0 || out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let kind = if flags & NON_BLOCKING != 0 { Kind::NonBlocking } else { Kind::Blocking };
    let lane = new_serial();
    lock(&context.order).lanes.insert(lane, Lane::new(kind));
    // Priorities only order work that competes, and here every stream has a worker: they are kept
    // and shown.
    let (handle, _) = driver.streams.insert(|_| Stream {
        context: context.handle,
        lane,
        flags,
        priority: priority.clamp(MOST_URGENT, LEAST_URGENT),
    });
    out.set(handle)
}

/// The stream that the caller made; default streams are none.
fn made(stream: usize) -> Result<Option<std::sync::Arc<Stream>>> {
    let (driver, _context) = current()?;
    if stream <= 2 { Ok(None) } else { driver.streams.get(stream).map(Some) }
}

abi! {
    /// Makes a stream.
    fn cuStreamCreate(stream: Out<usize>, flags: u32) {
        create(stream, flags, LEAST_URGENT)
    }

    /// Makes a stream with a priority.
    fn cuStreamCreateWithPriority(stream: Out<usize>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    /// Forgets a stream; work in it still runs. A capture that it takes part in is lost.
    fn cuStreamDestroy_v2(stream: usize) {
        let (driver, now) = bound()?;
        let stream = driver.streams.remove(stream)?;
        let context = driver.contexts.get(stream.context)?;
        let gone = lock(&context.order).remove(stream.lane);
        if let Some(joined) = gone.and_then(|lane| lane.joined) {
            joined.capture.invalidate();
            if joined.capture.origin == stream.lane {
                lock(&driver.captures).remove(&joined.capture.id);
            }
        }
        now.check()
    }

    /// Whether all work of a stream is done.
    fn cuStreamQuery(stream: usize) also cuStreamQuery_ptsz {
        let (driver, context) = current()?;
        let line = Line::of(driver, &context, stream)?;
        let pending = line.pending()?;
        prohibited(driver)?;
        if pending.iter().any(|gate| gate.opened().is_none()) {
            return Err(Code::NOT_READY);
        }
        line.context.check()
    }

    /// Waits for all work of a stream.
    fn cuStreamSynchronize(stream: usize) also cuStreamSynchronize_ptsz {
        let (driver, context) = current()?;
        let line = Line::of(driver, &context, stream)?;
        let pending = line.pending()?;
        prohibited(driver)?;
        for gate in pending {
            gate.wait();
        }
        super::pool::settle(driver);
        line.context.check()
    }

    /// The flags a stream was made with.
    fn cuStreamGetFlags(stream: usize, flags: Out<u32>) also cuStreamGetFlags_ptsz {
        flags.set(made(stream)?.map_or(0, |stream| stream.flags))
    }

    /// The priority of a stream.
    fn cuStreamGetPriority(stream: usize, priority: Out<i32>) also cuStreamGetPriority_ptsz {
        priority.set(made(stream)?.map_or(LEAST_URGENT, |stream| stream.priority))
    }

    /// The context of a stream.
    fn cuStreamGetCtx(stream: usize, context: Out<usize>) also cuStreamGetCtx_ptsz {
        let (driver, now) = current()?;
        context.set(Line::of(driver, &now, stream)?.context.handle)
    }

    /// The context of a stream; none is a green one.
    fn cuStreamGetCtx_v2(
        stream: usize,
        context: Out<usize>,
        green: Out<usize>,
    ) also cuStreamGetCtx_v2_ptsz {
        let (driver, now) = current()?;
        context.set(Line::of(driver, &now, stream)?.context.handle)?;
        green.offer(0);
        Ok(())
    }

    /// The device of a stream.
    fn cuStreamGetDevice(stream: usize, device: Out<i32>) also cuStreamGetDevice_ptsz {
        let (driver, now) = current()?;
        Line::of(driver, &now, stream)?;
        device.set(0)
    }

    /// A number that no other stream of the process has or had.
    fn cuStreamGetId(stream: usize, id: Out<u64>) also cuStreamGetId_ptsz {
        let (driver, now) = current()?;
        let line = Line::of(driver, &now, stream)?;
        // The legacy stream has one number in every context, so the context's stands for it.
        id.set(if line.lane == LEGACY { line.context.generation } else { line.lane })
    }

    /// Gives managed memory to a stream: there is none.
    fn cuStreamAttachMemAsync(
        _stream: usize,
        _address: u64,
        _bytes: usize,
        _flags: u32,
    ) also cuStreamAttachMemAsync_ptsz {
        Err(Code::NOT_SUPPORTED)
    }

    /// Puts a function of the caller into a stream. It must not call the driver.
    fn cuLaunchHostFunc(
        stream: usize,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        data: Host,
    ) also cuLaunchHostFunc_ptsz {
        let (driver, context) = current()?;
        let call = HostCall::new(function, data)?;
        Line::of(driver, &context, stream)?.submit(Op::Host(call)).map(drop)
    }

    /// Puts a function of the caller into a stream, which is told of an error and cannot be
    /// captured.
    fn cuStreamAddCallback(
        stream: usize,
        function: Option<unsafe extern "C" fn(usize, u32, *mut c_void)>,
        data: Host,
        flags: u32,
    ) also cuStreamAddCallback_ptsz {
        let (driver, context) = current()?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let call = StreamCall::new(function, stream, data)?;
        let line = Line::of(driver, &context, stream)?;
        if let Some(capture) = line.capture()? {
            capture.invalidate();
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        line.submit(Op::Callback(call)).map(drop)
    }
}
