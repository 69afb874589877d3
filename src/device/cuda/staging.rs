//! Copies between host and GPU through pinned memory.
//!
//! The driver copies pageable memory in steps of its own while the caller waits. A queue has a few
//! pinned blocks instead: an upload fills them and the caller goes on while they travel; a download
//! fetches a block while the one before is copied out. An event tells when a block may be used
//! again. Where the system refuses pinned memory, the driver's own way serves.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::event::Mark;
use super::{Gpu, Queue, failed};
use crate::error::{Error, Result};

/// Bytes of a block: enough that the cost of a command is small beside the copy.
const BLOCK: usize = 1 << 20;
/// Blocks of a queue: one being filled, one travelling, and room for both to be late.
const BLOCKS: usize = 4;

/// The pinned blocks of a queue, made when they are first needed.
#[derive(Default)]
pub(super) struct Staging {
    blocks: Vec<Block>,
    /// Blocks of copies that were sent and have been read.
    idle: Vec<Block>,
    /// Uses so far, to tell which block has waited longest.
    uses: u64,
    /// Whether the system has refused a block.
    refused: bool,
}

struct Block {
    host: *mut c_void,
    /// Recorded after the newest copy from or to it.
    done: Mark,
    /// The use in which that was.
    used: u64,
    /// Whether it holds what a download has yet to copy out.
    held: bool,
    gpu: Gpu,
}

// SAFETY: the memory is the block's own, and a lock guards the blocks of a queue.
unsafe impl Send for Block {}

impl Block {
    fn new(gpu: &Gpu) -> Result<Self, DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let done = Mark::new(gpu, flags)?;
        // SAFETY: the memory is released once, in `drop`.
        let host = unsafe { result::malloc_host(BLOCK, 0) }?;
        // SAFETY: it is BLOCK bytes long and nobody else has it. Zeros make it initialised.
        unsafe { host.cast::<u8>().write_bytes(0, BLOCK) };
        Ok(Self { host, done, used: 0, held: false, gpu: gpu.clone() })
    }

    /// Its first bytes. Nothing may be under way from or to it.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: the block is BLOCK initialised bytes, borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.host.cast(), len.min(BLOCK)) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // A copy may still be under way; a failed one is over.
            let _ = self.done.wait();
            // SAFETY: the memory came from `malloc_host` and is released once.
            let _ = unsafe { result::free_host(self.host) };
        }
    }
}

impl Staging {
    /// The number of a block that nothing uses, waiting for one if need be; none if a download
    /// holds all, or there are none.
    fn free(&mut self, gpu: &Gpu) -> Result<Option<usize>, DriverError> {
        self.uses += 1;
        let idle = |b: &Block| !b.held && b.done.is_done();
        let mut found = self.blocks.iter().position(idle);
        if found.is_none() && self.blocks.len() < BLOCKS && !self.refused {
            match Block::new(gpu) {
                Ok(block) => {
                    found = Some(self.blocks.len());
                    self.blocks.push(block);
                }
                Err(_) => self.refused = true,
            }
        }
        if found.is_none() {
            let open = self.blocks.iter().enumerate().filter(|(_, b)| !b.held);
            found = open.min_by_key(|(_, b)| b.used).map(|(i, _)| i);
            if let Some(block) = found.and_then(|i| self.blocks.get(i)) {
                block.done.wait()?;
            }
        }
        if let Some(block) = found.and_then(|i| self.blocks.get_mut(i)) {
            block.used = self.uses;
        }
        Ok(found)
    }
}

impl Queue {
    /// Copies to the GPU. `data` may change when this returns.
    pub(super) fn upload(&self, to: u64, data: &[u8]) -> Result<()> {
        if self.gpu().is_imagined() {
            self.count_upload();
            return Ok(());
        }
        self.ready_to_copy()?;
        self.count_upload();
        let tried = |e| failed(e, "copying to the GPU".into(), self.advice());
        let mut staging = self.staging().lock().unwrap_or_else(PoisonError::into_inner);
        staging.blocks.iter_mut().for_each(|b| b.held = false);
        for (i, part) in data.chunks(BLOCK).enumerate() {
            let at = to + (i * BLOCK) as u64;
            let free = staging.free(self.gpu()).map_err(|e| self.late(e))?;
            let Some(block) = free.and_then(|i| staging.blocks.get_mut(i)) else {
                drop(staging);
                return self.upload_pageable(at, data.get(i * BLOCK..).unwrap_or_default());
            };
            let bytes = block.bytes(part.len());
            bytes.copy_from_slice(part);
            // SAFETY: the buffer holds these bytes; the block stays as it is until `done`.
            unsafe { result::memcpy_htod_async(at, bytes, self.stream()) }.map_err(tried)?;
            block.done.record(self.stream()).map_err(tried)?;
        }
        Ok(())
    }

