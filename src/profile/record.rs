//! From what was heard to the rows of a profile.

use std::collections::HashMap;
use std::time::Instant;

use super::cards::{Cards, work};
use super::format::{Row, quantile};
use super::model::{Model, Side, Work};
use crate::device::cuda::{Clock, Clocked, Counts, Launch};
use crate::device::kernel::Entry;
use crate::device::span::Place;
use crate::error::Result;
use crate::ops::Timed;

/// One call of a kernel or an op.
pub struct Call {
    /// Where the thread was.
    pub place: Place,
    kernel: Option<&'static Entry>,
    /// Seconds from the beginning of the repeat.
    pub began: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds since the one before.
    gap: f64,
    /// What it must move and compute.
    pub work: Work,
    counts: Option<Counts>,
}

/// One repeat as it was.
#[derive(Default)]
pub struct Recording {
    /// Ops on the CPU; on a GPU, until they were queued.
    pub host: Vec<Call>,
    /// Launches.
    pub device: Vec<Call>,
}

impl Recording {
    /// What a profile is of.
    pub fn calls(&self) -> &[Call] {
        if self.device.is_empty() { &self.host } else { &self.device }
    }
}

impl Call {
    /// The kernel with what its template is filled with, or the op.
    pub fn name(&self) -> String {
        match self.kernel {
            None => self.place.op.to_string(),
            Some(entry) if entry.instance.is_empty() => entry.name.to_string(),
            Some(entry) => format!("{}<{}>", entry.name, entry.instance),
        }
    }

    /// What it did, as counted, else what it must.
    fn did(&self) -> Work {
        self.counts.map_or(self.work, |counts| Work {
            bytes: counts.touched() as f64,
            scalar: counts.scalar_flops as f64,
            tensor: counts.tensor_flops as f64,
            beside: self.work.beside,
        })
    }

    /// Seconds that it takes on a device with these ceilings.
    pub fn expected(&self, model: &Model) -> f64 {
        model.binds(&self.did()).1
    }
}

/// The ops that the CPU ran.
///
/// # Errors
/// None that a person could cause.
pub fn ops(ran: &[Timed], start: Instant) -> Result<Vec<Call>> {
    let cards = Cards::new()?;
    let mut calls = host(ran, start);
    for (call, t) in calls.iter_mut().zip(ran) {
        let floor = cards.of(t);
        let (bytes, scalar) = (floor.bytes as f64, floor.flops as f64);
        call.work = Work { bytes, scalar, ..Work::default() };
    }
    Ok(calls)
}

/// The ops that a thread ran, without what they must do.
pub fn host(ran: &[Timed], start: Instant) -> Vec<Call> {
    let mut before = None;
    let one = |t: &Timed| {
        let gap = before.map_or(0.0, |end| t.began.saturating_duration_since(end).as_secs_f64());
        before = Some(t.began + t.took);
        Call {
            place: t.place,
            kernel: None,
            began: t.began.saturating_duration_since(start).as_secs_f64(),
            seconds: t.took.as_secs_f64(),
            gap,
            work: Work::default(),
            counts: None,
        }
    };
    ran.iter().map(one).collect()
}

/// The launches that a GPU ran.
pub fn launches(clock: &Clock, start: Instant) -> Vec<Call> {
    let offset = clock.began.saturating_duration_since(start);
    let mut before = None;
    let one = |c: &Clocked| {
        let gap = before.map_or(0.0, |end| c.began.saturating_sub(end).as_secs_f64());
        before = Some(c.began + c.took);
        let (began, seconds) = ((offset + c.began).as_secs_f64(), c.took.as_secs_f64());
        Call { began, seconds, gap, counts: c.counts, ..planned(&c.launch) }
    };
    clock.launches.iter().map(one).collect()
}

/// A launch that was made and did not run.
pub fn planned(launch: &Launch) -> Call {
    let (place, kernel) = (launch.place, Some(launch.entry));
    Call { place, kernel, began: 0.0, seconds: 0.0, gap: 0.0, work: work(launch), counts: None }
}

/// Rows of all repeats, in the order in which their kernels first ran.
pub struct Rows<'a> {
    model: &'a Model,
    /// Whether seconds are to be predicted.
    predicts: bool,
    places: HashMap<(Place, Option<[&'static str; 2]>), usize>,
    rows: Vec<(Row, Vec<f64>)>,
    repeats: usize,
}

impl<'a> Rows<'a> {
    /// None yet.
    pub fn new(model: &'a Model, predicts: bool) -> Self {
        Self { model, predicts, places: HashMap::new(), rows: Vec::new(), repeats: 0 }
    }

    /// Adds a repeat. Its calls are those of the one before; counts and work are taken once.
    pub fn add(&mut self, calls: &[Call]) {
        let first = self.repeats == 0;
        self.repeats += 1;
        for call in calls {
            let key = (call.place, call.kernel.map(|entry| [entry.name, entry.instance]));
            let next = self.rows.len();
            let at = *self.places.entry(key).or_insert(next);
            if at == next {
                self.rows.push((named(call), Vec::new()));
            }
            let Some((row, each)) = self.rows.get_mut(at) else { continue };
            row.seconds.resize(self.repeats, 0.0);
            row.gaps.resize(self.repeats, 0.0);
            if let (Some(seconds), Some(gap)) = (row.seconds.last_mut(), row.gaps.last_mut()) {
                *seconds += call.seconds;
                *gap += call.gap;
            }
            each.push(call.seconds);
            if first {
                weigh(row, call, self.model, self.predicts);
            }
        }
    }

    /// The rows.
    pub fn finish(self) -> Vec<Row> {
        let repeats = self.repeats;
        let done = |(mut row, each): (Row, Vec<f64>)| {
            row.seconds.resize(repeats, 0.0);
            row.gaps.resize(repeats, 0.0);
            row.call_seconds = [quantile(&each, 0.5), quantile(&each, 0.9)];
            row
        };
        self.rows.into_iter().map(done).collect()
    }
}

fn named(call: &Call) -> Row {
    let Place { scale, part, op } = call.place;
    let kernel = call.kernel.map(|_| call.name());
    Row { scale, part: part.into(), op: op.into(), kernel, ..Row::default() }
}

/// Adds a call's work to its row.
fn weigh(row: &mut Row, call: &Call, model: &Model, predicts: bool) {
    row.calls += 1;
    row.bytes += call.work.bytes as u64;
    row.flops += (call.work.scalar + call.work.tensor) as u64;
    row.floor += model.floor(&call.work);
    let (side, seconds) = model.binds(&call.did());
    let at = Side::ALL.iter().position(|s| *s == side).unwrap_or(0);
    row.bound[at] += seconds;
    if predicts {
        *row.predicted.get_or_insert_default() += seconds;
    }
    if let Some(counts) = &call.counts {
        row.counts.get_or_insert_default().add(counts);
    }
}
