//! The stage that trains the masked autoregressive transformer on tokens of the frozen tokenizer,
//! with inputs made by the frozen Phi and its mask.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Stage;
use super::accumulate::{Sums, parts};
use super::frozen::Frozen;
use super::guard::Guard;
use super::learner::Learner;
use super::numbers::{Numbers, Pending};
use super::schedule::learning_rate;
use super::tissue::{Batches, TissueBatch};
use crate::autograd::{Params, Pass, Var};
use crate::config::{Config, RnaEncoding};
use crate::device::{Device, span};
use crate::error::Result;
use crate::models::genevar::{FeatureStats, Refiner, ScaleInputs};
use crate::models::masked_ar::{Cond, Inputs, MaskedAr, TrainNoise};
use crate::models::msvq::Msvq;
use crate::models::phi::Phi;
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine};
use crate::ops::layout::{Concat, Reshape};
use crate::ops::loss::CrossEntropy;
use crate::ops::random::SwapTokens;
use crate::ops::reduce::SumTo;
use crate::tensor::{DType, Purpose, Stream, Tensor};

/// The models before the transformer.
pub struct Before {
    /// The tokenizer.
    pub msvq: Frozen<Msvq>,
    /// Phi; None for plain VAR.
    pub phi: Option<Frozen<Phi>>,
    /// Channel statistics of feature maps.
    pub stats: FeatureStats,
}

/// Training of the transformer.
pub struct ArStage<'a> {
    cfg: &'a Config,
    before: &'a Before,
    /// The statistics of `before`, on the device.
    stats: FeatureStats,
    batches: Batches,
    params: Params,
    model: MaskedAr,
    learner: Learner,
    guard: Guard,
    held_out: Option<Held>,
    notes: Map<String, Value>,
    device: Device,
    parts: usize,
    recomputes: bool,
}

/// Held-out rows, embedded at the first look: only the transformer changes between looks at them.
struct Held {
    every: u64,
    batch: TissueBatch,
    examples: Option<Prepared>,
}

/// A batch with everything the transformer needs.
struct Prepared {
    tokens: Tensor,
    inputs: ScaleInputs,
    /// What the transformer is conditioned on.
    condition: Tensor,
}

impl<'a> ArStage<'a> {
    /// Takes over freshly made (or warm) parameters.
    pub fn new(
        cfg: &'a Config,
        before: &'a Before,
        batches: Batches,
        (params, model): (Params, MaskedAr),
    ) -> Result<Self> {
        let learner = Learner::new(&params, &cfg.train.ar)?;
        Ok(Self {
            cfg,
            before,
            stats: before.stats.clone(),
            batches,
            params,
            model,
            learner,
            guard: Guard::new(&cfg.train.ar),
            held_out: None,
            notes: Map::new(),
            device: Device::Cpu,
            parts: cfg.train.ar.accumulate,
            recomputes: cfg.train.ar.recompute,
        })
    }

    /// What a reader of the checkpoint needs beside tensors.
    pub fn with_notes(mut self, notes: Map<String, Value>) -> Self {
        self.notes = notes;
        self
    }

    /// Every `every` steps logs the loss a token on the first batch of `held_out` under its own z
    /// (`val_own`, at each scale `val_own_k`) and under the null (`val_null`), and the difference
    /// (`val_gap`, `val_gap_k`): the gap is what RNA tells the model, and where it stops growing,
    /// training should.
    pub fn with_held_out(mut self, mut held_out: Batches, every: u64) -> Result<Self> {
        self.held_out = Some(Held { every, batch: held_out.at(0)?, examples: None });
        Ok(self)
    }

