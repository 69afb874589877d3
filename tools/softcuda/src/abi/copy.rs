//! Copies between host and device, at once or in a stream.
//!
//! As on hardware, an asynchronous copy is only so when its host memory is pinned: from pageable
//! memory the bytes are taken before the call returns, and a copy to pageable memory is waited for.

use super::call::{abi, current};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::driver::Driver;
use super::host::is_pinned;
use super::op::{Copy, Op, Place};
use super::order::Line;
use super::raw::{Host, In};
use std::sync::Arc;

/// An end of a copy from a number that may be a device or a host address.
fn either(driver: &Driver, address: u64) -> Place {
    match driver.memory.find(address) {
        Some(_) => Place::Device(address),
        None => Place::Host(Host::from_address(address)),
    }
}

/// Bytes from first to last of one end of a copy.
fn span(rows: u64, bytes: u64, pitch: u64) -> Result<u64> {
    let before = rows.saturating_sub(1).checked_mul(pitch);
    before.and_then(|before| before.checked_add(bytes)).ok_or(Code::INVALID_VALUE)
}

/// Runs a copy in a stream and waits for it.
fn now(copy: Copy) -> Result {
    let (driver, context) = current()?;
    prohibited(driver)?;
    let line = Line::of(driver, &context, 0)?;
    if check(driver, &copy)? == 0 {
        return Ok(());
    }
    if let Some(capture) = line.capture()? {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    line.run(Op::Copy(copy))
}

/// Refuses what cannot work and returns the number of bytes.
fn check(driver: &Driver, copy: &Copy) -> Result<u64> {
    let bytes = copy.bytes.checked_mul(copy.rows).ok_or(Code::INVALID_VALUE)?;
    if bytes > 0 {
        copy.to.check(driver, span(copy.rows, copy.bytes, copy.to_pitch)?)?;
        copy.from.check(driver, span(copy.rows, copy.bytes, copy.from_pitch)?)?;
    }
    Ok(bytes)
}

/// Puts a copy into a stream.
fn later(mut copy: Copy, stream: usize) -> Result {
    let (driver, context) = current()?;
    let line = Line::of(driver, &context, stream)?;
    if check(driver, &copy)? == 0 {
        return Ok(());
    }
    let captured = line.capture()?.is_some();
    let mut wait = false;
    if let Place::Host(host) = copy.from {
        let bytes = span(copy.rows, copy.bytes, copy.from_pitch)?;
        if !captured && !is_pinned(driver, host, bytes) {
            copy.from = Place::Staged(Arc::new(host.read(bytes as usize)?));
        }
    }
    if let Place::Host(host) = copy.to {
        wait = !is_pinned(driver, host, span(copy.rows, copy.bytes, copy.to_pitch)?);
    }
    let gate = line.submit(Op::Copy(copy))?;
    match gate {
        Some(gate) if wait => {
            gate.wait();
            line.context.check()
        }
        _ => Ok(()),
    }
}

/// The part of a `CUDA_MEMCPY2D` that is the same for both ends.
#[repr(C)]
#[derive(Clone, std::marker::Copy)]
struct End {
    x: usize,
    y: usize,
    kind: u32,
    host: usize,
    device: u64,
    array: usize,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, std::marker::Copy)]
pub(super) struct Copy2D {
    from: End,
    to: End,
    width: usize,
    height: usize,
}

impl End {
    fn place(&self, driver: &Driver, width: usize) -> Result<(Place, u64)> {
        let pitch = if self.pitch == 0 { width } else { self.pitch };
        let offset = self.y.checked_mul(pitch).and_then(|start| start.checked_add(self.x));
        let offset = offset.filter(|_| pitch >= width).ok_or(Code::INVALID_VALUE)? as u64;
        let place = match self.kind {
            1 => Place::Host(Host::from_address(self.host as u64 + offset)),
            2 => Place::Device(self.device + offset),
            4 => either(driver, self.device + offset),
            // 3 is a texture array, of which there are none.
            _ => return Err(Code::NOT_SUPPORTED),
        };
        Ok((place, pitch as u64))
    }
}

