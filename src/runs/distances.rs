//! What `genevar eval fd --json` wrote, taken up again: tables of distances and answers of probes.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::eval::bootstrap::Interval;
use crate::eval::metrics::ProbeReport;
use crate::eval::table::{Row, Table};

/// One table of distances, and what a probe found beside it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Where it was read.
    pub from: String,
    /// Level and repetitions of the intervals are known where the file has them.
    pub table: Table,
    /// The probe's answers.
    pub probe: Option<ProbeReport>,
}

/// Reads a file; `None` where it is JSON of another kind.
///
/// # Errors
/// A file that cannot be read or is no JSON.
pub fn read(path: &Path) -> Result<Option<Vec<Judged>>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| {
        Error::file(path, format!("is no JSON: {e}"), "give what `genevar eval fd --json` wrote")
    })?;
    let from = path.display().to_string();
    if let Ok(table) = serde_json::from_value::<Table>(value.clone()) {
        return Ok(Some(vec![Judged { from, table, probe: None }]));
    }
    let Value::Object(map) = value else { return Ok(None) };
    let parts = ["", "_unseen"].iter().filter_map(|end| part(&map, end, &from));
    let parts: Vec<Judged> = parts.collect();
    Ok((!parts.is_empty()).then_some(parts))
}

/// One split of `metrics.json`, whose keys end in `end`.
fn part(map: &Map<String, Value>, end: &str, from: &str) -> Option<Judged> {
    let get = |key: &str| map.get(&format!("{key}{end}"));
    let text = |key: &str| get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let mut rows = Vec::new();
    for (key, interval) in get("fd_intervals")?.as_object()? {
        let interval: Interval = serde_json::from_value(interval.clone()).ok()?;
        let (key, fd) = (key.clone(), get(key)?.as_f64()?);
        rows.push(Row { set: key.clone(), key, fd, interval });
    }
    let table = Table {
        distance: text("fd_name"),
        reference: format!("{}, {}", text("split"), text("fd_reference")),
        n: get("n")?.as_u64()? as usize,
        level: 0.0,
        reps: 0,
        rows,
    };
    let probe = get("probe").and_then(|p| serde_json::from_value(p.clone()).ok());
    Some(Judged { from: from.to_string(), table, probe })
}

/// What lies in a run's folder itself.
pub fn beside(run: &Path) -> Vec<Judged> {
    let Ok(entries) = std::fs::read_dir(run) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
    paths.sort();
    // Other JSON may lie there too.
    paths.iter().filter_map(|p| read(p).ok().flatten()).flatten().collect()
}
