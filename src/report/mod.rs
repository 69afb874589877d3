//! A report as one HTML file: pictures, curves, tables, and a plain sentence for each number.
//!
//! Nothing is loaded from elsewhere: pictures are embedded PNG, charts are inline SVG, the style
//! sheet is in the head. All text is escaped, so a sample may be called anything.

mod chart;
mod scale;

use std::fmt::Write as _;
use std::path::Path;

pub use chart::Chart;

use crate::error::Result;
use crate::io::atomic;
use crate::io::images::{self, Rgb};

const STYLE: &str = include_str!("style.css");

/// One piece of the page, in the order it was added.
#[derive(Clone, Debug)]
enum Block {
    Html(String),
    Metric(String),
    Chart(String),
}

impl Block {
    /// The element round blocks of this kind that follow each other, where there is one.
    fn round(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Html(_) => None,
            Self::Metric(_) => Some(("<dl class=\"metrics\">\n", "</dl>\n")),
            Self::Chart(_) => Some(("<div class=\"charts\">\n", "</div>\n")),
        }
    }
}

/// A report under construction.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    blocks: Vec<Block>,
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// Starts a section.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.html(format!("<h2>{}</h2>\n", escape(text)))
    }

    /// One paragraph for each run of text between blank lines.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for paragraph in text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
            self.html(format!("<p>{}</p>\n", escape(paragraph)));
        }
        self
    }

    /// Text as it stands, in a fixed-width face: a command, a log.
    pub fn code(&mut self, text: &str) -> &mut Self {
        self.html(format!("<pre>{}</pre>\n", escape(text)))
    }

    /// A picture; the caption is also its alternative text.
    ///
    /// # Errors
    /// `Internal` when it cannot be encoded.
    pub fn picture(&mut self, caption: &str, image: &Rgb) -> Result<&mut Self> {
        let (w, h, png) = (image.width, image.height, images::encode_png(image)?);
        let caption = escape(caption);
        Ok(self.html(format!(
            "<figure><img alt=\"{caption}\" width=\"{w}\" height=\"{h}\" \
             src=\"data:image/png;base64,{}\"><figcaption>{caption}</figcaption></figure>\n",
            base64(&png)
        )))
    }

    /// A line chart with a sentence below it.
    pub fn chart(&mut self, chart: &Chart, caption: &str) -> &mut Self {
        self.html(format!(
            "<figure>{}<figcaption>{}</figcaption></figure>\n",
            chart.svg(),
            escape(caption)
        ))
    }

    /// A small line chart with a sentence below it. Consecutive ones share a grid.
    pub fn small_chart(&mut self, chart: Chart, caption: &str) -> &mut Self {
        let caption = match caption {
            "" => String::new(),
            text => format!("<figcaption>{}</figcaption>", escape(text)),
        };
        let html = format!("<figure>{}{caption}</figure>\n", chart.small().svg());
        self.blocks.push(Block::Chart(html));
        self
    }

    /// Text as it stands, folded away behind a line of words.
    pub fn folded(&mut self, summary: &str, text: &str) -> &mut Self {
        self.html(format!(
            "<details><summary>{}</summary><pre>{}</pre></details>\n",
            escape(summary),
            escape(text)
        ))
    }

    /// A table; a column whose cells are all numbers is set flush right. Short rows are filled with
    /// empty cells.
    pub fn table<S: AsRef<str>>(
        &mut self,
        caption: &str,
        header: &[S],
        rows: &[Vec<String>],
    ) -> &mut Self {
        let cell = |row: &Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
        let class: Vec<&str> = (0..header.len())
            .map(|c| match !rows.is_empty() && rows.iter().all(|r| is_number(&cell(r, c))) {
                true => " class=\"number\"",
                false => "",
            })
            .collect();
        let mut html = String::from("<div class=\"scroll\" tabindex=\"0\"><table>");
        // Writing to a String cannot fail.
        let _ = write!(html, "<caption>{}</caption><thead><tr>", escape(caption));
        for (name, class) in header.iter().zip(&class) {
            let _ = write!(html, "<th scope=\"col\"{class}>{}</th>", escape(name.as_ref()));
        }
        html.push_str("</tr></thead><tbody>");
        for row in rows {
            html.push_str("<tr>");
            for (c, class) in class.iter().enumerate() {
                let _ = write!(html, "<td{class}>{}</td>", escape(&cell(row, c)));
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table></div>\n");
        self.html(html)
    }

    /// A number that matters, and in plain words what it means. Consecutive ones share a grid.
    pub fn metric(
        &mut self,
        name: &str,
        value: impl std::fmt::Display,
        meaning: &str,
    ) -> &mut Self {
        self.blocks.push(Block::Metric(format!(
            "<div><dt>{}</dt><dd class=\"value\">{}</dd><dd class=\"meaning\">{}</dd></div>\n",
            escape(name),
            escape(&value.to_string()),
            escape(meaning)
        )));
        self
    }

    /// The page.
    pub fn render(&self) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n"
        );
        let mut open: Option<(&str, &str)> = None;
        for block in &self.blocks {
            let round = block.round();
            if round != open {
                out.push_str(open.map_or("", |o| o.1));
                out.push_str(round.map_or("", |r| r.0));
                open = round;
            }
            let (Block::Html(html) | Block::Metric(html) | Block::Chart(html)) = block;
            out.push_str(html);
        }
        out.push_str(open.map_or("", |o| o.1));
        out.push_str("</main>\n</body>\n</html>\n");
        out
    }

    /// Writes the page; a reader sees the old file or the whole new one, never a part.
    ///
    /// # Errors
    /// `Io` when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, self.render().as_bytes())
    }

    fn html(&mut self, html: String) -> &mut Self {
        self.blocks.push(Block::Html(html));
        self
    }
}

