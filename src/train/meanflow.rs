//! The stage that trains Phi: one scale a step, counterfactuals re-encoded on the fly.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};

use super::Stage;
use super::accumulate::{Sums, parts};
use super::counterfactual::Counterfactual;
use super::frozen::Frozen;
use super::guard::Guard;
use super::learner::Learner;
use super::numbers::{Numbers, Pending};
use super::schedule::{learning_rate, ramp};
use super::tissue::{Batches, TissueBatch};
use crate::autograd::{Params, Pass};
use crate::config::{Config, CounterfactualConfig, FlowMode};
use crate::device::{Device, span};
use crate::error::{Error, Result};
use crate::models::genevar::FeatureStats;
use crate::models::meanflow::{FlowBatch, FlowLoss, Summary, Times, loss};
use crate::models::msvq::Msvq;
use crate::models::phi::Phi;
use crate::ops::call;
use crate::ops::elementwise::SUB;
use crate::ops::embed::GatherRows;
use crate::ops::layout::Concat;
use crate::ops::random::{Rows, names, normal_rows};
use crate::tensor::{Purpose, Stream, Tensor};

/// Scale index of the stream that draws lambda; the times use 0 and 1, the scale 2.
const LAMBDA: u16 = 3;

/// Training of Phi with everything before it frozen.
pub struct MeanFlowStage<'a> {
    cfg: &'a Config,
    msvq: &'a Frozen<Msvq>,
    stats: FeatureStats,
    batches: Batches,
    params: Params,
    phi: Phi,
    learner: Learner,
    guard: Guard,
    notes: Map<String, Value>,
    device: Device,
    parts: usize,
    recomputes: bool,
}

impl<'a> MeanFlowStage<'a> {
    /// Takes over freshly made parameters.
    pub fn new(
        cfg: &'a Config,
        msvq: &'a Frozen<Msvq>,
        stats: FeatureStats,
        batches: Batches,
        (params, phi): (Params, Phi),
    ) -> Result<Self> {
        let learner = Learner::new(&params, &cfg.train.meanflow)?;
        Ok(Self {
            cfg,
            msvq,
            stats,
            batches,
            params,
            phi,
            learner,
            guard: Guard::new(&cfg.train.meanflow),
            notes: Map::new(),
            device: Device::Cpu,
            parts: cfg.train.meanflow.accumulate,
            recomputes: cfg.train.meanflow.recompute,
        })
    }

    /// What a reader of the checkpoint needs beside tensors.
    pub fn with_notes(mut self, notes: Map<String, Value>) -> Self {
        self.notes = notes;
        self
    }

    /// Standardised f_1..f_K and raw f_{k-1} of crops.
    fn features(&self, pixels: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        let _part = span::part("tokenizer");
        let f = self.msvq.encode(&Pass::eval(), &pixels.clone().into())?;
        let (_, sums) = self.msvq.quantiser().walk(f.value())?;
        let r = self.msvq.quantiser().pool(k, &sums[k - 1])?;
        Ok((self.stats.standardise(&sums[k])?, self.stats.standardise(&r)?))
    }

    /// Counterfactual features, each with its factors lambda.
    fn negatives(
        &self,
        b: &TissueBatch,
        (pixels, f): (&Tensor, &Tensor),
        (k, step, rows): (usize, u64, Range<usize>),
    ) -> Result<Vec<(Tensor, Vec<f64>)>> {
        let seed = self.cfg.seed;
        let mut found = Vec::new();
        for operator in operators(&self.cfg.meanflow.counterfactual) {
            found.push(self.features(&operator.apply(pixels, seed, &b.ids)?, k)?.0);
        }
        if self.cfg.meanflow.counterfactual.other_slide {
            found.extend(other_slide(f, &b.slides)?);
        }
        let (lo, hi) = (self.cfg.meanflow.lambda_min, self.cfg.meanflow.lambda_max);
        let with_lambda = |(n, f): (usize, Tensor)| {
            let draws = Stream::new(seed, step, LAMBDA + n as u16, Purpose::Time);
            let draws = draws.uniforms(rows.end).split_off(rows.start);
            (f, draws.iter().map(|&u| lo + (hi - lo) * f64::from(u)).collect())
        };
        Ok(found.into_iter().enumerate().map(with_lambda).collect())
    }

