//! Gene identifiers: which kind they are, and a table that translates one kind into another.
//!
//! Ensembl identifiers are compared without their version (`ENSG00000141510.18` is
//! `ENSG00000141510`), all others exactly, but for surrounding blanks.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::tables::Table;

/// A kind of gene identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum IdKind {
    /// HGNC and other symbols: ERBB2.
    Symbol,
    /// Ensembl genes, with or without version: ENSG00000141736.
    Ensembl,
    /// NCBI's Entrez numbers: 2064.
    Entrez,
}

impl fmt::Display for IdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symbol => "gene symbols",
            Self::Ensembl => "Ensembl identifiers",
            Self::Entrez => "Entrez numbers",
        })
    }
}

/// Symbols that nearly every expression table has: by them genes are told from samples.
const COMMON: [&str; 64] = [
    "ACTB", "GAPDH", "ERBB2", "ESR1", "PGR", "EGFR", "TP53", "MYC", "KRT8", "KRT18", "KRT19",
    "EPCAM", "CDH1", "VIM", "COL1A1", "COL1A2", "COL3A1", "FN1", "CD3E", "CD3D", "CD4", "CD8A",
    "CD19", "CD68", "CD74", "PTPRC", "B2M", "HLA-A", "HLA-B", "HLA-DRA", "MKI67", "PCNA", "TOP2A",
    "CCND1", "CDKN2A", "RB1", "PTEN", "KRAS", "BRAF", "PIK3CA", "AKT1", "MTOR", "VEGFA", "PECAM1",
    "ACTA2", "MALAT1", "XIST", "RPLP0", "RPL13", "EEF1A1", "TUBB", "HSP90AB1", "FTL", "FTH1",
    "TMSB4X", "A1BG", "A2M", "ABL2", "APC", "AR", "ATM", "BRCA1", "BRCA2", "STAT1",
];

/// Whether an identifier is an Ensembl gene's, of any species.
fn is_ensembl(id: &str) -> bool {
    let Some(rest) = id.strip_prefix("ENS") else { return false };
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_uppercase());
    digits.len() >= 6 && digits.as_bytes()[..6].iter().all(u8::is_ascii_digit)
}

/// An identifier as it is compared.
pub fn bare(id: &str) -> Cow<'_, str> {
    let id = id.trim();
    let Some((gene, version)) = id.split_once('.').filter(|_| is_ensembl(id)) else {
        return Cow::Borrowed(id);
    };
    // GENCODE marks the copy on chromosome Y behind the version: it stays another gene.
    match version.split_once('_') {
        Some((_, copy)) => Cow::Owned(format!("{gene}_{copy}")),
        None => Cow::Borrowed(gene),
    }
}

/// The kind that four of five identifiers are of; symbols are what is neither of the others.
pub fn kind<S: AsRef<str>>(ids: &[S]) -> IdKind {
    let share = |is: &dyn Fn(&str) -> bool| ids.iter().filter(|i| is(i.as_ref().trim())).count();
    if share(&is_ensembl) * 5 > ids.len() * 4 {
        IdKind::Ensembl
    } else if share(&|i| i.parse::<u32>().is_ok()) * 5 > ids.len() * 4 {
        IdKind::Entrez
    } else {
        IdKind::Symbol
    }
}

/// Which of two lists of names are genes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first, with the reason.
    First(String),
    /// The second, with the reason.
    Second(String),
    /// Neither or both.
    Unclear,
}

