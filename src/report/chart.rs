//! Line charts as inline SVG: axes, ticks, grid, legend, marked moments, linear or log scales.
//!
//! Colours come from the page's style sheet, so that a chart follows the reader's light or dark
//! setting; each series also has its own dash pattern, for those who do not tell the colours apart.

use std::fmt::Write as _;

use super::escape;
use super::scale::{Scale, label};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 50.0;
/// Colours in the style sheet.
const COLOURS: usize = 6;
const DASHES: [&str; 6] = ["", "7 4", "2 4", "9 3 2 3", "12 5", "4 2"];
/// Columns of a long series; each keeps its least and its greatest point.
const COLUMNS: usize = 600;

/// A line chart.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    x: String,
    y: String,
    log: [bool; 2],
    series: Vec<(String, Vec<(f64, f64)>)>,
    marks: Vec<(f64, String)>,
}

impl Chart {
    /// An empty chart with its title and the names (and units) of its axes.
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            title: title.into(),
            x: x.into(),
            y: y.into(),
            log: [false; 2],
            series: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// Logarithmic in x; points with x <= 0 are left out.
    pub fn log_x(mut self) -> Self {
        self.log[0] = true;
        self
    }

    /// Logarithmic in y; points with y <= 0 are left out.
    pub fn log_y(mut self) -> Self {
        self.log[1] = true;
        self
    }

    /// Adds a line through `points` in their order; a point without a place interrupts it.
    pub fn series(mut self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.series.push((name.into(), points));
        self
    }

    /// Marks a moment on the x axis ("stopped and resumed").
    pub fn mark(mut self, x: f64, text: &str) -> Self {
        self.marks.push((x, text.into()));
        self
    }

    /// The drawing.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, p)| p.iter().copied());
        let marks = self.marks.iter().map(|m| m.0);
        let x = Scale::over(points().map(|p| p.0).chain(marks), self.log[0]);
        let y = Scale::over(points().map(|p| p.1), self.log[1]).with_air(0.05);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             role=\"img\" aria-label=\"{}\">",
            escape(&self.description())
        );
        let _ =
            write!(out, "<text class=\"title\" x=\"16\" y=\"24\">{}</text>", escape(&self.title));
        self.draw_axes(&mut out, &x, &y);
        self.draw_marks(&mut out, &x);
        for (i, (_, points)) in self.series.iter().enumerate() {
            let path = path(&thinned(points), &x, &y);
            let _ = write!(out, "<path class=\"series\" {} d=\"{path}\"/>", stroke(i));
        }
        self.draw_legend(&mut out);
        out.push_str("</svg>");
        out
    }

    /// What the chart shows, for those who cannot see it: each line's ends and extremes.
    fn description(&self) -> String {
        let mut text = format!("Line chart: {}. {} against {}.", self.title, self.y, self.x);
        for (name, points) in &self.series {
            let ys = || points.iter().map(|p| p.1).filter(|y| y.is_finite());
            if let (Some(first), Some(last)) = (ys().next(), ys().next_back()) {
                let low = ys().fold(f64::INFINITY, f64::min);
                let _ = write!(
                    text,
                    " {name}: from {} to {}, lowest {}.",
                    short(first),
                    short(last),
                    short(low)
                );
            }
        }
        text
    }

    fn draw_axes(&self, out: &mut String, x: &Scale, y: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for t in y.ticks(6) {
            let at = down(y.place(t));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(t)
            );
        }
        for t in x.ticks(8) {
            let at = across(x.place(t));
            let _ = write!(
                out,
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                label(t)
            );
        }
        let middle = (TOP + bottom) / 2.0;
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(17 {middle:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 10.0,
            escape(&self.x),
            escape(&self.y)
        );
    }

    fn draw_marks(&self, out: &mut String, x: &Scale) {
        for (value, text) in self.marks.iter().filter(|m| x.shows(m.0)) {
            let place = x.place(*value);
            let at = across(place);
            // The words stand on the side that has room.
            let (shift, anchor) = if place < 0.6 { (6.0, "start") } else { (-6.0, "end") };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                HEIGHT - BOTTOM,
                at + shift,
                TOP + 12.0,
                escape(text)
            );
        }
    }

    /// One line of names under the title; widths are estimated, there being no font to ask.
    fn draw_legend(&self, out: &mut String) {
        let mut at = 16.0;
        for (i, (name, _)) in self.series.iter().enumerate() {
            let _ = write!(
                out,
                "<path class=\"series\" {} d=\"M{at:.1} 42H{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"46\">{}</text>",
                stroke(i),
                at + 24.0,
                at + 30.0,
                escape(name)
            );
            at += 46.0 + 6.8 * name.chars().count() as f64;
        }
    }
}

fn stroke(i: usize) -> String {
    let dash = DASHES[i % DASHES.len()];
    let dash = if dash.is_empty() { dash.into() } else { format!(";stroke-dasharray:{dash}") };
    format!("style=\"stroke:var(--s{}){dash}\"", i % COLOURS)
}

fn across(place: f64) -> f64 {
    LEFT + place * (WIDTH - LEFT - RIGHT)
}

fn down(place: f64) -> f64 {
    HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)
}

fn short(v: f64) -> String {
    let digits = (2 - v.abs().max(1e-12).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{v:.digits$}")
}

fn path(points: &[(f64, f64)], x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    let mut pen = 'M';
    let mut run = 0;
    for &(px, py) in points {
        if !(x.shows(px) && y.shows(py)) {
            pen = 'M';
            continue;
        }
        run = if pen == 'M' { 0 } else { run + 1 };
        let _ = write!(out, "{pen}{:.1} {:.1}", across(x.place(px)), down(y.place(py)));
        if run == 0 {
            // A zero-length stroke with round caps: a lone point is seen as a dot.
            out.push_str("h0");
        }
        pen = 'L';
    }
    out
}

/// A long series with the least and the greatest point of each run of neighbours: spikes survive.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let mut out = Vec::with_capacity(2 * COLUMNS);
    for run in points.chunks(points.len().div_ceil(COLUMNS)) {
        let order = |a: &usize, b: &usize| run[*a].1.total_cmp(&run[*b].1);
        let low = (0..run.len()).min_by(order).unwrap_or(0);
        let high = (0..run.len()).max_by(order).unwrap_or(0);
        out.push(run[low.min(high)]);
        if low != high {
            out.push(run[low.max(high)]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_interrupt_a_line() {
        let c = Chart::new("t", "x", "y")
            .log_y()
            .series("s", vec![(0.0, 1.0), (1.0, 2.0), (2.0, 0.0), (3.0, f64::NAN), (4.0, 5.0)]);
        let svg = c.svg();
        let line = svg.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn ends_of_the_data_lie_inside_the_frame() {
        let svg = Chart::new("t", "x", "y").series("s", vec![(10.0, -3.0), (20.0, 7.0)]).svg();
        assert!(svg.contains(&format!("M{:.1} ", LEFT)));
        assert!(svg.contains(&format!("L{:.1} ", WIDTH - RIGHT)));
        assert!(svg.contains("from -3.00 to 7.00, lowest -3.00"));
    }

    #[test]
    fn thinning_keeps_spikes_and_order() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|i| (f64::from(i), 1.0)).collect();
        points[31_234].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= 2 * COLUMNS);
        assert!(thin.contains(&(31_234.0, 99.0)));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn an_empty_chart_is_still_a_chart() {
        let svg = Chart::new("t", "x", "y").series("none", vec![]).svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"));
    }
}
