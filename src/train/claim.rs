//! A run belongs to one process at a time.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::atomic::create_folder;

/// Keeps other processes from training in a folder, for as long as it lives and not longer, however
/// this process ends.
pub struct Claim {
    _file: File,
}

impl Claim {
    /// Takes a folder, which is made where it is not there.
    ///
    /// # Errors
    /// Another process has it; a folder that cannot be written to.
    pub fn on(dir: &Path) -> Result<Self> {
        create_folder(dir)?;
        let path = dir.join(".lock");
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let fix = "wait for it or stop it, or give another --out";
                Err(Error::file(dir, "is where another process trains just now", fix))
            }
            // A file system without locks cannot keep anybody out.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _file: file }),
        }
    }
}
