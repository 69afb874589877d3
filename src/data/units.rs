//! What expression values are: a quantity, and whether its log was taken.
//!
//! Units are stated by a person, recorded in the pack and the checkpoint, and compared when tiles
//! are drawn. A guess is made where the values leave no doubt; otherwise nothing is claimed. All
//! transforms here keep zero, so that sparse matrices stay sparse.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::expression::{Expression, Merge};
use crate::error::{Error, Result};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Reads or molecules.
    Counts,
    /// Transcripts per million.
    Tpm,
    /// Fragments per kilobase and million.
    Fpkm,
    /// The same, scaled to the upper quartile.
    FpkmUq,
    /// Nobody said.
    Unstated,
}

/// What was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    None,
    /// log2(x + 1).
    Log2,
    /// ln(x + 1).
    Ln,
    /// Some logarithm, perhaps corrected or centred, that cannot be undone.
    Unstated,
}

/// Units of expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Units {
    /// What was measured.
    pub quantity: Quantity,
    /// What was done to it.
    pub log: Log,
}

const QUANTITIES: [(Quantity, &str); 5] = [
    (Quantity::Counts, "counts"),
    (Quantity::Tpm, "tpm"),
    (Quantity::Fpkm, "fpkm"),
    (Quantity::FpkmUq, "fpkm-uq"),
    (Quantity::Unstated, "linear"),
];

const LOGS: [(Log, &str); 3] = [(Log::Log2, "log2"), (Log::Ln, "ln"), (Log::Unstated, "log")];

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantity = QUANTITIES.iter().find(|q| q.0 == self.quantity).map_or("", |q| q.1);
        match LOGS.iter().find(|l| l.0 == self.log) {
            None => f.write_str(quantity),
            Some((_, log)) if self.quantity == Quantity::Unstated => f.write_str(log),
            Some((_, log)) => write!(f, "{log}-{quantity}"),
        }
    }
}

impl FromStr for Units {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim().to_lowercase().replace('_', "-");
        let quantity = |name: &str| QUANTITIES.iter().find(|q| q.1 == name).map(|q| q.0);
        let log = |name: &str| LOGS.iter().find(|l| l.1 == name).map(|l| l.0);
        if let Some(quantity) = quantity(&text) {
            return Ok(Self { quantity, log: Log::None });
        }
        if let Some(log) = log(&text) {
            return Ok(Self { quantity: Quantity::Unstated, log });
        }
        let parts = text.split_once('-').and_then(|(l, q)| Some((log(l)?, quantity(q)?)));
        parts.filter(|p| p.1 != Quantity::Unstated).map_or_else(
            || {
                Err("give counts, tpm, fpkm, fpkm-uq or linear, one of these after log2- or ln-, \
                     or log2, ln, log alone"
                    .into())
            },
            |(log, quantity)| Ok(Self { quantity, log }),
        )
    }
}

impl TryFrom<String> for Units {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Units> for String {
    fn from(units: Units) -> Self {
        units.to_string()
    }
}

impl Units {
    /// Raw counts.
    pub const COUNTS: Self = Self { quantity: Quantity::Counts, log: Log::None };

    /// How several columns of a gene become one.
    pub fn merge(units: Option<Self>) -> Merge {
        match units.map(|u| u.log) {
            Some(Log::None) => Merge::Sum,
            Some(Log::Log2) => Merge::Log2Sum,
            Some(Log::Ln) => Merge::LnSum,
            Some(Log::Unstated) | None => Merge::Mean,
        }
    }

    /// Whether negative values can be right.
    pub fn may_be_negative(self) -> bool {
        self.log != Log::None
    }
}

/// What values look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// What they surely are, as far as that goes.
    pub units: Option<Units>,
    /// Why, for people.
    pub why: String,
}

/// Values that are looked at.
const LOOKED_AT: usize = 1 << 24;
/// Genes below which a small maximum says nothing: a panel may hold no large value.
const PANEL: usize = 200;

/// Guesses the units of a matrix from its values.
pub fn guess(x: &Expression) -> Guess {
    let rows = (LOOKED_AT / x.genes.len().max(1)).clamp(1, x.len().max(1));
    let step = x.len().div_ceil(rows).max(1);
    let mut seen = Seen::default();
    for i in (0..x.len()).step_by(step) {
        seen.row(&x.row(i));
    }
    seen.verdict(x.genes.len())
}

/// What a pass over values finds.
struct Seen {
    min: f32,
    max: f32,
    values: usize,
    /// Values that are whole; whose 2^v - 1, or e^v - 1, is.
    whole: [usize; 3],
    /// Values that could tell: positive, and small enough for rounding not to hide it.
    telling: usize,
    /// Rows, and those that sum to a million as they are, or before a log2.
    rows: usize,
    million: [usize; 2],
}

