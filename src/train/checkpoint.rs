//! Checkpoints: folders that are there whole or not at all.
//!
//! A run's folder holds `step-00000500/` with `state.safetensors` and `meta.json`, `LATEST` with
//! the name of the newest and, where one is sought, `BEST` with that of the best. A checkpoint is
//! written under a `.partial` name, flushed, renamed, and only then `LATEST` moves, itself by
//! rename: a process killed at any instant leaves a whole checkpoint to go on from, and rubbish
//! that the next one sweeps away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::safetensors::{Store, TensorFile, Writer};
use crate::tensor::Tensor;

const STATE: &str = "state.safetensors";
const META: &str = "meta.json";
const LATEST: &str = "LATEST";
const BEST: &str = "BEST";
const PARTIAL: &str = ".partial";

/// The version of the layout; a reader refuses another.
const FORMAT: u32 = 1;

/// What a checkpoint says beside its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the layout.
    pub format: u32,
    /// The stage's name, as in the configuration: `beta_vae`, `msvq`, `meanflow`, `ar`.
    pub stage: String,
    /// Steps finished, which is the next step's number.
    pub step: u64,
    /// The whole configuration as TOML.
    pub config: String,
    /// What else the stage wants back: gene names, channel statistics' provenance, data set.
    pub notes: Map<String, Value>,
    /// What its last step logged.
    #[serde(default)]
    pub numbers: BTreeMap<String, f64>,
    /// The program that wrote it.
    #[serde(default)]
    pub program: String,
}

impl Meta {
    /// The record of `stage` after `step` steps under `config`, without notes.
    pub fn new(stage: &str, step: u64, config: impl Into<String>) -> Self {
        let (stage, config) = (stage.to_string(), config.into());
        let (notes, numbers) = (Map::new(), BTreeMap::new());
        Self { format: FORMAT, stage, step, config, notes, numbers, program: program() }
    }

    /// The number by which checkpoints are compared, the lower the better: `by` names it, a minus
    /// before the name turns it round.
    fn rank(&self, by: &str) -> Option<f64> {
        match by.strip_prefix('-') {
            Some(name) => self.numbers.get(name).map(|x| -x),
            None => self.numbers.get(by).copied(),
        }
    }
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder it was read from.
    pub path: PathBuf,
    /// Its record.
    pub meta: Meta,
    /// Everything a step reads: weights, moments, running means, statistics.
    pub tensors: BTreeMap<String, Tensor>,
}

/// This program's version, and the commit where it is known.
fn program() -> String {
    let commit = option_env!("GENEVAR_COMMIT").map_or(String::new(), |commit| format!("-{commit}"));
    format!("genevar {}{commit}", env!("CARGO_PKG_VERSION"))
}

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug)]
pub struct Keep<'a> {
    /// So many of the newest.
    pub newest: usize,
    /// The best by this number of [`Meta::numbers`], the lowest, or with a minus before its name
    /// the highest; empty for none.
    pub best: &'a str,
}

