//! Memory on the GPU, in the order of one queue.
//!
//! Allocation and release are commands of the queue's stream, so a buffer may be dropped while a
//! kernel still uses it. What is released stays in the driver's pool for the next buffer.

use std::fmt;
use std::marker::PhantomData;

use super::plan::Memory;
use super::{Queue, Sent};
use crate::device::kernel::{Element, Slice, SliceMut};
use crate::error::Result;
use crate::tensor::Tensor;

/// `len` elements on the GPU.
pub struct Buffer<T: Element> {
    queue: Queue,
    address: u64,
    len: usize,
    memory: Memory,
    holds: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// A constant, whose memory the queue keeps.
    pub(super) fn kept(queue: &Queue, address: u64, len: usize) -> Self {
        Self { queue: queue.clone(), address, len, memory: Memory::Kept, holds: PhantomData }
    }

    /// `len` elements from `first` on, which a tensor holds; it is kept as long as they are used.
    /// Nobody writes to them.
    pub(in crate::device) fn part(&self, of: Tensor, first: usize, len: usize) -> Self {
        let address = self.address + (first * size_of::<T>()) as u64;
        let memory = Memory::Shared { _of: of };
        Self { queue: self.queue.clone(), address, len, memory, holds: PhantomData }
    }

    /// Not filled yet: a kernel or [`Buffer::write`] must do so before it is read.
    ///
    /// # Errors
    /// Too little memory, saying how much is free.
    pub fn new(queue: &Queue, len: usize) -> Result<Self> {
        let (address, memory) = queue.take(len.saturating_mul(size_of::<T>()).max(1))?;
        Ok(Self { queue: queue.clone(), address, len, memory, holds: PhantomData })
    }

    /// Zeros.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn zeros(queue: &Queue, len: usize) -> Result<Self> {
        let buffer = Self::new(queue, len)?;
        queue.clear(buffer.address, len.saturating_mul(size_of::<T>()))?;
        Ok(buffer)
    }

    /// A copy of these elements.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn from_slice(queue: &Queue, data: &[T]) -> Result<Self> {
        let mut buffer = Self::new(queue, data.len())?;
        buffer.write(data)?;
        Ok(buffer)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The queue whose order it lives in.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// For a kernel to read.
    pub fn slice(&self) -> Slice<'_, T> {
        Slice::new(self.address, self.len, self.queue.id())
    }

    /// For a kernel to write.
    pub fn slice_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut::new(self.address, self.len, self.queue.id())
    }

    /// Overwrites the first elements with `data`, which must not be longer than the buffer. The
    /// caller goes on while the copy is under way.
    ///
    /// # Errors
    /// Too much data; a queue that is being recorded; those of the driver.
    pub fn write(&mut self, data: &[T]) -> Result<()> {
        self.queue.holds("writing to a buffer", data.len(), self.len)?;
        if data.is_empty() {
            return Ok(());
        }
        self.queue.upload(self.address, bytemuck::cast_slice(data))
    }

    /// The elements; waits for the commands before.
    ///
    /// # Errors
    /// A queue that is being recorded; those of the driver, also of the kernels before.
    pub fn read(&self) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        match data.is_empty() {
            true => self.queue.synchronize()?,
            false => self.queue.download(self.address, bytemuck::cast_slice_mut(&mut data))?,
        }
        Ok(data)
    }
}

impl<T: Element> Buffer<T> {
    /// Begins to copy the elements to the host, after the commands before; `None` where there are
    /// none, or more than fit a pinned block.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn send(&self) -> Result<Option<Sent>> {
        self.queue.send(self.address, self.len * size_of::<T>())
    }
}

impl<T: Element> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] in {:?}", T::NAME, self.len, self.queue)
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.queue.give_back(self.address, &self.memory);
    }
}
