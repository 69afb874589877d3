//! AnnData files (.h5ad): observations by variables, dense, by rows (CSR) or by columns (CSC).
//!
//! The matrix is `X`, one of `layers`, or `raw/X`. Names of samples and genes are the index columns
//! of `obs` and `var`; other columns of `var` with identifiers (`gene_ids`, `gene_symbols`,
//! `feature_name`) are kept as alternatives.

use std::path::Path;

use super::{Rna, RnaOptions};
use crate::data::expression::{Csr, Expression};
use crate::data::ids::{IdKind, kind};
use crate::error::{Error, Result};
use crate::io::hdf5::H5;
use crate::io::tables::MAX_VALUES;

/// Values of a dense matrix that are read at a time.
const AT_ONCE: usize = 1 << 22;

/// Where things are in a file.
struct Place {
    matrix: String,
    var: &'static str,
}

fn place(file: &H5, layer: Option<&str>) -> Result<Place> {
    let place = match layer.unwrap_or("X") {
        "X" => Place { matrix: "X".into(), var: "var" },
        "raw" => Place { matrix: "raw/X".into(), var: "raw/var" },
        name => Place { matrix: format!("layers/{name}"), var: "var" },
    };
    if file.has_group(&place.matrix) || file.has_dataset(&place.matrix) {
        return Ok(place);
    }
    let layers = file.members("layers");
    let raw = if file.has_group("raw") { ", raw" } else { "" };
    let list = if layers.is_empty() { String::new() } else { format!(", {}", layers.join(", ")) };
    let what = format!("has no matrix \"{}\"", place.matrix);
    Err(file.error(what, format!("name one with --layer: X{raw}{list}")))
}

/// Reads a file.
///
/// # Errors
/// Files that are not AnnData, matrices of other kinds, names and matrix of different lengths.
pub(super) fn read(path: &Path, options: &RnaOptions) -> Result<Rna> {
    let file = H5::open(path)?;
    let place = place(&file, options.layer.as_deref())?;
    let samples = index(&file, "obs")?;
    let genes = index(&file, place.var)?;
    let shape = shape(&file, &place.matrix)?;
    if shape != (samples.len(), genes.len()) {
        let what = format!(
            "\"{}\" is {} x {}, obs names {} samples and var {} genes",
            place.matrix,
            shape.0,
            shape.1,
            samples.len(),
            genes.len()
        );
        return Err(file.error(what, "write the file again with anndata"));
    }
    let x = match file.has_group(&place.matrix) {
        true => sparse(&file, &place.matrix, samples, genes)?,
        false => dense(&file, &place.matrix, samples, genes)?,
    };
    let mut rna = Rna::new(path, x);
    rna.said.push(format!("matrix: {}", place.matrix));
    rna.alternatives = alternatives(&file, place.var, rna.x.genes.len());
    if let Some(name) = &options.gene_column {
        let ids = column(&file, place.var, name)?;
        rna.name_genes_by(name, ids)?;
    }
    Ok(rna)
}

/// Names of the rows of a frame.
fn index(file: &H5, frame: &str) -> Result<Vec<String>> {
    if !file.has_group(frame) {
        let what = match file.has_dataset(frame) {
            true => format!("\"{frame}\" is a table of anndata before 0.7"),
            false => format!("has no \"{frame}\": not an AnnData file"),
        };
        return Err(file.error(what, "write it with a newer anndata"));
    }
    let name = file.text_attribute(frame, "_index").unwrap_or_else(|| "_index".into());
    column(file, frame, &name)
}

/// A column of text of a frame: strings, categories, strings some of which are missing, or numbers.
fn column(file: &H5, frame: &str, name: &str) -> Result<Vec<String>> {
    let at = format!("{frame}/{name}");
    if file.has_dataset(&at) {
        return file.strings(&at).or_else(|e| match file.integers(&at) {
            Ok(numbers) => Ok(numbers.iter().map(ToString::to_string).collect()),
            Err(_) => Err(e),
        });
    }
    if file.has_dataset(&format!("{at}/values")) {
        return file.strings(&format!("{at}/values"));
    }
    if file.has_dataset(&format!("{at}/categories")) {
        let categories = file.strings(&format!("{at}/categories"))?;
        let code = |c: i64| usize::try_from(c).ok().and_then(|c| categories.get(c));
        let codes = file.integers(&format!("{at}/codes"))?;
        return Ok(codes.into_iter().map(|c| code(c).cloned().unwrap_or_default()).collect());
    }
    let have = file.members(frame).join(", ");
    Err(file.error(format!("\"{frame}\" has no column \"{name}\""), format!("it has {have}")))
}

/// Columns of `var` that name the genes in another way.
fn alternatives(file: &H5, var: &str, genes: usize) -> Vec<(IdKind, Vec<String>)> {
    let names = ["gene_ids", "gene_symbols", "gene_names", "feature_name", "symbol", "ensembl_id"];
    let known = names.iter().filter_map(|name| column(file, var, name).ok());
    known.filter(|ids| ids.len() == genes).map(|ids| (kind(&ids), ids)).collect()
}