/// Writes a checkpoint into the run folder `dir`, moves `LATEST` to it, and `BEST` if it is the
/// best, and removes those that need not stay. Returns the checkpoint's folder.
///
/// # Errors
/// Whatever the system refuses, a full disk for one; the checkpoints of before are untouched. A
/// number to compare by that no step logs; the checkpoint is there then.
pub fn save(
    dir: &Path,
    keep: Keep<'_>,
    meta: &Meta,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<PathBuf> {
    atomic::create_folder(dir)?;
    sweep(dir)?;
    let name = format!("step-{:08}", meta.step);
    let (target, partial) = (dir.join(&name), dir.join(format!("{name}{PARTIAL}")));
    let written = write_into(&partial, meta, tensors);
    if written.is_err() {
        // The first error is the one to report; the next save sweeps again.
        let _ = fs::remove_dir_all(&partial);
    }
    written?;
    discard(&target)?;
    fs::rename(&partial, &target).map_err(|e| Error::io("rename", &partial, e))?;
    atomic::write(dir.join(LATEST), format!("{name}\n").as_bytes())?;
    let best = crown(dir, keep.best, (meta, &target))?;
    let finished = finished(dir)?;
    let may_go = finished.iter().rev().filter(|p| **p != target).skip(keep.newest.max(1) - 1);
    for old in may_go.filter(|p| Some(*p) != best.as_ref()) {
        discard(old)?;
    }
    Ok(target)
}

/// Moves `BEST` to the checkpoint that was just written, if none before it was better; returns
/// where it is then.
fn crown(dir: &Path, by: &str, (meta, new): (&Meta, &Path)) -> Result<Option<PathBuf>> {
    if by.is_empty() {
        return best(dir);
    }
    let Some(rank) = meta.rank(by) else {
        let logged: Vec<&str> = meta.numbers.keys().map(String::as_str).collect();
        let what = format!("{by:?} is no number that step {} logs", meta.step);
        let fix = format!("the checkpoint is saved; name one of {}", logged.join(", "));
        return Err(Error::config(format!("train.{}.best", meta.stage), what, fix));
    };
    let before = best(dir)?.filter(|path| path != new);
    let rival = before.as_ref().map(|path| read_meta(path)).transpose()?;
    // What was ranked by another number says nothing about this one.
    if rival.and_then(|meta| meta.rank(by)).is_some_and(|other| other <= rank) {
        return Ok(before);
    }
    let name = new.file_name().unwrap_or_default().to_string_lossy();
    atomic::write(dir.join(BEST), format!("{name}\n").as_bytes())?;
    Ok(Some(new.to_path_buf()))
}

/// The best checkpoint of a run folder, where one was sought.
///
/// # Errors
/// A file that cannot be read.
pub fn best(dir: &Path) -> Result<Option<PathBuf>> {
    match fs::read_to_string(dir.join(BEST)) {
        Ok(name) => Ok(Some(dir.join(name.trim())).filter(|path| path.join(META).is_file())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", dir.join(BEST), e)),
    }
}

/// The newest whole checkpoint of a run folder, or the folder itself if it is a checkpoint.
///
/// # Errors
/// There is none: the message says where it looked.
pub fn latest(dir: &Path) -> Result<PathBuf> {
    find(dir)?.ok_or_else(|| {
        Error::file(dir, "holds no checkpoint", "give the folder of a run that saved one")
    })
}

/// As [`latest`], but a run that saved nothing is `None`.
pub fn find(dir: &Path) -> Result<Option<PathBuf>> {
    if dir.join(META).is_file() {
        return Ok(Some(dir.to_path_buf()));
    }
    if let Ok(name) = fs::read_to_string(dir.join(LATEST)) {
        let path = dir.join(name.trim());
        if path.join(META).is_file() {
            return Ok(Some(path));
        }
    }
    // LATEST is moved last, so a kill in between leaves a whole checkpoint that it does not name.
    Ok(finished(dir)?.pop())
}

/// All whole checkpoints of a run folder, oldest first, or the folder itself if it is one.
///
/// # Errors
/// A folder that cannot be listed.
pub fn all(dir: &Path) -> Result<Vec<PathBuf>> {
    match dir.join(META).is_file() {
        true => Ok(vec![dir.to_path_buf()]),
        false => finished(dir),
    }
}

/// The tensors of a checkpoint's folder.
pub fn state_file(folder: &Path) -> PathBuf {
    folder.join(STATE)
}

/// Reads a checkpoint: `path` is its folder, or the run's folder for the newest.
///
/// # Errors
/// No checkpoint, a damaged file (naming the tensor), a layout of another version.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let path = latest(path)?;
    let meta = read_meta(&path)?;
    let file = TensorFile::open(path.join(STATE))?;
    file.verify()?;
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        tensors.insert(name.to_string(), file.tensor(name)?);
    }
    Ok(Checkpoint { path, meta, tensors })
}

