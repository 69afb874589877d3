//! Compiled images kept on disk under a hash of everything they depend on, so that only changed
//! kernels are compiled again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::error::{Error, Result};
use crate::nvrtc::Output;

/// The first line of a record; a change of the record's form changes it.
const FORM: &str = "kernelc 2";

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

/// A place for one compiled file: `NAME.HASH.image`, PTX and then machine code, beside
/// `NAME.HASH.log`.
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
        let mut ptx = fs::read(&self.image).ok()?;
        let (head, log) = record.split_once("\n\n")?;
        let mut lines = head.lines();
        let lengths = lines.next()?.strip_prefix(FORM)?.strip_prefix(", bytes ")?;
        let (first, second) = lengths.split_once(" and ")?;
        let [first, second]: [usize; 2] = [first.parse().ok()?, second.parse().ok()?];
        (first.checked_add(second)? == ptx.len()).then_some(())?;
        let cubin = ptx.split_off(first);
        let symbols: Vec<String> = lines.map(str::to_string).collect();
        let log = log.to_string();
        (symbols.len() == expressions.len()).then_some(Output { ptx, cubin, symbols, log })
    }

    /// Puts it there. The record comes last and by renaming: where it is, all is.
    pub(crate) fn store(&self, output: &Output) -> Result<()> {
        let Output { ptx, cubin, symbols, log } = output;
        let lengths = format!("{FORM}, bytes {} and {}", ptx.len(), cubin.len());
        let record = format!("{lengths}\n{}\n\n{log}", symbols.join("\n"));
        write_whole(&self.image, &[ptx.as_slice(), cubin].concat())?;
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
        let (ptx, cubin) = (vec![1, 2, 3], vec![4, 5]);
        let output = Output { ptx, cubin, symbols: vec!["_Z1f".into()], log };
        slot.store(&output).unwrap();
        let back = slot.load(&asked).unwrap();
        assert_eq!((back.ptx, back.cubin), (output.ptx, output.cubin));
        assert_eq!((back.symbols, back.log), (output.symbols, output.log));
        fs::write(&slot.image, [1]).unwrap();
        assert!(slot.load(&asked).is_none());
    }
}
