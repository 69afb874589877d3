//! Progress of a long piece of work: a bar with rate, time left and loss on a terminal, else a line
//! on stderr every few seconds.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// Seconds between lines when stderr is not a terminal.
const QUIET: Duration = Duration::from_secs(5);

/// One bar.
#[derive(Debug)]
pub struct Progress {
    name: String,
    total: u64,
    first: u64,
    start: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar called `name` over `total` units, of which `done` were finished before this process.
    pub fn new(name: &str, total: u64, done: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done).with_message(String::new());
            bar.set_style(style());
            bar.set_prefix(name.to_string());
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        let (name, last_line) = (name.to_string(), now);
        Self { name, total, first: done, start: now, last_line, bar }
    }

    /// `done` units are finished; `note` says how it goes ("loss 0.123").
    pub fn update(&mut self, done: u64, note: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(note.to_string());
                bar.set_position(done);
            }
            None if self.last_line.elapsed() >= QUIET || done == self.total => {
                eprintln!("{}", line(self, done, self.start.elapsed(), note));
                self.last_line = Instant::now();
            }
            None => {}
        }
    }

    /// Seconds since the bar was made.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix:>10} {wide_bar} {pos}/{len}  {speed}  {eta} left  {msg}";
    let speed = |state: &ProgressState, out: &mut dyn Write| {
        // A bar that cannot be written is no reason to stop the work.
        let _ = out.write_str(&rate(state.per_sec()));
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("speed", speed)
}

/// Units a second, or seconds a unit where that is the larger number.
fn rate(per_second: f64) -> String {
    if per_second >= 1.0 || per_second <= 0.0 {
        format!("{per_second:.1}/s")
    } else {
        format!("{:.1} s each", 1.0 / per_second)
    }
}

fn line(p: &Progress, done: u64, elapsed: Duration, note: &str) -> String {
    let speed = done.saturating_sub(p.first) as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = p.total.saturating_sub(done) as f64 / speed.max(1e-9);
    let left = Duration::from_secs_f64(left.clamp(0.0, 1e9));
    let left = indicatif::HumanDuration(left);
    let note = if note.is_empty() { String::new() } else { format!(", {note}") };
    format!("{}: {done}/{}, {}, {left} left{note}", p.name, p.total, rate(speed))
}

/// A bar that several threads report to.
#[derive(Debug)]
pub struct Shared {
    done: AtomicU64,
    progress: Mutex<Progress>,
}

impl Shared {
    /// A bar called `name` over `total` units.
    pub fn new(name: &str, total: usize) -> Self {
        let progress = Mutex::new(Progress::new(name, total as u64, 0));
        Self { done: AtomicU64::new(0), progress }
    }

    /// One more unit is finished.
    pub fn one(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        // A poisoned bar still shows the right number.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).update(done, "");
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left_of_this_process() {
        let p = Progress::new("msvq", 100, 50);
        let text = line(&p, 60, Duration::from_secs(2), "loss 0.5");
        assert_eq!(text, "msvq: 60/100, 5.0/s, 8 seconds left, loss 0.5");
        assert_eq!(rate(0.25), "4.0 s each");
    }
}
