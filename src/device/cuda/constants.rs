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
    /// These elements, which stay on the GPU as long as the queue is there.
    ///
    /// # Errors
    /// Those of the driver; numbers that are new to a queue that is being recorded.
    pub fn constant<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut all = self.constants().0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (T::NAME, bytes.to_vec());
        let address = match all.get(&key) {
            Some(&address) => address,
            None => {
                let address = self.allocate(bytes.len().max(1))?;
                let sent = if bytes.is_empty() { Ok(()) } else { self.upload(address, bytes) };
                if let Err(e) = sent {
                    self.release(address);
                    return Err(e);
                }
                all.insert(key, address);
                address
            }
        };
        Ok(Buffer::kept(self, address, data.len()))
    }
}
