//! Ctrl-C, politely: the first one asks the loop to save and stop, the second one ends the process.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that somebody may raise to stop a run after its current step.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// The flag that Ctrl-C and the termination signals raise; the handler is installed once.
    pub fn from_keyboard() -> Result<Self> {
        static FLAG: OnceLock<Interrupt> = OnceLock::new();
        if let Some(flag) = FLAG.get() {
            return Ok(flag.clone());
        }
        let flag = Self::default();
        let seen = flag.clone();
        ctrlc::set_handler(move || {
            if seen.0.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .map_err(|e| Error::Internal(format!("no handler for Ctrl-C: {e}")))?;
        Ok(FLAG.get_or_init(|| flag).clone())
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Fails once the flag is up: for work that keeps nothing half-done.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        match self.is_raised() {
            true => Err(Error::Interrupted { resume: "nothing was written: start again".into() }),
            false => Ok(()),
        }
    }

    /// Whether the flag is up.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
