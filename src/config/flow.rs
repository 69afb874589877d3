//! The settings of Causal MeanFlow and of the mask that comes from its gradient.

use serde::{Deserialize, Serialize};

/// Causal MeanFlow: the network Phi and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeanFlowConfig {
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Width of an attention head.
    pub head_width: usize,
    /// Sinusoidal features of a time (cosines and sines together).
    pub time_dims: usize,
    /// Which two times are embedded.
    pub embed: TimePair,
    /// Which way time runs; B only proves the equivalence.
    pub formulation: Formulation,
    /// The tangent of the Jacobian-vector product.
    pub tangent: TangentKind,
    /// Distribution of times.
    pub times: TimeSampler,
    /// Mean of the logit of a time (lognorm).
    pub time_mean: f64,
    /// Standard deviation of the logit of a time (lognorm).
    pub time_std: f64,
    /// Share of rows with r != t.
    pub unequal: f64,
    /// Share of rows forced to (t, r) = (1, 0), the one point that sampling uses.
    pub forced_ends: f64,
    /// Power p of the adaptive weight 1 / (S + c)^p.
    pub adaptive_p: f64,
    /// Constant c of the adaptive weight.
    pub adaptive_c: f64,
    /// Weight alpha of the counterfactual push; below .5.
    pub alpha: f64,
    /// Share of the steps over which alpha grows from 0.
    pub alpha_ramp: f64,
    /// Smallest factor lambda of a counterfactual's length.
    pub lambda_min: f64,
    /// Largest factor lambda; the mean should be 1, or noise leaks into the sample.
    pub lambda_max: f64,
    /// What bounds the push.
    pub clamp: Clamp,
    /// How far a relative clamp lets the push reach, in squared distances of anchor and negative.
    pub clamp_kappa: f64,
    /// Which counterfactuals are used.
    pub counterfactual: CounterfactualConfig,
    /// Share of rows that see the null condition instead of z.
    pub z_dropout: f64,
    /// What is trained.
    pub mode: FlowMode,
    /// Whether z reaches Phi at all.
    pub rna: bool,
    /// Euler steps of flow matching when it samples.
    pub euler_steps: usize,
}

/// The counterfactual variants of a tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CounterfactualConfig {
    /// Stain and hue.
    pub colour: bool,
    /// Contrast about the tile's mean.
    pub contrast: bool,
    /// Unsharp mask.
    pub sharpness: bool,
    /// A tile of another slide.
    pub other_slide: bool,
}

impl Default for CounterfactualConfig {
    fn default() -> Self {
        Self { colour: true, contrast: true, sharpness: true, other_slide: true }
    }
}

impl Default for MeanFlowConfig {
    fn default() -> Self {
        Self {
            width: 512,
            blocks: 8,
            head_width: 64,
            time_dims: 256,
            embed: TimePair::Both,
            formulation: Formulation::A,
            tangent: TangentKind::Cond,
            times: TimeSampler::Lognorm,
            time_mean: -0.4,
            time_std: 1.0,
            unequal: 0.25,
            forced_ends: 0.0,
            adaptive_p: 1.0,
            adaptive_c: 0.01,
            alpha: 0.05,
            alpha_ramp: 0.1,
            lambda_min: 0.5,
            lambda_max: 1.5,
            clamp: Clamp::Relative,
            clamp_kappa: 4.0,
            counterfactual: CounterfactualConfig::default(),
            z_dropout: 0.1,
            mode: FlowMode::Causal,
            rna: true,
            euler_steps: 25,
        }
    }
}

/// The two times given to Phi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimePair {
    /// t and r.
    Both,
    /// t and t - r, as in MeanFlow.
    Difference,
}

/// Which end of time is noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Formulation {
    /// t = 1 is noise and r <= t.
    A,
    /// t = 0 is noise and r >= t: the mirror image of A, with Phi's sign turned.
    B,
}

/// What the Jacobian is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TangentKind {
    /// The conditional velocity of the row (MeanFlow).
    Cond,
    /// The network's own velocity at r = t (improved MeanFlow).
    Pred,
}

/// Where times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeSampler {
    /// sigmoid of a normal.
    Lognorm,
    /// Even on [0, 1].
    Uniform,
}

/// What keeps the push away from counterfactuals bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clamp {
    /// The literal loss.
    None,
    /// min(d, kappa |anchor - negative|^2).
    Relative,
    /// max(0, m^2 - d).
    Hinge,
    /// A softplus triplet.
    Softplus,
}

/// What Phi is: the method, or one of its ablations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowMode {
    /// The method: conditioned on r_k position by position and through cross-attention.
    Causal,
    /// MeanFlow without the r_k paths.
    Vanilla,
    /// r = t only, sampled by Euler steps.
    FlowMatching,
    /// A deterministic network: no noise, no time, squared error.
    Vit,
}

/// The mask on what the transformer sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskConfig {
    /// Where the saliency comes from.
    pub kind: MaskKind,
    /// What is done to the saliency before it meets gamma.
    pub normalise: Normalise,
    /// What f_hat is compared with.
    pub target: MaskTarget,
    /// First masked scale, counted from 1. Default 8 of 10.
    pub k_m: usize,
    /// The threshold.
    pub gamma: Gamma,
    /// Noise draws the gradient is averaged over.
    pub draws: usize,
    /// Keep rate of the random mask; .47 is what the z-scored gradient mask keeps.
    pub random_keep: f64,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self {
            kind: MaskKind::Gradient,
            normalise: Normalise::ZScore,
            target: MaskTarget::Prev,
            k_m: 8,
            gamma: Gamma::Sampled,
            draws: 1,
            random_keep: 0.47,
        }
    }
}

/// Saliency of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskKind {
    /// Norm of the gradient of the squared error to r_k.
    Gradient,
    /// Nothing is masked.
    None,
    /// A coin of rate `random_keep`.
    Random,
    /// Distance of f_hat and the target.
    EDistance,
}

/// Scale of the saliency against a standard normal threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// Mean 0, deviation 1 over a scale's positions.
    ZScore,
    /// Root mean square 1.
    Rms,
    /// As it is: nearly a fair coin.
    Raw,
}

/// What the error under the gradient is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskTarget {
    /// f_{k-1}: known in training and in sampling.
    Prev,
    /// f_k in training, as the paper writes it, and f_{k-1} in sampling, where f_k is unknown.
    True,
    /// The tokenizer's own quantisation of the prediction.
    Selfq,
    /// No target: the norm of the Jacobian along a random direction.
    Sens,
}

/// The threshold gamma.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gamma {
    /// A standard normal a position.
    Sampled,
    /// 0: keeps what is above the mean.
    Zero,
}
