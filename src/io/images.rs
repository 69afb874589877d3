//! Images as 8-bit RGB: PNG, JPEG and TIFF in; PNG, JPEG and contact sheets out.
//!
//! The size is read from the header and checked before a pixel is decoded, so a file of a few bytes
//! that claims gigapixels costs nothing. What is not 8-bit RGB or grey is refused by name rather
//! than converted: a silent conversion of CMYK or 16-bit data changes the stain.

mod scale;

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ColorType, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader};

use crate::error::{Error, Result};
use crate::io::atomic;

pub use scale::um_per_px;

/// An 8-bit RGB image, row-major, three bytes a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `3 * width * height` bytes.
    pub data: Vec<u8>,
}

impl Rgb {
    /// An image of the given bytes, which must fill it exactly.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        if data.len() != 3 * width * height {
            let what = format!("{} bytes do not fill {width}x{height} RGB pixels", data.len());
            return Err(Error::shape("image", what));
        }
        Ok(Self { width, height, data })
    }

    /// One colour everywhere.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, data: colour.repeat(width * height) }
    }

    /// The pixel in column `x` of row `y`.
    #[inline]
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * self.width + x);
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// The `width` x `height` window whose top left corner is (`x`, `y`).
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<Self> {
        if x + width > self.width || y + height > self.height {
            let what = format!(
                "a {width}x{height} window at ({x}, {y}) leaves the {}x{} image",
                self.width, self.height
            );
            return Err(Error::shape("crop", what));
        }
        let mut data = Vec::with_capacity(3 * width * height);
        for row in y..y + height {
            let start = 3 * (row * self.width + x);
            data.extend_from_slice(&self.data[start..start + 3 * width]);
        }
        Ok(Self { width, height, data })
    }

    /// Copies `tile` in with its top left corner at (`x`, `y`); it must fit.
    pub fn paste(&mut self, tile: &Self, x: usize, y: usize) -> Result<()> {
        if x + tile.width > self.width || y + tile.height > self.height {
            return Err(Error::shape("paste", format!("a tile at ({x}, {y}) leaves the image")));
        }
        for row in 0..tile.height {
            let to = 3 * ((y + row) * self.width + x);
            let from = 3 * row * tile.width;
            let len = 3 * tile.width;
            self.data[to..to + len].copy_from_slice(&tile.data[from..from + len]);
        }
        Ok(())
    }
}

/// What an image must be to be read.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Exact width and height, if they are known.
    pub size: Option<(usize, usize)>,
    /// Most pixels the header may claim.
    pub max_pixels: u64,
}

impl Expect {
    /// A tile of exactly `width` x `height`.
    pub fn tile(width: usize, height: usize) -> Self {
        Self { size: Some((width, height)), ..Self::any() }
    }

    /// Any size up to 16 megapixels: no tile is larger.
    pub fn any() -> Self {
        Self { size: None, max_pixels: 1 << 24 }
    }

    /// A whole section, up to 256 megapixels (768 MB decoded).
    pub fn section() -> Self {
        Self { size: None, max_pixels: 1 << 28 }
    }
}

/// Reads an image file.
///
/// # Errors
/// Missing, empty, corrupt or truncated files, more than 8 bits a channel, CMYK, transparency, and
/// sizes other than expected; each names the file and what to do.
pub fn read(path: impl AsRef<Path>, expect: Expect) -> Result<Rgb> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    decode(&bytes, path, expect)
}

/// Whether a file begins as an image that is read here.
pub fn is_image(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(8).read_to_end(&mut start));
    let known: [&[u8]; 4] = [b"\x89PNG", b"\xFF\xD8\xFF", b"II*\0", b"MM\0*"];
    read.is_ok() && known.iter().any(|k| start.starts_with(k))
}

/// Whether a file is named as an image that is read here.
pub fn named_image(path: &Path) -> bool {
    let end = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    path.is_file() && end.is_some_and(|e| matches!(&*e, "png" | "jpg" | "jpeg" | "tif" | "tiff"))
}

