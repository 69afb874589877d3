//! Numbers that never change, placed once: zero biases, tables of a resize, times, row numbers.
//!
//! They are known by their bytes, so whoever asks for the same ones again is given what is there,
//! without a copy; a queue that is being recorded can use those that were asked for before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{Buffer, Queue};
use crate::device::kernel::Element;
use crate::error::Result;

/// Addresses by the type's name and the bytes.
#[derive(Default)]
pub(super) struct Constants(Mutex<HashMap<(&'static str, Vec<u8>), u64>>);

impl Constants {
    /// All addresses, for the queue's end.
    pub(super) fn addresses(&self) -> Vec<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().copied().collect()
    }
}

impl Queue {
    /// A counter for kernels whose blocks wait for each other: 0 between launches, since each
    /// leaves it as it found it.
    ///
    /// # Errors
    /// As [`Queue::constant`].
    pub fn gate(&self) -> Result<Buffer<i32>> {
        Ok(Buffer::kept(self, self.placed("gate", bytemuck::bytes_of(&0i32))?, 1))
    }

    /// These elements, which stay on the GPU as long as the queue is there.
    ///
    /// # Errors
    /// Those of the driver; numbers that are new to a queue that is being recorded.
    pub fn constant<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        Ok(Buffer::kept(self, self.placed(T::NAME, bytemuck::cast_slice(data))?, data.len()))
    }

    /// Where these bytes are.
    fn placed(&self, kind: &'static str, bytes: &[u8]) -> Result<u64> {
        let mut all = self.constants().0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, bytes.to_vec());
        if let Some(&address) = all.get(&key) {
            return Ok(address);
        }
        let address = self.allocate(bytes.len().max(1))?;
        let sent = if bytes.is_empty() { Ok(()) } else { self.upload(address, bytes) };
        if let Err(e) = sent {
            self.release(address);
            return Err(e);
        }
        all.insert(key, address);
        Ok(address)
    }
}
