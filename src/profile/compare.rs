//! `genevar profile --compare`: what changed between two profiles, and whether that is noise.
//!
//! Of each kernel (op on the CPU) and of all together the medians over the repeats are compared. A
//! change counts when it exceeds three times the spread of single repeats: the median deviation of
//! each profile, scaled to a standard deviation, both together. Predicted times have no noise.

use super::format::{Clock, Profile, Row, quantile};
use super::table::{Cell, Paint, Table, count, painted, percent, seconds, wrapped};
use crate::error::{Error, Result};

/// Spreads that a change must exceed.
const SPREADS: f64 = 3.0;
/// A standard deviation in median deviations of a normal distribution.
const TO_DEVIATION: f64 = 1.4826;
/// Repeats from which a spread is known.
const ENOUGH: usize = 3;
/// Seconds that a clock's moment may be off.
const TICK: f64 = 5e-7;
/// Shares below which a predicted change is not worth a word.
const EXACT: f64 = 1e-9;

/// What became of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Longer, beyond the noise.
    Slower,
    /// Shorter, beyond the noise.
    Faster,
    /// The same, within the noise.
    Noise,
    /// Too few repeats to say.
    Unknown,
    /// Only in the second.
    New,
    /// Only in the first.
    Gone,
}

impl Verdict {
    fn cell(self) -> Cell {
        match self {
            Self::Slower => Cell::new("slower", Paint::Red),
            Self::Faster => Cell::new("faster", Paint::Green),
            Self::Noise => Cell::new("within noise", Paint::Dim),
            Self::Unknown => Cell::new("noise unknown", Paint::Yellow),
            Self::New => Cell::new("new", Paint::Yellow),
            Self::Gone => Cell::new("gone", Paint::Yellow),
        }
    }
}

/// The times of something in both profiles.
struct Change {
    name: String,
    before: Option<Row>,
    after: Option<Row>,
    /// Medians.
    times: [f64; 2],
    /// How far they may differ by chance; none where that is unknown.
    noise: Option<f64>,
}

/// What a comparison says.
pub struct Comparison {
    /// For people.
    pub page: String,
    /// Of the whole.
    pub verdict: Verdict,
}

/// Compares two profiles; at most `top` kernels are shown.
///
/// # Errors
/// A measured profile against one that is predicted.
pub fn compare(a: &Profile, b: &Profile, top: usize, colours: bool) -> Result<Comparison> {
    if a.clock.is_real() != b.clock.is_real() {
        let what = "one profile is measured and the other predicted";
        let fix = "compare profiles of one kind: both with --device cuda, both with plan";
        return Err(Error::config("--compare", what, fix));
    }
    let real = a.clock.is_real();
    let mut changes = changes(a, b, real);
    changes.sort_by(|x, y| y.size().total_cmp(&x.size()));
    let total = total(a, b, real);
    let verdict = total.verdict(real);
    let mut page = heading(a, b);
    let what = if real { "" } else { " (predicted)" };
    let line = format!(
        "{} -> {}{what}: {} ({}); noise {}\n\n",
        seconds(total.times[0]),
        seconds(total.times[1]),
        verdict.cell_text(),
        signed(total.times),
        total.noise.map_or("unknown: take 3 repeats or more".into(), seconds),
    );
    page += &painted(&line, Paint::Bold, colours);
    let name = if a.clock == Clock::Cpu { "op" } else { "kernel" };
    let mut table = Table::new(vec![
        name, "before", "after", "change", "of it", "noise", "calls", "bytes", "FLOP", "says",
    ]);
    for change in changes.iter().take(top) {
        table.push(change.line(real));
    }
    page += &table.render(colours);
    if changes.len() > top {
        page += &format!("{} more (--top)\n", changes.len() - top);
    }
    Ok(Comparison { page, verdict })
}

fn heading(a: &Profile, b: &Profile) -> String {
    let told = |p: &Profile| {
        format!("{}, {}, {} at a time, {}, on {}", p.work, p.shapes, p.batch, p.precision, p.device)
    };
    let mut head = wrapped(&format!("before: {}", told(a)));
    head += &wrapped(&format!("after: {}", told(b)));
    let same = (&a.work, &a.shapes, a.batch) == (&b.work, &b.shapes, b.batch);
    if !same {
        head += "this is not the same work: changes are of the work too\n";
    }
    if a.clock.is_real() && a.device != b.device {
        head += "these are different devices\n";
    }
    if !a.clock.is_real() && a.model != b.model {
        head += "these are predicted for different device models\n";
    }
    head
}

