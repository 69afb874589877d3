//! The loop, written once: any stage, from any step, to its end.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::checkpoint::{self, Checkpoint, Keep, Meta};
use super::claim::Claim;
use super::clock::Clock;
use super::guard;
use super::interrupt::Interrupt;
use super::log::{Log, StepLog};
use super::memory;
use super::numbers::Pending;
use super::progress::Progress;
use crate::config::{Config, OnBad, StageConfig};
use crate::device::Device;
use crate::error::{Error, Result, Within};
use crate::tensor::Tensor;

/// Something that learns in steps.
///
/// A step may depend on the state and on its number alone: no clock, no counter of its own, no
/// random numbers but those named by the step. Then a resumed run has the bits of an uninterrupted.
pub trait Stage {
    /// The stage's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Takes 0-based `step` without waiting for its numbers. When loss or gradient norm is not
    /// finite, neither this step nor a later one changes a weight, so that [`Stage::diagnose`] can
    /// look for the cause when the numbers are known.
    fn step(&mut self, step: u64) -> Result<Pending>;

    /// Everything that a later step reads: weights, moments, running means, statistics.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Takes back what [`Stage::state`] gave; names, shapes and types were compared already.
    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()>;

    /// Repeats `step` checking every value; returns the error that names the first bad op.
    fn diagnose(&mut self, step: u64) -> Result<()>;

    /// Moves everything that a step reads to a device, where its ops then run.
    ///
    /// # Errors
    /// Those of the device.
    fn place(&mut self, device: &Device) -> Result<()>;

    /// The step that takes the most memory.
    fn heaviest(&self) -> u64 {
        0
    }

    /// Takes batches in so many parts from now on, if it can: the gradients of the whole, memory
    /// of a part.
    fn divide(&mut self, _parts: usize) -> bool {
        false
    }

    /// Computes the blocks' values again for the backward pass from now on, or keeps them, if it
    /// can: the same bits, less memory.
    fn recompute(&mut self, _on: bool) -> bool {
        false
    }

    /// What a reader of the checkpoint needs beside tensors: gene names, data set.
    fn notes(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// How a stage is run.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The whole configuration, for the record.
    pub config: &'a Config,
    /// The stage's own part of it.
    pub stage: &'a StageConfig,
    /// The folder of this stage's log and checkpoints.
    pub dir: &'a Path,
    /// Whether to go on from the newest checkpoint in `dir`.
    pub resume: bool,
    /// Raised by Ctrl-C.
    pub interrupt: Interrupt,
    /// Where the steps run.
    pub device: &'a Device,
}

/// What a finished run reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps taken by this process.
    pub taken: u64,
    /// Wall-clock seconds of this process.
    pub seconds: f64,
    /// The last step's log, if this process took one.
    pub last: Option<StepLog>,
}

/// Drives `stage` from its newest checkpoint (or from the start) to `plan.stage.steps`.
///
/// # Errors
/// - [`Error::Interrupted`] after Ctrl-C, the state being saved.
/// - [`Error::NotFinite`] with step and op when a loss, gradient or weight is NaN or infinite.
/// - A folder that holds a run already, unless resuming, or in which another process trains; a
///   checkpoint that does not fit.
/// - A device with less free memory than a step takes; nothing was allocated there then.
pub fn run(stage: &mut dyn Stage, plan: &Plan) -> Result<Summary> {
    let _claim = Claim::on(plan.dir)?;
    if let Device::Cuda(queue) = plan.device {
        memory::check(stage, plan.stage, queue)?;
    }
    stage.place(plan.device)?;
    let first = start(stage, plan)?;
    let log = Log::open(&plan.dir.join("log.jsonl"), first)?;
    let clock = Clock::start(plan.dir, first, plan.device);
    let progress = Progress::new(stage.name(), plan.stage.steps, first);
    let mut told = Told { plan, log, progress, ahead: None, last: None, skips: 0 };
    for step in first..plan.stage.steps {
        let taken = stage.step(step).within(place(stage, step));
        // While the device works on this step, what the one before had to say.
        told.settle(stage)?;
        let taken = taken?;
        let done = step + 1;
        let is_last = done == plan.stage.steps;
        let stop = plan.interrupt.is_raised() && !is_last;
        let saves = stop || is_last || done.is_multiple_of(plan.stage.checkpoint_every);
        let waits = !taken.is_here() && !saves;
        told.ahead = Some((step, taken));
        if !waits {
            told.settle(stage)?;
        }
        if saves {
            told.log.sync()?;
            save(stage, plan, (done, told.last.as_ref()))?;
            clock.mark(done);
        }
        if stop {
            told.progress.finish();
            let what = format!("{} is saved at step {done}; --resume goes on", stage.name());
            return Err(Error::Interrupted { resume: what });
        }
    }
    let (progress, last) = (told.progress, told.last);
    progress.finish();
    Ok(Summary { taken: plan.stage.steps.saturating_sub(first), seconds: progress.seconds(), last })
}

