//! Whole pieces of work: a batch of tiles, Phi's Jacobian-vector product, a training step of Phi
//! and of the transformer on made-up features.

use genevar::autograd::{Gradients, Params, Pass, Var};
use genevar::config::Config;
use genevar::device::Device;
use genevar::models::masked_ar::{Cond, Dims, Inputs, MaskedAr};
use genevar::models::meanflow::{FlowBatch, Times, loss};
use genevar::models::phi::{Phi, PhiDims, PhiInput};
use genevar::ops::elementwise::Affine;
use genevar::ops::layout::Reshape;
use genevar::ops::loss::CrossEntropy;
use genevar::ops::reduce::SumTo;
use genevar::sample::{Graphs, Sampler, Subject};
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::bundle::Bundle;
use genevar::train::learner::Learner;
use genevar::train::system::System;
use genevar::{Error, Result};
use serde_json::{Value, json};

use super::{Job, Named};

/// Standard normals that a number names.
fn normals(n: u64, shape: &[usize]) -> Result<Tensor> {
    let stream = Stream::new(77, n, 0, Purpose::Test);
    Tensor::new(stream.normals(shape.iter().product()), shape)
}

fn named<const N: usize>(all: [(&str, &Tensor); N]) -> Named {
    all.map(|(name, tensor)| (name.to_string(), tensor.clone())).into()
}

/// A batch of tiles.
pub struct TileJob<'a> {
    sampler: Sampler<'a>,
    subjects: Vec<Subject>,
}

impl<'a> TileJob<'a> {
    pub fn new(system: &'a System, tiles: usize) -> Result<Self> {
        let latent = system.config.beta_vae.latent;
        let subject = |id| Ok(Subject { id, z: normals(id, &[1, latent])?, other: None });
        let subjects = (0..tiles as u64).map(subject).collect::<Result<_>>()?;
        let (refiner, device) = (system.refiner(5), system.device.clone());
        let (settings, graphs) = (&system.config.sample, Graphs::default());
        Ok(Self {
            sampler: Sampler { refiner, ar: &system.ar, settings, device, graphs },
            subjects,
        })
    }
}

impl Job for TileJob<'_> {
    fn about(&self) -> Value {
        let ids: Vec<u64> = self.subjects.iter().map(|s| s.id).collect();
        json!({"seed": self.sampler.refiner.seed, "ids": ids})
    }

    fn inputs(&self) -> Result<Named> {
        let z: Vec<f32> =
            self.subjects.iter().map(|s| s.z.f32s()).collect::<Result<Vec<_>>>()?.concat();
        let n = self.subjects.len();
        Ok(vec![("z".into(), Tensor::new(z.clone(), [n, z.len() / n.max(1)])?)])
    }

    fn run(&mut self) -> Result<Named> {
        let tiles = self.sampler.batch(&self.subjects)?;
        let mut all = Named::new();
        for (i, tile) in tiles.iter().enumerate() {
            all.push((format!("tokens{i}"), tile.tokens.clone()));
            all.push((format!("latent{i}"), tile.latent.clone()));
            all.push((format!("pixels{i}"), tile.pixels.clone()));
        }
        Ok(all)
    }
}

/// A model that is trained: its parameters, its optimiser and how far it is.
struct Student {
    params: Params,
    learner: Learner,
    start: Vec<Tensor>,
    taken: u64,
}

impl Student {
    fn new(params: Params, (config, stage): (&Config, usize), device: &Device) -> Result<Self> {
        let start = params.iter().map(|p| p.value()).collect();
        let mut learner = Learner::new(&params, config.train.stages()[stage])?;
        params.place(device)?;
        learner.place(device)?;
        Ok(Self { params, learner, start, taken: 0 })
    }

    /// Takes an update; the loss, and the gradients of the widest matrices.
    fn learn(&mut self, loss: &Var, grads: &Gradients) -> Result<Named> {
        let norm = self.learner.norm(grads)?;
        self.learner.update(grads, &norm, 1e-4, self.taken)?;
        self.taken += 1;
        let mut all = named([("loss", loss.value()), ("norm", &norm)]);
        let shown =
            ["blocks.0.attn.qkv.weight", "blocks.0.ada.weight", "head.weight", "out.weight"];
        for p in self.params.iter().filter(|p| shown.contains(&p.name())) {
            let missing = || Error::Internal(format!("{} has no gradient", p.name()));
            all.push((format!("grad.{}", p.name()), grads.param(p).ok_or_else(missing)?.clone()));
        }
        Ok(all)
    }

