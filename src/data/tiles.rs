//! A folder of tiles and the table that describes them, one row a tile.
//!
//! Only the tile's file name and its split are required; section, patient, class, the row of its
//! RNA and the pixel position are read when the table has such columns.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::images::{self, Expect, Rgb};
use crate::io::tables::{Table, check_file_name};

/// Names of the table's columns; an empty name means that there is none.
#[derive(Clone, Debug)]
pub struct TileColumns {
    /// File name of the tile.
    pub tile: String,
    /// Split: train, val, test.
    pub split: String,
    /// Section or slide.
    pub section: String,
    /// Patient.
    pub patient: String,
    /// Tissue class.
    pub class: String,
    /// Row of the tile's RNA in the matrix.
    pub row: String,
}

impl Default for TileColumns {
    fn default() -> Self {
        Self {
            tile: "tile".into(),
            split: "split".into(),
            section: "section".into(),
            patient: "patient".into(),
            class: String::new(),
            row: String::new(),
        }
    }
}

/// One tile, as its table row says.
#[derive(Clone, Debug)]
pub struct Tile {
    /// File name inside the folder.
    pub name: String,
    /// Split.
    pub split: String,
    /// Section, or empty.
    pub section: String,
    /// Patient, or empty.
    pub patient: String,
    /// Class, or empty.
    pub class: String,
    /// Row of its RNA, if the table gives one.
    pub row: Option<usize>,
}

/// A tile folder and its table.
#[derive(Clone, Debug)]
pub struct TileTable {
    /// Folder of the image files.
    pub folder: PathBuf,
    /// The table, for further columns and line numbers.
    pub table: Table,
    /// The tiles, in table order.
    pub tiles: Vec<Tile>,
}

impl TileTable {
    /// Reads the table; the images are read later, by [`TileTable::load`].
    ///
    /// # Errors
    /// Missing columns, an empty table, duplicate or unusable tile names, row numbers that are not
    /// numbers.
    pub fn read(table: &Path, folder: &Path, columns: &TileColumns) -> Result<Self> {
        let table = Table::read(table)?;
        let tile = table.column(&columns.tile)?;
        let split = table.column(&columns.split)?;
        let optional = |name: &str| -> Result<Option<usize>> {
            if name.is_empty() { Ok(None) } else { table.column(name).map(Some) }
        };
        let section = optional(&columns.section)?;
        let patient = optional(&columns.patient)?;
        let class = optional(&columns.class)?;
        let row = optional(&columns.row)?;
        let mut tiles: Vec<Tile> = Vec::with_capacity(table.rows.len());
        let mut seen = HashMap::new();
        for (i, cells) in table.rows.iter().enumerate() {
            let get = |c: Option<usize>| c.map(|c| cells[c].trim().to_string());
            let name = cells[tile].trim().to_string();
            check_file_name(&name).map_err(|e| {
                table.error(i, e.to_string(), "the tile column holds names of files in one folder")
            })?;
            if let Some(first) = seen.insert(name.clone(), i) {
                let what = format!("tile \"{name}\" is also in line {}", table.line(first));
                return Err(table.error(i, what, "list every tile once"));
            }
            let row = match get(row) {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| {
                    let what = format!("tile \"{name}\": row \"{text}\" is not a row number");
                    table.error(i, what, "give the 0-based row of its RNA")
                })?),
            };
            tiles.push(Tile {
                name,
                split: cells[split].trim().to_string(),
                section: get(section).unwrap_or_default(),
                patient: get(patient).unwrap_or_default(),
                class: get(class).unwrap_or_default(),
                row,
            });
        }
        if tiles.is_empty() {
            return Err(Error::file(&table.path, "lists no tiles", "add a row a tile"));
        }
        Ok(Self { folder: folder.to_path_buf(), table, tiles })
    }

    /// All images of a folder, nothing known of them: every `held`th, by name, is of the split val,
    /// the others of train.
    ///
    /// # Errors
    /// A folder that cannot be listed, or without images.
    pub fn of_folder(folder: &Path, held: usize) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
            if images::named_image(&path) {
                names.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
            }
        }
        if names.is_empty() {
            let fix = "name the folder of the tiles";
            return Err(Error::file(folder, "holds no PNG, JPEG or TIFF images", fix));
        }
        names.sort();
        let split = |i: usize| if held > 0 && i % held == held - 1 { "val" } else { "train" };
        let rows = names.iter().enumerate().map(|(i, n)| vec![n.clone(), split(i).to_string()]);
        let table = Table::made(folder, &["tile", "split"], rows.collect());
        let tile = |(i, name): (usize, &String)| Tile {
            name: name.clone(),
            split: split(i).into(),
            section: String::new(),
            patient: String::new(),
            class: String::new(),
            row: None,
        };
        let tiles = names.iter().enumerate().map(tile).collect();
        Ok(Self { folder: folder.to_path_buf(), table, tiles })
    }

    /// Reads the image of tile `i`.
    pub fn load(&self, i: usize, expect: Expect) -> Result<Rgb> {
        images::read(self.folder.join(&self.tiles[i].name), expect)
    }

    /// A column of numbers, one a tile.
    pub fn numbers(&self, column: &str) -> Result<Vec<f64>> {
        let c = self.table.column(column)?;
        let parse = |(i, cells): (usize, &Vec<String>)| {
            cells[c].trim().parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| {
                let what = format!("column \"{column}\" is \"{}\", not a number", cells[c]);
                self.table.error(i, what, "correct it")
            })
        };
        self.table.rows.iter().enumerate().map(parse).collect()
    }
}