/// What a run has told so far.
struct Told<'a> {
    plan: &'a Plan<'a>,
    log: Log,
    progress: Progress,
    /// The newest step, of which nothing is told yet.
    ahead: Option<(u64, Pending)>,
    last: Option<StepLog>,
    /// Steps in a row that were skipped.
    skips: u64,
}

impl Told<'_> {
    /// Tells the newest step, or the error that says which of its values went bad first.
    fn settle(&mut self, stage: &mut dyn Stage) -> Result<()> {
        let Some((step, pending)) = self.ahead.take() else { return Ok(()) };
        let entry = pending.read().within(place(stage, step))?;
        if entry.skipped || entry.not_finite().is_some() {
            return self.settle_bad(stage, (step, entry));
        }
        self.skips = 0;
        let done = step + 1;
        if step.is_multiple_of(self.plan.stage.log_every) || done == self.plan.stage.steps {
            self.log.write(step, &entry)?;
        }
        self.progress.update(done, &format!("loss {:.4}", entry.loss));
        self.last = Some(entry);
        Ok(())
    }
}

impl Told<'_> {
    /// Logs a step that changed nothing, or ends the run.
    fn settle_bad(&mut self, stage: &mut dyn Stage, (step, entry): (u64, StepLog)) -> Result<()> {
        let of = self.plan.stage;
        self.skips += 1;
        // A number that is bad although the step happened is no reason that may be passed over.
        if of.on_bad == OnBad::Skip && entry.skipped && self.skips <= of.max_skips {
            self.log.write(step, &entry)?;
            let why =
                entry.not_finite().map_or("a spike".to_string(), |bad| format!("{bad} is bad"));
            self.progress.update(step + 1, &format!("skipped: {why}"));
            return Ok(());
        }
        let Some(bad) = entry.not_finite().map(str::to_string) else {
            let norm = entry.more.iter().find(|(name, _)| name == "grad_norm").map_or(0.0, |n| n.1);
            let what = format!(
                "the gradient norm {norm:.4} is more than {} times its running mean{}",
                of.spike,
                match self.skips {
                    1 => String::new(),
                    n => format!(", the {n}th bad step in a row"),
                }
            );
            let fix = "resume with a lower learning rate, a larger spike, or on_bad = \"skip\"";
            return Err(Error::data(what, fix)).within(place(stage, step));
        };
        stage.diagnose(step).within(place(stage, step))?;
        let error = Error::NotFinite { place: bad, count: 1, len: 1, first: 0 };
        Err(error).within(place(stage, step))
    }
}

fn place(stage: &dyn Stage, step: u64) -> String {
    format!("{}: step {step}", stage.name())
}

fn save(stage: &dyn Stage, plan: &Plan, (step, last): (u64, Option<&StepLog>)) -> Result<()> {
    let mut meta = Meta::new(stage.name(), step, plan.config.to_toml()?);
    meta.notes = stage.notes();
    if let Some(log) = last {
        meta.numbers = log.more.iter().cloned().collect();
        meta.numbers.insert("loss".into(), log.loss);
    }
    let keep = Keep { newest: plan.stage.keep, best: &plan.stage.best };
    checkpoint::save(plan.dir, keep, &meta, &stage.state()?).map(|_| ())
}

/// Restores the newest checkpoint when resuming; returns the first step to take.
fn start(stage: &mut dyn Stage, plan: &Plan) -> Result<u64> {
    let Some(found) = checkpoint::find(plan.dir)? else { return Ok(0) };
    if !plan.resume {
        let fix = "add --resume to go on, or give another --out";
        return Err(Error::file(plan.dir, "holds a run already", fix));
    }
    let mut loaded = checkpoint::load(&found)?;
    let wanted = stage.state()?;
    // Runs of older versions have no such mean.
    if let Some(none_yet) = wanted.get(guard::MEAN) {
        loaded.tensors.entry(guard::MEAN.into()).or_insert_with(|| none_yet.clone());
    }
    loaded.check(stage.name(), &wanted)?;
    tell_changes(plan.config, &loaded)?;
    let step = loaded.meta.step;
    stage.restore(loaded.tensors).within(found.display())?;
    Ok(step)
}