/// Reads only the record of a checkpoint.
pub fn read_meta(folder: &Path) -> Result<Meta> {
    let path = folder.join(META);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let broken = |e| Error::file(&path, format!("corrupt: {e}"), "use another checkpoint");
    let meta: Meta = serde_json::from_str(&text).map_err(broken)?;
    if meta.format != FORMAT {
        let what = format!("has layout {}, this program reads {FORMAT}", meta.format);
        return Err(Error::file(&path, what, "use the program that wrote it"));
    }
    Ok(meta)
}

impl Checkpoint {
    /// Fails unless the checkpoint is one of `stage` and holds exactly the tensors of `wanted`,
    /// each in its shape and type; names the first that is missing, left over or different.
    pub fn check(&self, stage: &str, wanted: &BTreeMap<String, Tensor>) -> Result<()> {
        let refuse = |what: String| {
            let fix = "it belongs to another architecture: use the configuration it records";
            Err(Error::file(&self.path, what, fix))
        };
        if self.meta.stage != stage {
            let what = format!("is a checkpoint of {}, not of {stage}", self.meta.stage);
            return Err(Error::file(&self.path, what, "give the folder of that stage"));
        }
        for (name, tensor) in wanted {
            let Some(found) = self.tensors.get(name) else {
                return refuse(format!("has no tensor {name:?}"));
            };
            if (found.shape(), found.dtype()) != (tensor.shape(), tensor.dtype()) {
                return refuse(format!(
                    "tensor {name:?} is {:?} {}, the model wants {:?} {}",
                    found.dtype(),
                    found.shape(),
                    tensor.dtype(),
                    tensor.shape()
                ));
            }
        }
        match self.tensors.keys().find(|name| !wanted.contains_key(*name)) {
            Some(name) => refuse(format!("holds a tensor {name:?} that the model has not")),
            None => Ok(()),
        }
    }

    /// The tensors whose names begin with `prefix`, without it: one model of a checkpoint.
    pub fn part(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }
}

fn write_into(partial: &Path, meta: &Meta, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    atomic::create_folder(partial)?;
    let mut writer = Writer::new();
    for (name, tensor) in tensors {
        writer.tensor(name, tensor, Store::Full)?;
    }
    writer.save(partial.join(STATE))?;
    let text = serde_json::to_string_pretty(meta)
        .map_err(|e| Error::Internal(format!("a checkpoint's record cannot be written: {e}")))?;
    atomic::write(partial.join(META), text.as_bytes())
}