fn changes(a: &Profile, b: &Profile, real: bool) -> Vec<Change> {
    let (before, mut after) = (a.by(|r| r.name().to_string()), b.by(|r| r.name().to_string()));
    let mut changes = Vec::new();
    for (name, row) in before {
        let at = after.iter().position(|(other, _)| *other == name);
        let other = at.map(|at| after.remove(at).1);
        changes.push(Change::of(name, Some(row), other, real));
    }
    changes.extend(after.into_iter().map(|(name, row)| Change::of(name, None, Some(row), real)));
    changes
}

/// The whole: start to end where that was measured.
fn total(a: &Profile, b: &Profile, real: bool) -> Change {
    let whole = |p: &Profile| {
        let mut row = p.total();
        if real {
            row.seconds.clone_from(&p.seconds);
        }
        Some(row)
    };
    Change::of("all".into(), whole(a), whole(b), real)
}

impl Change {
    fn of(name: String, before: Option<Row>, after: Option<Row>, real: bool) -> Self {
        let time = |row: &Option<Row>| {
            row.as_ref().map_or(0.0, |r| if real { r.time() } else { r.predicted.unwrap_or(0.0) })
        };
        let spread = |row: &Option<Row>| match row {
            None => Some(0.0),
            Some(row) => spread(&row.seconds),
        };
        let noise = match real {
            false => Some(0.0),
            true => spread(&before).zip(spread(&after)).map(|(x, y)| {
                let calls = [&before, &after].map(|r| r.as_ref().map_or(0, |r| r.calls));
                let tick = TICK * (calls[0].max(calls[1]) as f64).sqrt();
                (SPREADS * x.hypot(y)).max(tick)
            }),
        };
        let times = [time(&before), time(&after)];
        Self { name, before, after, times, noise }
    }

    fn size(&self) -> f64 {
        (self.times[1] - self.times[0]).abs()
    }

    fn verdict(&self, real: bool) -> Verdict {
        let [before, after] = self.times;
        let least = if real { 0.0 } else { EXACT * before };
        match (&self.before, &self.after, self.noise) {
            (None, _, _) => Verdict::New,
            (_, None, _) => Verdict::Gone,
            (_, _, None) => Verdict::Unknown,
            (_, _, Some(noise)) if self.size() <= noise.max(least) => Verdict::Noise,
            _ if after > before => Verdict::Slower,
            _ => Verdict::Faster,
        }
    }

    fn line(&self, real: bool) -> Vec<Cell> {
        let both = |get: fn(&Row) -> u64| {
            [&self.before, &self.after].map(|r| r.as_ref().map(|row| get(row) as f64))
        };
        let same = || Cell::new("=", Paint::Dim);
        let calls = match both(|r| r.calls) {
            [x, y] if x == y => same(),
            other => {
                let [x, y] = other.map(|n| n.map_or("-".into(), count));
                format!("{x} -> {y}").into()
            }
        };
        let share = |get: fn(&Row) -> u64| match both(get) {
            [x, y] if x == y => same(),
            [Some(x), Some(y)] => signed([x, y]).into(),
            _ => "-".into(),
        };
        let verdict = self.verdict(real);
        let change = self.times[1] - self.times[0];
        let sign = if change > 0.0 { "+" } else { "" };
        vec![
            self.name.as_str().into(),
            seconds(self.times[0]).into(),
            seconds(self.times[1]).into(),
            format!("{sign}{}", seconds(change)).into(),
            signed(self.times).into(),
            self.noise.map_or("-".to_string(), seconds).into(),
            calls,
            share(moved),
            share(computed),
            verdict.cell(),
        ]
    }
}

/// Bytes as counted, else as the cards say.
fn moved(row: &Row) -> u64 {
    row.counts.map_or(row.bytes, |c| c.touched())
}

/// Operations as counted, else as the cards say.
fn computed(row: &Row) -> u64 {
    row.counts.map_or(row.flops, |c| c.scalar_flops + c.tensor_flops)
}

impl Verdict {
    fn cell_text(self) -> &'static str {
        match self {
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::Noise => "no change beyond the noise",
            _ => "nothing can be said",
        }
    }
}

/// A standard deviation of these by their median deviation; none of too few.
fn spread(values: &[f64]) -> Option<f64> {
    let middle = quantile(values, 0.5);
    let off: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
    (values.len() >= ENOUGH).then(|| TO_DEVIATION * quantile(&off, 0.5))
}

