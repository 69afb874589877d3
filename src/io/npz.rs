//! Images as one NumPy archive: `arr_0`, bytes [N, H, W, 3], as tools for Frechet distances read.
//!
//! The archive is a zip file of one stored entry with 64-bit sizes, since fifty thousand tiles of
//! 256 pixels are more than 32 bits can count. Images come in any order and from any thread; each
//! goes to its place, and the checksum of the whole is put together from theirs.

mod read;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

use super::atomic::Draft;
use super::images::Rgb;
use crate::error::{Error, Result};

pub use read::Npz;

const NAME: &[u8] = b"arr_0.npy";
/// Version 4.5 of the format: 64-bit sizes.
const VERSION: u16 = 45;
/// The first day that a zip file knows.
const DAY: u16 = 0x0021;
const SEE_64: u32 = u32::MAX;
/// Where the checksum stands in an entry's header.
const CHECKSUM_AT: u64 = 14;
/// NumPy wants its data to begin at a multiple of this, counted from the array's own head.
const ALIGN: usize = 64;

/// An archive in the making; dropped unfinished, it leaves nothing.
pub struct NpzWriter {
    size: (usize, usize),
    /// Where the first image begins.
    first: u64,
    head: Vec<u8>,
    state: Mutex<State>,
}

struct State {
    draft: Draft,
    /// Checksums of the images that are there.
    sums: Vec<Option<u32>>,
}

impl NpzWriter {
    /// Begins an archive of `n` images of `size`, width and height.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written to.
    pub fn create(path: &Path, n: usize, size: (usize, usize)) -> Result<Self> {
        let head = array_head(n, size);
        let bytes = (head.len() + n * 3 * size.0 * size.1) as u64;
        let entry = entry(0x0403_4b50, &[VERSION], 0, bytes, &[]);
        let first = (entry.len() + head.len()) as u64;
        let mut draft = Draft::create(path)?;
        draft.write_at(0, &[entry, head.clone()].concat())?;
        let state = Mutex::new(State { draft, sums: vec![None; n] });
        Ok(Self { size, first, head, state })
    }

    /// Puts image `i` in its place.
    ///
    /// # Errors
    /// An image of another size, one too many, a full disk.
    pub fn put(&self, i: usize, image: &Rgb) -> Result<()> {
        let (w, h) = self.size;
        if (image.width, image.height) != self.size {
            let what = format!("image {i} is {}x{}, not {w}x{h}", image.width, image.height);
            return Err(Error::shape("npz", what));
        }
        let sum = crc32fast::hash(&image.data);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = state.sums.get_mut(i);
        *place.ok_or_else(|| Error::shape("npz", format!("image {i} is one too many")))? =
            Some(sum);
        let at = self.first + i as u64 * image.data.len() as u64;
        state.draft.write_at(at, &image.data)
    }

    /// Writes the directory and lets the file appear.
    ///
    /// # Errors
    /// An image that was never put, a full disk.
    pub fn finish(self) -> Result<()> {
        let State { mut draft, sums } =
            self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let image = 3 * self.size.0 * self.size.1;
        let mut sum = Hasher::new();
        sum.update(&self.head);
        for (i, one) in sums.iter().enumerate() {
            let one = one.ok_or_else(|| Error::Internal(format!("image {i} was not put")))?;
            sum.combine(&Hasher::new_with_initial_len(one, image as u64));
        }
        let sum = sum.finalize();
        let bytes = (self.head.len() + sums.len() * image) as u64;
        let end = self.first + (sums.len() * image) as u64;
        draft.write_at(CHECKSUM_AT, &sum.to_le_bytes())?;
        draft.write_at(end, &directory(sum, bytes, end))?;
        draft.finish()
    }
}

/// The head of a NumPy array of bytes [n, h, w, 3].
fn array_head(n: usize, (w, h): (usize, usize)) -> Vec<u8> {
    let said = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({n}, {h}, {w}, 3), }}");
    let start = b"\x93NUMPY\x01\x00";
    let room = (start.len() + 2 + said.len() + 1).next_multiple_of(ALIGN) - start.len() - 2;
    let mut head = start.to_vec();
    head.extend((room as u16).to_le_bytes());
    head.extend(format!("{said:<width$}\n", width = room - 1).into_bytes());
    head
}

/// The header of the entry before its data (`versions`: needed) or in the directory (`versions`:
/// by which it was made, and needed), which has some fields more.
fn entry(signature: u32, versions: &[u16], sum: u32, bytes: u64, more: &[u8]) -> Vec<u8> {
    let mut out = signature.to_le_bytes().to_vec();
    versions.iter().for_each(|v| out.extend(v.to_le_bytes()));
    // No flags, stored, midnight.
    [0, 0, 0, DAY].iter().for_each(|v| out.extend(v.to_le_bytes()));
    [sum, SEE_64, SEE_64].iter().for_each(|v| out.extend(v.to_le_bytes()));
    let extra = [&[1, 0, 16, 0][..], &bytes.to_le_bytes(), &bytes.to_le_bytes()].concat();
    [NAME.len() as u16, extra.len() as u16].iter().for_each(|v| out.extend(v.to_le_bytes()));
    [out.as_slice(), more, NAME, &extra].concat()
}

/// What follows the data, which ends at `at`: the directory and its two ends.
fn directory(sum: u32, bytes: u64, at: u64) -> Vec<u8> {
    // No comment, disk 0, binary, a file that its owner reads and writes, at the beginning.
    let mut more = vec![0; 6];
    more.extend((0o600u32 << 16).to_le_bytes());
    more.extend(0u32.to_le_bytes());
    let mut out = entry(0x0201_4b50, &[VERSION, VERSION], sum, bytes, &more);
    let size = out.len() as u64;
    // The 64-bit end, which says how long it is, and where it stands.
    out.extend(0x0606_4b50u32.to_le_bytes());
    out.extend(44u64.to_le_bytes());
    [VERSION, VERSION].iter().for_each(|v| out.extend(v.to_le_bytes()));
    out.extend([0; 8]);
    [1, 1, size, at].iter().for_each(|v| out.extend(v.to_le_bytes()));
    out.extend(0x0706_4b50u32.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend((at + size).to_le_bytes());
    out.extend(1u32.to_le_bytes());
    // The end that old readers look for.
    out.extend(0x0605_4b50u32.to_le_bytes());
    [0u16, 0, 1, 1].iter().for_each(|v| out.extend(v.to_le_bytes()));
    [size as u32, SEE_64].iter().for_each(|v| out.extend(v.to_le_bytes()));
    out.extend(0u16.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_array_ends_where_numpy_wants_it() {
        for n in [0, 1, 50_000, 123_456_789] {
            let head = array_head(n, (256, 256));
            assert_eq!((head.len() % ALIGN, head[head.len() - 1]), (0, b'\n'));
            assert_eq!(usize::from(u16::from_le_bytes([head[8], head[9]])) + 10, head.len());
        }
    }

    #[test]
    fn what_is_not_whole_does_not_appear() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let begin = || NpzWriter::create(&path, 2, (4, 3)).unwrap();
        let writer = begin();
        writer.put(1, &Rgb::filled(4, 3, [7; 3])).unwrap();
        assert!(writer.put(0, &Rgb::filled(3, 4, [7; 3])).is_err());
        assert!(writer.put(2, &Rgb::filled(4, 3, [7; 3])).is_err());
        assert!(writer.finish().unwrap_err().to_string().contains("image 0"));
        drop(begin());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(NpzWriter::create(&dir.path().join("no/x.npz"), 1, (1, 1)).is_err());
    }
}
