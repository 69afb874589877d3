//! What is in a safetensors file: a pack, a bundle, a checkpoint, or tensors.

use std::collections::BTreeMap;
use std::path::Path;

use super::spread::Spread;
use super::tiles::thumbnail;
use super::{Found, InspectArgs, describe, for_looking};
use crate::data::pack::{self, Pack};
use crate::data::source::{Rna, Wanted};
use crate::error::Result;
use crate::io::safetensors::TensorFile;

/// Tensors that are listed one by one.
const LISTED: usize = 24;
/// Values of a tensor that are looked at.
const VALUES: usize = 1 << 24;

/// Looks at a file.
///
/// # Errors
/// Files that are not whole.
pub(super) fn look(path: &Path, args: &InspectArgs) -> Result<Found> {
    let file = TensorFile::open(path)?;
    if file.metadata().get("format").is_some_and(|f| f == pack::FORMAT) {
        return pack_of(path, args);
    }
    let mut found = Found::new();
    found.line("what", kind(&file));
    for (key, value) in file.metadata() {
        let short: String = value.chars().take(60).map(|c| if c < ' ' { ' ' } else { c }).collect();
        let more = if value.len() > short.len() {
            format!(" ... ({} bytes)", value.len())
        } else {
            String::new()
        };
        found.line("metadata", format!("{key}: {short}{more}"));
    }
    let names: Vec<&str> = file.names().collect();
    match names.len() > LISTED {
        true => summary(&mut found, &file, &names)?,
        false => list(&mut found, &file, &names)?,
    }
    if file.contains("indptr") || args.read.genes_table.is_some() {
        match Rna::read(path, &for_looking(&args.read), Wanted::default()) {
            Ok(rna) => describe(&mut found, &rna),
            Err(e) => found.line("as expression", e),
        }
    }
    Ok(found)
}

fn kind(file: &TensorFile) -> String {
    let format = file.metadata().get("format").map_or("", String::as_str);
    let moments = file.names().any(|n| n.starts_with("adam_m."));
    let what = match format {
        f if f.starts_with("genevar-bundle") => "trained system (a bundle of genevar export)",
        _ if moments => "checkpoint of a stage in training",
        _ => "tensors",
    };
    let bytes: usize = file.names().filter_map(|n| file.bytes(n).ok()).map(<[u8]>::len).sum();
    let count = file.names().count();
    format!("{what}: {count} tensors, {:.2} MB", bytes as f64 / 1e6)
}

fn list(found: &mut Found, file: &TensorFile, names: &[&str]) -> Result<()> {
    for name in names {
        let (shape, dtype) = (file.shape(name)?, file.dtype(name)?);
        let what = match values(file, name) {
            Some(spread) => spread.to_string(),
            None => "not looked at".into(),
        };
        found.line(name, format!("{shape:?} {dtype}: {what}"));
    }
    Ok(())
}

fn values(file: &TensorFile, name: &str) -> Option<Spread> {
    let size: usize = file.shape(name).ok()?.iter().product();
    if size > VALUES {
        return None;
    }
    let tensor = file.tensor(name).ok()?;
    let mut spread = Spread::default();
    match tensor.i32s() {
        Ok(all) => all.iter().for_each(|&v| spread.add(v as f32)),
        Err(_) => (0..tensor.len()).for_each(|i| spread.add(tensor.at(i) as f32)),
    }
    Some(spread)
}

/// Tensors by the first part of their names.
fn summary(found: &mut Found, file: &TensorFile, names: &[&str]) -> Result<()> {
    let mut groups: BTreeMap<&str, (usize, usize, Spread)> = BTreeMap::new();
    for name in names {
        let part = name.split(['/', '.']).next().unwrap_or_default();
        let group = groups.entry(part).or_default();
        group.0 += 1;
        group.1 += file.shape(name)?.iter().product::<usize>();
        if let Some(tensor) = file.tensor(name).ok().filter(|t| t.len() <= VALUES) {
            (0..tensor.len()).for_each(|i| group.2.add(tensor.at(i) as f32));
        }
    }
    for (name, (tensors, elements, spread)) in groups {
        found.line(name, format!("{tensors} tensors, {elements} elements: {spread}"));
    }
    Ok(())
}

fn pack_of(path: &Path, args: &InspectArgs) -> Result<Found> {
    let pack = Pack::open(path)?;
    let mut found = Found::new();
    let with: Vec<usize> = (0..pack.len()).filter(|&i| pack.rna_row(i).is_some()).collect();
    let side = pack.tile_size();
    found.line(
        "what",
        format!("pack: {} tiles with RNA, {} without", with.len(), pack.len() - with.len()),
    );
    let um = pack.um_per_px().map_or("um a pixel unknown".into(), |u| format!("{u} um a pixel"));
    found.line("images", format!("{side} x {side} pixels, {um}"));
    let count = |of: &dyn Fn(usize) -> String| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        (0..pack.len()).for_each(|i| *counts.entry(of(i)).or_default() += 1);
        let n = counts.len();
        let name = |k: String| if k.is_empty() { "none".to_string() } else { k };
        let list = counts.into_iter().take(12).map(|(k, c)| format!("{} {c}", name(k)));
        let list: Vec<String> = list.collect();
        format!("{}{}", list.join(", "), if n > 12 { ", ..." } else { "" })
    };
    found.line("splits", count(&|i| pack.split_of(i).to_string()));
    found.line("sections", count(&|i| pack.section(i).to_string()));
    found.line("patients", count(&|i| pack.patient(i).to_string()));
    found.line("classes", count(&|i| pack.class(i).unwrap_or_default().to_string()));
    if !with.is_empty() {
        describe(&mut found, &Rna::read(path, &for_looking(&args.read), Wanted::default())?);
    }
    if args.out.is_some() {
        let step = pack.len().div_ceil(args.thumbnails.max(1)).max(1);
        for i in (0..pack.len()).step_by(step) {
            found.thumbnails.push(thumbnail(&pack.tile(i)?)?);
        }
    }
    Ok(found)
}