/// Tells genes from samples by their names; `wanted` are genes that are looked for, `samples` are
/// samples, where any are known.
pub fn which_are_genes(
    first: &[String],
    second: &[String],
    wanted: &[String],
    samples: &[String],
) -> Which {
    fn known(names: &[String]) -> HashSet<Cow<'_, str>> {
        names.iter().map(|n| bare(n)).collect()
    }
    let (wanted, samples) = (known(wanted), known(samples));
    let among = |ids: &[String], known: &HashSet<Cow<'_, str>>| {
        ids.iter().filter(|i| known.contains(&bare(i))).count()
    };
    let common = |ids: &[String]| {
        ids.iter().filter(|i| COMMON.contains(&i.trim().to_uppercase().as_str())).count()
    };
    let ensembl = |ids: &[String]| ids.iter().filter(|i| is_ensembl(i.trim())).count();
    // Where the other list has more known samples, this one has the genes.
    let (a, b) = (among(second, &samples), among(first, &samples));
    let tests = [
        (among(first, &wanted), among(second, &wanted), "of the model's genes"),
        (a, b, "known samples across from it"),
        (ensembl(first), ensembl(second), "Ensembl identifiers"),
        (common(first), common(second), "common gene symbols"),
    ];
    for (a, b, what) in tests {
        if a > b {
            return Which::First(format!("{a} {what}"));
        }
        if b > a {
            return Which::Second(format!("{b} {what}"));
        }
    }
    let entrez = |ids: &[String]| ids.len() > 20 && kind(ids) == IdKind::Entrez;
    match (entrez(first), entrez(second)) {
        (true, false) => Which::First("Entrez numbers".into()),
        (false, true) => Which::Second("Entrez numbers".into()),
        _ => Which::Unclear,
    }
}

/// A table of identifiers, a gene a row.
#[derive(Clone, Debug)]
pub struct IdMap {
    /// Where it came from, for people.
    pub name: String,
    /// For each kind, from every other identifier of a row to the one of that kind.
    to: HashMap<IdKind, HashMap<String, Option<String>>>,
}

/// Headers of symbol columns; other kinds are told from their cells.
const SYMBOLS: [&str; 8] = [
    "symbol",
    "gene_symbol",
    "hgnc_symbol",
    "gene_name",
    "external_gene_name",
    "gene",
    "approved symbol",
    "genesymbol",
];

impl IdMap {
    /// From a table with a column of symbols (`symbol`, `gene_name` ...) or other identifiers, and
    /// columns of Ensembl identifiers or Entrez numbers.
    ///
    /// # Errors
    /// A table that cannot be read or has fewer than two kinds of identifier.
    pub fn read(path: &Path) -> Result<Self> {
        let table = Table::read(path)?;
        let column =
            |c: usize| -> Vec<&str> { table.rows.iter().map(|cells| cells[c].trim()).collect() };
        let mut found: Vec<(IdKind, usize)> = Vec::new();
        for c in 0..table.header.len() {
            let filled: Vec<&str> = column(c).into_iter().filter(|i| !i.is_empty()).collect();
            let header = table.header[c].to_lowercase();
            let kind = kind(&filled);
            let usable = match kind {
                IdKind::Symbol => SYMBOLS.contains(&header.as_str()),
                IdKind::Entrez => header.contains("entrez") || header.contains("ncbi"),
                IdKind::Ensembl => true,
            };
            if usable && !filled.is_empty() && !found.iter().any(|f| f.0 == kind) {
                found.push((kind, c));
            }
        }
        if found.len() < 2 {
            let what = format!(
                "has {} kind of gene identifier among its columns {}",
                found.len(),
                table.header.join(", ")
            );
            let fix =
                "name a column \"symbol\" and have one of Ensembl genes, or name one \"entrez\"";
            return Err(Error::file(path, what, fix));
        }
        let columns = found.iter().map(|&(kind, c)| (kind, column(c))).collect::<Vec<_>>();
        Ok(Self::of(path.display().to_string(), &columns))
    }

    /// From columns of equal length, one a kind.
    pub fn of<S: AsRef<str>>(name: String, columns: &[(IdKind, Vec<S>)]) -> Self {
        let mut to = HashMap::new();
        for (target, targets) in columns {
            let map: &mut HashMap<String, Option<String>> = to.entry(*target).or_default();
            for (_, ids) in columns.iter().filter(|c| c.0 != *target) {
                for (id, target) in ids.iter().zip(targets) {
                    let (id, target) = (bare(id.as_ref()), bare(target.as_ref()));
                    if id.is_empty() || target.is_empty() || target == "-" || target == "NA" {
                        continue;
                    }
                    let slot = map.entry(id.into_owned());
                    // An identifier of two genes is of neither: a choice would be a guess.
                    slot.and_modify(|t| {
                        if t.as_deref() != Some(target.as_ref()) {
                            *t = None;
                        }
                    })
                    .or_insert_with(|| Some(target.into_owned()));
                }
            }
        }
        Self { name, to }
    }

