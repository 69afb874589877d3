//! Tables for a terminal: columns under each other whatever the letters' widths, colours where
//! somebody looks.

use std::fmt::Write;
use std::io::IsTerminal;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a terminal that a table fits into.
const WIDTH: usize = 120;
/// What a name is shortened to at least.
const NAME: usize = 8;

/// How text is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// A heading or a sum.
    Bold,
    /// What matters less.
    Dim,
    /// Good.
    Green,
    /// Bad.
    Red,
    /// One of several kinds.
    Blue,
    /// Another.
    Yellow,
    /// A third.
    Magenta,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\u{1b}[1m",
            Self::Dim => "\u{1b}[2m",
            Self::Green => "\u{1b}[32m",
            Self::Red => "\u{1b}[31m",
            Self::Blue => "\u{1b}[34m",
            Self::Yellow => "\u{1b}[33m",
            Self::Magenta => "\u{1b}[35m",
        }
    }
}

/// Whether standard output is a terminal whose reader has not asked for plain text (NO_COLOR).
pub fn colours() -> bool {
    let asked = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    std::io::stdout().is_terminal() && !asked && !dumb
}

/// Text in its paint.
pub fn painted(text: &str, paint: Paint, colours: bool) -> String {
    match colours && paint != Paint::Plain {
        true => format!("{}{text}\u{1b}[0m", paint.code()),
        false => text.to_string(),
    }
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// In a paint.
    pub fn new(text: impl Into<String>, paint: Paint) -> Self {
        Self { text: text.into(), paint }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Paint::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Paint::Plain)
    }
}

/// A heading and rows; the first column is text, the others are numbers.
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Without rows.
    pub fn new(heads: Vec<&'static str>) -> Self {
        Self { heads, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The lines. Names are shortened where the table would be wider than 120 columns.
    pub fn render(&self, colours: bool) -> String {
        let mut widths: Vec<usize> = self.heads.iter().map(|h| h.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let over = (widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1))
            .saturating_sub(WIDTH);
        if let Some(name) = widths.first_mut() {
            *name = name.saturating_sub(over).max(NAME.min(*name));
        }
        let mut out = String::new();
        let heads: Vec<Cell> = self.heads.iter().map(|h| Cell::new(*h, Paint::Bold)).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let text = shortened(&cell.text, width);
                let pad = " ".repeat(width.saturating_sub(text.width()));
                let text = painted(&text, cell.paint, colours);
                let _ = match i {
                    0 => write!(line, "{text}{pad}"),
                    _ => write!(line, "  {pad}{text}"),
                };
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

/// Text in lines that fit a terminal, broken between words, the later ones indented.
pub fn wrapped(text: &str) -> String {
    const INDENT: &str = "  ";
    let (mut out, mut line) = (String::new(), String::new());
    for word in text.split(' ') {
        if !line.trim().is_empty() && line.width() + 1 + word.width() > WIDTH {
            out += line.trim_end();
            out.push('\n');
            line = format!("{INDENT}{word}");
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
    }
    out + line.trim_end() + "\n"
}

/// The text, its end replaced by an ellipsis where it is wider.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_string();
    }
    let mut kept = String::new();
    let mut left = width.saturating_sub(1);
    for c in text.chars() {
        let own = c.width().unwrap_or(0);
        if own > left {
            break;
        }
        left -= own;
        kept.push(c);
    }
    kept + "…"
}

/// Three digits that count and a unit: `1.23 ms`.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = |(size, _): &&(f64, &str)| value.abs() >= 0.9995 * size;
    let Some((size, unit)) = units.iter().find(fits).or(units.last()) else {
        return format!("{value}");
    };
    let x = value / size;
    let digits = match x.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        _ => 2,
    };
    format!("{x:.digits$} {unit}")
}

/// Seconds.
pub fn seconds(value: f64) -> String {
    match value == 0.0 {
        true => "0".into(),
        false => scaled(value, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")]),
    }
}

/// Bytes, in powers of ten.
pub fn bytes(value: f64) -> String {
    match value < 1000.0 {
        true => format!("{value:.0} B"),
        false => scaled(value, &[(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")]),
    }
}

/// A number of things: operations, launches.
pub fn count(value: f64) -> String {
    match value < 1000.0 {
        true => format!("{value:.0}"),
        false => scaled(value, &[(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]),
    }
}

/// A share in percent.
pub fn percent(value: f64) -> String {
    match value.is_finite() {
        false => "-".into(),
        true if value >= 0.0995 => format!("{:.0} %", 100.0 * value),
        true => format!("{:.1} %", 100.0 * value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!([1.5, 0.0123, 4.5e-6, 0.0].map(seconds), ["1.50 s", "12.3 ms", "4.50 us", "0"]);
        assert_eq!([0.99996e-3, 2e-9].map(seconds), ["1.00 ms", "2.00 ns"]);
        assert_eq!([12.0, 57.8e6, 4.15e9].map(bytes), ["12 B", "57.8 MB", "4.15 GB"]);
        assert_eq!([999.0, 1302.72e9].map(count), ["999", "1.30 T"]);
        assert_eq!([0.5, 0.012, f64::NAN].map(percent), ["50 %", "1.2 %", "-"]);
    }

    #[test]
    fn columns_stand_under_each_other_whatever_the_letters() {
        let mut table = Table::new(vec!["name", "time"]);
        table.push(vec!["染色".into(), "1.00 ms".into()]);
        table.push(vec!["n".into(), Cell::new("22 s", Paint::Red)]);
        assert_eq!(table.render(false), "name     time\n染色  1.00 ms\nn        22 s\n");
        let coloured = table.render(true);
        assert!(coloured.contains("\u{1b}[31m22 s\u{1b}[0m"), "{coloured:?}");
    }

    #[test]
    fn text_is_broken_between_words() {
        let text = wrapped(&"word ".repeat(40));
        assert_eq!((text.lines().count(), text.matches("word").count()), (2, 40));
        assert!(text.lines().all(|line| line.width() <= WIDTH) && text.contains("\n  word"));
        assert_eq!(wrapped("short"), "short\n");
    }

    #[test]
    fn long_names_are_shortened_to_the_width() {
        let mut table = Table::new(vec!["name", "time"]);
        table.push(vec!["染".repeat(90).into(), "1.00 ms".into()]);
        let text = table.render(false);
        assert!(text.lines().all(|line| line.width() <= WIDTH), "{text}");
        assert!(text.contains("…  1.00 ms"), "{text}");
    }
}
