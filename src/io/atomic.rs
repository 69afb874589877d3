//! Writing a file so that it is there whole or not at all.
//!
//! The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
//! then renamed over its name. A process killed half-way leaves at most a `.tmp` file behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Writes `bytes` to `path`, replacing what was there.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes.len() as u64, |out| out.write_all(bytes))
}

/// Writes to `path` what `fill` writes; `wanted` is its size in bytes, for the message on a full
/// disk.
///
/// # Errors
/// Whatever the system refuses. The temporary file is removed and the old file, if there was one,
/// is untouched.
pub fn write_with(
    path: impl AsRef<Path>,
    wanted: u64,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let temporary = temporary_name(path)?;
    let written = write_temporary(&temporary, fill).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // The first error is the one to report; there may be no file to remove.
        let _ = fs::remove_file(&temporary);
        return Err(refused(path, wanted, source));
    }
    sync_folder(path);
    Ok(())
}

/// A file that is written part by part, in any order, and appears when it is finished. Dropped
/// before that, it is removed.
#[derive(Debug)]
pub struct Draft {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
}

impl Draft {
    /// Begins what is to be at `path`.
    ///
    /// # Errors
    /// Whatever the system refuses.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = temporary_name(path)?;
        let file = File::create(&temporary).map_err(|e| Error::io("create", path, e))?;
        Ok(Self { file, temporary, path: path.to_path_buf(), bytes: 0 })
    }

    /// Writes `bytes` from the byte `at` on.
    ///
    /// # Errors
    /// Whatever the system refuses, a full disk for one.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        let moved = self.file.seek(SeekFrom::Start(at));
        let written = moved.and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| refused(&self.path, self.bytes, e))
    }

    /// Lets the file appear, whole.
    ///
    /// # Errors
    /// Whatever the system refuses; the old file, if there was one, is untouched.
    pub fn finish(self) -> Result<()> {
        let there = self.file.sync_all().and_then(|()| fs::rename(&self.temporary, &self.path));
        there.map_err(|e| refused(&self.path, self.bytes, e))?;
        sync_folder(&self.path);
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes the folder `path` and its parents.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(|e| Error::io("create the folder", path, e))
}

fn write_temporary(
    temporary: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
    fill(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

/// A name beside `path` that no other process, and no other call of this one, uses.
fn temporary_name(path: &Path) -> Result<PathBuf> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "not the name of a file", "name a file to write"));
    };
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{call}.tmp", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn refused(path: &Path, wanted: u64, source: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => Error::file(
            path,
            format!("no room to write {wanted} bytes ({source})"),
            "free that much space or write to another disk; nothing was left half-written",
        ),
        _ => Error::io("write", path, source),
    }
}

/// Makes the rename itself durable. Not every file system can sync a folder, and the file is whole
/// either way, so a refusal is not an error.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entry = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        fs::read_dir(folder).unwrap().map(entry).collect()
    }

    #[test]
    fn replaces_the_old_file_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, b"old").unwrap();
        write(&path, b"new bytes").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new bytes");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_full_disk_keeps_the_old_file_and_names_path_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, b"old").unwrap();
        let full = |out: &mut BufWriter<File>| {
            out.write_all(b"half of")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let error = write_with(&path, 123_456, full).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a.bin") && text.contains("123456 bytes"), "{text}");
        assert_eq!(error.exit_code(), 2);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_missing_folder_is_an_error_naming_the_path() {
        let text = write("/no/such/folder/x", b"y").unwrap_err().to_string();
        assert!(text.contains("/no/such/folder/x"), "{text}");
    }
}
