//! Runs of `genevar train`, finished or not, for people: a page about them, and their numbers for
//! TensorBoard.
//!
//! Everything is read from the folders that a training leaves. What is missing or damaged is said
//! in a sentence, and the rest is shown.

pub mod command;
mod curves;
mod distances;
mod pictures;
mod tables;
pub mod tensorboard;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::train::bundle::STAGES;
use crate::train::checkpoint::{self, Meta};
use crate::train::clock::{self, Mark};
use crate::train::log::{self, StepLog};

/// A stage of a run.
#[derive(Clone, Debug)]
pub struct StageRun {
    /// As the configuration calls it.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What its steps logged.
    pub log: Vec<(u64, StepLog)>,
    /// The record of its newest checkpoint.
    pub meta: Option<Meta>,
    /// When steps were taken.
    pub marks: Vec<Mark>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its folder, as it was named.
    pub name: String,
    /// The same as a path.
    pub path: PathBuf,
    /// The stages that have begun, in order.
    pub stages: Vec<StageRun>,
    /// The configuration of the last stage that has a checkpoint.
    pub config: Option<Config>,
    /// What is missing or damaged, a sentence each.
    pub said: Vec<String>,
}

impl Run {
    /// Reads a run's folder, or the folder of one stage.
    ///
    /// # Errors
    /// A path that holds neither logs nor checkpoints.
    pub fn read(path: &Path) -> Result<Self> {
        let fix = "give the --out of `genevar train`";
        if !path.is_dir() {
            let what = if path.exists() { "is no folder of a run" } else { "is not there" };
            return Err(Error::file(path, what, fix));
        }
        let name = path.display().to_string().trim_end_matches('/').to_string();
        let (stages, config, said) = (Vec::new(), None, Vec::new());
        let mut run = Self { name, path: path.to_path_buf(), stages, config, said };
        let whole: Vec<&str> = STAGES.into_iter().filter(|s| path.join(s).is_dir()).collect();
        for stage in &whole {
            run.add(stage, path.join(stage));
        }
        if whole.is_empty() && path.join("log.jsonl").is_file() {
            let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            run.add(&own, path.to_path_buf());
        }
        if run.stages.is_empty() {
            return Err(Error::file(path, "holds no log and no checkpoint of a training", fix));
        }
        run.judge(!whole.is_empty());
        Ok(run)
    }

    fn add(&mut self, stage: &str, folder: PathBuf) {
        let found = checkpoint::find(&folder)
            .and_then(|at| at.map(|at| checkpoint::read_meta(&at)).transpose());
        let meta = found.unwrap_or_else(|e| {
            self.said.push(format!("The newest checkpoint of {stage} cannot be read: {e}."));
            None
        });
        let file = folder.join("log.jsonl");
        let log = match file.is_file() {
            true => log::read(&file).unwrap_or_else(|e| {
                self.said.push(format!("The log of {stage} cannot be read: {e}."));
                Vec::new()
            }),
            false => Vec::new(),
        };
        if meta.is_none() && log.is_empty() {
            return;
        }
        if let Some(meta) = &meta {
            match Config::recorded(&meta.config) {
                Ok(config) => self.config = Some(config),
                Err(e) => self.said.push(format!("The settings of {stage} cannot be read: {e}.")),
            }
        }
        // A stage's folder on its own may be called anything.
        let name = meta.as_ref().map_or(stage, |m| &m.stage).to_string();
        let marks = clock::read(&folder);
        self.stages.push(StageRun { name, folder, log, meta, marks });
    }

    /// Says what a finished run would have.
    fn judge(&mut self, whole: bool) {
        if whole {
            let plain = self.config.as_ref().is_some_and(|c| c.ar.plain_var);
            for stage in STAGES.into_iter().filter(|s| !(plain && *s == "meanflow")) {
                if !self.stages.iter().any(|s| s.name == stage) {
                    self.said.push(format!("{} has not begun.", title(stage)));
                }
            }
        }
        for stage in &self.stages {
            let (name, done) = (title(&stage.name), stage.done());
            match (&stage.meta, self.planned(&stage.name)) {
                (None, _) => self.said.push(format!("{name} has no checkpoint yet.")),
                (_, Some(steps)) if done < steps => {
                    self.said.push(format!("{name} is at step {done} of {steps}."));
                }
                _ => {}
            }
        }
    }

    /// The steps that a stage is to take.
    pub fn planned(&self, stage: &str) -> Option<u64> {
        let at = STAGES.iter().position(|s| *s == stage)?;
        Some(self.config.as_ref()?.train.stages().get(at)?.steps)
    }

    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&StageRun> {
        self.stages.iter().find(|s| s.name == name)
    }
}

impl StageRun {
    /// Steps finished, by checkpoint and log.
    pub fn done(&self) -> u64 {
        let logged = self.log.last().map_or(0, |(step, _)| step + 1);
        self.meta.as_ref().map_or(0, |m| m.step).max(logged)
    }

    /// A number of the log over its steps.
    pub fn curve(&self, name: &str) -> Vec<(f64, f64)> {
        self.log.iter().filter_map(|(s, e)| Some((*s as f64, number(e, name)?))).collect()
    }

    /// Names of all numbers of the log, loss and learning rate apart.
    pub fn names(&self) -> std::collections::BTreeSet<&str> {
        self.log.iter().flat_map(|(_, e)| e.more.iter().map(|(name, _)| name.as_str())).collect()
    }

    /// The newest value of a number.
    pub fn newest(&self, name: &str) -> Option<f64> {
        self.log.iter().rev().find_map(|(_, e)| number(e, name))
    }
}

fn number(entry: &StepLog, name: &str) -> Option<f64> {
    match name {
        "loss" => Some(entry.loss),
        "lr" => Some(entry.lr),
        _ => entry.more.iter().find(|(n, _)| n == name).map(|(_, v)| *v),
    }
}

/// What a stage is, for people.
pub fn title(stage: &str) -> &str {
    match stage {
        "beta_vae" => "The gene prior (beta-VAE)",
        "msvq" => "The tokenizer (MSVQ)",
        "meanflow" => "Causal MeanFlow",
        "ar" => "The transformer",
        other => other,
    }
}
