//! Micrometres a pixel by the tags of an image file: TIFF's resolution, PNG's pHYs, JPEG's JFIF
//! density.
//!
//! Most programs write a density for printers (72, 96 or 300 to the inch) into whatever they save.
//! No microscope has such pixels, so what lies outside of [`SANE`] says nothing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::path::Path;

/// Micrometres a pixel that a microscope or the overview of a slide may have.
const SANE: RangeInclusive<f64> = 0.05..=20.0;
/// How far rows and columns may differ.
const SQUARE: f64 = 0.02;
/// Bytes at the beginning of a file that are looked at, and the most that a TIFF's directory takes.
const START: u64 = 64 << 10;

/// Micrometres a pixel, if the file says them.
pub fn um_per_px(path: &Path) -> Option<f64> {
    let mut file = File::open(path).ok()?;
    let mut start = Vec::new();
    file.by_ref().take(START).read_to_end(&mut start).ok()?;
    let um = match start.get(..4)? {
        b"\x89PNG" => png(&start),
        b"\xFF\xD8\xFF\xE0" => jpeg(&start),
        b"II*\0" | b"MM\0*" => tiff(&mut file, &start),
        _ => None,
    };
    let [x, y] = um?;
    let square = (x / y - 1.0).abs() <= SQUARE;
    (square && SANE.contains(&x)).then_some(x)
}

fn four(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok()
}

/// Pixels a metre, in a chunk before the pixels.
fn png(bytes: &[u8]) -> Option<[f64; 2]> {
    let mut at = 8;
    loop {
        let len = u32::from_be_bytes(four(bytes, at)?) as usize;
        match &four(bytes, at + 4)? {
            b"IDAT" | b"IEND" => return None,
            b"pHYs" if len == 9 && bytes.get(at + 16) == Some(&1) => {
                let along = |at| Some(1e6 / f64::from(u32::from_be_bytes(four(bytes, at)?)));
                return Some([along(at + 8)?, along(at + 12)?]);
            }
            _ => at = at.checked_add(len)?.checked_add(12)?,
        }
    }
}

/// Dots to the inch or the centimetre, in the segment that begins the file.
fn jpeg(bytes: &[u8]) -> Option<[f64; 2]> {
    if bytes.get(6..11)? != b"JFIF\0" {
        return None;
    }
    let unit = match bytes.get(13)? {
        1 => 25_400.0,
        2 => 10_000.0,
        _ => return None,
    };
    let along = |at: usize| {
        let dots = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
        Some(unit / f64::from(dots))
    };
    Some([along(14)?, along(16)?])
}

/// Bytes of a TIFF in its order.
struct Ordered {
    big: bool,
}

impl Ordered {
    fn short(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let two = [*bytes.get(at)?, *bytes.get(at + 1)?];
        Some(if self.big { u16::from_be_bytes(two) } else { u16::from_le_bytes(two) })
    }

    fn long(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let four = four(bytes, at)?;
        Some(if self.big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    }
}

const X_RESOLUTION: u16 = 282;
const Y_RESOLUTION: u16 = 283;
const RESOLUTION_UNIT: u16 = 296;

/// Pixels to the inch or the centimetre, in the first directory.
fn tiff(file: &mut File, start: &[u8]) -> Option<[f64; 2]> {
    let order = Ordered { big: start.starts_with(b"MM") };
    let directory = window(file, u64::from(order.long(start, 4)?))?;
    let entries = usize::from(order.short(&directory, 0)?);
    let (mut along, mut unit) = ([None; 2], 25_400.0);
    for entry in (0..entries).map(|i| 2 + 12 * i) {
        let mut ratio = || {
            let at = order.long(&directory, entry + 8)?;
            let bytes = window(file, u64::from(at))?;
            Some(f64::from(order.long(&bytes, 0)?) / f64::from(order.long(&bytes, 4)?))
        };
        match order.short(&directory, entry)? {
            X_RESOLUTION => along[0] = ratio(),
            Y_RESOLUTION => along[1] = ratio(),
            RESOLUTION_UNIT => match order.short(&directory, entry + 8)? {
                2 => unit = 25_400.0,
                3 => unit = 10_000.0,
                _ => return None,
            },
            _ => {}
        }
    }
    Some([unit / along[0]?, unit / along[1]?])
}

/// Some bytes of a file from a place on.
fn window(file: &mut File, at: u64) -> Option<Vec<u8>> {
    file.seek(SeekFrom::Start(at)).ok()?;
    let mut bytes = Vec::new();
    file.take(START).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Option<f64> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        um_per_px(&path)
    }

    fn png(x: u32, y: u32, unit: u8) -> Vec<u8> {
        let mut out = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        out.extend([0; 17]);
        out.extend(b"\0\0\0\x09pHYs");
        out.extend(x.to_be_bytes());
        out.extend(y.to_be_bytes());
        out.push(unit);
        out.extend([0; 4]);
        out
    }

    fn jpeg(unit: u8, dots: u16) -> Vec<u8> {
        let mut out = b"\xFF\xD8\xFF\xE0\0\x10JFIF\0\x01\x01".to_vec();
        out.push(unit);
        out.extend([dots.to_be_bytes(), dots.to_be_bytes()].concat());
        out
    }

    fn tiff(big: bool, unit: u16, (over, under): (u32, u32)) -> Vec<u8> {
        let short = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut out = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        out.extend(long(16));
        out.extend([long(over), long(under)].concat());
        out.extend(short(3));
        for (tag, kind) in [(282u16, 5u16), (283, 5), (296, 3)] {
            out.extend([short(tag), short(kind)].concat());
            out.extend(long(1));
            let value = if tag == 296 { [short(unit), [0; 2]].concat() } else { long(8).to_vec() };
            out.extend(value);
        }
        out
    }

    #[test]
    fn tags_are_read_and_printers_are_not_microscopes() {
        assert_eq!(said(&png(2_000_000, 2_000_000, 1)), Some(0.5));
        assert_eq!(said(&png(2_000_000, 1_000_000, 1)), None, "not square");
        assert_eq!(said(&png(2_000_000, 2_000_000, 0)), None, "a ratio, not a length");
        assert_eq!(said(&png(2835, 2835, 1)), None, "72 to the inch");
        assert_eq!(said(&png(0, 0, 1)), None);
        assert_eq!(said(&jpeg(2, 20_000)), Some(0.5));
        assert_eq!(said(&jpeg(1, 50_800)), Some(0.5));
        assert_eq!((said(&jpeg(1, 300)), said(&jpeg(0, 1)), said(&jpeg(1, 0))), (None, None, None));
        for big in [false, true] {
            assert_eq!(said(&tiff(big, 3, (40_000, 1))), Some(0.25));
            assert_eq!(said(&tiff(big, 2, (101_600, 2))), Some(0.5));
            assert_eq!(said(&tiff(big, 1, (40_000, 1))), None, "no unit");
            assert_eq!(said(&tiff(big, 3, (40_000, 0))), None);
        }
    }

    #[test]
    fn cut_files_say_nothing() {
        for whole in [png(2_000_000, 2_000_000, 1), jpeg(2, 20_000), tiff(false, 3, (40_000, 1))] {
            for n in 0..whole.len() {
                let cut = said(&whole[..n]);
                assert!(cut.is_none() || n + 8 >= whole.len(), "{n}");
            }
        }
    }
}
