//! What training leaves for use: the four models' weights and statistics, without the optimiser.
//!
//! A bundle is read from a run's folder (one sub-folder a stage) or from one safetensors file,
//! which is how a trained system travels. Where a stage kept a running mean of its weights, the
//! bundle holds that. Tensors are named `stage/tensor` in the file, weights `param.` and the
//! model's name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checkpoint::{self, Checkpoint};
use super::learner;
use crate::config::Config;
use crate::error::{Error, Result, Within};
use crate::io::safetensors::{Store, TensorFile, Writer};
use crate::tensor::Tensor;

/// The stages in the order they are trained, as the configuration calls them.
pub const STAGES: [&str; 4] = ["beta_vae", "msvq", "meanflow", "ar"];

/// Value of the metadata key `format`.
const FORMAT: &str = "genevar-bundle-1";

/// A trained stage.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Steps it was trained for.
    pub step: u64,
    /// Weights under `param.` and statistics under their own names.
    pub tensors: BTreeMap<String, Tensor>,
    /// What the stage wrote down beside its tensors.
    pub notes: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    step: u64,
    notes: Map<String, Value>,
}

impl Trained {
    /// The use of a checkpoint: its weights, or their running mean, and its statistics.
    pub fn of(found: Checkpoint) -> Self {
        let mut tensors: BTreeMap<String, Tensor> = learner::weights(&found.tensors, "")
            .into_iter()
            .map(|(name, tensor)| (format!("param.{name}"), tensor))
            .collect();
        // A discriminator serves only training, as the moments do.
        let dropped = ["param.", "ema.", "adam_m.", "adam_v.", "disc."];
        let statistic = |name: &str| !dropped.iter().any(|d| name.starts_with(d));
        tensors.extend(found.tensors.into_iter().filter(|(name, _)| statistic(name)));
        Self { step: found.meta.step, tensors, notes: found.meta.notes }
    }

    /// A statistic by name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let what = format!("tensor {name:?} is missing");
            Error::data(what, "the checkpoint is of another version or stage: train it again")
        })
    }

    /// A note that is a text.
    pub fn note(&self, name: &str) -> Result<&str> {
        self.notes.get(name).and_then(Value::as_str).ok_or_else(|| {
            let what = format!("the note {name:?} is missing");
            Error::data(what, "the checkpoint is of another version or stage: train it again")
        })
    }
}

/// Trained stages and the configuration that they share.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Where it was read from.
    pub path: PathBuf,
    /// The configuration of the last stage that was trained.
    pub config: Config,
    /// By the stages' names; those not trained yet are absent.
    pub stages: BTreeMap<String, Trained>,
}

