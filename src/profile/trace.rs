//! A repeat as a trace in the trace-event format of Chrome, which Perfetto reads: open the file at
//! ui.perfetto.dev or chrome://tracing.
//!
//! A process a clock: the CPU, the GPU, and the model that times are predicted for. Each has lanes
//! for scales, parts, and ops or kernels; every event is complete (`X`), with its time and length
//! in microseconds.

use std::path::Path;

use serde_json::{Value, json};

use super::format::{Clock, Profile};
use super::record::{Call, Recording};
use crate::error::{Error, Result};
use crate::io::atomic;

/// Lanes of a process.
const SCALES: u32 = 1;
const PARTS: u32 = 2;
const CALLS: u32 = 3;

/// Writes the trace, whole or not at all.
///
/// # Errors
/// Those of the system.
pub fn write(path: &Path, profile: &Profile, recording: &Recording) -> Result<()> {
    let trace = of(profile, recording);
    let text = serde_json::to_string(&trace);
    let text = text.map_err(|e| Error::Internal(format!("a trace as JSON: {e}")))?;
    atomic::write(path, text.as_bytes())
}

/// The trace as JSON.
pub fn of(profile: &Profile, recording: &Recording) -> Value {
    let mut events = Vec::new();
    if !recording.host.is_empty() {
        let calls = if profile.clock == Clock::Cpu { "ops" } else { "ops, until they are queued" };
        process(&mut events, 1, "CPU", calls);
        lanes(&mut events, 1, &recording.host, |call| (call.began, call.seconds));
    }
    if profile.clock.is_real() || profile.clock == Clock::Software {
        let name = match profile.clock {
            Clock::Software => format!("{} (the host's time, not a GPU's)", profile.device),
            _ => format!("GPU: {}", profile.device),
        };
        if !recording.device.is_empty() {
            process(&mut events, 2, &name, "kernels");
            lanes(&mut events, 2, &recording.device, |call| (call.began, call.seconds));
        }
    }
    if !profile.clock.is_real() {
        process(&mut events, 3, &format!("predicted for {}", profile.model.name), "kernels");
        let mut at = 0.0;
        lanes(&mut events, 3, &recording.device, |call| {
            let (began, seconds) = (at, call.expected(&profile.model));
            at += seconds;
            (began, seconds)
        });
    }
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {
            "work": profile.work, "shapes": profile.shapes, "device": profile.device,
            "precision": profile.precision, "model": profile.model.source,
        },
    })
}

/// Names a process and its lanes.
fn process(events: &mut Vec<Value>, pid: u32, name: &str, calls: &str) {
    let meta = |what: &str, tid: u32, args: Value| {
        let name = what;
        json!({ "ph": "M", "ts": 0.0, "pid": pid, "tid": tid, "name": name, "args": args })
    };
    events.push(meta("process_name", 0, json!({ "name": name })));
    events.push(meta("process_sort_index", 0, json!({ "sort_index": pid })));
    for (tid, lane) in [(SCALES, "scales"), (PARTS, "parts"), (CALLS, calls)] {
        events.push(meta("thread_name", tid, json!({ "name": lane })));
        events.push(meta("thread_sort_index", tid, json!({ "sort_index": tid })));
    }
}

/// The calls, and the stretches of one scale and of one part that they make.
fn lanes(
    events: &mut Vec<Value>,
    pid: u32,
    calls: &[Call],
    mut when: impl FnMut(&Call) -> (f64, f64),
) {
    let mut scale: Option<(String, f64, f64)> = None;
    let mut part: Option<(String, f64, f64)> = None;
    for call in calls {
        let (began, seconds) = when(call);
        let end = began + seconds;
        let place = call.place;
        let in_scale = place.scale.map_or(String::new(), |k| format!("scale {k}"));
        let in_part = match (place.part, &in_scale) {
            ("", _) => String::new(),
            (name, scale) => format!("{name}\u{0}{scale}"),
        };
        extend(events, (pid, SCALES), &mut scale, in_scale, (began, end));
        extend(events, (pid, PARTS), &mut part, in_part, (began, end));
        let args = json!({
            "scale": place.scale, "part": place.part, "op": place.op,
            "bytes": call.work.bytes, "flops": call.work.scalar + call.work.tensor,
        });
        let mut event = complete((pid, CALLS), &call.name(), (began, end));
        event["args"] = args;
        events.push(event);
    }
    close(events, (pid, SCALES), scale);
    close(events, (pid, PARTS), part);
}

/// Makes the open stretch longer, or ends it and begins another.
fn extend(
    events: &mut Vec<Value>,
    lane: (u32, u32),
    open: &mut Option<(String, f64, f64)>,
    name: String,
    (began, end): (f64, f64),
) {
    match open {
        Some((own, _, to)) if *own == name => *to = end,
        _ => {
            close(events, lane, open.take());
            *open = Some((name, began, end));
        }
    }
}

fn close(events: &mut Vec<Value>, lane: (u32, u32), open: Option<(String, f64, f64)>) {
    if let Some((name, began, end)) = open.filter(|(name, ..)| !name.is_empty()) {
        // What sets stretches of one part in two scales apart is not shown.
        let shown = name.split('\u{0}').next().unwrap_or_default();
        events.push(complete(lane, shown, (began, end)));
    }
}

fn complete((pid, tid): (u32, u32), name: &str, (began, end): (f64, f64)) -> Value {
    let micro = |seconds: f64| (seconds * 1e9).round() / 1e3;
    json!({
        "ph": "X", "ts": micro(began), "dur": micro((end - began).max(0.0)),
        "pid": pid, "tid": tid, "name": name, "cat": "genevar",
    })
}
