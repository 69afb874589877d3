//! Images of a NumPy archive, read where they are: bytes [N, H, W, 3] as `numpy.savez` stores them.
//!
//! What `numpy.savez_compressed` wrote is unpacked into memory. Lengths and offsets are whatever
//! the file claims, so each is held against the file before it is used.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;

use super::NAME;
use crate::device::mmap::Mapped;
use crate::error::{Error, Result};
use crate::io::images::Rgb;

/// The longest archive that is unpacked into memory.
const MAX_UNPACKED: u64 = 1 << 32;
/// An end of a directory, and the comment behind it.
const LONGEST_END: usize = 22 + u16::MAX as usize;

/// An open archive.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    bytes: Mapped,
    first: usize,
    n: usize,
    size: (usize, usize),
}

/// An entry of the directory.
struct Entry {
    name: String,
    method: u16,
    sum: u32,
    packed: u64,
    unpacked: u64,
    at: u64,
}

impl Npz {
    /// Opens an archive of images: its array `arr_0`, or the only one that it has.
    ///
    /// # Errors
    /// A file that is no such archive, is damaged, or holds another array.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let bad = |what: &str| Error::file(path, what, "write it with numpy.savez(PATH, images)");
        let entries = entries(&file).ok_or_else(|| bad("not a NumPy archive"))?;
        let images = |e: &&Entry| e.name.as_bytes() == NAME || entries.len() == 1;
        let entry = entries.iter().find(images).ok_or_else(|| {
            let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
            bad(&format!("has no array arr_0, only {}", names.join(", ")))
        })?;
        let range = data(&file, entry).ok_or_else(|| bad("the archive is cut off or damaged"))?;
        let (bytes, range) = match entry.method {
            0 => (file, range),
            8 => {
                let all = unpack(&file[range], entry, path)?;
                let len = all.len();
                (Mapped::held(all), 0..len)
            }
            other => return Err(bad(&format!("its arrays are packed by method {other}"))),
        };
        if crc32fast::hash(&bytes[range.clone()]) != entry.sum {
            return Err(Error::file(
                path,
                "its checksum does not match its bytes",
                "copy it again",
            ));
        }
        let (start, shape) = head(&bytes[range.clone()]).map_err(|what| bad(&what))?;
        let [n, h, w, 3] = shape[..] else {
            let what = format!("its array has the shape {shape:?}, images have [N, H, W, 3]");
            return Err(bad(&what));
        };
        let room = range.len() - start;
        let whole = [n, h, w, 3].iter().try_fold(1usize, |a, &b| a.checked_mul(b)) == Some(room);
        if !whole || room == 0 {
            return Err(bad(&format!("{room} bytes are not {n} images of {w}x{h}")));
        }
        let first = range.start + start;
        Ok(Self { path: path.to_path_buf(), bytes, first, n, size: (w, h) })
    }

    /// How many images there are: at least one.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Width and height of every image.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Image `i`.
    ///
    /// # Errors
    /// One beyond the last.
    pub fn image(&self, i: usize) -> Result<Rgb> {
        let (w, h) = self.size;
        let len = 3 * w * h;
        let at = self.first + i.min(self.n) * len;
        match self.bytes.get(at..at + len).filter(|_| i < self.n) {
            Some(bytes) => Rgb::new(w, h, bytes.to_vec()),
            None => Err(Error::file(&self.path, format!("has no image {i}"), "ask for fewer")),
        }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

/// The arrays of the archive, by its directory.
fn entries(file: &[u8]) -> Option<Vec<Entry>> {
    let tail = file.len().saturating_sub(LONGEST_END);
    let end = tail + file[tail..].windows(4).rposition(|w| w == b"PK\x05\x06")?;
    // A comment may follow, and nothing else.
    let comment = number::<2>(file, end + 20)? as usize;
    file.get(..end + 22 + comment)?;
    let mut at = number::<4>(file, end + 16)?;
    let mut count = number::<2>(file, end + 10)?;
    let before = end.checked_sub(20).filter(|&b| file[b..].starts_with(b"PK\x06\x07"));
    if let Some(locator) = before {
        let wide = usize::try_from(number::<8>(file, locator + 8)?).ok()?;
        file.get(wide..)?.starts_with(b"PK\x06\x06").then_some(())?;
        at = number::<8>(file, wide.checked_add(48)?)?;
        count = number::<8>(file, wide.checked_add(32)?)?;
    }
    let mut entries = Vec::new();
    let mut at = usize::try_from(at).ok()?;
    for _ in 0..count {
        let head = file.get(at..)?;
        head.starts_with(b"PK\x01\x02").then_some(())?;
        let len = |at: usize| Some(number::<2>(head, at)? as usize);
        let (name, extra, comment) = (len(28)?, len(30)?, len(32)?);
        let mut entry = Entry {
            name: String::from_utf8_lossy(head.get(46..46 + name)?).into_owned(),
            method: number::<2>(head, 10)? as u16,
            sum: number::<4>(head, 16)? as u32,
            packed: number::<4>(head, 20)?,
            unpacked: number::<4>(head, 24)?,
            at: number::<4>(head, 42)?,
        };
        entry.widen(head.get(46 + name..46 + name + extra)?)?;
        if entry.name.ends_with(".npy") {
            entries.push(entry);
        }
        at += 46 + name + extra + comment;
    }
    Some(entries)
}

impl Entry {
    /// Takes the 64-bit numbers of an extra field in the place of those that 32 bits cannot hold.
    fn widen(&mut self, mut extra: &[u8]) -> Option<()> {
        while extra.len() >= 4 {
            let (id, len) = (number::<2>(extra, 0)?, number::<2>(extra, 2)? as usize);
            let mut field = extra.get(4..4 + len)?;
            if id == 1 {
                for wide in [&mut self.unpacked, &mut self.packed, &mut self.at] {
                    if *wide == u64::from(u32::MAX) {
                        *wide = number::<8>(field, 0)?;
                        field = &field[8..];
                    }
                }
            }
            extra = &extra[4 + len..];
        }
        Some(())
    }
}

/// Where an entry's bytes are in the file.
fn data(file: &[u8], entry: &Entry) -> Option<Range<usize>> {
    let at = usize::try_from(entry.at).ok()?;
    let head = file.get(at..)?;
    head.starts_with(b"PK\x03\x04").then_some(())?;
    let start = at + 30 + number::<2>(head, 26)? as usize + number::<2>(head, 28)? as usize;
    let end = start.checked_add(usize::try_from(entry.packed).ok()?)?;
    file.get(start..end)?;
    (entry.method != 0 || entry.packed == entry.unpacked).then_some(start..end)
}

fn unpack(packed: &[u8], entry: &Entry, path: &Path) -> Result<Vec<u8>> {
    if entry.unpacked > MAX_UNPACKED {
        let what = format!("unpacks to {} bytes in memory", entry.unpacked);
        return Err(Error::file(path, what, "save it with numpy.savez, which does not pack"));
    }
    let mut all = Vec::new();
    let read = DeflateDecoder::new(packed).take(entry.unpacked + 1).read_to_end(&mut all);
    match read {
        Ok(n) if n as u64 == entry.unpacked => Ok(all),
        _ => Err(Error::file(path, "does not unpack to what its directory says", "copy it again")),
    }
}

/// Where the elements of an array begin, and its shape; or what is wrong with it.
fn head(array: &[u8]) -> std::result::Result<(usize, Vec<usize>), String> {
    let cut = || "its array is cut off or damaged".to_string();
    if !array.starts_with(b"\x93NUMPY") {
        return Err("its array does not begin as one of NumPy".into());
    }
    let (from, len) = match array.get(6) {
        Some(1) => (10, number::<2>(array, 8)),
        _ => (12, number::<4>(array, 8)),
    };
    let start = from + len.ok_or_else(cut)? as usize;
    let text = String::from_utf8_lossy(array.get(from..start).ok_or_else(cut)?);
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start());
    let kind = after("'descr':").and_then(|r| r.split('\'').nth(1)).unwrap_or_default();
    if kind != "|u1" {
        return Err(format!("its array has the type {kind}, images are bytes (uint8)"));
    }
    if after("'fortran_order':").is_none_or(|r| !r.starts_with("False")) {
        return Err("its array is in Fortran's order".into());
    }
    let shape = after("'shape':").and_then(|r| r.strip_prefix('(')?.split(')').next());
    let parts = shape.ok_or_else(cut)?.split(',').map(str::trim).filter(|p| !p.is_empty());
    let shape: Vec<usize> =
        parts.map(|p| p.parse().map_err(|_| cut())).collect::<Result<_, _>>()?;
    Ok((start, shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::npz::NpzWriter;
    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use std::io::Write;

    fn ramp(i: usize) -> Rgb {
        Rgb::new(5, 3, (0..45).map(|b| (b * 5 + i) as u8).collect()).unwrap()
    }

    fn written(path: &Path, n: usize) -> Vec<u8> {
        let writer = NpzWriter::create(path, n, (5, 3)).unwrap();
        (0..n).rev().for_each(|i| writer.put(i, &ramp(i)).unwrap());
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    /// The same entry as `numpy.savez_compressed` packs it, with 32-bit lengths.
    fn packed(array: &[u8]) -> Vec<u8> {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(array).unwrap();
        let body = deflate.finish().unwrap();
        let fields = |versions: &[u16]| {
            let mut out: Vec<u8> = versions.iter().flat_map(|v| v.to_le_bytes()).collect();
            [0u16, 8, 0, 0x21].iter().for_each(|v| out.extend(v.to_le_bytes()));
            let lengths = [crc32fast::hash(array), body.len() as u32, array.len() as u32];
            lengths.iter().for_each(|v| out.extend(v.to_le_bytes()));
            out.extend([NAME.len() as u8, 0, 0, 0]);
            out
        };
        let local = [&b"PK\x03\x04"[..], &fields(&[20]), NAME, &body].concat();
        let entry = [&b"PK\x01\x02"[..], &fields(&[20, 20]), &[0; 14], NAME].concat();
        let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
        end.extend((entry.len() as u32).to_le_bytes());
        end.extend((local.len() as u32).to_le_bytes());
        [local, entry, end, vec![0, 0]].concat()
    }

    #[test]
    fn what_was_written_is_read_packed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let bytes = written(&path, 4);
        let range = data(&bytes, &entries(&bytes).unwrap()[0]).unwrap();
        let deflated = packed(&bytes[range]);
        for file in [bytes, deflated] {
            std::fs::write(&path, file).unwrap();
            let npz = Npz::open(&path).unwrap();
            assert_eq!((npz.n(), npz.size()), (4, (5, 3)));
            (0..4).for_each(|i| assert_eq!(npz.image(i).unwrap(), ramp(i)));
            assert!(npz.image(4).is_err() && npz.image(usize::MAX).is_err());
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let whole = written(&path, 2);
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Npz::open(&path).is_err(), "cut at {cut}");
        }
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Npz::open(&path).and_then(|npz| (0..2).map(|i| npz.image(i)).collect())
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x5A;
            let images: Result<Vec<Rgb>> = read(&bytes);
            assert!(images.is_err() || images.unwrap() == [ramp(0), ramp(1)], "byte {at}");
        }
    }
}
