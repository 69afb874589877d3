//! The four models together: from what is known before scale k to what the transformer reads at
//! scale k.

use super::mask::{MaskInput, Refined, refine};
use super::meanflow;
use super::msvq::Msvq;
use super::phi::{Phi, PhiLatent, Settled};
use crate::config::{ArConfig, MaskConfig, MaskTarget};
use crate::device::Device;
use crate::error::{Error, Result, Within};
use crate::ops::call;
use crate::ops::elementwise::{ADD, Mul, SUB};
use crate::ops::layout::Concat;
use crate::ops::random::names;
use crate::tensor::{DType, Tensor};

/// Per-channel mean and deviation of f_K over the training set. Phi starts from N(0, 1), so it must
/// see features of that size.
#[derive(Clone, Debug)]
pub struct FeatureStats {
    mean: Tensor,
    std: Tensor,
    inverse: Tensor,
}

impl FeatureStats {
    /// From feature maps [.., d]: statistics over everything but the channel.
    pub fn of(features: &Tensor) -> Result<Self> {
        let (rows, d) = features.shape().matrix();
        let (mut sum, mut squares) = (vec![0.0; d], vec![0.0; d]);
        for i in 0..rows * d {
            let x = features.at(i);
            sum[i % d] += x;
            squares[i % d] += x * x;
        }
        let n = rows.max(1) as f64;
        let mean: Vec<f64> = sum.iter().map(|s| s / n).collect();
        let var = |i: usize| (squares[i] / n - mean[i] * mean[i]).max(0.0);
        let std = (0..d).map(|i| var(i).sqrt().max(1e-6)).collect();
        Self::new(
            Tensor::from_f64s(DType::F32, mean.clone(), [d])?,
            Tensor::from_f64s(DType::F32, std, [d])?,
        )
    }

    /// From stored tensors `[d]`.
    pub fn new(mean: Tensor, std: Tensor) -> Result<Self> {
        if mean.shape() != std.shape() || std.to_f64s().iter().any(|s| s.is_nan() || *s <= 0.0) {
            let fix = "the checkpoint is damaged; train meanflow again";
            return Err(Error::data("feature statistics do not fit together", fix));
        }
        let inverse = std.to_f64s().iter().map(|s| 1.0 / s).collect();
        let inverse = Tensor::from_f64s(DType::F32, inverse, std.shape())?;
        Ok(Self { mean, std, inverse })
    }

    /// From a checkpoint's tensors `feature.mean` and `feature.std`.
    pub fn from_state(state: &std::collections::BTreeMap<String, Tensor>) -> Result<Self> {
        let take = |name: &str| {
            state.get(name).cloned().ok_or_else(|| {
                let fix = "this is not a checkpoint of Phi; give one of the meanflow stage";
                Error::data(format!("tensor {name} is missing"), fix)
            })
        };
        Self::new(take("feature.mean")?, take("feature.std")?)
    }

    /// The same numbers on a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let put = |t: &Tensor| device.put(t);
        Ok(Self { mean: put(&self.mean)?, std: put(&self.std)?, inverse: put(&self.inverse)? })
    }

    /// The stored tensors: (mean, deviation).
    pub fn parts(&self) -> (&Tensor, &Tensor) {
        (&self.mean, &self.std)
    }

    /// (x - mean) / std over the last axis.
    pub fn standardise(&self, x: &Tensor) -> Result<Tensor> {
        call(&Mul, &[&call(&SUB, &[x, &self.mean])?, &self.inverse])
    }

    /// x std + mean.
    pub fn restore(&self, x: &Tensor) -> Result<Tensor> {
        call(&ADD, &[&call(&Mul, &[x, &self.std])?, &self.mean])
    }
}

/// Everything between tokens and the transformer's input.
#[derive(Clone)]
pub struct Refiner<'a> {
    /// The tokenizer.
    pub msvq: &'a Msvq,
    /// Phi; None for plain VAR.
    pub phi: Option<&'a Phi>,
    /// Channel statistics.
    pub stats: FeatureStats,
    /// The mask.
    pub mask: &'a MaskConfig,
    /// The transformer's switches.
    pub ar: &'a ArConfig,
    /// The run's seed.
    pub seed: u64,
}

/// What the transformer reads at some scales.
pub struct ScaleInputs {
    /// Pooled features [B, n, d].
    pub features: Tensor,
    /// Pooled f_{k-1} [B, n, d].
    pub r: Tensor,
    /// M [B, n, 1]; None where nothing is masked.
    pub keep: Option<Tensor>,
    /// f_hat [B, H, H, d] in the tokenizer's units, where Phi made one.
    pub f_hat: Option<Tensor>,
}