    fn prepare(&self, batch: &TissueBatch, noise_step: Option<u64>) -> Result<Prepared> {
        let msvq = &self.before.msvq;
        let part = span::part("tokenizer");
        let f = msvq.encode(&Pass::eval(), &batch.pixels.clone().into())?;
        let tokens = msvq.quantiser().tokens(f.value())?;
        drop(part);
        let seen = match noise_step {
            Some(step) if self.cfg.ar.token_noise > 0.0 => self.corrupt(&tokens, step)?,
            _ => tokens.clone(),
        };
        let pyramid = msvq.quantiser().pyramid(&seen)?;
        let refiner = Refiner {
            msvq,
            phi: self.before.phi.as_deref(),
            stats: self.stats.clone(),
            mask: &self.cfg.mask,
            ar: &self.cfg.ar,
            seed: self.cfg.seed,
        };
        let here = |x: &Tensor| self.device.put(x);
        let inputs = refiner.teacher(&pyramid, &here(&batch.z)?, &batch.ids)?;
        let condition = match (self.cfg.ar.rna, &batch.genes) {
            (RnaEncoding::ClassLabel, _) => &batch.classes,
            (RnaEncoding::Linear, Some(genes)) => genes,
            _ => &batch.z,
        };
        Ok(Prepared { tokens: here(&tokens)?, inputs, condition: here(condition)? })
    }

    /// Replaces a share of the tokens by random ones before they become inputs.
    fn corrupt(&self, tokens: &Tensor, step: u64) -> Result<Tensor> {
        let stream = Stream::new(self.cfg.seed, step, 1, Purpose::Token);
        let (share, codes) = (self.cfg.ar.token_noise, self.cfg.msvq.vocab);
        call(&SwapTokens { stream, share, codes }, &[tokens])
    }

    /// Mean cross-entropy over tokens, with the rows of `null` under the null condition.
    fn loss(
        &self,
        p: &Pass,
        x: &Prepared,
        null: &[bool],
        noise: Option<TrainNoise>,
    ) -> Result<(Var, Tensor)> {
        let cond = match self.cfg.ar.rna {
            RnaEncoding::ClassLabel => Cond::Class(&x.condition),
            _ => Cond::Vector(&x.condition),
        };
        let cond = self.model.condition(p, &cond, null)?;
        let inputs =
            Inputs { features: &x.inputs.features, r: &x.inputs.r, keep: x.inputs.keep.as_ref() };
        let logits = self.model.forward(p, &cond, &inputs, noise)?;
        let n = x.tokens.len();
        let vocab = logits.value().shape().last();
        let logits = p.op(Reshape { to: [n, vocab].into() }, &[&logits])?;
        let targets = Var::constant(x.tokens.reshape([n])?);
        let rows = p.op(CrossEntropy { smoothing: 0.0 }, &[&logits, &targets])?;
        let sum = p.op(SumTo { to: [1].into() }, &[&rows])?;
        let mean = p.op(Affine { scale: 1.0 / n as f64, shift: 0.0 }, &[&sum])?;
        Ok((mean, rows.into_value()))
    }

    /// The sums over the parts of a step's batch, and the share of positions that the mask kept.
    fn forward(&mut self, step: u64, checked: bool) -> Result<(Sums, Tensor)> {
        let batch = self.batches.at(step)?;
        let (rows, mut sums, mut kept) = (batch.ids.len(), Sums::default(), None);
        for (i, part) in parts(rows, self.parts).enumerate() {
            let share = part.len() as f64 / rows as f64;
            let own = batch.part(part)?;
            // Noise is named by rows of a part: each part has names of its own.
            let draw = step * self.parts as u64 + i as u64;
            let x = self.prepare(&own, Some(draw))?;
            let noise = Some(TrainNoise { seed: self.cfg.seed, step: draw });
            let pass = Pass::tape().training(&self.params).checked(checked);
            let pass = pass.recomputing(self.recomputes);
            let (l, _) = self.loss(&pass, &x, &own.null, noise)?;
            sums.add(pass, &l, share)?;
            let Some(keep) = &x.inputs.keep else { continue };
            let keep = call(&Affine { scale: share, shift: 0.0 }, &[&mean(keep)?])?;
            kept = Some(match kept {
                None => keep,
                Some(before) => call(&ADD, &[&before, &keep])?,
            });
        }
        Ok((sums, kept.unwrap_or_else(|| Tensor::full(DType::F32, [1], 1.0))))
    }

