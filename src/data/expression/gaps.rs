//! Values that nobody measured: counted by gene and by sample; refused, left out, or filled.
//!
//! Readers put NaN where a file has no value (an empty cell, NA, NaN); here is what becomes of it.

use super::{Csr, Expression, Matrix, sum};
use crate::error::{Error, Result};

/// What is done about values that are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Missing {
    /// The file is refused.
    #[default]
    Refuse,
    /// Genes that lack some are left out.
    Genes,
    /// Samples that lack some are left out.
    Samples,
    /// They are read as 0.
    Zero,
    /// They are read as the gene's mean over the samples of the file that have it.
    Mean,
    /// They stay: for looking, not for models.
    #[value(skip)]
    Keep,
}

impl Missing {
    /// What was done, for people.
    fn done(self) -> &'static str {
        match self {
            Self::Refuse | Self::Keep => "",
            Self::Genes => ": these genes were left out",
            Self::Samples => ": these samples were left out",
            Self::Zero => ": read as 0",
            Self::Mean => ": read as the mean of the gene's other samples",
        }
    }
}

/// How many values are missing, and where.
struct Gaps {
    all: usize,
    genes: Vec<usize>,
    samples: Vec<usize>,
}

impl Gaps {
    /// What is missing, the worst genes and samples by name.
    fn told(&self, x: &Expression) -> String {
        format!(
            "{} values are missing, of {} and {}",
            self.all,
            worst(&self.genes, &x.genes, "genes"),
            worst(&self.samples, &x.samples, "samples")
        )
    }
}

/// How many of these lack something, and the names of those that lack most.
fn worst(gaps: &[usize], names: &[String], what: &str) -> String {
    let mut lacking: Vec<(usize, &String)> =
        gaps.iter().zip(names).filter(|(n, _)| **n > 0).map(|(n, name)| (*n, name)).collect();
    let count = lacking.len();
    lacking.sort_by(|a, b| b.cmp(a).then(a.1.cmp(b.1)));
    let shown: Vec<String> =
        lacking.iter().take(3).map(|(n, name)| format!("{name} {n}")).collect();
    let more = if count > 3 { ", ..." } else { "" };
    format!("{count} of {} {what} ({}{more})", names.len(), shown.join(", "))
}

impl Expression {
    /// The same without missing values, by a rule, and what there is to say of them; nothing where
    /// none are missing. Genes must not have been merged yet.
    ///
    /// # Errors
    /// Missing values that are to be refused, or whose rule leaves nothing.
    pub fn settled(self, rule: Missing) -> Result<(Self, Option<String>)> {
        let Some(gaps) = self.gaps() else { return Ok((self, None)) };
        let told = gaps.told(&self) + rule.done();
        let all = |n: usize| vec![true; n];
        let whole = |n: &[usize]| n.iter().map(|&n| n == 0).collect::<Vec<bool>>();
        let settled = match rule {
            Missing::Refuse => {
                let fix = "say what is to be done with --missing: genes or samples that lack \
                           some are left out, zero or mean fill them";
                return Err(Error::data(told, fix));
            }
            Missing::Keep => return Ok((self, Some(told))),
            Missing::Genes => self.kept(&all(gaps.samples.len()), &whole(&gaps.genes)),
            Missing::Samples => self.kept(&whole(&gaps.samples), &all(gaps.genes.len())),
            Missing::Zero => self.filled(&vec![0.0; gaps.genes.len()]),
            Missing::Mean => {
                let means = self.means(&gaps)?;
                self.filled(&means)
            }
        };
        match settled.samples.is_empty() || settled.genes.is_empty() {
            true => Err(Error::data(told, "nothing is left: choose another --missing")),
            false => Ok((settled, Some(told))),
        }
    }

    /// Calls `f` with sample, gene and value of all that is stored.
    fn each(&self, mut f: impl FnMut(usize, usize, f32)) {
        match &self.matrix {
            Matrix::Dense(values) => {
                let width = self.width.max(1);
                values.iter().enumerate().for_each(|(i, &v)| f(i / width, i % width, v));
            }
            Matrix::Sparse(Csr { starts, columns, values }) => {
                for row in 0..self.samples.len() {
                    (starts[row]..starts[row + 1])
                        .for_each(|at| f(row, columns[at] as usize, values[at]));
                }
            }
        }
    }

    fn gaps(&self) -> Option<Gaps> {
        let (genes, samples) = (vec![0; self.width], vec![0; self.samples.len()]);
        let mut gaps = Gaps { all: 0, genes, samples };
        self.each(|row, column, v| {
            if v.is_nan() {
                gaps.all += 1;
                gaps.genes[column] += 1;
                gaps.samples[row] += 1;
            }
        });
        (gaps.all > 0).then_some(gaps)
    }

    /// Mean of each gene over the samples that have it.
    fn means(&self, gaps: &Gaps) -> Result<Vec<f32>> {
        let mut sums = vec![0f64; self.width];
        self.each(|_, column, v| {
            if !v.is_nan() {
                sums[column] += f64::from(v);
            }
        });
        let rows = self.samples.len();
        if let Some(none) = gaps.genes.iter().position(|&n| n == rows) {
            let what = format!("gene \"{}\" has no value in any sample", self.genes[none]);
            return Err(Error::data(what, "leave such genes out with --missing genes"));
        }
        let mean = |(sum, lacks): (&f64, &usize)| (sum / (rows - lacks) as f64) as f32;
        Ok(sums.iter().zip(&gaps.genes).map(mean).collect())
    }

