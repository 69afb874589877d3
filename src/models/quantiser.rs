//! Residual multi-scale quantisation (VAR; algorithm.md 1.4): a latent map as K token maps that
//! grow.
//!
//! With D_p the area pooling to p x p, U_p the bicubic enlargement and e the code book, scale k
//! takes s_k = nearest code of D_p(rest), h = phi(U_p(`e[s_k]`)), rest -= h, f_k = f_{k-1} + h. At
//! the last scale nothing is resized. D_p U_p is not the identity, so quantising f_k again gives
//! other tokens.

use crate::autograd::{Param, Params, Pass, Var};
use crate::config::{Lookup, MsvqConfig};
use crate::device::Device;
use crate::error::{Error, Result, Within};
use crate::nn::conv::{Conv, ConvInit};
use crate::ops::activation::Square;
use crate::ops::call;
use crate::ops::conv::Conv2d;
use crate::ops::elementwise::{ADD, Affine, Axpy, Mul, SUB};
use crate::ops::embed::GatherRows;
use crate::ops::layout::{Concat, Narrow, Reshape};
use crate::ops::pyramid::{QuantisePyramid, QuantiseRests};
use crate::ops::quantize::NearestCode;
use crate::ops::reduce::SumTo;
use crate::ops::resample::{Map, Resample};
use crate::tensor::{DType, Tensor};

/// The code book, the convolutions phi and the order of the scales.
pub struct Quantiser {
    config: MsvqConfig,
    book: Param,
    phi: Vec<Conv>,
}

/// How many scales each sample keeps: of a batch, or of a part of one whose losses are weighed as
/// the batch's are.
#[derive(Clone, Copy, Debug)]
pub struct Keep<'a> {
    /// Those that are quantised.
    pub part: &'a [usize],
    /// All of the batch.
    pub batch: &'a [usize],
}

impl<'a, T: AsRef<[usize]>> From<&'a T> for Keep<'a> {
    /// A whole batch.
    fn from(batch: &'a T) -> Self {
        Self { part: batch.as_ref(), batch: batch.as_ref() }
    }
}

impl Keep<'_> {
    /// How many samples a mean over those that keep 0-based scale `k` is over; in a part, its share
    /// of the batch's.
    fn samples(&self, k: usize) -> f64 {
        let kept = self.batch.iter().filter(|&&n| n > k).count();
        kept as f64 * (self.part.len() as f64 / self.batch.len().max(1) as f64)
    }
}

/// The codes that a batch was given, and what they were given for.
pub struct Codes {
    /// Tokens of all scales in a row, [B, L].
    pub tokens: Tensor,
    /// What was left for each scale, [B, h, w, d].
    rests: Vec<Tensor>,
}

/// What quantising a batch in training gives.
pub struct Quantised {
    /// f_K with the gradient of f: the decoder's input.
    pub latent: Var,
    /// The vector-quantisation loss, one element.
    pub loss: Var,
    /// The codes.
    pub codes: Codes,
}

/// Maps [B, p, p, d] of all scales in a row: [B, L, d].
fn in_a_row(maps: &[Tensor]) -> Result<Tensor> {
    let one = |map: &Tensor| {
        let (b, d) = (map.shape().dims().first().copied().unwrap_or(0), map.shape().last());
        map.reshape([b, map.len() / (b * d).max(1), d])
    };
    let rows = maps.iter().map(one).collect::<Result<Vec<_>>>()?;
    call(&Concat { axis: 1 }, &rows.iter().collect::<Vec<_>>())
}

/// One scale's step: the tokens, the vectors they stand for, and what they add to the map.
struct Step {
    tokens: Tensor,
    wanted: Tensor,
    adds: Var,
}

