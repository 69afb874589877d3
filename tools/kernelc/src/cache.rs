//! Compiled images kept on disk under a hash of everything they depend on, so that only changed
//! kernels are compiled again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::error::{Error, Result};
use crate::nvrtc::Output;

/// The first line of a record; a change of the record's form changes it.
const FORM: &str = "kernelc 1";

/// FNV-1a of 128 bits over pieces, each with its length, so that no two lists of pieces read alike.
pub(crate) struct Hash(u128);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    pub(crate) fn add(&mut self, piece: &str) {
        let length = (piece.len() as u64).to_le_bytes();
        for byte in length.into_iter().chain(piece.bytes()) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    pub(crate) fn text(&self) -> String {
        format!("{:032x}", self.0)
    }
}

/// A place for one compiled file: `NAME.HASH.image` beside `NAME.HASH.log`.
pub(crate) struct Slot {
    image: PathBuf,
    log: PathBuf,
}

impl Slot {
    pub(crate) fn new(cache: &Path, name: &str, hash: &Hash) -> Self {
        let file = |end: &str| cache.join(format!("{name}.{}.{end}", hash.text()));
        Self { image: file("image"), log: file("log") }
    }

    /// What lies there. A record that is damaged counts as absent.
    pub(crate) fn load(&self, expressions: &[String]) -> Option<Output> {
        let record = fs::read_to_string(&self.log).ok()?;
        let image = fs::read(&self.image).ok()?;
        let (head, log) = record.split_once("\n\n")?;
        let mut lines = head.lines();
        let length = format!("{FORM}, {} bytes", image.len());
        (lines.next()? == length).then_some(())?;
        let symbols: Vec<String> = lines.map(str::to_string).collect();
        (symbols.len() == expressions.len()).then(|| Output {
            image,
            symbols,
            log: log.to_string(),
        })
    }

    /// Puts it there. The record comes last and by renaming: where it is, all is.
    pub(crate) fn store(&self, output: &Output) -> Result<()> {
        let length = format!("{FORM}, {} bytes", output.image.len());
        let record = format!("{length}\n{}\n\n{}", output.symbols.join("\n"), output.log);
        write_whole(&self.image, &output.image)?;
        write_whole(&self.log, record.as_bytes())
    }
}

/// Writes a file by renaming, so that a reader sees all of it or none.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = dir.join(format!(".{name}.{}", process::id()));
    fs::write(&partial, bytes).map_err(Error::io("write", &partial))?;
    fs::rename(&partial, path).map_err(Error::io("rename", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_and_tells_pieces_apart() {
        let of = |pieces: &[&str]| {
            let mut hash = Hash::new();
            pieces.iter().for_each(|p| hash.add(p));
            hash.text()
        };
        assert_eq!(of(&[]), "6c62272e07bb014262b821756295c58d");
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
    }

    #[test]
    fn a_damaged_record_counts_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::new(dir.path(), "x.sm_80", &Hash::new());
        let asked = vec!["f<float>".to_string()];
        assert!(slot.load(&asked).is_none());
        let log = "a line\n\nanother".to_string();
        let output = Output { image: vec![1, 2, 3], symbols: vec!["_Z1f".into()], log };
        slot.store(&output).unwrap();
        let back = slot.load(&asked).unwrap();
        assert_eq!(
            (back.image, back.symbols, back.log),
            (output.image, output.symbols, output.log)
        );
        fs::write(&slot.image, [1]).unwrap();
        assert!(slot.load(&asked).is_none());
    }
}