/// A change as a share of what was before.
fn signed([before, after]: [f64; 2]) -> String {
    let share = after / before - 1.0;
    match share.is_finite() {
        false => "-".into(),
        true if share >= 0.0 => format!("+{}", percent(share)),
        true => format!("-{}", percent(-share)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::format::{FORMAT, VERSION};
    use crate::profile::model::Known;

    fn row(name: &str, calls: u64, times: &[f64]) -> Row {
        let (op, seconds) = (name.to_string(), times.to_vec());
        Row { op, calls, seconds, predicted: Some(times[0]), ..Row::default() }
    }

    fn profile(clock: Clock, rows: Vec<Row>) -> Profile {
        let mut p = Profile {
            format: FORMAT.into(),
            version: VERSION,
            work: "sample".into(),
            shapes: "made-up".into(),
            batch: 1,
            precision: "f32".into(),
            device: "a device".into(),
            clock,
            model: Known::named("h100").unwrap().model(),
            seconds: Vec::new(),
            replay_seconds: Vec::new(),
            uploads: 0,
            fetches: 0,
            rows,
        };
        p.seconds = p.total().seconds;
        p
    }

    /// Verdicts of each kernel by name, and of the whole.
    fn verdicts(a: &Profile, b: &Profile) -> (Vec<(String, Verdict)>, Verdict) {
        let real = a.clock.is_real();
        let mut each: Vec<_> =
            changes(a, b, real).iter().map(|c| (c.name.clone(), c.verdict(real))).collect();
        each.sort_by(|a, b| a.0.cmp(&b.0));
        (each, compare(a, b, 9, false).unwrap().verdict)
    }

    #[test]
    fn a_change_counts_when_it_exceeds_the_spread() {
        let noisy = [1.00, 1.04, 0.97, 1.01, 0.99];
        let quiet = [1.000, 1.001, 0.999, 1.000, 1.001];
        let times = |base: &[f64], by: f64| base.iter().map(|t| t * by).collect::<Vec<_>>();
        let before = profile(Clock::Cpu, vec![row("noisy", 4, &noisy), row("quiet", 4, &quiet)]);
        let moved = |by| {
            let rows =
                vec![row("noisy", 4, &times(&noisy, by)), row("quiet", 4, &times(&quiet, by))];
            profile(Clock::Cpu, rows)
        };
        let named = |n: Verdict, q: Verdict| vec![("noisy".into(), n), ("quiet".into(), q)];
        let (each, _) = verdicts(&before, &moved(1.03));
        assert_eq!(each, named(Verdict::Noise, Verdict::Slower));
        assert_eq!(verdicts(&before, &before).1, Verdict::Noise);
        assert_eq!(
            verdicts(&before, &moved(1.5)),
            (named(Verdict::Slower, Verdict::Slower), Verdict::Slower)
        );
        assert_eq!(
            verdicts(&before, &moved(0.5)),
            (named(Verdict::Faster, Verdict::Faster), Verdict::Faster)
        );
    }

    #[test]
    fn few_repeats_say_nothing_and_kernels_come_and_go() {
        let a = profile(Clock::Cpu, vec![row("x", 1, &[1.0]), row("old", 2, &[1.0])]);
        let b = profile(Clock::Cpu, vec![row("x", 1, &[2.0]), row("young", 3, &[1.0])]);
        let (each, all) = verdicts(&a, &b);
        let want = [("old", Verdict::Gone), ("x", Verdict::Unknown), ("young", Verdict::New)];
        assert_eq!(each, want.map(|(name, v)| (name.to_string(), v)));
        assert_eq!(all, Verdict::Unknown);
        let page = compare(&a, &b, 9, false).unwrap().page;
        for part in ["noise unknown", "- -> 3", "2 -> -", "gone", "new"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains('\u{1b}'));
    }

    #[test]
    fn predictions_have_no_noise_and_are_not_compared_with_times() {
        let a = profile(Clock::Plan, vec![row("x", 1, &[1.0])]);
        let b = profile(Clock::Plan, vec![row("x", 1, &[1.0001])]);
        assert_eq!(verdicts(&a, &b).1, Verdict::Slower);
        assert_eq!(verdicts(&a, &a).1, Verdict::Noise);
        let real = profile(Clock::Gpu, vec![row("x", 1, &[1.0])]);
        let told = compare(&a, &real, 9, false).err().unwrap().to_string();
        assert!(told.contains("predicted"), "{told}");
    }
}