impl Default for Seen {
    fn default() -> Self {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Self { min, max, values: 0, whole: [0; 3], telling: 0, rows: 0, million: [0; 2] }
    }
}

impl Seen {
    fn row(&mut self, row: &[f32]) {
        let mut sums = [0f64; 2];
        for &v in row.iter().filter(|v| v.is_finite()) {
            let x = f64::from(v);
            let undone = [x, x.exp2() - 1.0, x.exp_m1()];
            sums[0] += undone[0];
            sums[1] += undone[1];
            self.min = self.min.min(v);
            self.max = self.max.max(v);
            self.values += 1;
            self.whole[0] += usize::from(v.fract() == 0.0);
            if v > 0.0 && undone[2] < 200.0 {
                self.telling += 1;
                for k in [1, 2] {
                    let off = (undone[k] - undone[k].round()).abs();
                    self.whole[k] += usize::from(off < 2e-3 * undone[k].max(1.0));
                }
            }
        }
        self.rows += 1;
        (0..2).for_each(|k| self.million[k] += usize::from((sums[k] / 1e6 - 1.0).abs() < 0.005));
    }

    fn verdict(&self, genes: usize) -> Guess {
        let say = |units: Option<Units>, why: String| Guess { units, why };
        let of = |quantity, log| Some(Units { quantity, log });
        let (min, max) = (self.min, self.max);
        if self.values == 0 {
            return say(None, "there are no values".into());
        }
        if min < 0.0 {
            let why = format!("negative values (from {min}): logs, or centred");
            return say(of(Quantity::Unstated, Log::Unstated), why);
        }
        if self.whole[0] == self.values && max >= 2.0 {
            return say(Some(Units::COUNTS), format!("whole numbers up to {max}"));
        }
        if self.million[0] == self.rows {
            let why = "every sample sums to a million: TPM, or counts per million";
            return say(of(Quantity::Unstated, Log::None), why.into());
        }
        // Half of the values of a log may be zero, which tells nothing.
        for (k, log, name) in [(1, Log::Log2, "2^x - 1"), (2, Log::Ln, "e^x - 1")] {
            if max < 40.0 && self.telling >= 100 && self.whole[k] == self.telling {
                return say(of(Quantity::Counts, log), format!("{name} are whole numbers"));
            }
        }
        if max < 40.0 && self.million[1] == self.rows {
            let why = "2^x - 1 sum to a million in every sample: log2 of TPM or CPM";
            return say(of(Quantity::Unstated, Log::Log2), why.into());
        }
        if max > 50.0 {
            let why = format!("fractions up to {max}: TPM, FPKM or the like");
            return say(of(Quantity::Unstated, Log::None), why);
        }
        let why = format!("fractions up to {max} only: logs, most likely");
        match genes >= PANEL {
            true => say(of(Quantity::Unstated, Log::Unstated), why),
            false => say(None, format!("{why}, but {genes} genes are too few to tell")),
        }
    }
}

/// Brings a matrix in `table` units, which a person stated or values were guessed from, to what a
/// model wants; says what was done.
///
/// # Errors
/// Units that differ in more than a log that can be undone; fractions for a model of counts, unless
/// somebody says that they are right (expected counts).
pub fn adapt(
    x: Expression,
    (table, stated): (Option<Units>, bool),
    model: Option<Units>,
) -> Result<(Expression, String)> {
    let (table, model) = match (table, model) {
        (Some(table), Some(model)) => (table, model),
        (Some(t), None) => {
            return Ok((x, format!("units: {t}; the model recorded none: taken as they are")));
        }
        (None, Some(m)) => return Ok((x, format!("units: not stated, taken for {m}"))),
        (None, None) => return Ok((x, "units: not stated".into())),
    };
    let known = table.quantity != Quantity::Unstated && model.quantity != Quantity::Unstated;
    let fractions = !stated && table.quantity == Quantity::Unstated && table.log == Log::None;
    let doubtful = fractions && model.quantity == Quantity::Counts;
    if doubtful || known && table.quantity != model.quantity {
        return Err(mismatch(table, model));
    }
    let said = format!("units: {table}");
    if table.log == model.log {
        let taken = if table == model { String::new() } else { format!(", taken for {model}") };
        return Ok((x, said + &taken));
    }
    let open = |log| log == Log::Unstated;
    if open(table.log) && model.log != Log::None || open(model.log) && table.log != Log::None {
        return Ok((x, format!("{said}, taken for {model}")));
    }
    if !turns(table, model) {
        return Err(mismatch(table, model));
    }
    let x = x.mapped(|v| restated(v, Some(table), Some(model)));
    Ok((x, format!("{said}, turned into {model}")))
}

/// Whether values of one are turned into the other by a log alone.
fn turns(from: Units, to: Units) -> bool {
    let open = [from.log, to.log].contains(&Log::Unstated);
    from.quantity == to.quantity && from.quantity != Quantity::Unstated && !open
}

