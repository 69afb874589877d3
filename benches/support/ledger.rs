//! Writes a run of a bench to benches/LEDGER.md: a dated section with commit, machine and command.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether the person asked for an entry.
pub fn wanted() -> bool {
    std::env::var("GENEVAR_LEDGER").is_ok_and(|v| v == "1")
}

/// Appends a section: `title`, the machine, then `table` (Markdown).
pub fn append(title: &str, command: &str, table: &str) -> std::io::Result<()> {
    let path = root().join("benches/LEDGER.md");
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let section = format!(
        "\n## {year}-{month:02}-{day:02} {title}\n\n\
         Commit {}; {}, {} threads; `{command}`.\n\n{table}",
        commit(),
        processor(),
        rayon::current_num_threads(),
    );
    OpenOptions::new().append(true).create(true).open(path)?.write_all(section.as_bytes())
}

/// The repository: where the ledger is, here or above this crate.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|dir| dir.join("benches/LEDGER.md").is_file()).unwrap_or(here)
}

/// Year, month and day of a number of days after 1970-01-01 (Gregorian, years counted from March).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// The commit, with a mark if the sources differ from it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).current_dir(root()).output();
        out.ok().and_then(|o| String::from_utf8(o.stdout).ok()).map(|s| s.trim().to_string())
    };
    let name = git(&["rev-parse", "--short", "HEAD"]).filter(|s| !s.is_empty());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|s| !s.is_empty()) { " (changed)" } else { "" };
    format!("{}{mark}", name.unwrap_or_else(|| "unknown".into()))
}

/// What the processor calls itself.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|l| l.strip_prefix("model name")?.split(':').nth(1));
    model.map_or_else(|| std::env::consts::ARCH.to_string(), |m| m.trim().to_string())
}