/// Whole checkpoints of a run, oldest first.
fn finished(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_step = |name: &str| {
        name.strip_prefix("step-").is_some_and(|n| n.parse::<u64>().is_ok() && n.len() >= 8)
    };
    let mut found: BTreeSet<(u64, PathBuf)> = BTreeSet::new();
    for (name, path) in entries(dir)? {
        if is_step(&name) && path.join(META).is_file() {
            found.insert((name["step-".len()..].parse().unwrap_or(0), path));
        }
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes what a killed process left behind.
fn sweep(dir: &Path) -> Result<()> {
    for (name, path) in entries(dir)? {
        if name.ends_with(PARTIAL) && path.is_dir() {
            fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Removes a checkpoint, first taking its name away so that nobody reads a half of it.
fn discard(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = path.with_file_name(format!("{name}.old{PARTIAL}"));
    fs::rename(path, &gone).map_err(|e| Error::io("rename", path, e))?;
    fs::remove_dir_all(&gone).map_err(|e| Error::io("remove", &gone, e))
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> BTreeMap<String, Tensor> {
        let w = Tensor::new(vec![step as f32; 6], [2, 3]).unwrap();
        let n = Tensor::new_i32(vec![step as i32], [1]).unwrap();
        BTreeMap::from([("w".to_string(), w), ("n".to_string(), n)])
    }

    fn save_step(dir: &Path, step: u64) -> PathBuf {
        let mut meta = Meta::new("toy", step, "seed = 1\n");
        meta.notes.insert("genes".into(), Value::from(vec!["A", "B"]));
        save(dir, Keep { newest: 2, best: "" }, &meta, &state(step)).unwrap()
    }

    fn steps(dir: &Path) -> Vec<u64> {
        finished(dir).unwrap().iter().map(|p| read_meta(p).unwrap().step).collect()
    }

    #[test]
    fn the_newest_are_kept_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap().is_none());
        for step in [5, 10, 100_000_000, 10] {
            save_step(dir.path(), step);
        }
        assert_eq!(steps(dir.path()), [10, 100_000_000]);
        let back = load(dir.path()).unwrap();
        assert_eq!((back.meta.step, back.meta.stage.as_str()), (10, "toy"));
        assert_eq!(back.meta.notes["genes"][1], "B");
        assert_eq!(back.tensors["w"].f32s().unwrap(), [10.0; 6]);
        back.check("toy", &state(0)).unwrap();
    }

    #[test]
    fn the_best_stays_whatever_comes_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep { newest: 2, best: "val" };
        let save_at = |step: u64, val: f64, keep: Keep<'_>| {
            let mut meta = Meta::new("toy", step, "seed = 1\n");
            meta.numbers.insert("val".into(), val);
            save(dir.path(), keep, &meta, &state(step)).map(|_| ())
        };
        for (step, val) in [(1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3), (5, 0.2)] {
            save_at(step, val, keep).unwrap();
        }
        assert_eq!(steps(dir.path()), [2, 4, 5]);
        save_at(6, 0.9, Keep { newest: 1, best: "-val" }).unwrap();
        assert_eq!(steps(dir.path()), [6]);
        assert_eq!(best(dir.path()).unwrap().unwrap(), latest(dir.path()).unwrap());
        let error = save_at(7, 0.1, Keep { newest: 1, best: "vall" }).unwrap_err().to_string();
        assert!(error.contains("train.toy.best") && error.contains("name one of val"), "{error}");
        assert_eq!(read_meta(&latest(dir.path()).unwrap()).unwrap().step, 7);
    }

    #[test]
    fn what_a_kill_leaves_behind_is_passed_over_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let first = save_step(dir.path(), 1);
        // Killed while writing: a partial folder with half a file.
        let partial = dir.path().join("step-00000002.partial");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(STATE), b"half").unwrap();
        assert_eq!(latest(dir.path()).unwrap(), first);
        let third = save_step(dir.path(), 3);
        assert!(!partial.exists());
        // Killed between the rename and LATEST.
        fs::write(dir.path().join(LATEST), "step-00000009\n").unwrap();
        assert_eq!(latest(dir.path()).unwrap(), third);
        fs::remove_file(dir.path().join(LATEST)).unwrap();
        assert_eq!(latest(dir.path()).unwrap(), third);
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 1);
        let found = load(dir.path()).unwrap();
        let refusal = |wanted: &BTreeMap<String, Tensor>| {
            let error = found.check("toy", wanted).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let mut wanted = state(0);
        wanted.insert("head.bias".into(), Tensor::new(vec![0.0], [1]).unwrap());
        assert!(refusal(&wanted).contains("no tensor \"head.bias\""));
        let mut wanted = state(0);
        wanted.remove("w");
        assert!(refusal(&wanted).contains("\"w\" that the model has not"));
        wanted.insert("w".into(), Tensor::new(vec![0.0; 6], [3, 2]).unwrap());
        assert!(refusal(&wanted).contains("F32 [2, 3], the model wants F32 [3, 2]"));
        assert!(found.check("ar", &state(0)).unwrap_err().to_string().contains("not of ar"));
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = save_step(dir.path(), 1);
        let state = folder.join(STATE);
        let bytes = fs::read(&state).unwrap();
        fs::write(&state, &bytes[..bytes.len() - 3]).unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
        fs::write(folder.join(META), "{\"format\": 2}").unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("meta.json"));
        let nothing = dir.path().join("nothing");
        assert!(load(&nothing).unwrap_err().to_string().contains("holds no checkpoint"));
    }
}
