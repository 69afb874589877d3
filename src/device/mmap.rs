//! A file mapped into memory, read-only: the operating system pages it in as it is touched.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// The bytes of a file, paged in on demand and shared between processes.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps `path`. A file that cannot be opened, is not a plain file or is empty is an error.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !meta.is_file() {
            return Err(Error::file(path, "not a plain file", "name the file itself"));
        }
        if meta.len() == 0 {
            return Err(Error::file(
                path,
                "the file is empty (0 bytes)",
                "fetch or write it again",
            ));
        }
        // SAFETY: the mapping is read-only and private to this value. Its bytes would change under
        // a `&[u8]` only if another program rewrote the file in place; this crate never does: every
        // file it writes is renamed over the old name, which leaves an open mapping as it was.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