impl Quantiser {
    /// `book` is uniform within 1 / V until k-means fills it; each phi starts as the identity.
    pub fn new(config: &MsvqConfig, params: &mut Params) -> Self {
        let (v, d) = (config.vocab, config.d);
        let book = params.uniform("book", [v, d], 1.0 / v.max(1) as f64, false);
        let phi = |p: &mut Params, j: usize| {
            Conv::new(p, &format!("phi.{j}"), [d, d], Conv2d::same(3), ConvInit::Identity)
        };
        let phi = (0..config.phi).map(|j| phi(params, j)).collect();
        Self { config: config.clone(), book, phi }
    }

    /// The code book [V, d].
    pub fn book(&self) -> &Param {
        &self.book
    }

    /// Number of scales K.
    pub fn scales(&self) -> usize {
        self.config.scales()
    }

    /// Side of the token map of 0-based scale `k`.
    pub fn side(&self, k: usize) -> usize {
        self.config.patch_nums[k]
    }

    /// Where scale `k` begins in a row of tokens.
    pub fn offset(&self, k: usize) -> usize {
        self.config.patch_nums[..k].iter().map(|p| p * p).sum()
    }

    /// Tokens [B, L] (i32) of a latent map f [B, h, w, d], all scales in a row.
    ///
    /// # Errors
    /// A value of f that is not finite has no nearest code.
    pub fn tokens(&self, f: &Tensor) -> Result<Tensor> {
        let on_chip = self.fused().fits(self.config.latent_side(), self.config.d);
        if f.remote().is_some() && on_chip {
            return self.tokens_at_once(f);
        }
        self.joined(&self.walk(f)?.0)
    }

    /// Token maps [B, p, p] of all scales in a row: [B, L].
    fn joined(&self, maps: &[Tensor]) -> Result<Tensor> {
        let b = maps.first().map_or(0, |m| m.shape().dims().first().copied().unwrap_or(0));
        let mut all = Vec::with_capacity(b * self.config.tokens());
        for sample in 0..b {
            for (map, side) in maps.iter().zip(&self.config.patch_nums) {
                let n = side * side;
                all.extend_from_slice(&map.i32s()?[sample * n..(sample + 1) * n]);
            }
        }
        Tensor::new_i32(all, [b, self.config.tokens()])
    }

    /// The walk through the scales as one op.
    fn fused(&self) -> QuantisePyramid {
        QuantisePyramid {
            sides: self.config.patch_nums.clone(),
            phis: (0..self.scales()).map(|k| self.config.phi_of(k)).collect(),
            share: self.config.quant_resi,
            cosine: self.config.lookup == Lookup::Cosine,
        }
    }

    /// [`Quantiser::tokens`] as one op, which a GPU runs without a word to the host; on the CPU it
    /// is slower than the walk. A value that is not finite gives -1.
    pub fn tokens_at_once(&self, f: &Tensor) -> Result<Tensor> {
        let (filters, biases) = self.filters(&Pass::eval())?;
        call(&self.fused(), &[f, &self.book.value(), filters.value(), biases.value()])
    }

