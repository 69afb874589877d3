//! A profile as tables for a terminal: what it is of, then by scale, by part and by kernel.

use super::format::{Clock, Profile, Row, quantile};
use super::model::Side;
use super::table::{Cell, Paint, Table, bytes, count, painted, percent, seconds, wrapped};

/// The tables; at most `top` kernels, the rest as one row.
pub fn page(profile: &Profile, top: usize, colours: bool) -> String {
    let shown = Shown { profile, colours };
    let mut page = shown.heading();
    page += &shown.section("by scale", shown.by_scale());
    page += &shown.section("time by part and scale", shown.grid());
    let what = if profile.clock == Clock::Cpu { "by op" } else { "by kernel" };
    page += &shown.section(what, shown.by_kernel(top));
    page
}

struct Shown<'a> {
    profile: &'a Profile,
    colours: bool,
}

impl Shown<'_> {
    fn section(&self, title: &str, table: Table) -> String {
        let title = match self.profile.clock.is_real() {
            true => title.to_string(),
            false => format!("{title}, times predicted for {}", self.profile.model.name),
        };
        format!("\n{}\n{}", painted(&title, Paint::Bold, self.colours), table.render(self.colours))
    }

    fn heading(&self) -> String {
        let p = self.profile;
        let many = if p.batch == 1 { "" } else { "s" };
        let what = if p.work == "sample" { "tile" } else { "row" };
        let mut head = wrapped(&format!(
            "{}, {}, {} {what}{many}, {}, on {}",
            p.work, p.shapes, p.batch, p.precision, p.device
        ));
        let total = p.total();
        let (m, predicted) = (&p.model, seconds(total.predicted.unwrap_or(0.0)));
        head += &match p.clock {
            Clock::Cpu | Clock::Gpu => self.measured(&total),
            Clock::Software => wrapped(&format!(
                "a driver in software: counts are exact, its own times ({}) say nothing of a GPU; \
                 predicted for {}: {predicted}, {} launches",
                seconds(quantile(&p.seconds, 0.5)),
                m.name,
                total.calls
            )),
            Clock::Plan => wrapped(&format!(
                "a plan: launches are exact, bytes and operations are the floors of the kernels' \
                 cards, nothing ran; predicted for {}: {predicted}, {} launches",
                m.name, total.calls
            )),
        };
        let cache = match m.cache > 0.0 {
            true => format!(" ({}/s in the cache)", bytes(m.cache)),
            false => String::new(),
        };
        let matrix = match m.tensor == m.scalar {
            true => String::new(),
            false => format!(" ({}FLOP/s in matrix units)", count(m.tensor)),
        };
        head + &wrapped(&format!(
            "ceilings of {}: {}/s{cache}, {}FLOP/s{matrix}, {} a launch; {}",
            m.name,
            bytes(m.memory),
            count(m.scalar),
            seconds(m.launch),
            m.source
        ))
    }

    fn measured(&self, total: &Row) -> String {
        let p = self.profile;
        let (time, p90) = (quantile(&p.seconds, 0.5), quantile(&p.seconds, 0.9));
        let mut text = wrapped(&format!(
            "{} (p90 {}, {} repeats); {} calls, {} of the time in them; floor {}, {} of the time",
            seconds(time),
            seconds(p90),
            p.seconds.len(),
            total.calls,
            percent(total.time() / time),
            seconds(total.floor),
            percent(total.floor / time)
        ));
        if !p.replay_seconds.is_empty() {
            let replay = quantile(&p.replay_seconds, 0.5);
            text += &format!(
                "as one graph {} (p90 {}): {} of that is floor\n",
                seconds(replay),
                seconds(quantile(&p.replay_seconds, 0.9)),
                percent(total.floor / replay)
            );
        }
        if p.uploads + p.fetches > 0 {
            text += &format!("{} copies to the device, {} from it\n", p.uploads, p.fetches);
        }
        text
    }

    /// What a row is sorted and shared by.
    fn weight(&self, row: &Row) -> f64 {
        match self.profile.clock.is_real() {
            true => row.time(),
            false => row.predicted.unwrap_or(0.0),
        }
    }

    fn heads(&self, first: &'static str) -> Vec<&'static str> {
        let rest: &[&str] = match self.profile.clock {
            Clock::Cpu | Clock::Gpu => &[
                "calls", "time", "p90", "share", "bytes", "FLOP", "floor", "of time", "binds",
                "gaps",
            ],
            Clock::Software => &[
                "calls",
                "time",
                "share",
                "touched",
                "/ floor",
                "asked",
                "FLOP",
                "matrix",
                "conflicts",
                "floor",
                "binds",
            ],
            Clock::Plan => &["calls", "time", "share", "bytes", "FLOP", "floor", "binds"],
        };
        std::iter::once(first).chain(rest.iter().copied()).collect()
    }

    fn line(&self, name: Cell, row: &Row, all: f64) -> Vec<Cell> {
        let weight = self.weight(row);
        let (calls, share) = (count(row.calls as f64), percent(weight / all));
        let mut cells = vec![name, calls.into(), seconds(weight).into()];
        match self.profile.clock {
            Clock::Cpu | Clock::Gpu => {
                cells.push(Cell::new(seconds(quantile(&row.seconds, 0.9)), Paint::Dim));
                cells.push(share.into());
                cells.push(bytes(row.bytes as f64).into());
                cells.push(count(row.flops as f64).into());
                cells.push(seconds(row.floor).into());
                cells.push(reached(row.floor / weight));
            }
            Clock::Software => {
                let c = row.counts.unwrap_or_default();
                cells.push(share.into());
                cells.push(bytes(c.touched() as f64).into());
                cells.push(ratio(c.touched() as f64, row.bytes as f64));
                cells.push(bytes(c.asked() as f64).into());
                cells.push(count((c.scalar_flops + c.tensor_flops) as f64).into());
                cells.push(count(c.tensor_flops as f64).into());
                cells.push(conflicts(c.shared_bank_conflicts));
                cells.push(seconds(row.floor).into());
            }
            Clock::Plan => {
                cells.push(share.into());
                cells.push(bytes(row.bytes as f64).into());
                cells.push(count(row.flops as f64).into());
                cells.push(seconds(row.floor).into());
            }
        }
        cells.push(side(row.binds()));
        if self.profile.clock.is_real() {
            cells.push(Cell::new(seconds(quantile(&row.gaps, 0.5)), Paint::Dim));
        }
        cells
    }

    fn sum(&self, table: &mut Table) {
        let total = self.profile.total();
        let all = self.weight(&total);
        table.push(self.line(Cell::new("all", Paint::Bold), &total, all));
    }

    fn by_scale(&self) -> Table {
        let mut table = Table::new(self.heads("scale"));
        let all = self.weight(&self.profile.total());
        for (scale, row) in self.profile.by(|row| row.scale) {
            let name = scale.map_or("outside".to_string(), |k| k.to_string());
            table.push(self.line(name.into(), &row, all));
        }
        self.sum(&mut table);
        table
    }

    /// A row a part, a column a scale.
    fn grid(&self) -> Table {
        let p = self.profile;
        let scales = p.by(|row| row.scale);
        let mut heads = vec!["part"];
        heads.extend(scales.iter().map(|(scale, _)| column(*scale)));
        heads.push("all");
        let mut table = Table::new(heads);
        for (part, sum) in p.by(|row| row.part.clone()) {
            let name = if part.is_empty() { "elsewhere".to_string() } else { part.clone() };
            let mut cells = vec![Cell::from(name)];
            for (scale, _) in &scales {
                let own = p.sum(|row| row.scale == *scale && row.part == part);
                cells.push(match own.calls {
                    0 => Cell::new("-", Paint::Dim),
                    _ => seconds(self.weight(&own)).into(),
                });
            }
            cells.push(Cell::new(seconds(self.weight(&sum)), Paint::Bold));
            table.push(cells);
        }
        table
    }

    fn by_kernel(&self, top: usize) -> Table {
        let p = self.profile;
        let what = if p.clock == Clock::Cpu { "op" } else { "kernel" };
        let mut table = Table::new(self.heads(what));
        let all = self.weight(&p.total());
        let mut rows = p.by(|row| row.name().to_string());
        rows.sort_by(|(_, a), (_, b)| self.weight(b).total_cmp(&self.weight(a)));
        let mut rest = Row::default();
        for (i, (name, row)) in rows.iter().enumerate() {
            match i < top {
                true => table.push(self.line(name.as_str().into(), row, all)),
                false => rest.add(row),
            }
        }
        if rows.len() > top {
            let name = format!("{} more (--top)", rows.len() - top);
            table.push(self.line(Cell::new(name, Paint::Dim), &rest, all));
        }
        self.sum(&mut table);
        table
    }
}

/// The heading of a scale's column.
fn column(scale: Option<usize>) -> &'static str {
    const NAMES: [&str; 16] =
        ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
    scale.map_or("outside", |k| NAMES.get(k.wrapping_sub(1)).copied().unwrap_or("later"))
}

fn reached(share: f64) -> Cell {
    let paint = match share {
        s if s >= 0.7 => Paint::Green,
        s if s < 0.1 => Paint::Red,
        _ => Paint::Plain,
    };
    Cell::new(percent(share), paint)
}

fn ratio(value: f64, over: f64) -> Cell {
    match over > 0.0 {
        true => format!("{:.2}", value / over).into(),
        false => "-".into(),
    }
}

fn conflicts(n: u64) -> Cell {
    Cell::new(count(n as f64), if n > 0 { Paint::Red } else { Paint::Dim })
}

fn side(side: Side) -> Cell {
    let paint = match side {
        Side::Memory => Paint::Blue,
        Side::Compute => Paint::Yellow,
        Side::Launch => Paint::Magenta,
    };
    Cell::new(side.name(), paint)
}