impl Refiner<'_> {
    /// Inputs of 0-based scale `k` >= 1 from f_{k-1} [B, H, H, d]. `truth` is f_k where it is known
    /// (training), used only by the mask target `true`. `ids` name each row's random numbers.
    pub fn inputs(
        &self,
        k: usize,
        f_prev: &Tensor,
        truth: Option<&Tensor>,
        z: &Tensor,
        ids: &[u64],
    ) -> Result<ScaleInputs> {
        let names = Device::of([f_prev]).put(&names(self.seed, ids)?)?;
        self.inputs_of(k, f_prev, truth, z.into(), &names)
    }

    /// What Phi reads of z [B, latent] at every scale, for a [`PhiLatent`]; None where nobody asks
    /// it.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn settle(&self, z: &Tensor) -> Result<Option<Settled>> {
        let phi = self.phi.filter(|_| !self.ar.plain_var);
        phi.map(|phi| meanflow::settle(phi, z)).transpose()
    }

    /// [`Refiner::inputs`] with the rows' names [B, 4], the seed among them, as
    /// [`names`] makes them.
    pub fn inputs_of(
        &self,
        k: usize,
        f_prev: &Tensor,
        truth: Option<&Tensor>,
        z: PhiLatent<'_>,
        names: &Tensor,
    ) -> Result<ScaleInputs> {
        self.refined(k, f_prev, truth, z, names).within(format_args!("inputs of scale {}", k + 1))
    }

    fn refined(
        &self,
        k: usize,
        f_prev: &Tensor,
        truth: Option<&Tensor>,
        z: PhiLatent<'_>,
        names: &Tensor,
    ) -> Result<ScaleInputs> {
        let r_k = self.msvq.quantiser().pool(k, f_prev)?;
        let d = r_k.shape().dims().to_vec();
        let flat = |x: &Tensor| x.reshape([d[0], d[1] * d[2], d[3]]);
        let r_std = self.stats.standardise(&r_k)?;
        let r_seen = if self.ar.standardise { &r_std } else { &r_k };
        let phi = match self.phi {
            Some(phi) if !self.ar.plain_var => phi,
            _ => {
                let r = flat(r_seen)?;
                return Ok(ScaleInputs { features: r.clone(), r, keep: None, f_hat: None });
            }
        };
        let target = |f_hat: &Tensor| self.target(k, f_prev, truth, f_hat);
        let x = MaskInput { r_k: &r_std, z, k, names };
        let Refined { f_hat, keep, .. } = refine(phi, self.mask, &x, &target)?;
        let keep = keep.map(|keep| Device::of([&f_hat]).put(&keep)).transpose()?;
        let restored = self.stats.restore(&f_hat)?;
        let pooled =
            self.msvq.quantiser().pool(k, if self.ar.standardise { &f_hat } else { &restored })?;
        Ok(ScaleInputs { features: flat(&pooled)?, r: flat(r_seen)?, keep, f_hat: Some(restored) })
    }

    /// f* of the mask, standardised.
    fn target(
        &self,
        k: usize,
        f_prev: &Tensor,
        truth: Option<&Tensor>,
        f_hat: &Tensor,
    ) -> Result<Tensor> {
        match (self.mask.target, truth) {
            (MaskTarget::True, Some(f)) => self.stats.standardise(f),
            (MaskTarget::Selfq, _) => {
                let rest = call(&SUB, &[&self.stats.restore(f_hat)?, f_prev])?;
                let s_k = self.msvq.quantiser().nearest(&self.msvq.quantiser().pool(k, &rest)?)?;
                self.stats.standardise(&self.msvq.quantiser().add_scale(f_prev, k, &s_k)?)
            }
            _ => self.stats.standardise(f_prev),
        }
    }

    /// Inputs of scales 2..K side by side, for teacher forcing. `pyramid` holds f_1..f_K.
    pub fn teacher(&self, pyramid: &[Tensor], z: &Tensor, ids: &[u64]) -> Result<ScaleInputs> {
        let names = Device::of([z]).put(&names(self.seed, ids)?)?;
        let settled = self.settle(z)?;
        let z = PhiLatent { z, settled: settled.as_ref() };
        let per_scale = (1..pyramid.len())
            .map(|k| self.inputs_of(k, &pyramid[k - 1], Some(&pyramid[k]), z, &names))
            .collect::<Result<Vec<_>>>()?;
        let join = |parts: Vec<Tensor>| {
            let parts: Vec<&Tensor> = parts.iter().collect();
            call(&Concat { axis: 1 }, &parts)
        };
        let masked = per_scale.iter().any(|s| s.keep.is_some());
        let ones = |s: &ScaleInputs| {
            let d = s.features.shape().dims();
            let ones = Tensor::full(s.features.dtype(), [d[0], d[1], 1], 1.0);
            Device::of([&s.features]).put(&ones)
        };
        let keep = |s: &ScaleInputs| s.keep.clone().map_or_else(|| ones(s), Ok);
        let keeps = || per_scale.iter().map(keep).collect::<Result<Vec<_>>>();
        Ok(ScaleInputs {
            features: join(per_scale.iter().map(|s| s.features.clone()).collect())?,
            r: join(per_scale.iter().map(|s| s.r.clone()).collect())?,
            keep: masked.then(|| join(keeps()?)).transpose()?,
            f_hat: None,
        })
    }
}
