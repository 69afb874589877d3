//! Real tiles, the same through a run's tokenizer, and tiles from their RNA, class by class.

use std::path::{Path, PathBuf};

use super::Run;
use crate::data::augment::centre;
use crate::data::pack::Pack;
use crate::error::Result;
use crate::eval::paint::{Painter, through};
use crate::io::images::Rgb;
use crate::io::sheet::{Group, sheet, spread};
use crate::train::bundle::Bundle;
use crate::train::interrupt::Interrupt;
use crate::train::pipeline::load_msvq;
use crate::train::place::PlaceOptions;
use crate::train::system::System;

/// Classes on one picture, and at most.
const ABREAST: usize = 2;
const CLASSES: usize = 8;

/// What pictures are made of.
pub struct Wanted<'a> {
    /// The pack, where one was named.
    pub data: Option<&'a Path>,
    /// Tiles of each class.
    pub tiles: usize,
    /// Seed of the tiles that are drawn.
    pub seed: u64,
    /// Where they are drawn.
    pub place: &'a PlaceOptions,
}

/// Pictures with captions, and what could not be shown.
pub struct Shown {
    /// Each with its caption.
    pub sheets: Vec<(String, Rgb)>,
    /// A sentence each.
    pub said: Vec<String>,
}

/// The pictures of a run. What fails is said.
pub fn pictures(run: &Run, wanted: &Wanted<'_>) -> Shown {
    let mut said = Vec::new();
    let sheets = draw(run, wanted, &mut said).unwrap_or_else(|e| {
        said.push(format!("No tiles of {} are shown: {e}.", run.name));
        Vec::new()
    });
    Shown { sheets, said }
}

fn draw(run: &Run, wanted: &Wanted<'_>, said: &mut Vec<String>) -> Result<Vec<(String, Rgb)>> {
    let Some(config) = run.config.as_ref().filter(|_| wanted.tiles > 0) else {
        return Ok(Vec::new());
    };
    let recorded = Some(PathBuf::from(&config.data.pack)).filter(|p| p.is_file());
    let Some(path) = wanted.data.map(Path::to_path_buf).or(recorded) else {
        said.push("No tiles are shown: name the pack with --data.".into());
        return Ok(Vec::new());
    };
    if run.stage("msvq").is_none() {
        said.push(format!("{} has no tokenizer yet, so no tiles are shown.", run.name));
        return Ok(Vec::new());
    }
    let pack = Pack::open(path)?;
    let (split, all) = ["val", "test", "train"]
        .iter()
        .find_map(|split| Some((*split, pack.split(split).ok()?)))
        .map_or_else(|| pack.images("train").map(|all| ("train", all)), Ok)?;
    let groups = chosen(&pack, &all, wanted.tiles);
    let which: Vec<usize> = groups.iter().flat_map(|(_, of)| of.iter().copied()).collect();
    let tiles = pack.tiles(&which)?;
    let real: Vec<Rgb> =
        tiles.iter().map(|t| centre(t, config.msvq.image)).collect::<Result<_>>()?;
    let bundle = Bundle::load(&run.path)?;
    let msvq = load_msvq(config, &bundle)?;
    let back: Vec<Rgb> = real.iter().map(|t| through(&msvq, t)).collect::<Result<_>>()?;
    let painted = painted(&bundle, &pack, &which, wanted).unwrap_or_else(|e| {
        said.push(format!("{}: no tiles are drawn from RNA yet: {e}.", run.name));
        Vec::new()
    });
    let mut rows = vec![("real", real), ("tokenizer", back)];
    if !painted.is_empty() {
        rows.push(("from RNA", painted));
    }
    let names: Vec<&str> = rows.iter().map(|r| r.0).collect();
    let mut sheets = Vec::new();
    let mut first = 0;
    for part in groups.chunks(ABREAST) {
        let mut columns = Vec::new();
        for (class, of) in part {
            let tiles = first..first + of.len();
            first = tiles.end;
            let rows = rows.iter().map(|(_, all)| all[tiles.clone()].to_vec()).collect();
            columns.push(Group::new(class, rows));
        }
        let caption = format!(
            "{}, split {split}, evenly chosen, unretouched. From the top: the real tile; the same \
             through the tokenizer and back{}.",
            run.name,
            if names.len() > 2 { "; a tile drawn from its RNA" } else { "" }
        );
        sheets.push((caption, sheet(&names, &columns)?));
    }
    Ok(sheets)
}

/// Some images of each class, evenly spread.
fn chosen(pack: &Pack, all: &[usize], count: usize) -> Vec<(String, Vec<usize>)> {
    let of = |class: Option<&str>| -> Vec<usize> {
        let own = |i: usize| class.is_none() || pack.class(all[i]) == class;
        spread(all.len(), count, own).into_iter().map(|i| all[i]).collect()
    };
    let classes = pack.classes().iter().take(CLASSES);
    let mut groups: Vec<(String, Vec<usize>)> =
        classes.map(|class| (class.clone(), of(Some(class.as_str())))).collect();
    groups.retain(|(_, of)| !of.is_empty());
    if groups.is_empty() {
        groups.push((String::new(), of(None)));
    }
    groups
}

fn painted(bundle: &Bundle, pack: &Pack, which: &[usize], wanted: &Wanted<'_>) -> Result<Vec<Rgb>> {
    let mut system = System::of(bundle)?;
    wanted.place.place(&mut system)?;
    let interrupt = Interrupt::default();
    let (system, seed, done) = (&system, wanted.seed, &|| ());
    Painter { system, pack, seed, interrupt: &interrupt, done }.from_rna(which)
}
