//! Setting memory to a value of 1, 2 or 4 bytes, at once or in a stream.

use super::call::{abi, current};
use super::capture::prohibited;
use super::code::{Code, Result};
use super::driver::Driver;
use super::op::{Fill, Op, check_range};
use super::order::Line;

/// A run of `count` values.
fn flat(address: u64, pattern: &[u8], count: usize) -> Fill {
    Fill { address, pattern: pattern.to_vec(), count: count as u64, rows: 1, pitch: 0 }
}

/// `height` rows of `width` values.
fn rows(address: u64, pitch: usize, pattern: &[u8], width: usize, height: usize) -> Fill {
    let (count, rows, pitch) = (width as u64, height as u64, pitch as u64);
    Fill { address, pattern: pattern.to_vec(), count, rows, pitch }
}

/// Refuses what cannot work; `false` if there is nothing to set.
fn check(driver: &Driver, fill: &Fill) -> Result<bool> {
    let width = fill.pattern.len() as u64;
    let row = fill.count.checked_mul(width).ok_or(Code::INVALID_VALUE)?;
    if row == 0 || fill.rows == 0 {
        return Ok(false);
    }
    let aligned = fill.address.is_multiple_of(width) && fill.pitch.is_multiple_of(width);
    if !aligned || (fill.rows > 1 && fill.pitch < row) {
        return Err(Code::INVALID_VALUE);
    }
    let before = (fill.rows - 1).checked_mul(fill.pitch);
    let span = before.and_then(|before| before.checked_add(row)).ok_or(Code::INVALID_VALUE)?;
    check_range(driver, fill.address, span).map(|()| true)
}

/// Sets memory and waits for it.
fn now(fill: Fill) -> Result {
    let (driver, context) = current()?;
    prohibited(driver)?;
    let line = Line::of(driver, &context, 0)?;
    if let Some(capture) = line.capture()? {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    if check(driver, &fill)? { line.run(Op::Fill(fill)) } else { Ok(()) }
}

/// Sets memory in a stream.
fn later(fill: Fill, stream: usize) -> Result {
    let (driver, context) = current()?;
    let line = Line::of(driver, &context, stream)?;
    if check(driver, &fill)? { line.submit(Op::Fill(fill)).map(drop) } else { Ok(()) }
}

abi! {
    /// Bytes.
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) also cuMemsetD8_v2_ptds {
        now(flat(to, &[value], count))
    }

    /// Values of two bytes.
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) also cuMemsetD16_v2_ptds {
        now(flat(to, &value.to_le_bytes(), count))
    }

    /// Values of four bytes.
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) also cuMemsetD32_v2_ptds {
        now(flat(to, &value.to_le_bytes(), count))
    }

    /// Rows of bytes.
    fn cuMemsetD2D8_v2(
        to: u64,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
    ) also cuMemsetD2D8_v2_ptds {
        now(rows(to, pitch, &[value], width, height))
    }

    /// Rows of values of two bytes.
    fn cuMemsetD2D16_v2(
        to: u64,
        pitch: usize,
        value: u16,
        width: usize,
        height: usize,
    ) also cuMemsetD2D16_v2_ptds {
        now(rows(to, pitch, &value.to_le_bytes(), width, height))
    }

    /// Rows of values of four bytes.
    fn cuMemsetD2D32_v2(
        to: u64,
        pitch: usize,
        value: u32,
        width: usize,
        height: usize,
    ) also cuMemsetD2D32_v2_ptds {
        now(rows(to, pitch, &value.to_le_bytes(), width, height))
    }

    /// Bytes, in a stream.
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) also cuMemsetD8Async_ptsz {
        later(flat(to, &[value], count), stream)
    }

    /// Values of two bytes, in a stream.
    fn cuMemsetD16Async(
        to: u64,
        value: u16,
        count: usize,
        stream: usize,
    ) also cuMemsetD16Async_ptsz {
        later(flat(to, &value.to_le_bytes(), count), stream)
    }

    /// Values of four bytes, in a stream.
    fn cuMemsetD32Async(
        to: u64,
        value: u32,
        count: usize,
        stream: usize,
    ) also cuMemsetD32Async_ptsz {
        later(flat(to, &value.to_le_bytes(), count), stream)
    }

    /// Rows of bytes, in a stream.
    fn cuMemsetD2D8Async(
        to: u64,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
        stream: usize,
    ) also cuMemsetD2D8Async_ptsz {
        later(rows(to, pitch, &[value], width, height), stream)
    }

    /// Rows of values of four bytes, in a stream.
    fn cuMemsetD2D32Async(
        to: u64,
        pitch: usize,
        value: u32,
        width: usize,
        height: usize,
        stream: usize,
    ) also cuMemsetD2D32Async_ptsz {
        later(rows(to, pitch, &value.to_le_bytes(), width, height), stream)
    }
}
