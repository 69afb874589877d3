//! safetensors files: a JSON header, then the raw little-endian bytes of every tensor.
//!
//! Reading maps the file, so opening costs the header only and a tensor is paged in when asked for.
//! The header is read here rather than by a library so that a damaged file is reported with the
//! name of the tensor it broke in. Integers widen to I32, small floats to F32.

mod write;

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use half::{bf16, f16};
use serde::Deserialize;

use write::{DIGITS, SCALE, digits, scale_name};
pub use write::{Store, Writer};

use crate::device::mmap::{Halves, Mapped};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The longest header that is read: ample for a hundred thousand tensors.
const MAX_HEADER: usize = 64 << 20;

/// The key under which a header holds its string-to-string metadata.
const METADATA: &str = "__metadata__";

/// The metadata key of the checksums (CRC-32, hexadecimal): the header's, then the tensors' in the
/// order of their bytes.
const CHECKSUMS: &str = "crc32";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The most that a compressed file may hold, in bytes.
const MAX_UNZIPPED: u64 = 4 << 30;

/// The bytes of a file as they are, or, if it was compressed, as they were.
fn unpacked(map: Mapped, path: &Path) -> Result<Mapped> {
    if !map.starts_with(&[0x1F, 0x8B]) {
        return Ok(map);
    }
    let mut bytes = Vec::new();
    let mut plain = MultiGzDecoder::new(&*map).take(MAX_UNZIPPED + 1);
    plain.read_to_end(&mut bytes).map_err(|e| {
        let what = format!("cannot be read to its end ({e})");
        Error::file(path, what, "fetch or compress it again")
    })?;
    if bytes.len() as u64 > MAX_UNZIPPED {
        return Err(Error::file(path, "unpacks to more than 4 GiB", "unpack it with gunzip"));
    }
    Ok(Mapped::held(bytes))
}

