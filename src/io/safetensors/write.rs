//! Writing safetensors files: collect tensors and metadata, then save them at once.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};

use super::{CHECKSUMS, METADATA, element_size};
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::tensor::{DType, Tensor};

/// How the f32 elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// As they are.
    Full,
    /// As IEEE binary16: half the bytes, 11 bits of mantissa.
    F16,
    /// As the upper half of f32: half the bytes, 8 bits of mantissa, read in place.
    Bf16,
    /// Large matrices as 8-bit integers with a scale a row, so that an element is off by at most
    /// 1/254 of the largest in its row; everything else as [`Store::F16`].
    I8,
}

/// Elements from which [`Store::I8`] pays: small tables (a code book) keep 16 bits.
const I8_FROM: usize = 1 << 14;

enum Payload {
    Tensor(Tensor, Store),
    Bytes(Vec<u8>),
}

struct Item {
    dtype: &'static str,
    shape: Vec<usize>,
    payload: Payload,
}

/// Collects tensors and metadata, then writes them as one file, whole or not at all.
#[derive(Default)]
pub struct Writer {
    items: BTreeMap<String, Item>,
    metadata: BTreeMap<String, String>,
}

impl Writer {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value of the metadata.
    pub fn meta(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// Adds a tensor; its elements are shared until they are written.
    ///
    /// # Errors
    /// A name that is taken; under [`Store::F16`], a finite value that binary16 cannot hold.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor, store: Store) -> Result<()> {
        let store = match store {
            Store::I8 if tensor.dtype() == DType::F32 => {
                if tensor.shape().rank() > 1 && tensor.len() >= I8_FROM {
                    return self.rows_i8(name, tensor);
                }
                Store::F16
            }
            other => other,
        };
        let dtype = match (tensor.dtype(), store) {
            (DType::F32, Store::F16) => {
                check_f16(name, tensor.f32s()?)?;
                "F16"
            }
            (DType::F32, Store::Bf16) => "BF16",
            (DType::F32, Store::Full | Store::I8) => "F32",
            (DType::F64, _) => "F64",
            (DType::I32, _) => "I32",
        };
        let shape = tensor.shape().dims().to_vec();
        self.add(name, Item { dtype, shape, payload: Payload::Tensor(tensor.clone(), store) })
    }

    /// A matrix as I8 under its own name and the rows' scales beside it.
    fn rows_i8(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        tensor.check_finite(name)?;
        let rows = tensor.shape().dims()[0].max(1);
        let (mut bytes, mut scales) = (Vec::with_capacity(tensor.len()), Vec::new());
        for row in tensor.f32s()?.chunks(tensor.len() / rows) {
            let scale = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            bytes.extend(row.iter().map(|v| (v * inverse).round() as i8 as u8));
            scales.push(scale);
        }
        self.tensor(&scale_name(name), &Tensor::new(scales, [rows])?, Store::Full)?;
        self.raw(name, "I8", tensor.shape().dims(), bytes)
    }

    /// Adds bytes as a U8 tensor.
    pub fn u8s(&mut self, name: &str, shape: &[usize], data: Vec<u8>) -> Result<()> {
        self.raw(name, "U8", shape, data)
    }

