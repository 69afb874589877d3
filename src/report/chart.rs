//! Line charts as inline SVG: axes, ticks, grid, legend, marked moments, linear or log scales.
//!
//! Colours come from the page's style sheet, so that a chart follows the reader's light or dark
//! setting; each series also has its own dash pattern, for those who do not tell the colours apart.

use std::fmt::Write as _;

use super::escape;
use super::scale::{Scale, label};

/// Width and height of a chart, and of one that stands beside others.
const SIZE: (f64, f64) = (760.0, 380.0);
const SMALL: (f64, f64) = (500.0, 310.0);
const LEFT: f64 = 86.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 58.0;
/// Height of a further line of the legend.
const LINE: f64 = 18.0;
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
    small: bool,
    /// What the x axis holds in any case.
    span: Vec<f64>,
    series: Vec<Series>,
    marks: Vec<(f64, String)>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    /// Which colour and which dash pattern.
    looks: (usize, usize),
}

/// Where the axes stand.
#[derive(Clone, Copy)]
struct Frame {
    width: f64,
    height: f64,
    top: f64,
}

impl Frame {
    fn across(self, place: f64) -> f64 {
        LEFT + place * (self.width - LEFT - RIGHT)
    }

    fn down(self, place: f64) -> f64 {
        self.height - BOTTOM - place * (self.height - self.top - BOTTOM)
    }
}

impl Chart {
    /// An empty chart with its title and the names (and units) of its axes.
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            title: title.into(),
            x: x.into(),
            y: y.into(),
            log: [false; 2],
            small: false,
            span: Vec::new(),
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

    /// With an x axis that holds at least `low` to `high`: charts side by side then agree.
    pub fn spanning(mut self, low: f64, high: f64) -> Self {
        self.span = vec![low, high];
        self
    }

    /// Under another title.
    pub fn titled(mut self, title: &str) -> Self {
        self.title = title.into();
        self
    }

    /// As it stands beside others, in two columns where there is room.
    pub fn small(mut self) -> Self {
        self.small = true;
        self
    }

    /// Adds a line through `points` in their order; a point without a place interrupts it.
    pub fn series(self, name: &str, points: Vec<(f64, f64)>) -> Self {
        // The seventh line has the colour of the first, and another dash pattern.
        let i = self.series.len();
        self.drawn(name, points, (i, i + i / COLOURS))
    }

    /// The same in a colour and a dash pattern, by number: lines of one colour belong together.
    pub fn drawn(mut self, name: &str, points: Vec<(f64, f64)>, looks: (usize, usize)) -> Self {
        self.series.push(Series { name: name.into(), points, looks });
        self
    }