fn copy_2d(copy: In<Copy2D>) -> Result<Copy> {
    let (driver, _context) = current()?;
    let copy = copy.get()?;
    let (to, to_pitch) = copy.to.place(driver, copy.width)?;
    let (from, from_pitch) = copy.from.place(driver, copy.width)?;
    let (bytes, rows) = (copy.width as u64, copy.height as u64);
    Ok(Copy { to, from, bytes, rows, to_pitch, from_pitch })
}

/// A copy between two numbers that may be device or host addresses.
fn any(to: u64, from: u64, bytes: usize) -> Result<Copy> {
    let (driver, _context) = current()?;
    Ok(Copy::flat(either(driver, to), either(driver, from), bytes as u64))
}

abi! {
    /// Host to device.
    fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) also cuMemcpyHtoD_v2_ptds {
        now(Copy::flat(Place::Device(to), Place::Host(from), bytes as u64))
    }

    /// Device to host.
    fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) also cuMemcpyDtoH_v2_ptds {
        now(Copy::flat(Place::Host(to), Place::Device(from), bytes as u64))
    }

    /// Device to device.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) also cuMemcpyDtoD_v2_ptds {
        now(Copy::flat(Place::Device(to), Place::Device(from), bytes as u64))
    }

    /// Between any two addresses.
    fn cuMemcpy(to: u64, from: u64, bytes: usize) also cuMemcpy_ptds {
        now(any(to, from, bytes)?)
    }

    /// Between contexts, which share the device's memory.
    fn cuMemcpyPeer(
        to: u64,
        _to_context: usize,
        from: u64,
        _from_context: usize,
        bytes: usize,
    ) also cuMemcpyPeer_ptds {
        now(Copy::flat(Place::Device(to), Place::Device(from), bytes as u64))
    }

    /// Rows.
    fn cuMemcpy2D_v2(copy: In<Copy2D>) also cuMemcpy2D_v2_ptds {
        now(copy_2d(copy)?)
    }

    /// Rows of any pitch.
    fn cuMemcpy2DUnaligned_v2(copy: In<Copy2D>) also cuMemcpy2DUnaligned_v2_ptds {
        now(copy_2d(copy)?)
    }

    /// Host to device, in a stream.
    fn cuMemcpyHtoDAsync_v2(
        to: u64,
        from: Host,
        bytes: usize,
        stream: usize,
    ) also cuMemcpyHtoDAsync_v2_ptsz {
        later(Copy::flat(Place::Device(to), Place::Host(from), bytes as u64), stream)
    }

    /// Device to host, in a stream.
    fn cuMemcpyDtoHAsync_v2(
        to: Host,
        from: u64,
        bytes: usize,
        stream: usize,
    ) also cuMemcpyDtoHAsync_v2_ptsz {
        later(Copy::flat(Place::Host(to), Place::Device(from), bytes as u64), stream)
    }

    /// Device to device, in a stream.
    fn cuMemcpyDtoDAsync_v2(
        to: u64,
        from: u64,
        bytes: usize,
        stream: usize,
    ) also cuMemcpyDtoDAsync_v2_ptsz {
        later(Copy::flat(Place::Device(to), Place::Device(from), bytes as u64), stream)
    }

    /// Between any two addresses, in a stream.
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize) also cuMemcpyAsync_ptsz {
        later(any(to, from, bytes)?, stream)
    }

    /// Between contexts, which share the device's memory, in a stream.
    fn cuMemcpyPeerAsync(
        to: u64,
        _to_context: usize,
        from: u64,
        _from_context: usize,
        bytes: usize,
        stream: usize,
    ) also cuMemcpyPeerAsync_ptsz {
        later(Copy::flat(Place::Device(to), Place::Device(from), bytes as u64), stream)
    }

    /// Rows, in a stream.
    fn cuMemcpy2DAsync_v2(copy: In<Copy2D>, stream: usize) also cuMemcpy2DAsync_v2_ptsz {
        later(copy_2d(copy)?, stream)
    }
}
