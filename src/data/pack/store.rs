//! What a pack is written from: images and columns while they grow.

use super::{NO_LABEL, NO_ROW};
use crate::data::tiles::Tile;
use crate::error::{Error, Result};
use crate::io::images::{self, Rgb};
use crate::io::safetensors::Writer;

/// The image store while it grows.
pub(super) struct Images {
    quality: Option<u8>,
    encoded: Vec<Vec<u8>>,
    /// Bytes that all JPEGs so far begin with.
    common: usize,
}

impl Images {
    pub(super) fn new(quality: Option<u8>) -> Self {
        Self { quality, encoded: Vec::new(), common: usize::MAX }
    }

    pub(super) fn encode(&self, image: &Rgb) -> Result<Vec<u8>> {
        match self.quality {
            Some(q) => images::encode_jpeg(image, q),
            None => Ok(image.data.clone()),
        }
    }

    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        let common = match self.encoded.first() {
            Some(first) => first.iter().zip(&bytes).take_while(|(a, b)| a == b).count(),
            None => bytes.len(),
        };
        self.common = self.common.min(common);
        self.encoded.push(bytes);
    }

    /// Bytes that one more image takes, its offset included.
    pub(super) fn cost(&self, bytes: &[u8]) -> u64 {
        let shared = if self.quality.is_some() { self.common } else { 0 };
        bytes.len().saturating_sub(shared) as u64 + 4
    }

    pub(super) fn size(&self) -> u64 {
        self.encoded.iter().map(|e| self.cost(e)).sum::<u64>() + 1024
    }

    pub(super) fn store(self, writer: &mut Writer, size: usize) -> Result<()> {
        let n = self.encoded.len();
        if self.quality.is_none() {
            return writer.u8s("image.raw", &[n, size, size, 3], self.encoded.concat());
        }
        let head = self.encoded.first().map_or(Vec::new(), |e| e[..self.common].to_vec());
        let mut bytes = Vec::new();
        let mut offsets = vec![0u32];
        for e in &self.encoded {
            bytes.extend_from_slice(&e[self.common..]);
            offsets.push(u32::try_from(bytes.len()).map_err(|_| {
                let what = "the tiles take more than 4 GB";
                Error::data(what, "split the data over several packs")
            })?);
        }
        writer.u8s("image.head", &[head.len()], head)?;
        writer.u32s("image.offsets", &[n + 1], &offsets)?;
        let length = bytes.len();
        writer.u8s("image.bytes", &[length], bytes)
    }
}

/// The per-image columns while they grow.
#[derive(Default)]
pub(super) struct Listing {
    tiles: Vec<Tile>,
    rows: Vec<u32>,
}

impl Listing {
    pub(super) fn push(&mut self, tile: Tile, row: Option<u32>) {
        self.tiles.push(tile);
        self.rows.push(row.unwrap_or(NO_ROW));
    }

    /// The split of each image.
    pub(super) fn splits(&self) -> impl Iterator<Item = &str> {
        self.tiles.iter().map(|t| t.split.as_str())
    }

    /// Bytes of one image's columns and name: four labels, a row, the name in JSON in JSON.
    pub(super) fn cost(id: &str) -> u64 {
        (4 * 2 + 4 + id.len() + 5) as u64
    }

    /// Bytes of all columns, and some for the header.
    pub(super) fn size(&self) -> u64 {
        self.tiles.iter().map(|t| Self::cost(&t.name)).sum::<u64>() + 4096
    }

    pub(super) fn store(&self, writer: &mut Writer) -> Result<()> {
        let ids: Vec<&String> = self.tiles.iter().map(|t| &t.name).collect();
        writer.meta("ids", to_json(&ids)?);
        writer.u32s("image.row", &[self.rows.len()], &self.rows)?;
        self.column(writer, ("splits", "image.split"), |t| &t.split)?;
        self.column(writer, ("classes", "image.class"), |t| &t.class)?;
        self.column(writer, ("sections", "image.section"), |t| &t.section)?;
        self.column(writer, ("patients", "image.patient"), |t| &t.patient)
    }

    fn column(
        &self,
        writer: &mut Writer,
        (names, column): (&str, &str),
        of: impl Fn(&Tile) -> &String,
    ) -> Result<()> {
        let mut distinct: Vec<&String> = self.tiles.iter().map(&of).collect();
        distinct.sort_unstable();
        distinct.dedup();
        distinct.retain(|d| !d.is_empty());
        if distinct.len() >= NO_LABEL as usize {
            let what = format!("{} different {names}", distinct.len());
            return Err(Error::data(what, "split the data over several packs"));
        }
        let label = |t: &Tile| match distinct.binary_search(&of(t)) {
            Ok(i) => i as u16,
            Err(_) => NO_LABEL as u16,
        };
        let labels: Vec<u16> = self.tiles.iter().map(label).collect();
        writer.meta(names, to_json(&distinct)?);
        writer.u16s(column, &[labels.len()], &labels)
    }
}

/// JSON for people and programs, with an end of line.
pub(super) fn to_json_page<T: serde::Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|e| Error::Internal(e.to_string()))
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))
}