/// Width and height of an image, by its header alone.
///
/// # Errors
/// Files that are no images.
pub fn size(path: &Path) -> Result<(u32, u32)> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader = reader.map_err(|e| Error::io("read", path, e))?;
    reader
        .into_dimensions()
        .map_err(|e| Error::file(path, format!("not a readable image: {e}"), "replace the file"))
}

/// Decodes the bytes of an image file; `path` is for messages only.
pub fn decode(bytes: &[u8], path: &Path, expect: Expect) -> Result<Rgb> {
    if bytes.is_empty() {
        return Err(Error::file(path, "the file is empty (0 bytes)", "fetch or write it again"));
    }
    let corrupt = |e: image::ImageError| {
        Error::file(path, format!("not a readable image: {e}"), "replace the file")
    };
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::io("read", path, e))?;
    let format = match reader.format() {
        Some(f @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Tiff)) => f,
        _ => {
            let what = "not a PNG, JPEG or TIFF image";
            return Err(Error::file(path, what, "convert it to PNG, or replace the file"));
        }
    };
    if format == ImageFormat::Jpeg {
        check_jpeg(bytes, path)?;
    }
    let decoder = reader.into_decoder().map_err(corrupt)?;
    check_size(decoder.dimensions(), path, expect)?;
    check_colour(decoder.color_type(), decoder.original_color_type(), path)?;
    let (width, height) = decoder.dimensions();
    let colour = decoder.color_type();
    let mut data = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut data).map_err(corrupt)?;
    Rgb::new(width as usize, height as usize, to_rgb(data, colour, path)?)
}

fn check_size((width, height): (u32, u32), path: &Path, expect: Expect) -> Result<()> {
    let found = (width as usize, height as usize);
    if let Some((w, h)) = expect.size.filter(|wanted| *wanted != found) {
        let what = format!("the image is {width}x{height} pixels, expected {w}x{h}");
        return Err(Error::file(path, what, "cut the tile to that size, or set the tile size"));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > expect.max_pixels {
        let what = format!(
            "its header claims {width}x{height} pixels; the most that is decoded here is {}",
            expect.max_pixels
        );
        return Err(Error::file(
            path,
            what,
            "check where the file came from, or cut it into tiles",
        ));
    }
    Ok(())
}

fn check_colour(colour: ColorType, original: ExtendedColorType, path: &Path) -> Result<()> {
    if matches!(original, ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16) {
        return Err(cmyk(path));
    }
    match colour {
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => Ok(()),
        other => {
            let bits = 8 * u16::from(other.bytes_per_pixel()) / u16::from(other.channel_count());
            let what = format!("the image has {bits} bits a channel, 8 are read");
            Err(Error::file(path, what, "convert it to 8-bit RGB, choosing the scaling yourself"))
        }
    }
}

fn cmyk(path: &Path) -> Error {
    Error::file(path, "the image is CMYK, RGB is read", "convert it to RGB with its colour profile")
}

/// What the JPEG decoder would let pass: four-channel images, and files cut off in the middle,
/// whose missing rows it fills with grey.
fn check_jpeg(bytes: &[u8], path: &Path) -> Result<()> {
    let corrupt = |what: &str| Error::file(path, what, "replace the file");
    let mut at = 2;
    loop {
        let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) else {
            return Err(corrupt("the JPEG ends or breaks inside its header"));
        };
        // Fill bytes before a marker are allowed.
        if marker == 0xFF {
            at += 1;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let frame = matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
        if frame {
            match (bytes.get(at + 4), bytes.get(at + 9)) {
                (Some(&bits), _) if bits != 8 => {
                    let what = format!("the image has {bits} bits a channel, 8 are read");
                    return Err(Error::file(path, what, "convert it to 8-bit RGB"));
                }
                (_, Some(4)) => return Err(cmyk(path)),
                (_, None) => return Err(corrupt("the JPEG ends inside its header")),
                _ => {}
            }
        }
        at += 2 + length;
        if marker == 0xDA {
            break;
        }
    }
    let scan = bytes.get(at..).unwrap_or_default();
    // Entropy-coded data never contain FF D9, so its absence means that the end is missing.
    if scan.windows(2).any(|pair| pair == [0xFF, 0xD9]) {
        Ok(())
    } else {
        Err(corrupt("the JPEG is cut off: its end marker is missing"))
    }
}

fn to_rgb(data: Vec<u8>, colour: ColorType, path: &Path) -> Result<Vec<u8>> {
    let opaque = |channels: usize| data.iter().skip(channels - 1).step_by(channels);
    let transparent = match colour {
        ColorType::La8 => opaque(2).any(|&a| a != 255),
        ColorType::Rgba8 => opaque(4).any(|&a| a != 255),
        _ => false,
    };
    if transparent {
        let what = "the image has transparent pixels";
        return Err(Error::file(path, what, "flatten it over the background you want"));
    }
    Ok(match colour {
        ColorType::L8 => data.iter().flat_map(|&g| [g; 3]).collect(),
        ColorType::La8 => data.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        ColorType::Rgba8 => data.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        _ => data,
    })
}

/// The bytes of a PNG file.
pub fn encode_png(image: &Rgb) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&image.data, image.width as u32, image.height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Internal(format!("PNG encoder: {e}")))?;
    Ok(bytes)
}

