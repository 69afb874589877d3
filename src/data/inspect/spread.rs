//! How values are spread: counts, range, mean and a histogram, in one pass and little memory.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Values, counted as they come.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    n: u64,
    /// Cells without a value.
    pub missing: u64,
    nan: u64,
    zero: u64,
    negative: u64,
    whole: u64,
    sum: f64,
    min: f32,
    max: f32,
    /// How many values share the upper 16 bits of their float: two to three digits.
    near: BTreeMap<u16, u64>,
}

/// Width of the longest bar.
const BAR: f64 = 32.0;
/// Bars of a histogram over a plain range.
const BARS: usize = 12;

impl Spread {
    /// Counts a value.
    pub fn add(&mut self, v: f32) {
        if !v.is_finite() {
            self.nan += 1;
            return;
        }
        if self.n == 0 {
            (self.min, self.max) = (v, v);
        }
        self.n += 1;
        self.zero += u64::from(v == 0.0);
        self.negative += u64::from(v < 0.0);
        self.whole += u64::from(v.fract() == 0.0);
        self.sum += f64::from(v);
        self.min = self.min.min(v);
        self.max = self.max.max(v);
        *self.near.entry((v.to_bits() >> 16) as u16).or_default() += 1;
    }

    /// Whether all values are whole numbers.
    pub fn is_whole(&self) -> bool {
        self.whole == self.n
    }

    /// Smallest and largest value.
    pub fn range(&self) -> (f32, f32) {
        (self.min, self.max)
    }

    /// Bars of text, one a line.
    pub fn histogram(&self) -> Vec<String> {
        let edges = self.edges();
        let mut counts = vec![0u64; edges.len()];
        for (&bits, &n) in &self.near {
            let v = f32::from_bits(u32::from(bits) << 16);
            // The last edge that is not above it; what rounding put below all is the first's.
            let at = edges.partition_point(|&e| e <= v).saturating_sub(1);
            if let Some(count) = counts.get_mut(at) {
                *count += n;
            }
        }
        let most = counts.iter().max().copied().unwrap_or(0).max(1) as f64;
        let line = |(i, &n): (usize, &u64)| {
            let from = number(edges[i]);
            let bar = "#".repeat((n as f64 / most * BAR).ceil() as usize);
            let share = 100.0 * n as f64 / self.n.max(1) as f64;
            format!("{from:>9} {share:>6.2} % {bar}").trim_end().to_string()
        };
        counts.iter().enumerate().map(line).collect()
    }

    /// Lower edges of the bars: 0, 1, 2, 5, 10 ... for what spans magnitudes, equal steps else.
    fn edges(&self) -> Vec<f32> {
        if self.n == 0 {
            return Vec::new();
        }
        if self.min >= 0.0 && self.max > 50.0 {
            let steps = (0..).flat_map(|d: i32| [1.0, 2.0, 5.0].map(|m| m * 10f32.powi(d)));
            let mut edges = vec![0.0];
            edges.extend(steps.take_while(|e| *e <= self.max).take(100));
            return edges;
        }
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        // In floats: two values may lie further apart than any whole number of the machine.
        let bars = if self.is_whole() { (max - min + 1.0).min(BARS as f64) as usize } else { BARS };
        let step = if self.is_whole() {
            (max - min + 1.0) / bars as f64
        } else {
            (max - min) / bars as f64
        };
        if step <= 0.0 {
            return vec![self.min];
        }
        (0..bars).map(|i| (min + step * i as f64) as f32).collect()
    }
}

impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_struct("Spread", 8)?;
        map.serialize_field("values", &self.n)?;
        // None of no values.
        let some = |v: f64| (self.n > 0).then_some(v);
        map.serialize_field("min", &some(self.min.into()))?;
        map.serialize_field("max", &some(self.max.into()))?;
        map.serialize_field("mean", &some(self.sum / self.n as f64))?;
        map.serialize_field("zero", &self.zero)?;
        map.serialize_field("whole", &self.is_whole())?;
        map.serialize_field("missing", &(self.missing + self.nan))?;
        let bars = self.histogram();
        map.serialize_field("histogram", &bars)?;
        map.end()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.n == 0 {
            return write!(f, "none; {} missing, {} NaN or infinite", self.missing, self.nan);
        }
        let share = |n: u64| 100.0 * n as f64 / self.n as f64;
        write!(f, "{} from {} to {}", self.n, number(self.min), number(self.max))?;
        write!(f, ", mean {}", number((self.sum / self.n as f64) as f32))?;
        write!(f, "; {:.1} % zero", share(self.zero))?;
        if self.negative > 0 {
            write!(f, ", {:.1} % negative", share(self.negative))?;
        }
        write!(f, ", {}", if self.is_whole() { "all whole" } else { "fractions" })?;
        write!(f, "; {} missing", self.missing)?;
        if self.nan > 0 {
            write!(f, ", {} NaN or infinite", self.nan)?;
        }
        Ok(())
    }
}

/// A number in few digits.
pub fn number(v: f32) -> String {
    let size = v.abs();
    if v.fract() == 0.0 && size < 1e7 {
        format!("{v:.0}")
    } else if (0.01..1e6).contains(&size) {
        let digits = if size < 1.0 { 3 } else { 2 };
        format!("{v:.digits$}")
    } else {
        format!("{v:.2e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Spread {
        let mut spread = Spread::default();
        values.iter().for_each(|&v| spread.add(v));
        spread
    }

    #[test]
    fn counts_ranges_and_bars() {
        let s = of(&[0.0, 0.0, 1.0, 3.0, 700.0, f32::NAN]);
        assert_eq!((s.range(), s.n, s.is_whole()), ((0.0, 700.0), 5, true));
        assert!(s.to_string().contains("40.0 % zero"), "{s}");
        assert!(s.to_string().contains("1 NaN"), "{s}");
        let bars = s.histogram();
        assert_eq!(bars.len(), 10, "0, 1, 2, 5 ... 500: {bars:?}");
        assert!(bars[0].contains("40.00 %") && bars[9].contains("20.00 %"), "{bars:?}");
        let far = of(&[f32::MIN, f32::MAX]).histogram();
        assert_eq!(far.len(), BARS);
        assert!(far[0].contains("50.00 %") && far[BARS - 1].contains("50.00 %"), "{far:?}");
        let half = of(&[-1.0, 0.5, 2.0]).histogram();
        assert_eq!(half.len(), BARS);
        assert!(half[0].contains("33.33 %") && half[BARS - 1].contains("33.33 %"), "{half:?}");
        assert_eq!(of(&[4.0; 3]).histogram().len(), 1);
        assert!(of(&[]).histogram().is_empty() && of(&[0.1; 2]).histogram().len() == 1);
    }
}