    /// Puts the weights back, so that a written step is the first one.
    fn forget(&self, device: &Device) -> Result<()> {
        self.params.iter().zip(&self.start).try_for_each(|(p, v)| p.set(device.put(v)?))
    }
}

/// The weights of a bundle's stage, in a model's parameters.
fn weights(params: &Params, bundle: &Bundle, stage: &str) -> Result<()> {
    params.load(&bundle.stage(stage)?.tensors, "param.")
}

/// Features, noise and conditions of Phi.
struct Flow {
    f: Tensor,
    r_k: Tensor,
    z: Tensor,
    eps: Tensor,
    k: usize,
}

impl Flow {
    fn new(c: &Config, rows: usize, device: &Device) -> Result<Self> {
        let (h, d, k) = (c.msvq.latent_side(), c.msvq.d, c.msvq.scales() - 1);
        let p = c.msvq.patch_nums[k];
        let put = |n, shape: &[usize]| device.put(&normals(n, shape)?);
        Ok(Self {
            f: put(1, &[rows, h, h, d])?,
            r_k: put(2, &[rows, p, p, d])?,
            z: put(3, &[rows, c.beta_vae.latent])?,
            eps: put(4, &[rows, h, h, d])?,
            k,
        })
    }

    fn inputs(&self) -> Named {
        named([("f", &self.f), ("r_k", &self.r_k), ("z", &self.z), ("eps", &self.eps)])
    }
}

fn phi(bundle: &Bundle) -> Result<(Phi, Params)> {
    let c = &bundle.config;
    let (side, d, latent) = (c.msvq.latent_side(), c.msvq.d, c.beta_vae.latent);
    let dims = PhiDims { side, d, latent, patch_nums: c.msvq.patch_nums.clone() };
    let mut params = Params::new(0);
    let phi = Phi::new(&c.meanflow, &dims, &mut params);
    weights(&params, bundle, "meanflow")?;
    Ok((phi, params))
}

/// Phi's value and its derivative along (v, 0, 1), as MeanFlow's target wants them.
pub struct JvpJob {
    phi: Phi,
    flow: Flow,
    t: Tensor,
    r: Tensor,
    one: Tensor,
}

impl JvpJob {
    pub fn new(bundle: &Bundle, rows: usize, device: &Device) -> Result<Self> {
        let (phi, params) = phi(bundle)?;
        params.place(device)?;
        let at = |x: f64| device.put(&Tensor::full(DType::F32, [rows], x));
        let flow = Flow::new(&bundle.config, rows, device)?;
        Ok(Self { phi, flow, t: at(0.75)?, r: at(0.25)?, one: at(1.0)? })
    }
}

impl Job for JvpJob {
    fn about(&self) -> Value {
        json!({"k": self.flow.k, "t": 0.75, "r": 0.25})
    }

    fn inputs(&self) -> Result<Named> {
        Ok(self.flow.inputs())
    }

    fn run(&mut self) -> Result<Named> {
        let p = Pass::dual();
        let null = vec![false; self.t.len()];
        let u = self.phi.forward(
            &p,
            &PhiInput {
                f: &p.with_tangent(self.flow.f.clone(), self.flow.eps.clone()),
                r_k: &self.flow.r_k.clone().into(),
                z: (&self.flow.z).into(),
                null: &null,
                t: &p.with_tangent(self.t.clone(), self.one.clone()),
                r: &self.r.clone().into(),
                k: self.flow.k,
            },
        )?;
        let none = || Error::Internal("Phi has no tangent".into());
        let du = u.tangent().ok_or_else(none)?.clone().into_tensor();
        Ok(named([("u", u.value()), ("du", &du)]))
    }
}

/// A training step of Phi: JVP, contrastive loss with one negative, gradients, AdamW.
pub struct FlowJob {
    phi: Phi,
    student: Student,
    flow: Flow,
    negative: Tensor,
    times: Times,
    device: Device,
}

/// Weight of the push.
const ALPHA: f64 = 0.05;

impl FlowJob {
    pub fn new(bundle: &Bundle, rows: usize, device: &Device) -> Result<Self> {
        let (phi, params) = phi(bundle)?;
        let student = Student::new(params, (&bundle.config, 2), device)?;
        let flow = Flow::new(&bundle.config, rows, device)?;
        let negative = device.put(&normals(9, flow.f.shape().dims())?)?;
        // Every fourth row has r = t, as a batch of training has.
        let r = (0..rows).map(|i| if i % 4 == 3 { 0.75 } else { 0.25 }).collect();
        let times = Times { t: vec![0.75; rows], r };
        Ok(Self { phi, student, flow, negative, times, device: device.clone() })
    }
}

