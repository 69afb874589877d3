//! All four stages trained from nothing, by this program as a child process that is killed once.
//!
//! The child is killed without warning some steps after a checkpoint. The resumed child takes those
//! steps again, so they are taken twice, by two processes, and their lines of the log must be the
//! same bytes: that is what is compared here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use super::memory;
use crate::config::{Config, MsvqConfig, StageConfig};
use crate::error::{Error, Result, Within};
use crate::io::atomic;
use crate::train::bundle::STAGES;
use crate::train::checkpoint;
use crate::train::interrupt::Interrupt;
use crate::train::log::{self, StepLog};

/// The stage whose process is killed.
const VICTIM: &str = "msvq";
/// Logged steps past a checkpoint before the kill: the ones that are taken twice.
const TWICE: u64 = 5;
/// How often the child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The file that marks a folder as one of ours.
const CONFIG: &str = "demo-training.toml";

/// What the child works on.
#[derive(Clone, Debug)]
pub struct Scratch<'a> {
    /// The program: this one.
    pub program: PathBuf,
    /// The data.
    pub pack: &'a Path,
    /// A folder of the demo's own.
    pub dir: &'a Path,
    /// The settings.
    pub config: &'a Config,
    /// Raised by Ctrl-C, which the child hears too.
    pub interrupt: &'a Interrupt,
}

/// A finished training.
#[derive(Clone, Debug)]
pub struct Curves {
    /// The stages' names and logs.
    pub stages: Vec<(&'static str, Vec<(u64, StepLog)>)>,
    /// What the kill showed.
    pub kill: Kill,
    /// Wall-clock seconds of both children together.
    pub seconds: f64,
    /// Largest resident size of either child and of this process beside it.
    pub peak_rss: Option<u64>,
}

/// What the kill showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The stage that was running.
    pub stage: &'static str,
    /// Steps in the checkpoint that the second child went on from.
    pub resumed_at: u64,
    /// Steps that the first child had logged when it was killed.
    pub logged: u64,
    /// Whether every line that both children wrote has the same bytes.
    pub identical: bool,
}

/// Settings small enough for a minute on two cores: they show that everything learns, not how well.
pub fn config(genes: usize, seed: u64) -> Result<Config> {
    let mut c = Config::tier("t0")?;
    c.seed = seed;
    c.data.counts_per = 10_000.0;
    c.beta_vae.genes = genes;
    c.beta_vae.beta = 5e-4;
    c.msvq = MsvqConfig {
        ch: 16,
        ch_mult: vec![1, 2, 2, 4],
        res_blocks_enc: 1,
        res_blocks_dec: 1,
        attention: false,
        patch_nums: vec![1, 2, 4, 8],
        vocab: 128,
        warmup_steps: 120,
        restart_every: 50,
        ..c.msvq
    };
    c.ar.cond_drop = 0.25;
    c.ar.standardise = true;
    c.ar.add_rk = true;
    let sizes = [(300, 64), (400, 8), (200, 8), (300, 16)];
    for (stage, (steps, batch)) in c.train.stages_mut().into_iter().zip(sizes) {
        *stage = StageConfig {
            steps,
            batch,
            lr: 2e-3,
            beta1: 0.9,
            ema: if stage.ema > 0.0 { 0.98 } else { 0.0 },
            checkpoint_every: 100,
            log_every: 1,
            clip: 1.0,
            ..stage.clone()
        };
    }
    c.validate()?;
    Ok(c)
}

/// Trains, killing the child once; see the head of this file.
///
/// # Errors
/// A child that fails or finishes too early, a folder that is not the demo's, Ctrl-C.
pub fn train(scratch: &Scratch<'_>) -> Result<Curves> {
    clear(scratch.dir)?;
    atomic::create_folder(scratch.dir)?;
    atomic::write(scratch.dir.join(CONFIG), scratch.config.to_toml()?.as_bytes())?;
    let started = Instant::now();
    let mut peak = None;
    let log = scratch.dir.join(VICTIM).join("log.jsonl");
    let resumed_at = kill_mid_way(scratch, &mut peak)?;
    let before = read(&log)?;
    let mut child = scratch.spawn(true)?;
    let status = wait(&mut child, &mut peak, || Ok(false))?;
    scratch.check(status)?;
    let after = read(&log)?;
    let (logged, identical) = same_lines(&before, &after);
    let stages = STAGES
        .into_iter()
        .map(|s| Ok((s, log::read(&scratch.dir.join(s).join("log.jsonl"))?)))
        .collect::<Result<_>>()?;
    let kill = Kill { stage: VICTIM, resumed_at, logged, identical };
    Ok(Curves { stages, kill, seconds: started.elapsed().as_secs_f64(), peak_rss: peak })
}