/// A value in one table's units as [`adapt`] turns it into another's; units that it takes for each
/// other leave it as it is.
pub fn restated(v: f64, from: Option<Units>, to: Option<Units>) -> f64 {
    match (from, to) {
        (Some(a), Some(b)) if a.log != b.log && turns(a, b) => redo(undo(v, a.log), b.log),
        _ => v,
    }
}

fn undo(v: f64, log: Log) -> f64 {
    match log {
        Log::Log2 => (v.exp2() - 1.0).max(0.0),
        Log::Ln => v.exp_m1().max(0.0),
        Log::None | Log::Unstated => v,
    }
}

fn redo(v: f64, log: Log) -> f64 {
    match log {
        Log::Log2 => v.ln_1p() / std::f64::consts::LN_2,
        Log::Ln => v.ln_1p(),
        Log::None | Log::Unstated => v,
    }
}

fn mismatch(table: Units, model: Units) -> Error {
    let what = format!("the table holds {table}, the model was trained on {model}");
    let fix = match model.quantity {
        Quantity::Counts => {
            "give raw counts (of GDC's files: --gdc unstranded), or state what the values are with \
             --units"
        }
        _ => {
            "give the table in those units, train on a pack in the table's, or state what the \
             values are with --units"
        }
    };
    Error::data(what, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(values: Vec<f32>) -> Expression {
        let genes = (0..values.len()).map(|g| g.to_string()).collect();
        Expression::new(vec!["s".into()], genes, values, None).unwrap()
    }

    fn guessed(values: Vec<f32>) -> String {
        guess(&one(values)).units.map_or("none".into(), |u| u.to_string())
    }

    #[test]
    fn names_are_read_back() {
        let all = "counts tpm fpkm fpkm-uq linear log2-counts ln-tpm log2-fpkm-uq log2 ln log";
        for name in all.split(' ') {
            assert_eq!(name.parse::<Units>().unwrap().to_string(), name);
        }
        assert!("log3".parse::<Units>().is_err() && "log2-linear".parse::<Units>().is_err());
    }

    #[test]
    fn values_tell_what_they_are_where_they_can() {
        let counts: Vec<f32> = (0..300).map(|i| (i % 50) as f32).collect();
        let log = |base: f32| counts.iter().map(|c| (c + 1.0).ln() / base.ln()).collect();
        assert_eq!(guessed(counts.clone()), "counts");
        assert_eq!(guessed(log(2.0)), "log2-counts");
        assert_eq!(guessed(log(std::f32::consts::E)), "ln-counts");
        assert_eq!(guessed(vec![1e6 / 300.0; 300]), "linear");
        assert_eq!(guessed((0..300).map(|i| i as f32 * 1.37).collect()), "linear");
        assert_eq!(guessed((0..300).map(|i| i as f32 * 0.0371).collect()), "log");
        assert_eq!(guessed(vec![0.5, 3.3]), "none");
        assert_eq!(guessed(vec![-0.5, 3.3]), "log");
    }

    #[test]
    fn logs_are_undone_and_other_quantities_refused() {
        let units = |name: &str| Some(name.parse::<Units>().unwrap());
        let x = one(vec![0.0, 1.0, 3.0]);
        let adapt = |x, table, model| adapt(x, (table, true), model);
        let (y, said) = adapt(x.clone(), units("log2-tpm"), units("tpm")).unwrap();
        assert_eq!((y.row(0), y.totals[0]), (vec![0.0, 1.0, 7.0], 8.0));
        assert!(said.contains("turned into tpm"), "{said}");
        let (y, _) = adapt(x.clone(), units("counts"), units("ln-counts")).unwrap();
        assert_eq!(y.row(0)[1], 2f32.ln());
        assert_eq!(restated(3.0, units("log2-tpm"), units("tpm")), 7.0);
        assert_eq!(restated(7.0, units("tpm"), units("log2-tpm")), 3.0);
        for (from, to) in [("log", "log2-tpm"), ("tpm", "tpm"), ("linear", "counts")] {
            assert_eq!(restated(3.0, units(from), units(to)), 3.0);
        }
        for (table, model) in
            [("tpm", "counts"), ("log2-fpkm", "log2-tpm"), ("log", "counts"), ("linear", "log2")]
        {
            let e = adapt(x.clone(), units(table), units(model)).unwrap_err();
            assert!(e.to_string().contains("--units") && e.exit_code() == 2, "{e}");
        }
        for (table, model) in [("log", "log2-tpm"), ("linear", "counts"), ("log2", "log2-fpkm")] {
            let (y, said) = adapt(x.clone(), units(table), units(model)).unwrap();
            assert_eq!(y.row(0), x.row(0));
            assert!(said.contains("taken for"), "{said}");
        }
        let fractions = super::adapt(x, (units("linear"), false), units("counts"));
        assert!(fractions.is_err(), "nobody said that fractions are counts");
    }
}
