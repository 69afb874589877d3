//! A file mapped into memory, read-only: the operating system pages it in as it is touched.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use half::bf16;

use crate::error::{Error, Result};
use crate::tensor::{DType, Remote, Tensor};

/// The bytes of a file, paged in on demand and shared between processes.
#[derive(Debug)]
pub struct Mapped(Bytes);

#[derive(Debug)]
enum Bytes {
    File(memmap2::Mmap),
    Held(Vec<u8>),
}

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
        Ok(Self(Bytes::File(map)))
    }

    /// Bytes in memory in the place of a file's: what a compressed file held.
    pub fn held(bytes: Vec<u8>) -> Self {
        Self(Bytes::Held(bytes))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::File(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

/// Real numbers that stay in a mapped file, in bf16: products of the CPU read them there, and
/// whoever else asks for them gets a copy in f32.
#[derive(Debug)]
pub struct Halves {
    map: Arc<Mapped>,
    bytes: Range<usize>,
}

impl Halves {
    /// Those in these bytes of a file; `None` where they cannot be read in place.
    pub fn new(map: &Arc<Mapped>, bytes: Range<usize>) -> Option<Self> {
        let halves = Self { map: Arc::clone(map), bytes };
        let there = halves.map.get(halves.bytes.clone())?;
        let fits = bytemuck::try_cast_slice::<u8, bf16>(there).is_ok();
        (fits && cfg!(target_endian = "little")).then_some(halves)
    }

    /// Those of a tensor, if it holds such.
    pub fn of(t: &Tensor) -> Option<&Self> {
        t.remote()?.downcast_ref()
    }

    /// The elements.
    pub fn elements(&self) -> &[bf16] {
        let bytes = self.map.get(self.bytes.clone()).unwrap_or_default();
        bytemuck::try_cast_slice(bytes).unwrap_or_default()
    }
}

impl Remote for Halves {
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn len(&self) -> usize {
        self.bytes.len() / size_of::<bf16>()
    }
    fn fetch(&self) -> Result<Tensor> {
        let wide: Vec<f32> = self.elements().iter().map(|x| x.to_f32()).collect();
        let n = wide.len();
        Tensor::new(wide, [n])
    }
}