/// An open file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mapped>,
    /// Where the tensors' bytes begin.
    data: usize,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// A missing, empty, truncated or corrupt file; tensors whose bytes do not match their shape,
    /// overlap, or lie outside the file are named.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = Arc::new(unpacked(Mapped::open(path)?, path)?);
        let (header, data) = split_header(&map, path)?;
        let (entries, metadata) = parse_header(header, path)?;
        let file = Self { path: path.to_path_buf(), map, data, entries, metadata };
        file.check()?;
        Ok(file)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted; the scales of an I8 matrix belong to it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str).filter(|name| !name.ends_with(SCALE))
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The metadata, string to string.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// One value of the metadata; its absence is an error that names it.
    pub fn meta(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| {
            let what = format!("its metadata have no \"{key}\"");
            Error::file(&self.path, what, "use a file that this version of genevar wrote")
        })
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// The stored type of a tensor, as the format spells it: "F32", "U16" ...
    pub fn dtype(&self, name: &str) -> Result<&str> {
        Ok(&self.entry(name)?.dtype)
    }

    /// The raw bytes of a tensor, little-endian, not copied.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let range = self.range(self.entry(name)?);
        Ok(&self.map[range])
    }

    /// Where a tensor's bytes are in the file.
    fn range(&self, entry: &Entry) -> Range<usize> {
        let (start, end) = entry.data_offsets;
        self.data + start..self.data + end
    }

    /// A tensor: F16 and F32 as F32, BF16 as F32 that stays in the file ([`Halves`]), F64 as F64,
    /// integers as I32, and an I8 matrix that has scales beside it ([`Store::I8`]) as the F32
    /// matrix it stands for.
    ///
    /// # Errors
    /// No such tensor, a type that is not read, or an integer outside the range of I32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let bytes = self.bytes(name)?;
        let shape = entry.shape.as_slice();
        match entry.dtype.as_str() {
            "F32" => Tensor::new(each(bytes, f32::from_le_bytes), shape),
            "F64" => Tensor::new_f64(each(bytes, f64::from_le_bytes), shape),
            "F16" => Tensor::new(each(bytes, |b| f16::from_le_bytes(b).to_f32()), shape),
            "BF16" => match Halves::new(&self.map, self.range(entry)) {
                Some(halves) => Tensor::away(halves, shape),
                None => {
                    let wide = each(bytes, |b| bf16::from_le_bytes(b).to_f32());
                    Tensor::new(wide, shape)
                }
            },
            "I8" if self.contains(&scale_name(name)) => {
                let scales = self.shaped(&scale_name(name), &shape[..1])?.into_f32s()?;
                let cols = shape[1..].iter().product::<usize>().max(1);
                let value = |(i, b): (usize, &u8)| f32::from(*b as i8) * scales[i / cols];
                Tensor::new(bytes.iter().enumerate().map(value).collect(), shape)
            }
            _ => Tensor::new_i32(self.integers(name)?, shape),
        }
    }

    /// A tensor that must have the given shape.
    pub fn shaped(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let found = self.shape(name)?;
        if found != shape {
            let what = format!("tensor \"{name}\" is {found:?}, expected {shape:?}");
            let fix = "use the configuration the file was written with";
            return Err(Error::file(&self.path, what, fix));
        }
        self.tensor(name)
    }

    fn integers(&self, name: &str) -> Result<Vec<i32>> {
        let bytes = self.bytes(name)?;
        let wide: Vec<i64> = match self.dtype(name)? {
            "I32" => return Ok(each(bytes, i32::from_le_bytes)),
            "U32" => each(bytes, |b| i64::from(u32::from_le_bytes(b))),
            "I64" => each(bytes, i64::from_le_bytes),
            "U16" => return Ok(each(bytes, |b| i32::from(u16::from_le_bytes(b)))),
            "I16" => return Ok(each(bytes, |b| i32::from(i16::from_le_bytes(b)))),
            "U8" | "BOOL" => return Ok(bytes.iter().map(|&b| i32::from(b)).collect()),
            "I8" => return Ok(bytes.iter().map(|&b| i32::from(b as i8)).collect()),
            other => {
                let what = format!("tensor \"{name}\" has the type {other}, which is not read");
                return Err(Error::file(&self.path, what, "store it as F32 or I32"));
            }
        };
        let narrow = |(i, v): (usize, i64)| {
            i32::try_from(v).map_err(|_| {
                let what = format!("tensor \"{name}\" holds {v} at {i}, beyond 32 signed bits");
                Error::file(&self.path, what, "store smaller integers")
            })
        };
        wide.into_iter().enumerate().map(narrow).collect()
    }

    /// The elements of an unsigned tensor (U8, U16 or U32), widened.
    pub fn u32s(&self, name: &str) -> Result<Vec<u32>> {
        let bytes = self.bytes(name)?;
        match self.dtype(name)? {
            "U32" => Ok(each(bytes, u32::from_le_bytes)),
            "U16" => Ok(each(bytes, |b| u32::from(u16::from_le_bytes(b)))),
            "U8" => Ok(bytes.iter().map(|&b| u32::from(b)).collect()),
            other => {
                let what = format!("tensor \"{name}\" has the type {other}, expected U8, U16, U32");
                Err(Error::file(&self.path, what, "write the file again"))
            }
        }
    }

    /// Whether the file has checksums and every byte of it is as it was written. Reads all of it.
    ///
    /// # Errors
    /// A byte that is not, naming the tensor.
    pub fn verify(&self) -> Result<bool> {
        let Some(sums) = self.metadata.get(CHECKSUMS) else { return Ok(false) };
        let broken = |what: String| {
            let what = format!("corrupt: {what} is not what was written");
            Err(Error::file(&self.path, what, "use another copy or an earlier checkpoint"))
        };
        let mut head = self.map[8..self.data].to_vec();
        if let Some(at) = digits(&head) {
            head[at..at + DIGITS].fill(b'0');
        }
        let order = self.in_order();
        if sums.len() != DIGITS * (1 + order.len()) {
            return broken("its header".into());
        }
        let is = |i: usize, bytes: &[u8]| {
            sums.get(DIGITS * i..DIGITS * (i + 1))
                == Some(&format!("{:08x}", crc32fast::hash(bytes)))
        };
        if !is(0, &head) {
            return broken("its header".into());
        }
        for (i, (name, _)) in order.iter().enumerate() {
            if !is(i + 1, self.bytes(name)?) {
                return broken(format!("tensor \"{name}\""));
            }
        }
        Ok(true)
    }

    /// The tensors in the order of their bytes.
    fn in_order(&self) -> Vec<(&String, &Entry)> {
        let mut order: Vec<(&String, &Entry)> = self.entries.iter().collect();
        order.sort_by_key(|(_, e)| e.data_offsets);
        order
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let what = format!("has no tensor \"{name}\"");
            Error::file(&self.path, what, "use a file of the kind that is asked for here")
        })
    }

    /// Every tensor's bytes must match its shape, follow one another without gap, and be there.
    fn check(&self) -> Result<()> {
        let have = self.map.len() - self.data;
        let mut expected = 0;
        for (name, entry) in self.in_order() {
            let (start, end) = entry.data_offsets;
            let size = element_size(&entry.dtype).and_then(|size| {
                entry.shape.iter().try_fold(size, |n, &extent| n.checked_mul(extent))
            });
            let Some(size) = size else {
                let what = format!(
                    "tensor \"{name}\" of type {} and shape {:?} is not read",
                    entry.dtype, entry.shape
                );
                return Err(Error::file(&self.path, what, "store it as F32 or I32"));
            };
            if start != expected || start.checked_add(size) != Some(end) {
                let what = format!(
                    "corrupt: tensor \"{name}\" {:?} {} claims bytes {start}..{end}",
                    entry.shape, entry.dtype
                );
                return Err(Error::file(&self.path, what, "fetch or write the file again"));
            }
            if end > have {
                let what = format!(
                    "truncated: tensor \"{name}\" ends at byte {end} of the data, {have} are there"
                );
                return Err(Error::file(&self.path, what, "fetch or write the file again"));
            }
            expected = end;
        }
        if expected != have {
            let what = format!("corrupt: {} bytes follow the last tensor", have - expected);
            return Err(Error::file(&self.path, what, "fetch or write the file again"));
        }
        Ok(())
    }
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|c| read(*c)).collect()
}

