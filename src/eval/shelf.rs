//! Where the tiles of a set lie: in memory, or in files from which each is read when it is looked
//! at, so that a set of any number of tiles takes the memory of a few.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::pack::Pack;
use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};
use crate::io::npz::Npz;

/// Equally large tiles, at least one.
#[derive(Debug)]
pub(super) enum Shelf {
    /// In memory.
    Held(Vec<Rgb>),
    /// Image files.
    Files(Vec<PathBuf>, (usize, usize)),
    /// Images of a pack.
    Pack(Box<Pack>, Vec<usize>),
    /// A NumPy archive.
    Archive(Npz),
}

impl Shelf {
    /// Opens a folder, a pack's split (`FILE#SPLIT`) or an archive (`.npz`).
    ///
    /// # Errors
    /// A missing or empty folder, images of several sizes, an unknown split, no archive of images.
    pub(super) fn open(from: &str) -> Result<Self> {
        let path = Path::new(from);
        if let Some((file, split)) = from.split_once('#').filter(|_| !path.exists()) {
            let pack = Pack::open(file)?;
            let which = pack.images(split)?;
            return Ok(Self::Pack(Box::new(pack), which));
        }
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("npz")) {
            return Ok(Self::Archive(Npz::open(path)?));
        }
        let paths = image_paths(path)?;
        let first = images::size(&paths[0])?;
        paths[1..].par_iter().try_for_each(|path| match images::size(path)? {
            size if size == first => Ok(()),
            (w, h) => {
                let what = format!("the image is {w}x{h} pixels, others {}x{}", first.0, first.1);
                Err(Error::file(path, what, "give tiles of one size"))
            }
        })?;
        Ok(Self::Files(paths, (first.0 as usize, first.1 as usize)))
    }

    /// Number of tiles.
    pub(super) fn n(&self) -> usize {
        match self {
            Self::Held(images) => images.len(),
            Self::Files(paths, _) => paths.len(),
            Self::Pack(_, which) => which.len(),
            Self::Archive(npz) => npz.n(),
        }
    }

    /// Width and height of every tile.
    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Self::Held(images) => images.first().map_or((0, 0), |t| (t.width, t.height)),
            Self::Files(_, size) => *size,
            Self::Pack(pack, _) => (pack.tile_size(), pack.tile_size()),
            Self::Archive(npz) => npz.size(),
        }
    }

    /// Tile `i`, which must be below n.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub(super) fn tile(&self, i: usize) -> Result<Cow<'_, Rgb>> {
        Ok(match self {
            Self::Held(images) => Cow::Borrowed(&images[i]),
            Self::Files(paths, (w, h)) => {
                Cow::Owned(images::read(&paths[i], Expect::tile(*w, *h))?)
            }
            Self::Pack(pack, which) => Cow::Owned(pack.tile(which[i])?),
            Self::Archive(npz) => Cow::Owned(npz.image(i)?),
        })
    }
}

/// The images directly in a folder, sorted by name; at least one.
fn image_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        if images::named_image(&path) {
            paths.push(path);
        }
    }
    // What `genevar sample` wrote has an overview beside the tiles.
    if folder.join("samples.json").exists() {
        paths.retain(|p| p.file_name().is_none_or(|name| name != "grid.png"));
    }
    paths.sort();
    match paths.is_empty() {
        false => Ok(paths),
        true => {
            let fix = "give a folder of tiles, or a pack with a split, as pack.safetensors#val";
            Err(Error::file(folder, "holds no PNG, JPEG or TIFF images", fix))
        }
    }
}