/// Writes a PNG file, whole or not at all.
pub fn write_png(path: impl AsRef<Path>, image: &Rgb) -> Result<()> {
    atomic::write(path, &encode_png(image)?)
}

/// The bytes of a baseline JPEG of the given quality (1 to 100), colour at full resolution (4:4:4).
pub fn encode_jpeg(image: &Rgb, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&image.data, image.width as u32, image.height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Internal(format!("JPEG encoder: {e}")))?;
    Ok(bytes)
}

/// A contact sheet: equal tiles in reading order, `columns` to a row, `gap` white pixels between.
pub fn grid(tiles: &[Rgb], columns: usize, gap: usize) -> Result<Rgb> {
    let Some(first) = tiles.first() else {
        return Err(Error::data("no tiles to lay out", "ask for at least one tile"));
    };
    let columns = columns.clamp(1, tiles.len());
    let rows = tiles.len().div_ceil(columns);
    let (w, h) = (first.width, first.height);
    let size = (columns * (w + gap) - gap, rows * (h + gap) - gap);
    let mut sheet = Rgb::filled(size.0, size.1, [255; 3]);
    for (i, tile) in tiles.iter().enumerate() {
        if (tile.width, tile.height) != (w, h) {
            let what = format!("tile {i} is {}x{}, tile 0 is {w}x{h}", tile.width, tile.height);
            return Err(Error::shape("grid", what));
        }
        sheet.paste(tile, (i % columns) * (w + gap), (i / columns) * (h + gap))?;
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(w: usize, h: usize) -> Rgb {
        let data = (0..3 * w * h).map(|i| (i * 7 % 251) as u8).collect();
        Rgb::new(w, h, data).unwrap()
    }

    #[test]
    fn png_round_trip_is_exact_and_jpeg_is_close() {
        let image = Rgb::filled(16, 24, [200, 120, 180]);
        let png = encode_png(&ramp(5, 7)).unwrap();
        assert_eq!(decode(&png, Path::new("a"), Expect::any()).unwrap(), ramp(5, 7));
        let jpeg = encode_jpeg(&image, 90).unwrap();
        let back = decode(&jpeg, Path::new("a"), Expect::tile(16, 24)).unwrap();
        assert!(back.data.iter().zip(&image.data).all(|(a, b)| a.abs_diff(*b) <= 3));
    }

    #[test]
    fn windows_and_sheets_put_pixels_where_they_belong() {
        let image = ramp(6, 5);
        let window = image.crop(2, 1, 3, 2).unwrap();
        assert_eq!(window.pixel(1, 1), image.pixel(3, 2));
        assert!(image.crop(4, 0, 3, 1).is_err());
        let sheet = grid(&[window.clone(), window.clone(), window.clone()], 2, 1).unwrap();
        assert_eq!((sheet.width, sheet.height), (7, 5));
        assert_eq!(sheet.pixel(0, 3), window.pixel(0, 0));
        assert_eq!(sheet.pixel(3, 0), [255; 3]);
    }
}