/// Text made safe between tags and inside double-quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Whether a cell reads as a number or a range "1.5–2", with or without a unit sign; empty and dash
/// cells may join in.
fn is_number(cell: &str) -> bool {
    let bare = cell.trim().trim_end_matches(['%', 's']).trim();
    let number = |part: &str| part.replace([',', ' '], "").parse::<f64>().is_ok();
    matches!(bare, "" | "-" | "–") || bare.split('–').all(number)
}

/// Base 64 of RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            match i <= group.len() {
                true => out.push(char::from(DIGITS[(word >> (18 - 6 * i) & 63) as usize])),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        let want = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (n, want) in want.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..n]), *want);
        }
    }

    #[test]
    fn text_cannot_become_markup() {
        let evil = "<script>alert('x')</script> & \"quotes\"";
        let mut r = Report::new(evil);
        r.heading(evil).text(evil).code(evil).metric(evil, evil, evil);
        r.table(evil, &[evil], &[vec![evil.to_string()]]);
        r.picture(evil, &Rgb::filled(1, 1, [9; 3])).unwrap();
        r.chart(&Chart::new(evil, evil, evil).series(evil, vec![(0.0, 1.0)]).mark(0.0, evil), evil);
        let html = r.render();
        assert!(!html.contains("<script"));
        assert!(!html.contains("\"quotes\""));
        for word in ["http://", "https://", "url(", "<link", "src=\"/"] {
            assert!(!html.contains(word), "{word} would load something from outside");
        }
    }

    #[test]
    fn metrics_in_a_row_share_a_grid() {
        let mut r = Report::new("t");
        r.metric("a", 1, "x").metric("b", 2.5, "y").text("between").metric("c", "3 s", "z");
        let html = r.render();
        assert_eq!(html.matches("<dl").count(), 2);
        assert_eq!(html.matches("</dl>").count(), 2);
    }

    #[test]
    fn numbers_are_set_right() {
        let rows = vec![vec!["a".into(), "1,024.5".into()], vec!["b".into(), "12 %".into()]];
        let mut r = Report::new("t");
        let html = r.table("c", &["name", "value"], &rows).render();
        assert_eq!(html.matches("class=\"number\"").count(), 3);
    }

    #[test]
    fn writes_the_whole_page_or_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        Report::new("first").write(&path).unwrap();
        Report::new("second").write(&path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("<h1>second</h1>"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let e = Report::new("t").write(&dir.path().join("none/report.html")).unwrap_err();
        assert_eq!(e.exit_code(), 2);
    }
}