    /// Adds a U16 tensor.
    pub fn u16s(&mut self, name: &str, shape: &[usize], data: &[u16]) -> Result<()> {
        self.raw(name, "U16", shape, data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Adds a U32 tensor.
    pub fn u32s(&mut self, name: &str, shape: &[usize], data: &[u32]) -> Result<()> {
        self.raw(name, "U32", shape, data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn raw(
        &mut self,
        name: &str,
        dtype: &'static str,
        shape: &[usize],
        data: Vec<u8>,
    ) -> Result<()> {
        let wanted = shape.iter().product::<usize>() * element_size(dtype).unwrap_or(1);
        if wanted != data.len() {
            let what = format!("\"{name}\": {} bytes do not fill {shape:?} {dtype}", data.len());
            return Err(Error::shape("safetensors", what));
        }
        self.add(name, Item { dtype, shape: shape.to_vec(), payload: Payload::Bytes(data) })
    }

    fn add(&mut self, name: &str, item: Item) -> Result<()> {
        if name == METADATA || self.items.contains_key(name) {
            return Err(Error::Internal(format!("two tensors are called \"{name}\"")));
        }
        self.items.insert(name.to_string(), item);
        Ok(())
    }

    /// Size in bytes of what was added so far, the header's entries estimated.
    pub fn size(&self) -> u64 {
        let data = |item: &Item| {
            item.shape.iter().product::<usize>() * element_size(item.dtype).unwrap_or(1)
        };
        let tensors: usize = self.items.iter().map(|(n, i)| data(i) + n.len() + 96).sum();
        // Quotes inside a value are escaped, which JSON lists in metadata have many of.
        let escaped = |v: &str| v.len() + v.matches('"').count() + v.matches('\n').count();
        let metadata: usize = self.metadata.iter().map(|(k, v)| k.len() + escaped(v) + 8).sum();
        (8 + tensors + metadata) as u64
    }

    /// Writes the file and returns its size in bytes. The same content gives the same bytes, and
    /// every byte is under a checksum: see [`super::TensorFile::verify`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64> {
        // The widest elements come first, so every tensor is aligned to its element size.
        let mut order: Vec<(&String, &Item)> = self.items.iter().collect();
        order.sort_by_key(|(_, item)| std::cmp::Reverse(element_size(item.dtype)));
        let mut header = serde_json::Map::new();
        let mut metadata = self.metadata.clone();
        metadata.insert(CHECKSUMS.into(), "0".repeat(DIGITS * (1 + order.len())));
        header.insert(METADATA.into(), serde_json::json!(metadata));
        let mut end = 0;
        for (name, item) in &order {
            let start = end;
            end += item.shape.iter().product::<usize>() * element_size(item.dtype).unwrap_or(1);
            let entry = serde_json::json!({
                "dtype": item.dtype, "shape": item.shape, "data_offsets": [start, end]
            });
            header.insert((*name).clone(), entry);
        }
        let mut head = serde_json::Value::Object(header).to_string().into_bytes();
        head.resize(head.len().next_multiple_of(8), b' ');
        let total = (8 + head.len() + end) as u64;
        atomic::write_with(path, total, |out| {
            out.write_all(&(head.len() as u64).to_le_bytes())?;
            out.write_all(&head)?;
            let mut sums = String::new();
            for (_, item) in &order {
                let mut hashed = Hashed { out: &mut *out, sum: crc32fast::Hasher::new() };
                write_payload(&mut hashed, &item.payload)?;
                sums += &format!("{:08x}", hashed.sum.finalize());
            }
            sign(&mut head, &sums);
            out.seek(SeekFrom::Start(8))?;
            out.write_all(&head)
        })?;
        Ok(total)
    }
}

/// Hexadecimal digits of a checksum.
pub(super) const DIGITS: usize = 8;

/// Puts the tensors' checksums into a header whose digits are zeros, and before them its own, which
/// is that of the header without it.
fn sign(head: &mut [u8], sums: &str) {
    if let Some(at) = digits(head) {
        head[at + DIGITS..at + DIGITS + sums.len()].copy_from_slice(sums.as_bytes());
        let own = format!("{:08x}", crc32fast::hash(head));
        head[at..at + DIGITS].copy_from_slice(own.as_bytes());
    }
}

/// Where the checksums of a header begin. A quote inside a text is escaped, so that only the key
/// itself reads like this.
pub(super) fn digits(head: &[u8]) -> Option<usize> {
    let key = format!("\"{CHECKSUMS}\":\"");
    head.windows(key.len()).position(|part| part == key.as_bytes()).map(|at| at + key.len())
}

/// Writes on, and sums up what was written.
struct Hashed<'a, W> {
    out: &'a mut W,
    sum: crc32fast::Hasher,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Where the scales of an I8 matrix stand.
pub(super) fn scale_name(name: &str) -> String {
    format!("{name}{SCALE}")
}

/// Ending of the name of the scales.
pub(super) const SCALE: &str = ".i8_scale";

fn check_f16(name: &str, values: &[f32]) -> Result<()> {
    let lost = |v: &f32| v.is_finite() && f16::from_f32(*v).is_infinite();
    match values.iter().position(lost) {
        None => Ok(()),
        Some(i) => Err(Error::data(
            format!("tensor \"{name}\" holds {} at {i}, too large for f16", values[i]),
            "store it in full precision",
        )),
    }
}

fn write_payload(out: &mut impl Write, payload: &Payload) -> std::io::Result<()> {
    // A tensor of another type than its item cannot be built, so the fallbacks are never reached.
    let bad = |e: Error| std::io::Error::other(e.to_string());
    match payload {
        Payload::Bytes(bytes) => out.write_all(bytes),
        Payload::Tensor(t, store) => match (t.dtype(), store) {
            (DType::F32, Store::F16) => {
                pieces(out, t.f32s().map_err(bad)?, |v| f16::from_f32(*v).to_le_bytes())
            }
            (DType::F32, Store::Bf16) => {
                pieces(out, t.f32s().map_err(bad)?, |v| bf16::from_f32(*v).to_le_bytes())
            }
            (DType::F32, Store::Full | Store::I8) => {
                pieces(out, t.f32s().map_err(bad)?, |v| v.to_le_bytes())
            }
            (DType::F64, _) => pieces(out, t.f64s().map_err(bad)?, |v| v.to_le_bytes()),
            (DType::I32, _) => pieces(out, t.i32s().map_err(bad)?, |v| v.to_le_bytes()),
        },
    }
}

/// Writes elements, many at a time.
fn pieces<T, const N: usize>(
    out: &mut impl Write,
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) -> std::io::Result<()> {
    let mut piece = Vec::new();
    values.chunks(1 << 14).try_for_each(|part| {
        piece.clear();
        piece.extend(part.iter().flat_map(&bytes));
        out.write_all(&piece)
    })
}
