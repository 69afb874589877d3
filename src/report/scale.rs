//! An axis: from values to places on the page, and where its ticks go.

/// A linear or logarithmic axis over a range of values.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// An axis that holds all `values` it can show; without any, 0 to 1 (1 to 10 on a log axis).
    pub fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let shown = values.filter(|&v| Self { low: 0.0, high: 0.0, log }.shows(v));
        let (mut low, mut high) = shown
            .map(|v| if log { v.log10() } else { v })
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low <= 1e-12 * (low.abs() + high.abs()) {
            let half = if log || low == 0.0 { 0.5 } else { 0.5 * low.abs() };
            (low, high) = (low - half, high + half);
        }
        Self { low, high, log }
    }

    /// The axis with a little air at both ends.
    pub fn with_air(self, share: f64) -> Self {
        let air = share * (self.high - self.low);
        Self { low: self.low - air, high: self.high + air, ..self }
    }

    /// Whether a value has a place: finite, and positive on a log axis.
    pub fn shows(&self, v: f64) -> bool {
        v.is_finite() && (!self.log || v > 0.0)
    }

    /// Place of a shown value, 0 at the low end and 1 at the high end.
    pub fn place(&self, v: f64) -> f64 {
        ((if self.log { v.log10() } else { v }) - self.low) / (self.high - self.low)
    }

    /// About `want` round values inside the axis.
    pub fn ticks(&self, want: usize) -> Vec<f64> {
        if !self.log {
            return linear_ticks(self.low, self.high, want);
        }
        let decades = self.high - self.low;
        if decades < 0.7 {
            // Too short for powers of ten: round values between the ends.
            return linear_ticks(10f64.powf(self.low), 10f64.powf(self.high), want);
        }
        let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (decades / want as f64).ceil().max(1.0) as i32;
        let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
        (first..=last)
            .filter(|e| e.rem_euclid(every) == 0)
            .flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)))
            .filter(|v| (-1e-9..=1.0 + 1e-9).contains(&self.place(*v)))
            .collect()
    }
}

fn linear_ticks(low: f64, high: f64, want: usize) -> Vec<f64> {
    let rough = (high - low) / want.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|s| s * power)
        .into_iter()
        .find(|&s| s >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    // Multiples of the step, rounded so that 3 * 0.1 reads 0.3.
    let tidy = |k: i64| (k as f64 * step / power).round() * power;
    (first..=last).map(|k| if k == 0 { 0.0 } else { tidy(k) }).collect()
}

/// A tick's label: plain where short, powers of ten where not.
pub fn label(v: f64) -> String {
    let size = v.abs();
    if v == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{v:.0e}");
    }
    // As many digits as tell neighbouring ticks apart, and no trailing zeros.
    let digits = (3 - size.log10().floor() as i32).clamp(0, 7) as usize;
    let text = format!("{v:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let s = Scale::over([0.13, 0.87].into_iter(), false);
        let labels: Vec<String> = s.ticks(5).into_iter().map(label).collect();
        assert_eq!(labels, ["0.2", "0.4", "0.6", "0.8"]);
        let s = Scale::over([0.0, 1000.0].into_iter(), false);
        assert_eq!(s.ticks(5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let s = Scale::over([0.01, 1000.0].into_iter(), true);
        let labels: Vec<String> = s.ticks(8).into_iter().map(label).collect();
        assert_eq!(labels, ["0.01", "0.1", "1", "10", "100", "1000"]);
        let s = Scale::over([1.5, 40.0].into_iter(), true);
        assert_eq!(s.ticks(6), [2.0, 5.0, 10.0, 20.0]);
        assert!((s.place(40.0) - 1.0).abs() < 1e-12 && s.place(1.5).abs() < 1e-12);
    }

    #[test]
    fn odd_ranges_still_make_an_axis() {
        for values in [vec![], vec![3.0], vec![0.0, 0.0], vec![f64::NAN, -2.0], vec![1e-300, 1e300]]
        {
            for log in [false, true] {
                let s = Scale::over(values.iter().copied(), log).with_air(0.05);
                assert!(s.high > s.low, "{values:?} {log}");
                assert!(s.ticks(6).len() < 60, "{values:?} {log}");
                s.ticks(6).iter().for_each(|&t| assert!(s.place(t).is_finite()));
            }
        }
    }
}
