//! Ops at the shapes of a model's layers, each with what PyTorch has to know of it.

use genevar::config::Config;
use genevar::device::Device;
use genevar::ops::attention::{Attention, AttentionDual, Mask};
use genevar::ops::conv::{Conv2d, FusedConv};
use genevar::ops::gemm::{Act, FusedLinear, Linear};
use genevar::ops::group_norm::GroupNorm;
use genevar::ops::layout::rounded;
use genevar::ops::loss::CrossEntropy;
use genevar::ops::mask::KeepMask;
use genevar::ops::mask::Level;
use genevar::ops::norm::{AdaNorm, UnitHeads};
use genevar::ops::quantize::NearestCode;
use genevar::ops::sample::SampleToken;
use genevar::ops::{Case, Input, Op, Precision, run};
use genevar::tensor::{DType, Tensor};
use genevar::{Error, Result};
use serde_json::{Value, json};

use super::{Job, Named};
use crate::data::{fill, seed};

/// An op with its inputs where it runs.
pub struct OpJob {
    case: Case,
    about: Value,
    x: Vec<Tensor>,
}

impl Job for OpJob {
    fn about(&self) -> Value {
        self.about.clone()
    }

    fn inputs(&self) -> Result<Named> {
        Ok((0..).map(|i| format!("x{i}")).zip(self.x.iter().cloned()).collect())
    }

    fn run(&mut self) -> Result<Named> {
        let outs = run(&*self.case.op, &self.x.iter().collect::<Vec<_>>())?;
        Ok((0..).map(|i| format!("y{i}")).zip(outs).collect())
    }
}

/// A case and its description, inputs not made yet.
pub struct Listed {
    /// Its name among the jobs.
    pub name: String,
    case: Case,
    about: Value,
}

impl Listed {
    fn new(name: String, op: impl Op, inputs: Vec<Input>, mut about: Value) -> Self {
        let case = Case::new(name.clone(), op, inputs);
        about["op"] = json!(case.op.name());
        Self { name, case, about }
    }

    /// With random inputs on a device, real ones in this precision where there are two.
    pub fn make(self, device: &Device, precision: Precision) -> Result<OpJob> {
        let Self { name, case, about } = self;
        let data = fill(&*case.op, &case.inputs, seed(&name));
        let narrow = matches!(device, Device::Cuda(_)) && precision == Precision::Bf16;
        let put = |(i, d): (usize, &crate::data::Data)| {
            let here = device.put(&d.tensor())?;
            let wide = case.op.f32_inputs().contains(&i) || here.dtype() == DType::I32;
            if narrow && !wide { rounded(&here) } else { Ok(here) }
        };
        let x = data.iter().enumerate().map(put).collect::<Result<_>>()?;
        Ok(OpJob { case, about, x })
    }
}

/// What the layers of a configuration do, a tile at a time with its guided twin.
pub fn all(c: &Config) -> Result<Vec<Listed>> {
    let sides = &c.msvq.patch_nums;
    let (side, last) = match sides.last() {
        Some(&side) => (side, sides.len() - 1),
        None => return Err(Error::Internal("a configuration has scales".into())),
    };
    let mut jobs = Vec::new();
    let mut seen = 0;
    for (k, p) in sides.iter().enumerate() {
        seen += p * p;
        scale(c, (k, p * p, seen), &mut jobs);
    }
    let (d, vocab) = (c.msvq.d, c.msvq.vocab);
    let codes = vec![Input::normal([side * side, d]), Input::normal([vocab, d])];
    let near = NearestCode { cosine: false };
    jobs.push(Listed::new("nearest_code".into(), near, codes, json!({})));
    let n = side * side;
    let keep = KeepMask { level: Level::ZScore, sampled: false, scale: last as u16 };
    let x = vec![Input::normal([1, side, side, d]), Input::below([1, 4], 1 << 20)];
    jobs.push(Listed::new("keep_mask".into(), keep, x, json!({})));
    let op = SampleToken { top_k: c.sample.kept(vocab), top_p: 0.95, guidance: Some(4.0) };
    let about = json!({"top_k": op.top_k, "top_p": op.top_p, "guidance": op.guidance});
    let x = vec![Input::normal([2, n, vocab]), Input::uniform([1, n], 0.0, 1.0)];
    jobs.push(Listed::new("sample_token".into(), op, x, about));
    training(c, seen, &mut jobs);
    decoder(c, &mut jobs);
    Ok(jobs)
}