    /// Sets bytes to zero; a recorded queue does so at every replay.
    pub(super) fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || self.gpu().is_imagined() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the buffer holds these bytes, and zeros are elements of every type of one.
        let cleared = unsafe { result::memset_d8_async(at, 0, bytes, self.stream()) };
        cleared.map_err(|e| failed(e, "clearing memory".into(), self.advice()))
    }

    fn upload_pageable(&self, to: u64, data: &[u8]) -> Result<()> {
        // SAFETY: the buffer holds these bytes; `data` is there until the stream has stopped.
        let copied = unsafe { result::memcpy_htod_async(to, data, self.stream()) };
        copied.map_err(|e| failed(e, "copying to the GPU".into(), self.advice()))?;
        self.synchronize()
    }

    /// Copies from the GPU, after the commands before.
    pub(super) fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        if self.gpu().is_imagined() {
            self.count_fetch();
            data.fill(0);
            return Ok(());
        }
        self.ready_to_copy()?;
        self.count_fetch();
        let tried = |e| failed(e, "copying from the GPU".into(), self.advice());
        let mut staging = self.staging().lock().unwrap_or_else(PoisonError::into_inner);
        staging.blocks.iter_mut().for_each(|b| b.held = false);
        let mut under_way: VecDeque<(usize, &mut [u8])> = VecDeque::new();
        for (i, part) in data.chunks_mut(BLOCK).enumerate() {
            let at = from + (i * BLOCK) as u64;
            let mut free = staging.free(self.gpu()).map_err(|e| self.late(e))?;
            if free.is_none() && self.land(&mut staging, under_way.pop_front())? {
                free = staging.free(self.gpu()).map_err(|e| self.late(e))?;
            }
            let Some((n, block)) = free.and_then(|i| Some((i, staging.blocks.get_mut(i)?))) else {
                // SAFETY: as below, without a block.
                let copied = unsafe { result::memcpy_dtoh_async(part, at, self.stream()) };
                copied.map_err(tried)?;
                self.synchronize()?;
                continue;
            };
            // SAFETY: the buffer holds these bytes, and nobody looks at the block until `done`.
            let copied =
                unsafe { result::memcpy_dtoh_async(block.bytes(part.len()), at, self.stream()) };
            copied.map_err(tried)?;
            block.done.record(self.stream()).map_err(tried)?;
            block.held = true;
            under_way.push_back((n, part));
        }
        while self.land(&mut staging, under_way.pop_front())? {}
        Ok(())
    }

    /// Begins a copy from the GPU, after the commands before, which the host reads when it likes;
    /// `None` where it is empty or too long for one block.
    pub(super) fn send(&self, from: u64, bytes: usize) -> Result<Option<Sent>> {
        if bytes == 0 || bytes > BLOCK || self.gpu().is_imagined() {
            return Ok(None);
        }
        self.ready_to_copy()?;
        let tried = |e| failed(e, "copying from the GPU".into(), self.advice());
        let mut staging = self.staging().lock().unwrap_or_else(PoisonError::into_inner);
        let block = match staging.idle.pop() {
            Some(block) => block,
            None if staging.refused => return Ok(None),
            None => match Block::new(self.gpu()) {
                Ok(block) => block,
                Err(_) => {
                    staging.refused = true;
                    return Ok(None);
                }
            },
        };
        drop(staging);
        let mut sent = Sent { queue: self.clone(), block: Mutex::new(Some(block)) };
        let held = sent.block.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = held {
            // SAFETY: the buffer holds these bytes, and nobody looks at the block until `done`.
            let copied =
                unsafe { result::memcpy_dtoh_async(block.bytes(bytes), from, self.stream()) };
            copied.map_err(tried)?;
            block.done.record(self.stream()).map_err(tried)?;
        }
        Ok(Some(sent))
    }

    /// Copies a block that a download has filled to where it belongs; whether there was one.
    fn land(&self, staging: &mut Staging, part: Option<(usize, &mut [u8])>) -> Result<bool> {
        let Some((block, part)) = part.and_then(|(i, p)| Some((staging.blocks.get_mut(i)?, p)))
        else {
            return Ok(false);
        };
        block.done.wait().map_err(|e| self.late(e))?;
        part.copy_from_slice(block.bytes(part.len()));
        block.held = false;
        Ok(true)
    }

    /// Refuses a copy while the queue is being recorded: a replay would copy what the blocks hold
    /// by then. The recording goes on.
    fn ready_to_copy(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is live.
        let status = unsafe { result::stream::is_capturing(self.stream()) };
        match status.map_err(|e| self.late(e))? {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => {
                let what = "a queue that is being recorded cannot copy to or from the host";
                Err(Error::data(what, "write before the recording, read after it"))
            }
        }
    }
}

/// A copy from the GPU that was begun. Its block goes back to the queue in the end.
pub struct Sent {
    queue: Queue,
    block: Mutex<Option<Block>>,
}

impl Sent {
    /// The first `len` elements; waits for the copy, and for nothing after it.
    ///
    /// # Errors
    /// What went wrong before it; more elements than a block holds.
    pub fn read<T: bytemuck::Pod>(&self, len: usize) -> Result<Vec<T>> {
        self.queue.bind()?;
        self.queue.count_fetch();
        let mut data = vec![T::zeroed(); len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut data);
        self.queue.holds("reading what was sent", bytes.len(), BLOCK)?;
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = &mut *block {
            block.done.wait().map_err(|e| self.queue.late(e))?;
            bytes.copy_from_slice(block.bytes(bytes.len()));
        }
        Ok(data)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let block = self.block.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let mut staging = self.queue.staging().lock().unwrap_or_else(PoisonError::into_inner);
        // A later copy into it comes after this one in the queue.
        staging.idle.extend(block);
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a copy from {:?}", self.queue)
    }
}