    /// Adds the loss on the held-out rows, taken with the running mean of the weights.
    fn look(&mut self, numbers: Numbers) -> Result<Numbers> {
        let Some(mut held) = self.held_out.take() else { return Ok(numbers) };
        let examples = match held.examples.take() {
            Some(examples) => examples,
            None => self.prepare(&held.batch, None)?,
        };
        let numbers = self.looked(&examples, numbers);
        self.held_out = Some(Held { examples: Some(examples), ..held });
        numbers
    }

    fn looked(&self, examples: &Prepared, numbers: Numbers) -> Result<Numbers> {
        let rows = examples.condition.shape().dims().first().copied().unwrap_or(0);
        let at = |null: bool| -> Result<[Tensor; 2]> {
            let nulls = vec![null; rows];
            let (mean, tokens) = self.loss(&Pass::eval(), examples, &nulls, None)?;
            Ok([mean.into_value(), tokens])
        };
        let ([own, owns], [null, nulls]) = self.learner.averaged(|| Ok((at(false)?, at(true)?)))?;
        let n = owns.len();
        let all = call(&Concat { axis: 0 }, &[&own, &null, &owns, &nulls])?;
        let sides = self.cfg.msvq.patch_nums.clone();
        let named = move |x: &[f64]| {
            let (own, null) = (x[0], x[1]);
            let mut named = vec![("val_own", own), ("val_null", null), ("val_gap", null - own)]
                .into_iter()
                .map(|(name, value)| (name.to_string(), value))
                .collect::<Vec<_>>();
            let scales = |x: &[f64]| by_scale(&sides, x);
            for (k, (own, null)) in
                scales(&x[2..2 + n]).into_iter().zip(scales(&x[2 + n..])).enumerate()
            {
                named.push((format!("val_own_{}", k + 1), own));
                named.push((format!("val_gap_{}", k + 1), null - own));
            }
            named
        };
        Ok(numbers.many(&all, named))
    }
}

/// Means over the tokens of each scale, of these sides, of losses [B L].
fn by_scale(sides: &[usize], all: &[f64]) -> Vec<f64> {
    let (length, mut first) = (sides.iter().map(|p| p * p).sum::<usize>(), 0);
    let one = |&side: &usize| {
        let scale = first..first + side * side;
        first = scale.end;
        let of = all.chunks(length).flat_map(|row| &row[scale.clone()]);
        of.sum::<f64>() * length as f64 / (all.len() * scale.len()).max(1) as f64
    };
    sides.iter().map(one).collect()
}

fn mean(x: &Tensor) -> Result<Tensor> {
    let sum = call(&SumTo { to: [1].into() }, &[x])?;
    call(&Affine { scale: 1.0 / x.len().max(1) as f64, shift: 0.0 }, &[&sum])
}

impl Stage for ArStage<'_> {
    fn name(&self) -> &'static str {
        "ar"
    }

    fn step(&mut self, step: u64) -> Result<Pending> {
        let lr = learning_rate(&self.cfg.train.ar, step);
        let (sums, keep) = self.forward(step, false)?;
        let (grads, loss) = sums.whole()?;
        let norm = self.learner.norm(&grads)?;
        let gate = self.guard.judge(step, &norm, &[&loss])?;
        self.learner.update(&grads, &gate, lr, step)?;
        let numbers = Numbers::new(lr, &loss).one("keep_rate", &keep).one("grad_norm", &norm);
        let numbers = numbers.under(&gate);
        match self.held_out.as_ref().is_some_and(|h| step.is_multiple_of(h.every)) {
            true => self.look(numbers)?.send(),
            false => numbers.send(),
        }
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
        self.place(&self.device.clone())
    }

    fn place(&mut self, device: &Device) -> Result<()> {
        self.before.msvq.place(device)?;
        self.before.phi.iter().try_for_each(|phi| phi.place(device))?;
        self.stats = self.before.stats.on(device)?;
        self.params.place(device)?;
        self.learner.place(device)?;
        self.guard.place(device)?;
        if let Some(held) = &mut self.held_out {
            held.examples = None;
        }
        self.device = device.clone();
        Ok(())
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
        let (grads, _) = self.forward(step, true)?.0.whole()?;
        self.learner.blame(&grads)
    }

    fn notes(&self) -> Map<String, Value> {
        self.notes.clone()
    }
}