    /// Token maps, and f_1 .. f_K beside them, of a latent map f [B, h, w, d].
    pub fn walk(&self, f: &Tensor) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let p = Pass::eval();
        let mut rest = f.clone();
        let mut sum = Tensor::zeros(f.dtype(), f.shape());
        let (mut maps, mut sums) = (Vec::new(), Vec::new());
        for k in 0..self.scales() {
            let step = self.quantise_scale(&p, k, &rest)?;
            sum = call(&ADD, &[&sum, step.adds.value()])?;
            rest = call(&SUB, &[&rest, step.adds.value()])?;
            maps.push(step.tokens);
            sums.push(sum.clone());
        }
        Ok((maps, sums))
    }

    /// f_1 .. f_K, each [B, h, w, d], of tokens [B, L].
    pub fn pyramid(&self, tokens: &Tensor) -> Result<Vec<Tensor>> {
        let b = match tokens.shape().dims() {
            &[b, l] if l == self.config.tokens() => b,
            _ => {
                let what = format!("{} is not [B, {}]", tokens.shape(), self.config.tokens());
                return Err(Error::shape("tokens", what));
            }
        };
        let ends: Vec<usize> = (1..=self.scales()).map(|k| self.offset(k)).collect();
        self.check(tokens, |i| ends.partition_point(|&end| end <= i % self.config.tokens()))?;
        let p = Pass::eval();
        let (h, d) = (self.config.latent_side(), self.config.d);
        let codes = call(&GatherRows, &[&self.book.value(), tokens])?;
        let zeros = Tensor::zeros(codes.dtype(), [b, h, h, d]);
        let mut f = Device::of([&codes]).put(&zeros)?;
        let mut pyramid = Vec::with_capacity(self.scales());
        for k in 0..self.scales() {
            let (start, side) = (self.offset(k), self.side(k));
            let own = call(&Narrow { axis: 1, start, len: side * side }, &[&codes])?;
            let adds = self.raise(&p, k, &own.reshape([b, side, side, d])?.into())?;
            f = call(&ADD, &[&f, adds.value()])?;
            pyramid.push(f.clone());
        }
        Ok(pyramid)
    }

    /// f_k of f_{k-1} [B, h, w, d] and the tokens [B, p^2] of 0-based scale `k`.
    ///
    /// # Errors
    /// Tokens outside the code book.
    pub fn add_scale(&self, f: &Tensor, k: usize, tokens: &Tensor) -> Result<Tensor> {
        let side = self.side(k);
        self.check(tokens, |_| k)?;
        let b = f.shape().dims().first().copied().unwrap_or(0);
        let adds = self.lift(&Pass::eval(), k, &tokens.reshape([b, side, side])?)?;
        call(&ADD, &[f, adds.value()])
    }

    /// f_1 of the tokens [B, p^2] of the first scale.
    ///
    /// # Errors
    /// Tokens outside the code book.
    pub fn first_scale(&self, tokens: &Tensor) -> Result<Tensor> {
        let side = self.side(0);
        self.check(tokens, |_| 0)?;
        let b = tokens.shape().dims().first().copied().unwrap_or(0);
        Ok(self.lift(&Pass::eval(), 0, &tokens.reshape([b, side, side])?)?.into_value())
    }

    /// Fails for tokens outside the code book. On a GPU nobody waits to look: what is no token
    /// becomes NaN there.
    fn check(&self, tokens: &Tensor, scale: impl Fn(usize) -> usize) -> Result<()> {
        let vocab = self.config.vocab as i32;
        let seen = if tokens.remote().is_none() { tokens.i32s()? } else { &[] };
        let Some(at) = seen.iter().position(|t| !(0..vocab).contains(t)) else { return Ok(()) };
        let (bad, k) = (seen[at], scale(at) + 1);
        Err(Error::shape("tokens", format!("token {bad} at scale {k} of a book of {vocab}")))
    }

    /// D_p of 0-based scale `k`: f [B, h, w, d] to [B, p, p, d]. Of f_{k-1} this is r_k.
    pub fn pool(&self, k: usize, f: &Tensor) -> Result<Tensor> {
        let side = self.side(k);
        match side == self.config.latent_side() {
            true => Ok(f.clone()),
            false => call(&resize(Map::Area, self.config.latent_side(), side), &[f]),
        }
    }

    /// h = phi(U_p(`e[s]`)) for tokens s [B, p, p] of scale `k`.
    fn lift(&self, p: &Pass, k: usize, tokens: &Tensor) -> Result<Var> {
        self.raise(p, k, &p.op(GatherRows, &[&p.param(&self.book), &tokens.clone().into()])?)
    }

    /// phi(U_p(h)) for vectors h [B, p, p, d] of scale `k`.
    fn raise(&self, p: &Pass, k: usize, h: &Var) -> Result<Var> {
        let side = self.config.latent_side();
        let h = match self.side(k) == side {
            true => h.clone(),
            false => p.op(resize(Map::Bicubic, self.side(k), side), &[h])?,
        };
        let q = self.config.quant_resi;
        let Some(conv) = self.phi.get(self.config.phi_of(k)) else { return Ok(h) };
        let own = p.op(Affine { scale: 1.0 - q, shift: 0.0 }, &[&h])?;
        p.op(Axpy { alpha: q }, &[&own, &conv.forward(p, &h)?])
    }

    fn quantise_scale(&self, p: &Pass, k: usize, rest: &Tensor) -> Result<Step> {
        let place = || format!("scale {}", k + 1);
        let wanted = self.pool(k, rest).within(place())?;
        let tokens = self.nearest(&wanted).within(place())?;
        let adds = self.lift(p, k, &tokens).within(place())?;
        Ok(Step { tokens, wanted, adds })
    }

    /// Codes nearest to vectors [.., d], the first of equals.
    pub fn nearest(&self, x: &Tensor) -> Result<Tensor> {
        if x.remote().is_none() {
            x.check_finite("a vector to quantise")?;
        }
        let cosine = self.config.lookup == Lookup::Cosine;
        call(&NearestCode { cosine }, &[x, &self.book.value()])
    }

    /// What each scale had to quantise, a vector a token: [B L, d].
    ///
    /// # Errors
    /// Those of the device.
    pub fn vectors(&self, of: &Codes) -> Result<Tensor> {
        let all = in_a_row(&self.wanted(of)?)?;
        let (rows, d) = all.shape().matrix();
        all.reshape([rows, d])
    }

    /// The codes of a batch from those of its parts, in order; `None` of none.
    ///
    /// # Errors
    /// Those of the device.
    pub fn joined_codes(&self, mut parts: Vec<Codes>) -> Result<Option<Codes>> {
        if parts.len() < 2 {
            return Ok(parts.pop());
        }
        let rest = |k: usize| {
            let all: Vec<&Tensor> = parts.iter().filter_map(|part| part.rests.get(k)).collect();
            call(&Concat { axis: 0 }, &all)
        };
        let rests = (0..self.scales()).map(rest).collect::<Result<Vec<_>>>()?;
        let mut codes = Codes { tokens: parts.swap_remove(0).tokens, rests };
        // Numbers of codes are not put together on a GPU; they are found again.
        codes.tokens = self.nearest(&in_a_row(&self.wanted(&codes)?)?)?;
        Ok(Some(codes))
    }

    /// What each scale had to quantise, [B, p, p, d].
    fn wanted(&self, of: &Codes) -> Result<Vec<Tensor>> {
        of.rests.iter().enumerate().map(|(k, rest)| self.pool(k, rest)).collect()
    }

    /// Quantises f [B, h, w, d] on a tape. `keep` says how many scales each sample keeps: after
    /// them its sum stays where it is, and it takes no part in the later scales' loss.
    ///
    /// The loss is (1/K) sum_k [beta mse(sg(f_k), f) + mse(f_k, sg(f))]; f_k is the sum so far, so
    /// code and phi of a scale hear from every scale after them, and the encoder is held to every
    /// f_k.
    pub fn quantise<'a>(&self, p: &Pass, f: &Var, keep: impl Into<Keep<'a>>) -> Result<Quantised> {
        let keep = keep.into();
        let fused = self.fused().fits(self.config.latent_side(), self.config.d);
        if f.value().remote().is_some() && fused && self.scales() > 0 {
            return self.quantise_at_once(p, f, keep);
        }
        let fixed = f.detach();
        let mut sum: Option<Var> = None;
        let mut loss: Option<Var> = None;
        let (mut tokens, mut residuals, mut rests) = (Vec::new(), Vec::new(), Vec::new());
        for k in 0..self.scales() {
            let rest = match &sum {
                Some(s) => call(&SUB, &[f.value(), s.value()])?,
                None => f.value().clone(),
            };
            let step = self.quantise_scale(p, k, &rest)?;
            let mask = kept(keep.part, k, f.value().dtype())?;
            let adds = match &mask {
                Some(m) => p.op(Mul, &[&step.adds, m])?,
                None => step.adds,
            };
            let fk = match &sum {
                Some(s) => p.op(ADD, &[s, &adds])?,
                None => adds,
            };
            let over = (&mask, keep.samples(k));
            let book = masked_mse(p, &fk, &fixed, over)?;
            let commit = masked_mse(p, f, &fk.detach(), over)?;
            let both = p.op(Axpy { alpha: self.config.beta }, &[&book, &commit])?;
            loss = Some(match &loss {
                Some(l) => p.op(ADD, &[l, &both])?,
                None => both,
            });
            sum = Some(fk);
            tokens.push(step.tokens);
            residuals.push(step.wanted);
            rests.push(rest);
        }
        let (Some(sum), Some(loss)) = (sum, loss) else {
            return Err(Error::shape("quantiser", "there are no scales"));
        };
        // A GPU finds the codes again rather than copy their numbers by way of the host.
        let tokens = match f.value().remote() {
            Some(_) => self.nearest(&in_a_row(&residuals)?)?,
            None => self.joined(&tokens)?,
        };
        let shift = call(&SUB, &[sum.value(), f.value()])?;
        let latent = p.op(ADD, &[f, &shift.into()])?;
        let loss = p.op(Affine { scale: 1.0 / self.scales() as f64, shift: 0.0 }, &[&loss])?;
        Ok(Quantised { latent, loss, codes: Codes { tokens, rests } })
    }

    /// [`Quantiser::quantise`] with the walk through the scales as one op, which a GPU runs without
    /// a word to the host.
    pub fn quantise_at_once<'a>(
        &self,
        p: &Pass,
        f: &Var,
        keep: impl Into<Keep<'a>>,
    ) -> Result<Quantised> {
        let keep = keep.into();
        let &[b, h, w, d] = f.dims() else {
            return Err(Error::shape("quantiser", format!("{} is no map", f.value().shape())));
        };
        let (scales, dtype) = (self.scales(), f.value().dtype());
        let kept = keep.part.iter().map(|&n| n as i32).collect();
        let kept = Var::constant(Tensor::new_i32(kept, [keep.part.len()])?);
        let (filters, biases) = self.filters(p)?;
        let x = [&f.detach(), &p.param(&self.book), &filters, &biases, &kept];
        let (rests, extras) = p.op_with_extras(QuantiseRests(self.fused()), &x)?;
        let tokens = extras.into_iter().next();
        let tokens = tokens.ok_or_else(|| Error::Internal("quantise_rests finds codes".into()))?;
        let weights = Var::constant(Tensor::from_f64s(
            dtype,
            self.weights(keep, h * w * d),
            [b, scales, 1, 1, 1],
        )?);
        let mean = |error: &Var| {
            let part = p.op(Mul, &[&p.op(Square, &[error])?, &weights])?;
            p.op(SumTo { to: [1].into() }, &[&part])
        };
        // What a scale leaves is f - f_k: the codes hear of it, then f of what f_k is.
        let own = p.op(Reshape { to: [b, 1, h, w, d].into() }, &[f])?;
        let sums = call(&Affine { scale: -1.0, shift: 0.0 }, &[rests.value()])?;
        let sums = call(&ADD, &[&sums, own.value()])?;
        let commit = mean(&p.op(SUB, &[&sums.into(), &own])?)?;
        let loss = p.op(Axpy { alpha: self.config.beta }, &[&mean(&rests)?, &commit])?;
        let rest = |k: usize| {
            let one = call(&Narrow { axis: 1, start: k, len: 1 }, &[rests.value()])?;
            one.reshape(f.value().shape())
        };
        let mut rests = (0..scales).map(rest).collect::<Result<Vec<_>>>()?;
        let last = rests.pop().ok_or_else(|| Error::shape("quantiser", "there are no scales"))?;
        let latent = p.op(SUB, &[f, &last.into()])?;
        rests.insert(0, f.value().clone());
        Ok(Quantised { latent, loss, codes: Codes { tokens, rests } })
    }

    /// What each scale of each sample counts in the mean of the scales' mean squared errors, over
    /// the samples that keep the scale; [B, K].
    fn weights(&self, keep: Keep<'_>, elements: usize) -> Vec<f64> {
        let scales = self.scales();
        let all = (scales * elements.max(1)) as f64;
        let share = |k: usize| match keep.samples(k) {
            0.0 => 0.0,
            samples => 1.0 / (all * samples),
        };
        let shares: Vec<f64> = (0..scales).map(share).collect();
        let row = |&n: &usize| shares.iter().enumerate().map(move |(k, s)| f64::from(n > k) * s);
        keep.part.iter().flat_map(row).collect()
    }

    /// The filters [J d, 3, 3, d] and biases [J d] of all phi.
    fn filters(&self, p: &Pass) -> Result<(Var, Var)> {
        let (d, dtype) = (self.config.d, self.book.value().dtype());
        let join = |parts: Vec<Var>, none: &[usize]| match parts.is_empty() {
            true => Ok(Tensor::zeros(dtype, none).into()),
            false => p.op(Concat { axis: 0 }, &parts.iter().collect::<Vec<_>>()),
        };
        let filters = join(self.phi.iter().map(|c| p.param(c.weight())).collect(), &[0, 3, 3, d])?;
        Ok((filters, join(self.phi.iter().map(|c| p.param(c.bias())).collect(), &[0])?))
    }

    /// What each scale would quantise if every vector had its own code: pooled maps of what the
    /// earlier scales leave. k-means starts from these, before there is a book.
    pub fn ideal_residuals(&self, f: &Tensor) -> Result<Vec<Tensor>> {
        let side = self.config.latent_side();
        let mut rest = f.clone();
        let mut all = Vec::with_capacity(self.scales());
        for k in 0..self.scales() {
            let wanted = self.pool(k, &rest)?;
            if self.side(k) < side {
                let up = call(&resize(Map::Bicubic, self.side(k), side), &[&wanted])?;
                rest = call(&SUB, &[&rest, &up])?;
            }
            all.push(wanted);
        }
        Ok(all)
    }

    /// What each scale quantises with the present book.
    pub fn residuals(&self, f: &Tensor) -> Result<Vec<Tensor>> {
        let keep = vec![self.scales(); f.shape().dims().first().copied().unwrap_or(0)];
        self.wanted(&self.quantise(&Pass::eval(), &f.clone().into(), &keep)?.codes)
    }
}

