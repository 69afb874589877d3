//! Elements that live elsewhere than in the CPU's memory.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;

use super::{DType, Storage, Tensor};
use crate::error::{Error, Result};

/// Elements elsewhere. Who put them there finds its own type again: see `downcast_ref` of `dyn
/// Remote`.
pub trait Remote: Any + fmt::Debug + Send + Sync {
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
}

impl dyn Remote {
    /// For the one who put them there.
    pub fn downcast_ref<T: Remote>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }

    /// The same, to change them.
    pub fn downcast_mut<T: Remote>(&mut self) -> Option<&mut T> {
        (self as &mut dyn Any).downcast_mut()
    }

    /// The same, for the last one who holds them; None where it is another's.
    pub fn downcast<T: Remote>(self: Box<Self>) -> Option<Box<T>> {
        (self as Box<dyn Any>).downcast().ok()
    }
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