    /// Puts a gene's number where it is missing.
    fn filled(mut self, numbers: &[f32]) -> Self {
        let fill = |v: &mut f32, column: usize| {
            if v.is_nan() {
                *v = numbers[column];
            }
        };
        let width = self.width.max(1);
        match &mut self.matrix {
            Matrix::Dense(values) => {
                values.iter_mut().enumerate().for_each(|(i, v)| fill(v, i % width));
            }
            Matrix::Sparse(Csr { columns, values, .. }) => {
                values.iter_mut().zip(columns).for_each(|(v, c)| fill(v, *c as usize));
            }
        }
        self.totals = (0..self.len()).map(|i| self.stored_sum(i)).collect();
        self
    }

    /// Some samples and genes of it; the totals are of these genes.
    fn kept(self, rows: &[bool], columns: &[bool]) -> Self {
        let mut place = Vec::with_capacity(columns.len());
        let mut width = 0u32;
        for &kept in columns {
            place.push(kept.then_some(width));
            width += u32::from(kept);
        }
        let mut csr = Csr { starts: vec![0], ..Csr::default() };
        let mut dense = Vec::new();
        let is_dense = matches!(self.matrix, Matrix::Dense(_));
        let mut ends = vec![0; self.samples.len()];
        self.each(|row, column, v| {
            if let Some(to) = place[column].filter(|_| rows[row]) {
                if is_dense {
                    dense.push(v);
                } else {
                    csr.columns.push(to);
                    csr.values.push(v);
                }
            }
            ends[row] = csr.values.len();
        });
        for row in 0..ends.len() {
            // A row that stores nothing ends where the one before it did.
            ends[row] = ends[row].max(if row == 0 { 0 } else { ends[row - 1] });
        }
        csr.starts.extend(ends.iter().zip(rows).filter(|(_, kept)| **kept).map(|(end, _)| *end));
        let pick = |names: Vec<String>, kept: &[bool]| {
            names.into_iter().zip(kept).filter(|(_, kept)| **kept).map(|(name, _)| name).collect()
        };
        let (samples, genes): (Vec<String>, Vec<String>) =
            (pick(self.samples, rows), pick(self.genes, columns));
        let matrix = if is_dense { Matrix::Dense(dense) } else { Matrix::Sparse(csr) };
        let totals = Vec::new();
        let mut kept = Self { samples, genes, totals, matrix, width: width as usize, fold: None };
        kept.totals = (0..kept.len()).map(|i| kept.stored_sum(i)).collect();
        kept
    }
}

/// The sum of those values that are there.
pub(super) fn known(values: &[f32]) -> f64 {
    sum(values.iter().filter(|v| !v.is_nan()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: f32 = f32::NAN;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    /// The same numbers dense and sparse.
    fn both() -> [Expression; 2] {
        let (samples, genes) = (names(&["s", "t", "u"]), names(&["a", "b", "c"]));
        let rows = [[1.0, X, 3.0], [0.0, 0.0, 0.0], [5.0, X, X]];
        let dense = Expression::new(samples.clone(), genes.clone(), rows.concat(), None).unwrap();
        let csr = Csr {
            starts: vec![0, 3, 3, 6],
            columns: vec![0, 1, 2, 0, 1, 2],
            values: vec![1.0, X, 3.0, 5.0, X, X],
        };
        [dense, Expression::sparse(samples, genes, csr).unwrap()]
    }

    fn rows(x: &Expression) -> Vec<Vec<f32>> {
        (0..x.len()).map(|i| x.row(i)).collect()
    }

    #[test]
    fn what_is_missing_is_counted_and_refused() {
        for x in both() {
            assert_eq!(x.totals, [4.0, 0.0, 5.0], "sums of what is there");
            let e = x.settled(Missing::Refuse).unwrap_err().to_string();
            assert!(e.contains("3 values are missing, of 2 of 3 genes (b 2, c 1)"), "{e}");
            assert!(e.contains("2 of 3 samples (u 2, s 1)") && e.contains("--missing"), "{e}");
        }
        let whole = Expression::new(names(&["s"]), names(&["a"]), vec![1.0], None).unwrap();
        assert!(whole.settled(Missing::Refuse).unwrap().1.is_none());
    }

    #[test]
    fn it_is_left_out_or_filled_as_said() {
        for x in both() {
            let by = |rule| x.clone().settled(rule).unwrap().0;
            let genes = by(Missing::Genes);
            assert_eq!(
                (genes.genes.clone(), rows(&genes)),
                (names(&["a"]), vec![vec![1.0], vec![0.0], vec![5.0]])
            );
            let samples = by(Missing::Samples);
            assert_eq!(
                (samples.samples.clone(), rows(&samples)),
                (names(&["t"]), vec![vec![0.0; 3]])
            );
            let zero = by(Missing::Zero);
            assert_eq!(
                (zero.row(2), zero.totals.clone()),
                (vec![5.0, 0.0, 0.0], vec![4.0, 0.0, 5.0])
            );
            // b is 0 in the one sample that has it; c is 3 and 0.
            let mean = by(Missing::Mean);
            assert_eq!((mean.row(2), mean.totals[2]), (vec![5.0, 0.0, 1.5], 6.5));
            let (kept, told) = x.clone().settled(Missing::Keep).unwrap();
            assert!(kept.row(0)[1].is_nan() && told.is_some());
        }
        let none = Expression::new(names(&["s"]), names(&["a"]), vec![X], None).unwrap();
        for (rule, word) in
            [(Missing::Genes, "nothing is left"), (Missing::Mean, "no value in any")]
        {
            let e = none.clone().settled(rule).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }
}