fn resize(map: Map, from: usize, to: usize) -> Resample {
    Resample::new(map, [from; 2], [to; 2])
}

/// 1 for samples that keep 0-based scale `k` and 0 for the others, [B, 1, 1, 1]; `None` if all do.
fn kept(keep: &[usize], k: usize, dtype: DType) -> Result<Option<Var>> {
    if keep.iter().all(|&n| n > k) {
        return Ok(None);
    }
    let mask = keep.iter().map(|&n| if n > k { 1.0 } else { 0.0 }).collect();
    Ok(Some(Tensor::from_f64s(dtype, mask, [keep.len(), 1, 1, 1])?.into()))
}

/// Mean squared difference over the kept samples, so many; 0 when there are none.
fn masked_mse(p: &Pass, a: &Var, b: &Var, (mask, samples): (&Option<Var>, f64)) -> Result<Var> {
    let square = p.op(Square, &[&p.op(SUB, &[a, b])?])?;
    let per_sample = a.value().len() / a.dims()[0].max(1);
    let square = match mask {
        Some(m) => p.op(Mul, &[&square, m])?,
        None => square,
    };
    let sum = p.op(SumTo { to: [1].into() }, &[&square])?;
    let scale = if samples > 0.0 { 1.0 / (samples * per_sample as f64) } else { 0.0 };
    p.op(Affine { scale, shift: 0.0 }, &[&sum])
}
