//! The images of a pack: JPEGs that share their first bytes, or raw pixels.

use std::path::Path;
use std::sync::Arc;

use super::broken;
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};
use crate::io::safetensors::TensorFile;

/// The images of a pack, which clones share.
#[derive(Clone, Debug)]
pub struct PackImages {
    file: Arc<TensorFile>,
    side: usize,
    /// Where each JPEG ends; none for raw pixels.
    offsets: Option<Arc<[u32]>>,
    ids: Arc<[String]>,
}

impl PackImages {
    pub(super) fn open(file: &Arc<TensorFile>, ids: Vec<String>, side: usize) -> Result<Self> {
        let offsets = read_offsets(file, ids.len(), side)?;
        Ok(Self { file: Arc::clone(file), side, offsets, ids: ids.into() })
    }

    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    pub(super) fn side(&self) -> usize {
        self.side
    }

    /// Image `i`.
    ///
    /// # Errors
    /// One that cannot be decoded, by name.
    pub fn tile(&self, i: usize) -> Result<Rgb> {
        let lacks = || Error::Internal(format!("image {i} of {}", self.ids.len()));
        let (s, id) = (self.side, self.ids.get(i).ok_or_else(lacks)?);
        let Some(offsets) = &self.offsets else {
            let bytes = &self.file.bytes("image.raw")?[3 * s * s * i..3 * s * s * (i + 1)];
            return Rgb::new(s, s, bytes.to_vec());
        };
        let tail = &self.file.bytes("image.bytes")?[offsets[i] as usize..offsets[i + 1] as usize];
        let mut jpeg = self.file.bytes("image.head")?.to_vec();
        jpeg.extend_from_slice(tail);
        let name = format!("{} (image {i}, {id})", self.file.path().display());
        images::decode(&jpeg, Path::new(&name), Expect::tile(s, s))
    }
}

/// Where each JPEG ends, or None for a store of raw pixels.
fn read_offsets(file: &TensorFile, n: usize, size: usize) -> Result<Option<Arc<[u32]>>> {
    if file.contains("image.raw") {
        return match file.shape("image.raw")? == [n, size, size, 3] {
            true => Ok(None),
            false => Err(broken(file, "\"image.raw\" does not hold the tiles it names")),
        };
    }
    let offsets = file.u32s("image.offsets")?;
    let bytes = file.bytes("image.bytes")?.len();
    file.bytes("image.head")?;
    let whole = offsets.len() == n + 1 && offsets.is_sorted() && offsets.first() == Some(&0);
    if !whole || offsets.last().map(|&e| e as usize) != Some(bytes) {
        return Err(broken(file, "\"image.offsets\" does not describe \"image.bytes\""));
    }
    Ok(Some(offsets.into()))
}