fn shape(file: &H5, name: &str) -> Result<(usize, usize)> {
    let extents = match file.has_group(name) {
        false => file.shape(name)?,
        true => {
            let told = file.integers_attribute(name, "shape");
            let told = told.or_else(|| file.integers_attribute(name, "h5sparse_shape"));
            let told = told.unwrap_or_default();
            told.into_iter().filter_map(|v| usize::try_from(v).ok()).collect()
        }
    };
    match extents.as_slice() {
        &[rows, columns] => Ok((rows, columns)),
        other => {
            let what = format!("\"{name}\" has the shape {other:?}, rows and columns are wanted");
            Err(file.error(what, "write the file again with anndata"))
        }
    }
}

fn dense(file: &H5, name: &str, samples: Vec<String>, genes: Vec<String>) -> Result<Expression> {
    let (rows, width) = (samples.len(), genes.len());
    if rows.checked_mul(width).is_none_or(|n| n > MAX_VALUES) {
        let what = format!("\"{name}\" is {rows} x {width}: more than {MAX_VALUES} values");
        return Err(file.error(what, "write a part of it, or a sparse matrix"));
    }
    let mut values = Vec::new();
    let step = (AT_ONCE / width.max(1)).max(1);
    for start in (0..rows).step_by(step) {
        values.extend(file.floats(name, Some((start, (start + step).min(rows))))?);
    }
    check(file, name, &values)?;
    Expression::new(samples, genes, values, None)
}

fn sparse(file: &H5, name: &str, samples: Vec<String>, genes: Vec<String>) -> Result<Expression> {
    let encoding = file.text_attribute(name, "encoding-type");
    let encoding = encoding.or_else(|| file.text_attribute(name, "h5sparse_format"));
    let by_rows = match encoding.as_deref() {
        Some("csr_matrix" | "csr") => true,
        Some("csc_matrix" | "csc") => false,
        other => {
            let what = format!("\"{name}\" is a group encoded as {other:?}");
            return Err(file.error(what, "dense, csr_matrix and csc_matrix are read"));
        }
    };
    let broken = |what: String| {
        file.error(format!("corrupt: \"{name}\": {what}"), "write the file again with anndata")
    };
    let unsigned = |part: &str| -> Result<Vec<u32>> {
        let all = file.integers(&format!("{name}/{part}"))?;
        let one = |v: i64| u32::try_from(v).map_err(|_| broken(format!("{part} holds {v}")));
        all.into_iter().map(one).collect()
    };
    let values = file.floats(&format!("{name}/data"), None)?;
    check(file, name, &values)?;
    let starts = unsigned("indptr")?.into_iter().map(|v| v as usize).collect();
    let csr = Csr { starts, columns: unsigned("indices")?, values };
    let csr = match by_rows {
        true => csr,
        false => turned(csr, samples.len(), genes.len()).map_err(broken)?,
    };
    Expression::sparse(samples, genes, csr).map_err(broken)
}

/// Compressed columns as compressed rows.
fn turned(csc: Csr, rows: usize, width: usize) -> Result<Csr, String> {
    let Csr { starts, columns: at_rows, values } = csc;
    let whole = starts.len() == width + 1 && starts.first() == Some(&0) && starts.is_sorted();
    if !whole || starts.last() != Some(&at_rows.len()) || at_rows.len() != values.len() {
        return Err(format!("\"indptr\" does not describe {width} columns"));
    }
    let mut next = vec![0usize; rows + 1];
    for &r in &at_rows {
        match next.get_mut(r as usize + 1) {
            Some(n) => *n += 1,
            None => return Err(format!("an index names row {r} of {rows}")),
        }
    }
    for r in 0..rows {
        next[r + 1] += next[r];
    }
    let starts_of_rows = next.clone();
    let (mut columns, mut turned) = (vec![0; values.len()], vec![0.0; values.len()]);
    for c in 0..width {
        for at in starts[c]..starts[c + 1] {
            let to = &mut next[at_rows[at] as usize];
            (columns[*to], turned[*to]) = (c as u32, values[at]);
            *to += 1;
        }
    }
    Ok(Csr { starts: starts_of_rows, columns, values: turned })
}

/// Values must be numbers, or missing (NaN).
fn check(file: &H5, name: &str, values: &[f32]) -> Result<()> {
    let count = values.iter().filter(|v| v.is_infinite()).count();
    match values.iter().position(|v| v.is_infinite()) {
        None => Ok(()),
        Some(first) => {
            let what = format!("{count} values of \"{name}\" are infinite, the first");
            let fix = "correct them, or leave their genes out";
            Err(Error::file(file.path(), format!("{what} at position {first}"), fix))
        }
    }
}