    /// The sums over the parts of a step's batch, and what each part saw.
    fn parts(&mut self, step: u64, checked: bool) -> Result<(Sums, Vec<FlowLoss>)> {
        let batch = self.batches.at(step)?;
        let (all, mut sums, mut seen) = (batch.ids.len(), Sums::default(), Vec::new());
        for rows in parts(all, self.parts) {
            let pass = self.pass().checked(checked);
            let loss = self.forward(&pass, step, (&batch.part(rows.clone())?, rows.clone()))?;
            sums.add(pass, &loss.loss, rows.len() as f64 / all as f64)?;
            seen.push(loss);
        }
        Ok((sums, seen))
    }

    /// The loss of `rows` of a step's batch, which are `b`.
    fn forward(
        &self,
        pass: &Pass,
        step: u64,
        (b, rows): (&TissueBatch, Range<usize>),
    ) -> Result<FlowLoss> {
        let seed = self.cfg.seed;
        let scales = self.cfg.msvq.scales();
        let k = 1 + Stream::new(seed, step, 2, Purpose::Time).below(0, scales - 1);
        let pixels = self.device.put(&b.pixels)?;
        let (f, r_k) = self.features(&pixels, k)?;
        let flow = &self.cfg.meanflow;
        let stage = &self.cfg.train.meanflow;
        let alpha = flow.alpha * ramp(flow.alpha_ramp, stage.steps, step);
        let contrasts = flow.mode != FlowMode::Vit && flow.alpha > 0.0;
        let negatives = match contrasts {
            true => self.negatives(b, (&pixels, &f), (k, step, rows.clone()))?,
            false => Vec::new(),
        };
        let row = f.shape().dims().get(1..).unwrap_or_default().into();
        let each = Rows { scale: k as u16, purpose: Purpose::Noise, row };
        let eps = normal_rows(&self.device, each, &names(seed, &b.ids)?)?;
        let times = Times::draw(flow, seed, step, rows.end).part(rows);
        let batch = FlowBatch {
            k,
            f: &f,
            r_k: &r_k.into(),
            z: &self.device.put(&b.z)?,
            null: &b.null,
            eps: &eps,
            times: &times,
            negatives: &negatives,
            alpha,
        };
        loss(&self.phi, pass, &batch)
    }

    fn pass(&self) -> Pass {
        let needs_tangent = matches!(self.cfg.meanflow.mode, FlowMode::Causal | FlowMode::Vanilla);
        let pass = if needs_tangent { Pass::dual_tape() } else { Pass::tape() };
        pass.training(&self.params).recomputing(self.recomputes)
    }
}

