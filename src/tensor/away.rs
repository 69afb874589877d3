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
    /// Begins to copy them; `None` where they come when they are asked for.
    ///
    /// # Errors
    /// Those of the device.
    fn send(&self) -> Result<Option<Box<dyn Coming>>> {
        Ok(None)
    }
    /// For the one who put them there.
    fn as_any(&self) -> &dyn Any;
    /// The same, to change them.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// The same, for the last one who holds them.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// Elements on their way to the CPU's memory.
pub trait Coming: fmt::Debug + Send + Sync {
    /// Them, in any shape; waits until they have come, and for nothing after them.
    ///
    /// # Errors
    /// Those of the device.
    fn arrive(&self) -> Result<Tensor>;
}

/// Remote elements, and what was fetched of them.
#[derive(Debug)]
pub(super) struct Away {
    remote: Box<dyn Remote>,
    coming: OnceLock<Box<dyn Coming>>,
    fetched: OnceLock<Storage>,
}

impl Away {
    pub(super) fn new(elements: impl Remote) -> Self {
        let remote = Box::new(elements);
        Self { remote, coming: OnceLock::new(), fetched: OnceLock::new() }
    }

    pub(super) fn remote(&self) -> &dyn Remote {
        &*self.remote
    }

    /// The elements, to be changed: what was fetched of them is no longer true.
    pub(super) fn remote_mut(&mut self) -> &mut dyn Remote {
        self.fetched = OnceLock::new();
        &mut *self.remote
    }

    pub(super) fn into_remote(self) -> Box<dyn Remote> {
        self.remote
    }

    /// Sets the elements on their way.
    pub(super) fn send(&self) -> Result<()> {
        let known = self.fetched.get().is_some() || self.coming.get().is_some();
        let coming = if known { None } else { self.remote.send()? };
        coming.map(|coming| self.coming.get_or_init(|| coming));
        Ok(())
    }

    /// The elements in the CPU's memory.
    pub(super) fn here(&self) -> Result<&Storage> {
        if let Some(storage) = self.fetched.get() {
            return Ok(storage);
        }
        let storage = match self.coming.get() {
            Some(coming) => coming.arrive()?.storage,
            None => self.remote.fetch()?.storage,
        };
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