/// Runs the first child until it is some steps past a checkpoint of the victim, and kills it;
/// returns the step that a second child goes on from.
fn kill_mid_way(scratch: &Scratch<'_>, peak: &mut Option<u64>) -> Result<u64> {
    let stage = scratch.dir.join(VICTIM);
    let mut child = scratch.spawn(false)?;
    let ripe = || {
        let Some(found) = checkpoint::find(&stage)? else { return Ok(false) };
        // The child may sweep this checkpoint away while it is read: then look again later.
        let Ok(meta) = checkpoint::read_meta(&found) else { return Ok(false) };
        Ok(lines(&read(&stage.join("log.jsonl"))?).count() as u64 >= meta.step + TWICE)
    };
    let status = wait(&mut child, peak, ripe)?;
    if status.is_some() {
        scratch.check(status)?;
        let what = "the training was over before it could be killed";
        return Err(Error::Internal(what.into()));
    }
    child.kill().map_err(|e| Error::io("stop", &scratch.program, e))?;
    child.wait().map_err(|e| Error::io("wait for", &scratch.program, e))?;
    eprintln!("{VICTIM}: the process was killed, a new one goes on");
    let found = checkpoint::latest(&stage)?;
    Ok(checkpoint::read_meta(&found).within(found.display())?.step)
}

/// Waits until the child ends, or `enough` says so; then there is no status.
fn wait(
    child: &mut Child,
    peak: &mut Option<u64>,
    enough: impl Fn() -> Result<bool>,
) -> Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait().map_err(|e| Error::io("wait for", "the training", e))?;
        if status.is_some() {
            return Ok(status);
        }
        let both = memory::peak_of(child.id()).zip(memory::own_now()).map(|(a, b)| a + b);
        *peak = (*peak).max(both);
        match enough() {
            Ok(false) => std::thread::sleep(LOOK),
            Ok(true) => return Ok(None),
            Err(e) => {
                // Nobody would wait for it any more; if it has ended already, all the better.
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        }
    }
}

impl Scratch<'_> {
    fn spawn(&self, resume: bool) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(["train", "all", "--config"]).arg(self.dir.join(CONFIG));
        command.arg("--data").arg(self.pack).arg("--out").arg(self.dir);
        if resume {
            command.arg("--resume");
        }
        command.spawn().map_err(|e| Error::io("start", &self.program, e))
    }

    /// The child's end as a result.
    fn check(&self, status: Option<ExitStatus>) -> Result<()> {
        if self.interrupt.is_raised() {
            return Err(super::interrupted());
        }
        match status {
            Some(s) if !s.success() => {
                let fix = "mend what it says above; `df` and `free` tell whether there is room";
                Err(Error::data(format!("the training ended with {s}"), fix))
            }
            _ => Ok(()),
        }
    }
}

/// Removes what an earlier demo left in `dir`, and nothing else.
fn clear(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    if !dir.join(CONFIG).is_file() {
        let fix = "move it away or give another --out";
        return Err(Error::file(dir, "is there and was not made by the demo", fix));
    }
    for name in STAGES {
        let stage = dir.join(name);
        if stage.exists() {
            std::fs::remove_dir_all(&stage).map_err(|e| Error::io("remove", &stage, e))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))
}

/// The whole lines of a log; the kill may have torn the last one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter(|l| l.ends_with('\n'))
}

/// How many whole lines the first log has, and whether the second begins with them.
fn same_lines(before: &str, after: &str) -> (u64, bool) {
    let whole: String = lines(before).collect();
    (lines(before).count() as u64, after.starts_with(&whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_differs_in_a_step_taken_twice_is_noticed() {
        let before = "{\"step\":0}\n{\"step\":1}\n{\"st";
        assert_eq!(same_lines(before, "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n"), (2, true));
        assert!(!same_lines(before, "{\"step\":0}\n{\"step\":7}\n").1);
        assert!(!same_lines(before, "{\"step\":0}\n").1);
    }

    #[test]
    fn only_a_folder_of_the_demo_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("msvq");
        std::fs::create_dir(&mine).unwrap();
        let error = clear(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not made by the demo"), "{error}");
        assert!(mine.exists());
        std::fs::write(dir.path().join(CONFIG), b"").unwrap();
        std::fs::write(dir.path().join("other"), b"").unwrap();
        clear(dir.path()).unwrap();
        assert!(!mine.exists() && dir.path().join("other").exists());
        clear(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn the_settings_are_sound() {
        let c = config(2000, 3).unwrap();
        assert_eq!((c.beta_vae.genes, c.seed), (2000, 3));
        // Every step is logged, or a step taken twice would not be seen.
        assert!(c.train.stages().iter().all(|s| s.log_every == 1));
    }
}
