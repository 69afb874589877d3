//! Elements that live elsewhere than in the CPU's memory.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;

use super::{DType, Storage, Tensor};
use crate::error::{Error, Result};

/// Elements elsewhere. Who put them there finds its own type again through [`Remote::as_any`].
pub trait Remote: fmt::Debug + Send + Sync + 'static {
    /// Their type.
    fn dtype(&self) -> DType;
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A copy in the CPU's memory, in any shape; waits for the commands before.
    ///
    /// # Errors
    /// Those of the device.
    fn fetch(&self) -> Result<Tensor>;
    /// For the one who put them there.
    fn as_any(&self) -> &dyn Any;
    /// The same, for the last one who holds them.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// Remote elements, and what was fetched of them.
#[derive(Debug)]
pub(super) struct Away {
    remote: Box<dyn Remote>,
    fetched: OnceLock<Storage>,
}

impl Away {
    pub(super) fn new(elements: impl Remote) -> Self {
        Self { remote: Box::new(elements), fetched: OnceLock::new() }
    }

    pub(super) fn remote(&self) -> &dyn Remote {
        &*self.remote
    }

    pub(super) fn into_remote(self) -> Box<dyn Remote> {
        self.remote
    }

    /// The elements in the CPU's memory.
    pub(super) fn here(&self) -> Result<&Storage> {
        if let Some(storage) = self.fetched.get() {
            return Ok(storage);
        }
        let storage = self.remote.fetch()?.storage;
        match storage {
            Storage::Away(_) => Err(unreachable()),
            here => Ok(self.fetched.get_or_init(|| here)),
        }
    }
}

/// What was fetched is here.
pub(super) fn unreachable() -> Error {
    Error::Internal("a device handed out elements of another device".into())
}
