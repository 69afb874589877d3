//! Expression in safetensors: a pack, sparse counts, or a matrix of numbers.

use std::path::Path;

use super::{Rna, RnaOptions};
use crate::data::expression::{Expression, read_symbols};
use crate::data::pack::{self, Pack};
use crate::error::{Error, Result};
use crate::io::safetensors::TensorFile;
use crate::io::tables::MAX_VALUES;

/// Names that a matrix has, the likeliest first.
const NAMES: [&str; 5] = ["X", "counts", "expression", "values", "rna.values"];

/// Reads a file, plain or gzip.
///
/// # Errors
/// A file without a matrix, or without names for its genes.
pub(super) fn read(path: &Path, options: &RnaOptions) -> Result<Rna> {
    let file = TensorFile::open(path)?;
    if file.metadata().get("format").is_some_and(|f| f == pack::FORMAT) {
        let pack = Pack::open(path)?;
        let with: Vec<usize> = (0..pack.len()).filter(|&i| pack.rna_row(i).is_some()).collect();
        let mut rna = Rna::new(path, pack.expression(&with)?);
        rna.units = pack.units();
        rna.said.push("a pack: its tiles with RNA".into());
        return Ok(rna);
    }
    if file.contains("indptr") || file.contains("shape") {
        let x = Expression::read_csr(path, genes_table(options, "sparse counts")?)?;
        return Ok(Rna::new(path, x));
    }
    let name = matrix(&file)?;
    let &[rows, width] = file.shape(name)? else {
        return Err(Error::Internal("a matrix without rows and columns".into()));
    };
    let listed = |key: &str, n: usize| -> Option<Vec<String>> {
        let names: Vec<String> = serde_json::from_str(file.metadata().get(key)?).ok()?;
        (names.len() == n).then_some(names)
    };
    let genes = match listed("genes", width) {
        Some(genes) => genes,
        None => read_symbols(genes_table(options, "a matrix")?)?,
    };
    if genes.len() != width || rows.saturating_mul(width) > MAX_VALUES {
        let what = format!("\"{name}\" is {rows} x {width}, there are {} genes", genes.len());
        return Err(Error::file(path, what, "give the gene list of that matrix"));
    }
    let samples = listed("samples", rows);
    let samples = samples.unwrap_or_else(|| (0..rows).map(|r| r.to_string()).collect());
    let values = match file.dtype(name)? {
        "F32" | "F16" | "BF16" => file.tensor(name)?.into_f32s()?,
        "F64" => {
            let tensor = file.tensor(name)?;
            (0..tensor.len()).map(|i| tensor.at(i) as f32).collect()
        }
        _ => file.tensor(name)?.i32s()?.iter().map(|&v| v as f32).collect(),
    };
    if let Some(at) = values.iter().position(|v| v.is_infinite()) {
        let (row, gene) = (at / width.max(1), &genes[at % width.max(1)]);
        let what = format!("\"{name}\": row {row}, gene {gene} is infinite");
        return Err(Error::file(path, what, "correct it, or leave the gene out"));
    }
    let mut rna = Rna::new(path, Expression::new(samples, genes, values, None)?);
    rna.said.push(format!("matrix: \"{name}\""));
    Ok(rna)
}

fn genes_table<'a>(options: &'a RnaOptions, what: &str) -> Result<&'a Path> {
    options.genes_table.as_deref().ok_or_else(|| {
        let what = format!("{what} of safetensors carry no gene names");
        Error::config("--genes-table", what, "give the table of gene symbols")
    })
}

/// The tensor that is the matrix.
fn matrix(file: &TensorFile) -> Result<&str> {
    let flat = |n: &&str| file.shape(n).is_ok_and(|s| s.len() == 2);
    let all: Vec<&str> = file.names().filter(flat).collect();
    let named = NAMES.iter().find_map(|n| all.iter().find(|a| *a == n));
    match (named, all.as_slice()) {
        (Some(name), _) | (None, [name]) => Ok(*name),
        (None, several) => {
            let what = format!("has {} tensors of rows and columns", several.len());
            let fix = "name the matrix \"X\": samples by genes";
            Err(Error::file(file.path(), what, fix))
        }
    }
}
