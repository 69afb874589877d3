//! Expression matrices, samples by genes, dense or sparse.

mod gaps;

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::safetensors::TensorFile;
use crate::io::tables::{Dense, Table};

pub use gaps::Missing;

#[derive(Clone, Debug)]
enum Matrix {
    /// Row-major, `samples * columns`.
    Dense(Vec<f32>),
    /// Compressed rows.
    Sparse(Csr),
}

/// A sparse matrix by compressed rows.
#[derive(Clone, Debug, Default)]
pub struct Csr {
    /// Where each row begins, and the end: rows + 1 numbers from 0 on.
    pub starts: Vec<usize>,
    /// The column of each value.
    pub columns: Vec<u32>,
    /// The values that are not zero.
    pub values: Vec<f32>,
}

/// What several columns of one gene become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Their sum: counts, TPM, FPKM.
    Sum,
    /// The log2(x + 1) of the sum of what they are logs of.
    Log2Sum,
    /// The ln(x + 1) of the sum.
    LnSum,
    /// Their mean: values of which nothing better is known.
    Mean,
}

impl Merge {
    /// What was done, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "summed",
            Self::Log2Sum | Self::LnSum => "summed before the log",
            Self::Mean => "averaged",
        }
    }

    fn of(self, values: impl Iterator<Item = f32>) -> f32 {
        let mut n = 0u32;
        let sum = values.map(f64::from).fold(0.0, |sum, v| {
            n += 1;
            sum + match self {
                Self::Sum | Self::Mean => v,
                Self::Log2Sum => v.exp2() - 1.0,
                Self::LnSum => v.exp_m1(),
            }
        });
        (match self {
            Self::Sum => sum,
            Self::Mean => sum / f64::from(n.max(1)),
            Self::Log2Sum => sum.ln_1p() / std::f64::consts::LN_2,
            Self::LnSum => sum.ln_1p(),
        }) as f32
    }
}

fn sum<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|&v| f64::from(v)).sum()
}

/// Stored columns that are several for some genes.
#[derive(Clone, Debug)]
struct Fold {
    /// Stored columns of each gene.
    from: Vec<Vec<u32>>,
    merge: Merge,
}

/// An expression matrix.
#[derive(Clone, Debug)]
pub struct Expression {
    /// Row names.
    pub samples: Vec<String>,
    /// Column names.
    pub genes: Vec<String>,
    /// Sum of each row over all genes that were measured, kept when genes are left out; missing
    /// values (NaN) add nothing.
    pub totals: Vec<f64>,
    matrix: Matrix,
    /// Columns as stored.
    width: usize,
    fold: Option<Fold>,
}

impl Expression {
    /// From row-major values; `totals` are the rows' sums unless given.
    pub fn new(
        samples: Vec<String>,
        genes: Vec<String>,
        values: Vec<f32>,
        totals: Option<Vec<f64>>,
    ) -> Result<Self> {
        let width = genes.len();
        if values.len() != samples.len() * width
            || totals.as_ref().is_some_and(|t| t.len() != samples.len())
        {
            let what = format!("{} values for {}x{width}", values.len(), samples.len());
            return Err(Error::shape("expression", what));
        }
        let sums = || values.chunks(width.max(1)).map(gaps::known).collect();
        let totals = totals.unwrap_or_else(sums);
        Ok(Self { samples, genes, totals, matrix: Matrix::Dense(values), width, fold: None })
    }

    /// From a sparse matrix.
    ///
    /// # Errors
    /// Starts that do not describe the rows, a column out of range; what is wrong is said, not
    /// where the matrix came from.
    pub fn sparse(samples: Vec<String>, genes: Vec<String>, csr: Csr) -> Result<Self, String> {
        let (rows, width) = (samples.len(), genes.len());
        let Csr { starts, columns, values } = &csr;
        let ordered = starts.is_sorted() && starts.first() == Some(&0);
        if starts.len() != rows + 1 || !ordered || starts.last() != Some(&columns.len()) {
            return Err(format!("\"indptr\" does not describe {rows} rows"));
        }
        if values.len() != columns.len() {
            return Err(format!("{} counts for {} indices", values.len(), columns.len()));
        }
        if let Some(at) = columns.iter().position(|&c| c as usize >= width) {
            return Err(format!("index {at} names column {} of {width}", columns[at]));
        }
        let total = |r: usize| gaps::known(&values[starts[r]..starts[r + 1]]);
        let totals = (0..rows).map(total).collect();
        Ok(Self { samples, genes, totals, matrix: Matrix::Sparse(csr), width, fold: None })
    }