/// Says which keys differ from those the run began with: a change is allowed, but not in silence.
fn tell_changes(config: &Config, loaded: &Checkpoint) -> Result<()> {
    let before = Config::recorded(&loaded.meta.config).within(loaded.path.display())?;
    let changed = config.differences(&before)?;
    if !changed.is_empty() {
        eprintln!("resuming with other settings than before: {}", changed.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Purpose, Remote, Stream};
    use crate::train::numbers::Numbers;
    use std::sync::{Arc, Mutex};

    /// Follows a random target; its weights depend on every step taken.
    struct Toy {
        weights: Vec<f32>,
        spoil_at: u64,
        /// Steps whose numbers are bad and which change nothing.
        bad: std::ops::Range<u64>,
        raise_at: Option<(u64, Interrupt)>,
    }

    impl Toy {
        fn new() -> Self {
            Self { weights: vec![0.5; 8], spoil_at: u64::MAX, bad: 0..0, raise_at: None }
        }
    }

    impl Stage for Toy {
        fn name(&self) -> &'static str {
            "toy"
        }

        fn step(&mut self, step: u64) -> Result<Pending> {
            if step == self.spoil_at {
                return Ok(StepLog::new(f64::NAN, 0.1).into());
            }
            if self.bad.contains(&step) {
                let one = |x: f32| Tensor::new(vec![x], [1]);
                let loss = one(if step.is_multiple_of(2) { f32::NAN } else { 1.0 })?;
                return Numbers::new(0.1, &loss).under(&one(f32::NAN)?).send();
            }
            if let Some((_, flag)) = self.raise_at.as_ref().filter(|(at, _)| *at == step) {
                flag.raise();
            }
            let target = Stream::new(1, step, 0, Purpose::Batch).normals(8);
            let mut loss = 0.0;
            for (w, t) in self.weights.iter_mut().zip(target) {
                loss += f64::from((*w - t).powi(2));
                *w += 0.1 * (t - *w);
            }
            Ok(StepLog::new(loss, 0.1).with("w0", f64::from(self.weights[0])).into())
        }

        fn state(&self) -> Result<BTreeMap<String, Tensor>> {
            let w = Tensor::new(self.weights.clone(), [8])?;
            Ok(BTreeMap::from([("w".to_string(), w)]))
        }

        fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
            self.weights = state["w"].f32s()?.to_vec();
            Ok(())
        }

        fn place(&mut self, _: &Device) -> Result<()> {
            Ok(())
        }

        fn diagnose(&mut self, _: u64) -> Result<()> {
            Err(Error::NotFinite { place: "exp".into(), count: 1, len: 8, first: 3 })
        }
    }

    fn go(toy: &mut Toy, dir: &Path, resume: bool) -> Result<Summary> {
        go_on_bad(toy, dir, resume, OnBad::Stop)
    }

    fn go_on_bad(toy: &mut Toy, dir: &Path, resume: bool, on_bad: OnBad) -> Result<Summary> {
        let config = Config::tier("t0").unwrap();
        let stage = StageConfig {
            steps: 23,
            log_every: 3,
            checkpoint_every: 5,
            max_skips: 3,
            on_bad,
            ..StageConfig::default()
        };
        let interrupt = toy.raise_at.as_ref().map(|(_, f)| f.clone()).unwrap_or_default();
        let device = &Device::Cpu;
        run(toy, &Plan { config: &config, stage: &stage, dir, resume, interrupt, device })
    }

    #[test]
    fn stopping_and_resuming_anywhere_gives_the_same_bits_and_the_same_log() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let mut toy = Toy::new();
        let summary = go(&mut toy, &whole, false).unwrap();
        assert_eq!(summary.taken, 23);
        let file = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
        for stop in 0..22 {
            let broken = dir.path().join(format!("stop-{stop}"));
            let mut first = Toy::new();
            first.raise_at = Some((stop, Interrupt::default()));
            let error = go(&mut first, &broken, false).unwrap_err();
            assert_eq!(error.exit_code(), 130);
            assert!(error.to_string().contains(&format!("step {}", stop + 1)), "{error}");
            let rest = go(&mut Toy::new(), &broken, true).unwrap();
            assert_eq!(rest.taken, 22 - stop);
            for name in ["log.jsonl", "LATEST", "step-00000023/state.safetensors"] {
                assert!(file(&whole, name) == file(&broken, name), "{name} after {stop}");
            }
        }
        assert_eq!(go(&mut Toy::new(), &whole, true).unwrap().taken, 0);
    }

    /// A loss on a device, which notes when it is asked for.
    #[derive(Debug)]
    struct Late {
        step: u64,
        notes: Arc<Mutex<Vec<String>>>,
    }

    impl Remote for Late {
        fn dtype(&self) -> DType {
            DType::F32
        }
        fn len(&self) -> usize {
            1
        }
        fn fetch(&self) -> Result<Tensor> {
            self.notes.lock().unwrap().push(format!("read {}", self.step));
            Tensor::new(vec![self.step as f32], [1])
        }
    }

    /// Steps whose losses are late.
    struct Distant(Arc<Mutex<Vec<String>>>);

    impl Stage for Distant {
        fn name(&self) -> &'static str {
            "distant"
        }
        fn step(&mut self, step: u64) -> Result<Pending> {
            self.0.lock().unwrap().push(format!("step {step}"));
            let loss = Tensor::away(Late { step, notes: self.0.clone() }, [1])?;
            Pending::of(0.1, loss)
        }
        fn state(&self) -> Result<BTreeMap<String, Tensor>> {
            self.0.lock().unwrap().push("save".to_string());
            Ok(BTreeMap::new())
        }
        fn restore(&mut self, _: BTreeMap<String, Tensor>) -> Result<()> {
            Ok(())
        }
        fn place(&mut self, _: &Device) -> Result<()> {
            Ok(())
        }
        fn diagnose(&mut self, _: u64) -> Result<()> {
            Ok(())
        }
    }

    /// A step's numbers are read when the next is under way, and before its state is saved.
    #[test]
    fn a_step_is_not_waited_for_before_the_next_has_begun() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Arc::default();
        let config = Config::tier("t0").unwrap();
        let stage =
            StageConfig { steps: 4, log_every: 1, checkpoint_every: 3, ..StageConfig::default() };
        let (interrupt, device, dir) = (Interrupt::default(), &Device::Cpu, dir.path());
        let plan = Plan { config: &config, stage: &stage, dir, resume: false, interrupt, device };
        let summary = run(&mut Distant(Arc::clone(&notes)), &plan).unwrap();
        let want = "step 0, step 1, read 0, step 2, read 1, read 2, save, step 3, read 3, save";
        assert_eq!(notes.lock().unwrap().join(", "), want);
        assert_eq!(summary.last, Some(StepLog::new(3.0, 0.1)));
        assert_eq!(crate::train::log::read(&dir.join("log.jsonl")).unwrap().len(), 4);
    }

    #[test]
    fn a_run_is_not_overwritten_and_another_stage_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        go(&mut Toy::new(), dir.path(), false).unwrap();
        let error = go(&mut Toy::new(), dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("holds a run already") && error.contains("--resume"), "{error}");
        let mut other = Toy::new();
        other.weights.push(1.0);
        let config = Config::tier("t0").unwrap();
        let found = checkpoint::load(dir.path()).unwrap();
        let wanted = BTreeMap::from([("w".to_string(), Tensor::new(vec![0.0; 9], [9]).unwrap())]);
        assert!(found.check("toy", &wanted).is_err());
        assert_eq!(Config::recorded(&found.meta.config).unwrap(), config);
    }

    #[test]
    fn a_folder_is_one_process_s_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::on(dir.path()).unwrap();
        let error = go(&mut Toy::new(), dir.path(), false).unwrap_err();
        assert!(error.to_string().contains("another process trains"), "{error}");
        assert_eq!(error.exit_code(), 2);
        drop(claim);
        go(&mut Toy::new(), dir.path(), false).unwrap();
    }

    #[test]
    fn nan_stops_the_run_naming_step_and_op_and_saves_nothing_bad() {
        let dir = tempfile::tempdir().unwrap();
        let mut toy = Toy::new();
        toy.spoil_at = 12;
        let error = go(&mut toy, dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("toy: step 12") && error.contains("exp"), "{error}");
        assert_eq!(checkpoint::load(dir.path()).unwrap().meta.step, 10);
    }

    #[test]
    fn bad_steps_are_skipped_and_logged_but_not_too_many_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let (few, many) = (dir.path().join("few"), dir.path().join("many"));
        let toy = |bad| Toy { bad, ..Toy::new() };
        assert_eq!(go_on_bad(&mut toy(7..10), &few, false, OnBad::Skip).unwrap().taken, 23);
        let log = std::fs::read_to_string(few.join("log.jsonl")).unwrap();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("skipped")).collect();
        let [seven, eight, nine] = told[..] else { panic!("{log}") };
        assert_eq!(seven, r#"{"step":7,"loss":1.0,"lr":0.1,"skipped":true}"#);
        assert_eq!(eight, r#"{"step":8,"loss":null,"lr":0.1,"skipped":true}"#);
        assert!(nine.starts_with(r#"{"step":9"#), "{nine}");
        // Curves are of the steps that happened: 0, 3, 6, 12, ...
        assert_eq!(super::super::log::read(&few.join("log.jsonl")).unwrap().len(), 8);
        let error = go_on_bad(&mut toy(7..11), &many, false, OnBad::Skip).unwrap_err().to_string();
        assert!(error.contains("step 10") && error.contains("exp"), "{error}");
        let error = go(&mut toy(7..8), &dir.path().join("stop"), false).unwrap_err().to_string();
        assert!(error.contains("step 7") && error.contains("running mean"), "{error}");
    }
}