    /// Whether no line has a point.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.points.is_empty())
    }

    /// Marks a moment on the x axis ("stopped and resumed").
    pub fn mark(mut self, x: f64, text: &str) -> Self {
        self.marks.push((x, text.into()));
        self
    }

    /// The drawing.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let marks = self.marks.iter().map(|m| m.0);
        let span = self.span.iter().copied();
        let x = Scale::over(points().map(|p| p.0).chain(marks).chain(span), self.log[0]);
        let y = Scale::over(points().map(|p| p.1), self.log[1]).with_air(0.05);
        let legend = self.legend();
        let (width, height) = if self.small { SMALL } else { SIZE };
        let more = LINE * legend.last().map_or(0.0, |l| l.1);
        let frame = Frame { width, height: height + more, top: TOP + more };
        let height = frame.height;
        let mut out = format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{}\">",
            escape(&self.description())
        );
        let _ =
            write!(out, "<text class=\"title\" x=\"16\" y=\"24\">{}</text>", escape(&self.title));
        self.draw_axes(&mut out, frame, &x, &y);
        self.draw_marks(&mut out, frame, &x);
        for series in &self.series {
            let path = path(&thinned(&series.points), frame, &x, &y);
            let _ = write!(out, "<path class=\"series\" {} d=\"{path}\"/>", stroke(series.looks));
        }
        for (series, (at, line)) in self.series.iter().zip(legend) {
            let _ = write!(
                out,
                "<path class=\"series\" {} d=\"M{at:.1} {:.1}H{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                stroke(series.looks),
                42.0 + LINE * line,
                at + 24.0,
                at + 30.0,
                46.0 + LINE * line,
                escape(&series.name)
            );
        }
        out.push_str("</svg>");
        out
    }

    /// Where each name of the legend begins, and on which line, from 0, under the title; widths are
    /// estimated, there being no font to ask.
    fn legend(&self) -> Vec<(f64, f64)> {
        let width = if self.small { SMALL.0 } else { SIZE.0 };
        let (mut at, mut line) = (16.0, 0.0);
        let mut places = Vec::with_capacity(self.series.len());
        for series in &self.series {
            let long = 30.0 + 6.8 * series.name.chars().count() as f64;
            if at > 16.0 && at + long > width - RIGHT {
                (at, line) = (16.0, line + 1.0);
            }
            places.push((at, line));
            at += long + 16.0;
        }
        places
    }

    /// What the chart shows, for those who cannot see it: each line's ends and extremes.
    fn description(&self) -> String {
        let mut text = format!("Line chart: {}. {} against {}.", self.title, self.y, self.x);
        for Series { name, points, .. } in &self.series {
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

    fn draw_axes(&self, out: &mut String, frame: Frame, x: &Scale, y: &Scale) {
        let (right, bottom) = (frame.width - RIGHT, frame.height - BOTTOM);
        for t in y.ticks(if self.small { 5 } else { 6 }) {
            let at = frame.down(y.place(t));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(t)
            );
        }
        for t in x.ticks(if self.small { 5 } else { 8 }) {
            let at = frame.across(x.place(t));
            let _ = write!(
                out,
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                label(t)
            );
        }
        let middle = (frame.top + bottom) / 2.0;
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {middle:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            frame.height - 10.0,
            escape(&self.x),
            escape(&self.y)
        );
    }

    fn draw_marks(&self, out: &mut String, frame: Frame, x: &Scale) {
        for (value, text) in self.marks.iter().filter(|m| x.shows(m.0)) {
            let place = x.place(*value);
            let at = frame.across(place);
            // The words stand on the side that has room.
            let (shift, anchor) = if place < 0.6 { (6.0, "start") } else { (-6.0, "end") };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                frame.top,
                frame.height - BOTTOM,
                at + shift,
                frame.top + 12.0,
                escape(text)
            );
        }
    }
}

fn stroke((colour, dash): (usize, usize)) -> String {
    let dash = DASHES[dash % DASHES.len()];
    let dash = if dash.is_empty() { dash.into() } else { format!(";stroke-dasharray:{dash}") };
    format!("style=\"stroke:var(--s{}){dash}\"", colour % COLOURS)
}

fn short(v: f64) -> String {
    let digits = (2 - v.abs().max(1e-12).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{v:.digits$}")
}

fn path(points: &[(f64, f64)], frame: Frame, x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    let mut pen = 'M';
    let mut run = 0;
    for &(px, py) in points {
        if !(x.shows(px) && y.shows(py)) {
            pen = 'M';
            continue;
        }
        run = if pen == 'M' { 0 } else { run + 1 };
        let _ = write!(out, "{pen}{:.1} {:.1}", frame.across(x.place(px)), frame.down(y.place(py)));
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
        assert!(svg.contains(&format!("L{:.1} ", SIZE.0 - RIGHT)));
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
    fn a_long_legend_is_broken_and_no_two_lines_look_alike() {
        let mut chart = Chart::new("t", "x", "y").small();
        for i in 0..14 {
            chart = chart.series(&format!("runs/some-long-name · val_own_{i}"), vec![(0.0, 1.0)]);
        }
        let legend = chart.legend();
        assert!(legend.iter().all(|(at, _)| *at < 400.0) && legend[13].1 >= 6.0, "{legend:?}");
        assert!(chart.svg().contains("height=\"544\""), "{}", &chart.svg()[..200]);
        let looks: std::collections::BTreeSet<String> =
            chart.series.iter().map(|s| stroke(s.looks)).collect();
        assert_eq!(looks.len(), 14);
    }

    #[test]
    fn an_empty_chart_is_still_a_chart() {
        let svg = Chart::new("t", "x", "y").series("none", vec![]).svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"));
    }
}