    /// From a dense table.
    pub fn from_dense(table: Dense) -> Result<Self> {
        Self::new(table.samples, table.genes, table.values, None)
    }

    /// From compressed sparse counts (`indptr`, `indices`, `counts`, `shape`) and a gene table with
    /// a `symbol` column, in the order of the matrix's columns. Samples are named by row number.
    ///
    /// # Errors
    /// Missing tensors, indices out of range or order, duplicate symbols, another number of genes.
    pub fn read_csr(counts: &Path, genes: &Path) -> Result<Self> {
        let file = TensorFile::open(counts)?;
        let bad = |what: String| Error::file(counts, what, "write the counts again");
        let shape = file.u32s("shape")?;
        let &[rows, width] = shape.as_slice() else {
            return Err(bad("\"shape\" does not hold rows and columns".into()));
        };
        let (rows, width) = (rows as usize, width as usize);
        let starts: Vec<usize> = file.u32s("indptr")?.iter().map(|&v| v as usize).collect();
        if starts.len() != rows.saturating_add(1) {
            return Err(bad(format!("\"indptr\" does not describe {rows} rows")));
        }
        let columns = file.u32s("indices")?;
        let values: Vec<f32> = file.u32s("counts")?.iter().map(|&v| v as f32).collect();
        let symbols = read_symbols(genes)?;
        if symbols.len() != width {
            let what = format!("lists {} genes, {} has {width}", symbols.len(), counts.display());
            return Err(Error::file(genes, what, "give the gene list of that matrix"));
        }
        let samples = (0..rows).map(|r| r.to_string()).collect();
        Self::sparse(samples, symbols, Csr { starts, columns, values }).map_err(bad)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// One sample's values, in the order of `genes`.
    pub fn row(&self, i: usize) -> Vec<f32> {
        let width = self.width;
        let row = match &self.matrix {
            Matrix::Dense(values) => values[i * width..(i + 1) * width].to_vec(),
            Matrix::Sparse(Csr { starts, columns, values }) => {
                let mut row = vec![0.0; width];
                for at in starts[i]..starts[i + 1] {
                    row[columns[at] as usize] += values[at];
                }
                row
            }
        };
        let Some(Fold { from, merge }) = &self.fold else { return row };
        let one = |from: &Vec<u32>| match from.as_slice() {
            &[c] => row[c as usize],
            several => merge.of(several.iter().map(|&c| row[c as usize])),
        };
        from.iter().map(one).collect()
    }

    /// The same values under other names, columns of one name merged. Returns the names that were
    /// several.
    ///
    /// # Errors
    /// `names` must name every gene.
    pub fn renamed(mut self, names: Vec<String>, merge: Merge) -> Result<(Self, Vec<String>)> {
        if names.len() != self.genes.len() {
            let what = format!("{} names for {} genes", names.len(), self.genes.len());
            return Err(Error::shape("expression", what));
        }
        let mut place: HashMap<&str, usize> = HashMap::new();
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let at = *place.entry(name).or_insert_with(|| {
                groups.push((name, Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push(i);
        }
        if groups.len() == names.len() {
            self.genes = names;
            return Ok((self, Vec::new()));
        }
        let several = groups.iter().filter(|(_, from)| from.len() > 1);
        let several = several.map(|(name, _)| (*name).to_string()).collect();
        let stored = |i: &usize| match &self.fold {
            Some(fold) => fold.from[*i].clone(),
            None => vec![*i as u32],
        };
        let from = groups.iter().map(|(_, from)| from.iter().flat_map(stored).collect()).collect();
        self.genes = groups.iter().map(|(name, _)| (*name).to_string()).collect();
        self.fold = Some(Fold { from, merge });
        Ok((self, several))
    }

    /// The same matrix with each value changed by `f`, which must keep 0, before any merging.
    pub fn mapped(mut self, f: impl Fn(f64) -> f64) -> Self {
        let values = match &mut self.matrix {
            Matrix::Dense(values) => values,
            Matrix::Sparse(csr) => &mut csr.values,
        };
        values.iter_mut().for_each(|v| *v = f(f64::from(*v)) as f32);
        self.totals = (0..self.len()).map(|i| self.stored_sum(i)).collect();
        self
    }

    fn stored_sum(&self, i: usize) -> f64 {
        let values = match &self.matrix {
            Matrix::Dense(values) => &values[i * self.width..(i + 1) * self.width],
            Matrix::Sparse(csr) => &csr.values[csr.starts[i]..csr.starts[i + 1]],
        };
        gaps::known(values)
    }

    /// Samples of both, with the genes that both have, in this one's order.
    ///
    /// # Errors
    /// No common genes, a sample that is in both.
    pub fn joined(&self, other: &Self) -> Result<Self> {
        let places: HashMap<&str, usize> =
            other.genes.iter().enumerate().map(|(i, g)| (g.as_str(), i)).collect();
        let find = |(i, g): (usize, &String)| Some((i, *places.get(g.as_str())?));
        let (own, theirs): (Vec<usize>, Vec<usize>) =
            self.genes.iter().enumerate().filter_map(find).unzip();
        if own.is_empty() {
            let (a, b) = (self.genes.first(), other.genes.first());
            let what = format!("the files have no genes in common ({a:?} ..., {b:?} ...)");
            return Err(Error::data(what, "translate one of them with --gene-map"));
        }
        if let Some(twice) = self.samples.iter().find(|s| other.samples.contains(s)) {
            let what = format!("two files have a sample \"{twice}\"");
            return Err(Error::data(what, "put a prefix before one: --rna PREFIX=FILE"));
        }
        let (mut both, theirs) = (self.select(&own)?, other.select(&theirs)?);
        if let (Matrix::Dense(to), Matrix::Dense(from)) = (&mut both.matrix, theirs.matrix) {
            to.extend(from);
        }
        both.samples.extend(theirs.samples);
        both.totals.extend(theirs.totals);
        Ok(both)
    }

    /// The same samples with the genes at `columns` only; the totals stay those of all genes.
    pub fn select(&self, columns: &[usize]) -> Result<Self> {
        let pick = |i| {
            let row = self.row(i);
            columns.iter().map(move |&c| row[c]).collect::<Vec<f32>>()
        };
        let values = (0..self.len()).flat_map(pick).collect();
        let genes = columns.iter().map(|&c| self.genes[c].clone()).collect();
        Self::new(self.samples.clone(), genes, values, Some(self.totals.clone()))
    }

    /// Position of a sample; a missing one is an error with the nearest name.
    pub fn find(&self, sample: &str) -> Result<usize> {
        self.samples.iter().position(|s| s == sample).ok_or_else(|| {
            let near = self.samples.iter().max_by(|a, b| {
                let score = |s: &str| strsim::jaro_winkler(s, sample);
                score(a).total_cmp(&score(b))
            });
            let near = near.map_or(String::new(), |n| format!("; the nearest name is \"{n}\""));
            let what = format!("no sample \"{sample}\" in the table{near}");
            Error::data(what, "name a row of the table")
        })
    }
}

/// The `symbol` column of a gene table, without duplicates.
pub fn read_symbols(path: &Path) -> Result<Vec<String>> {
    let table = Table::read(path)?;
    let c = table.column("symbol")?;
    let mut seen = HashMap::new();
    for (i, cells) in table.rows.iter().enumerate() {
        if let Some(first) = seen.insert(cells[c].trim().to_string(), i) {
            let what = format!("gene \"{}\" is also in line {}", cells[c], table.line(first));
            return Err(table.error(i, what, "keep one of them"));
        }
    }
    Ok(table.rows.iter().map(|cells| cells[c].trim().to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn columns_of_one_gene_are_merged_as_their_units_want() {
        let values = vec![1.0, 2.0, 3.0, 0.0];
        let x = Expression::new(names(&["s"]), names(&["a", "b", "c", "d"]), values, None).unwrap();
        let to = names(&["A", "B", "A", "C"]);
        let (sum, several) = x.clone().renamed(to.clone(), Merge::Sum).unwrap();
        assert_eq!((sum.genes.clone(), several), (names(&["A", "B", "C"]), names(&["A"])));
        assert_eq!(sum.row(0), [4.0, 2.0, 0.0]);
        let (log, _) = x.clone().renamed(to.clone(), Merge::Log2Sum).unwrap();
        assert_eq!(log.row(0)[0], 9f32.log2(), "log2(1 + 1 + 7)");
        let (mean, _) = x.renamed(to, Merge::Mean).unwrap();
        assert_eq!(mean.row(0)[0], 2.0);
        let (again, _) = sum.renamed(names(&["A", "A", "C"]), Merge::Sum).unwrap();
        assert_eq!((again.row(0), again.totals[0]), (vec![6.0, 0.0], 6.0));
    }
}