    /// Identifiers as another kind; those that the map does not hold stay as they are. Returns also
    /// how many were translated.
    pub fn translate(&self, ids: &[String], to: IdKind) -> (Vec<String>, usize) {
        let map = self.to.get(&to);
        let mut translated = 0;
        let one = |id: &String| {
            let bare = bare(id);
            match map.and_then(|m| m.get(bare.as_ref())) {
                Some(Some(other)) => {
                    translated += 1;
                    other.clone()
                }
                _ => bare.into_owned(),
            }
        };
        (ids.iter().map(one).collect(), translated)
    }

    /// Whether it can translate into a kind.
    pub fn has(&self, to: IdKind) -> bool {
        self.to.contains_key(&to)
    }
}

/// A map file that may not be given.
pub fn read_map(path: Option<&PathBuf>) -> Result<Option<IdMap>> {
    path.map(|p| IdMap::read(p)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn kinds_and_versions() {
        assert_eq!(kind(&list("ENSG00000141510.18 ENSMUSG00000059552")), IdKind::Ensembl);
        assert_eq!(kind(&list("7157 2064 1956")), IdKind::Entrez);
        assert_eq!(kind(&list("TP53 ENSA ERBB2")), IdKind::Symbol);
        assert_eq!(bare(" ENSG00000141510.18 "), "ENSG00000141510");
        assert_eq!(bare("ENSG00000182378.15_PAR_Y"), "ENSG00000182378_PAR_Y");
        assert_eq!(bare("FO538757.1"), "FO538757.1", "a version is part of a clone's name");
    }

    #[test]
    fn genes_are_told_from_samples() {
        let samples = list("TCGA-02-0047-01 TCGA-02-0055-01");
        let first = |a: &str, wanted: &str| {
            matches!(which_are_genes(&list(a), &samples, &list(wanted), &[]), Which::First(_))
        };
        assert!(first("ACTB x GAPDH", "q"));
        assert!(first("ENSG00000141510.1 x", "q"));
        assert!(first("x y z", "z"));
        assert!(!first("x y z", "q"));
        let numbers: Vec<String> = (1..40).map(|i| i.to_string()).collect();
        assert!(matches!(which_are_genes(&samples, &numbers, &[], &[]), Which::Second(_)));
        let known = list("t0 t1 t2");
        assert!(matches!(which_are_genes(&list("x y"), &list("t2"), &[], &known), Which::First(_)));
    }

    #[test]
    fn a_map_translates_between_its_columns_and_leaves_doubts_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.tsv");
        let text = "ensembl_gene_id\tentrez\tsymbol\nENSG00000141510.18\t7157\tTP53\n\
                    ENSG00000141736\t2064\tERBB2\nENSG00000146648\t1956\tEGFR\n\
                    ENSG00000146648\t1956\tOTHER\n";
        std::fs::write(&path, text).unwrap();
        let map = IdMap::read(&path).unwrap();
        let (symbols, n) = map.translate(&list("ENSG00000141510.2 2064 1956 x"), IdKind::Symbol);
        assert_eq!((symbols, n), (list("TP53 ERBB2 1956 x"), 2));
        let (ensembl, _) = map.translate(&list("TP53 7157"), IdKind::Ensembl);
        assert_eq!(ensembl, list("ENSG00000141510 ENSG00000141510"));
        std::fs::write(&path, "id\tname\nA\tB\n").unwrap();
        let e = IdMap::read(&path).unwrap_err();
        assert!(e.to_string().contains("map.tsv") && e.to_string().contains("symbol"), "{e}");
    }
}