impl Stage for MeanFlowStage<'_> {
    fn name(&self) -> &'static str {
        "meanflow"
    }

    fn step(&mut self, step: u64) -> Result<Pending> {
        let lr = learning_rate(&self.cfg.train.meanflow, step);
        let (sums, losses) = self.parts(step, false)?;
        let (grads, loss) = sums.whole()?;
        let norm = self.learner.norm(&grads)?;
        let gate = self.guard.judge(step, &norm, &[&loss])?;
        self.learner.update(&grads, &gate, lr, step)?;
        let none = || Error::Internal("a batch without parts".into());
        let summary = losses.iter().map(FlowLoss::summary).reduce(Summary::and).ok_or_else(none)?;
        let seen: Vec<&Tensor> = losses.iter().map(FlowLoss::seen).collect();
        let seen = match seen[..] {
            [one] => one.clone(),
            _ => call(&Concat { axis: 0 }, &seen)?,
        };
        let named = move |seen: &[f64]| {
            let names = ["mse", "mse_equal_times", "length_ratio"].map(String::from);
            names.into_iter().zip(summary.of(seen)).collect()
        };
        let numbers = Numbers::new(lr, &loss).under(&gate).one("grad_norm", &norm);
        numbers.many(&seen, named).send()
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = self.learner.state("")?;
        state.extend([self.guard.state()]);
        let (mean, std) = self.stats.parts();
        state.insert("feature.mean".into(), mean.clone());
        state.insert("feature.std".into(), std.clone());
        Ok(state)
    }

    fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        self.learner.restore(&state, "")?;
        self.guard.restore(&state);
        self.stats = FeatureStats::from_state(&state)?;
        self.place(&self.device.clone())
    }

    fn place(&mut self, device: &Device) -> Result<()> {
        self.msvq.place(device)?;
        self.params.place(device)?;
        self.learner.place(device)?;
        self.stats = self.stats.on(device)?;
        self.guard.place(device)?;
        self.device = device.clone();
        Ok(())
    }

    /// The push has its whole weight at the end.
    fn heaviest(&self) -> u64 {
        self.cfg.train.meanflow.steps.saturating_sub(1)
    }

    fn divide(&mut self, parts: usize) -> bool {
        self.parts = parts;
        true
    }

    fn recompute(&mut self, on: bool) -> bool {
        self.recomputes = on;
        true
    }

    fn diagnose(&mut self, step: u64) -> Result<()> {
        let (grads, _) = self.parts(step, true)?.0.whole()?;
        self.learner.blame(&grads)
    }

    fn notes(&self) -> Map<String, Value> {
        self.notes.clone()
    }
}

fn operators(c: &CounterfactualConfig) -> Vec<Counterfactual> {
    let [colour, contrast, sharpen] = Counterfactual::ALL;
    let wanted = [(c.colour, colour), (c.contrast, contrast), (c.sharpness, sharpen)];
    wanted.into_iter().filter(|(on, _)| *on).map(|(_, operator)| operator).collect()
}

/// For each row the features of a row of another slide, or, where the batch holds one slide only,
/// of the next row. None for a batch of one.
fn other_slide(f: &Tensor, slides: &[usize]) -> Result<Option<Tensor>> {
    let rows = slides.len();
    if rows < 2 {
        return Ok(None);
    }
    let other = |i: usize| {
        let mut after = (1..rows).map(|d| (i + d) % rows);
        after.find(|&j| slides[j] != slides[i]).unwrap_or((i + 1) % rows) as i32
    };
    let others = Tensor::new_i32((0..rows).map(other).collect(), [rows])?;
    let flat = f.reshape([rows, f.len() / rows])?;
    call(&GatherRows, &[&flat, &others])?.reshape(f.shape()).map(Some)
}

/// How Phi samples on held-out crops at 0-based scale `k`.
pub struct OneStep {
    /// Mean squared error of f_hat_k to f_k, an element, less the variance between two samples: a
    /// perfect sampler reaches Var(f_k | r_k).
    pub error: f64,
    /// The same error of f_{k-1}, which knows nothing of scale k.
    pub trivial: f64,
    /// Half the mean squared difference of two samples, an element.
    pub dispersion: f64,
}

/// Compares two independent samples with f_k and with each other; all [B, H, H, d], standardised.
pub fn one_step(first: &Tensor, second: &Tensor, f: &Tensor, f_prev: &Tensor) -> Result<OneStep> {
    let mse = |a: &Tensor, b: &Tensor| {
        let d = call(&SUB, &[a, b])?.to_f64s();
        Ok::<_, crate::Error>(d.iter().map(|x| x * x).sum::<f64>() / d.len().max(1) as f64)
    };
    let dispersion = 0.5 * mse(first, second)?;
    let error = 0.5 * (mse(first, f)? + mse(second, f)?) - dispersion;
    Ok(OneStep { error, trivial: mse(f_prev, f)?, dispersion })
}
