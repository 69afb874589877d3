//! `genevar log tensorboard`: the numbers of a log as the event files that TensorBoard reads.
//!
//! An event file is a row of records, each with its length and two checksums; a record is an Event
//! of tensorflow/core/util/event.proto, of which four fields are written here: wall time, step, the
//! file's version, and a summary of named numbers.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use clap::{Args, Subcommand};

use super::{Run, StageRun};
use crate::error::Result;
use crate::io::atomic;
use crate::train::clock::pace;
use crate::train::log::StepLog;

/// What is made of logs.
#[derive(Subcommand)]
pub enum LogCommand {
    /// Writes event files for TensorBoard, one a stage.
    Tensorboard(TensorboardArgs),
}

/// Arguments of `genevar log tensorboard`.
#[derive(Args)]
pub struct TensorboardArgs {
    /// Folders of `genevar train --out`, finished or not; or of single stages.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder for `tensorboard --logdir`: has a folder RUN/STAGE for each stage. Written again, the
    /// files hold what the logs hold by then.
    #[arg(long)]
    out: PathBuf,
}

/// The name of a stage's file; TensorBoard looks for the word in the middle.
const FILE: &str = "events.out.tfevents.0000000000.genevar";

/// Runs the command; returns what is to be printed.
///
/// # Errors
/// A folder without a run, an output that cannot be written.
pub fn run(command: &LogCommand) -> Result<String> {
    let LogCommand::Tensorboard(args) = command;
    let runs = args.runs.iter().map(|p| Run::read(p)).collect::<Result<Vec<_>>>()?;
    let mut out = String::new();
    for run in &runs {
        run.said.iter().for_each(|said| eprintln!("{}: {said}", run.name));
        for stage in run.stages.iter().filter(|s| !s.log.is_empty()) {
            let last = run.path.file_name().unwrap_or_default();
            let folder = args.out.join(last).join(&stage.name);
            atomic::create_folder(&folder)?;
            let path = folder.join(FILE);
            atomic::write(&path, &events(stage))?;
            out += &format!("{} ({} steps)\n", path.display(), stage.log.len());
        }
    }
    Ok(out)
}

/// The event file of a stage.
fn events(stage: &StageRun) -> Vec<u8> {
    let end = modified(&stage.folder.join("log.jsonl"));
    let each = pace(&stage.marks).map_or(0.0, |p| p.seconds / p.steps.max(1) as f64);
    let last = stage.log.last().map_or(0, |(step, _)| *step);
    let mut first = vec![];
    double(&mut first, 1, end - each * (last as f64 + 1.0));
    bytes(&mut first, 3, b"brain.Event:2");
    let mut out = record(&first);
    for (step, entry) in &stage.log {
        // The log knows no clock: its file's time, less what the clock says that steps take.
        let time = end - each * (last - (*step).min(last)) as f64;
        out.extend(record(&event(time, *step, entry)));
    }
    out
}

fn modified(path: &Path) -> f64 {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = time.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |d| d.as_secs_f64())
}

/// One step: all its numbers.
fn event(time: f64, step: u64, entry: &StepLog) -> Vec<u8> {
    let head = [("loss", entry.loss), ("lr", entry.lr)];
    let more = entry.more.iter().map(|(name, value)| (name.as_str(), *value));
    let mut summary = Vec::new();
    for (name, number) in head.into_iter().chain(more) {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag(name).as_bytes());
        key(&mut value, 2, 5);
        value.extend((number as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    double(&mut event, 1, time);
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    event
}

/// A number's name where numbers of scales share a group: `perplexity/3`.
fn tag(name: &str) -> String {
    match name.rsplit_once('_') {
        Some((start, k)) if k.parse::<u32>().is_ok() => format!("{start}/{k}"),
        _ => name.to_string(),
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field's number and how it is written: 0 a varint, 1 eight bytes, 2 counted bytes, 5 four.
fn key(out: &mut Vec<u8>, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// A record: length, its checksum, data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let [a, b] = [&length[..], data].map(|part| masked(crc32c(part)).to_le_bytes());
    [&length[..], &a, data, &b].concat()
}

/// A checksum as it is stored: of data that hold their own checksum, that of the whole would be
/// weak.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The checksum with Castagnoli's polynomial, bits from the lowest.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(!0, |sum, &byte| sum >> 8 ^ TABLE[usize::from(sum as u8 ^ byte)])
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut sum = i as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
            bit += 1;
        }
        table[i] = sum;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, appendix B.4");
        assert_eq!(masked(0), 0xa282_ead8);
    }

    #[test]
    fn numbers_of_scales_share_a_group() {
        let tags = ["perplexity_10", "val_own_3", "val_own", "l2", "grad_norm"].map(tag);
        assert_eq!(tags, ["perplexity/10", "val_own/3", "val_own", "l2", "grad_norm"]);
    }

    #[test]
    fn varints_have_seven_bits_a_byte() {
        for (value, want) in [(0, vec![0]), (127, vec![127]), (300, vec![0xac, 0x02])] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, want);
        }
    }
}