/// The transformer's layers at 0-based scale k of n tokens, `seen` with those before.
fn scale(c: &Config, (k, n, seen): (usize, usize, usize), jobs: &mut Vec<Listed>) {
    let (w, h) = (c.ar.width, c.ar.heads);
    let mut add = |name: &str, op: FusedLinear, [i, o]: [usize; 2], onto: bool| {
        let mut x = vec![Input::normal([2, n, i]), Input::normal([o, i]), Input::normal([o])];
        let about = json!({"gelu": op.act == Act::Gelu});
        if onto {
            x.extend([Input::normal([2, n, o]), Input::normal([2, 1, o])]);
        }
        jobs.push(Listed::new(format!("{name}/scale{}", k + 1), op, x, about));
    };
    let of = |act| FusedLinear { act, keep: false };
    add("qkv", of(Act::None), [w, 3 * w], false);
    add("proj", of(Act::None), [w, w], true);
    add("fc1", of(Act::Gelu), [w, 4 * w], false);
    add("fc2", of(Act::None), [4 * w, w], true);
    add("head", of(Act::None), [w, c.msvq.vocab], false);
    let scale = k + 1;
    let x = vec![Input::normal([2, n, w]), Input::normal([2, 1, w]), Input::normal([2, 1, w])];
    jobs.push(Listed::new(format!("ada_norm/scale{scale}"), AdaNorm { eps: 1e-6 }, x, json!({})));
    let x = vec![Input::normal([2, n, 3 * w]), Input::normal([h, 1])];
    let heads = UnitHeads { heads: h };
    jobs.push(Listed::new(format!("unit_heads/scale{scale}"), heads, x, json!({"heads": h})));
    let [q, kv] = [n, seen].map(|n| Input::normal([2, n, h, w / h]));
    let op = Attention { scale: 0.125, mask: Mask::Full };
    let about = json!({"scale": op.scale});
    jobs.push(Listed::new(format!("attention/scale{scale}"), op, vec![q, kv.clone(), kv], about));
}

/// What training does beside the layers of sampling, on `tokens` tokens a tile.
fn training(c: &Config, tokens: usize, jobs: &mut Vec<Listed>) {
    let (w, h, vocab) = (c.ar.width, c.ar.heads, c.msvq.vocab);
    let squares = c.msvq.patch_nums.iter().map(|p| p * p);
    let ends: Vec<usize> =
        squares.scan(0, |at, n| Some(std::mem::replace(at, *at + n) + n)).collect();
    let qkv = || vec![Input::normal([1, tokens, h, w / h]); 3];
    let op = Attention { scale: 0.125, mask: Mask::Blocks(ends.clone()) };
    let about = json!({"scale": op.scale, "ends": ends});
    jobs.push(Listed::new("attention/causal".into(), op, qkv(), about));
    let x = vec![Input::normal([tokens, vocab]), Input::below([tokens], vocab)];
    let loss = CrossEntropy { smoothing: 0.0 };
    jobs.push(Listed::new("cross_entropy".into(), loss, x, json!({})));
    let x = vec![Input::normal([1, tokens, w]), Input::normal([3 * w, w]), Input::normal([3 * w])];
    jobs.push(Listed::new("linear/causal".into(), Linear, x, json!({"gelu": false})));
    // Phi's self-attention with its tangent, in one pass.
    let m = &c.meanflow;
    let n = c.msvq.latent_side().pow(2);
    let x = vec![Input::normal([1, n, m.width / m.head_width, m.head_width]); 6];
    let of = Attention { scale: 0.125, mask: Mask::Full };
    let about = json!({"scale": of.scale});
    let op = AttentionDual { of, given: [true; 3] };
    jobs.push(Listed::new("attention/jvp".into(), op, x, about));
}

/// The decoder's convolutions and norms, each size once.
fn decoder(c: &Config, jobs: &mut Vec<Listed>) {
    let m = &c.msvq;
    let mut side = m.latent_side();
    for (i, by) in m.ch_mult.iter().enumerate().rev() {
        let w = m.ch * by;
        let map = || Input::normal([1, side, side, w]);
        let x = vec![map(), Input::normal([w, 3, 3, w]), Input::normal([w]), map()];
        let op = FusedConv { conv: Conv2d::same(3), double: false };
        jobs.push(Listed::new(format!("conv/{side}x{side}x{w}"), op, x, json!({"double": false})));
        if i > 0 {
            let x = vec![map(), Input::normal([w, 3, 3, w]), Input::normal([w])];
            let op = FusedConv { conv: Conv2d::same(3), double: true };
            let name = format!("conv_up/{side}x{side}x{w}");
            jobs.push(Listed::new(name, op, x, json!({"double": true})));
        }
        let groups = m.groups(w);
        let op = GroupNorm { groups, eps: 1e-6, silu: true };
        let x = vec![map(), Input::normal([w]), Input::normal([w])];
        jobs.push(Listed::new(
            format!("group_norm/{side}x{side}x{w}"),
            op,
            x,
            json!({"groups": groups}),
        ));
        side *= 2;
    }
}