impl Job for FlowJob {
    fn about(&self) -> Value {
        let Times { t, r } = &self.times;
        json!({"k": self.flow.k, "t": t, "r": r, "alpha": ALPHA, "lambda": 1.0, "lr": 1e-4})
    }

    fn inputs(&self) -> Result<Named> {
        let mut all = self.flow.inputs();
        all.push(("negative".into(), self.negative.clone()));
        Ok(all)
    }

    fn run(&mut self) -> Result<Named> {
        let rows = self.times.t.len();
        let pass = Pass::dual_tape().training(&self.student.params);
        let batch = FlowBatch {
            k: self.flow.k,
            f: &self.flow.f,
            r_k: &self.flow.r_k.clone().into(),
            z: &self.flow.z,
            null: &vec![false; rows],
            eps: &self.flow.eps,
            times: &self.times,
            negatives: &[(self.negative.clone(), vec![1.0; rows])],
            alpha: ALPHA,
        };
        let l = loss(&self.phi, &pass, &batch)?;
        let grads = pass.backward(&l.loss)?;
        self.student.learn(&l.loss, &grads)
    }

    fn again(&mut self) -> Result<()> {
        self.student.forget(&self.device)
    }
}

/// A training step of the transformer: teacher forcing on made-up features, gradients, AdamW.
pub struct ArJob {
    model: MaskedAr,
    student: Student,
    z: Tensor,
    features: Tensor,
    r: Tensor,
    keep: Tensor,
    tokens: Tensor,
    device: Device,
}

impl ArJob {
    pub fn new(bundle: &Bundle, rows: usize, device: &Device) -> Result<Self> {
        let c = &bundle.config;
        let (genes, vocab) = (c.beta_vae.genes, c.msvq.vocab);
        let patch_nums = c.msvq.patch_nums.clone();
        let (all, first) = (c.msvq.tokens(), patch_nums[0].pow(2));
        let dims = Dims { latent: c.beta_vae.latent, genes, d: c.msvq.d, vocab, patch_nums };
        let mut params = Params::new(0);
        let model = MaskedAr::new(&c.ar, &dims, &mut params)?;
        weights(&params, bundle, "ar")?;
        let student = Student::new(params, (c, 3), device)?;
        let draw = Stream::new(78, 0, 0, Purpose::Test);
        let tokens = (0..rows * all).map(|i| draw.below(i, vocab) as i32).collect();
        let n = all - first;
        let keep = (0..rows * n).map(|i| draw.below(rows * all + i, 2) as f32).collect();
        Ok(Self {
            model,
            student,
            z: device.put(&normals(3, &[rows, c.beta_vae.latent])?)?,
            features: device.put(&normals(5, &[rows, n, c.msvq.d])?)?,
            r: device.put(&normals(6, &[rows, n, c.msvq.d])?)?,
            keep: device.put(&Tensor::new(keep, [rows, n, 1])?)?,
            tokens: device.put(&Tensor::new_i32(tokens, [rows, all])?)?,
            device: device.clone(),
        })
    }
}

impl Job for ArJob {
    fn about(&self) -> Value {
        json!({"lr": 1e-4})
    }

    fn inputs(&self) -> Result<Named> {
        Ok(named([
            ("z", &self.z),
            ("features", &self.features),
            ("r", &self.r),
            ("keep", &self.keep),
            ("tokens", &self.tokens),
        ]))
    }

    fn run(&mut self) -> Result<Named> {
        let p = Pass::tape().training(&self.student.params);
        let rows = self.z.shape().dims()[0];
        let cond = self.model.condition(&p, &Cond::Vector(&self.z), &vec![false; rows])?;
        let inputs = Inputs { features: &self.features, r: &self.r, keep: Some(&self.keep) };
        let logits = self.model.forward(&p, &cond, &inputs, None)?;
        let n = self.tokens.len();
        let logits = p.op(Reshape { to: [n, logits.value().shape().last()].into() }, &[&logits])?;
        let targets = Var::constant(self.tokens.reshape([n])?);
        let each = p.op(CrossEntropy { smoothing: 0.0 }, &[&logits, &targets])?;
        let sum = p.op(SumTo { to: [1].into() }, &[&each])?;
        let mean = p.op(Affine { scale: 1.0 / n as f64, shift: 0.0 }, &[&sum])?;
        let grads = p.backward(&mean)?;
        self.student.learn(&mean, &grads)
    }

    fn again(&mut self) -> Result<()> {
        self.student.forget(&self.device)
    }
}