impl Bundle {
    /// Reads a run's folder or a bundle file.
    ///
    /// # Errors
    /// Neither is there; nothing was trained; a damaged file.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            let fix = "train the stages before this one, or give a run's folder or a bundle file";
            return Err(Error::file(path, "is not there", fix));
        }
        if path.is_dir() { Self::of_run(path, checkpoint::find) } else { Self::open(path) }
    }

    /// As [`Bundle::load`] of a run's folder, but of each stage the best checkpoint, where one was
    /// sought.
    ///
    /// # Errors
    /// Those of [`Bundle::load`].
    pub fn load_best(dir: &Path) -> Result<Self> {
        Self::of_run(dir, |stage| match checkpoint::best(stage)? {
            Some(best) => Ok(Some(best)),
            None => checkpoint::find(stage),
        })
    }

    /// The checkpoint that `pick` finds for each stage below `dir`.
    fn of_run(dir: &Path, pick: impl Fn(&Path) -> Result<Option<PathBuf>>) -> Result<Self> {
        let mut stages = BTreeMap::new();
        let mut config = None;
        for name in STAGES {
            if let Some(folder) = pick(&dir.join(name))? {
                let found = checkpoint::load(&folder)?;
                config = Some(Config::recorded(&found.meta.config).within(folder.display())?);
                stages.insert(name.to_string(), Trained::of(found));
            }
        }
        let fix = "give the --out of a training, or a bundle file";
        let config = config.ok_or_else(|| Error::file(dir, "holds no trained stage", fix))?;
        Ok(Self { path: dir.to_path_buf(), config, stages })
    }

    fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let format = file.metadata().get("format").map_or("none", String::as_str);
        if format != FORMAT {
            let what = format!("is not a bundle of this version (its format is {format:?})");
            return Err(Error::file(path, what, "write it with `genevar export`"));
        }
        let config = Config::recorded(file.meta("config")?).within(path.display())?;
        let heads: BTreeMap<String, Head> = serde_json::from_str(file.meta("stages")?)
            .map_err(|e| Error::file(path, format!("corrupt: {e}"), "fetch it again"))?;
        let mut stages = BTreeMap::new();
        for (name, head) in heads {
            let start = format!("{name}/");
            let mut tensors = BTreeMap::new();
            for (full, short) in file.names().filter_map(|n| Some((n, n.strip_prefix(&start)?))) {
                tensors.insert(short.to_string(), file.tensor(full)?);
            }
            stages.insert(name, Trained { step: head.step, tensors, notes: head.notes });
        }
        Ok(Self { path: path.to_path_buf(), config, stages })
    }

    /// Writes one file, weights in `store`, statistics in full; returns its size in bytes.
    pub fn save(&self, path: &Path, store: Store) -> Result<u64> {
        let mut writer = Writer::new();
        let mut heads = BTreeMap::new();
        for (stage, trained) in &self.stages {
            for (name, tensor) in &trained.tensors {
                let store = if name.starts_with("param.") { store } else { Store::Full };
                writer.tensor(&format!("{stage}/{name}"), tensor, store)?;
            }
            heads.insert(stage, Head { step: trained.step, notes: trained.notes.clone() });
        }
        let heads = serde_json::to_string(&heads).map_err(|e| Error::Internal(e.to_string()))?;
        writer.meta("format", FORMAT);
        writer.meta("config", self.config.to_toml()?);
        writer.meta("stages", heads);
        writer.save(path)
    }

    /// A stage that has to be there.
    pub fn stage(&self, name: &str) -> Result<&Trained> {
        self.stages.get(name).ok_or_else(|| {
            let fix = format!("train it: genevar train {}", name.replace('_', "-"));
            Error::file(&self.path, format!("has no trained {name}"), fix)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::checkpoint::{Keep, Meta};

    fn stage(run: &Path, name: &str, tensors: &[(&str, f32)]) {
        let config = Config::tier("t0").unwrap().to_toml().unwrap();
        let mut meta = Meta::new(name, 7, config);
        meta.notes.insert("genes".into(), Value::from("A B"));
        let state = tensors
            .iter()
            .map(|(n, v)| (n.to_string(), Tensor::new(vec![*v], [1]).unwrap()))
            .collect();
        checkpoint::save(&run.join(name), Keep { newest: 1, best: "" }, &meta, &state).unwrap();
    }

    #[test]
    fn a_run_becomes_one_file_without_what_only_training_needs() {
        let dir = tempfile::tempdir().unwrap();
        let learnt = [("param.w", 1.0), ("ema.w", 2.0), ("adam_m.w", 3.0), ("adam_v.w", 4.0)];
        stage(
            dir.path(),
            "msvq",
            &[&learnt[..], &[("disc.param.w", 5.0), ("usage", 6.0)]].concat(),
        );
        stage(dir.path(), "beta_vae", &[("param.w", 1.0 / 3.0), ("rna.mean", 1.0 / 3.0)]);
        let bundle = Bundle::load(dir.path()).unwrap();
        let file = dir.path().join("b.safetensors");
        bundle.save(&file, Store::F16).unwrap();
        let back = Bundle::load(&file).unwrap();
        assert_eq!(back.config, Config::tier("t0").unwrap());
        let msvq = back.stage("msvq").unwrap();
        let names: Vec<&str> = msvq.tensors.keys().map(String::as_str).collect();
        assert_eq!((names, msvq.step), (vec!["param.w", "usage"], 7));
        assert_eq!(msvq.tensor("param.w").unwrap().item().unwrap(), 2.0);
        let beta = back.stage("beta_vae").unwrap();
        assert_eq!(beta.note("genes").unwrap(), "A B");
        assert_eq!(beta.tensor("rna.mean").unwrap().f32s().unwrap(), [1.0 / 3.0]);
        assert_ne!(beta.tensor("param.w").unwrap().f32s().unwrap(), [1.0 / 3.0]);
        let error = back.stage("ar").unwrap_err().to_string();
        assert!(error.contains("no trained ar") && error.contains("genevar train ar"), "{error}");
    }

    #[test]
    fn large_matrices_in_eight_bits_stay_within_half_a_step() {
        use crate::tensor::{Purpose, Stream};
        let dir = tempfile::tempdir().unwrap();
        let values = Stream::new(1, 0, 0, Purpose::Test).normals(200 * 100);
        let matrix = Tensor::new(values.clone(), [200, 100]).unwrap();
        let mut tensors = BTreeMap::from([("param.w".to_string(), matrix)]);
        tensors.insert("param.b".into(), Tensor::new(vec![1.0 / 3.0], [1]).unwrap());
        let trained = Trained { step: 1, tensors, notes: Map::new() };
        let config = Config::tier("t0").unwrap();
        let stages = BTreeMap::from([("msvq".to_string(), trained)]);
        let bundle = Bundle { path: PathBuf::new(), config, stages };
        let file = dir.path().join("b.safetensors");
        assert!(bundle.save(&file, Store::I8).unwrap() < 2 * 20_000);
        let back = Bundle::load(&file).unwrap();
        let stage = back.stage("msvq").unwrap();
        assert_eq!(stage.tensors.len(), 2);
        let got = stage.tensor("param.w").unwrap().f32s().unwrap();
        for (row, got) in values.chunks(100).zip(got.chunks(100)) {
            let step = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            assert!(row.iter().zip(got).all(|(a, b)| (a - b).abs() <= 0.501 * step));
        }
        assert!((stage.tensor("param.b").unwrap().at(0) - 1.0 / 3.0).abs() < 1e-3);
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Bundle::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("holds no trained stage"), "{error}");
        let mut other = Writer::new();
        other.meta("format", "genevar-pack");
        let file = dir.path().join("x");
        other.save(&file).unwrap();
        let error = Bundle::load(&file).unwrap_err();
        assert!(error.to_string().contains("genevar-pack"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