fn element_size(dtype: &str) -> Option<usize> {
    match dtype {
        "U8" | "I8" | "BOOL" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}

fn split_header<'a>(map: &'a [u8], path: &Path) -> Result<(&'a [u8], usize)> {
    let broken = |what: &str| Error::file(path, what, "fetch or write the file again");
    let Some((length, rest)) = map.split_first_chunk::<8>() else {
        return Err(broken("truncated: shorter than a safetensors header"));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(broken("not a safetensors file: its header length is absurd"));
    }
    match rest.get(..length) {
        Some(header) => Ok((header, 8 + length)),
        None => Err(broken("truncated inside its header")),
    }
}

type Header = (BTreeMap<String, Entry>, BTreeMap<String, String>);

fn parse_header(header: &[u8], path: &Path) -> Result<Header> {
    let fix = "fetch or write the file again";
    let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|e| Error::file(path, format!("not a safetensors file: {e}"), fix))?;
    let mut entries = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    for (name, value) in raw {
        let bad = |e| Error::file(path, format!("corrupt header at \"{name}\": {e}"), fix);
        if name == METADATA {
            metadata = serde_json::from_value(value).map_err(bad)?;
        } else {
            let entry: Entry = serde_json::from_value(value).map_err(bad)?;
            entries.insert(name, entry);
        }
    }
    Ok((entries, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sample(path: &Path) {
        let mut w = Writer::new();
        w.meta("format", "test");
        let x = Tensor::new(vec![1.0, -2.5, 1.0 / 3.0, 0.0, 65504.0, 6e-8], [2, 3]).unwrap();
        w.tensor("x", &x, Store::Full).unwrap();
        w.tensor("half", &x, Store::F16).unwrap();
        let d = Tensor::new_f64(vec![0.1], Vec::new()).unwrap();
        w.tensor("d", &d, Store::F16).unwrap();
        w.u8s("bytes", &[3], vec![1, 2, 255]).unwrap();
        w.u16s("u16", &[2], &[0, 65535]).unwrap();
        w.u32s("u32", &[1], &[7]).unwrap();
        w.save(path).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_the_library_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        sample(&path);
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.meta("format").unwrap(), "test");
        assert_eq!(file.tensor("x").unwrap().f32s().unwrap()[2], 1.0 / 3.0);
        let half = file.tensor("half").unwrap();
        assert!((half.f32s().unwrap()[2] - 1.0 / 3.0).abs() < 1e-4);
        assert_eq!(half.f32s().unwrap()[4], 65504.0);
        assert_eq!(file.tensor("d").unwrap().item().unwrap(), 0.1);
        assert_eq!(file.tensor("u16").unwrap().i32s().unwrap(), [0, 65535]);
        assert_eq!(file.u32s("bytes").unwrap(), [1, 2, 255]);
        assert!(file.shaped("x", &[3, 2]).is_err());
        let bytes = fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), 6);
        assert_eq!(theirs.tensor("u32").unwrap().data(), 7u32.to_le_bytes());
    }

    #[test]
    fn every_changed_byte_is_found_and_the_tensor_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        sample(&path);
        let whole = std::fs::read(&path).unwrap();
        assert!(TensorFile::open(&path).unwrap().verify().unwrap());
        let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            // Most changes of the header are seen on opening.
            let told = match TensorFile::open(&path) {
                Ok(file) => file.verify().map(|v| v.to_string()).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            // A header that lost its checksums has none that could be wrong.
            let told = told.map_or_else(|e| e, |v| if v == "false" { v } else { panic!("{at}") });
            assert!(at < data || told.contains("corrupt: tensor \""), "{at}: {told}");
        }
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        sample(&path);
        let whole = fs::read(&path).unwrap();
        let cut = folder.path().join("cut.safetensors");
        for n in 0..whole.len() {
            fs::write(&cut, &whole[..n]).unwrap();
            let error = TensorFile::open(&cut).unwrap_err();
            assert!(error.to_string().contains("cut.safetensors"), "{n}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
        let text = TensorFile::open(&cut).unwrap_err().to_string();
        assert!(text.contains("truncated: tensor \"bytes\""), "{text}");
    }

    #[test]
    fn a_flipped_header_byte_never_panics_and_f16_refuses_what_it_cannot_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        sample(&path);
        let whole = fs::read(&path).unwrap();
        for i in 0..300 {
            let mut bent = whole.clone();
            bent[i] ^= 0x15;
            fs::write(&path, &bent).unwrap();
            if let Ok(file) = TensorFile::open(&path) {
                file.names().for_each(|n| drop(file.tensor(n)));
            }
        }
        let big = Tensor::new(vec![1e6], [1]).unwrap();
        let error = Writer::new().tensor("w", &big, Store::F16).unwrap_err().to_string();
        assert!(error.contains("\"w\"") && error.contains("f16"), "{error}");
    }
}
